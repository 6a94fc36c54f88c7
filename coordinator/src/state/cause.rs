//! Who is at fault. A worker that dies makes all its peers report that they lost it, and often they
//! are heard first; a connection that ends may be taken up again: so signs are collected until they
//! are certain.

use serde::{Deserialize, Serialize};
use shoal_plan::plan::WorkerId;
use shoal_proto::FailureKind;

use crate::news::Cause;

/// How long a worker whose connection ended may take to come back. A launcher sees the exit of its
/// child, and peers the end of their connections, within some milliseconds even on a busy machine.
pub(super) const RECONNECT_MS: u64 = 1_500;

/// How long peers' reports of a loss wait for a sign of who was lost.
pub(super) const GRACE_MS: u64 = 1_500;

/// One sign that a worker cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sign {
    pub(super) worker: WorkerId,
    pub(super) cause: Cause,
    pub(super) since_ms: u64,
    /// The step that was being computed, if the worker could say.
    pub(super) step: Option<u64>,
    pub(super) what: String,
    /// Where in the network, if it is known.
    pub(super) layer: Option<String>,
    /// Workers with which it could exchange no byte any more.
    pub(super) unreachable: Vec<WorkerId>,
}

/// What follows from the signs so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing yet.
    Wait,
    /// Another plan would end the same way: the run has failed.
    Ends(Sign),
    /// These workers are lost.
    AtFault(Vec<Sign>),
    /// Workers lost each other and all live: the link is at fault. The first to say so.
    Link(Sign),
}

/// The most telling sign of each worker, in the order of their arrival. That it missed a peer stands beside
/// that it is cut off: it may come back, and still wait for another plan.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Signs {
    signs: Vec<Sign>,
}

impl Signs {
    /// Adds a sign, unless the worker has given a more telling one.
    pub(super) fn add(&mut self, sign: Sign) {
        let stands_beside = |known: &Sign| {
            let kinds = [verdict_of(known.cause), verdict_of(sign.cause)];
            kinds.contains(&Kind::CutOff) && kinds.contains(&Kind::MissesAPeer)
        };
        let is_of_worker = |known: &Sign| known.worker == sign.worker && !stands_beside(known);
        if !self
            .signs
            .iter()
            .any(|known| is_of_worker(known) && telling(known.cause) >= telling(sign.cause))
        {
            self.signs.retain(|known| !is_of_worker(known));
            self.signs.push(sign);
        }
    }

    /// A worker whose connection had ended is back.
    pub(super) fn is_back(&mut self, worker: WorkerId) {
        self.signs.retain(|sign| sign.worker != worker || sign.cause != Cause::HungUp);
    }

    /// A worker is gone, and with it what it said.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        self.signs.retain(|sign| sign.worker != worker);
    }

    /// A new plan is made: what was said under the old one is settled.
    pub(super) fn settle(&mut self) {
        self.signs.retain(|sign| sign.cause != Cause::Reported(FailureKind::PeerLost));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.signs.is_empty()
    }

    /// The coordinator was started anew: connections that had ended are like all others.
    pub(super) fn forget_hang_ups(&mut self) {
        self.signs.retain(|sign| sign.cause != Cause::HungUp);
    }

    /// The coordinator itself slept for so long.
    pub(super) fn forgive(&mut self, gap_ms: u64) {
        self.signs.iter_mut().for_each(|sign| sign.since_ms += gap_ms);
    }

    /// Who misses whom, of workers that live: no byte comes through between the two.
    pub(super) fn unreachable(&self) -> Vec<(WorkerId, WorkerId)> {
        let missed = |sign: &Sign| {
            let by = sign.worker;
            sign.unreachable.iter().map(move |of| (by, *of)).collect::<Vec<_>>()
        };
        self.signs.iter().flat_map(missed).collect()
    }

    /// One that is missed by a peer and has lost a peer itself: it lives, so their link is at fault.
    fn both_ends_live(&self) -> Option<&Sign> {
        let lost = Cause::Reported(FailureKind::PeerLost);
        let lives =
            |of: &WorkerId| self.signs.iter().any(|sign| sign.worker == *of && sign.cause == lost);
        self.signs.iter().find(|sign| sign.cause == lost && sign.unreachable.iter().any(lives))
    }

    /// `awaiting`: somebody may yet come back, so that who missed whom is open.
    pub(super) fn verdict(&self, now_ms: u64, awaiting: bool) -> Verdict {
        let ends = |sign: &&Sign| verdict_of(sign.cause) == Kind::EndsTheRun;
        if let Some(sign) = self.signs.iter().find(ends) {
            return Verdict::Ends(sign.clone());
        }
        let peers_miss = |worker| {
            let lost = Cause::Reported(FailureKind::PeerLost);
            self.signs.iter().any(|sign| sign.worker != worker && sign.cause == lost)
        };
        let certain = |sign: &&Sign| match verdict_of(sign.cause) {
            Kind::Lost => true,
            Kind::CutOff => now_ms >= sign.since_ms + RECONNECT_MS || peers_miss(sign.worker),
            Kind::EndsTheRun | Kind::MissesAPeer => false,
        };
        let at_fault: Vec<Sign> = self.signs.iter().filter(certain).cloned().collect();
        if !at_fault.is_empty() {
            return Verdict::AtFault(at_fault);
        }
        // With somebody cut off, that shows first who was missed.
        let cut_off = self.signs.iter().any(|sign| verdict_of(sign.cause) == Kind::CutOff);
        if let Some(sign) = self.both_ends_live().filter(|_| !cut_off && !awaiting) {
            return Verdict::Link(sign.clone());
        }
        match self.signs.first() {
            Some(sign) if !cut_off && !awaiting && now_ms >= sign.since_ms + GRACE_MS => {
                Verdict::Link(sign.clone())
            }
            Some(_) | None => Verdict::Wait,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    EndsTheRun,
    Lost,
    /// It may come back.
    CutOff,
    /// Seldom the cause.
    MissesAPeer,
}

fn verdict_of(cause: Cause) -> Kind {
    match cause {
        Cause::Reported(FailureKind::NonFinite | FailureKind::Data | FailureKind::Checkpoint) => {
            Kind::EndsTheRun
        }
        Cause::Reported(FailureKind::PeerLost) => Kind::MissesAPeer,
        Cause::HungUp => Kind::CutOff,
        Cause::Reported(FailureKind::Internal)
        | Cause::Exited
        | Cause::LeaseEnded
        | Cause::NotJoined
        | Cause::Plan
        | Cause::Checkpoint
        | Cause::Ledger
        | Cause::Protocol
        | Cause::Diverged
        | Cause::TooFew
        | Cause::Aborted => Kind::Lost,
    }
}

/// What one worker's signs say about it: its own words explain its end, and the way its process
/// ended explains its silence. That it missed a peer explains nothing of its own.
fn telling(cause: Cause) -> u8 {
    match (verdict_of(cause), cause) {
        (Kind::MissesAPeer, _) => 0,
        (Kind::CutOff, _) => 1,
        (_, Cause::Reported(_)) => 4,
        (_, Cause::Exited) => 3,
        (Kind::Lost | Kind::EndsTheRun, _) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: Cause = Cause::Reported(FailureKind::NonFinite);
    const LOST: Cause = Cause::Reported(FailureKind::PeerLost);
    const BUG: Cause = Cause::Reported(FailureKind::Internal);

    fn sign(worker: u32, cause: Cause) -> Sign {
        let what = format!("{cause:?}");
        let (worker, unreachable) = (WorkerId(worker), Vec::new());
        Sign { worker, cause, since_ms: 100, step: None, what, layer: None, unreachable }
    }

    fn signs(causes: &[(u32, Cause)]) -> Signs {
        let mut signs = Signs::default();
        for (worker, cause) in causes {
            signs.add(sign(*worker, *cause));
        }
        signs
    }

    #[track_caller]
    fn check(causes: &[(u32, Cause)], at_ms: u64, want: Verdict) {
        assert_eq!(signs(causes).verdict(at_ms, false), want);
    }

    fn at_fault(of: &[(u32, Cause)]) -> Verdict {
        Verdict::AtFault(of.iter().map(|(worker, cause)| sign(*worker, *cause)).collect())
    }

    #[test]
    fn an_exit_a_lease_and_an_own_word_are_certain_at_once_in_any_order() {
        for cause in [Cause::Exited, Cause::LeaseEnded, BUG] {
            check(&[(1, cause)], 100, at_fault(&[(1, cause)]));
            check(&[(0, LOST), (1, cause)], 100, at_fault(&[(1, cause)]));
            check(&[(1, cause), (0, LOST)], 100, at_fault(&[(1, cause)]));
        }
        check(&[(2, BUG), (1, Cause::Exited)], 100, at_fault(&[(2, BUG), (1, Cause::Exited)]));
        check(&[(1, Cause::HungUp), (1, Cause::Exited)], 100, at_fault(&[(1, Cause::Exited)]));
        check(&[(1, LOST), (1, Cause::Exited)], 100, at_fault(&[(1, Cause::Exited)]));
        check(&[(1, Cause::Exited), (1, BUG)], 100, at_fault(&[(1, BUG)]));
    }

    #[test]
    fn a_nan_ends_the_run_whoever_else_is_lost() {
        check(&[(0, LOST), (2, Cause::Exited), (1, NAN)], 100, Verdict::Ends(sign(1, NAN)));
    }

    #[test]
    fn a_connection_that_ended_may_be_taken_up_again_unless_peers_miss_the_worker_too() {
        let hung_up = (1, Cause::HungUp);
        check(&[hung_up], 100 + RECONNECT_MS - 1, Verdict::Wait);
        check(&[hung_up], 100 + RECONNECT_MS, at_fault(&[hung_up]));
        check(&[hung_up, (0, LOST)], 100, at_fault(&[hung_up]));
        // Its own word about a peer says nothing of itself.
        check(&[hung_up, (1, LOST)], 100, Verdict::Wait);
        let mut back = signs(&[hung_up]);
        back.is_back(WorkerId(1));
        assert_eq!(back.verdict(10_000, false), Verdict::Wait);
        // It is back, and still waits for a peer that it missed before.
        for order in [[(1, LOST), hung_up], [hung_up, (1, LOST)]] {
            let mut back = signs(&order);
            back.is_back(WorkerId(1));
            assert_eq!(back.verdict(10_000, false), Verdict::Link(sign(1, LOST)));
        }
    }

    #[test]
    fn if_all_live_the_link_is_at_fault() {
        check(&[(0, LOST), (1, LOST)], 100 + GRACE_MS - 1, Verdict::Wait);
        check(&[(0, LOST), (1, LOST)], 100 + GRACE_MS, Verdict::Link(sign(0, LOST)));
        let mut signs = signs(&[(0, LOST), (1, LOST)]);
        signs.settle();
        assert!(signs.is_empty());
    }

    #[test]
    fn a_link_is_at_fault_at_once_if_both_of_its_ends_have_spoken() {
        let misses =
            |worker, of: u32| Sign { unreachable: vec![WorkerId(of)], ..sign(worker, LOST) };
        let mut signs = signs(&[(0, LOST)]);
        signs.add(misses(1, 2));
        assert_eq!(signs.verdict(100, false), Verdict::Wait, "worker 2 may be gone");
        signs.add(sign(2, LOST));
        assert_eq!(signs.verdict(100, false), Verdict::Link(misses(1, 2)));
        assert_eq!(signs.unreachable(), [(WorkerId(1), WorkerId(2))]);
        signs.add(sign(3, Cause::HungUp));
        assert_eq!(
            signs.verdict(100, false),
            at_fault(&[(3, Cause::HungUp)]),
            "missed by the others"
        );
    }
}
