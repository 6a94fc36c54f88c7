//! Text to train a tokenizer on: a bounded part of the training documents, from the start of every
//! file, and nothing of what will be held out.

use std::ops::ControlFlow;
use std::path::PathBuf;

use super::heldout::{Needs, is_chosen};
use super::tokenise::hash_of;
use super::{Phase, Progress, Tell};
use crate::error::DataError;
use crate::files::look_at;
use crate::read::{Body, Reading, Tally, read};
use crate::settings::{Settings, Source};
use crate::shards::Vocabulary;

/// 128 MiB of text: common words are counted well enough, and it fits into memory with its words.
const SAMPLE_BYTES_MAX: u64 = 128 << 20;

/// Text of the sources, as much of each as its weight asks for.
pub(super) fn training_text(settings: &Settings, tell: Tell<'_>) -> Result<Vec<String>, DataError> {
    let sum: f64 = settings.sources.iter().map(|source| f64::from(source.weight)).sum();
    let mut texts = Vec::new();
    for (index, source) in settings.sources.iter().enumerate() {
        let share = SAMPLE_BYTES_MAX as f64 * f64::from(source.weight) / sum;
        let bytes_max = settings.bytes_max_of(index).min(share as u64);
        texts.extend(text_of(source, settings, bytes_max, tell)?);
    }
    if texts.is_empty() {
        let what = "no text to train a tokenizer on: the sources have only ready-made tokens";
        return Err(DataError::Settings { what: what.into() });
    }
    Ok(texts)
}

/// The same share of every file of a source, from its start, without what will be held out.
fn text_of(
    source: &Source,
    settings: &Settings,
    bytes_max: u64,
    tell: Tell<'_>,
) -> Result<Vec<String>, DataError> {
    // Pieces, and whether their documents are held out.
    let mut pieces: Vec<(String, bool)> = Vec::new();
    let mut told =
        |done, all| tell(Progress { phase: Phase::Sampling, subject: &source.name, done, all });
    starts(&source.files, &source.field, bytes_max, &mut told, &mut |text, hash| {
        pieces.push((text, is_chosen(&hash, settings.heldout_fraction)));
    })?;
    Ok(without_heldout(pieces, settings))
}

/// Text of files to train a tokenizer on with `train_bpe`: at most `bytes_max` bytes, the same
/// share of every file, from its start. `progress` is told the bytes of files done and in all.
///
/// # Errors
/// Files that cannot be read, or that hold only ready-made tokens.
pub fn sample_text(
    files: &[PathBuf],
    field: &str,
    bytes_max: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<String>, DataError> {
    let mut texts = Vec::new();
    starts(files, field, bytes_max, progress, &mut |text, _| texts.push(text))?;
    if texts.iter().all(String::is_empty) {
        let what = "no text to train a tokenizer on: the files are empty or ready-made tokens";
        return Err(DataError::Settings { what: what.into() });
    }
    Ok(texts)
}

/// Hands over pieces of text with the hashes of their documents.
fn starts(
    files: &[PathBuf],
    field: &str,
    bytes_max: u64,
    progress: &mut dyn FnMut(u64, u64),
    take: &mut dyn FnMut(String, blake3::Hash),
) -> Result<(), DataError> {
    let files = files.iter().map(|path| look_at(path)).collect::<Result<Vec<_>, _>>()?;
    let all: u64 = files.iter().map(|file| file.bytes).sum();
    let mut read_bytes = 0;
    for file in &files {
        let share = bytes_max as f64 * (file.bytes as f64 / all.max(1) as f64);
        let mut left = if all <= bytes_max { bytes_max } else { share.ceil() as u64 };
        let reading = Reading {
            file,
            field,
            // Ids are not looked at.
            vocabulary: Vocabulary { size: u32::MAX, id: 0 },
            end_token: None,
            limit: left,
        };
        read(&reading, &Tally::default(), &mut |piece| {
            let hash = piece.hash.unwrap_or_else(|| hash_of(&piece.body));
            let Body::Text(mut text) = piece.body else { return Ok(ControlFlow::Break(())) };
            text.truncate(left.min(text.len() as u64) as usize);
            left -= text.len() as u64;
            take(String::from_utf8_lossy(&text).into_owned(), hash);
            Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        read_bytes += file.bytes;
        progress(read_bytes, all);
    }
    Ok(())
}

/// Leaves out the chosen documents, or the tail where a tail is held out.
fn without_heldout(pieces: Vec<(String, bool)>, settings: &Settings) -> Vec<String> {
    let bytes = |pieces: &mut dyn Iterator<Item = &(String, bool)>| -> u64 {
        pieces.map(|(text, _)| text.len() as u64).sum()
    };
    let total = bytes(&mut pieces.iter());
    let chosen = bytes(&mut pieces.iter().filter(|(_, chosen)| *chosen));
    let tail = Needs::of(settings).tail(total, chosen);
    let Ok(Some(tail)) = tail else {
        return pieces.into_iter().filter(|(_, chosen)| !chosen).map(|(text, _)| text).collect();
    };
    let mut left = (total - tail) as usize;
    let mut texts = Vec::new();
    for (mut text, _) in pieces {
        text.truncate(text.floor_char_boundary(left));
        left -= text.len();
        if !text.is_empty() {
            texts.push(text);
        }
    }
    texts
}
