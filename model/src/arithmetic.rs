//! What `precision` means for each kind of value.

use std::borrow::Cow;

use shoal_kernels::fp8::ScaleFormat;
use shoal_kernels::linear::{Math, Operand};
use shoal_kernels::tensor::{DType, Tensor};
use shoal_plan::job::{Precision, Recompute};
use shoal_plan::numerics::{self, Scales};

use crate::options::StageOptions;

/// Forms of values in one precision, and which of them backward computes again. In all precisions norms, router, softmax and loss are FP32.
///
/// - fp8, report 3.3: FP8 in every Linear but head and `eh_proj`; BF16 between operations.
/// - bf16: BF16 in every Linear and between operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arithmetic {
    /// What the Linears of attention, dense layers, shared and routed experts read.
    pub(crate) input: Math,
    /// The gradients of what they give.
    pub(crate) gradient: Math,
    /// Their weights.
    pub(crate) weight: Math,
    /// Head and `eh_proj`.
    pub(crate) wide: Math,
    /// The residual stream and the output of every operation.
    pub(crate) activation: DType,
    pub(crate) recompute: Recompute,
}

impl Arithmetic {
    /// `scales` are those of precision fp8; no other has any.
    pub(crate) fn new(precision: Precision, scales: Scales) -> Self {
        let one = |math| Self {
            input: math,
            gradient: math,
            weight: math,
            wide: math,
            activation: DType::Bf16,
            recompute: Recompute::None,
        };
        let fp8 = |format| match format {
            numerics::ScaleFormat::Pow2 => Math::Fp8(ScaleFormat::Pow2),
            numerics::ScaleFormat::Fp32 => Math::Fp8(ScaleFormat::Fp32),
        };
        match precision {
            Precision::Fp8 => Self {
                input: fp8(scales.activations),
                gradient: fp8(scales.gradients),
                weight: fp8(scales.weights),
                ..one(Math::Bf16)
            },
            Precision::Bf16 => one(Math::Bf16),
            Precision::F32 => Self { activation: DType::F32, ..one(Math::F32) },
        }
    }

    /// As a stage computes.
    pub(crate) fn of(options: &StageOptions) -> Self {
        let arithmetic = Self::new(options.precision, options.scales);
        Self { recompute: options.recompute, ..arithmetic }
    }

    /// A Linear's input, in the form it is multiplied and cached.
    pub(crate) fn operand(self, x: &Tensor) -> Operand {
        Operand::prepare(x, self.input)
    }

    /// The gradient of a Linear's output, in the form it is multiplied and kept.
    pub(crate) fn gradient_operand(self, d_y: &Tensor) -> Operand {
        Operand::prepare(d_y, self.gradient)
    }

    /// As `operand`, of activations that nobody else reads: moved where they have that form already.
    pub(crate) fn into_operand(self, x: Tensor) -> Operand {
        moved(x, self.input)
    }

    /// As `gradient_operand`, of a gradient that nobody else reads.
    pub(crate) fn into_gradient_operand(self, d_y: Tensor) -> Operand {
        moved(d_y, self.gradient)
    }

    /// An operand as activations again. Exact where scales are powers of two: BF16 holds every E4M3
    /// value times one. With FP32 scales each is rounded to BF16.
    pub(crate) fn activations(self, x: &Operand) -> Cow<'_, Tensor> {
        match x {
            Operand::F32(x) | Operand::Bf16(x) => Cow::Borrowed(x),
            Operand::Fp8(codes) => {
                let shape = [codes.rows(), codes.cols()];
                Cow::Owned(Tensor::from_f32(self.activation, &shape, &codes.dequantise()))
            }
        }
    }

    /// An FP32 sum rounded once to the activations' dtype.
    pub(crate) fn round(self, sum: Tensor) -> Tensor {
        if sum.dtype() == self.activation {
            return sum;
        }
        Tensor::from_f32(self.activation, sum.shape(), sum.f32s())
    }
}

fn moved(x: Tensor, math: Math) -> Operand {
    match (math, x.dtype()) {
        (Math::F32, DType::F32) => Operand::F32(x),
        (Math::Bf16, DType::Bf16) => Operand::Bf16(x),
        (Math::F32 | Math::Bf16 | Math::Fp8(_), _) => Operand::prepare(&x, math),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operand_has_its_precisions_form_and_is_activations_again() {
        let values: Vec<f32> = (0..300).map(|i| (i as f32 * 0.7).sin()).collect();
        for precision in Precision::ALL {
            let arithmetic = Arithmetic::new(precision, Scales::default());
            let x = Tensor::from_f32(arithmetic.activation, &[2, 150], &values);
            let operand = arithmetic.operand(&x);
            let form = match precision {
                Precision::Fp8 => matches!(operand, Operand::Fp8(_)),
                Precision::Bf16 => matches!(operand, Operand::Bf16(_)),
                Precision::F32 => matches!(operand, Operand::F32(_)),
            };
            assert!(form, "{precision}");
            assert_eq!(arithmetic.into_operand(x.clone()), operand, "{precision}");
            assert_eq!(arithmetic.into_gradient_operand(x.clone()), operand, "{precision}");
            let again = arithmetic.activations(&operand);
            assert_eq!((again.dtype(), again.shape()), (x.dtype(), x.shape()), "{precision}");
            assert_eq!(again.to_f32(), operand.to_f32(), "{precision}: not exact");
            assert_eq!(*again == x, precision != Precision::Fp8, "only FP8 rounds once more");
        }
    }

    #[test]
    fn each_class_of_tensors_has_its_own_scales() {
        use numerics::ScaleFormat::{Fp32, Pow2};
        let scales = Scales { weights: Pow2, activations: Fp32, gradients: Pow2 };
        let fp8 = Arithmetic::new(Precision::Fp8, scales);
        let (pow2, fp32) = (Math::Fp8(ScaleFormat::Pow2), Math::Fp8(ScaleFormat::Fp32));
        assert_eq!((fp8.weight, fp8.input, fp8.gradient), (pow2, fp32, pow2));
        let scales = Scales { weights: Fp32, activations: Pow2, gradients: Fp32 };
        let fp8 = Arithmetic::new(Precision::Fp8, scales);
        assert_eq!((fp8.weight, fp8.input, fp8.gradient), (fp32, pow2, fp32));
        for precision in [Precision::Bf16, Precision::F32] {
            let plain = Arithmetic::new(precision, Scales::default());
            assert_eq!(Arithmetic::new(precision, scales), plain, "no FP8, no scales");
        }
    }
}
