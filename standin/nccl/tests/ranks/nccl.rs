//! The library's functions, as its header has them.
#![expect(unsafe_code, reason = "calls a library of C")]

use std::ffi::{CStr, c_char, c_int};

use libloading::{Library, Symbol};

pub(crate) const IN_PROGRESS: c_int = 7;
const U8: c_int = 1;
const F32: c_int = 7;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Id(pub(crate) [u8; 128]);

/// The head of the configuration, with room behind it.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    rest: [c_int; 32],
}

pub(crate) struct Nccl(Library);

/// A communicator, and the stream of its calls.
#[derive(Clone, Copy)]
pub(crate) struct Comm {
    pub(crate) handle: u64,
    pub(crate) stream: u64,
}

impl Nccl {
    pub(crate) fn open() -> Self {
        // SAFETY: the library has no initialisers that ask for anything.
        Self(unsafe { Library::new("libnccl.so.2") }.unwrap())
    }

    fn get<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: every caller names the type that the header has.
        unsafe { self.0.get(name.as_bytes()) }.unwrap()
    }

    pub(crate) fn version(&self) -> c_int {
        let call = self.get::<unsafe extern "C" fn(*mut c_int) -> c_int>("ncclGetVersion");
        let mut version = 0;
        // SAFETY: the result is an int.
        assert_eq!(unsafe { call(&raw mut version) }, 0);
        version
    }

    pub(crate) fn id(&self) -> Id {
        let call = self.get::<unsafe extern "C" fn(*mut Id) -> c_int>("ncclGetUniqueId");
        let mut id = Id([0; 128]);
        // SAFETY: the result is an id.
        assert_eq!(unsafe { call(&raw mut id) }, 0);
        id
    }

    pub(crate) fn join(
        &self,
        (rank, size): (usize, usize),
        id: Id,
        stream: u64,
        blocking: bool,
    ) -> Comm {
        type Init = unsafe extern "C" fn(*mut u64, c_int, Id, c_int, *const Config) -> c_int;
        let call = self.get::<Init>("ncclCommInitRankConfig");
        let size_of_it = size_of::<Config>();
        let config = Config {
            size: size_of_it,
            magic: 0xcafe_beef,
            version: 22803,
            blocking: c_int::from(blocking),
            rest: [c_int::MIN; 32],
        };
        let mut handle = 0;
        // SAFETY: the result is a handle, and the configuration begins as the header's.
        let code =
            unsafe { call(&raw mut handle, size as c_int, id, rank as c_int, &raw const config) };
        assert_eq!(code, if blocking { 0 } else { IN_PROGRESS });
        Comm { handle, stream }
    }

    /// An error that is told later, and its words.
    pub(crate) fn state(&self, comm: Comm) -> (c_int, String) {
        let call =
            self.get::<unsafe extern "C" fn(u64, *mut c_int) -> c_int>("ncclCommGetAsyncError");
        let mut code = 0;
        // SAFETY: the result is an int.
        assert_eq!(unsafe { call(comm.handle, &raw mut code) }, 0);
        (code, self.last())
    }

    pub(crate) fn last(&self) -> String {
        let call = self.get::<unsafe extern "C" fn(u64) -> *const c_char>("ncclGetLastError");
        // SAFETY: it takes a handle, and none will do.
        let text = unsafe { call(0) };
        // SAFETY: the text ends in zero and stays until this thread's next error.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    /// `Start` or `End`.
    pub(crate) fn group(&self, name: &str) -> c_int {
        // SAFETY: it takes nothing.
        unsafe { self.get::<unsafe extern "C" fn() -> c_int>(&format!("ncclGroup{name}"))() }
    }

    /// `Destroy` or `Abort`.
    pub(crate) fn comm(&self, name: &str, comm: Comm) -> c_int {
        let call = self.get::<unsafe extern "C" fn(u64) -> c_int>(&format!("ncclComm{name}"));
        // SAFETY: it takes a handle.
        unsafe { call(comm.handle) }
    }

    /// `Send` or `Recv`, of bytes.
    pub(crate) fn point(
        &self,
        name: &str,
        at: u64,
        bytes: usize,
        peer: usize,
        comm: Comm,
    ) -> c_int {
        type Point = unsafe extern "C" fn(u64, usize, c_int, c_int, u64, u64) -> c_int;
        let call = self.get::<Point>(&format!("nccl{name}"));
        // SAFETY: the library looks at the numbers; memory of so many bytes is there.
        unsafe { call(at, bytes, U8, peer as c_int, comm.handle, comm.stream) }
    }

    /// A sum of FP32 numbers over all ranks.
    pub(crate) fn all_reduce(&self, from: u64, to: u64, count: usize, comm: Comm) -> c_int {
        type Reduce = unsafe extern "C" fn(u64, u64, usize, c_int, c_int, u64, u64) -> c_int;
        let call = self.get::<Reduce>("ncclAllReduce");
        // SAFETY: as above.
        unsafe { call(from, to, count, F32, 0, comm.handle, comm.stream) }
    }
}
