//! A cheap checksum of FP32 numbers: the sum, modulo 2^64, of their bits times an odd number that belongs
//! to their position. No order of adding and no cut into pieces changes it, so that threads do not; one
//! flipped bit always does, and two numbers that change places do but by a chance of about 2^-32.
//!
//! It finds what computes or remembers wrongly. Against somebody who wants to be wrong there is blake3.

use crate::simd::vectorised;

/// 2^32 divided by the golden ratio: neighbours get factors far apart (Knuth, vol. 3, 6.4).
const STRIDE: u32 = 0x9e37_79b9;

/// Of numbers that stand from position `first` on. Sums of pieces add up, wrapping, to the whole's.
pub fn checksum(values: &[f32], first: u32) -> u64 {
    vectorised(
        #[inline(always)]
        || {
            let mut sum = 0_u64;
            for (at, value) in (0_u32..).zip(values) {
                let factor = first.wrapping_add(at).wrapping_mul(STRIDE) | 1;
                sum = sum.wrapping_add(u64::from(value.to_bits()) * u64::from(factor));
            }
            sum
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::Random;

    #[test]
    fn pieces_add_up_and_every_change_shows() {
        for n in [0, 1, 15, 16, 17, 1000] {
            let values = Random::new(3).normal(n);
            let whole = checksum(&values, 7);
            let plain = values.iter().enumerate().fold(0_u64, |sum, (at, value)| {
                let factor = (7 + at as u64).wrapping_mul(u64::from(STRIDE)) & 0xffff_ffff | 1;
                sum.wrapping_add(u64::from(value.to_bits()).wrapping_mul(factor))
            });
            assert_eq!(whole, plain, "{n}");
            for cut in 0..=n {
                let (a, b) = values.split_at(cut);
                let sum = checksum(b, 7 + cut as u32).wrapping_add(checksum(a, 7));
                assert_eq!(sum, whole, "{n} cut at {cut}");
            }
            for (at, bit) in (0..n).map(|at| (at, at % 32)) {
                let mut changed = values.clone();
                changed[at] = f32::from_bits(changed[at].to_bits() ^ 1 << bit);
                assert_ne!(checksum(&changed, 7), whole, "bit {bit} of {at} of {n}");
            }
            if n > 1 {
                let mut changed = values.clone();
                changed.swap(0, n - 1);
                assert_ne!(checksum(&changed, 7), whole, "two change places");
            }
        }
    }
}
