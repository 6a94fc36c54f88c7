//! Reads a manifest and finds the files it names. What a manifest may say is decided in `plan`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use shoal_data::DataError;
use shoal_data::download::Downloads;
use shoal_plan::globs::is_address;
use shoal_plan::job::Job;
use shoal_plan::manifest::{Manifest, parse};
use shoal_plan::placement::make_plan;
use shoal_plan::plan::{Generation, Plan, WorkerId};
use shoal_weights::CONFIG_FILE;

use crate::cli;
use crate::exit::Stopped;
use crate::settings::environment;

/// A manifest that can run on this machine.
pub(crate) struct Loaded {
    manifest: Manifest,
    /// The text files of each source that are on this machine, sorted.
    pub files: Vec<Vec<PathBuf>>,
    /// Files at a distance, of sources and evaluation sets, and where they are kept once fetched.
    pub remote: BTreeMap<String, PathBuf>,
    /// Where the manifest lies: relative paths in it start there.
    pub directory: PathBuf,
    /// The plan of a launch's first generation: pure, so the coordinator's is the same.
    pub plan: Plan,
}

/// The job and where everything in it was written: the text it trains on need not be there.
pub(crate) fn parsed(args: &cli::Manifest) -> Result<Manifest, Stopped> {
    let name = args.file.display().to_string();
    let text = fs::read_to_string(args.text.as_ref().unwrap_or(&args.file))
        .map_err(|error| Stopped::Input(format!("cannot read the manifest {name}: {error}")))?;
    parse(&name, &text, &args.overrides, &read_config)
        .map_err(|error| Stopped::Input(error.to_string()))
}

/// Reads, checks, and looks the files up. Starts nothing and writes nothing.
pub(crate) fn read(args: &cli::Manifest) -> Result<Loaded, Stopped> {
    let manifest = parsed(args)?;
    let files = manifest.files(&environment).map_err(|error| Stopped::Input(error.to_string()))?;
    // The sets' patterns must match, too; `fetch` looks them up again, with what it fetched.
    manifest.evaluation_files(&environment).map_err(|error| Stopped::Input(error.to_string()))?;
    let remote = remote(&manifest)?;
    let directory = args.file.parent().unwrap_or(Path::new("")).to_path_buf();
    let workers: Vec<WorkerId> = (0..manifest.job.workers.local).map(WorkerId).collect();
    let plan = make_plan(&manifest.job, &workers, Generation(1)).map_err(|error| {
        Stopped::Input(manifest.error_at("spec.workers", &error.to_string(), "").to_string())
    })?;
    let loaded = Loaded { manifest, files, remote, directory, plan };
    let found = loaded
        .files
        .iter()
        .flatten()
        .filter_map(|file| fs::metadata(file).ok())
        .map(|file| file.len())
        .sum();
    // What a packed file or one at a distance holds is known when it is read.
    let plain =
        loaded.remote.is_empty() && loaded.files.iter().flatten().all(|file| is_plain(file));
    match shortage(&loaded.manifest.job, found).filter(|_| plain) {
        None => Ok(loaded),
        Some(what) => Err(loaded.text_error(&what)),
    }
}

/// A `config.json` that the manifest names; of a run, that of its newest good checkpoint.
pub(crate) fn read_config(path: &Path) -> io::Result<String> {
    match (path.file_name(), path.parent()) {
        (Some(name), Some(run)) if name == CONFIG_FILE && !path.exists() => {
            let place = shoal_weights::place(run).map_err(io::Error::other)?;
            fs::read_to_string(place.join(CONFIG_FILE))
        }
        _ => fs::read_to_string(path),
    }
}

/// Checks every address, and finds its place in the cache. Fetches nothing.
fn remote(manifest: &Manifest) -> Result<BTreeMap<String, PathBuf>, Stopped> {
    let mut remote = BTreeMap::new();
    for (address, path) in manifest.addresses() {
        let wrong = |error: DataError| {
            Stopped::Input(manifest.error_at(&path, &error.to_string(), "").to_string())
        };
        let downloads = Downloads::new(&environment).map_err(wrong)?;
        let place = downloads.place(&address).map_err(wrong)?;
        remote.insert(address, place);
    }
    Ok(remote)
}

impl Loaded {
    pub(crate) fn job(&self) -> &Job {
        &self.manifest.job
    }

    /// Files of all sources.
    pub(crate) fn n_files(&self) -> usize {
        let entries = self.job().data.sources.iter().flat_map(|source| &source.files);
        let at_a_distance = entries.filter(|entry| is_address(entry)).count();
        self.files.iter().map(Vec::len).sum::<usize>() + at_a_distance
    }

    /// A line for each file at a distance; empty without any.
    pub(crate) fn remote_files(&self) -> String {
        let line = |(address, place): (&String, &PathBuf)| {
            if place.is_file() {
                format!("  remote: {address} (in the cache: {})", place.display())
            } else {
                format!("  remote: {address} (fetched at the launch)")
            }
        };
        self.remote.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Of all text to train on that is on this machine, packed as it is.
    pub(crate) fn text_bytes(&self) -> u64 {
        let files = self.files.iter().flatten().chain(self.remote.values());
        files.filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum()
    }

    /// An error at the value of a path such as `spec.metrics.port`.
    pub(crate) fn error_at(&self, path: &str, what: &str, help: &str) -> Stopped {
        Stopped::Input(self.manifest.error_at(path, what, help).to_string())
    }

    /// An error about the text, at the line that names the files.
    pub(crate) fn text_error(&self, what: &str) -> Stopped {
        let help = "add files, or lower training.batch or training.sequence";
        Stopped::Input(self.manifest.error_at("spec.data.files", what, help).to_string())
    }
}

/// Whether a file has as many bytes of text as it has bytes.
fn is_plain(file: &Path) -> bool {
    let packed = ["gz", "zst", "parquet", "tokens", "npy", "bin"];
    !file.extension().is_some_and(|extension| packed.iter().any(|one| extension == *one))
}

/// What is missing when the files have fewer bytes than one batch to learn from and one sequence
/// for the evaluation. The exact count is made when the text is turned into tokens.
fn shortage(job: &Job, bytes: u64) -> Option<String> {
    let bytes = bytes.min(job.data.bytes_max);
    let (batch, sequence) = (u64::from(job.training.batch), u64::from(job.training.sequence));
    let wanted = (batch + 1) * sequence;
    (bytes < wanted).then(|| {
        format!(
            "less text than one batch: got {bytes} bytes, want at least {wanted} ({batch} sequences of \
             {sequence} tokens, and one for the evaluation)"
        )
    })
}
