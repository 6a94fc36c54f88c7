//! Proof of what recovery promises, with the real engines, meshes and vaults of several workers in
//! one process: whoever is lost, and wherever the cells go, the parameters end with the same bits.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use shoal_plan::checkpoint::partial_name;
use shoal_plan::grid::Grid;
use shoal_plan::job::{Job, Precision};
use shoal_plan::placement::make_plan;
use shoal_plan::plan::{Generation, Plan, RunId, WorkerId};
use shoal_proto::{Secret, Source};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::devices::Devices;
use crate::metrics::Peaks;
use crate::vault::{Held, Vault};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const STEPS: u64 = 9;

fn job(grid: (u32, u32, u32)) -> Job {
    let (stages, expert_shards, replicas) = grid;
    let mut job = evaluate::tests::job(Grid { stages, expert_shards, replicas });
    job.training.precision = Precision::Bf16;
    job.training.ema = 0.9;
    (job.training.steps, job.training.warmup_steps) = (STEPS, 2);
    job.evaluation.tokens_max = 64;
    job.checkpoint.every = 1000;
    job.checkpoint.memory.every = 3;
    job
}

/// A run directory with the tokens of a text.
fn run_dir() -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    evaluate::tests::tokens(&scratch);
    scratch
}

/// A worker's process: what outlives its engines.
struct Worker {
    listener: TcpListener,
    vault: Vault,
    held: UnboundedReceiver<Held>,
    engines: CellEngines,
}

/// An engine that runs.
struct Started {
    engine: LocalEngine,
    events: UnboundedReceiver<EngineEvent>,
}

/// A coordinator's part, as far as the engines see it.
struct Fleet {
    job: Job,
    run_dir: TempDir,
    secret: Secret,
    workers: BTreeMap<WorkerId, Worker>,
    started: BTreeMap<WorkerId, Started>,
    /// Who has said that it holds which cell after which step, and the blake3.
    held: BTreeMap<(u64, CellId), BTreeMap<WorkerId, String>>,
    /// The blake3 of every state that anybody has held.
    made: BTreeMap<(u64, CellId), String>,
}

fn ids(workers: &[u32]) -> Vec<WorkerId> {
    workers.iter().copied().map(WorkerId).collect()
}

fn standing(job: &Job, step: u64) -> Standing {
    let sequences = job.training.sequences_before(step + 1);
    Standing { step, sequences, ..Standing::default() }
}

/// The next of a worker's words that is wanted; any failure is one.
fn next(
    events: &mut UnboundedReceiver<EngineEvent>,
    wanted: impl Fn(&EngineEvent) -> bool,
) -> Vec<EngineEvent> {
    let mut heard = Vec::new();
    loop {
        let event = events.blocking_recv().expect("the engine speaks before it ends");
        let last = wanted(&event) || matches!(event, EngineEvent::Failed { .. });
        heard.push(event);
        if last {
            return heard;
        }
    }
}

impl Fleet {
    fn new(job: Job, workers: &[u32]) -> Self {
        let secret = Secret::random().unwrap();
        let mut fleet = Self {
            job,
            run_dir: run_dir(),
            secret,
            workers: BTreeMap::new(),
            started: BTreeMap::new(),
            held: BTreeMap::new(),
            made: BTreeMap::new(),
        };
        for worker in workers {
            fleet.come(*worker);
        }
        fleet
    }

    fn come(&mut self, worker: u32) {
        let me = WorkerId(worker);
        let (tell, held) = unbounded_channel();
        let vault = Vault::open(
            &RunId("proof".into()),
            &self.secret,
            me,
            ((LOOPBACK, 0).into(), None),
            tell,
        )
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let engines = CellEngines::new(
            Metrics::new(worker, "proof", Peaks::default()).unwrap(),
            Devices::default(),
        );
        self.workers.insert(me, Worker { listener, vault, held, engines });
    }

    fn note(&mut self, worker: WorkerId, what: (u64, CellId), blake3: String) {
        let made = self.made.entry(what).or_insert_with(|| blake3.clone());
        assert_eq!(*made, blake3, "{what:?} on {worker}: made twice, it is the same");
        self.held.entry(what).or_default().insert(worker, blake3);
    }

    fn vaults(&self) -> BTreeMap<WorkerId, SocketAddr> {
        self.workers.iter().map(|(id, worker)| (*id, worker.vault.address())).collect()
    }

    /// Starts a generation from a step in memory, or from the beginning; returns once all are ready
    /// or have failed, with what they said.
    fn prepare(&mut self, generation: u64, from: Option<u64>) -> Vec<EngineEvent> {
        let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
        let plan = make_plan(&self.job, &workers, Generation(generation)).unwrap();
        let source = |cell: CellId| {
            let step = from.unwrap_or(0);
            let twins = plan.grid.replica_group(cell).into_iter();
            let mut holders = twins.filter_map(|twin| Some((twin, self.held.get(&(step, twin))?)));
            let (twin, holders) = holders.next().unwrap_or_else(|| panic!("{cell} is lost"));
            let (worker, blake3) = holders.first_key_value().unwrap();
            Source { worker: *worker, cell: twin, blake3: blake3.clone() }
        };
        let sources: Vec<Source> = match from {
            Some(_) => plan.grid.cells().map(source).collect(),
            None => Vec::new(),
        };
        self.start(&plan, from, &sources)
    }

    fn start(&mut self, plan: &Plan, from: Option<u64>, sources: &[Source]) -> Vec<EngineEvent> {
        let peers: BTreeMap<_, _> = (self.workers.iter())
            .map(|(id, worker)| (*id, worker.listener.local_addr().unwrap()))
            .collect();
        let vaults = self.vaults();
        for (me, worker) in &self.workers {
            let assignment = Assignment {
                job: self.job.clone(),
                plan: plan.clone(),
                me: *me,
                run: RunId("proof".into()),
                secret: self.secret.clone(),
                peers: peers.clone(),
                resume_from: None,
                standing: standing(&self.job, from.unwrap_or(0)),
                vault: worker.vault.clone(),
                vaults: vaults.clone(),
                sources: sources.to_vec(),
                run_dir: self.run_dir.path().to_path_buf(),
                courier: None,
                listener: worker.listener.try_clone().unwrap(),
                trust: None,
                ways: crate::comm::Ways::default(),
                threads: 1,
            };
            let (tell, events) = unbounded_channel();
            self.started.remove(me);
            let engine = worker.engines.launch(assignment, tell);
            self.started.insert(*me, Started { engine, events });
        }
        self.hear(|event| matches!(event, EngineEvent::Ready))
    }

    /// Waits until every engine has said something wanted, or has failed.
    fn hear(&mut self, wanted: impl Fn(&EngineEvent) -> bool) -> Vec<EngineEvent> {
        let mut all = Vec::new();
        for (worker, started) in &mut self.started {
            let heard = next(&mut started.events, &wanted);
            all.extend(heard.into_iter().map(|event| (*worker, event)));
        }
        for (worker, event) in &all {
            if let EngineEvent::Held { standing, cell, blake3 } = event {
                self.note(*worker, (standing.step, *cell), blake3.clone());
            }
        }
        all.into_iter().map(|(_, event)| event).collect()
    }

    fn begin(&self) {
        self.started.values().for_each(|started| started.engine.begin());
    }

    /// Waits until so many workers hold every cell of a step.
    fn wait_for_copies(&mut self, step: u64, holders: usize) {
        let cells = self.job.grid.cells().collect::<Vec<_>>();
        for _ in 0..6000 {
            let mut told = Vec::new();
            for (me, worker) in &mut self.workers {
                while let Ok(held) = worker.held.try_recv() {
                    told.push((*me, held));
                }
            }
            for (me, Held { standing, cell, blake3, .. }) in told {
                self.note(me, (standing.step, cell), blake3);
            }
            let complete =
                |cell: &CellId| self.held.get(&(step, *cell)).is_some_and(|of| of.len() >= holders);
            if cells.iter().all(complete) {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        panic!("step {step} is not held: {:?}", self.held);
    }

    /// Loses a worker without a word: its connections end, its memory is gone.
    fn kill(&mut self, worker: u32) {
        let worker = WorkerId(worker);
        let started = self.started.remove(&worker).unwrap();
        if let Some(mesh) = &*started.engine.mesh.lock().unwrap() {
            mesh.sever();
        }
        drop(started);
        self.workers.remove(&worker);
        for holders in self.held.values_mut() {
            holders.remove(&worker);
        }
        self.held.retain(|_, holders| !holders.is_empty());
    }

    fn finish(&mut self) -> BTreeMap<String, blake3::Hash> {
        let said = self.hear(|event| matches!(event, EngineEvent::Finished { .. }));
        let failure = said.iter().find(|event| matches!(event, EngineEvent::Failed { .. }));
        assert!(failure.is_none(), "{failure:?}");
        files(self.run_dir.path())
    }
}

/// Every file of tensors of the last step's checkpoint, as the last plan wrote it.
fn files(run_dir: &Path) -> BTreeMap<String, blake3::Hash> {
    let of_plan = |plan| run_dir.join("checkpoints").join(partial_name(STEPS, Generation(plan)));
    let directory = (1..=4).rev().map(of_plan).find(|path| path.exists()).unwrap();
    let entries = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap());
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names
        .filter(|name| name.ends_with(".safetensors"))
        .map(|name| (name.clone(), blake3::hash(&fs::read(directory.join(name)).unwrap())))
        .collect()
}

fn undisturbed(job: &Job, workers: &[u32]) -> BTreeMap<String, blake3::Hash> {
    let mut fleet = Fleet::new(job.clone(), workers);
    fleet.prepare(1, None);
    fleet.begin();
    let files = fleet.finish();
    assert!(files.len() >= 5, "{files:?}");
    files
}

fn is_step(wanted: u64) -> impl Fn(&EngineEvent) -> bool {
    move |event| matches!(event, EngineEvent::StepDone { step, .. } if *step == wanted)
}

/// Four workers until the copies of step 3 are there; then one is lost in the midst of a step.
fn loses(job: &Job, worker: u32, holders: usize) -> Fleet {
    let mut fleet = Fleet::new(job.clone(), &[0, 1, 2, 3]);
    fleet.prepare(1, None);
    fleet.begin();
    fleet.hear(is_step(3));
    fleet.wait_for_copies(3, holders);
    fleet.kill(worker);
    for (survivor, started) in &mut fleet.started {
        // Some may have finished the run before they noticed.
        let said = next(&mut started.events, |event| matches!(event, EngineEvent::Finished { .. }));
        match said.last() {
            Some(EngineEvent::Failed { kind, what, .. }) => {
                assert_eq!(*kind, FailureKind::PeerLost, "{survivor}: {what}");
                assert!(what.contains("worker-"), "{what}");
            }
            other => panic!("{survivor} went on without {worker}: {other:?}"),
        }
    }
    fleet
}

#[test]
fn three_workers_finish_what_four_began_with_the_same_bits() {
    let mut job = job((2, 2, 1));
    // Slow enough for the loss to come before the end.
    job.training.batch = 64;
    let want = undisturbed(&job, &[0]);
    for lost in [0, 2] {
        let mut fleet = loses(&job, lost, 2);
        let said = fleet.prepare(2, Some(3));
        let held = said.iter().filter(|event| matches!(event, EngineEvent::Held { .. })).count();
        assert_eq!(held, 4, "every cell says what it starts from: {said:?}");
        // Whatever was made before is made again where it belongs now.
        fleet.begin();
        assert_eq!(fleet.finish(), want, "without worker {lost}");
    }
}

#[test]
fn twins_hold_equal_state_and_one_takes_the_place_of_the_other() {
    let mut job = job((1, 2, 2));
    job.training.batch = 64;
    let want = undisturbed(&job, &[0]);
    let mut fleet = loses(&job, 3, 1);
    let of = |cell: u32| &fleet.made[&(3, CellId(cell))];
    assert_eq!((of(0), of(1)), (of(2), of(3)), "twins");
    assert_ne!(of(0), of(1), "other experts");
    assert!(!fleet.held.contains_key(&(3, CellId(3))), "nobody holds it but its twin's holder");
    fleet.prepare(2, Some(3));
    fleet.begin();
    assert_eq!(fleet.finish(), want);
}

#[test]
fn a_worker_that_joins_takes_over_at_an_edge_with_the_same_bits() {
    let job = job((2, 2, 1));
    let want = undisturbed(&job, &[0]);
    let mut fleet = Fleet::new(job, &[0, 1, 2]);
    fleet.prepare(1, None);
    fleet.begin();
    fleet.hear(is_step(1));
    fleet.started[&WorkerId(1)].engine.edge();
    let said = fleet.hear(|event| matches!(event, EngineEvent::AtEdge { .. }));
    let edges = said.iter().filter_map(|event| {
        if let EngineEvent::AtEdge { standing } = event { Some(standing.step) } else { None }
    });
    let edges: Vec<u64> = edges.collect();
    assert!(edges.len() == 3 && edges.iter().all(|step| *step == edges[0]), "{said:?}");
    assert!(edges[0] < STEPS, "before the end");
    fleet.come(3);
    let said = fleet.prepare(2, Some(edges[0]));
    assert!(said.iter().all(|event| !matches!(event, EngineEvent::Failed { .. })), "{said:?}");
    fleet.begin();
    assert_eq!(fleet.finish(), want);
}

#[test]
fn a_state_that_nobody_gives_is_named_with_its_holder() {
    let mut job = job((2, 2, 1));
    job.training.batch = 64;
    let mut fleet = loses(&job, 3, 2);
    let plan = make_plan(&job, &ids(&[0, 1, 2]), Generation(2)).unwrap();
    let source = |cell: CellId| {
        let (worker, blake3) = fleet.held[&(3, cell)].first_key_value().unwrap();
        Source { worker: *worker, cell, blake3: blake3.clone() }
    };
    let mut sources: Vec<Source> = plan.grid.cells().map(source).collect();
    // Of another blake3 than any that is held: it is asked for elsewhere, and refused there.
    sources[1] = Source { worker: WorkerId(2), blake3: "00".repeat(32), ..sources[1].clone() };
    let said = fleet.start(&plan, Some(3), &sources);
    let failures: Vec<String> =
        (said.into_iter())
            .filter_map(|event| {
                if let EngineEvent::Failed { what, .. } = event { Some(what) } else { None }
            })
            .collect();
    let wanted = |what: &String| what.contains("worker-2") && what.contains("cell-1 after step 3");
    assert!(failures.iter().any(wanted), "{failures:?}");
}

#[test]
fn an_engine_is_replaced_though_a_peer_never_came_or_stopped_for_good() {
    let job = job((2, 2, 1));
    let mut fleet = Fleet::new(job.clone(), &[0, 1]);
    let plan = make_plan(&job, &ids(&[0, 1]), Generation(1)).unwrap();
    // Worker 1 listens, and nobody there ever answers: the first engine of worker 0 waits for it.
    let silent = fleet.workers.remove(&WorkerId(1)).unwrap();
    let address = silent.listener.local_addr().unwrap();
    let worker = &fleet.workers[&WorkerId(0)];
    let own = worker.listener.local_addr().unwrap();
    let assignment = Assignment {
        job: job.clone(),
        plan,
        me: WorkerId(0),
        run: RunId("proof".into()),
        secret: fleet.secret.clone(),
        peers: BTreeMap::from([(WorkerId(0), own), (WorkerId(1), address)]),
        resume_from: None,
        standing: Standing::default(),
        vault: worker.vault.clone(),
        vaults: BTreeMap::new(),
        sources: Vec::new(),
        run_dir: fleet.run_dir.path().to_path_buf(),
        courier: None,
        listener: worker.listener.try_clone().unwrap(),
        trust: None,
        ways: crate::comm::Ways::default(),
        threads: 1,
    };
    let (tell, mut events) = unbounded_channel();
    let engine = worker.engines.launch(assignment, tell);
    drop(engine);
    while let Some(event) = events.blocking_recv() {
        assert!(matches!(event, EngineEvent::Failed { .. }), "{event:?}");
    }
    let alone = undisturbed(&job, &[0]);
    fleet.prepare(2, None);
    fleet.begin();
    assert_eq!(fleet.finish(), alone);
}
