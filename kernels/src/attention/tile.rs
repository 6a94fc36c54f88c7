//! Products of a few rows with a few vectors, with the sums in registers, and the forms of a head's
//! rows that they read.
//!
//! A product is `sums[m][lane] += a[m][u] b[u][lane]` over units `u`. The left side is read one unit
//! at a time and wants its units next to each other; the right side is read by vectors.

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

/// `sums += a b`: the rows of `a` have one length, and `b` has `stride` vectors for each of their
/// units, of which `N` from `column` on are read.
#[inline(always)]
pub(super) fn multiply<V: Vector, const M: usize, const N: usize>(
    v: V,
    a: [&[u32]; M],
    b: &[Units],
    (stride, column): (usize, usize),
    mut sums: [[V::Lanes; N]; M],
) -> [[V::Lanes; N]; M] {
    let n_units = a[0].len();
    let a = a.map(
        #[inline(always)]
        |a| &a[..n_units],
    );
    for unit in 0..n_units {
        let row = &b[unit * stride + column..][..N];
        let mut columns = [v.all(0.0); N];
        for n in 0..N {
            columns[n] = v.units(&row[n]);
        }
        for m in 0..M {
            let x = v.all_units(a[m][unit]);
            for n in 0..N {
                sums[m][n] = v.multiply_units(x, columns[n], sums[m][n]);
            }
        }
    }
    sums
}

/// Some rows of the left side of a product: `n_units` of each from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) units: &'a [u32],
    pub(super) stride: usize,
    pub(super) first: usize,
    pub(super) n_units: usize,
}

impl<'a> Left<'a> {
    #[inline(always)]
    pub(super) fn rows<const M: usize>(self, row: usize) -> [&'a [u32]; M] {
        std::array::from_fn(
            #[inline(always)]
            |m| &self.units[(row + m) * self.stride + self.first..][..self.n_units],
        )
    }
}

/// `out += left b` where `out` has `rows` rows of `width` vectors, and `b` rows of `stride`.
#[inline(always)]
pub(super) fn accumulate<V: Vector>(
    v: V,
    left: Left<'_>,
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
    left: Left<'_>,
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
    left: Left<'_>,
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
    let sums = multiply::<V, M, N>(v, left.rows(row), b, (stride, column), sums);
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

    /// Units along the head's width, `(tokens, width)`: a left side contracted over it.
    #[inline(always)]
    pub(super) fn natural<V: Vector>(&mut self, v: V) -> Vectors {
        let mut out = Vectors::new(self.tokens * self.width);
        v.pack(self.values.floats().as_flattened(), out.units().as_flattened_mut());
        out
    }

    /// Units along the tokens, `(tokens / PAIR, columns)`: a right side contracted over the tokens.
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

/// `natural` units of `rows` as the right side of a product contracted over the head's width:
/// for each block of queries `n_units` rows of two vectors.
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

/// `paired` units turned, `(columns, tokens / PAIR)`: a left side contracted over the tokens.
#[inline(always)]
pub(super) fn turned<V: Vector>(v: V, paired: &[Units], rows: &Rows) -> Vectors {
    let (columns, blocks) = (rows.width * V::PAIR, rows.tokens / V::PAIR / LANES);
    let mut out = Vectors::new(columns * LANES * blocks);
    let units = out.units();
    for block in 0..blocks {
        for column in 0..columns {
            let square = square(v, paired, (block * LANES * columns + column, columns));
            for i in 0..LANES {
                units[(column * LANES + i) * blocks + block] = v.unit_array(square[i]);
            }
        }
    }
    out
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
