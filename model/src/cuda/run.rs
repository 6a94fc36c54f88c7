//! What a pass over one microbatch carries from layer to layer on a device.

use super::findings::Findings;
use super::gpu::Gpu;
use super::matrix::Matrix;
use super::mla::Turns;
use crate::batch::BatchShape;
use crate::error::Error;
use crate::exchange::Exchange;
use crate::findings::NonFinite;
use crate::stage::LossScale;

/// One forward or backward pass.
pub(super) struct Run<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) shape: BatchShape,
    pub(super) exchange: &'a mut dyn Exchange,
    pub(super) findings: &'a mut Findings,
    pub(super) turns: &'a mut Turns,
    pub(super) scale: LossScale,
}

impl Run<'_> {
    /// Looks at every element when the device gets there.
    pub(super) fn check(&mut self, x: &Matrix, finding: NonFinite) -> Result<(), Error> {
        Ok(self.findings.check(self.gpu, x, finding)?)
    }

    /// The same where each part of `x` has a name of its own: up to which element it is one's.
    pub(super) fn check_parts(
        &mut self,
        x: &Matrix,
        parts: Vec<(usize, NonFinite)>,
    ) -> Result<(), Error> {
        Ok(self.findings.check_parts(self.gpu, x, parts)?)
    }

    /// One all-to-all, and a check that as many messages came as there are members.
    pub(super) fn all_to_all(
        &mut self,
        layer: u32,
        leg: &'static str,
        outgoing: Vec<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, Error> {
        crate::run::all_to_all(self.exchange, layer, leg, outgoing)
    }
}
