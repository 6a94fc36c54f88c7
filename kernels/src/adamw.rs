//! `AdamW` with FP32 masters and BF16 moments, and the sum of squares behind the gradient norm.
//!
//! DeepSeek-V3 report 3.3.1 and 4.2. The moments are read from BF16, moved in FP32, used unrounded
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

/// Moves the parameters by one step.
///
/// - `p`: masters, updated; `m`, `v`: BF16 moments, updated; `g`: gradients. All of one length.
pub fn step(p: &mut [f32], m: &mut [u16], v: &mut [u16], g: &[f32], s: &AdamStep) {
    assert_eq!((m.len(), v.len(), g.len()), (p.len(), p.len(), p.len()), "adamw: lengths");
    assert!(s.step >= 1, "adamw: steps count from 1, or the bias correction divides by 0");
    let correction = |beta: f32| 1.0 - f64::from(beta).powf(s.step as f64);
    let rates = Rates {
        step_size: (f64::from(s.lr) / correction(s.beta1)) as f32,
        v_correction: (1.0 / correction(s.beta2)) as f32,
        keep: 1.0 - s.lr * s.weight_decay,
    };
    let moments = m.chunks_mut(ELEMENTS).zip(v.chunks_mut(ELEMENTS));
    let chunks = p.chunks_mut(ELEMENTS).zip(moments).zip(g.chunks(ELEMENTS));
    spread::each(chunks, |((p, (m, v)), g)| step_chunk(p, (m, v), g, s, &rates));
}

/// What follows from a step's settings alone.
struct Rates {
    step_size: f32,
    v_correction: f32,
    keep: f32,
}

fn step_chunk(
    p: &mut [f32],
    (m, v): (&mut [u16], &mut [u16]),
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
                let m_new = beta1 * bf16_to_f32(*m) + (1.0 - beta1) * g;
                let v_new = beta2 * bf16_to_f32(*v) + (1.0 - beta2) * (g * g);
                let size = (v_new * v_correction).sqrt() + epsilon;
                *p = *p * keep - step_size * m_new / size;
                *m = f32_to_bf16(m_new);
                *v = f32_to_bf16(v_new);
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
    let mut lanes = [0.0_f64; LANES];
    vectorised(
        #[inline(always)]
        || {
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
        },
    );
    lanes.iter().sum()
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
    fn plain(p: &mut f64, m: &mut f64, v: &mut f64, g: f64, s: &AdamStep) {
        let round = |x: f64| f64::from(bf16_to_f32(f32_to_bf16(x as f32)));
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

    #[test]
    fn three_steps_agree_with_the_algorithm() {
        for n in [0, 1, 127, 129] {
            let mut random = Random::new(12);
            let mut p = random.normal(n);
            let (mut m, mut v) = (vec![0; n], vec![0; n]);
            let mut want: Vec<(f64, f64, f64)> =
                p.iter().map(|p| (f64::from(*p), 0.0, 0.0)).collect();
            for step_index in 1..=3 {
                let g = random.normal(n);
                let s = AdamStep { step: step_index, ..STEP };
                step(&mut p, &mut m, &mut v, &g, &s);
                for ((p, m, v), g) in want.iter_mut().zip(&g) {
                    plain(p, m, v, f64::from(*g), &s);
                }
            }
            let want: Vec<f32> = want.iter().map(|(p, ..)| *p as f32).collect();
            // A moment within rounding of a tie may go to the other BF16 neighbour.
            assert_close("p", &p, &want, Tolerance { abs: 2e-4, rel: 1e-5 });
        }
    }

    #[test]
    fn a_zero_gradient_only_decays() {
        let (mut p, mut m, mut v) = (vec![2.0; 3], vec![0; 3], vec![0; 3]);
        step(&mut p, &mut m, &mut v, &[0.0; 3], &STEP);
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
            let (mut p, mut m, mut v) = (Random::new(15).normal(n), vec![0; n], vec![0; n]);
            step(&mut p, &mut m, &mut v, &g, &STEP);
            (p, m, v, sum_of_squares(&g).to_bits())
        });
        assert_eq!(one, three);
    }
}
