//! The optimizer's pass against the CPU's: the same bytes, whatever the moments and the weight.

use shoal_kernels::adamw::{self, AdamStep, Moment, step_and_forget};
use shoal_kernels::checksum::checksum;
use shoal_kernels::compare::Random;
use shoal_kernels::cuda::adamw::{Average, State, Weight};
use shoal_kernels::cuda::quantise::Shape;
use shoal_kernels::tensor::DType;
use shoal_kernels::{Quantized, ScaleFormat, Tensor, Tiling, router};

use super::gpu::{Case, Gpu, Guarded, Tiles, f32_bytes, f32s, refused, same, same_bytes};
use super::honest::{Change, GONE, Mutant, mutant};

const SIZES: [(usize, usize); 4] = [(1, 1), (0, 8), (129, 132), (20, 257)];

/// What the weight is made into.
#[derive(Clone, Copy, Debug)]
enum Form {
    Master,
    Bf16,
    Fp8(ScaleFormat),
}

const FORMS: [Form; 4] =
    [Form::Master, Form::Bf16, Form::Fp8(ScaleFormat::Pow2), Form::Fp8(ScaleFormat::Fp32)];

const STEP: AdamStep = AdamStep {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    step: 3,
    grad_scale: 0.5,
};
const DECAY: f32 = 0.75;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, cols) in SIZES {
        let shape = Shape { rows, cols };
        for form in FORMS {
            let name = |moments: &str| format!("adamw {moments} {form:?} {rows}x{cols}");
            cases.push(Case::new(name("bf16"), move |gpu| step(gpu, 0_u16, form, shape)));
            cases.push(Case::new(name("f32"), move |gpu| step(gpu, 0.0_f32, form, shape)));
        }
    }
    for experts in [0, 1, 8, 257] {
        cases.push(Case::new(format!("router bias {experts}"), move |gpu| bias(gpu, experts)));
    }
    cases.push(Case::new("adamw refuses", refuses));
    cases
}

/// A moment's bytes.
trait Stored: Moment {
    const DTYPE: DType;
    fn bytes(all: &[Self]) -> Vec<u8>;
}

impl Stored for u16 {
    const DTYPE: DType = DType::Bf16;
    fn bytes(all: &[Self]) -> Vec<u8> {
        all.iter().flat_map(|x| x.to_le_bytes()).collect()
    }
}

impl Stored for f32 {
    const DTYPE: DType = DType::F32;
    fn bytes(all: &[Self]) -> Vec<u8> {
        f32_bytes(all)
    }
}

/// Bytes on the device between guards.
fn holding(gpu: &Gpu, bytes: &[u8]) -> Guarded {
    let guarded = gpu.guarded(bytes.len());
    gpu.stream.upload(guarded.slice(), bytes).unwrap();
    guarded
}

/// With an average and a checksum, and without either.
fn step<M: Stored>(gpu: &Gpu, _zero: M, form: Form, shape: Shape) -> Result<(), String> {
    followed::<M>(gpu, form, shape, true)?;
    followed::<M>(gpu, form, shape, false)
}

fn followed<M: Stored>(gpu: &Gpu, form: Form, shape: Shape, follow: bool) -> Result<(), String> {
    let Shape { rows, cols } = shape;
    let n = rows * cols;
    let mut random = Random::new(gpu.seed ^ (rows * 509 + cols) as u64);
    let mut p = random.normal(n);
    let mut values = random.normal(n);
    let mut g: Vec<f32> = random.normal(n).iter().map(|g| g * 1e-3).collect();
    let mut m: Vec<M> = random.normal(n).iter().map(|x| M::store(x * 1e-3)).collect();
    let mut v: Vec<M> = random.normal(n).iter().map(|x| M::store(x * x * 1e-6)).collect();

    let [masters, average, gradients] = [&p, &values, &g].map(|x| holding(gpu, &f32_bytes(x)));
    let [first, second] = [&m, &v].map(|x| holding(gpu, &M::bytes(x)));
    let sum = holding(gpu, &7_u64.to_le_bytes());
    let state = State {
        masters: masters.slice(),
        first: first.slice(),
        second: second.slice(),
        moments: M::DTYPE,
        gradients: gradients.slice(),
        average: follow.then(|| Average { values: average.slice(), decay: DECAY }),
        checksum: follow.then(|| sum.slice()),
    };
    let copy = gpu.guarded(2 * n);
    let format = if let Form::Fp8(format) = form { format } else { ScaleFormat::Pow2 };
    let tiles = Tiles::new(gpu, shape, Tiling::Block, format);
    let weight = match form {
        Form::Master => Weight::Master(n),
        Form::Bf16 => Weight::Bf16(copy.slice(), n),
        Form::Fp8(_) => Weight::Fp8(tiles.slices(), shape),
    };
    gpu.adamw().step(&gpu.stream, state, weight, &STEP).unwrap();

    let old = values.clone();
    let follower = adamw::Average { values: &mut values, decay: DECAY };
    step_and_forget(&mut p, (&mut m, &mut v), &mut g, &STEP, follow.then_some(follower));
    let numbers =
        |what: &str, guarded: &Guarded| Ok::<_, String>(f32s(&gpu.result(what, guarded)?));
    same("masters", &numbers("masters", &masters)?, &p)?;
    same_bytes("first moments", &gpu.result("first moments", &first)?, &M::bytes(&m))?;
    same_bytes("second moments", &gpu.result("second moments", &second)?, &M::bytes(&v))?;
    same_bytes("gradients", &gpu.result("gradients", &gradients)?, &vec![0; 4 * n])?;
    same("average", &numbers("average", &average)?, if follow { &values } else { &old })?;
    let want = if follow { 7_u64.wrapping_add(checksum(&p, 0)) } else { 7 };
    same_bytes("the checksum", &gpu.result("the checksum", &sum)?, &want.to_le_bytes())?;
    match form {
        Form::Master => Ok(()),
        Form::Bf16 => {
            let want = Tensor::from_f32(DType::Bf16, &[rows, cols], &p);
            same_bytes("the copy", &gpu.result("the copy", &copy)?, want.bytes())
        }
        Form::Fp8(format) => {
            let want = Quantized::quantise_f32(&p, rows, cols, Tiling::Block, format);
            tiles.are(gpu, "the weight", &want)
        }
    }
}

fn bias(gpu: &Gpu, experts: usize) -> Result<(), String> {
    let mut random = Random::new(gpu.seed ^ experts as u64);
    let mut want = random.normal(experts);
    let bias = holding(gpu, &f32_bytes(&want));
    // The mean is among them, and so is one that a sum of 32 bits would lose.
    let mut counts: Vec<u64> = (0..experts).map(|_| random.below(1000)).collect();
    if let [low, high, mean, ..] = &mut counts[..] {
        (*low, *high, *mean) = (0, 1 << 40, 500);
    }
    let words: Vec<u8> = counts.iter().flat_map(|count| count.to_le_bytes()).collect();
    let device_counts = gpu.upload(&words);
    let kernels = gpu.adamw();
    let sizes = (experts, 1e-3);
    kernels.step_bias(&gpu.stream, bias.slice(), device_counts.all(), sizes).unwrap();
    router::step_bias(&mut want, &counts, 1e-3);
    same("bias", &f32s(&gpu.result("bias", &bias)?), &want)?;
    // Equal counts move nothing.
    gpu.stream.fill(device_counts.all(), 1).unwrap();
    kernels.step_bias(&gpu.stream, bias.slice(), device_counts.all(), sizes).unwrap();
    same("a balanced bias", &f32s(&gpu.result("bias", &bias)?), &want)
}

fn refuses(gpu: &Gpu) -> Result<(), String> {
    let buffer = gpu.upload(&[0; 1024]);
    let part = |at: usize, bytes: usize| buffer.slice(at..at + bytes);
    let state = State {
        masters: part(0, 64),
        first: part(64, 32),
        second: part(96, 32),
        moments: DType::Bf16,
        gradients: part(128, 64),
        average: None,
        checksum: None,
    };
    let (kernels, stream) = (gpu.adamw(), &gpu.stream);
    let step = |state, weight, adam| kernels.step(stream, state, weight, &adam);
    let weight = Weight::Master(16);
    refused(step(state, weight, AdamStep { step: 0, ..STEP }), "steps count from 1")?;
    refused(step(state, Weight::Master(17), STEP), "masters has 64 bytes, 68")?;
    refused(step(State { moments: DType::F32, ..state }, weight, STEP), "first moments has 32")?;
    refused(step(State { second: part(80, 32), ..state }, weight, STEP), "overlaps")?;
    refused(step(State { checksum: Some(part(200, 4)), ..state }, weight, STEP), "checksum has 4")?;
    refused(step(state, Weight::Bf16(part(256, 30), 16), STEP), "copy has 30 bytes")?;
    refused(kernels.step_bias(stream, part(0, 16), part(64, 24), (4, 0.1)), "counts has 24")
}

pub(crate) static MUTANTS: &[Mutant] = &[
    mutant(
        "a tile's largest is read before every warp has written its own",
        "adamw_blocks_bf16_pow2",
        ("bar.sync", 0, GONE),
        ("adamw bf16 Fp8(Pow2) 129x132", "race"),
    ),
    mutant(
        "a master moves by the reciprocal of a root",
        "adamw_flat_bf16",
        ("sqrt.rn.f32", 2, Change::To("rcp.rn.f32")),
        ("adamw bf16 Master 129x132", "masters["),
    ),
    mutant(
        "the average decays at another rate",
        "adamw_flat_bf16",
        ("adamw_flat_bf16_param_15]", 0, Change::To("adamw_flat_bf16_param_11]")),
        ("adamw bf16 Master 129x132", "average["),
    ),
    mutant(
        "a checksum keeps the largest of the blocks' sums",
        "adamw_flat_bf16",
        ("red.global.add.u64", 0, Change::To("red.global.max.u64")),
        ("adamw bf16 Master 129x132", "the checksum"),
    ),
    mutant(
        "an expert with the mean of tokens counts as idle",
        "router_bias",
        ("setp.lt.u64", 0, Change::To("setp.le.u64")),
        ("router bias 8", "bias["),
    ),
];
