//! What `precision` means for each kind of value.

use std::borrow::Cow;

use shoal_kernels::linear::{Math, Operand};
use shoal_kernels::tensor::{DType, Tensor};
use shoal_plan::job::Precision;

/// Forms of values in one precision. In all of them norms, router, softmax and loss are FP32.
///
/// - fp8, report 3.3: FP8 in every Linear but head and `eh_proj`; BF16 between operations.
/// - bf16: BF16 in every Linear and between operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arithmetic {
    /// Attention, dense layers, shared and routed experts.
    pub(crate) linear: Math,
    /// Head and `eh_proj`.
    pub(crate) wide: Math,
    /// The residual stream and the output of every operation.
    pub(crate) activation: DType,
}

impl From<Precision> for Arithmetic {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp8 => Self { linear: Math::Fp8, wide: Math::Bf16, activation: DType::Bf16 },
            Precision::Bf16 => {
                Self { linear: Math::Bf16, wide: Math::Bf16, activation: DType::Bf16 }
            }
            Precision::F32 => Self { linear: Math::F32, wide: Math::F32, activation: DType::F32 },
        }
    }
}

impl Arithmetic {
    /// A Linear's input, in the form it is multiplied and cached.
    pub(crate) fn operand(self, x: &Tensor) -> Operand {
        Operand::prepare(x, self.linear)
    }

    /// The same of activations that nobody else reads: moved where they have that form already.
    pub(crate) fn into_operand(self, x: Tensor) -> Operand {
        match (self.linear, x.dtype()) {
            (Math::F32, DType::F32) => Operand::F32(x),
            (Math::Bf16, DType::Bf16) => Operand::Bf16(x),
            _ => self.operand(&x),
        }
    }

    /// An operand as activations again. Exact: BF16 holds every E4M3 value times a power of two.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operand_has_its_precisions_form_and_is_activations_again() {
        let values: Vec<f32> = (0..300).map(|i| (i as f32 * 0.7).sin()).collect();
        for precision in Precision::ALL {
            let arithmetic = Arithmetic::from(precision);
            let x = Tensor::from_f32(arithmetic.activation, &[2, 150], &values);
            let operand = arithmetic.operand(&x);
            let form = match precision {
                Precision::Fp8 => matches!(operand, Operand::Fp8(_)),
                Precision::Bf16 => matches!(operand, Operand::Bf16(_)),
                Precision::F32 => matches!(operand, Operand::F32(_)),
            };
            assert!(form, "{precision}");
            assert_eq!(arithmetic.into_operand(x.clone()), operand, "{precision}");
            let again = arithmetic.activations(&operand);
            assert_eq!((again.dtype(), again.shape()), (x.dtype(), x.shape()), "{precision}");
            assert_eq!(again.to_f32(), operand.to_f32(), "{precision}: not exact");
            assert_eq!(*again == x, precision != Precision::Fp8, "only FP8 rounds once more");
        }
    }
}
