//! Processes and connections: they begin, keep their order, break, and end.

use shoal_plan::plan::{RunId, WorkerId};
use shoal_proto::Hello;
use shoal_worker::session::{Event, Session};

use crate::vault::Vault;
use crate::world::{What, Worker, World};

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) worker: WorkerId,
    pub(crate) pid: u32,
    /// The last delivery each way: what is said later comes later.
    pub(crate) up_ms: u64,
    pub(crate) down_ms: u64,
    /// The coordinator has closed it, or heard of its end.
    pub(crate) closed: bool,
    /// Broken: what was under way is lost.
    pub(crate) lost: bool,
}

impl World {
    pub(crate) fn spawn(&mut self, worker: WorkerId) {
        self.pids += 1;
        let pid = self.pids;
        let address = |base: u16| ([127, 0, 0, 1], base + pid as u16).into();
        let hello = Hello {
            run: RunId("run".into()),
            worker,
            data_address: address(10_000),
            pid,
            threads: 1,
            devices: 1,
            vault_address: address(30_000),
            resuming: None,
        };
        let (session, vault) = (Session::new(hello), Vault::default());
        let (link, engine, stopped, until_ms) = (None, None, false, 0);
        let process = Worker { pid, session, link, engine, vault, stopped, until_ms };
        self.workers.insert(worker, process);
        self.later((1, 30), What::Attempt { worker, pid });
        self.later((125, 125), What::WorkerTick { worker, pid });
    }

    /// However it ends: peers and coordinator see the connections end, the launcher starts another.
    pub(crate) fn end_process(&mut self, worker: WorkerId, what: &str, back_ms: u64) {
        self.log(|| format!("{worker} ends: {what}"));
        let Some(process) = self.workers.remove(&worker) else { return };
        if let Some(engine) = process.engine.filter(|engine| !engine.over) {
            self.miss(worker, engine.generation());
        }
        if let Some(link) = process.link {
            self.up(link, What::HungUp { link });
        }
        let pid = process.pid;
        self.later((5, 100), What::Exited { worker, pid, what: what.to_owned() });
        self.later((back_ms, back_ms + 500), What::Spawn { worker });
    }

    pub(crate) fn attempt(&mut self, worker: WorkerId, pid: u32) {
        if !self.lives(worker, pid) {
            return;
        }
        if self.cuts.any_until(worker, self.now_ms).is_some() || !self.coordinator.is_up() {
            return self.later_for(worker, (2_000, 2_000), |pid| What::Broken {
                worker,
                pid,
                link: None,
            });
        }
        let link = self.links.len() as u64;
        let (up_ms, down_ms) = (self.now_ms, self.now_ms);
        let fresh = Link { worker, pid, up_ms, down_ms, closed: false, lost: false };
        self.links.insert(link, fresh);
        self.worker(worker).link = Some(link);
        self.session(worker, Event::Connected);
    }

    /// Both ends see it, each in its time; what is under way is lost or arrives late.
    pub(crate) fn break_link(&mut self, link: u64) {
        let lost = self.random.below(2) == 0;
        let found = self.links.get_mut(&link).unwrap();
        found.lost |= lost;
        let (worker, pid) = (found.worker, found.pid);
        self.up(link, What::HungUp { link });
        if self.lives(worker, pid) && self.workers[&worker].link == Some(link) {
            let what = |pid| What::Broken { worker, pid, link: Some(link) };
            self.later_for(worker, (0, 300), what);
        }
    }

    /// In order, to the coordinator.
    pub(crate) fn up(&mut self, link: u64, what: What) {
        let delay_ms = self.delay();
        let found = self.links.get_mut(&link).unwrap();
        found.up_ms = found.up_ms.max(self.now_ms + delay_ms);
        self.at(self.links[&link].up_ms, what);
    }

    pub(crate) fn down(&mut self, link: u64, what: What) {
        let delay_ms = self.delay();
        let found = self.links.get_mut(&link).unwrap();
        found.down_ms = found.down_ms.max(self.now_ms + delay_ms);
        self.at(self.links[&link].down_ms, what);
    }

    /// Mostly short.
    fn delay(&mut self) -> u64 {
        if self.random.below(30) == 0 { self.random.between(50, 600) } else { self.random.below(8) }
    }

    /// The worker at the end of a connection, if it still listens there.
    pub(crate) fn end_of(&self, link: u64) -> Option<WorkerId> {
        let Link { worker, pid, .. } = self.links[&link];
        (self.lives(worker, pid) && self.workers[&worker].link == Some(link)).then_some(worker)
    }

    /// Frozen until then.
    pub(crate) fn stop_process(&mut self, worker: WorkerId, for_ms: u64) {
        let until_ms = self.now_ms + for_ms;
        let process = self.worker(worker);
        (process.stopped, process.until_ms) = (true, until_ms);
        let pid = process.pid;
        self.at(until_ms, What::Continue { worker, pid });
    }

    #[expect(clippy::print_stdout, reason = "whoever replays a seed wants to see it")]
    pub(crate) fn log(&self, text: impl FnOnce() -> String) {
        if !self.quiet {
            let text: String = text().chars().take(300).collect();
            println!("{:>7} {text}", self.now_ms);
        }
    }
}
