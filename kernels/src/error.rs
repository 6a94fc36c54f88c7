//! What can be wrong with data that come from outside: a file or a peer.

use crate::tensor::DType;

/// Bad input. Wrong shapes between operations are bugs and assert instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "a {dtype:?} tensor of shape {shape:?} wants {wanted} bytes, got {got}; \
         was it written with another shape or dtype?"
    )]
    TensorBytes { dtype: DType, shape: Vec<usize>, wanted: usize, got: usize },
    #[error("a tensor of shape {shape:?} has more elements than memory has addresses")]
    TensorTooLarge { shape: Vec<usize> },
    #[error("a tensor of shape {shape:?} has more than {most} dimensions; flatten some of them")]
    TensorDimensions { shape: Vec<usize>, most: usize },
}
