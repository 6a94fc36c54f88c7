//! Which instructions products run on: found at run time, or forced by the environment.

use std::sync::OnceLock;

/// The variable that forces a path, for tests and for finding faults.
const VARIABLE: &str = "SHOAL_CPU";

/// Instruction sets that products are written for, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 with pairs of BF16 numbers (`vdpbf16ps`): Zen 4, Cooper Lake, Sapphire Rapids.
    Avx512Bf16,
    Avx512,
    /// AVX2 with FMA.
    Avx2,
    Neon,
    /// Plain Rust.
    Portable,
}

impl Isa {
    pub const ALL: [Self; 5] =
        [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Neon, Self::Portable];

    /// As `SHOAL_CPU` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    /// Whether this CPU has it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        match self {
            Self::Avx512Bf16 => avx512 && is_x86_feature_detected!("avx512bf16"),
            Self::Avx512 => avx512,
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Neon => false,
            Self::Portable => true,
        }
    }

    /// Whether this CPU has it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        match self {
            Self::Avx512Bf16 | Self::Avx512 | Self::Avx2 => false,
            // Part of every 64-bit ARM.
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::Portable => true,
        }
    }

    /// Whether products multiply BF16 numbers in pairs; elsewhere they are widened to FP32 first.
    pub(crate) fn multiplies_pairs(self) -> bool {
        self == Self::Avx512Bf16
    }

    /// The one that products run on: the fastest, or the one that `SHOAL_CPU` names.
    ///
    /// # Errors
    /// When the variable names none, or one that this CPU lacks; products then run on the fastest.
    pub fn chosen() -> Result<Self, String> {
        static CHOSEN: OnceLock<Result<Isa, String>> = OnceLock::new();
        CHOSEN.get_or_init(|| Self::choose(std::env::var(VARIABLE).ok().as_deref())).clone()
    }

    /// `chosen`, or the fastest.
    pub(crate) fn current() -> Self {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| Self::chosen().unwrap_or_else(|_| Self::fastest()))
    }

    fn fastest() -> Self {
        Self::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    fn choose(forced: Option<&str>) -> Result<Self, String> {
        let Some(name) = forced else { return Ok(Self::fastest()) };
        let available: Vec<_> = Self::ALL.into_iter().filter(|isa| isa.is_available()).collect();
        available.iter().find(|isa| isa.name() == name).copied().ok_or_else(|| {
            let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
            format!("{VARIABLE}={name}: this CPU has {}; name one of them", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_forced_by_its_name_and_a_wrong_name_says_what_there_is() {
        assert_eq!(Isa::choose(Some("portable")), Ok(Isa::Portable));
        assert_eq!(Isa::choose(None), Ok(Isa::fastest()));
        let error = Isa::choose(Some("mmx")).unwrap_err();
        assert!(error.starts_with("SHOAL_CPU=mmx: this CPU has ") && error.contains("portable"));
        for isa in Isa::ALL {
            assert_eq!(Isa::choose(Some(isa.name())).is_ok(), isa.is_available());
        }
    }
}
