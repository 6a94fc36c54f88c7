//! What a case is given, and how it moves bytes.

use std::sync::OnceLock;

use shoal_kernels::cuda::image::Program;
use shoal_kernels::cuda::{
    Buffer, Device, DeviceError, Module, Rows, Slice, Stream, adamw, attention, cross_entropy,
    dispatch, elementwise, embedding, gemm, image, quantise, reduce, rmsnorm, rope, router, swiglu,
    window,
};
use shoal_kernels::{Quantized, ScaleFormat, Tensor, Tiling};

use super::honest::Mutant;

/// Bytes before and after what a kernel may write.
const GUARD: usize = 256;

/// What guards are filled with, and results before they are written.
const GUARD_BYTE: u8 = 0xa5;

/// What a check does: an error says what was seen and what was wanted.
type Check = Box<dyn Fn(&Gpu) -> Result<(), String>>;

/// One named check.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) run: Check,
}

impl Case {
    pub(crate) fn new(
        name: impl Into<String>,
        run: impl Fn(&Gpu) -> Result<(), String> + 'static,
    ) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// The device that is tried.
pub(crate) struct Gpu {
    pub(crate) device: Device,
    pub(crate) stream: Stream,
    pub(crate) seed: u64,
    programs: Programs,
    /// Takes the place of the PTX that it was made from.
    mutant: Option<&'static Mutant>,
}

/// The kernels of each `.cu`, loaded once.
#[derive(Default)]
struct Programs {
    adamw: OnceLock<adamw::Kernels>,
    attention: OnceLock<attention::Kernels>,
    cross_entropy: OnceLock<cross_entropy::Kernels>,
    dispatch: OnceLock<dispatch::Kernels>,
    elementwise: OnceLock<elementwise::Kernels>,
    embedding: OnceLock<embedding::Kernels>,
    gemm: OnceLock<gemm::Kernels>,
    quantise: OnceLock<quantise::Kernels>,
    reduce: OnceLock<reduce::Kernels>,
    rmsnorm: OnceLock<rmsnorm::Kernels>,
    rope: OnceLock<rope::Kernels>,
    router: OnceLock<router::Kernels>,
    swiglu: OnceLock<swiglu::Kernels>,
    window: OnceLock<window::Kernels>,
}

/// The kernels of one program, loaded once: the driver compiles them for seconds.
macro_rules! programs {
    ($($name:ident = $program:ident,)+) => {
        impl Gpu {
            $(pub(crate) fn $name(&self) -> &$name::Kernels {
                let load = || $name::Kernels::of(&self.module(&image::$program)).unwrap();
                self.programs.$name.get_or_init(load)
            })+
        }
    };
}

programs! {
    adamw = ADAMW,
    attention = ATTENTION,
    cross_entropy = CROSS_ENTROPY,
    dispatch = DISPATCH,
    elementwise = ELEMENTWISE,
    embedding = EMBEDDING,
    quantise = QUANTISE,
    reduce = REDUCE,
    rmsnorm = RMSNORM,
    rope = ROPE,
    router = ROUTER,
    swiglu = SWIGLU,
    window = WINDOW,
}

/// Room for a result between two guards.
pub(crate) struct Guarded {
    buffer: Buffer,
    bytes: usize,
}

impl Gpu {
    pub(crate) fn new(
        device: Device,
        stream: Stream,
        seed: u64,
        mutant: Option<&'static Mutant>,
    ) -> Self {
        Self { device, stream, seed, programs: Programs::default(), mutant }
    }

    /// The matrix products.
    pub(crate) fn gemm(&self) -> &gemm::Kernels {
        let load = || gemm::Kernels::of(&self.device, &self.module(&image::GEMM_FP8)).unwrap();
        self.programs.gemm.get_or_init(load)
    }

    /// A program as it ships, or with the change that is tried.
    fn module(&self, program: &Program) -> Module {
        match self.mutant.filter(|mutant| mutant.program().name() == program.name()) {
            Some(mutant) => self.device.load_ptx("a mutant", &mutant.ptx()).unwrap(),
            None => self.device.load(program).unwrap(),
        }
    }

    /// Bytes on the device.
    pub(crate) fn upload(&self, bytes: &[u8]) -> Buffer {
        let buffer = self.device.buffer("an operand", bytes.len()).unwrap();
        self.stream.upload(buffer.all(), bytes).unwrap();
        buffer
    }

    /// Room whose bytes and surroundings are known.
    pub(crate) fn guarded(&self, bytes: usize) -> Guarded {
        let buffer = self.device.buffer("a result", bytes + 2 * GUARD).unwrap();
        self.stream.fill(buffer.all(), GUARD_BYTE).unwrap();
        Guarded { buffer, bytes }
    }

    pub(crate) fn download(&self, from: Slice<'_>) -> Vec<u8> {
        let mut bytes = vec![0; from.bytes()];
        self.stream.download(from, &mut bytes).unwrap();
        bytes
    }

    /// The result, if nothing beside it was written.
    pub(crate) fn result(&self, what: &str, guarded: &Guarded) -> Result<Vec<u8>, String> {
        let whole = self.download(guarded.buffer.all());
        let (before, rest) = whole.split_at(GUARD);
        let (result, after) = rest.split_at(guarded.bytes);
        if let Some(at) = before.iter().rposition(|byte| *byte != GUARD_BYTE) {
            return Err(format!("{what}: written {} bytes before its beginning", GUARD - at));
        }
        if let Some(at) = after.iter().position(|byte| *byte != GUARD_BYTE) {
            return Err(format!("{what}: written {} bytes after its end", at + 1));
        }
        Ok(result.to_vec())
    }
}

impl Guarded {
    pub(crate) fn slice(&self) -> Slice<'_> {
        self.buffer.slice(GUARD..GUARD + self.bytes)
    }
}

/// FP32 numbers as they lie in memory.
pub(crate) fn f32_bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The same, back.
pub(crate) fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

/// BF16 numbers of memory.
pub(crate) fn bf16s(bytes: &[u8]) -> Vec<f32> {
    let word = |pair: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16);
    bytes.as_chunks::<2>().0.iter().map(word).collect()
}

/// Within `rel` of the wanted numbers, or within `abs`; what is not finite is the same, any NaN being like another.
pub(crate) fn close(
    what: &str,
    got: &[f32],
    want: &[f32],
    (abs, rel): (f32, f32),
) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what}: {} numbers, want {}", got.len(), want.len()));
    }
    let agrees = |got: f32, want: f32| {
        if want.is_finite() {
            (got - want).abs() <= abs + rel * want.abs()
        } else {
            got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan())
        }
    };
    let differs = |i: &usize| !agrees(got[*i], want[*i]);
    match (0..got.len()).find(differs) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{what}[{at}] is {}, want {} within {abs} + {rel}; {} of {} differ",
            got[at],
            want[at],
            (0..got.len()).filter(differs).count(),
            got.len()
        )),
    }
}

/// The same numbers, bit for bit; any NaN is like another.
pub(crate) fn same(what: &str, got: &[f32], want: &[f32]) -> Result<(), String> {
    close(what, got, want, (0.0, 0.0))?;
    let differs = |i: &usize| got[*i].to_bits() != want[*i].to_bits() && !want[*i].is_nan();
    match (0..got.len()).find(differs) {
        None => Ok(()),
        Some(at) => Err(format!("{what}[{at}] is {:?}, want {:?}", got[at], want[at])),
    }
}

/// Room for rows of BF16 that begin `stride` apart, with gaps between them.
pub(crate) struct Gapped {
    guarded: Guarded,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Gapped {
    pub(crate) fn new(gpu: &Gpu, (rows, cols): (usize, usize), stride: usize) -> Self {
        let bytes = if rows == 0 { 0 } else { 2 * ((rows - 1) * stride + cols) };
        Self { guarded: gpu.guarded(bytes), rows, cols, stride }
    }

    /// A matrix on the device.
    pub(crate) fn holding(gpu: &Gpu, x: &Tensor, stride: usize) -> Self {
        let gapped = Self::new(gpu, (x.rows(), x.cols()), stride);
        let row_bytes = 2 * x.cols();
        for (row, bytes) in x.bytes().chunks_exact(row_bytes.max(1)).enumerate() {
            let first = 2 * row * stride;
            let slice = gapped.guarded.slice().slice(first..first + row_bytes);
            gpu.stream.upload(slice, bytes).unwrap();
        }
        gapped
    }

    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows { slice: self.guarded.slice(), stride: self.stride }
    }

    /// The matrix, if nothing was written between its rows.
    pub(crate) fn result(&self, gpu: &Gpu, what: &str) -> Result<Vec<u8>, String> {
        let whole = gpu.result(what, &self.guarded)?;
        let mut matrix = Vec::with_capacity(2 * self.rows * self.cols);
        for (row, bytes) in whole.chunks(2 * self.stride.max(1)).enumerate() {
            let (inside, gap) = bytes.split_at(2 * self.cols);
            if gap.iter().any(|byte| *byte != GUARD_BYTE) {
                return Err(format!("{what}: written beside row {row}"));
            }
            matrix.extend_from_slice(inside);
        }
        Ok(matrix)
    }
}

/// Room for a quantised matrix.
pub(crate) struct Tiles {
    codes: Guarded,
    scales: Guarded,
    format: ScaleFormat,
}

impl Tiles {
    pub(crate) fn new(
        gpu: &Gpu,
        shape: quantise::Shape,
        tiling: Tiling,
        format: ScaleFormat,
    ) -> Self {
        let codes = gpu.guarded(shape.rows * shape.cols);
        Self { codes, scales: gpu.guarded(shape.scale_bytes(tiling, format)), format }
    }

    /// A quantised matrix on the device.
    pub(crate) fn holding(gpu: &Gpu, x: &Quantized) -> Self {
        let shape = quantise::Shape { rows: x.rows(), cols: x.cols() };
        let tiles = Self::new(gpu, shape, x.tiling(), x.scales().format());
        gpu.stream.upload(tiles.codes.slice(), x.codes()).unwrap();
        gpu.stream.upload(tiles.scales.slice(), x.scales().bytes()).unwrap();
        tiles
    }

    pub(crate) fn slices(&self) -> quantise::QuantizedSlices<'_> {
        let (codes, scales) = (self.codes.slice(), self.scales.slice());
        quantise::QuantizedSlices { codes, scales, format: self.format }
    }

    /// The same bytes as the CPU's.
    pub(crate) fn are(&self, gpu: &Gpu, what: &str, want: &Quantized) -> Result<(), String> {
        let part = |part: &str| format!("{part} of {what}");
        let scales = gpu.result(&part("scales"), &self.scales)?;
        same_bytes(&part("scales"), &scales, want.scales().bytes())?;
        same_bytes(&part("codes"), &gpu.result(&part("codes"), &self.codes)?, want.codes())
    }
}

/// What must be refused, and the word that its error has.
pub(crate) fn refused(result: Result<(), DeviceError>, word: &str) -> Result<(), String> {
    match result {
        Err(error @ DeviceError::Sizes { .. }) if error.to_string().contains(word) => Ok(()),
        other => Err(format!("{other:?}, want an error about {word:?}")),
    }
}

/// The first difference between bytes, if any.
pub(crate) fn same_bytes(what: &str, got: &[u8], want: &[u8]) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what}: {} bytes, want {}", got.len(), want.len()));
    }
    let differ = got.iter().zip(want).filter(|(got, want)| got != want).count();
    match got.iter().zip(want).position(|(got, want)| got != want) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{what}: byte {at} is {:#04x}, want {:#04x}; {differ} of {} differ",
            got[at],
            want[at],
            want.len()
        )),
    }
}
