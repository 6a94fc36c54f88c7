//! What moves numbers, and groups of it: queued in the caller's stream when the group ends.
#![expect(
    unsafe_code,
    reason = "pinned memory and the argument of a function of the host are raw pointers"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Comm, Handle, Stream, answer, comm};
use crate::comm::{Call, Move, Rank};
use crate::cuda::{Cuda, Pinned};
use crate::data::{Code, Fault, Type};

/// One call of a group that is not over.
struct Queued {
    comm: Handle,
    stream: Stream,
    call: Call,
    from: u64,
    to: u64,
}

/// What a function of the host gets.
struct Job {
    rank: Arc<Rank>,
    calls: Vec<Call>,
    out: (*mut u8, usize),
    into: (*mut u8, usize),
}

#[derive(Default)]
struct Group {
    depth: u32,
    calls: Vec<Queued>,
    fault: Option<Fault>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupStart() -> c_int {
    GROUP.with_borrow_mut(|group| group.depth += 1);
    answer(Ok(Code::Success))
}

#[unsafe(no_mangle)]
extern "C" fn ncclGroupEnd() -> c_int {
    answer(end_group())
}

fn end_group() -> Result<Code, Fault> {
    let group = GROUP.with_borrow_mut(|group| {
        let Some(depth) = group.depth.checked_sub(1) else {
            return Err(Fault::new(Code::InvalidUsage, "the end of a group that was not begun"));
        };
        group.depth = depth;
        Ok(if depth == 0 { std::mem::take(group) } else { Group::default() })
    })?;
    if let Some(fault) = group.fault {
        return Err(fault);
    }
    // By communicator and stream, each in the order of its calls.
    let mut parts: BTreeMap<(Handle, Stream), Vec<Queued>> = BTreeMap::new();
    for queued in group.calls {
        parts.entry((queued.comm, queued.stream)).or_default().push(queued);
    }
    let mut code = Code::Success;
    for ((handle, stream), calls) in parts {
        let comm = comm(handle)?;
        queue(&comm, stream, &calls)?;
        if !comm.is_blocking {
            comm.is_unasked.store(true, Ordering::Relaxed);
            code = Code::InProgress;
        }
    }
    Ok(code)
}

/// What leaves the device, the exchange, and what comes to it, one behind the other in a stream.
fn queue(comm: &Comm, stream: Stream, calls: &[Queued]) -> Result<(), Fault> {
    let cuda = Cuda::open()?;
    let bytes = |queued: &Queued| queued.call.bytes(comm.rank.rank, comm.rank.size);
    let out: usize = calls.iter().map(|queued| bytes(queued).0).sum();
    let into: usize = calls.iter().map(|queued| bytes(queued).1).sum();
    let mut all = comm.pinned();
    // Behind what the stream has been given before, memory that it uses may be used again.
    let fits = |pinned: &Pinned| pinned.stream == stream && out + into <= pinned.bytes;
    let at = if let Some(at) = all.iter().position(fits) {
        at
    } else {
        all.push(cuda.pinned((out + into).next_power_of_two().max(4096), stream)?);
        all.len() - 1
    };
    let pinned = &all[at];
    let mut place = 0;
    for queued in calls.iter().filter(|queued| bytes(queued).0 > 0) {
        cuda.down(pinned, place, queued.from, bytes(queued).0)?;
        place += bytes(queued).0;
    }
    // SAFETY: both lie in the pinned memory, which has room for them.
    let second = unsafe { pinned.start.add(out) };
    let job = Box::new(Job {
        rank: Arc::clone(&comm.rank),
        calls: calls.iter().map(|queued| queued.call).collect(),
        out: (pinned.start, out),
        into: (second, into),
    });
    cuda.call_host(stream, run, Box::into_raw(job).cast())?;
    for queued in calls.iter().filter(|queued| bytes(queued).1 > 0) {
        cuda.up(pinned, place, queued.to, bytes(queued).1)?;
        place += bytes(queued).1;
    }
    Ok(())
}

/// In a stream; calls no function of the driver.
unsafe extern "C" fn run(job: *mut c_void) {
    // SAFETY: the box that `queue` has given to the driver, which calls this once.
    let job = unsafe { Box::from_raw(job.cast::<Job>()) };
    // SAFETY: so much pinned memory is there until the stream has gone on, and nothing else uses it before.
    let out = unsafe { std::slice::from_raw_parts(job.out.0, job.out.1) };
    // SAFETY: as above, and it lies behind the other.
    let into = unsafe { std::slice::from_raw_parts_mut(job.into.0, job.into.1) };
    job.rank.carry_out(&job.calls, out, into);
}

/// A call, in a group or one of its own.
fn call(
    what: Move,
    (from, to): (u64, u64),
    (count, kind): (usize, c_int),
    (handle, stream): (Handle, Stream),
) -> Result<Code, Fault> {
    let found = (|| {
        let (comm, kind) = (comm(handle)?, Type::of(kind)?);
        let peer = match what {
            Move::Send { to: peer }
            | Move::Recv { from: peer }
            | Move::Broadcast { root: peer } => peer,
            Move::AllReduce | Move::ReduceScatter | Move::AllGather => 0,
        };
        let problem = |text: String| Err(Fault::new(Code::InvalidArgument, text));
        if comm.rank.size <= peer {
            return problem(format!("{what:?}: there are {} ranks", comm.rank.size));
        }
        let call = Call { what, count, kind };
        let (out, into) = call.bytes(comm.rank.rank, comm.rank.size);
        if (from == 0 && out > 0) || (to == 0 && into > 0) {
            return problem(format!("{what:?}: {count} numbers at no address"));
        }
        if let Some(fault) = comm.rank.fault() {
            return Err(fault);
        }
        if !comm.rank.is_ready() || comm.is_unasked.load(Ordering::Relaxed) {
            let text =
                format!("{what:?} while the last call is in progress: ask ncclCommGetAsyncError");
            return Err(Fault::new(Code::InvalidUsage, text));
        }
        Ok(Queued { comm: handle, stream, call, from, to })
    })();
    ncclGroupStart();
    GROUP.with_borrow_mut(|group| match &found {
        Ok(_) => {}
        Err(fault) => group.fault = Some(group.fault.take().unwrap_or_else(|| fault.clone())),
    });
    let result = found.map(|queued| GROUP.with_borrow_mut(|group| group.calls.push(queued)));
    let ended = end_group();
    result.and(ended)
}

#[unsafe(no_mangle)]
extern "C" fn ncclSend(
    from: u64,
    count: usize,
    kind: c_int,
    peer: c_int,
    comm: Handle,
    stream: Stream,
) -> c_int {
    let what = Move::Send { to: usize::try_from(peer).unwrap_or(usize::MAX) };
    answer(call(what, (from, 0), (count, kind), (comm, stream)))
}

#[unsafe(no_mangle)]
extern "C" fn ncclRecv(
    to: u64,
    count: usize,
    kind: c_int,
    peer: c_int,
    comm: Handle,
    stream: Stream,
) -> c_int {
    let what = Move::Recv { from: usize::try_from(peer).unwrap_or(usize::MAX) };
    answer(call(what, (0, to), (count, kind), (comm, stream)))
}

/// Of sums only the plain one.
fn sum(
    what: Move,
    places: (u64, u64),
    numbers: (usize, c_int),
    (operation, comm, stream): (c_int, Handle, Stream),
) -> c_int {
    if operation != 0 {
        let text = format!("{what:?}: reduction {operation}; the stand-in has sums only");
        return answer(Err(Fault::new(Code::InvalidArgument, text)));
    }
    answer(call(what, places, numbers, (comm, stream)))
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllReduce(
    from: u64,
    to: u64,
    count: usize,
    kind: c_int,
    operation: c_int,
    comm: Handle,
    stream: Stream,
) -> c_int {
    sum(Move::AllReduce, (from, to), (count, kind), (operation, comm, stream))
}

#[unsafe(no_mangle)]
extern "C" fn ncclReduceScatter(
    from: u64,
    to: u64,
    count: usize,
    kind: c_int,
    operation: c_int,
    comm: Handle,
    stream: Stream,
) -> c_int {
    sum(Move::ReduceScatter, (from, to), (count, kind), (operation, comm, stream))
}

#[unsafe(no_mangle)]
extern "C" fn ncclAllGather(
    from: u64,
    to: u64,
    count: usize,
    kind: c_int,
    comm: Handle,
    stream: Stream,
) -> c_int {
    answer(call(Move::AllGather, (from, to), (count, kind), (comm, stream)))
}

#[unsafe(no_mangle)]
extern "C" fn ncclBroadcast(
    from: u64,
    to: u64,
    count: usize,
    kind: c_int,
    root: c_int,
    comm: Handle,
    stream: Stream,
) -> c_int {
    let what = Move::Broadcast { root: usize::try_from(root).unwrap_or(usize::MAX) };
    answer(call(what, (from, to), (count, kind), (comm, stream)))
}
