//! What is counted of a cluster, and which rigs are at which run, for those who look on.

use std::collections::{BTreeMap, BTreeSet};

use super::Cluster;
use crate::watching::Watched;
use crate::words::RigIs;

/// A rig, as it is now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RigFigures<'a> {
    pub name: &'a str,
    pub is: RigIs,
    /// None: this process has not heard it.
    pub heard_seconds_ago: Option<f64>,
    pub disk_free_mb: u64,
}

impl Cluster {
    /// Every rig that has joined. As `ask` has it, in one pass over ten thousand of them.
    pub fn rig_figures(&self) -> impl Iterator<Item = RigFigures<'_>> {
        let here: BTreeSet<&str> =
            self.sessions.values().map(|session| session.rig.as_str()).collect();
        let under_way = self.jobs.values().filter(|job| job.phase.is_under_way());
        let seated: BTreeSet<&str> =
            under_way.flat_map(|job| job.seats.values()).map(String::as_str).collect();
        self.rigs.iter().map(move |(name, record)| RigFigures {
            name,
            is: match (here.contains(name.as_str()), seated.contains(name.as_str())) {
                (false, _) => RigIs::Away,
                (true, true) => RigIs::Busy,
                (true, false) => RigIs::Free,
            },
            heard_seconds_ago: (self.heard_ms.get(name))
                .map(|at| self.now_ms.saturating_sub(*at) as f64 / 1e3),
            disk_free_mb: record.facts.disk_free_mb,
        })
    }

    /// Tokens that let somebody in still.
    pub fn good_tokens(&self, unix: u64) -> usize {
        self.tokens.values().filter(|token| token.is_good(unix)).count()
    }

    /// Runs under way, each with the rigs of its workers that are here.
    pub fn watched(&self) -> Vec<Watched> {
        let here: BTreeSet<&str> =
            self.sessions.values().map(|session| session.rig.as_str()).collect();
        let runs =
            self.jobs.iter().filter(|(_, job)| job.phase.is_under_way() && job.run.is_some());
        let of_job = |(name, job): (&String, &super::JobRecord)| Watched {
            job: name.clone(),
            rigs: (job.seats.iter())
                .filter(|(_, rig)| here.contains(rig.as_str()))
                .map(|(worker, rig)| (*worker, rig.clone()))
                .collect::<BTreeMap<_, _>>(),
        };
        runs.map(of_job).collect()
    }
}
