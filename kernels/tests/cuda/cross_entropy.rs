//! The head's cross entropy against `cross_entropy` on the CPU.

use shoal_kernels::compare::Random;
use shoal_kernels::cross_entropy::{self as cpu, HeadLoss, IGNORE};
use shoal_kernels::cuda::cross_entropy::{Gradients, Inputs, Losses, Room, Shape};
use shoal_kernels::cuda::gemm::Output;
use shoal_kernels::tensor::{DType, Tensor};
use shoal_kernels::{Operand, Weight};

use super::gpu::{Case, Gpu, bf16s, f32s, same_bytes};
use super::honest::{Change, GONE, Mutant, mutant};

/// Rows, width, vocabulary, and rows that have room: all at once, in chunks with a rest, one by one; one token; a
/// vocabulary that no quad divides; one that a block reads more than once; nothing.
const SIZES: [(usize, usize, usize, usize); 8] = [
    (70, 64, 256, 70),
    (70, 64, 256, 32),
    (5, 33, 50, 1),
    (3, 16, 1, 8),
    (9, 24, 2057, 4),
    (4, 8, 4100, 9),
    (0, 64, 96, 1),
    // What `.ci/cuda-predicted` counts.
    (2, 8, 16384, 2),
];

const SCALE: f32 = 0.37;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (t, d, v, alive) in SIZES {
        for out in [DType::Bf16, DType::F32] {
            let name = format!("cross entropy {t}x{d}x{v} {alive} at once {out:?}");
            let shape = Shape { t, d, v };
            cases.push(Case::new(name, move |gpu| check(gpu, shape, alive, out)));
        }
    }
    cases.push(Case::new("cross entropy of large logits", large));
    cases.push(Case::new("cross entropy shows what is no token", no_token));
    cases.push(Case::new("cross entropy refuses what does not fit", refusals));
    cases
}

/// h, w, targets, and the head's gradient from before.
struct Given {
    h: Tensor,
    w: Tensor,
    targets: Vec<u32>,
    dw: Vec<f32>,
}

impl Given {
    fn new(Shape { t, d, v }: Shape, seed: u64, size: f32) -> Self {
        let mut random = Random::new(seed ^ (t * 31 + v) as u64);
        let mut matrix = |rows: usize, size: f32| {
            let values: Vec<f32> = random.normal(rows * d).iter().map(|x| x * size).collect();
            Tensor::from_f32(DType::Bf16, &[rows, d], &values)
        };
        let (h, w) = (matrix(t, 1.0), matrix(v, size / (d as f32).sqrt()));
        let mut target = |row: usize| match row % 5 {
            3 => IGNORE,
            _ => random.below(v as u64) as u32,
        };
        let targets = (0..t).map(&mut target).collect();
        Self { h, w, targets, dw: random.normal(v * d) }
    }

    fn on_cpu(&self, out: DType) -> (HeadLoss, Vec<f32>) {
        let (h, w) = (Operand::Bf16(self.h.clone()), Weight::Bf16(self.w.clone()));
        let mut dw = self.dw.clone();
        (cpu::forward_backward(&h, &w, &self.targets, SCALE, out, &mut dw), dw)
    }
}

/// What the device made.
struct Made {
    losses: Vec<f32>,
    total: f64,
    d_h: Vec<f32>,
    dw: Vec<f32>,
}

fn to_bytes<T: bytemuck::NoUninit>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}

fn run(gpu: &Gpu, given: &Given, shape: Shape, alive: usize, out: DType) -> Result<Made, String> {
    let Shape { t, d, v } = shape;
    let (h, w) = (gpu.upload(given.h.bytes()), gpu.upload(given.w.bytes()));
    let targets = gpu.upload(to_bytes(&given.targets));
    let (losses, total) = (gpu.guarded(4 * t), gpu.guarded(8));
    let (d_h, dw) = (gpu.guarded(t * d * out.size()), gpu.guarded(4 * v * d));
    gpu.stream.upload(dw.slice(), to_bytes(&given.dw)).unwrap();
    let (logits, d_logits) = (gpu.guarded(4 * alive * v), gpu.guarded(2 * alive * v));
    let inputs = Inputs { h: h.all(), w: w.all(), targets: targets.all() };
    let to = Losses { losses: losses.slice(), total: total.slice() };
    let values = Output { values: d_h.slice(), dtype: out, accumulate: false };
    let gradients = Gradients { scale: SCALE, d_h: values, dw: dw.slice() };
    let room = Room { logits: logits.slice(), d_logits: d_logits.slice() };
    let kernels = gpu.cross_entropy();
    let done =
        kernels.forward_backward(&gpu.stream, gpu.gemm(), inputs, to, gradients, room, shape);
    done.unwrap();
    for (what, room) in [("logits", &logits), ("d_logits", &d_logits)] {
        gpu.result(what, room)?;
    }
    let (kept, sum) = (gpu.result("losses", &losses)?, gpu.result("total", &total)?);
    kernels.evaluate(&gpu.stream, gpu.gemm(), inputs, to, room.logits, shape).unwrap();
    same_bytes("losses of evaluate", &gpu.result("losses", &losses)?, &kept)?;
    same_bytes("the total of evaluate", &gpu.result("total", &total)?, &sum)?;
    let d_h = gpu.result("d_h", &d_h)?;
    Ok(Made {
        losses: f32s(&kept),
        total: f64::from_le_bytes(sum.try_into().unwrap()),
        d_h: if out == DType::F32 { f32s(&d_h) } else { bf16s(&d_h) },
        dw: f32s(&gpu.result("dw", &dw)?),
    })
}

/// The plain softmax of every row, `(T, V)`, with what is subtracted from the target, times the scale; and the losses.
fn plain(given: &Given, Shape { t, d, v }: Shape) -> (Vec<f64>, Vec<f64>) {
    let (h, w) = (given.h.to_f32(), given.w.to_f32());
    let mut gradients = Vec::with_capacity(t * v);
    let losses = (0..t).map(|row| {
        let logit = |token: usize| -> f64 {
            let (h, w) = (&h[row * d..][..d], &w[token * d..][..d]);
            h.iter().zip(w).map(|(h, w)| f64::from(*h) * f64::from(*w)).sum()
        };
        let logits: Vec<f64> = (0..v).map(logit).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
        let target = given.targets[row];
        gradients.extend((0..v).map(|token| {
            let softmax = (logits[token] - max).exp() / sum;
            let hit = if token as u32 == target { 1.0 } else { 0.0 };
            if target == IGNORE { 0.0 } else { f64::from(SCALE) * (softmax - hit) }
        }));
        if target == IGNORE { 0.0 } else { sum.ln() + max - logits[target as usize] }
    });
    let losses = losses.collect();
    (gradients, losses)
}

/// Sums of products of a gradient of logits, and the sums of their magnitudes: the gradient is rounded to BF16, within 2^-9
/// of itself, and so may be the sum; FP32 adds some 2^-20 of what exponents of about 10 lose. Twice that.
fn within(what: &str, got: &[f32], want: &[(f64, f64)], rounded: f64) -> Result<(), String> {
    for (at, (got, (want, room))) in got.iter().zip(want).enumerate() {
        let bound = room / 256.0 + want.abs() * rounded + 1e-6;
        let error = (f64::from(*got) - want).abs();
        if error.is_nan() || error > bound {
            return Err(format!("{what}[{at}] is {got}, want {want} within {bound}"));
        }
    }
    Ok(())
}

/// Of row and column: the sum over `n` of `left(row, i) * right(i, column)`, and of magnitudes, on top of `before`.
fn products(
    (rows, columns, n): (usize, usize, usize),
    term: impl Fn(usize, usize, usize) -> f64,
    before: impl Fn(usize) -> f64,
) -> Vec<(f64, f64)> {
    let of = |at: usize| {
        let terms = (0..n).map(|i| term(at / columns, at % columns, i));
        let start = (before(at), 0.0);
        terms.fold(start, |(sum, room), term| (sum + term, room + term.abs()))
    };
    (0..rows * columns).map(of).collect()
}

fn check(gpu: &Gpu, shape: Shape, alive: usize, out: DType) -> Result<(), String> {
    let Shape { t, d, v } = shape;
    let given = Given::new(shape, gpu.seed, 1.0);
    let made = run(gpu, &given, shape, alive, out)?;
    let (gradients, losses) = plain(&given, shape);
    same_losses(&made, &losses)?;
    let (h, w) = (given.h.to_f32(), given.w.to_f32());
    let of_h = |row: usize, column: usize, token: usize| {
        gradients[row * v + token] * f64::from(w[token * d + column])
    };
    let of_w = |token: usize, column: usize, row: usize| {
        gradients[row * v + token] * f64::from(h[row * d + column])
    };
    let d_h = products((t, d, v), of_h, |_| 0.0);
    let dw = products((v, d, t), of_w, |at| f64::from(given.dw[at]));
    let rounded = if out == DType::Bf16 { 1.0 / 256.0 } else { 1e-6 };
    let (of_cpu, dw_of_cpu) = given.on_cpu(out);
    within("the CPU's d_h", &of_cpu.d_h.unwrap().to_f32(), &d_h, rounded)?;
    within("the CPU's dw", &dw_of_cpu, &dw, 1e-6)?;
    within("d_h", &made.d_h, &d_h, rounded)?;
    within("dw", &made.dw, &dw, 1e-6)?;
    if (made.total - of_cpu.loss_sum).abs() > 1e-5 * (1.0 + of_cpu.loss_sum.abs()) {
        return Err(format!("the total is {}, the CPU's {}", made.total, of_cpu.loss_sum));
    }
    Ok(())
}

/// Logits are FP32 sums of up to some hundred terms: 1e-5 of their size, and of a loss as large.
fn same_losses(made: &Made, want: &[f64]) -> Result<(), String> {
    for (row, (got, want)) in made.losses.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        if error.is_nan() || error > 1e-5 * (1.0 + want.abs()) {
            return Err(format!("losses[{row}] is {got}, want {want}"));
        }
    }
    let sum: f64 = made.losses.iter().map(|loss| f64::from(*loss)).sum();
    // Both are FP64 sums of the same numbers.
    if (made.total - sum).abs() > 1e-12 * sum.abs() {
        return Err(format!("the total is {}, losses add up to {sum}", made.total));
    }
    Ok(())
}

/// Logits of some hundreds: exponentials are relative to the largest.
fn large(gpu: &Gpu) -> Result<(), String> {
    let shape = Shape { t: 6, d: 16, v: 300 };
    let given = Given::new(shape, gpu.seed, 300.0);
    let made = run(gpu, &given, shape, 6, DType::F32)?;
    same_losses(&made, &plain(&given, shape).1)?;
    let lost = made.d_h.iter().chain(&made.dw).filter(|x| !x.is_finite()).count();
    if lost == 0 { Ok(()) } else { Err(format!("{lost} gradients are not finite")) }
}

fn no_token(gpu: &Gpu) -> Result<(), String> {
    let shape = Shape { t: 3, d: 8, v: 20 };
    let mut given = Given::new(shape, gpu.seed, 1.0);
    given.targets = vec![1, 20, IGNORE];
    let made = run(gpu, &given, shape, 3, DType::F32)?;
    let rows: Vec<bool> = made.d_h.chunks(8).map(|row| row.iter().all(|x| x.is_nan())).collect();
    let losses: Vec<bool> = made.losses.iter().map(|loss| loss.is_nan()).collect();
    let zeros = made.d_h[16..].iter().all(|x| *x == 0.0) && made.losses[2] == 0.0;
    if rows == [false, true, false] && losses == rows && made.total.is_nan() && zeros {
        return Ok(());
    }
    Err(format!("losses {:?}, gradients {:?}", made.losses, made.d_h))
}

fn refusals(gpu: &Gpu) -> Result<(), String> {
    let shape = Shape { t: 2, d: 8, v: 20 };
    let [h, w, targets, room] = [32, 320, 8, 79].map(|bytes| gpu.upload(&vec![0; bytes]));
    let (losses, total) = (gpu.guarded(8), gpu.guarded(8));
    let inputs = Inputs { h: h.all(), w: w.all(), targets: targets.all() };
    let to = Losses { losses: losses.slice(), total: total.slice() };
    let try_it = |inputs, shape| {
        let kernels = gpu.cross_entropy();
        let said = kernels.evaluate(&gpu.stream, gpu.gemm(), inputs, to, room.all(), shape);
        said.err().map_or_else(|| "nothing".to_owned(), |error| error.to_string())
    };
    let short = Inputs { w: w.slice(0..318), ..inputs };
    let found = [
        (try_it(inputs, shape), "room for logits of 79 bytes, want at least 80 for a row"),
        (try_it(short, shape), "cross entropy evaluate: w has 318 bytes, want 320"),
    ];
    match found.iter().find(|(said, wanted)| !said.contains(wanted)) {
        None => Ok(()),
        Some((said, wanted)) => Err(format!("{said:?}, want {wanted:?}")),
    }
}

const WHOLE: &str = "cross entropy 70x64x256 70 at once F32";

pub(crate) static MUTANTS: &[Mutant] = &[
    mutant(
        "warps are added before they are there",
        "cross_entropy_rows",
        ("bar.sync", 0, GONE),
        (WHOLE, "race"),
    ),
    mutant(
        "the largest is the smallest",
        "cross_entropy_rows",
        ("max.f32", 0, Change::To("min.f32")),
        ("cross entropy of large logits", ""),
    ),
    mutant(
        "the target is added, where it is a fourth column",
        "cross_entropy_rows",
        ("sub.f32", 58, Change::To("add.f32")),
        (WHOLE, "d_h["),
    ),
    mutant(
        "threads are added before they are there",
        "cross_entropy_total",
        ("bar.sync", 0, GONE),
        (WHOLE, "race"),
    ),
];
