//! Everything that a pointer of C needs: reading, writing, and memory of the process. All unsafe
//! code of the crate but the exported names is here.
#![expect(unsafe_code, reason = "what C hands over are raw pointers")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use crate::driver::{HostCall, HostMemory};
use crate::status::Status;

/// Where a function of C puts a result. Null is an invalid value.
#[repr(transparent)]
pub(super) struct Out<T>(Option<NonNull<T>>);

impl<T> Out<T> {
    /// Writes the result.
    pub(super) fn put(self, value: T) -> Result<(), Status> {
        let Self(Some(place)) = self else { return Err(Status::InvalidValue) };
        // SAFETY: the caller of a C function that returns a `T` through this argument gives the
        // address of a `T` of its own, or null, which was refused above. Callers do not align
        // everything, so the write does not either.
        unsafe { place.as_ptr().write_unaligned(value) }
        Ok(())
    }

    /// Writes the result if there is a place for it; null means that nobody wants it.
    pub(super) fn put_if_wanted(self, value: T) {
        if self.0.is_some() {
            self.put(value).expect("the place is there");
        }
    }
}

/// Room for a string of C.
#[repr(transparent)]
pub(super) struct OutText(Option<NonNull<c_char>>);

impl OutText {
    /// Writes as much of `text` as fits, and a zero behind it.
    pub(super) fn put(self, text: &str, room: c_int) -> Result<(), Status> {
        let Self(Some(place)) = self else { return Err(Status::InvalidValue) };
        let room = usize::try_from(room).ok().filter(|room| *room > 0);
        let room = room.ok_or(Status::InvalidValue)?;
        let bytes = &text.as_bytes()[..text.len().min(room - 1)];
        let place = place.as_ptr().cast::<u8>();
        // SAFETY: the caller says that `room` bytes may be written, and at most `room - 1` are; a
        // string of ours does not overlap with the caller's.
        unsafe { place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
        // SAFETY: `bytes.len()` is at most `room - 1`, so this is still the caller's room.
        let end = unsafe { place.add(bytes.len()) };
        // SAFETY: as above.
        unsafe { end.write(0) }
        Ok(())
    }
}

/// A string of C.
#[repr(transparent)]
pub(super) struct Text(*const c_char);

impl Text {
    /// The bytes before the zero.
    pub(super) fn bytes(&self) -> Result<&[u8], Status> {
        if self.0.is_null() {
            return Err(Status::InvalidValue);
        }
        // SAFETY: the caller of a C function with a string argument gives a string that ends with a
        // zero and stays as it is for the length of the call, which `self` does not outlive.
        Ok(unsafe { CStr::from_ptr(self.0) }.to_bytes())
    }

    /// The string, if it is UTF-8.
    pub(super) fn text(&self) -> Result<&str, Status> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Status::InvalidValue)
    }

    /// Whether an image begins with some bytes, none of them zero. A binary need not end with a
    /// zero, so it is read no further than it agrees.
    pub(super) fn starts_with(&self, bytes: &[u8]) -> Result<bool, Status> {
        if self.0.is_null() {
            return Err(Status::InvalidValue);
        }
        for (offset, wanted) in bytes.iter().enumerate() {
            // SAFETY: every byte before this one was read and is not zero (none that was wanted is),
            // so the image reaches at least to this one.
            let place = unsafe { self.0.add(offset) };
            // SAFETY: as above.
            let byte = unsafe { place.cast::<u8>().read() };
            if byte != *wanted || byte == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// An address of host memory, whatever it holds.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Address(*mut c_void);

impl Address {
    pub(super) fn get(self) -> usize {
        self.0.expose_provenance()
    }

    pub(super) fn at(address: usize) -> Self {
        Self(std::ptr::with_exposed_provenance_mut(address))
    }

    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }
}

/// What C passes as `void*` is the address of a `T`.
impl<T> From<Address> for Out<T> {
    fn from(address: Address) -> Self {
        Self(NonNull::new(address.0.cast()))
    }
}

/// Reads the number of `BYTES` bytes at an address.
pub(super) fn word_at<const BYTES: usize>(address: Address) -> Result<u64, Status> {
    if address.is_null() {
        return Err(Status::InvalidValue);
    }
    let mut word = [0; 8];
    Process.read(address.get(), &mut word[..BYTES]);
    Ok(u64::from_le_bytes(word))
}

/// The `void**` of a launch: for each parameter the address of its value.
#[repr(transparent)]
pub(super) struct Arguments(*const *const c_void);

impl Arguments {
    /// Packs the values of parameters, each at its offset with its size. C does not say how many
    /// there are, so the process's memory is read through the kernel, which says no where a pointer
    /// would end the process. The error names the first argument that cannot be read.
    pub(super) fn pack(&self, params: &[(usize, usize)]) -> Result<Vec<u8>, String> {
        let end = params.iter().map(|(offset, size)| offset + size).max().unwrap_or(0);
        let mut packed = vec![0; end];
        if params.is_empty() {
            return Ok(packed);
        }
        let memory = File::open("/proc/self/mem").map_err(|error| error.to_string())?;
        for (index, (offset, size)) in params.iter().enumerate() {
            let mut address = [0; 8];
            let slot = self.0.addr() + index * size_of::<usize>();
            let read = |place: usize, into: &mut [u8]| {
                memory.read_exact_at(into, place as u64).map_err(|_| {
                    format!("argument {index} of {} cannot be read at {place:#x}", params.len())
                })
            };
            read(slot, &mut address)?;
            let place = u64::from_ne_bytes(address) as usize;
            read(place, &mut packed[*offset..offset + size])?;
        }
        Ok(packed)
    }
}

/// The options of a compilation, by number.
#[repr(transparent)]
pub(super) struct JitOptions(*const c_uint);

/// Their values: each a pointer, or a number in a pointer's bits.
#[repr(transparent)]
pub(super) struct JitValues(*mut usize);

/// `CU_JIT_INFO_LOG_BUFFER`, `CU_JIT_ERROR_LOG_BUFFER`; the size of each has the next number.
const INFO_LOG: c_uint = 3;
const ERROR_LOG: c_uint = 5;

impl JitOptions {
    pub(super) fn read(&self, count: c_uint) -> Result<Vec<c_uint>, Status> {
        if count > 0 && self.0.is_null() {
            return Err(Status::InvalidValue);
        }
        let option = |index| {
            // SAFETY: the caller says that there are `count` options, and `index` is below that.
            let place = unsafe { self.0.add(index) };
            // SAFETY: as above.
            unsafe { place.read() }
        };
        Ok((0..count as usize).map(option).collect())
    }
}

impl JitValues {
    /// Writes the log of errors where `options` want it, and how long it is without its zero, as the
    /// driver counts (580.159).
    pub(super) fn log(&self, options: &[c_uint], log: &str) -> Result<(), Status> {
        if options.is_empty() {
            return Ok(());
        }
        if self.0.is_null() {
            return Err(Status::InvalidValue);
        }
        for (buffer, text) in [(INFO_LOG, ""), (ERROR_LOG, log)] {
            let place = |wanted| {
                let index = options.iter().position(|option| *option == wanted)?;
                // SAFETY: there are as many values as options, and `index` is of one of those.
                Some(unsafe { self.0.add(index) })
            };
            let (Some(buffer), Some(size)) = (place(buffer), place(buffer + 1)) else { continue };
            // SAFETY: `size` is the place of a value, from above.
            let room = unsafe { size.read() };
            // SAFETY: as above.
            let address = unsafe { buffer.read() };
            let into = NonNull::new(std::ptr::with_exposed_provenance_mut(address));
            let written = text.len().min(room.saturating_sub(1));
            if room > 0 {
                OutText(into).put(text, room.try_into().unwrap_or(c_int::MAX))?;
            }
            // SAFETY: as above.
            unsafe { size.write(written) }
        }
        Ok(())
    }
}

/// A function of the host with its argument.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct HostFunction(Option<unsafe extern "C" fn(*mut c_void)>);

/// A function of the host that is told the stream and the status.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct StreamCallback(Option<unsafe extern "C" fn(Handle, c_int, *mut c_void)>);

/// A handle of ours, as C carries it.
pub(super) type Handle = usize;

/// What only the caller's threads are to use.
struct Sent<T>(T);

// SAFETY: the reference says of both kinds of functions that the driver calls them from a thread of
// its own, so whoever passes one and its argument has made them fit for that.
unsafe impl<T> Send for Sent<T> {}

impl HostFunction {
    /// The call that is to be made.
    pub(super) fn call(self, argument: Address) -> Result<HostCall, Status> {
        let function = self.0.ok_or(Status::InvalidValue)?;
        let sent = Sent((function, argument.0));
        let run = Box::new(move |_| {
            let sent = sent;
            let Sent((function, argument)) = sent;
            // SAFETY: the caller of `cuLaunchHostFunc` gives a function that may be called once with
            // this argument, from any thread, when the stream gets there.
            unsafe { function(argument) }
        });
        Ok(HostCall { run, even_if_failed: false })
    }
}

impl StreamCallback {
    /// The call that is to be made.
    pub(super) fn call(self, stream: Handle, argument: Address) -> Result<HostCall, Status> {
        let function = self.0.ok_or(Status::InvalidValue)?;
        let sent = Sent((function, argument.0));
        let run = Box::new(move |result: Result<(), Status>| {
            let sent = sent;
            let Sent((function, argument)) = sent;
            let status = result.map_or_else(Status::number, |()| 0);
            // SAFETY: the caller of `cuStreamAddCallback` gives a function that may be called once
            // with this argument, from any thread, when the stream gets there or fails.
            unsafe { function(stream, status, argument) }
        });
        Ok(HostCall { run, even_if_failed: true })
    }
}

/// How much dynamic shared memory a block of some threads needs.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct BlockToShared(Option<unsafe extern "C" fn(c_int) -> usize>);

impl BlockToShared {
    pub(super) fn bytes(self, threads: usize, otherwise: usize) -> usize {
        match self.0 {
            // SAFETY: the caller of `cuOccupancyMaxPotentialBlockSize` gives a function of a block
            // size, to be called during the call.
            Some(function) => unsafe { function(threads as c_int) },
            None => otherwise,
        }
    }
}

/// The memory of this process.
pub(super) struct Process;

impl HostMemory for Process {
    fn read(&self, address: usize, into: &mut [u8]) {
        let from = std::ptr::with_exposed_provenance::<u8>(address);
        // SAFETY: the driver reads host memory at the call, where the caller vouches for `into.len()`
        // bytes, and later only what is pinned: releasing that waits for every copy that uses it.
        // `into` is fresh memory of the driver, so the two do not overlap.
        unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) }
    }

    fn write(&mut self, address: usize, from: &[u8]) {
        let to = std::ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: as for `read`; the caller gave the memory to be written.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) }
    }

    fn allocate(&mut self, bytes: usize) -> Option<usize> {
        let layout = page_layout(bytes)?;
        // SAFETY: the core refuses an allocation of no bytes, so the layout has a size.
        let memory = unsafe { alloc_zeroed(layout) };
        (!memory.is_null()).then(|| memory.expose_provenance())
    }

    fn free(&mut self, address: usize, bytes: usize) {
        let Some(layout) = page_layout(bytes) else { return };
        // SAFETY: the core frees what `allocate` gave, once, with the size it asked for.
        unsafe { dealloc(std::ptr::with_exposed_provenance_mut(address), layout) }
    }
}

/// Whole pages, as pinned memory is.
fn page_layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, 4096).ok()
}

/// Runs `function` when the process ends by `exit` or by the end of `main`.
pub(super) fn at_exit(function: extern "C" fn()) {
    unsafe extern "C" {
        fn atexit(function: extern "C" fn()) -> c_int;
    }
    // SAFETY: `atexit` of ISO C only keeps the pointer; the function is in a library that cudarc
    // never closes, and takes no argument.
    let refused = unsafe { atexit(function) };
    if refused != 0 {
        crate::shared::say("the C library takes no more exit functions: there will be no report");
    }
}
