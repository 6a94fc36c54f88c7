//! Prints how fast everything but the products is, at the shapes of the presets `tiny` (8 sequences of
//! 256 tokens) and `small` (4 of 512): `cargo run --release -p shoal-kernels --example ops [FILTER]`.
//! Threads follow `RAYON_NUM_THREADS`. Each figure is the best of several rounds.
#![expect(clippy::print_stdout, reason = "a table for a person is what this example makes")]

use shoal_kernels::adamw::{self, AdamStep};
use shoal_kernels::attention::{self, AttentionShape};
use shoal_kernels::compare::Random;
use shoal_kernels::{DType, Tensor};
use shoal_kernels::{cross_entropy, embedding, linear, mla, rmsnorm, router, swiglu};

/// Seconds of the fastest of several runs.
#[expect(clippy::disallowed_methods, reason = "measuring is reading the clock")]
fn seconds(mut work: impl FnMut()) -> f64 {
    let started = std::time::Instant::now();
    let mut best = f64::INFINITY;
    while started.elapsed().as_secs_f64() < 0.3 {
        let round = std::time::Instant::now();
        work();
        best = best.min(round.elapsed().as_secs_f64());
    }
    best
}

fn random(dtype: DType, rows: usize, cols: usize) -> Tensor {
    Tensor::from_f32(dtype, &[rows, cols], &Random::new(1).normal(rows * cols))
}

/// Sizes of one preset.
struct Sizes {
    name: &'static str,
    sequences: usize,
    tokens: usize,
    width: usize,
    heads: usize,
    experts: usize,
    hidden: usize,
    vocabulary: usize,
    parameters: usize,
}

const PRESETS: [Sizes; 2] = [
    Sizes {
        name: "tiny",
        sequences: 8,
        tokens: 256,
        width: 256,
        heads: 4,
        experts: 16,
        hidden: 128,
        vocabulary: 256,
        parameters: 7_000_000,
    },
    Sizes {
        name: "small",
        sequences: 4,
        tokens: 512,
        width: 512,
        heads: 8,
        experts: 32,
        hidden: 256,
        vocabulary: 8192,
        parameters: 104_000_000,
    },
];

struct Report<'a> {
    preset: &'a str,
    filter: &'a str,
}

impl Report<'_> {
    fn line(&self, name: &str, unit: &str, amount: f64, work: impl FnMut()) {
        if name.contains(self.filter) {
            let time = seconds(work);
            let speed = amount / time / 1e9;
            println!("{:<6} {name:<28} {:>9.1} us {speed:>8.1} {unit}", self.preset, time * 1e6);
        }
    }
}

fn attentions(s: &Sizes, report: &Report<'_>) {
    for dtype in [DType::F32, DType::Bf16] {
        let shape = AttentionShape {
            sequences: s.sequences,
            tokens: s.tokens,
            heads: s.heads,
            qk_dim: 48,
            v_dim: 32,
            scale: 0.144,
        };
        let rows = s.sequences * s.tokens;
        let (q, k) = (random(dtype, rows, s.heads * 48), random(dtype, rows, s.heads * 48));
        let (v, d_o) = (random(dtype, rows, s.heads * 32), random(dtype, rows, s.heads * 32));
        let (o, lse) = attention::forward(&q, &k, &v, &shape);
        let pairs = (s.sequences * s.heads * s.tokens * s.tokens / 2) as f64;
        report.line(&format!("attention forward {dtype:?}"), "GFLOP/s", pairs * 160.0, || {
            drop(attention::forward(&q, &k, &v, &shape));
        });
        report.line(&format!("attention backward {dtype:?}"), "GFLOP/s", pairs * 416.0, || {
            drop(attention::backward(&q, &k, &v, &o, &lse, &d_o, &shape));
        });
    }
}

fn element_wise(s: &Sizes, report: &Report<'_>) {
    let rows = s.sequences * s.tokens;
    let (x, dy) = (random(DType::Bf16, rows, s.width), random(DType::Bf16, rows, s.width));
    let elements = (rows * s.width) as f64;
    let gain = vec![1.0; s.width];
    let mut d_gain = vec![0.0; s.width];
    report.line("rmsnorm forward", "GB/s", elements * 4.0, || {
        drop(rmsnorm::forward(&x, &gain, 1e-6));
    });
    report.line("rmsnorm backward", "GB/s", elements * 6.0, || {
        drop(rmsnorm::backward(&x, &gain, 1e-6, &dy, &mut d_gain));
    });
    let (g, u) = (random(DType::Bf16, rows, s.hidden), random(DType::Bf16, rows, s.hidden));
    let elements = (rows * s.hidden) as f64;
    report.line("swiglu forward", "GB/s", elements * 6.0, || drop(swiglu::forward(&g, &u, None)));
    report.line("swiglu backward", "GB/s", elements * 10.0, || {
        drop(swiglu::backward(&g, &u, None, &g));
    });
    let elements = (rows * s.width) as f64;
    let mut sum = x.clone();
    report.line("add_assign", "GB/s", elements * 6.0, || sum.add_assign(&dy));
    report.line("all_finite", "GB/s", elements * 2.0, || {
        _ = std::hint::black_box(x.all_finite());
    });
    let mut random = Random::new(3);
    let ids: Vec<u32> = (0..rows).map(|_| random.below(s.vocabulary as u64) as u32).collect();
    let mut table = vec![0.0; s.vocabulary * s.width];
    report.line("embedding backward", "GB/s", elements * 10.0, || {
        embedding::backward(&ids, &x, &mut table);
    });
}

fn heads(s: &Sizes, report: &Report<'_>) {
    let shape = mla::HeadShape {
        heads: s.heads,
        nope: 32,
        rope: 16,
        value: 32,
        tokens_per_sequence: s.tokens,
        rope_theta: 10_000.0,
        yarn: None,
    };
    let rows = s.sequences * s.tokens;
    let q = random(DType::Bf16, rows, s.heads * 48);
    let kv = random(DType::Bf16, rows, s.heads * 64);
    let k_rope = random(DType::Bf16, rows, 16);
    let elements = (rows * s.heads) as f64;
    report.line("mla split forward", "GB/s", elements * 480.0, || {
        drop(mla::split_forward(&q, &kv, &k_rope, &shape));
    });
    let (_, k, v) = mla::split_forward(&q, &kv, &k_rope, &shape);
    report.line("mla split backward", "GB/s", elements * 480.0, || {
        drop(mla::split_backward(&q, &k, &v, &shape));
    });
}

fn routers(s: &Sizes, report: &Report<'_>) {
    let shape = router::RouterShape {
        experts: s.experts,
        top_k: 4,
        groups: 4,
        groups_kept: 2,
        normalise: true,
        scaling: 2.5,
        tokens_per_sequence: s.tokens,
    };
    let rows = s.sequences * s.tokens;
    let x = random(DType::Bf16, rows, s.width);
    let w = Random::new(5).normal(s.experts * s.width);
    let bias = vec![0.0; s.experts];
    let flops = (2 * rows * s.experts * s.width) as f64;
    report.line("router forward", "GFLOP/s", flops, || {
        drop(router::forward(&x, &w, &bias, &shape));
    });
    let routing = router::forward(&x, &w, &bias, &shape);
    let d_gates = vec![0.1; routing.gates.len()];
    let mut d_w = vec![0.0; w.len()];
    let back = router::Backward { d_gates: &d_gates, balance_weight: 1e-4 };
    report.line("router backward", "GFLOP/s", 2.0 * flops, || {
        drop(router::backward(&x, &w, &routing, back, &shape, &mut d_w));
    });
}

fn cross_entropies(s: &Sizes, report: &Report<'_>) {
    let rows = s.sequences * s.tokens;
    for (math, dtype) in [(linear::Math::F32, DType::F32), (linear::Math::Bf16, DType::Bf16)] {
        let h = linear::Operand::prepare(&random(dtype, rows, s.width), math);
        let w = Random::new(6).normal(s.vocabulary * s.width);
        let w = linear::Weight::prepare(&w, s.vocabulary, s.width, math);
        let mut dw = vec![0.0; s.vocabulary * s.width];
        let targets = vec![1; rows];
        let flops = (6 * rows * s.vocabulary * s.width) as f64;
        report.line(&format!("cross entropy {dtype:?}"), "GFLOP/s", flops, || {
            drop(cross_entropy::forward_backward(&h, &w, &targets, 1e-3, dtype, &mut dw));
        });
    }
}

fn optimizers(s: &Sizes, report: &Report<'_>) {
    let n = s.parameters;
    let (mut p, mut m, mut v, g) = (vec![0.1; n], vec![0_u16; n], vec![0_u16; n], vec![1e-3; n]);
    let step = AdamStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_scale: 1.0,
    };
    report.line("adamw", "GB/s", n as f64 * 20.0, || {
        adamw::step(&mut p, &mut m, &mut v, &g, &step, None);
    });
    report.line("sum of squares", "GB/s", n as f64 * 4.0, || {
        _ = std::hint::black_box(adamw::sum_of_squares(&g));
    });
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    println!("{} threads", rayon::current_num_threads());
    for s in &PRESETS {
        let report = Report { preset: s.name, filter: &filter };
        attentions(s, &report);
        heads(s, &report);
        element_wise(s, &report);
        routers(s, &report);
        cross_entropies(s, &report);
        optimizers(s, &report);
    }
}
