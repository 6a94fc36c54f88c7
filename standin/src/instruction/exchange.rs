//! What lanes and warps do together.

use super::{Guard, P, R32};

/// `shfl.sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// `vote.sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// `redux.sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduce {
    Add,
    And,
    Or,
    Xor,
    MinS,
    MinU,
    MaxS,
    MaxU,
}

/// What a barrier does besides ordering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    Arrive,
    /// Result in a 32-bit register: how many threads had the predicate.
    Count {
        d: R32,
        of: Guard,
    },
    All {
        d: P,
        of: Guard,
    },
    Any {
        d: P,
        of: Guard,
    },
}

/// Formats of a tensor-core product; each fixes the shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    /// m16n8k32
    E4m3,
    /// m16n8k16
    Bf16,
    /// m16n8k16
    F16,
    /// m16n8k32, `kind::mxf8f6f4.block_scale.scale_vec::1X`, UE8M0 scales
    MxE4m3,
}

/// Registers of one scale operand: data, byte and thread selectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scale {
    pub(crate) data: R32,
    pub(crate) byte: R32,
    pub(crate) thread: R32,
}

/// A warp's D = A B + C.
#[derive(Debug, Clone)]
pub(crate) struct Mma {
    pub(crate) product: Product,
    pub(crate) d: [R32; 4],
    pub(crate) a: [R32; 4],
    pub(crate) b: [R32; 2],
    pub(crate) c: [R32; 4],
    pub(crate) scales: Option<[Scale; 2]>,
}

/// What lanes of a warp do together; `members` names the lanes that must be there.
#[derive(Debug, Clone)]
pub(crate) enum Together {
    Shuffle {
        f: Shuffle,
        d: R32,
        valid: Option<P>,
        a: R32,
        b: R32,
        clamp: R32,
        members: R32,
    },
    Vote {
        f: Vote,
        d: R32,
        d_predicate: Option<P>,
        a: Guard,
        members: R32,
    },
    Reduce {
        f: Reduce,
        d: R32,
        a: R32,
        members: R32,
    },
    /// Only lanes that are there, no members named: the lowest active lane is elected.
    Elect {
        d: Option<R32>,
        is_leader: P,
        members: R32,
    },
    Sync {
        members: R32,
    },
}
