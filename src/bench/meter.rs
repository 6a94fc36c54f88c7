//! What the process says about itself: time, calls of the allocator, its largest size in memory.
//!
//! The binary's allocator is the system's behind a counter, which counts only while a bench asks for
//! it: otherwise an allocation costs one load more.
#![expect(unsafe_code, reason = "an allocator is made of unsafe calls, all passed on as they came")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use shoal_bench::Meter;

use crate::clock::Stopwatch;

/// Counts what reaches the system's allocator.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    if COUNTS.load(Ordering::Relaxed) {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: what the caller promised of the layout is what is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: `old` came from the system's allocator through `alloc`, with this layout.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(old, layout) }
    }
}

/// Watches this process from now on.
pub(super) struct Process {
    watch: Stopwatch,
    busy: Option<Busy>,
}

/// Seconds that all cores together have worked since the machine started, for everybody and for us.
#[derive(Clone, Copy)]
struct Busy {
    all: f64,
    own: f64,
}

impl Process {
    pub(super) fn watch() -> Self {
        COUNTS.store(true, Ordering::Relaxed);
        Self { watch: Stopwatch::start(), busy: Busy::now() }
    }

    /// Cores that others kept busy meanwhile; `None` where the system does not say.
    pub(super) fn others_cores(&self) -> Option<f64> {
        let (then, now) = (self.busy?, Busy::now()?);
        let others = (now.all - then.all) - (now.own - then.own);
        Some((others / self.watch.seconds()).max(0.0))
    }
}

impl Meter for Process {
    fn seconds(&self) -> f64 {
        self.watch.seconds()
    }

    fn allocations(&self) -> Option<u64> {
        Some(CALLS.load(Ordering::Relaxed))
    }
}

impl Busy {
    fn now() -> Option<Self> {
        let per_second = 100.0;
        let all = fs::read_to_string("/proc/stat").ok()?;
        // user, nice, system, idle, waiting, and two kinds of interrupts.
        let all: Vec<f64> =
            all.lines().next()?.split_whitespace().skip(1).map_while(number).collect();
        let own = fs::read_to_string("/proc/self/stat").ok()?;
        // Behind the name in brackets, which may hold blanks: fields 14 and 15 are user and system.
        let own: Vec<f64> =
            own.rsplit(')').next()?.split_whitespace().skip(11).take(2).map_while(number).collect();
        let all = all.get(..3)?.iter().sum::<f64>() + all.get(5..7)?.iter().sum::<f64>();
        Some(Self { all: all / per_second, own: own.iter().sum::<f64>() / per_second })
    }
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}

/// The most memory this process ever had resident; `None` where the system does not say.
pub(super) fn peak_resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_counted_and_memory_is_seen() {
        let process = Process::watch();
        let before = process.allocations().unwrap();
        let kept = std::hint::black_box(vec![1_u8; 1 << 20]);
        assert!(process.allocations().unwrap() > before);
        assert!(peak_resident_bytes().is_none_or(|bytes| bytes >= 1 << 20));
        assert!(process.others_cores().is_none_or(|cores| cores >= 0.0));
        drop(kept);
    }
}
