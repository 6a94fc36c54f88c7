//! What can go wrong: text that cannot be loaded, and a run that a real device would answer with an
//! error, with a wrong result, or with nothing at all.

use std::fmt;

/// PTX that this machine does not execute, with the line that stopped it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// Line in the PTX text, from 1.
    pub line: u32,
    /// The statement as it stands there.
    pub text: String,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.what)?;
        if self.text.is_empty() { Ok(()) } else { write!(f, "  [{}]", self.text) }
    }
}

impl std::error::Error for LoadError {}

/// Which check a run failed. The text of the [`Fault`] says the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// Grid, block, parameters or shared memory that the kernel or the device cannot take.
    Launch,
    /// Starts inside an allocation (or just behind it) and leaves it.
    OutOfBounds,
    /// Inside an allocation that was freed.
    UseAfterFree,
    /// In no allocation that ever was.
    WildAddress,
    /// Beyond the block's shared memory, the thread's local memory or the parameters.
    Overrun,
    /// Not a multiple of the size of the access.
    Misaligned,
    /// Two threads, one shared byte, at least one writes, and nothing orders them.
    Race,
    /// Two blocks of a grid write one global byte.
    BlockRace,
    /// Shared bytes that an asynchronous copy still writes.
    InFlight,
    /// Lanes that had to meet at a warp-wide instruction or a barrier did not.
    Divergence,
    /// Every warp that is left waits at a barrier.
    Deadlock,
    /// More instructions than the launch allows.
    Endless,
    /// An operand whose value the instruction does not take.
    Operand,
    /// `trap`.
    Trap,
}

/// Where in a grid and in the text a fault happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the kernel.
    pub kernel: String,
    /// Line in the PTX text, from 1.
    pub line: u32,
    /// The instruction.
    pub text: String,
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// Index of the warp in the block.
    pub warp: u32,
    /// Index of the thread in the block (x fastest), where one thread is to blame.
    pub thread: Option<u32>,
}

/// A run that was stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which check.
    pub kind: FaultKind,
    /// What happened, with numbers.
    pub what: String,
    /// Where; absent where the host is to blame.
    pub place: Option<Box<Place>>,
}

impl Fault {
    pub(crate) fn host(kind: FaultKind, what: String) -> Fault {
        Fault { kind, what, place: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(place) = &self.place else { return write!(f, "{}", self.what) };
        let [x, y, z] = place.block;
        write!(f, "{}: PTX line {}, block ({x}, {y}, {z}), ", place.kernel, place.line)?;
        match place.thread {
            Some(thread) => write!(f, "thread {thread} (warp {})", place.warp)?,
            None => write!(f, "warp {}", place.warp)?,
        }
        write!(f, ": {}  [{}]", self.what, place.text)
    }
}

impl std::error::Error for Fault {}

/// A fault before it is known where it happened.
#[derive(Debug)]
pub(crate) struct Trap {
    pub(crate) kind: FaultKind,
    pub(crate) what: String,
    /// The lane that is to blame, where one is.
    pub(crate) lane: Option<usize>,
}

impl Trap {
    pub(crate) fn new(kind: FaultKind, what: String) -> Trap {
        Trap { kind, what, lane: None }
    }

    pub(crate) fn at(mut self, lane: usize) -> Trap {
        self.lane = Some(lane);
        self
    }
}
