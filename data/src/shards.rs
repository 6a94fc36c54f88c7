//! Token shards as files: 64 bytes of header, then the tokens, 2 or 4 bytes each, little-endian.
//!
//! Header: magic 8, version 4, vocabulary size 4, number of tokens 8, blake3 of the tokens' bytes
//! 32, bytes per token 4, vocabulary id 4. Version 1 had only byte tokens of 2 bytes and zeros in
//! the last 8.

pub(crate) mod write;

use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::error::{DataError, io_error};
use crate::map::complete_file;
use crate::record::Record;

/// Tokens per file: 64 Mi, 128 or 256 MiB.
pub(crate) const SHARD_TOKENS_MAX: u64 = 64 << 20;

pub(crate) const HEADER_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"SHOALTOK";
const VERSION: u32 = 2;
/// Before tokenizers: bytes in 2 bytes each.
const VERSION_OF_BYTES: u32 = 1;

/// What the ids in a shard mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vocabulary {
    /// Ids are below this.
    pub size: u32,
    /// The first 4 bytes of the blake3 of the `tokenizer.json`; 0 for bytes.
    pub id: u32,
}

/// What a stream of tokens is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// The training text of a source, by its place among the sources.
    Train(usize),
    /// The held-out text of all sources, one after the other.
    Heldout,
    /// The held-out text of one source.
    HeldoutOf(usize),
    /// An evaluation set, by name.
    Eval(&'a str),
}

/// All tokens of one part, mapped into memory.
#[derive(Debug)]
pub struct TokenShards {
    /// In stream order: where each shard starts, and its file.
    shards: Vec<(u64, Mmap)>,
    n_tokens: u64,
    token_bytes: usize,
}

/// One file of tokens, as `dataset.json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shard {
    pub(crate) name: String,
    pub(crate) tokens: u64,
    /// Of the tokens' bytes.
    pub(crate) blake3: String,
}

/// The first bytes of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) vocabulary: Vocabulary,
    pub(crate) tokens: u64,
    pub(crate) hash: blake3::Hash,
}

/// Windows of `sequence` inputs and as many targets in a stream of tokens: they overlap by one.
pub(crate) fn windows(tokens: u64, sequence: u32) -> u64 {
    tokens.saturating_sub(1) / u64::from(sequence.max(1))
}

impl Vocabulary {
    /// Every byte is a token.
    pub const BYTES: Self = Self { size: 256, id: 0 };

    /// Bytes on disk of one token.
    pub(crate) fn token_bytes(self) -> usize {
        if self.size <= 1 << 16 { 2 } else { 4 }
    }

    /// The size of a shard's file.
    pub(crate) fn file_bytes(self, tokens: u64) -> u64 {
        HEADER_BYTES as u64 + tokens * self.token_bytes() as u64
    }
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.vocabulary.size.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.tokens.to_le_bytes());
        bytes[24..56].copy_from_slice(self.hash.as_bytes());
        let token_bytes = self.vocabulary.token_bytes() as u32;
        bytes[56..60].copy_from_slice(&token_bytes.to_le_bytes());
        bytes[60..].copy_from_slice(&self.vocabulary.id.to_le_bytes());
        bytes
    }

    /// Reads either version, or says what is wrong.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if bytes[..8] != MAGIC {
            return Err("it does not begin like a token shard".into());
        }
        let vocabulary = Vocabulary { size: word(12), id: word(60) };
        let token_bytes = match word(8) {
            VERSION_OF_BYTES if word(56) == 0 && vocabulary == Vocabulary::BYTES => 2,
            VERSION => word(56) as usize,
            version => return Err(format!("shard version {version}, want {VERSION} or older")),
        };
        if token_bytes != vocabulary.token_bytes() {
            let size = vocabulary.size;
            return Err(format!("{token_bytes} bytes a token for a vocabulary of {size}"));
        }
        let tokens = u64::from(word(16)) | u64::from(word(20)) << 32;
        let hash: [u8; 32] = bytes[24..56].try_into().expect("32 bytes");
        Ok(Self { vocabulary, tokens, hash: hash.into() })
    }
}

impl TokenShards {
    /// Maps the shards that `prepare` wrote into `dir` and verifies all of them.
    pub fn open(dir: &Path, part: Part<'_>) -> Result<Self, DataError> {
        let record = Record::read_there(dir)?;
        Self::of_files(dir, &record.shards(dir, part)?, record.vocabulary())
    }

    pub(crate) fn of_files(
        dir: &Path,
        files: &[Shard],
        vocabulary: Vocabulary,
    ) -> Result<Self, DataError> {
        let (mut shards, mut n_tokens) = (Vec::new(), 0);
        for shard in files {
            shards.push((n_tokens, map(&dir.join(&shard.name), shard, vocabulary)?));
            n_tokens += shard.tokens;
        }
        Ok(Self { shards, n_tokens, token_bytes: vocabulary.token_bytes() })
    }

    /// All tokens of this part.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Windows of `sequence + 1` tokens; each starts `sequence` after the one before. Documents
    /// stand one after the other and attention sees across them, as in training DeepSeek-V3
    /// (report, section 4.1).
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
            let payload = &map[HEADER_BYTES + (next - first) as usize * self.token_bytes..];
            let room = (range.end - next) as usize * self.token_bytes;
            let before = tokens.len();
            tokens.extend(ids(&payload[..room.min(payload.len())], self.token_bytes));
            next += (tokens.len() - before) as u64;
            at += 1;
        }
        tokens
    }
}

/// Ids out of little-endian bytes, 2 or 4 each. Bytes that do not fill an id are left out.
pub(crate) fn ids(payload: &[u8], token_bytes: usize) -> impl Iterator<Item = u32> {
    payload.chunks_exact(token_bytes).map(|token| match *token {
        [a, b] => u32::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
        _ => unreachable!("tokens have 2 or 4 bytes"),
    })
}

fn map(path: &Path, shard: &Shard, vocabulary: Vocabulary) -> Result<Mmap, DataError> {
    let map = complete_file(path).map_err(io_error("opening", path))?;
    let damaged = |what: String| DataError::Damaged { path: path.to_path_buf(), what };
    let want_bytes = vocabulary.file_bytes(shard.tokens);
    if map.len() as u64 != want_bytes {
        return Err(damaged(format!("{} bytes, want {want_bytes}", map.len())));
    }
    let (header, payload) = map.split_at(HEADER_BYTES);
    let hash = blake3::hash(payload);
    if hash.to_hex().as_str() != shard.blake3 {
        return Err(damaged(format!("blake3 {hash}, want {}", shard.blake3)));
    }
    let header = header.try_into().expect("cut to size");
    let want = Header { vocabulary, tokens: shard.tokens, hash };
    if Header::decode(header) != Ok(want) {
        return Err(damaged(format!("its header is not that of {} tokens", shard.tokens)));
    }
    Ok(map)
}

#[cfg(test)]
mod tests;
