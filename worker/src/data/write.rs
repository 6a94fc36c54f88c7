//! Writes token shards. The layout is `shards`'.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::dataset::Shard;
use super::shards::{Header, SHARD_TOKENS_MAX, Split};
use super::source::{Document, HoldOut};
use super::{DataError, io_error};

const WRITE_BYTES: usize = 1 << 20;

/// All files of both sides.
pub(super) struct Shards {
    pub(super) train: Vec<Shard>,
    pub(super) heldout: Vec<Shard>,
}

/// Reads every document again and writes each to its side. `progress` is told the bytes done.
pub(super) fn write_shards(
    documents: &[Document],
    holdout: &HoldOut,
    dir: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Shards, DataError> {
    fs::create_dir_all(dir).map_err(io_error("creating", dir))?;
    let total: u64 = documents.iter().map(|document| document.bytes_read).sum();
    let mut train = Side::new(dir, Split::Train, SHARD_TOKENS_MAX);
    let mut heldout = Side::new(dir, Split::Heldout, SHARD_TOKENS_MAX);
    let mut done = 0;
    for (at, document) in documents.iter().enumerate() {
        let mut hasher = blake3::Hasher::new();
        document.for_each_piece(&mut |piece| {
            hasher.update(piece);
            let n_train = match holdout {
                HoldOut::Documents(chosen) if chosen[at] => 0,
                HoldOut::Documents(_) => piece.len(),
                HoldOut::Tail(tail) => (total - tail).saturating_sub(done) as usize,
            };
            let (for_train, for_heldout) = piece.split_at(n_train.min(piece.len()));
            train.write(for_train)?;
            heldout.write(for_heldout)?;
            done += piece.len() as u64;
            progress(done);
            Ok(())
        })?;
        if hasher.finalize() != document.hash {
            return Err(DataError::ChangedWhileRead { path: document.path.clone() });
        }
    }
    Ok(Shards { train: train.finish()?, heldout: heldout.finish()? })
}

/// The shards of one side as they grow.
struct Side<'a> {
    dir: &'a Path,
    split: Split,
    tokens_max: u64,
    finished: Vec<Shard>,
    open: Option<OpenShard>,
}

/// A shard under its partial name.
struct OpenShard {
    file: BufWriter<File>,
    path: PathBuf,
    partial: PathBuf,
    tokens: u64,
    hasher: blake3::Hasher,
}

impl<'a> Side<'a> {
    fn new(dir: &'a Path, split: Split, tokens_max: u64) -> Self {
        Self { dir, split, tokens_max, finished: Vec::new(), open: None }
    }

    fn write(&mut self, mut text: &[u8]) -> Result<(), DataError> {
        while !text.is_empty() {
            let shard = match &mut self.open {
                Some(shard) => shard,
                None => self.open.insert(OpenShard::create(
                    self.dir,
                    self.split.file_name(self.finished.len()),
                )?),
            };
            let room = (self.tokens_max - shard.tokens).min(text.len() as u64) as usize;
            shard.write(&text[..room])?;
            text = &text[room..];
            if shard.tokens == self.tokens_max {
                self.finish_shard()?;
            }
        }
        Ok(())
    }

    fn finish_shard(&mut self) -> Result<(), DataError> {
        if let Some(shard) = self.open.take() {
            let name = self.split.file_name(self.finished.len());
            self.finished.push(shard.finish(name)?);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Shard>, DataError> {
        self.finish_shard()?;
        Ok(self.finished)
    }
}

impl OpenShard {
    fn create(dir: &Path, name: String) -> Result<Self, DataError> {
        let partial = dir.join(format!("{name}.partial"));
        let file = File::create(&partial).map_err(io_error("creating", &partial))?;
        let mut file = BufWriter::with_capacity(WRITE_BYTES, file);
        // Its place; the true one is known at the end.
        let header = Header::new(0, blake3::hash(b"")).encode();
        file.write_all(&header).map_err(io_error("writing", &partial))?;
        Ok(Self { file, path: dir.join(name), partial, tokens: 0, hasher: blake3::Hasher::new() })
    }

    fn write(&mut self, text: &[u8]) -> Result<(), DataError> {
        let tokens: Vec<u8> = text.iter().flat_map(|byte| u16::from(*byte).to_le_bytes()).collect();
        self.hasher.update(&tokens);
        self.tokens += text.len() as u64;
        self.file.write_all(&tokens).map_err(io_error("writing", &self.partial))
    }

    fn finish(self, name: String) -> Result<Shard, DataError> {
        let Self { mut file, path, partial, tokens, hasher } = self;
        let hash = hasher.finalize();
        let written = file
            .seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(&Header::new(tokens, hash).encode()))
            .and_then(|()| file.flush())
            .and_then(|()| file.get_ref().sync_all());
        written.map_err(io_error("writing", &partial))?;
        fs::rename(&partial, &path).map_err(io_error("renaming to", &path))?;
        Ok(Shard { name, tokens, blake3: hash.to_hex().to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::shards::TokenShards;
    use super::*;
    use crate::checkpoint::scratch::Scratch;

    #[test]
    fn a_stream_cut_into_many_shards_reads_as_one() {
        let scratch = Scratch::new("many-shards");
        let text: Vec<u8> = (0..103u8).collect();
        for piece in [1, 7, 10, 103] {
            let mut side = Side::new(scratch.path(), Split::Train, 10);
            for piece in text.chunks(piece) {
                side.write(piece).unwrap();
            }
            let files = side.finish().unwrap();
            assert_eq!(files.len(), 11);
            let shards = TokenShards::of_files(scratch.path(), &files).unwrap();
            // Windows of 9 tokens cross every border of the shards of 10.
            assert_eq!(shards.windows(8), 12);
            for at in 0..12 {
                let want: Vec<u32> = (at as u32 * 8..at as u32 * 8 + 9).collect();
                assert_eq!(shards.window(at, 8), want);
            }
        }
    }
}
