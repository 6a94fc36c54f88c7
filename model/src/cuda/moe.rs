//! The mixture of experts as a residual block on a device, seen from the cell that owns the tokens: `crate::moe` judges
//! it. Rows travel through the host, in the same messages: the cells of a group need not be of one kind.

use std::ops::Range;
use std::sync::Arc;

use shoal_kernels::cuda::{Block, DeviceError, router};
use shoal_kernels::linear::Math;
use shoal_kernels::{DType, Tensor};
use shoal_plan::model::ModelConfig;

use super::experts::{self, ExpertsKept};
use super::ffn::{Ffn, FfnKept};
use super::gpu::Gpu;
use super::halves::{Cached, Deferred};
use super::matrix::{Matrix, Operand};
use super::parameters::{GroupId, Parameters};
use super::room::Extent;
use super::run::Run;
use crate::arithmetic::Arithmetic;
use crate::cut::Cut;
use crate::error::Error;
use crate::findings::NonFinite;
use crate::moe::{Outgoing, Received, RowForm, dispatch, messages, router_shape};
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
    local: Range<u32>,
    /// Experts of every shard.
    owners: Vec<Range<u32>>,
}

/// Kept after forward.
#[derive(Debug)]
pub(super) struct MoeKept {
    /// The block's input [T, D].
    x: Matrix,
    /// `None` where backward computes it again.
    n: Option<Arc<Operand>>,
    routing: Routing,
    /// [T, K].
    pub(super) chosen: Vec<u32>,
    /// What went where, by shard.
    sent: Vec<Outgoing>,
    experts: ExpertsKept,
    shared: Option<FfnKept>,
}

/// What the router decided, on the device.
#[derive(Debug)]
struct Routing {
    scores: Block,
    chosen: Block,
    gates: Block,
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
    fn slices(&self) -> router::Routing<'_> {
        router::Routing {
            scores: self.scores.all(),
            chosen: self.chosen.all(),
            gates: self.gates.all(),
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
        Self {
            layer,
            arithmetic,
            config: Arc::clone(config),
            norm: p.id(&of_layer(layer, "post_attention_layernorm.weight")),
            router: p.id(&of_layer(layer, "mlp.gate.weight")),
            shared: (0 < config.n_shared_experts).then(|| ffn("mlp.shared_experts")),
            experts: ffn(&format!("mlp.experts.{}", local.start)),
            local,
            owners: cut.experts.clone(),
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
        // How many rows go where is for the host to know, and it hands them on.
        let gates: Vec<f32> = gpu.download_all(routing.gates.all())?;
        if !gates.iter().all(|gate| gate.is_finite()) {
            run.findings.note(NonFinite::forward(layer, format!("layer {layer} forward, router")));
        }
        let chosen: Vec<u32> = gpu.download_all(routing.chosen.all())?;
        let sent = Outgoing::of(&chosen, self.config.num_experts_per_tok as usize, &self.owners);
        let on_host = gpu.download_operand(&n)?;
        let outgoing = sent.iter().map(|rows| rows.message(&on_host, &gates)).collect();
        let incoming = run.all_to_all(layer, "dispatch", outgoing)?;
        let received = Received::read(&incoming, &self.row_form(self.arithmetic.input))
            .map_err(|(shard, problem)| self.malformed("dispatch", shard, problem))?;
        messages::give(incoming);
        let (sums, experts) =
            experts::forward((gpu, p), &self.experts, received, self.local_experts())?;
        run.check(&sums, NonFinite::forward(layer, format!("layer {layer} experts forward")))?;
        let fetch = gpu.fetch(&sums)?;
        // While rows travel.
        let shared = self.shared.map(|ffn| ffn.forward((gpu, p), &n, (None, None), DType::F32));
        let (also, shared) = shared.transpose()?.unzip();

        let sums = gpu.fetched(fetch, &sums)?;
        let replies = dispatch::split_rows(&sums, experts.rows_from(), &vec![0; sent.len()]);
        let incoming = run.all_to_all(layer, "combine", replies)?;
        let mut values = Vec::with_capacity(sent.len());
        for (shard, (rows, reply)) in sent.iter().zip(&incoming).enumerate() {
            let returned = dispatch::read_rows(reply, rows.n_rows(), self.row_shape())
                .map_err(|problem| self.malformed("combine", shard, problem))?;
            if !returned.all_finite() {
                let place = format!("layer {layer} forward, rows returned by expert shard {shard}");
                run.findings.note(NonFinite::forward(layer, place).received());
            }
            values.push(returned);
        }
        messages::give(incoming);
        let y = self.by_token(gpu, (&sent, &values), (x.extent(), also.as_ref()), DType::Bf16)?;
        gpu.add(&y, &x)?;
        let n = (!self.experts.reads_again()).then_some(n);
        Ok((y, MoeKept { x, n, routing, chosen, sent, experts, shared }))
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
            gates: gpu.rows("gates", t, 4 * k)?,
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

    /// Adds up what came back for each token, shard by shard, and then the shared expert's.
    fn by_token(
        &self,
        gpu: &Gpu,
        (sent, values): (&[Outgoing], &[Tensor]),
        (tokens, also): (Extent, Option<&Matrix>),
        out: DType,
    ) -> Result<Matrix, DeviceError> {
        let (first, places) = dispatch::returned(sent, tokens.rows);
        // A token has a row in each shard, unless it chooses fewer experts than there are shards.
        let most = sent.len().min(self.config.num_experts_per_tok as usize);
        let (d, dtype) = self.row_shape();
        // All shards' rows one after the other.
        let mut starts = Vec::with_capacity(values.len());
        let mut bytes = Vec::new();
        for value in values {
            starts.push(bytes.len() / (d * dtype.size()).max(1));
            bytes.extend_from_slice(value.bytes());
        }
        let rows = bytes.len() / (d * dtype.size()).max(1);
        let room = if gpu.room().is_some() { tokens.room * most } else { rows };
        let what = "rows returned by experts";
        let returned = gpu.matrix(what, dtype, (Extent { rows, room }, d))?;
        gpu.write(returned.slice(), &bytes)?;
        let first: Vec<u32> = first.iter().map(|at| *at as u32).collect();
        let terms: Vec<u32> =
            places.iter().map(|(shard, row)| starts[*shard as usize] as u32 + row).collect();
        let what = "the terms of tokens";
        let first = gpu.upload_words(what, &first, tokens.room + 1)?;
        let terms = gpu.upload_words(what, &terms, room)?;
        gpu.sum_rows(&returned, (first.all(), terms.all()), tokens, also, out)
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
        let on_host = gpu.download_operand(&d_y_operand)?;
        let outgoing = kept.sent.iter().map(|rows| rows.rows_message(&on_host)).collect();
        let incoming = run.all_to_all(layer, "gradient dispatch", outgoing)?;
        let rows_from = kept.experts.rows_from().to_vec();
        let form = self.row_form(self.arithmetic.gradient);
        let d_rows = dispatch::read_operand(&incoming, &rows_from, &form)
            .map_err(|(shard, problem)| self.malformed("gradient dispatch", shard, problem))?;
        messages::give(incoming);
        let d_rows = Arc::new(kept.experts.upload_gradients(gpu, &d_rows)?);
        let pairs_from = kept.experts.pairs_from().to_vec();
        let (d_sums, d_pairs) =
            experts::backward_input((gpu, p), &self.experts, kept.experts, d_rows, deferred)?;
        run.check(&d_sums, NonFinite::backward(layer, format!("layer {layer} backward, experts")))?;
        let fetch = gpu.fetch(&d_sums)?;
        // While rows travel.
        let shared = self.shared.zip(kept.shared).map(|(ffn, shared)| {
            let n = kept.n.map_or_else(|| self.normed(gpu, p, &kept.x), Ok)?;
            let kept = (Some(&*n), &shared);
            let gradients = ffn.backward_input((gpu, p), kept, (None, None), &d_y_operand)?;
            let sides = (Cached::Whole(n), Cached::Whole(d_y_operand));
            Ok::<_, DeviceError>(ffn.defer(gradients, sides, None, deferred))
        });
        let shared = shared.transpose()?;

        let d_sums = gpu.fetched(fetch, &d_sums)?;
        let mut replies = dispatch::split_rows(&d_sums, &rows_from, &pairs_from);
        dispatch::place_gate_gradients(&mut replies, &d_pairs, &pairs_from);
        let incoming = run.all_to_all(layer, "gradient combine", replies)?;
        let mut values = Vec::with_capacity(kept.sent.len());
        let mut d_gates = vec![0.0; d_y.rows * self.config.num_experts_per_tok as usize];
        for (shard, (rows, reply)) in kept.sent.iter().zip(&incoming).enumerate() {
            let (returned, pairs) = dispatch::read_rows_and_gates(reply, rows, self.row_shape())
                .map_err(|problem| self.malformed("gradient combine", shard, problem))?;
            if !returned.all_finite() {
                let place =
                    format!("layer {layer} backward, rows returned by expert shard {shard}");
                run.findings.note(NonFinite::backward(layer, place).received());
            }
            rows.place_gates(&pairs, &mut d_gates);
            values.push(returned);
        }
        messages::give(incoming);
        let returned = (&kept.sent[..], &values[..]);
        let d_n = self.by_token(gpu, returned, (d_y.extent(), shared.as_ref()), DType::F32)?;
        let decided = (&kept.x, &kept.routing, &d_gates[..]);
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
        (x, routing, d_gates): (&Matrix, &Routing, &[f32]),
        (d_n, d_y): (&Matrix, &Matrix),
        run: &Run<'_>,
    ) -> Result<Matrix, DeviceError> {
        let gpu = run.gpu;
        let shape = router_shape(&self.config, run.shape.tokens);
        let n = gpu.plain_norm(p, self.norm, x.norm(self.config.rms_norm_eps), x.packed())?;
        let room = x.room * self.config.num_experts_per_tok as usize;
        let d_gates = gpu.upload_words("gradients of gates", d_gates, room)?;
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

    /// How many experts are here, and how many each token chooses.
    fn local_experts(&self) -> (usize, usize) {
        (self.local.len(), self.config.num_experts_per_tok as usize)
    }

    /// Width and dtype of the rows that come back.
    fn row_shape(&self) -> (usize, DType) {
        (self.config.hidden_size as usize, self.arithmetic.activation)
    }

    /// The rows that go out: tokens in the form of inputs, gradients in theirs.
    fn row_form(&self, math: Math) -> RowForm {
        RowForm { cols: self.config.hidden_size as usize, math, n_experts: self.local.len() }
    }

    fn malformed(&self, leg: &'static str, shard: usize, problem: String) -> Error {
        Error::Malformed { layer: self.layer, leg, shard, problem }
    }
}
