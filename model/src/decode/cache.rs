//! What the tokens of one sequence left in every layer.

use shoal_kernels::tensor::{DType, Tensor};

/// Positions that a cache starts with; it doubles when they are used up.
const POSITIONS: usize = 64;

/// Latents and rotated keys of one sequence.
#[derive(Clone, Debug)]
pub struct Cache {
    /// By layer, [positions, latent + rotated key]: BF16, or FP32 in precision f32.
    layers: Vec<Tensor>,
    width: usize,
    len: usize,
}

impl Cache {
    pub(super) fn new(n_layers: usize, width: usize, dtype: DType) -> Self {
        let layer = || Tensor::zeros(dtype, &[POSITIONS, width]);
        Self { layers: (0..n_layers).map(|_| layer()).collect(), width, len: 0 }
    }

    /// Tokens taken up.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory it takes.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.bytes().len()).sum()
    }

    /// Forgets every token from position `len` on: drafts that were wrong.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Writes the rows of the tokens that come next, of one layer.
    pub(super) fn write(&mut self, layer: usize, rows: &[f32]) {
        let (tensor, width) = (&mut self.layers[layer], self.width);
        let want = self.len + rows.len() / width;
        if tensor.rows() < want {
            let mut longer = Tensor::zeros(tensor.dtype(), &[want.next_power_of_two(), width]);
            let mut old = vec![0.0; self.len * width];
            tensor.read_rows(0..self.len, &mut old);
            longer.write_rows(0, &old);
            *tensor = longer;
        }
        tensor.write_rows(self.len, rows);
    }

    pub(super) fn layer(&self, layer: usize) -> &Tensor {
        &self.layers[layer]
    }

    /// Counts the tokens that every layer has written.
    pub(super) fn extend(&mut self, n: usize) {
        self.len += n;
    }
}
