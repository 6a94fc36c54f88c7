//! Writes token shards: aside, hashed, synced and then renamed.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{Header, SHARD_TOKENS_MAX, Shard, Vocabulary};
use crate::error::{DataError, io_error};

const WRITE_BYTES: usize = 1 << 20;

/// The shards of one stream as they grow: `PREFIX-00000.tokens` and so on.
pub(crate) struct ShardWriter<'a> {
    dir: &'a Path,
    prefix: String,
    vocabulary: Vocabulary,
    tokens_max: u64,
    /// Of all shards.
    tokens: u64,
    finished: Vec<Shard>,
    open: Option<OpenShard>,
}

/// A shard under its partial name.
struct OpenShard {
    file: BufWriter<File>,
    path: PathBuf,
    partial: PathBuf,
    vocabulary: Vocabulary,
    tokens: u64,
    hasher: blake3::Hasher,
}

impl<'a> ShardWriter<'a> {
    pub(crate) fn new(dir: &'a Path, prefix: String, vocabulary: Vocabulary) -> Self {
        let tokens_max = SHARD_TOKENS_MAX;
        let finished = Vec::new();
        Self { dir, prefix, vocabulary, tokens_max, tokens: 0, finished, open: None }
    }

    #[cfg(test)]
    pub(crate) fn with_tokens_max(self, tokens_max: u64) -> Self {
        Self { tokens_max, ..self }
    }

    /// Tokens written so far.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(crate) fn write(&mut self, mut tokens: &[u32]) -> Result<(), DataError> {
        while !tokens.is_empty() {
            let shard = if let Some(shard) = &mut self.open {
                shard
            } else {
                let name = format!("{}-{:05}.tokens", self.prefix, self.finished.len());
                self.open.insert(OpenShard::create(self.dir, name, self.vocabulary)?)
            };
            let room = (self.tokens_max - shard.tokens).min(tokens.len() as u64) as usize;
            shard.write(&tokens[..room])?;
            self.tokens += room as u64;
            tokens = &tokens[room..];
            if shard.tokens == self.tokens_max {
                self.finish_shard()?;
            }
        }
        Ok(())
    }

    fn finish_shard(&mut self) -> Result<(), DataError> {
        if let Some(shard) = self.open.take() {
            let name = format!("{}-{:05}.tokens", self.prefix, self.finished.len());
            self.finished.push(shard.finish(name)?);
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Vec<Shard>, DataError> {
        self.finish_shard()?;
        Ok(self.finished)
    }
}

impl OpenShard {
    fn create(dir: &Path, name: String, vocabulary: Vocabulary) -> Result<Self, DataError> {
        let partial = dir.join(format!("{name}.partial"));
        let file = File::create(&partial).map_err(io_error("creating", &partial))?;
        let mut file = BufWriter::with_capacity(WRITE_BYTES, file);
        // Its place; the true one is known at the end.
        let header = Header { vocabulary, tokens: 0, hash: blake3::hash(b"") }.encode();
        file.write_all(&header).map_err(io_error("writing", &partial))?;
        let (path, hasher) = (dir.join(name), blake3::Hasher::new());
        Ok(Self { file, path, partial, vocabulary, tokens: 0, hasher })
    }

    fn write(&mut self, tokens: &[u32]) -> Result<(), DataError> {
        let token_bytes = self.vocabulary.token_bytes();
        let bytes: Vec<u8> = if token_bytes == 2 {
            tokens.iter().flat_map(|token| (*token as u16).to_le_bytes()).collect()
        } else {
            tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
        };
        self.hasher.update(&bytes);
        self.tokens += tokens.len() as u64;
        self.file.write_all(&bytes).map_err(io_error("writing", &self.partial))
    }

    fn finish(self, name: String) -> Result<Shard, DataError> {
        let Self { mut file, path, partial, vocabulary, tokens, hasher } = self;
        let hash = hasher.finalize();
        let written = file
            .seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(&Header { vocabulary, tokens, hash }.encode()))
            .and_then(|()| file.flush())
            .and_then(|()| file.get_ref().sync_all());
        written.map_err(io_error("writing", &partial))?;
        fs::rename(&partial, &path).map_err(io_error("renaming to", &path))?;
        Ok(Shard { name, tokens, blake3: hash.to_hex().to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::TokenShards;
    use super::*;

    #[test]
    fn a_stream_cut_into_many_shards_reads_as_one_in_both_widths() {
        let scratch = tempfile::tempdir().unwrap();
        for vocabulary in [Vocabulary::BYTES, Vocabulary { size: 1 << 20, id: 7 }] {
            let scale = if vocabulary.token_bytes() == 2 { 2 } else { 5000 };
            let text: Vec<u32> = (0..103).map(|at| at * scale).collect();
            for piece in [1, 7, 10, 103] {
                let writer = ShardWriter::new(scratch.path(), "train".into(), vocabulary);
                let mut writer = writer.with_tokens_max(10);
                for piece in text.chunks(piece) {
                    writer.write(piece).unwrap();
                }
                assert_eq!(writer.tokens(), 103);
                let files = writer.finish().unwrap();
                assert_eq!(files.len(), 11);
                let shards = TokenShards::of_files(scratch.path(), &files, vocabulary).unwrap();
                // Windows of 9 tokens cross every border of the shards of 10.
                assert_eq!(shards.windows(8), 12);
                for at in 0..12 {
                    assert_eq!(shards.window(at as u64, 8), text[at * 8..at * 8 + 9]);
                }
            }
        }
    }
}
