//! How a cell uses its worker's memory: its snapshots go there, and it may start from one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use shoal_model::{Cut, Stage, StageOptions};
use shoal_plan::buddies::buddies;
use shoal_plan::grid::CellId;
use shoal_plan::plan::WorkerId;
use shoal_plan::standing::Standing;
use shoal_proto::Source;

use super::Control;
use super::cell::Inputs;
use super::error::EngineError;
use super::kept::{Built, Kept};
use super::state::Layout;
use crate::daemon::Assignment;
use crate::vault::{Snapshot, Terms, Vault};

/// A worker's vault, and what the plan says of it.
pub(super) struct Memory {
    vault: Vault,
    /// Of all workers.
    vaults: BTreeMap<WorkerId, SocketAddr>,
    /// Where each cell's state is found, in cell order; none if it is not in memory.
    sources: Vec<Source>,
    /// Who holds copies of each cell's snapshots, in cell order.
    buddies: Vec<Vec<WorkerId>>,
    control: Arc<Control>,
    kept: Arc<Kept>,
}

impl Memory {
    pub(super) fn of(assignment: &Assignment, control: &Arc<Control>, kept: &Arc<Kept>) -> Self {
        Self {
            vault: assignment.vault.clone(),
            vaults: assignment.vaults.clone(),
            sources: assignment.sources.clone(),
            buddies: buddies(&assignment.job, &assignment.plan),
            control: Arc::clone(control),
            kept: Arc::clone(kept),
        }
    }

    /// Whether the plan goes on from what is in memory.
    pub(super) fn has_sources(&self) -> bool {
        !self.sources.is_empty()
    }

    /// Tells the vault what it may hold from now on.
    pub(super) fn begin(&self, inputs: &Inputs, me: WorkerId) {
        let mine = |cell: &CellId| {
            let host = inputs.plan.host(*cell);
            host == me || self.buddies[cell.0 as usize].contains(&me)
        };
        let cells = inputs.plan.grid.cells().filter(mine);
        let options = StageOptions::from(&inputs.job.training);
        let terms = |cell: CellId| {
            let bytes = Layout::of(&inputs.cuts(cell), &options).bytes;
            (cell, (inputs.plan.host(cell), bytes))
        };
        self.vault.begin(Terms {
            generation: inputs.plan.generation,
            start: (!self.sources.is_empty()).then_some(inputs.standing.step),
            last: inputs.job.training.steps,
            cells: cells.map(terms).collect(),
        });
    }
}

/// One cell's part of it.
pub(super) struct Recall {
    pub(super) cell: CellId,
    layout: Layout,
    options: StageOptions,
    /// Where its copies go.
    targets: BTreeMap<WorkerId, SocketAddr>,
}

impl Recall {
    pub(super) fn of(inputs: &Inputs, memory: &Memory, cell: CellId, cuts: &[Cut]) -> Self {
        let options = StageOptions::from(&inputs.job.training);
        let target = |worker: &WorkerId| Some((*worker, *memory.vaults.get(worker)?));
        let targets = memory.buddies[cell.0 as usize].iter().filter_map(target).collect();
        Self { cell, layout: Layout::of(cuts, &options), options, targets }
    }

    /// The cell's stages with the state of its source, which is held here afterwards. Stages that
    /// another engine has left are taken, and where they hold that state nothing is done to them.
    pub(super) fn load(
        &self,
        inputs: &Inputs,
        memory: &Memory,
        cuts: Vec<Cut>,
    ) -> Result<(Vec<Stage>, Arc<Snapshot>), EngineError> {
        let source = &memory.sources[self.cell.0 as usize];
        let address = memory.vaults.get(&source.worker).copied();
        let what = (inputs.plan.generation, self.cell, inputs.standing);
        let is_over = || memory.control.is_aborted();
        let fetched = memory.vault.fetch(what, (source, address), self.layout.bytes, &is_over)?;
        let form = (&self.layout, &self.options);
        let (mut stages, state) = memory.kept.take_or_blank(self.cell, form, cuts);
        if state.as_ref() != Some(&source.blake3) {
            self.layout.fill(&mut stages, &self.options, &fetched.bytes)?;
        }
        Ok((stages, fetched))
    }

    /// Sends what the cell has started from to those that are to hold copies of it.
    pub(super) fn copy(&self, inputs: &Inputs, memory: &Memory, snapshot: Arc<Snapshot>) {
        let what = (inputs.plan.generation, self.cell, inputs.standing);
        memory.vault.copy(what, snapshot, &self.targets);
    }

    /// Leaves the cell's stages, which hold the state of that hash, to the next engine.
    pub(super) fn leave(self, memory: &Memory, stages: Vec<Stage>, state: Option<String>) {
        let Self { cell, layout, options, .. } = self;
        memory.kept.put(cell, Built { layout, options, stages, state });
    }

    /// Whether the cell's last snapshot is still on its way.
    pub(super) fn is_busy(&self, inputs: &Inputs, memory: &Memory) -> bool {
        memory.vault.is_busy(inputs.plan.generation, self.cell)
    }

    /// Takes a snapshot and goes on.
    pub(super) fn remember(
        &self,
        inputs: &Inputs,
        memory: &Memory,
        (stages, standing): (&[Stage], Standing),
    ) -> Result<(), EngineError> {
        let what = (inputs.plan.generation, self.cell, standing);
        let write = |into: &mut Vec<u8>| self.layout.write(stages, into);
        Ok(memory.vault.snapshot(what, self.layout.bytes, &self.targets, write)?)
    }

    /// Takes a snapshot that the next plan starts from, and returns its blake3 once it is held here.
    pub(super) fn hand_over(
        &self,
        inputs: &Inputs,
        memory: &Memory,
        (stages, standing): (&[Stage], Standing),
    ) -> Result<String, EngineError> {
        let what = (inputs.plan.generation, self.cell, standing);
        let write = |into: &mut Vec<u8>| self.layout.write(stages, into);
        let stored = memory.vault.store(what, self.layout.bytes, write)?;
        Ok(stored.blake3.to_hex().to_string())
    }
}
