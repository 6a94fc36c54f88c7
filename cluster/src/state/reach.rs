//! Which rig reaches which. Each tries its neighbours when it comes and when one comes; what is found stands until
//! one of the two comes anew. What nobody has found out counts as open.

use std::collections::BTreeMap;

use super::{Cluster, Effect, RigName, ToRig};
use crate::probing::words::{Neighbour, Trial};

/// Of more rigs than this only those that train together try each other.
const ALL_MAX: usize = 64;

/// Nobody waits longer for an answer: dialing the last of 64 rigs that are all silent takes 12 s.
const PATIENCE_MS: u64 = 15_000;

/// A way that was closed is tried again so often: a VPN or a firewall may have opened it.
const AGAIN_MS: u64 = 300_000;

/// One direction of a pair.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    /// Since when an answer is awaited.
    asked_ms: Option<u64>,
    reached: Option<bool>,
    found_ms: u64,
}

/// By who tried, then whom.
#[derive(Debug, Default)]
pub(super) struct Reach(BTreeMap<RigName, BTreeMap<RigName, Tried>>);

impl Reach {
    /// A rig comes with new addresses, or is out.
    pub(super) fn forget(&mut self, rig: &str) {
        self.0.remove(rig);
        for tried in self.0.values_mut() {
            tried.remove(rig);
        }
    }

    /// Whether `from` is to be asked: not while an answer is awaited.
    fn ask(&mut self, from: &str, to: &str, now_ms: u64) -> bool {
        if self.is_awaited(from, to, now_ms) {
            return false;
        }
        let tried = self.0.entry(from.to_owned()).or_default().entry(to.to_owned()).or_default();
        tried.asked_ms = Some(now_ms);
        true
    }

    /// What was not asked is not listened to.
    fn answer(&mut self, from: &str, trial: &Trial, now_ms: u64) {
        let tried = self.0.get_mut(from).and_then(|tried| tried.get_mut(&trial.rig));
        if let Some(tried) = tried.filter(|tried| tried.asked_ms.is_some()) {
            *tried = Tried { asked_ms: None, reached: Some(trial.reached), found_ms: now_ms };
        }
    }

    fn of(&self, from: &str, to: &str) -> Option<&Tried> {
        self.0.get(from)?.get(to)
    }

    /// Whether it was found out, and how.
    pub(super) fn reaches(&self, from: &str, to: &str) -> Option<bool> {
        self.of(from, to)?.reached
    }

    /// Whether it will be known soon.
    pub(super) fn is_awaited(&self, from: &str, to: &str, now_ms: u64) -> bool {
        let asked_ms = self.of(from, to).and_then(|tried| tried.asked_ms);
        asked_ms.is_some_and(|asked_ms| now_ms < asked_ms + PATIENCE_MS)
    }

    /// Whether any of these will soon know more of another one.
    pub(super) fn are_awaited(&self, rigs: &[RigName], now_ms: u64) -> bool {
        rigs.iter().any(|from| rigs.iter().any(|to| self.is_awaited(from, to, now_ms)))
    }

    /// What was closed for long enough.
    fn closed_for_long(&self, now_ms: u64) -> Vec<(RigName, RigName)> {
        let mut pairs = Vec::new();
        for (from, all) in &self.0 {
            let long =
                |tried: &Tried| tried.reached == Some(false) && tried.found_ms + AGAIN_MS <= now_ms;
            let closed = all.iter().filter(|(_, tried)| long(tried));
            pairs.extend(closed.map(|(to, _)| (from.clone(), to.clone())));
        }
        pairs
    }
}

impl Cluster {
    /// A rig is here: it tries the others, and they try it.
    pub(super) fn try_newcomer(&mut self, rig: &str) {
        let others: Vec<RigName> =
            self.sessions.values().map(|s| s.rig.clone()).filter(|name| name != rig).collect();
        if others.len() >= ALL_MAX {
            return;
        }
        self.try_out(rig, &others);
        for other in others {
            self.try_out(&other, &[rig.to_owned()]);
        }
    }

    /// Those that are to train together try what they have not tried yet.
    pub(super) fn try_seated(&mut self, job: &str) {
        let Some(job) = self.jobs.get(job) else { return };
        let rigs: Vec<RigName> = job.seats.values().cloned().collect();
        for from in &rigs {
            // One that did not answer is not asked again: whoever waits for it has waited.
            let unknown = |to: &&RigName| *to != from && self.reach.of(from, to).is_none();
            let whom: Vec<RigName> = rigs.iter().filter(unknown).cloned().collect();
            self.try_out(from, &whom);
        }
    }

    /// Ways that were closed may be open by now.
    pub(super) fn try_again(&mut self) {
        if self.now_ms < self.try_again_ms {
            return;
        }
        self.try_again_ms = self.now_ms + AGAIN_MS / 10;
        let mut again: BTreeMap<RigName, Vec<RigName>> = BTreeMap::new();
        for (from, to) in self.reach.closed_for_long(self.now_ms) {
            again.entry(from).or_default().push(to);
        }
        for (from, whom) in again {
            self.try_out(&from, &whom);
        }
    }

    /// Asks a rig to try these, as far as they are here and can be tried.
    fn try_out(&mut self, from: &str, whom: &[RigName]) {
        let Some(session) = self.session_of(from) else { return };
        let mut neighbours = Vec::new();
        for name in whom {
            let here = self.session_of(name).and_then(|_| self.rigs.get(name));
            let Some(facts) = here.map(|record| &record.facts) else { continue };
            let (address, probe_port) = (facts.address, facts.probe_port);
            let can_be = address.is_some() && probe_port.is_some();
            if can_be && self.reach.ask(from, name, self.now_ms) {
                neighbours.push(Neighbour { name: name.clone(), address, probe_port });
            }
        }
        if !neighbours.is_empty() {
            self.effects.push(Effect::Tell { session, message: ToRig::Try { neighbours } });
        }
    }

    pub(super) fn tried(&mut self, rig: &str, trials: &[Trial]) {
        for trial in trials {
            self.reach.answer(rig, trial, self.now_ms);
        }
        self.settle_meetings();
        self.schedule();
    }
}
