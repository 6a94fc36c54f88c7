//! Whole training steps of a model in one cell: what `shoal launch` does on one worker, without
//! processes, checkpoints and evaluation.
//!
//! FLOPs are the useful ones: 6 for each weight that a token meets in a product (router and head in,
//! embedding out), and causal attention, forward and backward. A position attends to itself and all
//! before it, so to (T + 1) / 2 on average. What is computed twice counts once.

use serde::Serialize;
use shoal_kernels::adamw::AdamStep;
use shoal_model::cuda::Gpu;
use shoal_model::{Alone, BatchTokens, Cut, LossScale, Losses, Stage, StageOptions, Update};
use shoal_plan::arithmetic::{flops_per_token, parameters};
use shoal_plan::job::{Precision, Recompute};
use shoal_plan::model::ModelConfig;

use crate::cuda::{self, Card};
use crate::{Error, Meter, median, timed};

/// Steps before the clock starts: pages are fresh and caches empty.
const WARM_UP: u64 = 3;

/// Fewest steps whose median is reported.
const STEPS_MIN: usize = 3;

/// Of the multi-token-prediction loss and of the balance loss, as `shoal launch` begins with.
const MTP_WEIGHT: f32 = 0.3;
const BALANCE_WEIGHT: f32 = 1e-4;

/// Largest norm of a gradient, and the guard of the division by it.
const CLIP: f64 = 1.0;
const CLIP_EPSILON: f64 = 1e-6;

/// What to train, and on what.
#[derive(Clone, Debug)]
pub struct Cell {
    pub model: ModelConfig,
    pub precision: Precision,
    pub recompute: Recompute,
    /// Sequences of a step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub tokens: usize,
    /// Passes that share the batch; one of them holds `batch / microbatches` sequences.
    pub microbatches: usize,
    /// Ids below the vocabulary's size; sequences begin anywhere in it.
    pub text: Vec<u32>,
    pub seed: u64,
}

/// How long to measure, after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    Steps(usize),
    Seconds(f64),
}

/// What was measured. Times are in seconds a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trained {
    pub parameters: u64,
    pub active_parameters: u64,
    pub flops_per_token: f64,
    pub steps: usize,
    pub median_seconds: f64,
    pub fastest_seconds: f64,
    pub slowest_seconds: f64,
    pub tokens_per_second: f64,
    pub gflops: f64,
    /// Of forward, backward (both halves, layer by layer), and the rest of a step (finite? norm, update).
    pub forward_seconds: f64,
    pub backward_seconds: f64,
    pub update_seconds: f64,
    /// Nats a token, of the first step (before any update) and of the last five.
    pub loss_first: f64,
    pub loss_last: f64,
    /// Median over the measured steps; `None` if nobody counts.
    pub allocations_per_step: Option<f64>,
    /// What the cell holds after a forward pass: parameters, optimizer, caches. With a GPU, what of it the host holds.
    pub held_bytes: usize,
    /// The most of a GPU's memory that was in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_bytes: Option<usize>,
}

/// Seconds of the parts of one step.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    forward: f64,
    backward: f64,
    update: f64,
}

/// `n` ids below `below` that look like noise and are always the same for a seed (`SplitMix64`).
pub fn random_tokens(n: usize, below: u32, seed: u64) -> Vec<u32> {
    let mut state = Generator(seed);
    (0..n).map(|_| (state.next() % u64::from(below.max(1))) as u32).collect()
}

struct Generator(u64);

impl Generator {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl Cell {
    /// Useful FLOPs of a token, forward and backward.
    pub fn flops_per_token(&self) -> f64 {
        flops_per_token(&self.model, self.tokens as u32 + 1)
    }

    fn check(&self) -> Result<(), Error> {
        let counts = [("batch", self.batch), ("tokens", self.tokens)];
        for (what, got) in counts.into_iter().chain([("microbatches", self.microbatches)]) {
            if got == 0 {
                let (got, want) = (got.to_string(), "1 or more".to_owned());
                return Err(Error::Option { what, got, want });
            }
        }
        if !self.batch.is_multiple_of(self.microbatches) {
            let want = format!("a divisor of the batch, {}", self.batch);
            let got = self.microbatches.to_string();
            return Err(Error::Option { what: "microbatches", got, want });
        }
        let want = self.tokens + 1;
        if self.text.len() < want {
            return Err(Error::Text { got: self.text.len(), want });
        }
        Ok(())
    }

    /// Trains and measures.
    pub fn measure(&self, length: Length, meter: &dyn Meter) -> Result<Trained, Error> {
        self.check()?;
        self.measured(Run::new(self), length, meter)
    }

    /// The same on a GPU, in `bytes` of its memory. A step ends when the device has ended it, so that the host's clock, which
    /// also sees what the host does, has all of it. Its parts end when they are queued.
    ///
    /// # Errors
    /// As `measure`; precision f32; what the device says, too little memory among it.
    pub fn measure_on(
        &self,
        (card, bytes): (&Card, Option<usize>),
        length: Length,
        meter: &dyn Meter,
    ) -> Result<Trained, Error> {
        self.check()?;
        cuda::has(self.precision)?;
        let mut run = Run::new(self);
        let model = |source| Error::Model { step: 0, source };
        run.stage.move_to(card.part(bytes)?).map_err(model)?;
        self.measured(run, length, meter)
    }

    fn measured(
        &self,
        mut run: Run<'_>,
        length: Length,
        meter: &dyn Meter,
    ) -> Result<Trained, Error> {
        let loss_first = run.step(meter)?.0;
        for _ in 1..WARM_UP {
            run.step(meter)?;
        }
        let began = meter.seconds();
        let (mut seconds, mut parts, mut losses) = (Vec::new(), Vec::new(), Vec::new());
        let mut allocations = Vec::new();
        let is_over = |n: usize, elapsed: f64| match length {
            Length::Steps(steps) => n >= steps.max(1),
            Length::Seconds(wanted) => elapsed >= wanted && n >= STEPS_MIN,
        };
        while !is_over(seconds.len(), meter.seconds() - began) {
            let before = meter.allocations();
            let (took, done) = timed(meter, || run.step(meter));
            let (loss, part) = done?;
            let counted = before.zip(meter.allocations()).map(|(before, now)| now - before);
            allocations.push(counted.map(|count| count as f64));
            seconds.push(took);
            parts.push(part);
            losses.push(loss);
        }
        let count = parameters(&self.model);
        let part = |of: fn(&Parts) -> f64| median(&parts.iter().map(of).collect::<Vec<_>>());
        let (median_seconds, flops) = (median(&seconds), self.flops_per_token());
        let tokens_per_second = (self.batch * self.tokens) as f64 / median_seconds;
        let last = &losses[losses.len().saturating_sub(5)..];
        Ok(Trained {
            parameters: count.total,
            active_parameters: count.active,
            flops_per_token: flops,
            steps: seconds.len(),
            median_seconds,
            fastest_seconds: seconds.iter().copied().fold(f64::INFINITY, f64::min),
            slowest_seconds: seconds.iter().copied().fold(0.0, f64::max),
            tokens_per_second,
            gflops: tokens_per_second * flops / 1e9,
            forward_seconds: part(|part| part.forward),
            backward_seconds: part(|part| part.backward),
            update_seconds: part(|part| part.update),
            loss_first,
            loss_last: last.iter().sum::<f64>() / last.len() as f64,
            allocations_per_step: allocations
                .into_iter()
                .collect::<Option<Vec<_>>>()
                .map(|counts| median(&counts)),
            held_bytes: run.held_bytes,
            device_bytes: run.stage.gpu().map(|gpu: Gpu| gpu.usage().high_water),
        })
    }
}

/// A cell under way.
struct Run<'a> {
    cell: &'a Cell,
    stage: Stage,
    scale: LossScale,
    places: Generator,
    step: u64,
    held_bytes: usize,
}

impl<'a> Run<'a> {
    fn new(cell: &'a Cell) -> Self {
        let options = StageOptions {
            recompute: cell.recompute,
            ..StageOptions::new(cell.precision, cell.seed)
        };
        let targets = (cell.batch * cell.tokens) as f32;
        let second = (cell.batch * (cell.tokens - 1)).max(1) as f32;
        Self {
            cell,
            stage: Stage::new(Cut::whole(cell.model.clone()), &options),
            scale: LossScale {
                main: 1.0 / targets,
                mtp: MTP_WEIGHT / second,
                balance: BALANCE_WEIGHT / cell.batch as f32,
            },
            places: Generator(cell.seed),
            step: 0,
            held_bytes: 0,
        }
    }

    /// One step: the loss a token before its update, and what its parts took.
    fn step(&mut self, meter: &dyn Meter) -> Result<(f64, Parts), Error> {
        let Cell { batch, tokens, microbatches, ref text, .. } = *self.cell;
        self.step += 1;
        let step = self.step;
        let model = |source| Error::Model { step, source };
        let mut parts = Parts::default();
        for number in 0..microbatches as u32 {
            let last = (text.len() - tokens) as u64;
            let windows = (0..batch / microbatches).map(|_| {
                let first = (self.places.next() % last) as usize;
                &text[first..=first + tokens]
            });
            let windows: Vec<&[u32]> = windows.collect();
            let microbatch = BatchTokens::from_windows(&windows).map_err(model)?;
            let (stage, scale) = (&mut self.stage, &self.scale);
            let (took, done) = timed(meter, || {
                stage.forward(number, &microbatch.batch(), None, scale, &mut Alone)
            });
            done.map_err(model)?;
            parts.forward += took;
            if step == 1 {
                self.held_bytes = self.held_bytes.max(stage.memory().total());
            }
            let (took, done) = timed(meter, || stage.backward(number, None, &mut Alone));
            done.map_err(model)?;
            parts.backward += took;
        }
        let mut main_sum = 0.0;
        let (took, done) = timed(meter, || {
            self.stage.settle().map_err(model)?;
            Losses { main_sum, .. } = self.stage.take_losses();
            self.update()
        });
        parts.update = took;
        done?;
        Ok((main_sum / (batch * tokens) as f64, parts))
    }

    /// The end of a step, as a worker ends it: is all finite, the norm, the update.
    fn update(&mut self) -> Result<(), Error> {
        if let Some(found) = self.stage.first_nonfinite() {
            return Err(Error::NonFinite { step: self.step, place: found.place });
        }
        let norms = self.stage.sum_of_squares();
        let norm = (norms.dense + norms.expert + norms.embedding).sqrt();
        let adam = AdamStep {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step: self.step,
            grad_scale: (CLIP / (norm + CLIP_EPSILON)).min(1.0) as f32,
        };
        let step = self.step;
        let model = |source| Error::Model { step, source };
        self.stage.update(&Update { adam, bias_speed: 0.001 }).map_err(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ticks;

    fn cell() -> Cell {
        let model = ModelConfig { num_nextn_predict_layers: 0, ..ModelConfig::tiny() };
        let text = "one line that is learnt by heart; ".repeat(20).bytes().map(u32::from).collect();
        Cell {
            model,
            precision: Precision::Bf16,
            recompute: Recompute::None,
            batch: 2,
            tokens: 16,
            microbatches: 2,
            text,
            seed: 1,
        }
    }

    #[test]
    fn a_measured_cell_learns_and_its_figures_belong_together() {
        let done = cell().measure(Length::Steps(12), &Ticks::default()).unwrap();
        assert_eq!(done.steps, 12);
        assert!(done.loss_last < done.loss_first - 1.0, "{done:?}");
        assert_eq!(done.allocations_per_step, None);
        let tokens = 32.0 / done.median_seconds;
        assert!((done.tokens_per_second - tokens).abs() < 1e-9, "{done:?}");
        let gflops = tokens * cell().flops_per_token() / 1e9;
        assert!((done.gflops - gflops).abs() < 1e-9 * gflops, "{done:?}");
        // Each microbatch was timed once in every part, and a look takes a second.
        assert!((done.forward_seconds - 2.0).abs() < 1e-9, "{done:?}");
        assert!(done.held_bytes > 4 * done.parameters as usize);
    }

    #[test]
    fn a_token_costs_what_the_peer_counts() {
        // benches/peer: 6 x active weights in products + 6 L heads (qk + v) (T + 1) / 2.
        let cell = Cell { tokens: 256, ..cell() };
        let attention = 256 * 96 + 96 * 4 * 48 + 256 * 80 + 64 * 4 * 64 + 4 * 32 * 256;
        let moe = 256 * 16 + 5 * 3 * 256 * 128;
        let weights = 4 * attention + 3 * 256 * 512 + 3 * moe + 256 * 256;
        let want = 6.0 * f64::from(weights) + 6.0 * 4.0 * 4.0 * 80.0 * 257.0 / 2.0;
        let got = cell.flops_per_token();
        assert!((got - want).abs() < 1.0, "{got}, want {want}");
    }

    #[test]
    fn what_cannot_be_trained_is_said() {
        let check = |cell: Cell, wanted: &str| {
            let error = cell.measure(Length::Steps(1), &Ticks::default()).unwrap_err().to_string();
            assert!(error.contains(wanted), "want {wanted:?} in: {error}");
        };
        check(Cell { batch: 0, ..cell() }, "batch is 0, want 1 or more");
        check(Cell { tokens: 0, ..cell() }, "tokens is 0");
        check(Cell { microbatches: 3, ..cell() }, "microbatches is 3, want a divisor");
        check(Cell { text: vec![1; 16], ..cell() }, "16 tokens, want 17");
    }

    #[test]
    fn random_tokens_are_below_the_bound_and_the_same_for_a_seed() {
        let tokens = random_tokens(1000, 7, 3);
        assert!(tokens.iter().all(|token| *token < 7) && tokens.contains(&6));
        assert_eq!(tokens, random_tokens(1000, 7, 3));
        assert_ne!(tokens, random_tokens(1000, 7, 4));
    }
}
