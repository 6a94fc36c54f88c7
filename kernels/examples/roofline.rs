//! Prints how fast the operations are on this machine: `cargo run --release -p shoal-kernels
//! --example roofline`. Threads follow `RAYON_NUM_THREADS`.
//!
//! The shapes are those of the preset `tiny`. Each figure is the best of several rounds, so that
//! other work on the machine shows as little as it can.
#![expect(clippy::print_stdout, reason = "a table for a person is what this example makes")]

use shoal_kernels::adamw::{self, AdamStep};
use shoal_kernels::attention::{self, AttentionShape};
use shoal_kernels::compare::Random;
use shoal_kernels::{DType, Math, Operand, Quantized, ScaleFormat, Tensor, Tiling, Weight, linear};
use shoal_kernels::{rmsnorm, swiglu};

/// Seconds of the fastest of several runs.
#[expect(clippy::disallowed_methods, reason = "measuring is reading the clock")]
fn seconds(mut work: impl FnMut()) -> f64 {
    let started = std::time::Instant::now();
    let mut best = f64::INFINITY;
    while started.elapsed().as_secs_f64() < 0.25 {
        let round = std::time::Instant::now();
        work();
        best = best.min(round.elapsed().as_secs_f64());
    }
    best
}

fn random(dtype: DType, rows: usize, cols: usize) -> Tensor {
    Tensor::from_f32(dtype, &[rows, cols], &Random::new(1).normal(rows * cols))
}

fn linears() {
    println!("GFLOP/s                     forward  backward_input  backward_weight  (prepare, us)");
    let shapes = [
        ("dense up", 512, 256),
        ("dense down", 256, 512),
        ("expert up", 128, 256),
        ("kv_b", 256, 64),
        ("square", 1024, 1024),
    ];
    for (name, n, k) in shapes {
        for t in [16, 64, 512, 2048] {
            for (math, dtype) in [
                (Math::F32, DType::F32),
                (Math::Bf16, DType::Bf16),
                (Math::Fp8(ScaleFormat::Pow2), DType::Bf16),
            ] {
                let (x, dy) = (random(dtype, t, k), random(dtype, t, n));
                let w = Weight::prepare(&Random::new(2).normal(n * k), n, k, math);
                let prepare = seconds(|| drop(Operand::prepare(&x, math)));
                let (x, dy) = (Operand::prepare(&x, math), Operand::prepare(&dy, math));
                let mut dw = vec![0.0; n * k];
                let times = [
                    seconds(|| drop(linear::forward(&x, &w, dtype))),
                    seconds(|| drop(linear::backward_input(&dy, &w, dtype))),
                    seconds(|| linear::backward_weight(&x, &dy, &mut dw)),
                ];
                let speed = times.map(|time| 2.0 * (t * n * k) as f64 / time / 1e9);
                let [forward, input, weight] = speed;
                let prepare = prepare * 1e6;
                println!(
                    "{name:<10} m={t:<4} {math:<4?} {forward:>13.1} {input:>15.1} {weight:>16.1} {prepare:>10.1}"
                );
            }
        }
    }
}

fn bandwidths() {
    println!("\nGB/s of FP32 or BF16 read and written");
    let (rows, cols) = (1024, 256);
    let elements = (rows * cols) as f64;
    let report = |name: &str, bytes_per_element: f64, time: f64| {
        println!("{name:<28} {:>7.1}", elements * bytes_per_element / time / 1e9);
    };
    let x = random(DType::F32, rows, cols);
    for tiling in [Tiling::Row, Tiling::Column, Tiling::Block] {
        let time = seconds(|| drop(Quantized::quantise(&x, tiling, ScaleFormat::Pow2)));
        report(&format!("quantise {tiling:?}"), 5.0, time);
    }
    let row = Quantized::quantise(&x, Tiling::Row, ScaleFormat::Pow2);
    report("dequantise", 5.0, seconds(|| drop(row.dequantise())));
    report("requantise", 2.0, seconds(|| drop(row.requantise_columns())));
    let n = rows * cols;
    let (mut p, mut m, mut v) = (vec![0.0; n], vec![0; n], vec![0; n]);
    let s = AdamStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_scale: 1.0,
    };
    report("adamw", 20.0, seconds(|| adamw::step(&mut p, &mut m, &mut v, x.f32s(), &s, None)));
    report(
        "sum_of_squares",
        4.0,
        seconds(|| _ = std::hint::black_box(adamw::sum_of_squares(x.f32s()))),
    );
    let (x, dy) = (random(DType::Bf16, rows, cols), random(DType::Bf16, rows, cols));
    let gain = vec![1.0; cols];
    let mut d_gain = vec![0.0; cols];
    report("rmsnorm forward", 4.0, seconds(|| drop(rmsnorm::forward(&x, &gain, 1e-6))));
    let backward = seconds(|| drop(rmsnorm::backward(&x, &gain, 1e-6, &dy, &mut d_gain)));
    report("rmsnorm backward", 6.0, backward);
    report("swiglu forward", 6.0, seconds(|| drop(swiglu::forward(&x, &dy, None))));
    report("swiglu backward", 10.0, seconds(|| drop(swiglu::backward(&x, &dy, None, &x))));
}

fn attentions() {
    println!("\nattention, 4 sequences, 4 heads, causal GFLOP/s   forward  backward");
    for tokens in [128, 256, 512] {
        let s =
            AttentionShape { sequences: 4, tokens, heads: 4, qk_dim: 48, v_dim: 32, scale: 0.144 };
        let rows = 4 * tokens;
        let (q, k) = (random(DType::Bf16, rows, 192), random(DType::Bf16, rows, 192));
        let (v, d_o) = (random(DType::Bf16, rows, 128), random(DType::Bf16, rows, 128));
        let (o, lse) = attention::forward(&q, &k, &v, &s);
        let forward = seconds(|| drop(attention::forward(&q, &k, &v, &s)));
        let backward = seconds(|| drop(attention::backward(&q, &k, &v, &o, &lse, &d_o, &s)));
        let pairs = (16 * tokens * tokens / 2) as f64;
        let (forward, backward) = (pairs * 160.0 / forward / 1e9, pairs * 416.0 / backward / 1e9);
        println!("{tokens:>5} tokens {forward:>45.1} {backward:>9.1}");
    }
}

fn main() {
    println!("{} threads", rayon::current_num_threads());
    linears();
    attentions();
    bandwidths();
}
