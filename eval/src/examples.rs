//! What the model is asked: sequences of one length, and for each token the one that should follow.

use std::path::Path;

use shoal_kernels::cross_entropy::IGNORE;
use shoal_model::Batch;
use shoal_plan::model::ModelConfig;

use crate::EvalError;
use crate::ids::{self, Table};

/// Hugging Face's mark of a label that does not count.
const IGNORED_LABEL: i64 = -100;

/// B sequences of T tokens. Every id is one of the model's, and at least one target counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examples {
    /// B.
    pub sequences: usize,
    /// T.
    pub tokens: usize,
    /// [B, T].
    inputs: Vec<u32>,
    /// [B, T]: what should follow; `IGNORE` where nothing is asked.
    targets: Vec<u32>,
}

impl Examples {
    /// Windows of `sequence` tokens and the one after, without overlap but for that one token, as a
    /// run's evaluation takes them: what is left at the end is not used. Of a shorter text there is
    /// one window.
    ///
    /// # Errors
    /// Fewer than two tokens.
    pub fn windows(text: &[u32], sequence: usize) -> Result<Self, EvalError> {
        let Some(last) = text.len().checked_sub(1).filter(|last| *last > 0) else {
            let what = format!("the text has {} tokens, want two or more", text.len());
            return Err(EvalError::Wanted(what));
        };
        let tokens = sequence.clamp(1, last);
        let sequences = last / tokens;
        let n = sequences * tokens;
        let (inputs, targets) = (text[..n].to_vec(), text[1..=n].to_vec());
        Ok(Self { sequences, tokens, inputs, targets })
    }

    /// Token ids of a file: `.json` (nested lists) or safetensors (I64 or I32), with the keys
    /// `input_ids` [B, T] and, if there are any, `labels` [B, T] and `attention_mask` [B, T].
    ///
    /// Labels are Hugging Face's: at the position of the token itself, so that the loss of position
    /// t is about label t + 1; -100 does not count. Without labels every token is one. The mask must
    /// be 1 everywhere: padding is to be marked in the labels, at the end.
    ///
    /// # Errors
    /// What is not so, where, and ids and lengths that the model does not have.
    pub fn read(path: &Path, model: &ModelConfig) -> Result<Self, EvalError> {
        let ids::File { input_ids, labels, attention_mask } = ids::read(path)?;
        let wrong = |at: String, what: String| EvalError::Input { path: path.into(), at, what };
        let Table { sequences, tokens, .. } = input_ids;
        if tokens > model.max_position_embeddings as usize {
            let what = format!(
                "sequences of {tokens} tokens, but the model has {} positions",
                model.max_position_embeddings
            );
            return Err(wrong(": input_ids".into(), what));
        }
        for (name, table) in [("labels", &labels), ("attention_mask", &attention_mask)] {
            if let Some(table) = table
                && (table.sequences, table.tokens) != (sequences, tokens)
            {
                let got = format!("[{}, {}]", table.sequences, table.tokens);
                let what = format!("{got}, want [{sequences}, {tokens}] as input_ids");
                return Err(wrong(format!(": {name}"), what));
            }
        }
        if let Some(at) = attention_mask.and_then(|mask| mask.values.iter().position(|m| *m != 1)) {
            let place = format!(": attention_mask[{}][{}]", at / tokens, at % tokens);
            let what = "want 1 everywhere: mark padding with labels of -100, at the end";
            return Err(wrong(place, what.into()));
        }
        let id = |name: &str, at: usize, value: i64| {
            u32::try_from(value).ok().filter(|id| *id < model.vocab_size).ok_or_else(|| {
                let place = format!(": {name}[{}][{}]", at / tokens, at % tokens);
                wrong(place, format!("{value} is no token of the model's {}", model.vocab_size))
            })
        };
        let inputs: Vec<u32> = (input_ids.values.iter().enumerate())
            .map(|(at, value)| id("input_ids", at, *value))
            .collect::<Result<_, _>>()?;
        let labelled = match labels {
            None => inputs.clone(),
            Some(labels) => (labels.values.iter().enumerate())
                .map(|(at, value)| match *value {
                    IGNORED_LABEL => Ok(IGNORE),
                    value => id("labels", at, value),
                })
                .collect::<Result<_, _>>()?,
        };
        // Every label moves to the position that should foretell it; the first has none.
        let mut targets = vec![IGNORE; inputs.len()];
        for (targets, labels) in targets.chunks_mut(tokens).zip(labelled.chunks(tokens)) {
            targets[..tokens - 1].copy_from_slice(&labels[1..]);
        }
        let examples = Self { sequences, tokens, inputs, targets };
        if examples.n_targets() == 0 {
            let what = "no target counts: want a label other than -100 after the first position";
            return Err(wrong(": labels".into(), what.into()));
        }
        Ok(examples)
    }

    /// Targets that count.
    pub fn n_targets(&self) -> u64 {
        self.targets().count() as u64
    }

    /// Targets that count.
    pub fn targets(&self) -> impl Iterator<Item = u32> {
        self.targets.iter().copied().filter(|target| *target != IGNORE)
    }

    /// Targets of the first multi-token-prediction module: one place further, in the same sequence.
    pub(crate) fn n_mtp_targets(&self) -> u64 {
        let later = self.targets.chunks(self.tokens).flat_map(|targets| &targets[1..]);
        later.filter(|target| **target != IGNORE).count() as u64
    }

    /// Whether every position has a target.
    pub(crate) fn is_full(&self) -> bool {
        self.targets.iter().all(|target| *target != IGNORE)
    }

    /// The same without the last position of each sequence, where none of them has a target: under a
    /// causal mask nothing that is asked hangs on it. How many targets a multi-token-prediction module
    /// of some depth has follows from the length then.
    pub(crate) fn closed(&self) -> Option<Self> {
        let mut sequences = self.targets.chunks(self.tokens);
        if self.tokens < 2 || !sequences.all(|targets| targets.last() == Some(&IGNORE)) {
            return None;
        }
        let cut = |all: &[u32]| -> Vec<u32> {
            all.chunks(self.tokens).flat_map(|row| &row[..self.tokens - 1]).copied().collect()
        };
        let (inputs, targets) = (cut(&self.inputs), cut(&self.targets));
        Some(Self { sequences: self.sequences, tokens: self.tokens - 1, inputs, targets })
    }

    /// Pieces of about `tokens` tokens, one sequence at least, each with the number of its first.
    pub(crate) fn pieces(&self, tokens: usize) -> impl Iterator<Item = (usize, Batch<'_>)> {
        let size = (tokens / self.tokens).max(1) * self.tokens;
        let pieces = self.inputs.chunks(size).zip(self.targets.chunks(size));
        pieces.enumerate().map(move |(at, (inputs, targets))| {
            let sequences = inputs.len() / self.tokens;
            (at * size / self.tokens, Batch { sequences, inputs, targets })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_as_a_run_cuts_its_own() {
        let text: Vec<u32> = (0..12).collect();
        let examples = Examples::windows(&text, 4).unwrap();
        assert_eq!((examples.sequences, examples.tokens), (2, 4));
        assert_eq!(examples.targets, [1, 2, 3, 4, 5, 6, 7, 8]);
        let short = Examples::windows(&text[..3], 4).unwrap();
        assert_eq!((short.sequences, short.tokens, short.targets), (1, 2, vec![1, 2]));
        let error = Examples::windows(&[7], 4).unwrap_err().to_string();
        assert_eq!(error, "the text has 1 tokens, want two or more");
    }

    #[test]
    fn pieces_hold_whole_sequences_and_one_at_least() {
        let text: Vec<u32> = (0..21).collect();
        let examples = Examples::windows(&text, 4).unwrap();
        let of = |tokens| -> Vec<(usize, usize)> {
            examples.pieces(tokens).map(|(first, batch)| (first, batch.sequences)).collect()
        };
        assert_eq!(of(8), [(0, 2), (2, 2), (4, 1)]);
        assert_eq!(of(1), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]);
    }

    fn read(text: &str) -> Result<Examples, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ids.json");
        std::fs::write(&path, text).unwrap();
        let model = ModelConfig { max_position_embeddings: 4, ..ModelConfig::tiny() };
        Examples::read(&path, &model)
            .map_err(|error| error.to_string().replace(&path.display().to_string(), "ids.json"))
    }

    #[test]
    fn labels_move_to_the_position_that_foretells_them() {
        let plain = read(r#"{"input_ids": [[1, 2, 3], [4, 5, 6]]}"#).unwrap();
        assert_eq!(plain.targets, [2, 3, IGNORE, 5, 6, IGNORE]);
        let labelled = read(
            r#"{"input_ids": [[1, 2, 3]], "labels": [[9, -100, 7]], "attention_mask": [[1, 1, 1]]}"#,
        );
        let labelled = labelled.unwrap();
        assert_eq!((labelled.targets.clone(), labelled.n_targets()), (vec![IGNORE, 7, IGNORE], 1));
        let closed = plain.closed().unwrap();
        assert_eq!((closed.tokens, closed.targets.clone()), (2, vec![2, 3, 5, 6]));
        assert_eq!((closed.n_mtp_targets(), closed.is_full(), closed.closed()), (2, true, None));
        assert_eq!((labelled.n_mtp_targets(), labelled.is_full()), (1, false));
        assert!(!labelled.closed().unwrap().is_full());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let check = |text: &str, want: &str| assert_eq!(read(text).unwrap_err(), want);
        check(
            r#"{"input_ids": [[1, 2], [3, 256]]}"#,
            "ids.json: input_ids[1][1]: 256 is no token of the model's 256",
        );
        check(
            r#"{"input_ids": [[1, 2]], "labels": [[1, -1]]}"#,
            "ids.json: labels[0][1]: -1 is no token of the model's 256",
        );
        check(
            r#"{"input_ids": [[1, 2, 3, 4, 5]]}"#,
            "ids.json: input_ids: sequences of 5 tokens, but the model has 4 positions",
        );
        check(
            r#"{"input_ids": [[1, 2]], "labels": [[1, 2, 3]]}"#,
            "ids.json: labels: [1, 3], want [1, 2] as input_ids",
        );
        check(
            r#"{"input_ids": [[1, 2]], "labels": [[1, -100]]}"#,
            "ids.json: labels: no target counts: want a label other than -100 after the first position",
        );
        check(
            r#"{"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 0]]}"#,
            "ids.json: attention_mask[0][2]: want 1 everywhere: mark padding with labels of -100, at \
             the end",
        );
    }
}
