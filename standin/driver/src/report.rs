//! What happened in a process: faults, leaks, launches and memory. Written as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Named checks, so that a test can ask for the one it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// A kernel or copy touched what is no live memory of its card.
    IllegalAddress,
    /// A kernel's access is not aligned.
    Misaligned,
    /// A kernel failed in another way: a race, a divergent barrier, a trap, an unknown instruction.
    KernelFault,
    /// Work was queued with a pointer into memory that had been freed.
    UseAfterFree,
    /// Work that is not ordered after a stream-ordered allocation uses it.
    UsedBeforeAllocated,
    /// Memory was freed while queued work that is not ordered before the free may still touch it.
    FreedInUse,
    /// What was freed or destroyed is not live.
    DoubleFree,
    /// A handle that is not live, or not of the kind the call takes.
    BadHandle,
    /// A pinned host buffer changed between the call and the copy that it was for.
    HostBufferReused,
    /// Pinned host memory was released while a copy from or to it was queued.
    HostBufferFreedInUse,
    /// More shared memory than the function opted in to.
    SharedOptIn,
    /// A launch that cannot be: grid, block, or threads beyond the kernel's bound.
    LaunchShape,
    /// An argument that cannot be right: not there, or another card's memory.
    Argument,
    /// A module that does not load here.
    Module,
    /// A failure that the environment asked for.
    Injected,
    /// The stand-in itself failed.
    Standin,
}

/// One thing that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which check found it.
    pub check: Check,
    /// What, where, and what would be right.
    pub message: String,
    /// The number of the call, from 1, at which it was noticed.
    pub call: u64,
}

/// Something that was made and not given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    /// `memory`, `pinned memory`, `stream`, `event`, `module` or `context`.
    pub kind: String,
    /// Bytes, for memory.
    pub bytes: usize,
    /// The card.
    pub device: usize,
    /// The number of the call that made it.
    pub call: u64,
}

/// The launches of one kernel that ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launches {
    /// How many.
    pub count: u64,
    /// Sums over them of what the machine counts, by the names in `shoal_standin::Stats`, and of all
    /// warp instructions.
    pub counts: BTreeMap<String, u64>,
    /// Instructions that warps executed, by opcode.
    pub opcodes: BTreeMap<String, u64>,
}

/// One card's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// The card's name.
    pub card: String,
    /// The most bytes that were allocated at once.
    pub high_water: usize,
    /// Bytes allocated at the end.
    pub now: usize,
}

/// Everything about a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What went wrong, in order.
    pub faults: Vec<Fault>,
    /// What was not given back.
    pub leaks: Vec<Leak>,
    /// Launches by kernel.
    pub launches: BTreeMap<String, Launches>,
    /// Memory by card.
    pub memory: Vec<Use>,
    /// Calls by function.
    pub calls: BTreeMap<String, u64>,
}

impl Report {
    /// Faults of one check.
    pub fn found(&self, check: Check) -> Vec<&Fault> {
        self.faults.iter().filter(|fault| fault.check == check).collect()
    }

    /// Fails if anything went wrong that nobody asked for, or was not given back, and says what.
    #[track_caller]
    pub fn assert_clean(&self) {
        let faults: Vec<&Fault> =
            self.faults.iter().filter(|fault| fault.check != Check::Injected).collect();
        let is_clean = faults.is_empty() && self.leaks.is_empty();
        assert!(is_clean, "faults: {faults:#?}\nleaks: {:#?}", self.leaks);
    }
}
