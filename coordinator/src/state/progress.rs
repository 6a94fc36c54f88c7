//! What is committed: steps that all workers have done, checkpoints whose manifest is written.

use shoal_plan::grid::CellId;
use shoal_plan::plan::WorkerId;
use shoal_plan::report::StepRow;
use shoal_proto::ToWorker;

use super::{Effect, Ignored, Phase, State};
use crate::ledger::LedgerRow;
use crate::news::{Cause, News};

impl State {
    pub(super) fn step_done(&mut self, worker: WorkerId, step: u64, row: Option<StepRow>) {
        let last = self.settings.job.training.steps;
        let reports_rows = self.plan().host(CellId(0)) == worker;
        let phase = self.phase;
        let member = self.member(worker);
        let (connection, want) = (member.connection, member.done + 1);
        if phase == Phase::Preparing {
            return self.ignore(connection, Ignored::OutOfPhase(phase));
        }
        if step < want {
            return self.ignore(connection, Ignored::Repeated);
        }
        if step > want || step > last || member.finished.is_some() {
            let why = format!("step {step} done: want step {want} of {last}");
            return self.fail(Cause::Protocol, Some(worker), why);
        }
        if row.map(|row| row.step) != reports_rows.then_some(step) {
            let why = format!("step {step} done: want its figures from the host of cell-0 only");
            return self.fail(Cause::Protocol, Some(worker), why);
        }
        member.done = step;
        self.rows.extend(row.map(|row| (step, row)));
    }

    pub(super) fn commit_steps(&mut self) {
        let done_by_all = self.members.values().map(|member| member.done).min();
        while Some(self.committed) < done_by_all {
            let step = self.committed + 1;
            let row = self.rows.remove(&step).expect("the host of cell-0 reported it with figures");
            self.committed = step;
            let training = &self.settings.job.training;
            let first_sequence = training.sequences_before(step);
            let sequences = u64::from(training.batch_at(step));
            self.effects.push(Effect::Record(LedgerRow {
                generation: self.generation(),
                step,
                first_sequence,
                sequences,
                loss: row.loss,
            }));
            self.news(News::Step(row));
        }
    }

    pub(super) fn part_fits(
        &self,
        worker: WorkerId,
        step: u64,
        cell: CellId,
    ) -> Result<(), String> {
        let (plan, last) = (self.plan(), self.settings.job.training.steps);
        if cell.0 >= plan.grid.n_cells() || plan.host(cell) != worker {
            return Err(format!("a checkpoint's part of {cell}, which it does not host"));
        }
        if step > last {
            return Err(format!("a checkpoint of step {step}: want {last} or less"));
        }
        Ok(())
    }

    pub(super) fn checkpoint_written(&mut self, step: u64, result: Result<(), String>) {
        if !self.parts.written(step) {
            return;
        }
        match result {
            Ok(()) => {
                self.checkpointed = step;
                self.news(News::CheckpointCommitted { step });
                let generation = self.generation();
                self.send_to_all(&ToWorker::CheckpointCommitted { generation, step });
            }
            Err(why) => {
                self.checkpoint_failed = Some((step, why.clone()));
                self.news(News::CheckpointFailed { step, why });
            }
        }
    }
}
