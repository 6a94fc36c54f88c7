//! Where the log lines go: a worker's and the coordinator's to standard error, which is a file of the run; the
//! launcher's to `logs/launch.log`, so that they never cross the progress bar.

use std::fs::OpenOptions;
use std::sync::Mutex;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::run_dir::RunDir;

/// For the launcher.
pub(crate) fn to_run(run_dir: &RunDir) -> anyhow::Result<()> {
    let path = run_dir.logs().join("launch.log");
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter()).with_ansi(false);
    // Only fails when there is a subscriber already, which then has the lines.
    let _ = lines.with_writer(Mutex::new(file)).try_init();
    Ok(())
}

/// For a worker or a coordinator.
pub(crate) fn to_standard_error() {
    let lines = tracing_subscriber::fmt().with_env_filter(filter()).with_ansi(false);
    // As above.
    let _ = lines.with_writer(std::io::stderr).try_init();
}

/// `RUST_LOG`, or `info`.
fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"))
}
