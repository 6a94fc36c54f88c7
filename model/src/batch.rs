//! The tokens of one microbatch: inputs and targets of the main head, and what the MTP modules
//! read and predict, which follows from them. A microbatch may have no sequence at all: its cell
//! still takes part in every exchange.

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
}

/// Owned tokens of one microbatch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchTokens {
    sequences: usize,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

/// What the multi-token-prediction module of one depth reads and predicts, each
/// [sequences * tokens].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MtpTokens {
    /// Token i + depth. Where the sequence has ended: its last known token, for a target that is
    /// ignored.
    pub(crate) inputs: Vec<u32>,
    /// Token i + 1 + depth, or `IGNORE` where the sequence has ended.
    pub(crate) targets: Vec<u32>,
}

/// How a microbatch divides into sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchShape {
    pub(crate) sequences: usize,
    /// Tokens per sequence; 1 where there is no sequence.
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
    /// There may be none.
    pub fn from_windows(windows: &[&[u32]]) -> Result<Self, Error> {
        let want = windows.first().map_or(2, |window| window.len().max(2));
        let mut batch = Self { sequences: windows.len(), ..Self::default() };
        for window in windows {
            if window.len() != want {
                return Err(Error::Batch { what: "a window", got: window.len(), want });
            }
            batch.inputs.extend_from_slice(&window[..want - 1]);
            batch.targets.extend_from_slice(&window[1..]);
        }
        Ok(batch)
    }

    /// The tokens, as a stage takes them.
    pub fn batch(&self) -> Batch<'_> {
        Batch { sequences: self.sequences, inputs: &self.inputs, targets: &self.targets }
    }
}

impl Batch<'_> {
    /// Tokens the main head is asked for.
    pub fn n_targets(&self) -> u64 {
        self.targets.iter().filter(|token| **token != IGNORE).count() as u64
    }

    /// The tokens of the multi-token-prediction module of `depth`, from 1. A target that is ignored
    /// by the main head is ignored at every depth.
    pub(crate) fn mtp(&self, depth: usize, shape: BatchShape) -> MtpTokens {
        let n = self.inputs.len();
        let mut shifted = MtpTokens { inputs: Vec::with_capacity(n), targets: vec![IGNORE; n] };
        let sequences = self.inputs.chunks(shape.tokens).zip(self.targets.chunks(shape.tokens));
        for ((inputs, targets), out) in sequences.zip(shifted.targets.chunks_mut(shape.tokens)) {
            let known = depth.min(shape.tokens);
            let last = targets[shape.tokens - 1];
            let last = if last == IGNORE { inputs[shape.tokens - 1] } else { last };
            shifted.inputs.extend_from_slice(&inputs[known..]);
            shifted.inputs.extend(std::iter::repeat_n(last, known));
            out[..shape.tokens - known].copy_from_slice(&targets[known..]);
        }
        shifted
    }

    /// The shape, once every length and every token id has been looked at.
    pub(crate) fn checked(&self, vocab_size: u32) -> Result<BatchShape, Error> {
        let got = self.inputs.len();
        let tokens = got.div_ceil(self.sequences.max(1)).max(1);
        let want = self.sequences * tokens;
        if got != want {
            return Err(Error::Batch { what: "inputs", got, want });
        }
        let parts = [("inputs", self.inputs, false), ("targets", self.targets, true)];
        for (what, tokens, may_ignore) in parts {
            if tokens.len() != want {
                return Err(Error::Batch { what, got: tokens.len(), want });
            }
            let bad = |token: u32| vocab_size <= token && !(may_ignore && token == IGNORE);
            if let Some(position) = tokens.iter().position(|token| bad(*token)) {
                return Err(Error::Token { what, token: tokens[position], position, vocab_size });
            }
        }
        Ok(BatchShape { sequences: self.sequences, tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_gives_inputs_targets_and_those_of_every_depth() {
        let tokens = BatchTokens::from_windows(&[&[1, 2, 3, 4], &[5, 6, 7, 8]]).unwrap();
        let batch = tokens.batch();
        assert_eq!(batch.inputs, [1, 2, 3, 5, 6, 7]);
        assert_eq!(batch.targets, [2, 3, 4, 6, 7, 8]);
        assert_eq!(batch.n_targets(), 6);
        let shape = batch.checked(9).unwrap();
        assert_eq!(shape, BatchShape { sequences: 2, tokens: 3 });
        let check = |depth, inputs: [u32; 6], targets: [u32; 6]| {
            let want = MtpTokens { inputs: inputs.to_vec(), targets: targets.to_vec() };
            assert_eq!(batch.mtp(depth, shape), want, "depth {depth}");
        };
        check(1, [2, 3, 4, 6, 7, 8], [3, 4, IGNORE, 7, 8, IGNORE]);
        check(2, [3, 4, 4, 7, 8, 8], [4, IGNORE, IGNORE, 8, IGNORE, IGNORE]);
        check(3, [4, 4, 4, 8, 8, 8], [IGNORE; 6]);
        check(4, [4, 4, 4, 8, 8, 8], [IGNORE; 6]);
    }

    #[test]
    fn an_ignored_target_is_ignored_at_every_depth_and_never_read() {
        let targets = [2, IGNORE, 4, IGNORE];
        let batch = Batch { sequences: 1, inputs: &[1, 2, 3, 4], targets: &targets };
        let one = batch.mtp(1, batch.checked(9).unwrap());
        assert_eq!(one.inputs, [2, 3, 4, 4]);
        assert_eq!(one.targets, [IGNORE, 4, IGNORE, IGNORE]);
    }

    #[test]
    fn a_microbatch_may_have_no_sequence() {
        let tokens = BatchTokens::from_windows(&[]).unwrap();
        let shape = tokens.batch().checked(9).unwrap();
        assert_eq!((shape.sequences, shape.rows()), (0, 0));
        assert_eq!(tokens.batch().mtp(1, shape), MtpTokens { inputs: vec![], targets: vec![] });
    }

    #[test]
    fn what_does_not_fit_is_refused_with_numbers() {
        let check = |windows: &[&[u32]], want: &str| {
            let error = BatchTokens::from_windows(windows).unwrap_err();
            assert_eq!(error.to_string(), want);
        };
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
