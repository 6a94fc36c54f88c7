//! A tensor: numbers of a run-time dtype, row-major, with a shape.
//!
//! It knows nothing of arithmetic beyond copying, rounding and adding. A *row* is the last
//! dimension; all others count rows.

use std::ops::Range;
use std::slice::ChunksMut;

use bytemuck::Pod;

use crate::scratch::Scratch;
use crate::simd::vectorised;
use crate::storage::Storage;
use crate::{Error, bf16, spread};

pub use crate::bf16::{bf16_to_f32, f32_to_bf16};

/// How a tensor stores one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    F32,
    Bf16,
}

impl DType {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Values {
    F32(Storage<f32>),
    Bf16(Storage<u16>),
}

/// Sizes of the dimensions, without an allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    sizes: [usize; DIMENSIONS],
    count: usize,
}

/// Of any tensor here.
const DIMENSIONS: usize = 4;

impl Shape {
    fn of(sizes: &[usize]) -> Self {
        assert!(
            sizes.len() <= DIMENSIONS,
            "a tensor of shape {sizes:?}: at most {DIMENSIONS} sizes"
        );
        let mut shape = Self { count: sizes.len(), ..Self::default() };
        shape.sizes[..sizes.len()].copy_from_slice(sizes);
        shape
    }

    fn sizes(&self) -> &[usize] {
        &self.sizes[..self.count]
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Shape,
    values: Values,
}

/// Some neighbouring rows of a tensor, to be written by one task.
pub enum RowsMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
}

/// Chunks of rows of one tensor.
pub(crate) enum RowChunks<'a> {
    F32(ChunksMut<'a, f32>),
    Bf16(ChunksMut<'a, u16>),
}

impl<'a> Iterator for RowChunks<'a> {
    type Item = RowsMut<'a>;

    fn next(&mut self) -> Option<RowsMut<'a>> {
        match self {
            Self::F32(chunks) => chunks.next().map(RowsMut::F32),
            Self::Bf16(chunks) => chunks.next().map(RowsMut::Bf16),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Self::F32(chunks) => chunks.size_hint(),
            Self::Bf16(chunks) => chunks.size_hint(),
        }
    }
}

impl RowsMut<'_> {
    /// Lets `write` fill the rows (unspecified before) in FP32, then rounds them.
    pub(crate) fn fill(self, write: impl FnOnce(&mut [f32])) {
        match self {
            Self::F32(rows) => write(rows),
            Self::Bf16(rows) => {
                let mut scratch = Scratch::new(rows.len());
                write(&mut scratch);
                bf16::narrow(&scratch, rows);
            }
        }
    }
}

impl Tensor {
    pub fn zeros(dtype: DType, shape: &[usize]) -> Self {
        let len = shape.iter().product();
        let values = match dtype {
            DType::F32 => Values::F32(Storage::zeros(len)),
            DType::Bf16 => Values::Bf16(Storage::zeros(len)),
        };
        Self { shape: Shape::of(shape), values }
    }

    /// A tensor of some numbers or other, every one of which is going to be written.
    pub fn unwritten(dtype: DType, shape: &[usize]) -> Self {
        let len = shape.iter().product();
        let values = match dtype {
            DType::F32 => Values::F32(Storage::new(len)),
            DType::Bf16 => Values::Bf16(Storage::new(len)),
        };
        Self { shape: Shape::of(shape), values }
    }

    /// Rounds `values` to the dtype.
    pub fn from_f32(dtype: DType, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "from_f32: shape {shape:?}");
        let values = match dtype {
            DType::F32 => Values::F32(Storage::of(values)),
            DType::Bf16 => {
                let mut narrowed = Storage::new(values.len());
                let chunks = narrowed.chunks_mut(spread::ELEMENTS);
                spread::each(chunks.zip(values.chunks(spread::ELEMENTS)), |(out, values)| {
                    bf16::narrow(values, out);
                });
                Values::Bf16(narrowed)
            }
        };
        Self { shape: Shape::of(shape), values }
    }

    /// Reads little-endian numbers, as `bytes` gave them.
    ///
    /// # Errors
    /// When the bytes are not as many as the shape wants: they come from files and peers.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Self, Error> {
        let wanted = shape
            .iter()
            .try_fold(dtype.size(), |product, dim| product.checked_mul(*dim))
            .ok_or_else(|| Error::TensorTooLarge { shape: shape.to_vec() })?;
        if bytes.len() != wanted {
            let shape = shape.to_vec();
            return Err(Error::TensorBytes { dtype, shape, wanted, got: bytes.len() });
        }
        if DIMENSIONS < shape.len() {
            return Err(Error::TensorDimensions { shape: shape.to_vec(), most: DIMENSIONS });
        }
        let mut tensor = Self::unwritten(dtype, shape);
        let chunks = tensor.bytes_mut().chunks_mut(4 * spread::ELEMENTS);
        spread::each(chunks.zip(bytes.chunks(4 * spread::ELEMENTS)), |(out, bytes)| {
            out.copy_from_slice(bytes);
        });
        Ok(tensor)
    }

    /// A matrix of the rows of several, in the bytes that `bytes` gave; each part must have whole rows.
    pub fn from_parts(dtype: DType, cols: usize, parts: &[&[u8]]) -> Self {
        let row = cols * dtype.size();
        let rows = |part: &[u8]| part.len() / row.max(1);
        let mut tensor = Self::unwritten(dtype, &[parts.iter().map(|part| rows(part)).sum(), cols]);
        let mut rest = tensor.bytes_mut();
        for part in parts {
            let (mine, after) = rest.split_at_mut(part.len());
            let size = (spread::ROWS * row).max(1);
            let chunks = mine.chunks_mut(size).zip(part.chunks(size));
            spread::each(chunks, |(out, bytes)| out.copy_from_slice(bytes));
            rest = after;
        }
        tensor
    }

    pub fn dtype(&self) -> DType {
        match self.values {
            Values::F32(_) => DType::F32,
            Values::Bf16(_) => DType::Bf16,
        }
    }

    pub fn shape(&self) -> &[usize] {
        self.shape.sizes()
    }

    /// The product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape().split_last().map_or(1, |(_, rest)| rest.iter().product())
    }

    /// The last dimension.
    pub fn cols(&self) -> usize {
        self.shape().last().copied().unwrap_or(1)
    }

    pub fn bytes(&self) -> &[u8] {
        match &self.values {
            Values::F32(values) => bytemuck::cast_slice(values),
            Values::Bf16(values) => bytemuck::cast_slice(values),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.values {
            Values::F32(values) => bytemuck::cast_slice_mut(values),
            Values::Bf16(values) => bytemuck::cast_slice_mut(values),
        }
    }

    pub fn f32s(&self) -> &[f32] {
        match &self.values {
            Values::F32(values) => values,
            Values::Bf16(_) => panic!("f32s: the tensor is BF16"),
        }
    }

    pub fn f32s_mut(&mut self) -> &mut [f32] {
        match &mut self.values {
            Values::F32(values) => values,
            Values::Bf16(_) => panic!("f32s_mut: the tensor is BF16"),
        }
    }

    pub fn bf16s(&self) -> &[u16] {
        match &self.values {
            Values::Bf16(values) => values,
            Values::F32(_) => panic!("bf16s: the tensor is F32"),
        }
    }

    pub fn bf16s_mut(&mut self) -> &mut [u16] {
        match &mut self.values {
            Values::Bf16(values) => values,
            Values::F32(_) => panic!("bf16s_mut: the tensor is F32"),
        }
    }

    pub fn to_f32(&self) -> Vec<f32> {
        match &self.values {
            Values::F32(values) => values.to_vec(),
            Values::Bf16(values) => {
                let mut widened = vec![0.0; values.len()];
                bf16::widen(values, &mut widened);
                widened
            }
        }
    }

    /// Copies rows into `out`, of exactly their length.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        self.read(rows.start * self.cols()..rows.end * self.cols(), out);
    }

    /// Copies the elements at `range` of the flat tensor.
    pub(crate) fn read(&self, range: Range<usize>, out: &mut [f32]) {
        match &self.values {
            Values::F32(values) => out.copy_from_slice(&values[range]),
            Values::Bf16(values) => bf16::widen(&values[range], out),
        }
    }

    /// Rounds `values`, a whole number of rows, into the rows from `first` on.
    pub fn write_rows(&mut self, first: usize, values: &[f32]) {
        let range = first * self.cols()..first * self.cols() + values.len();
        let values = values.chunks(spread::ELEMENTS);
        match &mut self.values {
            Values::F32(own) => {
                let own = own[range].chunks_mut(spread::ELEMENTS);
                spread::each(own.zip(values), |(own, values)| own.copy_from_slice(values));
            }
            Values::Bf16(own) => {
                let own = own[range].chunks_mut(spread::ELEMENTS);
                spread::each(own.zip(values), |(own, values)| bf16::narrow(values, own));
            }
        }
    }

    /// Rows in FP32: borrowed from an F32 tensor, widened into `scratch` from a BF16 one.
    pub(crate) fn rows_f32<'a>(
        &'a self,
        rows: Range<usize>,
        scratch: &'a mut Option<Scratch>,
    ) -> &'a [f32] {
        let range = rows.start * self.cols()..rows.end * self.cols();
        match &self.values {
            Values::F32(values) => &values[range],
            Values::Bf16(values) => {
                let scratch = scratch.insert(Scratch::new(range.len()));
                bf16::widen(&values[range], scratch);
                scratch
            }
        }
    }

    /// Cuts the tensor into chunks of `rows` rows; the last may be shorter.
    pub(crate) fn row_chunks_mut(&mut self, rows: usize) -> RowChunks<'_> {
        let chunk = (rows * self.cols()).max(1);
        match &mut self.values {
            Values::F32(values) => RowChunks::F32(values.chunks_mut(chunk)),
            Values::Bf16(values) => RowChunks::Bf16(values.chunks_mut(chunk)),
        }
    }

    /// A matrix of the rows named by `index`, in that order; a row may come several times.
    #[must_use]
    pub fn gather_rows(&self, index: &[u32]) -> Self {
        let cols = self.cols();
        let values = match &self.values {
            Values::F32(values) => Values::F32(gather(values, cols, index)),
            Values::Bf16(values) => Values::Bf16(gather(values, cols, index)),
        };
        Self { shape: Shape::of(&[index.len(), cols]), values }
    }

    /// Adds element by element, in FP32, rounded once. The dtypes may differ.
    pub fn add_assign(&mut self, other: &Self) {
        assert_eq!(self.shape, other.shape, "add_assign: shapes");
        let (rows, cols) = (self.rows(), self.cols());
        let step = (spread::ELEMENTS / cols.max(1)).max(1);
        let chunks = self.row_chunks_mut(step).enumerate();
        spread::each(chunks, |(i, chunk)| {
            let mut scratch = None;
            let b = other.rows_f32(i * step..((i + 1) * step).min(rows), &mut scratch);
            match chunk {
                RowsMut::F32(a) => add_f32(a, b),
                RowsMut::Bf16(a) => add_bf16(a, b),
            }
        });
    }

    /// Whether no element is infinite or NaN; looks at every element.
    pub fn all_finite(&self) -> bool {
        match &self.values {
            Values::F32(values) => all_finite(values),
            Values::Bf16(values) => {
                let chunks = values.chunks(spread::ELEMENTS);
                spread::map(chunks, largest_bf16).into_iter().all(|max| max < 0x7f80)
            }
        }
    }
}

/// Whether no number is infinite or NaN; looks at every one.
pub fn all_finite(values: &[f32]) -> bool {
    let chunks = values.chunks(spread::ELEMENTS);
    spread::map(chunks, largest_f32).into_iter().all(|max| max < 0x7f80_0000)
}

fn gather<T: Pod + Send + Sync>(values: &[T], cols: usize, index: &[u32]) -> Storage<T> {
    let mut out = Storage::new(index.len() * cols);
    for (&row, out) in index.iter().zip(out.chunks_exact_mut(cols.max(1))) {
        out.copy_from_slice(&values[row as usize * cols..][..cols]);
    }
    out
}

fn add_f32(a: &mut [f32], b: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (a, b) in a.iter_mut().zip(b) {
                *a += b;
            }
        },
    );
}

fn add_bf16(a: &mut [u16], b: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (a, b) in a.iter_mut().zip(b) {
                *a = f32_to_bf16(bf16_to_f32(*a) + b);
            }
        },
    );
}

/// The largest magnitude as bits, which order like the numbers, with infinity and NaN on top.
fn largest_f32(values: &[f32]) -> i32 {
    vectorised(
        #[inline(always)]
        || values.iter().fold(0, |max: i32, x| max.max((x.to_bits() & 0x7fff_ffff) as i32)),
    )
}

fn largest_bf16(values: &[u16]) -> i16 {
    vectorised(
        #[inline(always)]
        || values.iter().fold(0, |max: i16, x| max.max((x & 0x7fff) as i16)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Random, with_one_and_three_threads};

    #[test]
    fn bytes_go_round_and_a_wrong_count_is_an_error() {
        for dtype in [DType::F32, DType::Bf16] {
            let x = Tensor::from_f32(dtype, &[3, 43], &Random::new(1).normal(129));
            let back = Tensor::from_bytes(dtype, &[3, 43], x.bytes()).unwrap();
            assert_eq!(back, x);
            let error = Tensor::from_bytes(dtype, &[3, 43], &x.bytes()[1..]).unwrap_err();
            assert!(error.to_string().contains("[3, 43] wants"), "{error}");
            let huge = [usize::MAX, 2];
            assert!(Tensor::from_bytes(dtype, &huge, &[]).is_err());
        }
    }

    #[test]
    fn rows_are_read_written_and_gathered() {
        for dtype in [DType::F32, DType::Bf16] {
            let mut x = Tensor::from_f32(dtype, &[2, 2, 2], &[1., 2., 3., 4., 5., 6., 7., 8.]);
            assert_eq!((x.rows(), x.cols()), (4, 2));
            let mut row = [0.0; 4];
            x.read_rows(1..3, &mut row);
            assert_eq!(row.map(|x| x as u8), [3, 4, 5, 6]);
            x.write_rows(3, &[9.0, 10.0]);
            let gathered = x.gather_rows(&[3, 0, 3]);
            assert_eq!(gathered.shape(), [3, 2]);
            let want = Tensor::from_f32(dtype, &[3, 2], &[9., 10., 1., 2., 9., 10.]);
            assert_eq!(gathered, want);
            assert_eq!(x.gather_rows(&[]).rows(), 0);
        }
    }

    #[test]
    fn adding_rounds_once() {
        for n in [0, 1, 127, 129, 40_000] {
            let mut random = Random::new(2);
            let (a, b) = (random.normal(n), random.normal(n));
            let mut sum = Tensor::from_f32(DType::Bf16, &[n], &a);
            let rounded = sum.to_f32();
            sum.add_assign(&Tensor::from_f32(DType::F32, &[n], &b));
            for i in 0..n {
                assert_eq!(sum.bf16s()[i], f32_to_bf16(rounded[i] + b[i]));
            }
        }
    }

    #[test]
    fn one_bad_element_anywhere_is_found() {
        for dtype in [DType::F32, DType::Bf16] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 1, 17, 20_000] {
                    let mut values = vec![f32::MIN_POSITIVE; 20_001];
                    assert!(Tensor::from_f32(dtype, &[20_001], &values).all_finite());
                    values[at] = bad;
                    let x = Tensor::from_f32(dtype, &[20_001], &values);
                    let found = with_one_and_three_threads(|| x.all_finite());
                    assert_eq!(found, (false, false), "{bad} at {at}");
                }
            }
        }
    }
}
