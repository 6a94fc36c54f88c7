//! Rotary positions on the device: pairs of neighbouring columns turned, in place. The judges are
//! [`crate::mla::split_forward`] and [`crate::mla::split_backward`]: results are the same bytes.
//!
//! T tokens, H heads, P rotated columns (even). Column pair i of head h of token t lies at `t * token_stride +
//! h * head_stride + 2 i` elements of BF16, so that the rotated part of queries, of keys, or of the one key for all
//! heads is reached where it lies; what is beside it is left alone. Turns are FP32 pairs (cosine, sine), a row of P for
//! each position of a sequence ([`crate::mla::HeadShape::turns`]); the position of a token is `t %
//! tokens_per_sequence`.
//! - [`Kernels::turn`]  (a, b) becomes (a cos - b sin, a sin + b cos), rounded. 4 bytes moved for each element.
//! - [`Kernels::turn_back`]  its transpose, for gradients: (a cos + b sin, b cos - a sin). 4 bytes for each element.
//! - [`Kernels::sum_back`]  out `(T, P)` = the sum over heads, in order, of what is turned back, in FP32, rounded once:
//!   the gradient of the one key. Overwritten. 2 bytes for each element of x, 2 for each of out.
//!
//! Any sizes. Deterministic. Source: `DeepSeek`-V3 report 2.1.1; pairs are interleaved, as in its checkpoints.
#![expect(unsafe_code, reason = "launches kernels")]

use super::check::{Check, Rows};
use super::image::ROPE;
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// As in `rope.cu`.
const THREADS: usize = 256;
const CHUNK: usize = 8;

/// x, turns; tokens, heads, their strides, columns, tokens of a sequence.
type Turn = Function<(Address, Address, u32, u32, u32, u32, u32, u32)>;
/// x, turns, out; the same, stride of out.
type SumBack = Function<(Address, Address, Address, u32, u32, u32, u32, u32, u32, u32)>;

/// The kernels of `rope.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    turn: Turn,
    turn_back: Turn,
    sum_back: SumBack,
}

/// Where the rotated columns lie in a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub tokens: usize,
    pub heads: usize,
    /// Rotated columns of a head.
    pub cols: usize,
    /// Elements from one token to the next, and from one head to the next.
    pub token_stride: usize,
    pub head_stride: usize,
    pub tokens_per_sequence: usize,
}

impl Heads {
    /// Checks all but the slices.
    fn checked(&self, check: Check) -> Result<(), DeviceError> {
        let Self { tokens, heads, cols, token_stride, head_stride, tokens_per_sequence } = *self;
        if !cols.is_multiple_of(2) {
            return check.wrong(format!("{cols} columns cannot be turned in pairs"));
        }
        if tokens_per_sequence == 0 || heads == 0 {
            return check.wrong(format!(
                "{heads} heads, {tokens_per_sequence} tokens a sequence: there is at least one of each"
            ));
        }
        if (heads > 1 && head_stride < cols) || token_stride < (heads - 1) * head_stride + cols {
            return check.wrong(format!(
                "{heads} heads of {cols} columns, {head_stride} apart, do not fit between tokens {token_stride} apart"
            ));
        }
        let numbers = [tokens, heads, cols, token_stride, head_stride, tokens_per_sequence];
        numbers.iter().try_for_each(|n| check.number("a size", *n).map(drop))
    }

    /// Elements from the first that is turned to the last.
    fn extent(&self) -> usize {
        match self.tokens {
            0 => 0,
            tokens => {
                (tokens - 1) * self.token_stride + (self.heads - 1) * self.head_stride + self.cols
            }
        }
    }

    /// Bytes of the turns that are read at least.
    fn turn_bytes(&self) -> usize {
        4 * self.cols * self.tokens_per_sequence.min(self.tokens)
    }

    fn slices(&self, check: Check, x: Slice<'_>, turns: Slice<'_>) -> Result<(), DeviceError> {
        self.checked(check)?;
        let (least, most) = (2 * self.extent(), 2 * self.tokens * self.token_stride);
        if !(least..=most).contains(&x.bytes()) || !x.is_aligned(2) {
            let bytes = x.bytes();
            return check
                .wrong(format!("x has {bytes} bytes, {least} to {most} are wanted, for {self:?}"));
        }
        if turns.bytes() < self.turn_bytes() || !turns.is_aligned(16) {
            let (bytes, least) = (turns.bytes(), self.turn_bytes());
            return check.wrong(format!("turns have {bytes} bytes, at least {least} are wanted"));
        }
        Ok(())
    }

    fn grid(&self, check: Check, heads: usize) -> Result<Grid, DeviceError> {
        let chunks = self.tokens * heads * self.cols.div_ceil(CHUNK);
        let chunks = check.number("tokens times heads times chunks of 8 columns", chunks)?;
        Ok(Grid::line(chunks.div_ceil(THREADS as u32), THREADS as u32))
    }
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&ROPE)?)
    }

    /// Those of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        Ok(Self {
            turn: module.function("rope_turn", 0)?,
            turn_back: module.function("rope_turn_back", 0)?,
            sum_back: module.function("rope_sum_back", 0)?,
        })
    }

    /// See the head of this file. `x` begins at the first rotated column of the first head.
    ///
    /// # Errors
    /// Sizes that do not fit `heads`; what the driver says.
    pub fn turn(
        &self,
        stream: &Stream,
        x: Slice<'_>,
        turns: Slice<'_>,
        heads: Heads,
    ) -> Result<(), DeviceError> {
        in_place(Check("rope"), &self.turn, stream, (x, turns), heads)
    }

    /// See the head of this file. `x` begins at the first rotated column of the first head.
    ///
    /// # Errors
    /// Sizes that do not fit `heads`; what the driver says.
    pub fn turn_back(
        &self,
        stream: &Stream,
        x: Slice<'_>,
        turns: Slice<'_>,
        heads: Heads,
    ) -> Result<(), DeviceError> {
        in_place(Check("rope backward"), &self.turn_back, stream, (x, turns), heads)
    }

    /// See the head of this file. `x` begins at the first rotated column of the first head.
    ///
    /// # Errors
    /// Sizes that do not fit `heads`, a result that overlaps with something else; what the driver says.
    pub fn sum_back(
        &self,
        stream: &Stream,
        (x, turns): (Slice<'_>, Slice<'_>),
        out: Rows<'_>,
        heads: Heads,
    ) -> Result<(), DeviceError> {
        const CHECK: Check = Check("rope backward of one key");
        heads.slices(CHECK, x, turns)?;
        CHECK.rows("out", out, (heads.tokens, heads.cols), 2)?;
        CHECK.apart(&[("out", out.slice)], &[("x", x), ("turns", turns)])?;
        let grid = heads.grid(CHECK, 1)?;
        let arguments = (
            x.address(),
            turns.address(),
            out.address(),
            heads.tokens as u32,
            heads.heads as u32,
            heads.token_stride as u32,
            heads.head_stride as u32,
            heads.cols as u32,
            heads.tokens_per_sequence as u32,
            out.stride as u32,
        );
        // SAFETY: the kernel stays inside matrices of these shapes, whose sizes were checked above.
        unsafe { self.sum_back.launch(stream, grid, arguments) }
    }
}

fn in_place(
    check: Check,
    function: &Turn,
    stream: &Stream,
    (x, turns): (Slice<'_>, Slice<'_>),
    heads: Heads,
) -> Result<(), DeviceError> {
    heads.slices(check, x, turns)?;
    check.apart(&[("x", x)], &[("turns", turns)])?;
    let grid = heads.grid(check, heads.heads)?;
    let arguments = (
        x.address(),
        turns.address(),
        heads.tokens as u32,
        heads.heads as u32,
        heads.token_stride as u32,
        heads.head_stride as u32,
        heads.cols as u32,
        heads.tokens_per_sequence as u32,
    );
    // SAFETY: the kernel stays inside matrices of these shapes, whose sizes were checked above.
    unsafe { function.launch(stream, grid, arguments) }
}
