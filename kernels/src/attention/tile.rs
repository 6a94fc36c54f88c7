//! Products of a few rows with a few vectors, with the sums in registers, and the forms of a head's
//! rows that they read.
//!
//! A product is `sums[m][lane] += a[m][u] b[u][lane]` over units `u`. The left side is read one unit of
//! some rows at a time, the right side by vectors.

use crate::scratch::Scratch;
use crate::vector::{LANES, Units, Vector, transpose};

use super::AttentionShape;
use super::heads::{Heads, Task};

/// Queries of a block: two vectors.
pub(super) const QUERIES: usize = 2 * LANES;

/// Memory of whole vectors, at addresses that no vector straddles.
pub(super) struct Vectors {
    scratch: Scratch,
    skip: usize,
    len: usize,
}

impl Vectors {
    /// Unspecified contents.
    pub(super) fn new(len: usize) -> Self {
        let scratch = Scratch::new((len + 1) * LANES);
        let vector = size_of::<Units>();
        let address = scratch.as_ptr().addr();
        Self { skip: address.next_multiple_of(vector).abs_diff(address) / 4, scratch, len }
    }

    pub(super) fn zeros(len: usize) -> Self {
        let mut vectors = Self::new(len);
        vectors.floats().as_flattened_mut().fill(0.0);
        vectors
    }

    pub(super) fn floats(&mut self) -> &mut [[f32; LANES]] {
        self.scratch[self.skip..][..self.len * LANES].as_chunks_mut().0
    }

    pub(super) fn units(&mut self) -> &mut [Units] {
        bytemuck::cast_slice_mut(self.floats())
    }
}

/// The left side of a product.
pub(super) trait Side: Copy {
    /// `sums += a b` of `M` rows from `row` on: `b` has `stride` vectors for each unit, of which `N` from
    /// `column` on are read.
    fn multiply<V: Vector, const M: usize, const N: usize>(
        self,
        v: V,
        row: usize,
        right: (&[Units], usize, usize),
        sums: [[V::Lanes; N]; M],
    ) -> [[V::Lanes; N]; M];
}

/// Rows next to each other for each unit, `stride` units to the next one: a strip of rows is read
/// through one address.
#[derive(Clone, Copy)]
pub(super) struct ByUnit<'a> {
    pub(super) units: &'a [u32],
    pub(super) stride: usize,
    pub(super) n_units: usize,
}

/// Rows of `QUERIES` numbers: their length is known when this is compiled, so a strip of rows is read
/// through one address, too.
#[derive(Clone, Copy)]
pub(super) struct ByRow<'a>(pub(super) &'a [Units]);

impl Side for ByUnit<'_> {
    #[inline(always)]
    fn multiply<V: Vector, const M: usize, const N: usize>(
        self,
        v: V,
        row: usize,
        (b, stride, column): (&[Units], usize, usize),
        mut sums: [[V::Lanes; N]; M],
    ) -> [[V::Lanes; N]; M] {
        let units = self.units.chunks_exact(self.stride).zip(b.chunks_exact(stride));
        for (a, b) in units.take(self.n_units) {
            let (a, b) = (&a[row..][..M], &b[column..][..N]);
            step(
                v,
                #[inline(always)]
                |m| a[m],
                b,
                &mut sums,
            );
        }
        sums
    }
}

impl Side for ByRow<'_> {
    #[inline(always)]
    fn multiply<V: Vector, const M: usize, const N: usize>(
        self,
        v: V,
        row: usize,
        (b, stride, column): (&[Units], usize, usize),
        mut sums: [[V::Lanes; N]; M],
    ) -> [[V::Lanes; N]; M] {
        let of_row = QUERIES / V::PAIR / LANES;
        let a = &self.0[row * of_row..][..M * of_row];
        for (part, b) in b.chunks_exact(LANES * stride).take(of_row).enumerate() {
            for (unit, b) in b.chunks_exact(stride).enumerate().take(LANES) {
                step(
                    v,
                    #[inline(always)]
                    |m| a[m * of_row + part][unit],
                    &b[column..][..N],
                    &mut sums,
                );
            }
        }
        sums
    }
}

/// One unit of `M` rows and `N` vectors.
#[inline(always)]
fn step<V: Vector, const M: usize, const N: usize>(
    v: V,
    a: impl Fn(usize) -> u32,
    b: &[Units],
    sums: &mut [[V::Lanes; N]; M],
) {
    let mut columns = [v.all(0.0); N];
    for n in 0..N {
        columns[n] = v.units(&b[n]);
    }
    for (m, sums) in sums.iter_mut().enumerate() {
        let x = v.all_units(a(m));
        for (sum, column) in sums.iter_mut().zip(columns) {
            *sum = v.multiply_units(x, column, *sum);
        }
    }
}

/// `out += left b` where `out` has `rows` rows of `width` vectors, and `b` rows of `stride`.
#[inline(always)]
pub(super) fn accumulate<V: Vector>(
    v: V,
    left: impl Side,
    (b, stride): (&[Units], usize),
    out: &mut [[f32; LANES]],
    (rows, width): (usize, usize),
) {
    let mut column = 0;
    while column < width {
        let left_over = width - column;
        let right = (b, stride, column);
        let shape = (rows, width);
        column += if left_over.is_multiple_of(3) {
            columns::<V, 3>(v, left, right, out, shape)
        } else if 2 <= left_over {
            columns::<V, 2>(v, left, right, out, shape)
        } else {
            columns::<V, 1>(v, left, right, out, shape)
        };
    }
}

/// `N` columns of vectors of all rows; returns `N`.
#[inline(always)]
fn columns<V: Vector, const N: usize>(
    v: V,
    left: impl Side,
    right: (&[Units], usize, usize),
    out: &mut [[f32; LANES]],
    (rows, width): (usize, usize),
) -> usize {
    let mut row = 0;
    while row < rows {
        row += match rows - row {
            8.. if V::ROOMY => strip::<V, 8, N>(v, left, right, out, (row, width)),
            4.. if V::ROOMY => strip::<V, 4, N>(v, left, right, out, (row, width)),
            2.. => strip::<V, 2, N>(v, left, right, out, (row, width)),
            _ => strip::<V, 1, N>(v, left, right, out, (row, width)),
        };
    }
    N
}

/// `M` rows from `row` on; returns `M`.
#[inline(always)]
fn strip<V: Vector, const M: usize, const N: usize>(
    v: V,
    left: impl Side,
    (b, stride, column): (&[Units], usize, usize),
    out: &mut [[f32; LANES]],
    (row, width): (usize, usize),
) -> usize {
    let mut sums = [[v.all(0.0); N]; M];
    for m in 0..M {
        let out = &out[(row + m) * width + column..][..N];
        for n in 0..N {
            sums[m][n] = v.floats(&out[n]);
        }
    }
    let sums = left.multiply::<V, M, N>(v, row, (b, stride, column), sums);
    for m in 0..M {
        let out = &mut out[(row + m) * width + column..][..N];
        for n in 0..N {
            out[n] = v.array(sums[m][n]);
        }
    }
    M
}

/// Queries, keys and values of one task.
#[inline(always)]
pub(super) fn read_heads<V: Vector>(
    heads: &impl Heads,
    s: &AttentionShape,
    task: Task,
) -> [Rows; 3] {
    let query = Rows::read::<V>(
        s.tokens,
        s.qk_dim,
        #[inline(always)]
        |token, out| heads.query(task, token, out),
    );
    let key = Rows::read::<V>(
        s.tokens,
        s.qk_dim,
        #[inline(always)]
        |token, out| heads.key(task, token, out),
    );
    let value = Rows::read::<V>(
        s.tokens,
        s.v_dim,
        #[inline(always)]
        |token, out| heads.value(task, token, out),
    );
    [query, key, value]
}

/// FP32 rows of one head, padded with zeros to blocks of queries and to whole vectors of units.
pub(super) struct Rows {
    pub(super) values: Vectors,
    /// Tokens, padded.
    pub(super) tokens: usize,
    /// Vectors of units in a row.
    pub(super) width: usize,
    /// Units of a row that are not padding.
    pub(super) n_units: usize,
}

impl Rows {
    /// Reads `tokens` rows of `dim` numbers.
    #[inline(always)]
    pub(super) fn read<V: Vector>(
        tokens: usize,
        dim: usize,
        mut read: impl FnMut(usize, &mut [f32]),
    ) -> Self {
        let n_units = dim.div_ceil(V::PAIR);
        let width = n_units.div_ceil(LANES);
        let padded = tokens.next_multiple_of(QUERIES);
        let stride = width * V::PAIR * LANES;
        let mut values = Vectors::new(padded * width * V::PAIR);
        let flat = values.floats().as_flattened_mut();
        for (token, row) in flat.chunks_exact_mut(stride.max(1)).enumerate() {
            let kept = if token < tokens { dim } else { 0 };
            if 0 < kept {
                read(token, &mut row[..kept]);
            }
            row[kept..].fill(0.0);
        }
        Self { values, tokens: padded, width, n_units }
    }

    /// Units along the head's width, `(tokens, width)`.
    #[inline(always)]
    pub(super) fn natural<V: Vector>(&mut self, v: V) -> Vectors {
        let mut out = Vectors::new(self.tokens * self.width);
        v.pack(self.values.floats().as_flattened(), out.units().as_flattened_mut());
        out
    }

    /// Units along the tokens, `(tokens / PAIR, columns)`: a side contracted over the tokens.
    /// Columns are `PAIR` times `width` vectors.
    #[inline(always)]
    pub(super) fn paired<V: Vector>(&mut self, v: V) -> Vectors {
        if V::PAIR == 1 {
            return self.natural(v);
        }
        let columns = self.width * V::PAIR;
        let mut out = Vectors::new(self.tokens / V::PAIR * columns);
        let values = self.values.floats().chunks_exact((2 * columns).max(1));
        for (rows, out) in values.zip(out.units().chunks_exact_mut(columns.max(1))) {
            let (first, second) = rows.split_at(columns);
            let pairs = first.as_chunks::<2>().0.iter().zip(second.as_chunks::<2>().0);
            for ((first, second), out) in pairs.zip(out.as_chunks_mut::<2>().0) {
                let rows = [first, second].map(
                    #[inline(always)]
                    |[low, high]| [v.floats(low), v.floats(high)],
                );
                v.column_units(rows, out);
            }
        }
        out
    }
}

/// `natural` units of `rows` as a side of a product contracted over the head's width: for each
/// block of `QUERIES` rows, and each of its `n_units` units, two vectors.
#[inline(always)]
pub(super) fn panels<V: Vector>(v: V, natural: &[Units], rows: &Rows) -> Vectors {
    let (width, n_units) = (rows.width, rows.n_units);
    let mut out = Vectors::new(rows.tokens / LANES * n_units);
    for (block, out) in out.units().chunks_exact_mut((2 * n_units).max(1)).enumerate() {
        for half in 0..2 {
            let first = (block * 2 + half) * LANES;
            for column in 0..width {
                let square = square(v, natural, (first * width + column, width));
                for (i, unit) in (column * LANES..n_units).take(LANES).enumerate() {
                    out[2 * unit + half] = v.unit_array(square[i]);
                }
            }
        }
    }
    out
}

/// The block of `panels` in which `row` is, as a left side, and the row's place in it.
#[inline(always)]
pub(super) fn of_panels(panels: &[Units], n_units: usize, row: usize) -> (ByUnit<'_>, usize) {
    let panel = 2 * n_units;
    let units = panels[row / QUERIES * panel..][..panel].as_flattened();
    (ByUnit { units, stride: QUERIES, n_units }, row % QUERIES)
}

/// `paired` units of `rows` tokens from `first` on as a left side: contracted over the tokens.
#[inline(always)]
pub(super) fn of_paired<V: Vector>(
    paired: &[Units],
    columns: usize,
    (first, rows): (usize, usize),
) -> ByUnit<'_> {
    let units = paired[first / V::PAIR * columns..][..rows / V::PAIR * columns].as_flattened();
    ByUnit { units, stride: columns * LANES, n_units: rows / V::PAIR }
}

/// Sixteen vectors, `stride` apart, turned.
#[inline(always)]
fn square<V: Vector>(v: V, from: &[Units], (first, stride): (usize, usize)) -> [V::Lanes; LANES] {
    let mut rows = [v.all(0.0); LANES];
    for i in 0..LANES {
        rows[i] = v.units(&from[first + i * stride]);
    }
    transpose(v, rows)
}

/// Turns `(16 width, QUERIES)` into `(QUERIES, 16 width)` and multiplies each query by its factor.
#[inline(always)]
pub(super) fn turn_back<V: Vector>(
    v: V,
    columns: &[[f32; LANES]],
    factors: [V::Lanes; 2],
    out: &mut [[f32; LANES]],
) {
    let width = columns.len() / QUERIES;
    for column in 0..width {
        for (half, factor) in factors.into_iter().enumerate() {
            let mut rows = [v.all(0.0); LANES];
            for i in 0..LANES {
                rows[i] = v.mul(v.floats(&columns[(column * LANES + i) * 2 + half]), factor);
            }
            let rows = transpose(v, rows);
            for i in 0..LANES {
                out[(half * LANES + i) * width + column] = v.array(rows[i]);
            }
        }
    }
}
