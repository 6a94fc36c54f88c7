//! Casts and sums against tensors of the CPU: the same bytes.

use shoal_kernels::Tensor;
use shoal_kernels::compare::Random;
use shoal_kernels::cuda::elementwise::Vector;
use shoal_kernels::tensor::DType;

use super::gpu::{Case, Gpu, bf16s, f32s, refused, same};
use super::honest::{Change, Mutant, mutant};

const LENGTHS: [usize; 6] = [0, 1, 7, 8, 2049, 5000];
const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in LENGTHS {
        for dtype in DTYPES {
            cases.push(Case::new(format!("cast from {dtype:?} {n}"), move |gpu| {
                cast(gpu, dtype, n)
            }));
            for other in DTYPES {
                cases.push(Case::new(format!("add {other:?} to {dtype:?} {n}"), move |gpu| {
                    add(gpu, (dtype, other), n)
                }));
            }
        }
    }
    cases.push(Case::new("elementwise refuses", refuses));
    cases
}

/// Numbers of all sizes, some halfway between two of BF16, some without a finite one.
fn numbers(random: &mut Random, n: usize) -> Vec<f32> {
    let odd =
        [f32::NAN, f32::INFINITY, -0.0, 1e-40, f32::MAX, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
    let mut x = random.normal(n);
    for (i, x) in x.iter_mut().enumerate() {
        *x *= 10.0_f32.powi((i % 13) as i32 - 6);
        if i % 19 == 5 {
            *x = odd[i / 19 % odd.len()];
        }
    }
    x
}

fn read(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F32 => f32s(bytes),
        DType::Bf16 => bf16s(bytes),
    }
}

fn cast(gpu: &Gpu, from: DType, n: usize) -> Result<(), String> {
    let to = if from == DType::F32 { DType::Bf16 } else { DType::F32 };
    let mut random = Random::new(gpu.seed ^ n as u64);
    let x = Tensor::from_f32(from, &[n], &numbers(&mut random, n));
    let want = Tensor::from_f32(to, &[n], &x.to_f32());
    let (device_x, y) = (gpu.upload(x.bytes()), gpu.guarded(want.bytes().len()));
    let source = Vector { slice: device_x.all(), dtype: from };
    let target = Vector { slice: y.slice(), dtype: to };
    gpu.elementwise().cast(&gpu.stream, source, target, n).unwrap();
    same("y", &read(&gpu.result("y", &y)?, to), &want.to_f32())
}

fn add(gpu: &Gpu, (dtype, other): (DType, DType), n: usize) -> Result<(), String> {
    let mut random = Random::new(gpu.seed ^ n as u64);
    let mut want = Tensor::from_f32(dtype, &[n], &numbers(&mut random, n));
    let x = Tensor::from_f32(other, &[n], &random.normal(n));
    let (sum, device_x) = (gpu.guarded(want.bytes().len()), gpu.upload(x.bytes()));
    gpu.stream.upload(sum.slice(), want.bytes()).unwrap();
    let target = Vector { slice: sum.slice(), dtype };
    let source = Vector { slice: device_x.all(), dtype: other };
    gpu.elementwise().add(&gpu.stream, target, source, n).unwrap();
    want.add_assign(&x);
    same("the sum", &read(&gpu.result("the sum", &sum)?, dtype), &want.to_f32())
}

fn refuses(gpu: &Gpu) -> Result<(), String> {
    let buffer = gpu.upload(&[0; 256]);
    let vector =
        |at: usize, bytes: usize, dtype| Vector { slice: buffer.slice(at..at + bytes), dtype };
    let (f32, bf16) = (vector(0, 64, DType::F32), vector(64, 32, DType::Bf16));
    let (kernels, stream) = (gpu.elementwise(), &gpu.stream);
    refused(kernels.cast(stream, f32, bf16, 15), "x has 64 bytes, 60")?;
    refused(kernels.cast(stream, f32, f32, 16), "y overlaps with x")?;
    let other = vector(128, 64, DType::F32);
    refused(kernels.cast(stream, f32, other, 16), "both F32")?;
    refused(kernels.add(stream, f32, vector(48, 32, DType::Bf16), 16), "the sum overlaps")?;
    refused(kernels.add(stream, f32, vector(66, 32, DType::Bf16), 16), "x begins at no multiple")
}

pub(crate) static MUTANTS: &[Mutant] = &[
    mutant(
        "two numbers of a pair change places",
        "cast_f32_bf16",
        ("cvt.rn.bf16x2", 1, Change::Swap),
        ("cast from F32 2049", "y["),
    ),
    mutant(
        "a vector's last elements are taken for eight",
        "add_bf16_f32",
        ("min.u64", 0, Change::To("max.u64")),
        ("add F32 to Bf16 2049", ""),
    ),
];
