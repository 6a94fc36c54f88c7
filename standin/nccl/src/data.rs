//! Types of numbers, and sums of them.

/// NCCL's results that the stand-in gives, by their numbers in `nccl.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    Success = 0,
    UnhandledCudaError = 1,
    SystemError = 2,
    InternalError = 3,
    InvalidArgument = 4,
    InvalidUsage = 5,
    RemoteError = 6,
    InProgress = 7,
}

/// A result other than success, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: Code,
    pub text: String,
}

impl Fault {
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// Of numbers, by their number in `nccl.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    I8 = 0,
    U8 = 1,
    I32 = 2,
    U32 = 3,
    I64 = 4,
    U64 = 5,
    F16 = 6,
    F32 = 7,
    F64 = 8,
    Bf16 = 9,
}

impl Type {
    const ALL: [Self; 10] = [
        Self::I8,
        Self::U8,
        Self::I32,
        Self::U32,
        Self::I64,
        Self::U64,
        Self::F16,
        Self::F32,
        Self::F64,
        Self::Bf16,
    ];

    pub fn of(number: i32) -> Result<Self, Fault> {
        let found = Self::ALL.into_iter().find(|kind| *kind as i32 == number);
        found.ok_or_else(|| {
            Fault::new(Code::InvalidArgument, format!("type {number}, which the stand-in has not"))
        })
    }

    pub fn bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// `sum += x`, number by number.
    pub fn add(self, sum: &mut [u8], x: &[u8]) -> Result<(), Fault> {
        match self {
            Self::I8 | Self::U8 => {
                sum.iter_mut().zip(x).for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
            }
            Self::I32 | Self::U32 => each(sum, x, |a, b| {
                u32::from_le_bytes(a).wrapping_add(u32::from_le_bytes(b)).to_le_bytes()
            }),
            Self::I64 | Self::U64 => each(sum, x, |a, b| {
                u64::from_le_bytes(a).wrapping_add(u64::from_le_bytes(b)).to_le_bytes()
            }),
            Self::F32 => {
                each(sum, x, |a, b| (f32::from_le_bytes(a) + f32::from_le_bytes(b)).to_le_bytes());
            }
            Self::F64 => {
                each(sum, x, |a, b| (f64::from_le_bytes(a) + f64::from_le_bytes(b)).to_le_bytes());
            }
            Self::F16 | Self::Bf16 => {
                let text = format!("a sum of {self:?}, which the stand-in has not");
                return Err(Fault::new(Code::InvalidArgument, text));
            }
        }
        Ok(())
    }
}

fn each<const N: usize>(sum: &mut [u8], x: &[u8], add: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
    for (sum, x) in sum.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0) {
        *sum = add(*sum, *x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_taken_in_the_type_of_the_numbers() {
        let sum = |kind: Type, a: &[u8], b: &[u8]| {
            let mut sum = a.to_vec();
            kind.add(&mut sum, b).map(|()| sum)
        };
        assert_eq!(sum(Type::U8, &[250, 1], &[10, 1]).unwrap(), [4, 2]);
        let float = |x: f32| x.to_le_bytes();
        assert_eq!(sum(Type::F32, &float(1.5), &float(0.25)).unwrap(), float(1.75));
        assert_eq!(
            sum(Type::U64, &u64::MAX.to_le_bytes(), &2_u64.to_le_bytes()).unwrap(),
            1_u64.to_le_bytes()
        );
        assert_eq!(sum(Type::Bf16, &[0; 2], &[0; 2]).unwrap_err().code, Code::InvalidArgument);
        assert_eq!(Type::of(9).unwrap(), Type::Bf16);
        assert!(Type::of(10).is_err());
    }
}
