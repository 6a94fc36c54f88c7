//! Rules of the text and its tokens.

use std::collections::BTreeSet;

use super::super::complaint::quote;
use super::{Broken, Facts, broken};
use crate::job::{TokenizerChoice, is_plain_name};
use crate::report::{HELDOUT, OF_AVERAGE};

/// Values that a byte can take.
const BYTES: u32 = 256;

/// The smallest vocabulary a byte-level BPE makes sense for: bytes, an end token, some merges.
const BPE_MIN: u32 = 264;

pub(super) fn files_are_named(facts: &Facts<'_>) -> Option<Broken> {
    if facts.job.data.patterns().all(|pattern| !pattern.trim().is_empty()) {
        return None;
    }
    broken("spec.data.files", "wanted file names or patterns, got an empty text".to_owned(), "")
}

pub(super) fn sources_are_named(facts: &Facts<'_>) -> Option<Broken> {
    const PATH: &str = "spec.data.sources";
    let mut seen = BTreeSet::new();
    for source in &facts.job.data.sources {
        let name = &source.name;
        if !is_plain_name(name) {
            let what =
                format!("wanted a name of letters, digits, `-` and `_`, got {}", quote(name));
            return broken(PATH, what, "the name also names files");
        }
        if !seen.insert(name) {
            return broken(PATH, format!("two sources are named {}", quote(name)), "");
        }
        // NaN is not above 0 either.
        if !(source.weight > 0.0 && source.weight <= 1e6) {
            let what = format!("{name}: wanted a weight above 0 to 1e6, got {}", source.weight);
            return broken(PATH, what, "leave a source out rather than weigh it 0");
        }
    }
    None
}

pub(super) fn tokenizer_fits(facts: &Facts<'_>) -> Option<Broken> {
    let vocabulary = facts.job.model.vocab_size;
    let (min, tokens) = match facts.job.data.tokenizer {
        TokenizerChoice::Bytes => (BYTES, "bytes"),
        TokenizerChoice::Bpe => (BPE_MIN, "a BPE over bytes"),
        // How many it has is known when it is read.
        TokenizerChoice::File(_) | TokenizerChoice::Weights => return None,
    };
    if vocabulary >= min {
        return None;
    }
    let what = format!("wanted {min} or more for {tokens}, got {vocabulary}");
    broken("spec.model.vocab_size", what, format!("set spec.model.vocab_size: {min}"))
}

pub(super) fn sets_are_named(facts: &Facts<'_>) -> Option<Broken> {
    const PATH: &str = "spec.evaluation.sets";
    for (name, files) in &facts.job.evaluation.sets {
        if !is_plain_name(name) || name == HELDOUT || name.ends_with(OF_AVERAGE) {
            let what =
                format!("wanted a name of letters, digits, `-` and `_`, got {}", quote(name));
            return broken(
                PATH,
                what,
                "`heldout` is the text that is kept back from training, and `-ema` marks averages",
            );
        }
        if files.is_empty() || files.iter().any(|file| file.trim().is_empty()) {
            return broken(PATH, format!("{name}: wanted at least one file or pattern"), "");
        }
    }
    None
}
