//! Modules and functions: PTX that this driver and this card take, and what a function needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_standin::{Kernel, Module};

use crate::cards::{REGISTERS, SHARED_DEFAULT, newest_ptx};
use crate::report::Check;
use crate::status::Status;

use super::{Driver, Kind};

/// A module on a card.
pub(super) struct Loaded {
    pub(super) device: usize,
    module: Module,
    /// Handles of functions that were asked for.
    functions: BTreeMap<String, u64>,
    /// The call that loaded it.
    pub(super) call: u64,
}

/// A function of a module.
pub(super) struct Function {
    pub(super) device: usize,
    module: u64,
    pub(super) kernel: Arc<Kernel>,
    /// Dynamic shared memory that it opted in to, in bytes.
    pub(super) dynamic_shared_max: usize,
    /// Percent of shared memory that it prefers; -1 is no preference. Only remembered.
    carveout: i32,
    /// The number of the PTX target, 89 for `sm_89`.
    target: usize,
}

/// Why a module does not load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What the call returns.
    pub status: Status,
    /// What the compiler's log says.
    pub log: String,
}

impl Refused {
    /// For a reason that has nothing to do with the module.
    pub fn silent(status: Status) -> Self {
        Self { status, log: String::new() }
    }
}

/// Registers of a thread, which only `ptxas` knows: as many as let the largest block run.
const REGISTERS_ASSUMED: usize = REGISTERS / THREADS_MAX;

/// Threads of the largest block.
pub(super) const THREADS_MAX: usize = 1024;

const WARP: usize = 32;

impl Function {
    /// Threads of the largest block of this function.
    pub(super) fn threads_max(&self) -> usize {
        self.kernel.max_threads().unwrap_or(THREADS_MAX).min(THREADS_MAX)
    }
}

impl Driver {
    /// `cuModuleLoadData` of PTX text. The log of the error says why.
    pub fn load_module(&mut self, context: u64, ptx: &str) -> Result<u64, Refused> {
        let device = self.context(context).map_err(Refused::silent)?;
        // As a driver answers (580.159, on a card): an image of no known kind is no PTX with a mistake.
        if !ptx.contains(".version") {
            return Err(self.refuse(Status::InvalidImage, "no `.version`: no PTX".to_owned()));
        }
        let module = Module::load(ptx)
            .map_err(|error| self.refuse(Status::InvalidPtx, error.to_string()))?;
        let driver = self.settings.driver;
        let (version, newest) = (module.version(), newest_ptx(driver));
        if version > newest {
            let ((major, minor), (most, least)) = (version, newest);
            let log = format!(
                "PTX of version {major}.{minor} needs a newer driver: this one, {driver}, takes \
                 versions up to {most}.{least}"
            );
            return Err(self.refuse(Status::UnsupportedPtxVersion, log));
        }
        if let Err(log) = self.devices[device].card.runs(module.target()) {
            return Err(self.refuse(Status::InvalidPtx, log));
        }
        let handle = self.handle(Kind::Module);
        let call = self.calls;
        self.modules.insert(handle, Loaded { device, module, functions: BTreeMap::new(), call });
        Ok(handle)
    }

    /// An image that is no PTX. A binary for a card cannot run here.
    pub fn refuse_binary(&mut self, context: u64) -> Refused {
        if let Err(status) = self.context(context) {
            return Refused::silent(status);
        }
        let log = "the image is a binary for cards, and only PTX runs here".to_owned();
        self.refuse(Status::NoBinaryForGpu, log)
    }

    fn refuse(&mut self, status: Status, log: String) -> Refused {
        self.fault(Check::Module, log.clone());
        Refused { status, log }
    }

    /// `cuModuleUnload`.
    pub fn unload_module(&mut self, context: u64, module: u64) -> Result<(), Status> {
        let usable = self.context(context).map(|_| ());
        if self.modules.remove(&module).is_none() {
            return Err(self.bad_handle(module, "module"));
        }
        self.functions.retain(|_, function| function.module != module);
        usable
    }

    /// `cuModuleGetFunction`.
    pub fn function(&mut self, context: u64, module: u64, name: &str) -> Result<u64, Status> {
        self.context(context)?;
        let Some(loaded) = self.modules.get(&module) else {
            return Err(self.bad_handle(module, "module"));
        };
        if let Some(handle) = loaded.functions.get(name) {
            return Ok(*handle);
        }
        let Some(kernel) = loaded.module.entry(name).cloned() else {
            let names: Vec<&str> = loaded.module.entries().map(|kernel| kernel.name()).collect();
            let message = format!("the module has no `{name}`, but {}", names.join(", "));
            self.fault(Check::Module, message);
            return Err(Status::NotFound);
        };
        let digits: String = loaded.module.target().chars().filter(char::is_ascii_digit).collect();
        let function = Function {
            device: loaded.device,
            module,
            dynamic_shared_max: SHARED_DEFAULT.saturating_sub(kernel.static_shared()),
            kernel,
            carveout: -1,
            target: digits.parse().unwrap_or(0),
        };
        let handle = self.handle(Kind::Function);
        self.functions.insert(handle, function);
        if let Some(loaded) = self.modules.get_mut(&module) {
            loaded.functions.insert(name.to_owned(), handle);
        }
        Ok(handle)
    }

    pub(super) fn found(&mut self, function: u64) -> Result<&mut Function, Status> {
        if !self.functions.contains_key(&function) {
            return Err(self.bad_handle(function, "function"));
        }
        Ok(self.functions.get_mut(&function).expect("it is there"))
    }

    /// Offset and size of each parameter, as the PTX declares them.
    pub fn parameters(&mut self, function: u64) -> Result<Vec<(usize, usize)>, Status> {
        let params = self.found(function)?.kernel.params();
        Ok(params.iter().map(|param| (param.offset, param.size)).collect())
    }

    /// `cuFuncGetAttribute`, by the number in `CUfunction_attribute`.
    pub fn function_attribute(&mut self, number: i32, function: u64) -> Result<i32, Status> {
        let device = self.found(function)?.device;
        let (major, minor) = self.devices[device].card.capability;
        let function = self.found(function)?;
        let value = match number {
            0 => function.threads_max(),
            1 => function.kernel.static_shared(),
            // Constant and local bytes, caching of globals in L1, clusters.
            2 | 3 | 7 | 10..=15 => 0,
            4 => REGISTERS_ASSUMED,
            5 => function.target,
            6 => (major * 10 + minor) as usize,
            8 => function.dynamic_shared_max,
            9 => return Ok(function.carveout),
            _ => return Err(Status::InvalidValue),
        };
        Ok(value as i32)
    }

    /// `cuFuncSetAttribute`: dynamic shared memory up to what the card allows, and the carveout.
    pub fn set_function_attribute(
        &mut self,
        function: u64,
        number: i32,
        value: i32,
    ) -> Result<(), Status> {
        let device = self.found(function)?.device;
        let opt_in = self.devices[device].card.shared_opt_in;
        let function = self.found(function)?;
        let most = opt_in - function.kernel.static_shared().min(opt_in);
        match (number, usize::try_from(value)) {
            (8, Ok(bytes)) if bytes <= most => function.dynamic_shared_max = bytes,
            (8, _) => {
                let name = function.kernel.name();
                let message = format!(
                    "`{name}` opts in to {value} bytes of dynamic shared memory, at most {most} here"
                );
                self.fault(Check::SharedOptIn, message);
                return Err(Status::InvalidValue);
            }
            (9, _) if (-1..=100).contains(&value) => function.carveout = value,
            _ => return Err(Status::InvalidValue),
        }
        Ok(())
    }

    /// Blocks of a function that a multiprocessor holds.
    pub fn occupancy(
        &mut self,
        function: u64,
        threads: usize,
        dynamic_shared: usize,
    ) -> Result<usize, Status> {
        let device = self.found(function)?.device;
        let card = self.devices[device].card.clone();
        let function = self.found(function)?;
        if threads == 0 {
            return Err(Status::InvalidValue);
        }
        let shared = function.kernel.static_shared() + dynamic_shared;
        if threads > function.threads_max() || shared > card.shared_opt_in {
            return Ok(0);
        }
        let warps = threads.div_ceil(WARP);
        let by_threads = card.threads / (warps * WARP);
        let by_registers = REGISTERS / (REGISTERS_ASSUMED * warps * WARP);
        let by_shared =
            (card.shared).checked_div(shared + card.shared_reserved()).unwrap_or(card.blocks);
        Ok(by_threads.min(by_registers).min(by_shared).min(card.blocks))
    }

    /// Dynamic shared memory that a block may have while `blocks` of `threads` fit.
    pub fn shared_room(
        &mut self,
        function: u64,
        blocks: usize,
        threads: usize,
    ) -> Result<usize, Status> {
        if blocks == 0 || self.occupancy(function, threads, 0)? < blocks {
            return Err(Status::InvalidValue);
        }
        let device = self.found(function)?.device;
        let used = self.found(function)?.kernel.static_shared();
        let card = &self.devices[device].card;
        let (all, most) = (card.shared / blocks, card.shared_opt_in);
        Ok(all.saturating_sub(card.shared_reserved()).min(most).saturating_sub(used))
    }

    /// The block of most threads in flight, the larger one of two, and the blocks that fill the card
    /// with it. `shared` tells the dynamic shared memory of a block of some threads; `limit` 0 is no
    /// limit.
    pub fn best_block(
        &mut self,
        function: u64,
        shared: impl Fn(usize) -> usize,
        limit: usize,
    ) -> Result<(usize, usize), Status> {
        let most = self.found(function)?.threads_max();
        let most = if limit == 0 { most } else { most.min(limit) };
        let mut best = (0, 0, 0);
        for threads in (1..=most.div_ceil(WARP)).map(|warps| (warps * WARP).min(most)) {
            let blocks = self.occupancy(function, threads, shared(threads))?;
            best = best.max((blocks * threads, threads, blocks));
        }
        let device = self.found(function)?.device;
        let (_, threads, blocks) = best;
        if blocks == 0 {
            return Err(Status::InvalidValue);
        }
        Ok((blocks * self.devices[device].card.multiprocessors, threads))
    }
}
