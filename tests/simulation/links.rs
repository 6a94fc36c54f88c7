//! Links between two workers over which no packet comes through, one way or both: what their engines
//! notice of that, and when.

use std::collections::BTreeSet;

use shoal_plan::plan::{Generation, WorkerId};
use shoal_proto::FailureKind;

use crate::world::{Worker, World};

/// No byte for so long: the link is given up.
pub(crate) const LINK_MS: u64 = 4_000;

impl World {
    /// Has it peers that it cannot reach, or that have not come by the last deadline, it fails.
    pub(crate) fn join_deadline(&mut self, worker: WorkerId, generation: Generation, in_ms: u64) {
        let Some(engine) = self.engine_at(worker, generation).filter(|engine| !engine.ready) else {
            return;
        };
        let peers: BTreeSet<WorkerId> = engine.assign.plan.hosts.iter().copied().collect();
        let here = self.hosts_at(generation);
        let is_late = |peer: &WorkerId| {
            in_ms > LINK_MS && (!here.contains(peer) || self.workers[peer].stopped)
        };
        let missing = |peer: &WorkerId| self.is_cut(worker, *peer) || is_late(peer);
        let missing: Vec<WorkerId> = peers.into_iter().filter(missing).collect();
        if in_ms > LINK_MS || !missing.is_empty() {
            self.fail_over_a_link(worker, generation, missing);
        }
    }

    /// No byte came through for too long, as one end or both see it.
    pub(crate) fn silent_link(&mut self, ends: (WorkerId, WorkerId), one_way: bool) {
        let (a, b) = ends;
        let generation = |end| {
            let worker: &Worker = self.workers.get(&end)?;
            let engine = worker.engine.as_ref().filter(|engine| engine.ready && !engine.over)?;
            (!worker.stopped).then_some(engine.generation())
        };
        let (here, there) = (generation(a), generation(b));
        let Some(generation) = here.filter(|_| here == there && self.is_cut(a, b)) else { return };
        self.fail_over_a_link(a, generation, vec![b]);
        if !one_way {
            self.fail_over_a_link(b, generation, vec![a]);
        }
    }

    fn fail_over_a_link(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        unreachable: Vec<WorkerId>,
    ) {
        self.fail(worker, generation, FailureKind::PeerLost, unreachable);
    }
}
