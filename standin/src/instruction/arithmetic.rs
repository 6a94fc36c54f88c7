//! Arithmetic, comparisons and conversions: what only touches a warp's own registers.

use super::{Guard, P, R32, R64, Register, Space};

/// 32-bit arithmetic of up to three operands; with a 16-bit type see [`Op::Alu32`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alu32 {
    Move,
    Add,
    Sub,
    Mul,
    MulHighS,
    MulHighU,
    /// The upper half of a product of 16-bit values.
    MulHigh16,
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
    Field(Field),
}

/// Fields, counts and sums of bits, of up to three operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
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
    FindShiftS,
    FindShiftU,
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

/// Arithmetic of 16-bit floats of up to three operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HalfFunction {
    Add,
    Sub,
    Mul,
    Fma,
    Min,
    Max,
    MinNan,
    MaxNan,
    Abs,
    Neg,
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

/// Products into twice the bits, shifts of 64 bits, and single bits.
#[derive(Debug, Clone)]
pub(crate) enum Bits {
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
    Shift64 {
        f: Shift,
        d: R64,
        a: R64,
        amount: R32,
    },
    /// Bits that are set, or zeros above the highest.
    Count64 {
        is_population: bool,
        d: R32,
        a: R64,
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
    Bfi64 {
        d: R64,
        a: R64,
        b: R64,
        start: R32,
        length: R32,
    },
    Bfe64 {
        is_signed: bool,
        d: R64,
        a: R64,
        start: R32,
        length: R32,
    },
    Bfi {
        d: R32,
        a: R32,
        b: R32,
        start: R32,
        length: R32,
    },
}

/// Parts of registers, and addresses between a state space and the generic one.
#[derive(Debug, Clone)]
pub(crate) enum Repack {
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
}

/// Conversions between number formats.
#[derive(Debug, Clone)]
pub(crate) enum Conversion {
    /// With `is_whole` a float is rounded to a whole number first.
    Scalar {
        from: Scalar,
        to: Scalar,
        rounding: Rounding,
        is_whole: bool,
        saturate: bool,
        d: Register,
        a: Register,
    },
    /// d = high half from `high`, low half from `low`.
    Pack { to: Pack, is_relu: bool, d: R32, high: R32, low: R32 },
    /// A pair of e4m3 or e5m2 bytes to a pair of f16.
    Unpack { from: Pack, d: R32, a: R32 },
}

/// Comparisons, selections, and predicates.
#[derive(Debug, Clone)]
pub(crate) enum Choice {
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
    Move {
        d: P,
        a: Guard,
    },
    Constant {
        d: P,
        value: bool,
    },
    Combine {
        f: Logic,
        d: P,
        a: Guard,
        b: Guard,
    },
}
