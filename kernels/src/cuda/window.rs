//! Cutting matrices by columns, and putting them beside one another. The judge is a copy on the host.
//!
//! `to[r][to_column ..][.. width] = from[r][from_column ..][.. width]` for every row r; whatever else `to` holds stays. Both
//! row-major; a number has 2 or 4 bytes. Bytes are moved, never changed: each is read once and written once.
#![expect(unsafe_code, reason = "launches kernels")]

use super::image::WINDOW;
use super::{Address, Device, DeviceError, Function, Grid, Module, Slice, Stream};

/// Threads of a block, and the most blocks: each thread moves more than one unit where there are more.
const THREADS: u32 = 256;
const BLOCKS_MAX: usize = 4096;

/// To, from, rows, units of a row, units from row to row of each.
type Move = Function<(Address, Address, u32, u32, u32, u32)>;

/// The kernels of `window.cu`, loaded.
#[derive(Debug)]
pub struct Kernels {
    sixteen: Move,
    two: Move,
}

/// Some columns of a matrix. All in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    pub values: Slice<'a>,
    /// Of a whole row.
    pub row: usize,
    /// Where the columns begin in it.
    pub first: usize,
}

impl Kernels {
    /// Loads them for a device.
    ///
    /// # Errors
    /// When the driver refuses the PTX.
    pub fn load(device: &Device) -> Result<Self, DeviceError> {
        Self::of(&device.load(&WINDOW)?)
    }

    /// Of a module that was loaded from other PTX: a test's variant.
    ///
    /// # Errors
    /// When one is missing, or takes something else.
    pub fn of(module: &Module) -> Result<Self, DeviceError> {
        Ok(Self { sixteen: module.function("window_16", 0)?, two: module.function("window_2", 0)? })
    }

    /// Copies `width` bytes of each of `rows` rows.
    pub fn copy(
        &self,
        stream: &Stream,
        to: Columns<'_>,
        from: Columns<'_>,
        (rows, width): (usize, usize),
    ) -> Result<(), DeviceError> {
        assert!(!to.values.overlaps(from.values), "window: the two overlap");
        for Columns { values, row, first } in [to, from] {
            assert_eq!(values.bytes(), rows * row, "window: bytes for {rows} rows of {row}");
            assert!(
                first + width <= row,
                "window: {width} bytes from {first} on in a row of {row}"
            );
        }
        let fits = |unit: usize| {
            let fits = |columns: Columns<'_>| {
                let begins = columns.values.address().0 as usize + columns.first;
                begins.is_multiple_of(unit) && columns.row.is_multiple_of(unit)
            };
            width.is_multiple_of(unit) && fits(to) && fits(from)
        };
        let (function, unit) = if fits(16) { (&self.sixteen, 16) } else { (&self.two, 2) };
        assert!(fits(unit), "window: numbers have 2 or 4 bytes");
        let blocks = (rows * width / unit).div_ceil(THREADS as usize).min(BLOCKS_MAX);
        let size =
            |bytes: usize| u32::try_from(bytes / unit).expect("a row has less than 2^32 units");
        let n_rows = u32::try_from(rows).unwrap_or_else(|_| panic!("window: {rows} rows"));
        // A window of nothing has no first byte.
        let at = |columns: Columns<'_>| match blocks {
            0 => columns.values.address(),
            _ => columns.values.slice(columns.first..columns.values.bytes()).address(),
        };
        let arguments = (at(to), at(from), n_rows, size(width), size(to.row), size(from.row));
        // SAFETY: the last byte of the last row's window is inside both slices, as checked above.
        unsafe { function.launch(stream, Grid::line(blocks as u32, THREADS), arguments) }
    }
}
