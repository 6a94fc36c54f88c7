//! `AdamW` with FP32 masters and BF16 or FP32 moments, the average of the masters, and the sum of
//! squares behind the gradient norm.
//!
//! DeepSeek-V3 report 3.2 (average), 3.3.3 and 4.2. BF16 moments are moved in FP32, used unrounded
//! for this step's update, and rounded to nearest even when stored: with beta2 = 0.95 a step moves
//! `v` by 5 %, far above BF16's half step of 0.2 %, so nothing stalls.

use crate::bf16::{bf16_to_f32, f32_to_bf16};
use crate::simd::vectorised;
use crate::spread::{self, ELEMENTS};

/// One optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    /// Decoupled: `p -= lr * weight_decay * p`.
    pub weight_decay: f32,
    /// The first step is 1.
    pub step: u64,
    /// Multiplies every gradient: the factor of global-norm clipping.
    pub grad_scale: f32,
}

/// A moment as it is stored: BF16 bits or FP32.
pub trait Moment: Copy + Send + Sync {
    fn load(self) -> f32;
    fn store(x: f32) -> Self;
}

impl Moment for u16 {
    #[inline(always)]
    fn load(self) -> f32 {
        bf16_to_f32(self)
    }

    #[inline(always)]
    fn store(x: f32) -> Self {
        f32_to_bf16(x)
    }
}

impl Moment for f32 {
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }

    #[inline(always)]
    fn store(x: f32) -> Self {
        x
    }
}

/// The exponential average of the parameters, which follows every step.
#[derive(Debug)]
pub struct Average<'a> {
    /// As many as parameters. `values = decay * values + (1 - decay) * p`, `p` after the step.
    pub values: &'a mut [f32],
    pub decay: f32,
}

/// Moves the parameters by one step, and their average if there is one.
///
/// - `p`: masters, updated; `m`, `v`: moments, updated; `g`: gradients. All of one length.
pub fn step<M: Moment>(
    p: &mut [f32],
    m: &mut [M],
    v: &mut [M],
    g: &[f32],
    s: &AdamStep,
    average: Option<Average<'_>>,
) {
    assert_eq!((m.len(), v.len(), g.len()), (p.len(), p.len(), p.len()), "adamw: lengths");
    let rates = Rates::of(s);
    let moments = m.chunks_mut(ELEMENTS).zip(v.chunks_mut(ELEMENTS));
    let chunks = p.chunks_mut(ELEMENTS).zip(moments).zip(g.chunks(ELEMENTS));
    let Some(Average { values, decay }) = average else {
        return spread::each(chunks, |((p, moments), g)| step_chunk(p, moments, g, s, &rates));
    };
    assert_eq!(values.len(), g.len(), "adamw: one average per parameter");
    // Chunk by chunk: the masters are still in the cache.
    spread::each(chunks.zip(values.chunks_mut(ELEMENTS)), |(((p, moments), g), values)| {
        step_chunk(p, moments, g, s, &rates);
        average_chunk(values, p, decay);
    });
}

/// `step` of a few parameters by the calling thread, which also forgets their gradients while they
/// are in its cache: `g` is zero afterwards.
pub fn step_and_forget<M: Moment>(
    p: &mut [f32],
    (m, v): (&mut [M], &mut [M]),
    g: &mut [f32],
    s: &AdamStep,
    average: Option<Average<'_>>,
) {
    assert_eq!((m.len(), v.len(), g.len()), (p.len(), p.len(), p.len()), "adamw: lengths");
    let rates = Rates::of(s);
    step_chunk(p, (m, v), g, s, &rates);
    g.fill(0.0);
    if let Some(Average { values, decay }) = average {
        assert_eq!(values.len(), p.len(), "adamw: one average per parameter");
        average_chunk(values, p, decay);
    }
}

/// What follows from a step's settings alone.
pub(crate) struct Rates {
    pub(crate) step_size: f32,
    pub(crate) v_correction: f32,
    pub(crate) keep: f32,
}

impl Rates {
    pub(crate) fn of(s: &AdamStep) -> Self {
        assert!(s.step >= 1, "adamw: steps count from 1, or the bias correction divides by 0");
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(s.step as f64);
        Self {
            step_size: (f64::from(s.lr) / correction(s.beta1)) as f32,
            v_correction: (1.0 / correction(s.beta2)) as f32,
            keep: 1.0 - s.lr * s.weight_decay,
        }
    }
}

fn step_chunk<M: Moment>(
    p: &mut [f32],
    (m, v): (&mut [M], &mut [M]),
    g: &[f32],
    s: &AdamStep,
    rates: &Rates,
) {
    let (beta1, beta2, epsilon, grad_scale) = (s.beta1, s.beta2, s.epsilon, s.grad_scale);
    let Rates { step_size, v_correction, keep } = *rates;
    vectorised(
        #[inline(always)]
        || {
            for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
                let g = g * grad_scale;
                let m_new = beta1 * m.load() + (1.0 - beta1) * g;
                let v_new = beta2 * v.load() + (1.0 - beta2) * (g * g);
                let size = (v_new * v_correction).sqrt() + epsilon;
                *p = *p * keep - step_size * m_new / size;
                *m = M::store(m_new);
                *v = M::store(v_new);
            }
        },
    );
}

fn average_chunk(values: &mut [f32], p: &[f32], decay: f32) {
    vectorised(
        #[inline(always)]
        || {
            for (value, p) in values.iter_mut().zip(p) {
                *value = decay * *value + (1.0 - decay) * p;
            }
        },
    );
}

/// `sum(g^2)` in f64, over chunks of a fixed length added in order; an infinity or a NaN anywhere
/// shows in the sum.
pub fn sum_of_squares(g: &[f32]) -> f64 {
    spread::map(g.chunks(ELEMENTS), sum_chunk).into_iter().sum()
}

fn sum_chunk(g: &[f32]) -> f64 {
    const LANES: usize = 16;
    vectorised(
        #[inline(always)]
        || {
            // In here, so that they stay in registers.
            let mut lanes = [0.0_f64; LANES];
            let (blocks, tail) = g.as_chunks::<LANES>();
            for block in blocks {
                for i in 0..LANES {
                    let g = f64::from(block[i]);
                    lanes[i] += g * g;
                }
            }
            for (lane, g) in lanes.iter_mut().zip(tail) {
                *lane += f64::from(*g) * f64::from(*g);
            }
            lanes.iter().sum()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{Random, Tolerance, assert_close, with_one_and_three_threads};

    const STEP: AdamStep = AdamStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_scale: 0.5,
    };

    /// Loshchilov and Hutter 2019, algorithm 2, with moments rounded between steps.
    fn plain<M: Moment>(p: &mut f64, m: &mut f64, v: &mut f64, g: f64, s: &AdamStep) {
        let round = |x: f64| f64::from(M::store(x as f32).load());
        let [lr, beta1, beta2, epsilon, decay, scale] =
            [s.lr, s.beta1, s.beta2, s.epsilon, s.weight_decay, s.grad_scale].map(f64::from);
        let g = g * scale;
        let m_new = beta1 * *m + (1.0 - beta1) * g;
        let v_new = beta2 * *v + (1.0 - beta2) * g * g;
        let m_hat = m_new / (1.0 - beta1.powi(s.step as i32));
        let v_hat = v_new / (1.0 - beta2.powi(s.step as i32));
        *p -= lr * (m_hat / (v_hat.sqrt() + epsilon) + decay * *p);
        (*m, *v) = (round(m_new), round(v_new));
    }

    /// Three steps against the algorithm; the average follows them.
    fn check<M: Moment>(zero: M, tolerance: Tolerance) {
        const DECAY: f32 = 0.75;
        for n in [0, 1, 127, 129] {
            let mut random = Random::new(12);
            let mut p = random.normal(n);
            let (mut m, mut v) = (vec![zero; n], vec![zero; n]);
            let mut average = p.clone();
            let mut want: Vec<(f64, f64, f64)> =
                p.iter().map(|p| (f64::from(*p), 0.0, 0.0)).collect();
            let mut want_average: Vec<f64> = p.iter().map(|p| f64::from(*p)).collect();
            for step_index in 1..=3 {
                let g = random.normal(n);
                let s = AdamStep { step: step_index, ..STEP };
                let follower = Average { values: &mut average, decay: DECAY };
                step(&mut p, &mut m, &mut v, &g, &s, Some(follower));
                for (((p, m, v), average), g) in want.iter_mut().zip(&mut want_average).zip(&g) {
                    plain::<M>(p, m, v, f64::from(*g), &s);
                    *average = 0.75 * *average + 0.25 * *p;
                }
            }
            let narrow = |values: &[f64]| values.iter().map(|x| *x as f32).collect::<Vec<_>>();
            let want: Vec<f64> = want.iter().map(|(p, ..)| *p).collect();
            assert_close("p", &p, &narrow(&want), tolerance);
            assert_close("average", &average, &narrow(&want_average), tolerance);
        }
    }

    #[test]
    fn three_steps_agree_with_the_algorithm_with_either_moments() {
        // A moment within rounding of a tie may go to the other BF16 neighbour.
        check(0_u16, Tolerance { abs: 2e-4, rel: 1e-5 });
        check(0.0_f32, Tolerance::F32);
    }

    #[test]
    fn the_average_changes_no_parameter() {
        let g = Random::new(16).normal(40_000);
        let stepped = |averaged: bool| {
            let mut p = Random::new(17).normal(g.len());
            let (mut m, mut v) = (vec![0_u16; g.len()], vec![0_u16; g.len()]);
            let mut values = p.clone();
            let average = averaged.then_some(Average { values: &mut values, decay: 0.9 });
            step(&mut p, &mut m, &mut v, &g, &STEP, average);
            (p, m, v)
        };
        assert_eq!(stepped(true), stepped(false));
    }

    #[test]
    fn a_step_that_forgets_is_a_step_and_leaves_no_gradient() {
        for n in [0, 1, 127, 129] {
            let (p, mut g) = (Random::new(18).normal(n), Random::new(19).normal(n));
            let fresh = || (p.clone(), vec![0_u16; n], vec![0_u16; n], p.clone());
            let (mut p, mut m, mut v, mut values) = fresh();
            let average = Average { values: &mut values, decay: 0.9 };
            step(&mut p, &mut m, &mut v, &g, &STEP, Some(average));
            let want = (p, m, v, values);
            let (mut p, mut m, mut v, mut values) = fresh();
            let average = Average { values: &mut values, decay: 0.9 };
            step_and_forget(&mut p, (&mut m, &mut v), &mut g, &STEP, Some(average));
            assert_eq!((p, m, v, values), want);
            assert!(g.iter().all(|g| g.to_bits() == 0));
        }
    }

    #[test]
    fn a_zero_gradient_only_decays() {
        let (mut p, mut m, mut v) = (vec![2.0; 3], vec![0_u16; 3], vec![0; 3]);
        step(&mut p, &mut m, &mut v, &[0.0; 3], &STEP, None);
        assert_close("p", &p, &[1.998; 3], Tolerance::F32);
    }

    #[test]
    fn the_sum_of_squares_is_right_and_shows_bad_elements() {
        for n in [0, 1, 127, 129, 50_000] {
            let mut g = Random::new(13).normal(n);
            let want: f64 = g.iter().map(|g| f64::from(*g) * f64::from(*g)).sum();
            assert!((sum_of_squares(&g) - want).abs() <= 1e-12 * want);
            if let Some(last) = g.last_mut() {
                *last = f32::NAN;
                assert!(sum_of_squares(&g).is_nan());
                g[n / 2] = f32::INFINITY;
                assert!(!sum_of_squares(&g).is_finite());
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let n = 100_001;
        let g = Random::new(14).normal(n);
        let (one, three) = with_one_and_three_threads(|| {
            let (mut p, mut m, mut v) = (Random::new(15).normal(n), vec![0_u16; n], vec![0; n]);
            let mut values = p.clone();
            let average = Average { values: &mut values, decay: 0.9 };
            step(&mut p, &mut m, &mut v, &g, &STEP, Some(average));
            (p, m, v, values, sum_of_squares(&g).to_bits())
        });
        assert_eq!(one, three);
    }
}
