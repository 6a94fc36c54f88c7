//! What waits in streams, and what it does when its turn comes.

use std::ops::Range;
use std::sync::Arc;

use shoal_standin::{FaultKind, Kernel, Launch, Options};

use crate::order::{Goal, Picked, WorkId};
use crate::report::Check;
use crate::status::Status;

use super::Driver;
use super::launch::micros;

/// A function of the host that is called when its turn comes.
pub struct HostCall {
    /// What to call; it is told how the work before it went.
    pub run: Box<dyn FnOnce(Result<(), Status>) + Send>,
    /// Whether it is called when the card has failed, too.
    pub even_if_failed: bool,
}

/// What a memory is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// A byte.
    Byte(u8),
    /// Two bytes.
    Half(u16),
    /// Four bytes.
    Word(u32),
}

impl Pattern {
    /// Its bytes.
    pub(super) fn bytes(self) -> Vec<u8> {
        match self {
            Self::Byte(byte) => vec![byte],
            Self::Half(half) => half.to_le_bytes().to_vec(),
            Self::Word(word) => word.to_le_bytes().to_vec(),
        }
    }
}

/// Where an upload comes from.
pub(super) enum Source {
    /// Pageable memory, read at the call.
    Taken(Vec<u8>),
    /// Pinned memory, read when the copy runs, and what it held at the call if that was settled.
    Pinned { from: usize, bytes: usize, digest: Option<u64> },
}

/// A launch that was checked.
pub(super) struct Run {
    pub(super) kernel: Arc<Kernel>,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) dynamic_shared: usize,
    pub(super) params: Vec<u8>,
    pub(super) options: Options,
    /// The environment asked that it dies.
    pub(super) is_to_fail: bool,
}

/// What is to be done.
pub(super) enum Work {
    /// A place in the stream: a stream-ordered allocation, or a wait for an event.
    Nothing,
    Upload {
        to: u64,
        source: Source,
    },
    /// `is_marked`: the buffer holds a pattern until the copy runs.
    Download {
        from: u64,
        to: usize,
        bytes: usize,
        is_marked: bool,
    },
    Copy {
        from: u64,
        to: u64,
        bytes: usize,
    },
    Fill {
        to: u64,
        pattern: Pattern,
        count: usize,
    },
    Free(u64),
    Record(u64),
    Host(HostCall),
    Launch(Box<Run>),
}

/// A piece of work and where it came from.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) device: usize,
    /// The call that queued it.
    pub(super) call: u64,
    /// Bases of the allocations that it may touch.
    pub(super) touches: Vec<u64>,
    /// Host memory that it reads or writes late.
    pub(super) host: Option<Range<usize>>,
}

impl Job {
    pub(super) fn describe(&self) -> String {
        let what = match &self.work {
            Work::Nothing => "a place in a stream".to_owned(),
            Work::Upload { .. } => "a copy to the card".to_owned(),
            Work::Download { .. } => "a copy from the card".to_owned(),
            Work::Copy { .. } => "a copy on the card".to_owned(),
            Work::Fill { .. } => "a fill".to_owned(),
            Work::Free(_) => "a free".to_owned(),
            Work::Record(_) => "an event's record".to_owned(),
            Work::Host(_) => "a function of the host".to_owned(),
            Work::Launch(run) => format!("kernel `{}`", run.kernel.name()),
        };
        format!("{what} (from call {})", self.call)
    }
}

/// Bytes that a bus and a memory move in a microsecond of the virtual clock.
const BUS_BYTES: f64 = 25_000.0;
const MEMORY_BYTES: f64 = 800_000.0;

/// Microseconds that anything takes on the virtual clock.
const OVERHEAD: f64 = 2.0;

/// How much may wait in one stream; then the call that queues more blocks, as the real one does.
const DEPTH_MAX: usize = 1024;

impl Driver {
    pub(super) fn job(&self, device: usize, work: Work) -> Job {
        Job { work, device, call: self.calls, touches: Vec::new(), host: None }
    }

    /// Queues a job, and lets the card work a little.
    pub(super) fn submit(&mut self, stream: u64, job: Job) -> WorkId {
        let (touches, what) = (job.touches.clone(), job.describe());
        let id = self.queue(stream, [], job);
        self.check_born(id, &touches, &what);
        self.background();
        id
    }

    /// Queues a job behind `after` and behind what the rules of the default stream demand.
    pub(super) fn queue(
        &mut self,
        stream: u64,
        after: impl IntoIterator<Item = WorkId>,
        job: Job,
    ) -> WorkId {
        let mut all: Vec<WorkId> = after.into_iter().collect();
        all.extend(self.implied(stream));
        while self.order.depth(stream) >= DEPTH_MAX
            && let Some(first) = self.order.first(stream)
            && self.run_one(Goal::Work(first))
        {}
        self.order.push(stream, all, self.now, job)
    }

    /// What the card does while the host goes on.
    pub(super) fn background(&mut self) {
        if self.order.wants_background() {
            let is_eager = self.settings.temper == crate::order::Temper::Eager;
            let most = if is_eager { usize::MAX } else { 1 + self.random.below(4) };
            for _ in 0..most {
                if !self.run_one(Goal::Background) {
                    break;
                }
            }
        }
    }

    /// Runs one piece of work, if one may run.
    pub(super) fn run_one(&mut self, goal: Goal) -> bool {
        let Some(picked) = self.order.pick(goal) else { return false };
        let Picked { id, lane: _, work: job, start } = picked;
        let call = job.call;
        let device = job.device;
        let mut took = OVERHEAD;
        match job.work {
            Work::Nothing => took = 0.0,
            Work::Upload { to, source } => {
                let bytes = self.bring(source, call);
                took += bytes.len() as f64 / BUS_BYTES;
                self.touch(device, call, |driver| driver.memory.write(to, &bytes));
            }
            Work::Download { from, to, bytes, is_marked } => {
                took += bytes as f64 / BUS_BYTES;
                if is_marked {
                    self.check_untouched(to, bytes, call);
                }
                let mut data = vec![0; bytes];
                if self.touch(device, call, |driver| driver.memory.read(from, &mut data)) {
                    self.host.write(to, &data);
                }
            }
            Work::Copy { from, to, bytes } => {
                took += 2.0 * bytes as f64 / MEMORY_BYTES;
                let mut data = vec![0; bytes];
                self.touch(device, call, |driver| {
                    driver.memory.read(from, &mut data)?;
                    driver.memory.write(to, &data)
                });
            }
            Work::Fill { to, pattern, count } => {
                let data = pattern.bytes().repeat(count);
                took += data.len() as f64 / MEMORY_BYTES;
                self.touch(device, call, |driver| driver.memory.write(to, &data));
            }
            Work::Free(base) => self.release_memory(base),
            Work::Record(event) => {
                took = 0.0;
                if let Some(event) = self.events.get_mut(&event)
                    && event.record == Some(id)
                {
                    event.time = start;
                }
            }
            Work::Host(host) => {
                // It runs on a thread of its own; `returned` ends it.
                self.due.push((id, host));
                return true;
            }
            Work::Launch(run) => took += self.launch_now(device, call, &run),
        }
        self.order.finish(id, start + took);
        true
    }

    /// Touches memory for a copy or fill that was checked when it was queued; false, with the card
    /// failed, if the memory has gone since.
    fn touch(
        &mut self,
        device: usize,
        call: u64,
        touch: impl FnOnce(&mut Self) -> Result<(), shoal_standin::Fault>,
    ) -> bool {
        match touch(self) {
            Ok(()) => true,
            Err(fault) => {
                self.fault_at(check_of(fault.kind), fault.to_string(), call);
                self.poison(device, status_of(fault.kind));
                false
            }
        }
    }

    /// Runs a kernel; microseconds of the virtual clock.
    fn launch_now(&mut self, device: usize, call: u64, run: &Run) -> f64 {
        let name = run.kernel.name();
        if run.is_to_fail {
            self.fault_at(Check::Injected, format!("kernel `{name}` was to die"), call);
            self.poison(device, Status::LaunchFailed);
            return 0.0;
        }
        let launch = Launch {
            grid: run.grid,
            block: run.block,
            dynamic_shared: run.dynamic_shared,
            params: &run.params,
            options: &run.options,
        };
        match shoal_standin::launch(&run.kernel, &self.memory, &launch) {
            Ok(stats) => {
                let micros = micros(&self.devices[device].card, &stats);
                self.count(name, &stats);
                micros
            }
            Err(fault) => {
                self.fault_at(check_of(fault.kind), fault.to_string(), call);
                self.poison(device, status_of(fault.kind));
                0.0
            }
        }
    }

    /// A job that will not run, since its card failed.
    pub(super) fn abandoned(&mut self, job: Job, status: Status) {
        match job.work {
            Work::Free(base) => self.release_memory(base),
            Work::Host(HostCall { run, even_if_failed: true }) => {
                let run = Box::new(move |_| run(Err(status)));
                // No work has the number 0, so its return ends nothing.
                self.due.push((0, HostCall { run, even_if_failed: true }));
            }
            Work::Host(_)
            | Work::Nothing
            | Work::Upload { .. }
            | Work::Download { .. }
            | Work::Copy { .. }
            | Work::Fill { .. }
            | Work::Record(_)
            | Work::Launch(_) => {}
        }
    }
}

/// The named check that a fault of the machine belongs to.
fn check_of(kind: FaultKind) -> Check {
    match kind {
        FaultKind::OutOfBounds | FaultKind::WildAddress => Check::IllegalAddress,
        FaultKind::UseAfterFree => Check::UseAfterFree,
        FaultKind::Misaligned => Check::Misaligned,
        FaultKind::Launch
        | FaultKind::Overrun
        | FaultKind::Race
        | FaultKind::BlockRace
        | FaultKind::InFlight
        | FaultKind::Divergence
        | FaultKind::Deadlock
        | FaultKind::Endless
        | FaultKind::Operand
        | FaultKind::Trap => Check::KernelFault,
    }
}

/// What the driver would say to a fault of the machine. A race, an early read of a copy or a
/// divergent barrier would pass unseen on a card; here they are a failed launch.
fn status_of(kind: FaultKind) -> Status {
    match kind {
        FaultKind::OutOfBounds
        | FaultKind::WildAddress
        | FaultKind::UseAfterFree
        | FaultKind::Overrun => Status::IllegalAddress,
        FaultKind::Misaligned => Status::MisalignedAddress,
        FaultKind::Deadlock | FaultKind::Endless => Status::LaunchTimeout,
        FaultKind::Launch
        | FaultKind::Race
        | FaultKind::BlockRace
        | FaultKind::InFlight
        | FaultKind::Divergence
        | FaultKind::Operand
        | FaultKind::Trap => Status::LaunchFailed,
    }
}
