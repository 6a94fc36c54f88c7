//! What a run says of itself to whoever asks: all of it from the state, and nothing changes by it.

use shoal_plan::plan::WorkerId;

use super::member::Member;
use super::{Phase, State};
use crate::control::{RunPhase, Status, WorkerIs, WorkerStatus};

impl State {
    pub(crate) fn status(&self) -> Status {
        let steps = self.settings.job.training.steps;
        let seconds = self.tempo.seconds_per_step();
        let left = steps.saturating_sub(self.committed) as f64;
        Status {
            phase: self.run_phase(),
            why: self.why(),
            step: self.committed,
            steps,
            loss: self.tempo.loss.filter(|loss| loss.is_finite()),
            seconds_per_step: seconds,
            tokens_per_second: self.tempo.tokens_per_second(),
            seconds_left: seconds.map(|seconds| seconds * left),
            generation: self.generation_in_force().0,
            checkpoint_step: self.checkpointed.step,
            snapshot_step: self.kept_steps().0,
            recoveries: self.recoveries,
            coordinator_restarts: self.restarts,
            workers_min: self.settings.job.workers.min,
            workers: (0..self.settings.workers_wanted).map(|n| self.worker(WorkerId(n))).collect(),
            grid: Some(self.settings.job.grid),
            routers: self.tempo.routers.clone(),
            ways: self.ways(),
        }
    }

    fn run_phase(&self) -> RunPhase {
        match self.phase {
            Phase::Gathering => RunPhase::Connecting,
            Phase::Preparing => RunPhase::Preparing,
            Phase::Training => RunPhase::Training,
            Phase::Stopping => RunPhase::Stopping,
            Phase::Edging => RunPhase::Edging,
            Phase::Recovering => RunPhase::Recovering,
            Phase::Paused => RunPhase::Paused,
            Phase::Ended => RunPhase::Ended,
        }
    }

    /// What the run waits for, if it is not training as it should.
    fn why(&self) -> Option<String> {
        let (have, want) = (self.members.len(), self.settings.workers_wanted);
        match self.phase {
            Phase::Gathering => Some(format!("{have} of {want} workers have joined")),
            Phase::Preparing => {
                let (ready, hosts) = (self.hosts().filter(|(_, host)| host.ready), self.hosts());
                Some(format!("{} of {} workers are ready", ready.count(), hosts.count()))
            }
            Phase::Recovering => {
                let sign = self.loss.as_ref().and_then(|loss| loss.sign.as_ref());
                sign.map(|sign| format!("{} is lost: {}", sign.worker, sign.what))
            }
            Phase::Edging if self.pause_wanted => Some("it is to pause after this step".to_owned()),
            Phase::Paused if self.pause_wanted => {
                Some("as it was asked to; `shoal resume` lets it go on".to_owned())
            }
            Phase::Paused => {
                let (have, want) = (self.eligible().count(), self.settings.job.workers.min);
                Some(format!("{have} workers are here, and workers.min is {want}"))
            }
            _ if self.is_awaiting() => {
                let here = self.members.values().filter(|member| !member.awaited).count();
                Some(format!("the coordinator was started anew: {here} of {have} workers are back"))
            }
            Phase::Training | Phase::Stopping | Phase::Edging | Phase::Ended => None,
        }
    }

    fn worker(&self, worker: WorkerId) -> WorkerStatus {
        let member = self.members.get(&worker);
        let history = self.histories.get(&worker);
        let silent_ms = member.map(|member| self.now_ms.saturating_sub(member.heard_ms));
        let hosts = member.is_some_and(|member| member.hosts);
        let cells = self.plan.as_ref().filter(|_| hosts).map(|plan| plan.cells_of(worker));
        let (pace, straggler) = self.stragglers.ratio(worker).filter(|_| hosts).unzip();
        let state = match (member, history) {
            (Some(member), _) => self.member_is(member),
            (None, Some(history)) if history.left => WorkerIs::Left,
            (None, Some(history)) if history.gone => WorkerIs::Lost,
            (None, _) => WorkerIs::Connecting,
        };
        WorkerStatus {
            worker,
            state,
            cells: cells.into_iter().flatten().map(|cell| cell.0).collect(),
            heard_seconds_ago: silent_ms.map(|ms| ms as f64 / 1e3),
            pace,
            straggler: straggler.unwrap_or(false),
            yields_to: member.and_then(|member| member.yielding.clone()),
            quarantine_seconds: history.and_then(|history| history.quarantine(self.now_ms)),
            losses: history.map_or(0, |history| history.losses),
        }
    }

    fn member_is(&self, member: &Member) -> WorkerIs {
        if !member.connected {
            return WorkerIs::CutOff;
        }
        match self.phase {
            Phase::Ended => WorkerIs::Finished,
            _ if member.leaving => WorkerIs::Draining,
            _ if member.yielding.is_some() && !member.hosts => WorkerIs::Yielding,
            Phase::Gathering | Phase::Recovering | Phase::Paused => WorkerIs::Waiting,
            _ if !member.hosts => WorkerIs::Spare,
            _ if member.finished.is_some() => WorkerIs::Finished,
            Phase::Training | Phase::Stopping | Phase::Edging => WorkerIs::Training,
            Phase::Preparing if member.ready => WorkerIs::Ready,
            Phase::Preparing => WorkerIs::Preparing,
        }
    }
}
