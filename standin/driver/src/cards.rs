//! The cards that can be chosen, as the driver describes them.
//!
//! Sizes and limits per compute capability are those of the CUDA programming guide, section
//! "Compute capabilities"; clocks, multiprocessors, memory and caches those of the makers' data
//! sheets. Total memory is what a driver of such a card reports, a little less than is soldered on.

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// One model of card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// What it is called in `SHOAL_STANDIN_CARDS`.
    pub short: &'static str,
    /// What `cuDeviceGetName` says.
    pub name: &'static str,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of global memory.
    pub memory: usize,
    /// kHz of the multiprocessors.
    pub clock: usize,
    /// kHz of the memory.
    pub memory_clock: usize,
    /// Bits of the memory bus.
    pub bus: usize,
    /// Bytes of the L2 cache.
    pub l2: usize,
    /// Bytes of shared memory that a block may have after it opted in.
    pub shared_opt_in: usize,
    /// Bytes of shared memory of a multiprocessor.
    pub shared: usize,
    /// Threads that a multiprocessor holds.
    pub threads: usize,
    /// Blocks that a multiprocessor holds.
    pub blocks: usize,
    /// Error-correcting memory is on.
    pub ecc: bool,
    /// How many times slower double precision is.
    pub double_ratio: usize,
}

/// Bytes of shared memory that a block may have without opting in.
pub const SHARED_DEFAULT: usize = 48 * KIB;

/// Bytes of shared memory that the system keeps per block, from compute capability 8.0 on.
const SHARED_RESERVED: usize = KIB;

/// Registers of a multiprocessor, and of a block, from compute capability 5.0 on.
pub const REGISTERS: usize = 65536;

/// The known models. The oldest is there to be refused.
pub const CARDS: [Card; 5] = [
    Card {
        short: "2080ti",
        name: "NVIDIA GeForce RTX 2080 Ti",
        capability: (7, 5),
        multiprocessors: 68,
        memory: 11_264 * MIB,
        clock: 1_545_000,
        memory_clock: 7_000_000,
        bus: 352,
        l2: 5632 * KIB,
        shared_opt_in: 64 * KIB,
        shared: 64 * KIB,
        threads: 1024,
        blocks: 16,
        ecc: false,
        double_ratio: 32,
    },
    Card {
        short: "3090",
        name: "NVIDIA GeForce RTX 3090",
        capability: (8, 6),
        multiprocessors: 82,
        memory: 24_260 * MIB,
        clock: 1_695_000,
        memory_clock: 9_751_000,
        bus: 384,
        l2: 6 * MIB,
        shared_opt_in: 99 * KIB,
        shared: 100 * KIB,
        threads: 1536,
        blocks: 16,
        ecc: false,
        double_ratio: 32,
    },
    Card {
        short: "4090",
        name: "NVIDIA GeForce RTX 4090",
        capability: (8, 9),
        multiprocessors: 128,
        memory: 24_217 * MIB,
        clock: 2_520_000,
        memory_clock: 10_501_000,
        bus: 384,
        l2: 72 * MIB,
        shared_opt_in: 99 * KIB,
        shared: 100 * KIB,
        threads: 1536,
        blocks: 24,
        ecc: false,
        double_ratio: 64,
    },
    Card {
        short: "5090",
        name: "NVIDIA GeForce RTX 5090",
        capability: (12, 0),
        multiprocessors: 170,
        memory: 32_607 * MIB,
        clock: 2_407_000,
        memory_clock: 14_001_000,
        bus: 512,
        l2: 96 * MIB,
        shared_opt_in: 99 * KIB,
        shared: 100 * KIB,
        threads: 1536,
        blocks: 24,
        ecc: false,
        double_ratio: 64,
    },
    Card {
        short: "h100",
        name: "NVIDIA H100 80GB HBM3",
        capability: (9, 0),
        multiprocessors: 132,
        memory: 81_090 * MIB,
        clock: 1_980_000,
        memory_clock: 2_619_000,
        bus: 5120,
        l2: 50 * MIB,
        shared_opt_in: 227 * KIB,
        shared: 228 * KIB,
        threads: 2048,
        blocks: 32,
        ecc: true,
        double_ratio: 2,
    },
];

impl Card {
    /// The model of a short name.
    pub fn named(short: &str) -> Option<Self> {
        CARDS.iter().find(|card| card.short.eq_ignore_ascii_case(short)).cloned()
    }

    /// An attribute of the card at `ordinal`, by its number in `CUdevice_attribute`. Whatever this
    /// driver lacks (managed memory, mapped host memory, cooperative launches, clusters, graphs of
    /// memory) is said to be missing, whatever the real card has. `None`: this driver does not know
    /// the attribute, textures' among them.
    #[expect(clippy::match_same_arms, reason = "one line for what belongs together")]
    pub fn attribute(&self, number: i32, ordinal: usize, has_pools: bool) -> Option<usize> {
        Some(match number {
            1..=3 => 1024,          // threads of a block; its x; its y
            4 => 64,                // z of a block
            5 => i32::MAX as usize, // x of a grid
            6 | 7 => 65_535,        // y and z of a grid
            8 => SHARED_DEFAULT,
            9 => 64 * KIB,           // constant memory
            10 => 32,                // threads of a warp
            11 => i32::MAX as usize, // pitch
            12 | 82 => REGISTERS,    // of a block, of a multiprocessor
            13 => self.clock,
            14 | 30 => 512, // alignment of textures and surfaces
            15 | 31 => 1,   // copies beside kernels, kernels beside kernels
            16 => self.multiprocessors,
            17 | 18 | 35 => 0, // time limit, integrated, TCC
            19 | 91 => 0,      // kernels reach host memory
            32 => usize::from(self.ecc),
            33 => ordinal + 1, // PCI bus
            34 | 50 => 0,      // PCI device, PCI domain
            36 => self.memory_clock,
            37 => self.bus,
            38 => self.l2,
            39 => self.threads,
            40 => 2, // copy engines
            41 => 1, // one address space for all cards
            75 => self.capability.0 as usize,
            76 => self.capability.1 as usize,
            78 => 0,      // priorities of streams
            79 | 80 => 1, // L1 caches global and local memory
            81 => self.shared,
            83 | 89 => 0, // managed memory
            84 | 86 => 0, // several chips on a board, atomics to the host
            85 => ordinal,
            87 => self.double_ratio,
            88 | 100 | 101 => 0, // kernels reach pageable memory
            90 => 1,             // preemption
            92..=96 => 0,        // memory operations of streams, cooperative launches
            97 => self.shared_opt_in,
            98 => 0,
            99 => 1,                    // host memory can be registered
            102..=105 | 107..=110 => 0, // virtual memory, compression, persisting L2
            106 => self.blocks,
            111 => self.shared_reserved(),
            112..=114 | 116..=121 => 0, // sparse arrays, GPUDirect, clusters
            115 => usize::from(has_pools),
            _ => return None,
        })
    }

    /// Bytes of shared memory that the system keeps for each block.
    pub fn shared_reserved(&self) -> usize {
        if self.capability.0 >= 8 { SHARED_RESERVED } else { 0 }
    }

    /// Whether a kernel built for `target` (`sm_89`, `sm_90a`, `sm_120f`) runs on this card. A
    /// plain target runs on its capability and every later one; `a` on exactly its own; `f` on its
    /// own and later ones of the same major number. (PTX ISA, directive `.target`.)
    pub fn runs(&self, target: &str) -> Result<(), String> {
        let digits = target.strip_prefix("sm_").unwrap_or_default();
        let (digits, suffix) = match digits.strip_suffix(['a', 'f']) {
            Some(digits) => (digits, target.chars().last()),
            None => (digits, None),
        };
        let number: u32 =
            digits.parse().map_err(|_| format!("`{target}` is no target of the form sm_89"))?;
        let wanted = (number / 10, number % 10);
        let fits = match suffix {
            Some('a') => wanted == self.capability,
            Some(_) => wanted.0 == self.capability.0 && wanted <= self.capability,
            None => wanted <= self.capability,
        };
        let (major, minor) = self.capability;
        let name = self.name;
        let error = format!("{target} does not run on {name}, which is sm_{major}{minor}");
        fits.then_some(()).ok_or(error)
    }

    /// The 16 bytes that tell the card at `ordinal` from every other.
    pub fn uuid(&self, ordinal: usize) -> [u8; 16] {
        let mut uuid = *b"shoal stand-in 0";
        uuid[6..15].fill(b' ');
        uuid[6..6 + self.short.len()].copy_from_slice(self.short.as_bytes());
        uuid[15] = ordinal as u8;
        uuid
    }

    /// Where the card at `ordinal` sits: domain, bus, device and function.
    pub fn pci(ordinal: usize) -> String {
        format!("0000:{:02X}:00.0", ordinal + 1)
    }
}

/// The newest PTX that a driver takes, by the version it reports (12080 is 12.8). From "PTX ISA",
/// section "Release notes"; 12.6 brought no new PTX.
pub fn newest_ptx(driver: u32) -> (u32, u32) {
    let (major, minor) = (driver / 1000, driver % 1000 / 10);
    match (major, minor) {
        (..=10, _) => (6, 5),
        (11, minor) => (7, minor.min(8)),
        (12, minor @ ..=5) => (8, minor),
        (12, minor) => (8, (minor - 1).min(8)),
        (major, minor) => (major - 4, minor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_run_where_the_instruction_set_says() {
        let card = |short| Card::named(short).unwrap();
        for (target, runs_on) in [
            ("sm_80", vec!["3090", "4090", "h100", "5090"]),
            ("sm_86", vec!["3090", "4090", "h100", "5090"]),
            ("sm_89", vec!["4090", "h100", "5090"]),
            ("sm_90", vec!["h100", "5090"]),
            ("sm_90a", vec!["h100"]),
            ("sm_100f", vec![]),
            ("sm_120", vec!["5090"]),
            ("sm_120a", vec!["5090"]),
            ("sm_120f", vec!["5090"]),
            ("sm_121", vec![]),
        ] {
            let fit: Vec<&str> = ["3090", "4090", "h100", "5090"]
                .into_iter()
                .filter(|short| card(short).runs(target).is_ok())
                .collect();
            assert_eq!(fit, runs_on, "{target}");
        }
        assert!(card("4090").runs("compute_89").unwrap_err().contains("compute_89"));
    }

    #[test]
    fn each_driver_takes_the_ptx_of_its_toolkit() {
        for (driver, ptx) in [
            (11080, (7, 8)),
            (12000, (8, 0)),
            (12050, (8, 5)),
            (12060, (8, 5)),
            (12080, (8, 7)),
            (12090, (8, 8)),
            (13000, (9, 0)),
        ] {
            assert_eq!(newest_ptx(driver), ptx, "{driver}");
        }
    }

    #[test]
    fn attributes_are_the_models_own_and_unknown_ones_are_refused() {
        let card = Card::named("5090").unwrap();
        assert_eq!(card.attribute(75, 0, true), Some(12));
        assert_eq!(card.attribute(97, 0, true), Some(101_376));
        assert_eq!(card.attribute(115, 0, false), Some(0));
        assert_eq!(card.attribute(22, 0, true), None);
        assert_ne!(card.uuid(0), card.uuid(1));
    }
}
