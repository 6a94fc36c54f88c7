//! Cutting a matrix by columns and joining it again; bytes are moved, never changed.

use std::ops::Range;

use shoal_kernels::tensor::Tensor;

/// The columns `range` of `x`.
pub(crate) fn columns(x: &Tensor, range: Range<usize>) -> Tensor {
    assert!(range.end <= x.cols(), "columns {range:?} of a matrix with {}", x.cols());
    let size = x.dtype().size();
    let mut bytes = Vec::with_capacity(x.rows() * range.len() * size);
    for row in x.bytes().chunks_exact(x.cols() * size) {
        bytes.extend_from_slice(&row[range.start * size..range.end * size]);
    }
    Tensor::from_bytes(x.dtype(), &[x.rows(), range.len()], &bytes)
        .expect("every row gave as many bytes as the shape says")
}

/// `[left ; right]`, row by row.
pub(crate) fn joined(left: &Tensor, right: &Tensor) -> Tensor {
    assert_eq!(left.dtype(), right.dtype(), "joined halves have one dtype");
    assert_eq!(left.rows(), right.rows(), "joined halves have the same rows");
    let size = left.dtype().size();
    let mut bytes = Vec::with_capacity(left.bytes().len() + right.bytes().len());
    let rows = left.bytes().chunks_exact(left.cols() * size);
    for (a, b) in rows.zip(right.bytes().chunks_exact(right.cols() * size)) {
        bytes.extend_from_slice(a);
        bytes.extend_from_slice(b);
    }
    Tensor::from_bytes(left.dtype(), &[left.rows(), left.cols() + right.cols()], &bytes)
        .expect("every row gave as many bytes as the shape says")
}

#[cfg(test)]
mod tests {
    use shoal_kernels::tensor::DType;

    use super::*;

    #[test]
    fn what_is_cut_and_joined_is_what_it_was() {
        let values: Vec<f32> = (0..21).map(|i| i as f32).collect();
        for dtype in [DType::F32, DType::Bf16] {
            let x = Tensor::from_f32(dtype, &[3, 7], &values);
            let (left, right) = (columns(&x, 0..5), columns(&x, 5..7));
            assert_eq!(right.to_f32(), [5.0, 6.0, 12.0, 13.0, 19.0, 20.0]);
            assert_eq!(joined(&left, &right).to_f32(), values);
        }
    }
}
