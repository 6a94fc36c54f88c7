//! How all crates compare tensors in tests: one tolerance per dtype, one seeded generator, one way
//! to differentiate numerically. NaN never passes.

/// Room for rounding: `|got - want| <= abs + rel * |want|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    pub abs: f32,
    pub rel: f32,
}

impl Tolerance {
    /// Same formula in FP32 with another order of summation: a few dozen roundings of 2^-24.
    pub const F32: Self = Self { abs: 1e-5, rel: 1e-5 };
    /// Results rounded to BF16, which has 8 bits of significand: 2^-8, and room for two roundings.
    pub const BF16: Self = Self { abs: 1e-3, rel: 1.0 / 128.0 };
    /// Operands rounded to E4M3, which has 4 bits of significand: 2^-4, on sums of many terms.
    pub const FP8: Self = Self { abs: 0.125, rel: 1.0 / 16.0 };
    /// Central differences of an FP32 function: step^2 of truncation, 2^-24 / step of rounding.
    pub const DIFFERENCE: Self = Self { abs: 2e-3, rel: 1e-2 };

    /// The same tolerance with more room, for sums of larger numbers.
    #[must_use]
    pub fn times(self, factor: f32) -> Self {
        Self { abs: self.abs * factor, rel: self.rel * factor }
    }
}

/// Panics unless all elements agree, and then says which one is worst.
#[track_caller]
pub fn assert_close(name: &str, got: &[f32], want: &[f32], tolerance: Tolerance) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    let excess = |i: usize| {
        let excess = (got[i] - want[i]).abs() - tolerance.abs - tolerance.rel * want[i].abs();
        if excess.is_nan() { f32::INFINITY } else { excess }
    };
    let worst = (0..got.len()).max_by(|i, j| excess(*i).total_cmp(&excess(*j)));
    if let Some(i) = worst {
        assert!(
            excess(i) <= 0.0,
            "{name}[{i}] = {}, want {} within {tolerance:?}",
            got[i],
            want[i]
        );
    }
}

/// `SplitMix64` (Steele, Lea and Flood 2014): the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`, with 53 random bits.
    fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `0..n`; n is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "Random::below: nothing is below 0");
        // The upper half of a 128-bit product: biased by less than n / 2^64.
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    pub fn uniform(&mut self, n: usize, low: f32, high: f32) -> Vec<f32> {
        (0..n).map(|_| low + (high - low) * self.unit() as f32).collect()
    }

    /// Standard normal numbers, after Box and Muller.
    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
                (radius * (std::f64::consts::TAU * self.unit()).cos()) as f32
            })
            .collect()
    }

    /// Up to `count` distinct indices below `n`, ascending; all of them when `n <= count`.
    pub fn picks(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut picks: Vec<usize> = if n <= count {
            (0..n).collect()
        } else {
            (0..count).map(|_| self.below(n as u64) as usize).collect()
        };
        picks.sort_unstable();
        picks.dedup();
        picks
    }
}

/// Derivative of `f` by each picked element of `x`, by central differences with `step`.
///
/// For FP32 functions a step near 1e-2 balances truncation and rounding; compare with
/// [`Tolerance::DIFFERENCE`]. Return a sum in f64 from `f`.
pub fn finite_difference(
    x: &[f32],
    picks: &[usize],
    step: f32,
    mut f: impl FnMut(&[f32]) -> f64,
) -> Vec<f32> {
    let mut moved = x.to_vec();
    let mut at = |i: usize, value: f32| {
        moved[i] = value;
        let result = f(&moved);
        moved[i] = x[i];
        result
    };
    picks
        .iter()
        .map(|&i| {
            let (low, high) = (x[i] - step, x[i] + step);
            ((at(i, high) - at(i, low)) / (f64::from(high) - f64::from(low))) as f32
        })
        .collect()
}

/// Derivative of a plain f64 reference, exact to about 1e-9: it judges an FP32 backward pass at
/// [`Tolerance::F32`].
pub fn reference_gradient(
    x: &[f32],
    picks: &[usize],
    mut f: impl FnMut(&[f64]) -> f64,
) -> Vec<f32> {
    const STEP: f64 = 1e-5;
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let mut moved = x.clone();
    let mut at = |i: usize, value: f64| {
        moved[i] = value;
        let result = f(&moved);
        moved[i] = x[i];
        result
    };
    picks
        .iter()
        .map(|&i| ((at(i, x[i] + STEP) - at(i, x[i] - STEP)) / (2.0 * STEP)) as f32)
        .collect()
}

/// The picked elements.
pub fn pick(x: &[f32], picks: &[usize]) -> Vec<f32> {
    picks.iter().map(|&i| x[i]).collect()
}

/// Runs `work` in rayon pools of one and of three threads, for comparing bits.
pub fn with_one_and_three_threads<R: Send>(work: impl Fn() -> R + Sync) -> (R, R) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a small thread pool starts").install(&work)
    };
    (run(1), run(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_gives_the_published_numbers() {
        let mut random = Random::new(1_234_567);
        assert_eq!(random.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(random.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let x = Random::new(1).normal(100_000);
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / 1e5;
        let variance = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    #[should_panic(expected = "x[1] = NaN")]
    fn a_nan_is_never_close() {
        assert_close("x", &[1.0, f32::NAN], &[1.0, f32::NAN], Tolerance::FP8);
    }

    #[test]
    fn both_differences_find_the_slope_of_a_cube() {
        let x = [0.5, -2.0];
        let want = [0.75, 12.0];
        let got =
            finite_difference(&x, &[0, 1], 1e-2, |x| x.iter().map(|x| f64::from(*x).powi(3)).sum());
        assert_close("f32", &got, &want, Tolerance::DIFFERENCE);
        let got = reference_gradient(&x, &[0, 1], |x| x.iter().map(|x| x.powi(3)).sum());
        assert_close("f64", &got, &want, Tolerance::F32);
    }
}
