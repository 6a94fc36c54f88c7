//! The loss of the main head on text that is not trained on, over the whole grid.
//!
//! Forward only: nothing is kept for a backward, no routing is counted, no bias moves. Which windows
//! of a set are read depends on the set and on `evaluation.tokens_max` alone, never on the grid.

use std::ops::Range;
use std::sync::Arc;

use shoal_model::{BatchTokens, Evaluated};
use shoal_plan::grid::CellId;
use shoal_plan::report::Evaluation;

use super::cell::batch_of;
use super::error::EngineError;
use super::group::GroupExchange;
use super::step::Trainer;
use crate::data::TokenShards;

/// The windows one column works through in one round.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Share {
    windows: Range<u64>,
    /// False for windows that only keep the column in step with the others.
    counts: bool,
}

impl Trainer {
    /// Evaluates every set, in the order of their names. Every cell returns the same figures.
    pub(super) fn evaluate_all(&mut self) -> Result<Vec<Evaluation>, EngineError> {
        let inputs = Arc::clone(&self.inputs);
        inputs.sets.iter().map(|(name, shards)| self.evaluate_set(name, shards)).collect()
    }

    /// Evaluates the first windows of a set, at most `evaluation.tokens_max` tokens and one window
    /// at least.
    fn evaluate_set(&mut self, set: &str, shards: &TokenShards) -> Result<Evaluation, EngineError> {
        let inputs = Arc::clone(&self.inputs);
        let (training, grid) = (&inputs.job.training, inputs.plan.grid);
        let (sequence, microbatch) = (training.sequence, u64::from(training.microbatch));
        let available = shards.windows(sequence);
        let wanted = (inputs.job.evaluation.tokens_max / u64::from(sequence)).max(1);
        let windows = available.min(wanted);
        if windows == 0 {
            let (set, tokens) = (set.to_owned(), shards.n_tokens());
            return Err(EngineError::EmptySet { set, tokens, sequence });
        }
        let (column, columns) = (u64::from(grid.column(self.id)), u64::from(grid.columns()));
        let (mut loss_sum, mut targets) = (0.0, 0);
        for round in 0..windows.div_ceil(columns * microbatch) {
            let share = share(windows, microbatch, round * columns + column);
            let tokens: Vec<Vec<u32>> =
                share.windows.map(|window| shards.window(window, sequence)).collect();
            let part = self.evaluate_windows(&batch_of(&tokens)?, tokens.len() as u32)?;
            if share.counts {
                loss_sum += part.0;
                targets += part.1;
            }
        }
        self.sum_over_cells(set, loss_sum, targets)
    }

    /// This cell's part of one round: a sum of losses and a number of targets on the last stage,
    /// zeros elsewhere.
    fn evaluate_windows(
        &mut self,
        tokens: &BatchTokens,
        sequences: u32,
    ) -> Result<(f64, u64), EngineError> {
        let grid = self.inputs.plan.grid;
        let input = match grid.previous(self.id) {
            Some(previous) => Some(self.recv_hidden_of(previous, sequences)?),
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

    fn sum_over_cells(
        &mut self,
        set: &str,
        loss_sum: f64,
        targets: u64,
    ) -> Result<Evaluation, EngineError> {
        let mut mine = loss_sum.to_le_bytes().to_vec();
        mine.extend(targets.to_le_bytes());
        let (mut loss_sum, mut tokens) = (0.0, 0);
        let parts = self.comm.all_gather(&self.groups.all, mine)?;
        for (from, part) in self.groups.all.iter().zip(&parts) {
            let (loss, count) = decode(*from, part)?;
            loss_sum += loss;
            tokens += count;
        }
        let loss = loss_sum / tokens.max(1) as f64;
        // A NaN says no more than an infinity, and no comparison with it holds.
        let loss = if loss.is_finite() { loss } else { f64::INFINITY };
        // A token is a byte as long as byte tokens are the only ones.
        Ok(Evaluation { set: set.to_owned(), loss, tokens, bytes: tokens })
    }
}

/// The `turn`th of the shares that `windows` windows are cut into, at most `microbatch` each. Past
/// the last, the last window comes again: a column without a window of its own still has to hold
/// out its experts to the others' tokens, and tokens to be in step.
fn share(windows: u64, microbatch: u64, turn: u64) -> Share {
    let first = turn * microbatch;
    if first < windows {
        Share { windows: first..windows.min(first + microbatch), counts: true }
    } else {
        Share { windows: windows - 1..windows, counts: false }
    }
}

fn decode(from: CellId, bytes: &[u8]) -> Result<(f64, u64), EngineError> {
    let wrong = || EngineError::Message { what: "evaluation", from, got: bytes.len(), want: 16 };
    let (loss, count) = bytes.split_at_checked(8).ok_or_else(wrong)?;
    let loss = f64::from_le_bytes(loss.try_into().map_err(|_| wrong())?);
    let count = u64::from_le_bytes(count.try_into().map_err(|_| wrong())?);
    Ok((loss, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_counts_once_on_any_number_of_columns() {
        for windows in 1..30 {
            for (columns, microbatch) in [(1, 1), (1, 4), (4, 1), (3, 4), (8, 2)] {
                let turns = u64::div_ceil(windows, columns * microbatch) * columns;
                let shares: Vec<Share> =
                    (0..turns).map(|turn| share(windows, microbatch, turn)).collect();
                assert!(shares.iter().all(|share| !share.windows.is_empty()));
                let counted = shares.iter().filter(|share| share.counts);
                let counted: Vec<u64> = counted.flat_map(|share| share.windows.clone()).collect();
                assert_eq!(counted, (0..windows).collect::<Vec<_>>());
            }
        }
    }
}
