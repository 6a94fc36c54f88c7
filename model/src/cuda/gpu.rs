//! One cell's device: a queue, memory of its own, and what the network does there.
//!
//! Everything is queued on one stream, so that a matrix may be dropped as soon as its last reader is queued
//! (`shoal_kernels::cuda::Arena`). Nothing waits for the device but `download`.

use std::sync::Arc;

use bytemuck::Pod;
use shoal_kernels::cuda::quantise::Shape;
use shoal_kernels::cuda::{
    Arena, Block, Device, DeviceError, Rows, Slice, Stream, adamw, attention, cross_entropy,
    dispatch, elementwise, embedding, gemm, quantise, reduce, rmsnorm, rope, router, swiglu,
    window,
};
use shoal_kernels::linear::{self, Math};
use shoal_kernels::{DType, Quantized, ScaleFormat, Tensor, Tiling};

use super::matrix::{Matrix, Operand, Tiles};
use super::parameters::{GroupId, Parameters, Weight};

/// A cell's part of a device. A clone is the same.
#[derive(Clone, Debug)]
pub struct Gpu {
    pub(super) stream: Arc<Stream>,
    pub(super) arena: Arena,
    pub(super) kernels: Arc<Kernels>,
}

/// Every kernel of the network, loaded once for a device: the driver compiles them.
#[derive(Debug)]
pub struct Kernels {
    pub(super) adamw: adamw::Kernels,
    pub(super) attention: attention::Kernels,
    pub(super) cross_entropy: cross_entropy::Kernels,
    pub(super) dispatch: dispatch::Kernels,
    pub(super) elementwise: elementwise::Kernels,
    pub(super) embedding: embedding::Kernels,
    pub(super) gemm: gemm::Kernels,
    pub(super) quantise: quantise::Kernels,
    pub(super) reduce: reduce::Kernels,
    pub(super) rmsnorm: rmsnorm::Kernels,
    pub(super) rope: rope::Kernels,
    pub(super) router: router::Kernels,
    pub(super) swiglu: swiglu::Kernels,
    pub(super) window: window::Kernels,
}

impl Kernels {
    /// Loads them.
    ///
    /// # Errors
    /// When the driver refuses the PTX of one.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Ok(Self {
            adamw: adamw::Kernels::load(device)?,
            attention: attention::Kernels::load(device)?,
            cross_entropy: cross_entropy::Kernels::load(device)?,
            dispatch: dispatch::Kernels::load(device)?,
            elementwise: elementwise::Kernels::load(device)?,
            embedding: embedding::Kernels::load(device)?,
            gemm: gemm::Kernels::load(device)?,
            quantise: quantise::Kernels::load(device)?,
            reduce: reduce::Kernels::load(device)?,
            rmsnorm: rmsnorm::Kernels::load(device)?,
            rope: rope::Kernels::load(device)?,
            router: router::Kernels::load(device)?,
            swiglu: swiglu::Kernels::load(device)?,
            window: window::Kernels::load(device)?,
        })
    }
}

impl Gpu {
    /// `bytes` of a device for one cell.
    ///
    /// # Errors
    /// When the device has no room for them.
    pub fn new(device: &Device, kernels: &Arc<Kernels>, bytes: usize) -> Result<Self, DeviceError> {
        let stream = Arc::new(device.stream()?);
        let arena = Arena::new(device, "a cell's memory", bytes)?;
        Ok(Self { stream, arena, kernels: Arc::clone(kernels) })
    }

    /// How much of its memory is in use, and was at most.
    pub fn usage(&self) -> shoal_kernels::cuda::Usage {
        self.arena.usage()
    }

    pub(super) fn block(&self, what: &'static str, bytes: usize) -> Result<Block, DeviceError> {
        self.arena.take(what, bytes)
    }

    /// Numbers that are going to be written.
    pub(super) fn matrix(
        &self,
        what: &'static str,
        dtype: DType,
        (rows, cols): (usize, usize),
    ) -> Result<Matrix, DeviceError> {
        let block = Arc::new(self.block(what, rows * cols * dtype.size())?);
        Ok(Matrix { rows, cols, dtype, block })
    }

    /// Tiles that are going to be written.
    pub(super) fn codes(
        &self,
        what: &'static str,
        (tiling, format): (Tiling, ScaleFormat),
        (rows, cols): (usize, usize),
    ) -> Result<Tiles, DeviceError> {
        let codes = Arc::new(self.block(what, rows * cols)?);
        let bytes = Shape { rows, cols }.scale_bytes(tiling, format);
        let scales = Arc::new(self.block(what, bytes)?);
        Ok(Tiles { rows, cols, format, codes, scales })
    }

    /// A tensor of the host. Its bytes have been read when this returns.
    pub(super) fn upload(&self, what: &'static str, x: &Tensor) -> Result<Matrix, DeviceError> {
        let matrix = self.matrix(what, x.dtype(), (x.rows(), x.cols()))?;
        self.stream.upload(matrix.slice(), x.bytes())?;
        Ok(matrix)
    }

    /// Bytes of the host.
    pub(super) fn upload_bytes(&self, what: &'static str, x: &[u8]) -> Result<Block, DeviceError> {
        let block = self.block(what, x.len())?;
        self.stream.upload(block.all(), x)?;
        Ok(block)
    }

    /// Waits for everything queued so far.
    pub(super) fn download(&self, x: &Matrix) -> Result<Tensor, DeviceError> {
        let bytes: Vec<u8> = self.download_all(x.slice())?;
        let shape = [x.rows, x.cols];
        Ok(Tensor::from_bytes(x.dtype, &shape, &bytes)
            .expect("a matrix has the bytes of its shape"))
    }

    /// Waits for everything queued so far.
    pub(super) fn download_all<T: Pod>(&self, x: Slice<'_>) -> Result<Vec<T>, DeviceError> {
        let mut values = vec![T::zeroed(); x.bytes() / size_of::<T>()];
        self.stream.download(x, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// The one number of a block. Waits for everything queued so far.
    pub(super) fn number<T: Pod>(&self, x: &Block) -> Result<T, DeviceError> {
        let mut value = T::zeroed();
        self.stream.download(x.all(), bytemuck::bytes_of_mut(&mut value))?;
        Ok(value)
    }

    /// BF16 activations in the form of a Linear's input. In BF16 these are the same numbers, not a copy.
    pub(super) fn operand(&self, x: &Matrix, math: Math) -> Result<Operand, DeviceError> {
        match math {
            Math::F32 => panic!("precision f32 stays on the CPU"),
            Math::Bf16 => Ok(Operand::Bf16(x.clone())),
            Math::Fp8(format) => {
                let form = (Tiling::Row, format);
                let codes = self.codes("the input of a Linear", form, (x.rows, x.cols))?;
                self.kernels.quantise.rows(
                    &self.stream,
                    x.slice(),
                    codes.slices(),
                    codes.shape(),
                )?;
                Ok(Operand::Fp8(codes))
            }
        }
    }

    /// The norm of some columns of `x`, in the form of a Linear's input.
    pub(super) fn normed(
        &self,
        x: Rows<'_>,
        gain: Slice<'_>,
        norm: rmsnorm::Norm,
        math: Math,
    ) -> Result<Operand, DeviceError> {
        let (shape, what) = ((norm.rows, norm.cols), "the output of a norm");
        let (y, tiles) = match math {
            Math::F32 => panic!("precision f32 stays on the CPU"),
            Math::Bf16 => (Some(self.matrix(what, DType::Bf16, shape)?), None),
            Math::Fp8(format) => (None, Some(self.codes(what, (Tiling::Row, format), shape)?)),
        };
        let rows = y.as_ref().map(Matrix::packed);
        let slices = tiles.as_ref().map(Tiles::slices);
        self.kernels.rmsnorm.forward(&self.stream, (x, gain, None), rows, slices, norm)?;
        Ok(match (y, tiles) {
            (_, Some(tiles)) => Operand::Fp8(tiles),
            (Some(y), None) => Operand::Bf16(y),
            (None, None) => panic!("a norm has an output"),
        })
    }

    /// y = x w^T.
    pub(super) fn linear(
        &self,
        w: &Weight,
        x: &Operand,
        out: DType,
    ) -> Result<Matrix, DeviceError> {
        self.grouped_linear(w, x, out, None)
    }

    /// The same; with groups, each row by its expert's matrix.
    pub(super) fn grouped_linear(
        &self,
        w: &Weight,
        x: &Operand,
        out: DType,
        groups: Option<gemm::Groups<'_>>,
    ) -> Result<Matrix, DeviceError> {
        let y = self.matrix("the output of a Linear", out, (x.rows(), w.n))?;
        self.zero_gaps(&y, groups)?;
        let (to, shape) = (y.output(false), w.shape(x.rows()));
        self.kernels.gemm.forward(&self.stream, x.side(), w.side(), to, shape, groups)?;
        Ok(y)
    }

    /// A grouped product leaves rows of no expert alone; they must be zero where columns are quantised next.
    fn zero_gaps(&self, x: &Matrix, groups: Option<gemm::Groups<'_>>) -> Result<(), DeviceError> {
        if groups.is_some() { self.stream.fill(x.slice(), 0) } else { Ok(()) }
    }

    /// dx = dy w.
    pub(super) fn linear_input_gradient(
        &self,
        w: &Weight,
        dy: &Operand,
        out: DType,
    ) -> Result<Matrix, DeviceError> {
        self.grouped_input_gradient(w, dy, out, None)
    }

    /// The same; with groups, each row by its expert's matrix.
    pub(super) fn grouped_input_gradient(
        &self,
        w: &Weight,
        dy: &Operand,
        out: DType,
        groups: Option<gemm::Groups<'_>>,
    ) -> Result<Matrix, DeviceError> {
        let dx = self.matrix("the gradient of a Linear's input", out, (dy.rows(), w.k))?;
        self.zero_gaps(&dx, groups)?;
        let (to, shape) = (dx.output(false), w.shape(dy.rows()));
        self.kernels.gemm.input_grad(&self.stream, dy.side(), w.side(), to, shape, groups)?;
        Ok(dx)
    }

    /// dx += dy w, FP32.
    pub(super) fn add_linear_input_gradient(
        &self,
        w: &Weight,
        dy: &Operand,
        dx: &Matrix,
    ) -> Result<(), DeviceError> {
        self.add_grouped_input_gradient(w, dy, dx, None)
    }

    /// The same; with groups, each row by its expert's matrix.
    pub(super) fn add_grouped_input_gradient(
        &self,
        w: &Weight,
        dy: &Operand,
        dx: &Matrix,
        groups: Option<gemm::Groups<'_>>,
    ) -> Result<(), DeviceError> {
        let (to, shape) = (dx.output(true), w.shape(dy.rows()));
        self.kernels.gemm.input_grad(&self.stream, dy.side(), w.side(), to, shape, groups)
    }

    /// dw += dy^T x, FP32, of one matrix or of those of several experts; both sides as `by_columns` gives them.
    pub(super) fn add_weight_gradient(
        &self,
        x: &Operand,
        dy: &Operand,
        dw: Slice<'_>,
        groups: Option<gemm::Groups<'_>>,
    ) -> Result<(), DeviceError> {
        let shape = gemm::Shape { t: x.rows(), n: dy.cols(), k: x.cols() };
        let dw = gemm::Output { values: dw, dtype: DType::F32, accumulate: true };
        self.kernels.gemm.weight_grad(&self.stream, dy.side(), x.side(), dw, shape, groups)
    }

    /// The same numbers in 128 x 1 tiles, as a weight gradient wants them.
    pub(super) fn by_columns(&self, x: &Operand) -> Result<Operand, DeviceError> {
        let Operand::Fp8(by_row) = x else { return Ok(x.clone()) };
        let form = (Tiling::Column, by_row.format);
        let codes = self.codes("a side of a weight gradient", form, (by_row.rows, by_row.cols))?;
        let (from, to, shape) = (by_row.slices(), codes.slices(), codes.shape());
        self.kernels.quantise.requantise_columns(&self.stream, from, to, shape)?;
        Ok(Operand::Fp8(codes))
    }

    /// sum += x, rounded to the dtype of the sum.
    pub(super) fn add(&self, sum: &Matrix, x: &Matrix) -> Result<(), DeviceError> {
        assert_eq!((sum.rows, sum.cols), (x.rows, x.cols), "add: shapes");
        self.kernels.elementwise.add(&self.stream, sum.vector(), x.vector(), sum.len())
    }

    /// FP32 sums rounded to BF16.
    pub(super) fn rounded(&self, x: &Matrix) -> Result<Matrix, DeviceError> {
        let y = self.matrix("a rounded sum", DType::Bf16, (x.rows, x.cols))?;
        self.kernels.elementwise.cast(&self.stream, x.vector(), y.vector(), x.len())?;
        Ok(y)
    }

    /// Gradient of a norm's input, written to `dx`, plus a residual's; that of its gain is accumulated.
    pub(super) fn norm_backward(
        &self,
        p: &Parameters,
        (gain, norm): (GroupId, rmsnorm::Norm),
        (x, dy): (Rows<'_>, Rows<'_>),
        dx: Rows<'_>,
        residual: Option<Slice<'_>>,
    ) -> Result<(), DeviceError> {
        let scratch = self.block("partial sums of a norm", norm.scratch_bytes())?;
        let upstream = rmsnorm::Upstream { x, gain: p.master(gain), dy, residual };
        let gradients = rmsnorm::Gradients { dx, d_gain: p.gradient(gain), scratch: scratch.all() };
        self.kernels.rmsnorm.backward(&self.stream, upstream, gradients, norm)
    }

    /// Gradient of a residual block's input [T, D] from that of its norm's output, FP32, and that of the block's output.
    pub(super) fn norm_backward_onto(
        &self,
        p: &Parameters,
        gain: GroupId,
        norm: rmsnorm::Norm,
        (x, d_n): (&Matrix, &Matrix),
        d_y: &Matrix,
    ) -> Result<Matrix, DeviceError> {
        let d_n = self.rounded(d_n)?;
        let d_x = self.matrix("the gradient of a block's input", DType::Bf16, (x.rows, x.cols))?;
        let sides = (x.packed(), d_n.packed());
        self.norm_backward(p, (gain, norm), sides, d_x.packed(), Some(d_y.slice()))?;
        Ok(d_x)
    }

    /// The norm of rows, BF16.
    pub(super) fn plain_norm(
        &self,
        p: &Parameters,
        gain: GroupId,
        norm: rmsnorm::Norm,
        x: Rows<'_>,
    ) -> Result<Matrix, DeviceError> {
        let Operand::Bf16(y) = self.normed(x, p.master(gain), norm, Math::Bf16)? else {
            unreachable!("a norm in BF16 is BF16")
        };
        Ok(y)
    }

    /// Token ids on the device, sorted for their gradient.
    pub(super) fn tokens(
        &self,
        ids: &[u32],
        vocabulary: usize,
    ) -> Result<embedding::Tokens, DeviceError> {
        embedding::Tokens::new(&self.arena, &self.stream, ids, vocabulary)
    }

    /// The embedding's rows of some tokens [T, D].
    pub(super) fn embedded(
        &self,
        p: &Parameters,
        table: GroupId,
        tokens: &embedding::Tokens,
    ) -> Result<Matrix, DeviceError> {
        let weight = p.weight(table);
        let gemm::Operand::Bf16(values) = weight.side() else { panic!("a table is never in FP8") };
        let y = self.matrix("embedded tokens", DType::Bf16, (tokens.len(), weight.k))?;
        self.kernels.embedding.forward(&self.stream, values, tokens, y.slice(), weight.k)?;
        Ok(y)
    }

    /// Adds the gradient of what `embedded` gave to the table's.
    pub(super) fn add_embedding_gradient(
        &self,
        p: &Parameters,
        table: GroupId,
        tokens: &embedding::Tokens,
        d_y: &Matrix,
    ) -> Result<(), DeviceError> {
        let (d_table, width) = (p.gradient(table), p.weight(table).k);
        self.kernels.embedding.backward(&self.stream, tokens, d_y.slice(), d_table, width)
    }

    /// Rows of an operand by an index of u32, `rows` of them; zeros where it names none.
    pub(super) fn gather(
        &self,
        x: &Operand,
        index: Slice<'_>,
        rows: usize,
    ) -> Result<Operand, DeviceError> {
        let (what, cols) = ("rows by expert", x.cols());
        let out = match x {
            Operand::Bf16(_) => Operand::Bf16(self.matrix(what, DType::Bf16, (rows, cols))?),
            Operand::Fp8(x) => {
                Operand::Fp8(self.codes(what, (Tiling::Row, x.format), (rows, cols))?)
            }
        };
        let moved = dispatch::Moved { from: x.rows(), to: rows, columns: cols };
        self.kernels.dispatch.gather_rows(&self.stream, x.side(), out.side(), index, moved)?;
        Ok(out)
    }

    /// Row r of the result is the sum of the rows that `terms[first[r] .. first[r + 1]]` name, in that order, and of row r
    /// of `also`, FP32; rounded once.
    pub(super) fn sum_rows(
        &self,
        x: &Matrix,
        (first, terms): (Slice<'_>, Slice<'_>),
        rows: usize,
        also: Option<&Matrix>,
        out: DType,
    ) -> Result<Matrix, DeviceError> {
        let y = self.matrix("sums of rows", out, (rows, x.cols))?;
        let terms = dispatch::Terms { first, index: terms };
        let from = dispatch::Values { values: x.slice(), dtype: x.dtype };
        let to = dispatch::Values { values: y.slice(), dtype: out };
        let moved = dispatch::Moved { from: x.rows, to: rows, columns: x.cols };
        let also = also.map(Matrix::slice);
        self.kernels.dispatch.sum_rows(&self.stream, from, terms, also, to, moved)?;
        Ok(y)
    }

    /// An operand of the host.
    pub(super) fn upload_operand(
        &self,
        what: &'static str,
        x: &linear::Operand,
    ) -> Result<Operand, DeviceError> {
        Ok(match x {
            linear::Operand::F32(_) => panic!("precision f32 stays on the CPU"),
            linear::Operand::Bf16(x) => Operand::Bf16(self.upload(what, x)?),
            linear::Operand::Fp8(x) => {
                let form = (Tiling::Row, x.scales().format());
                let codes = self.codes(what, form, (x.rows(), x.cols()))?;
                self.stream.upload(codes.codes.all(), x.codes())?;
                self.stream.upload(codes.scales.all(), x.scales().bytes())?;
                Operand::Fp8(codes)
            }
        })
    }

    /// Waits for everything queued so far.
    pub(super) fn download_operand(&self, x: &Operand) -> Result<linear::Operand, DeviceError> {
        Ok(match x {
            Operand::Bf16(x) => linear::Operand::Bf16(self.download(x)?),
            Operand::Fp8(x) => {
                let codes: Vec<u8> = self.download_all(x.codes.all())?;
                let scales: Vec<u8> = self.download_all(x.scales.all())?;
                let form = (Tiling::Row, x.format);
                let read = Quantized::from_parts((x.rows, x.cols), form, &codes, &scales);
                linear::Operand::Fp8(read)
            }
        })
    }
}
