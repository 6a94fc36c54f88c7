//! Every instruction set of this machine against plain arithmetic, lane by lane.

use super::*;
use crate::bf16::{bf16_to_f32, f32_to_bf16};
use crate::compare::Random;

/// Runs `work` on every instruction set of this CPU.
fn on_all(work: impl Work + Copy) {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for dtype in [DType::F32, DType::Bf16] {
            run(isa, dtype, work);
        }
    }
}

fn sixteen(seed: u64) -> [f32; LANES] {
    Random::new(seed).normal(LANES).try_into().unwrap()
}

#[derive(Clone, Copy)]
struct Powers;

impl Work for Powers {
    fn with<V: Vector>(self, v: V) {
        let one = |x: f32| v.array(v.exp2(v.all(x)))[7];
        let mut x = -126.0_f32;
        while x <= 127.0 {
            let want = f64::from(x).exp2();
            let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1) - want as f32);
            let error = (f64::from(one(x)) - want).abs() / ulp;
            assert!(error <= 2.0, "exp2({x}) = {}, want {want}: {error} ulp", one(x));
            x += 0.001_37;
        }
        assert_eq!(one(0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(one(f32::NEG_INFINITY).to_bits(), f32::MIN_POSITIVE.to_bits());
        assert_eq!(one(-1e30).to_bits(), f32::MIN_POSITIVE.to_bits());
        assert!(one(1e30).is_finite() && 1e38 < one(1e30));
        assert!(one(f32::NAN).is_nan());
    }
}

#[test]
fn powers_of_two_are_within_two_ulp_on_every_instruction_set() {
    on_all(Powers);
}

#[derive(Clone, Copy)]
struct Lanewise;

impl Work for Lanewise {
    fn with<V: Vector>(self, v: V) {
        let (mut a, b, c) = (sixteen(1), sixteen(2), sixteen(3));
        a[3] = f32::NAN;
        let [x, y, z] = [&a, &b, &c].map(|x| v.floats(x));
        let check = |name: &str, got: V::Lanes, want: &dyn Fn(usize) -> f32| {
            for (l, got) in v.array(got).into_iter().enumerate() {
                let want = want(l);
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same || (got - want).abs() < 1e-6, "{name}[{l}] = {got}, want {want}");
            }
        };
        check("add", v.add(x, y), &|l| a[l] + b[l]);
        check("sub", v.sub(x, y), &|l| a[l] - b[l]);
        check("mul", v.mul(x, y), &|l| a[l] * b[l]);
        check("mul_add", v.mul_add(x, y, z), &|l| a[l] * b[l] + c[l]);
        let largest = |a: f32, b: f32| if a > b { a } else { b };
        let smallest = |a: f32, b: f32| if a < b { a } else { b };
        check("max passes a NaN over", v.max(x, y), &|l| largest(a[l], b[l]));
        check("max keeps a NaN behind", v.max(y, x), &|l| largest(b[l], a[l]));
        check("min passes a NaN over", v.min(x, y), &|l| smallest(a[l], b[l]));
        check("min keeps a NaN behind", v.min(y, x), &|l| smallest(b[l], a[l]));
        for first in [0, 1, 5, 15, 16, 40] {
            let got = v.lanes_from(first, x, y);
            check("lanes_from", got, &|l| if first <= l { a[l] } else { b[l] });
        }
        let (low, high) = v.zip(x, y);
        let zipped = |l: usize| if l.is_multiple_of(2) { a[l / 2] } else { b[l / 2] };
        check("zip, lower half", low, &zipped);
        check("zip, upper half", high, &|l| zipped(l + LANES));
        let bits = v.unit_array(v.units(&[0x7fc0_1234; LANES]));
        assert_eq!(bits, [0x7fc0_1234; LANES], "units are only moved");
        assert_eq!(v.unit_array(v.all_units(77)), [77; LANES]);
    }
}

#[test]
fn lanes_do_what_numbers_do_on_every_instruction_set() {
    on_all(Lanewise);
}

#[derive(Clone, Copy)]
struct Forms;

impl Work for Forms {
    fn with<V: Vector>(self, v: V) {
        let squares: [[f32; LANES]; LANES] = std::array::from_fn(|i| sixteen(i as u64));
        let turned = transpose(v, squares.map(|row| v.floats(&row))).map(|row| v.array(row));
        for i in 0..LANES {
            for j in 0..LANES {
                assert_eq!(turned[i][j].to_bits(), squares[j][i].to_bits());
            }
        }

        // A unit holds one number, or the lower half one and the upper half its neighbour.
        let unit = |first: f32, second: f32| {
            let [first, second] = [first, second].map(|x| u32::from(f32_to_bf16(x)));
            first | second << 16
        };
        let rows = [[sixteen(1), sixteen(2)], [sixteen(3), sixteen(4)]];
        let loaded = rows.map(|row| row.map(|x| v.floats(&x)));
        let mut along = [[0; LANES]; 2];
        v.row_units(loaded[0], &mut along[..2 / V::PAIR]);
        let mut packed = [0; LANES];
        v.pack(&rows[0].as_flattened()[..V::PAIR * LANES], &mut packed);
        let mut across = [[0; LANES]; 4];
        v.column_units(loaded, &mut across[..4 / V::PAIR]);
        let [first, second] = [rows[0].as_flattened(), rows[1].as_flattened()];
        for l in 0..LANES {
            if V::PAIR == 2 {
                assert_eq!(along[0][l], unit(first[2 * l], first[2 * l + 1]));
                assert_eq!(across[0][l], unit(first[l], second[l]));
                assert_eq!(across[1][l], unit(first[LANES + l], second[LANES + l]));
                assert_eq!(packed, along[0]);
            } else {
                assert_eq!(along[1][l], first[LANES + l].to_bits());
                assert_eq!(across[0][l], first[l].to_bits());
                assert_eq!(across[3][l], second[LANES + l].to_bits());
                assert_eq!(packed[l], first[l].to_bits());
            }
        }

        // A product of units is the sum over the numbers in them.
        let sum = v.multiply_units(v.units(&across[0]), v.all_units(across[0][5]), v.all(0.5));
        for (l, sum) in v.array(sum).into_iter().enumerate() {
            let bf16 = |x: f32| f64::from(bf16_to_f32(f32_to_bf16(x)));
            let want = if V::PAIR == 2 {
                0.5 + bf16(first[l]) * bf16(first[5]) + bf16(second[l]) * bf16(second[5])
            } else {
                0.5 + f64::from(first[l]) * f64::from(first[5])
            };
            assert!((f64::from(sum) - want).abs() < 1e-6, "{sum}, want {want}");
        }
    }
}

#[test]
fn units_lie_as_products_want_them_on_every_instruction_set() {
    on_all(Forms);
}
