//! What can be wrong with what was asked for, and how a measured run can fail.

use shoal_kernels::cuda::DeviceError;

/// Everything that ends a measurement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} is {got}, want {want}")]
    Option { what: &'static str, got: String, want: String },
    #[error("the text has {got} tokens, want {want} or more: one sequence and the token after it")]
    Text { got: usize, want: usize },
    #[error("step {step} gave a value that is not finite: {place}")]
    NonFinite { step: u64, place: String },
    #[error("step {step}")]
    Model { step: u64, source: shoal_model::Error },
    /// Nothing was measured: what is missing is the machine's.
    #[error("{0}")]
    NoDevice(DeviceError),
    #[error("GPU: {0}")]
    Device(#[from] DeviceError),
}
