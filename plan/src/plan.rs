//! A committed plan: for each cell, what it owns and who hosts it, with the reasons.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::grid::{CellId, Grid};

/// Which plan a message or a connection belongs to. Grows by one with every plan of a run;
/// anything of another generation is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// A worker process, numbered as the launcher started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub u32);

/// Names one launch of one run: 16 random bytes in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub String);

/// The layers of one virtual stage and why the cut is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagePlan {
    /// 0-based decoder layers, without the MTP modules (which are on the last virtual stage).
    pub layers: Range<u32>,
    /// Forward and backward FLOPs of one token through these, head and MTP included.
    pub flops_per_token: f64,
    pub reason: String,
}

/// Who does what, for one generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub generation: Generation,
    pub grid: Grid,
    /// One per virtual stage, in the order of the network: virtual stage `k` is chunk `k / stages`
    /// of stage `k % stages` of the grid. Under every schedule but `interleaved` a stage has one
    /// chunk, and the virtual stages are the stages.
    pub stages: Vec<StagePlan>,
    /// Routed experts of each shard, the same in every mixture-of-experts layer.
    pub experts: Vec<Range<u32>>,
    /// The host of each cell, in cell order.
    pub hosts: Vec<WorkerId>,
    /// Why the hosts were chosen so, by worker.
    pub reasons: BTreeMap<WorkerId, String>,
}

impl Plan {
    /// The cells a worker hosts, in cell order.
    pub fn cells_of(&self, worker: WorkerId) -> Vec<CellId> {
        self.grid.cells().filter(|cell| self.host(*cell) == worker).collect()
    }

    /// Chunks of each stage: runs of layers that its cells own. At least 1.
    pub fn chunks(&self) -> u32 {
        self.stages.len() as u32 / self.grid.stages
    }

    /// The chunks of one stage of the grid, in the order of the network.
    pub fn chunks_of(&self, stage: u32) -> impl DoubleEndedIterator<Item = &StagePlan> {
        self.stages.iter().skip(stage as usize).step_by(self.grid.stages as usize)
    }

    /// The worker that hosts a cell.
    pub fn host(&self, cell: CellId) -> WorkerId {
        self.hosts[cell.0 as usize]
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker-{}", self.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}", self.0)
    }
}
