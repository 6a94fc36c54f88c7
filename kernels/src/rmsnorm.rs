//! RMS norm: `y = x * r * gain`, `r = (mean(x^2) + eps)^(-1/2)`, row by row.
//!
//! T rows, D width. Backward recomputes `r` (DeepSeek-V3 report 3.2: all RMS norms are recomputed).

use crate::lanes;
use crate::scratch::Scratch;
use crate::simd::vectorised;
use crate::spread::{self, ELEMENTS};
use crate::tensor::Tensor;

/// Rows that one task takes: about as many elements whatever the width, so that hand-offs cost
/// little beside the work.
fn rows_of_task(width: usize) -> usize {
    (ELEMENTS / width.max(1)).max(1)
}

/// - `x`: `(T, D)`; `gain`: `(D)`; returns `(T, D)` in the dtype of `x`.
pub fn forward(x: &Tensor, gain: &[f32], eps: f32) -> Tensor {
    let (t, d) = (x.rows(), x.cols());
    assert_eq!(gain.len(), d, "rmsnorm: one gain per column");
    let mut y = Tensor::unwritten(x.dtype(), &[t, d]);
    let step = rows_of_task(d);
    spread::each(y.row_chunks_mut(step).enumerate(), |(i, y)| {
        let mut scratch = None;
        let x = x.rows_f32(i * step..((i + 1) * step).min(t), &mut scratch);
        y.fill(|y| forward_chunk(x, gain, eps, y));
    });
    y
}

fn forward_chunk(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) {
    let d = gain.len();
    vectorised(
        #[inline(always)]
        || {
            for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
                let r = reciprocal_rms(x, eps);
                for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
                    *y = x * r * gain;
                }
            }
        },
    );
}

#[inline(always)]
fn reciprocal_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (lanes::dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// `dx = r (dy gain) - x r^3 / D sum(dy gain x)`; `d_gain += sum over rows of dy x r`.
///
/// - `x`, `dy`: `(T, D)`; `d_gain`: `(D)`, accumulated; returns `(T, D)` in the dtype of `x`.
pub fn backward(x: &Tensor, gain: &[f32], eps: f32, dy: &Tensor, d_gain: &mut [f32]) -> Tensor {
    backward_chunks(x, (gain, eps), dy, None, d_gain)
}

/// `backward` plus `residual`, `(T, D)`: the gradient of a residual block's input from that of its
/// output, rounded once.
pub fn backward_onto(
    residual: &Tensor,
    x: &Tensor,
    (gain, eps): (&[f32], f32),
    dy: &Tensor,
    d_gain: &mut [f32],
) -> Tensor {
    assert_eq!((residual.rows(), residual.cols()), (x.rows(), x.cols()), "rmsnorm: residual");
    backward_chunks(x, (gain, eps), dy, Some(residual), d_gain)
}

fn backward_chunks(
    x: &Tensor,
    (gain, eps): (&[f32], f32),
    dy: &Tensor,
    residual: Option<&Tensor>,
    d_gain: &mut [f32],
) -> Tensor {
    let (t, d) = (x.rows(), x.cols());
    assert_eq!((gain.len(), d_gain.len()), (d, d), "rmsnorm: one gain per column");
    assert_eq!((dy.rows(), dy.cols()), (t, d), "rmsnorm: dy is as x");
    let mut dx = Tensor::unwritten(x.dtype(), &[t, d]);
    let step = rows_of_task(d);
    let mut partials = Scratch::new(t.div_ceil(step) * d);
    let outputs = dx.row_chunks_mut(step).zip(partials.chunks_mut(d.max(1)));
    spread::each(outputs.enumerate(), |(i, (dx, partial))| {
        let rows = i * step..((i + 1) * step).min(t);
        let (mut x_scratch, mut dy_scratch, mut residual_scratch) = (None, None, None);
        let x = x.rows_f32(rows.clone(), &mut x_scratch);
        let dy = dy.rows_f32(rows.clone(), &mut dy_scratch);
        let residual = residual.map(|residual| residual.rows_f32(rows, &mut residual_scratch));
        partial.fill(0.0);
        dx.fill(|dx| {
            backward_chunk((x, dy), gain, eps, dx, partial);
            if let Some(residual) = residual {
                add(dx, residual);
            }
        });
    });
    for partial in partials.chunks_exact(d.max(1)) {
        add(d_gain, partial);
    }
    dx
}

fn add(sum: &mut [f32], x: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (sum, x) in sum.iter_mut().zip(x) {
                *sum += x;
            }
        },
    );
}

fn backward_chunk(
    (x, dy): (&[f32], &[f32]),
    gain: &[f32],
    eps: f32,
    dx: &mut [f32],
    d_gain: &mut [f32],
) {
    let d = gain.len();
    let mut scaled = Scratch::new(d);
    vectorised(
        #[inline(always)]
        || {
            let rows = x.chunks_exact(d).zip(dy.chunks_exact(d));
            for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(d)) {
                let r = reciprocal_rms(x, eps);
                for ((scaled, dy), gain) in scaled.iter_mut().zip(dy).zip(gain) {
                    *scaled = dy * gain;
                }
                let along = lanes::dot(&scaled, x) * r * r / d as f32;
                let sums = d_gain.iter_mut().zip(dy);
                for (((dx, scaled), x), (sum, dy)) in
                    dx.iter_mut().zip(scaled.iter()).zip(x).zip(sums)
                {
                    *dx = r * (scaled - x * along);
                    *sum += dy * x * r;
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::{
        Random, Tolerance, assert_close, pick, reference_gradient, with_one_and_three_threads,
    };
    use crate::tensor::DType;

    const EPS: f32 = 1e-6;
    const SIZES: [(usize, usize); 6] = [(1, 1), (0, 4), (1, 127), (127, 3), (3, 129), (129, 96)];

    fn plain(x: &[f64], gain: &[f64]) -> Vec<f64> {
        let row = |x: &[f64]| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let r = 1.0 / (mean + f64::from(EPS)).sqrt();
            x.iter().zip(gain).map(|(x, gain)| x * r * gain).collect::<Vec<_>>()
        };
        x.chunks_exact(gain.len()).flat_map(row).collect()
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| f64::from(*x)).collect()
    }

    #[test]
    fn forward_agrees_with_the_formula_in_both_dtypes() {
        for (t, d) in SIZES {
            let mut random = Random::new(5);
            let gain = random.uniform(d, 0.5, 1.5);
            for (dtype, tolerance) in [(DType::F32, Tolerance::F32), (DType::Bf16, Tolerance::BF16)]
            {
                let x = Tensor::from_f32(dtype, &[t, d], &random.normal(t * d));
                let want: Vec<f32> =
                    plain(&wide(&x.to_f32()), &wide(&gain)).iter().map(|y| *y as f32).collect();
                let y = forward(&x, &gain, EPS);
                assert_eq!(y.dtype(), dtype);
                assert_close("y", &y.to_f32(), &want, tolerance);
            }
        }
    }

    #[test]
    fn backward_agrees_with_finite_differences() {
        for (t, d) in SIZES {
            let mut random = Random::new(6);
            let (x, dy) = (random.normal(t * d), random.normal(t * d));
            let (gain, dy_wide) = (random.uniform(d, 0.5, 1.5), wide(&dy));
            let loss = |x: &[f64], gain: &[f64]| -> f64 {
                plain(x, gain).iter().zip(&dy_wide).map(|(y, dy)| y * dy).sum()
            };
            let mut d_gain = vec![1.0; d];
            let tensor = |x: &[f32]| Tensor::from_f32(DType::F32, &[t, d], x);
            let dx = backward(&tensor(&x), &gain, EPS, &tensor(&dy), &mut d_gain);
            for x in &mut d_gain {
                *x -= 1.0;
            }
            let picks = random.picks(t * d, 12);
            let want = reference_gradient(&x, &picks, |x| loss(x, &wide(&gain)));
            assert_close("dx", &pick(dx.f32s(), &picks), &want, Tolerance::F32.times(2.0));
            let picks = random.picks(d, 12);
            let want = reference_gradient(&gain, &picks, |gain| loss(&wide(&x), gain));
            assert_close("d_gain", &pick(&d_gain, &picks), &want, Tolerance::F32.times(4.0));
        }
    }

    #[test]
    fn onto_a_residual_is_backward_and_a_sum() {
        for (t, d) in SIZES {
            let mut random = Random::new(8);
            let mut tensor = || Tensor::from_f32(DType::F32, &[t, d], &random.normal(t * d));
            let (x, dy, residual) = (tensor(), tensor(), tensor());
            let gain = vec![1.25; d];
            let (mut d_gain, mut want_d_gain) = (vec![0.0; d], vec![0.0; d]);
            let got = backward_onto(&residual, &x, (&gain, EPS), &dy, &mut d_gain);
            let mut want = backward(&x, &gain, EPS, &dy, &mut want_d_gain);
            want.add_assign(&residual);
            assert_eq!((got, d_gain), (want, want_d_gain));
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let mut random = Random::new(7);
        let x = Tensor::from_f32(DType::Bf16, &[300, 129], &random.normal(300 * 129));
        let dy = Tensor::from_f32(DType::Bf16, &[300, 129], &random.normal(300 * 129));
        let gain = random.normal(129);
        let (one, three) = with_one_and_three_threads(|| {
            let mut d_gain = vec![0.0; 129];
            (forward(&x, &gain, EPS), backward(&x, &gain, EPS, &dy, &mut d_gain), d_gain)
        });
        assert_eq!(one, three);
    }
}
