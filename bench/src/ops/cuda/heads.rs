//! Attention on a GPU, and the rotations before and behind it.

use shoal_kernels::DType;
use shoal_kernels::cuda::{DeviceError, Rows, attention, rope, window};
use shoal_model::head_shape;

use super::{Bench, Work};
use crate::cuda::Unit;

/// Measures them.
pub(super) fn each(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    attend(bench)?;
    rotate(bench)
}

fn attend(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let (card, shapes) = (bench.card, bench.shapes);
    let s = head_shape(&shapes.model, shapes.tokens);
    let (t, tokens, heads) = (shapes.rows(), shapes.tokens, s.heads);
    let (qk, scale) = (s.nope + s.rope, shapes.model.softmax_scale());
    let shape = attention::Shape {
        sequences: shapes.batch,
        tokens,
        heads,
        nope: s.nope,
        rope: s.rope,
        value: s.value,
        scale,
    };
    let noise = |what, cols: usize| card.noise(what, DType::Bf16, t * cols);
    let (q_cols, kv_cols) = (heads * qk, heads * (s.nope + s.value));
    let (q, kv) = (noise("queries", q_cols)?, noise("keys and values", kv_cols)?);
    let (k_rope, d_o) = (noise("the rotated key", s.rope)?, noise("d_o", heads * s.value)?);
    let zeros = |what, bytes: usize| card.zeros(what, bytes * t);
    let (o, lse) = (zeros("o", 2 * heads * s.value)?, zeros("log-sum-exps", 4 * heads)?);
    let (dq, d_kv) = (zeros("dq", 2 * q_cols)?, zeros("d_kv", 2 * kv_cols)?);
    let (dk_rope, delta) = (zeros("dk_rope", 2 * heads * s.rope)?, zeros("delta", 4 * heads)?);
    // Pairs of a position and one that it attends to.
    let pairs = (shapes.batch * heads * tokens * (tokens + 1) / 2) as f64;
    let read = q_cols + kv_cols + s.rope;
    let work = |name: &str, flops, columns: usize| Work {
        name: name.to_owned(),
        shape: format!("{} x {heads} heads, {tokens} tokens", shapes.batch),
        times: shapes.layers(),
        flops,
        bytes: (2 * t * columns) as f64,
        bound: Unit::Bf16Products,
    };
    let (kernels, stream) = (&card.kernels.attention, &card.stream);
    let inputs = || attention::Inputs { q: q.all(), kv: kv.all(), k_rope: k_rope.all() };
    let flops = 2.0 * pairs * (qk + s.value) as f64;
    bench.measure(work("attention forward", flops, read + heads * s.value), || {
        kernels.forward(stream, inputs(), (o.all(), lse.all()), &shape)
    })?;
    // Scores again, and gradients of probabilities, values, queries and keys: what two kernels compute twice counts once.
    let flops = 2.0 * pairs * (3 * qk + 2 * s.value) as f64;
    bench.measure(work("attention backward", flops, 2 * read + 2 * heads * s.value), || {
        let outputs = attention::Outputs { o: o.all(), lse: lse.all(), d_o: d_o.all() };
        let gradients = attention::Gradients {
            dq: dq.all(),
            d_kv: d_kv.all(),
            dk_rope: dk_rope.all(),
            delta: delta.all(),
        };
        kernels.backward(stream, inputs(), outputs, gradients, &shape)
    })
}

fn rotate(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let (card, shapes) = (bench.card, bench.shapes);
    let s = head_shape(&shapes.model, shapes.tokens);
    if s.rope == 0 {
        return Ok(());
    }
    let (t, layers, heads, qk) = (shapes.rows(), shapes.layers(), s.heads, s.nope + s.rope);
    let rank = shapes.model.kv_lora_rank as usize;
    let turns: Vec<u8> = s.turns(shapes.tokens).into_iter().flat_map(f32::to_le_bytes).collect();
    let turns = card.bytes("rotary turns", &turns)?;
    let noise = |what, cols: usize| card.noise(what, DType::Bf16, t * cols);
    let (q, latents) = (noise("queries", heads * qk)?, noise("latents", rank + s.rope)?);
    let (key, keys) = (noise("the rotated key", s.rope)?, noise("dk_rope", heads * s.rope)?);
    let of = |heads, token_stride, head_stride| rope::Heads {
        tokens: t,
        heads,
        cols: s.rope,
        token_stride,
        head_stride,
        tokens_per_sequence: s.tokens_per_sequence,
    };
    let (queries, one, all) =
        (of(heads, heads * qk, qk), of(1, s.rope, s.rope), of(heads, heads * s.rope, s.rope));
    let (kernels, stream) = (&card.kernels, &card.stream);
    let shape = |heads: usize| format!("{t} x {heads} x {}", s.rope);
    let rotated = || q.slice(2 * s.nope..q.bytes());
    let bytes = 4 * t * heads * s.rope;
    bench.stream(("rope of queries", shape(heads)), 2 * layers, bytes, || {
        kernels.rope.turn(stream, rotated(), turns.all(), queries)
    })?;
    bench.stream(("rope of queries, back", shape(heads)), layers, bytes, || {
        kernels.rope.turn_back(stream, rotated(), turns.all(), queries)
    })?;
    let columns = |values, row, first| window::Columns { values, row: 2 * row, first: 2 * first };
    bench.stream(("rotated key from latents", shape(1)), 2 * layers, 4 * t * s.rope, || {
        let from = columns(latents.all(), rank + s.rope, rank);
        kernels.window.copy(stream, columns(key.all(), s.rope, 0), from, (t, 2 * s.rope))
    })?;
    bench.stream(("rope of the key", shape(1)), 2 * layers, 4 * t * s.rope, || {
        kernels.rope.turn(stream, key.all(), turns.all(), one)
    })?;
    let bytes = 2 * t * (heads + 1) * s.rope;
    bench.stream(("rope of the key, back", shape(heads)), layers, bytes, || {
        let slice = latents.slice(2 * rank..latents.bytes());
        let out = Rows { slice, stride: rank + s.rope };
        kernels.rope.sum_back(stream, (keys.all(), turns.all()), out, all)
    })
}
