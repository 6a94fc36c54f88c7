//! Products for decoding, `y = x w^T`: the bits of a row do not depend on how many rows there are.
//!
//! T rows, K inputs, N outputs. Every element of `y` is one dot product whose order of summation
//! follows from K alone: eight lanes run over K (in FP8 block by block of 128, each block's lanes
//! scaled as they are added to the sum), and the lanes are folded as a tree. Rows are computed in
//! blocks of 4, 3, 2 and 1 so that a weight is read and widened once for all rows of a block; a
//! block's size changes who computes an element, never how. So one token and the same token beside
//! 31 others have the same logits, bit for bit, and a draft that is verified gives what plain
//! decoding gives. As with all matrix products the bits belong to one kind of CPU: sums are fused
//! multiply-adds where the CPU has them.
//!
//! Weights stay as they are stored (FP32, BF16, E4M3 codes): one token reads every weight once, and
//! that is what its time goes into. `linear` is for training: it dequantises whole weights first, and
//! its blocking depends on T.

pub(crate) mod unit;

use std::ops::Range;

use crate::fp8::{BLOCK, Quantized};
use crate::linear::Weight;
use crate::spread;
use crate::tensor::{DType, Tensor};

use self::unit::{LANES, Unit, Work};

/// Weights that one task reads: some ten microseconds of work, a few times a hand-off.
const TASK: usize = 64 * 1024;

/// Weight rows of a task come in multiples of this: 2, 3 or 4 are taken together.
const TOGETHER: usize = 12;

/// One product of several that run together.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// `(T, K)`.
    pub x: &'a [f32],
    /// `(N, K)`.
    pub w: &'a Weight,
}

/// Every product's `(T, N)`, in FP32.
pub fn products(jobs: &[Product<'_>]) -> Vec<Vec<f32>> {
    let mut tasks = Vec::new();
    let mut outputs: Vec<Vec<f32>> =
        jobs.iter().map(|job| vec![0.0; job.rows() * job.w.n()]).collect();
    for (job, y) in jobs.iter().zip(&mut outputs) {
        let (t, step) = (job.rows(), (TASK / job.w.k().max(1)).max(1).next_multiple_of(TOGETHER));
        let chunks = y.chunks_mut((step * t).max(1)).enumerate();
        tasks.extend(chunks.map(|(i, y)| (job, i * step..(i * step + y.len() / t), y)));
    }
    let work: usize = jobs.iter().map(|job| job.x.len() * job.w.n()).sum();
    let task = |(job, outputs, y): (&Product<'_>, Range<usize>, &mut [f32])| {
        job.columns(outputs, y);
    };
    // A hand-off costs more than a few small products.
    if work <= TASK {
        tasks.into_iter().for_each(task);
    } else {
        spread::each(tasks, task);
    }
    let turned = jobs.iter().zip(outputs).map(|(job, y)| turned(y, job.w.n(), job.rows()));
    turned.collect()
}

/// `x w^T`, `(T, N)`.
pub fn product(x: &[f32], w: &Weight) -> Vec<f32> {
    products(&[Product { x, w }]).pop().expect("one product has one result")
}

/// The dot products of all rows of `x` `(T, K)` and some rows of `w`, `(M, K)`, into `out` `(M, T)`, in the
/// calling thread.
pub(crate) fn dots(x: &[f32], w: &Tensor, rows: Range<usize>, out: &mut [f32]) {
    let k = w.cols();
    let range = rows.start * k..rows.end * k;
    match w.dtype() {
        DType::F32 => run(x, Plain { w: &w.f32s()[range], k }, rows.len(), out),
        DType::Bf16 => run(x, Plain { w: &w.bf16s()[range], k }, rows.len(), out),
    }
}

impl Product<'_> {
    fn rows(&self) -> usize {
        let k = self.w.k();
        assert!(self.x.len().is_multiple_of(k.max(1)), "rowwise: rows of x have {k} elements");
        self.x.len() / k.max(1)
    }

    /// Some outputs of all rows, `(outputs, T)`.
    fn columns(&self, outputs: Range<usize>, y: &mut [f32]) {
        match self.w {
            Weight::F32(w) | Weight::Bf16(w) => dots(self.x, w, outputs, y),
            Weight::Fp8(w) => run(self.x, Blocks { w, first: outputs.start }, outputs.len(), y),
        }
    }
}

/// `(N, T)` as `(T, N)`.
fn turned(y: Vec<f32>, n: usize, t: usize) -> Vec<f32> {
    if t <= 1 || n <= 1 {
        return y;
    }
    let mut out = vec![0.0; y.len()];
    for (row, out) in out.chunks_exact_mut(n).enumerate() {
        for (out, y) in out.iter_mut().zip(y.chunks_exact(t)) {
            *out = y[row];
        }
    }
    out
}

/// A stored number.
trait Stored: Copy + Default {
    /// Eight of them, widened exactly.
    fn widen<U: Unit>(unit: U, x: &[Self; LANES]) -> U::Lanes;
}

impl Stored for f32 {
    #[inline(always)]
    fn widen<U: Unit>(unit: U, x: &[Self; LANES]) -> U::Lanes {
        unit.floats(x)
    }
}

/// BF16.
impl Stored for u16 {
    #[inline(always)]
    fn widen<U: Unit>(unit: U, x: &[Self; LANES]) -> U::Lanes {
        unit.bf16s(x)
    }
}

/// E4M3.
impl Stored for u8 {
    #[inline(always)]
    fn widen<U: Unit>(unit: U, x: &[Self; LANES]) -> U::Lanes {
        unit.e4m3s(*x)
    }
}

/// Rows of a weight as dot products read them.
trait Rows: Copy {
    /// Whether every block of K has a scale.
    const SCALED: bool;

    fn k(&self) -> usize;

    /// The lanes of `R` rows of x with `W` of the weight, from `first` on.
    fn block<U: Unit, const R: usize, const W: usize>(
        &self,
        unit: U,
        x: [&[f32]; R],
        first: usize,
    ) -> [[U::Lanes; W]; R];
}

/// Rows without scales.
#[derive(Clone, Copy)]
struct Plain<'a, E> {
    w: &'a [E],
    k: usize,
}

impl<E: Stored> Rows for Plain<'_, E> {
    const SCALED: bool = false;

    #[inline(always)]
    fn k(&self) -> usize {
        self.k
    }

    #[inline(always)]
    fn block<U: Unit, const R: usize, const W: usize>(
        &self,
        unit: U,
        x: [&[f32]; R],
        first: usize,
    ) -> [[U::Lanes; W]; R] {
        let w = std::array::from_fn(
            #[inline(always)]
            |j| &self.w[(first + j) * self.k..][..self.k],
        );
        accumulate::<U, E, R, W>(unit, x, w)
    }
}

/// Rows of E4M3 codes with a scale for each 128 x 128 block; row `first` of the matrix is the first.
#[derive(Clone, Copy)]
struct Blocks<'a> {
    w: &'a Quantized,
    first: usize,
}

impl Rows for Blocks<'_> {
    const SCALED: bool = true;

    #[inline(always)]
    fn k(&self) -> usize {
        self.w.cols()
    }

    #[inline(always)]
    fn block<U: Unit, const R: usize, const W: usize>(
        &self,
        unit: U,
        x: [&[f32]; R],
        first: usize,
    ) -> [[U::Lanes; W]; R] {
        let (k, first) = (self.w.cols(), self.first + first);
        let blocks = k.div_ceil(BLOCK);
        let mut sums = [[unit.zero(); W]; R];
        for block in 0..blocks {
            let range = block * BLOCK..((block + 1) * BLOCK).min(k);
            let x = x.map(
                #[inline(always)]
                |x| &x[range.clone()],
            );
            let w: [&[u8]; W] = std::array::from_fn(
                #[inline(always)]
                |j| &self.w.codes()[(first + j) * k..][range.clone()],
            );
            let part = accumulate::<U, u8, R, W>(unit, x, w);
            for j in 0..W {
                let scale = self.w.scales().value((first + j) / BLOCK * blocks + block);
                let scale = unit.all(scale);
                for r in 0..R {
                    sums[r][j] = unit.mul_add(part[r][j], scale, sums[r][j]);
                }
            }
        }
        sums
    }
}

/// The lanes of `R * W` sums of products over slices of one length.
#[inline(always)]
fn accumulate<U: Unit, E: Stored, const R: usize, const W: usize>(
    unit: U,
    x: [&[f32]; R],
    w: [&[E]; W],
) -> [[U::Lanes; W]; R] {
    let mut sums = [[unit.zero(); W]; R];
    let x = x.map(
        #[inline(always)]
        |x| x.as_chunks::<LANES>(),
    );
    let w = w.map(
        #[inline(always)]
        |w| w.as_chunks::<LANES>(),
    );
    let n = w[0].0.len();
    let x_blocks: [&[[f32; LANES]]; R] = x.map(
        #[inline(always)]
        |(blocks, _)| &blocks[..n],
    );
    let w_blocks: [&[[E; LANES]]; W] = w.map(
        #[inline(always)]
        |(blocks, _)| &blocks[..n],
    );
    for i in 0..n {
        let mut w = [unit.zero(); W];
        for j in 0..W {
            w[j] = E::widen(unit, &w_blocks[j][i]);
        }
        for r in 0..R {
            let x = unit.floats(&x_blocks[r][i]);
            for j in 0..W {
                sums[r][j] = unit.mul_add(x, w[j], sums[r][j]);
            }
        }
    }
    if !w[0].1.is_empty() {
        for j in 0..W {
            let w = E::widen(unit, &padded(w[j].1));
            for r in 0..R {
                sums[r][j] = unit.mul_add(unit.floats(&padded(x[r].1)), w, sums[r][j]);
            }
        }
    }
    sums
}

/// The last few elements of a row, and zeros.
#[inline(always)]
fn padded<E: Stored>(rest: &[E]) -> [E; LANES] {
    let mut all = [E::default(); LANES];
    for (all, rest) in all.iter_mut().zip(rest) {
        *all = *rest;
    }
    all
}

/// Adds the lanes of a sum as a tree.
#[inline(always)]
fn fold([a, b, c, d, e, f, g, h]: [f32; LANES]) -> f32 {
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// All rows of `x` with `n` rows of `w`, `(n, T)`.
fn run<W: Rows>(x: &[f32], w: W, n: usize, out: &mut [f32]) {
    let k = w.k();
    if k == 0 || n == 0 {
        return out.fill(0.0);
    }
    let t = x.len() / k;
    assert_eq!((x.len(), out.len()), (t * k, n * t), "rowwise: shapes");
    unit::run(Sweep { x, w, n, out });
}

/// All rows of `x` `(T, K)` with `n` rows of `w`, into `out` `(n, T)`.
struct Sweep<'a, W> {
    x: &'a [f32],
    w: W,
    n: usize,
    out: &'a mut [f32],
}

impl<W: Rows> Work for Sweep<'_, W> {
    #[inline(always)]
    fn with<U: Unit>(mut self, unit: U) {
        let t = self.x.len() / self.w.k();
        let mut at = 0;
        while at < t {
            at += match t - at {
                1 => self.strip::<U, 1, 4>(unit, at),
                2 => self.strip::<U, 2, 4>(unit, at),
                3 => self.strip::<U, 3, 3>(unit, at),
                // Scaled sums need registers of their own.
                _ if W::SCALED => self.strip::<U, 4, 2>(unit, at),
                _ => self.strip::<U, 4, 3>(unit, at),
            };
        }
    }
}

impl<W: Rows> Sweep<'_, W> {
    /// `R` rows from `at` on, `C` weight rows at a time; returns `R`.
    #[inline(always)]
    fn strip<U: Unit, const R: usize, const C: usize>(&mut self, unit: U, at: usize) -> usize {
        let mut first = 0;
        while first + C <= self.n {
            self.cell::<U, R, C>(unit, at, first);
            first += C;
        }
        while first < self.n {
            self.cell::<U, R, 1>(unit, at, first);
            first += 1;
        }
        R
    }

    #[inline(always)]
    fn cell<U: Unit, const R: usize, const C: usize>(&mut self, unit: U, at: usize, first: usize) {
        let (k, t) = (self.w.k(), self.out.len() / self.n);
        let x: [&[f32]; R] = std::array::from_fn(
            #[inline(always)]
            |r| &self.x[(at + r) * k..][..k],
        );
        let sums = self.w.block::<U, R, C>(unit, x, first);
        for (r, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                self.out[(first + j) * t + at + r] = fold(unit.array(sum));
            }
        }
    }
}

#[cfg(test)]
#[path = "rowwise/tests.rs"]
mod tests;
