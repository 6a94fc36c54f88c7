//! The tokens of one microbatch: inputs and targets of the main head and of the MTP head.

use shoal_kernels::cross_entropy::IGNORE;

use crate::error::Error;

/// Borrowed tokens, each slice [sequences * tokens]. `IGNORE` in a target means: no target here.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    pub sequences: usize,
    /// Token i.
    pub inputs: &'a [u32],
    /// Token i + 1.
    pub targets: &'a [u32],
    /// Token i + 1, read by the multi-token-prediction module.
    pub mtp_inputs: &'a [u32],
    /// Token i + 2, or `IGNORE` at the end of a sequence.
    pub mtp_targets: &'a [u32],
}

/// Owned tokens of one microbatch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchTokens {
    sequences: usize,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    mtp_inputs: Vec<u32>,
    mtp_targets: Vec<u32>,
}

/// How a microbatch divides into sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchShape {
    pub(crate) sequences: usize,
    /// Tokens per sequence.
    pub(crate) tokens: usize,
}

impl BatchShape {
    /// T: all tokens.
    pub(crate) fn rows(self) -> usize {
        self.sequences * self.tokens
    }
}

impl BatchTokens {
    /// Cuts windows of `tokens + 1` consecutive tokens, one per sequence and all of one length.
    pub fn from_windows(windows: &[&[u32]]) -> Result<Self, Error> {
        let want = windows.first().map_or(2, |window| window.len().max(2));
        let mut batch = Self { sequences: windows.len(), ..Self::default() };
        if windows.is_empty() {
            return Err(Error::Batch { what: "the list of windows", got: 0, want: 1 });
        }
        for window in windows {
            if window.len() != want {
                return Err(Error::Batch { what: "a window", got: window.len(), want });
            }
            batch.inputs.extend_from_slice(&window[..want - 1]);
            batch.targets.extend_from_slice(&window[1..]);
            batch.mtp_inputs.extend_from_slice(&window[1..]);
            batch.mtp_targets.extend_from_slice(&window[2..]);
            batch.mtp_targets.push(IGNORE);
        }
        Ok(batch)
    }

    /// The tokens, as a stage takes them.
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            sequences: self.sequences,
            inputs: &self.inputs,
            targets: &self.targets,
            mtp_inputs: &self.mtp_inputs,
            mtp_targets: &self.mtp_targets,
        }
    }
}

impl Batch<'_> {
    /// Tokens the main head is asked for.
    pub fn n_targets(&self) -> u64 {
        self.targets.iter().filter(|token| **token != IGNORE).count() as u64
    }

    /// Tokens the multi-token-prediction head is asked for.
    pub fn n_mtp_targets(&self) -> u64 {
        self.mtp_targets.iter().filter(|token| **token != IGNORE).count() as u64
    }

    /// The shape, once every length and every token id has been looked at.
    pub(crate) fn checked(&self, vocab_size: u32) -> Result<BatchShape, Error> {
        let want = self.inputs.len();
        if self.sequences == 0 || want == 0 || !want.is_multiple_of(self.sequences) {
            let want = self.sequences.max(1) * want.div_ceil(self.sequences.max(1)).max(1);
            return Err(Error::Batch { what: "inputs", got: self.inputs.len(), want });
        }
        let parts = [
            ("inputs", self.inputs, false),
            ("targets", self.targets, true),
            ("mtp_inputs", self.mtp_inputs, false),
            ("mtp_targets", self.mtp_targets, true),
        ];
        for (what, tokens, may_ignore) in parts {
            if tokens.len() != want {
                return Err(Error::Batch { what, got: tokens.len(), want });
            }
            let bad = |token: u32| vocab_size <= token && !(may_ignore && token == IGNORE);
            if let Some(position) = tokens.iter().position(|token| bad(*token)) {
                return Err(Error::Token { what, token: tokens[position], position, vocab_size });
            }
        }
        Ok(BatchShape { sequences: self.sequences, tokens: want / self.sequences })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_gives_inputs_targets_and_one_token_more() {
        let tokens = BatchTokens::from_windows(&[&[1, 2, 3, 4], &[5, 6, 7, 8]]).unwrap();
        let batch = tokens.batch();
        assert_eq!(batch.inputs, [1, 2, 3, 5, 6, 7]);
        assert_eq!(batch.targets, [2, 3, 4, 6, 7, 8]);
        assert_eq!(batch.mtp_inputs, batch.targets);
        assert_eq!(batch.mtp_targets, [3, 4, IGNORE, 7, 8, IGNORE]);
        assert_eq!((batch.n_targets(), batch.n_mtp_targets()), (6, 4));
        assert_eq!(batch.checked(9).unwrap(), BatchShape { sequences: 2, tokens: 3 });
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let check = |windows: &[&[u32]], want: &str| {
            let error = BatchTokens::from_windows(windows).unwrap_err();
            assert_eq!(error.to_string(), want);
        };
        check(&[], "batch: the list of windows has 0 tokens, want 1");
        check(&[&[1]], "batch: a window has 1 tokens, want 2");
        check(&[&[1, 2, 3], &[1, 2]], "batch: a window has 2 tokens, want 3");
        let tokens = BatchTokens::from_windows(&[&[1, 2, 300]]).unwrap();
        let error = tokens.batch().checked(256).unwrap_err().to_string();
        assert!(error.contains("targets has token 300 at position 1"), "{error}");
        let ragged = Batch { sequences: 3, ..tokens.batch() };
        assert!(ragged.checked(256).unwrap_err().to_string().contains("want 3"));
        let none = Batch { sequences: 0, ..tokens.batch() };
        assert!(none.checked(256).is_err());
    }
}
