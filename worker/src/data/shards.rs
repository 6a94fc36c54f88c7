//! Token shards as files: 64 bytes of header, then the tokens, 2 bytes each, little-endian.
//!
//! Header: magic 8, version 4, vocabulary size 4, number of tokens 8, blake3 of the tokens' bytes
//! 32, zero 8.

use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use super::dataset::{FILE_NAME, Record, Shard};
use super::{DataError, io_error, windows};
use crate::map::complete_file;

/// Tokens per file: 64 Mi, 128 MiB.
pub(super) const SHARD_TOKENS_MAX: u64 = 64 << 20;

const HEADER_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"SHOALTOK";
const VERSION: u32 = 1;
const VOCABULARY_SIZE: u32 = 256;
const TOKEN_BYTES: usize = 2;

/// What a shard is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Heldout,
}

/// All tokens of one side, mapped into memory.
#[derive(Debug)]
pub struct TokenShards {
    /// In stream order: where each shard starts, and its file.
    shards: Vec<(u64, Mmap)>,
    n_tokens: u64,
}

/// The first bytes of a shard.
pub(super) struct Header {
    tokens: u64,
    hash: blake3::Hash,
}

impl Split {
    pub(super) fn file_name(self, index: usize) -> String {
        let side = match self {
            Self::Train => "train",
            Self::Heldout => "heldout",
        };
        format!("{side}-{index:05}.tokens")
    }
}

/// The size of a shard's file.
pub(super) fn file_bytes(tokens: u64) -> u64 {
    HEADER_BYTES as u64 + tokens * TOKEN_BYTES as u64
}

impl Header {
    pub(super) fn new(tokens: u64, hash: blake3::Hash) -> Self {
        Self { tokens, hash }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&VOCABULARY_SIZE.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.tokens.to_le_bytes());
        bytes[24..56].copy_from_slice(self.hash.as_bytes());
        bytes
    }
}

impl TokenShards {
    /// Maps the shards that `prepare` wrote into `dir` and verifies all of them.
    pub fn open(dir: &Path, split: Split) -> Result<Self, DataError> {
        let record = Record::read(dir)?.ok_or_else(|| DataError::Damaged {
            path: dir.join(FILE_NAME),
            what: "it is missing".into(),
        })?;
        Self::of_files(dir, record.shards(split))
    }

    pub(super) fn of_files(dir: &Path, files: &[Shard]) -> Result<Self, DataError> {
        let (mut shards, mut n_tokens) = (Vec::new(), 0);
        for shard in files {
            shards.push((n_tokens, map(&dir.join(&shard.name), shard)?));
            n_tokens += shard.tokens;
        }
        Ok(Self { shards, n_tokens })
    }

    /// All tokens of this side.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Windows of `sequence + 1` tokens; each starts `sequence` after the one before.
    pub fn windows(&self, sequence: u32) -> u64 {
        windows(self.n_tokens, sequence)
    }

    /// Window `index` of `windows(sequence)`: `sequence + 1` tokens.
    pub fn window(&self, index: u64, sequence: u32) -> Vec<u32> {
        let first = index * u64::from(sequence);
        self.tokens(first..first + u64::from(sequence) + 1)
    }

    /// Any range of the tokens, across the borders of shards.
    pub fn tokens(&self, range: Range<u64>) -> Vec<u32> {
        let n = self.n_tokens;
        assert!(range.end <= n, "tokens {range:?} of a stream of {n}");
        let mut tokens = Vec::with_capacity((range.end - range.start) as usize);
        let mut at = self.shards.partition_point(|(first, _)| *first <= range.start);
        let mut next = range.start;
        while next < range.end {
            let (first, map) = &self.shards[at - 1];
            let payload = &map[HEADER_BYTES + (next - first) as usize * TOKEN_BYTES..];
            let payload = payload.chunks_exact(TOKEN_BYTES).take((range.end - next) as usize);
            let before = tokens.len();
            tokens.extend(payload.map(|token| u32::from(u16::from_le_bytes([token[0], token[1]]))));
            next += (tokens.len() - before) as u64;
            at += 1;
        }
        tokens
    }
}

fn map(path: &Path, shard: &Shard) -> Result<Mmap, DataError> {
    let map = complete_file(path).map_err(io_error("opening", path))?;
    let damaged = |what: String| DataError::Damaged { path: path.to_path_buf(), what };
    let want_bytes = file_bytes(shard.tokens);
    if map.len() as u64 != want_bytes {
        return Err(damaged(format!("{} bytes, want {want_bytes}", map.len())));
    }
    let (header, payload) = map.split_at(HEADER_BYTES);
    let hash = blake3::hash(payload);
    if hash.to_hex().as_str() != shard.blake3 {
        return Err(damaged(format!("blake3 {hash}, want {}", shard.blake3)));
    }
    if *header != Header::new(shard.tokens, hash).encode() {
        return Err(damaged(format!("its header is not that of {} tokens", shard.tokens)));
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::super::{Settings, prepare};
    use super::*;
    use crate::checkpoint::scratch::Scratch;

    const SETTINGS: Settings = Settings {
        bytes_max: 10_000,
        heldout_fraction: 0.1,
        sequence: 16,
        windows_min_train: 2,
        windows_min_heldout: 1,
    };

    fn prepared(scratch: &Scratch) -> PathBuf {
        let text = scratch.path().join("text");
        fs::write(&text, (0..1000u32).map(|at| (at % 251) as u8).collect::<Vec<_>>()).unwrap();
        let dir = scratch.path().join("data");
        prepare(&[text], &SETTINGS, &dir, &mut |_, _| {}).unwrap();
        dir
    }

    #[test]
    fn windows_overlap_by_one_token_and_end_with_the_stream() {
        let scratch = Scratch::new("windows");
        let shards = TokenShards::open(&prepared(&scratch), Split::Train).unwrap();
        assert_eq!((shards.n_tokens(), shards.windows(16), shards.windows(899)), (900, 56, 1));
        assert_eq!((shards.windows(900), shards.windows(1)), (0, 899));
        let (first, second) = (shards.window(0, 16), shards.window(1, 16));
        assert_eq!((first.len(), first[16], second[0]), (17, 16, 16));
        assert_eq!(shards.window(0, 899).last(), Some(&(899 % 251)));
    }

    #[test]
    fn any_damage_to_a_shard_is_named() {
        let scratch = Scratch::new("damage");
        let dir = prepared(&scratch);
        let path = dir.join("train-00000.tokens");
        let good = fs::read(&path).unwrap();
        let check = |bytes: &[u8], want: &str| {
            fs::write(&path, bytes).unwrap();
            let error = TokenShards::open(&dir, Split::Train).unwrap_err().to_string();
            assert!(
                error.contains("train-00000.tokens is damaged") && error.contains(want),
                "{error}"
            );
        };
        for at in [0, 9, 13, 17, 30, 60, HEADER_BYTES, good.len() - 1] {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            check(&bytes, if at < HEADER_BYTES { "header" } else { "blake3" });
        }
        check(&good[..good.len() - 1], "1863 bytes, want 1864");
        check(&[], "0 bytes");
        fs::remove_file(&path).unwrap();
        let error = TokenShards::open(&dir, Split::Train).unwrap_err().to_string();
        assert!(error.contains("opening") && error.contains("train-00000.tokens"), "{error}");
        fs::write(dir.join(FILE_NAME), b"{").unwrap();
        let error = TokenShards::open(&dir, Split::Heldout).unwrap_err().to_string();
        assert!(error.contains("dataset.json is damaged"), "{error}");
    }
}
