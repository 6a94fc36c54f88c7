//! The products: Linears, the experts side by side, and the head with its loss.

use shoal_kernels::compare::Random;
use shoal_kernels::linear::{self, Math, Operand, Weight};
use shoal_kernels::{DType, cross_entropy, spread};
use shoal_plan::job::Precision;

use super::{Operation, Shapes, random};

/// A Linear of the network.
pub(super) struct Linear {
    pub(super) name: &'static str,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Of them in a step's forward pass.
    pub(super) times: usize,
    /// It runs forward again in the backward pass.
    pub(super) again: bool,
}

/// Hands over every product, one after the other.
pub(super) fn each(shapes: &Shapes, take: &mut dyn FnMut(Operation<'_>)) {
    for linear in linears(shapes) {
        of_linear(shapes, &linear, take);
    }
    if shapes.model.n_routed_experts > 0 {
        let (d, f) = (shapes.d(), shapes.model.moe_intermediate_size as usize);
        of_experts(shapes, ("experts gate, up", d, f, 2), take);
        of_experts(shapes, ("experts down", f, d, 1), take);
    }
    head(shapes, take);
}

pub(super) fn linears(shapes: &Shapes) -> Vec<Linear> {
    let (m, d) = (&shapes.model, shapes.d());
    let (heads, rank) = (m.num_attention_heads as usize, m.kv_lora_rank as usize);
    let (qk, rope) = (m.qk_head_dim() as usize, m.qk_rope_head_dim as usize);
    let (nope, value) = (m.qk_nope_head_dim as usize, m.v_head_dim as usize);
    let (layers, moe) = (shapes.layers(), shapes.moe_layers());
    let of = |name, inputs, outputs, times, again| Linear { name, inputs, outputs, times, again };
    let mut all = match m.q_lora_rank.map(|rank| rank as usize) {
        Some(rank) => {
            vec![of("q_a", d, rank, layers, false), of("q_b", rank, heads * qk, layers, true)]
        }
        None => vec![of("q", d, heads * qk, layers, true)],
    };
    all.extend([
        of("kv_a", d, rank + rope, layers, false),
        of("kv_b", rank, heads * (nope + value), layers, true),
        of("o", heads * value, d, layers, false),
    ]);
    let wide = m.intermediate_size as usize;
    let shared = (m.moe_intermediate_size * m.n_shared_experts) as usize;
    let dense = layers - moe;
    all.extend([
        of("dense gate, up", d, wide, 2 * dense, false),
        of("dense down", wide, d, dense, false),
        of("shared gate, up", d, shared, 2 * moe, false),
        of("shared down", shared, d, moe, false),
        of("eh_proj", 2 * d, d, m.num_nextn_predict_layers as usize, false),
    ]);
    all.retain(|linear| linear.times > 0 && linear.outputs > 0);
    all
}

/// Bytes of an element as a Linear reads it.
pub(super) fn element(math: Math) -> f64 {
    match math {
        Math::F32 => 4.0,
        Math::Bf16 => 2.0,
        Math::Fp8(_) => 1.0 + 4.0 / 128.0,
    }
}

fn of_linear(shapes: &Shapes, linear: &Linear, take: &mut dyn FnMut(Operation<'_>)) {
    let (t, k, n) = (shapes.rows(), linear.inputs, linear.outputs);
    let (math, dtype) = (shapes.math(), shapes.dtype());
    let (x, d_y) = (random(dtype, t, k), random(dtype, t, n));
    let w = Weight::prepare(&Random::new(2).normal(n * k), n, k, math);
    let mut d_w = vec![0.0; n * k];
    let (operand, d_operand) = (Operand::prepare(&x, math), Operand::prepare(&d_y, math));
    let (e, out) = (element(math), dtype.size() as f64);
    let (tk, tn, nk) = ((t * k) as f64, (t * n) as f64, (n * k) as f64);
    let mut row = |part: &str, times, bytes, run: Box<dyn FnMut() + Send + '_>| {
        take(Operation {
            name: format!("{} {part}", linear.name),
            shape: format!("{t} x {k} x {n}"),
            times,
            flops: 2.0 * (t * n * k) as f64,
            bytes,
            bound: shapes.products(),
            run,
        });
    };
    let times = linear.times;
    let forward = || drop(linear::forward(&operand, &w, dtype));
    let n_forward = if linear.again { 2 * times } else { times };
    row("forward", n_forward, e * (tk + nk) + out * tn, Box::new(forward));
    let input = || drop(linear::backward_input(&d_operand, &w, dtype));
    row("d_x", times, e * (tn + nk) + out * tk, Box::new(input));
    let weight = || linear::backward_weight(&operand, &d_operand, &mut d_w);
    row("d_w", times, e * (tk + tn) + 8.0 * nk, Box::new(weight));
}

/// One Linear of one expert.
struct Expert {
    x: Operand,
    d_y: Operand,
    w: Weight,
    d_w: Vec<f32>,
}

/// All experts of a layer at once, each with its share of the rows.
fn of_experts(
    shapes: &Shapes,
    (name, k, n, copies): (&str, usize, usize, usize),
    take: &mut dyn FnMut(Operation<'_>),
) {
    let m = &shapes.model;
    let experts = m.n_routed_experts as usize;
    let all_rows = shapes.rows() * m.num_experts_per_tok as usize;
    let (math, dtype) = (shapes.math(), shapes.dtype());
    let rows = |expert: usize| {
        // Equal shares; what is left over goes to the first.
        all_rows / experts + usize::from(expert < all_rows % experts)
    };
    let mut all: Vec<Expert> = (0..experts)
        .map(|expert| Expert {
            x: Operand::prepare(&random(dtype, rows(expert), k), math),
            d_y: Operand::prepare(&random(dtype, rows(expert), n), math),
            w: Weight::prepare(&Random::new(2).normal(n * k), n, k, math),
            d_w: vec![0.0; n * k],
        })
        .collect();
    let times = copies * shapes.moe_layers();
    let flops = 2.0 * (all_rows * n * k) as f64;
    let e = element(math);
    let (tk, tn) = ((all_rows * k) as f64, (all_rows * n) as f64);
    let nk = (experts * n * k) as f64;
    let shape = format!("{experts} x ({} x {k} x {n})", all_rows / experts);
    let mut row = |part: &str, bytes, run: Box<dyn FnMut() + Send + '_>| {
        let (name, shape) = (format!("{name} {part}"), shape.clone());
        take(Operation { name, shape, times, flops, bytes, bound: shapes.products(), run });
    };
    let forward = || {
        spread::map(&all, |expert| linear::forward(&expert.x, &expert.w, dtype));
    };
    row("forward", e * (tk + nk) + dtype.size() as f64 * tn, Box::new(forward));
    let input = || {
        spread::map(&all, |expert| linear::backward_input(&expert.d_y, &expert.w, DType::F32));
    };
    row("d_x", e * (tn + nk) + 4.0 * tk, Box::new(input));
    let weight = || {
        spread::each(&mut all, |expert| {
            linear::backward_weight(&expert.x, &expert.d_y, &mut expert.d_w);
        });
    };
    row("d_w", e * (tk + tn) + 8.0 * nk, Box::new(weight));
}

/// Head and loss, forward and backward in one: three products.
fn head(shapes: &Shapes, take: &mut dyn FnMut(Operation<'_>)) {
    let (t, d, v) = (shapes.rows(), shapes.d(), shapes.model.vocab_size as usize);
    let math = if shapes.precision == Precision::F32 { Math::F32 } else { Math::Bf16 };
    let dtype = shapes.dtype();
    let h = Operand::prepare(&random(dtype, t, d), math);
    let w = Weight::prepare(&Random::new(2).normal(v * d), v, d, math);
    let targets = crate::train::random_tokens(t, v as u32, 3);
    let mut d_w = vec![0.0; v * d];
    let e = element(math);
    let scale = 1.0 / t as f32;
    take(Operation {
        name: "head and loss".to_owned(),
        shape: format!("{t} x {d} x {v}"),
        times: 1 + shapes.model.num_nextn_predict_layers as usize,
        flops: 6.0 * (t * d * v) as f64,
        bytes: e * (t * d + v * d) as f64 + 8.0 * (v * d) as f64 + (dtype.size() * t * d) as f64,
        bound: shapes.products(),
        run: Box::new(move || {
            cross_entropy::forward_backward(&h, &w, &targets, scale, dtype, &mut d_w);
        }),
    });
}
