//! Multi-head latent attention over a cache of latents: `x + o_proj(attention(norm(x)))`.
//!
//! Source: DeepSeek-V3 report, section 2.1.1. `kv_b_proj` is taken apart: a head's queries are
//! multiplied by its key part before they meet the cache, and what comes out by its value part.

use shoal_kernels::latent::{self, LatentShape, Queries};
use shoal_kernels::linear::Weight;
use shoal_kernels::rowwise::{Product, product, products};

use super::reading::Reading;
use super::{Decoder, Step};
use crate::mla::LATENT_NORM_EPS;

#[derive(Debug)]
pub(super) struct Attention {
    norm: Vec<f32>,
    query: Query,
    kv_a: Weight,
    kv_norm: Vec<f32>,
    /// By head, [rank, nope].
    keys: Vec<Weight>,
    /// By head, [value, rank].
    values: Vec<Weight>,
    o: Weight,
}

/// How queries are made.
#[derive(Debug)]
enum Query {
    Direct(Weight),
    LowRank { a: Weight, norm: Vec<f32>, b: Weight },
}

impl Attention {
    pub(super) fn read<E>(reading: &mut Reading<'_, E>, layer: u32) -> Result<Self, E> {
        let query = match reading.config.q_lora_rank {
            None => Query::Direct(reading.linear(layer, "self_attn.q_proj")?),
            Some(_) => Query::LowRank {
                a: reading.linear(layer, "self_attn.q_a_proj")?,
                norm: reading.gain(layer, "self_attn.q_a_layernorm.weight")?,
                b: reading.linear(layer, "self_attn.q_b_proj")?,
            },
        };
        let (keys, values) = Self::read_heads(reading, layer)?;
        Ok(Self {
            norm: reading.gain(layer, "input_layernorm.weight")?,
            query,
            kv_a: reading.linear(layer, "self_attn.kv_a_proj_with_mqa")?,
            kv_norm: reading.gain(layer, "self_attn.kv_a_layernorm.weight")?,
            keys,
            values,
            o: reading.linear(layer, "self_attn.o_proj")?,
        })
    }

    /// `kv_b_proj` by head: its key part turned, and its value part.
    fn read_heads<E>(
        reading: &mut Reading<'_, E>,
        layer: u32,
    ) -> Result<(Vec<Weight>, Vec<Weight>), E> {
        let kv_b = reading.linear(layer, "self_attn.kv_b_proj")?.to_f32();
        let (config, math) = (&reading.config, reading.exact());
        let (rank, nope) = (config.kv_lora_rank as usize, config.qk_nope_head_dim as usize);
        let value = config.v_head_dim as usize;
        let heads = kv_b.chunks_exact((nope + value) * rank).map(|head| head.split_at(nope * rank));
        let key = |key: &[f32]| {
            let turned: Vec<f32> = (0..rank)
                .flat_map(|column| key.iter().skip(column).step_by(rank).copied())
                .collect();
            Weight::prepare(&turned, rank, nope, math)
        };
        let both = heads.map(|(k, v)| (key(k), Weight::prepare(v, value, rank, math)));
        Ok(both.unzip())
    }

    /// `number` is the layer's place in the steps' caches.
    pub(super) fn forward(
        &self,
        decoder: &Decoder,
        number: usize,
        x: Vec<f32>,
        steps: &mut [Step<'_>],
    ) -> Vec<f32> {
        let config = &decoder.config;
        let shape = LatentShape {
            heads: config.num_attention_heads as usize,
            rank: config.kv_lora_rank as usize,
            rope: config.qk_rope_head_dim as usize,
            scale: config.softmax_scale(),
        };
        let (q, kv) = self.projections(decoder, &x);
        let positions = positions(steps);
        let latents = self.latents(decoder, &kv, &shape, &positions);
        let mut rest = &latents[..];
        for step in steps.iter_mut() {
            let (own, others) = rest.split_at(step.tokens.len() * shape.width());
            step.cache.write(number, own);
            rest = others;
        }
        let q = self.absorbed(decoder, &q, &shape, &positions);
        let mut rest = &q[..];
        let mut sequences = Vec::with_capacity(steps.len());
        for step in &*steps {
            let (q, others) = rest.split_at(step.tokens.len() * shape.heads * shape.width());
            let cache = step.cache.layer(number);
            sequences.push(Queries { q, cache, first: step.cache.len() });
            rest = others;
        }
        let o = latent::forward(&sequences, &shape).concat();
        let o = self.expanded(decoder, &o, &shape);
        let y = decoder.rounded(product(&o, &self.o));
        decoder.residual(x, &y)
    }

    /// Queries [R, H (nope + P)], and latent with rotated key [R, rank + P] before norm and rotation.
    fn projections(&self, decoder: &Decoder, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let eps = decoder.config.rms_norm_eps;
        let n = decoder.operand(decoder.normed(x, &self.norm, eps), self.norm.len());
        let first = match &self.query {
            Query::Direct(w) | Query::LowRank { a: w, .. } => w,
        };
        let jobs = [Product { x: &n, w: first }, Product { x: &n, w: &self.kv_a }];
        let [q, kv] = <[Vec<f32>; 2]>::try_from(products(&jobs)).expect("two products were asked");
        let (q, kv) = (decoder.rounded(q), decoder.rounded(kv));
        let q = match &self.query {
            Query::Direct(_) => q,
            Query::LowRank { norm, b, .. } => {
                let low = decoder.normed(&q, norm, LATENT_NORM_EPS);
                decoder.rounded(product(&decoder.operand(low, norm.len()), b))
            }
        };
        (q, kv)
    }

    /// The rows of the cache, [R, rank + P].
    fn latents(
        &self,
        decoder: &Decoder,
        kv: &[f32],
        s: &LatentShape,
        positions: &[usize],
    ) -> Vec<f32> {
        let rows = || kv.chunks_exact(s.width());
        let low: Vec<f32> = rows().flat_map(|row| &row[..s.rank]).copied().collect();
        let low = decoder.operand(decoder.normed(&low, &self.kv_norm, LATENT_NORM_EPS), s.rank);
        let mut keys: Vec<f32> = rows().flat_map(|row| &row[s.rank..]).copied().collect();
        for (key, position) in keys.chunks_exact_mut(s.rope).zip(positions) {
            decoder.rotation.turn(key, *position);
        }
        let keys = decoder.rounded(keys);
        let pairs = low.chunks_exact(s.rank).zip(keys.chunks_exact(s.rope));
        pairs.flat_map(|(low, key)| [low, key].concat()).collect()
    }

    /// Queries as they meet the cache, [R, H (rank + P)].
    fn absorbed(
        &self,
        decoder: &Decoder,
        q: &[f32],
        s: &LatentShape,
        positions: &[usize],
    ) -> Vec<f32> {
        let nope = decoder.config.qk_nope_head_dim as usize;
        let of_head = nope + s.rope;
        let plain: Vec<Vec<f32>> = (0..s.heads)
            .map(|head| {
                let rows = q.chunks_exact(s.heads * of_head);
                rows.flat_map(|row| &row[head * of_head..][..nope]).copied().collect()
            })
            .collect();
        let jobs: Vec<Product<'_>> =
            plain.iter().zip(&self.keys).map(|(x, w)| Product { x, w }).collect();
        let mut out = vec![0.0; positions.len() * s.heads * s.width()];
        for (head, absorbed) in products(&jobs).into_iter().enumerate() {
            let rows = out.chunks_exact_mut(s.heads * s.width()).zip(absorbed.chunks_exact(s.rank));
            for (out, absorbed) in rows {
                out[head * s.width()..][..s.rank].copy_from_slice(absorbed);
            }
        }
        let heads = out.chunks_exact_mut(s.width()).zip(q.chunks_exact(of_head));
        for (at, (out, q)) in heads.enumerate() {
            let mut turned = q[nope..].to_vec();
            decoder.rotation.turn(&mut turned, positions[at / s.heads]);
            out[s.rank..].copy_from_slice(&decoder.rounded(turned));
        }
        out
    }

    /// From weighted sums of latents [R, H rank] to `o_proj`'s input [R, H value].
    fn expanded(&self, decoder: &Decoder, o: &[f32], s: &LatentShape) -> Vec<f32> {
        let value = decoder.config.v_head_dim as usize;
        let sums: Vec<Vec<f32>> = (0..s.heads)
            .map(|head| {
                let rows = o.chunks_exact(s.heads * s.rank);
                rows.flat_map(|row| &row[head * s.rank..][..s.rank]).copied().collect()
            })
            .collect();
        let jobs: Vec<Product<'_>> =
            sums.iter().zip(&self.values).map(|(x, w)| Product { x, w }).collect();
        let mut out = vec![0.0; o.len() / s.rank * value];
        for (head, values) in products(&jobs).into_iter().enumerate() {
            let rows = out.chunks_exact_mut(s.heads * value).zip(values.chunks_exact(value));
            for (out, values) in rows {
                out[head * value..][..value].copy_from_slice(values);
            }
        }
        decoder.operand(decoder.rounded(out), s.heads * value)
    }
}

/// The position of every row.
fn positions(steps: &[Step<'_>]) -> Vec<usize> {
    let of_step = |step: &Step<'_>| step.cache.len()..step.cache.len() + step.tokens.len();
    steps.iter().flat_map(of_step).collect()
}
