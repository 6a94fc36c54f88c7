//! What can go wrong in a stage: bad input from a caller or a peer. Bugs are asserts.

use crate::exchange::ExchangeError;

/// After an `Error` of a pass the stage holds half a step: `Stage::abandon` throws it away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The parts of a batch disagree.
    #[error("batch: {what} has {got} tokens, want {want}")]
    Batch { what: &'static str, got: usize, want: usize },

    /// A token id outside the vocabulary.
    #[error(
        "batch: {what} has token {token} at position {position}, want less than the vocabulary's \
         {vocab_size}: was the text tokenised for another model?"
    )]
    Token { what: &'static str, token: u32, position: usize, vocab_size: u32 },

    /// Hidden states or gradients of the wrong shape or dtype, missing, or where none belong.
    #[error("{what} of microbatch {microbatch}: got {got}, want {want}")]
    Neighbour { what: &'static str, microbatch: u32, got: String, want: String },

    /// Slots in an order no schedule may have.
    #[error("{slot} of microbatch {microbatch}: {problem}; check the schedule")]
    Order { slot: &'static str, microbatch: u32, problem: &'static str },

    /// The exchange belongs to another group than the one the stage was cut for.
    #[error(
        "the expert group has {got_size} members and this is number {got_rank}, want {want_size} \
         and {want_rank} as in the plan"
    )]
    Group { got_size: usize, got_rank: usize, want_size: usize, want_rank: usize },

    /// The all-to-all itself failed.
    #[error("all-to-all of layer {layer} ({leg}) failed")]
    Exchange { layer: u32, leg: &'static str, source: ExchangeError },

    /// The all-to-all worked and brought bytes that make no sense: a peer runs other code or
    /// another plan.
    #[error("all-to-all of layer {layer} ({leg}): expert shard {shard} sent {problem}")]
    Malformed { layer: u32, leg: &'static str, shard: usize, problem: String },

    /// A router bias that this stage lacks, or of the wrong length.
    #[error("router bias {name}: got {got} elements, want {want}")]
    Bias { name: String, got: usize, want: usize },

    /// Sampling needs all layers in one stage.
    #[error("logits need the whole model in one stage; this stage holds layers {first}..{end}")]
    NotWhole { first: u32, end: u32 },

    /// A sequence beyond the positions that the model was trained for.
    #[error("the text has {got} tokens, and the model takes {want}: shorten it")]
    TooLong { got: usize, want: usize },

    /// What a GPU said.
    #[error("GPU: {0}")]
    Device(#[from] shoal_kernels::cuda::DeviceError),

    /// The reference precision on a GPU.
    #[error("precision f32 runs on the CPU alone: choose bf16 or fp8, or the device cpu")]
    Precision,

    /// Products on a GPU have both sides' scales in one format.
    #[error(
        "FP8 scales of two formats (training.scales) run on the CPU alone: choose one for weights, activations and \
         gradients, or the device cpu"
    )]
    Scales,
}
