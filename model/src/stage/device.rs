//! A stage whose passes run on a GPU: what crosses between the two, and when.
//!
//! Parameters, moments and the average move there with the stage and are fetched when they are to be written down; hidden
//! states come and go with each pass; gradients, losses and findings come back once a step, in `settle`, to be summed over
//! cells and voted on, and the summed gradients go there with `update`. Router biases and counts stay here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_kernels::tensor::Tensor;

use super::{Evaluated, LossScale, Stage};
use crate::batch::{Batch, BatchShape};
use crate::cuda::{Gpu, Network};
use crate::error::Error;
use crate::exchange::Exchange;
use crate::moe::Moe;

/// A stage's part on a device. A clone is the same part.
#[derive(Clone, Debug)]
pub(super) struct Placed(Arc<Mutex<Network>>);

impl Placed {
    pub(super) fn lock(&self) -> MutexGuard<'_, Network> {
        // After a panic nobody goes on with the stage.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stage {
    /// From now on passes and updates run on a GPU. To be called when the parameters are loaded and no step is under way.
    ///
    /// # Errors
    /// A precision that the GPU does not have; too little memory; what the device says.
    pub fn move_to(&mut self, gpu: Gpu) -> Result<(), Error> {
        assert!(self.kept.is_empty() && self.deferred.is_empty(), "a step is under way");
        self.parameters.options().check_gpu()?;
        let network = Network::new(gpu, &self.cut, self.arithmetic, &self.parameters)?;
        self.device = Some(Placed(Arc::new(Mutex::new(network))));
        Ok(())
    }

    /// Gives up what is on the device: passes run here again, on the parameters that are here.
    pub fn leave_device(&mut self) {
        self.device = None;
    }

    /// Ends the passes of a step: gradients, losses and findings are here afterwards. Waits for the device; without one
    /// there is nothing to do.
    ///
    /// # Errors
    /// What the device says.
    pub fn settle(&mut self) -> Result<(), Error> {
        let Some(device) = &self.device else { return Ok(()) };
        let mut device = device.lock();
        device.fetch_gradients(&mut self.parameters)?;
        let losses = device.take_losses()?;
        self.losses.main_sum += losses.main_sum;
        self.losses.mtp_sum += losses.mtp_sum;
        self.losses.balance_sum += losses.balance_sum;
        if let Some(found) = device.first_nonfinite()? {
            self.findings.note(|| found);
        }
        Ok(())
    }

    /// Brings masters, moments and average here, to be written down. Waits for the device; without one there is nothing to
    /// do.
    ///
    /// # Errors
    /// What the device says.
    pub fn fetch(&mut self) -> Result<(), Error> {
        let Some(device) = &self.device else { return Ok(()) };
        device.lock().fetch(&mut self.parameters)
    }

    /// The device that passes run on.
    pub fn gpu(&self) -> Option<Gpu> {
        self.device.as_ref().map(|device| device.lock().gpu().clone())
    }

    /// Whether a microbatch is between its forward and its weight half.
    pub(super) fn holds(&self, microbatch: u32) -> bool {
        self.kept.contains_key(&microbatch)
            || self.deferred.contains_key(&microbatch)
            || self.device.as_ref().is_some_and(|device| device.lock().holds(microbatch))
    }

    pub(super) fn forward_there(
        &mut self,
        microbatch: u32,
        (batch, shape): (&Batch<'_>, BatchShape),
        input: Option<Tensor>,
        scale: &LossScale,
        exchange: &mut dyn Exchange,
    ) -> Result<Option<Tensor>, Error> {
        let what = "hidden states from the previous stage";
        let input = self.neighbour(what, microbatch, shape, input, self.cut.first)?;
        let mut counts = std::mem::take(&mut self.counts);
        let biases = self.biases_by_layer();
        let mut device = self.placed();
        let work = (batch, shape);
        let world = (exchange, &mut counts[..]);
        let output = device.forward(microbatch, work, input.as_ref(), (scale, &biases), world);
        drop(device);
        drop(biases);
        self.counts = counts;
        output
    }

    pub(super) fn backward_there(
        &mut self,
        microbatch: u32,
        d_output: Option<Tensor>,
        exchange: &mut dyn Exchange,
        both: bool,
    ) -> Result<Option<Tensor>, Error> {
        let slot = "the input half of backward";
        let problem = "it did not go forward";
        let shape = self.placed().shape(microbatch);
        let shape = shape.ok_or(Error::Order { slot, microbatch, problem })?;
        self.check_group(exchange)?;
        let what = "the gradient from the next stage";
        let d_output = self.neighbour(what, microbatch, shape, d_output, self.cut.last)?;
        self.placed().backward(microbatch, d_output.as_ref(), exchange, both)
    }

    pub(super) fn backward_weight_there(&self, microbatch: u32) -> Result<(), Error> {
        let slot = "the weight half of backward";
        let problem = "its input half is not done";
        let mut device = self.placed();
        if !device.is_deferred(microbatch) {
            return Err(Error::Order { slot, microbatch, problem });
        }
        device.backward_weight(microbatch)
    }

    pub(super) fn evaluate_there(
        &self,
        (batch, shape): (&Batch<'_>, BatchShape),
        input: Option<Tensor>,
        exchange: &mut dyn Exchange,
    ) -> Result<Evaluated, Error> {
        let what = "hidden states from the previous stage";
        let input = self.neighbour(what, 0, shape, input, self.cut.first)?;
        let biases = self.biases_by_layer();
        self.placed().evaluate((batch, shape), input.as_ref(), &biases, exchange)
    }

    fn placed(&self) -> MutexGuard<'_, Network> {
        self.device.as_ref().expect("the stage was moved to a device").lock()
    }

    fn biases_by_layer(&self) -> BTreeMap<u32, &[f32]> {
        self.moes().map(|moe: &Moe| (moe.layer(), &moe.bias[..])).collect()
    }
}
