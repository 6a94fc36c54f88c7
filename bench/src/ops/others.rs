//! Attention, and what only passes over memory: norms, activations, routing, quantising, the update.

use shoal_kernels::adamw::{self, AdamStep};
use shoal_kernels::compare::Random;
use shoal_kernels::linear::{Math, Operand, Weight};
use shoal_kernels::{embedding, mla, rmsnorm, router, swiglu};
use shoal_model::{head_shape, router_shape};
use shoal_plan::arithmetic::parameters;

use super::{Bound, Operation, Shapes, random};
use crate::train::random_tokens;

/// Hands over every operation that is no Linear, one after the other.
pub(super) fn each(shapes: &Shapes, take: &mut dyn FnMut(Operation<'_>)) {
    attention(shapes, take);
    norms(shapes, take);
    activations(shapes, take);
    if shapes.moe_layers() > 0 {
        routing(shapes, take);
    }
    embeddings(shapes, take);
    forms(shapes, take);
    update(shapes, take);
}

/// A row that memory bounds.
fn streams<'a>(
    name: &str,
    shape: String,
    times: usize,
    bytes: f64,
    run: impl FnMut() + Send + 'a,
) -> Operation<'a> {
    let (name, run) = (name.to_owned(), Box::new(run));
    Operation { name, shape, times, flops: 0.0, bytes, bound: Bound::Memory, run }
}

/// Attention as the model runs it: heads are split and rotated on the way in.
fn attention(shapes: &Shapes, take: &mut dyn FnMut(Operation<'_>)) {
    let s = head_shape(&shapes.model, shapes.tokens);
    let (t, dtype, scale) = (shapes.rows(), shapes.dtype(), shapes.model.softmax_scale());
    let (qk, value) = (s.nope + s.rope, s.value);
    let q = random(dtype, t, s.heads * qk);
    let kv = random(dtype, t, s.heads * (s.nope + value));
    let k_rope = random(dtype, t, s.rope);
    let d_o = random(dtype, t, s.heads * value);
    let (o, lse) = mla::attend(&q, &kv, &k_rope, &s, scale);
    let read = q.cols() + kv.cols() + k_rope.cols();
    // Pairs of a position and one that it attends to.
    let pairs = (shapes.batch * s.heads * shapes.tokens * (shapes.tokens + 1) / 2) as f64;
    let mut row = |name: &str, flops, columns: usize, run: Box<dyn FnMut() + Send + '_>| {
        take(Operation {
            name: name.to_owned(),
            shape: format!("{} x {} heads, {} tokens", shapes.batch, s.heads, shapes.tokens),
            times: shapes.layers(),
            flops,
            bytes: (t * columns * dtype.size()) as f64,
            bound: shapes.products(),
            run,
        });
    };
    let forward = 2.0 * pairs * (qk + value) as f64;
    let run = || drop(mla::attend(&q, &kv, &k_rope, &s, scale));
    row("attention forward", forward, read + o.cols(), Box::new(run));
    // Scores again, and gradients of probabilities, values, queries and keys.
    let backward = 2.0 * pairs * (3 * qk + 2 * value) as f64;
    let run = || drop(mla::attend_backward((&q, &kv, &k_rope), (&o, &lse, &d_o), &s, scale));
    row("attention backward", backward, 2 * read + 2 * o.cols(), Box::new(run));
}

fn norms(shapes: &Shapes, take: &mut dyn FnMut(Operation<'_>)) {
    let (t, d, dtype) = (shapes.rows(), shapes.d(), shapes.dtype());
    let (x, d_y, gain) = (random(dtype, t, d), random(dtype, t, d), vec![1.0; d]);
    let eps = shapes.model.rms_norm_eps;
    let mut d_gain = vec![0.0; d];
    let (times, each) = (2 * shapes.layers() + 1, (t * d * dtype.size()) as f64);
    let shape = format!("{t} x {d}");
    let forward = || drop(rmsnorm::forward(&x, &gain, eps));
    take(streams("rmsnorm forward", shape.clone(), times, 2.0 * each, forward));
    let backward = || drop(rmsnorm::backward(&x, &gain, eps, &d_y, &mut d_gain));
    take(streams("rmsnorm backward", shape.clone(), times, 3.0 * each, backward));
    let mut sum = x.clone();
    take(streams("residual add", shape, 4 * shapes.layers(), 3.0 * each, move || {
        sum.add_assign(&d_y);
    }));
}

/// Of the routed experts, which have most rows.
fn activations(shapes: &Shapes, take: &mut dyn FnMut(Operation<'_>)) {
    let m = &shapes.model;
    let dtype = shapes.dtype();
    let (name, t, f, times) = if shapes.moe_layers() > 0 {
        let rows = shapes.rows() * m.num_experts_per_tok as usize;
        ("swiglu, experts", rows, m.moe_intermediate_size as usize, shapes.moe_layers())
    } else {
        ("swiglu", shapes.rows(), m.intermediate_size as usize, shapes.layers())
    };
    let (g, u, d_h) = (random(dtype, t, f), random(dtype, t, f), random(dtype, t, f));
    let gates = vec![0.5; t];
    let each = (t * f * dtype.size()) as f64;
    let shape = format!("{t} x {f}");
    let forward = || drop(swiglu::forward(&g, &u, Some(&gates)));
    take(streams(&format!("{name} forward"), shape.clone(), 2 * times, 3.0 * each, forward));
    let backward = || drop(swiglu::backward(&g, &u, Some(&gates), &d_h));
    take(streams(&format!("{name} backward"), shape, times, 5.0 * each, backward));
}

fn routing(shapes: &Shapes, take: &mut dyn FnMut(Operation<'_>)) {
    let s = router_shape(&shapes.model, shapes.tokens);
    let (t, d, e) = (shapes.rows(), shapes.d(), s.experts);
    let x = random(shapes.dtype(), t, d);
    let (w, bias) = (Random::new(4).normal(e * d), vec![0.0; e]);
    let routing = router::forward(&x, &w, &bias, &s);
    let (d_gates, mut d_w) = (vec![0.01; t * s.top_k], vec![0.0; e * d]);
    let product = 2.0 * (t * d * e) as f64;
    let mut row = |name: &str, flops, run: Box<dyn FnMut() + Send + '_>| {
        take(Operation {
            name: name.to_owned(),
            shape: format!("{t} x {d} x {e}"),
            times: shapes.moe_layers(),
            flops,
            bytes: (t * d * shapes.dtype().size() + 4 * e * (t + d)) as f64,
            bound: Bound::F32Products,
            run,
        });
    };
    row("router forward", product, Box::new(|| drop(router::forward(&x, &w, &bias, &s))));
    let back = router::Backward { d_gates: &d_gates, balance_weight: 1e-4 };
    let backward = || drop(router::backward(&x, &w, &routing, back, &s, &mut d_w));
    row("router backward", 2.0 * product, Box::new(backward));
}

fn embeddings(shapes: &Shapes, take: &mut dyn FnMut(Operation<'_>)) {
    let (t, d, v) = (shapes.rows(), shapes.d(), shapes.model.vocab_size as usize);
    let dtype = shapes.dtype();
    let (table, ids) = (Random::new(5).normal(v * d), random_tokens(t, v as u32, 6));
    let d_y = random(dtype, t, d);
    let mut d_table = vec![0.0; v * d];
    let shape = format!("{t} x {d}");
    let bytes = (t * d * (4 + dtype.size())) as f64;
    let forward = || drop(embedding::forward(&table, d, &ids, dtype));
    take(streams("embedding forward", shape.clone(), 1, bytes, forward));
    let backward = || embedding::backward(&ids, &d_y, &mut d_table);
    take(streams("embedding backward", shape, 1, bytes + (4 * t * d) as f64, backward));
}

/// Quantising, where there is any: what reads the hidden state, twice a layer forward and back.
fn forms(shapes: &Shapes, take: &mut dyn FnMut(Operation<'_>)) {
    let math = shapes.math();
    if !matches!(math, Math::Fp8(_)) {
        return;
    }
    let (t, d) = (shapes.rows(), shapes.d());
    let x = random(shapes.dtype(), t, d);
    let prepare = || drop(Operand::prepare(&x, math));
    let (shape, bytes) = (format!("{t} x {d}"), 3.0 * (t * d) as f64);
    take(streams("quantise 1 x 128", shape, 4 * shapes.layers(), bytes, prepare));
}

fn update(shapes: &Shapes, take: &mut dyn FnMut(Operation<'_>)) {
    let n = parameters(&shapes.model).total as usize;
    let (mut p, g) = (Random::new(7).normal(n), Random::new(8).normal(n));
    let (mut m, mut v) = (vec![0_u16; n], vec![0_u16; n]);
    let s = AdamStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_scale: 1.0,
    };
    let shape = format!("{:.1} M", n as f64 / 1e6);
    let bytes = (n * 20) as f64;
    take(streams("adamw", shape.clone(), 1, bytes, || {
        adamw::step(&mut p, &mut m, &mut v, &g, &s, None);
    }));
    let sum = || {
        std::hint::black_box(adamw::sum_of_squares(&g));
    };
    take(streams("gradient norm", shape.clone(), 1, (4 * n) as f64, sum));
    let cols = shapes.d();
    let (rows, math) = (n / cols, shapes.math());
    let written = match math {
        Math::F32 => 4.0,
        Math::Bf16 => 2.0,
        Math::Fp8(_) => 1.0,
    };
    let prepare = || drop(Weight::prepare(&p[..rows * cols], rows, cols, math));
    take(streams("weights for compute", shape, 1, (4.0 + written) * n as f64, prepare));
}
