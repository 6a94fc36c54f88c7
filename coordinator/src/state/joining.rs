//! How a run begins: workers join, the plan is made, all get ready, training starts.

use shoal_plan::plan::{Generation, WorkerId};
use shoal_proto::{Assign, Hello, ToWorker};

use super::{ConnectionId, Effect, Ignored, Member, Phase, State};
use crate::news::{Cause, News};

impl State {
    pub(super) fn join(&mut self, connection: ConnectionId, hello: Hello) {
        if let Err(reason) = self.may_join(connection, &hello) {
            return self.effects.push(Effect::Close { connection, reason });
        }
        let member = Member {
            connection,
            connected: true,
            address: hello.data_address,
            vault: hello.vault_address,
            heard_ms: self.now_ms,
            ready: false,
            done: self.committed,
            finished: None,
            going_back: None,
        };
        self.members.insert(hello.worker, member);
        let (joined, wanted) = (self.members.len() as u32, self.settings.workers_wanted);
        self.news(News::Joined { worker: hello.worker, pid: hello.pid, joined, wanted });
    }

    fn may_join(&self, connection: ConnectionId, hello: &Hello) -> Result<(), String> {
        let wanted = self.settings.workers_wanted;
        let run = &self.settings.run;
        if hello.run != *run {
            return Err(format!("this is run {}, not run {}", run.0, hello.run.0));
        }
        if hello.worker.0 >= wanted {
            return Err(format!("{} is not of this run, which wants {wanted}", hello.worker));
        }
        let mut addresses = [hello.data_address, hello.vault_address].into_iter();
        if let Some(address) = addresses.find(|address| !address.ip().is_loopback()) {
            return Err(format!("{address} is not on this machine: without TLS nothing leaves it"));
        }
        if let Some(known) = self.worker_of(connection) {
            return Err(format!("this session is {known}'s, and a session says hello once"));
        }
        if self.members.contains_key(&hello.worker) {
            return Err(format!("{} has joined already", hello.worker));
        }
        Ok(())
    }

    pub(super) fn plan_when_all_are_here(&mut self) {
        if (self.members.len() as u32) < self.settings.workers_wanted {
            return;
        }
        self.assign(Generation(1));
    }

    /// Tells everybody what to build, and from where to go on.
    pub(super) fn assign(&mut self, generation: Generation) {
        let workers: Vec<_> = self.members.keys().copied().collect();
        let job = &self.settings.job;
        let plan = match (self.settings.make_plan)(job, &workers, generation) {
            Ok(plan) => plan,
            Err(why) => return self.fail(Cause::Plan, None, why),
        };
        let peers = self.members.iter().map(|(worker, member)| (*worker, member.address)).collect();
        let (run, job) = (self.settings.run.clone(), job.clone());
        let standing = self.start;
        let resume_from = Some(standing.step).filter(|step| *step > 0);
        let vaults = self.members.iter().map(|(worker, member)| (*worker, member.vault)).collect();
        let assign = Assign {
            run,
            plan: plan.clone(),
            job,
            peers,
            resume_from,
            standing,
            vaults,
            sources: vec![],
        };
        self.phase = Phase::Preparing;
        self.plan = Some(plan.clone());
        self.news(News::Planned(plan));
        self.send_to_all(&ToWorker::Assign(Box::new(assign)));
    }

    pub(super) fn ready(&mut self, worker: WorkerId) {
        if self.phase != Phase::Preparing || self.member(worker).ready {
            let connection = self.member(worker).connection;
            return self.ignore(connection, Ignored::OutOfPhase(self.phase));
        }
        self.member(worker).ready = true;
    }

    pub(super) fn start_when_all_are_ready(&mut self) {
        if self.members.values().all(|member| member.ready) {
            self.phase = Phase::Training;
            self.news(News::Started);
            self.send_to_all(&ToWorker::Start { generation: self.generation() });
        }
    }
}
