//! `shoal serve`: completions over HTTP for one model. The numbers run on a thread of their own
//! (`serve/writer.rs`), requests and answers on the runtime (`serve/answers.rs`), and the words of the
//! interface are in `serve/words.rs`.

mod answers;
mod words;
mod writer;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;

use crate::cli;
use crate::exit::Stopped;
use crate::signals::Signals;
use crate::terminal::note;
use crate::voice;

use self::answers::Service;
use self::writer::Writer;

/// A token that is shorter can be guessed.
const TOKEN_BYTES_MIN: usize = 16;

pub(crate) fn serve(args: &cli::Serve) -> Result<(), Stopped> {
    let token = token(args)?;
    let voice = voice::open(&args.model)?;
    let speculate = voice::speculates(&voice, &args.model, args.speculate)?;
    let pool = voice::pool(args.model.threads)?;
    let directory = std::path::absolute(&args.model.directory).context("naming the model")?;
    let name = directory.file_name().map_or("model".into(), |name| name.to_string_lossy());
    let writer = Writer::start(voice, pool, speculate, args.queue);
    let limit = Duration::from_secs(args.time_limit);
    let service = Arc::new(Service::new(name.into_owned(), writer, token, limit));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build();
    let runtime = runtime.context("starting the threads that answer")?;
    runtime.block_on(listen(args.listen, service))
}

async fn listen(address: SocketAddr, service: Arc<Service>) -> Result<(), Stopped> {
    let mut signals = Signals::listen()?;
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| {
        format!("listening on {address}: choose another with --listen ADDRESS:PORT")
    })?;
    let address = listener.local_addr().context("asking for the address")?;
    note(&format!("{} answers on http://{address}/v1/completions", service.name()));
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let server = axum::serve(listener, answers::router(service)).with_graceful_shutdown(async {
        // It ends with the sender, too.
        let _ = stopping.await;
    });
    let serving = tokio::spawn(async move { server.await });
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => {
            ended.context("serving")?.context("serving")?;
            return Ok(());
        }
        signal = signals.next() => note(&format!("{signal}: no new requests; those under way end")),
    }
    let _ = stop.send(());
    tokio::select! {
        ended = &mut serving => ended.context("serving")?.context("serving")?,
        signal = signals.next() => return Err(Stopped::Signal(signal)),
    }
    Ok(())
}

/// The token of `--token-file`, which any address but loopback needs.
fn token(args: &cli::Serve) -> Result<Option<String>, Stopped> {
    match &args.token_file {
        Some(file) => read_token(file).map(Some).map_err(Stopped::Input),
        None if args.listen.ip().is_loopback() => Ok(None),
        None => Err(Stopped::Input(format!(
            "{} is reached from other machines: name a file with a token, --token-file FILE, or \
             listen on 127.0.0.1",
            args.listen
        ))),
    }
}

fn read_token(file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| format!("the token in {}: {error}", file.display()))?;
    let token = text.trim();
    if token.len() < TOKEN_BYTES_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "the token in {}: want one word of {TOKEN_BYTES_MIN} letters and digits or more",
            file.display()
        ));
    }
    Ok(token.to_owned())
}
