//! The feed-forward block: dense, or a mixture of experts with its router.
//!
//! `x + down(silu(gate n) * up n)`, or `x + shared(n) + sum over chosen experts`, with `n = norm(x)`.
//! Rows are grouped by expert; a row's sum runs over its experts in ascending order whoever else
//! chose them.

use shoal_kernels::linear::Weight;
use shoal_kernels::router::{self, RouterShape};
use shoal_kernels::rowwise::{Product, product, products};
use shoal_kernels::swiglu;
use shoal_kernels::tensor::{DType, Tensor};

use super::Decoder;
use super::reading::Reading;
use crate::moe::{add, router_shape};

#[derive(Debug)]
pub(super) struct FeedForward {
    norm: Vec<f32>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Dense(Ffn),
    Moe { router: Weight, bias: Vec<f32>, shared: Option<Ffn>, experts: Vec<Ffn> },
}

/// Three Linears.
#[derive(Debug)]
struct Ffn {
    gate: Weight,
    up: Weight,
    down: Weight,
}

/// Rows of one Ffn: its input, and each row's gate.
struct Work<'a> {
    ffn: &'a Ffn,
    x: Vec<f32>,
    gates: Option<Vec<f32>>,
}

/// Which rows an expert works for, and their gates.
#[derive(Clone, Debug, Default)]
struct Segment {
    rows: Vec<usize>,
    gates: Vec<f32>,
}

impl FeedForward {
    pub(super) fn read<E>(reading: &mut Reading<'_, E>, layer: u32) -> Result<Self, E> {
        let norm = reading.gain(layer, "post_attention_layernorm.weight")?;
        if !reading.config.is_moe(layer) {
            return Ok(Self { norm, kind: Kind::Dense(Ffn::read(reading, layer, "mlp")?) });
        }
        let shared = match reading.config.n_shared_experts {
            0 => None,
            _ => Some(Ffn::read(reading, layer, "mlp.shared_experts")?),
        };
        let experts = (0..reading.config.n_routed_experts)
            .map(|expert| Ffn::read(reading, layer, &format!("mlp.experts.{expert}")))
            .collect::<Result<_, E>>()?;
        let router = reading.linear(layer, "mlp.gate")?;
        Ok(Self { norm, kind: Kind::Moe { router, bias: reading.bias(layer)?, shared, experts } })
    }

    pub(super) fn forward(&self, decoder: &Decoder, x: Vec<f32>) -> Vec<f32> {
        let (d, eps) = (self.norm.len(), decoder.config.rms_norm_eps);
        let n = decoder.normed(&x, &self.norm, eps);
        let y = match &self.kind {
            Kind::Dense(ffn) => {
                let x = decoder.operand(n, d);
                run(decoder, vec![Work { ffn, x, gates: None }]).concat()
            }
            Kind::Moe { router, bias, shared, experts } => {
                let logits = product(&n, router);
                let shape = router_shape(&decoder.config, 1);
                let (chosen, gates) = router::decide(logits, bias, &shape);
                let segments = segments(&chosen, &gates, &shape);
                let n = decoder.operand(n, d);
                mixture(decoder, &n, &segments, (experts, shared.as_ref()))
            }
        };
        decoder.residual(x, &decoder.rounded(y))
    }
}

impl Ffn {
    fn read<E>(reading: &mut Reading<'_, E>, layer: u32, prefix: &str) -> Result<Self, E> {
        let mut linear = |name: &str| reading.linear(layer, &format!("{prefix}.{name}"));
        Ok(Self { gate: linear("gate_proj")?, up: linear("up_proj")?, down: linear("down_proj")? })
    }
}

/// Rows by expert, in row order.
fn segments(chosen: &[u32], gates: &[f32], shape: &RouterShape) -> Vec<Segment> {
    let mut segments = vec![Segment::default(); shape.experts];
    for (pair, (expert, gate)) in chosen.iter().zip(gates).enumerate() {
        let segment = &mut segments[*expert as usize];
        segment.rows.push(pair / shape.top_k);
        segment.gates.push(*gate);
    }
    segments
}

/// Routed and shared experts of rows `n` [R, D], in FP32.
fn mixture(
    decoder: &Decoder,
    n: &[f32],
    segments: &[Segment],
    (experts, shared): (&[Ffn], Option<&Ffn>),
) -> Vec<f32> {
    let d = decoder.config.hidden_size as usize;
    let busy = || segments.iter().zip(experts).filter(|(segment, _)| !segment.rows.is_empty());
    let mut work: Vec<Work<'_>> = busy()
        .map(|(segment, ffn)| {
            let x = segment.rows.iter().flat_map(|row| &n[row * d..][..d]).copied().collect();
            Work { ffn, x, gates: Some(segment.gates.clone()) }
        })
        .collect();
    work.extend(shared.map(|ffn| Work { ffn, x: n.to_vec(), gates: None }));
    let mut outputs = run(decoder, work);
    let shared = shared.and_then(|_| outputs.pop());
    let mut sums = vec![0.0; n.len()];
    for ((segment, _), y) in busy().zip(outputs) {
        for (row, y) in segment.rows.iter().zip(y.chunks_exact(d)) {
            add(&mut sums[row * d..][..d], y);
        }
    }
    // As training does: what travels back to a token is rounded, then the shared expert is added.
    let mut sums = decoder.rounded(sums);
    if let Some(shared) = shared {
        add(&mut sums, &shared);
    }
    sums
}

/// Every Ffn's output in FP32. All first Linears run together, then all second ones.
fn run(decoder: &Decoder, work: Vec<Work<'_>>) -> Vec<Vec<f32>> {
    let first: Vec<Product<'_>> = work
        .iter()
        .flat_map(|Work { ffn, x, .. }| [&ffn.gate, &ffn.up].map(|w| Product { x, w }))
        .collect();
    let mut first = products(&first).into_iter();
    let mut hidden = Vec::with_capacity(work.len());
    for Work { ffn, gates, .. } in &work {
        let f = ffn.gate.n();
        let mut tensor = || {
            let x = decoder.rounded(first.next().expect("every Ffn has two first Linears"));
            Tensor::from_f32(DType::F32, &[x.len() / f, f], &x)
        };
        let (g, u) = (tensor(), tensor());
        let h = swiglu::forward(&g, &u, gates.as_deref());
        hidden.push(decoder.operand(decoder.rounded(h.f32s().to_vec()), f));
    }
    let second = work.iter().zip(&hidden).map(|(work, x)| Product { x, w: &work.ffn.down });
    products(&second.collect::<Vec<_>>())
}
