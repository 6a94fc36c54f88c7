//! One cell's part of the network on a device: what `Stage` hands over when it has one.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_kernels::Tensor;
use shoal_kernels::adamw::AdamStep;
use shoal_kernels::cuda::{Block, embedding};

use super::findings::Findings;
use super::gpu::Gpu;
use super::halves::{self, Deferred};
use super::layer::{Layer, LayerKept};
use super::matrix::Matrix;
use super::mla::Turns;
use super::moe::MoeKept;
use super::parameters::{GroupId, Parameters};
use super::run::Run;
use super::tail::{LossSum, LossSums, Tail, TailKept};
use crate::arithmetic::Arithmetic;
use crate::batch::{Batch, BatchShape};
use crate::cut::Cut;
use crate::error::Error;
use crate::exchange::Exchange;
use crate::findings::NonFinite;
use crate::mla::head_shape;
use crate::names::{self, EMBEDDING};
use crate::options::StageOptions;
use crate::parameters as host;
use crate::stage::{Evaluated, LossScale, Losses};

/// A cell's part on a device.
#[derive(Debug)]
pub(crate) struct Network {
    gpu: Gpu,
    cut: Cut,
    parameters: Parameters,
    /// Whether the host has the masters, moments and average that are here.
    host_has_all: bool,
    /// On the first stage.
    embedding: Option<GroupId>,
    layers: Vec<Layer>,
    /// On the last stage.
    tail: Option<Tail>,
    turns: Turns,
    /// After forward, by microbatch.
    kept: BTreeMap<u32, Kept>,
    /// After the input half, by microbatch.
    deferred: BTreeMap<u32, Vec<Deferred>>,
    /// Sums that are still on the device.
    losses: Vec<LossSums>,
    balances: Vec<Arc<Block>>,
    findings: Findings,
}

/// Kept after forward.
#[derive(Debug)]
struct Kept {
    inputs: Option<embedding::Tokens>,
    shape: BatchShape,
    scale: LossScale,
    layers: Vec<LayerKept>,
    tail: Option<TailKept>,
}

/// Biases of the routers by layer: an iterator hands them out as layers run.
type Biases<'a> = BTreeMap<u32, &'a [f32]>;

impl Network {
    /// The parameters of a stage, copied to a device.
    pub(crate) fn new(
        gpu: Gpu,
        cut: &Cut,
        arithmetic: Arithmetic,
        host: &host::Parameters,
    ) -> Result<Self, Error> {
        let mut network = Self::blank(gpu, cut, arithmetic, host.options())?;
        network.parameters.push(&network.gpu, host)?;
        network.host_has_all = true;
        Ok(network)
    }

    /// Room for a stage, with nothing in it.
    pub(super) fn blank(
        gpu: Gpu,
        cut: &Cut,
        arithmetic: Arithmetic,
        options: &StageOptions,
    ) -> Result<Self, Error> {
        let config = Arc::new(cut.config.clone());
        let p = Parameters::blank(&gpu, &names::specifications(cut), arithmetic, options)?;
        let layer = |number| Layer::new(&p, &config, arithmetic, cut, number);
        let (mut turns, mut findings) = (Turns::default(), Findings::default());
        // What outlives a step is taken before any: then each begins with the same bytes free.
        if let Some(room) = gpu.room() {
            turns.of(&gpu, &head_shape(&config, room.sequence))?;
            findings.reserve(&gpu, room.microbatches * checks(cut))?;
        }
        Ok(Self {
            embedding: cut.first.then(|| p.id(EMBEDDING)),
            layers: cut.layers.clone().map(layer).collect(),
            tail: cut.last.then(|| Tail::new(&p, &config, arithmetic, cut)),
            kept: BTreeMap::new(),
            deferred: BTreeMap::new(),
            losses: Vec::new(),
            balances: Vec::new(),
            turns,
            findings,
            host_has_all: false,
            parameters: p,
            cut: cut.clone(),
            gpu,
        })
    }

    pub(super) fn cut(&self) -> &Cut {
        &self.cut
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Whether a microbatch is somewhere between its forward and its weight half.
    pub(crate) fn holds(&self, microbatch: u32) -> bool {
        self.kept.contains_key(&microbatch) || self.deferred.contains_key(&microbatch)
    }

    /// Of a microbatch that went forward.
    pub(crate) fn shape(&self, microbatch: u32) -> Option<BatchShape> {
        self.kept.get(&microbatch).map(|kept| kept.shape)
    }

    /// Whether a microbatch waits for its weight half.
    pub(crate) fn is_deferred(&self, microbatch: u32) -> bool {
        self.deferred.contains_key(&microbatch)
    }

    /// As `Stage::forward`, of an input and a batch that were checked. Adds what the routers counted.
    pub(crate) fn forward(
        &mut self,
        microbatch: u32,
        (batch, shape): (&Batch<'_>, BatchShape),
        input: Option<&Tensor>,
        (scale, biases): (&LossScale, &Biases<'_>),
        (exchange, counts): (&mut dyn Exchange, &mut [u64]),
    ) -> Result<Option<Tensor>, Error> {
        let Self { gpu, parameters: p, findings, turns, .. } = self;
        let (mut x, inputs) = enter(gpu, p, self.embedding, batch, input)?;
        let found = match (self.cut.first, self.cut.layers.start) {
            (true, layer) => NonFinite::forward(layer, "the embedding, forward"),
            (false, layer) => NonFinite::forward(layer, "the stage's input, forward").received(),
        };
        let mut run = Run { gpu, shape, exchange, findings, turns, scale: *scale };
        run.check(&x, found)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let (y, kept) = layer.forward(p, bias(biases, layer), x, &mut run)?;
            x = y;
            layers.push(kept);
        }
        let mut kept = Kept { inputs, shape, scale: *scale, layers, tail: None };
        let mut output = None;
        if let Some(tail) = &self.tail {
            let biases: Vec<_> = tail.mtp.iter().map(|mtp| bias(biases, &mtp.layer)).collect();
            let (tail, sums) = tail.forward(p, &biases, x, batch, &mut run)?;
            kept.tail = Some(tail);
            self.losses.push(sums);
        } else {
            output = Some(gpu.download(&x)?);
        }
        kept.count(self.cut.config.n_routed_experts, counts);
        self.balances.extend(kept.moes().map(|moe| Arc::clone(moe.balance())));
        self.kept.insert(microbatch, kept);
        Ok(output)
    }

    /// As `Stage::backward_input`, of a gradient that was checked; with `both` the weight half of each layer right behind.
    pub(crate) fn backward(
        &mut self,
        microbatch: u32,
        d_output: Option<&Tensor>,
        exchange: &mut dyn Exchange,
        both: bool,
    ) -> Result<Option<Tensor>, Error> {
        let kept = self.kept.remove(&microbatch).expect("it went forward, as was checked");
        let Self { gpu, parameters: p, findings, turns, .. } = self;
        let mut all = Vec::new();
        let mut layer_deferred = Vec::new();
        let mut flush = |deferred: &mut Vec<Deferred>| {
            if both {
                return halves::accumulate(gpu, p, std::mem::take(deferred));
            }
            all.append(deferred);
            Ok(())
        };
        let (shape, scale) = (kept.shape, kept.scale);
        let mut run = Run { gpu, shape, exchange, findings, turns, scale };
        let mut d_x = match (d_output, &self.tail, kept.tail) {
            (None, Some(tail), Some(kept)) => {
                tail.backward_input(p, kept, &mut run, &mut layer_deferred)?
            }
            (Some(d_output), None, None) => {
                let room = gpu.tokens_extent(d_output.rows()).room;
                gpu.upload("the gradient from the next stage", d_output, room)?
            }
            (_, Some(_) | None, Some(_) | None) => panic!("only the last stage has heads"),
        };
        flush(&mut layer_deferred)?;
        let (received, layer) = (!self.cut.last, self.cut.layers.end);
        let found = NonFinite::backward(layer, "the gradient from the next stage");
        run.check(&d_x, if received { found.received() } else { found })?;
        for (layer, kept) in self.layers.iter().zip(kept.layers).rev() {
            d_x = layer.backward_input(p, kept, &d_x, &mut run, &mut layer_deferred)?;
            flush(&mut layer_deferred)?;
        }
        if !both {
            self.deferred.insert(microbatch, all);
        }
        if let (Some(id), Some(inputs)) = (self.embedding, &kept.inputs) {
            gpu.add_embedding_gradient(p, id, inputs, &d_x)?;
            return Ok(None);
        }
        Ok(Some(gpu.download(&d_x)?))
    }

    /// The weight half of a microbatch whose input half is done.
    pub(crate) fn backward_weight(&mut self, microbatch: u32) -> Result<(), Error> {
        let deferred = self.deferred.remove(&microbatch).expect("its input half is done");
        Ok(halves::accumulate(&self.gpu, &self.parameters, deferred)?)
    }

    /// Forward with the main head only; counts nothing and keeps nothing.
    pub(crate) fn evaluate(
        &mut self,
        (batch, shape): (&Batch<'_>, BatchShape),
        input: Option<&Tensor>,
        biases: &Biases<'_>,
        exchange: &mut dyn Exchange,
    ) -> Result<Evaluated, Error> {
        let Self { gpu, parameters: p, turns, .. } = self;
        let (mut x, _) = enter(gpu, p, self.embedding, batch, input)?;
        let mut findings = Findings::default();
        let scale = crate::stage::NO_SCALE;
        let mut run = Run { gpu, shape, exchange, findings: &mut findings, turns, scale };
        for layer in &self.layers {
            x = layer.forward(p, bias(biases, layer), x, &mut run)?.0;
        }
        let Some(tail) = &self.tail else { return Ok(Evaluated::Hidden(gpu.download(&x)?)) };
        let (loss_sum, targets) = tail.evaluate(gpu, p, &x, batch.targets)?;
        Ok(Evaluated::Loss { loss_sum, targets })
    }

    /// Losses since the last call; waits for the device.
    pub(crate) fn take_losses(&mut self) -> Result<Losses, Error> {
        let mut losses = Losses::default();
        for balance in std::mem::take(&mut self.balances) {
            losses.balance_sum += self.gpu.number::<f64>(&balance)?;
        }
        for LossSums { main, mtp } in std::mem::take(&mut self.losses) {
            losses.main_sum += self.gpu.number::<f64>(&main.sum)?;
            for LossSum { sum, share } in mtp {
                losses.mtp_sum += self.gpu.number::<f64>(&sum)? * share;
            }
        }
        Ok(losses)
    }

    /// The first place of a pass that was not finite since the last update; waits for the device.
    pub(crate) fn first_nonfinite(&self) -> Result<Option<NonFinite>, Error> {
        Ok(self.findings.first(&self.gpu)?)
    }

    /// Copies gradients to the host, to be summed over cells.
    pub(crate) fn fetch_gradients(&self, host: &mut host::Parameters) -> Result<(), Error> {
        Ok(self.parameters.fetch_gradients(&self.gpu, host)?)
    }

    /// Copies masters, moments and average to the host, to be written down, unless it has them: a step may have both a
    /// checkpoint and a snapshot behind it.
    pub(crate) fn fetch(&mut self, host: &mut host::Parameters) -> Result<(), Error> {
        if !self.host_has_all {
            self.parameters.fetch(&self.gpu, host)?;
            self.host_has_all = true;
        }
        Ok(())
    }

    /// AdamW with the gradients that the host has. Returns a checksum of the masters.
    pub(crate) fn update(
        &mut self,
        host: &host::Parameters,
        adam: &AdamStep,
    ) -> Result<u64, Error> {
        self.parameters.push_gradients(&self.gpu, host)?;
        self.optimise(adam, host.average_decay())
    }

    /// The same with the gradients that are here.
    pub(super) fn optimise(&mut self, adam: &AdamStep, decay: f32) -> Result<u64, Error> {
        self.host_has_all = false;
        let sum = self.parameters.step(&self.gpu, adam, decay)?;
        self.findings.clear(&self.gpu)?;
        Ok(sum)
    }

    pub(crate) fn swap_average(&mut self) -> Result<(), Error> {
        Ok(self.parameters.swap_average(&self.gpu)?)
    }

    /// Throws away everything of the step under way.
    pub(crate) fn abandon(&mut self) -> Result<(), Error> {
        self.kept.clear();
        self.deferred.clear();
        self.losses.clear();
        self.balances.clear();
        self.parameters.zero_gradients(&self.gpu)?;
        Ok(self.findings.clear(&self.gpu)?)
    }
}

impl Kept {
    /// What the routers decided, in the order of `Cut::moe_layers`.
    fn moes(&self) -> impl Iterator<Item = &MoeKept> {
        let mtp = self.tail.iter().flat_map(|tail| &tail.mtp);
        self.layers.iter().chain(mtp.map(|(mtp, _)| &mtp.layer)).filter_map(LayerKept::moe)
    }

    /// Adds the routing counts [layers, E].
    fn count(&self, experts: u32, counts: &mut [u64]) {
        let rows = counts.chunks_exact_mut(experts.max(1) as usize);
        for (moe, counts) in self.moes().zip(rows) {
            for (sum, count) in counts.iter_mut().zip(&moe.counts) {
                *sum += u64::from(*count);
            }
        }
    }
}

/// How many times a microbatch is looked at for what is not finite, at most: at both ends of a stage, at each layer's
/// output, after its attention and its experts, where rows come back, and in the heads, in each direction; forward also after
/// the router.
fn checks(cut: &Cut) -> usize {
    let modules = cut.mtp_layers().len();
    2 + 9 * (cut.layers.len() + modules) + if cut.last { 3 + 3 * modules } else { 0 }
}

fn bias<'a>(biases: &Biases<'a>, layer: &Layer) -> Option<&'a [f32]> {
    biases.get(&layer.number()).copied()
}

/// The first layer's input: embedded tokens, or what the previous stage sent.
fn enter(
    gpu: &Gpu,
    p: &Parameters,
    embedding: Option<GroupId>,
    batch: &Batch<'_>,
    input: Option<&Tensor>,
) -> Result<(Matrix, Option<embedding::Tokens>), Error> {
    Ok(match (input, embedding) {
        (Some(x), None) => {
            let room = gpu.tokens_extent(x.rows()).room;
            (gpu.upload("hidden states from the previous stage", x, room)?, None)
        }
        (None, Some(id)) => {
            let tokens = gpu.tokens(batch.inputs, p.weight(id).n)?;
            (gpu.embedded(p, id, &tokens)?, Some(tokens))
        }
        (Some(_), Some(_)) | (None, None) => panic!("only the first stage has an embedding"),
    })
}
