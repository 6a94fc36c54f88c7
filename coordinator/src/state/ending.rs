//! How a run ends: by finishing, by a request to stop, or by the first failure.

use serde::{Deserialize, Serialize};
use shoal_plan::plan::WorkerId;
use shoal_plan::report::Ending;
use shoal_proto::{FromWorker, ToWorker};

use super::{ConnectionId, Effect, Event, Ignored, OWN_SLEEP_MS, Phase, State};
use crate::news::{Cause, Failure, News};

/// How long the last checkpoint may take to complete after all workers have finished.
const LAST_CHECKPOINT_MS: u64 = 60_000;

/// How the run has ended, for every worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LastWord {
    Leave { reason: String },
    Abort { reason: String },
}

impl LastWord {
    fn message(&self) -> ToWorker {
        match self.clone() {
            Self::Leave { reason } => ToWorker::Leave { reason },
            Self::Abort { reason } => ToWorker::Abort { reason },
        }
    }
}

impl State {
    fn say_at_last(&mut self, word: LastWord) {
        self.send_to_all(&word.message());
        self.last_word = Some(word);
    }

    /// Time does not go back, and a coordinator that slept has heard nobody meanwhile.
    pub(super) fn forgive_own_sleep(&mut self, now_ms: u64) {
        let gap = now_ms.saturating_sub(self.now_ms);
        self.now_ms += gap;
        if gap > OWN_SLEEP_MS {
            self.started_ms += gap;
            self.signs.forgive(gap);
            self.awaiting.iter_mut().for_each(|awaiting| awaiting.forgive(gap));
            for member in self.members.values_mut() {
                member.heard_ms += gap;
            }
        }
    }

    /// Only newcomers still get an answer, and members that were cut off before the last word.
    pub(super) fn after_the_end(&mut self, event: Event) {
        if let (Event::Message { connection, message: FromWorker::Hello(hello) }, Some(word)) =
            (&event, &self.last_word)
            && let Some(member) = self.members.get_mut(&hello.worker)
            && member.is_process_of(hello)
            && !member.connected
        {
            (member.connection, member.connected, member.awaited) = (*connection, true, false);
            let (connection, message) = (*connection, word.message());
            return self.effects.push(Effect::Send { connection, message });
        }
        if let Event::Ordered { asked, .. } = event {
            let reply = Err("the run has ended".to_owned());
            return self.effects.push(Effect::Answer { asked, reply });
        }
        if let Event::Message { connection, .. } | Event::BadMessage { connection, .. } = event
            && self.worker_of(connection).is_none()
        {
            let reason = "the run has ended".to_owned();
            self.effects.push(Effect::Close { connection, reason });
        }
    }

    pub(super) fn bad_message(&mut self, connection: ConnectionId, why: &str) {
        match self.worker_of(connection) {
            Some(worker) => {
                let why = format!("a message that cannot be understood: {why}");
                self.fail(Cause::Protocol, Some(worker), why);
            }
            None => self.effects.push(Effect::Close { connection, reason: why.to_owned() }),
        }
    }

    pub(super) fn hung_up(&mut self, connection: ConnectionId, why: String) {
        let Some(worker) = self.worker_of(connection) else { return };
        self.member(worker).connected = false;
        self.sign(worker, Cause::HungUp, format!("the connection ended: {why}"));
    }

    pub(super) fn end_leases(&mut self) {
        let (now_ms, lease_ms) = (self.now_ms, self.settings.lease_ms);
        let members = self.members.iter().filter(|(_, member)| member.connected);
        let silent: Vec<WorkerId> = members
            .filter(|(_, member)| now_ms > member.heard_ms + lease_ms)
            .map(|(worker, _)| *worker)
            .collect();
        for worker in silent {
            self.sign(worker, Cause::LeaseEnded, format!("no sign of life for {lease_ms} ms"));
        }
        self.await_no_longer();
        let deadline_ms = self.settings.join_deadline_ms;
        if self.phase == Phase::Gathering && now_ms > self.started_ms + deadline_ms {
            let wanted = (0..self.settings.workers_wanted).map(WorkerId);
            let missing: Vec<_> = (wanted.filter(|id| !self.members.contains_key(id)))
                .map(|id| id.to_string())
                .collect();
            if self.members.len() as u32 >= self.settings.workers_first {
                // Enough are here, and some give way to others.
                return;
            }
            let what = format!("not joined within {deadline_ms} ms: {}", missing.join(", "));
            self.fail(Cause::NotJoined, None, what);
        }
    }

    /// A plan that is being made or changed is waited for: its first step is then the last.
    pub(super) fn stop(&mut self) {
        self.stop_wanted = true;
        let was_paused = std::mem::take(&mut self.pause_wanted);
        match self.phase {
            // Nothing was trained since the checkpoint, so nothing is lost.
            Phase::Gathering => self.finish(Ending::Stopped),
            Phase::Preparing if self.start.step == self.checkpointed.step => {
                self.finish(Ending::Stopped);
            }
            // All that was trained is in memory: the run goes on for one step, and writes it down.
            Phase::Paused if was_paused && self.has_enough() => self.phase = Phase::Recovering,
            Phase::Paused => self.stop_while_paused(),
            Phase::Training => {
                self.phase = Phase::Stopping;
                self.send_to_hosts(&ToWorker::Stop { generation: self.generation() });
            }
            Phase::Preparing
            | Phase::Stopping
            | Phase::Edging
            | Phase::Recovering
            | Phase::Ended => {}
        }
    }

    pub(super) fn finished(&mut self, worker: WorkerId, step: u64, ending: Ending) {
        let phase = self.phase;
        let member = self.member(worker);
        let (connection, done) = (member.connection, member.done);
        if !phase.trains() {
            return self.ignore(connection, Ignored::OutOfPhase(phase));
        }
        if member.finished.is_some() {
            return self.ignore(connection, Ignored::Repeated);
        }
        if step != done || member.has_ended() {
            let why = format!("finished after step {step}: the last step it did is {done}");
            return self.fail(Cause::Protocol, Some(worker), why);
        }
        member.finished = Some(ending);
        let endings: Option<Vec<Ending>> = self.hosts().map(|(_, host)| host.finished).collect();
        let Some(endings) = endings else { return };
        if let Some(other) = endings.iter().find(|other| **other != ending) {
            let why = format!("workers finished differently: {ending:?} and {other:?}");
            return self.fail(Cause::Protocol, None, why);
        }
        self.finished = Some((self.now_ms, ending));
    }

    pub(super) fn finish_when_all_have(&mut self) {
        let Some((finished_ms, ending)) = self.finished else { return };
        let step = self.committed;
        let ahead = self.hosts().find(|(_, host)| host.done != step);
        if let Some((worker, done)) = ahead.map(|(worker, host)| (worker, host.done)) {
            let why = format!("finished after step {done}, others after step {step}");
            return self.fail(Cause::Protocol, Some(worker), why);
        }
        if let Some((_, why)) = self.checkpoint_failed.clone().filter(|(failed, _)| *failed == step)
        {
            let why = format!(
                "the checkpoint of step {step}, the run's last, could not be completed: {why}"
            );
            return self.fail(Cause::Checkpoint, None, why);
        }
        if self.checkpointed.step == step {
            return self.finish(ending);
        }
        if self.now_ms > finished_ms + LAST_CHECKPOINT_MS {
            let missing = self.parts.missing(step);
            let missing: Vec<_> = missing.into_iter().map(|cell| cell.to_string()).collect();
            let of = if missing.is_empty() { "the manifest".into() } else { missing.join(", ") };
            let why = format!("the checkpoint of step {step} is not complete: {of} is missing");
            self.fail(Cause::Checkpoint, None, why);
        }
    }

    pub(super) fn finish(&mut self, ending: Ending) {
        let last_step = self.committed;
        let reason = format!("the run has ended after step {last_step}");
        self.say_at_last(LastWord::Leave { reason });
        self.phase = Phase::Ended;
        self.news(News::Finished { last_step, ending, best: self.checkpointed.best });
    }

    pub(super) fn fail(&mut self, kind: Cause, worker: Option<WorkerId>, what: String) {
        if self.is_over() {
            return;
        }
        let step_committed = self.committed;
        self.end_with(Failure { worker, step_committed, step: None, kind, what, layer: None });
    }

    pub(super) fn end_with(&mut self, failure: Failure) {
        self.say_at_last(LastWord::Abort { reason: failure.to_string() });
        self.phase = Phase::Ended;
        self.news(News::Failed(failure));
    }
}
