//! The router of a mixture of experts on the device, in FP32 from end to end. The judge is [`crate::router`].
//!
//! T tokens in sequences of equal length, D width, E experts (at most 512), K choices (at most 32).
//! - x `(T, D)`: BF16. w `(E, D)`, bias `(E)`: FP32.
//! - [`Routing`], overwritten by forward: scores `(T, E)` FP32, without bias; chosen `(T, K)` u32, by descending biased
//!   score, of equals the lower index first; gates `(T, K)` FP32; counts `(E)` u32: tokens that chose each expert; load
//!   `(sequences, E)` u32: tokens that have it among their K largest scores without bias; balance, one FP64: the balance
//!   loss summed over the sequences, not yet weighted.
//! - `d_gates` `(T, K)` FP32. `d_logits` `(T, E)` FP32: room that backward fills and uses.
//! - dx `(T, D)` FP32, overwritten or added. `d_w` `(E, D)` FP32, added.
//!
//! Products have FP32 operands and sums, each sum one thread's in the order of the contraction. Given its scores, a token's
//! choices and gates have the CPU's bits. A NaN is never larger than anything: a poisoned token still gets
//! distinct experts, and its gates show the NaN. Deterministic: only counts are added by atomics, and they are integers.
//! Any number of tokens. Source: `DeepSeek`-V3 report 2.1.2.
#![expect(unsafe_code, reason = "launches kernels")]

use crate::router::RouterShape;

use super::given::Given;
use super::image::ROUTER;
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// Threads of a block, tokens that it takes, and tiles of products, as in `router.cu` and `product_fp32.cuh`.
const THREADS: u32 = 128;
const TOKENS: usize = 4;
const TILE_M: usize = 32;
const TILE_N: usize = 64;

/// What the kernels have room for.
const EXPERTS_MAX: usize = 512;
const TOP_K_MAX: usize = 32;

/// Two operands, result; T, D, E.
type Product = Function<(Address, Address, Address, u32, u32, u32)>;
/// The same, and whether it is added.
type AddedProduct = Function<(Address, Address, Address, u32, u32, u32, u32)>;
/// Scores, bias, chosen, gates, counts, load; T, E, K, groups, groups kept, tokens of a sequence, normalise, scaling.
#[rustfmt::skip]
type Choose = Function<(
    Address, Address, Address, Address, Address, Address,
    u32, u32, u32, u32, u32, u32, u32, f32,
)>;
/// Scores, load, terms; T, E, tokens of a sequence, factor of a count.
type Balance = Function<(Address, Address, Address, u32, u32, u32, f32)>;
/// Terms, balance; T, tokens of a sequence.
type Total = Function<(Address, Address, u32, u32)>;
/// Scores, chosen, `d_gates`, load, `d_logits`; T, E, K, tokens of a sequence, normalise; scaling, factor of a count, weight.
#[rustfmt::skip]
type Gradient = Function<(
    Address, Address, Address, Address, Address,
    u32, u32, u32, u32, u32, f32, f32, f32,
)>;

/// The kernels of `router.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    logits: Product,
    choose: Choose,
    balance: Balance,
    total: Total,
    gradient: Gradient,
    input_gradient: AddedProduct,
    weight_gradient: Product,
}

/// What forward decides.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    pub scores: Slice<'a>,
    pub chosen: Slice<'a>,
    pub gates: Slice<'a>,
    pub counts: Slice<'a>,
    pub load: Slice<'a>,
    pub balance: Slice<'a>,
}

/// What comes back to the router.
#[derive(Clone, Copy, Debug)]
pub struct Back<'a> {
    pub d_gates: Slice<'a>,
    /// The factor of the balance loss.
    pub balance_weight: f32,
}

/// Where backward writes.
#[derive(Clone, Copy, Debug)]
pub struct Gradients<'a> {
    pub dx: Slice<'a>,
    /// dx is added to what is there; otherwise over it.
    pub accumulate: bool,
    pub d_w: Slice<'a>,
    /// Room.
    pub d_logits: Slice<'a>,
}

/// Tokens and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub t: usize,
    pub d: usize,
}

/// Sizes as kernels get them.
struct Counts {
    t: u32,
    d: u32,
    e: u32,
    k: u32,
    tokens: u32,
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&ROUTER)?)
    }

    /// Those of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        Ok(Self {
            logits: module.function("router_logits", 0)?,
            choose: module.function("router_choose", 0)?,
            balance: module.function("router_balance", 0)?,
            total: module.function("router_total", 0)?,
            gradient: module.function("router_gradient", 0)?,
            input_gradient: module.function("router_input_gradient", 0)?,
            weight_gradient: module.function("router_weight_gradient", 0)?,
        })
    }

    /// Decides. `terms` is room for FP32, `(T)`.
    ///
    /// # Errors
    /// When a slice has another size than the shapes say or overlaps with a result, or the shape has no choice.
    #[expect(clippy::too_many_arguments, reason = "what is read, what is decided, and both shapes")]
    pub fn forward(
        &self,
        stream: &Stream,
        (x, w, bias): (Slice<'_>, Slice<'_>, Slice<'_>),
        out: Routing<'_>,
        terms: Slice<'_>,
        size: Size,
        s: &RouterShape,
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("router forward");
        let n = counts(&given, size, s)?;
        let (t, d, e, k) = (size.t, size.d, s.experts, s.top_k);
        given.reads("x", x, 2 * t * d, 2)?;
        given.reads("w", w, 4 * e * d, 4)?;
        given.reads("bias", bias, 4 * e, 4)?;
        given.writes("scores", out.scores, 4 * t * e, 4)?;
        given.writes("chosen", out.chosen, 4 * t * k, 4)?;
        given.writes("gates", out.gates, 4 * t * k, 4)?;
        given.writes("counts", out.counts, 4 * e, 4)?;
        given.writes("load", out.load, 4 * t / s.tokens_per_sequence * e, 4)?;
        given.writes("balance", out.balance, 8, 8)?;
        given.writes("terms", terms, 4 * t, 4)?;
        stream.fill(out.counts, 0)?;
        stream.fill(out.load, 0)?;
        let grid = product_grid(&given, t, e)?;
        let [x, w, bias] = [x, w, bias].map(Slice::address);
        let Routing { scores, chosen, gates, counts, load, balance } = out;
        let [scores, chosen, gates] = [scores, chosen, gates].map(Slice::address);
        let [counts, load, balance] = [counts, load, balance].map(Slice::address);
        let terms = terms.address();
        #[rustfmt::skip]
        let of_choice = (
            scores, bias, chosen, gates, counts, load,
            n.t, n.e, n.k, s.groups as u32, s.groups_kept as u32, n.tokens,
            u32::from(s.normalise), s.scaling,
        );
        let of_balance = (scores, load, terms, n.t, n.e, n.tokens, f_factor(s));
        let tokens = Grid::line(t.div_ceil(TOKENS) as u32, THREADS);
        // SAFETY: the kernel stays inside matrices of these sizes, which were checked above.
        unsafe { self.logits.launch(stream, grid, (x, w, scores, n.t, n.d, n.e)) }?;
        // SAFETY: as above.
        unsafe { self.choose.launch(stream, tokens, of_choice) }?;
        // SAFETY: as above.
        unsafe { self.balance.launch(stream, tokens, of_balance) }?;
        // SAFETY: as above.
        unsafe {
            self.total.launch(stream, Grid::line(1, THREADS), (terms, balance, n.t, n.tokens))
        }
    }

    /// Gradients of x and w. The choice itself, and how often each expert was among the largest, are constants.
    ///
    /// # Errors
    /// As for `forward`.
    #[expect(clippy::too_many_arguments, reason = "what is read, where it goes, and both shapes")]
    pub fn backward(
        &self,
        stream: &Stream,
        (x, w): (Slice<'_>, Slice<'_>),
        routing: Routing<'_>,
        back: Back<'_>,
        out: Gradients<'_>,
        size: Size,
        s: &RouterShape,
    ) -> Result<(), DeviceError> {
        let mut given = Given::new("router backward");
        let n = counts(&given, size, s)?;
        let (t, d, e, k) = (size.t, size.d, s.experts, s.top_k);
        given.reads("x", x, 2 * t * d, 2)?;
        given.reads("w", w, 4 * e * d, 4)?;
        given.reads("scores", routing.scores, 4 * t * e, 4)?;
        given.reads("chosen", routing.chosen, 4 * t * k, 4)?;
        given.reads("load", routing.load, 4 * t / s.tokens_per_sequence * e, 4)?;
        given.reads("d_gates", back.d_gates, 4 * t * k, 4)?;
        given.writes("d_logits", out.d_logits, 4 * t * e, 4)?;
        given.writes("dx", out.dx, 4 * t * d, 4)?;
        given.writes("d_w", out.d_w, 4 * e * d, 4)?;
        let (of_x, of_w) = (product_grid(&given, t, d)?, product_grid(&given, e, d)?);
        let [x, w, dx, d_w] = [x, w, out.dx, out.d_w].map(Slice::address);
        let [scores, chosen, load] =
            [routing.scores, routing.chosen, routing.load].map(Slice::address);
        let (d_gates, d_logits) = (back.d_gates.address(), out.d_logits.address());
        let weight = back.balance_weight / s.tokens_per_sequence as f32;
        #[rustfmt::skip]
        let of_gradient = (
            scores, chosen, d_gates, load, d_logits,
            n.t, n.e, n.k, n.tokens, u32::from(s.normalise), s.scaling, f_factor(s), weight,
        );
        let tokens = Grid::line(t.div_ceil(TOKENS) as u32, THREADS);
        let of_input = (d_logits, w, dx, n.t, n.d, n.e, u32::from(out.accumulate));
        // SAFETY: the kernel stays inside matrices of these sizes, which were checked above.
        unsafe { self.gradient.launch(stream, tokens, of_gradient) }?;
        // SAFETY: as above.
        unsafe { self.input_gradient.launch(stream, of_x, of_input) }?;
        // SAFETY: as above.
        unsafe { self.weight_gradient.launch(stream, of_w, (d_logits, x, d_w, n.t, n.d, n.e)) }
    }
}

/// What makes `f` of a count: Eq. 18.
fn f_factor(s: &RouterShape) -> f32 {
    s.experts as f32 / (s.top_k * s.tokens_per_sequence) as f32
}

fn product_grid(given: &Given<'_>, m: usize, n: usize) -> Result<Grid, DeviceError> {
    let tiles = m.div_ceil(TILE_M) * n.div_ceil(TILE_N);
    Ok(Grid::line(given.size("the number of tiles", tiles)?, THREADS))
}

/// Sizes that the kernels can take.
fn counts(given: &Given<'_>, size: Size, s: &RouterShape) -> Result<Counts, DeviceError> {
    let RouterShape { experts, top_k, groups, groups_kept, tokens_per_sequence, .. } = *s;
    given.wants(0 < groups && experts.is_multiple_of(groups), || {
        format!("{groups} groups do not divide {experts} experts")
    })?;
    let open = groups_kept * (experts / groups);
    given.wants(groups_kept <= groups && 0 < top_k && top_k <= open, || {
        format!("cannot choose {top_k} of {open} experts")
    })?;
    given.wants(experts <= EXPERTS_MAX && top_k <= TOP_K_MAX, || {
        format!("{top_k} of {experts} experts, want at most {TOP_K_MAX} of {EXPERTS_MAX}")
    })?;
    given.wants(0 < tokens_per_sequence && size.t.is_multiple_of(tokens_per_sequence), || {
        format!("{} tokens, want whole sequences of {tokens_per_sequence}", size.t)
    })?;
    Ok(Counts {
        t: given.size("the number of tokens", size.t)?,
        d: given.size("the width", size.d)?,
        e: experts as u32,
        k: top_k as u32,
        tokens: given.size("the tokens of a sequence", tokens_per_sequence)?,
    })
}
