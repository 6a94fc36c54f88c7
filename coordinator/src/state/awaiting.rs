//! After the coordinator was started anew: its workers have trained on, and come back one by one. Whoever
//! does not within a lease is lost. Until then nobody is blamed for having missed anybody.

use serde::{Deserialize, Serialize};
use shoal_plan::plan::WorkerId;
use shoal_proto::Hello;

use super::State;
use crate::news::{Cause, News};

/// Since when workers are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Awaiting {
    since_ms: u64,
}

impl Awaiting {
    /// The coordinator itself slept for so long.
    pub(super) fn forgive(&mut self, gap_ms: u64) {
        self.since_ms += gap_ms;
    }
}

impl State {
    /// All connections went with the coordinator before.
    pub(super) fn await_all(&mut self) {
        self.restarts += 1;
        self.awaiting = Some(Awaiting { since_ms: self.now_ms });
        self.signs.forget_hang_ups();
        for member in self.members.values_mut() {
            (member.connected, member.awaited) = (false, true);
            member.heard_ms = self.now_ms;
        }
    }

    pub(super) fn is_awaiting(&self) -> bool {
        self.members.values().any(|member| member.awaited)
    }

    /// Whether a hello comes from a member that has built nothing yet: its plan, if it has one, has not
    /// reached it.
    pub(super) fn has_yet_to_build(&self, hello: &Hello) -> bool {
        let member = self.members.get(&hello.worker);
        member.is_some_and(|member| {
            let built = member.hosts && (member.ready || member.done > self.start.step);
            member.awaited && member.is_process_of(hello) && !built
        })
    }

    pub(super) fn await_no_longer(&mut self) {
        let lease_ms = self.settings.lease_ms;
        let Some(Awaiting { since_ms }) = self.awaiting else { return };
        if self.now_ms <= since_ms + lease_ms {
            return;
        }
        let missing = self.members.iter().filter(|(_, member)| member.awaited);
        let missing: Vec<WorkerId> = missing.map(|(worker, _)| *worker).collect();
        for worker in missing {
            self.member(worker).awaited = false;
            let what = format!("not back within {lease_ms} ms of the coordinator's restart");
            self.sign(worker, Cause::LeaseEnded, what);
        }
    }

    pub(super) fn tell_when_all_have_caught_up(&mut self) {
        if self.is_over() || self.is_awaiting() {
            return;
        }
        if let Some(Awaiting { since_ms }) = self.awaiting.take() {
            let workers = self.members.values().filter(|member| member.connected).count() as u32;
            let seconds = self.now_ms.saturating_sub(since_ms) as f64 / 1e3;
            self.news(News::CaughtUp { restarts: self.restarts, workers, seconds });
        }
    }
}
