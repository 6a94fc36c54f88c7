//! The mixture of experts as a residual block on a device, seen from the cell that owns the tokens: `crate::moe` judges
//! it. Rows travel in the same messages, which are packed and read on the device (`super::legs`): the cells of a group need not
//! be of one kind.

mod trade;

use std::sync::Arc;

use shoal_kernels::DType;
use shoal_kernels::cuda::{Block, DeviceError, router};
use shoal_kernels::linear::Math;
use shoal_plan::model::ModelConfig;

use super::experts::{self, ExpertsKept, Received};
use super::ffn::{Ffn, FfnKept};
use super::gpu::Gpu;
use super::halves::{Cached, Deferred};
use super::legs::{Plane, Side};
use super::matrix::{Matrix, Operand};
use super::parameters::{GroupId, Parameters};
use super::room::Extent;
use super::run::Run;
use super::sent::{Decided, Sent};
use crate::arithmetic::Arithmetic;
use crate::cut::Cut;
use crate::error::Error;
use crate::findings::NonFinite;
use crate::moe::{RowForm, router_shape};
use crate::names::of_layer;

pub(super) use super::experts::Gathered;

/// One layer's experts and its router.
#[derive(Debug)]
pub(super) struct Moe {
    layer: u32,
    arithmetic: Arithmetic,
    config: Arc<ModelConfig>,
    norm: GroupId,
    router: GroupId,
    shared: Option<Ffn>,
    experts: Ffn,
    /// How many experts are here.
    local: usize,
    /// Where the experts of every shard begin, and where the last one's end.
    bounds: Vec<u32>,
}

/// Kept after forward.
#[derive(Debug)]
pub(super) struct MoeKept {
    /// The block's input [T, D].
    x: Matrix,
    /// `None` where backward computes it again.
    n: Option<Arc<Operand>>,
    routing: Routing,
    /// Of each expert how many tokens chose it.
    pub(super) counts: Vec<u32>,
    sent: Sent,
    experts: ExpertsKept,
    shared: Option<FfnKept>,
}

/// What the router decided, on the device.
#[derive(Debug)]
struct Routing {
    scores: Block,
    chosen: Block,
    /// [T, K]
    gates: Matrix,
    counts: Block,
    load: Block,
    balance: Arc<Block>,
}

impl MoeKept {
    /// Where the balance loss, summed over the sequences, will be.
    pub(super) fn balance(&self) -> &Arc<Block> {
        &self.routing.balance
    }
}

impl Routing {
    fn decided(&self) -> Decided<'_> {
        Decided { chosen: &self.chosen, gates: &self.gates, counts: &self.counts }
    }

    fn slices(&self) -> router::Routing<'_> {
        router::Routing {
            scores: self.scores.all(),
            chosen: self.chosen.all(),
            gates: self.gates.slice(),
            counts: self.counts.all(),
            load: self.load.all(),
            balance: self.balance.all(),
        }
    }
}

impl Moe {
    pub(super) fn new(
        p: &Parameters,
        config: &Arc<ModelConfig>,
        arithmetic: Arithmetic,
        cut: &Cut,
        layer: u32,
    ) -> Self {
        let ffn = |prefix: &str| Ffn::new(p, arithmetic, layer, prefix);
        let local = cut.local_experts();
        let ends = cut.experts.iter().map(|owned| owned.end);
        let bounds: Vec<u32> = [cut.experts[0].start].into_iter().chain(ends).collect();
        let starts = cut.experts.iter().map(|owned| owned.start);
        assert!(starts.eq(bounds[..cut.experts.len()].iter().copied()), "shards own neighbours");
        Self {
            layer,
            arithmetic,
            config: Arc::clone(config),
            norm: p.id(&of_layer(layer, "post_attention_layernorm.weight")),
            router: p.id(&of_layer(layer, "mlp.gate.weight")),
            shared: (0 < config.n_shared_experts).then(|| ffn("mlp.shared_experts")),
            experts: ffn(&format!("mlp.experts.{}", local.start)),
            local: local.len(),
            bounds,
        }
    }

    /// Routes, sends rows to the experts' owners, works for the rows received, and adds up.
    pub(super) fn forward(
        &self,
        p: &Parameters,
        bias: &[f32],
        x: Matrix,
        run: &mut Run<'_>,
    ) -> Result<(Matrix, MoeKept), Error> {
        let (gpu, layer) = (run.gpu, self.layer);
        let plain = gpu.plain_norm(p, self.norm, x.norm(self.config.rms_norm_eps), x.packed())?;
        let routing = self.route(gpu, p, bias, (&plain, run.shape.tokens))?;
        let n = Arc::new(gpu.operand(&plain, self.arithmetic.input)?);
        drop(plain);
        let found = NonFinite::forward(layer, format!("layer {layer} forward, router"));
        run.check(&routing.gates, found)?;
        let (sent, pairs, counts) =
            Sent::new(gpu, routing.decided(), (&self.bounds, run.exchange.rank()))?;
        let received = self.dispatch(&n, (&sent, pairs), run)?;
        let (sums, experts) = experts::forward((gpu, p), &self.experts, received, self.local)?;
        run.check(&sums, NonFinite::forward(layer, format!("layer {layer} experts forward")))?;
        let planes = [Plane::of_matrix(&sums)];
        let replies = Side { planes: &planes, shares: experts.shares() };
        let fetch = gpu.leave(replies)?;
        // While rows travel.
        let shared = self.shared.map(|ffn| ffn.forward((gpu, p), &n, (None, None), DType::F32));
        let (also, shared) = shared.transpose()?.unzip();

        let returned = sent.returned(gpu, self.row_shape())?;
        let planes = [Plane::of_matrix(&returned)];
        let to = Side { planes: &planes, shares: &sent.shares };
        self.trade("combine", fetch, (replies, to), run)?;
        drop(sums);
        run.check_parts(&returned, self.by_shard(&sent.shares, NonFinite::forward, "forward"))?;
        let y = sent.by_token(gpu, &returned, also.as_ref(), DType::Bf16)?;
        gpu.add(&y, &x)?;
        let n = (!self.experts.reads_again()).then_some(n);
        Ok((y, MoeKept { x, n, routing, counts, sent, experts, shared }))
    }

    fn route(
        &self,
        gpu: &Gpu,
        p: &Parameters,
        bias: &[f32],
        (n, tokens): (&Matrix, usize),
    ) -> Result<Routing, DeviceError> {
        let shape = router_shape(&self.config, tokens);
        let (t, e, k) = (n.extent(), shape.experts, shape.top_k);
        // With room for as many sequences as there may be tokens: an evaluation's need not be as long.
        let sequences = Extent { rows: n.rows / tokens.max(1), ..gpu.sequences_extent(n.extent()) };
        let routing = Routing {
            scores: gpu.rows("scores of the router", t, 4 * e)?,
            chosen: gpu.rows("chosen experts", t, 4 * k)?,
            gates: gpu.matrix("gates", DType::F32, (t, k))?,
            counts: gpu.block("counts of experts", 4 * e)?,
            load: gpu.rows("load of experts", sequences, 4 * e)?,
            balance: Arc::new(gpu.block("the balance loss", 8)?),
        };
        let bias = gpu.upload_bytes("router biases", bytemuck::cast_slice(bias))?;
        let terms = gpu.rows("terms of the balance loss", t, 4)?;
        let inputs = (n.slice(), p.master(self.router), bias.all());
        let size = router::Size { t: n.rows, d: n.cols };
        let out = routing.slices();
        gpu.kernels.router.forward(&gpu.stream, inputs, out, terms.all(), size, &shape)?;
        Ok(routing)
    }

    /// The input half: output gradients travel like rows in forward, and the gates' gradients come
    /// back behind the input gradients.
    pub(super) fn backward_input(
        &self,
        p: &Parameters,
        kept: MoeKept,
        d_y: &Matrix,
        run: &mut Run<'_>,
        deferred: &mut Vec<Deferred>,
    ) -> Result<Matrix, Error> {
        let (gpu, layer) = (run.gpu, self.layer);
        let d_y_operand = Arc::new(gpu.operand(d_y, self.arithmetic.gradient)?);
        let sent = &kept.sent;
        let rows = sent.gather(gpu, &d_y_operand)?;
        let d_rows = kept.experts.gradients(gpu, self.arithmetic.gradient)?;
        let (planes, to_planes) = (Plane::of_operand(&rows), Plane::of_operand(&d_rows));
        let from = Side { planes: &planes, shares: &sent.shares };
        let to = Side { planes: &to_planes, shares: kept.experts.shares() };
        self.trade("gradient dispatch", gpu.leave(from)?, (from, to), run)?;
        drop((planes, to_planes));
        drop(rows);
        let (d_sums, d_pairs, shares) = experts::backward_input(
            (gpu, p),
            &self.experts,
            kept.experts,
            Arc::new(d_rows),
            deferred,
        )?;
        run.check(&d_sums, NonFinite::backward(layer, format!("layer {layer} backward, experts")))?;
        let planes = [Plane::of_matrix(&d_sums), Plane::of_pairs(d_pairs.all())];
        let replies = Side { planes: &planes, shares: &shares };
        let fetch = gpu.leave(replies)?;
        // While rows travel.
        let shared = self.shared.zip(kept.shared).map(|(ffn, shared)| {
            let n = kept.n.map_or_else(|| self.normed(gpu, p, &kept.x), Ok)?;
            let kept = (Some(&*n), &shared);
            let gradients = ffn.backward_input((gpu, p), kept, (None, None), &d_y_operand)?;
            let sides = (Cached::Whole(n), Cached::Whole(d_y_operand));
            Ok::<_, DeviceError>(ffn.defer(gradients, sides, None, deferred))
        });
        let shared = shared.transpose()?;

        let returned = sent.returned(gpu, self.row_shape())?;
        let returned_gates = sent.returned_gates(gpu)?;
        let planes = [Plane::of_matrix(&returned), Plane::of_pairs(returned_gates.all())];
        let to = Side { planes: &planes, shares: &sent.shares };
        self.trade("gradient combine", fetch, (replies, to), run)?;
        drop((d_sums, d_pairs));
        run.check_parts(&returned, self.by_shard(&sent.shares, NonFinite::backward, "backward"))?;
        let d_gates = gpu.rows("gradients of gates", d_y.extent(), 4 * self.top_k())?;
        sent.by_choice(gpu, &returned_gates, &d_gates)?;
        drop(returned_gates);
        let d_n = sent.by_token(gpu, &returned, shared.as_ref(), DType::F32)?;
        let decided = (&kept.x, &kept.routing, &d_gates);
        Ok(self.backward_router_and_norm(p, decided, (&d_n, d_y), run)?)
    }

    /// What experts read, as forward made it.
    fn normed(&self, gpu: &Gpu, p: &Parameters, x: &Matrix) -> Result<Arc<Operand>, DeviceError> {
        let plain = gpu.plain_norm(p, self.norm, x.norm(self.config.rms_norm_eps), x.packed())?;
        Ok(Arc::new(gpu.operand(&plain, self.arithmetic.input)?))
    }

    /// The router reads the norm's output, so its gradient joins before the norm's.
    fn backward_router_and_norm(
        &self,
        p: &Parameters,
        (x, routing, d_gates): (&Matrix, &Routing, &Block),
        (d_n, d_y): (&Matrix, &Matrix),
        run: &Run<'_>,
    ) -> Result<Matrix, DeviceError> {
        let gpu = run.gpu;
        let shape = router_shape(&self.config, run.shape.tokens);
        let n = gpu.plain_norm(p, self.norm, x.norm(self.config.rms_norm_eps), x.packed())?;
        let d_logits = gpu.rows("gradients of the router", x.extent(), 4 * shape.experts)?;
        let back = router::Back { d_gates: d_gates.all(), balance_weight: run.scale.balance };
        let out = router::Gradients {
            dx: d_n.slice(),
            accumulate: true,
            d_w: p.gradient(self.router),
            d_logits: d_logits.all(),
        };
        let (read, size) =
            ((n.slice(), p.master(self.router)), router::Size { t: x.rows, d: x.cols });
        let decided = routing.slices();
        gpu.kernels.router.backward(&gpu.stream, read, decided, back, out, size, &shape)?;
        gpu.norm_backward_onto(p, self.norm, x.norm(self.config.rms_norm_eps), (x, d_n), d_y)
    }

    /// How many experts each token chooses.
    fn top_k(&self) -> usize {
        self.config.num_experts_per_tok as usize
    }

    /// Width and dtype of the rows that come back.
    fn row_shape(&self) -> (usize, DType) {
        (self.config.hidden_size as usize, self.arithmetic.activation)
    }

    /// The rows that go out: tokens in the form of inputs, gradients in theirs.
    fn row_form(&self, math: Math) -> RowForm {
        RowForm { cols: self.config.hidden_size as usize, math, n_experts: self.local }
    }
}
