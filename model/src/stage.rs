//! One cell's part of the network: the door through which the worker trains it.
//!
//! A step: for each microbatch `forward`, `backward_input`, `backward_weight` (or `backward`, both at once), and `settle`; then
//! the caller sums `parameters_mut().gradients_mut(class)` and `counts_mut()` over the cells that share them, votes
//! with `sum_of_squares` and `first_nonfinite`, and calls `update` or `abandon`. What is kept between
//! the calls is listed in `halves`. A stage that was moved to a GPU (`move_to`) does its passes and its update there.

mod device;
mod pass;

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_kernels::adamw;
use shoal_kernels::checksum::checksum;
use shoal_kernels::router;
use shoal_kernels::spread;
use shoal_kernels::tensor::{self, Tensor};
use shoal_plan::routing::Routing;

use crate::arithmetic::Arithmetic;
use crate::batch::BatchShape;
use crate::cut::Cut;
use crate::error::Error;
use crate::findings::{Findings, NonFinite, Pass};
use crate::halves::{self, Deferred};
use crate::layer::{Layer, LayerKept};
use crate::memory::Memory;
use crate::moe::{Moe, MoeKept};
use crate::names::{self, EMBEDDING, of_bias};
use crate::optimizer::Update;
use crate::options::StageOptions;
use crate::parameters::{Class, Id, Parameters};
use crate::tail::{Tail, TailKept};

pub(crate) use self::pass::NO_SCALE;

/// What each loss sum is multiplied by. Global counts, so that gradients of all cells just add up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// 1 / target tokens of the step.
    pub main: f32,
    /// lambda / targets of the first multi-token-prediction module.
    pub mtp: f32,
    /// alpha / sequences of the step.
    pub balance: f32,
}

/// Unweighted loss sums of this cell, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// Over target tokens.
    pub main_sum: f64,
    /// Over targets of the multi-token-prediction modules. With several, each one's sum is brought
    /// to the number of targets of the first, and the mean over the modules is taken: divided by the
    /// targets of the first (one a sequence fewer than the main head's), this is the mean over the
    /// modules of their mean losses.
    pub mtp_sum: f64,
    /// Over sequences and mixture-of-experts layers.
    pub balance_sum: f64,
}

/// Sums of squared gradients, by class, so that the global norm counts each parameter once: `dense`
/// from one cell of each stage, `expert` from one cell of each shard of each stage, `embedding` from
/// one cell of the first stage alone. Valid after the gradients were summed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Norms {
    pub dense: f64,
    pub expert: f64,
    pub embedding: f64,
}

/// What a forward pass without training gives.
#[derive(Clone, Debug)]
pub enum Evaluated {
    /// For the next stage.
    Hidden(Tensor),
    /// The last stage's main loss, summed over targets, in nats.
    Loss { loss_sum: f64, targets: u64 },
}

/// One cell's part of the network.
#[derive(Clone, Debug)]
pub struct Stage {
    cut: Cut,
    arithmetic: Arithmetic,
    parameters: Parameters,
    /// On the first stage.
    embedding: Option<Id>,
    layers: Vec<Layer>,
    /// On the last stage.
    tail: Option<Tail>,
    /// After forward, by microbatch.
    kept: BTreeMap<u32, Kept>,
    /// After the input half, by microbatch.
    deferred: BTreeMap<u32, Vec<Deferred>>,
    losses: Losses,
    counts: Vec<u64>,
    findings: Findings,
    /// Of the parameters after the last update.
    checksum: u64,
    /// Where its passes run, if not here.
    device: Option<device::Placed>,
}

/// Kept after forward.
#[derive(Clone, Debug)]
struct Kept {
    inputs: Vec<u32>,
    shape: BatchShape,
    scale: LossScale,
    layers: Vec<LayerKept>,
    tail: Option<TailKept>,
}

impl Stage {
    /// Draws initial parameters: the same for a seed on every grid. Router biases start at 0.
    pub fn new(cut: Cut, options: &StageOptions) -> Self {
        cut.check();
        let p = Parameters::new(names::specifications(&cut), options, cut.config.initializer_range);
        Self::over(p, cut, options)
    }

    /// The same with nothing drawn, for whoever loads every number: until then it computes nothing.
    /// After loading masters call `Parameters::prepare`.
    pub fn blank(cut: Cut, options: &StageOptions) -> Self {
        cut.check();
        let p = Parameters::blank(names::specifications(&cut), options);
        Self::over(p, cut, options)
    }

    fn over(p: Parameters, cut: Cut, options: &StageOptions) -> Self {
        let config = Arc::new(cut.config.clone());
        let arithmetic = Arithmetic::of(options);
        let layer = |number| Layer::new(&p, &config, arithmetic, &cut, number);
        Self {
            embedding: cut.first.then(|| p.id(EMBEDDING)),
            layers: cut.layers.clone().map(layer).collect(),
            tail: cut.last.then(|| Tail::new(&p, &config, arithmetic, &cut)),
            kept: BTreeMap::new(),
            deferred: BTreeMap::new(),
            losses: Losses::default(),
            counts: vec![0; cut.moe_layers().len() * config.n_routed_experts as usize],
            findings: Findings::default(),
            checksum: 0,
            device: None,
            parameters: p,
            arithmetic,
            cut,
        }
    }

    pub fn cut(&self) -> &Cut {
        &self.cut
    }

    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// To load, and to sum gradients. After loading masters call `Parameters::prepare`.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// Every router bias of the stage, `[E]`, FP32, under its Hugging Face name.
    pub fn biases(&self) -> BTreeMap<String, &[f32]> {
        self.moes().map(|moe| (of_bias(moe.layer()), &moe.bias[..])).collect()
    }

    /// Loads one router bias.
    pub fn set_bias(&mut self, name: &str, values: &[f32]) -> Result<(), Error> {
        let error = |want| Error::Bias { name: name.into(), got: values.len(), want };
        let moe = self.moes_mut().find(|moe| of_bias(moe.layer()) == name);
        let bias = &mut moe.ok_or_else(|| error(0))?.bias;
        if bias.len() != values.len() {
            return Err(error(bias.len()));
        }
        bias.copy_from_slice(values);
        Ok(())
    }

    /// Of all masters and router biases after the last update (`shoal_kernels::checksum`). Equal for equal
    /// parts of equal models, whatever the threads.
    pub fn checksum(&self) -> u64 {
        self.checksum
    }

    /// This cell's losses since the last call.
    pub fn take_losses(&mut self) -> Losses {
        std::mem::take(&mut self.losses)
    }

    /// Tokens routed to each expert since the last update: [layers of `Cut::moe_layers`, E]. To be
    /// summed over the stage's cells before `update`.
    pub fn counts_mut(&mut self) -> &mut [u64] {
        &mut self.counts
    }

    /// How evenly the experts of every layer of `Cut::moe_layers` were chosen since the last update,
    /// of `tokens` tokens in all. Valid after the counts were summed.
    pub fn routing(&self, tokens: u64) -> Vec<Routing> {
        let config = &self.cut.config;
        let choices = tokens * u64::from(config.num_experts_per_tok);
        let counts = self.counts.chunks_exact(config.n_routed_experts.max(1) as usize);
        let layers = self.moes().zip(counts);
        layers.map(|(moe, counts)| Routing::of(moe.layer(), counts, choices, &moe.bias)).collect()
    }

    /// Where a number was first not finite since the last update: `layer 2 forward`,
    /// `layer 1 expert 5 forward`, `gradient of NAME`. Gradients are searched only if no pass noted
    /// anything. Ask before gradients are summed: a sum spreads one cell's trouble to all.
    pub fn first_nonfinite(&self) -> Option<NonFinite> {
        if let Some(found) = self.findings.first() {
            return Some(found.clone());
        }
        let gradients = || self.parameters.all_gradients();
        if spread::inside(|| gradients().into_iter().all(tensor::all_finite)) {
            return None;
        }
        let bad = |name: &&str| !tensor::all_finite(self.parameters.gradient(name));
        let (pass, layer) = (Pass::Gradient, self.cut.layers.start);
        let found =
            |name| NonFinite { pass, layer, received: false, place: format!("gradient of {name}") };
        self.parameters.names().find(bad).map(found)
    }

    /// Squared gradients by class. Not finite if any gradient is not.
    pub fn sum_of_squares(&self) -> Norms {
        let of = |class| adamw::sum_of_squares(self.parameters.gradients(class));
        spread::inside(|| Norms {
            dense: of(Class::Dense),
            expert: of(Class::Expert),
            embedding: of(Class::Embedding),
        })
    }

    /// Ends a step: AdamW on the masters, router biases from the counts, fresh compute weights;
    /// gradients, counts and findings start again from nothing.
    ///
    /// # Errors
    /// What a GPU says; without one there are none.
    pub fn update(&mut self, update: &Update) -> Result<(), Error> {
        assert!(
            self.kept.is_empty() && self.deferred.is_empty(),
            "a step ends when every microbatch has gone through both halves of backward"
        );
        let mut sum = match &self.device {
            Some(device) => device.lock().update(&self.parameters, &update.adam)?,
            None => spread::inside(|| self.parameters.step(&update.adam)),
        };
        let n_experts = self.cut.config.n_routed_experts.max(1) as usize;
        let counts = std::mem::take(&mut self.counts);
        for (moe, counts) in self.moes_mut().zip(counts.chunks_exact(n_experts)) {
            router::step_bias(&mut moe.bias, counts, update.bias_speed);
            sum = sum.wrapping_add(checksum(&moe.bias, moe.layer()));
        }
        self.checksum = sum;
        self.counts = vec![0; counts.len()];
        self.findings = Findings::default();
        Ok(())
    }

    /// Exchanges the masters for their average, for an evaluation, or back again; without an average
    /// nothing changes. Router biases are not averaged. An `update` in between is a bug.
    ///
    /// # Errors
    /// What a GPU says; without one there are none.
    pub fn swap_ema(&mut self) -> Result<(), Error> {
        if let Some(device) = self.device.as_ref().filter(|_| self.parameters.is_averaged()) {
            device.lock().swap_average()?;
        }
        self.parameters.swap_average();
        Ok(())
    }

    /// Throws away everything of the step under way; parameters stay as they were before it.
    pub fn abandon(&mut self) {
        if let Some(device) = &self.device {
            // A device that cannot do this cannot do the next pass either, which says so.
            let _ = device.lock().abandon();
        }
        self.kept.clear();
        self.deferred.clear();
        self.parameters.zero_gradients();
        self.counts.fill(0);
        self.losses = Losses::default();
        self.findings = Findings::default();
    }

    /// What the stage holds at this moment.
    pub fn memory(&self) -> Memory {
        let mut memory = Memory::default();
        self.parameters.add_to(&mut memory);
        for kept in self.kept.values() {
            for layer in &kept.layers {
                layer.add_to(&mut memory);
            }
            if let Some(tail) = &kept.tail {
                tail.add_to(&mut memory);
            }
        }
        for deferred in self.deferred.values() {
            halves::add_to(deferred, &mut memory);
        }
        memory
    }

    /// Routed layers in the order of `Cut::moe_layers`.
    fn moes(&self) -> impl Iterator<Item = &Moe> {
        let mtp = self.tail.iter().flat_map(|tail| &tail.mtp);
        self.layers.iter().chain(mtp.map(|mtp| &mtp.layer)).filter_map(Layer::moe)
    }

    fn moes_mut(&mut self) -> impl Iterator<Item = &mut Moe> {
        let mtp = self.tail.iter_mut().flat_map(|tail| &mut tail.mtp);
        self.layers.iter_mut().chain(mtp.map(|mtp| &mut mtp.layer)).filter_map(Layer::moe_mut)
    }
}

impl Kept {
    /// What the routers decided, in the order of `Cut::moe_layers`.
    fn moes(&self) -> impl Iterator<Item = &MoeKept> {
        let mtp = self.tail.iter().flat_map(|tail| &tail.mtp);
        self.layers.iter().chain(mtp.map(|(mtp, _)| &mtp.layer)).filter_map(LayerKept::moe)
    }
}
