//! The end of a step on a GPU: the update, and gradients on their way to the host, which sums them over cells, and back. On part
//! of the parameters where there are many.

use shoal_kernels::adamw::AdamStep;
use shoal_kernels::cuda::quantise::Shape;
use shoal_kernels::cuda::{DeviceError, adamw};
use shoal_kernels::linear::Math;
use shoal_kernels::{DType, Tiling};
use shoal_plan::arithmetic::parameters;

use super::{Bench, Work};
use crate::cuda::{Side, Unit};

/// Columns of the matrix that parameters are updated as.
const COLUMNS: usize = 1024;

/// So many parameters of all there are, in whole blocks of 128 x 128.
struct Part {
    total: usize,
    rows: usize,
}

impl Part {
    fn of(bench: &Bench<'_>, total: usize) -> Self {
        let rows = total.min(bench.effort.parameters_max) / COLUMNS;
        Self { total, rows: rows.next_multiple_of(128).max(128) }
    }

    fn n(&self) -> usize {
        self.rows * COLUMNS
    }

    fn times(&self) -> usize {
        self.total.div_ceil(self.n())
    }

    fn shape(&self) -> String {
        format!("{:.1} M of {:.1} M", self.n() as f64 / 1e6, self.total as f64 / 1e6)
    }
}

/// Measures it.
pub(super) fn each(bench: &mut Bench<'_>) -> Result<(), DeviceError> {
    let m = &bench.shapes.model;
    let total = parameters(m).total as usize;
    // The embedding and the head, which no precision quantises.
    let tables = if m.tie_word_embeddings { 1 } else { 2 };
    let tables = tables * m.vocab_size as usize * bench.shapes.d();
    match bench.shapes.math() {
        math @ Math::Fp8(_) => {
            step(bench, ("adamw, to E4M3", math), total - tables)?;
            step(bench, ("adamw, to BF16", Math::Bf16), tables)?;
        }
        math @ (Math::Bf16 | Math::F32) => step(bench, ("adamw", math), total)?,
    }
    travel(bench, total)
}

fn step(
    bench: &mut Bench<'_>,
    (name, math): (&str, Math),
    total: usize,
) -> Result<(), DeviceError> {
    let (card, part) = (bench.card, Part::of(bench, total));
    let n = part.n();
    let size = Shape { rows: part.rows, cols: COLUMNS };
    let masters = card.noise("masters", DType::F32, n)?;
    let gradients = card.zeros("gradients", 4 * n)?;
    let (first, second) = (card.zeros("moments", 2 * n)?, card.zeros("moments", 2 * n)?);
    let weight = card.side("weights", (part.rows, COLUMNS), (math, Tiling::Block))?;
    let adam = AdamStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_scale: 1.0,
    };
    let (kernels, stream) = (&card.kernels.adamw, &card.stream);
    let bytes = if matches!(math, Math::Fp8(_)) { 25 } else { 26 } * n;
    bench.stream((name, part.shape()), part.times(), bytes, || {
        let state = adamw::State {
            masters: masters.all(),
            first: first.all(),
            second: second.all(),
            moments: DType::Bf16,
            gradients: gradients.all(),
            average: None,
            checksum: None,
        };
        let weight = match &weight {
            Side::Bf16(copy) => adamw::Weight::Bf16(copy.all(), n),
            weight @ Side::Fp8(..) => adamw::Weight::Fp8(weight.codes(), size),
        };
        kernels.step(stream, state, weight, &adam)
    })
}

fn travel(bench: &mut Bench<'_>, total: usize) -> Result<(), DeviceError> {
    let (card, part) = (bench.card, Part::of(bench, total));
    let gradients = card.zeros("gradients", 4 * part.n())?;
    let mut host = vec![0; gradients.bytes()];
    let work = |name: &str| Work {
        name: name.to_owned(),
        shape: part.shape(),
        times: part.times(),
        flops: 0.0,
        bytes: gradients.bytes() as f64,
        bound: Unit::Link,
    };
    let stream = &card.stream;
    bench.measure(work("gradients to the host"), || stream.download(gradients.all(), &mut host))?;
    bench.measure(work("gradients from the host"), || stream.upload(gradients.all(), &host))
}
