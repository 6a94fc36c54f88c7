//! Backward of one head of one sequence: weights are computed again from the log-sum-exps, block by
//! block.
//!
//! With `w` the weights and `d_w = d_o v^T`: `d_s = w (d_w - sum(d_o o))`, `dv = w^T d_o`,
//! `dk = scale d_s^T q`, `dq = scale d_s k`.

use std::f32::consts::LOG2_E;

use super::heads::{Gradients, Heads, Read, Task};
use super::tile::{
    ByRow, QUERIES, Rows, Side as _, Vectors, accumulate, of_paired, of_panels, panels, read_heads,
    turn_back,
};
use super::{AHEAD, AttentionShape, KEYS};
use crate::lanes;
use crate::scratch::Scratch;
use crate::vector::{LANES, Units, Vector, Work};

/// One task.
pub(super) struct Backward<'a, H, G> {
    pub(super) heads: &'a H,
    pub(super) task: Task,
    pub(super) s: &'a AttentionShape,
    pub(super) o: Read<'a>,
    pub(super) d_o: Read<'a>,
    /// `(tokens)`
    pub(super) lse: &'a [f32],
    pub(super) gradients: G,
}

/// The task's rows as products read them.
struct Packed {
    queries: Side,
    d_o: Side,
    /// Contracted over the head's width, and over the tokens.
    keys: Vectors,
    keys_paired: Vectors,
    values: Vectors,
    /// Log-sum-exp in units of log2, and `sum(d_o o)`: two vectors each for a block of queries.
    of_queries: Vectors,
    /// Padded tokens.
    tokens: usize,
}

/// Queries or gradients of outputs.
struct Side {
    panels: Vectors,
    paired: Vectors,
    /// Units of a row.
    n_units: usize,
    /// Vectors of units in a row.
    width: usize,
}

impl Side {
    #[inline(always)]
    fn new<V: Vector>(v: V, mut rows: Rows) -> Self {
        Self {
            panels: panels(v, rows.natural(v).units(), &rows),
            paired: rows.paired(v),
            n_units: rows.n_units,
            width: rows.width,
        }
    }

    #[inline(always)]
    fn panel(&mut self, first: usize) -> &[Units] {
        let panel = 2 * self.n_units;
        &self.panels.units()[first / QUERIES * panel..][..panel]
    }

    /// Units along the tokens of a block of queries, and vectors of a row.
    #[inline(always)]
    fn block<V: Vector>(&mut self, first: usize) -> (&[Units], usize) {
        let columns = self.width * V::PAIR;
        (&self.paired.units()[first / V::PAIR * columns..][..QUERIES / V::PAIR * columns], columns)
    }
}

/// Weights and gradients of scores of one block of queries with one block of keys.
struct Square {
    /// `(KEYS, QUERIES)`, units along the queries.
    weights: Vectors,
    d_scores: Vectors,
    /// `(KEYS / PAIR, QUERIES)`, units along the keys.
    d_scores_by_key: Vectors,
}

/// FP32 sums.
struct Sums {
    /// `(tokens, qk_dim)`
    dk: Vectors,
    /// `(tokens, v_dim)`
    dv: Vectors,
    /// `(qk_dim, QUERIES)`
    dq: Vectors,
}

impl<H: Heads, G: Gradients> Work for Backward<'_, H, G> {
    #[inline(always)]
    fn with<V: Vector>(mut self, v: V) {
        let s = self.s;
        let mut packed = self.pack(v);
        let (qk, vd) = (s.qk_dim.div_ceil(LANES), s.v_dim.div_ceil(LANES));
        let mut sums = Sums {
            dk: Vectors::zeros(packed.tokens * qk),
            dv: Vectors::zeros(packed.tokens * vd),
            dq: Vectors::new(qk * QUERIES),
        };
        let mut square = Square {
            weights: Vectors::new(KEYS * 2 / V::PAIR),
            d_scores: Vectors::new(KEYS * 2 / V::PAIR),
            d_scores_by_key: Vectors::new(KEYS * 2 / V::PAIR),
        };
        let mut rows = Vectors::new(qk * QUERIES);
        for first in (0..s.tokens).step_by(QUERIES) {
            sums.dq.floats().as_flattened_mut().fill(0.0);
            let end = first + QUERIES;
            for key in (0..end).step_by(KEYS) {
                let place = (first, key, KEYS.min(end - key));
                fill(v, s, &mut packed, place, &mut square);
                add(v, s, &mut packed, place, &mut square, &mut sums);
            }
            turn_back(v, sums.dq.floats(), [v.all(s.scale); 2], rows.floats());
            let dq = rows.floats().as_flattened_mut().chunks_exact_mut(qk * LANES);
            for (i, dq) in dq.take(s.tokens - first).enumerate() {
                self.gradients.query(first + i, &mut dq[..s.qk_dim]);
            }
        }
        let dk = sums.dk.floats().as_flattened_mut().chunks_exact_mut(qk * LANES);
        let dv = sums.dv.floats().as_flattened().chunks_exact(vd * LANES);
        for (token, (dk, dv)) in dk.zip(dv).take(s.tokens).enumerate() {
            for dk in dk.iter_mut() {
                *dk *= s.scale;
            }
            self.gradients.key_value(token, &dk[..s.qk_dim], &dv[..s.v_dim]);
        }
    }
}

impl<H: Heads, G> Backward<'_, H, G> {
    #[inline(always)]
    fn pack<V: Vector>(&self, v: V) -> Packed {
        let (s, task) = (self.s, self.task);
        let place = |token: usize| s.place(task, token) * s.v_dim;
        let ahead = AHEAD * s.heads * s.v_dim;
        let mut o = Scratch::new(s.v_dim);
        let mut along = Scratch::new(s.tokens);
        let d_o = Rows::read::<V>(
            s.tokens,
            s.v_dim,
            #[inline(always)]
            |token, out| {
                self.d_o.row_of_many(place(token), ahead, out);
                self.o.row_of_many(place(token), ahead, &mut o);
                along[token] = lanes::dot(out, &o);
            },
        );
        let [q, mut k, mut values] = read_heads::<V>(self.heads, s, task);
        let tokens = k.tokens;
        let mut of_queries = Vectors::zeros(tokens / LANES * 2);
        for (token, (lse, along)) in self.lse.iter().zip(along.iter()).enumerate() {
            let block = token / QUERIES * 2 * QUERIES + token % QUERIES;
            let of_queries = of_queries.floats().as_flattened_mut();
            of_queries[block] = lse * LOG2_E;
            of_queries[block + QUERIES] = *along;
        }
        Packed {
            queries: Side::new(v, q),
            d_o: Side::new(v, d_o),
            keys: panels(v, k.natural(v).units(), &k),
            keys_paired: k.paired(v),
            values: panels(v, values.natural(v).units(), &values),
            of_queries,
            tokens,
        }
    }
}

/// Weights of one block, and gradients of its scores.
#[inline(always)]
fn fill<V: Vector>(
    v: V,
    s: &AttentionShape,
    packed: &mut Packed,
    (first, key, keys): (usize, usize, usize),
    square: &mut Square,
) {
    let k = (&*packed.keys.units(), packed.queries.n_units);
    let values = (&*packed.values.units(), packed.d_o.n_units);
    let (q, d_o) = (packed.queries.panel(first), packed.d_o.panel(first));
    let of_queries = &packed.of_queries.floats()[first / LANES * 2..][..4];
    let lse = [v.floats(&of_queries[0]), v.floats(&of_queries[1])];
    let along = [v.floats(&of_queries[2]), v.floats(&of_queries[3])];
    let (factor, row) = (v.all(s.scale * LOG2_E), 2 / V::PAIR);
    let (weights, d_scores) = (square.weights.units(), square.d_scores.units());
    let by_key = square.d_scores_by_key.units();
    let mut at = 0;
    while at < keys {
        let sides = ((k, q), (values, d_o));
        let of_queries = (lse, along, factor);
        let place = (first, key + at);
        let out = [&mut weights[at * row..], &mut d_scores[at * row..], &mut by_key[at * row..]];
        at += if V::ROOMY {
            fill_rows::<V, 4>(v, sides, of_queries, place, out)
        } else {
            fill_rows::<V, 2>(v, sides, of_queries, place, out)
        };
    }
}

/// Panels of a left side with their units, and the panel of the right side.
type Sides<'a> = ((&'a [Units], usize), &'a [Units]);

/// `M` keys of a block; returns `M`.
#[inline(always)]
fn fill_rows<V: Vector, const M: usize>(
    v: V,
    (k_q, values_d_o): (Sides<'_>, Sides<'_>),
    (lse, along, factor): ([V::Lanes; 2], [V::Lanes; 2], V::Lanes),
    (first, key): (usize, usize),
    [weights, d_scores, by_key]: [&mut [Units]; 3],
) -> usize {
    let products = scores::<V, M>(v, k_q, values_d_o, key);
    let rows = finish(v, products, (lse, along), factor, (first, key));
    store(v, rows, weights, d_scores, by_key)
}

/// Two vectors of `M` rows.
type Block<V, const M: usize> = [[<V as Vector>::Lanes; 2]; M];

/// `k q^T` and `v d_o^T` of `M` keys.
#[inline(always)]
fn scores<V: Vector, const M: usize>(
    v: V,
    (k, q): Sides<'_>,
    (values, d_o): Sides<'_>,
    key: usize,
) -> (Block<V, M>, Block<V, M>) {
    let zero = [[v.all(0.0); 2]; M];
    let ((k, row), (values, _)) = (of_panels(k.0, k.1, key), of_panels(values.0, values.1, key));
    (
        k.multiply::<V, M, 2>(v, row, (q, 2, 0), zero),
        values.multiply::<V, M, 2>(v, row, (d_o, 2, 0), zero),
    )
}

/// Weights from scores, and gradients of scores from those of weights.
#[inline(always)]
fn finish<V: Vector, const M: usize>(
    v: V,
    (mut scores, mut d_weights): (Block<V, M>, Block<V, M>),
    (lse, along): ([V::Lanes; 2], [V::Lanes; 2]),
    factor: V::Lanes,
    (first, key): (usize, usize),
) -> (Block<V, M>, Block<V, M>) {
    for m in 0..M {
        for n in 0..2 {
            let weight = v.exp2(v.sub(v.mul(scores[m][n], factor), lse[n]));
            let d_score = v.mul(weight, v.sub(d_weights[m][n], along[n]));
            (scores[m][n], d_weights[m][n]) = (weight, d_score);
            if first < key + M {
                let hidden = (key + m).saturating_sub(first + n * LANES);
                scores[m][n] = v.lanes_from(hidden, weight, v.all(0.0));
                d_weights[m][n] = v.lanes_from(hidden, d_score, v.all(0.0));
            }
        }
    }
    (scores, d_weights)
}

/// Writes `M` rows as units along the queries and along the keys; returns `M`.
#[inline(always)]
fn store<V: Vector, const M: usize>(
    v: V,
    (weights, d_scores): (Block<V, M>, Block<V, M>),
    weights_out: &mut [Units],
    d_scores_out: &mut [Units],
    by_key_out: &mut [Units],
) -> usize {
    let row = 2 / V::PAIR;
    for m in 0..M {
        v.row_units(weights[m], &mut weights_out[m * row..][..row]);
        v.row_units(d_scores[m], &mut d_scores_out[m * row..][..row]);
    }
    for m in (0..M).step_by(2) {
        v.column_units([d_scores[m], d_scores[m + 1]], &mut by_key_out[m * row..][..2 * row]);
    }
    M
}

/// Adds what one block gives to the three gradients.
#[inline(always)]
fn add<V: Vector>(
    v: V,
    s: &AttentionShape,
    packed: &mut Packed,
    (first, key, keys): (usize, usize, usize),
    square: &mut Square,
    sums: &mut Sums,
) {
    let (qk, vd) = (s.qk_dim.div_ceil(LANES), s.v_dim.div_ceil(LANES));
    let dv = &mut sums.dv.floats()[key * vd..][..keys * vd];
    accumulate(v, ByRow(square.weights.units()), packed.d_o.block::<V>(first), dv, (keys, vd));
    let dk = &mut sums.dk.floats()[key * qk..][..keys * qk];
    accumulate(v, ByRow(square.d_scores.units()), packed.queries.block::<V>(first), dk, (keys, qk));
    let columns = packed.queries.width * V::PAIR;
    let keys = of_paired::<V>(packed.keys_paired.units(), columns, (key, keys));
    let by_key = (&*square.d_scores_by_key.units(), 2);
    accumulate(v, keys, by_key, sums.dq.floats(), (s.qk_dim, 2));
}
