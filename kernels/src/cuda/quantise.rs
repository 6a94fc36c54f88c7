//! Quantises matrices on the device. The judge is [`crate::Quantized`]: codes and scales are the same bytes.
//!
//! - x `(rows, cols)` BF16, or w `(rows, cols)` FP32, row-major. Read once.
//! - codes `(rows, cols)` E4M3, row-major whatever the tiling: no copy is transposed, products read either
//!   direction. Overwritten.
//! - scales, UE8M0 or FP32, overwritten: rows `(rows, ceil(cols / 128))`, columns `(ceil(rows / 128), cols)`,
//!   blocks `(ceil(rows / 128), ceil(cols / 128))`. A zero tile has scale 1; one with an infinity or a NaN has
//!   scale NaN and its codes are NaN.
//!
//! Any number of rows and columns, none included; tiles at the right and lower edge may be partial. Slices
//! begin at multiples of as many bytes, up to 16, as their rows are a multiple of, and rows are read 16 bytes at a time where the
//! width allows it. Column
//! tiles begin at row 0: where rows are grouped by expert, each group begins at a multiple of 128 and ends in
//! rows of zeros, which change no scale. Source: DeepSeek-V3 report 3.3.2 and 3.5.2.
#![expect(unsafe_code, reason = "launches kernels")]

use crate::fp8::{BLOCK, ScaleFormat, Tiling};

use super::image::QUANTISE;
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// Threads of a block, as in `quantise.cu`.
const THREADS: u32 = 256;
/// Where more must be kept: all but rows.
const THREADS_WIDE: u32 = 512;

/// Source, codes, scales, rows, columns.
type OneResult = Function<(Address, Address, Address, u32, u32)>;
/// Source, codes and scales twice, rows, columns.
type TwoResults = Function<(Address, Address, Address, Address, Address, u32, u32)>;
/// Codes and scales twice, rows, columns.
type FromCodes = Function<(Address, Address, Address, Address, u32, u32)>;

/// The kernels of `quantise.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    pow2: Quantisers,
    fp32: Quantisers,
    transpose: Function<(Address, Address, u32, u32)>,
}

#[derive(Debug)]
struct Quantisers {
    rows: OneResult,
    columns: OneResult,
    both: TwoResults,
    requantise: FromCodes,
    blocks: OneResult,
}

/// Rows and columns of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub rows: usize,
    pub cols: usize,
}

/// A quantised matrix on the device.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedSlices<'a> {
    pub codes: Slice<'a>,
    pub scales: Slice<'a>,
    pub format: ScaleFormat,
}

impl Shape {
    /// Tiles of 128 x 128, one for each block of threads.
    fn grid(self, threads: u32) -> Grid {
        let tiles = self.rows.div_ceil(BLOCK) * self.cols.div_ceil(BLOCK);
        let tiles = i32::try_from(tiles).unwrap_or_else(|_| panic!("{self:?}: too many tiles"));
        Grid::line(tiles as u32, threads)
    }

    /// As the kernels take them.
    fn sizes(self) -> (u32, u32) {
        let size = |n| u32::try_from(n).unwrap_or_else(|_| panic!("{self:?}: 2^32 rows or more"));
        (size(self.rows), size(self.cols))
    }

    /// Bytes of the scales of a matrix of this shape.
    pub fn scale_bytes(self, tiling: Tiling, format: ScaleFormat) -> usize {
        tiling.scales(self.rows, self.cols) * format.bytes()
    }
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&QUANTISE)?)
    }

    /// Those of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        let quantisers = |format: &str| {
            Ok(Quantisers {
                rows: module.function(&format!("quantise_rows_{format}"), 0)?,
                columns: module.function(&format!("quantise_columns_{format}"), 0)?,
                both: module.function(&format!("quantise_both_{format}"), 0)?,
                requantise: module.function(&format!("requantise_columns_{format}"), 0)?,
                blocks: module.function(&format!("quantise_blocks_{format}"), 0)?,
            })
        };
        let (pow2, fp32) = (quantisers("pow2")?, quantisers("fp32")?);
        Ok(Self { pow2, fp32, transpose: module.function("transpose_bytes", 0)? })
    }

    fn with(&self, format: ScaleFormat) -> &Quantisers {
        match format {
            ScaleFormat::Pow2 => &self.pow2,
            ScaleFormat::Fp32 => &self.fp32,
        }
    }

    /// x BF16 to 1 x 128 tiles.
    pub fn rows(
        &self,
        stream: &Stream,
        x: Slice<'_>,
        out: QuantizedSlices<'_>,
        shape: Shape,
    ) -> Result<(), DeviceError> {
        check("quantise rows", shape, &[(x, 2 * shape.rows * shape.cols)], &[(out, Tiling::Row)]);
        launch_one(&self.with(out.format).rows, THREADS, stream, x, out, shape)
    }

    /// x BF16 to 128 x 1 tiles.
    pub fn columns(
        &self,
        stream: &Stream,
        x: Slice<'_>,
        out: QuantizedSlices<'_>,
        shape: Shape,
    ) -> Result<(), DeviceError> {
        let source = (x, 2 * shape.rows * shape.cols);
        check("quantise columns", shape, &[source], &[(out, Tiling::Column)]);
        launch_one(&self.with(out.format).columns, THREADS_WIDE, stream, x, out, shape)
    }

    /// w FP32 to 128 x 128 tiles. One copy serves the forward pass and the input's gradient.
    pub fn blocks(
        &self,
        stream: &Stream,
        w: Slice<'_>,
        out: QuantizedSlices<'_>,
        shape: Shape,
    ) -> Result<(), DeviceError> {
        let source = (w, 4 * shape.rows * shape.cols);
        check("quantise blocks", shape, &[source], &[(out, Tiling::Block)]);
        launch_one(&self.with(out.format).blocks, THREADS_WIDE, stream, w, out, shape)
    }

    /// x BF16 to 1 x 128 and 128 x 1 tiles, reading it once. Both in one format.
    pub fn both(
        &self,
        stream: &Stream,
        x: Slice<'_>,
        by_row: QuantizedSlices<'_>,
        by_column: QuantizedSlices<'_>,
        shape: Shape,
    ) -> Result<(), DeviceError> {
        assert_eq!(by_row.format, by_column.format, "quantise both: formats of the scales");
        let source = (x, 2 * shape.rows * shape.cols);
        let results = [(by_row, Tiling::Row), (by_column, Tiling::Column)];
        check("quantise both", shape, &[source], &results);
        let (rows, cols) = shape.sizes();
        let arguments = (
            x.address(),
            by_row.codes.address(),
            by_row.scales.address(),
            by_column.codes.address(),
            by_column.scales.address(),
            rows,
            cols,
        );
        // SAFETY: the kernel stays inside matrices of this shape, whose sizes were checked above.
        unsafe { self.with(by_row.format).both.launch(stream, shape.grid(THREADS_WIDE), arguments) }
    }

    /// 1 x 128 tiles to 128 x 1 tiles, for the gradient of a weight: `Quantized::requantise_columns`.
    pub fn requantise_columns(
        &self,
        stream: &Stream,
        by_row: QuantizedSlices<'_>,
        out: QuantizedSlices<'_>,
        shape: Shape,
    ) -> Result<(), DeviceError> {
        assert_eq!(by_row.format, out.format, "requantise columns: formats of the scales");
        let scale_bytes = shape.scale_bytes(Tiling::Row, by_row.format);
        let sources = [(by_row.codes, shape.rows * shape.cols), (by_row.scales, scale_bytes)];
        check("requantise columns", shape, &sources, &[(out, Tiling::Column)]);
        let (rows, cols) = shape.sizes();
        let arguments = (
            by_row.codes.address(),
            by_row.scales.address(),
            out.codes.address(),
            out.scales.address(),
            rows,
            cols,
        );
        // SAFETY: the kernel stays inside matrices of this shape, whose sizes were checked above.
        unsafe {
            self.with(out.format).requantise.launch(stream, shape.grid(THREADS_WIDE), arguments)
        }
    }

    /// y `(cols, rows)` = x `(rows, cols)`, bytes, transposed. y is overwritten.
    pub fn transpose(
        &self,
        stream: &Stream,
        x: Slice<'_>,
        y: Slice<'_>,
        shape: Shape,
    ) -> Result<(), DeviceError> {
        let bytes = shape.rows * shape.cols;
        check("transpose", shape, &[(x, bytes), (y, bytes)], &[]);
        assert!(!x.overlaps(y), "transpose: the two overlap");
        let (rows, cols) = shape.sizes();
        let arguments = (x.address(), y.address(), rows, cols);
        // SAFETY: the kernel stays inside matrices of this shape, whose sizes were checked above.
        unsafe { self.transpose.launch(stream, shape.grid(THREADS), arguments) }
    }
}

/// For a source whose size was checked.
fn launch_one(
    function: &OneResult,
    threads: u32,
    stream: &Stream,
    x: Slice<'_>,
    out: QuantizedSlices<'_>,
    shape: Shape,
) -> Result<(), DeviceError> {
    let (rows, cols) = shape.sizes();
    let arguments = (x.address(), out.codes.address(), out.scales.address(), rows, cols);
    // SAFETY: the kernel stays inside matrices of this shape, whose sizes the callers checked.
    unsafe { function.launch(stream, shape.grid(threads), arguments) }
}

/// Sizes, alignment, and that nothing is written which is read.
#[track_caller]
fn check(
    operation: &str,
    shape: Shape,
    sources: &[(Slice<'_>, usize)],
    results: &[(QuantizedSlices<'_>, Tiling)],
) {
    let mut written = Vec::with_capacity(2 * results.len());
    for (out, tiling) in results {
        written.push((out.codes, shape.rows * shape.cols));
        written.push((out.scales, shape.scale_bytes(*tiling, out.format)));
        // Scales are written one by one.
        let size = out.format.bytes() as u64;
        assert!(out.scales.is_aligned(size), "{operation}: scales begin at no multiple of {size}");
    }
    for (slice, bytes) in sources.iter().chain(&written) {
        assert_eq!(slice.bytes(), *bytes, "{operation}: bytes for {shape:?}");
    }
    // As much of a row as is moved at a time: a matrix that lies behind another of its shape begins there by itself.
    let wide = sources.iter().map(|(source, _)| *source);
    for slice in wide.chain(results.iter().map(|(out, _)| out.codes)) {
        let row = slice.bytes() / shape.rows.max(1);
        let step = 1 << row.trailing_zeros().min(4);
        assert!(
            slice.is_aligned(step),
            "{operation}: a slice that begins at no multiple of {step}"
        );
    }
    for (i, (out, _)) in written.iter().enumerate() {
        let others = sources.iter().chain(&written[..i]);
        let apart = others.into_iter().all(|(other, _)| !out.overlaps(*other));
        assert!(apart, "{operation}: a result overlaps with what is read, or with another");
    }
}
