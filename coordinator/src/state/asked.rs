//! What the conductor and the metrics ask of the state.

use std::collections::BTreeMap;

use shoal_plan::plan::Plan;

use super::{Phase, State};
use crate::metrics::WorkerState;

impl State {
    /// How many workers are how far.
    pub(crate) fn workers(&self) -> BTreeMap<WorkerState, u32> {
        let mut count = BTreeMap::new();
        for member in self.members.values() {
            *count.entry(member.state(self.phase)).or_default() += 1;
        }
        let gone = self.histories.values().filter(|history| history.gone).count();
        *count.entry(WorkerState::Lost).or_default() += gone as u32;
        count
    }

    /// The newest step whose state is whole in memory, and the newest that the loss of any worker
    /// leaves whole somewhere. 0 if there is none.
    pub(crate) fn kept_steps(&self) -> (u64, u64) {
        let in_memory = self
            .holdings
            .newest_complete(|held| held.step <= self.committed)
            .map_or(0, |standing| standing.step);
        let twice = self.holdings.durable().unwrap_or(0).min(self.committed);
        (in_memory, twice.max(self.checkpointed.step))
    }

    /// The last committed step.
    pub(crate) fn committed(&self) -> u64 {
        self.committed
    }

    pub(crate) fn plan_in_force(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.phase == Phase::Paused
    }
}
