//! How a worker comes in, at the start or under way, and how its session is taken up again; how a
//! plan goes out and training starts.

use std::collections::BTreeMap;

use shoal_plan::pace::Devices;
use shoal_plan::plan::{Generation, Plan, WorkerId};
use shoal_proto::{Assign, Hello, Name, Resuming, ToWorker};

use super::history::History;
use super::member::Member;
use super::recovering::Restart;
use super::{ConnectionId, Effect, Event, Ignored, Phase, State};
use crate::news::{Cause, News, Restored};

impl State {
    pub(super) fn join(&mut self, connection: ConnectionId, hello: Hello) {
        if let Err(reason) = self.may_join(connection, &hello) {
            return self.effects.push(Effect::Close { connection, reason });
        }
        let worker = hello.worker;
        if hello.resuming.is_some() {
            return self.take_up(worker, connection);
        }
        if self.has_yet_to_build(&hello) {
            // All that it said was its hello: it says it again, to a coordinator that knows it.
            self.member(worker).received = 0;
            return self.take_up(worker, connection);
        }
        if let Some(old) = self.members.get(&worker) {
            let what = if old.is_process_of(&hello) {
                "the same process has begun anew"
            } else {
                "another process has taken its place"
            };
            self.evict(self.sign_of(worker, Cause::HungUp, what.to_owned()));
            if self.is_over() {
                return;
            }
        }
        let rig = self.proven.remove(&connection).map(|(_, rig)| rig);
        let member = Member::new(connection, &hello, rig.clone(), self.now_ms);
        self.members.insert(worker, member);
        self.effects.push(received(connection, 0));
        let history = self.histories.entry(worker).or_default();
        let was_here = std::mem::take(&mut history.gone);
        if history.rig != rig {
            // What was held against the place was another machine's doing.
            *history = History::of(rig);
        }
        history.left = false;
        let is_drained = history.drained;
        if self.phase == Phase::Gathering {
            let (joined, wanted) = (self.members.len() as u32, self.settings.workers_wanted);
            self.news(News::Joined { worker, pid: hello.pid, joined, wanted });
        } else if was_here {
            self.news(News::Rejoined { worker });
        } else {
            self.news(News::JoinedLate { worker });
        }
        if is_drained {
            // It was lost before it could go, and was started anew.
            self.wants_to_leave(worker, "somebody wanted it to");
        }
    }

    fn may_join(&self, connection: ConnectionId, hello: &Hello) -> Result<(), String> {
        let (wanted, worker) = (self.settings.workers_wanted, hello.worker);
        let run = &self.settings.run;
        if hello.run != *run {
            return Err(format!("this is run {}, not run {}", run.0, hello.run.0));
        }
        if worker.0 >= wanted {
            return Err(format!("{worker} is not of this run, which wants {wanted}"));
        }
        let proven = self.proven.get(&connection);
        if let Some((seat, rig)) = proven.filter(|(seat, _)| *seat != worker) {
            return Err(format!("rig {rig} is {seat} in this run, and spoke as {worker}"));
        }
        let mut addresses =
            [hello.data_address, hello.vault_address].into_iter().filter(|_| proven.is_none());
        if let Some(address) = addresses.find(|address| !address.ip().is_loopback()) {
            return Err(format!("{address} is not on this machine: without TLS nothing leaves it"));
        }
        if let Some(known) = self.worker_of(connection) {
            return Err(format!("this session is {known}'s, and a session says hello once"));
        }
        let member = self.members.get(&worker);
        match (hello.resuming, member.filter(|member| member.is_process_of(hello))) {
            (None, None) if member.is_some_and(|member| member.connected) => {
                Err(format!("{worker} has joined already"))
            }
            (None, _) => Ok(()),
            (Some(resuming), Some(_)) if self.is_under_way(resuming) => Ok(()),
            (Some(Resuming { generation, .. }), _) => {
                Err(format!("{worker} has no part in {generation} any more: say hello anew"))
            }
        }
    }

    /// Whether what a worker is at is the plan in force, or the one before, if the new one is out
    /// and has not reached it.
    fn is_under_way(&self, resuming: Resuming) -> bool {
        let current = self.plan.as_ref().map(|plan| plan.generation);
        current >= Some(resuming.generation)
    }

    /// A session that was cut off goes on over another connection: what is not sure to have
    /// arrived is said again, on both sides.
    fn take_up(&mut self, worker: WorkerId, connection: ConnectionId) {
        let now_ms = self.now_ms;
        let member = self.member(worker);
        let old = std::mem::replace(&mut member.connection, connection);
        let was_connected = std::mem::replace(&mut member.connected, true);
        member.awaited = false;
        member.heard_ms = now_ms;
        let (messages, hosts, ready) = (member.received, member.hosts, member.ready);
        if was_connected {
            let reason = "the session goes on over another connection".to_owned();
            self.effects.push(Effect::Close { connection: old, reason });
        }
        self.signs.is_back(worker);
        self.effects.push(received(connection, messages));
        if hosts {
            self.catch_up(connection, ready);
        }
    }

    /// Whatever of this was heard before is ignored.
    fn catch_up(&mut self, connection: ConnectionId, ready: bool) {
        let generation = self.generation();
        let mut send = |message| self.effects.push(Effect::Send { connection, message });
        match self.phase {
            Phase::Preparing if !ready => {
                let assign = self.assignment.clone().expect("a plan went out before");
                send(ToWorker::Assign(assign));
            }
            Phase::Training => send(ToWorker::Start { generation }),
            Phase::Stopping => {
                send(ToWorker::Start { generation });
                send(ToWorker::Stop { generation });
            }
            Phase::Edging => {
                send(ToWorker::Start { generation });
                send(ToWorker::Edge { generation });
            }
            Phase::Gathering
            | Phase::Preparing
            | Phase::Recovering
            | Phase::Paused
            | Phase::Ended => {}
        }
        let step = self.checkpointed.step;
        if step > self.start.step {
            send(ToWorker::CheckpointCommitted { generation, step });
        }
    }

    pub(super) fn plan_when_all_are_here(&mut self) {
        let fit = self.eligible().count() as u32;
        let yielding = self.members.values().filter(|member| member.is_only_yielding()).count();
        let here = fit + yielding as u32;
        if here >= self.settings.workers_first && fit >= self.settings.job.workers.min {
            self.assign(Generation(1), self.restart_from_disk());
        }
    }

    /// A connection that ends without a hello leaves nothing behind.
    pub(super) fn forget_what_was_proven(&mut self, event: &Event) {
        if let Event::HungUp { connection, .. } | Event::BadMessage { connection, .. } = event {
            self.proven.remove(connection);
        }
    }

    /// Tells those that host what to build, and from where to go on.
    pub(super) fn assign(&mut self, generation: Generation, restart: Restart) {
        let standing = restart.standing;
        let assign = match self.drafted(generation, &self.hosts_wanted(), restart) {
            Ok(assign) => assign,
            Err(why) => return self.fail(Cause::Plan, None, why),
        };
        let plan = assign.plan.clone();
        let start = (restart.source == Restored::Memory).then_some(standing.step);
        self.holdings.begin(start, &plan.hosts);
        for (worker, member) in &mut self.members {
            member.begin(plan.hosts.contains(worker), standing.step);
        }
        self.begin(plan, Box::new(assign));
    }

    /// A plan over these workers, and what its hosts would be told.
    pub(super) fn drafted(
        &self,
        generation: Generation,
        workers: &[WorkerId],
        restart: Restart,
    ) -> Result<Assign, String> {
        let Restart { standing, source } = restart;
        let job = &self.settings.job;
        let mut plan = (self.settings.make_plan)(job, workers, generation)?;
        self.stragglers.share(job, &mut plan, (self.plan.as_ref(), &self.devices()));
        let sources = match source {
            Restored::Memory => {
                let apart = |a, b| self.apart.are(a, b, self.now_ms);
                self.holdings.sources(standing.step, &plan.hosts, apart)
            }
            Restored::Checkpoint | Restored::Seed => Some(Vec::new()),
        };
        let sources = sources.expect("a snapshot is complete if a plan goes on from it");
        let hosts = self.members.iter().filter(|(worker, _)| plan.hosts.contains(worker));
        let peers = hosts.map(|(worker, host)| (*worker, host.address)).collect();
        // Whoever is connected may hold a snapshot.
        let vaults = self.members.iter().map(|(worker, member)| (*worker, member.vault)).collect();
        Ok(Assign {
            run: self.settings.run.clone(),
            plan,
            job: self.settings.job.clone(),
            peers,
            resume_from: (source == Restored::Checkpoint).then_some(standing.step),
            standing,
            vaults,
            sources,
            names: self.names(),
            meetings: self.meetings(),
        })
    }

    /// Of the rigs of all that are connected, where a cluster's door has seen their certificates. All or none: workers
    /// that know each other by certificate talk to nobody else.
    fn names(&self) -> BTreeMap<WorkerId, Name> {
        let name = |(worker, member): (&WorkerId, &Member)| {
            let rig = member.rig.as_ref()?;
            Some((*worker, rig.parse().ok()?))
        };
        self.members.iter().map(name).collect::<Option<_>>().unwrap_or_default()
    }

    /// How many each worker computes on.
    fn devices(&self) -> Devices {
        self.members.iter().map(|(worker, member)| (*worker, member.devices)).collect()
    }

    fn begin(&mut self, plan: Plan, assign: Box<Assign>) {
        self.phase = Phase::Preparing;
        self.start = assign.standing;
        self.signs.settle();
        self.stragglers.plan(&self.settings.job, &plan, &self.devices());
        self.plan = Some(plan.clone());
        self.assignment = Some(assign.clone());
        self.news(News::Planned(plan));
        self.send_to_hosts(&ToWorker::Assign(assign));
    }

    pub(super) fn ready(&mut self, worker: WorkerId) {
        if self.phase != Phase::Preparing || self.member(worker).ready {
            let connection = self.member(worker).connection;
            return self.ignore(connection, Ignored::OutOfPhase(self.phase));
        }
        self.member(worker).ready = true;
    }

    pub(super) fn start_when_all_are_ready(&mut self) {
        // One that is cut off would not hear it; its grace is short.
        if self.hosts().any(|(_, host)| !host.ready || !host.connected) {
            return;
        }
        self.phase = Phase::Training;
        self.news(News::Started);
        self.tempo.rest(self.now_ms);
        let generation = self.generation();
        self.send_to_hosts(&ToWorker::Start { generation });
        self.tell_how_long_it_took();
        self.let_leavers_go();
        if self.stop_wanted {
            self.stop();
        }
    }
}

pub(super) fn received(connection: ConnectionId, messages: u64) -> Effect {
    Effect::Send { connection, message: ToWorker::Received { messages } }
}
