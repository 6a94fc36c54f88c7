//! Launches: what is refused at the call, and what runs later.

use shoal_standin::{Accumulate, AsyncCopies, Options, Schedule, Stats};

use crate::cards::Card;
use crate::report::Check;
use crate::settings::{Copies, Failure, Warps};
use crate::status::Status;

use super::Driver;
use super::modules::THREADS_MAX;
use super::work::{Run, Work};

/// Grid, block and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes.
    pub dynamic_shared: usize,
}

/// The largest grid and block, by axis (CUDA programming guide, "Compute capabilities").
const GRID_MAX: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];
const BLOCK_MAX: [u32; 3] = [1024, 1024, 64];

impl Driver {
    /// `cuLaunchKernel`. `params` is laid out as [`Driver::parameters`] says.
    pub fn launch(
        &mut self,
        context: u64,
        stream: u64,
        function: u64,
        shape: Shape,
        params: Vec<u8>,
    ) -> Result<(), Status> {
        let (device, stream) = self.lane(context, stream)?;
        let found = self.found(function)?;
        if found.device != device || self.context(context)? != device {
            let wanted = "function of the current context, whose stream this is";
            return Err(self.bad_handle(function, wanted));
        }
        self.check_shape(function, shape)?;
        self.launched += 1;
        let kernel = self.found(function)?.kernel.clone();
        let name = kernel.name().to_owned();
        let mut touches = Vec::new();
        for (index, param) in kernel.params().iter().enumerate() {
            let bytes = &params[param.offset..param.offset + param.size];
            let what = format!("argument {index} of `{name}`");
            touches.extend(self.pointers_in(bytes, device, &what));
        }
        let is_foreign = |base: &u64| self.allocations[base].device != device;
        let reaches_too_far = touches.iter().any(is_foreign);
        let failures = [Failure::Launch(self.launched), Failure::Kernel(name)];
        let is_to_fail = failures.iter().any(|failure| self.settings.failures.contains(failure));
        let run = Run {
            kernel,
            grid: shape.grid,
            block: shape.block,
            dynamic_shared: shape.dynamic_shared,
            params,
            options: self.options(device),
            is_to_fail,
        };
        let mut job = self.job(device, Work::Launch(Box::new(run)));
        job.touches = touches;
        self.submit(stream, job);
        if reaches_too_far {
            // The machine has one memory for all cards; a card that is not the owner's fails.
            self.poison(device, Status::IllegalAddress);
        }
        Ok(())
    }

    fn check_shape(&mut self, function: u64, shape: Shape) -> Result<(), Status> {
        let device = self.found(function)?.device;
        let opt_in = self.devices[device].card.shared_opt_in;
        let function = self.found(function)?;
        let name = function.kernel.name().to_owned();
        let (grid, block) = (shape.grid, shape.block);
        let beyond = |size: &[u32; 3], most: [u32; 3]| {
            size.iter().zip(most).any(|(size, most)| *size == 0 || *size > most)
        };
        let threads = block.iter().map(|size| *size as usize).product::<usize>();
        let bound = function.threads_max();
        if beyond(&grid, GRID_MAX) || beyond(&block, BLOCK_MAX) || threads > THREADS_MAX {
            let message = format!("`{name}` cannot have grid {grid:?} and block {block:?}");
            self.fault(Check::LaunchShape, message);
            return Err(Status::InvalidValue);
        }
        if threads > bound {
            let message = format!("`{name}` takes {bound} threads (`.maxntid`), not {threads}");
            self.fault(Check::LaunchShape, message);
            return Err(Status::InvalidValue);
        }
        let (dynamic, most) = (shape.dynamic_shared, function.dynamic_shared_max);
        let all = function.kernel.static_shared() + dynamic;
        if dynamic > most || all > opt_in {
            let message = format!(
                "`{name}` is launched with {dynamic} bytes of dynamic shared memory, but opted in \
                 to {most}: set CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES first (this card \
                 allows {opt_in} in all)"
            );
            self.fault(Check::SharedOptIn, message);
            return Err(Status::InvalidValue);
        }
        Ok(())
    }

    /// How the machine runs this launch. Each launch has a seed of its own.
    fn options(&mut self, device: usize) -> Options {
        let seed = self.random.next();
        let settings = &self.settings;
        Options {
            schedule: match settings.warps {
                Warps::RoundRobin => Schedule::RoundRobin,
                Warps::WarpFirst => Schedule::WarpFirst,
                Warps::Random => Schedule::Random(seed),
            },
            async_copies: match settings.copies {
                Copies::Eager => AsyncCopies::Eager,
                Copies::Lazy => AsyncCopies::Lazy,
                Copies::Random => AsyncCopies::Random(seed),
            },
            accumulate: if settings.hardware_sums {
                Accumulate::Hardware
            } else {
                Accumulate::Exact
            },
            races: settings.races,
            shared_max: self.devices[device].card.shared_opt_in,
            threads: settings.threads,
            ..Options::default()
        }
    }
}

/// What a launch takes on the virtual clock: its warp instructions at one per cycle and scheduler,
/// of which a multiprocessor has four. A model, so that times are plausible and repeat.
pub(super) fn micros(card: &Card, stats: &Stats) -> f64 {
    let per_cycle = 4.0 * card.multiprocessors as f64;
    let cycles = stats.warp_instructions() as f64 / per_cycle;
    cycles * 1e3 / card.clock as f64
}

impl Driver {
    /// Adds a launch that ran to the report.
    pub(super) fn count(&mut self, name: &str, stats: &Stats) {
        let launches = self.report.launches.entry(name.to_owned()).or_default();
        launches.count += 1;
        let counts = [
            ("warp_instructions", stats.warp_instructions()),
            ("global_bytes_read", stats.global_bytes_read),
            ("global_bytes_written", stats.global_bytes_written),
            ("global_sectors_read", stats.global_sectors_read),
            ("global_sectors_written", stats.global_sectors_written),
            ("bank_conflicts", stats.bank_conflicts),
            ("barriers", stats.barriers),
            ("float_atomics", stats.float_atomics),
            ("shared_reads_unwritten", stats.shared_reads_unwritten),
        ];
        for (what, count) in counts {
            *launches.counts.entry(what.to_owned()).or_default() += count;
        }
        for (opcode, count) in &stats.opcodes {
            *launches.opcodes.entry(opcode.clone()).or_default() += count;
        }
    }
}
