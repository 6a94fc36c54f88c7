//! What the runs of the simulation have met: what never happened was not tested.

use std::collections::BTreeMap;

/// What was met on the way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) crashes: u64,
    pub(crate) coordinator_crashes: u64,
    pub(crate) fetched: u64,
    pub(crate) met: BTreeMap<String, u64>,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.crashes += other.crashes;
        self.coordinator_crashes += other.coordinator_crashes;
        self.fetched += other.fetched;
        other.met.iter().for_each(|(name, n)| *self.met.entry(name.clone()).or_default() += n);
    }

    /// Every kind of news that recovery has.
    pub(crate) fn has_met_everything(&self) -> bool {
        let all = ["Evicted", "Recovering", "Recovered", "Rejoined", "Left", "Paused", "Resumed"];
        let more = ["Quarantined", "MovedAtEdge", "CheckpointFailed", "Finished", "Prepared"];
        let last =
            ["Yielding", "SharesMove", "Straggler", "Diverged", "RolledBack", "Parted", "CaughtUp"];
        let last = [&last[..], &["Draining"]].concat();
        self.crashes > 0
            && self.coordinator_crashes > 0
            && self.fetched > 0
            && all.iter().chain(&more).chain(&last).all(|name| self.met.contains_key(*name))
    }
}
