//! Forward of one head of one sequence: blocks of queries meet blocks of keys, and sums are brought
//! to a new maximum as they go (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022).
//!
//! Scores and weights lie with queries along the lanes, so that maximum and sum need no shuffles.

use std::f32::consts::{LN_2, LOG2_E};

use super::heads::{Heads, Panel, Task};
use super::tile::{
    QUERIES, Side, Vectors, accumulate, of_paired, of_panels, panels, read_heads, turn_back,
};
use super::{AttentionShape, KEYS};
use crate::vector::{LANES, Units, Vector, Work};

/// One task.
pub(super) struct Forward<'a, H> {
    pub(super) heads: &'a H,
    pub(super) task: Task,
    pub(super) s: &'a AttentionShape,
    pub(super) o: Panel<'a>,
    /// `(tokens)`
    pub(super) lse: &'a mut [f32],
}

/// Keys, values and queries of the task as products read them.
struct Packed {
    /// Contracted over the head's width, as the queries.
    keys: Vectors,
    queries: Vectors,
    n_units: usize,
    /// Contracted over the tokens.
    values: Vectors,
    /// Vectors of a row of these.
    value_columns: usize,
}

/// What a block of queries carries from one block of keys to the next.
struct Running<V: Vector> {
    max: [V::Lanes; 2],
    sum: [V::Lanes; 2],
    /// `(v_dim, QUERIES)`, `v_dim` padded.
    o: Vectors,
}

/// Of one block of keys.
struct Work1 {
    /// `(KEYS, QUERIES)`
    scores: Vectors,
    /// `(KEYS / PAIR, QUERIES)`
    weights: Vectors,
}

impl<H: Heads> Work for Forward<'_, H> {
    #[inline(always)]
    fn with<V: Vector>(mut self, v: V) {
        let s = self.s;
        let mut packed = self.pack(v);
        let width = s.v_dim.div_ceil(LANES);
        let mut running = Running {
            max: [v.all(0.0); 2],
            sum: [v.all(0.0); 2],
            o: Vectors::new(width * QUERIES),
        };
        let mut work =
            Work1 { scores: Vectors::new(KEYS * 2), weights: Vectors::new(KEYS / V::PAIR * 2) };
        let mut rows = Vectors::new(width * QUERIES);
        for first in (0..s.tokens).step_by(QUERIES) {
            running.max = [v.all(f32::NEG_INFINITY); 2];
            running.sum = [v.all(0.0); 2];
            let end = first + QUERIES;
            for key in (0..end).step_by(KEYS) {
                let keys = KEYS.min(end - key);
                block(v, s, &mut packed, (first, key, keys), &mut work, &mut running);
            }
            self.write(v, first, &mut running, &mut rows);
        }
    }
}

impl<H: Heads> Forward<'_, H> {
    #[inline(always)]
    fn pack<V: Vector>(&self, v: V) -> Packed {
        let [mut q, mut k, mut values] = read_heads::<V>(self.heads, self.s, self.task);
        let queries = panels(v, q.natural(v).units(), &q);
        Packed {
            keys: panels(v, k.natural(v).units(), &k),
            queries,
            n_units: k.n_units,
            values: values.paired(v),
            value_columns: values.width * V::PAIR,
        }
    }

    /// Divides by the sums and writes the queries from `first` on.
    #[inline(always)]
    fn write<V: Vector>(
        &mut self,
        v: V,
        first: usize,
        running: &mut Running<V>,
        rows: &mut Vectors,
    ) {
        let sums = running.sum.map(
            #[inline(always)]
            |sum| v.array(sum),
        );
        let inverse = sums.map(
            #[inline(always)]
            |sums| v.floats(&sums.map(|sum| 1.0 / sum)),
        );
        turn_back(v, running.o.floats(), inverse, rows.floats());
        let max = running.max.map(
            #[inline(always)]
            |max| v.array(max),
        );
        let (sums, max) = (sums.as_flattened(), max.as_flattened());
        let stride = rows.floats().len() / QUERIES * LANES;
        let written = rows.floats().as_flattened().chunks_exact(stride.max(1));
        for (i, row) in written.take(self.s.tokens - first).enumerate() {
            self.o.write(first + i, 0, &row[..self.s.v_dim]);
        }
        for (i, lse) in self.lse[first..].iter_mut().take(QUERIES).enumerate() {
            *lse = (max[i] + sums[i].log2()) * LN_2;
        }
    }
}

/// One block of queries and `keys` keys from `key` on.
#[inline(always)]
fn block<V: Vector>(
    v: V,
    s: &AttentionShape,
    packed: &mut Packed,
    (first, key, keys): (usize, usize, usize),
    work: &mut Work1,
    running: &mut Running<V>,
) {
    let left = (&*packed.keys.units(), packed.n_units);
    let panel = 2 * packed.n_units;
    let queries = &packed.queries.units()[first / QUERIES * panel..][..panel];
    let scores = work.scores.floats();
    let factor = s.scale * LOG2_E;
    let mut max = running.max;
    for at in (0..keys).step_by(8) {
        let mut place = (first, key + at);
        let scores = &mut scores[2 * at..][..16];
        if V::ROOMY {
            max = score::<V, 8>(v, left, queries, (factor, place), (scores, max));
        } else {
            for scores in scores.chunks_exact_mut(4) {
                max = score::<V, 2>(v, left, queries, (factor, place), (scores, max));
                place.1 += 2;
            }
        }
    }
    let mut correction = [v.all(0.0); 2];
    for n in 0..2 {
        correction[n] = v.exp2(v.sub(running.max[n], max[n]));
        running.sum[n] = v.mul(running.sum[n], correction[n]);
    }
    running.max = max;
    weigh(v, (scores, work.weights.units()), (first, key, keys), running);

    let o = running.o.floats();
    let values = of_paired::<V>(packed.values.units(), packed.value_columns, (key, keys));
    if key == 0 {
        o.as_flattened_mut().fill(0.0);
    } else {
        for o in o.as_chunks_mut::<2>().0 {
            for n in 0..2 {
                o[n] = v.array(v.mul(v.floats(&o[n]), correction[n]));
            }
        }
    }
    accumulate(v, values, (work.weights.units(), 2), o, (s.v_dim, 2));
}

/// The scores of `M` keys, scaled, in units of log2; those that a query may not see are minus
/// infinity. Returns the maximum so far.
#[inline(always)]
fn score<V: Vector, const M: usize>(
    v: V,
    (keys, n_units): (&[Units], usize),
    queries: &[Units],
    (factor, (first, key)): (f32, (usize, usize)),
    (out, mut max): (&mut [[f32; LANES]], [V::Lanes; 2]),
) -> [V::Lanes; 2] {
    let sums = [[v.all(0.0); 2]; M];
    let (left, row) = of_panels(keys, n_units, key);
    let sums = left.multiply::<V, M, 2>(v, row, (queries, 2, 0), sums);
    let out = &mut out[..2 * M];
    let factor = v.all(factor);
    for m in 0..M {
        for n in 0..2 {
            let mut score = v.mul(sums[m][n], factor);
            if first < key + M {
                let hidden = (key + m).saturating_sub(first + n * LANES);
                score = v.lanes_from(hidden, score, v.all(f32::NEG_INFINITY));
            }
            max[n] = v.max(score, max[n]);
            out[2 * m + n] = v.array(score);
        }
    }
    max
}

/// Weights of the scores, `2^(score - max)`, as units along the keys; adds them to the sums.
#[inline(always)]
fn weigh<V: Vector>(
    v: V,
    (scores, weights): (&[[f32; LANES]], &mut [Units]),
    (first, key, keys): (usize, usize, usize),
    running: &mut Running<V>,
) {
    let pairs = scores.as_chunks::<4>().0.iter().zip(weights.chunks_exact_mut(4 / V::PAIR));
    for (at, (scores, weights)) in pairs.take(keys / 2).enumerate() {
        let mut rows = [[v.all(0.0); 2]; 2];
        for m in 0..2 {
            for n in 0..2 {
                let score = v.floats(&scores[2 * m + n]);
                let mut weight = v.exp2(v.sub(score, running.max[n]));
                let key = key + 2 * at + m;
                if first < key {
                    let hidden = key.saturating_sub(first + n * LANES);
                    weight = v.lanes_from(hidden, weight, v.all(0.0));
                }
                running.sum[n] = v.add(running.sum[n], weight);
                rows[m][n] = weight;
            }
        }
        v.column_units(rows, weights);
    }
}
