//! The `launch` verb: from a manifest to a trained model, or to a clear reason why not.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use shoal_cluster::dialing::Dialer;
use shoal_cluster::words::{DataFile, LaunchEnd, Opened};
use shoal_coordinator::{follow, journal};
use shoal_plan::job::{Job, Workers};
use shoal_plan::plan::{RunId, WorkerId};
use shoal_plan::standing::Standing;
use shoal_store::Store;
use shoal_worker::Secret;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::children::{Children, Coordinator, Start};
use crate::cli;
use crate::clock::Stopwatch;
use crate::conducting::Told;
use crate::control::{Control, Written};
use crate::cores::Cores;
use crate::devices::Devices;
use crate::epochs::Epochs;
use crate::events::{Kind, Log};
use crate::exit::Stopped;
use crate::finish::Finish;
use crate::hands::{Hands, Rigs};
use crate::initial;
use crate::line::{Caller, Heard, Line};
use crate::logging;
use crate::manifest::{self, Loaded};
use crate::metrics::Metrics;
use crate::mirror::{self, Copying};
use crate::page::Page;
use crate::preflight::{self, Has, Needs};
use crate::restarts::Restarts;
use crate::resume::{Earlier, take_over};
use crate::run_dir::RunDir;
use crate::scrape;
use crate::show;
use crate::signals::Signals;
use crate::terminal::{data as print, note};
use crate::tokenise;
use crate::train::{Done, Recovery, Training};

/// Trains what the manifest describes: plan, coordinator, workers, evaluation, summary.
pub(crate) fn launch(args: &cli::Launch) -> Result<(), Stopped> {
    let name = args.run_dir.as_deref().and_then(Path::file_name).unwrap_or_default();
    let (line, heard) = match (&args.cluster, &args.credentials) {
        (Some(socket), _) => Line::call(socket, &name.to_string_lossy())?,
        (None, Some(credentials)) => {
            let dialer = Dialer { credentials: credentials.clone() };
            let (coordinators, nth) = (args.coordinators.clone(), args.nth.unwrap_or(0));
            Line::call_any(&name.to_string_lossy(), Caller { coordinators, dialer, nth })
        }
        (None, None) => return launch_over(args, None),
    };
    let ended = launch_over(args, Some((line.clone(), heard)));
    line.end(match &ended {
        Ok(()) => LaunchEnd::Finished,
        Err(Stopped::Signal(_)) => LaunchEnd::Stopped,
        Err(other) => LaunchEnd::Failed(other.text().unwrap_or_else(|| "it ended".to_owned())),
    });
    ended
}

/// A line to a cluster's coordinator, where rigs are the workers.
type Over = Option<(Line, mpsc::UnboundedReceiver<Heard>)>;

fn launch_over(args: &cli::Launch, over: Over) -> Result<(), Stopped> {
    let watch = Stopwatch::start();
    let mut loaded = manifest::read(&args.manifest)?;
    let job = loaded.job();
    let run_dir = match &args.run_dir {
        Some(directory) => RunDir::open(directory)?,
        None => RunDir::open(&Path::new("runs").join(&job.name))?,
    };
    if args.fresh {
        run_dir.clear()?;
    }
    logging::to_run(&run_dir, args.log_format)?;
    if let Earlier::Finished { step } = take_over(&run_dir, job)? {
        print(&format!("the run in {} is finished: {step} steps\n", run_dir.path().display()));
        print(&show::places(&run_dir, step, None));
        note("to train further raise training.steps; to start over add --fresh");
        return Ok(());
    }
    let devices = match over {
        Some(_) => Devices::cpu("each rig says for itself"),
        None => Devices::choose(&mut loaded)?,
    };
    let job = loaded.job();
    check_machine(&run_dir, (&loaded, &devices), args)?;
    let runtime = event_loop()?;
    let store = mirror::open(&runtime, job, &loaded.directory)?;
    if let Some(store) = &store {
        mirror::take_over(&runtime, store, job, args.fresh)?;
    }
    let resume_from = newest_checkpoint(&run_dir, |here| match &store {
        Some(store) => mirror::fetch(&runtime, store, (&run_dir, job), here),
        None => Ok(false),
    })?;
    if resume_from.is_none() {
        initial::check(job, &loaded.directory)?;
    }
    let dataset = tokenise::tokenise(&run_dir, &loaded)?;
    show_plan(&run_dir, &loaded, &devices)?;
    if over.is_some() {
        initial::lay_out(job, &loaded.directory, (&run_dir.data(), resume_from.is_none()))?;
    }
    let mut metrics = Metrics::open(&run_dir.metrics(), &resume_from.unwrap_or_default())?;
    metrics.also_for_tensorboard(&run_dir.tensorboard());
    let epochs = Epochs::new(job, &dataset);
    note(&epochs.overview(&job.training));
    let mut events = open_events(&run_dir, job, &resume_from.unwrap_or_default(), watch)?;
    let over = over.map(|(line, heard)| Cluster { line, heard, first: args.first.unwrap_or(1) });
    // That of a cluster's job is served where its people are.
    let page_port = (over.is_none() && !args.no_page).then_some(args.page_port);
    let (metrics_to, events_to) = (&mut metrics, &mut events);
    let work =
        Work { metrics: metrics_to, epochs, events: events_to, store, devices, over, page_port };
    let (done, signals) = runtime.block_on(train(&run_dir, &loaded, work, resume_from))?;
    exit_on_signal(&runtime, signals);
    metrics.flush()?;
    Finish { run_dir: &run_dir, job, metrics: &metrics, done, watch, args }.tell()
}

/// Refuses a launch that this machine is too small for, before anything is started.
fn check_machine(
    run_dir: &RunDir,
    (loaded, devices): (&Loaded, &Devices),
    args: &cli::Launch,
) -> Result<(), Stopped> {
    let taken = preflight::taken_ports(loaded.job());
    if !taken.is_empty() {
        let what = format!("ports that are taken already: {taken:?}");
        let help = "choose another, or 0 for any free ones";
        return Err(loaded.error_at("spec.metrics.port", &what, help));
    }
    let needs = Needs::of(loaded.job(), &loaded.plan, (loaded.text_bytes(), devices.are_gpus()));
    let mut has = Has::here(run_dir.path());
    if args.cluster.is_some() || args.credentials.is_some() {
        // The workers are elsewhere.
        (has.memory_bytes, has.files) = (None, None);
    }
    let short = needs.short_of(&has);
    if short.is_empty() {
        return Ok(());
    }
    let found = format!("this machine is too small for the run:\n  {}", short.join("\n  "));
    if args.force {
        note(&format!("warning: {found}"));
        return Ok(());
    }
    Err(Stopped::Input(format!("{found}\nestimates; --force starts all the same")))
}

/// What follows the run as it goes.
struct Work<'a> {
    metrics: &'a mut Metrics,
    epochs: Epochs,
    store: Option<Store>,
    events: &'a mut Log,
    devices: Devices,
    over: Option<Cluster>,
    page_port: Option<u16>,
}

/// Rigs as workers: so many of them are there to begin with.
struct Cluster {
    line: Line,
    heard: mpsc::UnboundedReceiver<Heard>,
    first: u32,
}

/// Rigs fetch the text before they come.
const RIGS_DEADLINE_MS: u64 = 30 * 60 * 1000;

/// Where what happens to the run is written down, this launch first of all.
fn open_events(
    run_dir: &RunDir,
    job: &Job,
    standing: &Standing,
    watch: Stopwatch,
) -> anyhow::Result<Log> {
    let log = Log::open(run_dir.path(), standing.step, watch);
    let mut log = log.with_context(|| format!("opening {}", run_dir.events().display()))?;
    let (workers, steps) = (job.workers.local, job.training.steps);
    let from = if standing.step == 0 { "from the start" } else { "from the newest checkpoint" };
    log.add(Kind::Launched, None, format!("{workers} workers, to step {steps}, {from}"));
    Ok(log)
}

/// What to resume from. A damaged checkpoint is passed over, and said so. `fetch` may bring one that
/// is newer than the step it is given, and says whether it did.
fn newest_checkpoint(
    run_dir: &RunDir,
    fetch: impl FnOnce(u64) -> Result<bool, Stopped>,
) -> Result<Option<Standing>, Stopped> {
    let look =
        || shoal_weights::newest_good(&run_dir.checkpoints()).context("looking for a checkpoint");
    let mut found = look()?;
    for warning in &found.warnings {
        note(&format!("warning: {warning}"));
    }
    if fetch(found.step.unwrap_or(0))? {
        found = look()?;
    }
    if let Some(step) = found.step {
        note(&format!("continuing after step {step}"));
    }
    Ok(found.manifest.map(|manifest| manifest.standing))
}

fn show_plan(run_dir: &RunDir, loaded: &Loaded, devices: &Devices) -> anyhow::Result<()> {
    print(&show::job(loaded.job(), loaded.n_files()));
    print(&show::plan(loaded.job(), &loaded.plan, &cores(loaded.job())));
    print(&format!("  {devices}"));
    print(&preflight::snapshots(loaded.job(), &loaded.plan, preflight::free_bytes()));
    let plan = serde_json::to_value(&loaded.plan).context("writing the plan as JSON")?;
    run_dir.write_json("plan.json", &plan)?;
    // A run that goes on is not finished.
    run_dir.forget_summary()
}

/// Starts the coordinator and the workers and listens until the end. The signals come back: from
/// here on nobody else handles them.
async fn train(
    run_dir: &RunDir,
    loaded: &Loaded,
    work: Work<'_>,
    resume_from: Option<Standing>,
) -> Result<(Done, Signals), Stopped> {
    let job = loaded.job();
    let mut signals = Signals::listen()?;
    let run = new_run_id()?;
    let secret = Secret::random().context("making the run's secret")?;
    let told = Told {
        run: run.clone(),
        secret: secret.to_hex(),
        job: initial::for_workers(job, &loaded.directory),
        resume_from,
        first: work.over.as_ref().map(|over| over.first),
        join_deadline_ms: work.over.as_ref().map(|_| RIGS_DEADLINE_MS),
    };
    scrape::withdraw(&run_dir.scrape_targets());
    journal::forget(run_dir.path()).context("removing what an earlier coordinator knew")?;
    let coordinator = Coordinator::start(&told, run_dir)?;
    let following = follow(coordinator.address(), secret.clone());
    let _asked_here = let_it_be_asked(run_dir, &told, &coordinator);
    let _seen_here = work.page_port.and_then(|port| let_it_be_seen(run_dir, port));
    let start = Start {
        join: coordinator.address(),
        run,
        secret: secret.to_hex(),
        run_dir: run_dir.path().to_path_buf(),
        logs: run_dir.logs(),
        cores: cores(job),
        yield_to: job.workers.yield_to.clone(),
        devices: work.devices,
        metrics_port: if job.metrics.port == 0 { 0 } else { job.metrics.port.saturating_add(1) },
    };
    let (hands, heard) = hands(job.workers.local, start, work.over, run_dir)?;
    let newest = resume_from.map(|standing| standing.step);
    let copying = work
        .store
        .map(|store| Copying::start(store, (run_dir, job), newest, following.commands.clone()));
    let watch = Stopwatch::start();
    let workers = (0..job.workers.local).map(WorkerId);
    let training = Training {
        run_dir,
        metrics: work.metrics,
        epochs: work.epochs,
        events: work.events,
        hands,
        heard,
        coordinator,
        coordinator_gone: None,
        coordinator_restarts: Restarts::new(
            [()].into_iter(),
            job.workers.restarts,
            watch.seconds(),
        ),
        following,
        signals: &mut signals,
        checkpoint: resume_from.map(|standing| standing.step),
        copying,
        job,
        restarts: Restarts::new(workers, job.workers.restarts, watch.seconds()),
        recovery: Recovery::default(),
        watch,
    };
    let done = training.run().await;
    scrape::withdraw(&run_dir.scrape_targets());
    Ok((done?, signals))
}

/// Children, or whoever is at the other end of a line.
fn hands(
    workers: u32,
    start: Start,
    over: Option<Cluster>,
    run_dir: &RunDir,
) -> anyhow::Result<(Hands, Option<mpsc::UnboundedReceiver<Heard>>)> {
    let Some(Cluster { line, heard, first }) = over else {
        return Ok((Hands::Here(Box::new(Children::start(workers, start)?)), None));
    };
    line.opened(Opened {
        run: start.run,
        secret: start.secret,
        address: start.join,
        files: text_files(run_dir)?,
    });
    Ok((Hands::Rigs(Rigs::new(line, first)), Some(heard)))
}

/// The text, as rigs fetch it.
fn text_files(run_dir: &RunDir) -> anyhow::Result<Vec<DataFile>> {
    let directory = run_dir.data();
    let context = || format!("reading {}", directory.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&directory).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.is_file() && path.extension().is_none_or(|extension| extension != "partial") {
            let file = DataFile::of(&path);
            files.push(file.with_context(|| format!("reading {}", path.display()))?);
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Writes down where the run is asked from other terminals. It trains without that, too.
fn let_it_be_asked(run_dir: &RunDir, told: &Told, coordinator: &Coordinator) -> Option<Written> {
    let control = Control {
        run: told.run.clone(),
        address: coordinator.address(),
        secret: told.secret.clone(),
        pid: std::process::id(),
    };
    match Written::write(run_dir.path(), &control) {
        Ok(written) => Some(written),
        Err(error) => {
            note(&format!("warning: no status, drain, stop or pause of this run: {error:#}"));
            None
        }
    }
}

/// Serves the run's page. It trains without that, too.
fn let_it_be_seen(run_dir: &RunDir, port: u16) -> Option<Page> {
    match Page::of_run(run_dir.path(), port) {
        Ok(page) => {
            note(&format!("watch it in a browser on this machine: {}", page.link));
            Some(page)
        }
        Err(error) => {
            note(&format!("warning: no page of this run: {error:#}"));
            None
        }
    }
}

/// What is left (curve, samples) may be cut short: the summary is written and no worker runs.
fn exit_on_signal(runtime: &Runtime, mut signals: Signals) {
    runtime.spawn(async move {
        let signal = signals.next().await;
        std::process::exit(signal.exit_code().into());
    });
}

pub(crate) fn event_loop() -> anyhow::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().context("starting the event loop")
}

/// Threads and cores of each worker.
pub(crate) fn cores(job: &Job) -> Cores {
    let Workers { local, threads, pin, .. } = job.workers;
    Cores::share(local, threads, pin)
}

/// 16 random bytes in hexadecimal.
fn new_run_id() -> anyhow::Result<RunId> {
    let mut bytes = [0_u8; 16];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.context("reading random bytes from /dev/urandom")?;
    Ok(RunId(format!("{:032x}", u128::from_ne_bytes(bytes))))
}
