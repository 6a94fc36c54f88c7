//! What a case is given, and how it moves bytes.

use std::sync::OnceLock;

use shoal_kernels::cuda::gemm;
use shoal_kernels::cuda::window;
use shoal_kernels::cuda::quantise::Kernels;
use shoal_kernels::cuda::{Buffer, Device, Module, Slice, Stream};

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
    quantise: OnceLock<Kernels>,
    gemm: OnceLock<gemm::Kernels>,
    window: OnceLock<window::Kernels>,
    /// Takes the place of the PTX that it was made from.
    mutant: Option<&'static Mutant>,
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
        let (quantise, gemm, window) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { device, stream, seed, quantise, gemm, window, mutant }
    }

    /// The kernels of `quantise.cu`, loaded once: the driver compiles them for seconds.
    pub(crate) fn quantise(&self) -> &Kernels {
        self.quantise.get_or_init(|| match self.mutant.filter(|mutant| !mutant.is_product()) {
            Some(mutant) => Kernels::of(&self.changed(mutant)).unwrap(),
            None => Kernels::load(&self.device).unwrap(),
        })
    }

    /// The matrix products, loaded once.
    pub(crate) fn gemm(&self) -> &gemm::Kernels {
        self.gemm.get_or_init(|| match self.mutant.filter(|mutant| mutant.is_product()) {
            Some(mutant) => gemm::Kernels::of(&self.device, &self.changed(mutant)).unwrap(),
            None => gemm::Kernels::load(&self.device).unwrap(),
        })
    }

    /// Columns of matrices, loaded once.
    pub(crate) fn window(&self) -> &window::Kernels {
        self.window.get_or_init(|| window::Kernels::load(&self.device).unwrap())
    }

    fn changed(&self, mutant: &Mutant) -> Module {
        self.device.load_ptx("a mutant", &mutant.ptx()).unwrap()
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
