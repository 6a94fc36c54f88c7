//! Runs the cells this worker hosts: one thread a cell, all over one mesh.
//!
//! The session decides when; this file only starts threads, gathers what they report and takes
//! them down. What a cell does is in `engine/cell.rs`, one training step in `engine/step.rs`.

mod cell;
mod depositing;
mod error;
mod evaluate;
mod group;
mod hidden;
mod kept;
mod memory;
mod policy;
#[cfg(test)]
mod proof;
mod ready;
mod seat;
mod snapshot;
mod state;
mod step;
mod vote;
mod withdrawing;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use shoal_kernels::cuda::Usage;
use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::CellId;
use shoal_plan::plan::WorkerId;
use shoal_plan::report::{Ending, Evaluation, StepReport};
use shoal_plan::standing::Standing;
use shoal_plan::trace::StepTrace;
use shoal_proto::FailureKind;
use tokio::sync::mpsc::UnboundedSender;

use crate::comm::{Membership, Mesh, Timeouts};
use crate::daemon::{Assignment, Engine, EngineEvent, EngineFactory, Prepared, TEAR_DOWN};
use crate::devices::Devices;
use crate::metrics::{CellClock, Metered, Metrics, StepWatch};

use cell::Ways;
pub use cell::{Cell, Checkpoints, Inputs, Text};
use depositing::Depositor;
pub use error::EngineError;
use kept::Kept;
use memory::Memory;
use seat::{Ended, Seat};
pub use snapshot::load as load_checkpoint;
pub use step::Trainer;

/// Starts engines over TCP meshes.
#[derive(Clone, Debug)]
pub struct CellEngines {
    metrics: Metrics,
    seat: Arc<Seat>,
    /// What they leave each other.
    kept: Arc<Kept>,
    devices: Devices,
    /// Calls off what is got ready for a plan that will not come.
    preparing: Arc<Mutex<Arc<Control>>>,
}

impl CellEngines {
    /// Engines that are watched, and compute on these devices.
    pub fn new(metrics: Metrics, devices: Devices) -> Self {
        let (seat, kept, preparing) = (Arc::default(), Arc::default(), Arc::default());
        Self { metrics, seat, kept, devices, preparing }
    }

    fn launch(&self, assignment: Assignment, events: UnboundedSender<EngineEvent>) -> LocalEngine {
        let control = Arc::new(Control::default());
        let mesh = Arc::new(Mutex::new(None));
        self.call_off_preparing();
        let (ticket, ended) = self.seat.queue();
        {
            let (control, mesh) = (Arc::clone(&control), Arc::clone(&mesh));
            let (metrics, kept) = (self.metrics.clone(), Arc::clone(&self.kept));
            let devices = self.devices.clone();
            std::thread::spawn(move || {
                // The engine before this one gives back its memory and its hold on the data port.
                ticket.wait(TEAR_DOWN);
                let places = (&control, &kept, &devices);
                if let Err(error) = conduct(assignment, places, &mesh, (&metrics, &events)) {
                    report(&events, failed(0, &error));
                }
                drop(mesh);
                drop(ticket);
            });
        }
        LocalEngine { control, mesh, ended }
    }

    fn call_off_preparing(&self) -> Arc<Control> {
        let mut current = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        current.abort();
        *current = Arc::default();
        Arc::clone(&current)
    }
}

/// What a cell's thread tells the engine.
#[derive(Debug)]
enum CellNews {
    Ready,
    StepDone {
        step: u64,
        /// Without waiting and without collectives.
        compute_seconds: f64,
        report: Option<StepReport>,
        /// Of the cell's parameters, unless the step was skipped.
        checksum: Option<u64>,
    },
    /// What the cell did in a step about which somebody asked, or a piece of it.
    Traced(StepTrace),
    /// Only from cell 0.
    Evaluated {
        step: u64,
        evaluations: Vec<Evaluation>,
    },
    Part {
        standing: Standing,
        files: Vec<CheckpointFile>,
    },
    PartFailed {
        standing: Standing,
        why: String,
    },
    /// The cell's state after this standing's step is in this worker's memory: it has started from it,
    /// or it ends there.
    Held {
        standing: Standing,
        blake3: String,
    },
    Finished {
        step: u64,
        ending: Ending,
    },
    GoBack {
        standing: Standing,
    },
    AtEdge {
        standing: Standing,
    },
    Failed {
        step: u64,
        kind: FailureKind,
        what: String,
        layer: Option<String>,
        unreachable: Vec<WorkerId>,
    },
}

/// What the session tells the cells. Every cell looks at it at the edge of a step.
#[derive(Debug, Default)]
pub struct Control {
    begun: Mutex<bool>,
    begin: Condvar,
    stop: AtomicBool,
    edge: AtomicBool,
    abort: AtomicBool,
    /// Steps about which somebody wants to know all.
    traced: Mutex<Range<u64>>,
}

impl Control {
    /// Lets the cells train.
    pub fn begin(&self) {
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.begin.notify_all();
    }

    /// Asks for a checkpoint and an end after the step on which all cells agree.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Asks for an end after the step on which all cells agree, with the state in memory.
    pub fn edge(&self) {
        self.edge.store(true, Ordering::SeqCst);
    }

    /// Ends everything now; a cell that waits in a collective is freed by the poisoned mesh.
    fn abort(&self) {
        self.abort.store(true, Ordering::SeqCst);
        self.begin();
    }

    fn stop_wanted(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Asks for a trace of these steps, as far as they are still to come.
    fn trace(&self, steps: Range<u64>) {
        *self.traced.lock().unwrap_or_else(PoisonError::into_inner) = steps;
    }

    fn is_traced(&self, step: u64) -> bool {
        self.traced.lock().unwrap_or_else(PoisonError::into_inner).contains(&step)
    }

    fn edge_wanted(&self) -> bool {
        self.edge.load(Ordering::SeqCst)
    }

    fn is_aborted(&self) -> bool {
        self.abort.load(Ordering::SeqCst)
    }

    /// Waits for `begin`. False when the engine was aborted instead.
    fn wait_for_begin(&self) -> bool {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.begin.wait_while(begun, |begun| !*begun);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        !self.is_aborted()
    }
}

/// A started engine. Dropping it poisons the mesh and waits for the threads, though not for ever: one
/// that computes looks at the mesh at its next message.
struct LocalEngine {
    control: Arc<Control>,
    mesh: Arc<Mutex<Option<Mesh>>>,
    ended: Ended,
}

impl EngineFactory for CellEngines {
    fn start(
        &self,
        assignment: Assignment,
        events: UnboundedSender<EngineEvent>,
    ) -> Box<dyn Engine> {
        Box::new(self.launch(assignment, events))
    }

    fn prepare(&self, assignment: Assignment, told: UnboundedSender<Prepared>) {
        let control = self.call_off_preparing();
        let (ticket, _) = self.seat.queue();
        let (kept, devices) = (Arc::clone(&self.kept), self.devices.clone());
        std::thread::spawn(move || {
            ticket.wait(TEAR_DOWN);
            size_pool(assignment.threads);
            let prepared = ready::get_ready(&assignment, &control, (&kept, &devices));
            drop(ticket);
            // The daemon is gone only when the process ends.
            drop(told.send(prepared));
        });
    }

    fn release(&self) {
        self.call_off_preparing();
        self.kept.retain(&[]);
    }
}

impl Engine for LocalEngine {
    fn begin(&self) {
        self.control.begin();
    }

    fn stop(&self) {
        self.control.stop();
    }

    fn edge(&self) {
        self.control.edge();
    }

    fn trace(&self, steps: Range<u64>) {
        self.control.trace(steps);
    }

    fn checkpoint_committed(&self, step: u64) {
        tracing::info!(step, "the checkpoint is complete");
    }
}

impl Drop for LocalEngine {
    fn drop(&mut self) {
        self.control.abort();
        if let Some(mesh) = &*self.mesh.lock().unwrap_or_else(PoisonError::into_inner) {
            mesh.poison("this worker is leaving");
        }
        if !self.ended.wait(TEAR_DOWN) {
            tracing::warn!("an engine is still at work: it is left to end by itself");
        }
    }
}

/// Opens the mesh and the data, starts a thread per cell, and passes on what they report until
/// all have ended.
fn conduct(
    assignment: Assignment,
    (control, kept, devices): (&Arc<Control>, &Arc<Kept>, &Devices),
    shared_mesh: &Mutex<Option<Mesh>>,
    (metrics, events): (&Metrics, &UnboundedSender<EngineEvent>),
) -> Result<(), EngineError> {
    let Assignment { job, plan, run_dir, resume_from, standing, .. } = &assignment;
    size_pool(assignment.threads);
    // What starts from elsewhere than memory is built anew.
    let goes_on = !assignment.sources.is_empty();
    kept.retain(&if goes_on { plan.cells_of(assignment.me) } else { Vec::new() });
    let text = kept.text(job, run_dir)?;
    let inputs = Inputs::over(text, job, plan, (run_dir, *resume_from)).going_on_from(*standing);
    let inputs = inputs.with_memory(Memory::of(&assignment, control, kept));
    if let Some(memory) = &inputs.memory {
        memory.begin(&inputs, assignment.me);
    }
    let inputs = Arc::new(inputs);
    let membership = Membership {
        run: assignment.run.clone(),
        secret: *assignment.secret.bytes(),
        generation: assignment.plan.generation,
        me: assignment.me,
        hosts: assignment.plan.hosts.clone(),
        peers: assignment.peers.clone(),
        trust: assignment.trust.clone(),
        ways: assignment.ways.clone(),
    };
    let is_off = || control.is_aborted();
    let timeouts = Timeouts::of(assignment.plan.generation);
    let mesh = Mesh::open_unless(membership, assignment.listener, timeouts, &is_off)?;
    let cells = assignment.plan.cells_of(assignment.me);
    let withdrawn = match (&assignment.courier, inputs.checkpoint_to_read()) {
        (Some(courier), Some(step)) => {
            withdrawing::withdraw(courier, &inputs, (step, &cells), &is_off)
                .map(Arc::new)
                .map(Some)?
        }
        (None, _) | (_, None) => None,
    };
    metrics.begins(assignment.plan.generation, cells.len(), assignment.job.training.precision);
    let (news, gathered) = channel();
    let parcels = assignment
        .courier
        .map(|courier| depositing::start(courier, Arc::clone(control), news.clone()));
    let mut threads = Vec::new();
    for (nth, cell) in cells.iter().enumerate() {
        let (inputs, control, news) = (Arc::clone(&inputs), Arc::clone(control), news.clone());
        let devices = devices.clone();
        let (cell, clock) = (*cell, Arc::new(CellClock::default()));
        let comm = Metered::new(mesh.endpoint(cell), metrics.clone(), Arc::clone(&clock));
        let watch = StepWatch::new(metrics.clone(), clock);
        let depositor = parcels.clone().map(|parcels| Depositor::new(cell, parcels));
        let ways = Ways { depositor, withdrawn: withdrawn.clone() };
        threads.push(std::thread::spawn(move || {
            cell::run((cell, watch), (&inputs, ways), (comm, &devices, nth), &control, &news);
        }));
    }
    drop((news, parcels, withdrawn));
    *shared_mesh.lock().unwrap_or_else(PoisonError::into_inner) = Some(mesh);
    Gathering { n_cells: cells.len(), ..Gathering::default() }.pump(&gathered, metrics, events);
    for thread in threads {
        drop(thread.join());
    }
    for (gpu, cell, Usage { high_water, total, .. }) in devices.usage() {
        tracing::info!(
            gpu,
            %cell,
            bytes = high_water,
            planned = total,
            "the most memory of a GPU that a cell had in use"
        );
    }
    Ok(())
}

/// Sizes the pool that the arithmetic of all cells shares. With one thread there is nothing to share:
/// work then runs on the cells' own threads.
fn size_pool(threads: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    if let Err(error) = pool.build_global() {
        // A process has one pool for its life: a second generation finds it sized.
        tracing::debug!(%error, "the pool stays as it is");
    }
}

/// A step that some cells have ended.
#[derive(Debug, Default)]
struct Step {
    done: usize,
    /// Of the cell that took longest.
    compute_seconds: f64,
    /// If one of them had it.
    report: Option<StepReport>,
    sums: Vec<(CellId, u64)>,
}

/// Turns what single cells report into what the worker reports: once, when all have.
#[derive(Debug, Default)]
struct Gathering {
    n_cells: usize,
    ready: usize,
    steps: BTreeMap<u64, Step>,
    /// Cells that have nothing left to do, or want to go back.
    ended: usize,
    failed: BTreeSet<CellId>,
}

impl Gathering {
    fn pump(
        mut self,
        gathered: &Receiver<(CellId, CellNews)>,
        metrics: &Metrics,
        events: &UnboundedSender<EngineEvent>,
    ) {
        while let Ok((cell, news)) = gathered.recv() {
            if let Some(event) = self.take(cell, news) {
                if let EngineEvent::StepDone { step, .. } = &event {
                    metrics.step_done(*step);
                }
                report(events, event);
            }
        }
        if self.failed.is_empty() && self.ended < self.n_cells && self.ready == self.n_cells {
            // A thread that panicked said nothing; its message is in this worker's log.
            let what = "a cell's thread ended without a word: see this worker's log".to_owned();
            let kind = FailureKind::Internal;
            let (layer, unreachable) = (None, Vec::new());
            report(events, EngineEvent::Failed { step: 0, kind, what, layer, unreachable });
        }
    }

    fn take(&mut self, cell: CellId, news: CellNews) -> Option<EngineEvent> {
        match news {
            CellNews::Ready => {
                self.ready += 1;
                (self.ready == self.n_cells).then_some(EngineEvent::Ready)
            }
            CellNews::StepDone { step, compute_seconds, report, checksum } => {
                let so_far = self.steps.entry(step).or_default();
                so_far.done += 1;
                so_far.compute_seconds = so_far.compute_seconds.max(compute_seconds);
                so_far.report = so_far.report.take().or(report);
                so_far.sums.extend(checksum.map(|sum| (cell, sum)));
                if so_far.done < self.n_cells {
                    return None;
                }
                let Step { compute_seconds, report, sums, .. } = self.steps.remove(&step)?;
                Some(EngineEvent::StepDone { step, compute_seconds, report, sums })
            }
            CellNews::Traced(trace) => Some(EngineEvent::Traced(Box::new(trace))),
            CellNews::Evaluated { step, evaluations } => {
                Some(EngineEvent::Evaluated { step, evaluations })
            }
            CellNews::Part { standing, files } => {
                Some(EngineEvent::CheckpointPart { standing, cell, files })
            }
            CellNews::PartFailed { standing, why } => {
                Some(EngineEvent::CheckpointPartFailed { standing, cell, why })
            }
            CellNews::Finished { step, ending } => {
                self.ended += 1;
                (self.ended == self.n_cells).then_some(EngineEvent::Finished { step, ending })
            }
            CellNews::Held { standing, blake3 } => {
                Some(EngineEvent::Held { standing, cell, blake3 })
            }
            CellNews::GoBack { standing } => {
                self.ended += 1;
                (self.ended == self.n_cells).then_some(EngineEvent::GoBack { standing })
            }
            CellNews::AtEdge { standing } => {
                self.ended += 1;
                (self.ended == self.n_cells).then_some(EngineEvent::AtEdge { standing })
            }
            CellNews::Failed { step, kind, what, layer, unreachable } => {
                // Cells of one worker fail together; the first to say so speaks for all.
                let first = self.failed.is_empty();
                self.failed.insert(cell);
                first.then_some(EngineEvent::Failed { step, kind, what, layer, unreachable })
            }
        }
    }
}

fn failed(step: u64, error: &EngineError) -> EngineEvent {
    EngineEvent::Failed {
        step,
        kind: error.kind(),
        what: error.to_string(),
        layer: error.layer(),
        unreachable: error.unreachable(),
    }
}

/// The receiver is gone only when the worker is leaving anyway.
fn report(events: &UnboundedSender<EngineEvent>, event: EngineEvent) {
    drop(events.send(event));
}

fn tell(news: &Sender<(CellId, CellNews)>, cell: CellId, what: CellNews) {
    drop(news.send((cell, what)));
}
