//! Copies between host and device by way of pinned memory, which the card reads and writes by itself: nothing waits while
//! bytes cross. What goes up is copied in the order of the queue that wants it. What comes down has a queue of its own, which
//! waits for the moment at which it was asked for and for nothing that is queued later.
//!
//! A part of a few MB crosses while the host copies the one before: a ring of [`SLOTS`] of them serves both ways. What is
//! fetched while other work goes on ([`Staging::fetch`]) lies in memory of its own until it is read, which is used again; so
//! does what goes up as several slices at once ([`Staging::upload_parts`]) until it has arrived.
#![expect(unsafe_code, reason = "calls the driver; pinned memory is known by its address")]

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::result;

use super::device::Context;
use super::driver::OrFail;
use super::error::DeviceError;
use super::memory::Slice;
use super::{Device, Event, Stream};

/// Parts that are on their way at a time.
const SLOTS: usize = 4;

/// Memory of the host that stays where it is. Dropping it waits for the device, so that no copy is left at work in it.
#[derive(Debug)]
struct Pinned {
    context: Arc<Context>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it is plain memory, reached through `&self` and `&mut self` as any.
unsafe impl Send for Pinned {}

/// A cell's way between host and device. Of an imagined device there is none, and nothing is copied.
#[derive(Debug)]
pub struct Staging(Option<Mutex<Ring>>);

#[derive(Debug)]
struct Ring {
    /// What comes down is queued here.
    down: Stream,
    /// Reached when what was asked for is there.
    ready: Event,
    slots: Vec<Slot>,
    next: usize,
    /// Memory and marks of fetches that were read.
    idle: Vec<Slot>,
    /// And of uploads of several slices, which may still be on their way.
    rising: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    memory: Pinned,
    reached: Event,
}

/// Bytes on their way down, which are not given back or written before they are read.
#[derive(Debug)]
pub struct Fetch<'a> {
    slot: Option<Slot>,
    bytes: usize,
    from: PhantomData<Slice<'a>>,
}

impl Pinned {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DeviceError> {
        context.bind()?;
        // SAFETY: the context is current; freed once, in `drop`.
        let start = unsafe { result::malloc_host(bytes, 0) }.or_fail("cuMemHostAlloc")?;
        let start = start.cast::<u8>();
        // SAFETY: so many bytes are there, and nobody else has them.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { context: Arc::clone(context), start, bytes })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes are there, all written in `new`.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A lost device cannot be waited for; whoever used it has been told.
        let _ = self.context.synchronise();
        // SAFETY: allocated in `new`, freed once, and no copy uses it any more.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}

impl Slot {
    fn new(device: &Device, bytes: usize) -> Result<Self, DeviceError> {
        let memory = Pinned::new(device.context(), bytes)?;
        Ok(Self { memory, reached: device.event()? })
    }

    /// Queues the copy of bytes of a device into this, slice after slice, and marks its end.
    fn fill(&mut self, down: &Stream, from: &[Slice<'_>]) -> Result<(), DeviceError> {
        let mut rest = self.memory.bytes_mut();
        for part in from.iter().filter(|part| part.bytes() > 0) {
            let (to, after) = rest.split_at_mut(part.bytes());
            // SAFETY: `part` is inside a live buffer, and its owner keeps it until the mark is reached; so is `to`, which
            // waits for the device before it is freed.
            unsafe { result::memcpy_dtoh_async(to, part.address().0, down.raw()) }
                .or_fail("cuMemcpyDtoHAsync")?;
            rest = after;
        }
        down.record(&self.reached)
    }
}

impl Staging {
    /// With parts of so many bytes.
    ///
    /// # Errors
    /// When the host has no memory that can be pinned.
    pub fn new(device: &Device, part: usize) -> Result<Self, DeviceError> {
        if device.is_imagined() {
            return Ok(Self(None));
        }
        let slots = (0..SLOTS).map(|_| Slot::new(device, part)).collect::<Result<_, _>>()?;
        let (down, ready) = (device.stream()?, device.event()?);
        let (idle, rising) = (Vec::new(), Vec::new());
        Ok(Self(Some(Mutex::new(Ring { down, ready, slots, next: 0, idle, rising }))))
    }

    /// Copies to the device, in the order of a queue. The bytes have been read when this returns.
    pub fn upload(&self, queue: &Stream, to: Slice<'_>, bytes: &[u8]) -> Result<(), DeviceError> {
        assert_eq!(to.bytes(), bytes.len(), "upload: bytes");
        let Some(mut ring) = self.ring() else { return Ok(()) };
        for part in ring.parts(bytes.len()) {
            let slot = ring.take()?;
            let pinned = &mut slot.memory.bytes_mut()[..part.len()];
            pinned.copy_from_slice(&bytes[part.clone()]);
            // SAFETY: `to` is inside a live buffer; the pinned bytes are not touched before the mark behind is reached.
            unsafe { result::memcpy_htod_async(to.slice(part).address().0, pinned, queue.raw()) }
                .or_fail("cuMemcpyHtoDAsync")?;
            queue.record(&slot.reached)?;
        }
        Ok(())
    }

    /// Copies from the device what a queue has made so far, and waits for it.
    pub fn download(
        &self,
        queue: &Stream,
        from: Slice<'_>,
        bytes: &mut [u8],
    ) -> Result<(), DeviceError> {
        assert_eq!(from.bytes(), bytes.len(), "download: bytes");
        let Some(mut ring) = self.ring() else { return Ok(()) };
        ring.waits_for(queue)?;
        let mut coming: VecDeque<(usize, Range<usize>)> = VecDeque::with_capacity(SLOTS);
        for part in ring.parts(bytes.len()) {
            if coming.len() == SLOTS {
                ring.read(coming.pop_front(), bytes)?;
            }
            let at = ring.next;
            ring.take()?;
            let Ring { slots, down, .. } = &mut *ring;
            slots[at].fill(down, &[from.slice(part.clone())])?;
            coming.push_back((at, part));
        }
        while !coming.is_empty() {
            ring.read(coming.pop_front(), bytes)?;
        }
        Ok(())
    }

    /// Begins to copy from the device what a queue has made so far, slice after slice. Work that is queued from now on is not
    /// waited for.
    pub fn fetch<'a>(&self, queue: &Stream, from: &[Slice<'a>]) -> Result<Fetch<'a>, DeviceError> {
        let (bytes, whence) = (from.iter().map(|part| part.bytes()).sum(), PhantomData);
        let Some(mut ring) = self.ring().filter(|_| bytes > 0) else {
            return Ok(Fetch { slot: None, bytes, from: whence });
        };
        ring.waits_for(queue)?;
        let Ring { idle, down, .. } = &mut *ring;
        let mut slot = fitting(idle, bytes, &down.device())?;
        slot.fill(down, from)?;
        Ok(Fetch { slot: Some(slot), bytes, from: whence })
    }

    /// Copies to several slices, in the order of a queue, what `write` puts into pinned memory for them one after the other.
    /// Of an imagined device nothing is written.
    pub fn upload_parts(
        &self,
        queue: &Stream,
        to: &[Slice<'_>],
        write: impl FnOnce(&mut [u8]),
    ) -> Result<(), DeviceError> {
        let bytes = to.iter().map(|part| part.bytes()).sum();
        let Some(mut ring) = self.ring().filter(|_| bytes > 0) else { return Ok(()) };
        let mut slot = fitting(&mut ring.rising, bytes, &queue.device())?;
        // What it carried before may still be on its way.
        slot.reached.synchronise()?;
        let mut rest = &mut slot.memory.bytes_mut()[..bytes];
        write(rest);
        for part in to.iter().filter(|part| part.bytes() > 0) {
            let (from, after) = rest.split_at_mut(part.bytes());
            // SAFETY: `part` is inside a live buffer; the pinned bytes are not touched before the mark behind is reached.
            unsafe { result::memcpy_htod_async(part.address().0, from, queue.raw()) }
                .or_fail("cuMemcpyHtoDAsync")?;
            rest = after;
        }
        queue.record(&slot.reached)?;
        ring.rising.push(slot);
        Ok(())
    }

    /// Waits for what was fetched, and hands it to `read`. Of an imagined device it is zeros.
    pub fn fetched<R>(
        &self,
        fetch: Fetch<'_>,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, DeviceError> {
        let Fetch { slot, bytes, .. } = fetch;
        let Some((slot, mut ring)) = slot.zip(self.ring()) else {
            return Ok(read(&vec![0; bytes]));
        };
        slot.reached.synchronise()?;
        let result = read(&slot.memory.bytes()[..bytes]);
        ring.idle.push(slot);
        Ok(result)
    }

    fn ring(&self) -> Option<MutexGuard<'_, Ring>> {
        // After a panic its marks still say what is on its way.
        self.0.as_ref().map(|ring| ring.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The smallest slot of so many bytes, or a new one.
fn fitting(idle: &mut Vec<Slot>, bytes: usize, device: &Device) -> Result<Slot, DeviceError> {
    let fits = idle.iter().enumerate().filter(|(_, slot)| bytes <= slot.memory.bytes);
    let fits = fits.min_by_key(|(_, slot)| slot.memory.bytes).map(|(at, _)| at);
    match fits {
        Some(at) => Ok(idle.swap_remove(at)),
        None => Slot::new(device, bytes.next_power_of_two()),
    }
}

impl Ring {
    /// What comes down next waits for all that a queue has been given.
    fn waits_for(&self, queue: &Stream) -> Result<(), DeviceError> {
        queue.record(&self.ready)?;
        self.down.wait(&self.ready)
    }

    fn parts(&self, bytes: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let part = self.slots[0].memory.bytes;
        (0..bytes).step_by(part).map(move |start| start..(start + part).min(bytes))
    }

    /// The next slot, once nothing is on its way through it.
    fn take(&mut self) -> Result<&mut Slot, DeviceError> {
        let slot = &mut self.slots[self.next];
        self.next = (self.next + 1) % SLOTS;
        slot.reached.synchronise()?;
        Ok(slot)
    }

    fn read(
        &self,
        came: Option<(usize, Range<usize>)>,
        bytes: &mut [u8],
    ) -> Result<(), DeviceError> {
        let Some((at, part)) = came else { return Ok(()) };
        let slot = &self.slots[at];
        slot.reached.synchronise()?;
        let length = part.len();
        bytes[part].copy_from_slice(&slot.memory.bytes()[..length]);
        Ok(())
    }
}
