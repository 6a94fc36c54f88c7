//! Rows of a table on the device, looked up by token, and their gradient. The judge is [`crate::embedding`]: results
//! are the same bytes.
//!
//! T tokens, V rows of the table, D columns, nothing beside them.
//! - [`Kernels::forward`]  y `(T, D)` BF16 = rows of a table `(V, D)` BF16, overwritten. 4 bytes moved for each element.
//! - [`Kernels::backward`]  `d_table` `(V, D)` FP32, row id += dy `(T, D)` BF16, for each token in order. Bytes moved for
//!   each element of dy: 2, and 8 for each element of a row that is touched.
//!
//! Token ids come from the host, which checks them and sorts them by row of the table once a microbatch ([`Tokens`]):
//! each row's gradient is then one thread's sum, in the order of tokens, without atomics. Any sizes; where D is no
//! multiple of 8, elements are moved one by one.
#![expect(unsafe_code, reason = "launches kernels")]

use super::check::Check;
use super::image::EMBEDDING;
use super::{Address, Arena, Block, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// As in `embedding.cu`.
const THREADS: usize = 256;
const CHUNK: usize = 8;

/// Table, ids, y; tokens, rows of the table, columns.
type Forward = Function<(Address, Address, Address, u32, u32, u32)>;
/// Rows touched, where their tokens begin, tokens, dy, gradient; rows touched, tokens, rows of the table, columns.
type Backward = Function<(Address, Address, Address, Address, Address, u32, u32, u32, u32)>;

/// The kernels of `embedding.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    forward: Forward,
    backward: Backward,
}

/// The tokens of one microbatch on the device.
#[derive(Debug)]
pub struct Tokens {
    /// `(T)` ids, `(T)` tokens sorted by id, `(R)` rows touched, ascending, `(R + 1)` where their tokens begin: u32.
    words: Block,
    len: usize,
    touched: usize,
    vocabulary: usize,
}

/// Bytes of words.
const fn bytes(words: usize) -> usize {
    4 * words
}

impl Tokens {
    /// Checks and sorts `ids`, each a row of a table of `vocabulary`, and copies them to the device. Takes the room of
    /// `room` ids, of which no two are alike, whatever there are.
    ///
    /// # Errors
    /// An id beyond the table; no room in the arena; what the driver says.
    pub fn new(
        arena: &Arena,
        stream: &Stream,
        (ids, room): (&[u32], usize),
        vocabulary: usize,
    ) -> Result<Self, DeviceError> {
        const CHECK: Check = Check("embedding tokens");
        CHECK.number("tokens", ids.len())?;
        CHECK.number("rows of the table", vocabulary)?;
        if let Some(at) = ids.iter().position(|id| *id as usize >= vocabulary) {
            return CHECK
                .wrong(format!("token {at} has id {}, the table has {vocabulary} rows", ids[at]));
        }
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|token| ids[*token as usize]);
        let (mut rows, mut starts) = (Vec::new(), Vec::new());
        for (at, token) in order.iter().enumerate() {
            let id = ids[*token as usize];
            if rows.last() != Some(&id) {
                rows.push(id);
                starts.push(at as u32);
            }
        }
        starts.push(ids.len() as u32);
        let (len, touched) = (ids.len(), rows.len());
        let words: Vec<u32> = [ids, &order, &rows, &starts].concat();
        let room = bytes(4 * room.max(len) + 1);
        let block = arena.take_room("token ids", bytes(words.len()), room)?;
        stream.upload(block.all(), bytemuck::cast_slice(&words))?;
        Ok(Self { words: block, len, touched, vocabulary })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `n` words from `first` on.
    fn part(&self, first: usize, n: usize) -> Slice<'_> {
        self.words.slice(bytes(first)..bytes(first + n))
    }
}

/// A thread for each chunk of so many rows.
fn grid(check: Check, rows: usize, cols: usize) -> Result<Grid, DeviceError> {
    let chunks = rows * cols.div_ceil(CHUNK);
    let chunks = check.number("rows times chunks of 8 columns", chunks)?;
    Ok(Grid::line(chunks.div_ceil(THREADS as u32), THREADS as u32))
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&EMBEDDING)?)
    }

    /// Those of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        Ok(Self {
            forward: module.function("embedding_forward", 0)?,
            backward: module.function("embedding_backward", 0)?,
        })
    }

    /// See the head of this file; D is `cols`.
    ///
    /// # Errors
    /// Sizes that do not fit the tokens, a result that overlaps with something else; what the driver says.
    pub fn forward(
        &self,
        stream: &Stream,
        table: Slice<'_>,
        tokens: &Tokens,
        y: Slice<'_>,
        cols: usize,
    ) -> Result<(), DeviceError> {
        const CHECK: Check = Check("embedding forward");
        let ids = tokens.part(0, tokens.len);
        CHECK.bytes("table", table, 2 * tokens.vocabulary * cols)?;
        CHECK.bytes("y", y, 2 * tokens.len * cols)?;
        CHECK.apart(&[("y", y)], &[("table", table), ("ids", ids)])?;
        let arguments = (
            table.address(),
            ids.address(),
            y.address(),
            tokens.len as u32,
            tokens.vocabulary as u32,
            CHECK.number("columns", cols)?,
        );
        let grid = grid(CHECK, tokens.len, cols)?;
        // SAFETY: the kernel stays inside matrices of these shapes, whose sizes were checked above.
        unsafe { self.forward.launch(stream, grid, arguments) }
    }

    /// See the head of this file; D is `cols`.
    ///
    /// # Errors
    /// Sizes that do not fit the tokens, a result that overlaps with something else; what the driver says.
    pub fn backward(
        &self,
        stream: &Stream,
        tokens: &Tokens,
        dy: Slice<'_>,
        d_table: Slice<'_>,
        cols: usize,
    ) -> Result<(), DeviceError> {
        const CHECK: Check = Check("embedding backward");
        let Tokens { len: t, touched, vocabulary, .. } = *tokens;
        CHECK.bytes("dy", dy, 2 * t * cols)?;
        CHECK.bytes("d_table", d_table, 4 * vocabulary * cols)?;
        let all = tokens.words.all();
        CHECK.apart(&[("d_table", d_table)], &[("dy", dy), ("tokens", all)])?;
        let (order, rows) = (tokens.part(t, t), tokens.part(2 * t, touched));
        let arguments = (
            rows.address(),
            tokens.part(2 * t + touched, touched + 1).address(),
            order.address(),
            dy.address(),
            d_table.address(),
            touched as u32,
            t as u32,
            vocabulary as u32,
            CHECK.number("columns", cols)?,
        );
        let grid = grid(CHECK, touched, cols)?;
        // SAFETY: the kernel stays inside matrices of these shapes, whose sizes were checked above.
        unsafe { self.backward.launch(stream, grid, arguments) }
    }
}
