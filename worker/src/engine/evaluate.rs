//! The loss of the main head on text that is not trained on, over the whole grid.
//!
//! Forward only: nothing is kept for a backward, no routing is counted, no bias moves. Which windows
//! of a set are read depends on the set and on `evaluation.tokens_max` alone, never on the grid.

use std::sync::Arc;

use shoal_data::TokenShards;
use shoal_model::{BatchTokens, Evaluated, Stage};
use shoal_plan::grid::CellId;
use shoal_plan::report::{Evaluation, OF_AVERAGE};
use shoal_plan::schedule::Work;

use super::cell::batch_of;
use super::error::EngineError;
use super::hidden::Direction;
use super::step::Trainer;

/// What one cell has summed up of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    /// In nats, over targets.
    loss: f64,
    targets: u64,
    /// Of text behind the targets.
    bytes: u64,
}

impl Trainer {
    /// Evaluates every set, in the order of their names. Every cell returns the same figures.
    pub(super) fn evaluate_all(&mut self) -> Result<Vec<Evaluation>, EngineError> {
        let inputs = Arc::clone(&self.inputs);
        let mut evaluations = Vec::new();
        for (name, shards) in &inputs.text.sets {
            evaluations.push(self.evaluate_set(name, shards)?);
        }
        if inputs.job.training.ema > 0.0 {
            evaluations.extend(self.evaluate_average()?);
        }
        Ok(evaluations)
    }

    /// The same with the average of the parameters in their place, as sets `NAME-ema`.
    fn evaluate_average(&mut self) -> Result<Vec<Evaluation>, EngineError> {
        let inputs = Arc::clone(&self.inputs);
        self.chunks.iter_mut().try_for_each(Stage::swap_ema)?;
        let evaluations = inputs
            .text
            .sets
            .iter()
            .map(|(name, shards)| self.evaluate_set(&format!("{name}{OF_AVERAGE}"), shards));
        let evaluations: Result<Vec<Evaluation>, EngineError> = evaluations.collect();
        self.chunks.iter_mut().try_for_each(Stage::swap_ema)?;
        evaluations
    }

    /// Evaluates the first windows of a set, at most `evaluation.tokens_max` tokens and one window
    /// at least, divided over the columns as a batch is.
    fn evaluate_set(&mut self, set: &str, shards: &TokenShards) -> Result<Evaluation, EngineError> {
        let inputs = Arc::clone(&self.inputs);
        let sequence = inputs.job.training.sequence;
        let column = inputs.plan.grid.column(self.id);
        let wanted = (inputs.job.evaluation.tokens_max / u64::from(sequence)).max(1);
        let n_windows = shards.windows(sequence).min(wanted);
        if n_windows == 0 {
            let (set, tokens) = (set.to_owned(), shards.n_tokens());
            return Err(EngineError::EmptySet { set, tokens, sequence });
        }
        let division = inputs.job.division_of(n_windows);
        let mut sums = Sums::default();
        for round in 0..division.rounds() {
            let windows: Vec<Vec<u32>> = (division.microbatch(column, round))
                .map(|window| shards.window(window, sequence))
                .collect();
            let (loss, targets) = self.evaluate_windows(round as u32, &batch_of(&windows)?)?;
            sums.loss += loss;
            sums.targets += targets;
            if targets > 0 {
                // The first token of a window is no target.
                let bytes = |token: &u32| u64::from(inputs.text.tokenizer.token_bytes(*token));
                sums.bytes +=
                    windows.iter().flat_map(|window| &window[1..]).map(bytes).sum::<u64>();
            }
        }
        self.sum_over_cells(set, &sums)
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

    fn sum_over_cells(&mut self, set: &str, mine: &Sums) -> Result<Evaluation, EngineError> {
        let mut all = Sums::default();
        let parts = self.comm.all_gather(&self.groups.all, mine.to_bytes())?;
        for (from, part) in self.groups.all.iter().zip(&parts) {
            let part = Sums::from_bytes(*from, part)?;
            all.loss += part.loss;
            all.targets += part.targets;
            all.bytes += part.bytes;
        }
        let loss = all.loss / all.targets.max(1) as f64;
        // A NaN says no more than an infinity, and no comparison with it holds.
        let loss = if loss.is_finite() { loss } else { f64::INFINITY };
        Ok(Evaluation { set: set.to_owned(), loss, tokens: all.targets, bytes: all.bytes })
    }
}

impl Sums {
    const BYTES: usize = 24;

    fn to_bytes(self) -> Vec<u8> {
        let words = [self.loss.to_bits(), self.targets, self.bytes];
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn from_bytes(from: CellId, bytes: &[u8]) -> Result<Self, EngineError> {
        let (words, rest) = bytes.as_chunks::<8>();
        let ([loss, targets, text], []) = (words, rest) else {
            let (got, want) = (bytes.len(), Self::BYTES);
            return Err(EngineError::Message { what: "evaluation", from, got, want });
        };
        let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
        Ok(Self { loss: f64::from_bits(word(loss)), targets: word(targets), bytes: word(text) })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::net::TcpListener;
    use std::thread;

    use shoal_data::{EndToken, Part, Settings, Source, TokenizerChoice, prepare};
    use shoal_plan::grid::Grid;
    use shoal_plan::job::{Job, Precision};
    use shoal_plan::placement::make_plan;
    use shoal_plan::plan::{Generation, RunId, WorkerId};

    use tempfile::TempDir;

    use super::*;
    use crate::comm::{Membership, Mesh, Timeouts};
    use crate::engine::{Cell, Inputs};

    /// A job of seconds on one machine.
    pub(in crate::engine) fn job(grid: Grid) -> Job {
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
    pub(in crate::engine) fn tokens(scratch: &TempDir) {
        let text = scratch.path().join("text.txt");
        let lines = (0..400_u32).map(|i| format!("fish {} swims {}\n", i % 97, i * 7 % 31));
        std::fs::write(&text, lines.collect::<String>()).unwrap();
        let (files, weight, field) = (vec![text], 1.0, "text".to_owned());
        let settings = Settings {
            sources: vec![Source { name: "text".to_owned(), files, weight, field }],
            tokenizer: TokenizerChoice::Bytes,
            vocab_size: 256,
            end_token: EndToken::Auto,
            eval_sets: BTreeMap::new(),
            bytes_max: 1 << 20,
            heldout_fraction: 0.01,
            sequence: 16,
            windows_min_train: 8,
            windows_min_heldout: 1,
        };
        prepare(&settings, &scratch.path().join("data"), &mut |_| {}).unwrap();
    }

    /// What every cell of a grid finds, on one worker.
    fn evaluations(scratch: &TempDir, grid: Grid) -> Vec<Vec<Evaluation>> {
        let (me, job) = (WorkerId(0), job(grid));
        let plan = make_plan(&job, &[me], Generation(1)).unwrap();
        let membership = Membership {
            run: RunId("evaluate".into()),
            secret: [7; 32],
            generation: Generation(1),
            me,
            hosts: plan.hosts.clone(),
            peers: BTreeMap::new(),
            trust: None,
            ways: crate::comm::Ways::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mesh = Mesh::open(membership, listener, Timeouts::default()).unwrap();
        let mut inputs = Inputs::open(&job, &plan, scratch.path(), None).unwrap();
        let train = TokenShards::open(&scratch.path().join("data"), Part::Train(0)).unwrap();
        inputs.text.sets.insert("a_set_of_its_own".into(), Arc::new(train));
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
        let scratch = tempfile::tempdir().unwrap();
        tokens(&scratch);
        let one = evaluations(&scratch, Grid::ONE).remove(0);
        let found: Vec<(&str, u64)> = one.iter().map(|e| (&*e.set, e.tokens)).collect();
        let heldout = TokenShards::open(&scratch.path().join("data"), Part::Heldout).unwrap();
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
    fn sums_survive_the_wire_and_a_short_message_is_named() {
        let sums = Sums { loss: 3.5, targets: 7, bytes: 20 };
        let bytes = sums.to_bytes();
        assert_eq!(Sums::from_bytes(CellId(1), &bytes).unwrap(), sums);
        let error = Sums::from_bytes(CellId(1), &bytes[..16]).unwrap_err().to_string();
        assert_eq!(error, "evaluation from cell-1 has 16 bytes, want 24");
    }
}
