//! Arrays of sixteen, for any CPU; the compiler finds the vectors.

use super::{LANES, Units, Vector};
use crate::exp::ROUNDER;

/// Multiply-adds are fused where asked, which is one instruction or a slow call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable<const FUSED: bool>;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl<const FUSED: bool> Vector for Portable<FUSED> {
    type Lanes = [f32; LANES];
    const PAIR: usize = 1;
    const ROOMY: bool = false;

    #[inline(always)]
    fn all(self, x: f32) -> Self::Lanes {
        [x; LANES]
    }

    #[inline(always)]
    fn floats(self, x: &[f32; LANES]) -> Self::Lanes {
        *x
    }

    #[inline(always)]
    fn array(self, x: Self::Lanes) -> [f32; LANES] {
        x
    }

    #[inline(always)]
    fn units(self, x: &Units) -> Self::Lanes {
        x.map(f32::from_bits)
    }

    #[inline(always)]
    fn unit_array(self, x: Self::Lanes) -> Units {
        x.map(f32::to_bits)
    }

    #[inline(always)]
    fn all_units(self, x: u32) -> Self::Lanes {
        [f32::from_bits(x); LANES]
    }

    #[inline(always)]
    fn multiply_units(self, a: Self::Lanes, b: Self::Lanes, sum: Self::Lanes) -> Self::Lanes {
        self.mul_add(a, b, sum)
    }

    #[inline(always)]
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        each(
            #[inline(always)]
            |l| a[l] + b[l],
        )
    }

    #[inline(always)]
    fn sub(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        each(
            #[inline(always)]
            |l| a[l] - b[l],
        )
    }

    #[inline(always)]
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        each(
            #[inline(always)]
            |l| a[l] * b[l],
        )
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
        each(
            #[inline(always)]
            |l| if FUSED { a[l].mul_add(b[l], c[l]) } else { a[l] * b[l] + c[l] },
        )
    }

    #[inline(always)]
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        each(
            #[inline(always)]
            |l| if a[l] > b[l] { a[l] } else { b[l] },
        )
    }

    #[inline(always)]
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        each(
            #[inline(always)]
            |l| if a[l] < b[l] { a[l] } else { b[l] },
        )
    }

    #[inline(always)]
    fn lanes_from(self, first: usize, x: Self::Lanes, other: Self::Lanes) -> Self::Lanes {
        each(
            #[inline(always)]
            |l| if first <= l { x[l] } else { other[l] },
        )
    }

    #[inline(always)]
    fn power_of_two(self, x: Self::Lanes) -> (Self::Lanes, Self::Lanes) {
        let shifted = self.add(x, self.all(ROUNDER));
        let power = each(
            #[inline(always)]
            |l| {
                let n = shifted[l].to_bits().wrapping_sub(ROUNDER.to_bits());
                f32::from_bits(n.wrapping_add(127) << 23)
            },
        );
        (self.sub(shifted, self.all(ROUNDER)), power)
    }

    #[inline(always)]
    fn zip(self, a: Self::Lanes, b: Self::Lanes) -> (Self::Lanes, Self::Lanes) {
        let half = LANES / 2;
        (
            each(
                #[inline(always)]
                |l| if l % 2 == 0 { a[l / 2] } else { b[l / 2] },
            ),
            each(
                #[inline(always)]
                |l| if l % 2 == 0 { a[half + l / 2] } else { b[half + l / 2] },
            ),
        )
    }
}
