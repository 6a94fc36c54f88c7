//! Rows that are sums of rows of other matrices: what comes back from experts, by row, and from
//! expert shards, by token. Sums are FP32, in the order in which the terms are listed.

use crate::bf16::bf16_to_f32;
use crate::simd::vectorised;
use crate::spread;
use crate::tensor::{DType, Tensor};

/// Which rows make up each row of a result.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Row r is the sum of the terms `first[r]..first[r + 1]`; one entry more than there are rows.
    pub first: &'a [usize],
    /// Each term: a source, and a row of it.
    pub places: &'a [(u32, u32)],
    /// Matrices of one width, in any dtype; `None` where no term is.
    pub sources: &'a [Option<&'a Tensor>],
}

/// `sum[r] = terms of r + also[r]`, rounded to `out`: a row without terms starts from zero.
///
/// - `also`: FP32, `(R, cols)`.
pub fn sum(terms: &Terms<'_>, cols: usize, also: Option<&Tensor>, out: DType) -> Tensor {
    let rows = terms.first.len().saturating_sub(1);
    if let Some(also) = also {
        assert_eq!((also.rows(), also.cols()), (rows, cols), "row sums: what is added last");
    }
    let mut sum = Tensor::unwritten(out, &[rows, cols]);
    spread::each(sum.row_chunks_mut(spread::ROWS).enumerate(), |(i, chunk)| {
        chunk.fill(|sums| {
            for (r, sum) in sums.chunks_exact_mut(cols.max(1)).enumerate() {
                let row = i * spread::ROWS + r;
                sum.fill(0.0);
                for (source, at) in &terms.places[terms.first[row]..terms.first[row + 1]] {
                    let source = terms.sources[*source as usize].expect("a term has a source");
                    add_row(sum, source, *at as usize);
                }
                if let Some(also) = also {
                    add_row(sum, also, row);
                }
            }
        });
    });
    sum
}

fn add_row(sum: &mut [f32], source: &Tensor, row: usize) {
    let range = row * sum.len()..(row + 1) * sum.len();
    match source.dtype() {
        DType::F32 => {
            let values = &source.f32s()[range];
            vectorised(
                #[inline(always)]
                || {
                    for (sum, value) in sum.iter_mut().zip(values) {
                        *sum += value;
                    }
                },
            );
        }
        DType::Bf16 => {
            let values = &source.bf16s()[range];
            vectorised(
                #[inline(always)]
                || {
                    for (sum, value) in sum.iter_mut().zip(values) {
                        *sum += bf16_to_f32(*value);
                    }
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Random, with_one_and_three_threads};

    #[test]
    fn rows_add_up_in_the_order_of_their_terms() {
        for cols in [1, 127, 129] {
            let mut random = Random::new(1);
            let mut matrix =
                |dtype, rows| Tensor::from_f32(dtype, &[rows, cols], &random.normal(rows * cols));
            let (a, b) = (matrix(DType::F32, 40), matrix(DType::Bf16, 70));
            let also = matrix(DType::F32, 70);
            // Row r: row r of b, then, of every second one, row r / 2 of a, counted from the end.
            let mut first = vec![0];
            let mut places = Vec::new();
            for r in 0..70_u32 {
                places.push((2, r));
                if r % 2 == 0 {
                    places.push((0, 39 - r / 2));
                }
                first.push(places.len());
            }
            let sources = [Some(&a), None, Some(&b)];
            let terms = Terms { first: &first, places: &places, sources: &sources };
            let (one, three) = with_one_and_three_threads(|| {
                [DType::F32, DType::Bf16].map(|dtype| sum(&terms, cols, Some(&also), dtype))
            });
            assert_eq!(one, three);
            let (a, b) = (a.f32s(), b.to_f32());
            let want: Vec<f32> = (0..70 * cols)
                .map(|at| {
                    let (r, c) = (at / cols, at % cols);
                    let mut want = b[at];
                    if r % 2 == 0 {
                        want += a[(39 - r / 2) * cols + c];
                    }
                    want + also.f32s()[at]
                })
                .collect();
            assert_eq!(one[0].f32s(), want);
            assert_eq!(one[1], Tensor::from_f32(DType::Bf16, &[70, cols], &want));
        }
    }

    #[test]
    fn a_row_without_terms_is_zero_and_there_may_be_none() {
        let terms = Terms { first: &[0, 0], places: &[], sources: &[] };
        assert_eq!(sum(&terms, 3, None, DType::F32), Tensor::zeros(DType::F32, &[1, 3]));
        let terms = Terms { first: &[0], places: &[], sources: &[] };
        assert_eq!(sum(&terms, 3, None, DType::F32).rows(), 0);
    }
}
