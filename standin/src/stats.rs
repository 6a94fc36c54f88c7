//! What a launch did, as figures.

use std::collections::BTreeMap;

/// Figures of one launch, over all blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instructions that a warp executed for at least one lane, by opcode as it stands in the text.
    pub opcodes: BTreeMap<String, u64>,
    /// Bytes that lanes asked for from global memory.
    pub global_bytes_read: u64,
    /// Bytes that lanes wrote to global memory.
    pub global_bytes_written: u64,
    /// Distinct 32-byte sectors of each warp's reads: 32 bytes each move over the bus.
    pub global_sectors_read: u64,
    /// Distinct 32-byte sectors of each warp's writes.
    pub global_sectors_written: u64,
    /// Passes through the banks of shared memory beyond the least, of loads, stores and matrices.
    pub bank_conflicts: u64,
    /// Barriers that a block completed.
    pub barriers: u64,
    /// Atomics on floats: their order, and so their sum, is not reproducible.
    pub float_atomics: u64,
    /// Shared granules that were read before they were written (counted with race checks on).
    pub shared_reads_unwritten: u64,
}

impl Stats {
    /// All instructions, counted once a warp.
    pub fn warp_instructions(&self) -> u64 {
        self.opcodes.values().sum()
    }

    /// Instructions whose opcode starts with `prefix`, such as `mma.sync`.
    pub fn count(&self, prefix: &str) -> u64 {
        let hits = self.opcodes.iter().filter(|(opcode, _)| opcode.starts_with(prefix));
        hits.map(|(_, count)| count).sum()
    }

    /// Tensor-core instructions by kind (the whole opcode).
    pub fn mma(&self) -> BTreeMap<&str, u64> {
        let hits = self.opcodes.iter().filter(|(opcode, _)| opcode.starts_with("mma."));
        hits.map(|(opcode, count)| (opcode.as_str(), *count)).collect()
    }
}

/// The same while blocks run: opcodes by number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) opcodes: Vec<u64>,
    pub(crate) stats: Stats,
}

impl Counts {
    pub(crate) fn new(opcodes: usize) -> Counts {
        Counts { opcodes: vec![0; opcodes], stats: Stats::default() }
    }

    pub(crate) fn add(&mut self, other: &Counts) {
        for (count, other) in self.opcodes.iter_mut().zip(&other.opcodes) {
            *count += other;
        }
        let (all, one) = (&mut self.stats, &other.stats);
        all.global_bytes_read += one.global_bytes_read;
        all.global_bytes_written += one.global_bytes_written;
        all.global_sectors_read += one.global_sectors_read;
        all.global_sectors_written += one.global_sectors_written;
        all.bank_conflicts += one.bank_conflicts;
        all.barriers += one.barriers;
        all.float_atomics += one.float_atomics;
        all.shared_reads_unwritten += one.shared_reads_unwritten;
    }

    pub(crate) fn finish(mut self, names: &[String]) -> Stats {
        let named = names.iter().cloned().zip(self.opcodes).filter(|(_, count)| *count > 0);
        self.stats.opcodes = named.collect();
        self.stats
    }
}
