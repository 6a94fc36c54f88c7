//! `dataset.json`: what the shards were made of. Written last, so that shards with one are whole.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::shards::Split;
use super::source::{Corpus, Document, HoldOut};
use super::write::Shards;
use super::{DataError, Settings, io_error, windows};

/// The name of the description inside the directory of the shards.
pub const FILE_NAME: &str = "dataset.json";

/// Raised whenever a reader of the old form could misread the new.
const SCHEMA_VERSION: u32 = 1;

/// What `prepare` made or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// All tokens, which are bytes.
    pub tokens: u64,
    pub train_tokens: u64,
    pub heldout_tokens: u64,
    /// Windows of the settings' sequence length.
    pub train_windows: u64,
    pub heldout_windows: u64,
    /// Files read.
    pub documents: usize,
    /// Whether an earlier call had made it.
    pub reused: bool,
}

/// The content of `dataset.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    schema_version: u32,
    bytes_max: u64,
    heldout_fraction: f32,
    sequence: u32,
    heldout: HeldOut,
    sources: Vec<Source>,
    train_shards: Vec<Shard>,
    heldout_shards: Vec<Shard>,
}

/// How the held-out part was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum HeldOut {
    Documents,
    Tail,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    path: PathBuf,
    bytes: u64,
    bytes_read: u64,
    modified_ns: u64,
    blake3: String,
}

/// One file of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shard {
    pub(super) name: String,
    pub(super) tokens: u64,
    /// Of the tokens' bytes.
    pub(super) blake3: String,
}

impl Record {
    pub(super) fn new(
        settings: &Settings,
        documents: &[Document],
        holdout: &HoldOut,
        shards: Shards,
    ) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            bytes_max: settings.bytes_max,
            heldout_fraction: settings.heldout_fraction,
            sequence: settings.sequence,
            heldout: match holdout {
                HoldOut::Documents(_) => HeldOut::Documents,
                HoldOut::Tail(_) => HeldOut::Tail,
            },
            sources: documents.iter().map(Source::of).collect(),
            train_shards: shards.train,
            heldout_shards: shards.heldout,
        }
    }

    /// `None` if there is none.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, DataError> {
        let path = dir.join(FILE_NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("reading", &path)(error)),
        };
        let damaged = |what: String| DataError::Damaged { path: path.clone(), what };
        let record: Self =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if record.schema_version != SCHEMA_VERSION {
            let got = record.schema_version;
            return Err(damaged(format!("schema version {got}, want {SCHEMA_VERSION}")));
        }
        let shards = record.train_shards.iter().chain(&record.heldout_shards);
        for Shard { name, .. } in shards {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if name.starts_with('.') || !name.bytes().all(is_plain) {
                return Err(damaged(format!("{name:?} is no plain file name")));
            }
        }
        Ok(Some(record))
    }

    /// Writes aside, syncs and renames.
    pub(super) fn write(&self, dir: &Path) -> Result<(), DataError> {
        let (path, partial) = (dir.join(FILE_NAME), dir.join(format!("{FILE_NAME}.partial")));
        let text = serde_json::to_vec_pretty(self).expect("a record is plain data");
        let mut file = File::create(&partial).map_err(io_error("creating", &partial))?;
        let written = file.write_all(&text).and_then(|()| file.sync_all());
        written.map_err(io_error("writing", &partial))?;
        fs::rename(&partial, &path).map_err(io_error("renaming to", &path))?;
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(io_error("syncing", dir))
    }

    pub(super) fn shards(&self, split: Split) -> &[Shard] {
        match split {
            Split::Train => &self.train_shards,
            Split::Heldout => &self.heldout_shards,
        }
    }

    /// Refuses settings other than those the shards were made with.
    pub(super) fn compare_settings(
        &self,
        settings: &Settings,
        dir: &Path,
    ) -> Result<(), DataError> {
        let what = if self.bytes_max != settings.bytes_max {
            format!("bytes_max is {}, was {}", settings.bytes_max, self.bytes_max)
        } else if self.heldout_fraction.to_bits() != settings.heldout_fraction.to_bits() {
            format!(
                "heldout_fraction is {}, was {}",
                settings.heldout_fraction, self.heldout_fraction
            )
        } else if self.sequence != settings.sequence {
            format!("sequence is {}, was {}", settings.sequence, self.sequence)
        } else {
            return Ok(());
        };
        Err(DataError::Changed { path: dir.join(FILE_NAME), what })
    }

    /// Whether paths, sizes and times are those of the sources, so that nothing need be read.
    pub(super) fn is_untouched(&self, corpus: &Corpus) -> bool {
        let is_same = |(source, file): (&Source, &Document)| {
            source.path == file.path
                && source.bytes == file.bytes
                && source.bytes_read == file.bytes_read
                && source.modified_ns == file.modified_ns
        };
        self.sources.len() == corpus.files.len()
            && self.sources.iter().zip(&corpus.files).all(is_same)
    }

    /// Refuses documents other than the sources, and names the first.
    pub(super) fn compare_contents(&self, documents: &[Document]) -> Result<(), DataError> {
        let changed =
            |path: &Path, what: String| Err(DataError::Changed { path: path.to_path_buf(), what });
        for at in 0..self.sources.len().max(documents.len()) {
            let (source, document) = match (self.sources.get(at), documents.get(at)) {
                (Some(source), Some(document)) if source.path == document.path => {
                    (source, document)
                }
                (Some(source), _) if documents.iter().all(|other| other.path != source.path) => {
                    return changed(&source.path, "it is no longer among the files".into());
                }
                (_, Some(document)) => {
                    let was = self.sources.iter().position(|source| source.path == document.path);
                    let what = was.map_or("it was not among the files".into(), |was| {
                        format!("it is file {} in order, was {}", at + 1, was + 1)
                    });
                    return changed(document.path(), what);
                }
                (_, None) => continue,
            };
            if source.bytes != document.bytes {
                let what = format!("it has {} bytes, was {}", document.bytes, source.bytes);
                return changed(document.path(), what);
            }
            if source.blake3 != document.hash.to_hex().as_str() {
                return changed(document.path(), "its content".into());
            }
        }
        Ok(())
    }

    /// The same record for sources that were written anew with the same content.
    pub(super) fn with_times_of(&self, documents: &[Document]) -> Self {
        Self { sources: documents.iter().map(Source::of).collect(), ..self.clone() }
    }

    /// Whether all shards are files of the right size. Their content is checked when opened.
    pub(super) fn shards_are_there(&self, dir: &Path) -> bool {
        let mut shards = self.train_shards.iter().chain(&self.heldout_shards);
        shards.all(|shard| {
            let metadata = fs::metadata(dir.join(&shard.name));
            metadata.is_ok_and(|metadata| metadata.len() == super::shards::file_bytes(shard.tokens))
        })
    }

    /// What there is, if it is enough for these settings.
    pub(super) fn dataset(&self, settings: &Settings, reused: bool) -> Result<Dataset, DataError> {
        let tokens = |split| self.shards(split).iter().map(|shard| shard.tokens).sum::<u64>();
        let (train_tokens, heldout_tokens) = (tokens(Split::Train), tokens(Split::Heldout));
        let Settings { sequence, windows_min_train, windows_min_heldout, .. } = *settings;
        let train_windows = windows(train_tokens, sequence);
        let heldout_windows = windows(heldout_tokens, sequence);
        if train_windows < windows_min_train || heldout_windows < windows_min_heldout {
            let want = (windows_min_train + windows_min_heldout) * u64::from(sequence) + 2;
            let (got, files) = (train_tokens + heldout_tokens, self.sources.len());
            return Err(DataError::TooSmall { got, files, want, sequence });
        }
        Ok(Dataset {
            tokens: train_tokens + heldout_tokens,
            train_tokens,
            heldout_tokens,
            train_windows,
            heldout_windows,
            documents: self.sources.len(),
            reused,
        })
    }
}

impl Source {
    fn of(document: &Document) -> Self {
        Self {
            path: document.path.clone(),
            bytes: document.bytes,
            bytes_read: document.bytes_read,
            modified_ns: document.modified_ns,
            blake3: document.hash.to_hex().to_string(),
        }
    }
}
