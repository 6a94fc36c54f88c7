//! The C functions, thin: each turns what C gives into values, calls the core, and writes back. A communicator is a number and no
//! pointer: one that was destroyed is known to be none.
#![expect(unsafe_code, reason = "what C hands over are raw pointers")]

mod calls;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::comm::{Process, Rank};
use crate::cuda::{Cuda, Pinned};
use crate::data::{Code, Fault};
use crate::link::{ID_BYTES, Id};
use crate::settings::Settings;

/// As the header has it; passed by value.
#[repr(C)]
struct UniqueId([u8; ID_BYTES]);

/// The head of `ncclConfig_t`, which has grown behind it.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

type Handle = u64;
type Stream = u64;

/// A communicator of this process.
struct Comm {
    rank: Arc<Rank>,
    context: u64,
    device: c_int,
    is_blocking: bool,
    /// The last call has to be asked about before the next is made.
    is_unasked: AtomicBool,
    pinned: Mutex<Vec<Pinned>>,
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

fn process() -> Result<&'static Process, Fault> {
    static PROCESS: OnceLock<Result<Process, String>> = OnceLock::new();
    let process =
        PROCESS.get_or_init(|| Settings::read(|name| std::env::var(name).ok()).map(Process::new));
    process.as_ref().map_err(|error| Fault::new(Code::InternalError, error.clone()))
}

fn comms() -> MutexGuard<'static, BTreeMap<Handle, Arc<Comm>>> {
    static COMMS: Mutex<BTreeMap<Handle, Arc<Comm>>> = Mutex::new(BTreeMap::new());
    COMMS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn comm(handle: Handle) -> Result<Arc<Comm>, Fault> {
    let found = comms().get(&handle).cloned();
    found.ok_or_else(|| Fault::new(Code::InvalidArgument, format!("no communicator: {handle:#x}")))
}

/// What C gets, and `ncclGetLastError` says.
fn answer(result: Result<Code, Fault>) -> c_int {
    match result {
        Ok(code) => code as c_int,
        Err(Fault { code, text }) => {
            LAST.set(CString::new(text.replace('\0', " ")).unwrap_or_default());
            code as c_int
        }
    }
}

fn put<T>(to: *mut T, value: T) -> Result<(), Fault> {
    if to.is_null() {
        return Err(Fault::new(Code::InvalidArgument, "a result that has no place"));
    }
    // SAFETY: the caller has a place of this type there, which is all that C can say.
    unsafe { to.write(value) };
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetVersion(version: *mut c_int) -> c_int {
    answer(
        process()
            .and_then(|process| put(version, process.settings.version))
            .map(|()| Code::Success),
    )
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> c_int {
    answer(process().and_then(|process| {
        let new = Id::new(process.settings.patience)
            .map_err(|error| Fault::new(Code::SystemError, error.to_string()))?;
        put(id, UniqueId(new.to_bytes())).map(|()| Code::Success)
    }))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommInitRank(to: *mut Handle, size: c_int, id: UniqueId, rank: c_int) -> c_int {
    answer(join(to, &id, (rank, size), true))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommInitRankConfig(
    to: *mut Handle,
    size: c_int,
    id: UniqueId,
    rank: c_int,
    config: *const Config,
) -> c_int {
    // SAFETY: null, or a configuration of the caller's, whose head every version has.
    let is_blocking = unsafe { config.as_ref() }.is_none_or(|config| config.blocking != 0);
    answer(join(to, &id, (rank, size), is_blocking))
}

fn join(
    to: *mut Handle,
    id: &UniqueId,
    (rank, size): (c_int, c_int),
    is_blocking: bool,
) -> Result<Code, Fault> {
    static NEXT: Mutex<Handle> = Mutex::new(1);
    let process = process()?;
    let (Ok(rank), Ok(size)) = (usize::try_from(rank), usize::try_from(size)) else {
        return Err(Fault::new(Code::InvalidArgument, format!("rank {rank} of {size}")));
    };
    if size <= rank {
        return Err(Fault::new(Code::InvalidArgument, format!("rank {rank} of {size}")));
    }
    let cuda = Cuda::open()?;
    let (context, device) = (cuda.context()?, cuda.device()?);
    let rank = Rank::join(process, Id::of_bytes(&id.0)?, (rank, size));
    let comm = Comm {
        rank: Arc::clone(&rank),
        context,
        device,
        is_blocking,
        is_unasked: AtomicBool::new(!is_blocking),
        pinned: Mutex::default(),
    };
    let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
    let handle = *next;
    *next += 1;
    comms().insert(handle, Arc::new(comm));
    put(to, handle)?;
    if !is_blocking {
        return Ok(Code::InProgress);
    }
    rank.wait_until_ready().map(|()| Code::Success)
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommGetAsyncError(handle: Handle, to: *mut c_int) -> c_int {
    answer(comm(handle).and_then(|comm| {
        let code = match comm.rank.fault() {
            Some(fault) => fault.code,
            None if !comm.rank.is_ready() => Code::InProgress,
            None if comm.is_unasked.swap(false, Ordering::Relaxed) => Code::InProgress,
            None => Code::Success,
        };
        if let Some(fault) = comm.rank.fault() {
            LAST.set(CString::new(fault.text).unwrap_or_default());
        }
        put(to, code as c_int).map(|()| Code::Success)
    }))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommCount(handle: Handle, to: *mut c_int) -> c_int {
    answer(comm(handle).and_then(|comm| put(to, comm.rank.size as c_int)).map(|()| Code::Success))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommUserRank(handle: Handle, to: *mut c_int) -> c_int {
    answer(comm(handle).and_then(|comm| put(to, comm.rank.rank as c_int)).map(|()| Code::Success))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommCuDevice(handle: Handle, to: *mut c_int) -> c_int {
    answer(comm(handle).and_then(|comm| put(to, comm.device)).map(|()| Code::Success))
}

/// All that was queued has run when this returns.
#[unsafe(no_mangle)]
extern "C" fn ncclCommFinalize(handle: Handle) -> c_int {
    answer(comm(handle).and_then(|comm| comm.settle()).map(|()| Code::Success))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommDestroy(handle: Handle) -> c_int {
    answer(comm(handle).and_then(|comm| {
        comms().remove(&handle);
        comm.settle()?;
        comm.rank.leave();
        comm.free().map(|()| Code::Success)
    }))
}

#[unsafe(no_mangle)]
extern "C" fn ncclCommAbort(handle: Handle) -> c_int {
    answer(comm(handle).and_then(|comm| {
        comms().remove(&handle);
        comm.rank.abort();
        comm.free().map(|()| Code::Success)
    }))
}

impl Comm {
    fn pinned(&self) -> MutexGuard<'_, Vec<Pinned>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for what was queued.
    fn settle(&self) -> Result<(), Fault> {
        let cuda = Cuda::open()?;
        cuda.set_context(self.context)?;
        let streams: Vec<Stream> = self.pinned().iter().map(|pinned| pinned.stream).collect();
        streams.into_iter().try_for_each(|stream| cuda.synchronise(stream))
    }

    fn free(&self) -> Result<(), Fault> {
        let cuda = Cuda::open()?;
        cuda.set_context(self.context)?;
        let pinned = std::mem::take(&mut *self.pinned());
        pinned.into_iter().try_for_each(|pinned| cuda.free(pinned))
    }
}

#[unsafe(no_mangle)]
extern "C" fn ncclGetErrorString(code: c_int) -> *const c_char {
    let text = match code {
        0 => c"no error",
        1 => c"unhandled cuda error",
        2 => c"unhandled system error",
        3 => c"internal error",
        4 => c"invalid argument",
        5 => c"invalid usage",
        6 => c"remote process exited or there was a network error",
        7 => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

/// The last error of this thread; it stays until its next one.
#[unsafe(no_mangle)]
extern "C" fn ncclGetLastError(_: Handle) -> *const c_char {
    LAST.with_borrow(|last| last.as_ptr())
}
