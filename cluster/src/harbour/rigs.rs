//! What rigs are told when they come, and what their seats let them reach.

use std::path::PathBuf;

use shoal_plan::plan::RunId;
use tokio::sync::mpsc;

use super::{Harbour, JOBS, Member, Outgoing};
use crate::state::{RunRecord, SessionId};
use crate::words::{FromLauncher, FromRig, ToLauncher, ToRig};
use crate::{clock, fitness};

impl Harbour {
    pub(super) fn rig_came(
        &mut self,
        session: SessionId,
        rig: &str,
        first: FromRig,
        outbox: mpsc::Sender<Outgoing>,
    ) {
        let refused = if let FromRig::Hello { version, facts, running, unix_ms } = first {
            let words = fitness::words(rig, &facts.version, version, env!("CARGO_PKG_VERSION"));
            let clocks = || fitness::clocks(rig, unix_ms?, clock::unix_ms());
            let Some(refused) = words.or_else(clocks) else {
                let coordinators = self.stands.coordinators();
                if coordinators.len() > 1 {
                    // It is new: its outbox is empty.
                    let _ = outbox.try_send(Outgoing::Tell(ToRig::Coordinators(coordinators)));
                }
                self.rigs.insert(session, outbox);
                self.state.rig_came(session, rig, facts, running);
                return;
            };
            refused
        } else {
            format!("rig {rig} began without a hello")
        };
        tracing::warn!(refused);
        // It is new: its outbox is empty.
        let _ = outbox.try_send(Outgoing::Close(refused));
    }

    /// A launcher speaks for its job from now on, unless another one was started after it.
    pub(super) fn launcher_here(
        &mut self,
        name: String,
        line: u64,
        nth: Option<u64>,
        outbox: mpsc::UnboundedSender<ToLauncher>,
    ) {
        if nth.is_some_and(|nth| !self.state.is_newest(&name, nth)) {
            // It may have gone already.
            let _ = outbox.send(ToLauncher::Superseded);
            return;
        }
        self.lines.here(&name, line, outbox);
        self.state.launcher_says(&name, FromLauncher::Here { name: name.clone() });
    }

    pub(super) fn member(&self, rig: &str, run: &str) -> Result<Member, String> {
        let (record, worker) = self.state.member(rig, run).ok_or_else(|| {
            format!("rig {rig} has no seat in run {run}: it is over, or another rig has the seat")
        })?;
        Ok(Member { address: record.address, secret: record.secret.clone(), worker })
    }

    pub(super) fn file(&self, rig: &str, run: &str, name: &str) -> Result<PathBuf, String> {
        let (record, _) = self
            .state
            .member(rig, run)
            .ok_or_else(|| format!("rig {rig} has no seat in run {run}"))?;
        // Only names that the launcher has listed: none leads out of the directory.
        let is_listed = record.files.iter().any(|file| file.name == name);
        if !is_listed {
            return Err(format!("run {run} has no file of this name"));
        }
        let job = self.job_of_run(&record.run).ok_or("the run is over")?;
        Ok(self.run_dir(&job).join("data").join(name))
    }

    pub(super) fn job_of_run(&self, run: &RunId) -> Option<String> {
        let is_it = |record: &RunRecord| record.run == *run;
        let mut jobs = self.state.jobs();
        jobs.find(|(_, job)| job.run.as_ref().is_some_and(is_it)).map(|(name, _)| name.clone())
    }

    /// Everything of a job's run. Names of jobs are plain: the manifest's rules see to that.
    pub(super) fn run_dir(&self, job: &str) -> PathBuf {
        self.settings.directory.join(JOBS).join(job)
    }
}
