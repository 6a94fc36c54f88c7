//! A launch that is looked at from outside: its steps, its events, its workers.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::ledger::{Account, account};
use crate::place::{Launch, Place, signal, wait};

/// Longer than anything that a run promises.
pub(crate) const LIVENESS_SECONDS: u32 = 60;

pub(crate) struct Watched<'a> {
    pub(crate) place: &'a Place,
    pub(crate) launch: Launch,
    run: &'static str,
}

/// One line of `events.jsonl`.
pub(crate) struct Event {
    /// Seconds since 1970.
    pub(crate) time: f64,
    pub(crate) kind: String,
    pub(crate) fact: String,
}

impl<'a> Watched<'a> {
    /// Launches and waits until it trains.
    pub(crate) fn start(place: &'a Place, run: &'static str, settings: &[&str]) -> Self {
        let mut watched = Self { place, launch: place.launch(run, settings), run };
        watched.wait_until("the first steps", |watched| watched.steps() >= 10);
        watched
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.place.run_dir(self.run)
    }

    /// The account of the ledger so far.
    pub(crate) fn account(&self) -> Account {
        account(&self.run_dir())
    }

    /// Committed steps in force.
    pub(crate) fn steps(&self) -> u64 {
        self.account().steps
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        let text = fs::read_to_string(self.run_dir().join("events.jsonl")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let event = |value: Value| Event {
            time: value["time"].as_f64().unwrap(),
            kind: value["kind"].as_str().unwrap().to_owned(),
            fact: value["fact"].as_str().unwrap().to_owned(),
        };
        lines.map(event).collect()
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        self.events().iter().filter(|event| event.kind == kind).count()
    }

    /// When an event of this kind was last written.
    pub(crate) fn last(&self, kind: &str) -> Option<f64> {
        self.events().iter().rfind(|event| event.kind == kind).map(|event| event.time)
    }

    /// Number and process of every worker that is alive.
    pub(crate) fn workers(&self) -> Vec<(u32, u32)> {
        self.place.workers(self.run)
    }

    /// Fails with what the launch has said if it ends, or if it takes too long.
    #[track_caller]
    pub(crate) fn wait_until(&mut self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        wait(LIVENESS_SECONDS, &format!("{what}; see {}", self.launch.err.display()), || {
            if let Some(status) = self.launch.child.try_wait().unwrap() {
                let told = fs::read_to_string(&self.launch.err).unwrap();
                panic!("{status} before {what}:\n{told}");
            }
            is(self)
        });
    }

    /// Faults are over: it goes on, and stops when it is told to. Returns its last account.
    pub(crate) fn stop(mut self) -> Account {
        let steps = self.steps();
        self.wait_until("steps after the last fault", |watched| watched.steps() >= steps + 10);
        signal(self.launch.child.id(), "INT");
        let ended = self.launch.ended_within(LIVENESS_SECONDS);
        assert_eq!(ended.code, Some(130), "{}", ended.err);
        self.place.no_worker_is_left(self.run);
        self.account()
    }
}

/// The first figures of two runs of one manifest, which must be equal, as text. Returns how many.
#[track_caller]
pub(crate) fn equal_losses(place: &Place, one: &str, other: &str) -> usize {
    let (one, other) = (place.losses(one), place.losses(other));
    let n = one.len().min(other.len());
    for (step, (one, other)) in (1..).zip(one.iter().zip(&other)) {
        assert_eq!(one, other, "step {step}");
    }
    n
}

#[expect(clippy::disallowed_methods, reason = "measures real processes")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Comparable with the times of events.
#[expect(clippy::disallowed_methods, reason = "measures real processes")]
pub(crate) fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[expect(clippy::disallowed_methods, reason = "real processes need real time")]
pub(crate) fn sleep(time: Duration) {
    std::thread::sleep(time);
}
