//! Losses, recoveries and moves: the one line that a person reads, what goes into the log of events,
//! and how long a recovery took. Pure: the time is an argument.

use std::collections::BTreeMap;

use shoal_coordinator::{News, Restored};
use shoal_plan::plan::{Generation, WorkerId};

use crate::events::Kind;

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Incident {
    pub kind: Kind,
    pub worker: Option<WorkerId>,
    /// With the worker in a column of its own.
    pub fact: String,
    /// The plan that it brought, if it brought one.
    pub generation: Option<Generation>,
}

/// Measures from the moment a worker was lost to the first step that is committed after it.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    /// When the process of a worker was seen to end that is not yet evicted, in seconds.
    exited: BTreeMap<WorkerId, f64>,
    /// Since when somebody is lost.
    lost: Option<f64>,
    stage: Stage,
    /// When a worker was last called slow.
    slow: BTreeMap<WorkerId, f64>,
}

/// A worker is called slow at most so often: on a busy machine it is slow now and then.
const SLOW_SECONDS: f64 = 60.0;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Steps come, or would if nobody were lost.
    #[default]
    Trains,
    /// There is no plan, or not all of it are ready.
    Waits,
    /// All train; the next step that is committed is the first.
    Restarted,
}

impl Incident {
    /// Of the news that are one.
    pub(super) fn of(news: &News) -> Option<Self> {
        let (kind, worker, fact, generation) = match news {
            News::Evicted { worker, what, .. } => {
                (Kind::Evicted, Some(*worker), what.clone(), None)
            }
            News::Recovering { generation, from_step, to_step, workers, source } => {
                let fact = going_on(*workers, (*from_step, *to_step), *source);
                (Kind::Recovering, None, fact, Some(*generation))
            }
            News::Rejoined { worker } => {
                (Kind::Rejoined, Some(*worker), "it was lost before".to_owned(), None)
            }
            News::JoinedLate { worker } => {
                (Kind::JoinedLate, Some(*worker), "the run was under way".to_owned(), None)
            }
            News::Draining { worker } => {
                (Kind::Draining, Some(*worker), "as somebody ordered".to_owned(), None)
            }
            News::Left { worker } => {
                (Kind::Left, Some(*worker), "as it was asked to".to_owned(), None)
            }
            News::MovedAtEdge { generation, step, stall_seconds } => {
                let fact = format!("cells moved at step {step}, stalled {stall_seconds:.3} s");
                (Kind::Moved, None, fact, Some(*generation))
            }
            News::Quarantined { worker, seconds, times } => {
                let fact = format!("for {seconds} s: lost {times} times in two minutes");
                (Kind::Quarantined, Some(*worker), fact, None)
            }
            News::Parted { worker, from, seconds } => {
                let fact = format!("for {seconds} s: no packet comes through to {from}");
                (Kind::Quarantined, Some(*worker), fact, None)
            }
            News::Paused { have, want, asked } => {
                (Kind::Paused, None, why_paused((*have, *want), *asked), None)
            }
            News::Resumed => (Kind::Resumed, None, "nothing is waited for".to_owned(), None),
            News::Straggler { worker, ratio } => {
                let fact = format!("it takes {ratio:.1} times as long as the others");
                (Kind::Straggler, Some(*worker), fact, None)
            }
            News::SharesMove { what } => (Kind::Shares, None, what.clone(), None),
            News::Prepared { worker, cells, step, seconds } => {
                let fact =
                    format!("{cells} cells hold step {step}, {seconds:.1} s after its asking");
                (Kind::Prepared, Some(*worker), fact, None)
            }
            News::Yielding { worker, reason } => {
                let (kind, fact) = match reason {
                    Some(reason) => (Kind::Yielding, reason.clone()),
                    None => (Kind::Available, "nobody else needs its machine".to_owned()),
                };
                (kind, Some(*worker), fact, None)
            }
            News::Diverged { what, .. } => (Kind::Diverged, None, what.clone(), None),
            // The launcher knows how long the coordinator was away.
            News::CaughtUp { .. }
            | News::StopAsked { .. }
            | News::Joined { .. }
            | News::Planned(_)
            | News::Started
            | News::Step(_)
            | News::Evaluated { .. }
            | News::RolledBack { .. }
            | News::CheckpointCommitted { .. }
            | News::CheckpointFailed { .. }
            | News::Recovered { .. }
            | News::Finished { .. }
            | News::Failed(_) => return None,
        };
        Some(Self { kind, worker, fact, generation })
    }

    /// `worker-2 is lost: killed by signal 9`, `paused: 0 of 1 workers`.
    pub(super) fn line(&self) -> String {
        let Self { kind, fact, .. } = self;
        let worker = self.worker.map_or_else(String::new, |worker| worker.to_string());
        match kind {
            Kind::Evicted => format!("{worker} is lost: {fact}"),
            Kind::Rejoined => format!("{worker} is back"),
            Kind::JoinedLate => format!("{worker} has joined"),
            Kind::Draining => format!("{worker} is to hand over and leave"),
            Kind::Left => format!("{worker} has handed over its cells and left"),
            Kind::Quarantined => format!("{worker} is quarantined {fact}"),
            Kind::Straggler => format!("{worker} is slow: {fact}"),
            Kind::Prepared => format!("{worker} has caught up: {fact}"),
            Kind::Yielding => format!("{worker} gives way: {fact}"),
            Kind::Available => format!("{worker} may work again"),
            Kind::Paused => format!("paused: {fact}"),
            Kind::Resumed => "resumed".to_owned(),
            Kind::Recovering
            | Kind::Moved
            | Kind::Shares
            | Kind::Diverged
            | Kind::Launched
            | Kind::Joined
            | Kind::Started
            | Kind::Exited
            | Kind::Restarted
            | Kind::GivenUp
            | Kind::CoordinatorExited
            | Kind::CoordinatorBack
            | Kind::Recovered
            | Kind::RolledBack
            | Kind::CheckpointFailed
            | Kind::Finished
            | Kind::Stopped
            | Kind::Failed => fact.clone(),
        }
    }
}

fn why_paused((have, want): (u32, u32), asked: bool) -> String {
    if asked {
        return "as it was asked to; `shoal resume` goes on".to_owned();
    }
    format!("{have} of {want} workers")
}

/// `going on with 3 workers from step 40 (from memory; 2 committed steps are done again)`.
fn going_on(workers: u32, (from, to): (u64, u64), source: Restored) -> String {
    let workers = match workers {
        1 => "1 worker".to_owned(),
        n => format!("{n} workers"),
    };
    let source = match source {
        Restored::Memory => "from memory",
        Restored::Checkpoint => "from the checkpoint",
        Restored::Seed => "from the start",
    };
    let again = match from.saturating_sub(to) {
        0 => String::new(),
        1 => "; 1 committed step is done again".to_owned(),
        n => format!("; {n} committed steps are done again"),
    };
    format!("going on with {workers} from step {to} ({source}{again})")
}

impl Recovery {
    /// A worker's process was seen to end, for no good reason.
    pub(super) fn exited(&mut self, worker: WorkerId, now: f64) {
        self.exited.insert(worker, now);
    }

    /// Whether people are to be told.
    pub(super) fn is_worth_a_line(&mut self, news: &News, now: f64) -> bool {
        let News::Straggler { worker, .. } = news else { return true };
        let before = self.slow.get(worker).copied();
        let is_due = before.is_none_or(|before| now - before >= SLOW_SECONDS);
        if is_due {
            self.slow.insert(*worker, now);
        }
        is_due
    }

    pub(super) fn heard(&mut self, news: &News, now: f64) {
        match news {
            News::Evicted { worker, .. } => {
                let at = self.exited.remove(worker).unwrap_or(now);
                self.lost.get_or_insert(at);
            }
            News::Recovering { .. } => {
                // Nobody needs to be lost: it may be the link between two.
                self.lost.get_or_insert(now);
                self.stage = Stage::Waits;
            }
            News::Paused { .. } => self.stage = Stage::Waits,
            News::Recovered { .. } => self.stage = Stage::Restarted,
            News::CaughtUp { .. }
            | News::Joined { .. }
            | News::Planned(_)
            | News::Started
            | News::Step(_)
            | News::Evaluated { .. }
            | News::RolledBack { .. }
            | News::CheckpointCommitted { .. }
            | News::CheckpointFailed { .. }
            | News::Rejoined { .. }
            | News::JoinedLate { .. }
            | News::Left { .. }
            | News::Draining { .. }
            | News::StopAsked { .. }
            | News::Resumed
            | News::Quarantined { .. }
            | News::Parted { .. }
            | News::SharesMove { .. }
            | News::Prepared { .. }
            | News::Yielding { .. }
            | News::Diverged { .. }
            | News::Straggler { .. }
            | News::MovedAtEdge { .. }
            | News::Finished { .. }
            | News::Failed(_) => {}
        }
    }

    /// A step is committed. `Some` when it is the first after a loss: seconds since the loss.
    pub(super) fn stepped(&mut self, now: f64) -> Option<f64> {
        match self.stage {
            // The last steps of the old plan.
            Stage::Waits => None,
            Stage::Restarted => {
                self.stage = Stage::Trains;
                self.lost.take().map(|lost| now - lost)
            }
            // The one that is lost had no part in the plan: nothing had to be recovered.
            Stage::Trains => {
                self.lost = None;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_coordinator::Cause;

    use super::*;

    fn evicted(worker: u32) -> News {
        let (worker, what) = (WorkerId(worker), "killed by signal 9".to_owned());
        News::Evicted { worker, cause: Cause::Exited, what }
    }

    fn recovering(from_step: u64, to_step: u64, source: Restored) -> News {
        News::Recovering { generation: Generation(2), from_step, to_step, workers: 3, source }
    }

    fn recovered() -> News {
        News::Recovered { generation: Generation(2), seconds: 0.5 }
    }

    #[track_caller]
    fn says(news: &News, want: &str) {
        assert_eq!(Incident::of(news).unwrap().line(), want);
    }

    #[test]
    fn each_is_one_line() {
        says(&evicted(2), "worker-2 is lost: killed by signal 9");
        says(
            &recovering(42, 40, Restored::Memory),
            "going on with 3 workers from step 40 (from memory; 2 committed steps are done again)",
        );
        says(
            &recovering(41, 40, Restored::Checkpoint),
            "going on with 3 workers from step 40 (from the checkpoint; 1 committed step is done again)",
        );
        says(
            &recovering(0, 0, Restored::Seed),
            "going on with 3 workers from step 0 (from the start)",
        );
        says(&News::Paused { have: 0, want: 1, asked: false }, "paused: 0 of 1 workers");
        let asked = News::Paused { have: 1, want: 1, asked: true };
        says(&asked, "paused: as it was asked to; `shoal resume` goes on");
        let worker = WorkerId(2);
        says(&News::Rejoined { worker }, "worker-2 is back");
        says(
            &News::Parted { worker, from: WorkerId(1), seconds: 20 },
            "worker-2 is quarantined for 20 s: no packet comes through to worker-1",
        );
        says(
            &News::Quarantined { worker, seconds: 60, times: 3 },
            "worker-2 is quarantined for 60 s: lost 3 times in two minutes",
        );
        let moved = News::MovedAtEdge { generation: Generation(3), step: 58, stall_seconds: 0.21 };
        says(&moved, "cells moved at step 58, stalled 0.210 s");
        assert_eq!(Incident::of(&moved).unwrap().generation, Some(Generation(3)));
        assert_eq!(Incident::of(&recovered()), None, "the first step says it");
    }

    #[test]
    fn a_recovery_is_measured_from_the_exit_to_the_first_new_step() {
        let mut recovery = Recovery::default();
        assert_eq!(recovery.stepped(9.0), None);
        recovery.exited(WorkerId(2), 10.0);
        recovery.heard(&evicted(2), 10.25);
        recovery.heard(&recovering(42, 40, Restored::Memory), 10.25);
        assert_eq!(recovery.stepped(10.5), None, "a late word of the old plan");
        recovery.heard(&recovered(), 11.0);
        assert_eq!(recovery.stepped(11.5), Some(1.5));
        assert_eq!(recovery.stepped(12.0), None);
    }

    #[test]
    fn a_recovery_from_a_broken_link_counts_without_a_lost_worker() {
        let mut recovery = Recovery::default();
        let (worker, from) = (WorkerId(2), WorkerId(1));
        recovery.heard(&News::Parted { worker, from, seconds: 20 }, 10.0);
        recovery.heard(&recovering(42, 40, Restored::Memory), 10.0);
        recovery.heard(&recovered(), 10.5);
        assert_eq!(recovery.stepped(11.0), Some(1.0));
    }

    #[test]
    fn a_second_loss_on_the_way_counts_from_the_first() {
        let mut recovery = Recovery::default();
        recovery.heard(&evicted(2), 10.0);
        recovery.heard(&recovering(42, 40, Restored::Memory), 10.0);
        recovery.heard(&evicted(1), 10.5);
        recovery.heard(&recovering(40, 40, Restored::Memory), 10.5);
        recovery.heard(&recovered(), 11.0);
        assert_eq!(recovery.stepped(12.0), Some(2.0));
    }

    #[test]
    fn a_slow_worker_is_named_once_a_minute_and_everything_else_each_time() {
        let mut recovery = Recovery::default();
        let slow = News::Straggler { worker: WorkerId(1), ratio: 2.0 };
        let mut told = |at| recovery.is_worth_a_line(&slow, at);
        assert_eq!([0.0, 1.0, 59.0, 60.0, 61.0].map(&mut told), [true, false, false, true, false]);
        assert!((0..3).all(|_| recovery.is_worth_a_line(&evicted(1), 0.0)));
    }

    #[test]
    fn the_loss_of_a_worker_without_cells_is_no_recovery() {
        let mut recovery = Recovery::default();
        recovery.heard(&evicted(2), 10.0);
        assert_eq!(recovery.stepped(10.5), None);
        recovery.heard(&evicted(1), 20.0);
        recovery.heard(&recovering(42, 40, Restored::Memory), 20.0);
        recovery.heard(&recovered(), 21.0);
        assert_eq!(recovery.stepped(21.0), Some(1.0));
    }
}
