//! The whole network for writing: one or several new tokens for each of some sequences, with a cache
//! of what earlier tokens left.
//!
//! The cache is multi-head latent attention's compressed form: per layer and token the normed latent
//! `[kv_lora_rank]` and the rotated key `[qk_rope_head_dim]`, no keys and values per head. Arithmetic
//! is the training pass's: the same forms of weights and activations, rounded at the same places (fp8:
//! weights and the inputs of Linears go through E4M3 as in training), with two exceptions that follow
//! from the cache: keys and values are never rounded, since they are never made, and sums have
//! another order (`kernels/src/rowwise.rs`). What a token gets does not depend on which tokens are
//! computed beside it, bit for bit.
//!
//! Parameters are its own, in compute form only: no masters, no gradients, no moments.
//!
//! Letters: R rows (new tokens of all sequences), D model width, V vocabulary.

mod attention;
mod cache;
mod ffn;
mod module;
mod reading;
mod rotation;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use shoal_kernels::bf16;
use shoal_kernels::linear::{Math, Operand, Weight};
use shoal_kernels::rmsnorm;
use shoal_kernels::rowwise;
use shoal_kernels::tensor::{DType, Tensor};
use shoal_plan::job::Precision;
use shoal_plan::model::ModelConfig;
use shoal_plan::numerics::Scales;

use crate::arithmetic::Arithmetic;
use crate::cut::Cut;
use crate::error::Error;
use crate::moe::add;
use crate::names::{EMBEDDING, FINAL_NORM, HEAD, specifications};

use self::attention::Attention;
pub use self::cache::Cache;
use self::ffn::FeedForward;
use self::module::Module;
pub use self::reading::Read;
use self::reading::Reading;
use self::rotation::Rotation;

/// New tokens of one sequence. The cache holds every token before them and takes these up.
#[derive(Debug)]
pub struct Step<'a> {
    pub cache: &'a mut Cache,
    pub tokens: &'a [u32],
}

/// A model that only computes forward.
#[derive(Debug)]
pub struct Decoder {
    arithmetic: Arithmetic,
    config: Arc<ModelConfig>,
    rotation: Rotation,
    embedding: Weight,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// `None`: the embedding's table.
    head: Option<Weight>,
    /// By depth, from 1.
    modules: Vec<Module>,
}

/// Two residual blocks.
#[derive(Debug)]
struct Layer {
    attention: Attention,
    feed_forward: FeedForward,
}

impl Decoder {
    /// Takes the model's parameters from `read`, which is asked for each by name and shape.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn load<E>(
        config: &ModelConfig,
        precision: Precision,
        scales: Scales,
        read: Read<'_, E>,
    ) -> Result<Self, E> {
        let arithmetic = Arithmetic::new(precision, scales);
        let config = Arc::new(config.clone());
        let list = specifications(&Cut::whole(ModelConfig::clone(&config)));
        let mut reading = Reading::new(arithmetic, Arc::clone(&config), list, read);
        let layers = 0..config.num_hidden_layers;
        Ok(Self {
            embedding: reading.weight(EMBEDDING)?,
            layers: layers
                .map(|layer| Layer::read(&mut reading, layer))
                .collect::<Result<_, E>>()?,
            norm: reading.values(FINAL_NORM)?,
            head: if reading.has(HEAD) { Some(reading.weight(HEAD)?) } else { None },
            modules: (config.mtp_layers())
                .map(|layer| Module::read(&mut reading, layer))
                .collect::<Result<_, E>>()?,
            rotation: Rotation::new(&config),
            arithmetic,
            config,
        })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Multi-token-prediction modules.
    pub fn n_modules(&self) -> usize {
        self.modules.len()
    }

    /// The longest sequence.
    pub fn positions(&self) -> usize {
        self.config.max_position_embeddings as usize
    }

    /// An empty cache of the main model.
    pub fn cache(&self) -> Cache {
        self.empty_cache(self.layers.len())
    }

    /// An empty cache of one multi-token-prediction module.
    pub fn module_cache(&self) -> Cache {
        self.empty_cache(1)
    }

    fn empty_cache(&self, n_layers: usize) -> Cache {
        let width = self.config.kv_lora_rank + self.config.qk_rope_head_dim;
        Cache::new(n_layers, width as usize, self.arithmetic.activation)
    }

    /// What the head reads for every new token, [R, D], sequence after sequence.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a sequence longer than the model's positions; the caches are
    /// as before.
    pub fn advance(&self, steps: &mut [Step<'_>]) -> Result<Vec<f32>, Error> {
        self.check(steps)?;
        let mut x = self.embed(steps);
        for (number, layer) in self.layers.iter().enumerate() {
            x = layer.forward(self, number, x, steps);
        }
        for step in steps {
            step.cache.extend(step.tokens.len());
        }
        Ok(self.normed(&x, &self.norm, self.config.rms_norm_eps))
    }

    /// What the shared head reads of module `depth` (from 1), [R, D]: at position i it predicts token
    /// i + 1 + depth. Row by row `hidden` [R, D] is what the head reads of the depth before at
    /// position i, and the steps' tokens are those at i + depth; a step's cache is one of
    /// `module_cache` and gives the first position.
    ///
    /// # Errors
    /// As `advance`.
    pub fn predict(
        &self,
        depth: usize,
        hidden: &[f32],
        steps: &mut [Step<'_>],
    ) -> Result<Vec<f32>, Error> {
        self.check(steps)?;
        let embedded = self.embed(steps);
        assert_eq!(embedded.len(), hidden.len(), "a module reads one hidden state for each token");
        let x = self.modules[depth - 1].forward(self, embedded, hidden, steps);
        for step in steps {
            step.cache.extend(step.tokens.len());
        }
        Ok(x)
    }

    /// Logits [n, V] of rows [n, D] that `advance` or `predict` gave.
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        rowwise::product(hidden, self.head.as_ref().unwrap_or(&self.embedding))
    }

    fn check(&self, steps: &[Step<'_>]) -> Result<(), Error> {
        let vocab_size = self.config.vocab_size;
        for step in steps {
            let bad = step.tokens.iter().position(|token| vocab_size <= *token);
            if let Some(position) = bad {
                let token = step.tokens[position];
                return Err(Error::Token { what: "the text", token, position, vocab_size });
            }
            let (got, want) = (step.cache.len() + step.tokens.len(), self.positions());
            if want < got {
                return Err(Error::TooLong { got, want });
            }
        }
        Ok(())
    }

    /// Rows of the embedding.
    fn embed(&self, steps: &[Step<'_>]) -> Vec<f32> {
        let (Weight::F32(table) | Weight::Bf16(table)) = &self.embedding else {
            panic!("an embedding is never in FP8")
        };
        let d = table.cols();
        let tokens: Vec<u32> = steps.iter().flat_map(|step| step.tokens).copied().collect();
        let mut x = vec![0.0; tokens.len() * d];
        for (token, x) in tokens.into_iter().zip(x.chunks_exact_mut(d)) {
            table.read_rows(token as usize..token as usize + 1, x);
        }
        x
    }

    /// RMS norm of every row, rounded as activations are.
    fn normed(&self, x: &[f32], gain: &[f32], eps: f32) -> Vec<f32> {
        let d = gain.len();
        let x = Tensor::from_f32(DType::F32, &[x.len() / d, d], x);
        self.rounded(rmsnorm::forward(&x, gain, eps).f32s().to_vec())
    }

    /// Values as the output of an operation is kept.
    fn rounded(&self, mut x: Vec<f32>) -> Vec<f32> {
        if self.arithmetic.activation == DType::Bf16 {
            bf16::round(&mut x);
        }
        x
    }

    /// Activations [R, cols] as a Linear multiplies them.
    fn operand(&self, x: Vec<f32>, cols: usize) -> Vec<f32> {
        match self.arithmetic.input {
            Math::F32 | Math::Bf16 => x,
            Math::Fp8(_) => {
                let x = Tensor::from_f32(DType::F32, &[x.len() / cols, cols], &x);
                Operand::prepare(&x, self.arithmetic.input).to_f32()
            }
        }
    }

    /// `x + y`, rounded.
    fn residual(&self, mut x: Vec<f32>, y: &[f32]) -> Vec<f32> {
        add(&mut x, y);
        self.rounded(x)
    }
}

impl Layer {
    fn read<E>(reading: &mut Reading<'_, E>, layer: u32) -> Result<Self, E> {
        Ok(Self {
            attention: Attention::read(reading, layer)?,
            feed_forward: FeedForward::read(reading, layer)?,
        })
    }

    /// `number` is the layer's place in the steps' caches.
    fn forward(
        &self,
        decoder: &Decoder,
        number: usize,
        x: Vec<f32>,
        steps: &mut [Step<'_>],
    ) -> Vec<f32> {
        let x = self.attention.forward(decoder, number, x, steps);
        self.feed_forward.forward(decoder, x)
    }
}
