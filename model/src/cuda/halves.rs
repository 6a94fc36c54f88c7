//! What waits for the weight half of backward on a device: as in `crate::halves`.

use std::sync::Arc;

use shoal_kernels::cuda::DeviceError;
use shoal_kernels::linear::Math;

use super::gpu::Gpu;
use super::matrix::{Matrix, Operand};
use super::moe::Gathered;
use super::parameters::{GroupId, Parameters};

/// One side of a weight gradient.
#[derive(Clone, Debug)]
pub(super) enum Cached {
    Whole(Arc<Operand>),
    /// Activations that are quantised when they are used.
    Plain(Matrix, Math),
    /// Rows that several experts share, laid out by expert when they are used.
    ByExpert(Arc<Operand>, Arc<Gathered>),
}

/// One group's share of the weight half: `d_W += d_y^T x`.
#[derive(Debug)]
pub(super) struct Deferred {
    pub(super) group: GroupId,
    pub(super) x: Cached,
    pub(super) d_y: Cached,
    /// Of a layer's experts: whose rows are where.
    pub(super) experts: Option<Arc<Gathered>>,
}

impl Cached {
    /// Whether it is the very same input, in the same order.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Arc::ptr_eq(a, b),
            (Self::ByExpert(a, to_a), Self::ByExpert(b, to_b)) => {
                Arc::ptr_eq(a, b) && Arc::ptr_eq(to_a, to_b)
            }
            (Self::Whole(_) | Self::Plain(..) | Self::ByExpert(..), _) => false,
        }
    }

    fn operand(&self, gpu: &Gpu) -> Result<Arc<Operand>, DeviceError> {
        Ok(match self {
            Self::Whole(operand) => Arc::clone(operand),
            Self::Plain(x, math) => Arc::new(gpu.operand(x, *math)?),
            Self::ByExpert(operand, gathered) => Arc::new(gathered.gather(gpu, operand)?),
        })
    }
}

/// The weight half of one microbatch. Neighbours that read one input put it in order once.
pub(super) fn accumulate(
    gpu: &Gpu,
    p: &Parameters,
    deferred: Vec<Deferred>,
) -> Result<(), DeviceError> {
    let mut last: Option<(Cached, Operand)> = None;
    for Deferred { group, x, d_y, experts } in deferred {
        let by_columns = match last.take() {
            Some((before, by_columns)) if before.is(&x) => by_columns,
            _ => gpu.by_columns(&*x.operand(gpu)?)?,
        };
        let d_y = gpu.by_columns(&*d_y.operand(gpu)?)?;
        let groups = experts.as_ref().map(|gathered| gathered.groups());
        gpu.add_weight_gradient(&by_columns, &d_y, p.gradient(group), groups)?;
        last = Some((x, by_columns));
    }
    Ok(())
}
