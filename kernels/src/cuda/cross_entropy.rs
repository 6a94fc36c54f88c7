//! The output head and its softmax cross entropy on the device, a chunk of rows at a time. The judge is
//! [`crate::cross_entropy`].
//!
//! T rows, D width, V vocabulary; row-major without gaps.
//! - h `(T, D)` and w `(V, D)`, the head: BF16.
//! - targets `(T)` u32: a token below V, or [`crate::cross_entropy::IGNORE`], whose loss and gradient are zero. Any other
//!   number is no token: its loss is NaN, and so is its gradient.
//! - losses `(T)`: FP32 in nats, overwritten; total, one FP64: their sum in a fixed order, overwritten. The caller
//!   divides.
//! - `d_h` `(T, D)`: the gradient of `scale * total`, BF16 or FP32, overwritten or added. dw `(V, D)`: FP32, added.
//!
//! Logits are FP32, of as many rows as there is room for; their gradient, `scale (softmax - onehot)`, is rounded to BF16, as
//! the operand of any BF16 product is, into room of its own, since products read matrices without gaps. Softmax is FP32.
//! Deterministic; how many rows have room decides how the sums of dw are put together, and no other bit.
//! Source: `DeepSeek`-V3 report 3.3.1, which keeps the head out of FP8.
#![expect(unsafe_code, reason = "launches kernels")]

use crate::tensor::DType;

use super::gemm::{self, Operand, Output, Shape as Linear};
use super::given::Given;
use super::image::CROSS_ENTROPY;
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// Threads of a block, as in `cross_entropy.cu`.
const THREADS: u32 = 512;

/// Logits, targets, losses, gradient or none, vocabulary, scale.
type Rows = Function<(Address, Address, Address, Address, u32, f32)>;
/// Losses, total, rows.
type Total = Function<(Address, Address, u32)>;

/// The kernels of `cross_entropy.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    rows: Rows,
    total: Total,
}

/// Rows, width and vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub t: usize,
    pub d: usize,
    pub v: usize,
}

/// What the head reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub h: Slice<'a>,
    pub w: Slice<'a>,
    pub targets: Slice<'a>,
}

/// Where losses go.
#[derive(Clone, Copy, Debug)]
pub struct Losses<'a> {
    pub losses: Slice<'a>,
    pub total: Slice<'a>,
}

/// Where gradients go, and the factor of the loss.
#[derive(Clone, Copy, Debug)]
pub struct Gradients<'a> {
    pub scale: f32,
    pub d_h: Output<'a>,
    pub dw: Slice<'a>,
}

/// Room for the logits of some rows, at least one: FP32, and for gradients as many BF16.
#[derive(Clone, Copy, Debug)]
pub struct Room<'a> {
    pub logits: Slice<'a>,
    pub d_logits: Slice<'a>,
}

/// A gradient of logits, BF16, of the loss times a factor.
#[derive(Clone, Copy, Debug)]
pub struct LogitsGradient<'a> {
    pub d_logits: Slice<'a>,
    pub scale: f32,
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&CROSS_ENTROPY)?)
    }

    /// Those of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        Ok(Self {
            rows: module.function("cross_entropy_rows", 0)?,
            total: module.function("cross_entropy_total", 0)?,
        })
    }

    /// The losses of logits `(T, V)`, FP32, and their gradient if it is wanted.
    ///
    /// # Errors
    /// When a slice has another size, or a result overlaps with what is read.
    #[expect(clippy::too_many_arguments, reason = "two matrices, two vectors and their sizes")]
    pub fn rows(
        &self,
        stream: &Stream,
        logits: Slice<'_>,
        targets: Slice<'_>,
        losses: Slice<'_>,
        gradient: Option<LogitsGradient<'_>>,
        (t, v): (usize, usize),
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("cross entropy");
        given.reads("logits", logits, 4 * t * v, 4)?;
        given.reads("targets", targets, 4 * t, 4)?;
        given.writes("losses", losses, 4 * t, 4)?;
        if let Some(LogitsGradient { d_logits, .. }) = gradient {
            given.writes("d_logits", d_logits, 2 * t * v, 2)?;
        }
        given.wants(0 < v, || "a vocabulary of no tokens".to_owned())?;
        let (t, v) = (given.size("the number of rows", t)?, given.size("the vocabulary", v)?);
        let (d_logits, scale) = gradient
            .map_or((Address(0), 0.0), |gradient| (gradient.d_logits.address(), gradient.scale));
        let [logits, targets, losses] = [logits, targets, losses].map(Slice::address);
        let arguments = (logits, targets, losses, d_logits, v, scale);
        // SAFETY: the kernel stays inside rows of this many logits, whose sizes were checked above.
        unsafe { self.rows.launch(stream, Grid::line(t, THREADS), arguments) }
    }

    /// The sum of losses `(T)`, as one FP64.
    ///
    /// # Errors
    /// When a slice has another size, or they overlap.
    pub fn total(
        &self,
        stream: &Stream,
        losses: Slice<'_>,
        total: Slice<'_>,
        t: usize,
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("cross entropy total");
        given.reads("losses", losses, 4 * t, 4)?;
        given.writes("total", total, 8, 8)?;
        let n = given.size("the number of rows", t)?;
        let arguments = (losses.address(), total.address(), n);
        // SAFETY: sizes were checked above.
        unsafe { self.total.launch(stream, Grid::line(1, THREADS), arguments) }
    }

    /// The loss alone. Of `room` only the logits are used.
    ///
    /// # Errors
    /// When a slice has another size, a result overlaps with what is read, or there is no room for a row.
    #[expect(clippy::too_many_arguments, reason = "what is multiplied, and where it goes")]
    pub fn evaluate(
        &self,
        stream: &Stream,
        gemm: &gemm::Kernels,
        inputs: Inputs<'_>,
        out: Losses<'_>,
        room: Slice<'_>,
        shape: Shape,
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("cross entropy evaluate");
        check(&mut given, inputs, out, shape)?;
        let alive = rows_alive(&mut given, "logits", room, 4, shape)?;
        for chunk in chunks(shape, alive) {
            self.chunk(stream, gemm, (inputs, out.losses), (room, None), &chunk)?;
        }
        self.total(stream, out.losses, out.total, shape.t)
    }

    /// The loss and both gradients.
    ///
    /// # Errors
    /// As for `evaluate`.
    #[expect(clippy::too_many_arguments, reason = "what is multiplied, and where it goes")]
    pub fn forward_backward(
        &self,
        stream: &Stream,
        gemm: &gemm::Kernels,
        inputs: Inputs<'_>,
        out: Losses<'_>,
        gradients: Gradients<'_>,
        room: Room<'_>,
        shape: Shape,
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("cross entropy");
        let Shape { t, d, v } = shape;
        let Gradients { scale, d_h, dw } = gradients;
        check(&mut given, inputs, out, shape)?;
        given.writes("d_h", d_h.values, t * d * d_h.dtype.size(), d_h.dtype.size() as u64)?;
        given.writes("dw", dw, 4 * v * d, 4)?;
        let alive = rows_alive(&mut given, "logits", room.logits, 4, shape)?;
        let alive = alive.min(rows_alive(&mut given, "d_logits", room.d_logits, 2, shape)?);
        for chunk in chunks(shape, alive) {
            let Chunk { first, shape: linear } = chunk;
            let d_logits = room.d_logits.slice(0..2 * linear.t * v);
            let gradient = Some(LogitsGradient { d_logits, scale });
            self.chunk(stream, gemm, (inputs, out.losses), (room.logits, gradient), &chunk)?;
            let d_logits = Operand::Bf16(d_logits);
            let row = d * d_h.dtype.size();
            let values = d_h.values.slice(first * row..(first + linear.t) * row);
            let d_h = Output { values, ..d_h };
            gemm.input_grad(stream, d_logits, Operand::Bf16(inputs.w), d_h, linear, None)?;
            let dw = Output { values: dw, dtype: DType::F32, accumulate: true };
            gemm.weight_grad(stream, d_logits, chunk.h(inputs), dw, linear, None)?;
        }
        self.total(stream, out.losses, out.total, t)
    }

    /// Logits of some rows, their losses, and their gradient if it is wanted.
    fn chunk(
        &self,
        stream: &Stream,
        gemm: &gemm::Kernels,
        (inputs, losses): (Inputs<'_>, Slice<'_>),
        (room, gradient): (Slice<'_>, Option<LogitsGradient<'_>>),
        chunk: &Chunk,
    ) -> Result<(), DeviceError> {
        let Chunk { first, shape } = *chunk;
        let rows = 4 * first..4 * (first + shape.t);
        let logits = room.slice(0..4 * shape.t * shape.n);
        let out = Output { values: logits, dtype: DType::F32, accumulate: false };
        gemm.forward(stream, chunk.h(inputs), Operand::Bf16(inputs.w), out, shape, None)?;
        let targets = inputs.targets.slice(rows.clone());
        let (losses, size) = (losses.slice(rows), (shape.t, shape.n));
        self.rows(stream, logits, targets, losses, gradient, size)
    }
}

/// Some rows of all.
struct Chunk {
    first: usize,
    shape: Linear,
}

impl Chunk {
    fn h<'a>(&self, inputs: Inputs<'a>) -> Operand<'a> {
        let row = 2 * self.shape.k;
        Operand::Bf16(inputs.h.slice(self.first * row..(self.first + self.shape.t) * row))
    }
}

fn chunks(shape: Shape, alive: usize) -> impl Iterator<Item = Chunk> {
    let Shape { t, d, v } = shape;
    (0..t).step_by(alive).map(move |first| {
        let rows = alive.min(t - first);
        Chunk { first, shape: Linear { t: rows, n: v, k: d } }
    })
}

fn check<'a>(
    given: &mut Given<'a>,
    inputs: Inputs<'a>,
    out: Losses<'a>,
    Shape { t, d, v }: Shape,
) -> Result<(), DeviceError> {
    given.reads("h", inputs.h, 2 * t * d, 2)?;
    given.reads("w", inputs.w, 2 * v * d, 2)?;
    given.reads("targets", inputs.targets, 4 * t, 4)?;
    given.writes("losses", out.losses, 4 * t, 4)?;
    given.writes("total", out.total, 8, 8)
}

/// How many rows of logits fit into the room.
fn rows_alive<'a>(
    given: &mut Given<'a>,
    what: &'static str,
    room: Slice<'a>,
    element: usize,
    Shape { t, v, .. }: Shape,
) -> Result<usize, DeviceError> {
    given.writes(what, room, room.bytes(), element as u64)?;
    given.wants(0 < v, || "a vocabulary of no tokens".to_owned())?;
    let (rows, bytes) = (room.bytes() / (element * v), room.bytes());
    given.wants(0 < rows || t == 0, || {
        format!("room for {what} of {bytes} bytes, want at least {} for a row", element * v)
    })?;
    Ok(rows.max(1))
}
