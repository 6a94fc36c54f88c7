//! Every row alone and in company, in every stored form, against a plain sum.

use super::*;
use crate::compare::{Random, Tolerance, assert_close, with_one_and_three_threads};
use crate::fp8::ScaleFormat;
use crate::linear::Math;

const MATHS: [Math; 4] =
    [Math::F32, Math::Bf16, Math::Fp8(ScaleFormat::Pow2), Math::Fp8(ScaleFormat::Fp32)];

/// Outputs and inputs: single ones, partial lanes, partial blocks, several tasks.
const SHAPES: [(usize, usize); 7] =
    [(1, 1), (3, 7), (5, 129), (130, 127), (9, 264), (300, 300), (257, 96)];

fn weight(n: usize, k: usize, math: Math) -> Weight {
    Weight::prepare(&Random::new(3).normal(n * k), n, k, math)
}

#[test]
fn a_row_has_the_same_bits_in_every_company() {
    for (n, k) in SHAPES {
        for math in MATHS {
            let w = weight(n, k, math);
            let x = Random::new(4).normal(33 * k);
            let alone: Vec<Vec<f32>> = x.chunks_exact(k).map(|x| product(x, &w)).collect();
            for t in 1..=33 {
                let together = product(&x[..t * k], &w);
                for (row, alone) in together.chunks_exact(n).zip(&alone) {
                    assert!(
                        row.iter().zip(alone).all(|(a, b)| a.to_bits() == b.to_bits()),
                        "{math:?}, {n} x {k}, {t} rows"
                    );
                }
            }
        }
    }
}

#[test]
fn a_product_is_close_to_the_plain_sum() {
    for (n, k) in SHAPES {
        for math in MATHS {
            let w = weight(n, k, math);
            let x = Random::new(5).normal(3 * k);
            let values = w.to_f32();
            let plain = |x: &[f32], w: &[f32]| -> f32 {
                let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                sum as f32
            };
            let want: Vec<f32> = (x.chunks_exact(k))
                .flat_map(|x| values.chunks_exact(k).map(move |w| plain(x, w)))
                .collect();
            assert_close("y", &product(&x, &w), &want, Tolerance::F32.times(4.0));
        }
    }
}

#[test]
fn no_rows_no_inputs_and_several_products_at_once() {
    let w = weight(5, 9, Math::Bf16);
    assert!(product(&[], &w).is_empty());
    let (x, other) = (Random::new(6).normal(18), weight(300, 260, Math::Fp8(ScaleFormat::Pow2)));
    let y = Random::new(7).normal(260);
    let both = products(&[Product { x: &x, w: &w }, Product { x: &y, w: &other }]);
    assert_eq!(both, [product(&x, &w), product(&y, &other)]);
}

#[test]
fn a_nan_in_a_weight_is_in_the_result() {
    for math in MATHS {
        let mut master = Random::new(8).normal(4 * 20);
        master[25] = f32::NAN;
        let y = product(&[1.0; 20], &Weight::prepare(&master, 4, 20, math));
        assert!(y[1].is_nan(), "{math:?}: {y:?}");
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let w = weight(700, 300, Math::Bf16);
    let x = Random::new(9).normal(5 * 300);
    let (one, three) = with_one_and_three_threads(|| product(&x, &w));
    assert_eq!(one, three);
}

#[test]
fn arrays_and_registers_give_the_same_bits() {
    let (n, k, t) = (9, 150, 7);
    let (w, x) = (weight(n, k, Math::Bf16), Random::new(10).normal(t * k));
    let mut plain = vec![0.0; n * t];
    let Weight::Bf16(stored) = &w else { panic!("it was asked for in BF16") };
    let rows = Plain { w: stored.bf16s(), k };
    Sweep { x: &x, w: rows, n, out: &mut plain }.with(unit::Portable::<true>);
    if !matches!(pulp::Arch::new(), pulp::Arch::Scalar) {
        assert_eq!(product(&x, &w), turned(plain.clone(), n, t));
    }
    Sweep { x: &x, w: rows, n, out: &mut plain }.with(unit::Portable::<false>);
    assert_close("y", &turned(plain, n, t), &product(&x, &w), Tolerance::F32.times(4.0));
}
