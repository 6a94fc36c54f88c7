//! Numbers of the network on a device: matrices, and what a Linear reads.

use std::sync::Arc;

use shoal_kernels::cuda::elementwise::Vector;
use shoal_kernels::cuda::quantise::{QuantizedSlices, Shape};
use shoal_kernels::cuda::window::Columns;
use shoal_kernels::cuda::{Block, Rows, Slice, gemm, rmsnorm};
use shoal_kernels::linear::Math;
use shoal_kernels::{DType, ScaleFormat};

use super::room::Extent;

/// Row-major, without gaps. A clone is the same numbers; they live in their cell's arena as long as any of them.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    pub(super) rows: usize,
    /// Rows that take room.
    pub(super) room: usize,
    pub(super) cols: usize,
    pub(super) dtype: DType,
    pub(super) block: Arc<Block>,
}

/// E4M3 with scales. A clone is the same numbers.
#[derive(Clone, Debug)]
pub(crate) struct Tiles {
    pub(super) rows: usize,
    /// Rows that take room.
    pub(super) room: usize,
    pub(super) cols: usize,
    pub(super) format: ScaleFormat,
    pub(super) codes: Arc<Block>,
    pub(super) scales: Arc<Block>,
}

/// What a Linear reads, in the form in which it is kept for backward: as on the host, but never FP32.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    Bf16(Matrix),
    /// 1 x 128 tiles.
    Fp8(Tiles),
}

impl Matrix {
    pub(super) fn slice(&self) -> Slice<'_> {
        self.block.all()
    }

    pub(super) fn extent(&self) -> Extent {
        Extent { rows: self.rows, room: self.room }
    }

    pub(super) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// The sizes of a norm of its rows.
    pub(super) fn norm(&self, eps: f32) -> rmsnorm::Norm {
        rmsnorm::Norm { rows: self.rows, cols: self.cols, eps }
    }

    /// As numbers one after the other.
    pub(super) fn vector(&self) -> Vector<'_> {
        Vector { slice: self.slice(), dtype: self.dtype }
    }

    /// As rows without gaps.
    pub(super) fn packed(&self) -> Rows<'_> {
        Rows::packed(self.slice(), self.cols)
    }

    /// Its rows from column `first` on, the rest of each lying between them.
    pub(super) fn rows_from(&self, first: usize) -> Rows<'_> {
        let start = (first * self.dtype.size()).min(self.block.bytes());
        Rows { slice: self.block.slice(start..self.block.bytes()), stride: self.cols }
    }

    /// Seen as rows of `row` numbers each, from number `first` of each on.
    pub(super) fn window(&self, row: usize, first: usize) -> Columns<'_> {
        let size = self.dtype.size();
        Columns { values: self.slice(), row: row * size, first: first * size }
    }

    /// Where a product of this dtype goes.
    pub(super) fn output(&self, accumulate: bool) -> gemm::Output<'_> {
        gemm::Output { values: self.slice(), dtype: self.dtype, accumulate }
    }
}

impl Tiles {
    pub(super) fn slices(&self) -> QuantizedSlices<'_> {
        let (codes, scales) = (self.codes.all(), self.scales.all());
        QuantizedSlices { codes, scales, format: self.format }
    }

    pub(super) fn shape(&self) -> Shape {
        Shape { rows: self.rows, cols: self.cols }
    }
}

impl Operand {
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Bf16(x) => x.rows,
            Self::Fp8(x) => x.rows,
        }
    }

    pub(super) fn extent(&self) -> Extent {
        match self {
            Self::Bf16(x) => x.extent(),
            Self::Fp8(x) => Extent { rows: x.rows, room: x.room },
        }
    }

    pub(super) fn cols(&self) -> usize {
        match self {
            Self::Bf16(x) => x.cols,
            Self::Fp8(x) => x.cols,
        }
    }

    pub(super) fn math(&self) -> Math {
        match self {
            Self::Bf16(_) => Math::Bf16,
            Self::Fp8(x) => Math::Fp8(x.format),
        }
    }

    pub(super) fn side(&self) -> gemm::Operand<'_> {
        match self {
            Self::Bf16(x) => gemm::Operand::Bf16(x.slice()),
            Self::Fp8(x) => gemm::Operand::Fp8(x.slices()),
        }
    }
}
