//! Instructions as they are executed: names became numbers of registers, and constants and special
//! registers became registers too, filled when a warp starts. So every operand is read alike.
//!
//! A warp has three files: 32-bit registers (8- and 16-bit ones live there, zero-extended), 64-bit
//! registers, and predicates, one bit a lane.

mod arithmetic;
mod exchange;

pub(crate) use arithmetic::{
    Alu32, Alu64, Bits, Choice, Compare, CompareAs, Conversion, Field, Float, Half, HalfFunction,
    Logic, Pack, Repack, Rounding, Scalar, Shift,
};
pub(crate) use exchange::{BarrierKind, Mma, Product, Reduce, Scale, Shuffle, Together, Vote};

/// Number of a register in the 32-bit, the 64-bit or the predicate file.
pub(crate) type R32 = u32;
pub(crate) type R64 = u32;
pub(crate) type P = u32;

/// A register of either data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Register {
    Narrow(R32),
    Wide(R64),
    /// `_`: the value is thrown away.
    Sink,
}

/// A predicate that may be read negated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guard {
    pub(crate) predicate: P,
    pub(crate) is_negated: bool,
}

/// One instruction.
#[derive(Debug, Clone)]
pub(crate) struct Instruction {
    pub(crate) guard: Option<Guard>,
    pub(crate) op: Op,
    pub(crate) line: u32,
    /// Index into the kernel's list of distinct opcodes.
    pub(crate) opcode: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
    Local,
    Const,
    Param,
    Generic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    Narrow(R32),
    Wide(R64),
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) base: Base,
    pub(crate) offset: i64,
}

/// How a value of a type is kept in a register wider than the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extend {
    Zero,
    Sign,
}

/// A load or a store of `registers.len()` elements of `width` bytes.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) width: u8,
    pub(crate) extend: Extend,
    pub(crate) registers: Box<[Register]>,
}

/// What an atomic does with the old value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atomic {
    Add,
    FloatAdd,
    And,
    Or,
    Xor,
    Exchange,
    CompareSwap,
    MinS,
    MinU,
    MaxS,
    MaxU,
    Increment,
    Decrement,
}

/// An atomic: the old value goes to `d`, `f` of it and the operands to memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update {
    pub(crate) f: Atomic,
    pub(crate) is_64: bool,
    pub(crate) space: Space,
    pub(crate) address: Address,
    pub(crate) d: Option<Register>,
    pub(crate) a: Register,
    pub(crate) b: Option<Register>,
}

/// What is executed.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// With `narrow`, inputs are cut to 16 bits and extended, and the result is cut to 16 bits.
    Alu32 {
        f: Alu32,
        narrow: Option<Extend>,
        d: R32,
        a: R32,
        b: R32,
        c: R32,
    },
    Float {
        f: Float,
        saturate: bool,
        d: R32,
        a: R32,
        b: R32,
        c: R32,
    },
    Double {
        f: Float,
        d: R64,
        a: R64,
        b: R64,
        c: R64,
    },
    Half {
        f: HalfFunction,
        format: Half,
        is_pair: bool,
        is_relu: bool,
        d: R32,
        a: R32,
        b: R32,
        c: R32,
    },
    Alu64 {
        f: Alu64,
        d: R64,
        a: R64,
        b: R64,
        c: R64,
    },
    Bits(Bits),
    Repack(Repack),
    Conversion(Conversion),
    Choice(Choice),
    Together(Together),
    Load(Transfer),
    Store(Transfer),
    Atomic(Update),
    CopyAsync {
        bytes: u8,
        to: Address,
        from: Address,
        source_bytes: Option<R32>,
    },
    CopyCommit,
    /// Waits until at most `pending` groups are left; `None`: for everything.
    CopyWait {
        pending: Option<u32>,
    },
    LoadMatrix {
        count: u8,
        is_transposed: bool,
        address: Address,
        d: [R32; 4],
    },
    StoreMatrix {
        count: u8,
        is_transposed: bool,
        address: Address,
        a: [R32; 4],
    },
    Mma(Box<Mma>),
    ActiveMask {
        d: R32,
    },
    Barrier {
        kind: BarrierKind,
        id: R32,
        threads: Option<R32>,
    },
    Branch {
        target: u32,
    },
    Exit,
    Trap,
    /// Fences and hints: what they order, this machine orders anyway.
    Nothing,
}
