//! Host memory: which of it is pinned, and copies that read or write it late.

use std::ops::Range;

use crate::order::WorkId;
use crate::report::Check;
use crate::status::Status;

use super::work::{Source, Work};
use super::{Driver, Goals};

/// Memory of the host, reached by address.
pub trait HostMemory {
    /// Copies out of it.
    fn read(&self, address: usize, into: &mut [u8]);
    /// Copies into it.
    fn write(&mut self, address: usize, from: &[u8]);
    /// New memory, aligned to a page; `None` if there is none.
    fn allocate(&mut self, bytes: usize) -> Option<usize>;
    /// Gives back what `allocate` gave.
    fn free(&mut self, address: usize, bytes: usize);
}

/// A pinned range.
#[derive(Clone, Debug)]
pub(super) struct Pinned {
    pub(super) bytes: usize,
    pub(super) device: usize,
    /// The call that made or registered it.
    pub(super) call: u64,
    /// The program's own memory, as opposed to ours.
    is_registered: bool,
}

/// What pinned memory holds until a copy into it has run, so that reading early shows.
const NOT_YET: u8 = 0xff;

impl Driver {
    /// `cuMemHostAlloc`: the address.
    pub fn allocate_host(&mut self, context: u64, bytes: usize) -> Result<usize, Status> {
        let device = self.context(context)?;
        if bytes == 0 {
            return Err(Status::InvalidValue);
        }
        let address = self.host.allocate(bytes).ok_or(Status::OutOfMemory)?;
        let call = self.calls;
        self.pinned.insert(address, Pinned { bytes, device, call, is_registered: false });
        Ok(address)
    }

    /// `cuMemFreeHost`.
    pub fn free_host(&mut self, context: u64, address: usize) -> Result<Goals, Status> {
        self.unpin(context, address, false, Status::InvalidValue)
    }

    /// Second half of `free_host`, when nothing queued needs the memory any more.
    pub fn drop_host(&mut self, address: usize) {
        if let Some(pinned) = self.pinned.remove(&address)
            && !pinned.is_registered
        {
            self.host.free(address, pinned.bytes);
        }
    }

    /// `cuMemHostRegister`.
    pub fn register_host(
        &mut self,
        context: u64,
        address: usize,
        bytes: usize,
    ) -> Result<(), Status> {
        let device = self.context(context)?;
        if bytes == 0 || address == 0 {
            return Err(Status::InvalidValue);
        }
        let range = address..address.checked_add(bytes).ok_or(Status::InvalidValue)?;
        let overlaps = |(start, pinned): (&usize, &Pinned)| {
            *start < range.end && range.start < start + pinned.bytes
        };
        if self.pinned.iter().any(overlaps) {
            return Err(Status::HostMemoryAlreadyRegistered);
        }
        let call = self.calls;
        self.pinned.insert(address, Pinned { bytes, device, call, is_registered: true });
        Ok(())
    }

    /// `cuMemHostUnregister`.
    pub fn unregister_host(&mut self, context: u64, address: usize) -> Result<Goals, Status> {
        self.unpin(context, address, true, Status::HostMemoryNotRegistered)
    }

    /// What must finish before pinned memory at `address` can go; the caller waits for it, since we
    /// would touch the memory later. That there is anything is the program's fault.
    fn unpin(
        &mut self,
        context: u64,
        address: usize,
        is_registered: bool,
        otherwise: Status,
    ) -> Result<Goals, Status> {
        self.card_of(context)?;
        let Some(pinned) =
            self.pinned.get(&address).filter(|pinned| pinned.is_registered == is_registered)
        else {
            self.fault(Check::DoubleFree, format!("{address:#x} is no pinned memory"));
            return Err(otherwise);
        };
        let (range, device) = (address..address + pinned.bytes, pinned.device);
        let overlaps = |host: &Range<usize>| host.start < range.end && range.start < host.end;
        let users: Vec<(WorkId, String)> = (self.order.pending())
            .filter_map(|(id, _, job)| {
                let job = job?;
                overlaps(job.host.as_ref()?).then(|| (id, job.describe()))
            })
            .collect();
        if let Some((_, first)) = users.first() {
            let others = users.len() - 1;
            let message = format!(
                "{} bytes of pinned memory at {address:#x} are released while {first} and {others} \
                 others that use them are queued: wait for them first",
                range.len()
            );
            self.fault(Check::HostBufferFreedInUse, message);
        }
        Ok(Goals { device, work: users.into_iter().map(|(id, _)| id).collect() })
    }

    /// Whether all of a range is pinned.
    pub fn is_pinned(&self, address: usize, bytes: usize) -> bool {
        let before = self.pinned.range(..=address).next_back();
        before.is_some_and(|(start, pinned)| address - start + bytes <= pinned.bytes)
    }

    /// `cuMemcpyHtoDAsync`. Pageable memory is read now, pinned memory when the copy runs.
    pub fn upload(
        &mut self,
        context: u64,
        stream: u64,
        to: u64,
        from: usize,
        bytes: usize,
    ) -> Result<Goals, Status> {
        let (device, stream) = self.lane(context, stream)?;
        if bytes == 0 {
            return Ok(Goals { device, work: Vec::new() });
        }
        let base = self.check_range(to, bytes, "a copy to the card")?;
        let mut taken = vec![0; bytes];
        self.host.read(from, &mut taken);
        let mut job;
        if self.is_pinned(from, bytes) {
            // What a queued copy into the buffer will bring is not known yet.
            let digest = (!self.is_host_busy(from, bytes)).then(|| digest(&taken));
            let source = Source::Pinned { from, bytes, digest };
            job = self.job(device, Work::Upload { to, source });
            job.host = Some(from..from + bytes);
        } else {
            job = self.job(device, Work::Upload { to, source: Source::Taken(taken) });
        }
        job.touches = vec![base];
        Ok(Goals { device, work: vec![self.submit(stream, job)] })
    }

    /// `cuMemcpyDtoHAsync`. Into pageable memory the caller waits for the returned work.
    pub fn download(
        &mut self,
        context: u64,
        stream: u64,
        to: usize,
        from: u64,
        bytes: usize,
    ) -> Result<Goals, Status> {
        let (device, stream) = self.lane(context, stream)?;
        if bytes == 0 {
            return Ok(Goals { device, work: Vec::new() });
        }
        let base = self.check_range(from, bytes, "a copy from the card")?;
        // A queued copy may still read or write the buffer; then it is not ours to mark.
        let is_marked = self.is_pinned(to, bytes) && !self.is_host_busy(to, bytes);
        if is_marked {
            self.host.write(to, &vec![NOT_YET; bytes]);
        }
        let mut job = self.job(device, Work::Download { from, to, bytes, is_marked });
        job.host = Some(to..to + bytes);
        job.touches = vec![base];
        Ok(Goals { device, work: vec![self.submit(stream, job)] })
    }

    /// Whether queued work may read or write a range of host memory: a copy of it, or any function of the host.
    fn is_host_busy(&self, address: usize, bytes: usize) -> bool {
        let overlaps = |host: &Range<usize>| host.start < address + bytes && address < host.end;
        self.order.pending().any(|(_, _, job)| {
            // What runs at the moment is a function of the host, or over soon.
            job.is_none_or(|job| {
                matches!(job.work, Work::Host(_)) || job.host.as_ref().is_some_and(overlaps)
            })
        })
    }

    /// The bytes that an upload brings; reports a pinned buffer that was changed too early.
    pub(super) fn bring(&mut self, source: Source, call: u64) -> Vec<u8> {
        match source {
            Source::Taken(bytes) => bytes,
            Source::Pinned { from, bytes, digest: before } => {
                let mut now = vec![0; bytes];
                self.host.read(from, &mut now);
                if before.is_some_and(|before| before != digest(&now)) {
                    let message = format!(
                        "{bytes} bytes of pinned memory at {from:#x} were changed before the copy \
                         to the card had read them: wait for it first"
                    );
                    self.fault_at(Check::HostBufferReused, message, call);
                }
                now
            }
        }
    }

    /// Puts down a pinned buffer that was written before the copy into it had run.
    pub(super) fn check_untouched(&mut self, to: usize, bytes: usize, call: u64) {
        let mut now = vec![0; bytes];
        self.host.read(to, &mut now);
        if now.iter().any(|byte| *byte != NOT_YET) {
            let message = format!(
                "{bytes} bytes of pinned memory at {to:#x} were written before the copy from the \
                 card had: wait for it first"
            );
            self.fault_at(Check::HostBufferReused, message, call);
        }
    }
}

/// Tells two buffers apart: FNV-1a (Fowler, Noll, Vo) over words of eight bytes.
fn digest(bytes: &[u8]) -> u64 {
    let step = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(0xcbf2_9ce4_8422_2325, step)
}
