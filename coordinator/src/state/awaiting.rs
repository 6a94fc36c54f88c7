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

#[cfg(test)]
mod tests {
    use shoal_proto::{FailureKind, FromWorker, Hello, Resuming, ToWorker};

    use super::super::fixtures::{G1, connection, hello, settings, step_done};
    use super::super::{ConnectionId, Effect, Event, Saved};
    use super::*;

    fn say(state: &mut State, now_ms: u64, from: ConnectionId, message: FromWorker) -> Vec<Effect> {
        state.apply(now_ms, Event::Message { connection: from, message })
    }

    /// Both have done step 1; then the coordinator is started anew at 100 ms of its clock.
    fn started_anew() -> State {
        let mut state = State::new(settings(), 0);
        for worker in 0..2 {
            say(&mut state, 0, connection(worker), hello(worker));
        }
        for worker in 0..2 {
            say(&mut state, 50, connection(worker), FromWorker::Ready { generation: G1 });
        }
        for worker in 0..2 {
            say(&mut state, 100, connection(worker), step_done(worker, 1));
        }
        let text = serde_json::to_string(&state.save()).unwrap();
        let saved: Saved = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&saved).unwrap(), text, "nothing is lost on the way");
        let (state, effects) = State::restore(settings(), saved);
        assert_eq!((effects.len(), state.now_ms(), state.committed()), (0, 100, 1));
        state
    }

    /// Over a connection of its own.
    fn comes_back(state: &mut State, now_ms: u64, worker: u32) -> Vec<Effect> {
        let FromWorker::Hello(fresh) = hello(worker) else { panic!("a hello") };
        let resuming = Some(Resuming { generation: G1, step: 1 });
        let again = FromWorker::Hello(Hello { resuming, ..fresh });
        say(state, now_ms, ConnectionId(20 + u64::from(worker)), again)
    }

    fn news(effects: &[Effect]) -> Vec<String> {
        let text = |effect: &Effect| {
            let Effect::News(news) = effect else { return None };
            if let News::Evicted { worker, cause, .. } = news {
                Some(format!("{worker} {cause:?}"))
            } else if let News::CaughtUp { workers, seconds, .. } = news {
                Some(format!("{workers} caught up, {seconds} s"))
            } else if let News::Recovering { workers, .. } = news {
                Some(format!("{workers} go on"))
            } else {
                None
            }
        };
        effects.iter().filter_map(text).collect()
    }

    #[test]
    fn workers_that_come_back_hear_what_was_read_and_go_on() {
        let mut state = started_anew();
        let back = comes_back(&mut state, 300, 0);
        let told = |message| Effect::Send { connection: ConnectionId(20), message };
        // Ready, and the step.
        assert_eq!(back[0], told(ToWorker::Received { messages: 2 }));
        assert_eq!(back[1], told(ToWorker::Start { generation: G1 }));
        assert_eq!(news(&comes_back(&mut state, 400, 1)), ["2 caught up, 0.3 s"]);
        assert!(state.apply(6_000, Event::Tick).is_empty());
    }

    #[test]
    fn whoever_is_not_back_within_a_lease_is_lost_and_nobody_before() {
        let mut state = started_anew();
        comes_back(&mut state, 300, 0);
        let (step, kind, what) = (2, FailureKind::PeerLost, "a lost peer".to_owned());
        let (generation, layer, unreachable) = (G1, None, Vec::new());
        let missed = FromWorker::Failed { generation, step, kind, what, layer, unreachable };
        assert_eq!(news(&say(&mut state, 400, ConnectionId(20), missed)), [""; 0]);
        // Heartbeats keep the one; time passes in steps, or it would be the coordinator's own sleep.
        for now_ms in (500..=5_000).step_by(500) {
            let heartbeat = FromWorker::Heartbeat { generation: Some(G1), step: 1 };
            say(&mut state, now_ms, ConnectionId(20), heartbeat);
            assert_eq!(news(&state.apply(now_ms, Event::Tick)), [""; 0], "at {now_ms}");
        }
        let want = ["worker-1 LeaseEnded", "1 caught up, 5.001 s", "1 go on"];
        assert_eq!(news(&state.apply(5_101, Event::Tick)), want);
    }

    #[test]
    fn a_process_that_died_meanwhile_is_lost_at_once_and_the_others_are_waited_for() {
        let mut state = started_anew();
        let exited = |pid| {
            let what = "killed by signal 9".to_owned();
            Event::WorkerExited { worker: WorkerId(1), pid, what }
        };
        assert_eq!(
            news(&state.apply(200, exited(7))),
            [""; 0],
            "another process of the same worker"
        );
        assert_eq!(news(&state.apply(200, exited(101))), ["worker-1 Exited"]);
        assert_eq!(news(&comes_back(&mut state, 300, 0)), ["1 caught up, 0.2 s", "1 go on"]);
    }
}
