//! What crosses between host and device: matrices and lists both ways, and single numbers down. Rows of experts: `super::legs`.

use bytemuck::Pod;
use shoal_kernels::Tensor;
use shoal_kernels::cuda::{Block, DeviceError, Slice};

use super::gpu::Gpu;
use super::matrix::Matrix;
use super::room::Extent;

impl Gpu {
    /// A tensor of the host. Its bytes have been read when this returns.
    pub(super) fn upload(
        &self,
        what: &'static str,
        x: &Tensor,
        room: usize,
    ) -> Result<Matrix, DeviceError> {
        let extent = Extent { rows: x.rows(), room };
        let matrix = self.matrix(what, x.dtype(), (extent, x.cols()))?;
        self.write(matrix.slice(), x.bytes())?;
        Ok(matrix)
    }

    /// Bytes of the host.
    pub(super) fn upload_bytes(&self, what: &'static str, x: &[u8]) -> Result<Block, DeviceError> {
        let block = self.block(what, x.len())?;
        self.write(block.all(), x)?;
        Ok(block)
    }

    /// Words of the host that take the room of `room` words.
    pub(super) fn upload_words<T: Pod>(
        &self,
        what: &'static str,
        x: &[T],
        room: usize,
    ) -> Result<Block, DeviceError> {
        let block = self.rows(what, Extent { rows: x.len(), room }, size_of::<T>())?;
        self.write(block.all(), bytemuck::cast_slice(x))?;
        Ok(block)
    }

    /// Waits for everything queued so far.
    pub(super) fn download(&self, x: &Matrix) -> Result<Tensor, DeviceError> {
        let (fetch, shape) = (self.staging.fetch(&self.stream, &[x.slice()])?, [x.rows, x.cols]);
        self.staging.fetched(fetch, |bytes| {
            Tensor::from_bytes(x.dtype, &shape, bytes).expect("a matrix has the bytes of its shape")
        })
    }

    /// Copies bytes of the host. They have been read when this returns.
    pub(super) fn write(&self, to: Slice<'_>, bytes: &[u8]) -> Result<(), DeviceError> {
        self.staging.upload(&self.stream, to, bytes)
    }

    /// Copies bytes to the host. Waits for everything queued so far.
    pub(super) fn read(&self, from: Slice<'_>, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.staging.download(&self.stream, from, bytes)
    }

    /// Waits for everything queued so far.
    pub(super) fn download_all<T: Pod>(&self, x: Slice<'_>) -> Result<Vec<T>, DeviceError> {
        let mut values = vec![T::zeroed(); x.bytes() / size_of::<T>()];
        self.read(x, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Several lists of words, one after the other. Waits for everything queued so far.
    pub(super) fn words(&self, from: &[Slice<'_>]) -> Result<Vec<u32>, DeviceError> {
        let fetch = self.staging.fetch(&self.stream, from)?;
        self.staging.fetched(fetch, |bytes| {
            bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
        })
    }

    /// The one number of a block. Waits for everything queued so far.
    pub(super) fn number<T: Pod>(&self, x: &Block) -> Result<T, DeviceError> {
        let mut value = T::zeroed();
        self.read(x.all(), bytemuck::bytes_of_mut(&mut value))?;
        Ok(value)
    }
}
