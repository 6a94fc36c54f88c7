//! Products against three f64 loops, on every path that this machine has.

use super::*;
use crate::bf16::{bf16_to_f32, f32_to_bf16};
use crate::compare::{Random, Tolerance, assert_close};

const SIZES: [(usize, usize, usize); 13] = [
    (1, 1, 1),
    (1, 129, 127),
    (127, 1, 129),
    (129, 127, 1),
    (9, 1, 2),
    (7, 7, 1),
    (5, 7, 0),
    (0, 3, 2),
    (3, 0, 2),
    (14, 32, 16),
    (15, 33, 17),
    (64, 65, 300),
    // More than one pass along K, in either form.
    (17, 48, 2100),
];

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

fn plain(c: &[f32], a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
    let element = |i: usize, j: usize| -> f64 {
        (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum()
    };
    (0..m * n).map(|at| (f64::from(c[at]) + element(at / n, at % n)) as f32).collect()
}

fn transpose<T: Copy>(x: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}

/// Sums of K products of numbers near 1 are near sqrt(K), and so are their roundings.
fn tolerance(k: usize) -> Tolerance {
    Tolerance::F32.times((k as f32 / 64.0).sqrt().max(4.0))
}

/// Checks setting, adding and rounding.
fn check(a: Left<'_>, b: &Right, c: &[f32], product: &[f32], k: usize) {
    let mut got = vec![f32::NAN; c.len()];
    // What was there before must not show, not even a NaN.
    multiply(a, b, Out::Set(&mut got));
    assert_close("set", &got, product, tolerance(k));
    let mut halves = vec![0x7fc0; c.len()];
    multiply(a, b, Out::Bf16(&mut halves));
    let halves: Vec<f32> = halves.into_iter().map(bf16_to_f32).collect();
    assert_close("rounded", &halves, product, Tolerance::BF16);
    let mut got = c.to_vec();
    multiply(a, b, Out::Add(&mut got));
    let sum: Vec<f32> = c.iter().zip(product).map(|(c, product)| c + product).collect();
    assert_close("added", &got, &sum, tolerance(k));
    let mut got = c.to_vec();
    add_by_rows(&mut got, a, b, 50);
    assert_close("chunks", &got, &sum, tolerance(k));
}

#[test]
fn fp32_products_agree_with_three_loops_in_every_layout() {
    for isa in isas() {
        for size in SIZES {
            let (m, n, k) = size;
            let mut random = Random::new(3);
            let (a, b, c) = (random.normal(m * k), random.normal(k * n), random.normal(m * n));
            let (a_turned, b_turned) = (transpose(&a, m, k), transpose(&b, k, n));
            let want = plain(&vec![0.0; m * n], &a, &b, size);
            for a in [View::new(&a, m, k), View::new(&a_turned, k, m).transposed()] {
                for b in [View::new(&b, k, n), View::new(&b_turned, n, k).transposed()] {
                    let right = Right::singles_with(isa, b);
                    check(Left::singles(a), &right, &c, &want, k);
                }
            }
        }
    }
}

#[test]
fn bf16_products_agree_with_three_loops_in_every_layout() {
    for isa in isas() {
        for size in SIZES {
            let (m, n, k) = size;
            let mut random = Random::new(4);
            let mut halves =
                |n: usize| -> Vec<u16> { random.normal(n).into_iter().map(f32_to_bf16).collect() };
            let (a, b) = (halves(m * k), halves(k * n));
            let wide = |x: &[u16]| -> Vec<f32> { x.iter().map(|x| bf16_to_f32(*x)).collect() };
            let c = Random::new(5).normal(m * n);
            let want = plain(&vec![0.0; m * n], &wide(&a), &wide(&b), size);
            let b_turned = transpose(&b, k, n);
            let rights = [
                Right::pairs_with(isa, Halves::new(&b, k, n)),
                Right::turned_pairs_with(isa, Halves::new(&b_turned, n, k)),
            ];
            let a_turned = transpose(&a, m, k);
            let columns = Columns::with(isa, Halves::new(&a_turned, k, m));
            for right in rights.iter().flatten() {
                check(columns.left(), right, &c, &want, k);
                if k.is_multiple_of(2) {
                    check(Left::pairs(&a, m, k), right, &c, &want, k);
                }
            }
        }
    }
}

#[test]
fn gathered_rows_are_read_by_their_index() {
    for isa in isas() {
        let data: Vec<u16> = (0..5 * 33).map(|i| f32_to_bf16(i as f32)).collect();
        let index = [4, 0, 4];
        let gathered: Vec<u16> =
            index.iter().flat_map(|row| &data[row * 33..][..33]).copied().collect();
        let index = index.map(|row| row as u32);
        let by_index = Halves::new(&data, 5, 33).gathered(&index);
        let (a, b) = (Columns::with(isa, by_index), Right::pairs_with(isa, by_index));
        let whole = Halves::new(&gathered, 3, 33);
        let (a_whole, b_whole) = (Columns::with(isa, whole), Right::pairs_with(isa, whole));
        let (Some(b), Some(b_whole)) = (b, b_whole) else { continue };
        let (mut got, mut want) = (vec![0.0; 33 * 33], vec![1.0; 33 * 33]);
        multiply(a.left(), &b, Out::Set(&mut got));
        multiply(a_whole.left(), &b_whole, Out::Set(&mut want));
        assert_eq!(got, want, "{isa:?}");
    }
}

#[test]
fn infinity_nan_and_subnormals_go_the_way_that_the_contract_says() {
    let tiny = f32::from_bits(1 << 20);
    for isa in isas() {
        for (bad, want) in
            [(f32::NAN, f32::NAN), (f32::INFINITY, f32::INFINITY), (-f32::INFINITY, -f32::INFINITY)]
        {
            // Only column 3 of 40 reads it.
            let mut b = vec![1.0_f32; 6 * 40];
            b[2 * 40 + 3] = bad;
            let a = [0.5; 3 * 6];
            let singles = Right::singles_with(isa, View::new(&b, 6, 40));
            let halves: Vec<u16> = b.iter().map(|b| f32_to_bf16(*b)).collect();
            let a_halves = a.map(f32_to_bf16);
            let pairs = Right::pairs_with(isa, Halves::new(&halves, 6, 40));
            let a = Left::singles(View::new(&a, 3, 6));
            let mut products = vec![(a, singles)];
            products.extend(pairs.map(|pairs| (Left::pairs(&a_halves, 3, 6), pairs)));
            for (a, b) in products {
                let mut c = vec![0.0; 3 * 40];
                multiply(a, &b, Out::Set(&mut c));
                for (at, c) in c.into_iter().enumerate() {
                    let want = if at % 40 == 3 { want } else { 3.0 };
                    assert!(c.to_bits() == want.to_bits() || c.is_nan() && want.is_nan(), "{c}");
                }
            }
        }
        let right = Right::singles_with(isa, View::new(&[1.0; 2], 2, 1));
        let mut c = [1.0];
        multiply(Left::singles(View::new(&[tiny, 0.0], 1, 2)), &right, Out::Set(&mut c));
        assert_eq!(c[0].to_bits(), tiny.to_bits(), "FP32 keeps them");
        if let Some(right) = Right::pairs_with(isa, Halves::new(&[0x3f80; 2], 2, 1)) {
            multiply(Left::pairs(&[f32_to_bf16(tiny), 0], 1, 2), &right, Out::Set(&mut c));
            assert_eq!(c[0].to_bits(), 0, "pairs of BF16 flush them");
        }
    }
}
