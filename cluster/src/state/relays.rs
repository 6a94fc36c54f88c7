//! Who passes bytes on between rigs of which neither can dial the other: a rig that both reach, and where there is
//! none the cluster's own door. Relays are told whom they serve, and that a run is over.

use std::collections::BTreeMap;

use shoal_coordinator::control::Way;

use super::{Cluster, Effect, RigName, ToRig};
use crate::relaying::Served;

impl Cluster {
    /// The relay of a pair: the one it has while that will do, so that nothing moves without need.
    pub(super) fn relay_between(&self, (a, b): (&str, &str), known: Option<&Way>) -> Way {
        if let Some(way @ Way::Through { rig, .. }) = known
            && self.relay_at((a, b), rig).as_ref() == Some(way)
        {
            return way.clone();
        }
        let here = self.sessions.values().map(|session| &session.rig);
        let best = here.filter_map(|rig| Some((rig, self.relay_at((a, b), rig)?))).min_by_key(
            |(rig, _)| {
                // One that does nothing else, then one that has nothing to do, then who relays the fewest.
                let is_there_for_it = self.rigs[*rig].facts.relay_only;
                (!is_there_for_it, self.seat_of(rig).is_some(), self.load_of(rig), (*rig).clone())
            },
        );
        best.map_or(Way::ThroughCoordinator, |(_, way)| way)
    }

    /// The way through a rig, if it is here and both reach it.
    fn relay_at(&self, (a, b): (&str, &str), rig: &str) -> Option<Way> {
        let session = self.sessions.values().find(|session| session.rig == rig)?;
        let record = self.rigs.get(rig).filter(|record| !record.cordoned)?;
        let reached = |from| self.reach.reaches(from, rig) == Some(true);
        if session.leaving || rig == a || rig == b || !reached(a) || !reached(b) {
            return None;
        }
        let at = (record.facts.address?, record.facts.probe_port?).into();
        Some(Way::Through { rig: rig.to_owned(), at })
    }

    /// Pairs that go through a rig.
    pub(super) fn load_of(&self, rig: &str) -> usize {
        let through = |way: &Way| matches!(way, Way::Through { rig: other, .. } if other == rig);
        let under_way = self.jobs.values().filter(|job| job.phase.is_under_way());
        under_way.flat_map(|job| &job.meetings).filter(|meeting| through(&meeting.way)).count()
    }

    /// Says to every relay that is here what it serves, where that has changed; to the door, too.
    pub(super) fn tell_relays(&mut self) {
        let (mut relays, mut door) = (BTreeMap::<RigName, Served>::new(), Served::new());
        let mut new: Vec<(String, RigName)> = Vec::new();
        for (name, job) in self.jobs.iter().filter(|(_, job)| job.phase.is_under_way()) {
            let Some(run) = job.run.as_ref().map(|run| run.run.clone()) else { continue };
            let mut serves = |relay: &RigName| {
                relays.entry(relay.clone()).or_default().entry(run.clone()).or_default();
            };
            job.relays.iter().for_each(&mut serves);
            for meeting in &job.meetings {
                let served = match &meeting.way {
                    Way::From(_) => continue,
                    Way::ThroughCoordinator => &mut door,
                    Way::Through { rig, .. } => {
                        if !job.relays.contains(rig) {
                            new.push((name.clone(), rig.clone()));
                        }
                        relays.entry(rig.clone()).or_default()
                    }
                };
                served.entry(run.clone()).or_default().insert(meeting.rigs.clone());
            }
        }
        for (job, rig) in new {
            if let Some(job) = self.change_job(&job) {
                job.relays.insert(rig);
            }
        }
        self.tell_served(&relays);
        if self.door_told != door {
            self.door_told.clone_from(&door);
            self.effects.push(Effect::Relay(door));
        }
    }

    fn tell_served(&mut self, relays: &BTreeMap<RigName, Served>) {
        let nothing = Served::new();
        let serves = |rig: &RigName| relays.get(rig).unwrap_or(&nothing);
        let can_be = |rig: &RigName| {
            self.rigs.get(rig).is_some_and(|record| record.facts.probe_port.is_some())
        };
        // One that has just come may serve what is over.
        let is_news = |rig: &RigName| self.relays_told.get(rig) != Some(serves(rig));
        let news: Vec<_> = (self.sessions.iter())
            .filter(|(_, session)| can_be(&session.rig) && is_news(&session.rig))
            .map(|(id, session)| (*id, session.rig.clone()))
            .collect();
        for (session, rig) in news {
            let served = serves(&rig).clone();
            self.relays_told.insert(rig, served.clone());
            self.effects.push(Effect::Tell { session, message: ToRig::Relay { served } });
        }
    }

    /// The runs that a relay was told to serve.
    #[cfg(test)]
    pub(super) fn relayed_runs(&self, rig: &str) -> Vec<shoal_plan::plan::RunId> {
        self.relays_told.get(rig).map_or_else(Vec::new, |served| served.keys().cloned().collect())
    }
}
