//! Attention over a cache of latents: multi-head latent attention as decoding computes it.
//!
//! DeepSeek-V3 report 2.1.1. The key of a head is `[W_k c ; k_rope]` and its value `W_v c` with the
//! token's latent `c`, so a query that was multiplied by `W_k` meets the latents themselves, and the
//! weighted sum of latents is multiplied by `W_v` afterwards: nothing is kept per head. H heads, R the
//! latent's rank, P rotated columns. Softmax is FP32. As in `rowwise`, what a query row gives does not
//! depend on the rows beside it: its scores and its sum run over the cache in order of position.

use crate::exp::exp;
use crate::lanes;
use crate::rowwise::dots;
use crate::rowwise::unit::{self, LANES, Unit, Work};
use crate::scratch::Scratch;
use crate::simd::vectorised;
use crate::spread;
use crate::tensor::Tensor;

/// Heads of one task.
const HEADS: usize = 4;

/// Products that a hand-off to another thread is worth.
const TASK: usize = 32 * 1024;

/// Registers of columns summed at once: enough chains to keep the multiply-adds busy.
const TOGETHER: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentShape {
    pub heads: usize,
    /// Columns of a latent.
    pub rank: usize,
    /// Rotated columns behind it.
    pub rope: usize,
    /// Multiplies the scores.
    pub scale: f32,
}

impl LatentShape {
    /// Columns of a cached row, and of one head's query.
    pub fn width(&self) -> usize {
        self.rank + self.rope
    }
}

/// Neighbouring tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// `(T, H (R + P))`.
    pub q: &'a [f32],
    /// `(positions, R + P)`: what all tokens up to the last of these left, their own rows included.
    pub cache: &'a Tensor,
    /// Position of the first token; it sees the rows up to its own.
    pub first: usize,
}

impl Queries<'_> {
    fn rows(&self, s: &LatentShape) -> usize {
        self.q.len() / (s.heads * s.width())
    }
}

/// Weighted sums of latents, `(T, H R)` for each sequence.
pub fn forward(sequences: &[Queries<'_>], s: &LatentShape) -> Vec<Vec<f32>> {
    let parts = s.heads.div_ceil(HEADS);
    let tasks = sequences.iter().flat_map(|queries| (0..parts).map(move |part| (queries, part)));
    let task = |(queries, part): (&Queries<'_>, usize)| {
        let heads = part * HEADS..((part + 1) * HEADS).min(s.heads);
        (heads.clone(), some_heads(queries, heads, s))
    };
    let work = |queries: &Queries<'_>| queries.q.len() * (queries.first + queries.rows(s));
    let done: Vec<_> = if sequences.iter().map(work).sum::<usize>() <= TASK {
        tasks.map(task).collect()
    } else {
        spread::map(tasks, task)
    };
    let joined = sequences.iter().zip(done.chunks(parts.max(1))).map(|(queries, parts)| {
        let mut out = vec![0.0; queries.rows(s) * s.heads * s.rank];
        for (heads, values) in parts {
            let width = heads.len() * s.rank;
            let rows = out.chunks_exact_mut(s.heads * s.rank).zip(values.chunks_exact(width));
            for (out, values) in rows {
                out[heads.start * s.rank..][..width].copy_from_slice(values);
            }
        }
        out
    });
    joined.collect()
}

/// `(T, heads R)`.
fn some_heads(queries: &Queries<'_>, heads: std::ops::Range<usize>, s: &LatentShape) -> Vec<f32> {
    let (t, width, n_heads) = (queries.rows(s), s.width(), heads.len());
    let (lines, positions) = (t * n_heads, queries.first + t);
    assert!(positions <= queries.cache.rows(), "latent: the cache has a row for every token");
    assert_eq!(queries.cache.cols(), width, "latent: columns of the cache");
    let mut q = Scratch::new(lines * width);
    for (row, q) in q.chunks_exact_mut((n_heads * width).max(1)).enumerate() {
        q.copy_from_slice(&queries.q[(row * s.heads + heads.start) * width..][..n_heads * width]);
    }
    let mut by_position = Scratch::new(positions * lines);
    dots(&q, queries.cache, 0..positions, &mut by_position);
    let mut latents = Scratch::new(positions * width);
    queries.cache.read_rows(0..positions, &mut latents);
    let mut out = vec![0.0; lines * s.rank];
    let mut weights = Scratch::new(positions);
    for (line, out) in out.chunks_exact_mut(s.rank).enumerate() {
        let seen = queries.first + line / n_heads + 1;
        let weights = &mut weights[..seen];
        for (weight, scores) in weights.iter_mut().zip(by_position.chunks_exact(lines)) {
            *weight = scores[line];
        }
        softmax(weights, s.scale);
        unit::run(WeightedSum { weights, latents: &latents, width, out });
    }
    out
}

/// Replaces scores by `softmax(scale * scores)`.
fn softmax(scores: &mut [f32], scale: f32) {
    vectorised(
        #[inline(always)]
        || {
            let max = lanes::max(scores) * scale;
            for score in scores.iter_mut() {
                *score = exp(*score * scale - max);
            }
            let inverse = 1.0 / lanes::sum(scores);
            for score in scores.iter_mut() {
                *score *= inverse;
            }
        },
    );
}

/// `out = sum of weight * latent`, in order of position.
struct WeightedSum<'a> {
    weights: &'a [f32],
    /// Rows of `width`, of which the first columns are summed.
    latents: &'a [f32],
    width: usize,
    /// `(R)`.
    out: &'a mut [f32],
}

impl Work for WeightedSum<'_> {
    #[inline(always)]
    fn with<U: Unit>(mut self, unit: U) {
        let rank = self.out.len();
        let mut at = 0;
        while at < rank {
            at += match (rank - at) / LANES {
                0 => self.rest(unit, at),
                1..4 => self.columns::<U, 1>(unit, at),
                _ => self.columns::<U, TOGETHER>(unit, at),
            };
        }
    }
}

impl WeightedSum<'_> {
    /// `N` registers of columns from `at` on; returns how many columns these are.
    #[inline(always)]
    fn columns<U: Unit, const N: usize>(&mut self, unit: U, at: usize) -> usize {
        let mut sums = [unit.zero(); N];
        for (weight, latent) in self.weights.iter().zip(self.latents.chunks_exact(self.width)) {
            let weight = unit.all(*weight);
            let (latent, _) = latent[at..at + N * LANES].as_chunks::<LANES>();
            for i in 0..N {
                sums[i] = unit.mul_add(weight, unit.floats(&latent[i]), sums[i]);
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            self.out[at + i * LANES..][..LANES].copy_from_slice(&unit.array(sum));
        }
        N * LANES
    }

    /// The last few columns.
    #[inline(always)]
    fn rest<U: Unit>(&mut self, unit: U, at: usize) -> usize {
        let n = self.out.len() - at;
        let mut sum = unit.zero();
        for (weight, latent) in self.weights.iter().zip(self.latents.chunks_exact(self.width)) {
            let mut columns = [0.0; LANES];
            columns[..n].copy_from_slice(&latent[at..at + n]);
            sum = unit.mul_add(unit.all(*weight), unit.floats(&columns), sum);
        }
        self.out[at..].copy_from_slice(&unit.array(sum)[..n]);
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Random, Tolerance, assert_close, with_one_and_three_threads};
    use crate::tensor::DType;

    fn plain(queries: &Queries<'_>, s: &LatentShape) -> Vec<f32> {
        let (width, cache) = (s.width(), queries.cache.to_f32());
        let mut out = Vec::new();
        for (line, q) in queries.q.chunks_exact(width).enumerate() {
            let seen = queries.first + line / s.heads + 1;
            let score = |key: &[f32]| -> f64 {
                let dot: f64 = q.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                (dot * f64::from(s.scale)).exp()
            };
            let scores: Vec<f64> = cache.chunks_exact(width).take(seen).map(score).collect();
            let total: f64 = scores.iter().sum();
            for c in 0..s.rank {
                let column = cache.chunks_exact(width).map(|key| f64::from(key[c]));
                let sum: f64 = scores.iter().zip(column).map(|(score, c)| score * c).sum();
                out.push((sum / total) as f32);
            }
        }
        out
    }

    #[test]
    fn sums_agree_with_the_formula_and_rows_do_not_feel_their_neighbours() {
        for (heads, rank, rope, dtype) in [
            (1, 1, 2, DType::F32),
            (5, 10, 4, DType::Bf16),
            (4, 64, 8, DType::F32),
            (9, 71, 6, DType::Bf16),
        ] {
            let s = LatentShape { heads, rank, rope, scale: 0.3 };
            let mut random = Random::new(1);
            let (t, first) = (5, 40);
            let cache = Tensor::from_f32(dtype, &[60, s.width()], &random.normal(60 * s.width()));
            let q = random.normal(t * heads * s.width());
            let all = Queries { q: &q, cache: &cache, first };
            let got = forward(&[all], &s).remove(0);
            assert_close("o", &got, &plain(&all, &s), Tolerance::F32.times(4.0));
            for (row, (q, want)) in
                q.chunks_exact(heads * s.width()).zip(got.chunks_exact(heads * rank)).enumerate()
            {
                let one = Queries { q, cache: &cache, first: first + row };
                assert_eq!(forward(&[one, all], &s)[0], want, "row {row}");
            }
        }
    }

    #[test]
    fn the_first_token_sees_itself_alone() {
        let s = LatentShape { heads: 2, rank: 3, rope: 2, scale: 1.0 };
        let mut random = Random::new(2);
        let cache = Tensor::from_f32(DType::F32, &[1, 5], &random.normal(5));
        let q = random.normal(10);
        let got = forward(&[Queries { q: &q, cache: &cache, first: 0 }], &s).remove(0);
        let latent = &cache.f32s()[..3];
        assert_close("o", &got, &[latent, latent].concat(), Tolerance::F32);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let s = LatentShape { heads: 9, rank: 40, rope: 8, scale: 0.2 };
        let mut random = Random::new(3);
        let cache = Tensor::from_f32(DType::Bf16, &[100, 48], &random.normal(4800));
        let q = random.normal(3 * 9 * 48);
        let queries = Queries { q: &q, cache: &cache, first: 97 };
        let (one, three) = with_one_and_three_threads(|| forward(&[queries, queries], &s));
        assert_eq!(one, three);
    }
}
