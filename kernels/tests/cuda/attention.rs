//! Attention against plain loops in f64 over the very numbers, and against the CPU's.

use shoal_kernels::attention::{self as cpu, AttentionShape};
use shoal_kernels::compare::Random;
use shoal_kernels::cuda::Slice;
use shoal_kernels::cuda::attention::{Gradients, Inputs, Outputs, Shape};
use shoal_kernels::tensor::{DType, Tensor};

use super::gpu::{Case, Gpu, bf16s, f32s, same_bytes};
use super::honest::{Change, GONE, Mutant, mutant};

/// Heads of DeepSeek's size and of the small presets; others, down to one column; one token, whole blocks, one token
/// more and less; nothing.
const SHAPES: [Shape; 13] = [
    shape(1, 128, 1, (128, 64, 128)),
    shape(2, 65, 2, (128, 64, 128)),
    shape(1, 129, 1, (72, 64, 64)),
    shape(1, 193, 2, (32, 16, 32)),
    shape(3, 64, 2, (32, 16, 32)),
    shape(2, 63, 3, (24, 0, 16)),
    shape(1, 70, 2, (3, 4, 5)),
    shape(3, 1, 2, (32, 16, 32)),
    shape(1, 33, 1, (1, 0, 1)),
    shape(0, 4, 2, (32, 16, 32)),
    // What `.ci/cuda-predicted` counts, beside the first: one and two blocks of queries.
    shape(1, 256, 1, (128, 64, 128)),
    shape(1, 128, 1, (32, 16, 32)),
    shape(1, 256, 1, (32, 16, 32)),
];

const fn shape(
    sequences: usize,
    tokens: usize,
    heads: usize,
    (nope, rope, value): (usize, usize, usize),
) -> Shape {
    Shape { sequences, tokens, heads, nope, rope, value, scale: 0.17 }
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for s in SHAPES {
        let Shape { sequences, tokens, heads, nope, rope, value, .. } = s;
        let size = format!("{sequences}x{tokens} {heads} heads {nope}+{rope}x{value}");
        cases.push(Case::new(format!("attention forward {size}"), move |gpu| forward(gpu, &s)));
        cases.push(Case::new(format!("attention backward {size}"), move |gpu| backward(gpu, &s)));
    }
    cases.push(Case::new("attention large scores", large_scores));
    cases.push(Case::new("attention keeps sequences and later tokens apart", apart));
    cases.push(Case::new("attention refuses what does not fit", refusals));
    cases
}

/// Numbers, and the bytes that the device gets.
struct Numbers {
    tensor: Tensor,
    wide: Vec<f64>,
}

impl Numbers {
    fn new(rows: usize, cols: usize, values: &[f32]) -> Self {
        let tensor = Tensor::from_f32(DType::Bf16, &[rows, cols], values);
        let wide = tensor.to_f32().into_iter().map(f64::from).collect();
        Self { tensor, wide }
    }
}

/// The same on the CPU, where a head's key is one piece.
fn joined(s: &Shape) -> AttentionShape {
    let Shape { sequences, tokens, heads, nope, rope, value, scale } = *s;
    AttentionShape { sequences, tokens, heads, qk_dim: nope + rope, v_dim: value, scale }
}

/// Projections as the device reads them, and q, k, v and `d_o` as the CPU does.
struct Projections {
    kv: Tensor,
    k_rope: Tensor,
    q: Numbers,
    k: Numbers,
    v: Numbers,
    d_o: Numbers,
}

/// A matrix whose columns are, head by head, those that `of` names: its part, and the width and first column there.
fn columns(s: &Shape, width: usize, of: impl Fn(usize, usize, usize) -> f32) -> Numbers {
    let (rows, cols) = (s.sequences * s.tokens, s.heads * width);
    let at = |i: usize| of(i / cols, i % cols / width, i % width);
    Numbers::new(rows, cols, &(0..rows * cols).map(at).collect::<Vec<f32>>())
}

impl Projections {
    fn new(s: &Shape, seed: u64, size: f32) -> Self {
        let mut random = Random::new(seed ^ s.tokens as u64);
        let rows = s.sequences * s.tokens;
        let mut numbers = |cols: usize| {
            let values: Vec<f32> = random.normal(rows * cols).iter().map(|x| x * size).collect();
            Numbers::new(rows, cols, &values)
        };
        let q = numbers(s.heads * (s.nope + s.rope));
        let kv = numbers(s.heads * (s.nope + s.value)).tensor;
        let (k_rope, d_o) = (numbers(s.rope).tensor, numbers(s.heads * s.value));
        Self::of(s, q, (kv, k_rope), d_o)
    }

    fn of(s: &Shape, q: Numbers, (kv, k_rope): (Tensor, Tensor), d_o: Numbers) -> Self {
        let (of_kv, of_rope) = (kv.to_f32(), k_rope.to_f32());
        let kv_at = |row: usize, head: usize, i: usize| {
            of_kv[(row * s.heads + head) * (s.nope + s.value) + i]
        };
        let k = columns(s, s.nope + s.rope, |row, head, i| match i.checked_sub(s.nope) {
            None => kv_at(row, head, i),
            Some(i) => of_rope[row * s.rope + i],
        });
        let v = columns(s, s.value, |row, head, i| kv_at(row, head, s.nope + i));
        Self { kv, k_rope, q, k, v, d_o }
    }

    fn wide(&self) -> [&[f64]; 4] {
        [&self.q.wide, &self.k.wide, &self.v.wide, &self.d_o.wide]
    }
}

/// What plain loops give, and beside each result the sum of its terms' magnitudes.
struct Plain {
    o: Vec<(f64, f64)>,
    lse: Vec<f64>,
    dq: Vec<(f64, f64)>,
    dk: Vec<(f64, f64)>,
    dv: Vec<(f64, f64)>,
}

/// One head of one sequence, where its rows are.
struct Task {
    s: AttentionShape,
    head: usize,
    sequence: usize,
}

impl Task {
    fn row(&self, token: usize, dim: usize) -> std::ops::Range<usize> {
        let at = (self.sequence * self.s.tokens + token) * self.s.heads + self.head;
        at * dim..(at + 1) * dim
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(sums: &mut [(f64, f64)], factor: f64, terms: &[f64]) {
    for ((sum, room), term) in sums.iter_mut().zip(terms) {
        *sum += factor * term;
        *room += (factor * term).abs();
    }
}

/// Forward, and backward with the outputs `o` that are given, which were rounded.
fn plain([q, k, v, d_o]: [&[f64]; 4], o: Option<&[f64]>, s: &AttentionShape) -> Plain {
    let none = |x: &[f64]| vec![(0.0, 0.0); x.len()];
    let rows = s.sequences * s.tokens;
    let mut plain =
        Plain { o: none(v), lse: vec![0.0; s.heads * rows], dq: none(q), dk: none(k), dv: none(v) };
    let scale = f64::from(s.scale);
    for at in 0..s.heads * s.sequences {
        let task = Task { s: *s, head: at / s.sequences, sequence: at % s.sequences };
        for query in 0..s.tokens {
            let (wide, narrow) = (task.row(query, s.qk_dim), task.row(query, s.v_dim));
            let score = |key| scale * dot(&q[wide.clone()], &k[task.row(key, s.qk_dim)]);
            let scores: Vec<f64> = (0..=query).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = max + scores.iter().map(|score| (score - max).exp()).sum::<f64>().ln();
            plain.lse[at * s.tokens + query] = lse;
            let delta = o.map(|o| dot(&o[narrow.clone()], &d_o[narrow.clone()]));
            for (key, score) in scores.iter().enumerate() {
                let (keys, values) = (task.row(key, s.qk_dim), task.row(key, s.v_dim));
                let weight = (score - lse).exp();
                add(&mut plain.o[narrow.clone()], weight, &v[values.clone()]);
                if let Some(delta) = delta {
                    let d_weight = dot(&d_o[narrow.clone()], &v[values.clone()]);
                    let d_score = scale * weight * (d_weight - delta);
                    add(&mut plain.dv[values], weight, &d_o[narrow.clone()]);
                    add(&mut plain.dq[wide.clone()], d_score, &k[keys.clone()]);
                    add(&mut plain.dk[keys], d_score, &q[wide.clone()]);
                }
            }
        }
    }
    plain
}

/// The factor of every term (a weight, or the gradient of a score) is rounded to BF16, within 2^-9 of itself, and so is
/// the sum; twice that, for what FP32 and the device's powers of two add. Where a gradient of a score is the difference
/// of two equal FP32 sums of some 10, their rounding is left, times some 3 of the row it meets.
fn within(what: &str, got: &[f32], want: &[(f64, f64)]) -> Result<(), String> {
    for (at, (got, (want, room))) in got.iter().zip(want).enumerate() {
        let (error, bound) = ((f64::from(*got) - want).abs(), (room + want.abs()) / 256.0 + 1e-5);
        if error.is_nan() || error > bound {
            return Err(format!("{what}[{at}] is {got}, want {want} within {bound}"));
        }
    }
    Ok(())
}

/// Sums of up to some hundred FP32 terms of about 1, and two functions within 2 ulp.
fn same_lse(got: &[f32], want: &[f64]) -> Result<(), String> {
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let bound = 1e-5 * (1.0 + want.abs());
        let error = (f64::from(*got) - want).abs();
        if error.is_nan() || error > bound {
            return Err(format!("lse[{at}] is {got}, want {want} within {bound}"));
        }
    }
    Ok(())
}

/// What the device made of q, k and v.
struct Made {
    o: Vec<u8>,
    lse: Vec<u8>,
}

fn run_forward(gpu: &Gpu, given: &Projections, s: &Shape) -> Result<Made, String> {
    let Projections { q, kv, k_rope, d_o, .. } = given;
    let [q, kv, k_rope] = [&q.tensor, kv, k_rope].map(|x| gpu.upload(x.bytes()));
    let o = gpu.guarded(d_o.tensor.bytes().len());
    let lse = gpu.guarded(4 * s.sequences * s.tokens * s.heads);
    let inputs = Inputs { q: q.all(), kv: kv.all(), k_rope: k_rope.all() };
    gpu.attention().forward(&gpu.stream, inputs, (o.slice(), lse.slice()), s).unwrap();
    Ok(Made { o: gpu.result("o", &o)?, lse: gpu.result("lse", &lse)? })
}

fn forward(gpu: &Gpu, s: &Shape) -> Result<(), String> {
    let given = Projections::new(s, gpu.seed, 1.0);
    let made = run_forward(gpu, &given, s)?;
    same_bytes("o, the second time", &run_forward(gpu, &given, s)?.o, &made.o)?;
    let want = plain(given.wide(), None, &joined(s));
    let Projections { q, k, v, .. } = &given;
    let (o, lse) = cpu::forward(&q.tensor, &k.tensor, &v.tensor, &joined(s));
    within("the CPU's o", &o.to_f32(), &want.o)?;
    same_lse(&lse, &want.lse)?;
    within("o", &bf16s(&made.o), &want.o)?;
    same_lse(&f32s(&made.lse), &want.lse)
}

/// dq, dk, dv, the last two put together of what the device wrote.
fn run_backward(
    gpu: &Gpu,
    given: &Projections,
    (o, lse): (&Tensor, &[f32]),
    s: &Shape,
) -> Result<[Vec<f32>; 3], String> {
    let Projections { q, kv, k_rope, d_o, .. } = given;
    let heads = s.sequences * s.tokens * s.heads;
    let (dq, d_kv) = (gpu.guarded(q.tensor.bytes().len()), gpu.guarded(kv.bytes().len()));
    let (dk_rope, delta) = (gpu.guarded(2 * heads * s.rope), gpu.guarded(4 * heads));
    let [q, kv, k_rope] = [&q.tensor, kv, k_rope].map(|x| gpu.upload(x.bytes()));
    let (o, d_o) = (gpu.upload(o.bytes()), gpu.upload(d_o.tensor.bytes()));
    let lse = gpu.upload(bytemuck::cast_slice(lse));
    let inputs = Inputs { q: q.all(), kv: kv.all(), k_rope: k_rope.all() };
    let outputs = Outputs { o: o.all(), lse: lse.all(), d_o: d_o.all() };
    let gradients = Gradients {
        dq: dq.slice(),
        d_kv: d_kv.slice(),
        dk_rope: dk_rope.slice(),
        delta: delta.slice(),
    };
    gpu.attention().backward(&gpu.stream, inputs, outputs, gradients, s).unwrap();
    gpu.result("delta", &delta)?;
    let dq = bf16s(&gpu.result("dq", &dq)?);
    let d_kv = bf16s(&gpu.result("d_kv", &d_kv)?);
    let dk_rope = bf16s(&gpu.result("dk_rope", &dk_rope)?);
    let (qk, kv) = (s.nope + s.rope, s.nope + s.value);
    let dk = (0..heads * qk).map(|i| match (i % qk).checked_sub(s.nope) {
        None => d_kv[i / qk * kv + i % qk],
        Some(of_rope) => dk_rope[i / qk * s.rope + of_rope],
    });
    let dv = (0..heads * s.value).map(|i| d_kv[i / s.value * kv + s.nope + i % s.value]);
    Ok([dq, dk.collect(), dv.collect()])
}

fn backward(gpu: &Gpu, s: &Shape) -> Result<(), String> {
    let given = Projections::new(s, gpu.seed, 1.0);
    let Projections { q, k, v, d_o, .. } = &given;
    let (o, lse) = cpu::forward(&q.tensor, &k.tensor, &v.tensor, &joined(s));
    let got = run_backward(gpu, &given, (&o, &lse), s)?;
    let again = run_backward(gpu, &given, (&o, &lse), s)?;
    let o_wide: Vec<f64> = o.to_f32().into_iter().map(f64::from).collect();
    let want = plain(given.wide(), Some(&o_wide), &joined(s));
    let [q, k, v, d_o] = [q, k, v, d_o].map(|x| &x.tensor);
    let (dq, dk, dv) = cpu::backward(q, k, v, &o, &lse, d_o, &joined(s));
    let results = ["dq", "dk", "dv"].into_iter().zip(&got).zip(&again);
    let wants = [(want.dq, dq), (want.dk, dk), (want.dv, dv)];
    for (((what, got), again), (want, of_cpu)) in results.zip(wants) {
        let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        same_bytes(&format!("{what}, the second time"), &bytes(again), &bytes(got))?;
        within(&format!("the CPU's {what}"), &of_cpu.to_f32(), &want)?;
        within(what, got, &want)?;
    }
    Ok(())
}

/// Scores of some thousands: nothing overflows, and weights are those of a maximum.
fn large_scores(gpu: &Gpu) -> Result<(), String> {
    let s = shape(1, 100, 1, (32, 16, 32));
    let given = Projections::new(&s, gpu.seed, 40.0);
    let made = run_forward(gpu, &given, &s)?;
    let want = plain(given.wide(), None, &joined(&s));
    same_lse(&f32s(&made.lse), &want.lse)?;
    let Projections { q, k, v, .. } = &given;
    let (o, lse) = cpu::forward(&q.tensor, &k.tensor, &v.tensor, &joined(&s));
    let gradients = run_backward(gpu, &given, (&o, &lse), &s)?;
    let all = gradients.into_iter().chain([bf16s(&made.o)]).flatten();
    let lost = all.filter(|x| !x.is_finite()).count();
    if lost == 0 { Ok(()) } else { Err(format!("{lost} results are not finite")) }
}

/// A NaN in the last token of a sequence: that token's row shows it, the next sequence's rows are the same bytes, and
/// so are those of blocks of queries before.
fn apart(gpu: &Gpu) -> Result<(), String> {
    let s = shape(2, 140, 2, (32, 16, 32));
    let given = Projections::new(&s, gpu.seed, 1.0);
    let before = run_forward(gpu, &given, &s)?;
    let mut poisoned = given;
    poisoned.kv.write_rows(139, &[f32::NAN; 128]);
    poisoned.k_rope.write_rows(139, &[f32::NAN; 16]);
    let after = run_forward(gpu, &poisoned, &s)?;
    let row = 2 * s.heads * s.value;
    if !bf16s(&after.o[139 * row..140 * row]).iter().all(|x| x.is_nan()) {
        return Err("the last token does not see itself".to_owned());
    }
    same_bytes("the first 128 tokens", &after.o[..128 * row], &before.o[..128 * row])?;
    same_bytes("the next sequence", &after.o[140 * row..], &before.o[140 * row..])
}

/// What was given, and words of what is said of it.
fn refusals(gpu: &Gpu) -> Result<(), String> {
    let s = shape(1, 4, 1, (32, 16, 32));
    let [q, kv, k_rope] = [384, 512, 128].map(|bytes| gpu.upload(&vec![0; bytes]));
    let (o, lse) = (gpu.guarded(256), gpu.guarded(16));
    let inputs = Inputs { q: q.all(), kv: kv.all(), k_rope: k_rope.all() };
    let try_it = |inputs: Inputs<'_>, o: Slice<'_>, s: &Shape| {
        let said = gpu.attention().forward(&gpu.stream, inputs, (o, lse.slice()), s);
        said.err().map_or_else(|| "nothing".to_owned(), |error| error.to_string())
    };
    let short = Inputs { kv: inputs.kv.slice(0..510), ..inputs };
    let wider = Shape { nope: 177, ..s };
    let [q, kv] = [177 + 16, 177 + 32].map(|columns| gpu.upload(&vec![0; 8 * columns]));
    let large = Inputs { q: q.all(), kv: kv.all(), ..inputs };
    let found = [
        (try_it(short, o.slice(), &s), "attention forward: kv has 510 bytes, want 512"),
        (try_it(inputs, inputs.q.slice(0..256), &s), "attention forward: o overlaps with q"),
        (try_it(large, o.slice(), &wider), "want at most 192 and 128"),
    ];
    for (said, wanted) in found {
        if !said.contains(wanted) {
            return Err(format!("{said:?}, want {wanted:?}"));
        }
    }
    Ok(())
}

const FORWARD: &str = "attention forward 1x193 2 heads 32+16x32";
const BACKWARD: &str = "attention backward 1x193 2 heads 32+16x32";

pub(crate) static MUTANTS: &[Mutant] = &[
    mutant(
        "keys are multiplied before they are there",
        "attention_forward_48",
        ("bar.sync", 0, GONE),
        (FORWARD, "race"),
    ),
    mutant(
        "keys are overwritten while they are multiplied",
        "attention_forward_48",
        ("bar.sync", 1, GONE),
        (FORWARD, "race"),
    ),
    mutant(
        "values that have not arrived",
        "attention_forward_48",
        ("wait_group 0", 1, Change::To("wait_group 1")),
        (FORWARD, "an asynchronous copy"),
    ),
    mutant(
        "two halves of a fragment change places",
        "attention_forward_48",
        ("mma.sync", 0, Change::SwapFrom(5)),
        (FORWARD, "o["),
    ),
    mutant(
        "keys are read turned",
        "attention_query_gradient_48",
        ("x4.shared", 0, Change::To("x4.trans.shared")),
        (BACKWARD, "dq["),
    ),
    mutant(
        "queries that come by are read as they lie",
        "attention_key_value_gradient_48",
        (".trans", 0, Change::To("")),
        (BACKWARD, "dv["),
    ),
    mutant(
        "a place is filled while it is multiplied",
        "attention_key_value_gradient_48",
        ("bar.sync", 0, GONE),
        (BACKWARD, "race"),
    ),
    mutant(
        "the second warp's sums are taken before they are given",
        "attention_query_gradient_48",
        ("bar.sync", 2, GONE),
        (BACKWARD, "race"),
    ),
];
