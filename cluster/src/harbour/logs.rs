//! Logs of runs: what rigs send of their workers' is kept beside the launcher's own, and never more of one than a
//! bound.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use super::Harbour;
use crate::state::SessionId;
use crate::words::Post;

/// A log that has grown to this is set aside, in the place of the one set aside before.
const LOG_BYTES_MAX: u64 = 16 << 20;

impl Harbour {
    /// Appends lines to a worker's log. What cannot be kept is dropped: a full disk ends no run.
    pub(super) fn keep_log(&self, session: SessionId, post: &Post, text: &str) {
        let Some(job) = self.job_of_run(&post.run) else { return };
        if !self.state.has_post(session, post) {
            return;
        }
        let path = self.run_dir(&job).join("logs").join(format!("{}.log", post.worker));
        if fs::metadata(&path).is_ok_and(|file| file.len() > LOG_BYTES_MAX) {
            let _ = fs::rename(&path, path.with_extension("older.log"));
        }
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            tracing::debug!(%error, "lines of a log are lost");
        }
    }

    /// Where a log of a job lies.
    pub(super) fn log_of(&self, job: &str, log: &str) -> Result<PathBuf, String> {
        if self.state.job(job).is_none() {
            return Err(format!("there is no job {job}: `shoal ps` lists them"));
        }
        let worker =
            log.strip_prefix("worker-").is_some_and(|number| number.parse::<u32>().is_ok());
        if !worker && !["launch", "coordinator", "out"].contains(&log) {
            return Err(format!(
                "there is no log {log}: want out, launch, coordinator or worker-N"
            ));
        }
        if let Some(home) = self.state.is_elsewhere(job) {
            return Err(format!("{job}'s logs are on the machine of the coordinator at {home}"));
        }
        let path = self.run_dir(job).join("logs").join(format!("{log}.log"));
        if path.is_file() { Ok(path) } else { Err(format!("{job} has no log {log} yet")) }
    }
}
