//! One training step of one cell: run the slots, sum the gradients, vote, update.
//!
//! Every cell runs the same code; what differs is its slot list, its groups and its part of the
//! model. Nothing here waits on anything but the communicator.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use shoal_kernels::adamw::AdamStep;
use shoal_kernels::tensor::Tensor;
use shoal_model::{Class, LossScale, NonFinite, Stage, Update};
use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::{Cell as Coordinates, CellId};
use shoal_plan::job::Job;
use shoal_plan::plan::Plan;
use shoal_plan::report::StepRow;
use shoal_plan::schedule::{Slot, Work};
use shoal_plan::trace::{Doing, Span};

use super::cell::Inputs;
use super::error::{EngineError, Refusal};
use super::group::{GroupExchange, Groups};
use super::hidden::{Direction, Early};
use super::snapshot;
use super::vote::{self, Verdict, Vote, Wishes};
use crate::comm::{Comm, Sum};
use crate::metrics::StepWatch;

/// Guards the division by a zero norm; PyTorch's `clip_grad_norm_` uses the same.
const CLIP_EPSILON: f64 = 1e-6;

/// A cell that trains: its part of the model, its slots and its line to the others.
pub struct Trainer {
    pub(super) id: CellId,
    pub(super) at: Coordinates,
    pub(super) inputs: Arc<Inputs>,
    /// Its part of the model: a stage for each chunk, in the order of the network.
    pub(super) chunks: Vec<Stage>,
    pub(super) comm: Box<dyn Comm>,
    pub(super) groups: Groups,
    pub(super) early: Early,
    /// Of a worker's cells.
    pub(super) watch: Option<StepWatch>,
    /// Where this cell met a value that is not finite, before the sums spread it.
    found: Option<NonFinite>,
}

/// What a step that was committed leaves behind.
#[derive(Clone, Debug, PartialEq)]
pub struct StepDone {
    pub row: StepRow,
    /// Of the cell's parameters.
    pub checksum: u64,
    /// What the workers' cells wish: alike on all of them.
    pub(super) wishes: Wishes,
}

impl Trainer {
    /// A trainer for one cell of the inputs' plan.
    pub fn new(inputs: Arc<Inputs>, chunks: Vec<Stage>, comm: Box<dyn Comm>) -> Self {
        let id = comm.cell();
        let Plan { grid, .. } = inputs.plan;
        let at = grid.cell(id);
        let groups = Groups::of(grid, id, inputs.job.model.embedding_is_at_both_ends());
        Self { id, at, chunks, comm, groups, early: Early::new(), watch: None, found: None, inputs }
    }

    /// Writes this cell's files of a checkpoint into a directory beside the others'.
    pub(super) fn write_checkpoint(
        &self,
        into: (&Path, u64),
    ) -> Result<Vec<CheckpointFile>, EngineError> {
        let chunks: Vec<&Stage> = self.chunks.iter().collect();
        snapshot::write(&self.inputs, (self.id, &chunks), into)
    }

    /// Writes them into scratch files.
    pub(super) fn write_scratch(&self) -> Result<Vec<(CheckpointFile, File)>, EngineError> {
        let chunks: Vec<&Stage> = self.chunks.iter().collect();
        snapshot::write_scratch(&self.inputs, self.id, &chunks)
    }

    /// Brings what is to be written down to the host, from the GPU that has it.
    pub(super) fn fetch(&mut self) -> Result<(), EngineError> {
        Ok(self.chunks.iter_mut().try_for_each(Stage::fetch)?)
    }

    /// This cell's part of the model.
    pub fn chunks(&self) -> &[Stage] {
        &self.chunks
    }

    /// Drops what `gradients_of` left behind, as if the step had not run.
    pub fn forget_gradients(&mut self) {
        for chunk in &mut self.chunks {
            chunk.abandon();
        }
        self.found = None;
    }

    /// Trains step `step` (1-based). A refused step leaves everything as it was before it. On any
    /// other error the cell's state is of no further use: the gradients may hold half a sum, and
    /// training goes on from the last checkpoint.
    pub fn train_step(&mut self, step: u64, stop_wanted: bool) -> Result<StepDone, EngineError> {
        self.train(step, Wishes { stop: stop_wanted, ..Wishes::default() })
    }

    pub(super) fn train(&mut self, step: u64, wishes: Wishes) -> Result<StepDone, EngineError> {
        self.gradients_of(step)?;
        let began = self.began();
        let verdict = self.vote(step, wishes)?;
        self.ended(began, Doing::Vote, None);
        if let Some((cell, nonfinite)) = verdict.refused {
            let worker = self.inputs.plan.host(cell);
            let here = worker == self.inputs.plan.host(self.id);
            self.forget_gradients();
            let wishes = verdict.wishes;
            return Err(EngineError::Refused(Refusal { worker, here, nonfinite, wishes }));
        }
        self.update(step, &verdict)?;
        let sums = self.chunks.iter().map(Stage::checksum);
        let checksum = sums.fold(0, u64::wrapping_add);
        Ok(StepDone { row: self.row(step, &verdict), checksum, wishes: verdict.wishes })
    }

    /// Forward and backward over all microbatches, then the sums over the groups: afterwards the
    /// gradient arenas hold the gradient of the global loss.
    pub fn gradients_of(&mut self, step: u64) -> Result<(), EngineError> {
        self.run_slots(step)?;
        for chunk in &mut self.chunks {
            chunk.settle()?;
        }
        let found = self.chunks.iter().filter_map(Stage::first_nonfinite);
        self.found = found.min_by_key(NonFinite::causal_order);
        let began = self.began();
        let Self { chunks, comm, groups, .. } = self;
        for chunk in chunks.iter_mut() {
            let gradients = chunk.parameters_mut();
            let dense = gradients.gradients_mut(Class::Dense);
            comm.all_reduce(&groups.stage, Sum::F32(dense))?;
            let expert = gradients.gradients_mut(Class::Expert);
            comm.all_reduce(&groups.replicas, Sum::F32(expert))?;
        }
        // At most one chunk of a cell has a copy, or the cell is the whole pipeline.
        let ends = chunks.iter_mut().find(|chunk| chunk.cut().first || chunk.cut().last);
        if let Some((holders, chunk)) = groups.embedding.as_ref().zip(ends) {
            let embedding = chunk.parameters_mut().gradients_mut(Class::Embedding);
            comm.all_reduce(holders, Sum::F32(embedding))?;
        }
        for chunk in chunks.iter_mut() {
            comm.all_reduce(&groups.stage, Sum::U64(chunk.counts_mut()))?;
        }
        self.ended(began, Doing::Sums, None);
        Ok(())
    }

    fn run_slots(&mut self, step: u64) -> Result<(), EngineError> {
        let division = self.inputs.job.division_at(step);
        let scale = loss_scale(&self.inputs.job, step);
        let column = self.inputs.plan.grid.column(self.id);
        let sequences = |work: Work| {
            let part = division.microbatch(column, work.microbatch.into());
            (part.end - part.start) as usize
        };
        // What arrived for, or waits to leave after, each piece of work.
        let mut inbox: BTreeMap<Work, Tensor> = BTreeMap::new();
        let mut outbox: BTreeMap<Work, Tensor> = BTreeMap::new();
        let made = "a send follows the slot that made its tensor";
        let slots = self.inputs.job.pipeline().slots(self.at.stage, division.n_microbatches());
        // Of this both halves of backward are done at once.
        let mut done = None;
        for (at, slot) in slots.iter().enumerate() {
            let work = slot.work();
            let began = self.began();
            let mut doing = Doing::of(*slot);
            match *slot {
                Slot::RecvForward(_) => {
                    let hidden = self.recv_hidden(Direction::Forward, work, sequences(work))?;
                    inbox.insert(work, hidden);
                }
                Slot::RecvBackward(_) => {
                    let gradient = self.recv_hidden(Direction::Backward, work, sequences(work))?;
                    inbox.insert(work, gradient);
                }
                Slot::Forward(_) => {
                    let output = self.forward((column, step), work, inbox.remove(&work), &scale)?;
                    outbox.extend(output.map(|output| (work, output)));
                }
                Slot::BackwardInput(_) => {
                    let d_output = inbox.remove(&work);
                    // Where nothing is to be sent between the halves, nobody waits for the first.
                    let both = slots.get(at + 1) == Some(&Slot::BackwardWeight(work));
                    done = both.then_some(work);
                    let (chunk, mut exchange) = self.chunk(work);
                    let half = if both { Stage::backward } else { Stage::backward_input };
                    let d_input = half(chunk, work.microbatch, d_output, &mut exchange)?;
                    outbox.extend(d_input.map(|d_input| (work, d_input)));
                    doing = if both { Doing::Backward } else { doing };
                }
                Slot::BackwardWeight(_) if done == Some(work) => continue,
                Slot::BackwardWeight(_) => self.chunk(work).0.backward_weight(work.microbatch)?,
                Slot::SendForward(_) => {
                    let hidden = outbox.remove(&work).expect(made);
                    self.send_hidden(Direction::Forward, work, &hidden)?;
                }
                Slot::SendBackward(_) => {
                    let gradient = outbox.remove(&work).expect(made);
                    self.send_hidden(Direction::Backward, work, &gradient)?;
                }
            }
            self.ended(began, doing, Some(work));
        }
        Ok(())
    }

    fn forward(
        &mut self,
        (column, step): (u32, u64),
        work: Work,
        input: Option<Tensor>,
        scale: &LossScale,
    ) -> Result<Option<Tensor>, EngineError> {
        let tokens = self.inputs.microbatch(column, step, work.microbatch)?;
        let batch = tokens.batch();
        let (chunk, mut exchange) = self.chunk(work);
        Ok(chunk.forward(work.microbatch, &batch, input, scale, &mut exchange)?)
    }

    /// A stretch of the step begins, if somebody wants to know.
    fn began(&self) -> Option<Instant> {
        self.watch.as_ref()?.began()
    }

    fn ended(&self, began: Option<Instant>, doing: Doing, work: Option<Work>) {
        if let Some((watch, began)) = self.watch.as_ref().zip(began) {
            let (chunk, microbatch) = work.map(|work| (work.chunk, work.microbatch)).unzip();
            watch.ended(Span { chunk, microbatch, ..Span::new(doing) }, began);
        }
    }

    /// The chunk that a slot works on, and the line to its expert group.
    pub(super) fn chunk(&mut self, work: Work) -> (&mut Stage, GroupExchange<'_>) {
        let Self { chunks, comm, groups, .. } = self;
        let exchange = GroupExchange { comm: &mut **comm, group: &groups.experts };
        (&mut chunks[work.chunk as usize], exchange)
    }

    /// Counts each unique parameter on one cell: dense ones and the embedding where the column is
    /// 0 (the embedding on the first stage only), experts on replica 0.
    fn vote(&mut self, step: u64, wishes: Wishes) -> Result<Verdict, EngineError> {
        let column = self.inputs.plan.grid.column(self.id);
        let nonfinite = self.found.take();
        let mut mine = Vote { wishes, nonfinite, ..Vote::default() };
        // All columns have the summed counts: the first speaks for its stage.
        let tokens = Targets::of(&self.inputs.job, step).main;
        if column == 0 {
            mine.routing = self.chunks.iter().flat_map(|chunk| chunk.routing(tokens)).collect();
            if let Some(watch) = &self.watch {
                for chunk in &mut self.chunks {
                    watch.routed(&chunk.cut().moe_layers(), chunk.counts_mut());
                }
            }
        }
        for chunk in &mut self.chunks {
            let norms = chunk.sum_of_squares();
            let counted = [
                (column == 0, norms.dense),
                (self.at.replica == 0, norms.expert),
                (column == 0 && chunk.cut().first, norms.embedding),
            ];
            let counted = counted.iter().filter(|(mine, _)| *mine);
            mine.sum_of_squares += counted.map(|(_, sum)| sum).sum::<f64>();
            let losses = chunk.take_losses();
            mine.main_sum += losses.main_sum;
            mine.mtp_sum += losses.mtp_sum;
            mine.balance_sum += losses.balance_sum;
        }
        let gathered = self.comm.all_gather(&self.groups.all, mine.to_bytes())?;
        let votes: Result<Vec<Vote>, EngineError> = (self.groups.all.iter().zip(&gathered))
            .map(|(from, bytes)| Vote::from_bytes(*from, bytes))
            .collect();
        Ok(vote::count(&votes?))
    }

    fn update(&mut self, step: u64, verdict: &Verdict) -> Result<(), EngineError> {
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
        let update = Update { adam, bias_speed: training.bias_speed_at(step) };
        let Self { chunks, watch, .. } = self;
        let mut run = || chunks.iter_mut().try_for_each(|chunk| chunk.update(&update));
        match watch {
            Some(watch) => watch.optimizer(run)?,
            None => run()?,
        }
        Ok(())
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
            router: verdict.routing.clone(),
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
