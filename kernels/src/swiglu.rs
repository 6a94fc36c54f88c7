//! The gated activation `h = silu(g) * u * gate`, `silu(g) = g / (1 + e^-g)`.
//!
//! T rows, F hidden width. An expert multiplies by the token's router gate here, before its down
//! projection, so that one row per token and cell returns (numerics.md, "Our choices"); a dense
//! layer has no gate.

use crate::exp::sigmoid;
use crate::lanes;
use crate::simd::vectorised;
use crate::spread::{self, ROWS};
use crate::tensor::Tensor;

/// - `g`, `u`: `(T, F)`; `gate`: `(T)` or none; returns `(T, F)` in the dtype of `g`.
pub fn forward(g: &Tensor, u: &Tensor, gate: Option<&[f32]>) -> Tensor {
    let (t, f) = (g.rows(), g.cols());
    assert_shapes(g, u, gate);
    let mut h = Tensor::unwritten(g.dtype(), &[t, f]);
    spread::each(h.row_chunks_mut(ROWS).enumerate(), |(i, h)| {
        let rows = i * ROWS..((i + 1) * ROWS).min(t);
        let (mut g_scratch, mut u_scratch) = (None, None);
        let g = g.rows_f32(rows.clone(), &mut g_scratch);
        let u = u.rows_f32(rows.clone(), &mut u_scratch);
        let gate = gate.map(|gate| &gate[rows]);
        h.fill(|h| forward_chunk((g, u), gate, f, h));
    });
    h
}

fn assert_shapes(g: &Tensor, u: &Tensor, gate: Option<&[f32]>) {
    assert_eq!((u.rows(), u.cols()), (g.rows(), g.cols()), "swiglu: u is as g");
    assert!(gate.is_none_or(|gate| gate.len() == g.rows()), "swiglu: one gate per row");
}

fn forward_chunk((g, u): (&[f32], &[f32]), gate: Option<&[f32]>, f: usize, h: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            let rows = g.chunks_exact(f).zip(u.chunks_exact(f)).zip(h.chunks_exact_mut(f));
            for (row, ((g, u), h)) in rows.enumerate() {
                let gate = gate.map_or(1.0, |gate| gate[row]);
                for ((h, g), u) in h.iter_mut().zip(g).zip(u) {
                    *h = g * sigmoid(*g) * u * gate;
                }
            }
        },
    );
}

/// What `backward` gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// `(T, F)` in the dtype of `g`.
    pub dg: Tensor,
    pub du: Tensor,
    /// `(T)`, the sum of `dh silu(g) u` over a row; empty without a gate.
    pub d_gate: Vec<f32>,
    /// What `forward` returned, made again on the way.
    pub h: Tensor,
}

/// - `g`, `u`, `dh`: `(T, F)`.
pub fn backward(g: &Tensor, u: &Tensor, gate: Option<&[f32]>, dh: &Tensor) -> Gradients {
    let (t, f) = (g.rows(), g.cols());
    assert_shapes(g, u, gate);
    assert_eq!((dh.rows(), dh.cols()), (t, f), "swiglu: dh is as g");
    let [mut dg, mut du, mut h] = [(); 3].map(|()| Tensor::unwritten(g.dtype(), &[t, f]));
    let mut d_gate = vec![0.0; gate.map_or(0, <[f32]>::len)];
    let mut gates = d_gate.chunks_mut(ROWS);
    let outputs = dg.row_chunks_mut(ROWS).zip(du.row_chunks_mut(ROWS));
    let outputs = outputs.zip(h.row_chunks_mut(ROWS)).map(|rows| (rows, gates.next()));
    spread::each(outputs.enumerate(), |(i, (((dg, du), h), d_gate))| {
        let rows = i * ROWS..((i + 1) * ROWS).min(t);
        let (mut g_scratch, mut u_scratch, mut dh_scratch) = (None, None, None);
        let inputs = Inputs {
            g: g.rows_f32(rows.clone(), &mut g_scratch),
            u: u.rows_f32(rows.clone(), &mut u_scratch),
            dh: dh.rows_f32(rows.clone(), &mut dh_scratch),
            gate: gate.map(|gate| &gate[rows.clone()]),
            f,
        };
        let d_gate = d_gate.unwrap_or_default();
        dg.fill(|dg| du.fill(|du| h.fill(|h| backward_chunk(&inputs, [dg, du, h], d_gate))));
    });
    Gradients { dg, du, d_gate, h }
}

/// The rows of one chunk.
struct Inputs<'a> {
    g: &'a [f32],
    u: &'a [f32],
    dh: &'a [f32],
    gate: Option<&'a [f32]>,
    f: usize,
}

fn backward_chunk(inputs: &Inputs<'_>, [dg, du, h]: [&mut [f32]; 3], d_gate: &mut [f32]) {
    let f = inputs.f;
    vectorised(
        #[inline(always)]
        || {
            let outputs = dg.chunks_exact_mut(f).zip(du.chunks_exact_mut(f));
            for (row, ((dg, du), h)) in outputs.zip(h.chunks_exact_mut(f)).enumerate() {
                let range = row * f..(row + 1) * f;
                let (g, u) = (&inputs.g[range.clone()], &inputs.u[range.clone()]);
                let dh = &inputs.dh[range];
                let gate = inputs.gate.map_or(1.0, |gate| gate[row]);
                let out = dg.iter_mut().zip(du).zip(h.iter_mut());
                for (((g, u), dh), ((dg, du), h)) in g.iter().zip(u).zip(dh).zip(out) {
                    let s = sigmoid(*g);
                    *h = g * s * u;
                    *dg = dh * gate * u * (s * (1.0 + g * (1.0 - s)));
                    *du = dh * gate * (g * s);
                }
                if let Some(d_gate) = d_gate.get_mut(row) {
                    *d_gate = lanes::dot(h, dh);
                    for h in h.iter_mut() {
                        *h *= gate;
                    }
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

    const SIZES: [(usize, usize); 5] = [(1, 1), (0, 8), (127, 1), (3, 129), (129, 64)];

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| f64::from(*x)).collect()
    }

    fn plain(g: &[f64], u: &[f64], gate: &[f64]) -> Vec<f64> {
        let f = g.len() / gate.len().max(1);
        (0..g.len()).map(|i| g[i] / (1.0 + (-g[i]).exp()) * u[i] * gate[i / f]).collect()
    }

    #[test]
    fn forward_agrees_with_the_formula() {
        for (t, f) in SIZES {
            let mut random = Random::new(8);
            let gate = random.uniform(t, 0.0, 2.5);
            for (dtype, tolerance) in [(DType::F32, Tolerance::F32), (DType::Bf16, Tolerance::BF16)]
            {
                let g: Vec<f32> = random.normal(t * f).iter().map(|g| g * 4.0).collect();
                let g = Tensor::from_f32(dtype, &[t, f], &g);
                let u = Tensor::from_f32(dtype, &[t, f], &random.normal(t * f));
                for gate in [Some(&gate[..]), None] {
                    let plain_gate = gate.map_or(vec![1.0; t], wide);
                    let want = plain(&wide(&g.to_f32()), &wide(&u.to_f32()), &plain_gate);
                    let want: Vec<f32> = want.iter().map(|h| *h as f32).collect();
                    assert_close("h", &forward(&g, &u, gate).to_f32(), &want, tolerance);
                }
            }
        }
    }

    #[test]
    fn backward_agrees_with_finite_differences() {
        for (t, f) in SIZES {
            let mut random = Random::new(9);
            let (g, u) = (random.normal(t * f), random.normal(t * f));
            let (dh, gate) = (random.normal(t * f), random.uniform(t, 0.1, 2.0));
            let loss = |g: &[f64], u: &[f64], gate: &[f64]| -> f64 {
                plain(g, u, gate).iter().zip(&dh).map(|(h, dh)| h * f64::from(*dh)).sum()
            };
            let tensor = |x: &[f32]| Tensor::from_f32(DType::F32, &[t, f], x);
            let Gradients { dg, du, d_gate, h } =
                backward(&tensor(&g), &tensor(&u), Some(&gate), &tensor(&dh));
            assert_eq!(h, forward(&tensor(&g), &tensor(&u), Some(&gate)));
            let picks = random.picks(t * f, 12);
            let tolerance = Tolerance::F32.times(2.0);
            let want = reference_gradient(&g, &picks, |g| loss(g, &wide(&u), &wide(&gate)));
            assert_close("dg", &pick(dg.f32s(), &picks), &want, tolerance);
            let want = reference_gradient(&u, &picks, |u| loss(&wide(&g), u, &wide(&gate)));
            assert_close("du", &pick(du.f32s(), &picks), &want, tolerance);
            let picks = random.picks(t, 12);
            let want = reference_gradient(&gate, &picks, |gate| loss(&wide(&g), &wide(&u), gate));
            assert_close("d_gate", &pick(&d_gate, &picks), &want, tolerance);
        }
    }

    #[test]
    fn without_a_gate_the_gate_is_one() {
        let mut random = Random::new(10);
        let mut tensor = || Tensor::from_f32(DType::Bf16, &[40, 33], &random.normal(40 * 33));
        let (g, u, dh) = (tensor(), tensor(), tensor());
        let none = backward(&g, &u, None, &dh);
        let ones = vec![1.0; 40];
        let one = backward(&g, &u, Some(&ones), &dh);
        assert_eq!((none.dg, none.du, none.d_gate.len()), (one.dg, one.du, 0));
        assert_eq!((&none.h, &one.h), (&forward(&g, &u, None), &forward(&g, &u, None)));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let mut random = Random::new(10);
        let mut tensor = || Tensor::from_f32(DType::Bf16, &[200, 65], &random.normal(200 * 65));
        let (g, u, dh) = (tensor(), tensor(), tensor());
        let gate = Random::new(1).uniform(200, 0.0, 1.0);
        let (one, three) = with_one_and_three_threads(|| {
            (forward(&g, &u, Some(&gate)), backward(&g, &u, Some(&gate), &dh))
        });
        assert_eq!(one, three);
    }
}
