//! Rows of 128 x 128 blocks, each to be quantised by one task.

use super::{BLOCK, Quantized, Scales, Tiling, encode_blocks};

/// A row of blocks: 128 rows of codes or what is left of them, and a scale a block.
pub struct BlockRowsMut<'a> {
    cols: usize,
    codes: &'a mut [u8],
    scales: OfBlocks<'a>,
}

/// One scale a block.
enum OfBlocks<'a> {
    Pow2(&'a mut [u8]),
    Fp32(&'a mut [f32]),
}

impl BlockRowsMut<'_> {
    /// Codes.
    pub(crate) fn len(&self) -> usize {
        self.codes.len()
    }

    /// Quantises as many numbers, by the calling thread.
    pub(crate) fn encode(self, x: &[f32]) {
        assert_eq!(x.len(), self.codes.len(), "BlockRowsMut: numbers");
        match self.scales {
            OfBlocks::Pow2(scales) => encode_blocks(x, self.cols, self.codes, scales),
            OfBlocks::Fp32(scales) => encode_blocks(x, self.cols, self.codes, scales),
        }
    }
}

impl Quantized {
    /// All rows of blocks. Block tiling only.
    pub(crate) fn block_rows_mut(&mut self) -> Vec<BlockRowsMut<'_>> {
        assert_eq!(self.tiling, Tiling::Block, "block_rows_mut: tiles must be 128 x 128");
        let cols = self.cols;
        let (codes, blocks) = ((BLOCK * cols).max(1), cols.div_ceil(BLOCK).max(1));
        let codes = self.codes.chunks_mut(codes);
        let piece = |(codes, scales)| BlockRowsMut { cols, codes, scales };
        match &mut self.scales {
            Scales::Pow2(scales) => {
                codes.zip(scales.chunks_mut(blocks).map(OfBlocks::Pow2)).map(piece).collect()
            }
            Scales::Fp32(scales) => {
                codes.zip(scales.chunks_mut(blocks).map(OfBlocks::Fp32)).map(piece).collect()
            }
        }
    }
}
