//! How often something has happened without a committed step in between.

use serde::{Deserialize, Serialize};

/// What was committed when it last happened, and how often so.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct InARow(Option<(u64, u32)>);

impl InARow {
    /// It has happened again: so many times since `committed`.
    pub(super) fn again(&mut self, committed: u64) -> u32 {
        let before = self.0.filter(|(then, _)| *then == committed);
        let times = before.map_or(1, |(_, times)| times + 1);
        self.0 = Some((committed, times));
        times
    }
}
