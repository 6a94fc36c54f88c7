//! How long kernels take on the card that is there. Figures for a page, never a test.

use shoal_kernels::cuda::quantise::{QuantizedSlices, Shape};
use shoal_kernels::cuda::{Buffer, DeviceError};
use shoal_kernels::{ScaleFormat, Tiling};

use super::gpu::Gpu;

/// Runs that are averaged, after as many that are not.
const RUNS: usize = 20;

/// Tokens by model width of DeepSeek-V3, and an expert's weight.
const ACTIVATIONS: Shape = Shape { rows: 8192, cols: 7168 };
const WEIGHT: Shape = Shape { rows: 4096, cols: 7168 };

pub(crate) fn lines(gpu: &Gpu) -> Vec<String> {
    let lines = [quantise_lines(gpu), super::gemm_bench::lines(gpu)];
    lines
        .into_iter()
        .flat_map(|lines| lines.unwrap_or_else(|error| vec![format!("bench: {error}")]))
        .collect()
}

/// Milliseconds of one run of `work`, by events on the device.
pub(crate) fn ms(
    gpu: &Gpu,
    mut work: impl FnMut() -> Result<(), DeviceError>,
) -> Result<f32, DeviceError> {
    let (start, end) = (gpu.device.timing_event()?, gpu.device.timing_event()?);
    for _ in 0..RUNS {
        work()?;
    }
    gpu.stream.record(&start)?;
    for _ in 0..RUNS {
        work()?;
    }
    gpu.stream.record(&end)?;
    end.synchronise()?;
    Ok(end.ms_since(&start)? / RUNS as f32)
}

struct Room {
    codes: Buffer,
    scales: Buffer,
    format: ScaleFormat,
}

impl Room {
    fn new(
        gpu: &Gpu,
        shape: Shape,
        tiling: Tiling,
        format: ScaleFormat,
    ) -> Result<Self, DeviceError> {
        let codes = gpu.device.buffer("codes", shape.rows * shape.cols)?;
        let scales = gpu.device.buffer("scales", shape.scale_bytes(tiling, format))?;
        Ok(Self { codes, scales, format })
    }

    fn slices(&self) -> QuantizedSlices<'_> {
        let (codes, scales) = (self.codes.all(), self.scales.all());
        QuantizedSlices { codes, scales, format: self.format }
    }
}

fn quantise_lines(gpu: &Gpu) -> Result<Vec<String>, DeviceError> {
    let kernels = gpu.quantise();
    let n = ACTIVATIONS.rows * ACTIVATIONS.cols;
    let (x, w) = (gpu.device.buffer("x", 2 * n)?, gpu.device.buffer("w", 2 * n)?);
    gpu.stream.fill(x.all(), 0x3c)?;
    gpu.stream.fill(w.all(), 0x3c)?;
    let mut lines = Vec::new();
    let mut line = |name: &str, format: ScaleFormat, bytes: usize, ms: f32| {
        let rate = bytes as f64 / f64::from(ms) / 1e6;
        lines.push(format!("bench  {name} {format:?}: {ms:.3} ms, {rate:.0} GB/s"));
    };
    for format in [ScaleFormat::Pow2, ScaleFormat::Fp32] {
        let row = Room::new(gpu, ACTIVATIONS, Tiling::Row, format)?;
        let column = Room::new(gpu, ACTIVATIONS, Tiling::Column, format)?;
        let block = Room::new(gpu, WEIGHT, Tiling::Block, format)?;
        let (stream, shape) = (&gpu.stream, ACTIVATIONS);
        let took = ms(gpu, || kernels.rows(stream, x.all(), row.slices(), shape))?;
        line("quantise rows 8192x7168", format, 3 * n, took);
        let took = ms(gpu, || kernels.columns(stream, x.all(), column.slices(), shape))?;
        line("quantise columns 8192x7168", format, 3 * n, took);
        let both = || kernels.both(stream, x.all(), row.slices(), column.slices(), shape);
        line("quantise both 8192x7168", format, 4 * n, ms(gpu, both)?);
        let again = || kernels.requantise_columns(stream, row.slices(), column.slices(), shape);
        line("requantise columns 8192x7168", format, 2 * n, ms(gpu, again)?);
        let took = ms(gpu, || kernels.blocks(stream, w.all(), block.slices(), WEIGHT))?;
        line("quantise blocks 4096x7168", format, 5 * WEIGHT.rows * WEIGHT.cols, took);
    }
    let y = gpu.device.buffer("y", n)?;
    let took = ms(gpu, || kernels.transpose(&gpu.stream, x.slice(0..n), y.all(), ACTIVATIONS))?;
    line("transpose bytes 8192x7168", ScaleFormat::Pow2, 2 * n, took);
    Ok(lines)
}
