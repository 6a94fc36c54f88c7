//! Causal multi-head latent attention on the device, forward and backward, on projections that were rotated. The judges
//! are [`crate::attention`] and, with `rope.rs` before and behind, [`crate::mla::attend`].
//!
//! S sequences of `tokens` each, one after the other, T rows in all; H heads. `o = softmax(scale q k^T) v` inside each
//! sequence and head, a query seeing the keys up to its own. A head's query and key are `nope` plain and `rope` rotated
//! columns, the latter one key for all heads. Everything is BF16 and row-major without gaps, as the projections leave it;
//! no key is copied together:
//! - q `(T, H (nope + rope))`, kv `(T, H (nope + value))`, `k_rope` `(T, rope)`; `d_o` `(T, H value)`.
//! - o `(T, H value)`, overwritten. lse `(H, T)`: the log-sum-exp of each row, FP32, overwritten by forward.
//! - dq and `d_kv` as q and kv, overwritten. `dk_rope` `(T, H rope)`: each head's share, overwritten; their sum
//!   is `rope.rs`'s, which turns it back.
//! - delta `(H, T)`: FP32, the sums of `d_o` o, room that backward fills and uses.
//!
//! Products are those of BF16 tensor cores with sums in FP32; softmax is FP32. Weights, relative to the largest so far,
//! and gradients of scores are rounded to BF16 before they are multiplied; results are rounded once. No square is ever in
//! memory (Dao et al. 2022, arXiv:2205.14135): backward computes the weights again from lse.
//!
//! Heads may have up to 192 columns of queries and 128 of values, as those of `DeepSeek` have. There are kernels for 192
//! and 128, and for 48 and 32; other heads run as the next larger, filled up with zeros. Any number of tokens. Heads
//! whose rows are no multiples of 16 bytes, or do not begin at one, are read element by element, at a fraction of
//! the speed. Deterministic: each result is summed by one block in a fixed order. Source: `DeepSeek`-V3 report 2.1.1.
#![expect(unsafe_code, reason = "launches kernels")]

use super::given::Given;
use super::image::ATTENTION;
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// Threads of a block, and rows that it owns, as in `attention.cu`.
const THREADS: u32 = 256;
const QUERIES: usize = 128;
const KEYS: usize = 64;
const OWNED: usize = 64;
const PASSING: usize = 32;
/// Rows of heads whose delta one block computes: one for each of its warps.
const DELTA_ROWS: usize = 8;

/// q, kv, `k_rope`, o, lse; sequences, tokens, heads, three widths, scale.
#[rustfmt::skip]
type Forward = Function<(
    Address, Address, Address, Address, Address,
    u32, u32, u32, u32, u32, u32, f32,
)>;
/// q, kv, `k_rope`, `d_o`, lse, delta, dq; sizes and scale as above.
#[rustfmt::skip]
type QueryGradient = Function<(
    Address, Address, Address, Address, Address, Address, Address,
    u32, u32, u32, u32, u32, u32, f32,
)>;
/// q, kv, `k_rope`, `d_o`, lse, delta, `d_kv`, `dk_rope`; sizes and scale as above.
#[rustfmt::skip]
type KeyValueGradient = Function<(
    Address, Address, Address, Address, Address, Address, Address, Address,
    u32, u32, u32, u32, u32, u32, f32,
)>;
/// o, `d_o`, delta; sequences, tokens, heads, columns of a head.
type Delta = Function<(Address, Address, Address, u32, u32, u32, u32)>;

/// The kernels of `attention.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    /// By size of heads, ascending.
    sizes: [Size; 2],
    delta: Delta,
}

/// Kernels for heads of up to so many columns.
#[derive(Debug)]
struct Size {
    qk: usize,
    v: usize,
    forward: Forward,
    query_gradient: QueryGradient,
    key_value_gradient: KeyValueGradient,
}

/// Sequences, heads, and what is in a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub sequences: usize,
    /// Tokens of one sequence.
    pub tokens: usize,
    pub heads: usize,
    pub nope: usize,
    pub rope: usize,
    pub value: usize,
    pub scale: f32,
}

/// What both passes read.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub q: Slice<'a>,
    pub kv: Slice<'a>,
    pub k_rope: Slice<'a>,
}

/// What forward made, and the gradient that came back.
#[derive(Clone, Copy, Debug)]
pub struct Outputs<'a> {
    pub o: Slice<'a>,
    pub lse: Slice<'a>,
    pub d_o: Slice<'a>,
}

/// Where backward writes.
#[derive(Clone, Copy, Debug)]
pub struct Gradients<'a> {
    pub dq: Slice<'a>,
    pub d_kv: Slice<'a>,
    pub dk_rope: Slice<'a>,
    /// Room.
    pub delta: Slice<'a>,
}

impl Size {
    fn load(module: &Module, qk: usize, v: usize) -> Result<Self, DeviceError> {
        // A row has one chunk of 16 bytes more than its columns need.
        let row = |columns: usize| 2 * columns + 16;
        let forward = QUERIES * row(qk) + KEYS * (row(qk) + row(v));
        let backward = (OWNED + 2 * PASSING) * (row(qk) + row(v));
        let name = |kernel: &str| format!("attention_{kernel}_{qk}");
        Ok(Self {
            qk,
            v,
            forward: module.function(&name("forward"), forward as u32)?,
            query_gradient: module.function(&name("query_gradient"), backward as u32)?,
            key_value_gradient: module.function(&name("key_value_gradient"), backward as u32)?,
        })
    }
}

/// Sizes as kernels get them: sequences, tokens, heads, nope, rope, value.
type Counts = (u32, u32, u32, u32, u32, u32);

/// Bytes of each matrix.
struct Bytes {
    q: usize,
    kv: usize,
    k_rope: usize,
    o: usize,
    dk_rope: usize,
    lse: usize,
}

impl Shape {
    fn bytes(&self) -> Bytes {
        let Self { sequences, tokens, heads, nope, rope, value, .. } = *self;
        let (rows, of_heads) = (2 * sequences * tokens, 2 * sequences * tokens * heads);
        Bytes {
            q: of_heads * (nope + rope),
            kv: of_heads * (nope + value),
            k_rope: rows * rope,
            o: of_heads * value,
            dk_rope: of_heads * rope,
            lse: 2 * of_heads,
        }
    }

    /// A block for so many tokens of each head of each sequence.
    fn grid(&self, given: &Given<'_>, tokens: usize) -> Result<Grid, DeviceError> {
        let blocks = self.heads * self.sequences * self.tokens.div_ceil(tokens);
        Ok(Grid::line(given.size("the number of blocks", blocks)?, THREADS))
    }
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&ATTENTION)?)
    }

    /// Those of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        Ok(Self {
            sizes: [Size::load(module, 48, 32)?, Size::load(module, 192, 128)?],
            delta: module.function("attention_delta", 0)?,
        })
    }

    /// Writes o and lse.
    ///
    /// # Errors
    /// When a slice has another size than `s` says or overlaps with a result, or heads are too large.
    pub fn forward(
        &self,
        stream: &Stream,
        inputs: Inputs<'_>,
        (o, lse): (Slice<'_>, Slice<'_>),
        s: &Shape,
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("attention forward");
        let bytes = s.bytes();
        inputs.check(&mut given, &bytes)?;
        given.writes("o", o, bytes.o, 2)?;
        given.writes("lse", lse, bytes.lse, 4)?;
        let (size, n) = self.size(&given, s)?;
        let grid = s.grid(&given, QUERIES)?;
        let [q, kv, k_rope] = inputs.addresses();
        let (o, lse) = (o.address(), lse.address());
        let arguments = (q, kv, k_rope, o, lse, n.0, n.1, n.2, n.3, n.4, n.5, s.scale);
        // SAFETY: the kernel stays inside matrices of these sizes, which were checked above.
        unsafe { size.forward.launch(stream, grid, arguments) }
    }

    /// Writes the gradients of q, kv and each head's `k_rope`.
    ///
    /// # Errors
    /// As for `forward`.
    pub fn backward(
        &self,
        stream: &Stream,
        inputs: Inputs<'_>,
        outputs: Outputs<'_>,
        gradients: Gradients<'_>,
        s: &Shape,
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("attention backward");
        let bytes = s.bytes();
        inputs.check(&mut given, &bytes)?;
        given.reads("o", outputs.o, bytes.o, 2)?;
        given.reads("lse", outputs.lse, bytes.lse, 4)?;
        given.reads("d_o", outputs.d_o, bytes.o, 2)?;
        given.writes("dq", gradients.dq, bytes.q, 2)?;
        given.writes("d_kv", gradients.d_kv, bytes.kv, 2)?;
        given.writes("dk_rope", gradients.dk_rope, bytes.dk_rope, 2)?;
        given.writes("delta", gradients.delta, bytes.lse, 4)?;
        let (size, n) = self.size(&given, s)?;
        let rows = s.sequences * s.tokens * s.heads;
        let blocks = given.size("the number of rows and heads", rows.div_ceil(DELTA_ROWS))?;
        let grid = s.grid(&given, OWNED)?;
        let [q, kv, k_rope] = inputs.addresses();
        let [o, lse, d_o] = [outputs.o, outputs.lse, outputs.d_o].map(Slice::address);
        let Gradients { dq, d_kv, dk_rope, delta } = gradients;
        let [dq, d_kv, dk_rope, delta] = [dq, d_kv, dk_rope, delta].map(Slice::address);
        #[rustfmt::skip]
        let of_q = (
            q, kv, k_rope, d_o, lse, delta, dq, n.0, n.1, n.2, n.3, n.4, n.5, s.scale,
        );
        #[rustfmt::skip]
        let of_keys = (
            q, kv, k_rope, d_o, lse, delta, d_kv, dk_rope, n.0, n.1, n.2, n.3, n.4, n.5, s.scale,
        );
        let of_o = (o, d_o, delta, n.0, n.1, n.2, n.5);
        // SAFETY: the kernel stays inside matrices of these sizes, which were checked above.
        unsafe { self.delta.launch(stream, Grid::line(blocks, THREADS), of_o) }?;
        // SAFETY: as above.
        unsafe { size.query_gradient.launch(stream, grid, of_q) }?;
        // SAFETY: as above.
        unsafe { size.key_value_gradient.launch(stream, grid, of_keys) }
    }

    /// The kernels for heads of this size.
    fn size(&self, given: &Given<'_>, s: &Shape) -> Result<(&Size, Counts), DeviceError> {
        let (qk, v) = (s.nope + s.rope, s.value);
        given.wants(0 < qk && 0 < v, || "heads without columns".to_owned())?;
        let fits = self.sizes.iter().find(|size| qk <= size.qk && v <= size.v);
        let Some(size) = fits else {
            let [.., largest] = &self.sizes;
            return Err(given.problem(format!(
                "heads of {qk} columns and {v} of values, want at most {} and {}: \
                 lower qk_nope_head_dim or v_head_dim, or use the device cpu",
                largest.qk, largest.v
            )));
        };
        // Strides of rows are counted in bytes.
        given.size("a row of all heads in bytes", 2 * s.heads * (qk + v))?;
        let counts = (
            given.size("the number of sequences", s.sequences)?,
            given.size("the number of tokens", s.tokens)?,
            given.size("the number of heads", s.heads)?,
            s.nope as u32,
            s.rope as u32,
            s.value as u32,
        );
        Ok((size, counts))
    }
}

impl<'a> Inputs<'a> {
    fn check(&self, given: &mut Given<'a>, bytes: &Bytes) -> Result<(), DeviceError> {
        given.reads("q", self.q, bytes.q, 2)?;
        given.reads("kv", self.kv, bytes.kv, 2)?;
        given.reads("k_rope", self.k_rope, bytes.k_rope, 2)
    }

    fn addresses(&self) -> [Address; 3] {
        [self.q, self.kv, self.k_rope].map(Slice::address)
    }
}
