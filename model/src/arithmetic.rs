//! What `precision` means for each kind of value.

use shoal_kernels::linear::{Math, Operand};
use shoal_kernels::tensor::{DType, Tensor};
use shoal_plan::job::Precision;

/// Forms of values in one precision. Report 3.3: FP8 in every Linear but head and `eh_proj`; norms,
/// router, softmax and loss in FP32; BF16 between operations.
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
            Precision::F32 => Self { linear: Math::F32, wide: Math::F32, activation: DType::F32 },
        }
    }
}

impl Arithmetic {
    /// A Linear's input, in the form it is multiplied and cached.
    pub(crate) fn operand(self, x: &Tensor) -> Operand {
        Operand::prepare(x, self.linear)
    }

    /// An operand as activations again. Exact: BF16 holds every E4M3 value times a power of two.
    pub(crate) fn activations(self, x: &Operand) -> Tensor {
        Tensor::from_f32(self.activation, &[x.rows(), x.cols()], &x.to_f32())
    }

    /// An FP32 sum rounded once to the activations' dtype.
    pub(crate) fn round(self, sum: Tensor) -> Tensor {
        if sum.dtype() == self.activation {
            return sum;
        }
        Tensor::from_f32(self.activation, sum.shape(), sum.f32s())
    }
}
