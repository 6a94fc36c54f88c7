//! How the run goes on without a worker: the same grid is hosted by those that are left, as a new
//! generation of the plan, from the newest state that is whole. With too few it waits for others.

use serde::{Deserialize, Serialize};
use shoal_plan::plan::{Generation, WorkerId};
use shoal_plan::report::Ending;
use shoal_plan::standing::Standing;

use super::cause::Sign;
use super::parts::Parts;
use super::{Effect, Phase, State};
use crate::ledger::{LedgerRow, Rollback};
use crate::news::{Cause, News, Restored};

/// Why a new plan is needed, and since when.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Loss {
    pub(super) since_ms: u64,
    pub(super) sign: Option<Sign>,
}

/// From where a generation goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Restart {
    pub(super) standing: Standing,
    pub(super) source: Restored,
}

impl State {
    /// Plans anew, as soon as no manifest is being written: then the newest checkpoint is certain.
    pub(super) fn recover_when_the_disk_is_quiet(&mut self) {
        if self.phase != Phase::Recovering || self.parts.is_busy() || self.is_awaiting() {
            return;
        }
        // Whoever is cut off at this moment has no part in the new plan.
        let hosts = self.members.iter().filter(|(_, member)| member.hosts && !member.connected);
        let cut_off: Vec<WorkerId> = hosts.map(|(worker, _)| *worker).collect();
        for worker in cut_off {
            let what = "cut off while the others made a new plan".to_owned();
            self.evict(self.sign_of(worker, Cause::HungUp, what));
        }
        if self.is_over() {
            return;
        }
        let (have, want) = (self.eligible().count() as u32, self.settings.job.workers.min);
        if have < want || self.pause_wanted {
            return self.pause(have, want);
        }
        self.recover();
    }

    fn recover(&mut self) {
        let restart = self.newest_restart();
        let generation = Generation(self.generation().0 + 1);
        self.take_back_and_say(generation, restart);
        self.stragglers.may_be_back(self.now_ms);
        if self.stop_wanted && restart.standing.step == self.checkpointed.step {
            return self.finish(Ending::Stopped);
        }
        self.holdings.forget_after(restart.standing.step);
        self.assign(generation, restart);
    }

    fn take_back_and_say(&mut self, generation: Generation, restart: Restart) {
        let from_step = self.committed;
        let Restart { standing, source } = restart;
        self.take_back(&standing, None);
        let (to_step, workers) = (standing.step, self.hosts_wanted().len() as u32);
        self.news(News::Recovering { generation, from_step, to_step, workers, source });
    }

    /// The newest whole state that is not ahead of what is committed: in memory, or on disk.
    fn newest_restart(&self) -> Restart {
        let training = &self.settings.job.training;
        let patience = self.settings.job.evaluation.patience;
        // A run that has come to its end writes nothing more: it must come there again.
        let goes_on =
            |standing: &Standing| standing.step < training.steps && !standing.is_stale(patience);
        let fits = |standing: &Standing| standing.step <= self.committed && goes_on(standing);
        let on_disk = self.from_checkpoint;
        match self.holdings.newest_complete(fits) {
            Some(standing) if standing.step >= on_disk.step => {
                Restart { standing, source: Restored::Memory }
            }
            Some(_) | None => self.restart_from_disk(),
        }
    }

    pub(super) fn restart_from_disk(&self) -> Restart {
        let standing = self.from_checkpoint;
        let source = if standing.step > 0 { Restored::Checkpoint } else { Restored::Seed };
        Restart { standing, source }
    }

    /// Takes back what was committed after `to`. `next_sequence` says that sequences are passed
    /// over on the way.
    pub(super) fn take_back(&mut self, to: &Standing, next_sequence: Option<u64>) {
        // After an earlier rollback a checkpoint's step goes on with later data.
        let moved =
            to.step == self.checkpointed.step && to.sequences != self.checkpointed.sequences;
        let next_sequence = next_sequence.or(moved.then_some(to.sequences));
        if to.step < self.committed {
            let row = Rollback { rolled_back_to: to.step, next_sequence };
            self.effects.push(Effect::Record(LedgerRow::RolledBack(row)));
            self.committed = to.step;
        }
        self.reports.clear();
        self.evaluations.clear();
        self.sums.forget();
        self.checkpoint_failed = None;
        self.finished = None;
        self.parts = Parts::new(self.settings.job.grid, self.checkpointed.step);
    }

    fn pause(&mut self, have: u32, want: u32) {
        let asked = self.pause_wanted;
        if self.settings.job.workers.restarts == 0 && !self.somebody_yields() && have < want {
            if let Some(sign) = self.loss.take().and_then(|loss| loss.sign) {
                return self.end_with(self.failure(sign));
            }
            let what = format!("{have} of at least {want} workers are left");
            return self.fail(Cause::TooFew, None, what);
        }
        self.phase = Phase::Paused;
        self.signs.settle();
        self.news(News::Paused { have, want, asked });
        if asked {
            return;
        }
        self.let_all_leavers_go();
        if self.stop_wanted {
            self.stop_while_paused();
        }
    }

    /// They hand over to nobody by waiting.
    pub(super) fn let_all_leavers_go(&mut self) {
        let leaving = self.members.iter().filter(|(_, member)| member.leaving);
        let leaving: Vec<WorkerId> = leaving.map(|(worker, _)| *worker).collect();
        for worker in leaving {
            self.let_go(worker);
        }
    }

    pub(super) fn resume_when_enough_are_here(&mut self) {
        if self.has_enough() && !self.pause_wanted {
            if let Some(loss) = self.loss.as_mut().filter(|loss| loss.sign.is_none()) {
                // Nobody was lost: the wait was wanted, and is no part of a recovery.
                loss.since_ms = self.now_ms;
            }
            self.news(News::Resumed);
            self.phase = Phase::Recovering;
        }
    }

    /// Nobody can write a checkpoint now: the run ends with the one there is.
    pub(super) fn stop_while_paused(&mut self) {
        let (generation, restart) = (self.generation(), self.restart_from_disk());
        self.take_back_and_say(generation, restart);
        self.finish(Ending::Stopped);
    }

    /// Workers that may host cells in one plan. A quarantine is for the sake of the others: where too few others
    /// are here it keeps nobody out, and whoever hosts since then stays.
    pub(super) fn eligible(&self) -> impl Iterator<Item = WorkerId> {
        let here = self
            .members
            .iter()
            .filter(|(_, member)| member.connected && !member.leaving && member.yielding.is_none());
        let is_calm = |worker: &WorkerId, hosts: bool| {
            let history = self.histories.get(worker);
            hosts || !history.is_some_and(|past| past.is_quarantined(self.now_ms))
        };
        let calm = here.clone().filter(|(worker, member)| is_calm(worker, member.hosts));
        let enough = calm.clone().count() as u32 >= self.settings.job.workers.min;
        let fit: Vec<WorkerId> = if enough {
            calm.map(|(worker, _)| *worker).collect()
        } else {
            here.map(|(worker, _)| *worker).collect()
        };
        let cells = |worker| self.plan.as_ref().map_or(0, |plan| plan.cells_of(worker).len());
        let fit: Vec<_> = fit.into_iter().map(|worker| (worker, cells(worker))).collect();
        self.apart.together(&fit, self.now_ms).into_iter()
    }

    /// Who should host: at most one worker for each cell, those that do first.
    pub(super) fn hosts_wanted(&self) -> Vec<WorkerId> {
        let mut wanted: Vec<WorkerId> = self.eligible().collect();
        wanted.sort_by_key(|worker| !self.members[worker].hosts);
        wanted.truncate(self.settings.job.grid.n_cells() as usize);
        wanted.sort();
        wanted
    }
}
