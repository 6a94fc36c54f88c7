//! The legs of a layer of experts: what leaves the device, what comes, and what of it makes no sense.

use shoal_kernels::cuda::Fetch;

use super::super::gpu::Gpu;
use super::super::legs::{Plane, Shares, Side};
use super::super::matrix::Operand;
use super::super::run::Run;
use super::super::sent::{Pairs, Sent};
use super::Moe;
use super::Received;
use crate::error::Error;
use crate::findings::NonFinite;
use crate::moe::dispatch::{self, Counts};
use crate::moe::messages;

impl Moe {
    /// Sends tokens to the owners of their experts, and takes those of this one's.
    pub(super) fn dispatch(
        &self,
        n: &Operand,
        (sent, pairs): (&Sent, Pairs),
        run: &mut Run<'_>,
    ) -> Result<Received, Error> {
        const LEG: &str = "dispatch";
        let (gpu, form) = (run.gpu, self.row_form(self.arithmetic.input));
        let rows = sent.gather(gpu, n)?;
        let mut planes = Plane::of_operand(&rows);
        planes.extend(
            [&pairs.rows, &pairs.experts, &pairs.gates].map(|list| Plane::of_pairs(list.all())),
        );
        let from = Side { planes: &planes, shares: &sent.shares };
        let outgoing = gpu.messages(gpu.leave(from)?, from, true)?;
        let incoming = run.all_to_all(self.layer, LEG, outgoing)?;
        let me = sent.shares.me();
        let mut counts = vec![sent.shares.of(me); incoming.len()];
        let mut bodies: Vec<&[u8]> = vec![&[]; incoming.len()];
        let mut left = gpu.room().map_or(usize::MAX, |room| room.received);
        for (shard, message) in incoming.iter().enumerate() {
            let refuse = |problem| self.malformed(LEG, shard, problem);
            if shard != me {
                (counts[shard], bodies[shard]) = Counts::read(message, &form).map_err(refuse)?;
            }
            let of_shard = counts[shard];
            left = left.checked_sub(of_shard.rows).ok_or_else(|| {
                let rows = of_shard.rows;
                refuse(format!("{rows} rows, more than the group has tokens"))
            })?;
            if of_shard.rows * form.n_experts.min(self.top_k()) < of_shard.pairs {
                let Counts { rows, pairs } = of_shard;
                return Err(refuse(format!("{pairs} pairs of {rows} rows")));
            }
            if shard != me {
                let (_, [rows, experts, _]) =
                    dispatch::lists_of_pairs(bodies[shard], of_shard.pairs);
                dispatch::check_pairs(of_shard.rows, (rows, experts), form.n_experts)
                    .map_err(refuse)?;
            }
        }
        let shares = Shares::new(me, counts);
        let received = Received::unwritten(gpu, &form, self.top_k(), shares)?;
        let planes = received.planes();
        let to = Side { planes: &planes, shares: received.shares() };
        self.take_in(LEG, &bodies, (from, to), gpu)?;
        drop(planes);
        messages::give(incoming);
        Ok(received)
    }

    /// One leg of which the receivers know how much comes: hands on what was fetched, and takes in what comes.
    pub(super) fn trade(
        &self,
        leg: &'static str,
        fetch: Fetch<'_>,
        (from, to): (Side<'_>, Side<'_>),
        run: &mut Run<'_>,
    ) -> Result<(), Error> {
        let outgoing = run.gpu.messages(fetch, from, false)?;
        let incoming = run.all_to_all(self.layer, leg, outgoing)?;
        let bodies: Vec<&[u8]> = incoming.iter().map(Vec::as_slice).collect();
        self.take_in(leg, &bodies, (from, to), run.gpu)?;
        messages::give(incoming);
        Ok(())
    }

    fn take_in(
        &self,
        leg: &'static str,
        bodies: &[&[u8]],
        (from, to): (Side<'_>, Side<'_>),
        gpu: &Gpu,
    ) -> Result<(), Error> {
        for (shard, body) in bodies.iter().enumerate().filter(|(shard, _)| *shard != to.shares.me())
        {
            to.check(shard, body).map_err(|problem| self.malformed(leg, shard, problem))?;
        }
        Ok(gpu.arrive(bodies, from, to)?)
    }

    /// Which elements of what came back are whose.
    pub(super) fn by_shard(
        &self,
        shares: &Shares,
        found: fn(u32, String) -> NonFinite,
        direction: &str,
    ) -> Vec<(usize, NonFinite)> {
        let (layer, cols) = (self.layer, self.config.hidden_size as usize);
        let ends = shares.before()[1..].iter().enumerate();
        let part = |(shard, end): (usize, &Counts)| {
            let place = format!("layer {layer} {direction}, rows returned by expert shard {shard}");
            (end.rows * cols, found(layer, place).received())
        };
        ends.map(part).collect()
    }

    fn malformed(&self, leg: &'static str, shard: usize, problem: String) -> Error {
        Error::Malformed { layer: self.layer, leg, shard, problem }
    }
}
