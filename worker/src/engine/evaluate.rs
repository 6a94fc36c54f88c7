//! The loss of the main head on held-out text, over the whole grid.
//!
//! Forward only: nothing is kept for a backward, no routing is counted, no bias moves.

use shoal_model::{BatchTokens, Evaluated};
use shoal_plan::grid::CellId;
use shoal_plan::report::Evaluation;

use super::cell::batch_of;
use super::error::EngineError;
use super::group::GroupExchange;
use super::step::Trainer;

/// Enough for two digits after the point; more would only take the user's time.
const TOKENS_MAX: u64 = 32_768;

impl Trainer {
    /// Evaluates the first held-out windows, divided over the columns as a batch is. Every cell
    /// returns the same figures.
    pub(super) fn evaluate(&mut self) -> Result<Evaluation, EngineError> {
        let training = &self.inputs.job.training;
        let sequence = training.sequence;
        let column = self.inputs.plan.grid.column(self.id);
        let available = self.inputs.heldout.windows(sequence);
        let wanted = available.min((TOKENS_MAX / u64::from(sequence)).max(1));
        let division = self.inputs.job.division_of(wanted);
        let (mut loss_sum, mut targets) = (0.0, 0);
        for round in 0..division.rounds() {
            let windows: Vec<Vec<u32>> = (division.microbatch(column, round))
                .map(|window| self.inputs.heldout.window(window, sequence))
                .collect();
            let part = self.evaluate_windows(&batch_of(&windows)?)?;
            loss_sum += part.0;
            targets += part.1;
        }
        self.sum_over_cells(loss_sum, targets)
    }

    /// This cell's part of one round: a sum of losses and a number of targets on the last stage,
    /// zeros elsewhere.
    fn evaluate_windows(&mut self, tokens: &BatchTokens) -> Result<(f64, u64), EngineError> {
        let grid = self.inputs.plan.grid;
        let sequences = tokens.batch().sequences;
        let input = match grid.previous(self.id) {
            Some(previous) => Some(self.recv_hidden(previous, sequences)?),
            None => None,
        };
        let Self { stage, comm, groups, .. } = self;
        let mut exchange = GroupExchange { comm: &mut **comm, group: &groups.experts };
        match stage.evaluate(&tokens.batch(), input, &mut exchange)? {
            Evaluated::Hidden(hidden) => {
                let next =
                    grid.next(self.id).expect("hidden states leave every stage but the last");
                self.send_hidden(next, Some(hidden))?;
                Ok((0.0, 0))
            }
            Evaluated::Loss { loss_sum, targets } => Ok((loss_sum, targets)),
        }
    }

    fn sum_over_cells(&mut self, loss_sum: f64, targets: u64) -> Result<Evaluation, EngineError> {
        let mut mine = loss_sum.to_le_bytes().to_vec();
        mine.extend(targets.to_le_bytes());
        let (mut loss_sum, mut tokens) = (0.0, 0);
        let parts = self.comm.all_gather(&self.groups.all, mine)?;
        for (from, part) in self.groups.all.iter().zip(&parts) {
            let (loss, count) = decode(*from, part)?;
            loss_sum += loss;
            tokens += count;
        }
        // A token is a byte as long as byte tokens are the only ones.
        Ok(Evaluation { loss: loss_sum / tokens.max(1) as f64, tokens, bytes: tokens })
    }
}

fn decode(from: CellId, bytes: &[u8]) -> Result<(f64, u64), EngineError> {
    let wrong = || EngineError::Message { what: "evaluation", from, got: bytes.len(), want: 16 };
    let (loss, count) = bytes.split_at_checked(8).ok_or_else(wrong)?;
    let loss = f64::from_le_bytes(loss.try_into().map_err(|_| wrong())?);
    let count = u64::from_le_bytes(count.try_into().map_err(|_| wrong())?);
    Ok((loss, count))
}
