//! How a worker is lost: signs become certain, it is evicted with the fact that decided it, and the
//! others go on without it (`recovering`). A spare or a newcomer is lost without a further effect.

use shoal_plan::plan::WorkerId;
use shoal_proto::{FailureKind, ToWorker};

use super::cause::{Sign, Verdict};
use super::recovering::Loss;
use super::{Effect, Ignored, Phase, State};
use crate::news::{Cause, Failure, News};

impl State {
    /// A worker says that it cannot go on.
    pub(super) fn failed(
        &mut self,
        worker: WorkerId,
        step: u64,
        kind: FailureKind,
        (what, layer, unreachable): (String, Option<String>, Vec<WorkerId>),
    ) {
        // Who was missed is settled, and the survivors wait for the next plan.
        let settled = matches!(self.phase, Phase::Recovering | Phase::Paused);
        if kind == FailureKind::PeerLost && settled {
            let connection = self.member(worker).connection;
            return self.ignore(connection, Ignored::OutOfPhase(self.phase));
        }
        let (cause, step, since_ms) = (Cause::Reported(kind), Some(step), self.now_ms);
        self.signs.add(Sign { worker, cause, since_ms, step, what, layer, unreachable });
    }

    /// Notes a sign that a worker cannot go on; whether it is the cause shows later.
    pub(super) fn sign(&mut self, worker: WorkerId, cause: Cause, what: String) {
        if self.members.contains_key(&worker) {
            self.signs.add(self.sign_of(worker, cause, what));
        }
    }

    /// The process that took the place of one that ended is another.
    pub(super) fn exited(&mut self, worker: WorkerId, pid: u32, what: &str) {
        if self.members.get(&worker).is_some_and(|member| member.pid == pid) {
            self.sign(worker, Cause::Exited, format!("the process ended: {what}"));
        }
    }

    pub(super) fn sign_of(&self, worker: WorkerId, cause: Cause, what: String) -> Sign {
        let (since_ms, unreachable) = (self.now_ms, Vec::new());
        Sign { worker, cause, since_ms, step: None, what, layer: None, unreachable }
    }

    pub(super) fn judge(&mut self) {
        if self.is_over() {
            return;
        }
        match self.signs.verdict(self.now_ms, self.is_awaiting()) {
            Verdict::Wait => {}
            Verdict::Ends(sign) => self.end_with(self.failure(sign)),
            Verdict::AtFault(signs) => signs.into_iter().for_each(|sign| self.evict(sign)),
            Verdict::Link(sign) => self.replan_over_a_broken_link(sign),
        }
    }

    /// A worker is out: whatever its process still says is of no connection that is known.
    pub(super) fn evict(&mut self, sign: Sign) {
        let Some(member) = self.members.remove(&sign.worker).filter(|_| !self.is_over()) else {
            return;
        };
        let (worker, cause) = (sign.worker, sign.cause);
        self.signs.forget(worker);
        self.holdings.evict(worker);
        if member.connected {
            let reason = format!("{worker} is no longer part of the run: {}", sign.what);
            self.effects.push(Effect::Close { connection: member.connection, reason });
        }
        self.news(News::Evicted { worker, cause, what: sign.what.clone() });
        let history = self.histories.entry(worker).or_default();
        let quarantine = history.evicted(self.now_ms, cause);
        if history.is_hopeless() {
            return self.end_with(self.failure(sign));
        }
        if let Some(quarantine) = quarantine {
            let (seconds, times) = (quarantine.seconds, quarantine.times);
            self.news(News::Quarantined { worker, seconds, times });
        }
        if self.phase == Phase::Gathering {
            if self.settings.job.workers.restarts == 0 {
                self.end_with(self.failure(sign));
            }
        } else if member.hosts && !self.is_missed_no_more() {
            self.lose(Some(sign));
        }
    }

    /// All have finished, and every part of the last checkpoint is here: nobody is needed now.
    fn is_missed_no_more(&self) -> bool {
        let step = self.committed;
        let written = self.checkpointed.step == step || self.parts.missing(step).is_empty();
        self.finished.is_some() && written
    }

    /// Keeps those apart between which no packet comes through. Whether there are such.
    fn keep_apart(&mut self) -> bool {
        let hosts = |worker: &WorkerId| self.members.get(worker).is_some_and(|member| member.hosts);
        let mut missed = self.signs.unreachable();
        missed.retain(|(by, of)| by != of && hosts(by) && hosts(of));
        let mut pairs = Vec::new();
        for (by, of) in &missed {
            if let Some(seconds) = self.apart.report(*by, *of, self.now_ms) {
                pairs.push((*by, *of, seconds));
            }
        }
        let together: Vec<WorkerId> = self.eligible().collect();
        for (by, of, seconds) in pairs {
            let (worker, from) = if together.contains(&of) { (by, of) } else { (of, by) };
            self.news(News::Parted { worker, from, seconds });
        }
        !missed.is_empty()
    }

    /// Nobody is gone, so everybody may try again, but for those that cannot reach each other. If no step is
    /// committed then, snapshots are not trusted any more, and after that whoever was the first to miss a
    /// peer goes: by this rule two that cannot reach each other do not stop the rest.
    fn replan_over_a_broken_link(&mut self, sign: Sign) {
        if self.keep_apart() {
            return self.lose(Some(sign));
        }
        let times = self.link_broke.again(self.committed);
        if times > 1 && self.phase == Phase::Preparing && !self.holdings.is_empty() {
            // It may be a snapshot that cannot be fetched: then the checkpoint must do.
            self.holdings.clear();
        } else if times > 1 {
            return self.evict(sign);
        }
        self.lose(Some(sign));
    }

    /// The cells of the plan cannot go on as they are.
    pub(super) fn lose(&mut self, sign: Option<Sign>) {
        let since_ms = sign.as_ref().map_or(self.now_ms, |sign| sign.since_ms);
        self.loss.get_or_insert(Loss { since_ms, sign });
        self.edge_ms = None;
        if self.phase != Phase::Paused {
            self.phase = Phase::Recovering;
        }
    }

    pub(super) fn failure(&self, sign: Sign) -> Failure {
        let Sign { worker, cause, step, what, layer, .. } = sign;
        let (worker, kind, step_committed) = (Some(worker), cause, self.committed);
        Failure { worker, step_committed, step, kind, what, layer }
    }

    /// A worker wants to hand over and go.
    pub(super) fn wants_to_leave(&mut self, worker: WorkerId, reason: &str) {
        tracing::info!(%worker, reason, "wants to leave");
        let member = self.member(worker);
        member.leaving = true;
        let hosts = member.hosts;
        match self.phase {
            // It may be asked for snapshots until all are ready.
            Phase::Preparing if hosts => self.lose(None),
            // At the next edge; `change_hosts` sees to it.
            Phase::Training if hosts => {}
            // What it holds may be all there is: when the run goes on, with all others' consent.
            Phase::Paused if self.pause_wanted => {}
            Phase::Gathering | Phase::Paused | Phase::Training => self.let_go(worker),
            Phase::Preparing
            | Phase::Stopping
            | Phase::Edging
            | Phase::Recovering
            | Phase::Ended => {}
        }
    }

    pub(super) fn let_go(&mut self, worker: WorkerId) {
        let Some(member) = self.members.remove(&worker) else { return };
        self.signs.forget(worker);
        self.holdings.evict(worker);
        let history = self.histories.entry(worker).or_default();
        (history.gone, history.left) = (true, true);
        let (connection, reason) = (member.connection, "as it wished".to_owned());
        let message = ToWorker::Leave { reason };
        self.effects.push(Effect::Send { connection, message });
        self.news(News::Left { worker });
    }
}
