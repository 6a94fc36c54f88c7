//! The live page: a run, or a cluster, in a browser on this machine. `shoal launch` serves one of its run, `shoal page` one of
//! whatever `shoal top` could show. Whoever looks sees the same looks; while nobody does, none is taken.

mod answers;
mod assets;
mod door;
mod listener;
mod state;
mod telling;
mod watcher;

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{Semaphore, oneshot};

use crate::exit::Stopped;
use crate::look::Source;
use crate::signals::Signals;
use crate::terminal::{data, note};
use crate::{cli, launch};
use answers::Service;
use door::Door;
use listener::Bounded;
use watcher::{Sight, Watcher};

/// Who may listen at a time.
const SEATS: usize = 8;

/// How long things take; tests are in more of a hurry.
#[derive(Clone, Copy)]
struct Pace {
    /// Between two looks.
    every: Duration,
    /// A connection on which nothing could be written for so long is closed.
    idle: Duration,
}

const PACE: Pace = Pace { every: Duration::from_secs(1), idle: Duration::from_secs(30) };

/// A page that is served, until this is dropped.
pub(crate) struct Page {
    /// Good once.
    pub(crate) link: String,
    watcher: Watcher,
    /// Ends the thread that serves, by being dropped.
    _serving: oneshot::Sender<()>,
}

impl Page {
    /// Serves a run of this machine; port 0 takes any free one.
    ///
    /// # Errors
    /// The port is taken, or there is no thread.
    pub(crate) fn of_run(run_dir: &Path, port: u16) -> anyhow::Result<Self> {
        let home = cli::Home { place: cli::Home::DEFAULT.into() };
        let source = Source::of_run(run_dir.to_path_buf(), home).with_steps();
        Self::start(source, port, PACE, another_link(Some(run_dir)))
    }

    fn start(sight: impl Sight, port: u16, pace: Pace, again: String) -> anyhow::Result<Self> {
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = bound.with_context(|| {
            format!("opening port {port} for the page: choose another, or 0 for any free one")
        })?;
        listener.set_nonblocking(true).context("opening a port for the page")?;
        let address = listener.local_addr().context("asking for the port of the page")?;
        let (door, token) = Door::new().context("making a link to the page")?;
        let watcher = Watcher::start(sight, pace.every)?;
        let service = Service {
            door,
            watcher: watcher.clone(),
            seats: Arc::new(Semaphore::new(SEATS)),
            n_seats: SEATS,
            again,
        };
        let (serving, stop) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("starting an event loop for the page")?;
        // A thread of its own: whatever comes here, the run's own loop does not wait for it.
        let serve = move || runtime.block_on(serve((listener, pace.idle), service, stop));
        thread::Builder::new().name("page".to_owned()).spawn(serve).context("starting a thread")?;
        Ok(Self { link: format!("http://{address}/?token={token}"), watcher, _serving: serving })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.watcher.end();
    }
}

async fn serve(
    (listener, idle): (TcpListener, Duration),
    service: Service,
    stop: oneshot::Receiver<()>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => Bounded::new(listener, idle),
        Err(error) => return tracing::warn!(%error, "the page is not served"),
    };
    let served = axum::serve(listener, answers::router(Arc::new(service)));
    tokio::select! {
        ended = async { served.await } => tracing::warn!(?ended, "the page is no longer served"),
        _dropped = stop => {}
    }
}

/// The command that prints one.
fn another_link(what: Option<&Path>) -> String {
    match what {
        Some(what) => format!("shoal page {}", cli::quoted(&what.display().to_string())),
        None => "shoal page".to_owned(),
    }
}

/// The verb `page`.
pub(crate) fn page(args: &cli::Page) -> Result<(), Stopped> {
    let mut source = Source::choose(args.what.as_deref(), &args.home)?.with_steps();
    // Whatever is wrong with what is looked at is said here, and not in a browser.
    source.look(0.0)?;
    let page = Page::start(source, args.port, PACE, another_link(args.what.as_deref()))?;
    data(&page.link);
    note("open this in a browser on this machine; it is good once, and Ctrl-C ends the page");
    let runtime = launch::event_loop()?;
    let signal = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        anyhow::Ok(signals.next().await)
    })?;
    Err(Stopped::Signal(signal))
}

#[cfg(test)]
mod tests;
