//! What a stage holds, counted from the buffers themselves, by what the numbers are for.
//!
//! Activations are those between forward and the halves of backward (`halves` lists them). What
//! an operation allocates and frees, and the allocator's own needs, are not in it.

/// Bytes by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights of Linears of attention and feed-forward as compute reads them: FP8, BF16 or FP32.
    pub linear_weights: usize,
    /// Head, `eh_proj` and embedding as compute reads them. Norms and routers read the masters.
    pub other_weights: usize,
    /// FP32.
    pub masters: usize,
    /// FP32.
    pub gradients: usize,
    /// Both moments of `AdamW`.
    pub moments: usize,
    /// The average of the masters, where one is kept.
    pub average: usize,
    /// Inputs of Linears, received rows and `SwiGLU`'s inputs included: FP8, BF16 or FP32.
    pub cached_linear_inputs: usize,
    /// Attention's output, its log-sum-exp, and the latents before their norms.
    pub cached_attention: usize,
    /// The input of every residual block.
    pub cached_residual: usize,
    /// Scores, choices and gates.
    pub cached_routing: usize,
    /// Gradients of what the heads read, and `eh_proj`'s input.
    pub cached_heads: usize,
    /// Between the halves of backward: inputs of Linears, and gradients of what they gave.
    pub deferred: usize,
}

impl Memory {
    /// Every kind with its name, in the order of the fields.
    pub fn kinds(&self) -> [(&'static str, usize); 12] {
        [
            ("weights of Linears", self.linear_weights),
            ("other weights", self.other_weights),
            ("masters", self.masters),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("average", self.average),
            ("cached inputs of Linears", self.cached_linear_inputs),
            ("cached for attention", self.cached_attention),
            ("cached residual stream", self.cached_residual),
            ("cached routing", self.cached_routing),
            ("cached for the heads", self.cached_heads),
            ("deferred to the weight half", self.deferred),
        ]
    }

    /// What waits for backward.
    pub fn cached(&self) -> usize {
        self.kinds()[6..].iter().map(|(_, bytes)| bytes).sum()
    }

    /// Everything.
    pub fn total(&self) -> usize {
        self.kinds().iter().map(|(_, bytes)| bytes).sum()
    }
}
