//! What is committed: steps that all workers have done, checkpoints whose manifest is written.

use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::CellId;
use shoal_plan::plan::WorkerId;
use shoal_plan::report::{Evaluation, Outcome, StepReport};
use shoal_plan::standing::Standing;
use shoal_proto::ToWorker;

use super::{ConnectionId, Effect, Ignored, PartError, Phase, State};
use crate::ledger::{LedgerRow, StepLine};
use crate::news::{Cause, News};

impl State {
    pub(super) fn step_done(
        &mut self,
        worker: WorkerId,
        step: u64,
        report: Option<StepReport>,
        sums: Vec<(CellId, u64)>,
    ) {
        let plan = self.plan();
        let is_own = |cell: CellId| cell.0 < plan.grid.n_cells() && plan.host(cell) == worker;
        let foreign = sums.iter().find(|(cell, _)| !is_own(*cell)).map(|(cell, _)| *cell);
        let last = self.settings.job.training.steps;
        let reports = self.plan().host(CellId(0)) == worker;
        let phase = self.phase;
        let member = self.member(worker);
        let (connection, want) = (member.connection, member.done + 1);
        if !phase.trains() {
            return self.ignore(connection, Ignored::OutOfPhase(phase));
        }
        if step < want {
            return self.ignore(connection, Ignored::Repeated);
        }
        if step > want || step > last || member.has_ended() {
            let why = format!("step {step} done: want step {want} of {last}");
            return self.fail(Cause::Protocol, Some(worker), why);
        }
        if report.as_ref().map(StepReport::step) != reports.then_some(step) {
            let why = format!("step {step} done: want its figures from the host of cell-0 only");
            return self.fail(Cause::Protocol, Some(worker), why);
        }
        member.done = step;
        if let Some(cell) = foreign {
            let why = format!("step {step} done: a sum of {cell}, which it does not host");
            return self.fail(Cause::Protocol, Some(worker), why);
        }
        self.sums.add(step, sums);
        self.reports.extend(report.map(|report| (step, report)));
    }

    /// Kept until the step is committed, so that the news of both come in order.
    pub(super) fn evaluated(&mut self, worker: WorkerId, step: u64, found: Vec<Evaluation>) {
        let reports = self.plan().host(CellId(0)) == worker;
        let phase = self.phase;
        let member = self.member(worker);
        let (connection, done) = (member.connection, member.done);
        if !phase.trains() {
            return self.ignore(connection, Ignored::OutOfPhase(phase));
        }
        if step != done || !reports {
            let why = format!("step {step} evaluated: want step {done}, from the host of cell-0");
            return self.fail(Cause::Protocol, Some(worker), why);
        }
        self.evaluations.insert(step, found);
    }

    pub(super) fn commit_steps(&mut self) {
        let done_by_all = self.hosts().map(|(_, host)| host.done).min();
        while Some(self.committed) < done_by_all {
            self.tell_evaluations();
            let step = self.committed + 1;
            let grid = self.settings.job.grid;
            if let Some(found) = self.sums.disagreement(grid, step) {
                return self.twins_disagree(step, &found);
            }
            let sum = self.sums.take(grid, step).map(|sum| format!("{sum:016x}"));
            let report = self.reports.remove(&step).expect("the host of cell-0 reported it");
            self.committed = step;
            let (loss, skipped) = match &report.outcome {
                Outcome::Trained(row) => (Some(row.loss), None),
                Outcome::Skipped(skip) => {
                    (None, Some(format!("{}: {}", skip.worker, skip.skipped)))
                }
            };
            self.effects.push(Effect::Record(LedgerRow::Step(StepLine {
                generation: self.generation(),
                step,
                first_sequence: report.first_sequence,
                sequences: report.sequences,
                loss,
                skipped,
                sum,
            })));
            self.tempo.step(self.now_ms, &report);
            self.news(News::Step(report));
        }
        self.tell_evaluations();
    }

    /// Of the committed step.
    fn tell_evaluations(&mut self) {
        let step = self.committed;
        if let Some(evaluations) = self.evaluations.remove(&step) {
            self.tempo.rest(self.now_ms);
            self.news(News::Evaluated { step, evaluations });
        }
    }

    pub(super) fn part(
        &mut self,
        worker: WorkerId,
        standing: Standing,
        cell: CellId,
        files: Vec<CheckpointFile>,
    ) {
        let (connection, phase) = (self.member(worker).connection, self.phase);
        if phase == Phase::Recovering {
            // It may be written anew by another host.
            return self.ignore(connection, Ignored::OutOfPhase(phase));
        }
        if let Err(why) = self.part_fits(worker, standing, cell) {
            return self.fail(Cause::Protocol, Some(worker), why);
        }
        match self.parts.add(standing, cell, files) {
            Ok(()) => {}
            Err(PartError::Late) => self.ignore(connection, Ignored::Repeated),
            Err(PartError::Wrong(why)) => self.fail(Cause::Protocol, Some(worker), why),
        }
    }

    pub(super) fn part_fits(
        &self,
        worker: WorkerId,
        standing: Standing,
        cell: CellId,
    ) -> Result<(), String> {
        let (plan, last, step) = (self.plan(), self.settings.job.training.steps, standing.step);
        if cell.0 >= plan.grid.n_cells() || plan.host(cell) != worker {
            return Err(format!("a checkpoint's part of {cell}, which it does not host"));
        }
        if step > last {
            return Err(format!("a checkpoint of step {step}: want {last} or less"));
        }
        Ok(())
    }

    pub(super) fn checkpoint_written(&mut self, step: u64, result: Result<(), String>) {
        let Some(standing) = self.parts.written(step) else { return };
        match result {
            Ok(()) => {
                (self.checkpointed, self.from_checkpoint) = (standing, standing);
                self.news(News::CheckpointCommitted { step });
                let generation = self.generation();
                self.send_to_hosts(&ToWorker::CheckpointCommitted { generation, step });
            }
            Err(why) => {
                self.checkpoint_failed = Some((step, why.clone()));
                self.news(News::CheckpointFailed { step, cell: None, why });
            }
        }
    }

    /// A cell could not write its files. The others' are of no use then, and go when all have said
    /// what became of theirs.
    pub(super) fn part_failed(
        &mut self,
        (worker, connection): (WorkerId, ConnectionId),
        standing: Standing,
        cell: CellId,
        why: String,
    ) {
        if let Err(why) = self.part_fits(worker, standing, cell) {
            return self.fail(Cause::Protocol, Some(worker), why);
        }
        let step = standing.step;
        match self.parts.fail(standing, cell) {
            Ok(true) => {
                let why = format!("{worker}, {cell}: {why}");
                self.checkpoint_failed = Some((step, why.clone()));
                self.news(News::CheckpointFailed { step, cell: Some(cell), why });
            }
            Ok(false) => {}
            Err(PartError::Late) => self.ignore(connection, Ignored::Repeated),
            Err(PartError::Wrong(why)) => self.fail(Cause::Protocol, Some(worker), why),
        }
    }
}
