//! How the rigs of a run come together where not both of a pair can dial the other. A run is told before its workers
//! start, and whenever that changes; it counts for its next plan.

use shoal_coordinator::control::{MEETINGS_MAX, Meeting, Way};
use shoal_plan::plan::{RunId, WorkerId};

use super::{Cluster, Effect, JobName, JobPhase, RigName};

/// A run's coordinator that did not take it is told again so much later; its rim gives it 5 s to answer.
const AGAIN_MS: u64 = 1_000;
const ANSWER_MS: u64 = 10_000;

impl Cluster {
    /// Finds out what has changed, and tells it.
    pub(super) fn settle_meetings(&mut self) {
        for name in self.in_order(|job| job.phase.is_under_way()) {
            if let Some(meetings) = self.meetings_of(&name)
                && self.jobs[&name].meetings != meetings
                && let Some(job) = self.change_job(&name)
            {
                job.meetings = meetings;
            }
            self.tell_meetings(&name);
            self.start_what_waits(&name);
        }
        self.tell_relays();
    }

    /// Of the rigs with a seat; `None` while it is being found out.
    fn meetings_of(&self, name: &str) -> Option<Vec<Meeting>> {
        let job = &self.jobs[name];
        let mut rigs: Vec<&RigName> = job.seats.values().collect();
        rigs.sort();
        let mut meetings = Vec::new();
        for (at, first) in rigs.iter().enumerate() {
            for second in &rigs[at + 1..] {
                let awaited = |from, to| self.reach.is_awaited(from, to, self.now_ms);
                if awaited(first, second) || awaited(second, first) {
                    return None;
                }
                let pair = ((*first).clone(), (*second).clone());
                let known = job.meetings.iter().find(|known| known.rigs == pair);
                let way = self.way_between(&pair, known.map(|known| &known.way));
                meetings.extend(way.map(|way| Meeting { rigs: pair, way }));
            }
        }
        meetings.truncate(MEETINGS_MAX);
        Some(meetings)
    }

    /// `None`: both can dial, as far as anybody knows.
    fn way_between(&self, (a, b): &(RigName, RigName), known: Option<&Way>) -> Option<Way> {
        match (self.reach.reaches(a, b), self.reach.reaches(b, a)) {
            // Neither has tried since this process began, or since it came: what was so is so.
            (None, None) => known.cloned(),
            (Some(false), Some(true) | None) => Some(Way::From(b.clone())),
            (Some(true) | None, Some(false)) => Some(Way::From(a.clone())),
            (Some(false), Some(false)) => Some(self.relay_between((a, b), known)),
            (Some(true) | None, Some(true)) | (Some(true), None) => None,
        }
    }

    /// A run begins, and takes every pair for one of which both can dial.
    pub(super) fn meets_as_usual(&mut self, name: &str, run: RunId) {
        self.told.insert(name.to_owned(), (run, Vec::new()));
    }

    fn is_told(&self, name: &str) -> bool {
        let Some(job) = self.jobs.get(name) else { return false };
        let run = job.run.as_ref().map(|run| &run.run);
        let told = self.told.get(name);
        told.is_some_and(|(of, meetings)| Some(of) == run && *meetings == job.meetings)
    }

    fn tell_meetings(&mut self, name: &str) {
        let is_late = self.telling_until_ms.get(name).is_none_or(|until| *until <= self.now_ms);
        if self.is_told(name) || !is_late {
            return;
        }
        let job = &self.jobs[name];
        let (JobPhase::Running, Some(run)) = (job.phase, &job.run) else { return };
        let (run, meetings, job) = (run.run.clone(), job.meetings.clone(), name.to_owned());
        self.telling_until_ms.insert(name.to_owned(), self.now_ms + ANSWER_MS);
        self.effects.push(Effect::Meet { job, run, meetings });
    }

    /// A run was told, and has written it down; or not.
    pub fn met(&mut self, name: &str, run: RunId, meetings: Vec<Meeting>, taken: bool) {
        if !self.jobs.contains_key(name) {
            return;
        }
        if taken {
            self.telling_until_ms.remove(name);
            self.told.insert(name.to_owned(), (run, meetings));
        } else {
            self.telling_until_ms.insert(name.to_owned(), self.now_ms + AGAIN_MS);
        }
        self.settle_meetings();
    }

    /// Whether a worker can start without dialing in vain. If not, it starts when that is so.
    pub(super) fn may_start(&mut self, name: &str, worker: WorkerId) -> bool {
        if self.is_told(name) && self.meetings_of(name).is_some() {
            return true;
        }
        self.starts.insert((name.to_owned(), worker));
        false
    }

    fn start_what_waits(&mut self, name: &str) {
        let waits = |(job, _): &&(JobName, WorkerId)| job == name;
        let waiting: Vec<_> = self.starts.iter().filter(waits).cloned().collect();
        if waiting.is_empty() || !self.is_told(name) || self.meetings_of(name).is_none() {
            return;
        }
        for start in waiting {
            self.starts.remove(&start);
            self.order(name, start.1);
        }
    }

    /// Nothing of a run is left.
    pub(super) fn forget_meetings(&mut self, name: &str) {
        self.told.remove(name);
        self.telling_until_ms.remove(name);
        self.starts.retain(|(job, _)| job != name);
    }
}
