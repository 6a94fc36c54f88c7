//! What a pass over one microbatch carries from layer to layer.

use crate::batch::BatchShape;
use crate::error::Error;
use crate::exchange::Exchange;
use crate::findings::Findings;
use crate::stage::LossScale;

/// One forward or backward pass.
pub(crate) struct Run<'a> {
    pub(crate) shape: BatchShape,
    pub(crate) exchange: &'a mut dyn Exchange,
    pub(crate) findings: &'a mut Findings,
    pub(crate) scale: LossScale,
}

impl Run<'_> {
    /// One all-to-all, and a check that as many messages came as there are members.
    pub(crate) fn all_to_all(
        &mut self,
        layer: u32,
        leg: &'static str,
        outgoing: Vec<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, Error> {
        all_to_all(self.exchange, layer, leg, outgoing)
    }
}

/// One all-to-all, and a check that as many messages came as there are members.
pub(crate) fn all_to_all(
    exchange: &mut dyn Exchange,
    layer: u32,
    leg: &'static str,
    outgoing: Vec<Vec<u8>>,
) -> Result<Vec<Vec<u8>>, Error> {
    let want = outgoing.len();
    let incoming =
        exchange.all_to_all(outgoing).map_err(|source| Error::Exchange { layer, leg, source })?;
    if incoming.len() != want {
        let problem = format!("(or lost) a message: {} came, want {want}", incoming.len());
        let shard = incoming.len().min(want);
        return Err(Error::Malformed { layer, leg, shard, problem });
    }
    Ok(incoming)
}
