//! Multi-head latent attention as a residual block: `x + o_proj(attention(norm(x)))`.
//!
//! Source: DeepSeek-V3 report, section 2.1.1; names as in the released checkpoint. What is kept
//! between the halves is in `halves`.

use std::sync::Arc;

use shoal_kernels::linear::Operand;
use shoal_kernels::mla::{self as heads, HeadShape, Yarn};
use shoal_kernels::rmsnorm;
use shoal_kernels::tensor::{DType, Tensor};
use shoal_plan::model::{ModelConfig, RopeScaling};

use crate::arithmetic::Arithmetic;
use crate::batch::BatchShape;
use crate::columns::{columns, joined};
use crate::halves::{Cached, Deferred};
use crate::memory::Memory;
use crate::names::of_layer;
use crate::parameters::{Id, Parameters};

/// The two latent norms keep their class's default in Hugging Face's `modeling_deepseek_v3.py`,
/// whatever `rms_norm_eps` says.
pub(crate) const LATENT_NORM_EPS: f32 = 1e-6;

/// One layer's attention.
#[derive(Clone, Debug)]
pub(crate) struct Mla {
    arithmetic: Arithmetic,
    config: Arc<ModelConfig>,
    norm: Id,
    query: Query,
    kv_a: Id,
    kv_norm: Id,
    kv_b: Id,
    o: Id,
}

/// How queries are made.
#[derive(Clone, Copy, Debug)]
enum Query {
    Direct(Id),
    LowRank { a: Id, norm: Id, b: Id },
}

/// Kept after forward.
#[derive(Clone, Debug)]
pub(crate) struct MlaKept {
    /// The block's input [T, D].
    x: Tensor,
    /// `None` where backward computes it again.
    attended: Option<Attended>,
}

/// What attention read and gave.
#[derive(Clone, Debug)]
struct Attended {
    latents: Latents,
    o: Arc<Tensor>,
    lse: Vec<f32>,
}

/// What queries, keys and values are made from.
#[derive(Clone, Debug)]
struct Latents {
    /// The block's input after the norm: what the first Linears read.
    n: Arc<Operand>,
    /// Query latent [T, rank] before its norm, and after.
    query: Option<(Tensor, Arc<Operand>)>,
    /// Key-value latent [T, rank] before its norm, and after.
    key_value: (Tensor, Arc<Operand>),
    /// [T, rope], one for all heads, not rotated yet.
    k_rope: Tensor,
}

impl MlaKept {
    pub(crate) fn add_to(&self, memory: &mut Memory) {
        memory.cached_residual += self.x.bytes().len();
        let Some(Attended { latents, o, lse }) = &self.attended else { return };
        let Latents { n, query, key_value, k_rope } = latents;
        memory.cached_attention += o.bytes().len() + size_of_val(&lse[..]);
        memory.cached_attention += key_value.0.bytes().len() + k_rope.bytes().len();
        memory.cached_linear_inputs += n.bytes() + key_value.1.bytes();
        if let Some((before, after)) = query {
            memory.cached_attention += before.bytes().len();
            memory.cached_linear_inputs += after.bytes();
        }
    }
}

impl Mla {
    pub(crate) fn new(
        parameters: &Parameters,
        config: &Arc<ModelConfig>,
        arithmetic: Arithmetic,
        layer: u32,
    ) -> Self {
        let id = |rest: &str| parameters.id(&of_layer(layer, &format!("self_attn.{rest}.weight")));
        let query = match config.q_lora_rank {
            None => Query::Direct(id("q_proj")),
            Some(_) => {
                Query::LowRank { a: id("q_a_proj"), norm: id("q_a_layernorm"), b: id("q_b_proj") }
            }
        };
        Self {
            arithmetic,
            config: Arc::clone(config),
            norm: parameters.id(&of_layer(layer, "input_layernorm.weight")),
            query,
            kv_a: id("kv_a_proj_with_mqa"),
            kv_norm: id("kv_a_layernorm"),
            kv_b: id("kv_b_proj"),
            o: id("o_proj"),
        }
    }

    /// x + attention(norm(x)).
    pub(crate) fn forward(
        &self,
        p: &Parameters,
        x: Tensor,
        shape: BatchShape,
    ) -> (Tensor, MlaKept) {
        let (attended, _) = self.attend(p, &x, shape);
        let o = self.arithmetic.operand(&attended.o);
        let mut y = p.linear(self.o, &o, self.arithmetic.activation);
        y.add_assign(&x);
        let keeps = !self.arithmetic.recompute.attention();
        (y, MlaKept { x, attended: keeps.then_some(attended) })
    }

    /// Attention over what the block read, with queries, and keys with values.
    fn attend(
        &self,
        p: &Parameters,
        x: &Tensor,
        shape: BatchShape,
    ) -> (Attended, (Tensor, Tensor)) {
        let latents = self.latents(p, x);
        let (q, kv) = self.projections(p, &latents);
        let heads = self.head_shape(shape);
        let (o, lse) = heads::attend(&q, &kv, &latents.k_rope, &heads, self.scale());
        (Attended { latents, o: Arc::new(o), lse }, (q, kv))
    }

    fn latents(&self, p: &Parameters, x: &Tensor) -> Latents {
        let out = self.arithmetic.activation;
        let normed = |x: &Tensor, gain: Id, eps: f32| {
            Arc::new(self.arithmetic.into_operand(rmsnorm::forward(x, p.values(gain), eps)))
        };
        let n = normed(x, self.norm, self.config.rms_norm_eps);
        let query = match self.query {
            Query::Direct(_) => None,
            Query::LowRank { a, norm, .. } => {
                let low = p.linear(a, &n, out);
                let after = normed(&low, norm, LATENT_NORM_EPS);
                Some((low, after))
            }
        };
        let kv = p.linear(self.kv_a, &n, out);
        let rank = self.config.kv_lora_rank as usize;
        let (low, k_rope) = (columns(&kv, 0..rank), columns(&kv, rank..kv.cols()));
        let after = normed(&low, self.kv_norm, LATENT_NORM_EPS);
        Latents { n, query, key_value: (low, after), k_rope }
    }

    /// The input half: gradient of the block's input from that of its output.
    pub(crate) fn backward_input(
        &self,
        p: &mut Parameters,
        kept: MlaKept,
        d_y: Tensor,
        shape: BatchShape,
        deferred: &mut Vec<Deferred>,
    ) -> Tensor {
        let out = self.arithmetic.activation;
        let (attended, (q, kv)) = match kept.attended {
            Some(attended) => {
                let projections = self.projections(p, &attended.latents);
                (attended, projections)
            }
            None => self.attend(p, &kept.x, shape),
        };
        let Attended { latents, o, lse } = attended;
        let d_y_operand = Arc::new(self.arithmetic.gradient_operand(&d_y));
        let d_o = p.linear_input_gradient(self.o, &d_y_operand, out);
        let (d_q, d_kv, d_k_rope) = heads::attend_backward(
            (&q, &kv, &latents.k_rope),
            (&o, &lse, &d_o),
            &self.head_shape(shape),
            self.scale(),
        );
        deferred.push(Deferred {
            parameter: self.o,
            x: Cached::Plain(o, self.arithmetic.input),
            d_y: Cached::Whole(d_y_operand),
        });

        let Latents { n, query, key_value: (low_kv, after_kv), .. } = latents;
        let mut task = Half { arithmetic: self.arithmetic, p, deferred };
        let mut d_n = match (self.query, query) {
            (Query::LowRank { a, norm, b }, Some((low, after))) => {
                let d_after = task.linear(b, after, d_q, out);
                let d_low = task.norm(norm, &low, &d_after);
                task.linear(a, Arc::clone(&n), d_low, DType::F32)
            }
            (Query::Direct(id), None) => task.linear(id, Arc::clone(&n), d_q, DType::F32),
            (Query::LowRank { .. } | Query::Direct(_), _) => panic!("forward kept another query"),
        };
        let d_after = task.linear(self.kv_b, after_kv, d_kv, out);
        let d_low = task.norm(self.kv_norm, &low_kv, &d_after);
        task.linear_onto(self.kv_a, n, joined(&d_low, &d_k_rope), &mut d_n);

        let (gain, d_gain) = p.values_and_gradient(self.norm);
        let norm = (gain, self.config.rms_norm_eps);
        rmsnorm::backward_onto(&d_y, &kept.x, norm, &d_n, d_gain)
    }

    /// Queries, and keys with values, from the two latents, not rotated; run again in the input half.
    fn projections(&self, p: &Parameters, latents: &Latents) -> (Tensor, Tensor) {
        let out = self.arithmetic.activation;
        let q = match (self.query, &latents.query) {
            (Query::LowRank { b, .. }, Some((_, after))) => p.linear(b, after, out),
            (Query::Direct(id), None) => p.linear(id, &latents.n, out),
            (Query::LowRank { .. } | Query::Direct(_), _) => panic!("forward kept another query"),
        };
        (q, p.linear(self.kv_b, &latents.key_value.1, out))
    }

    fn head_shape(&self, shape: BatchShape) -> HeadShape {
        head_shape(&self.config, shape.tokens)
    }

    fn scale(&self) -> f32 {
        self.config.softmax_scale()
    }
}

/// How projections divide into heads, and how these are rotated.
pub fn head_shape(config: &ModelConfig, tokens_per_sequence: usize) -> HeadShape {
    HeadShape {
        heads: config.num_attention_heads as usize,
        nope: config.qk_nope_head_dim as usize,
        rope: config.qk_rope_head_dim as usize,
        value: config.v_head_dim as usize,
        tokens_per_sequence,
        rope_theta: config.rope_theta,
        yarn: config.rope_scaling.as_ref().map(yarn),
    }
}

fn yarn(scaling: &RopeScaling) -> Yarn {
    Yarn {
        factor: scaling.factor.into(),
        beta_fast: scaling.beta_fast.into(),
        beta_slow: scaling.beta_slow.into(),
        original_positions: scaling.original_max_position_embeddings.into(),
        magnitude: scaling.rotation_factor(),
    }
}

/// One block's input half under way.
struct Half<'a> {
    arithmetic: Arithmetic,
    p: &'a mut Parameters,
    deferred: &'a mut Vec<Deferred>,
}

impl Half<'_> {
    /// A Linear's input gradient; its weight gradient is put off.
    fn linear(&mut self, id: Id, x: Arc<Operand>, d_y: Tensor, out: DType) -> Tensor {
        let d_y = Arc::new(self.arithmetic.into_gradient_operand(d_y));
        let d_x = self.p.linear_input_gradient(id, &*d_y, out);
        self.defer(id, x, d_y);
        d_x
    }

    /// The same, added to what another Linear gave.
    fn linear_onto(&mut self, id: Id, x: Arc<Operand>, d_y: Tensor, d_x: &mut Tensor) {
        let d_y = Arc::new(self.arithmetic.into_gradient_operand(d_y));
        self.p.add_linear_input_gradient(id, &*d_y, d_x);
        self.defer(id, x, d_y);
    }

    fn defer(&mut self, parameter: Id, x: Arc<Operand>, d_y: Arc<Operand>) {
        self.deferred.push(Deferred { parameter, x: Cached::Whole(x), d_y: Cached::Whole(d_y) });
    }

    /// A latent norm's input gradient; its gain's gradient is accumulated at once.
    fn norm(&mut self, id: Id, x: &Tensor, d_y: &Tensor) -> Tensor {
        let (gain, d_gain) = self.p.values_and_gradient(id);
        rmsnorm::backward(x, gain, LATENT_NORM_EPS, d_y, d_gain)
    }
}
