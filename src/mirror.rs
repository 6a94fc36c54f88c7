//! The copy of a run's checkpoints in `spec.checkpoint.store`: looked at before a launch, fetched from
//! when it is further than the run directory, and kept up to date beside the training.

use std::path::Path;

use anyhow::Context;
use shoal_coordinator::{Command, checkpoints};
use shoal_plan::checkpoint::{CheckpointManifest, Keep, partial_name};
use shoal_plan::job::Job;
use shoal_plan::manifest::difference;
use shoal_plan::plan::Generation;
use shoal_plan::store::StoreAddress;
use shoal_store::{Error, Mirror, Said, Settings, Store};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::exit::Stopped;
use crate::progress::Reading;
use crate::run_dir::RunDir;
use crate::settings;
use crate::terminal::note;

/// The task that copies, and what it says.
pub(crate) struct Copying {
    mirror: Mirror,
    said: mpsc::UnboundedReceiver<Said>,
    /// To the coordinator, which counts.
    commands: mpsc::UnboundedSender<Command>,
    shown: String,
}

/// Opens the job's store, if it has one. `manifest` is the directory of the job's file.
pub(crate) fn open(
    runtime: &Runtime,
    job: &Job,
    manifest: &Path,
) -> Result<Option<Store>, Stopped> {
    let Some(text) = &job.checkpoint.store else { return Ok(None) };
    let address = StoreAddress::parse(text)
        .map_err(|error| Stopped::Input(format!("spec.checkpoint.store: {}", error.what)))?;
    let address = address.below(manifest);
    let opening = shoal_store::open(&address, &settings::environment);
    Ok(Some(runtime.block_on(opening)?))
}

/// Makes the store this run's.
pub(crate) fn take_over(
    runtime: &Runtime,
    store: &Store,
    job: &Job,
    fresh: bool,
) -> Result<(), Stopped> {
    if fresh {
        runtime.block_on(store.clear())?;
    }
    let ours = serde_json::to_string_pretty(job).context("writing the manifest as JSON")?;
    if let Some(theirs) = runtime.block_on(store.claim(&ours))? {
        compare(store, &theirs, job)?;
        if theirs != ours.as_bytes() {
            runtime.block_on(store.record(&ours))?;
        }
    }
    Ok(())
}

/// Refuses a store that belongs to another run.
fn compare(store: &Store, theirs: &[u8], job: &Job) -> Result<(), Stopped> {
    let help =
        "Choose another spec.checkpoint.store, or start over with --fresh, which empties it.";
    let Ok(theirs) = serde_json::from_slice::<Job>(theirs) else {
        let what = "holds a run of another version of shoal";
        return Err(Stopped::Input(format!("{store} {what}. {help}")));
    };
    let changes = difference(&theirs, job);
    let lines: Vec<String> = changes
        .iter()
        .filter(|change| !change.harmless)
        .map(|change| format!("  {change}"))
        .collect();
    if lines.is_empty() {
        return Ok(());
    }
    let lines = lines.join("\n");
    Err(Stopped::Input(format!("{store} holds a run of another manifest:\n{lines}\n{help}")))
}

/// What is fetched was written by no plan of this launch.
const FETCHED: Generation = Generation(0);

/// Brings the newest good checkpoint of the store into the run directory, if it is newer than the
/// newest good one there, of step `here`. True if there is one more now.
pub(crate) fn fetch(
    runtime: &Runtime,
    store: &Store,
    (run_dir, job): (&RunDir, &Job),
    here: u64,
) -> Result<bool, Stopped> {
    let (checkpoints, keep) = (run_dir.checkpoints(), Keep::of(&job.checkpoint));
    let there = runtime.block_on(store.steps())?;
    for step in there.into_iter().filter(|step| *step > here) {
        let mut fetched = runtime.block_on(fetch_step(store, &checkpoints, step));
        if fetched.as_ref().is_err_and(Error::is_damage) {
            // It may have been damaged on the way.
            fetched = runtime.block_on(fetch_step(store, &checkpoints, step));
        }
        match fetched {
            Ok(manifest) => {
                let committed = checkpoints::commit(&checkpoints, FETCHED, &manifest, keep);
                committed.with_context(|| format!("keeping the checkpoint of step {step}"))?;
                note(&format!("fetched the checkpoint of step {step} from {store}"));
                return Ok(true);
            }
            Err(error) if error.is_damage() => {
                checkpoints::remove(&checkpoints.join(partial_name(step, FETCHED)));
                note(&format!("warning: the checkpoint of step {step} is passed over: {error}"));
                // Else the same step, trained again, would be taken for the one that is there.
                runtime.block_on(store.forget(step))?;
            }
            Err(error) => {
                checkpoints::remove(&checkpoints.join(partial_name(step, FETCHED)));
                return Err(error.into());
            }
        }
    }
    Ok(false)
}

async fn fetch_step(
    store: &Store,
    checkpoints: &Path,
    step: u64,
) -> Result<CheckpointManifest, Error> {
    let manifest = store.manifest(step).await?;
    let all = manifest.files.iter().map(|file| file.bytes).sum();
    let (mut reading, mut done) = (Reading::start(), 0);
    let task = format!("fetching step-{step} from {store}");
    let mut got = |bytes: u64| {
        done += bytes;
        reading.bytes(&task, done, Some(all));
    };
    store.fetch(&manifest, &checkpoints.join(partial_name(step, FETCHED)), &mut got).await?;
    Ok(manifest)
}

impl Copying {
    /// Starts copying; `newest` is the step that the run goes on from.
    pub(crate) fn start(
        store: Store,
        (run_dir, job): (&RunDir, &Job),
        newest: Option<u64>,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Self {
        let shown = store.to_string();
        let settings = Settings::new(store, run_dir.checkpoints(), Keep::of(&job.checkpoint));
        let (say, said) = mpsc::unbounded_channel();
        let mirror = Mirror::start(settings, newest.unwrap_or(0), say);
        Self { mirror, said, commands, shown }
    }

    pub(crate) fn committed(&self, step: u64) {
        self.mirror.committed(step);
    }

    /// What a person should hear next. Does not end before the task does.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            let said = self.said.recv().await?;
            if let Some(text) = hear(&self.commands, &self.shown, &said) {
                return Some(text);
            }
        }
    }

    /// Waits until the last checkpoint is in the store, or cannot be brought there.
    pub(crate) async fn finish(self) {
        let Self { mirror, mut said, commands, shown } = self;
        // The task is the only one that speaks: nothing is said after its end.
        let listened = async {
            let mut failed = false;
            while let Some(what) = said.recv().await {
                failed = matches!(what, Said::Failed { .. });
                if let Some(text) = hear(&commands, &shown, &what) {
                    note(&text);
                }
            }
            failed
        };
        let ((), failed) = tokio::join!(mirror.finish(), listened);
        if failed {
            note(&format!(
                "warning: the last checkpoint is not in {shown}; it is in the run directory, and the \
                 next launch sends it"
            ));
        }
    }
}

/// Has it counted; returns what a person should hear of it.
fn hear(commands: &mpsc::UnboundedSender<Command>, shown: &str, said: &Said) -> Option<String> {
    match said {
        Said::Stored { step, bytes, checkpoints } => {
            let (step, bytes, checkpoints) = (*step, *bytes, *checkpoints);
            // Nobody counts any more once the run is over.
            commands.send(Command::Stored { step, checkpoints, bytes }).ok();
            tracing::info!(step, bytes, checkpoints, store = shown, "the store is up to date");
            None
        }
        Said::Failed { step, why, is_news } => {
            commands.send(Command::NotStored).ok();
            tracing::warn!(step, why, store = shown, "the store is behind");
            let text =
                format!("warning: the checkpoint of step {step} is not in {shown} yet: {why}");
            is_news.then_some(text)
        }
    }
}
