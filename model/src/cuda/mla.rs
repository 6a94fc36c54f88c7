//! Multi-head latent attention as a residual block on a device: `crate::mla`, which judges it.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_kernels::DType;
use shoal_kernels::cuda::{Block, DeviceError, Rows, attention, rmsnorm, rope};
use shoal_kernels::mla::HeadShape;
use shoal_plan::model::ModelConfig;

use super::gpu::Gpu;
use super::halves::{Cached, Deferred};
use super::matrix::{Matrix, Operand};
use super::parameters::{GroupId, Parameters};
use crate::arithmetic::Arithmetic;
use crate::batch::BatchShape;
use crate::mla::{LATENT_NORM_EPS, head_shape};
use crate::names::of_layer;

/// One layer's attention.
#[derive(Debug)]
pub(super) struct Mla {
    arithmetic: Arithmetic,
    config: Arc<ModelConfig>,
    norm: GroupId,
    query: Query,
    kv_a: GroupId,
    kv_norm: GroupId,
    kv_b: GroupId,
    o: GroupId,
}

/// How queries are made.
#[derive(Clone, Copy, Debug)]
enum Query {
    Direct(GroupId),
    LowRank { a: GroupId, norm: GroupId, b: GroupId },
}

/// Kept after forward.
#[derive(Debug)]
pub(super) struct MlaKept {
    /// The block's input [T, D].
    x: Matrix,
    /// `None` where backward computes it again.
    attended: Option<Attended>,
}

/// What attention read and gave.
#[derive(Debug)]
struct Attended {
    latents: Latents,
    o: Matrix,
    lse: Matrix,
}

/// What queries, keys and values are made from.
#[derive(Debug)]
struct Latents {
    /// The block's input after the norm: what the first Linears read.
    n: Arc<Operand>,
    /// Query latent [T, rank] before its norm, and after.
    query: Option<(Matrix, Arc<Operand>)>,
    /// Key-value latent before its norm, and the key for all heads, not rotated yet: [T, rank + rope].
    kv: Matrix,
    /// The latent after its norm [T, rank].
    after: Arc<Operand>,
}

/// What attention reads: queries and the one key of all heads rotated, keys and values as their Linear gives them.
struct Heads {
    q: Matrix,
    kv: Matrix,
    k_rope: Matrix,
}

/// Cosines and sines by the length of sequences: made on the host once.
#[derive(Debug, Default)]
pub(super) struct Turns(BTreeMap<usize, Arc<Block>>);

impl Turns {
    pub(super) fn of(&mut self, gpu: &Gpu, shape: &HeadShape) -> Result<Arc<Block>, DeviceError> {
        // One table of the longest sequence serves all; it is there from the beginning.
        let tokens = gpu.room().map_or(shape.tokens_per_sequence, |room| room.sequence);
        if let Some(turns) = self.0.get(&tokens) {
            return Ok(Arc::clone(turns));
        }
        let turns = shape.turns(tokens);
        let turns = Arc::new(gpu.upload_bytes("rotary turns", bytemuck::cast_slice(&turns))?);
        self.0.insert(tokens, Arc::clone(&turns));
        Ok(turns)
    }
}

impl Mla {
    pub(super) fn new(
        p: &Parameters,
        config: &Arc<ModelConfig>,
        arithmetic: Arithmetic,
        layer: u32,
    ) -> Self {
        let id = |rest: &str| p.id(&of_layer(layer, &format!("self_attn.{rest}.weight")));
        let query = match config.q_lora_rank {
            None => Query::Direct(id("q_proj")),
            Some(_) => {
                Query::LowRank { a: id("q_a_proj"), norm: id("q_a_layernorm"), b: id("q_b_proj") }
            }
        };
        Self {
            arithmetic,
            config: Arc::clone(config),
            norm: p.id(&of_layer(layer, "input_layernorm.weight")),
            query,
            kv_a: id("kv_a_proj_with_mqa"),
            kv_norm: id("kv_a_layernorm"),
            kv_b: id("kv_b_proj"),
            o: id("o_proj"),
        }
    }

    /// x + attention(norm(x)).
    pub(super) fn forward(
        &self,
        (gpu, p): (&Gpu, &Parameters),
        x: Matrix,
        shape: BatchShape,
        turns: &mut Turns,
    ) -> Result<(Matrix, MlaKept), DeviceError> {
        let (attended, _) = self.attend((gpu, p), &x, shape, turns)?;
        let o = gpu.operand(&attended.o, self.arithmetic.input)?;
        let keeps = !self.arithmetic.recompute.attention();
        let attended = keeps.then_some(attended);
        let y = gpu.linear(p.weight(self.o), &o, DType::Bf16)?;
        gpu.add(&y, &x)?;
        Ok((y, MlaKept { x, attended }))
    }

    /// Attention over what the block read, with what its heads read.
    fn attend(
        &self,
        (gpu, p): (&Gpu, &Parameters),
        x: &Matrix,
        shape: BatchShape,
        turns: &mut Turns,
    ) -> Result<(Attended, Heads), DeviceError> {
        let latents = self.latents(gpu, p, x)?;
        let heads = self.heads(gpu, p, &latents, shape, turns)?;
        let s = self.attention_shape(shape);
        let size = (x.extent(), s.heads * s.value);
        let o = gpu.matrix("the output of attention", DType::Bf16, size)?;
        let lse = gpu.by_head("log-sum-exp of attention", s.heads, x.extent())?;
        let results = (o.slice(), lse.slice());
        gpu.kernels.attention.forward(&gpu.stream, heads.inputs(), results, &s)?;
        Ok((Attended { latents, o, lse }, heads))
    }

    fn latents(&self, gpu: &Gpu, p: &Parameters, x: &Matrix) -> Result<Latents, DeviceError> {
        let n = self.normed((gpu, p), x.packed(), self.norm, x.norm(self.config.rms_norm_eps))?;
        let query = match self.query {
            Query::Direct(_) => None,
            Query::LowRank { a, norm, .. } => {
                let low = gpu.linear(p.weight(a), &n, DType::Bf16)?;
                let after =
                    self.normed((gpu, p), low.packed(), norm, latent_norm(&low, low.cols))?;
                Some((low, after))
            }
        };
        let kv = gpu.linear(p.weight(self.kv_a), &n, DType::Bf16)?;
        let after =
            self.normed((gpu, p), kv.rows_from(0), self.kv_norm, latent_norm(&kv, self.rank()))?;
        Ok(Latents { n, query, kv, after })
    }

    fn normed(
        &self,
        (gpu, p): (&Gpu, &Parameters),
        x: Rows<'_>,
        gain: GroupId,
        norm: rmsnorm::Norm,
    ) -> Result<Arc<Operand>, DeviceError> {
        Ok(Arc::new(gpu.normed(x, p.master(gain), norm, self.arithmetic.input)?))
    }

    /// From the latents; run again in the input half.
    fn heads(
        &self,
        gpu: &Gpu,
        p: &Parameters,
        latents: &Latents,
        shape: BatchShape,
        turns: &mut Turns,
    ) -> Result<Heads, DeviceError> {
        let q = match (self.query, &latents.query) {
            (Query::LowRank { b, .. }, Some((_, after))) => {
                gpu.linear(p.weight(b), after, DType::Bf16)?
            }
            (Query::Direct(id), None) => gpu.linear(p.weight(id), &latents.n, DType::Bf16)?,
            (Query::LowRank { .. } | Query::Direct(_), _) => panic!("forward kept another query"),
        };
        let kv = gpu.linear(p.weight(self.kv_b), &latents.after, DType::Bf16)?;
        let s = head_shape(&self.config, shape.tokens);
        let (t, qk, rank) = (q.rows, s.nope + s.rope, self.rank());
        let k_rope = gpu.matrix("the rotated key", DType::Bf16, (q.extent(), s.rope))?;
        let (to, from) = (k_rope.window(s.rope, 0), latents.kv.window(rank + s.rope, rank));
        gpu.kernels.window.copy(&gpu.stream, to, from, (t, 2 * s.rope))?;
        let turns = turns.of(gpu, &s)?;
        let turn = |x, heads| gpu.kernels.rope.turn(&gpu.stream, x, turns.all(), heads);
        turn(k_rope.slice(), rotated(t, &s, (1, s.rope, s.rope)))?;
        turn(q.rows_from(s.nope).slice, rotated(t, &s, (s.heads, s.heads * qk, qk)))?;
        Ok(Heads { q, kv, k_rope })
    }

    /// The input half: gradient of the block's input from that of its output.
    pub(super) fn backward_input(
        &self,
        (gpu, p): (&Gpu, &Parameters),
        kept: MlaKept,
        d_y: &Matrix,
        shape: BatchShape,
        (turns, deferred): (&mut Turns, &mut Vec<Deferred>),
    ) -> Result<Matrix, DeviceError> {
        let (attended, heads) = match kept.attended {
            Some(attended) => {
                let heads = self.heads(gpu, p, &attended.latents, shape, turns)?;
                (attended, heads)
            }
            None => self.attend((gpu, p), &kept.x, shape, turns)?,
        };
        let d_y_operand = Arc::new(gpu.operand(d_y, self.arithmetic.gradient)?);
        let d_o = gpu.linear_input_gradient(p.weight(self.o), &d_y_operand, DType::Bf16)?;
        let (d_q, d_kv_b, d_kv) =
            self.attention_gradients(gpu, (&attended, &heads), &d_o, shape, turns)?;
        let Attended { latents, o, .. } = attended;
        deferred.push(Deferred {
            group: self.o,
            x: Cached::Plain(o, self.arithmetic.input),
            d_y: Cached::Whole(d_y_operand),
            experts: None,
        });

        let Latents { n, query, kv, after } = latents;
        let mut half = Half { arithmetic: self.arithmetic, gpu, p, deferred };
        let d_n = match (self.query, query) {
            (Query::LowRank { a, norm, b }, Some((low, after))) => {
                let d_after = half.linear(b, after, &d_q, DType::Bf16)?;
                let d_low =
                    gpu.matrix("the gradient of a latent", DType::Bf16, (low.extent(), low.cols))?;
                half.norm(norm, low.packed(), &d_after, d_low.packed())?;
                half.linear(a, Arc::clone(&n), &d_low, DType::F32)?
            }
            (Query::Direct(id), None) => half.linear(id, Arc::clone(&n), &d_q, DType::F32)?,
            (Query::LowRank { .. } | Query::Direct(_), _) => panic!("forward kept another query"),
        };
        let d_after = half.linear(self.kv_b, after, &d_kv_b, DType::Bf16)?;
        // The gradient of the rotated key stands behind it already.
        half.norm(self.kv_norm, kv.rows_from(0), &d_after, d_kv.rows_from(0))?;
        half.linear_onto(self.kv_a, n, &d_kv, &d_n)?;
        let norm = kept.x.norm(self.config.rms_norm_eps);
        gpu.norm_backward_onto(p, self.norm, norm, (&kept.x, &d_n), d_y)
    }

    /// Gradients of the queries [T, H (nope + rope)], of what the latent gave [T, H (nope + value)], and, in its last
    /// columns, of the key for all heads [T, rank + rope].
    fn attention_gradients(
        &self,
        gpu: &Gpu,
        (attended, heads): (&Attended, &Heads),
        d_o: &Matrix,
        shape: BatchShape,
        turns: &mut Turns,
    ) -> Result<(Matrix, Matrix, Matrix), DeviceError> {
        let s = head_shape(&self.config, shape.tokens);
        let (t, qk, rank) = (d_o.rows, s.nope + s.rope, self.rank());
        let like = |what, like: &Matrix| gpu.matrix(what, DType::Bf16, (like.extent(), like.cols));
        let d_q = like("the gradient of queries", &heads.q)?;
        let d_kv_b = like("the gradient of keys and values", &heads.kv)?;
        let what = "gradients of the rotated key";
        let d_k_rope = gpu.matrix(what, DType::Bf16, (d_o.extent(), s.heads * s.rope))?;
        let delta = gpu.by_head("row sums of attention", s.heads, d_o.extent())?;
        let outputs = attention::Outputs {
            o: attended.o.slice(),
            lse: attended.lse.slice(),
            d_o: d_o.slice(),
        };
        let gradients = attention::Gradients {
            dq: d_q.slice(),
            d_kv: d_kv_b.slice(),
            dk_rope: d_k_rope.slice(),
            delta: delta.slice(),
        };
        let of_heads = self.attention_shape(shape);
        let (kernels, stream) = (&gpu.kernels, &gpu.stream);
        kernels.attention.backward(stream, heads.inputs(), outputs, gradients, &of_heads)?;

        let turns = turns.of(gpu, &s)?;
        let queries = rotated(t, &s, (s.heads, s.heads * qk, qk));
        kernels.rope.turn_back(stream, d_q.rows_from(s.nope).slice, turns.all(), queries)?;
        let d_kv =
            gpu.matrix("the gradient of latents", DType::Bf16, (d_o.extent(), rank + s.rope))?;
        let keys = rotated(t, &s, (s.heads, s.heads * s.rope, s.rope));
        let turned = (d_k_rope.slice(), turns.all());
        kernels.rope.sum_back(stream, turned, d_kv.rows_from(rank), keys)?;
        Ok((d_q, d_kv_b, d_kv))
    }

    fn rank(&self) -> usize {
        self.config.kv_lora_rank as usize
    }

    fn attention_shape(&self, shape: BatchShape) -> attention::Shape {
        let HeadShape { heads, nope, rope, value, .. } = head_shape(&self.config, shape.tokens);
        let (sequences, tokens) = (shape.sequences, shape.tokens);
        let scale = self.config.softmax_scale();
        attention::Shape { sequences, tokens, heads, nope, rope, value, scale }
    }
}

impl Heads {
    fn inputs(&self) -> attention::Inputs<'_> {
        attention::Inputs { q: self.q.slice(), kv: self.kv.slice(), k_rope: self.k_rope.slice() }
    }
}

fn latent_norm(x: &Matrix, cols: usize) -> rmsnorm::Norm {
    rmsnorm::Norm { rows: x.rows, cols, eps: LATENT_NORM_EPS }
}

/// Where the rotated columns lie: so many heads, numbers from token to token and from head to head.
fn rotated(
    tokens: usize,
    s: &HeadShape,
    (heads, token_stride, head_stride): (usize, usize, usize),
) -> rope::Heads {
    let (cols, tokens_per_sequence) = (s.rope, s.tokens_per_sequence);
    rope::Heads { tokens, heads, cols, token_stride, head_stride, tokens_per_sequence }
}

/// One block's input half under way.
struct Half<'a> {
    arithmetic: Arithmetic,
    gpu: &'a Gpu,
    p: &'a Parameters,
    deferred: &'a mut Vec<Deferred>,
}

impl Half<'_> {
    /// A Linear's input gradient; its weight gradient is put off.
    fn linear(
        &mut self,
        id: GroupId,
        x: Arc<Operand>,
        d_y: &Matrix,
        out: DType,
    ) -> Result<Matrix, DeviceError> {
        let d_y = Arc::new(self.gpu.operand(d_y, self.arithmetic.gradient)?);
        let d_x = self.gpu.linear_input_gradient(self.p.weight(id), &d_y, out)?;
        self.defer(id, x, d_y);
        Ok(d_x)
    }

    /// The same, added to what another Linear gave.
    fn linear_onto(
        &mut self,
        id: GroupId,
        x: Arc<Operand>,
        d_y: &Matrix,
        d_x: &Matrix,
    ) -> Result<(), DeviceError> {
        let d_y = Arc::new(self.gpu.operand(d_y, self.arithmetic.gradient)?);
        self.gpu.add_linear_input_gradient(self.p.weight(id), &d_y, d_x)?;
        self.defer(id, x, d_y);
        Ok(())
    }

    fn defer(&mut self, group: GroupId, x: Arc<Operand>, d_y: Arc<Operand>) {
        let (x, d_y) = (Cached::Whole(x), Cached::Whole(d_y));
        self.deferred.push(Deferred { group, x, d_y, experts: None });
    }

    /// A latent norm's input gradient, written to `d_x`; its gain's gradient is accumulated at once.
    fn norm(
        &self,
        id: GroupId,
        x: Rows<'_>,
        d_y: &Matrix,
        d_x: Rows<'_>,
    ) -> Result<(), DeviceError> {
        let norm = latent_norm(d_y, d_y.cols);
        self.gpu.norm_backward(self.p, (id, norm), (x, d_y.packed()), d_x, None)
    }
}
