//! The loss of the main head on held-out text, over the whole grid.
//!
//! Forward only: nothing is kept for a backward, no routing is counted, no bias moves.

use shoal_model::{BatchTokens, Evaluated};
use shoal_plan::grid::CellId;
use shoal_plan::report::Evaluation;
use shoal_plan::schedule::Work;

use super::cell::batch_of;
use super::error::EngineError;
use super::hidden::Direction;
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
            let part = self.evaluate_windows(round as u32, &batch_of(&windows)?)?;
            loss_sum += part.0;
            targets += part.1;
        }
        self.sum_over_cells(loss_sum, targets)
    }

    /// This cell's part of one round: a sum of losses and a number of targets where the network
    /// ends, zeros elsewhere.
    fn evaluate_windows(
        &mut self,
        round: u32,
        tokens: &BatchTokens,
    ) -> Result<(f64, u64), EngineError> {
        let sequences = tokens.batch().sequences;
        let mut part = (0.0, 0);
        for chunk in 0..self.chunks.len() as u32 {
            let work = Work { chunk, microbatch: round };
            let input = match self.neighbour(Direction::Backward, work) {
                Some(_) => Some(self.recv_hidden(Direction::Forward, work, sequences)?),
                None => None,
            };
            let (chunk, mut exchange) = self.chunk(work);
            match chunk.evaluate(&tokens.batch(), input, &mut exchange)? {
                Evaluated::Hidden(hidden) => self.send_hidden(Direction::Forward, work, &hidden)?,
                Evaluated::Loss { loss_sum, targets } => part = (loss_sum, targets),
            }
        }
        Ok(part)
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
