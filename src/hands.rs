//! Who carries a launch's workers: this machine, as children, or the rigs of a cluster, at the other end of a line.

use std::collections::{BTreeMap, BTreeSet};

use shoal_cluster::words::{FromLauncher, ToLauncher};
use shoal_plan::plan::WorkerId;

use crate::children::{Children, Exit};
use crate::line::Line;

pub(crate) enum Hands {
    Here(Box<Children>),
    Rigs(Rigs),
}

/// Workers on rigs, as far as is heard of them.
pub(crate) struct Rigs {
    line: Line,
    exited: Vec<(WorkerId, u32, Exit)>,
    last: BTreeMap<WorkerId, Exit>,
    seated: BTreeSet<WorkerId>,
}

impl Rigs {
    /// The first `n` workers have seats.
    pub(crate) fn new(line: Line, n: u32) -> Self {
        let seated = (0..n).map(WorkerId).collect();
        Self { line, exited: Vec::new(), last: BTreeMap::new(), seated }
    }

    fn heard(&mut self, word: &ToLauncher) {
        match word {
            ToLauncher::Exited { worker, pid, status } => {
                let exit = Exit::of(*status);
                self.exited.push((*worker, *pid, exit));
                self.last.insert(*worker, exit);
            }
            ToLauncher::Seated { worker, .. } => {
                self.seated.insert(*worker);
                self.last.remove(worker);
            }
            ToLauncher::Unseated { worker, .. } => {
                self.seated.remove(worker);
            }
            ToLauncher::Stop
            | ToLauncher::Superseded
            | ToLauncher::Beat { .. }
            | ToLauncher::Dial { .. } => {}
        }
    }
}

impl Hands {
    /// What the cluster's coordinator says of workers.
    pub(crate) fn heard(&mut self, word: &ToLauncher) {
        if let Self::Rigs(rigs) = self {
            rigs.heard(word);
        }
    }

    /// Starts a worker whose process has ended. On a rig: wants it started.
    pub(crate) fn start_one(&mut self, worker: WorkerId) -> anyhow::Result<()> {
        match self {
            Self::Here(children) => children.start_one(worker),
            Self::Rigs(rigs) => {
                rigs.last.remove(&worker);
                rigs.line.say(&FromLauncher::Start { worker });
                Ok(())
            }
        }
    }

    /// A worker's machine does not do: another one may try. Whether there may be another.
    pub(crate) fn give_up(&mut self, worker: WorkerId, why: &str) -> bool {
        match self {
            Self::Here(_) => false,
            Self::Rigs(rigs) => {
                rigs.line.say(&FromLauncher::GivenUp { worker, why: why.to_owned() });
                true
            }
        }
    }

    /// Workers that exited since the last call, the id of each process, and how it ended.
    pub(crate) fn newly_exited(&mut self) -> Vec<(WorkerId, u32, Exit)> {
        match self {
            Self::Here(children) => children.newly_exited(),
            Self::Rigs(rigs) => std::mem::take(&mut rigs.exited),
        }
    }

    /// How the last process of a worker ended, if it is known to have.
    pub(crate) fn exit_of(&self, worker: WorkerId) -> Option<Exit> {
        match self {
            Self::Here(children) => children.exit_of(worker),
            Self::Rigs(rigs) => rigs.last.get(&worker).copied(),
        }
    }

    pub(crate) fn all_exited(&self) -> bool {
        match self {
            Self::Here(children) => children.all_exited(),
            Self::Rigs(rigs) => rigs.seated.iter().all(|worker| rigs.last.contains_key(worker)),
        }
    }

    pub(crate) fn kill(&mut self) {
        match self {
            Self::Here(children) => children.kill(),
            Self::Rigs(rigs) => rigs.line.say(&FromLauncher::Kill),
        }
    }
}
