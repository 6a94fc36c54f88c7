//! One cell's device: a queue, memory of its own, planned to the byte, and what the network does there.
//!
//! Everything is queued on one stream, so that a matrix may be dropped as soon as its last reader is queued
//! (`shoal_kernels::cuda::Arena`). Nothing waits for the device but `download`.

use std::sync::Arc;

use shoal_kernels::cuda::quantise::Shape;
use shoal_kernels::cuda::{
    Arena, Block, Device, DeviceError, Meter, Rows, Slice, Staging, Stream, Usage, adamw,
    attention, cross_entropy, dispatch, elementwise, embedding, gemm, quantise, reduce, rmsnorm,
    rope, router, swiglu, window,
};
use shoal_kernels::linear::Math;
use shoal_kernels::{DType, ScaleFormat, Tiling};

use super::matrix::{Matrix, Operand, Tiles};
use super::parameters::{GroupId, Parameters, Weight};
use super::room::{Extent, Room};

/// Bytes that cross between host and device in one go: some tenths of a millisecond of PCIe.
const PART: usize = 4 << 20;

/// A cell's part of a device. A clone is the same.
#[derive(Clone, Debug)]
pub struct Gpu {
    pub(super) stream: Arc<Stream>,
    pub(super) arena: Arena,
    pub(super) kernels: Arc<Kernels>,
    pub(super) staging: Arc<Staging>,
    room: Option<Room>,
}

/// Every kernel of the network, loaded once for a device: the driver compiles them.
#[derive(Debug)]
pub struct Kernels {
    pub adamw: adamw::Kernels,
    pub attention: attention::Kernels,
    pub cross_entropy: cross_entropy::Kernels,
    pub dispatch: dispatch::Kernels,
    pub elementwise: elementwise::Kernels,
    pub embedding: embedding::Kernels,
    pub gemm: gemm::Kernels,
    pub quantise: quantise::Kernels,
    pub reduce: reduce::Kernels,
    pub rmsnorm: rmsnorm::Kernels,
    pub rope: rope::Kernels,
    pub router: router::Kernels,
    pub swiglu: swiglu::Kernels,
    pub window: window::Kernels,
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
    /// `bytes` of a device for one cell, which `what` names when there is no room for them.
    ///
    /// # Errors
    /// When the device has less.
    pub fn new(
        device: &Device,
        kernels: &Arc<Kernels>,
        (what, bytes): (&str, usize),
    ) -> Result<Self, DeviceError> {
        let stream = Arc::new(device.stream()?);
        let arena = Arena::new(device, what, bytes)?;
        let staging = Arc::new(Staging::new(device, PART)?);
        Ok(Self { stream, arena, kernels: Arc::clone(kernels), staging, room: None })
    }

    /// A device that is none, with all the memory there may be.
    pub(super) fn imagined() -> Result<Self, DeviceError> {
        let device = Device::imagined();
        let kernels = Arc::new(Kernels::load(&device)?);
        let stream = Arc::new(device.stream()?);
        let staging = Arc::new(Staging::new(&device, PART)?);
        Ok(Self { stream, arena: Arena::imagined(&device)?, kernels, staging, room: None })
    }

    /// The same for a cell that takes as much as it may ever have to hold at each place. Without, as much as there is.
    #[must_use]
    pub fn with_room(self, room: Room) -> Self {
        Self { room: Some(room), ..self }
    }

    pub(super) fn room(&self) -> Option<&Room> {
        self.room.as_ref()
    }

    /// Of a microbatch.
    pub(super) fn tokens_extent(&self, rows: usize) -> Extent {
        Extent { rows, room: self.room.map_or(rows, |room| room.tokens) }
    }

    /// Sequences of a microbatch, each of one token at least.
    pub(super) fn sequences_extent(&self, tokens: Extent) -> Extent {
        Extent {
            rows: tokens.rows,
            room: self.room.map_or(tokens.rows, |room| room.tokens / room.sequence.max(1)),
        }
    }

    /// Of what a shard was sent.
    pub(super) fn received_extent(&self, rows: usize) -> Extent {
        Extent { rows, room: self.room.map_or(rows, |room| room.received) }
    }

    /// How much of its memory is in use, and was at most.
    pub fn usage(&self) -> Usage {
        self.arena.usage()
    }

    /// Says so also when the cell is gone.
    pub fn meter(&self) -> Meter {
        self.arena.meter()
    }

    pub(super) fn block(&self, what: &'static str, bytes: usize) -> Result<Block, DeviceError> {
        self.arena.take(what, bytes)
    }

    /// So many bytes for each row.
    pub(super) fn rows(
        &self,
        what: &'static str,
        Extent { rows, room }: Extent,
        bytes: usize,
    ) -> Result<Block, DeviceError> {
        self.arena.take_room(what, rows * bytes, room * bytes)
    }

    /// Numbers that are going to be written.
    pub(super) fn matrix(
        &self,
        what: &'static str,
        dtype: DType,
        (extent, cols): (Extent, usize),
    ) -> Result<Matrix, DeviceError> {
        let block = Arc::new(self.rows(what, extent, cols * dtype.size())?);
        let Extent { rows, room } = extent;
        Ok(Matrix { rows, room, cols, dtype, block })
    }

    /// FP32 numbers for each of so many heads, and of these one for each token: [heads, T].
    pub(super) fn by_head(
        &self,
        what: &'static str,
        heads: usize,
        tokens: Extent,
    ) -> Result<Matrix, DeviceError> {
        let block = Arc::new(self.rows(what, tokens, 4 * heads)?);
        Ok(Matrix { rows: heads, room: heads, cols: tokens.rows, dtype: DType::F32, block })
    }

    /// Tiles that are going to be written.
    pub(super) fn codes(
        &self,
        what: &'static str,
        (tiling, format): (Tiling, ScaleFormat),
        (extent, cols): (Extent, usize),
    ) -> Result<Tiles, DeviceError> {
        let Extent { rows, room } = extent;
        let codes = Arc::new(self.rows(what, extent, cols)?);
        let bytes = |rows| Shape { rows, cols }.scale_bytes(tiling, format);
        let scales = Arc::new(self.arena.take_room(what, bytes(rows), bytes(room))?);
        Ok(Tiles { rows, room, cols, format, codes, scales })
    }

    /// BF16 activations in the form of a Linear's input. In BF16 these are the same numbers, not a copy.
    pub(super) fn operand(&self, x: &Matrix, math: Math) -> Result<Operand, DeviceError> {
        match math {
            Math::F32 => panic!("precision f32 stays on the CPU"),
            Math::Bf16 => Ok(Operand::Bf16(x.clone())),
            Math::Fp8(format) => {
                let form = (Tiling::Row, format);
                let codes = self.codes("the input of a Linear", form, (x.extent(), x.cols))?;
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
        let shape = (self.tokens_extent(norm.rows), norm.cols);
        let what = "the output of a norm";
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
        let y = self.matrix("the output of a Linear", out, (x.extent(), w.n))?;
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
        let dx = self.matrix("the gradient of a Linear's input", out, (dy.extent(), w.k))?;
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
        let size = (x.extent(), by_row.cols);
        let codes = self.codes("a side of a weight gradient", form, size)?;
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
        let y = self.matrix("a rounded sum", DType::Bf16, (x.extent(), x.cols))?;
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
        let most = rmsnorm::Norm { rows: self.tokens_extent(norm.rows).room, ..norm };
        let (bytes, room) = (norm.scratch_bytes(), most.scratch_bytes());
        let scratch = self.arena.take_room("partial sums of a norm", bytes, room)?;
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
        let size = (x.extent(), x.cols);
        let d_x = self.matrix("the gradient of a block's input", DType::Bf16, size)?;
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
        let ids = (ids, self.tokens_extent(ids.len()).room);
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
        let size = (self.tokens_extent(tokens.len()), weight.k);
        let y = self.matrix("embedded tokens", DType::Bf16, size)?;
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

    /// Room for an operand.
    pub(super) fn unwritten(
        &self,
        what: &'static str,
        math: Math,
        size: (Extent, usize),
    ) -> Result<Operand, DeviceError> {
        Ok(match math {
            Math::F32 => panic!("precision f32 stays on the CPU"),
            Math::Bf16 => Operand::Bf16(self.matrix(what, DType::Bf16, size)?),
            Math::Fp8(format) => Operand::Fp8(self.codes(what, (Tiling::Row, format), size)?),
        })
    }
}
