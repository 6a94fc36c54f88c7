//! What workers say of their cells' sums, of what they have got ready, and of whoever else wants their
//! machine, through the door.

use shoal_plan::grid::CellId;
use shoal_plan::plan::Generation;
use shoal_plan::standing::Standing;

use super::to_worker::CELLS_MAX;
use super::{WireError, hash, raw, readable, reports};
use crate::message::FromWorker;

fn few_enough(field: &'static str, got: usize) -> Result<(), WireError> {
    // One worker speaks of no more than a grid has.
    if got as u64 > CELLS_MAX {
        return Err(WireError::Count { field, got, want: format!("at most {CELLS_MAX}") });
    }
    Ok(())
}

pub(super) fn sums(raw: Vec<raw::CellSum>) -> Result<Vec<(CellId, u64)>, WireError> {
    few_enough("step_done.sums", raw.len())?;
    Ok(raw.into_iter().map(|raw| (CellId(raw.cell), raw.sum)).collect())
}

pub(super) fn raw_sums(sums: Vec<(CellId, u64)>) -> Vec<raw::CellSum> {
    sums.into_iter().map(|(cell, sum)| raw::CellSum { cell: cell.0, sum }).collect()
}

pub(super) fn prepared(raw: raw::Prepared) -> Result<FromWorker, WireError> {
    few_enough("prepared.cells", raw.cells.len())?;
    let cell =
        |raw: raw::CellState| Ok((CellId(raw.cell), hash("prepared.cells.blake3", raw.blake3)?));
    Ok(FromWorker::Prepared {
        generation: Generation(raw.generation),
        standing: reports::standing("prepared.standing", raw.standing)?,
        cells: raw.cells.into_iter().map(cell).collect::<Result<_, WireError>>()?,
    })
}

pub(super) fn raw_prepared(
    generation: Generation,
    standing: Standing,
    cells: Vec<(CellId, String)>,
) -> raw::Prepared {
    let cell = |(cell, blake3): (CellId, String)| raw::CellState { cell: cell.0, blake3 };
    let cells = cells.into_iter().map(cell).collect();
    raw::Prepared { generation: generation.0, standing: Some(standing.into()), cells }
}

pub(super) fn yielding(raw: raw::Yielding) -> Result<FromWorker, WireError> {
    let reason = raw.reason.map(|reason| readable("yielding.reason", &reason)).transpose()?;
    Ok(FromWorker::Yielding { reason })
}
