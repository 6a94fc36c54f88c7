//! What a vote asks of whole vectors, against the CPU's answers: the same bits.

use shoal_kernels::Tensor;
use shoal_kernels::adamw::sum_of_squares;
use shoal_kernels::compare::Random;
use shoal_kernels::cuda::elementwise::Vector;
use shoal_kernels::cuda::reduce::{NONE, scratch_bytes};
use shoal_kernels::tensor::DType;

use super::gpu::{Case, Gpu, f32_bytes, refused};
use super::honest::{Change, Mutant, mutant};

/// Around a piece of 16384, and around a block's sixteen pieces.
const LENGTHS: [usize; 8] = [0, 1, 17, 4096, 16_383, 16_384, 16_401, 300_001];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for n in LENGTHS {
        cases.push(Case::new(format!("sum of squares {n}"), move |gpu| norm(gpu, n)));
        for dtype in [DType::F32, DType::Bf16] {
            cases.push(Case::new(format!("first non-finite {dtype:?} {n}"), move |gpu| {
                nonfinite(gpu, dtype, n)
            }));
        }
    }
    cases.push(Case::new("reduce refuses", refuses));
    cases
}

fn norm(gpu: &Gpu, n: usize) -> Result<(), String> {
    let mut random = Random::new(gpu.seed ^ n as u64);
    let mut x = random.normal(n);
    for (i, x) in x.iter_mut().enumerate() {
        *x *= 10.0_f32.powi((i % 31) as i32 - 15);
    }
    // Too large for a square in FP32; then one that is not finite.
    for bad in [None, Some(1e30), Some(f32::NEG_INFINITY), Some(f32::NAN)] {
        if let (Some(bad), Some(last)) = (bad, x.last_mut()) {
            *last = bad;
        }
        let want = sum_of_squares(&x);
        let device_x = gpu.upload(&f32_bytes(&x));
        let (out, scratch) = (gpu.guarded(8), gpu.guarded(scratch_bytes(n)));
        let (stream, to) = (&gpu.stream, (out.slice(), scratch.slice()));
        gpu.reduce().sum_of_squares(stream, device_x.all(), to, n).unwrap();
        gpu.result("scratch", &scratch)?;
        let got = gpu.result("out", &out)?;
        let got = f64::from_le_bytes(got.try_into().expect("eight bytes"));
        // An empty sum may be either zero.
        let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()) || n == 0;
        if !same || (n == 0 && got.abs() > 0.0) {
            return Err(format!(
                "sum of squares is {got:e}, want {want:e}, with {bad:?} at its end"
            ));
        }
    }
    Ok(())
}

fn nonfinite(gpu: &Gpu, dtype: DType, n: usize) -> Result<(), String> {
    let mut random = Random::new(gpu.seed ^ n as u64);
    let x = random.normal(n);
    // None, every element of a thread, the last, and some.
    let mut wanted = vec![Vec::new()];
    wanted.extend((0..n.min(8)).map(|place| vec![place]));
    wanted.extend([random.picks(n, 5), random.picks(n, 1)]);
    wanted.extend(n.checked_sub(1).map(|last| vec![last]));
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    for (kind, places) in wanted.into_iter().enumerate() {
        let mut x = x.clone();
        for (i, place) in places.iter().enumerate() {
            x[*place] = bad[(kind + i) % bad.len()];
        }
        let tensor = Tensor::from_f32(dtype, &[n], &x);
        let device_x = gpu.upload(tensor.bytes());
        let first = gpu.guarded(8);
        gpu.stream.fill(first.slice(), 0xff).unwrap();
        let vector = Vector { slice: device_x.all(), dtype };
        gpu.reduce().first_nonfinite(&gpu.stream, vector, first.slice(), n).unwrap();
        let got = gpu.result("the place", &first)?;
        let got = u64::from_le_bytes(got.try_into().expect("eight bytes"));
        let want = places.first().map_or(NONE, |place| *place as u64);
        if got != want || (got == NONE) != tensor.all_finite() {
            return Err(format!("the first place is {got}, want {want}, of {places:?}"));
        }
    }
    Ok(())
}

fn refuses(gpu: &Gpu) -> Result<(), String> {
    let buffer = gpu.upload(&[0; 256]);
    let part = |at: usize, bytes: usize| buffer.slice(at..at + bytes);
    let (kernels, stream) = (gpu.reduce(), &gpu.stream);
    let squares = |x, out, scratch| kernels.sum_of_squares(stream, x, (out, scratch), 16);
    refused(squares(part(0, 60), part(64, 8), part(80, 8)), "x has 60 bytes")?;
    refused(squares(part(0, 64), part(64, 4), part(80, 8)), "out has 4 bytes")?;
    refused(squares(part(0, 64), part(64, 8), part(80, 16)), "scratch has 16 bytes")?;
    refused(squares(part(0, 64), part(56, 8), part(80, 8)), "out overlaps with x")?;
    let vector = Vector { slice: part(0, 64), dtype: DType::Bf16 };
    let first = kernels.first_nonfinite(stream, vector, part(64, 8), 16);
    refused(first, "x has 64 bytes, 32")
}

pub(crate) static MUTANTS: &[Mutant] = &[
    mutant(
        "a square is added to the wrong side",
        "sum_of_squares_pieces",
        ("fma.rn.f64", 3, Change::Swap),
        ("sum of squares 300001", "sum of squares"),
    ),
    mutant(
        "the last place instead of the first",
        "first_nonfinite_bf16",
        ("red.global.min", 0, Change::To("red.global.max")),
        ("first non-finite Bf16 4096", "the first place"),
    ),
    mutant(
        "one element of a thread is not looked at",
        "first_nonfinite_f32",
        ("setp.eq.s32", 3, Change::To("setp.gt.s32")),
        ("first non-finite F32 4096", "the first place"),
    ),
];
