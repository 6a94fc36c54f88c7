//! What crosses between host and device: matrices and operands both ways, and single numbers down.

use bytemuck::Pod;
use shoal_kernels::cuda::{Block, DeviceError, Fetch, Slice};
use shoal_kernels::{Quantized, Tensor, Tiling, linear};

use super::gpu::Gpu;
use super::matrix::{Matrix, Operand};
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
        self.fetched(self.fetch(x)?, x)
    }

    /// Begins to bring a matrix to the host. Nothing that is queued from now on is waited for.
    pub(super) fn fetch<'a>(&self, x: &'a Matrix) -> Result<Fetch<'a>, DeviceError> {
        self.staging.fetch(&self.stream, x.slice())
    }

    /// The matrix that was fetched.
    pub(super) fn fetched(&self, fetch: Fetch<'_>, x: &Matrix) -> Result<Tensor, DeviceError> {
        let shape = [x.rows, x.cols];
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

    /// The one number of a block. Waits for everything queued so far.
    pub(super) fn number<T: Pod>(&self, x: &Block) -> Result<T, DeviceError> {
        let mut value = T::zeroed();
        self.read(x.all(), bytemuck::bytes_of_mut(&mut value))?;
        Ok(value)
    }

    /// An operand of the host.
    pub(super) fn upload_operand(
        &self,
        what: &'static str,
        x: &linear::Operand,
        room: usize,
    ) -> Result<Operand, DeviceError> {
        Ok(match x {
            linear::Operand::F32(_) => panic!("precision f32 stays on the CPU"),
            linear::Operand::Bf16(x) => Operand::Bf16(self.upload(what, x, room)?),
            linear::Operand::Fp8(x) => {
                let form = (Tiling::Row, x.scales().format());
                let extent = Extent { rows: x.rows(), room };
                let codes = self.codes(what, form, (extent, x.cols()))?;
                self.write(codes.codes.all(), x.codes())?;
                self.write(codes.scales.all(), x.scales().bytes())?;
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
