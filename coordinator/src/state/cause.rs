//! Which of several bad signs is the cause. A worker that dies makes all its peers report that
//! they lost it, and often they are heard first: so the signs are collected for a short while.

use shoal_plan::plan::WorkerId;
use shoal_proto::FailureKind;

use crate::news::Cause;

/// How long signs are collected after the first. A launcher sees the exit of its child, and a
/// reader the end of a stream, within some milliseconds even on a busy machine.
pub(super) const GRACE_MS: u64 = 1_500;

/// One sign that the run cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sign {
    pub(super) worker: WorkerId,
    pub(super) cause: Cause,
    /// The step that was being computed, if the worker could say.
    pub(super) step: Option<u64>,
    pub(super) what: String,
    pub(super) layer: Option<String>,
}

/// At most one sign per worker, in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Signs {
    signs: Vec<Sign>,
    due_ms: Option<u64>,
}

impl Signs {
    /// Adds a sign, unless the worker has given a more telling one.
    pub(super) fn add(&mut self, now_ms: u64, sign: Sign) {
        self.due_ms.get_or_insert(now_ms + GRACE_MS);
        let Some(known) = self.signs.iter_mut().find(|known| known.worker == sign.worker) else {
            self.signs.push(sign);
            return;
        };
        if telling(sign.cause) > telling(known.cause) {
            *known = sign;
        }
    }

    /// The cause, once it is certain or the time to collect is over.
    pub(super) fn root(&self, now_ms: u64) -> Option<&Sign> {
        // `min_by_key` returns the first of equals: the sign that came first.
        let root = self.signs.iter().min_by_key(|sign| rank(sign.cause))?;
        let over = self.due_ms.is_some_and(|due_ms| due_ms <= now_ms);
        (over || rank(root.cause) == 0).then_some(root)
    }
}

/// What one worker's signs say about it: its own words explain its end, and the way its process
/// ended explains its silence.
fn telling(cause: Cause) -> u8 {
    match cause {
        Cause::Reported(_) => 2,
        Cause::Exited => 1,
        Cause::HungUp
        | Cause::LeaseEnded
        | Cause::NotJoined
        | Cause::Plan
        | Cause::Checkpoint
        | Cause::Ledger
        | Cause::Protocol
        | Cause::TooFew
        | Cause::Aborted => 0,
    }
}

/// Among workers: a NaN is agreed on by all and so needs no waiting; a lost peer is a consequence.
fn rank(cause: Cause) -> u8 {
    match cause {
        Cause::Reported(FailureKind::NonFinite) => 0,
        Cause::Reported(FailureKind::Checkpoint | FailureKind::Data | FailureKind::Internal)
        | Cause::Exited
        | Cause::HungUp
        | Cause::LeaseEnded
        | Cause::NotJoined
        | Cause::Plan
        | Cause::Checkpoint
        | Cause::Ledger
        | Cause::Protocol
        | Cause::TooFew
        | Cause::Aborted => 1,
        Cause::Reported(FailureKind::PeerLost) => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(worker: u32, cause: Cause) -> Sign {
        let what = format!("{cause:?}");
        Sign { worker: WorkerId(worker), cause, step: None, what, layer: None }
    }

    #[track_caller]
    fn check(causes: &[(u32, Cause)], want: (u32, Cause)) {
        let mut signs = Signs::default();
        for (worker, cause) in causes {
            signs.add(0, sign(*worker, *cause));
        }
        let root = signs.root(GRACE_MS).expect("the time to collect is over");
        assert_eq!((root.worker.0, root.cause), want);
    }

    const NAN: Cause = Cause::Reported(FailureKind::NonFinite);
    const LOST: Cause = Cause::Reported(FailureKind::PeerLost);
    const BUG: Cause = Cause::Reported(FailureKind::Internal);

    #[test]
    fn the_root_cause_wins_in_any_order() {
        check(&[(0, LOST)], (0, LOST));
        check(&[(0, LOST), (1, Cause::Exited)], (1, Cause::Exited));
        check(&[(1, Cause::Exited), (0, LOST)], (1, Cause::Exited));
        check(&[(0, LOST), (1, Cause::HungUp), (1, Cause::Exited)], (1, Cause::Exited));
        check(&[(0, LOST), (1, Cause::Exited), (1, Cause::HungUp)], (1, Cause::Exited));
        check(&[(0, LOST), (2, Cause::HungUp), (1, NAN)], (1, NAN));
        check(&[(0, BUG), (1, Cause::Exited)], (0, BUG));
    }

    #[test]
    fn a_worker_that_spoke_before_it_left_is_taken_at_its_word() {
        // Worker 0 lost worker 1 and left; its exit is no cause. Worker 1 is only slow to be seen.
        check(&[(0, LOST), (0, Cause::HungUp), (1, Cause::HungUp)], (1, Cause::HungUp));
        // The exit may even be seen before the words are read.
        check(&[(0, Cause::Exited), (0, LOST), (1, Cause::LeaseEnded)], (1, Cause::LeaseEnded));
        check(&[(0, Cause::Exited), (0, BUG)], (0, BUG));
    }

    #[test]
    fn only_a_nan_is_certain_at_once() {
        let mut signs = Signs::default();
        assert_eq!(signs.root(0), None);
        signs.add(100, sign(0, LOST));
        signs.add(900, sign(1, Cause::Exited));
        assert_eq!(signs.root(100 + GRACE_MS - 1), None);
        assert!(signs.root(100 + GRACE_MS).is_some());
        signs.add(901, sign(2, NAN));
        assert!(signs.root(901).is_some());
    }
}
