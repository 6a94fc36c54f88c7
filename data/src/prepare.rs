//! From files to token shards, once per run directory.
//!
//! Held out are whole documents, chosen by the hash of their content, so that copies of a text
//! never stand on both sides. Where a source's documents are too few or too uneven for that, its
//! tail is held out instead (a copy of a text may then stand on both sides).

mod heldout;
mod sample;
pub(crate) mod tokenise;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::dataset::Dataset;
use crate::error::{DataError, io_error};
use crate::record::{HeldOut, Record, SetRecord, SourceRecord, TokenizerRecord, write_aside};
use crate::settings::{Settings, TokenizerChoice};
use crate::shards::write::ShardWriter;
use crate::shards::{Vocabulary, windows};
use crate::tokenizer::{FILE_NAME as TOKENIZER_FILE, Tokenizer, train_bpe};
use heldout::{Needs, is_chosen};
pub use sample::sample_text;
use tokenise::{Stream, for_each_chunk};

/// The field of evaluation sets in JSON Lines and Parquet.
pub const EVAL_FIELD: &str = "text";

/// What `prepare` is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Whether files of an earlier launch are still the same.
    Checking,
    /// Reading text to train the tokenizer on.
    Sampling,
    /// Training the tokenizer. After the last byte come the merges.
    TrainingTokenizer,
    Tokenising,
    /// Once more, since a source's tail is held out.
    Splitting,
}

/// How far it is: bytes of files, of the source or set that is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    pub phase: Phase,
    /// The source's or the evaluation set's name.
    pub subject: &'a str,
    pub done: u64,
    pub all: u64,
}

/// Told how far it is, now and then.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(Progress<'_>);

/// Writes the token shards of the sources into `dir`, or finds them there.
pub fn prepare(
    settings: &Settings,
    dir: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Dataset, DataError> {
    settings.check()?;
    let recorded = Record::read(dir)?;
    if let Some(recorded) = &recorded {
        recorded.compare_settings(settings, dir)?;
        let now = recorded.compare_files(settings, &mut |subject, done, all| {
            progress(Progress { phase: Phase::Checking, subject, done, all });
        })?;
        compare_tokenizer(recorded, settings, dir)?;
        if recorded.shards_are_there(dir) {
            if let Some(now) = now {
                now.write(dir)?;
            }
            return enough(recorded.dataset(true), settings);
        }
    }
    fs::create_dir_all(dir).map_err(io_error("creating", dir))?;
    let (tokenizer, json) = make_tokenizer(settings, progress)?;
    if let Some(json) = json {
        write_aside(dir, TOKENIZER_FILE, &json)?;
    }
    let mut sources = Vec::new();
    for index in 0..settings.sources.len() {
        sources.push(write_source(settings, index, &tokenizer, dir, progress)?);
    }
    let mut eval_sets = BTreeMap::new();
    for (name, files) in &settings.eval_sets {
        eval_sets.insert(name.clone(), write_eval_set(name, files, &tokenizer, dir, progress)?);
    }
    let made = TokenizerRecord {
        choice: settings.tokenizer.clone(),
        blake3: tokenizer.hash().to_hex().to_string(),
        vocabulary: tokenizer.vocabulary(),
        end_token: tokenizer.end_token(),
    };
    let record = Record::new(settings, made, sources, eval_sets);
    let dataset = enough(record.dataset(false), settings)?;
    remove_leftovers(&record, dir)?;
    record.write(dir)?;
    Ok(dataset)
}

/// Refuses a tokenizer, or an end token, other than the one that made the shards.
fn compare_tokenizer(recorded: &Record, settings: &Settings, dir: &Path) -> Result<(), DataError> {
    let path = match &settings.tokenizer {
        TokenizerChoice::Bytes => None,
        TokenizerChoice::Bpe { .. } => Some(dir.join(TOKENIZER_FILE)).filter(|path| path.exists()),
        TokenizerChoice::File(path) => Some(path.clone()),
    };
    let tokenizer = match &path {
        Some(path) => Tokenizer::read(path)?,
        None if settings.tokenizer == TokenizerChoice::Bytes => Tokenizer::bytes(),
        // It is trained again, with the same result.
        None => return Ok(()),
    };
    let was = recorded.tokenizer();
    if let (TokenizerChoice::File(path), true) =
        (&settings.tokenizer, tokenizer.hash().to_hex().as_str() != was.blake3)
    {
        return Err(DataError::Changed { path: path.clone(), what: "its content".into() });
    }
    let now = tokenizer.for_model(&settings.end_token, settings.vocab_size)?;
    if now.end_token() != was.end_token {
        let what = format!("end_token is {:?}, was {:?}", now.end_token(), was.end_token);
        return Err(DataError::Changed { path: dir.join(crate::FILE_NAME), what });
    }
    Ok(())
}

/// Refuses fewer windows than one batch and one round of the evaluation.
fn enough(dataset: Dataset, settings: &Settings) -> Result<Dataset, DataError> {
    let Settings { sequence, windows_min_train, windows_min_heldout, .. } = *settings;
    if dataset.train_windows < windows_min_train || dataset.heldout_windows < windows_min_heldout {
        let want = (windows_min_train + windows_min_heldout) * u64::from(sequence) + 2;
        let (got, files) = (dataset.tokens, dataset.files);
        return Err(DataError::TooSmall { source_name: None, got, files, want, sequence });
    }
    Ok(dataset)
}

/// The tokenizer that `prepare` would make or read for these settings; nothing is written.
pub fn tokenizer_for(
    settings: &Settings,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Tokenizer, DataError> {
    settings.check()?;
    Ok(make_tokenizer(settings, progress)?.0)
}

/// With its `tokenizer.json`, if it has one.
fn make_tokenizer(
    settings: &Settings,
    tell: Tell<'_>,
) -> Result<(Tokenizer, Option<Vec<u8>>), DataError> {
    let vocab_size = settings.vocab_size;
    let (tokenizer, json) = match &settings.tokenizer {
        TokenizerChoice::Bytes => (Tokenizer::bytes(), None),
        TokenizerChoice::File(path) => {
            let json = fs::read(path).map_err(io_error("reading", path))?;
            (Tokenizer::from_json(&json, path)?, Some(json))
        }
        TokenizerChoice::Bpe { vocab_size: tokens } if *tokens > vocab_size => {
            return Err(DataError::VocabularyTooSmall { tokens: *tokens, vocab_size });
        }
        TokenizerChoice::Bpe { vocab_size: tokens } => {
            let texts = sample::training_text(settings, tell)?;
            let json = train_bpe(&texts, *tokens, &mut |done, all| {
                tell(Progress { phase: Phase::TrainingTokenizer, subject: "bpe", done, all });
            })?;
            (Tokenizer::from_json(&json, Path::new(TOKENIZER_FILE))?, Some(json))
        }
    };
    Ok((tokenizer.for_model(&settings.end_token, vocab_size)?, json))
}

fn write_source(
    settings: &Settings,
    index: usize,
    tokenizer: &Tokenizer,
    dir: &Path,
    tell: Tell<'_>,
) -> Result<SourceRecord, DataError> {
    let source = &settings.sources[index];
    let stream = Stream {
        files: &source.files,
        field: &source.field,
        tokenizer,
        limit: settings.bytes_max_of(index),
    };
    let (mut train, mut heldout) = writers(dir, &source.name, tokenizer.vocabulary());
    let mut set = SetRecord::default();
    let mut report = |phase, done, all| {
        tell(Progress { phase, subject: &source.name, done, all });
    };
    let mut progress = |done, all| report(Phase::Tokenising, done, all);
    let done = for_each_chunk(&stream, &mut progress, &mut |chunk| {
        set.count(&chunk);
        let chosen = is_chosen(&chunk.hash, settings.heldout_fraction);
        if chosen { heldout.write(&chunk.tokens) } else { train.write(&chunk.tokens) }
    })?;
    let needs = Needs::of(settings);
    let total = train.tokens() + heldout.tokens();
    let tail = needs.tail(total, heldout.tokens()).map_err(|want| DataError::TooSmall {
        source_name: (settings.sources.len() > 1).then(|| source.name.clone()),
        got: total,
        files: done.files.len(),
        want,
        sequence: settings.sequence,
    })?;
    if let Some(tail) = tail {
        (train, heldout) = writers(dir, &source.name, tokenizer.vocabulary());
        let mut progress = |done, all| report(Phase::Splitting, done, all);
        let again = for_each_chunk(&stream, &mut progress, &mut |chunk| {
            let room = (total - tail).saturating_sub(train.tokens());
            let (first, second) =
                chunk.tokens.split_at(room.min(chunk.tokens.len() as u64) as usize);
            train.write(first)?;
            heldout.write(second)
        })?;
        let same = again.files.iter().zip(&done.files).find(|(again, before)| again != before);
        if let Some((file, _)) = same {
            return Err(DataError::ChangedWhileRead { path: file.path.clone() });
        }
    }
    set.files = done.files;
    set.shards = train.finish()?;
    Ok(SourceRecord {
        name: source.name.clone(),
        weight: source.weight,
        field: source.field.clone(),
        heldout: if tail.is_some() { HeldOut::Tail } else { HeldOut::Documents },
        cut: done.cut,
        set,
        heldout_shards: heldout.finish()?,
    })
}

fn writers<'a>(
    dir: &'a Path,
    name: &str,
    vocabulary: Vocabulary,
) -> (ShardWriter<'a>, ShardWriter<'a>) {
    let writer = |side| ShardWriter::new(dir, format!("{side}-{name}"), vocabulary);
    (writer("train"), writer("heldout"))
}

fn write_eval_set(
    name: &str,
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    dir: &Path,
    tell: Tell<'_>,
) -> Result<SetRecord, DataError> {
    let stream = Stream { files, field: EVAL_FIELD, tokenizer, limit: u64::MAX };
    let mut writer = ShardWriter::new(dir, format!("eval-{name}"), tokenizer.vocabulary());
    let mut set = SetRecord::default();
    let mut progress =
        |done, all| tell(Progress { phase: Phase::Tokenising, subject: name, done, all });
    let done = for_each_chunk(&stream, &mut progress, &mut |chunk| {
        set.count(&chunk);
        writer.write(&chunk.tokens)
    })?;
    if windows(writer.tokens(), 1) == 0 {
        let what = format!("evaluation set {name:?} has no text");
        return Err(DataError::Settings { what });
    }
    set.files = done.files;
    set.shards = writer.finish()?;
    Ok(set)
}

/// Removes shards that an earlier attempt left and the record does not name.
fn remove_leftovers(record: &Record, dir: &Path) -> Result<(), DataError> {
    for entry in fs::read_dir(dir).map_err(io_error("reading", dir))? {
        let path = entry.map_err(io_error("reading", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_ours = name.ends_with(".tokens") || name.ends_with(".tokens.partial");
        if is_ours && !record.all_shards().any(|shard| shard.name == name) {
            fs::remove_file(&path).map_err(io_error("deleting", &path))?;
        }
    }
    Ok(())
}

impl SetRecord {
    fn count(&mut self, chunk: &tokenise::Chunk) {
        self.documents += u64::from(chunk.is_first);
        self.bytes += chunk.bytes;
        self.replaced_documents += u64::from(chunk.replaced);
    }
}
