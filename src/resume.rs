//! What an earlier launch left in the run directory: nothing, a finished run, a run to go on with,
//! or another job's run, which is refused.

use std::fmt::Write;

use shoal_plan::job::Job;
use shoal_plan::manifest::{Change, difference};

use crate::exit::Stopped;
use crate::run_dir::RunDir;
use crate::terminal::note;

/// What to do with the directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// Train, from the newest checkpoint if there is one.
    Train,
    /// The job ran to its end.
    Finished { step: u64 },
}

/// Compares the job with the recorded one and records it.
pub(crate) fn take_over(run_dir: &RunDir, job: &Job) -> Result<Earlier, Stopped> {
    let recorded = run_dir.recorded_job()?;
    let changes = recorded.as_ref().map(|old| difference(old, job)).unwrap_or_default();
    if changes.iter().any(|change| !change.harmless) {
        if run_dir.has_trained()? {
            return Err(Stopped::Input(refusal(run_dir, &changes)));
        }
        // Nothing is lost: the earlier launch ended before its first step.
        run_dir.clear()?;
    }
    let summary = run_dir.summary()?;
    // One that stopped early is finished for as long as nothing about it changes.
    let finished = summary
        .filter(|summary| {
            let early = summary["stopped_early"].as_bool() == Some(true);
            let steps = summary["steps"].as_u64();
            steps >= Some(job.training.steps) || (early && changes.is_empty())
        })
        .and_then(|summary| summary["steps"].as_u64());
    if let Some(step) = finished {
        return Ok(Earlier::Finished { step });
    }
    for change in &changes {
        note(&format!("changed since the last launch: {change}"));
    }
    run_dir.record_job(job)?;
    Ok(Earlier::Train)
}

fn refusal(run_dir: &RunDir, changes: &[Change]) -> String {
    let place = run_dir.path().display();
    let mut text = format!("{place} holds a run of another manifest:\n");
    for change in changes.iter().filter(|change| !change.harmless) {
        let _ = writeln!(text, "  {change}");
    }
    text.push_str(
        "Change it back to continue, choose another --run-dir, or start over with --fresh.",
    );
    text
}
