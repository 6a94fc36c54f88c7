//! Pairs that are turned in place, against the CPU's cutting and turning: the same bytes.

use shoal_kernels::Tensor;
use shoal_kernels::compare::Random;
use shoal_kernels::cuda::rope::Heads;
use shoal_kernels::mla::{self, HeadShape, Yarn};
use shoal_kernels::tensor::DType;

use super::gpu::{Case, Gapped, Gpu, bf16s, f32_bytes, refused, same};
use super::honest::{Change, Mutant, mutant};

/// Tokens, of a sequence; heads, plain, rotated and value columns of each.
const SIZES: [(usize, usize, usize, usize, usize, usize); 6] = [
    (1, 1, 1, 0, 2, 1),
    (0, 4, 2, 8, 8, 8),
    (10, 5, 3, 16, 8, 12),
    (9, 9, 2, 128, 64, 128),
    (12, 4, 2, 5, 10, 7),
    (6, 100, 5, 24, 32, 16),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (t, tokens_per_sequence, heads, nope, rope, value) in SIZES {
        for yarn in [None, Some(YARN)] {
            let shape =
                HeadShape { heads, nope, rope, value, tokens_per_sequence, rope_theta: 1e4, yarn };
            let kind = if yarn.is_some() { " yarn" } else { "" };
            let name = |pass: &str| format!("rope {pass}{kind} {t}x{heads}x{nope}+{rope}");
            cases.push(Case::new(name("forward"), move |gpu| forward(gpu, t, &shape)));
            cases.push(Case::new(name("backward"), move |gpu| backward(gpu, t, &shape)));
        }
    }
    cases.push(Case::new("rope refuses", refuses));
    cases
}

const YARN: Yarn = Yarn {
    factor: 40.0,
    beta_fast: 32.0,
    beta_slow: 1.0,
    original_positions: 4096.0,
    magnitude: 1.25,
};

/// The rotated columns of queries or keys.
fn heads(t: usize, s: &HeadShape) -> Heads {
    let qk = s.nope + s.rope;
    Heads {
        tokens: t,
        heads: s.heads,
        cols: s.rope,
        token_stride: s.heads * qk,
        head_stride: qk,
        tokens_per_sequence: s.tokens_per_sequence,
    }
}

fn random(gpu: &Gpu, t: usize, cols: usize) -> Tensor {
    let mut random = Random::new(gpu.seed ^ (t * 769 + cols) as u64);
    let mut x = random.normal(t * cols);
    if let Some(x) = x.get_mut(3) {
        *x = -0.0;
    }
    Tensor::from_f32(DType::Bf16, &[t, cols], &x)
}

fn forward(gpu: &Gpu, t: usize, s: &HeadShape) -> Result<(), String> {
    let (kernels, qk) = (gpu.rope(), s.nope + s.rope);
    let (q, k_rope) = (random(gpu, t, s.heads * qk), random(gpu, t, s.rope));
    let kv = random(gpu, t, s.heads * (s.nope + s.value));
    let (want_q, want_k, _) = mla::split_forward(&q, &kv, &k_rope, s);
    let turns = gpu.upload(&f32_bytes(&s.turns(s.tokens_per_sequence)));

    let device_q = gpu.guarded(q.bytes().len());
    gpu.stream.upload(device_q.slice(), q.bytes()).unwrap();
    let at = if t == 0 { 0 } else { 2 * s.nope };
    let rotated = device_q.slice().slice(at..q.bytes().len());
    kernels.turn(&gpu.stream, rotated, turns.all(), heads(t, s)).unwrap();
    same("q", &bf16s(&gpu.result("q", &device_q)?), &want_q.to_f32())?;

    // The one key as a column range of a wider matrix, as a projection leaves it.
    let device_k = Gapped::holding(gpu, &k_rope, s.rope + 6);
    let one = Heads { heads: 1, token_stride: s.rope + 6, head_stride: s.rope, ..heads(t, s) };
    kernels.turn(&gpu.stream, device_k.rows().slice, turns.all(), one).unwrap();
    let of_first_head: Vec<f32> = want_k
        .to_f32()
        .chunks_exact(s.heads * qk)
        .flat_map(|row| row[s.nope..qk].to_vec())
        .collect();
    same("k", &bf16s(&device_k.result(gpu, "k")?), &of_first_head)
}

fn backward(gpu: &Gpu, t: usize, s: &HeadShape) -> Result<(), String> {
    let (kernels, qk) = (gpu.rope(), s.nope + s.rope);
    let (dq, dv) = (random(gpu, t, s.heads * qk), random(gpu, t, s.heads * s.value));
    let (want_dq, _, want_dk_rope) = mla::split_backward(&dq, &dq, &dv, s);
    let turns = gpu.upload(&f32_bytes(&s.turns(s.tokens_per_sequence)));
    let at = if t == 0 { 0 } else { 2 * s.nope };

    let out = Gapped::new(gpu, (t, s.rope), s.rope + 6);
    let device_dq = gpu.guarded(dq.bytes().len());
    gpu.stream.upload(device_dq.slice(), dq.bytes()).unwrap();
    let rotated = device_dq.slice().slice(at..dq.bytes().len());
    let (stream, all) = (&gpu.stream, heads(t, s));
    kernels.sum_back(stream, (rotated, turns.all()), out.rows(), all).unwrap();
    same("dk_rope", &bf16s(&out.result(gpu, "dk_rope")?), &want_dk_rope.to_f32())?;
    kernels.turn_back(stream, rotated, turns.all(), all).unwrap();
    same("dq", &bf16s(&gpu.result("dq", &device_dq)?), &want_dq.to_f32())
}

fn refuses(gpu: &Gpu) -> Result<(), String> {
    let kernels = gpu.rope();
    let buffer = gpu.upload(&[0; 1024]);
    let part = |at: usize, bytes: usize| buffer.slice(at..at + bytes);
    let good = Heads {
        tokens: 3,
        heads: 2,
        cols: 8,
        token_stride: 16,
        head_stride: 8,
        tokens_per_sequence: 3,
    };
    let turn = |x, turns, heads| kernels.turn(&gpu.stream, x, turns, heads);
    let (x, turns) = (part(0, 96), part(512, 96));
    turn(x, turns, good).unwrap();
    refused(turn(x, turns, Heads { cols: 7, ..good }), "7 columns cannot be turned")?;
    refused(turn(x, turns, Heads { token_stride: 15, ..good }), "do not fit")?;
    refused(turn(part(0, 94), turns, good), "x has 94 bytes")?;
    refused(turn(x, part(512, 92), good), "turns have 92 bytes")?;
    refused(turn(x, part(64, 96), good), "x overlaps with turns")
}

pub(crate) static MUTANTS: &[Mutant] = &[
    mutant(
        "a token is turned by its head's number",
        "rope_turn",
        ("rope_turn_param_7]", 0, Change::To("rope_turn_param_3]")),
        ("rope forward 9x2x128+64", "q["),
    ),
    mutant(
        "a key's gradient is turned the other way",
        "rope_sum_back",
        ("sub.rn.f32", 0, Change::Swap),
        ("rope backward 9x2x128+64", "dk_rope["),
    ),
];
