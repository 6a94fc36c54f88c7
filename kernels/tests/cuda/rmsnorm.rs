//! RMS norm against the CPU's: numbers within their roundings, codes and scales the same bytes.

use shoal_kernels::compare::Random;
use shoal_kernels::cuda::Rows;
use shoal_kernels::cuda::quantise::Shape;
use shoal_kernels::cuda::rmsnorm::{Gradients, Norm, Residual, Upstream, WIDTH_MAX};
use shoal_kernels::tensor::DType;
use shoal_kernels::{Quantized, ScaleFormat, Tensor, Tiling, rmsnorm};

use super::gpu::{Case, Gapped, Gpu, Tiles, bf16s, close, f32_bytes, f32s, refused, same_bytes};
use super::honest::{Change, GONE, Mutant, mutant};

/// Rows, columns, and how far apart rows of x are beyond their width.
const SIZES: [(usize, usize, usize); 11] = [
    (1, 1, 0),
    (0, 64, 0),
    (5, 127, 0),
    (33, 128, 0),
    (9, 264, 8),
    (19, 512, 64),
    (6, 100, 3),
    (3, 1024, 0),
    (18, 1032, 8),
    (17, 1501, 0),
    (2, 7168, 0),
];
const EPS: f32 = 1e-6;

/// A sum of FP32 in another order moves a result across at most one boundary of BF16.
const ONE_BF16: (f32, f32) = (1e-5, 1.0 / 128.0);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, cols, gap) in SIZES {
        let norm = Norm { rows, cols, eps: EPS };
        for residual in [false, true] {
            let what = if residual { " residual" } else { "" };
            let size = format!("{rows}x{cols}");
            cases.push(Case::new(format!("rmsnorm forward{what} {size}"), move |gpu| {
                forward(gpu, norm, gap, residual)
            }));
            cases.push(Case::new(format!("rmsnorm backward{what} {size}"), move |gpu| {
                backward(gpu, norm, gap, residual)
            }));
        }
    }
    cases.push(Case::new("rmsnorm refuses", refuses));
    cases
}

/// Rows that differ in size by powers of ten, some of zeros; with `odd`, some that are not finite.
fn matrix(random: &mut Random, norm: Norm, odd: bool) -> Tensor {
    let Norm { rows, cols, .. } = norm;
    let mut x = random.normal(rows * cols);
    for (i, x) in x.iter_mut().enumerate() {
        let row = i / cols;
        *x *= if row % 7 == 3 { 0.0 } else { 10.0_f32.powi((row % 5) as i32 - 2) };
        match row {
            4 if odd && i % cols == cols / 2 => *x = f32::NAN,
            5 if odd && i % cols == 0 => *x = f32::INFINITY,
            _ => {}
        }
    }
    Tensor::from_f32(DType::Bf16, &[rows, cols], &x)
}

fn forward(gpu: &Gpu, norm: Norm, gap: usize, with_residual: bool) -> Result<(), String> {
    let Norm { rows, cols, .. } = norm;
    let kernels = gpu.rmsnorm();
    let mut random = Random::new(gpu.seed ^ (rows * 65_537 + cols) as u64);
    let x = matrix(&mut random, norm, true);
    let gain = random.uniform(cols, 0.5, 1.5);
    let other = matrix(&mut random, norm, false);

    let device_x = Gapped::holding(gpu, &x, cols + gap);
    let device_gain = gpu.upload(&f32_bytes(&gain));
    let device_other = gpu.upload(other.bytes());
    let sum = gpu.guarded(2 * rows * cols);
    let residual =
        with_residual.then(|| Residual { residual: device_other.all(), sum: sum.slice() });
    let inputs = (device_x.rows(), device_gain.all(), residual);

    let mut normalised = x.clone();
    if with_residual {
        normalised.add_assign(&other);
    }
    let want = rmsnorm::forward(&normalised, &gain, EPS);

    let y = Gapped::new(gpu, (rows, cols), cols + 2 * gap);
    kernels.forward(&gpu.stream, inputs, Some(y.rows()), None, norm).unwrap();
    let got = y.result(gpu, "y")?;
    close("y", &bf16s(&got), &want.to_f32(), ONE_BF16)?;
    if with_residual {
        close("sum", &bf16s(&gpu.result("sum", &sum)?), &normalised.to_f32(), (0.0, 0.0))?;
    }
    let rounded = Tensor::from_bytes(DType::Bf16, &[rows, cols], &got).unwrap();
    for (format, with_y) in [(ScaleFormat::Pow2, true), (ScaleFormat::Fp32, false)] {
        let tiles = Tiles::new(gpu, Shape { rows, cols }, Tiling::Row, format);
        let again = Gapped::new(gpu, (rows, cols), cols);
        let y = with_y.then(|| again.rows());
        kernels.forward(&gpu.stream, inputs, y, Some(tiles.slices()), norm).unwrap();
        tiles.are(gpu, "y", &Quantized::quantise(&rounded, Tiling::Row, format))?;
        if with_y {
            same_bytes("y beside codes", &again.result(gpu, "y")?, &got)?;
        }
    }
    Ok(())
}

fn backward(gpu: &Gpu, norm: Norm, gap: usize, with_residual: bool) -> Result<(), String> {
    let Norm { rows, cols, .. } = norm;
    let kernels = gpu.rmsnorm();
    let mut random = Random::new(gpu.seed ^ (rows * 65_537 + cols) as u64);
    let x = matrix(&mut random, norm, false);
    let gain = random.uniform(cols, 0.5, 1.5);
    let tensor = |x: &[f32]| Tensor::from_f32(DType::Bf16, &[rows, cols], x);
    let dy = tensor(&random.normal(rows * cols));
    let residual = tensor(&random.normal(rows * cols));
    let before = random.normal(cols);

    let mut want_d_gain = before.clone();
    let want = if with_residual {
        rmsnorm::backward_onto(&residual, &x, (&gain, EPS), &dy, &mut want_d_gain)
    } else {
        rmsnorm::backward(&x, &gain, EPS, &dy, &mut want_d_gain)
    };

    let device_x = Gapped::holding(gpu, &x, cols + gap);
    let device_dy = Gapped::holding(gpu, &dy, cols + 2 * gap);
    let device_gain = gpu.upload(&f32_bytes(&gain));
    let device_residual = gpu.upload(residual.bytes());
    let from = Upstream {
        x: device_x.rows(),
        gain: device_gain.all(),
        dy: device_dy.rows(),
        residual: with_residual.then(|| device_residual.all()),
    };
    let mut first: Option<Vec<u8>> = None;
    for _ in 0..2 {
        let dx = Gapped::new(gpu, (rows, cols), cols + gap);
        let (d_gain, scratch) = (gpu.guarded(4 * cols), gpu.guarded(norm.scratch_bytes()));
        gpu.stream.upload(d_gain.slice(), &f32_bytes(&before)).unwrap();
        let (gain_slice, scratch_slice) = (d_gain.slice(), scratch.slice());
        let to = Gradients { dx: dx.rows(), d_gain: gain_slice, scratch: scratch_slice };
        kernels.backward(&gpu.stream, from, to, norm).unwrap();
        gpu.result("scratch", &scratch)?;
        // Rows of zeros have r = eps^(-1/2) = 1000: rounding grows with it.
        close("dx", &bf16s(&dx.result(gpu, "dx")?), &want.to_f32(), ONE_BF16)?;
        let got = gpu.result("d_gain", &d_gain)?;
        close("d_gain", &f32s(&got), &want_d_gain, (4e-5, 1e-5))?;
        let first = first.get_or_insert_with(|| got.clone());
        same_bytes("d_gain, once more", &got, first)?;
    }
    Ok(())
}

fn refuses(gpu: &Gpu) -> Result<(), String> {
    let kernels = gpu.rmsnorm();
    let norm = Norm { rows: 4, cols: 16, eps: EPS };
    let buffer = gpu.upload(&[0; 1024]);
    let part = |at: usize, bytes: usize| buffer.slice(at..at + bytes);
    let packed = |at: usize| Rows::packed(part(at, 128), 16);
    let gain = part(0, 64);
    let forward =
        |x, gain, y, norm| kernels.forward(&gpu.stream, (x, gain, None), Some(y), None, norm);
    refused(forward(packed(64), part(0, 60), packed(192), norm), "gain has 60 bytes")?;
    refused(forward(packed(64), part(4, 64), packed(192), norm), "gain begins")?;
    refused(forward(packed(64), gain, packed(128), norm), "y overlaps with x")?;
    let short = Rows::packed(part(64, 96), 16);
    refused(forward(short, gain, packed(192), norm), "x has 96 bytes")?;
    let narrow = Rows { slice: part(64, 128), stride: 15 };
    refused(forward(narrow, gain, packed(192), norm), "begin 15 apart")?;
    let wide = Norm { cols: WIDTH_MAX + 1, ..norm };
    refused(forward(packed(64), gain, packed(192), wide), "at most 8192")
}

pub(crate) static MUTANTS: &[Mutant] = &[
    mutant(
        "sums of a row are read before every warp has written its own",
        "rmsnorm_backward_block",
        ("bar.sync", 0, GONE),
        ("rmsnorm backward 18x1032", "race"),
    ),
    mutant(
        "a row's sums are overwritten while another warp reads them",
        "rmsnorm_backward_block",
        ("xor.b32", 0, Change::To("or.b32")),
        ("rmsnorm backward 18x1032", "race"),
    ),
    mutant(
        "gradients of a gain are added up before they are there",
        "rmsnorm_gain_grad",
        ("bar.sync", 0, GONE),
        ("rmsnorm backward 33x128", "race"),
    ),
    mutant(
        "a row is multiplied by its norm",
        "rmsnorm_forward_warp",
        ("rcp.rn.f32", 0, Change::To("sqrt.rn.f32")),
        ("rmsnorm forward 33x128", "y["),
    ),
    mutant(
        "a warp that has no row goes on",
        "rmsnorm_forward_warp_pow2",
        ("setp.ge.u32", 0, Change::To("setp.gt.u32")),
        ("rmsnorm forward 33x128", ""),
    ),
];
