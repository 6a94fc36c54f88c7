//! The passes over a microbatch: forward, both halves of backward, and forward without training.

use shoal_kernels::embedding;
use shoal_kernels::spread;
use shoal_kernels::tensor::Tensor;

use super::{Evaluated, Kept, LossScale, Stage};
use crate::batch::{Batch, BatchShape};
use crate::error::Error;
use crate::exchange::{Alone, Exchange};
use crate::findings::{Findings, NonFinite};
use crate::halves::{self, Deferred};
use crate::parameters::Parameters;
use crate::run::Run;
use crate::tail::Tail;

/// Nothing is differentiated.
pub(crate) const NO_SCALE: LossScale = LossScale { main: 0.0, mtp: 0.0, balance: 0.0 };

impl Stage {
    /// Forward of one microbatch. `input` is what the previous stage's `forward` returned, `None` on
    /// the first; returns hidden states [T, D] for the next stage, `None` on the last. Every cell of
    /// the expert group must call it for the same microbatch.
    pub fn forward(
        &mut self,
        microbatch: u32,
        batch: &Batch<'_>,
        input: Option<Tensor>,
        scale: &LossScale,
        exchange: &mut dyn Exchange,
    ) -> Result<Option<Tensor>, Error> {
        if self.holds(microbatch) {
            let problem = "it went forward before and its backward is not done";
            return Err(Error::Order { slot: "forward", microbatch, problem });
        }
        let shape = batch.checked(self.cut.config.vocab_size)?;
        self.check_group(exchange)?;
        if self.device.is_some() {
            return self.forward_there(microbatch, (batch, shape), input, scale, exchange);
        }
        let mut x = self.enter(microbatch, batch, shape, input)?;
        self.findings.check(&x, || match (self.cut.first, self.cut.layers.start) {
            (true, layer) => NonFinite::forward(layer, "the embedding, forward"),
            (false, layer) => NonFinite::forward(layer, "the stage's input, forward").received(),
        });

        let mut layers = Vec::with_capacity(self.layers.len());
        let mut run = Run { shape, exchange, findings: &mut self.findings, scale: *scale };
        for layer in &self.layers {
            let (y, kept) = layer.forward(&self.parameters, x, &mut run)?;
            x = y;
            layers.push(kept);
        }
        let mut kept =
            Kept { inputs: batch.inputs.to_vec(), shape, scale: *scale, layers, tail: None };
        let mut output = None;
        if let Some(tail) = &self.tail {
            kept.tail = Some(tail.forward(&mut self.parameters, x, batch, &mut run)?);
        } else {
            output = Some(x);
        }
        self.count(&kept);
        self.kept.insert(microbatch, kept);
        Ok(output)
    }

    /// The input half of backward. `d_output` is what the next stage's returned, `None` on the last;
    /// returns the gradient [T, D] for the previous stage, `None` on the first. Every cell of the
    /// expert group must call it for the same microbatch.
    pub fn backward_input(
        &mut self,
        microbatch: u32,
        d_output: Option<Tensor>,
        exchange: &mut dyn Exchange,
    ) -> Result<Option<Tensor>, Error> {
        if self.device.is_some() {
            return self.backward_there(microbatch, d_output, exchange, false);
        }
        let mut deferred = Vec::new();
        let mut keep = |_: &mut Parameters, layer: Vec<Deferred>| deferred.extend(layer);
        let d_input = self.backward_layers(microbatch, d_output, exchange, &mut keep)?;
        self.deferred.insert(microbatch, deferred);
        Ok(d_input)
    }

    /// Both halves of backward, for when nobody waits for the input half: the weight half of each layer
    /// right behind its input half, so that what lies between the halves lives no longer than a layer.
    /// The numbers are those of `backward_input`, whose contract holds, and `backward_weight`.
    pub fn backward(
        &mut self,
        microbatch: u32,
        d_output: Option<Tensor>,
        exchange: &mut dyn Exchange,
    ) -> Result<Option<Tensor>, Error> {
        if self.device.is_some() {
            return self.backward_there(microbatch, d_output, exchange, true);
        }
        let mut accumulate = |parameters: &mut Parameters, layer: Vec<Deferred>| {
            spread::inside(|| halves::accumulate(parameters, layer));
        };
        self.backward_layers(microbatch, d_output, exchange, &mut accumulate)
    }

    /// The input half, layer by layer; `weights` is given the weight half of each.
    fn backward_layers(
        &mut self,
        microbatch: u32,
        d_output: Option<Tensor>,
        exchange: &mut dyn Exchange,
        weights: &mut dyn FnMut(&mut Parameters, Vec<Deferred>),
    ) -> Result<Option<Tensor>, Error> {
        let slot = "the input half of backward";
        let problem = "it did not go forward";
        let kept =
            self.kept.remove(&microbatch).ok_or(Error::Order { slot, microbatch, problem })?;
        self.check_group(exchange)?;
        let what = "the gradient from the next stage";
        let d_output = self.neighbour(what, microbatch, kept.shape, d_output, self.cut.last)?;
        let mut deferred = Vec::new();
        let p = &mut self.parameters;
        let findings = &mut self.findings;
        let mut run = Run { shape: kept.shape, exchange, findings, scale: kept.scale };
        let mut d_x = match (d_output, &self.tail, kept.tail) {
            (None, Some(tail), Some(kept)) => {
                tail.backward_input(p, kept, &mut run, &mut deferred)?
            }
            (Some(d_output), None, None) => d_output,
            (_, Some(_) | None, Some(_) | None) => panic!("only the last stage has heads"),
        };
        weights(p, std::mem::take(&mut deferred));
        let (received, layer) = (!self.cut.last, self.cut.layers.end);
        run.findings.check(&d_x, || {
            let found = NonFinite::backward(layer, "the gradient from the next stage");
            if received { found.received() } else { found }
        });
        for (layer, kept) in self.layers.iter().zip(kept.layers).rev() {
            d_x = layer.backward_input(p, kept, d_x, &mut run, &mut deferred)?;
            weights(p, std::mem::take(&mut deferred));
        }
        if let Some(id) = self.embedding {
            embedding::backward(&kept.inputs, &d_x, p.values_and_gradient(id).1);
            return Ok(None);
        }
        Ok(Some(d_x))
    }

    /// The weight half of backward: every Linear's weight gradient. Talks to nobody.
    pub fn backward_weight(&mut self, microbatch: u32) -> Result<(), Error> {
        if self.device.is_some() {
            return self.backward_weight_there(microbatch);
        }
        let slot = "the weight half of backward";
        let problem = "its input half is not done";
        let deferred = (self.deferred.remove(&microbatch)).ok_or(Error::Order {
            slot,
            microbatch,
            problem,
        })?;
        let parameters = &mut self.parameters;
        spread::inside(|| halves::accumulate(parameters, deferred));
        Ok(())
    }

    /// Forward with the main head only; counts nothing and keeps nothing. Every cell of the expert
    /// group must call it for batches of its own.
    pub fn evaluate(
        &self,
        batch: &Batch<'_>,
        input: Option<Tensor>,
        exchange: &mut dyn Exchange,
    ) -> Result<Evaluated, Error> {
        let shape = batch.checked(self.cut.config.vocab_size)?;
        self.check_group(exchange)?;
        if self.device.is_some() {
            return self.evaluate_there((batch, shape), input, exchange);
        }
        let x = self.enter(0, batch, shape, input)?;
        let x = self.through_layers(x, shape, exchange)?;
        let Some(tail) = &self.tail else { return Ok(Evaluated::Hidden(x)) };
        let (loss_sum, targets) = tail.evaluate(&self.parameters, &x, batch.targets);
        Ok(Evaluated::Loss { loss_sum, targets })
    }

    /// Logits `[V]` of the token after `tokens`, with the whole model in this stage.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        let batch = Batch { sequences: 1, inputs: tokens, targets: tokens };
        let (tail, x) = self.through_whole_model(&batch)?;
        Ok(tail.logits(&self.parameters, &x.gather_rows(&[tokens.len() as u32 - 1])))
    }

    /// Logits [T, V] of the main head after every input, sequence by sequence, with the whole model in
    /// this stage. Targets are not looked at. Counts nothing and keeps nothing; all T x V numbers are
    /// alive at once, so long texts are to be asked for in pieces.
    pub fn all_logits(&self, batch: &Batch<'_>) -> Result<Vec<f32>, Error> {
        let (tail, x) = self.through_whole_model(batch)?;
        Ok(tail.logits(&self.parameters, &x))
    }

    /// The heads, and what the main one reads before its norm [T, D].
    fn through_whole_model(&self, batch: &Batch<'_>) -> Result<(&Tail, Tensor), Error> {
        assert!(
            self.device.is_none(),
            "logits are the host's: its weights are old while a device trains"
        );
        let whole = self.cut.first && self.cut.experts.len() == 1;
        let (Some(tail), true) = (&self.tail, whole) else {
            let layers = &self.cut.layers;
            return Err(Error::NotWhole { first: layers.start, end: layers.end });
        };
        let shape = batch.checked(self.cut.config.vocab_size)?;
        let x = self.enter(0, batch, shape, None)?;
        Ok((tail, self.through_layers(x, shape, &mut Alone)?))
    }

    fn through_layers(
        &self,
        mut x: Tensor,
        shape: BatchShape,
        exchange: &mut dyn Exchange,
    ) -> Result<Tensor, Error> {
        let mut findings = Findings::default();
        let mut run = Run { shape, exchange, findings: &mut findings, scale: NO_SCALE };
        for layer in &self.layers {
            x = layer.forward(&self.parameters, x, &mut run)?.0;
        }
        Ok(x)
    }

    /// The first layer's input: embedded tokens, or what the previous stage sent.
    fn enter(
        &self,
        microbatch: u32,
        batch: &Batch<'_>,
        shape: BatchShape,
        input: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        let what = "hidden states from the previous stage";
        let input = self.neighbour(what, microbatch, shape, input, self.cut.first)?;
        Ok(match (input, self.embedding) {
            (Some(x), None) => x,
            (None, Some(id)) => {
                self.parameters.embedded(id, batch.inputs, self.arithmetic.activation)
            }
            (Some(_), Some(_)) | (None, None) => panic!("only the first stage has an embedding"),
        })
    }

    /// Checks what a neighbouring stage sent: nothing at an end of the pipeline, else [T, D].
    pub(super) fn neighbour(
        &self,
        what: &'static str,
        microbatch: u32,
        shape: BatchShape,
        got: Option<Tensor>,
        at_end: bool,
    ) -> Result<Option<Tensor>, Error> {
        let dtype = self.arithmetic.activation;
        let want = [shape.rows(), self.cut.config.hidden_size as usize];
        let fits = match &got {
            None => at_end,
            Some(x) => !at_end && x.dtype() == dtype && x.shape() == want,
        };
        if fits {
            return Ok(got);
        }
        let describe = |x: &Tensor| format!("{:?} {:?}", x.dtype(), x.shape());
        let got = got.as_ref().map_or_else(|| "nothing".into(), describe);
        let want = if at_end { "nothing".into() } else { format!("{dtype:?} {want:?}") };
        Err(Error::Neighbour { what, microbatch, got, want })
    }

    pub(super) fn check_group(&self, exchange: &dyn Exchange) -> Result<(), Error> {
        let (got_size, got_rank) = (exchange.size(), exchange.rank());
        let (want_size, want_rank) = (self.cut.experts.len(), self.cut.shard);
        if (got_size, got_rank) == (want_size, want_rank) {
            return Ok(());
        }
        Err(Error::Group { got_size, got_rank, want_size, want_rank })
    }

    /// Adds one microbatch's losses and routing counts. Only training comes here.
    fn count(&mut self, kept: &Kept) {
        if let Some(tail) = &kept.tail {
            self.losses.main_sum += tail.main_sum;
            self.losses.mtp_sum += tail.mtp_sum;
        }
        let n_experts = self.cut.config.n_routed_experts.max(1) as usize;
        let rows = self.counts.chunks_exact_mut(n_experts);
        for (moe, counts) in kept.moes().zip(rows) {
            self.losses.balance_sum += moe.routing.balance;
            for (count, routed) in counts.iter_mut().zip(&moe.routing.counts) {
                *count += routed;
            }
        }
    }
}
