//! The most that a card can do: what its maker states, and what a copy and a square product reach.

use serde::Serialize;
use shoal_kernels::cuda::gemm::{Output, Shape};
use shoal_kernels::linear::Math;
use shoal_kernels::{DType, ScaleFormat, Tiling};
use shoal_plan::gpus::Gpu;

use super::{Card, Effort};
use crate::Error;

/// What bounds an operation on a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Tensor cores.
    Bf16Products,
    Fp8Products,
    /// Multiply-adds outside of tensor cores.
    F32Products,
    Memory,
    /// The slot, one way.
    Link,
}

/// Stated and reached. Products are dense, with sums in FP32.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CardPeak {
    /// A copy inside the card's memory, reading and writing counted.
    pub copy_gigabytes_per_second: f64,
    /// Our own products of this side.
    pub product_side: usize,
    pub bf16_product_gflops: f64,
    pub fp8_product_gflops: f64,
    /// As the catalogue has them; none for a card that it lacks.
    pub stated_memory_gigabytes_per_second: Option<f64>,
    pub stated_bf16_gflops: Option<f64>,
    /// Of E4M3 with power-of-two scales, as fast as the card has it. Without such a unit that of BF16.
    pub stated_fp8_gflops: Option<f64>,
    pub stated_f32_gflops: Option<f64>,
    pub stated_link_gigabytes_per_second: Option<f64>,
}

impl CardPeak {
    /// Measures, and looks up the rest.
    ///
    /// # Errors
    /// What the device says.
    pub fn measure(card: &Card, effort: &Effort) -> Result<Self, Error> {
        let stated = card.in_catalogue().map(|(_, gpu)| gpu);
        let stated = |of: fn(&Gpu) -> Option<f64>| stated.and_then(of);
        let fp8 = |gpu: &Gpu| gpu.mxfp8_tflops.or(gpu.fp8_tflops).unwrap_or(gpu.bf16_tflops);
        Ok(Self {
            copy_gigabytes_per_second: copy(card, effort)?,
            product_side: effort.product_side,
            bf16_product_gflops: product(card, effort, Math::Bf16)?,
            fp8_product_gflops: product(card, effort, Math::Fp8(ScaleFormat::Pow2))?,
            stated_memory_gigabytes_per_second: stated(|gpu| Some(gpu.memory_gb_s)),
            stated_bf16_gflops: stated(|gpu| Some(gpu.bf16_tflops * 1e3)),
            stated_fp8_gflops: card.in_catalogue().map(|(_, gpu)| fp8(gpu) * 1e3),
            stated_f32_gflops: stated(f32_gflops),
            stated_link_gigabytes_per_second: stated(|gpu| Some(gpu.pcie.gb_s())),
        })
    }

    /// What a share is held against, in GFLOP/s or GB/s: of products the stated peak, or where none is stated our own square
    /// product; of memory the copy; none where neither is known.
    pub fn of(&self, unit: Unit) -> Option<f64> {
        match unit {
            Unit::Bf16Products => self.stated_bf16_gflops.or(Some(self.bf16_product_gflops)),
            Unit::Fp8Products => self.stated_fp8_gflops.or(Some(self.fp8_product_gflops)),
            Unit::F32Products => self.stated_f32_gflops,
            Unit::Memory => Some(self.copy_gigabytes_per_second),
            Unit::Link => self.stated_link_gigabytes_per_second,
        }
    }
}

/// Multiply-adds of multiprocessors at their boost clock: 128 of them each a clock, 64 on `sm_80`.
fn f32_gflops(gpu: &Gpu) -> Option<f64> {
    let lanes = if gpu.architecture == "sm_80" { 64.0 } else { 128.0 };
    Some(f64::from(gpu.sms?) * gpu.boost_ghz? * 2.0 * lanes)
}

fn copy(card: &Card, effort: &Effort) -> Result<f64, Error> {
    let bytes = effort.copy_bytes;
    let from = card.noise("what is copied", DType::Bf16, bytes / 2)?;
    let to = card.zeros("a copy", bytes)?;
    let times = card.time(effort, &mut || card.stream.copy(to.all(), from.all()))?;
    Ok(2.0 * bytes as f64 / times.median / 1e9)
}

fn product(card: &Card, effort: &Effort, math: Math) -> Result<f64, Error> {
    let side = effort.product_side;
    let a = card.side("an operand", (side, side), (math, Tiling::Row))?;
    let b = card.side("an operand", (side, side), (math, Tiling::Block))?;
    let c = card.zeros("a product", 2 * side * side)?;
    let shape = Shape { t: side, n: side, k: side };
    let times = card.time(effort, &mut || {
        let out = Output { values: c.all(), dtype: DType::Bf16, accumulate: false };
        card.kernels.gemm.forward(&card.stream, a.operand(), b.operand(), out, shape, None)
    })?;
    Ok(2.0 * (side as f64).powi(3) / times.median / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEAK: CardPeak = CardPeak {
        copy_gigabytes_per_second: 900.0,
        product_side: 4096,
        bf16_product_gflops: 1.0,
        fp8_product_gflops: 2.0,
        stated_memory_gigabytes_per_second: None,
        stated_bf16_gflops: None,
        stated_fp8_gflops: None,
        stated_f32_gflops: None,
        stated_link_gigabytes_per_second: None,
    };

    #[test]
    fn a_share_is_of_the_stated_peak_or_else_of_our_own_product() {
        let stated = CardPeak { stated_bf16_gflops: Some(9.0), ..PEAK };
        assert_eq!(stated.of(Unit::Bf16Products), Some(9.0));
        assert_eq!(stated.of(Unit::Fp8Products), Some(2.0));
        assert_eq!(PEAK.of(Unit::Memory), Some(900.0));
        assert_eq!((PEAK.of(Unit::F32Products), PEAK.of(Unit::Link)), (None, None));
    }

    #[test]
    fn multiply_adds_of_a_4090_are_those_that_its_maker_states() {
        let (_, gpu) = shoal_plan::gpus::find("4090").unwrap();
        assert!((f32_gflops(gpu).unwrap() - 82_600.0).abs() < 100.0);
    }
}
