//! Workers whose machine somebody else needs for a while: they hand over at an edge, stay members
//! without cells, and host again when they may. With too few others the run pauses at that edge.
//! Workers without cells give back their memory once others hold what they held.

use shoal_plan::plan::WorkerId;
use shoal_proto::ToWorker;

use super::member::Member;
use super::{Effect, Ignored, State};
use crate::news::News;

impl State {
    /// The edge that follows is `change_hosts`'s, as soon as all train.
    pub(super) fn yields(&mut self, worker: WorkerId, reason: Option<String>) {
        let member = self.member(worker);
        if member.yielding == reason {
            let connection = member.connection;
            return self.ignore(connection, Ignored::Repeated);
        }
        member.yielding.clone_from(&reason);
        self.news(News::Yielding { worker, reason });
    }

    /// Whether somebody is here who would host if its machine were not needed.
    pub(super) fn somebody_yields(&self) -> bool {
        self.members.values().any(Member::is_only_yielding)
    }

    /// Tells those that hosted before, and whose memory is not needed any more.
    pub(super) fn release_idle_workers(&mut self) {
        let idle = self.members.iter().filter(|(_, member)| member.hosted && !member.hosts);
        let idle: Vec<WorkerId> = idle.map(|(worker, _)| *worker).collect();
        let generation = self.generation();
        for worker in idle {
            if !self.holdings.does_without(worker, self.start.step) {
                continue;
            }
            self.holdings.evict(worker);
            let member = self.member(worker);
            member.hosted = false;
            let connection = member.connection;
            let message = ToWorker::Released { generation };
            self.effects.push(Effect::Send { connection, message });
        }
    }
}
