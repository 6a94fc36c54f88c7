//! Instructions as they are executed: names became numbers of registers, and constants and special
//! registers became registers too, filled when a warp starts. So every operand is read alike.
//!
//! A warp has three files: 32-bit registers (8- and 16-bit ones live there, zero-extended), 64-bit
//! registers, and predicates, one bit a lane.

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

/// 32-bit arithmetic of up to three operands; with a 16-bit type see [`Op::Alu32`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alu32 {
    Move,
    Add,
    Sub,
    Mul,
    MulHighS,
    MulHighU,
    Mad,
    MadHighS,
    MadHighU,
    Mul24S,
    Mul24U,
    DivS,
    DivU,
    RemS,
    RemU,
    MinS,
    MinU,
    MaxS,
    MaxU,
    Abs,
    Neg,
    And,
    Or,
    Xor,
    Not,
    Cnot,
    Shl,
    ShrS,
    ShrU,
    FunnelLeftWrap,
    FunnelLeftClamp,
    FunnelRightWrap,
    FunnelRightClamp,
    BfeS,
    BfeU,
    Popc,
    Clz,
    Brev,
    FindS,
    FindU,
    BitMaskClamp,
    BitMaskWrap,
    Sad,
    SadU,
    Dp4aS,
    Dp4aU,
}

/// Single-precision arithmetic of up to three operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    Abs,
    Neg,
    CopySign,
    Sqrt,
    Rcp,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

/// 64-bit arithmetic of up to three operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alu64 {
    Move,
    Add,
    Sub,
    Mul,
    MulHighS,
    MulHighU,
    Mad,
    DivS,
    DivU,
    RemS,
    RemU,
    MinS,
    MinU,
    MaxS,
    MaxU,
    Abs,
    Neg,
    And,
    Or,
    Xor,
    Not,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shift {
    Left,
    RightS,
    RightU,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Number,
    Nan,
}

/// What is compared, and how an unordered pair of floats answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CompareAs {
    Signed,
    Unsigned,
    Float {
        is_true_for_nan: bool,
    },
    /// 16-bit formats, widened first.
    Half {
        format: Half,
        is_true_for_nan: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

/// The 16-bit float formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    F16,
    Bf16,
}

/// Scalar types of `cvt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scalar {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    Tf32,
    F32,
    F64,
}

/// Rounding: `i` variants round floats to whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    NearestEven,
    NearestAway,
    Zero,
    Down,
    Up,
}

/// Packed pairs: which format a pair of floats becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pack {
    F16,
    Bf16,
    E4m3,
    E5m2,
}

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
        f: Float,
        format: Half,
        is_pair: bool,
        is_relu: bool,
        d: R32,
        a: R32,
        b: R32,
        c: R32,
    },
    Lop3 {
        table: u8,
        d: R32,
        a: R32,
        b: R32,
        c: R32,
    },
    Prmt {
        d: R32,
        a: R32,
        b: R32,
        selector: R32,
    },
    Bfi {
        d: R32,
        a: R32,
        b: R32,
        start: R32,
        length: R32,
    },
    Alu64 {
        f: Alu64,
        d: R64,
        a: R64,
        b: R64,
        c: R64,
    },
    Shift64 {
        f: Shift,
        d: R64,
        a: R64,
        amount: R32,
    },
    /// Bit counts of 64-bit values.
    Count64 {
        f: Alu32,
        d: R32,
        a: R64,
    },
    /// `mul.wide`, `mad.wide` of 32-bit (or 16-bit, then to 32 bits) values.
    Wide {
        is_signed: bool,
        d: R64,
        a: R32,
        b: R32,
        c: Option<R64>,
    },
    Wide16 {
        is_signed: bool,
        d: R32,
        a: R32,
        b: R32,
        c: Option<R32>,
    },
    Compare32 {
        f: Compare,
        as_: CompareAs,
        is_16: bool,
        d: Option<P>,
        d_not: Option<P>,
        a: R32,
        b: R32,
        with: Option<(Logic, Guard)>,
    },
    Compare64 {
        f: Compare,
        as_: CompareAs,
        d: Option<P>,
        d_not: Option<P>,
        a: R64,
        b: R64,
        with: Option<(Logic, Guard)>,
    },
    Select32 {
        d: R32,
        a: R32,
        b: R32,
        by: Guard,
    },
    Select64 {
        d: R64,
        a: R64,
        b: R64,
        by: Guard,
    },
    PredicateMove {
        d: P,
        a: Guard,
    },
    PredicateConst {
        d: P,
        value: bool,
    },
    PredicateLogic {
        f: Logic,
        d: P,
        a: Guard,
        b: Guard,
    },
    /// Two 32-bit halves to 64 bits and back; 16-bit parts alike.
    Pack64 {
        d: R64,
        low: R32,
        high: R32,
    },
    Unpack64 {
        low: Option<R32>,
        high: Option<R32>,
        a: R64,
    },
    Pack32 {
        d: R32,
        parts: Box<[R32]>,
    },
    Unpack32 {
        d: Box<[Option<R32>]>,
        a: R32,
    },
    /// With `is_whole` a float is rounded to a whole number first.
    Convert {
        from: Scalar,
        to: Scalar,
        rounding: Rounding,
        is_whole: bool,
        saturate: bool,
        d: Register,
        a: Register,
    },
    /// d = high half from `high`, low half from `low`.
    PackFloats {
        to: Pack,
        is_relu: bool,
        d: R32,
        high: R32,
        low: R32,
    },
    /// A pair of e4m3 or e5m2 bytes to a pair of f16.
    UnpackF8 {
        from: Pack,
        d: R32,
        a: R32,
    },
    Load(Transfer),
    Store(Transfer),
    Atomic {
        f: Atomic,
        is_64: bool,
        space: Space,
        address: Address,
        d: Option<Register>,
        a: Register,
        b: Option<Register>,
    },
    /// Address arithmetic between a space and the generic one.
    ToGeneric {
        space: Space,
        d: Register,
        a: Register,
    },
    FromGeneric {
        space: Space,
        d: Register,
        a: Register,
    },
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
    ActiveMask {
        d: R32,
    },
    /// Only lanes that are there, no members named: the lowest active lane is elected.
    Elect {
        d: Option<R32>,
        is_leader: P,
        members: R32,
    },
    SyncWarp {
        members: R32,
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
