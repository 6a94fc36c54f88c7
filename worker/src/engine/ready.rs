//! What a worker does for a plan that is not in force yet, while the others train: it opens the text,
//! builds the cells it will host, and fills them with the newest snapshot that is in memory, whose
//! hash it proves. At the edge only what has changed since then is left to do.

use shoal_model::{Cut, StageOptions};
use shoal_plan::grid::CellId;

use super::kept::{Built, Kept};
use super::state::Layout;
use super::{Control, EngineError};
use crate::daemon::{Assignment, Prepared};
use crate::devices::Devices;

/// Gets ready, as far as that goes: a snapshot that is gone meanwhile costs time at the edge and
/// nothing else.
pub(super) fn get_ready(
    assignment: &Assignment,
    control: &Control,
    (kept, devices): (&Kept, &Devices),
) -> Prepared {
    let Assignment { plan, standing, .. } = assignment;
    let mut prepared =
        Prepared { generation: plan.generation, standing: *standing, cells: Vec::new() };
    if let Err(error) = kept.text(&assignment.job, &assignment.run_dir) {
        tracing::warn!(%error, "the text is not open yet");
    }
    let cells = plan.cells_of(assignment.me);
    kept.retain(&cells);
    for (nth, cell) in cells.into_iter().enumerate() {
        match build(assignment, control, (kept, devices), (nth, cell)) {
            Ok(state) => prepared.cells.extend(state.map(|blake3| (cell, blake3))),
            Err(error) => tracing::warn!(%cell, %error, "the cell is built, and holds nothing yet"),
        }
    }
    prepared
}

/// Leaves the cell in `kept`; returns the blake3 of the state in it.
fn build(
    assignment: &Assignment,
    control: &Control,
    (kept, devices): (&Kept, &Devices),
    (nth, cell): (usize, CellId),
) -> Result<Option<String>, EngineError> {
    let Assignment { job, plan, standing, vault, vaults, sources, .. } = assignment;
    let options = StageOptions::from(&job.training);
    let cuts = Cut::of(&job.model, plan, cell);
    let layout = Layout::of(&cuts, &options);
    let (mut stages, held) = kept.take_or_blank(cell, (&layout, &options), cuts);
    let source =
        sources.get(cell.0 as usize).filter(|source| held.as_ref() != Some(&source.blake3));
    let Some(source) = source else {
        kept.put(cell, Built { layout, options, stages, state: held.clone() });
        return Ok(held);
    };
    let is_over = || control.is_aborted();
    let address = vaults.get(&source.worker).copied();
    let what = (plan.generation, *standing);
    let filled = vault
        .look((source, address), what, layout.bytes, &is_over)
        .map_err(EngineError::from)
        .and_then(|snapshot| {
            layout.fill(&mut stages, &options, &snapshot.bytes)?;
            Ok(devices.place((nth, cell), &mut stages, (job, plan))?)
        });
    let state = filled.is_ok().then(|| source.blake3.clone());
    kept.put(cell, Built { layout, options, stages, state: state.clone() });
    filled.map(|()| state)
}
