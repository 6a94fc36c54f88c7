//! What the data verbs show: documents with their tokens, and figures about every source.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Serialize;
use shoal_plan::samples::Mixture;

use crate::dataset::Dataset;
use crate::error::DataError;
use crate::files::look_at;
use crate::prepare::tokenise::{Stream, for_each_chunk};
use crate::read::{Body, Reading, Tally, read};
use crate::shards::{Part, TokenShards};
use crate::tokenizer::Tokenizer;

/// A token with what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownToken {
    pub id: u32,
    /// Of text; half a character becomes U+FFFD. Of a special token, its name.
    pub text: String,
    pub is_special: bool,
}

/// What a set of documents is like.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    pub files: usize,
    pub documents: u64,
    /// Of text.
    pub bytes: u64,
    /// End tokens included.
    pub tokens: u64,
    pub bytes_per_token: f64,
    /// Documents whose content was there before.
    pub duplicates: u64,
    /// Tokens.
    pub longest: u64,
    /// Tokens.
    pub median: u64,
    /// Windows of the sequence length, before anything is held out.
    pub windows: u64,
    pub replaced_documents: u64,
}

/// Tokens with their texts.
pub fn shown(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<ShownToken> {
    let show = |id: &u32| {
        if let Some(text) = tokenizer.special_name(*id) {
            return ShownToken { id: *id, text, is_special: true };
        }
        let bytes = tokenizer.decode(&[*id]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        ShownToken { id: *id, text, is_special: false }
    };
    tokens.iter().map(show).collect()
}

/// The first `n` documents of a file, each as its first tokens, `tokens_max` at most.
pub fn documents(
    path: &Path,
    field: &str,
    tokenizer: &Tokenizer,
    n: usize,
    tokens_max: usize,
) -> Result<Vec<Vec<ShownToken>>, DataError> {
    let file = look_at(path)?;
    let reading = Reading {
        file: &file,
        field,
        vocabulary: tokenizer.vocabulary(),
        end_token: tokenizer.end_token(),
        limit: u64::MAX,
    };
    let mut found = Vec::new();
    if n == 0 {
        return Ok(found);
    }
    read(&reading, &Tally::default(), &mut |piece| {
        if piece.is_first {
            let mut tokens = match piece.body {
                Body::Text(text) => tokenizer.encode(&text)?.tokens,
                Body::Tokens(tokens) => tokens,
            };
            tokens.extend(tokenizer.end_token().filter(|_| piece.is_last));
            tokens.truncate(tokens_max);
            found.push(shown(tokenizer, &tokens));
        }
        Ok(if found.len() < n { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

/// A window of a run's shards, as training reads it: `sequence + 1` tokens.
///
/// # Errors
/// No such window, or damaged shards.
pub fn window(dir: &Path, part: Part<'_>, index: u64) -> Result<Vec<ShownToken>, DataError> {
    let (dataset, tokenizer) = (Dataset::open(dir)?, Tokenizer::open(dir)?);
    let shards = TokenShards::open(dir, part)?;
    let windows = shards.windows(dataset.sequence);
    if index >= windows {
        let what = format!("window {index}: there are {windows}, counted from 0");
        return Err(DataError::Settings { what });
    }
    Ok(shown(&tokenizer, &shards.window(index, dataset.sequence)))
}

/// What `stats` reads, and how.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    pub files: &'a [PathBuf],
    /// Where a document's text is in JSON Lines and Parquet.
    pub field: &'a str,
    pub tokenizer: &'a Tokenizer,
    /// Of a window, in tokens.
    pub sequence: u32,
    /// Bytes of text at most.
    pub bytes_max: u64,
}

/// Reads all documents of some files and counts. Keeps 16 bytes of every document, to find copies,
/// and its length.
pub fn stats(
    counted: &Counted<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Stats, DataError> {
    let Counted { files, field, tokenizer, sequence, bytes_max } = *counted;
    let stream = Stream { files, field, tokenizer, limit: bytes_max };
    let mut stats = Stats::default();
    let mut copies: BTreeMap<[u8; 16], u64> = BTreeMap::new();
    let mut lengths: Vec<u64> = Vec::new();
    let done = for_each_chunk(&stream, progress, &mut |chunk| {
        if chunk.is_first {
            let start = chunk.hash.as_bytes().first_chunk().expect("a hash has 32 bytes");
            *copies.entry(*start).or_default() += 1;
            lengths.push(0);
        }
        *lengths.last_mut().expect("a document has a first piece") += chunk.tokens.len() as u64;
        stats.bytes += chunk.bytes;
        stats.replaced_documents += u64::from(chunk.replaced);
        Ok(())
    })?;
    lengths.sort_unstable();
    stats.files = done.files.len();
    stats.documents = lengths.len() as u64;
    stats.tokens = lengths.iter().sum();
    stats.bytes_per_token = stats.bytes as f64 / stats.tokens.max(1) as f64;
    stats.duplicates = copies.values().map(|n| n - 1).sum();
    stats.longest = lengths.last().copied().unwrap_or_default();
    stats.median = lengths.get(lengths.len() / 2).copied().unwrap_or_default();
    stats.windows = crate::shards::windows(stats.tokens, sequence);
    Ok(stats)
}

/// All tokens of some files, end tokens included, as training would read them.
pub fn tokens(
    files: &[PathBuf],
    field: &str,
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<u32>, DataError> {
    let mut tokens = Vec::new();
    let stream = Stream { files, field, tokenizer, limit: u64::MAX };
    for_each_chunk(&stream, progress, &mut |chunk| {
        tokens.extend(chunk.tokens);
        Ok(())
    })?;
    Ok(tokens)
}

/// How often each source is seen in `sequences` training sequences: (weight, training windows) in,
/// epochs out. Sources without a window are seen 0 times.
pub fn epochs(sources: &[(f32, u64)], sequences: u64) -> Vec<f64> {
    // The counts depend on the weights alone.
    let filled: Vec<_> =
        sources.iter().map(|(weight, windows)| (*weight, (*windows).max(1))).collect();
    let counts = Mixture::new(0, &filled).sequences(sequences);
    let epochs = |(n, (_, windows)): (u64, &(f32, u64))| {
        if *windows == 0 { 0.0 } else { n as f64 / *windows as f64 }
    };
    counts.into_iter().zip(sources).map(epochs).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::EndToken;
    use crate::proof::{SETTINGS, documents as some_documents, prepare_files, write_files};

    #[test]
    fn documents_and_windows_are_shown_token_by_token() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a.jsonl");
        fs::write(&path, "{\"t\": \"a\u{e9}\"}\n{\"t\": \"second\"}\n").unwrap();
        let tokenizer = Tokenizer::bytes().for_model(&EndToken::Auto, 300).unwrap();
        let found = documents(&path, "t", &tokenizer, 1, 10).unwrap();
        let text = |token: &ShownToken| (token.id, token.text.clone(), token.is_special);
        let want = [
            (97, "a".into(), false),
            (0xC3, "\u{fffd}".into(), false),
            (0xA9, "\u{fffd}".into(), false),
            (256, "<|endoftext|>".into(), true),
        ];
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].iter().map(text).collect::<Vec<_>>(), want);
        assert_eq!(documents(&path, "t", &tokenizer, 9, 3).unwrap()[1].len(), 3);

        let files = write_files(&scratch, &some_documents(20, 300));
        let dir = scratch.path().join("data");
        let dataset = prepare_files(&files, &SETTINGS, &dir).unwrap();
        assert_eq!(window(&dir, Part::Train(0), 0).unwrap().len(), 17);
        let error = window(&dir, Part::Train(0), dataset.train_windows).unwrap_err().to_string();
        assert!(error.contains("counted from 0"), "{error}");
    }

    #[test]
    fn copies_lengths_and_windows_are_counted() {
        let scratch = tempfile::tempdir().unwrap();
        let contents: Vec<Vec<u8>> =
            ["one", "two!", "one", "a longer one", ""].map(|text| text.as_bytes().to_vec()).into();
        let files = write_files(&scratch, &contents);
        let tokenizer = Tokenizer::bytes().for_model(&EndToken::Auto, 300).unwrap();
        let (field, sequence, bytes_max) = ("text", 5, u64::MAX);
        let counted = Counted { files: &files, field, tokenizer: &tokenizer, sequence, bytes_max };
        let got = stats(&counted, &mut |_, _| {}).unwrap();
        let want = Stats {
            files: 5,
            documents: 4,
            bytes: 22,
            tokens: 26,
            bytes_per_token: 22.0 / 26.0,
            duplicates: 1,
            longest: 13,
            median: 5,
            windows: 5,
            replaced_documents: 0,
        };
        assert_eq!(got, want);
        let first = stats(&Counted { bytes_max: 6, ..counted }, &mut |_, _| {}).unwrap();
        assert_eq!((first.bytes, first.documents), (6, 2));
    }

    #[test]
    fn epochs_follow_from_weights_and_windows() {
        assert_eq!(epochs(&[(1.0, 256), (3.0, 768), (4.0, 0)], 2048), [1.0, 1.0, 0.0]);
        assert_eq!(epochs(&[(1.0, 100)], 250), [2.5]);
    }
}
