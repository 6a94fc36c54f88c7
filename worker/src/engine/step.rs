//! One training step of one cell: run the slots, sum the gradients, vote, update.
//!
//! Every cell runs the same code; what differs is its slot list, its groups and its part of the
//! model. Nothing here waits on anything but the communicator.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_kernels::adamw::AdamStep;
use shoal_kernels::tensor::{DType, Tensor};
use shoal_model::{Class, LossScale, NonFinite, Stage, Update};
use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::{Cell as Coordinates, CellId};
use shoal_plan::job::{Job, Precision};
use shoal_plan::plan::Plan;
use shoal_plan::report::StepRow;
use shoal_plan::schedule::Slot;

use super::cell::Inputs;
use super::error::{EngineError, Refusal};
use super::group::{GroupExchange, Groups};
use super::snapshot;
use super::vote::{self, Verdict, Vote};
use crate::comm::{Comm, Sum};

/// Guards the division by a zero norm; PyTorch's `clip_grad_norm_` uses the same.
const CLIP_EPSILON: f64 = 1e-6;

/// A cell that trains: its part of the model, its slots and its line to the others.
pub struct Trainer {
    pub(super) id: CellId,
    pub(super) at: Coordinates,
    pub(super) inputs: Arc<Inputs>,
    pub(super) stage: Stage,
    pub(super) comm: Box<dyn Comm>,
    pub(super) groups: Groups,
    /// Where this cell met a value that is not finite, before the sums spread it.
    found: Option<NonFinite>,
}

/// What a step that was committed leaves behind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepDone {
    pub row: StepRow,
    /// Some worker was asked to stop: this step is the last.
    pub stop: bool,
}

impl Trainer {
    /// A trainer for one cell of the inputs' plan.
    pub fn new(inputs: Arc<Inputs>, stage: Stage, comm: Box<dyn Comm>) -> Self {
        let id = comm.cell();
        let Plan { grid, .. } = inputs.plan;
        let at = grid.cell(id);
        let mtp = inputs.job.model.num_nextn_predict_layers > 0;
        Self { id, at, stage, comm, groups: Groups::of(grid, id, mtp), found: None, inputs }
    }

    /// Writes this cell's files of a checkpoint; `None` for a cell that others write for.
    pub(super) fn write_checkpoint(
        &self,
        step: u64,
    ) -> Result<Option<Vec<CheckpointFile>>, EngineError> {
        snapshot::write(&self.inputs, self.id, &[&self.stage], step)
    }

    /// This cell's part of the model.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Drops what `gradients_of` left behind, as if the step had not run.
    pub fn forget_gradients(&mut self) {
        self.stage.abandon();
        self.found = None;
    }

    /// Trains step `step` (1-based). A refused step leaves everything as it was before it. On any
    /// other error the cell's state is of no further use: the gradients may hold half a sum, and
    /// training goes on from the last checkpoint.
    pub fn train_step(&mut self, step: u64, stop_wanted: bool) -> Result<StepDone, EngineError> {
        self.gradients_of(step)?;
        let verdict = self.vote(stop_wanted)?;
        if let Some((cell, nonfinite)) = verdict.refused {
            let worker = self.inputs.plan.host(cell);
            let here = worker == self.inputs.plan.host(self.id);
            self.forget_gradients();
            return Err(EngineError::Refused(Refusal {
                worker,
                here,
                nonfinite,
                stop: verdict.stop,
            }));
        }
        self.update(step, &verdict);
        Ok(StepDone { row: self.row(step, &verdict), stop: verdict.stop })
    }

    /// Forward and backward over all microbatches, then the sums over the groups: afterwards the
    /// gradient arenas hold the gradient of the global loss.
    pub fn gradients_of(&mut self, step: u64) -> Result<(), EngineError> {
        self.run_slots(step)?;
        self.found = self.stage.first_nonfinite();
        let gradients = self.stage.parameters_mut();
        let dense = gradients.gradients_mut(Class::Dense);
        self.comm.all_reduce(&self.groups.stage, Sum::F32(dense))?;
        let expert = gradients.gradients_mut(Class::Expert);
        self.comm.all_reduce(&self.groups.replicas, Sum::F32(expert))?;
        if let Some(holders) = &self.groups.embedding {
            let embedding = gradients.gradients_mut(Class::Embedding);
            self.comm.all_reduce(holders, Sum::F32(embedding))?;
        }
        self.comm.all_reduce(&self.groups.stage, Sum::U64(self.stage.counts_mut()))?;
        Ok(())
    }

    fn run_slots(&mut self, step: u64) -> Result<(), EngineError> {
        let grid = self.inputs.plan.grid;
        let Job { schedule, .. } = self.inputs.job;
        let division = self.inputs.job.division_at(step);
        let scale = loss_scale(&self.inputs.job, step);
        let column = grid.column(self.id);
        let sequences = |microbatch: u32| {
            let part = division.microbatch(column, microbatch.into());
            (part.end - part.start) as usize
        };
        // What arrived for, or waits to leave after, each microbatch.
        let mut inbox: BTreeMap<u32, Tensor> = BTreeMap::new();
        let mut outbox: BTreeMap<u32, Tensor> = BTreeMap::new();
        for slot in schedule.slots(self.at.stage, grid.stages, division.n_microbatches()) {
            match slot {
                Slot::RecvForward(microbatch) => {
                    let from = grid.previous(self.id).expect("the first stage receives nothing");
                    inbox.insert(microbatch, self.recv_hidden(from, sequences(microbatch))?);
                }
                Slot::Forward(microbatch) => {
                    let tokens = self.inputs.microbatch(column, step, microbatch)?;
                    let batch = tokens.batch();
                    let input = inbox.remove(&microbatch);
                    let Self { stage, comm, groups, .. } = self;
                    let mut exchange = GroupExchange { comm: &mut **comm, group: &groups.experts };
                    let output = stage.forward(microbatch, &batch, input, &scale, &mut exchange)?;
                    outbox.extend(output.map(|output| (microbatch, output)));
                }
                Slot::SendForward(microbatch) => {
                    let to = grid.next(self.id).expect("the last stage sends nothing on");
                    self.send_hidden(to, outbox.remove(&microbatch))?;
                }
                Slot::RecvBackward(microbatch) => {
                    let from = grid.next(self.id).expect("the last stage starts the backward");
                    inbox.insert(microbatch, self.recv_hidden(from, sequences(microbatch))?);
                }
                Slot::BackwardInput(microbatch) => {
                    let d_output = inbox.remove(&microbatch);
                    let Self { stage, comm, groups, .. } = self;
                    let mut exchange = GroupExchange { comm: &mut **comm, group: &groups.experts };
                    let d_input = stage.backward_input(microbatch, d_output, &mut exchange)?;
                    outbox.extend(d_input.map(|d_input| (microbatch, d_input)));
                }
                Slot::SendBackward(microbatch) => {
                    let to = grid.previous(self.id).expect("the first stage ends the backward");
                    self.send_hidden(to, outbox.remove(&microbatch))?;
                }
                Slot::BackwardWeight(microbatch) => self.stage.backward_weight(microbatch)?,
            }
        }
        Ok(())
    }

    pub(super) fn send_hidden(
        &mut self,
        to: CellId,
        hidden: Option<Tensor>,
    ) -> Result<(), EngineError> {
        let hidden = hidden.expect("a send follows the slot that made its tensor");
        Ok(self.comm.send(to, hidden.bytes().to_vec())?)
    }

    pub(super) fn recv_hidden(
        &mut self,
        from: CellId,
        sequences: usize,
    ) -> Result<Tensor, EngineError> {
        let job = &self.inputs.job;
        let dtype = wire_dtype(job.training.precision);
        let rows = sequences * job.training.sequence as usize;
        let shape = [rows, job.model.hidden_size as usize];
        let bytes = self.comm.recv(from)?;
        let (got, want) = (bytes.len(), rows * shape[1] * dtype.size());
        let what = "hidden states";
        Tensor::from_bytes(dtype, &shape, &bytes).map_err(|_| EngineError::Message {
            what,
            from,
            got,
            want,
        })
    }

    /// Counts each unique parameter on one cell: dense ones and the embedding where the column is
    /// 0 (the embedding on the first stage only), experts on replica 0.
    fn vote(&mut self, stop: bool) -> Result<Verdict, EngineError> {
        let norms = self.stage.sum_of_squares();
        let column = self.inputs.plan.grid.column(self.id);
        let counted = [
            (column == 0, norms.dense),
            (self.at.replica == 0, norms.expert),
            (column == 0 && self.at.stage == 0, norms.embedding),
        ];
        let losses = self.stage.take_losses();
        let mine = Vote {
            sum_of_squares: counted.iter().filter(|(mine, _)| *mine).map(|(_, sum)| sum).sum(),
            main_sum: losses.main_sum,
            mtp_sum: losses.mtp_sum,
            balance_sum: losses.balance_sum,
            stop,
            nonfinite: self.found.take(),
        };
        let gathered = self.comm.all_gather(&self.groups.all, mine.to_bytes())?;
        let votes: Result<Vec<Vote>, EngineError> = (self.groups.all.iter().zip(&gathered))
            .map(|(from, bytes)| Vote::from_bytes(*from, bytes))
            .collect();
        Ok(vote::count(&votes?))
    }

    fn update(&mut self, step: u64, verdict: &Verdict) {
        let training = &self.inputs.job.training;
        let clip = f64::from(training.clip) / (verdict.grad_norm + CLIP_EPSILON);
        let adam = AdamStep {
            lr: training.lr_at(step),
            beta1: training.beta1,
            beta2: training.beta2,
            epsilon: training.epsilon,
            weight_decay: training.weight_decay,
            step,
            grad_scale: clip.min(1.0) as f32,
        };
        self.stage.update(&Update { adam, bias_speed: training.bias_speed_at(step) });
    }

    fn row(&self, step: u64, verdict: &Verdict) -> StepRow {
        let Job { training, .. } = &self.inputs.job;
        let targets = Targets::of(&self.inputs.job, step);
        let main_loss = verdict.main_sum / targets.main as f64;
        let mtp_loss = verdict.mtp_sum / targets.mtp.max(1) as f64;
        let balance_loss = f64::from(training.balance_weight) * verdict.balance_sum
            / f64::from(training.batch_at(step));
        StepRow {
            step,
            loss: main_loss + f64::from(training.mtp_weight_at(step)) * mtp_loss + balance_loss,
            main_loss,
            mtp_loss,
            balance_loss,
            grad_norm: verdict.grad_norm,
            lr: f64::from(training.lr_at(step)),
            tokens: targets.main,
        }
    }
}

/// Target tokens of one step over all cells.
struct Targets {
    main: u64,
    /// The last position of a sequence has no second-next token.
    mtp: u64,
}

impl Targets {
    fn of(job: &Job, step: u64) -> Self {
        let batch = u64::from(job.training.batch_at(step));
        let sequence = u64::from(job.training.sequence);
        let mtp = if job.model.num_nextn_predict_layers > 0 { batch * (sequence - 1) } else { 0 };
        Self { main: batch * sequence, mtp }
    }
}

/// Losses are divided by the global number of target tokens before backward, so that every later
/// reduction is a plain sum.
fn loss_scale(job: &Job, step: u64) -> LossScale {
    let targets = Targets::of(job, step);
    LossScale {
        main: 1.0 / targets.main as f32,
        mtp: job.training.mtp_weight_at(step) / targets.mtp.max(1) as f32,
        balance: job.training.balance_weight / job.training.batch_at(step) as f32,
    }
}

/// Hidden states travel between stages in the dtype of the residual stream.
pub(super) fn wire_dtype(precision: Precision) -> DType {
    match precision {
        Precision::Fp8 | Precision::Bf16 => DType::Bf16,
        Precision::F32 => DType::F32,
    }
}
