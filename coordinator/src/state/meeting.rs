//! How the workers of a run come together where not both of a pair can dial the other. A cluster's coordinator has
//! found that out of their rigs, and says it by their names; here it becomes the plan's, by workers.

use std::collections::BTreeMap;

use shoal_plan::plan::WorkerId;
use shoal_proto::{Meeting, Way};

use super::State;
use super::ordered::Reply;
use crate::control::{self, DIRECT, MEETINGS_MAX, WayStatus};

impl State {
    /// What holds from the next plan on. Two that stood apart over a way that is another one now are tried again.
    pub(super) fn meet(&mut self, meetings: Vec<control::Meeting>) -> Reply {
        if meetings.len() > MEETINGS_MAX {
            let n = meetings.len();
            return Err(format!("{n} pairs of rigs are more than the {MEETINGS_MAX} of one run"));
        }
        let before = std::mem::replace(&mut self.meetings, meetings);
        let way = |meetings: &[control::Meeting], rigs: &(String, String)| {
            meetings.iter().find(|meeting| meeting.rigs == *rigs).map(|meeting| meeting.way.clone())
        };
        for (ends, rigs) in self.pairs() {
            if way(&before, &rigs) != way(&self.meetings, &rigs) {
                self.apart.forget(ends);
            }
        }
        Ok(format!("{} pairs of rigs meet otherwise than usual", self.meetings.len()))
    }

    /// Of all that are here, for a plan.
    pub(super) fn meetings(&self) -> Vec<Meeting> {
        let rigs = self.rigs();
        let of = |rig: &str| rigs.get(rig).copied();
        let meeting = |meeting: &control::Meeting| {
            let (a, b) = (of(&meeting.rigs.0)?, of(&meeting.rigs.1)?);
            let way = match &meeting.way {
                control::Way::From(rig) => Way::From(of(rig)?),
                control::Way::Through { rig, at } => Way::Through { rig: rig.clone(), at: *at },
                control::Way::ThroughCoordinator => Way::ThroughDoor,
            };
            (a != b).then_some(Meeting { ends: (a.min(b), a.max(b)), way })
        };
        let mut meetings: Vec<Meeting> = self.meetings.iter().filter_map(meeting).collect();
        meetings.sort_by_key(|meeting| meeting.ends);
        meetings.dedup_by_key(|meeting| meeting.ends);
        meetings
    }

    /// For whoever asks.
    pub(super) fn ways(&self) -> Vec<WayStatus> {
        let known: BTreeMap<&(String, String), &control::Way> =
            self.meetings.iter().map(|meeting| (&meeting.rigs, &meeting.way)).collect();
        let way = |(workers, rigs): ((WorkerId, WorkerId), (String, String))| WayStatus {
            workers,
            way: known.get(&rigs).map_or_else(|| DIRECT.to_owned(), ToString::to_string),
        };
        self.pairs().into_iter().map(way).collect()
    }

    /// Who is on which rig.
    fn rigs(&self) -> BTreeMap<&str, WorkerId> {
        self.members
            .iter()
            .filter_map(|(worker, member)| Some((member.rig.as_deref()?, *worker)))
            .collect()
    }

    /// Each two workers that are here, and the names of their rigs, in order.
    fn pairs(&self) -> Vec<((WorkerId, WorkerId), (String, String))> {
        let here: Vec<_> = self
            .members
            .iter()
            .filter_map(|(worker, member)| Some((*worker, member.rig.as_deref()?)))
            .collect();
        let mut pairs = Vec::new();
        for (at, (first, rig)) in here.iter().enumerate() {
            for (second, other) in &here[at + 1..] {
                let rigs = (*rig.min(other), *rig.max(other));
                pairs.push(((*first, *second), (rigs.0.to_owned(), rigs.1.to_owned())));
            }
        }
        pairs
    }
}

#[cfg(test)]
mod tests;
