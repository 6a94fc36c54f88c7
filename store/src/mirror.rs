//! The task that keeps the store's copy of `checkpoints/` up to date, beside the training: what is
//! complete there and missing here is sent, the newest first; what is old is deleted by the same rule.
//! A failure is told once and tried again, less and less often.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shoal_plan::checkpoint::{CheckpointManifest, FILE_NAME, Keep, Named, complete_name};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::error::Error;
use crate::upload::local;
use crate::{Store, Upload};

/// How often the last word is tried before the run ends without it.
const LAST_ATTEMPTS: u32 = 3;

/// What a mirror works on.
#[derive(Clone, Debug)]
pub struct Settings {
    pub store: Store,
    /// `checkpoints/` of the run directory.
    pub checkpoints: PathBuf,
    pub keep: Keep,
    /// After the first failure; doubled after each further one.
    pub retry_first: Duration,
    pub retry_longest: Duration,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// All checkpoints up to this step are in the store.
    Stored { step: u64, bytes: u64, checkpoints: u64 },
    /// An attempt failed. `is_news` where the one before went well, or failed otherwise.
    Failed { step: u64, why: String, is_news: bool },
}

/// The handle of the task.
#[derive(Debug)]
pub struct Mirror {
    /// The newest step that was committed.
    committed: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Settings {
    pub fn new(store: Store, checkpoints: PathBuf, keep: Keep) -> Self {
        let (retry_first, retry_longest) = (Duration::from_secs(1), Duration::from_mins(1));
        Self { store, checkpoints, keep, retry_first, retry_longest }
    }
}

impl Mirror {
    /// Starts the task; `newest` is the step that the run goes on from, 0 for none. What happens is
    /// said to `said`.
    pub fn start(settings: Settings, newest: u64, said: mpsc::UnboundedSender<Said>) -> Self {
        let (committed, heard) = watch::channel(newest);
        let task = tokio::spawn(work(settings, heard, said));
        Self { committed, task }
    }

    /// A checkpoint is complete on disk.
    pub fn committed(&self, step: u64) {
        self.committed.send_replace(step);
    }

    /// Waits until everything is in the store, or a few more attempts have failed.
    pub async fn finish(self) {
        drop(self.committed);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the task that copies checkpoints ended early");
        }
    }
}

pub(crate) async fn work(
    settings: Settings,
    mut committed: watch::Receiver<u64>,
    said: mpsc::UnboundedSender<Said>,
) {
    let mut uploads = BTreeMap::new();
    let mut told: Option<String> = None;
    let (mut stored, mut failures, mut last_attempts) = (None, 0_u32, 0);
    loop {
        let newest = *committed.borrow_and_update();
        let ending = committed.has_changed().is_err();
        if newest == 0 || stored == Some(newest) {
            if committed.changed().await.is_err() {
                return;
            }
            continue;
        }
        match copy(&settings, newest, &mut uploads).await {
            Ok((checkpoints, bytes)) => {
                (stored, failures, told) = (Some(newest), 0, None);
                said.send(Said::Stored { step: newest, bytes, checkpoints }).ok();
            }
            // It was deleted while it was sent, by its own rule: a newer one is there.
            Err(error) if is_gone(&error) && *committed.borrow() > newest => {}
            Err(error) => {
                failures += 1;
                let why = error.to_string();
                let is_news = told.as_ref() != Some(&why);
                told = Some(why.clone());
                said.send(Said::Failed { step: newest, why, is_news }).ok();
                last_attempts += u32::from(ending);
                if last_attempts >= LAST_ATTEMPTS {
                    return;
                }
                let delay = settings.retry_first * 2_u32.saturating_pow((failures - 1).min(16));
                let delay = delay.min(settings.retry_longest);
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    // At the end nothing is waited for but the last attempts.
                    _ = committed.changed(), if !ending => {}
                }
            }
        }
    }
}

/// Sends what is missing, the newest first, and deletes what is old. Returns how many checkpoints
/// and bytes were sent.
async fn copy(
    settings: &Settings,
    newest: u64,
    uploads: &mut BTreeMap<u64, Upload>,
) -> Result<(u64, u64), Error> {
    let Settings { store, checkpoints, keep, .. } = settings;
    let there = store.steps().await?;
    let (mut n, mut bytes) = (0, 0);
    let mut best = None;
    for step in local_steps(checkpoints, newest)? {
        let Some(manifest) = local_manifest(checkpoints, step)? else { continue };
        if step == newest {
            best = manifest.standing.best.map(|best| best.step);
        }
        let is_there = there.contains(&step)
            && store.manifest_text(step).await? == Some(manifest.to_text().into_bytes());
        if is_there {
            uploads.remove(&step);
            continue;
        }
        let upload = uploads.entry(step).or_insert_with(|| Upload::of(checkpoints, manifest));
        match upload.run(store).await {
            Ok(()) => {
                n += 1;
                bytes += upload.bytes;
                uploads.remove(&step);
            }
            // An old one was deleted on the way, by its own rule: nobody wants it any more.
            Err(error) if is_gone(&error) && step < newest => drop(uploads.remove(&step)),
            // One that was damaged since is no reason to keep the others here.
            Err(error @ Error::NotAsWritten { .. }) if step < newest => {
                tracing::warn!(step, %error, "a damaged checkpoint is not copied");
                uploads.remove(&step);
            }
            Err(error) => return Err(error),
        }
    }
    uploads.retain(|step, _| *step >= newest);
    store.prune(newest, *keep, best).await?;
    Ok((n, bytes))
}

/// Whether a file of the run directory was not there.
fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Local { source, .. } if source.kind() == ErrorKind::NotFound)
}

/// Complete steps on disk up to `newest`, the newest first.
fn local_steps(checkpoints: &Path, newest: u64) -> Result<Vec<u64>, Error> {
    let entries = fs::read_dir(checkpoints).map_err(local("reading", checkpoints))?;
    let named = |entry: fs::DirEntry| entry.file_name().to_str().and_then(Named::of);
    let complete = entries.flatten().filter_map(named).filter_map(|named| match named {
        Named::Complete(step) => Some(step),
        Named::Leftover(_) => None,
    });
    let mut steps: Vec<u64> = complete.filter(|step| *step <= newest).collect();
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

/// `None` where there is none, or none that can be read: such a checkpoint is not copied.
fn local_manifest(checkpoints: &Path, step: u64) -> Result<Option<CheckpointManifest>, Error> {
    let path = checkpoints.join(complete_name(step)).join(FILE_NAME);
    match fs::read(&path) {
        Ok(text) => Ok(CheckpointManifest::from_text(&text).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(local("reading", &path)(error)),
    }
}
