//! The run directory: who holds it, what was recorded in it, and where each file lies.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;
use shoal_coordinator::journal;
use shoal_plan::checkpoint::BEST_FILE_NAME;
use shoal_plan::job::Job;
use shoal_plan::plan::WorkerId;

use crate::{control, events};

/// What a run writes directly into its directory. Nothing else there is ever touched.
const FILES: [&str; 12] = [
    "lock",
    "manifest.json",
    "metrics.jsonl",
    "summary.json",
    "plan.json",
    "ledger.jsonl",
    control::FILE_NAME,
    control::PARTIAL_NAME,
    events::FILE_NAME,
    events::OLDER_FILE_NAME,
    journal::FILE_NAMES[0],
    journal::FILE_NAMES[1],
];
const DIRECTORIES: [&str; 5] = ["checkpoints", "logs", "data", SCRAPE_TARGETS, TENSORBOARD];
const TENSORBOARD: &str = "tensorboard";
const SCRAPE_TARGETS: &str = "targets";

/// A run directory, locked for as long as this lives.
pub(crate) struct RunDir {
    path: PathBuf,
    /// Holds the lock; the kernel lets go of it however the process ends.
    _lock: File,
}

impl RunDir {
    /// Makes the directory if needed and takes it. Refused: one that another launch holds, and one
    /// with files in it that is no run's.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(path)
            .with_context(|| format!("making the run directory {}", path.display()))?;
        let foreign = foreign_names(path)?;
        if !foreign.is_empty() && !is_a_run(path)? {
            bail!(
                "{} is not empty and not a run's (it has {}); choose another --run-dir",
                path.display(),
                foreign.join(", ")
            );
        }
        let lock = lock(path)?;
        for name in DIRECTORIES {
            let directory = path.join(name);
            fs::create_dir_all(&directory)
                .with_context(|| format!("making {}", directory.display()))?;
        }
        Ok(Self { path: path.to_path_buf(), _lock: lock })
    }

    /// The job this directory was made for, if any run began here.
    pub(crate) fn recorded_job(&self) -> anyhow::Result<Option<Job>> {
        let path = self.path.join("manifest.json");
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).with_context(|| {
            format!("{} is not from this version of shoal; --fresh starts over", path.display())
        })
    }

    pub(crate) fn record_job(&self, job: &Job) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(job).context("writing the manifest as JSON")?;
        write_atomically(&self.path.join("manifest.json"), text.as_bytes())
    }

    /// Written last of all: a run with a summary is finished.
    pub(crate) fn summary(&self) -> anyhow::Result<Option<Value>> {
        let path = self.path.join("summary.json");
        let Some(text) = read_if_there(&path)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).with_context(|| format!("reading {}", path.display()))
    }

    pub(crate) fn write_json(&self, name: &str, value: &Value) -> anyhow::Result<()> {
        let text = format!("{value:#}\n");
        write_atomically(&self.path.join(name), text.as_bytes())
    }

    /// A run that goes on is not finished.
    pub(crate) fn forget_summary(&self) -> anyhow::Result<()> {
        remove_file_if_there(&self.path.join("summary.json"))
    }

    /// Deletes what runs wrote here, by name, and nothing else. The lock stays.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        if !is_a_run(&self.path)? {
            return Ok(());
        }
        for name in FILES.iter().filter(|name| **name != "lock") {
            remove_file_if_there(&self.path.join(name))?;
        }
        for name in DIRECTORIES {
            for entry in entries(&self.path.join(name))? {
                let directory = entry.is_dir() && !entry.is_symlink();
                if !is_ours(name, &entry) {
                    continue;
                }
                let removed =
                    if directory { fs::remove_dir_all(&entry) } else { fs::remove_file(&entry) };
                removed.with_context(|| format!("deleting {}", entry.display()))?;
            }
        }
        Ok(())
    }

    /// Whether a step was ever committed or a checkpoint begun here.
    pub(crate) fn has_trained(&self) -> anyhow::Result<bool> {
        let rows = fs::metadata(self.metrics()).is_ok_and(|file| file.len() > 0);
        Ok(rows || !entries(&self.checkpoints())?.is_empty())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    pub(crate) fn events(&self) -> PathBuf {
        self.path.join(events::FILE_NAME)
    }

    /// Where every process of the run says where Prometheus finds it.
    pub(crate) fn scrape_targets(&self) -> PathBuf {
        Self::scrape_targets_of(&self.path)
    }

    /// The same of a run directory that another process has opened.
    pub(crate) fn scrape_targets_of(path: &Path) -> PathBuf {
        path.join(SCRAPE_TARGETS)
    }

    /// A run directory's own name, by which Prometheus and log lines know the run; empty where there is none.
    pub(crate) fn name_of(path: &Path) -> String {
        let path = path.canonicalize().ok();
        let name = path.as_deref().and_then(Path::file_name).unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// For TensorBoard's event files.
    pub(crate) fn tensorboard(&self) -> PathBuf {
        self.path.join(TENSORBOARD)
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    pub(crate) fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step}"))
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    pub(crate) fn coordinator_log(&self) -> PathBuf {
        self.logs().join("coordinator.log")
    }

    pub(crate) fn worker_log(&self, worker: WorkerId) -> PathBuf {
        self.logs().join(format!("{worker}.log"))
    }
}

/// Replaces a file as a whole: a crash leaves the old one or the new one.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let aside = path.with_extension("partial");
    let write = || {
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// The job that the run in `path` was recorded with, whether or not it is under way.
pub(crate) fn recorded_job_of(path: &Path) -> anyhow::Result<Job> {
    let path = path.join("manifest.json");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not from this version of shoal", path.display()))
}

/// Takes the lock and leaves the process id in the file, for whoever is refused.
fn lock(path: &Path) -> anyhow::Result<File> {
    let name = path.join("lock");
    let context = || format!("locking {}", name.display());
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&name)
        .with_context(context)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).with_context(context)?;
            bail!(
                "the run directory {} is in use by process {}: wait for it, stop it, or choose another --run-dir",
                path.display(),
                holder.trim()
            );
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(context),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(context)?;
    Ok(file)
}

/// Whether a launch holds the run in `path`. One that begins at this very moment may be refused by the look.
pub(crate) fn is_held(path: &Path) -> bool {
    let lock = File::open(path.join("lock"));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Whether some version of shoal recorded a job here.
fn is_a_run(path: &Path) -> anyhow::Result<bool> {
    let Some(text) = read_if_there(&path.join("manifest.json"))? else { return Ok(false) };
    let recorded = serde_json::from_str::<Value>(&text).unwrap_or_default();
    Ok(["model", "training", "grid"].iter().all(|key| recorded[key].is_object()))
}

/// Names in the directory that no run writes.
fn foreign_names(path: &Path) -> anyhow::Result<Vec<String>> {
    let names =
        entries(path)?.into_iter().filter_map(|entry| entry.file_name().map(OsStr::to_os_string));
    let names = names.map(|name| name.to_string_lossy().into_owned());
    let ours =
        |name: &String| FILES.contains(&name.as_str()) || DIRECTORIES.contains(&name.as_str());
    Ok(names.filter(|name| !ours(name)).take(3).collect())
}

/// Whether an entry of one of our directories has the shape of what we write there.
fn is_ours(directory: &str, entry: &Path) -> bool {
    let name = entry.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
    let ends_with = |extension: &str| entry.extension().is_some_and(|is| is == extension);
    match directory {
        "checkpoints" => {
            let best = [BEST_FILE_NAME, ".best.json.partial"].contains(&&*name);
            name.starts_with("step-") || name.starts_with(".step-") || best
        }
        "logs" => ends_with("log"),
        SCRAPE_TARGETS => ends_with("json"),
        TENSORBOARD => name.starts_with("events.out.tfevents."),
        "data" => {
            let named = ["dataset.json", "tokenizer.json"].contains(&name.as_ref());
            named || ends_with("tokens") || name.ends_with(".partial")
        }
        _ => false,
    }
}

fn entries(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let context = || format!("reading {}", directory.display());
    let mut paths = (fs::read_dir(directory).with_context(context)?)
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .with_context(context)?;
    paths.sort_unstable();
    Ok(paths)
}

fn read_if_there(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn remove_file_if_there(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("deleting {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A name in the system's scratch directory where nothing is, and nothing stays.
    pub(crate) struct Dir(pub(crate) PathBuf);

    impl Dir {
        pub(crate) fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("shoal-run-dir-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_second_launch_is_refused_with_the_first_ones_process() {
        let dir = Dir::new("lock");
        let first = RunDir::open(&dir.0).unwrap();
        let refusal = RunDir::open(&dir.0).err().unwrap().to_string();
        assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
        assert!(is_held(&dir.0));
        drop(first);
        assert!(!is_held(&dir.0));
        RunDir::open(&dir.0).unwrap();
    }

    #[test]
    fn a_directory_with_other_peoples_files_is_refused() {
        let dir = Dir::new("foreign");
        fs::create_dir_all(&dir.0).unwrap();
        fs::write(dir.0.join("thesis.tex"), "years of work").unwrap();
        let refusal = RunDir::open(&dir.0).err().unwrap().to_string();
        assert!(refusal.contains("thesis.tex"), "{refusal}");
        assert!(!dir.0.join("lock").exists());
    }

    #[test]
    fn starting_over_deletes_the_runs_files_and_no_others() {
        let dir = Dir::new("clear");
        let run = RunDir::open(&dir.0).unwrap();
        let recorded = serde_json::json!({ "model": {}, "training": {}, "grid": {} });
        run.write_json("manifest.json", &recorded).unwrap();
        run.write_json("summary.json", &serde_json::json!({ "steps": 3 })).unwrap();
        fs::create_dir_all(run.checkpoint(3)).unwrap();
        fs::create_dir_all(run.checkpoints().join(".step-4.partial")).unwrap();
        fs::write(run.checkpoints().join("best.json"), "{}").unwrap();
        let kept = ["notes.txt", "checkpoints/mine.txt", "logs/mine.txt"];
        for name in kept {
            fs::write(dir.0.join(name), "mine").unwrap();
        }
        fs::write(run.worker_log(WorkerId(0)), "ours").unwrap();
        assert!(run.summary().unwrap().is_some());
        run.clear().unwrap();
        assert!(run.summary().unwrap().is_none() && !run.checkpoint(3).exists());
        assert!(!run.worker_log(WorkerId(0)).exists());
        assert_eq!(fs::read_dir(run.checkpoints()).unwrap().count(), 1);
        assert!(kept.iter().all(|name| dir.0.join(name).exists()));
    }

    #[test]
    fn a_recorded_job_of_another_version_says_how_to_start_over() {
        let dir = Dir::new("version");
        let run = RunDir::open(&dir.0).unwrap();
        assert_eq!(run.recorded_job().unwrap(), None);
        fs::write(dir.0.join("manifest.json"), "{\"kind\": \"of old\"}").unwrap();
        let message = run.recorded_job().err().unwrap().to_string();
        assert!(message.contains("--fresh"), "{message}");
    }
}
