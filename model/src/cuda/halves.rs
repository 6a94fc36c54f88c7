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
    fn operand(&self, gpu: &Gpu) -> Result<Arc<Operand>, DeviceError> {
        Ok(match self {
            Self::Whole(operand) => Arc::clone(operand),
            Self::Plain(x, math) => Arc::new(gpu.operand(x, *math)?),
            Self::ByExpert(operand, gathered) => Arc::new(gathered.gather(gpu, operand)?),
        })
    }
}

/// The weight half of one microbatch.
pub(super) fn accumulate(
    gpu: &Gpu,
    p: &Parameters,
    deferred: Vec<Deferred>,
) -> Result<(), DeviceError> {
    for Deferred { group, x, d_y, experts } in deferred {
        let (x, d_y) = (x.operand(gpu)?, d_y.operand(gpu)?);
        let groups = experts.as_ref().map(|gathered| gathered.groups());
        gpu.add_weight_gradient(&x, &d_y, p.gradient(group), groups)?;
    }
    Ok(())
}
