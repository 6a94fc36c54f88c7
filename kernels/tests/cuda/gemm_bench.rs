//! How fast the matrix products are on the card that is there.

use shoal_kernels::compare::Random;
use shoal_kernels::cuda::gemm::{Operand, Output, Shape, TileChoice};
use shoal_kernels::cuda::quantise::{self, QuantizedSlices};
use shoal_kernels::cuda::{Buffer, DeviceError};
use shoal_kernels::tensor::DType;
use shoal_kernels::{ScaleFormat, Tiling};

use super::bench::ms;
use super::gemm::{KINDS, Kind, Matrix, PRODUCTS, Product, even_ranges, groups, run};
use super::gpu::Gpu;

/// A cube; DeepSeek-V3's width by an expert's; 32 experts of V3 and of V2-Lite with 256 tokens each.
const SIZES: [(Shape, Option<usize>); 4] = [
    (Shape { t: 4096, n: 4096, k: 4096 }, None),
    (Shape { t: 8192, n: 7168, k: 2048 }, None),
    (Shape { t: 8192, n: 2048, k: 7168 }, Some(32)),
    (Shape { t: 8192, n: 1408, k: 2048 }, Some(32)),
];

pub(crate) fn lines(gpu: &Gpu) -> Result<Vec<String>, DeviceError> {
    let mut lines = Vec::new();
    for (product, kind) in PRODUCTS.into_iter().flat_map(|p| KINDS.map(|k| (p, k))) {
        for (shape, experts) in SIZES {
            for tile in [TileChoice::Best, TileChoice::Small, TileChoice::Large] {
                lines.push(line(gpu, product, kind, shape, experts, tile)?);
            }
        }
    }
    Ok(lines)
}

fn line(
    gpu: &Gpu,
    product: Product,
    kind: Kind,
    shape: Shape,
    experts: Option<usize>,
    tile: TileChoice,
) -> Result<String, DeviceError> {
    let Shape { t, n, k } = shape;
    let copies = experts.unwrap_or(1);
    let (a_len, b_len, c_len) = match product {
        Product::Forward => (t * k, copies * n * k, t * n),
        Product::InputGrad => (t * n, copies * n * k, t * k),
        Product::WeightGrad => (t * n, t * k, copies * n * k),
    };
    let (element, format) = match kind {
        Kind::Pow2 => (1, ScaleFormat::Pow2),
        Kind::Fp32 => (1, ScaleFormat::Fp32),
        Kind::Bf16 => (2, ScaleFormat::Pow2),
    };
    let scales = |tiling, rows, cols| quantise::Shape { rows, cols }.scale_bytes(tiling, format);
    let (a_scales, b_scales) = match product {
        Product::Forward => (scales(Tiling::Row, t, k), copies * scales(Tiling::Block, n, k)),
        Product::InputGrad => (scales(Tiling::Row, t, n), copies * scales(Tiling::Block, n, k)),
        Product::WeightGrad => (scales(Tiling::Column, t, n), scales(Tiling::Column, t, k)),
    };
    let out = if product == Product::WeightGrad { DType::F32 } else { DType::Bf16 };
    let buffer = |bytes| gpu.device.buffer("an operand", bytes);
    let (a, b, c) =
        (buffer(a_len * element)?, buffer(b_len * element)?, buffer(c_len * out.size())?);
    let (a_scale, b_scale) = (buffer(a_scales)?, buffer(b_scales)?);
    // Numbers as in training: zeros would draw less power.
    let noise =
        Matrix::new(kind, &Random::new(gpu.seed).normal(1 << 20), 1 << 10, 1 << 10, Tiling::Row);
    let noise = noise.bytes();
    for whole in [&a, &b] {
        for start in (0..whole.bytes()).step_by(noise.len()) {
            let end = (start + noise.len()).min(whole.bytes());
            gpu.stream.upload(whole.slice(start..end), &noise[..end - start])?;
        }
    }
    // 2^-7, or in FP32 a number near it.
    for scales in [&a_scale, &b_scale] {
        gpu.stream.fill(scales.all(), if format == ScaleFormat::Pow2 { 120 } else { 0x3c })?;
    }
    gpu.stream.fill(c.all(), 0)?;
    let ranges = gpu.upload(&even_ranges(copies, t / copies));
    let groups = experts.map(|_| groups(ranges.all()));
    let output = Output { values: c.all(), dtype: out, accumulate: product == Product::WeightGrad };
    let took = ms(gpu, || {
        let (a, b) = (operand(&a, &a_scale, kind, format), operand(&b, &b_scale, kind, format));
        run(gpu, product, tile, a, b, output, shape, groups);
        Ok(())
    })?;
    let flop = 2.0 * (t * n * k) as f64;
    // What is added to is read too.
    let c_passes = if output.accumulate { 2 } else { 1 };
    let moved = (a_len + b_len) * element + c_len * out.size() * c_passes;
    Ok(format!(
        "bench  gemm {product:?} {kind:?} {tile:?} {t}x{n}x{k}{}: {took:.3} ms, {:.1} TFLOP/s, {:.0} GB/s",
        experts.map_or(String::new(), |experts| format!(" {experts} experts")),
        flop / f64::from(took) / 1e9,
        moved as f64 / f64::from(took) / 1e6
    ))
}

fn operand<'a>(
    bytes: &'a Buffer,
    scales: &'a Buffer,
    kind: Kind,
    format: ScaleFormat,
) -> Operand<'a> {
    if kind == Kind::Bf16 {
        return Operand::Bf16(bytes.all());
    }
    Operand::Fp8(QuantizedSlices { codes: bytes.all(), scales: scales.all(), format })
}
