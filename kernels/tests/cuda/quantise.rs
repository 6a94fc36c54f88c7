//! Quantise kernels against `Quantized`: codes and scales, byte for byte.

use shoal_kernels::compare::Random;
use shoal_kernels::cuda::Buffer;
use shoal_kernels::cuda::quantise::{QuantizedSlices, Shape};
use shoal_kernels::tensor::DType;
use shoal_kernels::{Quantized, ScaleFormat, Tensor, Tiling, f32_to_bf16};

use super::gpu::{Case, Gpu, Guarded, same_bytes};

const SIZES: [(usize, usize); 16] = [
    (1, 1),
    (1, 127),
    (127, 1),
    (128, 128),
    (129, 129),
    (0, 64),
    (64, 0),
    (3, 64),
    (130, 96),
    (257, 300),
    (256, 136),
    (1, 1000),
    (1000, 1),
    (5, 1024),
    (300, 8),
    (384, 260),
];
const FORMATS: [ScaleFormat; 2] = [ScaleFormat::Pow2, ScaleFormat::Fp32];

/// Which kernel.
#[derive(Clone, Copy, Debug)]
enum Kernel {
    Rows,
    Columns,
    Both,
    Requantise,
    Blocks,
}

pub(crate) fn cases() -> Vec<Case> {
    let kernels = [Kernel::Rows, Kernel::Columns, Kernel::Both, Kernel::Requantise, Kernel::Blocks];
    let mut cases = Vec::new();
    for (kernel, format) in kernels.into_iter().flat_map(|k| FORMATS.map(|f| (k, f))) {
        let what = format!("quantise {kernel:?} {format:?}");
        for (rows, cols) in SIZES {
            let shape = Shape { rows, cols };
            cases.push(Case::new(format!("{what} {rows}x{cols}"), move |gpu| {
                let x = uneven(shape, gpu.seed);
                check(gpu, kernel, format, shape, &x)
            }));
        }
        cases.push(Case::new(format!("{what} every bf16"), move |gpu| {
            every_bf16(gpu, kernel, format)
        }));
    }
    cases.extend(SIZES.map(|(rows, cols)| {
        let shape = Shape { rows, cols };
        Case::new(format!("transpose {rows}x{cols}"), move |gpu| transpose(gpu, shape))
    }));
    cases
}

/// Numbers whose rows and columns differ in size by powers of ten; some rows, columns and tiles of zeros;
/// here and there what has no finite code.
pub(crate) fn uneven(shape: Shape, seed: u64) -> Vec<f32> {
    let Shape { rows, cols } = shape;
    let mut random = Random::new(seed ^ (rows * 1_000_003 + cols) as u64);
    let mut x = random.normal(rows * cols);
    for (i, x) in x.iter_mut().enumerate() {
        let (row, col) = (i / cols, i % cols);
        let zero = row % 11 == 4 || col % 7 == 3 || (row / 128 + col / 128) % 5 == 4;
        let size = 10.0_f32.powi((row % 9) as i32 - 4 + (col % 5) as i32 * 2);
        *x *= if zero { 0.0 } else { size };
    }
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-40, -3e38, f32::MIN_POSITIVE];
    for i in random.picks(x.len(), x.len() / 600) {
        x[i] = odd[random.below(odd.len() as u64) as usize];
    }
    x
}

/// Every BF16 there is, those of one exponent and sign in one row. With as many rows as columns in every
/// tile, turning the matrix gives the same for columns.
fn every_bf16(gpu: &Gpu, kernel: Kernel, format: ScaleFormat) -> Result<(), String> {
    let value = |bits: usize| f32::from_bits((bits as u32) << 16);
    let shape = Shape { rows: 512, cols: 128 };
    let by_row: Vec<f32> = (0..512 * 128).map(value).collect();
    check(gpu, kernel, format, shape, &by_row)?;
    let turned = Shape { rows: 128, cols: 512 };
    let by_column: Vec<f32> = (0..128 * 512).map(|i| value(i % 512 * 128 + i / 512)).collect();
    check(gpu, kernel, format, turned, &by_column)
}

/// A quantised matrix on the device, and what the CPU makes of the same numbers.
struct Pair {
    want: Quantized,
    codes: Guarded,
    scales: Guarded,
    tiling: Tiling,
    format: ScaleFormat,
}

impl Pair {
    fn new(gpu: &Gpu, shape: Shape, want: Quantized, tiling: Tiling, format: ScaleFormat) -> Self {
        let codes = gpu.guarded(shape.rows * shape.cols);
        let scales = gpu.guarded(shape.scale_bytes(tiling, format));
        Self { want, codes, scales, tiling, format }
    }

    fn slices(&self) -> QuantizedSlices<'_> {
        let (codes, scales) = (self.codes.slice(), self.scales.slice());
        QuantizedSlices { codes, scales, format: self.format }
    }

    fn agrees(&self, gpu: &Gpu) -> Result<(), String> {
        let what = |part: &str| format!("{part} of {:?} tiles", self.tiling);
        let (scales, codes) = (what("scales"), what("codes"));
        let got = gpu.result(&scales, &self.scales)?;
        same_bytes(&scales, &got, self.want.scales().bytes())?;
        same_bytes(&codes, &gpu.result(&codes, &self.codes)?, self.want.codes())
    }
}

fn check(
    gpu: &Gpu,
    kernel: Kernel,
    format: ScaleFormat,
    shape: Shape,
    values: &[f32],
) -> Result<(), String> {
    let Shape { rows, cols } = shape;
    let kernels = gpu.quantise();
    let bf16: Vec<u16> = values.iter().map(|x| f32_to_bf16(*x)).collect();
    let bytes: Vec<u8> = bf16.iter().flat_map(|x| x.to_le_bytes()).collect();
    let x = Tensor::from_bytes(DType::Bf16, &[rows, cols], &bytes).unwrap();
    let device_x = gpu.upload(&bytes);
    let pair = |tiling| {
        let want = Quantized::quantise(&x, tiling, format);
        Pair::new(gpu, shape, want, tiling, format)
    };
    match kernel {
        Kernel::Rows => {
            let out = pair(Tiling::Row);
            kernels.rows(&gpu.stream, device_x.all(), out.slices(), shape).unwrap();
            out.agrees(gpu)
        }
        Kernel::Columns => {
            let out = pair(Tiling::Column);
            kernels.columns(&gpu.stream, device_x.all(), out.slices(), shape).unwrap();
            out.agrees(gpu)
        }
        Kernel::Both => {
            let (row, column) = (pair(Tiling::Row), pair(Tiling::Column));
            let (by_row, by_column) = (row.slices(), column.slices());
            kernels.both(&gpu.stream, device_x.all(), by_row, by_column, shape).unwrap();
            row.agrees(gpu)?;
            column.agrees(gpu)
        }
        Kernel::Requantise => {
            let row = Quantized::quantise(&x, Tiling::Row, format);
            let (codes, scales) = (gpu.upload(row.codes()), gpu.upload(row.scales().bytes()));
            let by_row = QuantizedSlices { codes: codes.all(), scales: scales.all(), format };
            let out = Pair::new(gpu, shape, row.requantise_columns(), Tiling::Column, format);
            kernels.requantise_columns(&gpu.stream, by_row, out.slices(), shape).unwrap();
            out.agrees(gpu)
        }
        Kernel::Blocks => {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let w = gpu.upload(&bytes);
            let want = Quantized::quantise_f32(values, rows, cols, Tiling::Block, format);
            let out = Pair::new(gpu, shape, want, Tiling::Block, format);
            kernels.blocks(&gpu.stream, w.all(), out.slices(), shape).unwrap();
            out.agrees(gpu)
        }
    }
}

fn transpose(gpu: &Gpu, shape: Shape) -> Result<(), String> {
    let Shape { rows, cols } = shape;
    let kernels = gpu.quantise();
    let mut random = Random::new(gpu.seed);
    let bytes: Vec<u8> = (0..rows * cols).map(|_| random.next_u64() as u8).collect();
    let x: Buffer = gpu.upload(&bytes);
    let y = gpu.guarded(rows * cols);
    kernels.transpose(&gpu.stream, x.all(), y.slice(), shape).unwrap();
    let want: Vec<u8> = (0..rows * cols).map(|i| bytes[i % rows * cols + i / rows]).collect();
    same_bytes("the transpose", &gpu.result("the transpose", &y)?, &want)
}
