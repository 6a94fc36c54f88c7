//! A grid of cells in one process: one thread per column, channels between the shards of a replica,
//! and the sums the worker would take with its collectives, in cell order.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use shoal_kernels::adamw::AdamStep;
use shoal_kernels::tensor::Tensor;
use shoal_plan::grid::{CellId, Grid};
use shoal_plan::job::Precision;
use shoal_plan::model::ModelConfig;

use crate::batch::{Batch, BatchTokens};
use crate::cut::Cut;
use crate::error::Error;
use crate::exchange::{Alone, Exchange, ExchangeError};
use crate::optimizer::Update;
use crate::options::StageOptions;
use crate::parameters::Class;
use crate::stage::{LossScale, Losses, Stage};

/// A model small enough for differences of every parameter; no size is a round number.
pub(crate) fn small() -> ModelConfig {
    ModelConfig {
        vocab_size: 23,
        hidden_size: 24,
        intermediate_size: 33,
        moe_intermediate_size: 12,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        n_routed_experts: 6,
        num_experts_per_tok: 2,
        n_group: 3,
        topk_group: 2,
        q_lora_rank: Some(12),
        kv_lora_rank: 10,
        qk_nope_head_dim: 6,
        qk_rope_head_dim: 4,
        v_head_dim: 5,
        initializer_range: 0.2,
        ..ModelConfig::tiny()
    }
}

/// `n` windows of `length` tokens that look like noise but are always the same.
pub(super) fn windows(n: usize, length: usize, vocab_size: u32, seed: u64) -> Vec<Vec<u32>> {
    let mut state = seed;
    let mut token = || {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % u64::from(vocab_size)) as u32
    };
    (0..n).map(|_| (0..length).map(|_| token()).collect()).collect()
}

/// Windows as one microbatch.
pub(super) fn tokens(windows: &[Vec<u32>]) -> BatchTokens {
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    BatchTokens::from_windows(&windows).unwrap()
}

/// The scales of a step over these windows.
pub(super) fn scale_of(windows: &[Vec<u32>]) -> LossScale {
    let targets: usize = windows.iter().map(|window| window.len() - 1).sum();
    LossScale {
        main: 1.0 / targets as f32,
        mtp: 0.3 / (targets - windows.len()) as f32,
        balance: 0.05 / windows.len() as f32,
    }
}

/// The loss a step reports.
pub(super) fn weighted(losses: Losses, scale: &LossScale) -> f64 {
    losses.main_sum * f64::from(scale.main)
        + losses.mtp_sum * f64::from(scale.mtp)
        + losses.balance_sum * f64::from(scale.balance)
}

pub(super) fn update(step: u64, lr: f32) -> Update {
    let adam = AdamStep {
        lr,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step,
        grad_scale: 1.0,
    };
    Update { adam, bias_speed: 0.001 }
}

/// Both passes of one microbatch through a model in one piece.
pub(super) fn train_whole(
    stage: &mut Stage,
    batch: &Batch<'_>,
    scale: &LossScale,
) -> Result<(), Error> {
    stage.forward(0, batch, None, scale, &mut Alone)?;
    stage.backward_input(0, None, &mut Alone)?;
    stage.backward_weight(0)
}

/// All cells of a grid.
pub(super) struct Cluster {
    grid: Grid,
    /// [column][stage].
    pub(super) columns: Vec<Vec<Stage>>,
    microbatch: usize,
    steps: u64,
}

impl Cluster {
    /// The first stage gets the dense layer and half of the others; shards are uneven.
    pub(super) fn new(
        config: &ModelConfig,
        grid: Grid,
        precision: Precision,
        microbatch: usize,
    ) -> Self {
        let n = config.n_routed_experts;
        let experts = match grid.expert_shards {
            1 => std::iter::once(0..n).collect(),
            _ => vec![0..n / 3, n / 3..n],
        };
        Self::with_experts(config, grid, precision, microbatch, &experts)
    }

    /// The same with the experts of every shard given.
    pub(super) fn with_experts(
        config: &ModelConfig,
        grid: Grid,
        precision: Precision,
        microbatch: usize,
        experts: &[Range<u32>],
    ) -> Self {
        let cut_at = config.num_hidden_layers.div_ceil(2);
        let stage = |id: CellId| {
            let cell = grid.cell(id);
            let layers = match (grid.stages, cell.stage) {
                (1, _) => 0..config.num_hidden_layers,
                (_, 0) => 0..cut_at,
                _ => cut_at..config.num_hidden_layers,
            };
            let experts = experts.to_vec();
            let (first, last) = (cell.stage == 0, cell.stage + 1 == grid.stages);
            let shard = cell.expert_shard as usize;
            let cut = Cut { config: config.clone(), layers, first, last, experts, shard };
            Stage::new(cut, &StageOptions::new(precision, 11))
        };
        let column =
            |column| (0..grid.stages).map(|s| stage(grid.stage_group(s)[column])).collect();
        let columns = (0..grid.columns() as usize).map(column).collect();
        Self { grid, columns, microbatch, steps: 0 }
    }

    /// Both passes over all windows, evenly shared, and every sum. Returns the loss.
    pub(super) fn gradients(&mut self, windows: &[Vec<u32>]) -> f64 {
        let share = windows.len() / self.columns.len();
        let shares: Vec<Vec<&[Vec<u32>]>> =
            windows.chunks(share).map(|mine| mine.chunks(self.microbatch).collect()).collect();
        self.gradients_of(&shares, &scale_of(windows))
    }

    /// The same with each column's microbatches given: as many for all, any of them empty.
    pub(super) fn gradients_of(&mut self, shares: &[Vec<&[Vec<u32>]>], scale: &LossScale) -> f64 {
        let meshes = (0..self.grid.replicas).flat_map(|_| mesh(self.grid.expert_shards as usize));
        thread::scope(|scope| {
            for ((column, mine), mut mesh) in self.columns.iter_mut().zip(shares).zip(meshes) {
                scope.spawn(move || {
                    for (number, windows) in mine.iter().enumerate() {
                        train_column(column, number as u32, windows, scale, &mut mesh);
                    }
                });
            }
        });
        self.reduce();
        let mut losses = Losses::default();
        for stage in self.columns.iter_mut().flatten() {
            let mine = stage.take_losses();
            losses.main_sum += mine.main_sum;
            losses.mtp_sum += mine.mtp_sum;
            losses.balance_sum += mine.balance_sum;
        }
        weighted(losses, scale)
    }

    /// A whole optimizer step.
    pub(super) fn step(&mut self, windows: &[Vec<u32>], lr: f32) -> f64 {
        let loss = self.gradients(windows);
        self.steps += 1;
        for stage in self.columns.iter_mut().flatten() {
            stage.update(&update(self.steps, lr)).unwrap();
        }
        loss
    }

    pub(super) fn stages(&self) -> impl Iterator<Item = &Stage> {
        self.columns.iter().flatten()
    }

    /// The gradient of a parameter, from the first cell that holds it.
    pub(super) fn gradient(&self, name: &str) -> &[f32] {
        let holder = self.stages().find(|stage| stage.parameters().contains(name));
        holder.unwrap().parameters().gradient(name)
    }

    fn stage(&mut self, id: CellId) -> &mut Stage {
        &mut self.columns[self.grid.column(id) as usize][self.grid.cell(id).stage as usize]
    }

    fn reduce(&mut self) {
        let grid = self.grid;
        for stage in 0..grid.stages {
            let group = grid.stage_group(stage);
            self.sum(&group, Class::Dense);
            let mut counts = vec![0; self.stage(group[0]).counts_mut().len()];
            for id in &group {
                for (sum, count) in counts.iter_mut().zip(self.stage(*id).counts_mut()) {
                    *sum += *count;
                }
            }
            for id in &group {
                self.stage(*id).counts_mut().copy_from_slice(&counts);
            }
        }
        for id in grid.cells().filter(|id| grid.cell(*id).replica == 0) {
            self.sum(&grid.replica_group(id), Class::Expert);
        }
        let both_ends = self.columns[0][0].cut().config.embedding_is_at_both_ends();
        let holders = if both_ends { grid.embedding_group() } else { grid.stage_group(0) };
        self.sum(&holders, Class::Embedding);
    }

    fn sum(&mut self, group: &[CellId], class: Class) {
        let mut total = self.stage(group[0]).parameters().gradients(class).to_vec();
        for id in &group[1..] {
            let part = self.stage(*id).parameters().gradients(class);
            assert_eq!(part.len(), total.len(), "cells that sum a class hold the same parameters");
            for (total, part) in total.iter_mut().zip(part) {
                *total += part;
            }
        }
        for id in group {
            self.stage(*id).parameters_mut().gradients_mut(class).copy_from_slice(&total);
        }
    }
}

fn train_column(
    column: &mut [Stage],
    number: u32,
    windows: &[Vec<u32>],
    scale: &LossScale,
    mesh: &mut Mesh,
) {
    let tokens = tokens(windows);
    let mut passed: Option<Tensor> = None;
    for stage in column.iter_mut() {
        passed = stage.forward(number, &tokens.batch(), passed, scale, mesh).unwrap();
    }
    for stage in column.iter_mut().rev() {
        passed = stage.backward_input(number, passed, mesh).unwrap();
        stage.backward_weight(number).unwrap();
    }
}

/// One member of a group connected by channels.
pub(super) struct Mesh {
    rank: usize,
    senders: Vec<Sender<Vec<u8>>>,
    receivers: Vec<Receiver<Vec<u8>>>,
}

/// A connected group.
pub(super) fn mesh(size: usize) -> Vec<Mesh> {
    let member = |rank| Mesh { rank, senders: Vec::new(), receivers: Vec::new() };
    let mut all: Vec<Mesh> = (0..size).map(member).collect();
    for source in 0..size {
        for target in 0..size {
            let (sender, receiver) = channel();
            all[source].senders.push(sender);
            all[target].receivers.push(receiver);
        }
    }
    all
}

impl Exchange for Mesh {
    fn size(&self) -> usize {
        self.senders.len()
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn all_to_all(&mut self, outgoing: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        for (sender, bytes) in self.senders.iter().zip(outgoing) {
            sender.send(bytes).map_err(|error| ExchangeError(Box::new(error)))?;
        }
        let received = self.receivers.iter().map(Receiver::recv);
        received.map(|bytes| bytes.map_err(|error| ExchangeError(Box::new(error)))).collect()
    }
}
