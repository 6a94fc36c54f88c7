//! Quantised matrices against a plain reference, at awkward widths.

use super::*;
use crate::compare::{Random, with_one_and_three_threads};
use crate::tensor::DType;

const SIZES: [(usize, usize); 9] =
    [(1, 1), (1, 127), (127, 1), (129, 129), (3, 64), (130, 96), (128, 128), (0, 64), (257, 300)];
const TILINGS: [Tiling; 3] = [Tiling::Row, Tiling::Column, Tiling::Block];

fn tile(tiling: Tiling, row: usize, col: usize) -> (usize, usize) {
    match tiling {
        Tiling::Row => (row, col / BLOCK),
        Tiling::Column => (row / BLOCK, col),
        Tiling::Block => (row / BLOCK, col / BLOCK),
    }
}

/// Quantise and dequantise from the definition: amax of the tile, power of two, nearest code.
fn plain(x: &[f32], cols: usize, tiling: Tiling) -> Vec<f32> {
    let mut amax = std::collections::BTreeMap::new();
    for (i, x) in x.iter().enumerate() {
        let largest = amax.entry(tile(tiling, i / cols, i % cols)).or_insert(0.0_f32);
        *largest = largest.max(x.abs());
    }
    let round = |(i, x): (usize, &f32)| {
        let amax = amax[&tile(tiling, i / cols, i % cols)];
        let scale = if amax == 0.0 { 1.0 } else { (f64::from(amax) / 448.0).log2().ceil().exp2() };
        (f64::from(e4m3::decode(e4m3::encode((f64::from(*x) / scale) as f32))) * scale) as f32
    };
    x.iter().enumerate().map(round).collect()
}

/// Normal numbers whose rows differ in size by powers of ten, with some zero rows.
fn uneven(rows: usize, cols: usize) -> Vec<f32> {
    let mut x = Random::new(7).normal(rows * cols);
    for (row, x) in x.chunks_mut(cols).enumerate() {
        let size = if row % 5 == 4 { 0.0 } else { 10.0_f32.powi((row % 7) as i32 - 3) };
        for x in x.iter_mut() {
            *x *= size;
        }
    }
    x
}

#[test]
fn every_tiling_agrees_with_the_plain_quantiser() {
    for (rows, cols) in SIZES {
        let x = uneven(rows, cols);
        for tiling in TILINGS {
            let got = Quantized::quantise_f32(&x, rows, cols, tiling);
            assert_eq!(got.scales().len(), tiling.scales(rows, cols));
            assert_eq!(got.dequantise(), plain(&x, cols, tiling), "{rows} x {cols} {tiling:?}");
            let tensor = Tensor::from_f32(DType::F32, &[rows, cols], &x);
            assert_eq!(Quantized::quantise(&tensor, tiling), got);
            let bf16 = Tensor::from_f32(DType::Bf16, &[rows, cols], &x);
            let rounded = Quantized::quantise_f32(&bf16.to_f32(), rows, cols, tiling);
            assert_eq!(Quantized::quantise(&bf16, tiling), rounded);
        }
    }
}

#[test]
fn requantising_reads_the_dequantised_values() {
    for (rows, cols) in SIZES {
        let q = Quantized::quantise_f32(&uneven(rows, cols), rows, cols, Tiling::Row);
        let columns = q.requantise_columns();
        let want = Quantized::quantise_f32(&q.dequantise(), rows, cols, Tiling::Column);
        assert_eq!(columns, want);
        let mut fused = vec![f32::NAN; rows * cols];
        q.dequantise_as_columns(&mut fused);
        assert_eq!(fused, columns.dequantise());
    }
}

#[test]
fn an_infinity_or_nan_never_comes_out_finite() {
    for tiling in TILINGS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = uneven(130, 129);
            x[129 * 129 + 5] = bad;
            let q = Quantized::quantise_f32(&x, 130, 129, tiling);
            assert!(q.dequantise()[129 * 129 + 5].is_nan(), "{bad} in {tiling:?}");
            assert!(q.dequantise()[0].is_finite(), "other tiles are untouched");
            if tiling == Tiling::Row {
                assert!(q.requantise_columns().dequantise()[129 * 129 + 5].is_nan());
                let mut fused = vec![0.0; x.len()];
                q.dequantise_as_columns(&mut fused);
                assert!(fused[129 * 129 + 5].is_nan());
            }
        }
    }
}

#[test]
fn rows_travel_and_are_gathered_unchanged() {
    for cols in [1, 96, 128, 129, 300] {
        let q = Quantized::quantise_f32(&uneven(9, cols), 9, cols, Tiling::Row);
        let mut wire = Vec::new();
        (0..9).for_each(|row| q.append_row_wire(row, &mut wire));
        let bytes = Quantized::row_wire_bytes(cols);
        assert_eq!(wire.len(), 9 * bytes);
        assert_eq!(Quantized::from_row_wire(cols, wire.chunks_exact(bytes)), q);
        let (left, right) = (q.gather_rows(&[0, 1, 2, 3]), q.gather_rows(&[4, 5, 6, 7, 8]));
        assert_eq!(Quantized::concat_rows(&[left, q.gather_rows(&[]), right]), q);
        let twice = q.gather_rows(&[8, 8]);
        assert_eq!(twice.codes()[..cols], twice.codes()[cols..]);
    }
}

#[test]
fn threads_do_not_change_the_codes() {
    let x = uneven(700, 300);
    for tiling in TILINGS {
        let (one, three) =
            with_one_and_three_threads(|| Quantized::quantise_f32(&x, 700, 300, tiling));
        assert_eq!(one, three);
    }
}
