//! How many bytes of a GPU a cell of a plan needs, before there is any: the cell goes through a whole step and an evaluation
//! on an imagined device, by the same code that takes the same blocks in the same order from an arena of the same kind. No
//! number is computed and no memory touched; a plan of any size takes a moment.

use std::collections::{BTreeMap, BTreeSet};

use shoal_kernels::adamw::AdamStep;
use shoal_kernels::cuda::Kinds;
use shoal_kernels::{DType, Tensor};
use shoal_plan::grid::CellId;
use shoal_plan::job::Job;
use shoal_plan::plan::Plan;
use shoal_plan::schedule::{Slot, Work};

use super::gpu::Gpu;
use super::network::Network;
use super::room::Room;
use crate::arithmetic::Arithmetic;
use crate::batch::{Batch, BatchShape};
use crate::cut::Cut;
use crate::error::Error;
use crate::exchange::{Exchange, ExchangeError};
use crate::options::StageOptions;
use crate::stage::NO_SCALE;

/// Steps with up to so many microbatches are all tried, where a ramp has them all; of longer ones the longest.
const TRIED_MAX: u32 = 16;

/// What one cell needs of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// One allocation of so many is enough, and one of less is not.
    pub bytes: usize,
    /// What for, when most is in use; what is left to `bytes` are gaps.
    pub kinds: Kinds,
}

impl Need {
    /// Of a cell of a plan.
    ///
    /// # Errors
    /// A precision that a GPU does not have; sizes that no kernel takes.
    pub fn of(job: &Job, plan: &Plan, id: CellId) -> Result<Self, Error> {
        StageOptions::from(&job.training).check_gpu()?;
        let mut cell = Imagined::new(job, plan, id)?;
        for microbatches in step_lengths(job) {
            cell.step(job, plan, microbatches)?;
        }
        cell.evaluation()?;
        let arena = &cell.gpu.arena;
        Ok(Self { bytes: arena.usage().high_water, kinds: arena.fullest() })
    }

    /// The kinds that need most, largest first.
    pub fn largest(&self) -> Vec<(&'static str, usize)> {
        let mut kinds: Vec<_> = self.kinds.iter().map(|(what, bytes)| (*what, *bytes)).collect();
        kinds.sort_by_key(|(what, bytes)| (std::cmp::Reverse(*bytes), *what));
        kinds
    }
}

/// Numbers of microbatches that steps of a job have.
fn step_lengths(job: &Job) -> BTreeSet<u32> {
    let longest = job.largest_division().n_microbatches();
    let first = job.division_at(1).n_microbatches();
    (first.min(longest)..longest.min(TRIED_MAX)).chain([longest]).collect()
}

/// A cell on a device that is none. Its microbatches are empty: what counts is the room that they take.
struct Imagined {
    gpu: Gpu,
    id: CellId,
    chunks: Vec<Network>,
    biases: BTreeMap<u32, Vec<f32>>,
    group: Echo,
}

/// Empty messages: what a member sends is what it gets.
struct Echo {
    size: usize,
    rank: usize,
}

impl Exchange for Echo {
    fn size(&self) -> usize {
        self.size
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn all_to_all(&mut self, outgoing: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        Ok(outgoing)
    }
}

const BATCH: Batch<'static> = Batch { sequences: 0, inputs: &[], targets: &[] };
const SHAPE: BatchShape = BatchShape { sequences: 0, tokens: 1 };

impl Imagined {
    fn new(job: &Job, plan: &Plan, id: CellId) -> Result<Self, Error> {
        let gpu = Gpu::imagined()?.with_room(Room::of(job, plan, id));
        let options = StageOptions::from(&job.training);
        let arithmetic = Arithmetic::of(&options);
        let cuts = Cut::of(&job.model, plan, id);
        let experts = job.model.n_routed_experts as usize;
        let layers = cuts.iter().flat_map(Cut::moe_layers);
        let biases = layers.map(|layer| (layer, vec![0.0; experts])).collect();
        let group = Echo {
            size: plan.grid.expert_shards as usize,
            rank: plan.grid.cell(id).expert_shard as usize,
        };
        let chunks = cuts.iter().map(|cut| Network::blank(gpu.clone(), cut, arithmetic, &options));
        Ok(Self { chunks: chunks.collect::<Result<_, _>>()?, gpu, id, biases, group })
    }

    /// One step, slot by slot as the worker runs it.
    fn step(&mut self, job: &Job, plan: &Plan, microbatches: u32) -> Result<(), Error> {
        let slots = job.pipeline().slots(plan.grid.cell(self.id).stage, microbatches);
        let mut done = None;
        for (at, slot) in slots.iter().enumerate() {
            let work = slot.work();
            match *slot {
                Slot::Forward(_) => self.forward(work)?,
                Slot::BackwardInput(_) => {
                    let both = slots.get(at + 1) == Some(&Slot::BackwardWeight(work));
                    done = both.then_some(work);
                    let chunk = &mut self.chunks[work.chunk as usize];
                    let d_output = (!chunk.cut().last).then(|| hidden(chunk.cut()));
                    chunk.backward(work.microbatch, d_output.as_ref(), &mut self.group, both)?;
                }
                Slot::BackwardWeight(_) if done == Some(work) => {}
                Slot::BackwardWeight(_) => {
                    self.chunks[work.chunk as usize].backward_weight(work.microbatch)?;
                }
                Slot::RecvForward(_)
                | Slot::RecvBackward(_)
                | Slot::SendForward(_)
                | Slot::SendBackward(_) => {}
            }
        }
        let adam = AdamStep {
            lr: 0.0,
            beta1: 0.0,
            beta2: 0.0,
            epsilon: 1.0,
            weight_decay: 0.0,
            step: 1,
            grad_scale: 1.0,
        };
        for chunk in &mut self.chunks {
            chunk.take_losses()?;
        }
        self.chunks.iter_mut().try_for_each(|chunk| chunk.optimise(&adam, 0.0).map(drop))
    }

    fn forward(&mut self, work: Work) -> Result<(), Error> {
        let Self { chunks, biases, group, .. } = self;
        let chunk = &mut chunks[work.chunk as usize];
        let input = (!chunk.cut().first).then(|| hidden(chunk.cut()));
        let biases = biases.iter().map(|(layer, bias)| (*layer, &bias[..])).collect();
        let mut counts =
            vec![0; chunk.cut().moe_layers().len() * chunk.cut().config.n_routed_experts as usize];
        let what = (&BATCH, SHAPE);
        let world: (&mut dyn Exchange, &mut [u64]) = (group, &mut counts);
        chunk.forward(work.microbatch, what, input.as_ref(), (&NO_SCALE, &biases), world)?;
        Ok(())
    }

    fn evaluation(&mut self) -> Result<(), Error> {
        let Self { chunks, biases, group, .. } = self;
        let biases = biases.iter().map(|(layer, bias)| (*layer, &bias[..])).collect();
        for chunk in chunks {
            let input = (!chunk.cut().first).then(|| hidden(chunk.cut()));
            chunk.evaluate((&BATCH, SHAPE), input.as_ref(), &biases, group)?;
        }
        Ok(())
    }
}

/// What comes from a neighbour in the pipeline.
fn hidden(cut: &Cut) -> Tensor {
    Tensor::zeros(DType::Bf16, &[0, cut.config.hidden_size as usize])
}
