//! One way to run a job on a fleet: the grid and its uneven division, and the card of every cell.

use std::collections::BTreeMap;

use crate::grid::Grid;
use crate::job::Job;
use crate::plan::{Generation, Plan, StagePlan, WorkerId};
use crate::schedule::Schedule;

/// A complete answer. In a manifest it is `spec.parallelism` and `spec.training.microbatch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub grid: Grid,
    pub schedule: Schedule,
    pub chunks: u32,
    /// The most sequences a cell works on at a time.
    pub microbatch: u32,
    /// Layers of each virtual stage, in the order of the network.
    pub layers: Vec<u32>,
    /// Experts of each shard.
    pub experts: Vec<u32>,
    /// Sequences of a step, by column.
    pub shares: Vec<u32>,
    /// The card of each cell, in cell order. No card has two.
    pub cards: Vec<usize>,
}

impl Candidate {
    /// The job as this would run it.
    pub fn job(&self, job: &Job) -> Job {
        let mut job = job.clone();
        job.grid = self.grid;
        job.schedule = self.schedule;
        job.division.chunks = self.chunks;
        job.division.layers.clone_from(&self.layers);
        job.division.experts.clone_from(&self.experts);
        job.division.shares.clone_from(&self.shares);
        job.training.microbatch = self.microbatch;
        job
    }

    /// The job of one replica alone, and its plan: its cells keep and do what they do in the whole.
    pub(crate) fn replica(&self, job: &Job, replica: u32) -> (Job, Plan) {
        let (grid, shards) = (self.grid, self.grid.expert_shards);
        let mut job = self.job(job);
        job.grid = Grid { replicas: 1, ..grid };
        let from = (replica * shards) as usize;
        let shares = self.shares[from..from + shards as usize].to_vec();
        job.training.batch = shares.iter().sum::<u32>().max(1);
        job.division.shares = if shares.iter().all(|share| *share == 0) { vec![] } else { shares };
        let plan = self.plan(job.grid);
        (job, plan)
    }

    /// The committed plan's form of it: a worker for each card that has a cell, with the card's number.
    pub fn committed(&self) -> Plan {
        let hosts = self.cards.iter().map(|card| WorkerId(*card as u32));
        Plan { hosts: hosts.collect(), ..self.plan(self.grid) }
    }

    /// The same without hosts.
    fn plan(&self, grid: Grid) -> Plan {
        let stage = |layers| StagePlan { layers, flops_per_token: 0.0, reason: String::new() };
        Plan {
            generation: Generation(1),
            grid,
            stages: ranges(&self.layers).into_iter().map(stage).collect(),
            experts: ranges(&self.experts),
            hosts: Vec::new(),
            reasons: BTreeMap::new(),
        }
    }

    /// The card of a cell.
    pub fn card(&self, stage: u32, column: u32) -> usize {
        self.cards[(stage * self.grid.columns() + column) as usize]
    }
}

/// Consecutive ranges of these lengths.
pub(crate) fn ranges(lengths: &[u32]) -> Vec<std::ops::Range<u32>> {
    let mut end = 0;
    let range = |length: &u32| {
        let start = end;
        end += length;
        start..end
    };
    lengths.iter().map(range).collect()
}
