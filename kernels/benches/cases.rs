//! The hot kernels at the shapes of the preset `tiny`, by name: what `operations` times and
//! `examples/one_kernel.rs` runs for counting instructions.

use shoal_kernels::adamw::{self, AdamStep};
use shoal_kernels::compare::Random;
use shoal_kernels::linear::{self, Math, Operand, Weight};
use shoal_kernels::mla::{self, HeadShape};
use shoal_kernels::router::{self, RouterShape};
use shoal_kernels::{DType, ScaleFormat, Tensor, cross_entropy, rmsnorm, swiglu};

/// Tokens of one sequence.
const TOKENS: usize = 256;

/// Something to run again and again.
pub(crate) type Case = Box<dyn FnMut()>;

/// All cases, in the order of a step.
pub(crate) const NAMES: [&str; 19] = [
    "linear-fp8-forward",
    "linear-fp8-d-x",
    "linear-fp8-d-w",
    "linear-bf16-forward",
    "linear-bf16-d-x",
    "linear-bf16-d-w",
    "linear-f32-forward",
    "linear-f32-d-w",
    "quantise",
    "rmsnorm-forward",
    "rmsnorm-backward",
    "swiglu-forward",
    "swiglu-backward",
    "attention-forward",
    "attention-backward",
    "router-forward",
    "head-and-loss",
    "adamw",
    "weights-fp8",
];

fn random(dtype: DType, rows: usize, cols: usize) -> Tensor {
    Tensor::from_f32(dtype, &[rows, cols], &Random::new(1).normal(rows * cols))
}

/// The case of that name; `None` if there is none.
pub(crate) fn find(name: &str) -> Option<Case> {
    let fp8 = Math::Fp8(ScaleFormat::Pow2);
    Some(match name {
        "linear-fp8-forward" => forward(fp8),
        "linear-fp8-d-x" => backward_input(fp8),
        "linear-fp8-d-w" => backward_weight(fp8),
        "linear-bf16-forward" => forward(Math::Bf16),
        "linear-bf16-d-x" => backward_input(Math::Bf16),
        "linear-bf16-d-w" => backward_weight(Math::Bf16),
        "linear-f32-forward" => forward(Math::F32),
        "linear-f32-d-w" => backward_weight(Math::F32),
        "quantise" => {
            let x = random(DType::Bf16, TOKENS, 256);
            Box::new(move || drop(Operand::prepare(&x, fp8)))
        }
        "rmsnorm-forward" => {
            let (x, gain) = (random(DType::Bf16, TOKENS, 256), vec![1.0; 256]);
            Box::new(move || drop(rmsnorm::forward(&x, &gain, 1e-6)))
        }
        "rmsnorm-backward" => {
            let (x, gain) = (random(DType::Bf16, TOKENS, 256), vec![1.0; 256]);
            let (d_y, mut d_gain) = (x.clone(), vec![0.0; 256]);
            Box::new(move || drop(rmsnorm::backward(&x, &gain, 1e-6, &d_y, &mut d_gain)))
        }
        "swiglu-forward" => {
            let (g, gates) = (random(DType::Bf16, TOKENS, 128), vec![0.5; TOKENS]);
            Box::new(move || drop(swiglu::forward(&g, &g, Some(&gates))))
        }
        "swiglu-backward" => {
            let (g, gates) = (random(DType::Bf16, TOKENS, 128), vec![0.5; TOKENS]);
            Box::new(move || drop(swiglu::backward(&g, &g, Some(&gates), &g)))
        }
        "attention-forward" => attention(false),
        "attention-backward" => attention(true),
        "router-forward" => routing(),
        "head-and-loss" => head(),
        "adamw" => update(),
        "weights-fp8" => {
            let master = Random::new(2).normal(512 * 256);
            Box::new(move || drop(Weight::prepare(&master, 512, 256, fp8)))
        }
        _ => return None,
    })
}

/// An expert's way up: 256 rows, 256 inputs, 128 outputs.
const K: usize = 256;
const N: usize = 128;

fn dtype(math: Math) -> DType {
    if math == Math::F32 { DType::F32 } else { DType::Bf16 }
}

fn operand(math: Math, cols: usize) -> Operand {
    Operand::prepare(&random(dtype(math), TOKENS, cols), math)
}

fn weight(math: Math) -> Weight {
    Weight::prepare(&Random::new(2).normal(N * K), N, K, math)
}

fn forward(math: Math) -> Case {
    let (x, w, out) = (operand(math, K), weight(math), dtype(math));
    Box::new(move || drop(linear::forward(&x, &w, out)))
}

fn backward_input(math: Math) -> Case {
    let (d_y, w, out) = (operand(math, N), weight(math), dtype(math));
    Box::new(move || drop(linear::backward_input(&d_y, &w, out)))
}

fn backward_weight(math: Math) -> Case {
    let (x, d_y, mut d_w) = (operand(math, K), operand(math, N), vec![0.0; N * K]);
    Box::new(move || linear::backward_weight(&x, &d_y, &mut d_w))
}

fn attention(backward: bool) -> Case {
    let s = HeadShape {
        heads: 4,
        nope: 32,
        rope: 16,
        value: 32,
        tokens_per_sequence: TOKENS,
        rope_theta: 10_000.0,
        yarn: None,
    };
    let scale = 48.0_f32.sqrt().recip();
    let (q, kv) = (random(DType::Bf16, TOKENS, 4 * 48), random(DType::Bf16, TOKENS, 4 * 64));
    let k_rope = random(DType::Bf16, TOKENS, 16);
    if !backward {
        return Box::new(move || drop(mla::attend(&q, &kv, &k_rope, &s, scale)));
    }
    let (o, lse) = mla::attend(&q, &kv, &k_rope, &s, scale);
    let d_o = random(DType::Bf16, TOKENS, 4 * 32);
    Box::new(move || {
        drop(mla::attend_backward((&q, &kv, &k_rope), (&o, &lse, &d_o), &s, scale));
    })
}

fn routing() -> Case {
    let s = RouterShape {
        experts: 16,
        top_k: 4,
        groups: 4,
        groups_kept: 2,
        normalise: true,
        scaling: 2.5,
        tokens_per_sequence: TOKENS,
    };
    let (x, w) = (random(DType::Bf16, TOKENS, 256), Random::new(3).normal(16 * 256));
    Box::new(move || drop(router::forward(&x, &w, &[0.0; 16], &s)))
}

fn head() -> Case {
    let h = operand(Math::Bf16, 256);
    let w = Weight::prepare(&Random::new(2).normal(256 * 256), 256, 256, Math::Bf16);
    let targets: Vec<u32> = (0..TOKENS as u32).map(|at| at * 37 % 256).collect();
    let mut d_w = vec![0.0; 256 * 256];
    Box::new(move || {
        cross_entropy::forward_backward(&h, &w, &targets, 1e-3, DType::Bf16, &mut d_w);
    })
}

fn update() -> Case {
    let n = 64 << 10;
    let (mut p, g) = (Random::new(4).normal(n), Random::new(5).normal(n));
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
    Box::new(move || adamw::step(&mut p, &mut m, &mut v, &g, &s, None))
}
