//! The modelled engines: cells whose states are numbers, changed by every step as a function of all
//! cells' states and of the samples, so that one stale or foreign state shows everywhere. All cells
//! vote; one step is applied by each worker at a moment of its own, or never if it dies before.

use std::collections::{BTreeMap, BTreeSet};

use shoal_plan::grid::{Cell, CellId};
use shoal_plan::plan::{Generation, WorkerId};
use shoal_plan::report::{Ending, Outcome, Pass, SkippedStep, StepReport, StepRow};
use shoal_plan::standing::{AfterSkip, Standing};
use shoal_proto::{Assign, FailureKind};
use shoal_worker::session::{EngineEvent, Event, Prepared};

use crate::checks::{hash_of, state_of};
use crate::defects::Defect;
use crate::links::LINK_MS;
use crate::reference::{fold, loss, seed, update};
use crate::world::{What, World};

pub(crate) const LAST_STEP: u64 = 30;
pub(crate) const BATCH: u64 = 8;
/// A snapshot into memory every so many steps; a checkpoint every so many.
const SNAPSHOT_EVERY: u64 = 3;
const CHECKPOINT_EVERY: u64 = 7;
const COMPUTE_MS: (u64, u64) = (100, 400);
/// How long an engine waits for its peers to be there: at the first plan, and later.
const JOIN_MS: [u64; 2] = [30_000, 10_000];

/// One worker's engine.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Engine {
    pub(crate) assign: Box<Assign>,
    pub(crate) cells: BTreeMap<CellId, u64>,
    standing: Standing,
    loaded: bool,
    pub(crate) ready: bool,
    begun: bool,
    pub(crate) stop: bool,
    pub(crate) edge: bool,
    /// It has come to an end and says nothing more.
    pub(crate) over: bool,
}

impl Engine {
    pub(crate) fn new(assign: Box<Assign>) -> Self {
        let standing = assign.standing;
        let (loaded, ready, begun) = (false, false, false);
        let (cells, stop, edge, over) = (BTreeMap::new(), false, false, false);
        Self { assign, cells, standing, loaded, ready, begun, stop, edge, over }
    }

    pub(crate) fn generation(&self) -> Generation {
        self.assign.plan.generation
    }
}

/// What all cells have agreed on for one step.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Verdict {
    generation: Generation,
    /// Before the step.
    standing: Standing,
    /// All cells' states.
    all: u64,
    stop: bool,
    edge: bool,
    snapshot: bool,
    /// Some value was not finite.
    skipped: bool,
}

impl World {
    pub(crate) fn start_engine(&mut self, worker: WorkerId, assign: Box<Assign>) {
        self.drop_engine(worker);
        let start = (!assign.sources.is_empty()).then_some(assign.standing.step);
        let generation = assign.plan.generation;
        let me = self.worker(worker);
        me.vault.begin(start);
        me.engine = Some(Engine::new(assign));
        self.later_for(worker, (30, 300), |pid| What::Loaded { worker, pid, generation });
        for in_ms in [LINK_MS, JOIN_MS[usize::from(generation > Generation(1))]] {
            let what = |pid| What::JoinDeadline { worker, pid, generation, in_ms };
            self.later_for(worker, (in_ms, in_ms), what);
        }
    }

    /// Its peers learn of it, if they are still at the same plan.
    pub(crate) fn drop_engine(&mut self, worker: WorkerId) {
        let Some(engine) = self.worker(worker).engine.take() else { return };
        if !engine.over {
            self.miss(worker, engine.generation());
        }
    }

    pub(crate) fn miss(&mut self, lost: WorkerId, generation: Generation) {
        for peer in self.hosts_at(generation) {
            if peer != lost {
                self.later_for(peer, (10, 200), |pid| What::PeerLost {
                    worker: peer,
                    pid,
                    generation,
                });
            }
        }
    }

    /// Workers that live and have an engine of this plan.
    pub(crate) fn hosts_at(&self, generation: Generation) -> Vec<WorkerId> {
        let live = self.workers.iter().filter(|(_, worker)| {
            worker.engine.as_ref().is_some_and(|engine| engine.generation() == generation)
        });
        live.map(|(worker, _)| *worker).collect()
    }

    pub(crate) fn engine_at(
        &mut self,
        worker: WorkerId,
        generation: Generation,
    ) -> Option<&mut Engine> {
        let engine = self.worker(worker).engine.as_mut();
        engine.filter(|engine| engine.generation() == generation && !engine.over)
    }

    pub(crate) fn fail_engine(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        kind: FailureKind,
    ) {
        self.fail(worker, generation, kind, Vec::new());
    }

    pub(crate) fn fail(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        kind: FailureKind,
        unreachable: Vec<WorkerId>,
    ) {
        let Some(engine) = self.engine_at(worker, generation) else { return };
        engine.over = true;
        let (step, what, layer) = (engine.standing.step + 1, format!("modelled: {kind}"), None);
        self.say(worker, EngineEvent::Failed { step, kind, what, layer, unreachable });
        self.miss(worker, generation);
    }

    pub(crate) fn say(&mut self, worker: WorkerId, event: EngineEvent) {
        self.session(worker, Event::Engine(event));
    }

    pub(crate) fn loaded(
        &mut self,
        worker: WorkerId,
        generation: Generation,
    ) -> Result<(), String> {
        let Some(engine) = self.engine_at(worker, generation) else { return Ok(()) };
        let assign = engine.assign.clone();
        // Connections come first.
        if assign.plan.hosts.iter().any(|host| self.is_cut(worker, *host)) {
            self.later_for(worker, (50, 50), |pid| What::Loaded { worker, pid, generation });
            return Ok(());
        }
        let (step, grid) = (assign.standing.step, assign.plan.grid);
        let mut cells = BTreeMap::new();
        for cell in assign.plan.cells_of(worker) {
            let state = if let Some(source) = assign.sources.get(cell.0 as usize) {
                self.fetch(worker, source.worker, source.cell, step, &source.blake3)
            } else if assign.resume_from.is_some_and(|step| self.damaged.contains(&step)) {
                // A file whose hash is another than the manifest's.
                self.checks.damage_was_met = true;
                self.fail_engine(worker, generation, FailureKind::Checkpoint);
                return Ok(());
            } else if let Some(step) = assign.resume_from {
                let first = grid.id(Cell { replica: 0, ..grid.cell(cell) });
                self.disk.get(&step).map(|states| states[&first])
            } else {
                Some(seed(grid, cell))
            };
            let Some(state) = state else {
                self.fail_engine(worker, generation, FailureKind::PeerLost);
                return Ok(());
            };
            self.checks.state((generation, cell), step, state)?;
            cells.insert(cell, state);
        }
        let from_memory = !assign.sources.is_empty();
        let engine = self.engine_at(worker, generation).unwrap();
        (engine.cells, engine.loaded) = (cells.clone(), true);
        for (cell, state) in cells.into_iter().filter(|_| from_memory) {
            self.hold(worker, assign.standing, cell, state);
            self.copy(worker, generation, assign.standing, cell, state);
        }
        self.ready_when_all_are_loaded(generation, &assign);
        Ok(())
    }

    fn fetch(
        &mut self,
        to: WorkerId,
        from: WorkerId,
        cell: CellId,
        step: u64,
        blake3: &str,
    ) -> Option<u64> {
        if self.is_cut(to, from) {
            return None;
        }
        let donor = self.workers.get(&from).filter(|donor| !donor.stopped)?;
        if self.defect == Some(Defect::StaleSnapshot)
            && let Some(stale) = donor.vault.stale(cell, step)
        {
            return Some(stale);
        }
        self.counts.fetched += 1;
        donor.vault.get(cell, step).filter(|state| state_of(blake3) == *state)
    }

    /// The newest snapshot there was, for each of the cells to come; what is gone meanwhile is left out.
    pub(crate) fn got_ready(&mut self, worker: WorkerId, assign: &Assign) {
        let (generation, standing) = (assign.plan.generation, assign.standing);
        let mut cells = Vec::new();
        for cell in assign.plan.cells_of(worker) {
            let Some(source) = assign.sources.get(cell.0 as usize) else { continue };
            let step = standing.step;
            let state = self.fetch(worker, source.worker, source.cell, step, &source.blake3);
            cells.extend(state.map(|state| (cell, hash_of(state))));
        }
        self.session(worker, Event::Prepared(Prepared { generation, standing, cells }));
    }

    fn ready_when_all_are_loaded(&mut self, generation: Generation, assign: &Assign) {
        let hosts: BTreeSet<WorkerId> = assign.plan.hosts.iter().copied().collect();
        let loaded = |host: &WorkerId| {
            let engine = self.workers.get(host).and_then(|worker| worker.engine.as_ref());
            engine.is_some_and(|engine| engine.generation() == generation && engine.loaded)
        };
        if hosts.iter().all(loaded) {
            for worker in hosts {
                self.later_for(worker, (1, 60), |pid| What::Ready { worker, pid, generation });
            }
        }
    }

    pub(crate) fn begin_training(&mut self, worker: WorkerId) {
        let Some(engine) = &mut self.worker(worker).engine else { return };
        engine.begun = true;
        let generation = engine.generation();
        if engine.standing.step == LAST_STEP {
            // It goes on from the last checkpoint: nothing is left to do.
            engine.over = true;
            let (step, ending) = (LAST_STEP, Ending::Completed);
            return self.say(worker, EngineEvent::Finished { step, ending });
        }
        self.compute_when_all_can(generation);
    }

    /// The next vote comes when the slowest has computed.
    fn compute_when_all_can(&mut self, generation: Generation) {
        let engines = self.workers.values().filter_map(|worker| worker.engine.as_ref());
        let engines = engines.filter(|engine| engine.generation() == generation);
        let steps: BTreeSet<Option<u64>> =
            engines.map(|engine| engine.begun.then_some(engine.standing.step)).collect();
        if steps.len() == 1 && !steps.contains(&None) {
            self.later(COMPUTE_MS, What::Vote { generation });
        }
    }

    /// The step that all do next, if all can.
    pub(crate) fn vote(&mut self, generation: Generation) {
        let hosts = self.hosts_at(generation);
        let Some(first) = hosts.first() else { return };
        let engine = self.workers[first].engine.as_ref().unwrap();
        let (plan, standing) = (engine.assign.plan.clone(), engine.standing);
        let engines: Vec<&Engine> =
            hosts.iter().map(|host| self.workers[host].engine.as_ref().unwrap()).collect();
        let all_here = plan.hosts.iter().all(|host| hosts.contains(host));
        let fits = |engine: &&Engine| !engine.over && engine.begun && engine.standing == standing;
        if !all_here || !engines.iter().all(fits) {
            return;
        }
        let waits = hosts.iter().any(|host| self.workers[host].stopped)
            || hosts.iter().any(|a| hosts.iter().any(|b| self.is_cut(*a, *b)));
        let snapshot = (standing.step + 1).is_multiple_of(SNAPSHOT_EVERY) && self.copying == 0;
        let verdict = Verdict {
            generation,
            standing,
            all: fold(by_cell(&engines).into_values()),
            stop: engines.iter().any(|engine| engine.stop),
            edge: engines.iter().any(|engine| engine.edge),
            snapshot,
            skipped: self.checks.reference.is_bad(standing.sequences),
        };
        if waits {
            return self.later((50, 50), What::Vote { generation });
        }
        // Of several that were begun for one step, one counts.
        if self.voted.replace((generation, standing.step)) == Some((generation, standing.step)) {
            return;
        }
        for worker in hosts {
            self.later_for(worker, (1, 40), |pid| What::Apply { worker, pid, verdict });
        }
    }

    pub(crate) fn apply_step(&mut self, worker: WorkerId, verdict: Verdict) -> Result<(), String> {
        let Verdict { generation, standing, all, .. } = verdict;
        let Some(engine) = self.engine_at(worker, generation) else { return Ok(()) };
        let first_sequence = standing.sequences;
        if verdict.skipped {
            return self.skip_step(worker, verdict);
        }
        engine.standing.trained(BATCH);
        let (step, standing) = (engine.standing.step, engine.standing);
        for state in engine.cells.values_mut() {
            *state = update(*state, all, first_sequence);
        }
        let (cells, plan) = (engine.cells.clone(), engine.assign.plan.clone());
        for (cell, state) in &cells {
            self.checks.state((generation, *cell), step, *state)?;
            self.checks.applied.insert((generation, *cell), step);
        }
        let report = (plan.host(CellId(0)) == worker)
            .then(|| report(step, first_sequence, loss(cells[&CellId(0)])));
        let compute_seconds =
            cells.len() as f64 * self.slowness.get(&worker).copied().unwrap_or(1.0);
        let mut sums: Vec<(CellId, u64)> = cells.iter().map(|(cell, sum)| (*cell, *sum)).collect();
        if self.sum_fault == Some(worker) {
            self.sum_fault = None;
            let times = self.sum_faults.entry(step).or_default();
            // The third time in a row is no accident any more, and ends the run.
            if *times < 2 {
                *times += 1;
                sums[0].1 ^= 1;
            }
        }
        self.say(worker, EngineEvent::StepDone { step, compute_seconds, report, sums });
        let ends = step == LAST_STEP || verdict.stop;
        if ends || step.is_multiple_of(CHECKPOINT_EVERY) {
            self.write_parts(worker, standing, &cells);
        }
        let to_edge = verdict.edge && !ends;
        for (cell, state) in cells.into_iter().filter(|_| verdict.snapshot || to_edge) {
            self.hold(worker, standing, cell, state);
            if verdict.snapshot {
                self.copy(worker, generation, standing, cell, state);
            }
        }
        if let Some(engine) = self.engine_at(worker, generation) {
            engine.over = ends || to_edge;
        }
        if ends {
            let ending = if step == LAST_STEP { Ending::Completed } else { Ending::Stopped };
            self.say(worker, EngineEvent::Finished { step, ending });
        } else if to_edge {
            self.say(worker, EngineEvent::AtEdge { standing });
        } else {
            self.compute_when_all_can(generation);
        }
        Ok(())
    }

    /// Nothing changes but where the run stands, and nothing is kept or ended.
    fn skip_step(&mut self, worker: WorkerId, verdict: Verdict) -> Result<(), String> {
        let Verdict { generation, standing: Standing { sequences, .. }, .. } = verdict;
        let Some(engine) = self.engine_at(worker, generation) else { return Ok(()) };
        let after = engine.standing.refused(BATCH, &engine.assign.job.training);
        let (standing, plan) = (engine.standing, engine.assign.plan.clone());
        engine.over = after == AfterSkip::GoBack;
        for cell in plan.cells_of(worker) {
            self.checks.applied.insert((generation, cell), standing.step);
        }
        let skip = || SkippedStep {
            step: standing.step,
            skipped: "modelled".to_owned(),
            worker,
            in_a_row: standing.skips,
            pass: Pass::Forward,
        };
        let report = (plan.host(CellId(0)) == worker).then(|| StepReport {
            first_sequence: sequences,
            sequences: BATCH,
            outcome: Outcome::Skipped(skip()),
        });
        let (step, compute_seconds, sums) = (standing.step, 1.0, vec![]);
        self.say(worker, EngineEvent::StepDone { step, compute_seconds, report, sums });
        match after {
            AfterSkip::GoOn => self.compute_when_all_can(generation),
            AfterSkip::GoBack => self.say(worker, EngineEvent::GoBack { standing }),
            AfterSkip::GiveUp => return Err("too much text is bad for this job".to_owned()),
        }
        Ok(())
    }

    fn write_parts(&mut self, worker: WorkerId, standing: Standing, cells: &BTreeMap<CellId, u64>) {
        let grid = self.grid;
        for (cell, state) in cells.iter().filter(|(cell, _)| grid.cell(**cell).replica == 0) {
            // The last one is not spared by chance: without it the run fails, as it should.
            let last = standing.step == LAST_STEP || self.stop_asked;
            if !last && self.disk_fault && self.random.below(4) == 0 {
                self.disk_fault = false;
                let (cell, why) = (*cell, "disk full".to_owned());
                self.say(worker, EngineEvent::CheckpointPartFailed { standing, cell, why });
                continue;
            }
            let (name, blake3) = (format!("model-{}", cell.0), hash_of(*state));
            let files = vec![shoal_plan::checkpoint::CheckpointFile { name, bytes: 1, blake3 }];
            self.say(worker, EngineEvent::CheckpointPart { standing, cell: *cell, files });
        }
    }

    pub(crate) fn hold(&mut self, worker: WorkerId, standing: Standing, cell: CellId, state: u64) {
        self.worker(worker).vault.put(cell, standing.step, state);
        self.say(worker, EngineEvent::Held { standing, cell, blake3: hash_of(state) });
    }

    /// To the next of the hosts.
    fn copy(
        &mut self,
        from: WorkerId,
        generation: Generation,
        standing: Standing,
        cell: CellId,
        state: u64,
    ) {
        let hosts: BTreeSet<WorkerId> = self.workers[&from]
            .engine
            .as_ref()
            .unwrap()
            .assign
            .plan
            .hosts
            .iter()
            .copied()
            .collect();
        let next = hosts.range(from..).nth(1).or(hosts.first()).copied().unwrap();
        if next != from {
            self.copying += 1;
            self.later((5, 120), What::Copy { to: next, generation, standing, cell, state });
        }
    }

    pub(crate) fn copied(
        &mut self,
        to: WorkerId,
        (generation, standing): (Generation, Standing),
        cell: CellId,
        state: u64,
    ) {
        self.copying -= 1;
        let lives = self.workers.get(&to).is_some_and(|worker| !worker.stopped);
        // An engine that has ended at an edge still takes what was under way.
        let fits = |engine: &Engine| engine.generation() == generation;
        if lives && self.workers[&to].engine.as_ref().is_some_and(fits) {
            self.hold(to, standing, cell, state);
        }
    }
}

/// Sums run in cell order, whoever hosts what.
fn by_cell(engines: &[&Engine]) -> BTreeMap<CellId, u64> {
    let states = engines.iter().flat_map(|engine| &engine.cells);
    states.map(|(cell, state)| (*cell, *state)).collect()
}

fn report(step: u64, first_sequence: u64, loss: f64) -> StepReport {
    let (main_loss, mtp_loss, balance_loss, grad_norm) = (loss, 0.0, 0.0, 1.0);
    let (lr, tokens, router) = (1e-3, 1, Vec::new());
    let row =
        StepRow { step, loss, main_loss, mtp_loss, balance_loss, grad_norm, lr, tokens, router };
    StepReport { first_sequence, sequences: BATCH, outcome: Outcome::Trained(row) }
}
