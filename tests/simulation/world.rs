//! Virtual time, and what lies between the coordinator and its workers: connections that keep their
//! order and may break or stall, a launcher that starts dead workers anew, a disk.

use std::collections::{BTreeMap, BTreeSet};

use shoal_coordinator::Settings;
use shoal_coordinator::state::{ConnectionId, Effect, Event as StateEvent};
use shoal_plan::grid::{CellId, Grid};
use shoal_plan::job::Job;
use shoal_plan::placement::make_plan;
use shoal_plan::plan::{Generation, RunId, WorkerId};
use shoal_plan::standing::Standing;
use shoal_proto::{Assign, FailureKind, FromWorker, Secret, ToWorker};
use shoal_worker::session::{EngineEvent, Event, ExitReason, Session};

use crate::checks::{Checks, state_of};
use crate::coordinator::Coordinator;
use crate::counts::Counts;
use crate::defects::Defect;
use crate::engines::{BATCH, Engine, LAST_STEP, Verdict};
use crate::faults::Cuts;
use crate::network::Link;
use crate::random::Random;
use crate::vault::Vault;

/// By then every run must have ended, quarantines included.
const DEADLINE_MS: u64 = 1_200_000;
const TICK_MS: u64 = 250;
/// Either end of a silent connection gives it up.
pub(crate) const KEEPALIVE_MS: u64 = 6_000;

/// What happens at its time.
#[derive(Debug)]
pub(crate) enum What {
    Heard { link: u64, message: FromWorker },
    HungUp { link: u64 },
    Told { link: u64, message: ToWorker },
    Closed { link: u64, why: String },
    Broken { worker: WorkerId, pid: u32, link: Option<u64> },
    Keepalive { link: u64 },
    Attempt { worker: WorkerId, pid: u32 },
    CoordinatorTick,
    WorkerTick { worker: WorkerId, pid: u32 },
    Exited { worker: WorkerId, pid: u32, what: String },
    Spawn { worker: WorkerId },
    Loaded { worker: WorkerId, pid: u32, generation: Generation },
    GotReady { worker: WorkerId, pid: u32, assign: Box<Assign> },
    YieldEnds { worker: WorkerId, pid: u32 },
    JoinDeadline { worker: WorkerId, pid: u32, generation: Generation, in_ms: u64 },
    SilentLink { ends: (WorkerId, WorkerId), one_way: bool },
    PeerLost { worker: WorkerId, pid: u32, generation: Generation },
    Ready { worker: WorkerId, pid: u32, generation: Generation },
    Vote { generation: Generation },
    Apply { worker: WorkerId, pid: u32, verdict: Verdict },
    Copy { to: WorkerId, generation: Generation, standing: Standing, cell: CellId, state: u64 },
    Written { step: u64, result: Result<(), String>, life: u64 },
    CoordinatorStarts,
    Resume,
    Fault,
    Continue { worker: WorkerId, pid: u32 },
}

/// A process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pid: u32,
    pub(crate) session: Session,
    pub(crate) link: Option<u64>,
    pub(crate) engine: Option<Engine>,
    pub(crate) vault: Vault,
    pub(crate) stopped: bool,
    pub(crate) until_ms: u64,
}

pub(crate) struct World {
    pub(crate) now_ms: u64,
    queue: BTreeMap<(u64, u64), What>,
    numbered: u64,
    pub(crate) random: Random,
    pub(crate) coordinator: Coordinator,
    pub(crate) workers: BTreeMap<WorkerId, Worker>,
    wanted: u32,
    pub(crate) links: BTreeMap<u64, Link>,
    pub(crate) pids: u32,
    pub(crate) cuts: Cuts,
    pub(crate) grid: Grid,
    pub(crate) disk: BTreeMap<u64, BTreeMap<CellId, u64>>,
    pub(crate) writing: BTreeMap<CellId, u64>,
    /// The next manifest cannot be written.
    pub(crate) disk_fault: bool,
    /// How many times as long a worker takes for its cells.
    pub(crate) slowness: BTreeMap<WorkerId, f64>,
    /// Whose next sum is wrong.
    pub(crate) sum_fault: Option<WorkerId>,
    /// How often that was so, by step.
    pub(crate) sum_faults: BTreeMap<u64, u32>,
    /// Checkpoints that no longer hold what was written.
    pub(crate) damaged: BTreeSet<u64>,
    pub(crate) copying: u64,
    pub(crate) voted: Option<(Generation, u64)>,
    pub(crate) stop_asked: bool,
    pub(crate) orders_taken: u64,
    pub(crate) own_failures: BTreeMap<WorkerId, u32>,
    pub(crate) checks: Checks,
    pub(crate) counts: Counts,
    pub(crate) defect: Option<Defect>,
    pub(crate) quiet: bool,
    pub(crate) complaint: Option<String>,
}

impl World {
    pub(crate) fn new(seed: u64, defect: Option<Defect>, quiet: bool) -> Self {
        let mut random = Random::new(seed);
        let cut = |stages, expert_shards, replicas| Grid { stages, expert_shards, replicas };
        let choices = [(cut(2, 1, 2), 3), (cut(4, 1, 1), 3), (cut(2, 2, 1), 5), (cut(1, 2, 1), 2)];
        let (grid, wanted) = choices[random.below(4) as usize];
        let mut job = Job::example();
        job.grid = grid;
        job.training.steps = LAST_STEP;
        job.workers.local = wanted;
        job.workers.min = random.between(1, 2) as u32;
        let settings = Settings {
            run: RunId("run".into()),
            secret: Secret::from_hex(&"5e".repeat(32)).unwrap(),
            job,
            workers_wanted: wanted,
            workers_first: wanted,
            resume_from: None,
            run_dir: std::path::PathBuf::new(),
            lease_ms: 5_000,
            join_deadline_ms: 30_000,
            make_plan: |job, workers, generation| {
                make_plan(job, workers, generation).map_err(|error| error.to_string())
            },
        };
        // In every third run up to four steps in a row are not finite.
        let (first, steps) = (BATCH * random.between(3, 22), BATCH * random.between(1, 4));
        let bad = if random.below(3) == 0 { first..first + steps } else { 0..0 };
        let mut world = Self {
            now_ms: 0,
            queue: BTreeMap::new(),
            numbered: 0,
            random,
            coordinator: Coordinator::new(settings),
            workers: BTreeMap::new(),
            wanted,
            links: BTreeMap::new(),
            pids: 0,
            cuts: Cuts::default(),
            grid,
            disk: BTreeMap::new(),
            writing: BTreeMap::new(),
            disk_fault: false,
            slowness: BTreeMap::new(),
            sum_fault: None,
            sum_faults: BTreeMap::new(),
            damaged: BTreeSet::new(),
            copying: 0,
            voted: None,
            stop_asked: false,
            orders_taken: 0,
            own_failures: BTreeMap::new(),
            checks: Checks::new(grid, bad),
            counts: Counts::default(),
            defect,
            quiet,
            complaint: None,
        };
        world.later((0, 0), What::CoordinatorTick);
        for worker in (0..wanted).map(WorkerId) {
            world.later((0, 200), What::Spawn { worker });
        }
        world.later((200, 2_000), What::Fault);
        world
    }

    /// To the end, or to the first complaint.
    pub(crate) fn run(mut self) -> Result<Counts, String> {
        while let Some(((at_ms, number), what)) = self.queue.pop_first() {
            self.now_ms = at_ms;
            if let Some(until_ms) = self.not_before(&what) {
                self.queue.insert((until_ms.max(at_ms + 1), number), what);
                continue;
            }
            self.happen(what)?;
            if let Some(complaint) = self.complaint.take() {
                return Err(complaint);
            }
            if self.checks.ended.is_some() || self.now_ms > DEADLINE_MS {
                break;
            }
        }
        self.checks.end(self.stop_asked)?;
        Ok(self.counts)
    }

    /// A stopped process does nothing, and over a cut nothing comes.
    #[expect(clippy::wildcard_enum_match_arm, reason = "everything else happens at its time")]
    fn not_before(&self, what: &What) -> Option<u64> {
        let stopped = |worker: &WorkerId| {
            self.workers.get(worker).filter(|worker| worker.stopped).map(|worker| worker.until_ms)
        };
        match what {
            What::Heard { link, .. } | What::HungUp { link } => {
                self.cuts.up_until(self.links[link].worker, self.now_ms)
            }
            What::Told { link, .. } | What::Closed { link, .. } => {
                let worker = self.links[link].worker;
                self.cuts.down_until(worker, self.now_ms).or(stopped(&worker))
            }
            What::WorkerTick { worker, .. }
            | What::GotReady { worker, .. }
            | What::YieldEnds { worker, .. }
            | What::Broken { worker, .. }
            | What::Attempt { worker, .. }
            | What::Loaded { worker, .. }
            | What::JoinDeadline { worker, .. }
            | What::PeerLost { worker, .. }
            | What::Ready { worker, .. }
            | What::Apply { worker, .. } => stopped(worker),
            _ => None,
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is the engines'")]
    fn happen(&mut self, what: What) -> Result<(), String> {
        match what {
            What::Heard { link, message } => self.heard(link, message),
            What::HungUp { link } => {
                let closed = &mut self.links.get_mut(&link).unwrap().closed;
                if !std::mem::replace(closed, true) {
                    let (connection, why) = (ConnectionId(link), "modelled".to_owned());
                    self.tell_coordinator(StateEvent::HungUp { connection, why });
                }
            }
            What::Told { link, message } => {
                if let Some(worker) = self.end_of(link) {
                    self.session(worker, Event::FromCoordinator(message));
                }
            }
            What::Closed { link, why } => {
                if let Some(worker) = self.end_of(link) {
                    self.worker(worker).link = None;
                    self.session(worker, Event::Closed { why });
                }
            }
            What::Broken { worker, pid, link } => {
                if self.lives(worker, pid) && self.workers[&worker].link == link {
                    self.worker(worker).link = None;
                    self.session(worker, Event::Disconnected { why: "modelled".to_owned() });
                }
            }
            What::Keepalive { link } => {
                let worker = self.links[&link].worker;
                if self.cuts.any_until(worker, self.now_ms).is_some() {
                    self.break_link(link);
                }
            }
            What::Attempt { worker, pid } => self.attempt(worker, pid),
            What::CoordinatorTick => {
                self.tell_coordinator(StateEvent::Tick);
                self.later((TICK_MS, TICK_MS), What::CoordinatorTick);
            }
            What::WorkerTick { worker, pid } => {
                if self.lives(worker, pid) {
                    self.session(worker, Event::Tick);
                    self.later_for(worker, (125, 125), |pid| What::WorkerTick { worker, pid });
                }
            }
            What::Exited { worker, pid, what } => self.launcher_saw(worker, pid, what),
            What::Spawn { worker } => self.spawn(worker),
            What::Written { step, result, life } => self.written(step, result, life),
            What::CoordinatorStarts => self.start_coordinator()?,
            What::Fault => self.fault(),
            What::Continue { worker, pid } => {
                if self.lives(worker, pid) {
                    self.worker(worker).stopped = false;
                }
            }
            other => self.happen_in_engines(other)?,
        }
        Ok(())
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the rest, and whatever came for a dead process, is nothing"
    )]
    fn happen_in_engines(&mut self, what: What) -> Result<(), String> {
        match what {
            What::Vote { generation } => self.vote(generation),
            What::Copy { to, generation, standing, cell, state } => {
                self.copied(to, (generation, standing), cell, state);
            }
            What::Apply { worker, pid, verdict } if self.lives(worker, pid) => {
                self.apply_step(worker, verdict)?;
            }
            What::Loaded { worker, pid, generation } if self.lives(worker, pid) => {
                self.loaded(worker, generation)?;
            }
            What::GotReady { worker, pid, assign } if self.lives(worker, pid) => {
                self.got_ready(worker, &assign);
            }
            What::Resume => self.resume(),
            What::YieldEnds { worker, pid } if self.lives(worker, pid) => {
                self.session(worker, Event::YieldRequested { reason: None });
            }
            What::Ready { worker, pid, generation }
                if self.lives(worker, pid) && self.engine_at(worker, generation).is_some() =>
            {
                self.worker(worker).engine.as_mut().unwrap().ready = true;
                self.say(worker, EngineEvent::Ready);
            }
            What::PeerLost { worker, pid, generation } if self.lives(worker, pid) => {
                self.fail_engine(worker, generation, FailureKind::PeerLost);
            }
            What::JoinDeadline { worker, pid, generation, in_ms } if self.lives(worker, pid) => {
                self.join_deadline(worker, generation, in_ms);
            }
            What::SilentLink { ends, one_way } => self.silent_link(ends, one_way),
            _ => {}
        }
        Ok(())
    }

    fn heard(&mut self, link: u64, mut message: FromWorker) {
        if self.links[&link].closed || self.links[&link].lost {
            return;
        }
        if let Some(defect) = self.defect {
            defect.heard(&mut message, self.checks.generation());
            self.forge(defect, &message);
        }
        let connection = ConnectionId(link);
        self.tell_coordinator(StateEvent::Message { connection, message });
    }

    /// The coordinator hears that all did what one did.
    fn forge(&mut self, defect: Defect, message: &FromWorker) {
        let FromWorker::StepDone { generation, step, report: Some(_), .. } = message else {
            return;
        };
        if defect != Defect::CommitBeforeAllVotes {
            return;
        }
        let (generation, step) = (*generation, *step);
        let links: Vec<u64> = self.workers.values().filter_map(|worker| worker.link).collect();
        for link in links {
            let message = FromWorker::StepDone {
                generation,
                step,
                compute_seconds: 0.1,
                report: None,
                sums: vec![],
            };
            let is_speaker = self.links[&link].worker == self.host_of_first();
            if !is_speaker && !self.links[&link].closed {
                let connection = ConnectionId(link);
                self.tell_coordinator(StateEvent::Message { connection, message });
            }
        }
    }

    fn host_of_first(&self) -> WorkerId {
        self.checks.host(CellId(0)).unwrap()
    }

    pub(crate) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { connection: ConnectionId(link), message } => {
                self.down(link, What::Told { link, message });
            }
            Effect::Close { connection: ConnectionId(link), reason } => {
                self.down(link, What::Closed { link, why: reason });
                self.links.get_mut(&link).unwrap().closed = true;
            }
            Effect::CommitCheckpoint(manifest) => {
                let step = manifest.standing.step;
                let cell = |name: &str| CellId(name.rsplit('-').next().unwrap().parse().unwrap());
                let files = manifest.files.iter();
                self.writing =
                    files.map(|file| (cell(&file.name), state_of(&file.blake3))).collect();
                // The last one is not spared by chance: without it the run fails, as it should.
                let last = step == LAST_STEP || self.stop_asked;
                let fails = !last && std::mem::take(&mut self.disk_fault);
                let result = if fails { Err("disk full".to_owned()) } else { Ok(()) };
                let life = self.coordinator.life;
                self.coordinator.writes = Some(step).filter(|_| !fails);
                self.later((5, 400), What::Written { step, result, life });
            }
            Effect::News(news) => {
                let name = format!("{news:?}");
                let name = name.split([' ', '(']).next().unwrap_or_default().to_owned();
                *self.counts.met.entry(name).or_default() += 1;
            }
            Effect::Answer { reply, .. } => self.orders_taken += u64::from(reply.is_ok()),
            Effect::Ignored { .. }
            | Effect::Record(_)
            | Effect::Trace { .. }
            | Effect::DiscardCheckpoint { .. } => {}
        }
    }

    /// An event of a worker's session, and what it does.
    pub(crate) fn session(&mut self, worker: WorkerId, event: Event) {
        self.log(|| format!("{worker}: {event:?}"));
        let now_ms = self.now_ms;
        for effect in self.worker(worker).session.apply(now_ms, event) {
            use shoal_worker::session::Effect as Does;
            if !self.workers.contains_key(&worker) {
                return;
            }
            match effect {
                Does::Send(message) => {
                    if let Some(link) = self.workers[&worker].link {
                        self.up(link, What::Heard { link, message });
                    }
                }
                Does::Connect => {
                    self.later_for(worker, (5, 60), |pid| What::Attempt { worker, pid });
                }
                Does::StartEngine(assign) => self.start_engine(worker, assign),
                Does::Prepare(assign) => {
                    self.later_for(worker, (20, 600), |pid| What::GotReady { worker, pid, assign });
                }
                Does::Release => {
                    self.drop_engine(worker);
                    self.worker(worker).vault.begin(None);
                }
                Does::BeginTraining => self.begin_training(worker),
                Does::StopEngine => self.tell_engine(worker, |engine| engine.stop = true),
                Does::EndAtEdge => self.tell_engine(worker, |engine| engine.edge = true),
                Does::CheckpointCommitted { .. } | Does::Trace { .. } | Does::Ignored { .. } => {}
                Does::DropEngine => self.drop_engine(worker),
                Does::Exit(reason) => {
                    let back_ms = if reason.code() == 0 { 3_000 } else { 500 };
                    self.end_process(worker, &ExitReason::to_string(&reason), back_ms);
                }
            }
        }
    }

    fn tell_engine(&mut self, worker: WorkerId, tell: impl FnOnce(&mut Engine)) {
        if let Some(engine) = &mut self.worker(worker).engine {
            tell(engine);
        }
    }

    pub(crate) fn is_cut(&self, a: WorkerId, b: WorkerId) -> bool {
        a != b && self.cuts.between(a, b, self.now_ms)
    }

    pub(crate) fn lives(&self, worker: WorkerId, pid: u32) -> bool {
        self.workers.get(&worker).is_some_and(|found| found.pid == pid)
    }

    pub(crate) fn worker(&mut self, worker: WorkerId) -> &mut Worker {
        self.workers.get_mut(&worker).expect("it lives")
    }

    pub(crate) fn a_worker(&mut self) -> Option<WorkerId> {
        let wanted = WorkerId(self.random.below(u64::from(self.wanted)) as u32);
        Some(wanted).filter(|worker| self.workers.contains_key(worker))
    }

    pub(crate) fn at(&mut self, at_ms: u64, what: What) {
        self.numbered += 1;
        self.queue.insert((at_ms, self.numbered), what);
    }

    pub(crate) fn later(&mut self, (low_ms, high_ms): (u64, u64), what: What) {
        let in_ms = self.random.between(low_ms, high_ms);
        self.at(self.now_ms + in_ms, what);
    }

    pub(crate) fn later_for(
        &mut self,
        worker: WorkerId,
        range_ms: (u64, u64),
        what: impl FnOnce(u32) -> What,
    ) {
        if let Some(process) = self.workers.get(&worker) {
            self.later(range_ms, what(process.pid));
        }
    }
}
