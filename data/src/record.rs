//! `dataset.json`: what the shards were made of. Written last, so that shards with one are whole.

mod compare;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dataset::{Dataset, SetFacts, SourceFacts};
use crate::error::{DataError, io_error};
use crate::settings::TokenizerChoice;
use crate::shards::{Part, Shard, Vocabulary, windows};
use crate::tokenizer;

/// The name of the description inside the directory of the shards.
pub const FILE_NAME: &str = "dataset.json";

/// Raised whenever a reader of the old form could misread the new. 1 had one source of bytes.
const SCHEMA_VERSION: u32 = 2;

/// The content of `dataset.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    schema_version: u32,
    pub(crate) bytes_max: u64,
    pub(crate) heldout_fraction: f32,
    pub(crate) sequence: u32,
    pub(crate) tokenizer: TokenizerRecord,
    pub(crate) sources: Vec<SourceRecord>,
    pub(crate) eval_sets: BTreeMap<String, SetRecord>,
}

/// What made the tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizerRecord {
    pub(crate) choice: TokenizerChoice,
    pub(crate) blake3: String,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) end_token: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceRecord {
    pub(crate) name: String,
    pub(crate) weight: f32,
    pub(crate) field: String,
    pub(crate) heldout: HeldOut,
    /// Whether the limit ended it: files after the last one here were not looked at.
    pub(crate) cut: bool,
    pub(crate) set: SetRecord,
    pub(crate) heldout_shards: Vec<Shard>,
}

/// How the held-out part was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HeldOut {
    Documents,
    Tail,
}

/// A stream of documents. A source's shards here are its training shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetRecord {
    pub(crate) documents: u64,
    pub(crate) bytes: u64,
    pub(crate) replaced_documents: u64,
    pub(crate) files: Vec<FileRecord>,
    pub(crate) shards: Vec<Shard>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileRecord {
    pub(crate) path: PathBuf,
    /// Size on disk.
    pub(crate) bytes: u64,
    /// How far it was read.
    pub(crate) bytes_read: u64,
    /// Nanoseconds since 1970; 0 where the file system keeps no times.
    pub(crate) modified_ns: u64,
    /// Of the bytes read.
    pub(crate) blake3: String,
}

/// The part that says the version, whatever else is there.
#[derive(Deserialize)]
struct Version {
    schema_version: u64,
}

fn tokens(shards: &[Shard]) -> u64 {
    shards.iter().map(|shard| shard.tokens).sum()
}

impl Record {
    pub(crate) fn new(
        settings: &crate::Settings,
        tokenizer: TokenizerRecord,
        sources: Vec<SourceRecord>,
        eval_sets: BTreeMap<String, SetRecord>,
    ) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            bytes_max: settings.bytes_max,
            heldout_fraction: settings.heldout_fraction,
            sequence: settings.sequence,
            tokenizer,
            sources,
            eval_sets,
        }
    }

    /// `None` if there is none.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, DataError> {
        let path = dir.join(FILE_NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("reading", &path)(error)),
        };
        let damaged = |what: String| DataError::Damaged { path: path.clone(), what };
        let version: Version =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if version.schema_version != u64::from(SCHEMA_VERSION) {
            let (got, want) = (version.schema_version, SCHEMA_VERSION);
            return Err(DataError::OldVersion { path, got, want });
        }
        let record: Self =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        for Shard { name, .. } in record.all_shards() {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if name.starts_with('.') || !name.bytes().all(is_plain) {
                return Err(damaged(format!("{name:?} is no plain file name")));
            }
        }
        Ok(Some(record))
    }

    /// The record of a directory that must have one.
    pub(crate) fn read_there(dir: &Path) -> Result<Self, DataError> {
        let missing =
            || DataError::Damaged { path: dir.join(FILE_NAME), what: "it is missing".into() };
        Self::read(dir)?.ok_or_else(missing)
    }

    /// Writes aside, syncs and renames.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), DataError> {
        let text = serde_json::to_vec_pretty(self).expect("a record is plain data");
        write_aside(dir, FILE_NAME, &text)
    }

    pub(crate) fn vocabulary(&self) -> Vocabulary {
        self.tokenizer.vocabulary
    }

    pub(crate) fn tokenizer(&self) -> &TokenizerRecord {
        &self.tokenizer
    }

    pub(crate) fn all_shards(&self) -> impl Iterator<Item = &Shard> {
        let sources = self
            .sources
            .iter()
            .flat_map(|source| source.set.shards.iter().chain(&source.heldout_shards));
        sources.chain(self.eval_sets.values().flat_map(|set| &set.shards))
    }

    /// The files of one stream, in order.
    pub(crate) fn shards(&self, dir: &Path, part: Part<'_>) -> Result<Vec<Shard>, DataError> {
        let missing = |what: String| DataError::Damaged { path: dir.join(FILE_NAME), what };
        let source = |index: usize| {
            let n = self.sources.len();
            self.sources.get(index).ok_or_else(|| missing(format!("no source {index} of {n}")))
        };
        Ok(match part {
            Part::Train(index) => source(index)?.set.shards.clone(),
            Part::HeldoutOf(index) => source(index)?.heldout_shards.clone(),
            Part::Heldout => {
                self.sources.iter().flat_map(|source| source.heldout_shards.clone()).collect()
            }
            Part::Eval(name) => {
                let set = self.eval_sets.get(name);
                set.ok_or_else(|| missing(format!("no evaluation set {name:?}")))?.shards.clone()
            }
        })
    }

    /// Whether all files are there in the right size. Their content is checked when opened.
    pub(crate) fn shards_are_there(&self, dir: &Path) -> bool {
        let size = |name: &str| fs::metadata(dir.join(name)).map_or(0, |file| file.len());
        let file_bytes = |shard: &Shard| self.vocabulary().file_bytes(shard.tokens);
        let is_there = |shard: &Shard| size(&shard.name) == file_bytes(shard);
        let has_tokenizer = match self.tokenizer.choice {
            TokenizerChoice::Bytes => true,
            TokenizerChoice::Bpe { .. } | TokenizerChoice::File(_) => {
                let json = fs::read(dir.join(tokenizer::FILE_NAME)).unwrap_or_default();
                blake3::hash(&json).to_hex().as_str() == self.tokenizer.blake3
            }
        };
        has_tokenizer && self.all_shards().all(is_there)
    }

    /// What there is.
    pub(crate) fn dataset(&self, reused: bool) -> Dataset {
        let sequence = self.sequence;
        let source = |source: &SourceRecord| {
            let train_tokens = tokens(&source.set.shards);
            let heldout_tokens = tokens(&source.heldout_shards);
            let facts = source.set.facts(sequence);
            SourceFacts {
                name: source.name.clone(),
                weight: source.weight,
                set: SetFacts { tokens: train_tokens + heldout_tokens, ..facts },
                train_tokens,
                heldout_tokens,
                train_windows: windows(train_tokens, sequence),
                heldout_is_tail: source.heldout == HeldOut::Tail,
                cut: source.cut,
            }
        };
        let sources: Vec<SourceFacts> = self.sources.iter().map(source).collect();
        let sum = |of: fn(&SourceFacts) -> u64| sources.iter().map(of).sum::<u64>();
        let heldout_tokens = sum(|source| source.heldout_tokens);
        let eval_sets = self.eval_sets.iter();
        Dataset {
            tokens: sum(|source| source.set.tokens),
            train_tokens: sum(|source| source.train_tokens),
            heldout_tokens,
            train_windows: sum(|source| source.train_windows),
            heldout_windows: windows(heldout_tokens, sequence),
            documents: sum(|source| source.set.documents),
            bytes: sum(|source| source.set.bytes),
            files: sources.iter().map(|source| source.set.files).sum(),
            sequence,
            n_tokens: self.vocabulary().size,
            end_token: self.tokenizer.end_token,
            tokenizer_blake3: self.tokenizer.blake3.clone(),
            eval_sets: eval_sets.map(|(name, set)| (name.clone(), set.facts(sequence))).collect(),
            sources,
            reused,
        }
    }
}

impl SetRecord {
    fn facts(&self, sequence: u32) -> SetFacts {
        let tokens = tokens(&self.shards);
        SetFacts {
            files: self.files.len(),
            documents: self.documents,
            bytes: self.bytes,
            tokens,
            windows: windows(tokens, sequence),
            replaced_documents: self.replaced_documents,
        }
    }
}

/// Writes a small file aside, syncs it, renames it, and syncs the directory.
pub(crate) fn write_aside(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), DataError> {
    let (path, partial) = (dir.join(name), dir.join(format!("{name}.partial")));
    let mut file = File::create(&partial).map_err(io_error("creating", &partial))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(io_error("writing", &partial))?;
    fs::rename(&partial, &path).map_err(io_error("renaming to", &path))?;
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(io_error("syncing", dir))
}
