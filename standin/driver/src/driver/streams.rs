//! Streams and events: who waits for whom, and copies and fills that touch the card only.

use crate::order::{Goal, WorkId};
use crate::report::Check;
use crate::status::Status;

use super::work::{HostCall, Pattern, Work};
use super::{Driver, Kind};

/// A stream.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) device: usize,
    /// Waits for the default stream, and it for this.
    is_blocking: bool,
    pub(super) is_default: bool,
    /// The call that made it.
    pub(super) call: u64,
}

/// An event.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) device: usize,
    /// Its newest record.
    pub(super) record: Option<WorkId>,
    /// When that ran, in microseconds of the virtual clock.
    pub(super) time: f64,
    has_timing: bool,
    /// The call that made it.
    pub(super) call: u64,
}

/// Work that somebody waits for, and the card it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goals {
    /// The card.
    pub device: usize,
    /// The work.
    pub work: Vec<WorkId>,
}

/// The default stream's handles: null, and `CU_STREAM_LEGACY`.
const DEFAULT_STREAMS: [u64; 2] = [0, 1];

/// Flags of `cuStreamCreate` and `cuEventCreate`.
const STREAM_NON_BLOCKING: u32 = 1;
const EVENT_BLOCKING_SYNC: u32 = 1;
const EVENT_DISABLE_TIMING: u32 = 2;

impl Driver {
    pub(super) fn open_stream(&mut self, handle: u64, device: usize, is_default: bool) {
        let call = self.calls;
        self.streams.insert(handle, Stream { device, is_blocking: true, is_default, call });
        self.order.add_lane(handle);
    }

    /// `cuStreamCreate`. The per-thread default stream (handle 2) does not exist here.
    pub fn create_stream(&mut self, context: u64, flags: u32) -> Result<u64, Status> {
        let device = self.context(context)?;
        if flags & !STREAM_NON_BLOCKING != 0 {
            return Err(Status::InvalidValue);
        }
        let handle = self.handle(Kind::Stream);
        self.open_stream(handle, device, false);
        let is_blocking = flags & STREAM_NON_BLOCKING == 0;
        self.streams.get_mut(&handle).expect("it was just opened").is_blocking = is_blocking;
        Ok(handle)
    }

    /// `cuStreamDestroy`. What is queued still runs.
    pub fn destroy_stream(&mut self, context: u64, stream: u64) -> Result<(), Status> {
        let usable = self.context(context).map(|_| ());
        let is_ours = self.streams.get(&stream).is_some_and(|stream| !stream.is_default);
        if !is_ours {
            return Err(self.bad_handle(stream, "stream"));
        }
        self.streams.remove(&stream);
        self.order.close_lane(stream);
        usable
    }

    /// Card and lane of a stream's handle. Only the default stream depends on the current context:
    /// copies and waits may go to a stream of another (CUDA programming guide, "Stream and event
    /// behavior").
    pub(super) fn lane(&mut self, context: u64, stream: u64) -> Result<(usize, u64), Status> {
        let current = self.context(context)?;
        if DEFAULT_STREAMS.contains(&stream) {
            return Ok((current, self.devices[current].default_stream));
        }
        let Some(found) = self.streams.get(&stream) else {
            return Err(self.bad_handle(stream, "stream"));
        };
        let device = found.device;
        self.usable(device).map(|()| (device, stream))
    }

    pub(super) fn bad_handle(&mut self, handle: u64, wanted: &str) -> Status {
        self.fault(Check::BadHandle, format!("{handle:#x} is no {wanted}"));
        Status::InvalidHandle
    }

    /// What work in a stream waits for by the rules of the default stream: it for every blocking
    /// stream, and each of those for it.
    pub(super) fn implied(&self, stream: u64) -> Vec<WorkId> {
        let Some(state) = self.streams.get(&stream) else { return Vec::new() };
        if state.is_default {
            let others = (self.streams.iter())
                .filter(|(_, other)| other.device == state.device && other.is_blocking);
            others.filter_map(|(handle, _)| self.order.last(*handle)).collect()
        } else if state.is_blocking {
            self.order.last(self.devices[state.device].default_stream).into_iter().collect()
        } else {
            Vec::new()
        }
    }

    /// What `cuStreamSynchronize` waits for.
    pub fn stream_goals(&mut self, context: u64, stream: u64) -> Result<Goals, Status> {
        let (device, stream) = self.lane(context, stream)?;
        let work = self.order.last(stream).into_iter().chain(self.implied(stream)).collect();
        Ok(Goals { device, work })
    }

    /// What `cuCtxSynchronize` waits for.
    pub fn context_goals(&mut self, context: u64) -> Result<Goals, Status> {
        let device = self.context(context)?;
        Ok(Goals { device, work: self.tails(device) })
    }

    /// `cuStreamQuery` and `cuEventQuery`: somebody who asks again and again gets there.
    pub fn poll(&mut self, goals: &Goals) -> Result<(), Status> {
        let goal = goals.work.iter().copied().find(|id| self.order.is_pending(*id));
        if let Some(goal) = goal {
            self.run_one(Goal::Work(goal));
        }
        self.usable(goals.device)?;
        let is_done = !goals.work.iter().any(|id| self.order.is_pending(*id));
        if is_done { Ok(()) } else { Err(Status::NotReady) }
    }

    /// The host has waited: its clock is at least where the work ended, and it learns of a failure.
    pub fn waited(&mut self, device: usize) -> Result<(), Status> {
        let lanes = self.streams.iter().filter(|(_, stream)| stream.device == device);
        let times = lanes.map(|(handle, _)| self.order.time(*handle));
        self.now = times.fold(self.now, f64::max);
        self.usable(device)
    }

    /// `cuEventCreate`.
    pub fn create_event(&mut self, context: u64, flags: u32) -> Result<u64, Status> {
        let device = self.context(context)?;
        if flags & !(EVENT_BLOCKING_SYNC | EVENT_DISABLE_TIMING) != 0 {
            return Err(Status::InvalidValue);
        }
        let handle = self.handle(Kind::Event);
        let has_timing = flags & EVENT_DISABLE_TIMING == 0;
        let call = self.calls;
        self.events.insert(handle, Event { device, record: None, time: 0.0, has_timing, call });
        Ok(handle)
    }

    /// `cuEventDestroy`. A record that is queued still runs.
    pub fn destroy_event(&mut self, context: u64, event: u64) -> Result<(), Status> {
        let usable = self.context(context).map(|_| ());
        if self.events.remove(&event).is_none() {
            return Err(self.bad_handle(event, "event"));
        }
        usable
    }

    /// `cuEventRecord`. Event and stream must be of one card.
    pub fn record(&mut self, context: u64, event: u64, stream: u64) -> Result<(), Status> {
        let (device, stream) = self.lane(context, stream)?;
        if self.events.get(&event).is_none_or(|event| event.device != device) {
            return Err(self.bad_handle(event, "event of the stream's card"));
        }
        let id = self.queue(stream, [], self.job(device, Work::Record(event)));
        self.events.get_mut(&event).expect("it is live").record = Some(id);
        self.background();
        Ok(())
    }

    /// `cuStreamWaitEvent`: what the event records now; a later record does not count. The event
    /// may be another card's.
    pub fn wait_event(&mut self, context: u64, stream: u64, event: u64) -> Result<(), Status> {
        let (device, stream) = self.lane(context, stream)?;
        let Some(found) = self.events.get(&event) else {
            return Err(self.bad_handle(event, "event"));
        };
        if let Some(record) = found.record.filter(|id| self.order.is_pending(*id)) {
            self.queue(stream, [record], self.job(device, Work::Nothing));
            self.background();
        }
        Ok(())
    }

    /// What `cuEventSynchronize` waits for. An event that was never recorded is over.
    pub fn event_goals(&mut self, context: u64, event: u64) -> Result<Goals, Status> {
        self.context(context)?;
        let Some(found) = self.events.get(&event) else {
            return Err(self.bad_handle(event, "event"));
        };
        let goals = Goals { device: found.device, work: found.record.into_iter().collect() };
        self.usable(goals.device).map(|()| goals)
    }

    /// `cuEventElapsedTime`, in milliseconds of a virtual clock: a model that orders things
    /// plausibly, and no measurement.
    pub fn elapsed(&mut self, context: u64, start: u64, end: u64) -> Result<f32, Status> {
        self.context(context)?;
        let mut found = Vec::new();
        for handle in [start, end] {
            match self.events.get(&handle) {
                Some(event) => found.push(event.clone()),
                None => return Err(self.bad_handle(handle, "event")),
            }
        }
        if found[0].device != found[1].device || found.iter().any(|event| !event.has_timing) {
            return Err(Status::InvalidHandle);
        }
        for event in &found {
            let record = event.record.ok_or(Status::InvalidHandle)?;
            if self.order.is_pending(record) {
                return Err(Status::NotReady);
            }
        }
        Ok(((found[1].time - found[0].time) / 1e3) as f32)
    }

    /// `cuLaunchHostFunc` and `cuStreamAddCallback`.
    pub fn call_host(&mut self, context: u64, stream: u64, call: HostCall) -> Result<(), Status> {
        let (device, stream) = self.lane(context, stream)?;
        let job = self.job(device, Work::Host(call));
        self.submit(stream, job);
        Ok(())
    }

    /// `cuMemcpyDtoDAsync`, `cuMemcpyPeerAsync`: the memories may be of two cards, since a copy
    /// goes through the host where they cannot reach each other.
    pub fn copy(
        &mut self,
        context: u64,
        stream: u64,
        to: u64,
        from: u64,
        bytes: usize,
    ) -> Result<(), Status> {
        let (device, stream) = self.lane(context, stream)?;
        if bytes == 0 {
            return Ok(());
        }
        let from_base = self.check_range(from, bytes, "a copy on the card, at its source,")?;
        let to_base = self.check_range(to, bytes, "a copy on the card, at its target,")?;
        let mut job = self.job(device, Work::Copy { from, to, bytes });
        job.touches = vec![from_base, to_base];
        self.submit(stream, job);
        Ok(())
    }

    /// `cuMemsetD8Async`, `cuMemsetD16Async`, `cuMemsetD32Async`: `count` times the pattern, at an
    /// address that is a multiple of its size.
    pub fn fill(
        &mut self,
        context: u64,
        stream: u64,
        to: u64,
        pattern: Pattern,
        count: usize,
    ) -> Result<(), Status> {
        let (device, stream) = self.lane(context, stream)?;
        if count == 0 {
            return Ok(());
        }
        let size = pattern.bytes().len();
        if !to.is_multiple_of(size as u64) {
            return Err(Status::InvalidValue);
        }
        let bytes = count.checked_mul(size).ok_or(Status::InvalidValue)?;
        let base = self.check_range(to, bytes, "a fill")?;
        let mut job = self.job(device, Work::Fill { to, pattern, count });
        job.touches = vec![base];
        self.submit(stream, job);
        Ok(())
    }
}
