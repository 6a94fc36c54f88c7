//! The head's weight in strips, and what is computed from the logits of some rows.

use std::ops::Range;

use super::IGNORE;
use crate::bf16::{self, f32_to_bf16};
use crate::exp::exp;
use crate::gemm::{Columns, Halves, Isa, Left, Out, Right, View, multiply};
use crate::lanes;
use crate::linear::{Operand, Weight};
use crate::scratch::{HalfScratch, Scratch};
use crate::simd::vectorised;
use crate::spread;

/// Columns of a strip: enough to keep a product busy, few enough for all threads to have some.
fn strip_width(vocabulary: usize) -> usize {
    vocabulary.div_ceil(16).next_multiple_of(64).min(512)
}

/// Some rows of the weight in the forms that products read.
struct Strip {
    columns: Range<usize>,
    /// `(D, columns)`
    turned: Right,
    /// `(columns, D)`; for gradients only.
    plain: Option<Right>,
}

impl Strip {
    /// Where row `row` of `n` has its logits, which lie strip after strip, row by row.
    #[inline(always)]
    fn place(&self, n: usize, row: usize) -> Range<usize> {
        let (start, width) = (self.columns.start, self.columns.len());
        n * start + row * width..n * start + (row + 1) * width
    }
}

pub(super) struct Head {
    strips: Vec<Strip>,
    width: usize,
    /// Products read pairs of BF16, and the gradient of the logits is kept in BF16.
    pairs: bool,
    /// It is kept in FP32, but rounded to BF16.
    round: bool,
}

/// The gradient of some hundred rows of logits, strip after strip, row by row.
pub(super) enum Kept {
    F32(Scratch),
    Bf16(HalfScratch),
}

/// Rows of one strip of it.
pub(super) enum Piece<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
}

/// Where one task leaves its rows, by strip; and the factor of the loss.
pub(super) struct Gradient<'a> {
    pub(super) scale: f32,
    pub(super) pieces: Vec<Piece<'a>>,
}

impl Kept {
    pub(super) fn new(head: &Head, len: usize) -> Self {
        if head.pairs {
            return Self::Bf16(HalfScratch::new(len));
        }
        Self::F32(Scratch::new(len))
    }

    /// For each task of `step` of `n` rows, its rows of every strip.
    pub(super) fn pieces(&mut self, head: &Head, n: usize, step: usize) -> Vec<Vec<Piece<'_>>> {
        match self {
            Self::F32(values) => cut(values, head, (n, step), Piece::F32),
            Self::Bf16(values) => cut(values, head, (n, step), Piece::Bf16),
        }
    }
}

fn cut<'a, T>(
    values: &'a mut [T],
    head: &Head,
    (n, step): (usize, usize),
    piece: fn(&'a mut [T]) -> Piece<'a>,
) -> Vec<Vec<Piece<'a>>> {
    let mut tasks: Vec<Vec<Piece<'a>>> = Vec::new();
    tasks.resize_with(n.div_ceil(step), || Vec::with_capacity(head.strips.len()));
    let mut rest = values;
    for strip in &head.strips {
        let width = strip.columns.len();
        let (of_strip, after) = std::mem::take(&mut rest).split_at_mut(n * width);
        rest = after;
        for (task, rows) in tasks.iter_mut().zip(of_strip.chunks_mut(step * width)) {
            task.push(piece(rows));
        }
    }
    tasks
}

impl Head {
    /// Packs the weight. An odd vocabulary or width is multiplied in FP32.
    pub(super) fn new(h: &Operand, w: &Weight, gradient: bool) -> Self {
        let (v, d) = (w.n(), w.k());
        let even = v.is_multiple_of(2) && d.is_multiple_of(2);
        let pairs = match (h, w) {
            (Operand::Bf16(_), Weight::Bf16(w)) if even && Isa::current().multiplies_pairs() => {
                Some(w.bf16s())
            }
            (Operand::F32(_) | Operand::Bf16(_) | Operand::Fp8(_), _) => None,
        };
        let panel = pairs.is_none().then(|| w.panel());
        let width = strip_width(v);
        let strips = spread::map((0..v).step_by(width.max(1)), |start| {
            let columns = start..(start + width).min(v);
            let (n, part) = (columns.len(), columns.start * d..columns.end * d);
            let singles = |panel: &[f32]| {
                let view = View::new(&panel[part.clone()], n, d);
                (Right::singles(view.transposed()), gradient.then(|| Right::singles(view)))
            };
            let in_pairs = |w: &[u16]| {
                let halves = || Halves::new(&w[part.clone()], n, d);
                (Right::turned_pairs(halves()), gradient.then(|| Right::pairs(halves())))
            };
            let (turned, plain) = match (&panel, pairs) {
                (Some(panel), _) => singles(panel),
                (None, Some(w)) => in_pairs(w),
                (None, None) => unreachable!("a weight without pairs was made a panel"),
            };
            Strip { columns, turned, plain }
        });
        let round = matches!(w, Weight::Bf16(_)) && pairs.is_none();
        Self { strips, width, pairs: pairs.is_some(), round }
    }

    /// Writes the logits of some rows.
    pub(super) fn logits(&self, h: &Operand, rows: Range<usize>, logits: &mut [f32]) {
        let (n, d) = (rows.len(), h.cols());
        let panel;
        let left = match h {
            Operand::Bf16(h) if self.pairs => {
                Left::pairs(&h.bf16s()[rows.start * d..rows.end * d], n, d)
            }
            Operand::F32(_) | Operand::Bf16(_) | Operand::Fp8(_) => {
                panel = h.panel(rows);
                Left::singles(View::new(&panel, n, d))
            }
        };
        for Strip { columns, turned, .. } in &self.strips {
            multiply(left, turned, Out::Set(&mut logits[n * columns.start..n * columns.end]));
        }
    }

    /// The sum of the losses of some rows, whose logits are used up; their gradient, if it is wanted.
    pub(super) fn losses(
        &self,
        targets: &[u32],
        logits: &mut [f32],
        mut gradient: Option<&mut Gradient<'_>>,
    ) -> f64 {
        let mut loss = 0.0;
        for (row, target) in targets.iter().enumerate() {
            let place = (targets.len(), row);
            let mut factor = 0.0;
            if *target != IGNORE {
                let (own, at) = (*target as usize / self.width, *target as usize % self.width);
                let of_target = logits[self.strips[own].place(place.0, row)][at];
                let (max, sum) = self.exponentials(logits, place);
                loss += f64::from(sum.ln() + (max - of_target));
                factor = gradient.as_ref().map_or(0.0, |gradient| gradient.scale / sum);
            }
            if let Some(gradient) = &mut gradient {
                self.write(logits, place, (factor, *target), gradient);
            }
        }
        loss
    }

    /// Replaces a row's logits by `exp(logits - max)`; returns `max`, and the sum.
    fn exponentials(&self, logits: &mut [f32], (n, row): (usize, usize)) -> (f32, f32) {
        vectorised(
            #[inline(always)]
            || {
                let mut max = f32::NEG_INFINITY;
                for strip in &self.strips {
                    let of_strip = lanes::max(&logits[strip.place(n, row)]);
                    max = if of_strip > max { of_strip } else { max };
                }
                let mut sum = 0.0;
                for strip in &self.strips {
                    let logits = &mut logits[strip.place(n, row)];
                    for x in logits.iter_mut() {
                        *x = exp(*x - max);
                    }
                    sum += lanes::sum(logits);
                }
                (max, sum)
            },
        )
    }

    /// `scale (softmax(logits) - onehot(target))` of a row from its exponentials; zero without a
    /// target.
    fn write(
        &self,
        exponentials: &[f32],
        (n, row): (usize, usize),
        (factor, target): (f32, u32),
        gradient: &mut Gradient<'_>,
    ) {
        let scale = gradient.scale;
        vectorised(
            #[inline(always)]
            || {
                for (strip, piece) in self.strips.iter().zip(&mut gradient.pieces) {
                    let width = strip.columns.len();
                    let x = &exponentials[strip.place(n, row)];
                    let at = (target as usize).wrapping_sub(strip.columns.start);
                    let range = row * width..(row + 1) * width;
                    match piece {
                        Piece::F32(out) if target == IGNORE => out[range].fill(0.0),
                        Piece::Bf16(out) if target == IGNORE => out[range].fill(0),
                        Piece::F32(out) => {
                            let out = &mut out[range];
                            for (out, x) in out.iter_mut().zip(x) {
                                *out = x * factor;
                            }
                            if at < width {
                                out[at] -= scale;
                            }
                            if self.round {
                                bf16::round(out);
                            }
                        }
                        Piece::Bf16(out) => {
                            let out = &mut out[range];
                            for (out, x) in out.iter_mut().zip(x) {
                                *out = f32_to_bf16(x * factor);
                            }
                            if at < width {
                                out[at] = f32_to_bf16(x[at] * factor - scale);
                            }
                        }
                    }
                }
            },
        );
    }

    /// `d_h = d_logits w` of one task's `n` rows.
    pub(super) fn input_gradient(&self, gradient: &Gradient<'_>, n: usize, d_h: &mut [f32]) {
        for (i, (strip, piece)) in self.strips.iter().zip(&gradient.pieces).enumerate() {
            let width = strip.columns.len();
            let left = match piece {
                Piece::F32(x) => Left::singles(View::new(x, n, width)),
                Piece::Bf16(x) => Left::pairs(x, n, width),
            };
            let plain = strip.plain.as_ref().expect("a gradient was asked for");
            let out = if i == 0 { Out::Set(&mut *d_h) } else { Out::Add(&mut *d_h) };
            multiply(left, plain, out);
        }
    }

    /// `dw += d_logits^T h` of some hundred rows.
    pub(super) fn weight_gradient(
        &self,
        h: &Operand,
        rows: Range<usize>,
        kept: &Kept,
        dw: &mut [f32],
    ) {
        let (n, d) = (rows.len(), h.cols());
        if n == 0 || d == 0 {
            return;
        }
        let right = match (h, kept) {
            (Operand::Bf16(h), Kept::Bf16(_)) => {
                Right::pairs(Halves::new(&h.bf16s()[rows.start * d..rows.end * d], n, d))
            }
            (Operand::F32(_) | Operand::Bf16(_) | Operand::Fp8(_), _) => {
                Right::singles(View::new(&h.panel(rows), n, d))
            }
        };
        let strips = self.strips.iter().zip(dw.chunks_mut(self.width * d));
        spread::each(strips, |(strip, dw)| {
            let (start, width) = (strip.columns.start, strip.columns.len());
            let part = n * start..n * (start + width);
            match kept {
                Kept::F32(x) => {
                    let turned = View::new(&x[part], n, width).transposed();
                    multiply(Left::singles(turned), &right, Out::Add(dw));
                }
                Kept::Bf16(x) => {
                    let columns = Columns::of(Halves::new(&x[part], n, width));
                    multiply(columns.left(), &right, Out::Add(dw));
                }
            }
        });
    }
}
