//! An expert group inside a machine: how long a sequence takes in it, and how many layers it has room for.

use super::super::predict::capacity;
use super::super::{Layout, Question};
use super::{parameter_bytes, row_bytes};
use crate::arithmetic;
use crate::cost::compute::{Card, Load};
use crate::cost::links::Member;
use crate::memory;

/// Seconds of a sequence in a unit: its cards share tokens and experts evenly, as they are alike, and exchange rows.
pub(super) fn unit_times(
    question: &Question<'_>,
    layout: &Layout<'_>,
    machine: usize,
    shards: u32,
    low: u32,
) -> [f64; 4] {
    let (job, model) = (question.job, &question.job.model);
    let rig = &question.fleet.rigs[layout.network.rig(machine)];
    let card = Card::of(rig, job, question.software);
    let sequence = f64::from(job.training.sequence);
    // The largest of the range is the fastest for each token.
    let own = f64::from((2 * low - 1).min(job.training.batch)) * sequence;
    let all = own * f64::from(shards);
    let share = 1.0 / f64::from(shards);
    let load = Load {
        own,
        routed: all * f64::from(model.num_experts_per_tok) * share,
        experts: f64::from(model.n_routed_experts) * share,
    };
    let times = card.layer_times(job, load);
    let members = vec![Member { machine, own, experts: share }; shards as usize];
    let exchange = layout.network.exchange(model, &members, question.software);
    let wide = row_bytes(job);
    let narrow = wide.min(f64::from(model.hidden_size));
    let exchanged = 2.0 * (exchange.seconds(narrow) + exchange.seconds(wide));
    let exchanged = question.software.exposed(exchanged, times.moe.total());
    let sequences = all / sequence;
    let moe = times.moe.total() + exchanged;
    [times.dense.total(), moe, times.last.total(), times.moe.forward].map(|t| t / sequences)
}

/// What layers take on a unit's tightest card.
#[derive(Clone, Copy)]
pub(super) struct Room {
    /// Bytes of the card, of a layer's state, of what a microbatch leaves behind in it, and of an embedding or a head.
    pub(super) free: f64,
    state: f64,
    kept: f64,
    table: f64,
    /// The states of the layers at the start that are no mixtures.
    dense: f64,
    dense_layers: f64,
}

impl Room {
    /// Whole layers with so many microbatches under way: in the middle of the pipeline, at its start, and at its end.
    pub(super) fn layers(&self, under_way: f64) -> [f64; 3] {
        let each = self.state + under_way * self.kept;
        let whole = |free: f64| (free / each).floor().max(0.0);
        let start = self.free - self.table - self.dense;
        let start = if start > 0.0 { self.dense_layers + whole(start) } else { 0.0 };
        [whole(self.free), start, whole(self.free - self.table)]
    }
}

pub(super) fn room(question: &Question<'_>, rig: usize, shards: u32, low: u32) -> Room {
    let (job, model) = (question.job, &question.job.model);
    let layer = model.num_hidden_layers - 1;
    let experts = model.n_routed_experts / shards;
    let weights =
        arithmetic::dense_linears(model, layer) + arithmetic::routed_linears(model, layer, experts);
    let tokens = u64::from(low) * u64::from(job.training.sequence);
    let kept = memory::kept_by_layer(job, layer, tokens, shards) as f64;
    let parameter = parameter_bytes(job);
    let table = f64::from(model.vocab_size) * f64::from(model.hidden_size);
    let dense = (0..model.num_hidden_layers).filter(|at| !model.is_moe(*at));
    let dense: Vec<f64> = dense.map(|at| arithmetic::dense_linears(model, at) as f64).collect();
    Room {
        free: capacity(question, rig) as f64,
        state: weights as f64 * parameter,
        kept,
        table: table * parameter.max(10.0 + job.training.moments.bytes() as f64),
        dense: dense.iter().sum::<f64>() * parameter,
        dense_layers: dense.len() as f64,
    }
}
