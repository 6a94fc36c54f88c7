//! The GPUs of a worker. Each is opened once for the life of the process. A cell that is put on one has memory of its own
//! there, exactly as much as was planned for it, and a queue of its own; both go when the cell goes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use shoal_kernels::cuda::DeviceError;
use shoal_kernels::cuda::{Device, Meter, Usage};
use shoal_model::Stage;
pub use shoal_model::cuda::Need;
use shoal_model::cuda::{Gpu, Kernels, Room};
use shoal_plan::device::device_of;
use shoal_plan::grid::CellId;
use shoal_plan::job::Job;
use shoal_plan::plan::Plan;

/// A GPU of this machine that can train.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// In the driver's order, from 0.
    pub ordinal: usize,
    pub name: String,
    pub memory_bytes: usize,
    /// What nobody has of it at this moment.
    pub free_bytes: usize,
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
        let (free_bytes, _) = device.memory()?;
        Ok(Self { ordinal, name, memory_bytes, free_bytes })
    }
}

/// What serves a GPU that can train.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The CUDA that the driver supports.
    pub cuda: String,
    /// Major, minor.
    pub capability: (u32, u32),
    /// The architecture for which the PTX that it runs was compiled.
    pub image: String,
}

impl Served {
    /// Opens a GPU and closes it again.
    ///
    /// # Errors
    /// Why it cannot train.
    pub fn look(ordinal: usize) -> Result<Self, DeviceError> {
        let device = Device::open(ordinal)?;
        let properties = device.properties();
        let (cuda, capability) = (properties.driver.to_string(), properties.compute_capability);
        Ok(Self { cuda, capability, image: device.arch().to_string() })
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
    /// Memory of every cell that was ever put here, the last time it was.
    cells: Mutex<BTreeMap<CellId, Meter>>,
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
            Ok(Opened { share: *share, device, kernels, cells: Mutex::default() })
        };
        Ok(Self(Arc::new(shares.iter().map(open).collect::<Result<_, _>>()?)))
    }

    /// Moves the stages of a cell, the worker's `nth`, to one of its GPUs, if it has any. Stages that are on one stay there.
    pub(crate) fn place(
        &self,
        (nth, id): (usize, CellId),
        stages: &mut [Stage],
        (job, plan): (&Job, &Plan),
    ) -> Result<(), shoal_model::Error> {
        let Some(opened) = self.0.get(device_of(nth, self.0.len())) else { return Ok(()) };
        if stages.iter().all(|stage| stage.gpu().is_some()) {
            return Ok(());
        }
        // What is half there goes first: all stages of a cell lie in one piece of memory.
        stages.iter_mut().for_each(Stage::leave_device);
        let gpu = opened.take(id, Need::of(job, plan, id)?.bytes)?;
        let gpu = gpu.with_room(Room::of(job, plan, id));
        stages.iter_mut().try_for_each(|stage| stage.move_to(gpu.clone()))
    }

    /// How much of its memory each cell uses, and used at most: with the GPU it is on, or was on last.
    pub fn usage(&self) -> Vec<(usize, CellId, Usage)> {
        let of = |opened: &Opened| -> Vec<_> {
            let usage = |(id, meter): (&CellId, &Meter)| (opened.share.ordinal, *id, meter.usage());
            opened.lock().iter().map(usage).collect()
        };
        self.0.iter().flat_map(of).collect()
    }
}

impl Opened {
    /// Memory for a cell, within the worker's share.
    fn take(&self, id: CellId, bytes: usize) -> Result<Gpu, DeviceError> {
        let what = format!("the memory of {id}");
        // Held until the memory is there: cells come at the same time.
        let mut cells = self.lock();
        let live = cells.values().filter(|meter| meter.is_live());
        let used: usize = live.map(|meter| meter.usage().total).sum();
        let total = self.share.bytes;
        let free = total.saturating_sub(used);
        if free < bytes {
            return Err(DeviceError::OutOfMemory { what, bytes, free, total });
        }
        let gpu = Gpu::new(&self.device, &self.kernels, (&what, bytes))?;
        cells.insert(id, gpu.meter());
        Ok(gpu)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<CellId, Meter>> {
        // It is changed in one go.
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
