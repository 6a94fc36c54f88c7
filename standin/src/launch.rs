//! Launches: a grid of blocks over threads of the host.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::block::{self, Located};
use crate::error::{Fault, FaultKind};
use crate::execute::Surface;
use crate::memory::{Memory, View};
use crate::module::Kernel;
use crate::random::Random;
use crate::shared::Shared;
use crate::stats::{Counts, Stats};
use crate::warp::{Surroundings, Warp};

/// Who runs next, of the warps of a block that can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// A few instructions each, in turn.
    RoundRobin,
    /// Turns of random length and order, from this seed.
    Random(u64),
    /// The first warp runs as far ahead as barriers let it, then the next.
    WarpFirst,
}

/// When an asynchronous copy reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsyncCopies {
    /// At once.
    Eager,
    /// Only when a wait covers it.
    Lazy,
    /// Some at once, some in between, some at the wait, from this seed.
    Random(u64),
}

/// How tensor-core products round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// A wide sum, rounded once.
    Exact,
    /// As the kernel's target does, after published measurements.
    Hardware,
}

/// How a launch runs and what it checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Order of the warps.
    pub schedule: Schedule,
    /// Landing of `cp.async`.
    pub async_copies: AsyncCopies,
    /// Rounding of `mma`.
    pub accumulate: Accumulate,
    /// Whether races in shared memory, and blocks that write the same global bytes, are faults.
    pub races: bool,
    /// Bytes of shared memory, static and dynamic, that a block may have.
    pub shared_max: usize,
    /// Threads of the host that blocks are spread over.
    pub threads: usize,
    /// Instructions of the warps of one block, after which it counts as endless.
    pub steps_max: u64,
}

impl Default for Options {
    /// Turns in order, eager copies, exact sums, races checked, the 99 KiB of a consumer card, all
    /// cores of the host.
    fn default() -> Options {
        Options {
            schedule: Schedule::RoundRobin,
            async_copies: AsyncCopies::Eager,
            accumulate: Accumulate::Exact,
            races: true,
            shared_max: 99 << 10,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            steps_max: 1 << 32,
        }
    }
}

/// What to launch a kernel with.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of shared memory beside what the kernel declares.
    pub dynamic_shared: usize,
    /// The parameters, packed as [`Kernel::params`] says.
    pub params: &'a [u8],
    /// How it runs.
    pub options: &'a Options,
}

/// Most blocks in x, y, z, threads in x, y, z, and threads of a block: CUDA C Programming Guide,
/// "Technical Specifications per Compute Capability".
const GRID_MAX: [u32; 3] = [(1 << 31) - 1, 65_535, 65_535];
const BLOCK_MAX: [u32; 3] = [1024, 1024, 64];
const THREADS_MAX: u64 = 1024;

fn refuse(kernel: &Kernel, what: &str) -> Fault {
    Fault::host(FaultKind::Launch, format!("launch of {}: {what}", kernel.name))
}

/// Refuses what a device would.
fn check(kernel: &Kernel, launch: &Launch<'_>) -> Result<(), Fault> {
    for axis in 0..3 {
        let (grid, block) = (launch.grid[axis], launch.block[axis]);
        if !(1..=GRID_MAX[axis]).contains(&grid) {
            return Err(refuse(kernel, &format!("a grid of {:?} blocks", launch.grid)));
        }
        if !(1..=BLOCK_MAX[axis]).contains(&block) {
            return Err(refuse(kernel, &format!("a block of {:?} threads", launch.block)));
        }
    }
    let threads: u64 = launch.block.iter().map(|size| u64::from(*size)).product();
    let most = kernel.max_threads.map_or(THREADS_MAX, |most| THREADS_MAX.min(most as u64));
    if threads > most {
        return Err(refuse(kernel, &format!("a block of {threads} threads, at most {most}")));
    }
    if let Some(exact) = kernel.exact_block.filter(|exact| *exact != launch.block) {
        let what = format!("a block of {:?} threads, exactly {exact:?} are wanted", launch.block);
        return Err(refuse(kernel, &what));
    }
    let shared = kernel.body.static_shared + launch.dynamic_shared;
    let most = launch.options.shared_max;
    if shared > most {
        let what = format!(
            "{} static and {} dynamic bytes of shared memory, at most {most}",
            kernel.body.static_shared, launch.dynamic_shared
        );
        return Err(refuse(kernel, &what));
    }
    let (got, wanted) = (launch.params.len(), kernel.param_bytes());
    if got != wanted {
        return Err(refuse(kernel, &format!("{got} bytes of parameters, {wanted} are wanted")));
    }
    let blocks: u64 = launch.grid.iter().map(|size| u64::from(*size)).product();
    if blocks >= u64::from(u32::MAX) {
        return Err(refuse(kernel, &format!("{blocks} blocks are more than this machine counts")));
    }
    Ok(())
}

/// Runs every block of a grid and returns when all are done.
///
/// Blocks share global memory and nothing else, in no order. The first block by number that fails
/// is reported.
pub fn launch(kernel: &Kernel, memory: &Memory, launch: &Launch<'_>) -> Result<Stats, Fault> {
    static LAUNCHES: AtomicU64 = AtomicU64::new(1);
    check(kernel, launch)?;
    let view = memory.view(&kernel.variables);
    let run = Run {
        kernel,
        launch,
        view: &view,
        number: LAUNCHES.fetch_add(1, Relaxed),
        blocks: launch.grid.iter().product(),
        next: AtomicU32::new(0),
        has_failed: AtomicBool::new(false),
        outcome: Mutex::new((Counts::new(kernel.body.opcodes.len()), None)),
    };
    let threads = launch.options.threads.clamp(1, run.blocks as usize);
    if threads == 1 {
        run.work();
    } else {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| run.work());
            }
        });
    }
    if launch.options.races {
        view.all().iter().for_each(|allocation| allocation.forget_writers());
    }
    let (counts, failure) = run.outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    match failure {
        None => Ok(counts.finish(&kernel.body.opcodes)),
        Some((_, (trap, place))) => Err(Fault { kind: trap.kind, what: trap.what, place }),
    }
}

struct Run<'a> {
    kernel: &'a Kernel,
    launch: &'a Launch<'a>,
    view: &'a View<'a>,
    number: u64,
    blocks: u32,
    next: AtomicU32,
    has_failed: AtomicBool,
    /// What all blocks did, and the failure of the lowest block.
    outcome: Mutex<(Counts, Option<(u32, Located)>)>,
}

impl Run<'_> {
    /// Takes blocks until there are none.
    fn work(&self) {
        let Run { kernel, launch, .. } = self;
        let options = launch.options;
        let threads: u32 = launch.block.iter().product();
        let warp_count = threads.div_ceil(32) as usize;
        let shared = kernel.body.static_shared + launch.dynamic_shared;
        let around = Surroundings {
            grid: launch.grid,
            block: launch.block,
            warps: warp_count,
            dynamic_shared: launch.dynamic_shared as u32,
            total_shared: shared as u32,
        };
        let registers = &kernel.body.registers;
        let new = |index| {
            Warp::new(index, &registers.narrow, &registers.wide, registers.predicates, &around)
        };
        let fresh: Vec<Warp> = (0..warp_count).map(new).collect();
        let mut warps: Vec<Warp> = (0..warp_count).map(new).collect();
        for warp in &mut warps {
            warp.local = vec![0xFF; 32 * kernel.body.local];
        }
        let granule = if options.races { kernel.body.granules[0] } else { 0 };
        let mut surface = Surface {
            kernel,
            view: self.view,
            params: launch.params,
            options,
            launch: self.number,
            shared: Shared::new(shared, granule, warp_count),
            counts: Counts::new(kernel.body.opcodes.len()),
            random: Random::new(0),
            block: 0,
            last: 0,
            writers: vec![None; self.view.all().len()],
        };
        while !self.has_failed.load(Relaxed) {
            let number = self.next.fetch_add(1, Relaxed);
            if number >= self.blocks {
                break;
            }
            let [x, y, _] = launch.grid;
            let index = [number % x, number / x % y, number / (x * y)];
            surface.block = number;
            surface.random = Random::new(seed(options) ^ u64::from(number) << 20);
            surface.shared.reset();
            for (warp, fresh) in warps.iter_mut().zip(&fresh) {
                warp.restart(fresh, index, &registers.narrow);
            }
            if let Err(located) = block::run(&mut surface, &mut warps, index) {
                self.has_failed.store(true, Relaxed);
                let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
                if outcome.1.as_ref().is_none_or(|(other, _)| number < *other) {
                    outcome.1 = Some((number, located));
                }
                break;
            }
        }
        surface.counts.stats.shared_reads_unwritten += surface.shared.reads_unwritten;
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.0.add(&surface.counts);
    }
}

fn seed(options: &Options) -> u64 {
    let schedule = if let Schedule::Random(seed) = options.schedule { seed } else { 0 };
    let copies = if let AsyncCopies::Random(seed) = options.async_copies { seed } else { 0 };
    schedule ^ copies.rotate_left(32)
}
