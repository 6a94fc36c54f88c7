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
    use std::collections::BTreeMap;
    use std::net::TcpListener;
    use std::thread;

    use shoal_plan::grid::Grid;
    use shoal_plan::job::{Job, Precision};
    use shoal_plan::placement::make_plan;
    use shoal_plan::plan::{Generation, RunId, WorkerId};

    use super::*;
    use crate::checkpoint::scratch::Scratch;
    use crate::comm::{Membership, Mesh, Timeouts};
    use crate::data::{self, Split};
    use crate::engine::{Cell, Inputs};

    fn job(grid: Grid) -> Job {
        let mut job = Job { grid, ..Job::example() };
        job.model.hidden_size = 32;
        job.model.intermediate_size = 48;
        job.model.moe_intermediate_size = 16;
        (job.training.sequence, job.training.batch, job.training.microbatch) = (16, 8, 2);
        job.training.precision = Precision::F32;
        job.evaluation.tokens_max = 11 * 16 + 5;
        job
    }

    /// The token shards of a text.
    fn tokens(scratch: &Scratch) {
        let text = scratch.path().join("text.txt");
        let lines = (0..400_u32).map(|i| format!("fish {} swims {}\n", i % 97, i * 7 % 31));
        std::fs::write(&text, lines.collect::<String>()).unwrap();
        let settings = data::Settings {
            bytes_max: 1 << 20,
            heldout_fraction: 0.01,
            sequence: 16,
            windows_min_train: 8,
            windows_min_heldout: 1,
        };
        data::prepare(&[text], &settings, &scratch.path().join("data"), &mut |_, _| {}).unwrap();
    }

    /// What every cell of a grid finds, on one worker.
    fn evaluations(scratch: &Scratch, grid: Grid) -> Vec<Vec<Evaluation>> {
        let (me, job) = (WorkerId(0), job(grid));
        let plan = make_plan(&job, &[me], Generation(1)).unwrap();
        let membership = Membership {
            run: RunId("evaluate".into()),
            secret: [7; 32],
            generation: Generation(1),
            me,
            hosts: plan.hosts.clone(),
            peers: BTreeMap::new(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mesh = Mesh::open(membership, listener, Timeouts::default()).unwrap();
        let mut inputs = Inputs::open(&job, &plan, scratch.path(), None).unwrap();
        let train = TokenShards::open(&scratch.path().join("data"), Split::Train).unwrap();
        inputs.sets.insert("a_set_of_its_own".into(), train);
        let inputs = Arc::new(inputs);
        let cells: Vec<_> = (grid.cells())
            .map(|cell| {
                let (inputs, comm) = (Arc::clone(&inputs), Box::new(mesh.endpoint(cell)));
                thread::spawn(move || {
                    Cell::new(inputs, comm).unwrap().into_trainer().evaluate_all().unwrap()
                })
            })
            .collect();
        cells.into_iter().map(|cell| cell.join().unwrap()).collect()
    }

    #[test]
    fn every_grid_evaluates_the_same_windows_of_every_set() {
        let scratch = Scratch::new("evaluate");
        tokens(&scratch);
        let one = evaluations(&scratch, Grid::ONE).remove(0);
        let found: Vec<(&str, u64)> = one.iter().map(|e| (&*e.set, e.tokens)).collect();
        let heldout = TokenShards::open(&scratch.path().join("data"), Split::Heldout).unwrap();
        // The held-out text is shorter than `tokens_max`, the other set longer.
        let short = heldout.windows(16);
        assert!(short < 11, "{short} windows held out");
        assert_eq!(found, [("a_set_of_its_own", 11 * 16), ("heldout", short * 16)]);
        for (stages, expert_shards, replicas) in [(2, 1, 1), (1, 2, 1), (2, 2, 2)] {
            let grid = Grid { stages, expert_shards, replicas };
            let cells = evaluations(&scratch, grid);
            assert!(cells.iter().all(|cell| *cell == cells[0]), "{grid:?}: cells disagree");
            for (got, want) in cells[0].iter().zip(&one) {
                assert_eq!((&got.set, got.tokens), (&want.set, want.tokens), "{grid:?}");
                // FP32 sums of some hundred terms in another order.
                let off = (got.loss / want.loss - 1.0).abs();
                assert!(off < 1e-5, "{grid:?}: {} is off by {off}", got.set);
            }
        }
    }

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
