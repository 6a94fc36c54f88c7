//! How a run goes back: all workers have skipped too many steps in a row and wait. With the next
//! generation of the plan they build their cells again, from the newest checkpoint, and draw data
//! from after the last skipped step.
//!
//! Each worker sent its parts of every checkpoint before it asked to go back. So once all have
//! asked and no manifest is being written, the newest checkpoint is the same however late the
//! messages were, and a run that is repeated goes back to the same step.

use shoal_plan::plan::{Generation, WorkerId};
use shoal_plan::report::Ending;
use shoal_plan::standing::Standing;

use super::{Ignored, State};
use crate::news::{Cause, News};

impl State {
    pub(super) fn wants_to_go_back(&mut self, worker: WorkerId, standing: Standing) {
        let phase = self.phase;
        let member = self.member(worker);
        let (connection, done) = (member.connection, member.done);
        if !phase.trains() {
            return self.ignore(connection, Ignored::OutOfPhase(phase));
        }
        if member.going_back.is_some() {
            return self.ignore(connection, Ignored::Repeated);
        }
        if standing.step != done || member.has_ended() {
            let why = format!("going back after step {}: the last it did is {done}", standing.step);
            return self.fail(Cause::Protocol, Some(worker), why);
        }
        member.going_back = Some(standing);
    }

    pub(super) fn go_back_when_all_wait(&mut self) {
        let waiting: Option<Vec<Standing>> =
            self.hosts().map(|(_, host)| host.going_back).collect();
        let Some(waiting) = waiting.filter(|_| !self.is_over() && !self.parts.is_busy()) else {
            return;
        };
        // One that is cut off is back soon, or lost: then the others recover, and come here again.
        if waiting.is_empty() || self.hosts().any(|(_, host)| !host.connected) {
            return;
        }
        if let Some(other) = waiting.iter().find(|standing| **standing != waiting[0]) {
            let why = format!("workers go back from {:?} and from {other:?}", waiting[0]);
            return self.fail(Cause::Protocol, None, why);
        }
        self.go_back(&waiting[0]);
    }

    fn go_back(&mut self, from: &Standing) {
        let to = self.checkpointed;
        let start = from.gone_back_to(&to);
        let stopping = self.stop_wanted;
        // A run that stops here passes over nothing: when it goes on from the checkpoint, it meets
        // the same steps and comes to the same end of them.
        self.take_back(&to, (!stopping).then_some(start.sequences));
        let passed_over = start.sequences - to.sequences.min(start.sequences);
        let rollbacks = start.rollbacks;
        self.news(News::RolledBack { from: from.step, to: to.step, passed_over, rollbacks });
        if stopping {
            return self.finish(Ending::Stopped);
        }
        self.from_checkpoint = start;
        // What is in memory knows nothing of the rollback.
        self.holdings.clear();
        if (self.eligible().count() as u32) < self.settings.job.workers.min {
            return self.lose(None);
        }
        let generation = Generation(self.generation().0 + 1);
        self.assign(generation, self.restart_from_disk());
    }
}
