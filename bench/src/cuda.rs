//! One GPU of this machine: what it is, and how long work on it takes, by its own clock.
//!
//! Times are between two events on the stream that the work is queued on, so that neither the host's clock nor its
//! scheduler has a part in them. An operation that is shorter than its launch takes as long as the launch.

mod peak;
mod room;

use std::num::FpCategory;
use std::sync::Arc;

use serde::Serialize;
use shoal_kernels::cuda::{Arena, Device, DeviceError, Event, Stream};
use shoal_model::cuda;
use shoal_plan::gpus::{self, Gpu};
use shoal_plan::job::Precision;

pub use self::peak::{CardPeak, Unit};
pub(crate) use self::room::Side;
use crate::{Error, median};

/// A GPU with the kernels of the network.
#[derive(Debug)]
pub struct Card {
    pub(crate) device: Device,
    pub(crate) stream: Stream,
    pub(crate) kernels: Arc<cuda::Kernels>,
    ordinal: usize,
}

/// What a figure belongs to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    pub ordinal: usize,
    /// As the driver says it.
    pub name: String,
    pub compute_capability: String,
    pub multiprocessors: u32,
    pub memory_bytes: usize,
    /// The CUDA that the driver supports.
    pub driver_cuda: String,
    /// Which of the shipped images runs.
    pub image: String,
    /// Its name in the catalogue, where its stated peaks are; none if it is not there.
    pub catalogue: Option<&'static str>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Effort {
    /// Runs before the clock starts: the first one loads code, and a card at rest is slow.
    pub warm_up: usize,
    /// Samples whose median is told.
    pub rounds: usize,
    /// A sample is as many runs as take about so long, at most `runs_max`.
    pub sample_seconds: f64,
    pub runs_max: usize,
    /// Bytes that a copy reads.
    pub copy_bytes: usize,
    /// Side of the square product that stands for what products reach.
    pub product_side: usize,
    /// Parameters that an update or a copy of gradients is measured on.
    pub parameters_max: usize,
}

impl Effort {
    pub const FULL: Self = Self {
        warm_up: 5,
        rounds: 20,
        sample_seconds: 2e-3,
        runs_max: 100,
        copy_bytes: 256 << 20,
        product_side: 4096,
        parameters_max: 64 << 20,
    };

    /// So little that a device of any speed comes to the end.
    pub const QUICK: Self = Self {
        warm_up: 1,
        rounds: 1,
        sample_seconds: 0.0,
        runs_max: 1,
        copy_bytes: 256 << 10,
        product_side: 128,
        parameters_max: 16 << 10,
    };
}

/// Seconds of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Times {
    pub(crate) median: f64,
    pub(crate) fastest: f64,
    pub(crate) slowest: f64,
}

impl Times {
    fn of(samples: &[f64]) -> Self {
        Self {
            median: median(samples),
            fastest: samples.iter().copied().fold(f64::INFINITY, f64::min),
            slowest: samples.iter().copied().fold(0.0, f64::max),
        }
    }
}

impl Card {
    /// Opens a GPU, counted from 0 in the driver's order.
    ///
    /// # Errors
    /// What is missing: the driver, a newer one, the GPU.
    pub fn open(ordinal: usize) -> Result<Self, Error> {
        let device = Device::open(ordinal).map_err(Error::NoDevice)?;
        let (stream, kernels) = (device.stream()?, Arc::new(cuda::Kernels::load(&device)?));
        Ok(Self { device, stream, kernels, ordinal })
    }

    pub fn description(&self) -> Description {
        let properties = self.device.properties();
        let (major, minor) = properties.compute_capability;
        Description {
            ordinal: self.ordinal,
            name: properties.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            multiprocessors: properties.multiprocessors,
            memory_bytes: properties.memory_bytes,
            driver_cuda: properties.driver.to_string(),
            image: self.device.arch().to_string(),
            catalogue: self.in_catalogue().map(|(name, _)| name),
        }
    }

    fn in_catalogue(&self) -> Option<(&'static str, &'static Gpu)> {
        gpus::of_driver(&self.device.properties().name)
    }

    /// A cell's part of the card, for whole steps: so many bytes, or nine tenths of what is free.
    pub(crate) fn part(&self, bytes: Option<usize>) -> Result<cuda::Gpu, Error> {
        let free = self.device.memory()?.0;
        let part = ("a cell of the bench", bytes.unwrap_or(free / 10 * 9));
        Ok(cuda::Gpu::new(&self.device, &self.kernels, part)?)
    }

    /// Room of its own for tokens of an embedding.
    pub(crate) fn arena(&self, bytes: usize) -> Result<Arena, DeviceError> {
        Arena::new(&self.device, "token ids", bytes)
    }

    /// How long `work` takes, once it is warm.
    pub(crate) fn time(
        &self,
        effort: &Effort,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Times, DeviceError> {
        for _ in 0..effort.warm_up {
            work()?;
        }
        let (start, end) = (self.device.timing_event()?, self.device.timing_event()?);
        let mut sample = |runs| self.sample((&start, &end), runs, work);
        let runs = match effort.runs_max {
            0 | 1 => 1,
            most => runs(sample(1)?, effort.sample_seconds, most),
        };
        let samples: Result<Vec<f64>, _> =
            (0..effort.rounds.max(1)).map(|_| sample(runs)).collect();
        Ok(Times::of(&samples?))
    }

    /// Seconds of one of so many runs, one after the other.
    fn sample(
        &self,
        (start, end): (&Event, &Event),
        runs: usize,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<f64, DeviceError> {
        self.stream.record(start)?;
        for _ in 0..runs {
            work()?;
        }
        self.stream.record(end)?;
        end.synchronise()?;
        Ok(f64::from(end.ms_since(start)?) / 1e3 / runs as f64)
    }
}

/// Refuses what a GPU does not compute in.
pub(crate) fn has(precision: Precision) -> Result<(), Error> {
    if precision != Precision::F32 {
        return Ok(());
    }
    let (got, want) = ("f32".to_owned(), "bf16 or fp8: f32 is the CPU's alone".to_owned());
    Err(Error::Option { what: "precision", got, want })
}

/// How many runs make a sample of `wanted` seconds when one takes `one`.
fn runs(one: f64, wanted: f64, most: usize) -> usize {
    match (wanted / one).classify() {
        FpCategory::Nan | FpCategory::Infinite => most,
        FpCategory::Zero | FpCategory::Subnormal | FpCategory::Normal => {
            ((wanted / one).ceil() as usize).clamp(1, most)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_as_long_as_wanted_or_has_most_runs() {
        assert_eq!(runs(1e-3, 2e-3, 100), 2);
        assert_eq!(runs(1e-3, 2.1e-3, 100), 3);
        assert_eq!(runs(1.0, 2e-3, 100), 1);
        assert_eq!(runs(1e-9, 2e-3, 100), 100);
        assert_eq!(runs(0.0, 2e-3, 100), 100);
    }

    #[test]
    fn the_median_stands_between_the_fastest_and_the_slowest() {
        let times = Times::of(&[3.0, 1.0, 9.0]);
        assert_eq!(times, Times { median: 3.0, fastest: 1.0, slowest: 9.0 });
    }
}
