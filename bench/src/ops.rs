//! Every operation of a training step by itself, at the shapes that a network gives it: what it
//! takes, and how much of the machine's peak that is.
//!
//! The list follows `model/`: what a step runs several times (per layer, or again in the backward
//! pass) says how often, so the rows add up to a step that has nothing else to do. Bytes are those of
//! the tensors an operation reads and writes, each once.

pub mod cuda;
mod linears;
mod others;

use serde::Serialize;
use shoal_kernels::compare::Random;
use shoal_kernels::linear::Math;
use shoal_kernels::{DType, ScaleFormat, Tensor};
use shoal_plan::job::Precision;
use shoal_plan::model::ModelConfig;

use crate::peak::Peak;
use crate::{Error, Meter, median, timed};

/// Seconds that one operation is repeated for.
const SECONDS: f64 = 0.15;

/// Fewest repetitions whose median is reported.
const REPEATS_MIN: usize = 5;

/// The network and one microbatch of it.
#[derive(Clone, Debug)]
pub struct Shapes {
    pub model: ModelConfig,
    pub precision: Precision,
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
}

/// What bounds an operation: arithmetic or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Products whose operands are BF16 or exact in it.
    Bf16Products,
    F32Products,
    Memory,
}

/// One operation, measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    pub operation: String,
    /// As a person reads it: rows x columns and so on.
    pub shape: String,
    /// Times in a step.
    pub times: usize,
    /// Of one.
    pub seconds: f64,
    pub flops: f64,
    pub bytes: f64,
    pub bound: Bound,
    pub gflops: f64,
    pub gigabytes_per_second: f64,
    /// Of the peak that bounds it.
    pub share_of_peak: f64,
}

/// An operation that can be run again and again.
struct Operation<'a> {
    name: String,
    shape: String,
    times: usize,
    flops: f64,
    bytes: f64,
    bound: Bound,
    run: Box<dyn FnMut() + Send + 'a>,
}

impl Shapes {
    /// Measures every operation, in the order of a step.
    pub fn measure(&self, peak: &Peak, meter: &dyn Meter) -> Result<Vec<Measured>, Error> {
        self.check()?;
        let mut rows = Vec::new();
        let mut take = |operation: Operation<'_>| rows.push(operation.measure(peak, meter));
        linears::each(self, &mut take);
        others::each(self, &mut take);
        Ok(rows)
    }

    fn check(&self) -> Result<(), Error> {
        for (what, got) in [("batch", self.batch), ("tokens", self.tokens)] {
            if got == 0 {
                let (got, want) = ("0".to_owned(), "1 or more".to_owned());
                return Err(Error::Option { what, got, want });
            }
        }
        Ok(())
    }

    /// T: tokens of the microbatch.
    fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    fn d(&self) -> usize {
        self.model.hidden_size as usize
    }

    fn layers(&self) -> usize {
        (self.model.num_hidden_layers + self.model.num_nextn_predict_layers) as usize
    }

    fn moe_layers(&self) -> usize {
        let all = 0..self.layers() as u32;
        all.filter(|layer| self.model.is_moe(*layer)).count()
    }

    /// Between operations.
    fn dtype(&self) -> DType {
        if self.precision == Precision::F32 { DType::F32 } else { DType::Bf16 }
    }

    /// Of a Linear's operands.
    fn math(&self) -> Math {
        match self.precision {
            Precision::Fp8 => Math::Fp8(ScaleFormat::Pow2),
            Precision::Bf16 => Math::Bf16,
            Precision::F32 => Math::F32,
        }
    }

    /// What bounds a product of such operands.
    fn products(&self) -> Bound {
        if self.precision == Precision::F32 { Bound::F32Products } else { Bound::Bf16Products }
    }
}

impl Operation<'_> {
    fn measure(mut self, peak: &Peak, meter: &dyn Meter) -> Measured {
        (self.run)();
        let (began, mut seconds) = (meter.seconds(), Vec::new());
        while seconds.len() < REPEATS_MIN || meter.seconds() - began < SECONDS {
            seconds.push(timed(meter, &mut self.run).0);
        }
        let seconds = median(&seconds);
        let gflops = self.flops / seconds / 1e9;
        let gigabytes_per_second = self.bytes / seconds / 1e9;
        let share_of_peak = match self.bound {
            Bound::Bf16Products => gflops / peak.gflops(true),
            Bound::F32Products => gflops / peak.f32_gflops,
            Bound::Memory => gigabytes_per_second / peak.triad_gigabytes_per_second,
        };
        let Self { name, shape, times, flops, bytes, bound, .. } = self;
        Measured {
            operation: name,
            shape,
            times,
            seconds,
            flops,
            bytes,
            bound,
            gflops,
            gigabytes_per_second,
            share_of_peak,
        }
    }
}

/// Numbers like those between operations.
fn random(dtype: DType, rows: usize, cols: usize) -> Tensor {
    Tensor::from_f32(dtype, &[rows, cols], &Random::new(1).normal(rows * cols))
}

#[cfg(test)]
mod tests {
    use shoal_plan::arithmetic::parameters;
    use shoal_plan::job::Recompute;

    use super::*;
    use crate::Ticks;
    use crate::train::Cell;

    fn measured(precision: Precision) -> (Shapes, Vec<Measured>) {
        let model = ModelConfig { num_nextn_predict_layers: 0, ..ModelConfig::tiny() };
        let shapes = Shapes { model, precision, batch: 2, tokens: 8 };
        let peak = Peak {
            threads: 1,
            f32_gflops: 1.0,
            bf16_gflops: Some(2.0),
            read_gigabytes_per_second: 1.0,
            triad_gigabytes_per_second: 1.0,
        };
        let rows = shapes.measure(&peak, &Ticks::default()).unwrap();
        (shapes, rows)
    }

    #[test]
    fn the_products_of_the_rows_are_those_of_a_step_and_what_is_computed_again() {
        for precision in Precision::ALL {
            let (shapes, rows) = measured(precision);
            let products = rows.iter().filter(|row| row.bound != Bound::Memory);
            let sum: f64 = products.map(|row| row.flops * row.times as f64).sum();
            let (batch, tokens) = (shapes.batch, shapes.tokens);
            let cell = Cell {
                model: shapes.model.clone(),
                precision,
                recompute: Recompute::None,
                batch,
                tokens,
                microbatches: 1,
                text: vec![],
                seed: 0,
            };
            // Queries, keys and values are made again in the backward pass.
            let again = 2 * 4 * (96 * 4 * 48 + 64 * 4 * 64) * batch * tokens;
            // Scores and probabilities too: 5 products in attention's backward pass instead of 4.
            let scores = 4 * 4 * 48 * (batch * tokens * (tokens + 1));
            let want = cell.flops_per_token() * (batch * tokens) as f64 + (again + scores) as f64;
            assert!((sum / want - 1.0).abs() < 1e-9, "{precision:?}: {sum}, want {want}");
            assert!(rows.iter().all(|row| row.seconds > 0.0 && row.share_of_peak.is_finite()));
        }
    }

    #[test]
    fn the_optimizer_sees_every_parameter() {
        let (shapes, rows) = measured(Precision::Bf16);
        let update = rows.iter().find(|row| row.operation == "adamw").unwrap();
        // FP32 master, gradient and two BF16 moments read, all but the gradient written.
        let want = parameters(&shapes.model).total as f64 * 20.0;
        assert!((update.bytes - want).abs() < 1.0, "{update:?}");
    }
}
