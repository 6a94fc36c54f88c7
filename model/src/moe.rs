//! The mixture of experts as a residual block, seen from the cell that owns the tokens:
//! x + shared(norm(x)) + sum over chosen experts of gate * expert(norm(x)).
//!
//! Source: DeepSeek-V3 report, sections 2.1.2 and 3.3.2. One row per (token, destination cell)
//! travels in each direction, in forward and in backward. Precision fp8: rows are FP8 with scales
//! going out, BF16 coming back; bf16: BF16 both ways. Sums are FP32: an expert shard over its
//! experts in ascending order, the token's cell over the shards in ascending order, then the shared
//! expert.

pub(crate) mod dispatch;
mod experts;
pub(crate) mod messages;

use std::ops::Range;
use std::sync::Arc;

use shoal_kernels::linear::{Math, Operand};
use shoal_kernels::rmsnorm;
use shoal_kernels::router::{self, RouterShape, Routing};
use shoal_kernels::row_sums::{self, Terms};
use shoal_kernels::spread;
use shoal_kernels::tensor::{DType, Tensor};
use shoal_plan::model::ModelConfig;

pub(crate) use self::dispatch::{Outgoing, Received, RowForm};
use self::experts::{Experts, ExpertsKept};
use crate::arithmetic::Arithmetic;
use crate::cut::Cut;
use crate::error::Error;
use crate::ffn::{Ffn, FfnKept};
use crate::findings::NonFinite;
use crate::halves::{Cached, Deferred};
use crate::memory::Memory;
use crate::names::of_layer;
use crate::parameters::{Id, Parameters};
use crate::run::Run;

/// One layer's experts, its router and the router's bias.
#[derive(Clone, Debug)]
pub(crate) struct Moe {
    layer: u32,
    arithmetic: Arithmetic,
    config: Arc<ModelConfig>,
    norm: Id,
    router: Id,
    /// Added to the scores for choosing only. FP32, no gradient, not in the optimizer.
    pub(crate) bias: Vec<f32>,
    shared: Option<Ffn>,
    experts: Experts,
    /// Experts of every shard.
    owners: Vec<Range<u32>>,
}

/// Kept after forward.
#[derive(Clone, Debug)]
pub(crate) struct MoeKept {
    /// The block's input [T, D].
    x: Tensor,
    /// `None` where backward computes it again.
    n: Option<Arc<Operand>>,
    pub(crate) routing: Routing,
    /// What went where, by shard.
    sent: Vec<Outgoing>,
    experts: ExpertsKept,
    shared: Option<FfnKept>,
}

impl MoeKept {
    pub(crate) fn add_to(&self, memory: &mut Memory) {
        let Routing { scores, chosen, gates, .. } = &self.routing;
        memory.cached_residual += self.x.bytes().len();
        memory.cached_routing +=
            size_of_val(&scores[..]) + size_of_val(&chosen[..]) + size_of_val(&gates[..]);
        memory.cached_linear_inputs += self.n.as_ref().map_or(0, |n| n.bytes());
        self.experts.add_to(memory);
        if let Some(shared) = &self.shared {
            shared.add_to(memory);
        }
    }
}

impl Moe {
    pub(crate) fn new(
        p: &Parameters,
        config: &Arc<ModelConfig>,
        arithmetic: Arithmetic,
        cut: &Cut,
        layer: u32,
    ) -> Self {
        let shared = (0 < config.n_shared_experts)
            .then(|| Ffn::new(p, arithmetic, layer, "mlp.shared_experts"));
        Self {
            layer,
            arithmetic,
            config: Arc::clone(config),
            norm: p.id(&of_layer(layer, "post_attention_layernorm.weight")),
            router: p.id(&of_layer(layer, "mlp.gate.weight")),
            bias: vec![0.0; config.n_routed_experts as usize],
            shared,
            experts: Experts::new(p, arithmetic, layer, cut.local_experts()),
            owners: cut.experts.clone(),
        }
    }

    pub(crate) fn layer(&self) -> u32 {
        self.layer
    }

    /// Routes, sends rows to the experts' owners, works for the rows received, and adds up.
    pub(crate) fn forward(
        &self,
        p: &Parameters,
        x: Tensor,
        run: &mut Run<'_>,
    ) -> Result<(Tensor, MoeKept), Error> {
        let shape = router_shape(&self.config, run.shape.tokens);
        let (n, routing) = spread::inside(|| {
            let n = rmsnorm::forward(&x, p.values(self.norm), self.config.rms_norm_eps);
            let routing = router::forward(&n, p.values(self.router), &self.bias, &shape);
            (Arc::new(self.arithmetic.into_operand(n)), routing)
        });
        if !routing.gates.iter().all(|gate| gate.is_finite()) {
            run.findings.note(|| {
                NonFinite::forward(self.layer, format!("layer {} forward, router", self.layer))
            });
        }

        let sent = Outgoing::of(&routing.chosen, shape.top_k, &self.owners);
        let outgoing = sent.iter().map(|rows| rows.message(&n, &routing.gates)).collect();
        let incoming = run.all_to_all(self.layer, "dispatch", outgoing)?;
        let received = Received::read(&incoming, &self.row_form(self.arithmetic.input))
            .map_err(|(shard, problem)| self.malformed("dispatch", shard, problem))?;
        messages::give(incoming);
        let rows_from = received.rows_from().to_vec();
        let findings = &mut *run.findings;
        let ((sums, experts), shared) = spread::inside(|| {
            let shared = |ffn: Ffn| ffn.forward(p, &*n, None, DType::F32);
            (self.experts.forward(p, received, findings), self.shared.map(shared))
        });

        let replies = dispatch::split_rows(&sums, &rows_from, &vec![0; rows_from.len()]);
        let incoming = run.all_to_all(self.layer, "combine", replies)?;
        let mut values = Vec::with_capacity(sent.len());
        for (shard, (rows, reply)) in sent.iter().zip(&incoming).enumerate() {
            let returned = dispatch::read_rows(reply, rows.n_rows(), self.row_shape())
                .map_err(|problem| self.malformed("combine", shard, problem))?;
            run.findings.check(&returned, || {
                let place =
                    format!("layer {} forward, rows returned by expert shard {shard}", self.layer);
                NonFinite::forward(self.layer, place).received()
            });
            values.push(returned);
        }
        messages::give(incoming);
        let (y, kept) = shared.map_or((None, None), |(y, kept)| (Some(y), Some(kept)));
        let mut y =
            self.by_token(&sent, &values, (x.rows(), y.as_ref()), self.arithmetic.activation);
        y.add_assign(&x);
        let n = (!self.arithmetic.recompute.feed_forward()).then_some(n);
        Ok((y, MoeKept { x, n, routing, sent, experts, shared: kept }))
    }

    /// Adds up what came back for each token, shard by shard, and then the shared expert's.
    fn by_token(
        &self,
        sent: &[Outgoing],
        values: &[Tensor],
        (tokens, shared): (usize, Option<&Tensor>),
        out: DType,
    ) -> Tensor {
        let (first, places) = dispatch::returned(sent, tokens);
        let sources: Vec<Option<&Tensor>> = values.iter().map(Some).collect();
        let terms = Terms { first: &first, places: &places, sources: &sources };
        row_sums::sum(&terms, self.row_shape().0, shared, out)
    }

    /// The input half: output gradients travel like rows in forward, and the gates' gradients come
    /// back behind the input gradients.
    pub(crate) fn backward_input(
        &self,
        p: &mut Parameters,
        kept: MoeKept,
        d_y: Tensor,
        run: &mut Run<'_>,
        deferred: &mut Vec<Deferred>,
    ) -> Result<Tensor, Error> {
        let d_y_operand = Arc::new(self.arithmetic.gradient_operand(&d_y));
        let outgoing = kept.sent.iter().map(|rows| rows.rows_message(&d_y_operand)).collect();
        let incoming = run.all_to_all(self.layer, "gradient dispatch", outgoing)?;
        let rows_from = kept.experts.received.rows_from().to_vec();
        let form = self.row_form(self.arithmetic.gradient);
        let d_rows = dispatch::read_operand(&incoming, &rows_from, &form)
            .map_err(|(shard, problem)| self.malformed("gradient dispatch", shard, problem))?;
        messages::give(incoming);
        let pairs_from = kept.experts.received.pairs_from();
        let d_rows = Arc::new(d_rows);
        let ((d_sums, d_pairs), shared) = spread::inside(|| {
            let d_experts =
                self.experts.backward_input(p, kept.experts, Arc::clone(&d_rows), deferred);
            let shared = self.shared.zip(kept.shared).map(|(ffn, shared_kept)| {
                let n = kept.n.unwrap_or_else(|| {
                    let n =
                        rmsnorm::forward(&kept.x, p.values(self.norm), self.config.rms_norm_eps);
                    Arc::new(self.arithmetic.into_operand(n))
                });
                let kept = (&*n, &shared_kept);
                let gradients = ffn.backward_input(p, kept, None, &*d_y_operand);
                let x = Cached::Whole(n);
                ffn.defer(gradients, x, Cached::Whole(Arc::clone(&d_y_operand)), deferred).0
            });
            (d_experts, shared)
        });
        self.check_experts_backward(&d_rows, &d_sums, run);

        let mut replies = dispatch::split_rows(&d_sums, &rows_from, &pairs_from);
        dispatch::place_gate_gradients(&mut replies, &d_pairs, &pairs_from);
        let incoming = run.all_to_all(self.layer, "gradient combine", replies)?;
        let mut values = Vec::with_capacity(kept.sent.len());
        let mut d_gates = vec![0.0; kept.routing.gates.len()];
        for (shard, (rows, reply)) in kept.sent.iter().zip(&incoming).enumerate() {
            let (returned, pairs) = dispatch::read_rows_and_gates(reply, rows, self.row_shape())
                .map_err(|problem| self.malformed("gradient combine", shard, problem))?;
            run.findings.check(&returned, || {
                let place =
                    format!("layer {} backward, rows returned by expert shard {shard}", self.layer);
                NonFinite::backward(self.layer, place).received()
            });
            rows.place_gates(&pairs, &mut d_gates);
            values.push(returned);
        }
        messages::give(incoming);
        let d_n = self.by_token(&kept.sent, &values, (d_y.rows(), shared.as_ref()), DType::F32);
        Ok(self.backward_router_and_norm(p, (&kept.x, &kept.routing, &d_gates), d_n, d_y, run))
    }

    /// Notes when the experts made something that is not finite from gradients that were.
    fn check_experts_backward(&self, d_rows: &Operand, d_sums: &Tensor, run: &mut Run<'_>) {
        if !d_sums.all_finite() && d_rows.to_f32().iter().all(|value| value.is_finite()) {
            let place = format!("layer {} backward, experts", self.layer);
            run.findings.note(|| NonFinite::backward(self.layer, place));
        }
    }

    /// The router reads the norm's output, so its gradient joins before the norm's.
    fn backward_router_and_norm(
        &self,
        p: &mut Parameters,
        (x, routing, d_gates): (&Tensor, &Routing, &[f32]),
        mut d_n: Tensor,
        d_y: Tensor,
        run: &Run<'_>,
    ) -> Tensor {
        let shape = router_shape(&self.config, run.shape.tokens);
        let routed = router::Backward { d_gates, balance_weight: run.scale.balance };
        spread::inside(|| {
            let n = rmsnorm::forward(x, p.values(self.norm), self.config.rms_norm_eps);
            let (w, d_w) = p.values_and_gradient(self.router);
            d_n.add_assign(&router::backward(&n, w, routing, routed, &shape, d_w));
            let (gain, d_gain) = p.values_and_gradient(self.norm);
            rmsnorm::backward_onto(&d_y, x, (gain, self.config.rms_norm_eps), &d_n, d_gain)
        })
    }

    /// Width and dtype of the rows that come back.
    fn row_shape(&self) -> (usize, DType) {
        (self.config.hidden_size as usize, self.arithmetic.activation)
    }

    /// The rows that go out: tokens in the form of inputs, gradients in theirs.
    fn row_form(&self, math: Math) -> RowForm {
        RowForm { cols: self.config.hidden_size as usize, math, n_experts: self.experts.len() }
    }

    fn malformed(&self, leg: &'static str, shard: usize, problem: String) -> Error {
        Error::Malformed { layer: self.layer, leg, shard, problem }
    }
}

/// How the router chooses.
pub fn router_shape(config: &ModelConfig, tokens_per_sequence: usize) -> RouterShape {
    RouterShape {
        experts: config.n_routed_experts as usize,
        top_k: config.num_experts_per_tok as usize,
        groups: config.n_group as usize,
        groups_kept: config.topk_group as usize,
        normalise: config.norm_topk_prob,
        scaling: config.routed_scaling_factor,
        tokens_per_sequence,
    }
}

pub(crate) fn add(sum: &mut [f32], values: &[f32]) {
    assert_eq!(sum.len(), values.len(), "what is added has the sum's shape");
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}
