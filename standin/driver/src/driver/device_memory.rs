//! Device memory: what is allocated on which card, and who may still touch what is freed.

use crate::order::WorkId;
use crate::report::Check;
use crate::settings::Failure;
use crate::status::Status;

use super::work::{Job, Work};
use super::{CONTEXT_BYTES, Driver, Kind, Progress, handle};

/// A card's memory is handed out in pieces of this many bytes, which is also their alignment.
const GRAIN: usize = 512;

/// One allocation.
#[derive(Clone, Debug)]
pub(super) struct Allocation {
    pub(super) base: u64,
    pub(super) bytes: usize,
    pub(super) device: usize,
    /// The call that made it.
    pub(super) call: u64,
    /// The piece of work after which it may be used, if it was allocated in a stream.
    pub(super) born: Option<WorkId>,
    /// The call that gave it back.
    pub(super) freed_at: Option<u64>,
}

impl Allocation {
    fn holds(&self, address: u64) -> bool {
        address.checked_sub(self.base).is_some_and(|offset| offset < self.bytes as u64)
    }

    pub(super) fn describe(&self) -> String {
        let Self { base, bytes, device, call, .. } = self;
        format!("the {bytes} bytes at {base:#x} of card {device} (from call {call})")
    }
}

/// What a card's memory is used for.
impl Driver {
    /// Free and total bytes of the current card.
    pub fn memory_info(&self, context: u64) -> Result<(usize, usize), Status> {
        let device = self.context(context)?;
        Ok((self.room(device), self.devices[device].card.memory))
    }

    fn room(&self, device: usize) -> usize {
        let device = &self.devices[device];
        device.card.memory.saturating_sub(CONTEXT_BYTES + device.used)
    }

    /// `cuMemAlloc`. `Err` in the `Ok`: there is no room until queued frees have run.
    pub fn allocate(&mut self, context: u64, bytes: usize) -> Result<u64, Status> {
        let device = self.context(context)?;
        self.take_room(device, bytes)
    }

    /// `cuMemAllocAsync`: it may be used by what is ordered after this place in the stream.
    pub fn allocate_in(&mut self, context: u64, stream: u64, bytes: usize) -> Result<u64, Status> {
        let (device, stream) = self.lane(context, stream)?;
        if !self.settings.pools {
            return Err(Status::NotSupported);
        }
        let base = self.take_room(device, bytes)?;
        let id = self.queue(stream, [], self.job(device, Work::Nothing));
        self.allocations.get_mut(&base).expect("it was just allocated").born = Some(id);
        self.background();
        Ok(base)
    }

    /// Room that queued frees will make, one step at a time, for an allocation that found none.
    pub fn reclaim(&mut self, context: u64) -> Result<Progress, Status> {
        let device = self.context(context)?;
        let frees: Vec<WorkId> = (self.order.pending())
            .filter(|(_, _, job)| {
                job.is_some_and(|job| job.device == device && matches!(job.work, Work::Free(_)))
            })
            .map(|(id, ..)| id)
            .collect();
        Ok(self.advance(&frees))
    }

    /// Whether `bytes` fit on the current card now.
    pub fn fits(&self, context: u64, bytes: usize) -> Result<bool, Status> {
        Ok(rounded(bytes)? <= self.room(self.context(context)?))
    }

    fn take_room(&mut self, device: usize, bytes: usize) -> Result<u64, Status> {
        if bytes == 0 {
            return Err(Status::InvalidValue);
        }
        self.allocated += 1;
        let nth = Failure::Allocation(self.allocated);
        if self.settings.failures.contains(&nth) {
            let message = format!("allocation {} ({bytes} bytes) was to fail", self.allocated);
            self.fault(Check::Injected, message);
            return Err(Status::OutOfMemory);
        }
        let rounded = rounded(bytes)?;
        if rounded > self.room(device) {
            return Err(Status::OutOfMemory);
        }
        let base = self.memory.allocate(bytes);
        let state = &mut self.devices[device];
        state.used += rounded;
        state.high_water = state.high_water.max(state.used);
        let call = self.calls;
        self.freed.remove(&base);
        let made = Allocation { base, bytes, device, call, born: None, freed_at: None };
        self.allocations.insert(base, made);
        Ok(base)
    }

    /// `cuMemFree`. The reference says that it may wait for the card; who needs that, waits.
    pub fn free(&mut self, context: u64, base: u64) -> Result<(), Status> {
        let usable = self.context(context).map(|_| ());
        self.check_freeable(base)?;
        self.report_users(base, None);
        self.allocations.get_mut(&base).expect("it is freeable").freed_at = Some(self.calls);
        self.release_memory(base);
        usable
    }

    /// `cuMemFreeAsync`.
    pub fn free_in(&mut self, context: u64, stream: u64, base: u64) -> Result<(), Status> {
        let lane = self.lane(context, stream);
        self.check_freeable(base)?;
        let call = self.calls;
        self.allocations.get_mut(&base).expect("it is freeable").freed_at = Some(call);
        let (device, stream) = match lane {
            Ok(lane) => lane,
            Err(status) => {
                // The card failed, but the program did give it back.
                self.release_memory(base);
                return Err(status);
            }
        };
        let id = self.queue(stream, [], self.job(device, Work::Free(base)));
        self.report_users(base, Some(id));
        self.background();
        Ok(())
    }

    fn check_freeable(&mut self, base: u64) -> Result<(), Status> {
        let Some(live) = self.allocations.get(&base).filter(|live| live.freed_at.is_none()) else {
            let gone = self.allocations.get(&base).or_else(|| self.freed.get(&base));
            let (check, message) = match gone {
                Some(gone) => (
                    Check::DoubleFree,
                    format!("{} was freed by call {} already", gone.describe(), gone.call_freed()),
                ),
                None => (Check::BadHandle, format!("{base:#x} is no allocation")),
            };
            self.fault(check, message);
            return Err(Status::InvalidValue);
        };
        debug_assert_eq!(live.base, base);
        Ok(())
    }

    /// Puts down queued work that may touch memory which is freed, unless it comes before the free.
    fn report_users(&mut self, base: u64, free: Option<WorkId>) {
        let before = free.map(|id| self.order.needed_for(id)).unwrap_or_default();
        let users: Vec<String> = (self.order.pending())
            .filter(|(id, ..)| !before.contains(id) && Some(*id) != free)
            .filter_map(|(_, _, job)| job.filter(|job| job.touches.contains(&base)))
            .map(Job::describe)
            .collect();
        if let Some(first) = users.first() {
            let memory = self.allocations[&base].describe();
            let others = users.len() - 1;
            let message = format!(
                "{memory} is freed while {first} and {others} others that touch it are queued: \
                 wait for them, or free it in a stream that waits for them"
            );
            self.fault(Check::FreedInUse, message);
        }
    }

    /// Takes memory off the books and makes every later touch a fault.
    pub(super) fn release_memory(&mut self, base: u64) {
        let Some(mut allocation) = self.allocations.remove(&base) else { return };
        allocation.freed_at.get_or_insert(self.calls);
        self.devices[allocation.device].used -=
            rounded(allocation.bytes).expect("it was rounded before");
        if let Err(fault) = self.memory.free(base) {
            self.fault(Check::Standin, fault.to_string());
        }
        self.freed.insert(base, allocation);
    }

    /// The allocation that an address is in.
    pub(super) fn allocation(&self, address: u64) -> Option<&Allocation> {
        let (_, allocation) = self.allocations.range(..=address).next_back()?;
        allocation.holds(address).then_some(allocation)
    }

    fn freed_allocation(&self, address: u64) -> Option<&Allocation> {
        if let Some(allocation) = self.allocation(address) {
            return allocation.freed_at.is_some().then_some(allocation);
        }
        let (_, allocation) = self.freed.range(..=address).next_back()?;
        allocation.holds(address).then_some(allocation)
    }

    /// Start and length of the allocation that an address is in.
    pub fn address_range(&self, context: u64, address: u64) -> Result<(u64, usize), Status> {
        self.context(context)?;
        let allocation = self.allocation(address).ok_or(Status::NotFound)?;
        Ok((allocation.base, allocation.bytes))
    }

    /// The base of the allocation that all of `bytes` from `address` lie in. A copy or fill that
    /// leaves it is refused at the call, as the real driver does.
    pub(super) fn check_range(
        &mut self,
        address: u64,
        bytes: usize,
        what: &str,
    ) -> Result<u64, Status> {
        if let Some(gone) = self.freed_allocation(address) {
            let freed_at = gone.call_freed();
            let message = format!("{what} touches {}, freed by call {freed_at}", gone.describe());
            self.fault(Check::UseAfterFree, message);
            return Err(Status::InvalidValue);
        }
        let Some(allocation) = self.allocation(address) else {
            let message = format!("{what} touches {address:#x}, which is in no allocation");
            self.fault(Check::IllegalAddress, message);
            return Err(Status::InvalidValue);
        };
        let room = allocation.bytes as u64 - (address - allocation.base);
        let base = allocation.base;
        if bytes as u64 > room {
            let memory = allocation.describe();
            let message =
                format!("{what} of {bytes} bytes at {address:#x} leaves {memory} after {room}");
            self.fault(Check::IllegalAddress, message);
            return Err(Status::InvalidValue);
        }
        Ok(base)
    }

    /// The bases of the allocations that an argument's bytes may point into. Reports pointers into
    /// freed memory and into another card's.
    pub(super) fn pointers_in(&mut self, bytes: &[u8], device: usize, what: &str) -> Vec<u64> {
        let mut touches = Vec::new();
        for word in bytes.chunks_exact(8) {
            let address = u64::from_le_bytes(word.try_into().expect("a chunk has eight bytes"));
            if let Some(gone) = self.freed_allocation(address) {
                let (gone, call) = (gone.describe(), gone.call_freed());
                let message = format!("{what} points into {gone}, which call {call} freed");
                self.fault(Check::UseAfterFree, message);
            } else if let Some(allocation) = self.allocation(address) {
                if allocation.device != device {
                    let message = format!(
                        "{what} points into {}, which card {device} cannot reach",
                        allocation.describe()
                    );
                    touches.push(allocation.base);
                    self.fault(Check::Argument, message);
                } else if !touches.contains(&allocation.base) {
                    touches.push(allocation.base);
                }
            }
        }
        touches
    }

    /// Puts down work that uses stream-ordered memory and is not ordered after its allocation.
    pub(super) fn check_born(&mut self, id: WorkId, touches: &[u64], what: &str) {
        for base in touches {
            let Some(born) = self.allocations.get(base).and_then(|memory| memory.born) else {
                continue;
            };
            if self.order.is_pending(born) && !self.order.needed_for(id).contains(&born) {
                let memory = self.allocations[base].describe();
                let message = format!(
                    "{what} uses {memory}, but does not wait for the stream that allocates it"
                );
                self.fault(Check::UsedBeforeAllocated, message);
            }
        }
    }

    /// The pool of a card.
    pub fn pool(&self, ordinal: i32) -> Result<u64, Status> {
        self.device(ordinal)?;
        if self.settings.pools {
            Ok(handle(Kind::Pool, ordinal as u64))
        } else {
            Err(Status::NotSupported)
        }
    }

    /// An attribute of a pool, by its number in `CUmemPool_attribute`: reuse (1 to 3), the release
    /// threshold (4), bytes reserved now and at most (5, 6), bytes used now and at most (7, 8). This
    /// pool keeps nothing back, so it reserves what is used.
    pub fn pool_attribute(&self, pool: u64, number: i32) -> Result<u64, Status> {
        let device = &self.devices[self.card_of_pool(pool)?];
        match number {
            1..=3 => Ok(1),
            4 => Ok(device.release_threshold),
            5 | 7 => Ok(device.used as u64),
            6 | 8 => Ok(device.high_water as u64),
            _ => Err(Status::InvalidValue),
        }
    }

    /// Sets the release threshold, or the high-water marks back to now.
    pub fn set_pool_attribute(&mut self, pool: u64, number: i32, to: u64) -> Result<(), Status> {
        let index = self.card_of_pool(pool)?;
        let device = &mut self.devices[index];
        match number {
            1..=3 if to <= 1 => {}
            4 => device.release_threshold = to,
            6 | 8 if to == 0 => device.high_water = device.used,
            _ => return Err(Status::InvalidValue),
        }
        Ok(())
    }

    /// The card of a pool's handle.
    pub fn card_of_pool(&self, pool: u64) -> Result<usize, Status> {
        self.initialized()?;
        let index = (0..self.devices.len()).find(|i| handle(Kind::Pool, *i as u64) == pool);
        index.filter(|_| self.settings.pools).ok_or(Status::InvalidValue)
    }
}

impl Allocation {
    fn call_freed(&self) -> u64 {
        self.freed_at.unwrap_or(0)
    }
}

fn rounded(bytes: usize) -> Result<usize, Status> {
    bytes.checked_next_multiple_of(GRAIN).ok_or(Status::OutOfMemory)
}
