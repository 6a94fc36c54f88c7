//! The `host` verb: hosts cells for a launcher, and never outlives it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{BufRead, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, bail};
use shoal_bench::Meter;
use shoal_bench::peak::Peak;
use shoal_plan::plan::{RunId, WorkerId};
use shoal_worker::daemon::{self, Doors, Gate, Options};
use shoal_worker::devices::Devices;
use shoal_worker::engine::CellEngines;
use shoal_worker::metrics::{Metrics, Peaks};
use shoal_worker::{Secret, Trust};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::oneshot;

use crate::clock::Stopwatch;
use crate::run_dir::RunDir;
use crate::signals::Signal;
use crate::yielding::{self, Sight};
use crate::{cli, cores, logging, scrape};

/// The orderly way out gets this long after the launcher is gone.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs until the coordinator says to leave, the launcher is gone, or something fails; then ends
/// the process. Returns only when it could not even begin.
pub(crate) fn host(args: cli::Worker) -> anyhow::Result<Infallible> {
    // Before the first thread: those that come later inherit it.
    let kept = if args.cores.is_empty() { Ok(()) } else { cores::keep_to(&args.cores) };
    // What a GPU can do at most is not measured here.
    let peaks = if args.gpu.is_empty() { peaks(args.threads)? } else { Peaks::default() };
    let metrics = Metrics::new(args.id, &args.run, peaks);
    let metrics = metrics.context("registering the worker's metrics")?;
    let stands = metrics.clone();
    let who = (args.run_dir.as_path(), Some(args.id));
    logging::to_standard_error(args.log_format, who, move || stands.stands_at());
    metrics.watch_gpus().context("registering the metrics of GPUs")?;
    if let Err(error) = kept {
        tracing::warn!(cores = ?args.cores, %error, "the threads run on any core");
    }
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .context("reading the secret from standard input")?;
    if line.is_empty() {
        bail!("standard input ended before the secret: `shoal launch` starts the workers it needs");
    }
    let secret = Secret::from_hex(&line).context("reading the secret from standard input")?;
    let advertise = args.advertise.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let options = Options {
        join: gate(&args)?,
        secret,
        run: RunId(args.run),
        worker: WorkerId(args.id),
        run_dir: args.run_dir,
        threads: args.threads,
        init: args.init,
        devices: args.gpu.len().max(1) as u32,
        bind: bound_for(advertise),
        advertise,
        first_port: args.first_port,
        trust: args.credentials.map(|credentials| Trust { credentials, names: BTreeMap::new() }),
        yielding: yielding::watch(
            args.yield_to.iter().map(String::as_str).map(Sight::of).collect(),
        ),
    };
    let (worker, metrics_dir) = (options.worker, RunDir::scrape_targets_of(&options.run_dir));
    let launcher_gone = watch_launcher();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("starting the event loop")?;
    let served = metrics.clone();
    let devices = Devices::open(&args.gpu).context("opening this worker's GPU")?;
    let engines = CellEngines::new(metrics, devices);
    let reason = runtime.block_on(async {
        let newest = served.clone();
        let (text, step) = (move || served.text(), move || newest.newest_step());
        let address = scrape::serve_worker(args.metrics_port, text, step).await?;
        scrape::announce(&metrics_dir, &worker.to_string(), address)?;
        let asked_to_leave = asked_to_leave(unix::signal(SignalKind::terminate())?);
        let launcher_gone = async move {
            // An error means that the watching thread ended, which is the same news.
            let _ = launcher_gone.await;
        };
        anyhow::Ok(daemon::run(options, engines, launcher_gone, asked_to_leave).await?)
    })?;
    tracing::info!(%reason, "leaving");
    // An engine that hangs stays behind on a thread, which nobody waits for.
    std::process::exit(reason.code().into())
}

/// Where to listen for those who dial an address: on that very one, if this machine has it; behind a router that
/// passes connections on, on all.
fn bound_for(advertise: IpAddr) -> IpAddr {
    let is_here = TcpListener::bind((advertise, 0)).is_ok();
    match advertise {
        address if is_here => address,
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// On this machine, or through a cluster's door.
fn gate(args: &cli::Worker) -> anyhow::Result<Gate> {
    if let Some(credentials) = &args.credentials {
        return Ok(Gate::Cluster {
            doors: Doors::new(&args.join),
            credentials: credentials.clone(),
        });
    }
    let address = args.join.parse();
    Ok(Gate::Here(address.with_context(|| format!("--join {}: want ADDRESS:PORT", args.join))?))
}

/// What this worker's share of the model's FLOPs is held against: what its threads can do at most.
/// In a pool of its own: the engine sizes the process's.
fn peaks(threads: usize) -> anyhow::Result<Peaks> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    let pool = pool.build().context("starting threads to measure the CPU")?;
    let (f32, bf16) = pool.install(|| Peak::of_multiply_adds(&Clock(Stopwatch::start())));
    Ok(Peaks { f32, bf16 })
}

/// A meter that only knows the time.
struct Clock(Stopwatch);

impl Meter for Clock {
    fn seconds(&self) -> f64 {
        self.0.seconds()
    }

    fn allocations(&self) -> Option<u64> {
        None
    }
}

/// The first SIGTERM asks the worker to hand over its cells and go; the second one ends it.
async fn asked_to_leave(mut terminate: unix::Signal) -> String {
    terminate.recv().await;
    tracing::info!("SIGTERM: handing over");
    tokio::spawn(async move {
        terminate.recv().await;
        tracing::warn!("SIGTERM again: going at once");
        std::process::exit(Signal::Terminate.exit_code().into());
    });
    "SIGTERM".to_owned()
}

/// Standard input ends when the launcher does, however it ends. Then the worker goes at once: what
/// it holds is in the last checkpoint or lost anyway.
fn watch_launcher() -> oneshot::Receiver<()> {
    let (say, gone) = oneshot::channel();
    std::thread::spawn(move || {
        let mut byte = [0];
        // Anything but another byte is an end; the launcher sends none after the secret.
        while matches!(std::io::stdin().lock().read(&mut byte), Ok(1)) {}
        tracing::warn!("the launcher is gone");
        let _ = say.send(());
        // Nobody sends here: this waits, and then ends what did not end by itself.
        let (_keep, never) = channel::<()>();
        let _ = never.recv_timeout(LAST_WORDS);
        std::process::exit(1);
    });
    gone
}
