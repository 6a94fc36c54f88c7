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
use super::state::Layout;
use crate::daemon::Assignment;
use crate::vault::{Terms, Vault};

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
}

impl Memory {
    pub(super) fn of(assignment: &Assignment, control: &Arc<Control>) -> Self {
        Self {
            vault: assignment.vault.clone(),
            vaults: assignment.vaults.clone(),
            sources: assignment.sources.clone(),
            buddies: buddies(&assignment.job, &assignment.plan),
            control: Arc::clone(control),
        }
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

    /// Fills the cell's stages from its source, where the plan names one, which is then held here;
    /// returns its blake3. `None` if the state is not in memory.
    pub(super) fn load(
        &self,
        inputs: &Inputs,
        memory: &Memory,
        stages: &mut [Stage],
    ) -> Result<Option<String>, EngineError> {
        let Some(source) = memory.sources.get(self.cell.0 as usize) else { return Ok(None) };
        let address = memory.vaults.get(&source.worker).copied();
        let what = (inputs.plan.generation, self.cell, inputs.standing);
        let is_over = || memory.control.is_aborted();
        let fetched = memory.vault.fetch(what, (source, address), self.layout.bytes, &is_over)?;
        self.layout.fill(stages, &self.options, &fetched.bytes)?;
        memory.vault.copy(what, fetched, &self.targets);
        Ok(Some(source.blake3.clone()))
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
