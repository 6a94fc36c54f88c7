//! The GPUs of a worker. Each is opened once for the life of the process. All cells that are put on one share its
//! memory and its queue: a plan that brings more cells, or takes some away, divides nothing anew.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_kernels::cuda::{Device, DeviceError, Usage};
use shoal_model::Stage;
use shoal_model::cuda::{Gpu, Kernels};

/// A GPU of this machine that can train.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// In the driver's order, from 0.
    pub ordinal: usize,
    pub name: String,
    pub memory_bytes: usize,
}

impl Card {
    /// Looks at every GPU: each is one that can train, or the reason why not.
    ///
    /// # Errors
    /// Without a driver, or with one that does not start.
    pub fn all() -> Result<Vec<Result<Self, DeviceError>>, DeviceError> {
        Ok((0..Device::count()?).map(Self::look).collect())
    }

    /// Opens a GPU and closes it again.
    ///
    /// # Errors
    /// Why it cannot train.
    pub fn look(ordinal: usize) -> Result<Self, DeviceError> {
        let device = Device::open(ordinal)?;
        let properties = device.properties();
        let (name, memory_bytes) = (properties.name.clone(), properties.memory_bytes);
        Ok(Self { ordinal, name, memory_bytes })
    }
}

/// What of a machine's GPU a worker may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// In the driver's order, from 0.
    pub ordinal: usize,
    pub bytes: usize,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.ordinal, self.bytes)
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = text.split_once(':').and_then(|(ordinal, bytes)| {
            Some(Self { ordinal: ordinal.parse().ok()?, bytes: bytes.parse().ok()? })
        });
        read.ok_or_else(|| {
            "want a GPU's number and bytes of its memory, such as 0:8000000000".to_owned()
        })
    }
}

/// A worker's GPUs; none means the CPU. A clone is the same ones.
#[derive(Clone, Debug, Default)]
pub struct Devices(Arc<Vec<Opened>>);

#[derive(Debug)]
struct Opened {
    share: Share,
    device: Device,
    kernels: Arc<Kernels>,
    /// Taken when the first cell comes, given back when the worker gives way to its machine's owner.
    gpu: Mutex<Option<Gpu>>,
}

impl Devices {
    /// Opens them and loads every kernel, which the driver compiles.
    ///
    /// # Errors
    /// What the driver says of the first that is not usable.
    pub fn open(shares: &[Share]) -> Result<Self, DeviceError> {
        let open = |share: &Share| {
            let device = Device::open(share.ordinal)?;
            let kernels = Arc::new(Kernels::load(&device)?);
            let (what, mb) = (device.properties(), share.bytes / 1_000_000);
            tracing::info!(
                gpu = share.ordinal,
                name = what.name,
                mb,
                "cells are computed on a GPU"
            );
            Ok(Opened { share: *share, device, kernels, gpu: Mutex::new(None) })
        };
        Ok(Self(Arc::new(shares.iter().map(open).collect::<Result<_, _>>()?)))
    }

    /// Moves a cell's stages to the worker's `nth` GPU, counted round, if it has any. Stages that are on one stay there.
    pub(crate) fn place(&self, nth: usize, stages: &mut [Stage]) -> Result<(), shoal_model::Error> {
        let Some(opened) = self.0.get(nth % self.0.len().max(1)) else { return Ok(()) };
        for stage in stages.iter_mut().filter(|stage| stage.gpu().is_none()) {
            stage.move_to(opened.gpu()?)?;
        }
        Ok(())
    }

    /// Gives the memory of each GPU back, as soon as no cell is in it.
    pub(crate) fn release(&self) {
        for opened in self.0.iter() {
            *opened.lock() = None;
        }
    }

    /// How much of each GPU's share is in use, and was at most.
    pub fn usage(&self) -> Vec<(usize, Usage)> {
        let usage = |opened: &Opened| Some((opened.share.ordinal, opened.lock().as_ref()?.usage()));
        self.0.iter().filter_map(usage).collect()
    }
}

impl Opened {
    fn gpu(&self) -> Result<Gpu, DeviceError> {
        let mut gpu = self.lock();
        if let Some(gpu) = &*gpu {
            return Ok(gpu.clone());
        }
        let made = Gpu::new(&self.device, &self.kernels, self.share.bytes)?;
        *gpu = Some(made.clone());
        Ok(made)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Gpu>> {
        // It is set in one go.
        self.gpu.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
