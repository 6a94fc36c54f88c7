//! The state behind the C functions, as plain Rust: cards and their contexts, memory, streams,
//! events, modules, and the work that waits. It knows no pointer and no thread; whoever must wait
//! asks [`Driver::advance`] again and again.

use std::collections::BTreeMap;

use shoal_standin::Memory;

use crate::cards::Card;
use crate::order::{Goal, Order, WorkId};
use crate::random::Random;
use crate::report::{Check, Fault, Leak, Report, Use};
use crate::settings::{ComputeMode, Settings};
use crate::status::Status;

mod device_memory;
mod host_memory;
mod launch;
mod modules;
mod streams;
mod work;

pub use host_memory::HostMemory;
pub use launch::Shape;
pub use modules::Refused;
pub use streams::Goals;
pub use work::{HostCall, Pattern};

use device_memory::Allocation;
use host_memory::Pinned;
use modules::{Function, Loaded};
use streams::{Event, Stream};
use work::Job;

/// What a handle names. Part of the handle, so that one kind is never taken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Context = 1,
    Stream = 2,
    Event = 3,
    Module = 4,
    Function = 5,
    Pool = 6,
}

/// Bytes of a card that its context keeps for itself. A real one differs by driver and card; it is
/// some hundred MiB.
pub const CONTEXT_BYTES: usize = 256 << 20;

/// One card.
struct Device {
    card: Card,
    /// How often its primary context is held.
    retained: u32,
    /// The error that every later call gets.
    sticky: Option<Status>,
    /// Bytes allocated, and the most that ever were.
    used: usize,
    high_water: usize,
    /// Its default stream.
    default_stream: u64,
    /// Bytes that its pool keeps instead of giving back; only remembered.
    release_threshold: u64,
}

/// A driver with its cards.
pub struct Driver {
    settings: Settings,
    is_initialized: bool,
    devices: Vec<Device>,
    memory: Memory,
    allocations: BTreeMap<u64, Allocation>,
    freed: BTreeMap<u64, Allocation>,
    host: Box<dyn HostMemory + Send>,
    pinned: BTreeMap<usize, Pinned>,
    streams: BTreeMap<u64, Stream>,
    events: BTreeMap<u64, Event>,
    modules: BTreeMap<u64, Loaded>,
    functions: BTreeMap<u64, Function>,
    order: Order<Job>,
    /// Functions of the host that are to run now, on threads of their own.
    due: Vec<(WorkId, HostCall)>,
    random: Random,
    handles: u64,
    calls: u64,
    allocated: u64,
    launched: u64,
    /// Microseconds on the host's virtual clock.
    now: f64,
    report: Report,
}

/// What a wait came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All of it has finished.
    Done,
    /// Something ran; ask again.
    Ran,
    /// Only a function of the host can bring it on: wait until one returns.
    HostFunction,
}

impl Driver {
    /// A driver whose host memory is reached through `host`.
    pub fn new(settings: Settings, host: Box<dyn HostMemory + Send>) -> Self {
        let devices = settings.cards.iter().map(|card| Device {
            card: card.clone(),
            retained: 0,
            sticky: None,
            used: 0,
            high_water: 0,
            default_stream: 0,
            release_threshold: 0,
        });
        Self {
            is_initialized: false,
            devices: devices.collect(),
            memory: Memory::new(),
            allocations: BTreeMap::new(),
            freed: BTreeMap::new(),
            host,
            pinned: BTreeMap::new(),
            streams: BTreeMap::new(),
            events: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            order: Order::new(settings.seed, settings.temper),
            due: Vec::new(),
            random: Random::new(!settings.seed),
            handles: 0,
            calls: 0,
            allocated: 0,
            launched: 0,
            now: 0.0,
            report: Report { seed: settings.seed, ..Report::default() },
            settings,
        }
    }

    /// Counts a call. Everything that is noticed until the next one is put down to it. Fails if the
    /// environment asked for that.
    pub fn begin(&mut self, function: &str) -> Result<(), Status> {
        self.calls += 1;
        self.now += 1.0;
        let count = self.report.calls.entry(function.to_owned()).or_default();
        *count += 1;
        match self.settings.call_failure(function, *count) {
            None => Ok(()),
            Some(status) => {
                let message = format!("{function} was to return {}", status.name());
                self.fault(Check::Injected, message);
                Err(status)
            }
        }
    }

    /// `cuInit`.
    pub fn init(&mut self) -> Result<(), Status> {
        if let Some(status) = self.settings.init_failure() {
            return Err(status);
        }
        if self.devices.is_empty() {
            return Err(Status::NoDevice);
        }
        self.is_initialized = true;
        Ok(())
    }

    /// The version that the driver says it has.
    pub fn version(&self) -> u32 {
        self.settings.driver
    }

    /// How many cards there are.
    pub fn device_count(&self) -> Result<usize, Status> {
        self.initialized().map(|()| self.devices.len())
    }

    /// The card at `ordinal`.
    pub fn card(&self, ordinal: i32) -> Result<&Card, Status> {
        Ok(&self.device(ordinal)?.card)
    }

    /// An attribute of a card, by its number in `CUdevice_attribute`.
    pub fn attribute(&self, number: i32, ordinal: i32) -> Result<i32, Status> {
        let card = self.card(ordinal)?;
        let value = match number {
            20 => Some(self.settings.compute_mode as usize),
            _ => card.attribute(number, ordinal as usize, self.settings.pools),
        };
        value.map(|value| value as i32).ok_or(Status::InvalidValue)
    }

    /// Whether `cuInit` was called.
    pub fn is_ready(&self) -> Result<(), Status> {
        self.initialized()
    }

    fn initialized(&self) -> Result<(), Status> {
        if self.is_initialized { Ok(()) } else { Err(Status::NotInitialized) }
    }

    fn device(&self, ordinal: i32) -> Result<&Device, Status> {
        self.initialized()?;
        let index = usize::try_from(ordinal).map_err(|_| Status::InvalidDevice)?;
        self.devices.get(index).ok_or(Status::InvalidDevice)
    }

    /// Holds the primary context of a card; its handle.
    pub fn retain(&mut self, ordinal: i32) -> Result<u64, Status> {
        self.device(ordinal)?;
        if let Some(status) = self.settings.lost_at(self.calls) {
            return Err(status);
        }
        if self.settings.compute_mode == ComputeMode::Prohibited {
            return Err(Status::DeviceUnavailable);
        }
        let index = ordinal as usize;
        if self.devices[index].retained == 0 {
            let stream = self.handle(Kind::Stream);
            self.devices[index].default_stream = stream;
            self.open_stream(stream, index, true);
        }
        self.devices[index].retained += 1;
        Ok(context_handle(index))
    }

    /// Lets go of the primary context. The last one to let go resets the card: what is queued runs,
    /// and what is still there is a leak.
    pub fn release(&mut self, ordinal: i32) -> Result<Progress, Status> {
        let retained = self.device(ordinal)?.retained;
        let index = ordinal as usize;
        if retained == 0 {
            return Err(Status::InvalidContext);
        }
        if retained == 1 {
            let progress = self.advance(&self.tails(index));
            if progress != Progress::Done {
                return Ok(progress);
            }
            self.reset(index);
        }
        self.devices[index].retained -= 1;
        Ok(Progress::Done)
    }

    /// Whether the primary context of a card is held.
    pub fn is_active(&self, ordinal: i32) -> Result<bool, Status> {
        Ok(self.device(ordinal)?.retained > 0)
    }

    /// The card of a context's handle, whatever state it is in.
    pub fn card_of(&self, context: u64) -> Result<usize, Status> {
        self.initialized()?;
        let index = (0..self.devices.len()).find(|index| context_handle(*index) == context);
        index.ok_or(Status::InvalidContext)
    }

    /// The card of the current context, if it can be worked with. `0` is no context.
    pub fn context(&self, context: u64) -> Result<usize, Status> {
        let index = self.card_of(context)?;
        self.usable(index).map(|()| index)
    }

    /// Whether a card's primary context is there and has not failed.
    pub fn usable(&self, device: usize) -> Result<(), Status> {
        let device = &self.devices[device];
        if device.retained == 0 {
            return Err(Status::ContextIsDestroyed);
        }
        self.settings.lost_at(self.calls).or(device.sticky).map_or(Ok(()), Err)
    }

    /// A handle that never was before.
    fn handle(&mut self, kind: Kind) -> u64 {
        self.handles += 1;
        handle(kind, self.handles)
    }

    /// Runs at most one piece of what `goals` need. Goals that are no longer pending are reached.
    pub fn advance(&mut self, goals: &[WorkId]) -> Progress {
        let Some(goal) = goals.iter().copied().find(|id| self.order.is_pending(*id)) else {
            return Progress::Done;
        };
        if self.run_one(Goal::Work(goal)) { Progress::Ran } else { Progress::HostFunction }
    }

    /// Functions of the host that are to run now. [`Driver::returned`] says that one has.
    pub fn take_due(&mut self) -> Vec<(WorkId, HostCall)> {
        std::mem::take(&mut self.due)
    }

    /// A function of the host has returned.
    pub fn returned(&mut self, id: WorkId) {
        self.order.finish(id, self.now);
    }

    /// What every wait for a whole card waits for.
    fn tails(&self, device: usize) -> Vec<WorkId> {
        let streams = self.streams.iter().filter(|(_, stream)| stream.device == device);
        let mut tails: Vec<WorkId> =
            streams.filter_map(|(handle, _)| self.order.last(*handle)).collect();
        // Work of streams that were destroyed before it ran.
        let orphans = self.order.pending().filter(|(_, lane, job)| {
            !self.streams.contains_key(lane) && job.is_some_and(|job| job.device == device)
        });
        tails.extend(orphans.map(|(id, ..)| id));
        tails
    }

    /// Puts down what went wrong, and says it.
    pub(crate) fn fault(&mut self, check: Check, message: String) {
        self.fault_at(check, message, self.calls);
    }

    fn fault_at(&mut self, check: Check, message: String, call: u64) {
        let fault = Fault { check, message, call };
        crate::shared::say(&format!("{:?} at call {call}: {}", fault.check, fault.message));
        self.report.faults.push(fault);
    }

    /// The card failed: every later call on it gets `status`, and what was queued is lost.
    fn poison(&mut self, device: usize, status: Status) {
        let sticky = &mut self.devices[device].sticky;
        *sticky = sticky.or(Some(status));
        let lanes: Vec<u64> = (self.order.pending())
            .filter(|(_, _, job)| job.is_some_and(|job| job.device == device))
            .map(|(_, lane, _)| lane)
            .collect();
        for job in self.order.abandon(|lane| lanes.contains(&lane)) {
            self.abandoned(job, status);
        }
    }

    /// Puts down what is still there on a card, and takes it away.
    fn reset(&mut self, device: usize) {
        let leaks = self.leaks(Some(device));
        self.report.leaks.extend(leaks);
        let bases: Vec<u64> = (self.allocations.values())
            .filter(|allocation| allocation.device == device)
            .map(|allocation| allocation.base)
            .collect();
        for base in bases {
            self.release_memory(base);
        }
        let lanes: Vec<u64> = (self.streams.iter())
            .filter(|(_, stream)| stream.device == device)
            .map(|(handle, _)| *handle)
            .collect();
        for lane in lanes {
            self.order.close_lane(lane);
            self.streams.remove(&lane);
        }
        self.events.retain(|_, event| event.device != device);
        self.modules.retain(|_, module| module.device != device);
        self.functions.retain(|_, function| function.device != device);
    }

    /// What is live, on one card or on all.
    fn leaks(&self, only: Option<usize>) -> Vec<Leak> {
        let here = |device: usize| only.is_none_or(|only| only == device);
        let leak = |kind: &str, device, call, bytes| {
            here(device).then(|| Leak { kind: kind.to_owned(), bytes, device, call })
        };
        let memory = (self.allocations.values())
            .filter(|memory| memory.freed_at.is_none())
            .filter_map(|memory| leak("memory", memory.device, memory.call, memory.bytes));
        let streams = (self.streams.values().filter(|stream| !stream.is_default))
            .filter_map(|stream| leak("stream", stream.device, stream.call, 0));
        let events =
            self.events.values().filter_map(|event| leak("event", event.device, event.call, 0));
        let modules = self.modules.values().filter_map(|m| leak("module", m.device, m.call, 0));
        let pinned = (self.pinned.values())
            .filter_map(|pinned| leak("pinned memory", pinned.device, pinned.call, pinned.bytes));
        memory.chain(streams).chain(events).chain(modules).chain(pinned).collect()
    }

    /// How many faults were put down.
    pub fn fault_count(&self) -> usize {
        self.report.faults.len()
    }

    /// The report as it would be if the process ended now.
    pub fn report(&self) -> Report {
        let mut report = self.report.clone();
        report.leaks.extend(self.leaks(None));
        report.memory = (self.devices.iter())
            .map(|device| Use {
                card: device.card.name.to_owned(),
                high_water: device.high_water,
                now: device.used,
            })
            .collect();
        report
    }

    /// Where the report goes.
    pub fn report_path(&self) -> Option<String> {
        let process = std::process::id().to_string();
        self.settings.report.as_ref().map(|path| path.replace("%p", &process))
    }
}

/// The handle of a card's primary context.
fn context_handle(index: usize) -> u64 {
    handle(Kind::Context, index as u64)
}

/// Not an address of this process, so that reading through it ends the process.
fn handle(kind: Kind, number: u64) -> u64 {
    0x5ba1_0000_0000_0000 | (kind as u64) << 40 | number << 4
}

#[cfg(test)]
mod tests;
