//! The planner: on a fleet that may not exist yet, which grid a job would run on, who would host which cell, how
//! long a step would take, what it costs, and why. It chooses a grid, so it serves before a run starts; where cells of a running
//! grid go is `placement`'s.
//!
//! A `Candidate` is a complete answer. `predict` says what it would take, `search` finds a good one, `bound` how
//! much better another could be, `snapshots` what copies of its state take beside it, `advice` puts it in words.
//!
//! `training.recompute` is counted as the job has it, in memory and in time; the planner does not choose it. What is not
//! modelled yet: offload, several cells of one card, and traffic of other people on the links.

pub mod advice;
mod bound;
mod build;
mod candidate;
mod equal;
mod predict;
mod price;
mod search;
pub mod snapshots;

use crate::cost::Software;
use crate::cost::links::Network;
use crate::fleet::Fleet;
use crate::job::Job;

pub use bound::bound_s;
pub use candidate::Candidate;
pub use equal::equal_split;
pub use predict::{CellUse, Kinds, Prediction, predict};
pub use price::{Bill, bill};
pub use search::{Answer, Misfit, Rejected, plan};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub job: &'a Job,
    pub fleet: &'a Fleet,
    pub software: Software,
}

/// The cards of a fleet, numbered machine by machine, and the links between them.
#[derive(Clone, Debug)]
pub struct Layout<'a> {
    pub network: Network<'a>,
    /// The machine of each card.
    pub machines: Vec<usize>,
}

impl<'a> Layout<'a> {
    pub fn of(fleet: &'a Fleet) -> Self {
        let network = Network::new(fleet);
        let cards =
            |machine| std::iter::repeat_n(machine, fleet.rigs[network.rig(machine)].count as usize);
        let machines = (0..network.machines()).flat_map(cards).collect();
        Self { network, machines }
    }

    /// The rig of a card.
    pub fn rig(&self, card: usize) -> usize {
        self.network.rig(self.machines[card])
    }
}
