//! When a worker that died is started anew, and when no more. Pure: the time is an argument.
//!
//! Deaths are counted in a window that moves along, so that a machine that loses a worker once a
//! day never gives up, and one whose worker dies at every start does soon. A worker that had lived
//! for a while is wanted back quickly, however often it died before: only deaths soon after a start
//! make the next wait longer.

use std::collections::BTreeMap;

/// `workers.restarts` are counted over so long.
pub(crate) const WINDOW_SECONDS: f64 = 600.0;

/// The first wait; each death soon after a start doubles it.
const WAIT_SECONDS: f64 = 0.5;
const WAIT_SECONDS_MAX: f64 = 30.0;

/// A worker that lived for so long had started well.
const GOOD_LIFE_SECONDS: f64 = 60.0;

/// What becomes of a worker that exited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Next {
    /// It is started again, for the nth time within the window.
    Again { in_seconds: f64, nth: u32 },
    /// It died too often: this many times within the window.
    GivenUp { times: u32 },
    /// It was asked to go and does not come back.
    Left,
}

/// All processes of a kind that a launch has started, by name.
#[derive(Clone, Debug)]
pub(crate) struct Restarts<Name> {
    /// So often within the window.
    allowed: u32,
    lives: BTreeMap<Name, Life>,
}

#[derive(Clone, Debug)]
struct Life {
    now: Now,
    /// When it died, within the window.
    deaths: Vec<f64>,
    /// Deaths soon after a start, without a good life in between.
    short_lives: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Now {
    Runs { since: f64 },
    Waits { until: f64 },
    Gone,
}

impl<Name: Copy + Ord> Restarts<Name> {
    /// All `workers` were started at `now`, in seconds on any clock that does not go back.
    pub(crate) fn new(workers: impl Iterator<Item = Name>, allowed: u32, now: f64) -> Self {
        let life = Life { now: Now::Runs { since: now }, deaths: Vec::new(), short_lives: 0 };
        Self { allowed, lives: workers.map(|worker| (worker, life.clone())).collect() }
    }

    /// A worker's process has ended; `asked`: because somebody wanted it to.
    pub(crate) fn exited(&mut self, worker: Name, asked: bool, now: f64) -> Next {
        let allowed = self.allowed;
        let Some(life) = self.lives.get_mut(&worker) else { return Next::Left };
        let Now::Runs { since } = life.now else { return Next::Left };
        life.now = Now::Gone;
        if asked {
            return Next::Left;
        }
        life.deaths.retain(|death| now - death < WINDOW_SECONDS);
        life.deaths.push(now);
        let was_short = now - since < GOOD_LIFE_SECONDS;
        life.short_lives = if was_short { life.short_lives + 1 } else { 0 };
        let times = life.deaths.len() as u32;
        if times > allowed {
            return Next::GivenUp { times };
        }
        // 2^6 is past the longest wait already.
        let doublings = life.short_lives.saturating_sub(1).min(6);
        let in_seconds = (WAIT_SECONDS * f64::from(1 << doublings)).min(WAIT_SECONDS_MAX);
        life.now = Now::Waits { until: now + in_seconds };
        Next::Again { in_seconds, nth: times }
    }

    /// Another machine has a worker's place: what was held against the one before is past.
    pub(crate) fn begins_anew(&mut self, worker: Name, now: f64) {
        let life = Life { now: Now::Runs { since: now }, deaths: Vec::new(), short_lives: 0 };
        self.lives.insert(worker, life);
    }

    /// Who is to be started now. Each is named once: it counts as running from here on.
    pub(crate) fn due(&mut self, now: f64) -> Vec<Name> {
        let is_due = |life: &Life| matches!(life.now, Now::Waits { until } if until <= now);
        let mut due = Vec::new();
        for (worker, life) in self.lives.iter_mut().filter(|(_, life)| is_due(life)) {
            life.now = Now::Runs { since: now };
            due.push(*worker);
        }
        due
    }

    /// How many run or will be started again.
    pub(crate) fn left(&self) -> u32 {
        self.lives.values().filter(|life| life.now != Now::Gone).count() as u32
    }
}

#[cfg(test)]
mod tests {
    use shoal_plan::plan::WorkerId;

    use super::*;

    const W: WorkerId = WorkerId(1);

    fn restarts(allowed: u32) -> Restarts<WorkerId> {
        Restarts::new((0..3).map(WorkerId), allowed, 0.0)
    }

    /// The worker dies as soon as it is started, until it is given up; returns the waits.
    fn waits(mut restarts: Restarts<WorkerId>) -> (Vec<f64>, u32) {
        let (mut now, mut waits) = (0.0, Vec::new());
        loop {
            match restarts.exited(W, false, now) {
                Next::Again { in_seconds, nth } => {
                    waits.push(in_seconds);
                    assert_eq!(nth as usize, waits.len());
                    assert!(restarts.due(now + 0.9 * in_seconds).is_empty(), "not before its time");
                    now += in_seconds;
                    assert_eq!(restarts.due(now), [W]);
                    assert!(restarts.due(now).is_empty(), "once");
                }
                Next::GivenUp { times } => {
                    assert_eq!(restarts.left(), 2);
                    assert!(restarts.due(1e9).is_empty());
                    return (waits, times);
                }
                Next::Left => panic!("nobody asked it"),
            }
        }
    }

    #[test]
    fn a_worker_that_dies_at_every_start_waits_longer_each_time_and_is_given_up() {
        assert_eq!(waits(restarts(5)), (vec![0.5, 1.0, 2.0, 4.0, 8.0], 6));
        assert_eq!(waits(restarts(0)), (vec![], 1));
        let (many, _) = waits(restarts(9));
        assert_eq!(many[5..], [16.0, 30.0, 30.0, 30.0], "the wait has an end");
    }

    #[test]
    fn a_worker_that_had_lived_well_is_back_at_once_but_its_deaths_count() {
        let mut restarts = restarts(5);
        let mut now = 0.0;
        for nth in 1..=5 {
            now += GOOD_LIFE_SECONDS;
            assert_eq!(restarts.exited(W, false, now), Next::Again { in_seconds: 0.5, nth });
            now += 0.5;
            restarts.due(now);
        }
        now += GOOD_LIFE_SECONDS;
        assert_eq!(restarts.exited(W, false, now), Next::GivenUp { times: 6 });
    }

    #[test]
    fn deaths_of_long_ago_are_forgotten() {
        let mut restarts = restarts(1);
        for day in 0..10 {
            let now = f64::from(day) * 2.0 * WINDOW_SECONDS;
            let next = restarts.exited(W, false, now);
            assert_eq!(next, Next::Again { in_seconds: 0.5, nth: 1 }, "day {day}");
            assert_eq!(restarts.due(now + 1.0), [W]);
        }
    }

    #[test]
    fn a_worker_that_was_asked_to_go_does_not_come_back() {
        let mut restarts = restarts(5);
        assert_eq!(restarts.exited(W, true, 1.0), Next::Left);
        assert_eq!(restarts.left(), 2);
        assert!(restarts.due(1e9).is_empty());
        assert_eq!(restarts.exited(W, false, 2.0), Next::Left, "it is gone already");
        assert_eq!(restarts.exited(WorkerId(7), false, 2.0), Next::Left, "nobody's worker");
    }
}
