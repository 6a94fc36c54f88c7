//! Every operation of a training step on a GPU by itself, at the shapes that a network gives it, against the card's peaks.
//!
//! The list follows `model/src/cuda/`, as the list of the CPU follows `model/`: rows say how often a step runs them. Every kernel
//! of a step is there; left out are some narrow uses of them (quantising of latents, sums over multi-token-prediction modules)
//! and uploads of a few numbers.

mod experts;
mod forms;
mod heads;
mod products;
mod rows;
mod streams;
mod update;

use serde::Serialize;
use shoal_kernels::cuda::DeviceError;
use shoal_plan::job::Precision;

use super::Shapes;
use crate::Error;
use crate::cuda::{self, Card, CardPeak, Effort, Unit};

/// One operation, measured. Seconds are of one run: the median of the samples, and their range.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    pub operation: String,
    /// As a person reads it: rows x columns and so on.
    pub shape: String,
    /// Times in a step.
    pub times: usize,
    pub seconds: f64,
    pub fastest_seconds: f64,
    pub slowest_seconds: f64,
    pub flops: f64,
    pub bytes: f64,
    pub bound: Unit,
    pub gflops: f64,
    pub gigabytes_per_second: f64,
    /// Of the peak that bounds it; none where nobody states that peak.
    pub share_of_peak: Option<f64>,
}

/// What is told of an operation beside its time.
struct Work {
    name: String,
    shape: String,
    times: usize,
    flops: f64,
    bytes: f64,
    bound: Unit,
}

/// A list of operations in the making.
struct Bench<'a> {
    shapes: &'a Shapes,
    card: &'a Card,
    peak: &'a CardPeak,
    effort: &'a Effort,
    rows: Vec<Measured>,
}

impl Shapes {
    /// Measures every operation, in the order of a step.
    ///
    /// # Errors
    /// Precision f32, a batch of nothing; what the device says, too little memory among it.
    pub fn measure_on(
        &self,
        card: &Card,
        peak: &CardPeak,
        effort: &Effort,
    ) -> Result<Vec<Measured>, Error> {
        self.check_on()?;
        let mut bench = Bench { shapes: self, card, peak, effort, rows: Vec::new() };
        products::each(&mut bench)?;
        heads::each(&mut bench)?;
        if self.moe_layers() > 0 {
            experts::each(&mut bench)?;
            rows::each(&mut bench)?;
        }
        streams::each(&mut bench)?;
        if self.precision == Precision::Fp8 {
            forms::each(&mut bench)?;
        }
        update::each(&mut bench)?;
        Ok(bench.rows)
    }

    /// Whether a GPU computes these at all.
    ///
    /// # Errors
    /// Precision f32, a batch of nothing.
    pub fn check_on(&self) -> Result<(), Error> {
        self.check()?;
        cuda::has(self.precision)
    }

    /// The tensor cores that a Linear runs on.
    fn unit(&self) -> Unit {
        if self.precision == Precision::Fp8 { Unit::Fp8Products } else { Unit::Bf16Products }
    }
}

impl Bench<'_> {
    fn measure(
        &mut self,
        work: Work,
        mut run: impl FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let times = self.card.time(self.effort, &mut run)?;
        let Work { name: operation, shape, times: n, flops, bytes, bound } = work;
        let (gflops, gigabytes) = (flops / times.median / 1e9, bytes / times.median / 1e9);
        let rate = match bound {
            Unit::Bf16Products | Unit::Fp8Products | Unit::F32Products => gflops,
            Unit::Memory | Unit::Link => gigabytes,
        };
        self.rows.push(Measured {
            operation,
            shape,
            times: n,
            seconds: times.median,
            fastest_seconds: times.fastest,
            slowest_seconds: times.slowest,
            flops,
            bytes,
            bound,
            gflops,
            gigabytes_per_second: gigabytes,
            share_of_peak: self.peak.of(bound).map(|peak| rate / peak),
        });
        Ok(())
    }

    /// A row that memory bounds.
    fn stream(
        &mut self,
        (name, shape): (&str, String),
        times: usize,
        bytes: usize,
        run: impl FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let (name, bytes) = (name.to_owned(), bytes as f64);
        self.measure(Work { name, shape, times, flops: 0.0, bytes, bound: Unit::Memory }, run)
    }
}
