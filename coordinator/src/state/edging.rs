//! How workers come and go while the run is under way: all hosts end between the same two steps,
//! with their state in memory, and a new plan moves the cells. Nothing is taken back.

use shoal_plan::plan::{Generation, WorkerId};
use shoal_plan::standing::Standing;
use shoal_proto::ToWorker;

use super::recovering::Restart;
use super::{Ignored, Phase, State};
use crate::news::{Cause, News, Restored};

impl State {
    /// Asks for an edge if another plan would have other hosts, or other shares that pay: which is worked out when a
    /// step has measured something new.
    pub(super) fn change_hosts(&mut self, has_committed: bool) {
        if self.phase != Phase::Training || !self.signs.is_empty() {
            return;
        }
        let hosting: Vec<WorkerId> = self.hosts().map(|(worker, _)| worker).collect();
        let wanted = self.hosts_wanted();
        if self.hosts().any(|(_, host)| !host.connected || host.has_ended()) {
            return;
        }
        if self.pause_wanted {
            return self.ask_for_an_edge();
        }
        if wanted == hosting {
            if has_committed {
                self.move_shares_if_that_pays();
            }
            return;
        }
        let leaves = self.members.values().any(|member| member.hosts && member.leaving);
        let few = (wanted.len() as u32) < self.settings.job.workers.min;
        if few && leaves {
            // Nobody is there to hand over to.
            let hosts = self.members.iter().filter(|(_, member)| member.hosts && member.leaving);
            let leaving: Vec<WorkerId> = hosts.map(|(worker, _)| *worker).collect();
            for worker in leaving {
                self.let_go(worker);
            }
            return self.lose(None);
        }
        // Where too few are left because of those that yield, the run pauses at the edge.
        if few || self.are_prepared(&wanted) {
            self.ask_for_an_edge();
        }
    }

    fn ask_for_an_edge(&mut self) {
        self.phase = Phase::Edging;
        self.send_to_hosts(&ToWorker::Edge { generation: self.generation() });
    }

    fn move_shares_if_that_pays(&mut self) {
        let job = &self.settings.job;
        let left = job.training.steps.saturating_sub(self.committed);
        let plan = self.plan.as_ref().expect("a run that trains has a plan");
        if let Some(gain) = self.stragglers.pays(job, plan, (self.now_ms, left)) {
            self.news(News::SharesMove { what: gain });
            self.ask_for_an_edge();
        }
    }

    pub(super) fn at_edge(&mut self, worker: WorkerId, standing: Standing) {
        let phase = self.phase;
        let member = self.member(worker);
        let (connection, done, ended) = (member.connection, member.done, member.has_ended());
        if phase != Phase::Edging {
            return self.ignore(connection, Ignored::OutOfPhase(phase));
        }
        if standing.step != done || ended {
            let why = format!("at an edge after step {}: the last it did is {done}", standing.step);
            return self.fail(Cause::Protocol, Some(worker), why);
        }
        member.at_edge = Some(standing);
        self.edge_ms.get_or_insert(self.now_ms);
    }

    pub(super) fn move_when_all_are_at_the_edge(&mut self) {
        let waiting: Option<Vec<Standing>> = self.hosts().map(|(_, host)| host.at_edge).collect();
        let Some(waiting) = waiting.filter(|_| !self.is_over() && !self.parts.is_busy()) else {
            return;
        };
        if self.is_awaiting() {
            return;
        }
        let Some(standing) = waiting.first().copied() else { return };
        if let Some(other) = waiting.iter().find(|other| **other != standing) {
            let why = format!("workers are at the edge after {standing:?} and after {other:?}");
            return self.fail(Cause::Protocol, None, why);
        }
        if self.holdings.newest_complete(|held| *held == standing).is_none() {
            let why = format!("at the edge after step {} cells are in no memory", standing.step);
            return self.fail(Cause::Protocol, None, why);
        }
        if self.pause_wanted || !self.has_enough() {
            return self.lose(None);
        }
        self.take_back(&standing, None);
        let generation = Generation(self.generation().0 + 1);
        self.assign(generation, Restart { standing, source: Restored::Memory });
    }

    /// All train again.
    pub(super) fn tell_how_long_it_took(&mut self) {
        let generation = self.generation();
        let seconds = |since_ms: u64, now_ms: u64| now_ms.saturating_sub(since_ms) as f64 / 1e3;
        let (loss, edge_ms, now_ms) = (self.loss.take(), self.edge_ms.take(), self.now_ms);
        if let Some(loss) = loss {
            self.recoveries += u64::from(loss.sign.is_some());
            let seconds = seconds(loss.since_ms, now_ms);
            self.news(News::Recovered { generation, seconds });
        } else if let Some(edge_ms) = edge_ms {
            let (step, stall_seconds) = (self.start.step, seconds(edge_ms, now_ms));
            self.stragglers.stalled(stall_seconds);
            self.news(News::MovedAtEdge { generation, step, stall_seconds });
        }
    }

    /// Those that wanted to go have handed over.
    pub(super) fn let_leavers_go(&mut self) {
        let leaving = self.members.iter().filter(|(_, member)| member.leaving && !member.hosts);
        let leaving: Vec<WorkerId> = leaving.map(|(worker, _)| *worker).collect();
        for worker in leaving {
            self.let_go(worker);
        }
    }
}
