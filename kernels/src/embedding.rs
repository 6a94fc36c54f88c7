//! Rows of a table, looked up by token. T tokens, V vocabulary, D width.

use crate::simd::vectorised;
use crate::spread::{self, ROWS};
use crate::tensor::{DType, Tensor};

/// Parts of the table that backward spreads: each scans all tokens, so few.
const PARTS: usize = 16;

/// - `table`: `(V, D)`, D being `width`; `ids`: `(T)`, each below V; returns `(T, D)`, rounded to
///   `out`.
pub fn forward(table: &[f32], width: usize, ids: &[u32], out: DType) -> Tensor {
    let mut y = Tensor::zeros(out, &[ids.len(), width]);
    let chunks = y.row_chunks_mut(ROWS).zip(ids.chunks(ROWS));
    spread::each(chunks, |(y, ids)| {
        y.fill(|y| {
            for (y, id) in y.chunks_exact_mut(width).zip(ids) {
                y.copy_from_slice(&table[*id as usize * width..][..width]);
            }
        });
    });
    y
}

/// `d_table[id] += dy`, for each row in row order.
///
/// - `ids`: `(T)`; `dy`: `(T, D)`; `d_table`: `(V, D)`, accumulated.
pub fn backward(ids: &[u32], dy: &Tensor, d_table: &mut [f32]) {
    let d = dy.cols();
    assert_eq!(dy.rows(), ids.len(), "embedding: one row per token");
    if d == 0 || ids.is_empty() {
        return;
    }
    let vocabulary = d_table.len() / d;
    assert!(ids.iter().all(|id| (*id as usize) < vocabulary), "embedding: an id beyond the table");
    let part = vocabulary.div_ceil(PARTS);
    spread::each(d_table.chunks_mut(part * d).enumerate(), |(i, d_table)| {
        let first = i * part;
        for (row, id) in ids.iter().enumerate() {
            let Some(at) = (*id as usize).checked_sub(first).filter(|at| *at < part) else {
                continue;
            };
            let mut scratch = None;
            add(&mut d_table[at * d..][..d], dy.rows_f32(row..row + 1, &mut scratch));
        }
    });
}

fn add(sum: &mut [f32], x: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (sum, x) in sum.iter_mut().zip(x) {
                *sum += x;
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Random, Tolerance, assert_close, with_one_and_three_threads};

    fn ids(n: usize, vocabulary: u64) -> Vec<u32> {
        let mut random = Random::new(16);
        (0..n).map(|_| random.below(vocabulary) as u32).collect()
    }

    #[test]
    fn rows_come_from_the_table_and_gradients_go_back() {
        for (t, v, d) in [(0, 3, 5), (1, 1, 1), (127, 5, 129), (129, 300, 64)] {
            let ids = ids(t, v as u64);
            let table = Random::new(17).normal(v * d);
            for dtype in [DType::F32, DType::Bf16] {
                let want: Vec<f32> =
                    ids.iter().flat_map(|id| &table[*id as usize * d..][..d]).copied().collect();
                let got = forward(&table, d, &ids, dtype);
                assert_eq!(got, Tensor::from_f32(dtype, &[t, d], &want));
            }
            let dy = Tensor::from_f32(DType::Bf16, &[t, d], &Random::new(18).normal(t * d));
            let mut want = vec![1.0; v * d];
            for (i, dy) in dy.to_f32().iter().enumerate() {
                want[ids[i / d] as usize * d + i % d] += dy;
            }
            let mut got = vec![1.0; v * d];
            backward(&ids, &dy, &mut got);
            assert_close("d_table", &got, &want, Tolerance { abs: 0.0, rel: 0.0 });
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let ids = ids(1000, 50);
        let dy = Tensor::from_f32(DType::F32, &[1000, 33], &Random::new(19).normal(33_000));
        let (one, three) = with_one_and_three_threads(|| {
            let mut d_table = vec![0.0; 50 * 33];
            backward(&ids, &dy, &mut d_table);
            d_table
        });
        assert_eq!(one, three);
    }
}
