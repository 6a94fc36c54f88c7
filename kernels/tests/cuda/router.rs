//! The router: scores against FP64, choices and gates against the CPU's rule on the very scores, gradients against the CPU.

use shoal_kernels::compare::Random;
use shoal_kernels::cuda::router::{Back, Gradients, Routing, Size};
use shoal_kernels::router::{self as cpu, RouterShape};
use shoal_kernels::tensor::{DType, Tensor};

use super::gpu::{Case, Gpu, Guarded, f32s, same_bytes};
use super::honest::{Change, GONE, Mutant, mutant};

const TINY: RouterShape = RouterShape {
    experts: 16,
    top_k: 4,
    groups: 4,
    groups_kept: 2,
    normalise: true,
    scaling: 2.5,
    tokens_per_sequence: 43,
};

/// Tokens, width, shape: tiny's; groups of one; one group; more experts than lanes, as DeepSeek-V3; gates that are not
/// normalised; one choice of three; nothing.
fn sizes() -> [(usize, usize, RouterShape); 8] {
    [
        (129, 48, TINY),
        (12, 7, RouterShape { groups: 16, groups_kept: 5, tokens_per_sequence: 6, ..TINY }),
        (
            10,
            33,
            RouterShape {
                experts: 64,
                top_k: 6,
                groups: 1,
                groups_kept: 1,
                tokens_per_sequence: 10,
                ..TINY
            },
        ),
        (
            6,
            70,
            RouterShape {
                experts: 256,
                top_k: 8,
                groups: 8,
                groups_kept: 4,
                tokens_per_sequence: 3,
                ..TINY
            },
        ),
        // DeepSeek-V3's, with sums long enough for `.ci/cuda-predicted`.
        (
            128,
            256,
            RouterShape {
                experts: 256,
                top_k: 8,
                groups: 8,
                groups_kept: 4,
                tokens_per_sequence: 64,
                ..TINY
            },
        ),
        (33, 16, RouterShape { groups_kept: 4, normalise: false, tokens_per_sequence: 33, ..TINY }),
        (
            6,
            9,
            RouterShape {
                experts: 3,
                top_k: 1,
                groups: 1,
                groups_kept: 1,
                tokens_per_sequence: 2,
                ..TINY
            },
        ),
        (0, 8, TINY),
    ]
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (t, d, s) in sizes() {
        let RouterShape { experts, top_k, groups, groups_kept, .. } = s;
        let size = format!("{t}x{d} {top_k} of {experts}, {groups_kept} of {groups} groups");
        cases.push(Case::new(format!("router forward {size}"), move |gpu| forward(gpu, t, d, &s)));
        for weight in [0.0, 0.7] {
            let name = format!("router backward {size} balance {weight}");
            cases.push(Case::new(name, move |gpu| backward(gpu, (t, d), &s, weight)));
        }
    }
    cases.push(Case::new("router ties go to the lower expert", ties));
    cases.push(Case::new("router closed groups stay closed", closed));
    cases.push(Case::new("router a poisoned token gets distinct experts", poisoned));
    cases.push(Case::new("router refuses what it has no room for", refusals));
    cases
}

struct Given {
    x: Tensor,
    w: Vec<f32>,
    bias: Vec<f32>,
}

impl Given {
    fn new(t: usize, d: usize, s: &RouterShape, seed: u64) -> Self {
        let mut random = Random::new(seed ^ (t * 7 + s.experts) as u64);
        let x = Tensor::from_f32(DType::Bf16, &[t, d], &random.normal(t * d));
        let w = random.normal(s.experts * d).iter().map(|w| w / (d as f32).sqrt()).collect();
        Self { x, w, bias: random.uniform(s.experts, -0.3, 0.1) }
    }
}

/// Room on the device for what forward decides.
struct Decided {
    scores: Guarded,
    chosen: Guarded,
    gates: Guarded,
    counts: Guarded,
    load: Guarded,
    balance: Guarded,
}

impl Decided {
    fn new(gpu: &Gpu, t: usize, s: &RouterShape) -> Self {
        Self {
            scores: gpu.guarded(4 * t * s.experts),
            chosen: gpu.guarded(4 * t * s.top_k),
            gates: gpu.guarded(4 * t * s.top_k),
            counts: gpu.guarded(4 * s.experts),
            load: gpu.guarded(4 * t / s.tokens_per_sequence * s.experts),
            balance: gpu.guarded(8),
        }
    }

    fn slices(&self) -> Routing<'_> {
        Routing {
            scores: self.scores.slice(),
            chosen: self.chosen.slice(),
            gates: self.gates.slice(),
            counts: self.counts.slice(),
            load: self.load.slice(),
            balance: self.balance.slice(),
        }
    }

    /// As the CPU has it.
    fn read(&self, gpu: &Gpu) -> Result<cpu::Routing, String> {
        let balance = gpu.result("balance", &self.balance)?;
        gpu.result("load", &self.load)?;
        let counts = u32s(&gpu.result("counts", &self.counts)?);
        Ok(cpu::Routing {
            scores: f32s(&gpu.result("scores", &self.scores)?),
            chosen: u32s(&gpu.result("chosen", &self.chosen)?),
            gates: f32s(&gpu.result("gates", &self.gates)?),
            counts: counts.into_iter().map(u64::from).collect(),
            balance: f64::from_le_bytes(balance.try_into().unwrap()),
        })
    }
}

pub(crate) fn u32s(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

fn run(gpu: &Gpu, given: &Given, s: &RouterShape) -> Result<cpu::Routing, String> {
    let (t, d) = (given.x.rows(), given.x.cols());
    let decided = Decided::new(gpu, t, s);
    let x = gpu.upload(given.x.bytes());
    let [w, bias] = [&given.w, &given.bias].map(|x| gpu.upload(bytemuck::cast_slice(x)));
    let terms = gpu.guarded(4 * t);
    let (read, size) = ((x.all(), w.all(), bias.all()), Size { t, d });
    let out = decided.slices();
    gpu.router().forward(&gpu.stream, read, out, terms.slice(), size, s).unwrap();
    gpu.result("terms", &terms)?;
    decided.read(gpu)
}

/// The choice of a token from its scores, by the CPU's rule: `decide` squashes logits, so that the rule is written out
/// here once more.
fn plain_choice(scores: &[f32], bias: &[f32], s: &RouterShape) -> Vec<u32> {
    let biased: Vec<f32> = scores.iter().zip(bias).map(|(score, bias)| score + bias).collect();
    let best = |values: &[f32], open: &dyn Fn(usize) -> bool| {
        let mut order: Vec<usize> = (0..values.len()).filter(|i| open(*i)).collect();
        order.sort_by(|a, b| values[*b].partial_cmp(&values[*a]).unwrap().then(a.cmp(b)));
        order
    };
    let size = s.experts / s.groups;
    let group = |group: &[f32]| match best(group, &|_| true)[..] {
        [first, second, ..] => group[first] + group[second],
        [only] => group[only],
        [] => f32::NEG_INFINITY,
    };
    let groups: Vec<f32> = biased.chunks(size).map(group).collect();
    let kept = &best(&groups, &|_| true)[..s.groups_kept];
    let chosen = best(&biased, &|expert| kept.contains(&(expert / size)));
    chosen[..s.top_k].iter().map(|expert| *expert as u32).collect()
}

fn forward(gpu: &Gpu, t: usize, d: usize, s: &RouterShape) -> Result<(), String> {
    let given = Given::new(t, d, s, gpu.seed);
    let got = run(gpu, &given, s)?;
    let of_cpu = cpu::forward(&given.x, &given.w, &given.bias, s);
    let x = given.x.to_f32();
    for (at, (got, of_cpu)) in got.scores.iter().zip(&of_cpu.scores).enumerate() {
        let (x, w) = (&x[at / s.experts * d..][..d], &given.w[at % s.experts * d..][..d]);
        let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
        let (logit, room) = terms.fold((0.0, 0.0), |(a, b), x| (a + x, b + f64::abs(x)));
        let want = 1.0 / (1.0 + f64::exp(-logit));
        // FP32 sums of D terms, each addition within 2^-24; the slope of the sigmoid is at most 1/4. And the sigmoid
        // itself, within some ulp.
        let bound = d as f64 * room * 2_f64.powi(-26) + 1e-6 * want;
        for (who, score) in [("", got), (" of the CPU", of_cpu)] {
            let error = (f64::from(*score) - want).abs();
            if error.is_nan() || error > bound {
                return Err(format!("score {at}{who} is {score}, want {want} within {bound}"));
            }
        }
    }
    let mut counts = vec![0; s.experts];
    let tokens = got.scores.chunks(s.experts).zip(got.chosen.chunks(s.top_k));
    for (token, ((scores, chosen), gates)) in tokens.zip(got.gates.chunks(s.top_k)).enumerate() {
        let want = plain_choice(scores, &given.bias, s);
        if chosen != want {
            return Err(format!("token {token} chose {chosen:?}, want {want:?}"));
        }
        let of_chosen = chosen.iter().map(|expert| scores[*expert as usize]);
        let sum = if s.normalise { of_chosen.clone().sum::<f32>() + 1e-20 } else { 1.0 };
        let factor = s.scaling / sum;
        let want: Vec<f32> = of_chosen.map(|score| score * factor).collect();
        if gates != want {
            return Err(format!("token {token} has gates {gates:?}, want {want:?}"));
        }
        for expert in chosen {
            counts[*expert as usize] += 1;
        }
    }
    if got.counts != counts {
        return Err(format!("counts are {:?}, want {counts:?}", got.counts));
    }
    // Terms are quotients of FP32 sums of E scores; a count may differ where two scores are equal within that.
    let bound = 1e-5 * (1.0 + of_cpu.balance);
    if (got.balance - of_cpu.balance).abs() > bound {
        return Err(format!("the balance loss is {}, the CPU's {}", got.balance, of_cpu.balance));
    }
    Ok(())
}

fn backward(gpu: &Gpu, (t, d): (usize, usize), s: &RouterShape, weight: f32) -> Result<(), String> {
    let given = Given::new(t, d, s, gpu.seed);
    let Given { x, w, bias } = &given;
    let decided = Decided::new(gpu, t, s);
    let mut random = Random::new(gpu.seed ^ 5);
    let (d_gates, before) = (random.normal(t * s.top_k), random.normal(t * d));
    let d_w_before = random.normal(s.experts * d);
    let device_x = gpu.upload(x.bytes());
    let [device_w, device_bias, device_d_gates] =
        [w, bias, &d_gates].map(|x| gpu.upload(bytemuck::cast_slice(x)));
    let terms = gpu.guarded(4 * t);
    let [dx, d_w] = [&before, &d_w_before].map(|values| {
        let room = gpu.guarded(4 * values.len());
        gpu.stream.upload(room.slice(), bytemuck::cast_slice(values)).unwrap();
        room
    });
    let d_logits = gpu.guarded(4 * t * s.experts);
    let (read, size) = ((device_x.all(), device_w.all(), device_bias.all()), Size { t, d });
    let routing = decided.slices();
    gpu.router().forward(&gpu.stream, read, routing, terms.slice(), size, s).unwrap();
    let back = Back { d_gates: device_d_gates.all(), balance_weight: weight };
    let accumulate = weight != 0.0;
    let out =
        Gradients { dx: dx.slice(), accumulate, d_w: d_w.slice(), d_logits: d_logits.slice() };
    let read = (device_x.all(), device_w.all());
    gpu.router().backward(&gpu.stream, read, routing, back, out, size, s).unwrap();
    gpu.result("d_logits", &d_logits)?;

    // On the CPU from the same decisions, in the same numbers.
    let routing = decided.read(gpu)?;
    let mut want_d_w = d_w_before.clone();
    let back = cpu::Backward { d_gates: &d_gates, balance_weight: weight };
    let want_dx = cpu::backward(x, w, &routing, back, s, &mut want_d_w).to_f32();
    let want_dx = want_dx.iter().zip(&before);
    let want_dx: Vec<f32> =
        want_dx.map(|(dx, before)| if accumulate { dx + before } else { *dx }).collect();
    let (dx, d_w) = (f32s(&gpu.result("dx", &dx)?), f32s(&gpu.result("d_w", &d_w)?));
    close("dx", &dx, &want_dx)?;
    close("d_w", &d_w, &want_d_w)
}

/// FP32 sums of up to some hundred terms, whose largest are about as large as the largest sum: 2^-24 for each addition.
fn close(what: &str, got: &[f32], want: &[f32]) -> Result<(), String> {
    let largest = want.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let bound = 1e-5 * largest;
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs();
        if error.is_nan() || error > bound {
            return Err(format!("{what}[{at}] is {got}, want {want} within {bound}"));
        }
    }
    Ok(())
}

/// One token whose experts all have one score.
fn equal(gpu: &Gpu, s: RouterShape, bias: Vec<f32>) -> Result<Vec<u32>, String> {
    let x = Tensor::zeros(DType::Bf16, &[1, 3]);
    let given = Given { x, w: vec![0.5; 3 * s.experts], bias };
    let got = run(gpu, &given, &s)?;
    let of_cpu = cpu::forward(&given.x, &given.w, &given.bias, &s);
    if got.chosen != of_cpu.chosen || got.gates != of_cpu.gates {
        return Err(format!("chose {got:?}, the CPU {of_cpu:?}"));
    }
    Ok(got.chosen)
}

fn ties(gpu: &Gpu) -> Result<(), String> {
    let s = RouterShape { groups: 1, groups_kept: 1, tokens_per_sequence: 1, ..TINY };
    let chosen = equal(gpu, s, vec![0.0; 16])?;
    let wide = RouterShape { experts: 96, top_k: 32, ..s };
    let many = equal(gpu, wide, vec![0.0; 96])?;
    let want: Vec<u32> = (0..32).collect();
    if chosen == want[..4] && many == want {
        return Ok(());
    }
    Err(format!("chose {chosen:?} and {many:?}"))
}

fn closed(gpu: &Gpu) -> Result<(), String> {
    let mut bias = vec![-3.0; 16];
    bias[4..12].fill(-2.0);
    let chosen = equal(gpu, RouterShape { tokens_per_sequence: 1, ..TINY }, bias)?;
    if chosen == [4, 5, 6, 7] { Ok(()) } else { Err(format!("chose {chosen:?}")) }
}

/// All scores are NaN; and of another token one score is, that of expert 0.
fn poisoned(gpu: &Gpu) -> Result<(), String> {
    let s = RouterShape { tokens_per_sequence: 1, ..TINY };
    let mut w = vec![1.0; 16];
    w[0] = f32::NAN;
    let x = Tensor::from_f32(DType::Bf16, &[2, 1], &[f32::NAN, 1.0]);
    let given = Given { x, w, bias: vec![0.0; 16] };
    let got = run(gpu, &given, &s)?;
    let of_cpu = cpu::forward(&given.x, &given.w, &given.bias, &s);
    if got.chosen != of_cpu.chosen || !got.gates[..4].iter().all(|gate| gate.is_nan()) {
        return Err(format!("chose {got:?}, the CPU {of_cpu:?}"));
    }
    same_bytes("counts", bytemuck::cast_slice(&got.counts), bytemuck::cast_slice(&of_cpu.counts))
}

fn refusals(gpu: &Gpu) -> Result<(), String> {
    let room = gpu.upload(&[0; 64]);
    let try_it = |s: RouterShape| {
        let all = room.all();
        let out =
            Routing { scores: all, chosen: all, gates: all, counts: all, load: all, balance: all };
        let said =
            gpu.router().forward(&gpu.stream, (all, all, all), out, all, Size { t: 4, d: 1 }, &s);
        said.err().map_or_else(|| "nothing".to_owned(), |error| error.to_string())
    };
    let s = RouterShape { tokens_per_sequence: 4, ..TINY };
    let found = [
        (try_it(RouterShape { experts: 1024, ..s }), "want at most 32 of 512"),
        (try_it(RouterShape { groups: 3, ..s }), "3 groups do not divide 16 experts"),
        (try_it(RouterShape { tokens_per_sequence: 3, ..s }), "want whole sequences of 3"),
        (try_it(s), "router forward: x has 64 bytes, want 8"),
    ];
    match found.iter().find(|(said, wanted)| !said.contains(wanted)) {
        None => Ok(()),
        Some((said, wanted)) => Err(format!("{said:?}, want {wanted:?}")),
    }
}

const FORWARD: &str = "router forward 129x48";
const BACKWARD: &str = "router backward 129x48";

pub(crate) static MUTANTS: &[Mutant] = &[
    mutant(
        "a tile is multiplied before it is there",
        "router_logits",
        ("bar.sync", 0, GONE),
        (FORWARD, "race"),
    ),
    mutant(
        "groups are scored by small scores",
        "router_choose",
        ("setp.gt.f32", 6, Change::To("setp.lt.f32")),
        (FORWARD, "chose"),
    ),
    mutant(
        "an expert is counted once at most",
        "router_choose",
        ("red.global.add", 1, Change::To("red.global.max")),
        (FORWARD, "counts are"),
    ),
    mutant(
        "a tile is overwritten while it is multiplied",
        "router_weight_gradient",
        ("bar.sync", 1, GONE),
        (BACKWARD, "race"),
    ),
    mutant(
        "the slope of the sigmoid is s (1 + s)",
        "router_gradient",
        ("sub.f32", 2, Change::To("add.f32")),
        (BACKWARD, "is "),
    ),
];
