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

const FORMATS: [ScaleFormat; 2] = [ScaleFormat::Pow2, ScaleFormat::Fp32];

/// The scale of a tile, from the definition.
fn plain_scale(amax: f32, format: ScaleFormat) -> f32 {
    match format {
        _ if amax == 0.0 => 1.0,
        ScaleFormat::Pow2 => (f64::from(amax) / 448.0).log2().ceil().exp2() as f32,
        ScaleFormat::Fp32 => amax / 448.0,
    }
}

/// Quantise and dequantise from the definition: amax of the tile, scale, nearest code.
fn plain(x: &[f32], cols: usize, tiling: Tiling, format: ScaleFormat) -> Vec<f32> {
    let mut amax = std::collections::BTreeMap::new();
    for (i, x) in x.iter().enumerate() {
        let largest = amax.entry(tile(tiling, i / cols, i % cols)).or_insert(0.0_f32);
        *largest = largest.max(x.abs());
    }
    let round = |(i, x): (usize, &f32)| {
        let scale = plain_scale(amax[&tile(tiling, i / cols, i % cols)], format);
        e4m3::decode(e4m3::encode(x * (1.0 / scale))) * scale
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
        for (tiling, format) in TILINGS.into_iter().flat_map(|t| FORMATS.map(|f| (t, f))) {
            let got = Quantized::quantise_f32(&x, rows, cols, tiling, format);
            assert_eq!(got.scales().len(), tiling.scales(rows, cols));
            let want = plain(&x, cols, tiling, format);
            assert_eq!(got.dequantise(), want, "{rows} x {cols} {tiling:?} {format:?}");
            let tensor = Tensor::from_f32(DType::F32, &[rows, cols], &x);
            assert_eq!(Quantized::quantise(&tensor, tiling, format), got);
            let bf16 = Tensor::from_f32(DType::Bf16, &[rows, cols], &x);
            let rounded = Quantized::quantise_f32(&bf16.to_f32(), rows, cols, tiling, format);
            assert_eq!(Quantized::quantise(&bf16, tiling, format), rounded);
        }
    }
}

#[test]
fn requantising_reads_the_dequantised_values() {
    for ((rows, cols), format) in SIZES.into_iter().flat_map(|s| FORMATS.map(|f| (s, f))) {
        let q = Quantized::quantise_f32(&uneven(rows, cols), rows, cols, Tiling::Row, format);
        let columns = q.requantise_columns();
        let want = Quantized::quantise_f32(&q.dequantise(), rows, cols, Tiling::Column, format);
        assert_eq!(columns, want);
        let mut fused = vec![f32::NAN; rows * cols];
        q.dequantise_as_columns(&mut fused);
        assert_eq!(fused, columns.dequantise());
    }
}

#[test]
fn an_infinity_or_nan_never_comes_out_finite() {
    for (tiling, format) in TILINGS.into_iter().flat_map(|t| FORMATS.map(|f| (t, f))) {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = uneven(130, 129);
            x[129 * 129 + 5] = bad;
            let q = Quantized::quantise_f32(&x, 130, 129, tiling, format);
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
    for (cols, format) in [1, 96, 128, 129, 300].into_iter().flat_map(|c| FORMATS.map(|f| (c, f))) {
        let q = Quantized::quantise_f32(&uneven(9, cols), 9, cols, Tiling::Row, format);
        let bytes = Quantized::row_wire_bytes(cols, format);
        let mut wire = vec![0; 9 * bytes];
        let (first, second) = wire.split_at_mut(4 * bytes);
        q.write_wire(&[0, 1, 2, 3], first);
        q.write_wire(&[4, 5, 6, 7, 8], second);
        assert_eq!(bytes, cols + cols.div_ceil(128) * if format == FORMATS[0] { 1 } else { 4 });
        assert_eq!(Quantized::from_wire(cols, format, &[first, second]).unwrap(), q);
        assert_eq!(q.gather_rows(&[0, 1, 2, 3, 4, 5, 6, 7, 8]), q);
        assert_eq!(q.gather_rows(&[]).dequantise(), []);
        let twice = q.gather_rows(&[8, 8]);
        assert_eq!(twice.codes()[..cols], twice.codes()[cols..]);
        // No tile has a scale of zero, in either format.
        let scales = bytes - cols;
        second[5 * cols + scales..5 * cols + 2 * scales].fill(0);
        let error = Quantized::from_wire(cols, format, &[first, second]).unwrap_err();
        assert!(error.0 == 1 && error.1.starts_with("row 1 with the scale"), "{error:?}");
    }
}

#[test]
fn threads_do_not_change_the_codes() {
    let x = uneven(700, 300);
    for (tiling, format) in TILINGS.into_iter().flat_map(|t| FORMATS.map(|f| (t, f))) {
        let (one, three) =
            with_one_and_three_threads(|| Quantized::quantise_f32(&x, 700, 300, tiling, format));
        assert_eq!(one, three);
    }
}

/// What products of pairs read is what the matrix says.
#[test]
fn halves_are_the_values_by_row_and_by_column() {
    for (rows, cols) in [(1, 1), (127, 129), (130, 300)] {
        let x = uneven(rows, cols);
        let q = Quantized::quantise_f32(&x, rows, cols, Tiling::Row, ScaleFormat::Pow2);
        let block = Quantized::quantise_f32(&x, rows, cols, Tiling::Block, ScaleFormat::Pow2);
        let wide = |x: &[u16]| -> Vec<f32> { x.iter().map(|x| bf16::bf16_to_f32(*x)).collect() };
        for q in [&q, &block] {
            let mut halves = vec![0; rows * cols];
            for (row, out) in halves.chunks_exact_mut(cols).enumerate() {
                q.halves_of_row(row, out);
            }
            assert_eq!(wide(&halves), q.dequantise());
        }
        let index: Vec<u32> = (0..rows as u32).rev().collect();
        let turned = q.gather_rows(&index);
        let mut halves = vec![0; rows * cols];
        for (tile, out) in halves.chunks_mut(BLOCK * cols).enumerate() {
            let tile = tile * BLOCK..((tile + 1) * BLOCK).min(rows);
            q.halves_as_columns(tile.map(|row| index[row] as usize), out);
        }
        assert_eq!(wide(&halves), turned.requantise_columns().dequantise());
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = uneven(130, 129);
        x[129 * 129 + 5] = bad;
        let q = Quantized::quantise_f32(&x, 130, 129, Tiling::Row, ScaleFormat::Pow2);
        let mut halves = vec![0; 2 * 129];
        q.halves_as_columns(128..130, &mut halves);
        assert!(bf16::bf16_to_f32(halves[129 + 5]).is_nan());
    }
}
