//! How a run stands, beside its tensors: what a checkpoint must hold so that a resumed run goes on
//! to the last bit as the run left alone, and what all cells know alike.
//!
//! Every cell keeps one and changes it by figures that all cells share, so that no message is
//! needed to agree on a rollback or an early end.

use serde::{Deserialize, Serialize};

use crate::job::Training;

/// After some step of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    /// Steps done, with those that were skipped. Learning rates and schedules follow it.
    pub step: u64,
    /// Sequences drawn so far, with those that were passed over: the data position. It never goes
    /// back in a rollback, so that the text of a skipped step is not met again.
    pub sequences: u64,
    /// Steps skipped in a row, up to this one.
    pub skips: u32,
    /// How often the run has gone back to a checkpoint because of skipped steps.
    pub rollbacks: u32,
    /// The best evaluation of `heldout`.
    pub best: Option<Best>,
    /// Evaluations of `heldout` since the best.
    pub stale: u32,
}

/// The least loss on `heldout`, and after which step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    pub step: u64,
    pub loss: f64,
}

/// What follows a step whose vote was not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterSkip {
    /// Skip it and go on.
    GoOn,
    /// Skip it, and go back to the newest checkpoint.
    GoBack,
    /// The run has failed.
    GiveUp,
}

impl Standing {
    /// A step of so many sequences was trained.
    pub fn trained(&mut self, sequences: u64) {
        self.step += 1;
        self.sequences += sequences;
        self.skips = 0;
    }

    /// What to do with the step under way, which must not be trained. Unless the answer is to give
    /// up, it counts as done, and as skipped.
    pub fn refused(&mut self, sequences: u64, training: &Training) -> AfterSkip {
        let last = self.skips + 1 >= training.skips_max;
        if training.skips_max == 0 || (last && self.rollbacks >= training.rollbacks_max) {
            return AfterSkip::GiveUp;
        }
        self.step += 1;
        self.sequences += sequences;
        self.skips += 1;
        if last { AfterSkip::GoBack } else { AfterSkip::GoOn }
    }

    /// Notes an evaluation of `heldout`. True if it is the best so far; a loss that is no number
    /// never is.
    pub fn evaluated(&mut self, loss: f64) -> bool {
        let better = loss.is_finite() && self.best.is_none_or(|best| loss < best.loss);
        if better {
            self.best = Some(Best { step: self.step, loss });
            self.stale = 0;
        } else {
            self.stale += 1;
        }
        better
    }

    /// Whether the last `patience` evaluations were no better than the best. 0: never.
    pub fn is_stale(&self, patience: u32) -> bool {
        patience > 0 && self.stale >= patience
    }

    /// Where a run goes on that stood here, skipped too many steps, and returned to a checkpoint:
    /// with the checkpoint's parameters and step, and with the data after the skipped steps.
    #[must_use]
    pub fn gone_back_to(&self, checkpoint: &Self) -> Self {
        Self { sequences: self.sequences, rollbacks: self.rollbacks + 1, skips: 0, ..*checkpoint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Job;

    fn training(skips_max: u32, rollbacks_max: u32) -> Training {
        Training { skips_max, rollbacks_max, ..Job::example().training }
    }

    #[test]
    fn the_last_skip_in_a_row_goes_back_and_the_last_rollback_is_the_last() {
        let training = training(2, 1);
        let mut standing = Standing::default();
        standing.trained(8);
        let checkpoint = standing;
        assert_eq!(standing.refused(8, &training), AfterSkip::GoOn);
        standing.trained(8);
        assert_eq!(standing.skips, 0, "a step that was trained ends the row");
        assert_eq!(standing.refused(8, &training), AfterSkip::GoOn);
        assert_eq!(standing.refused(8, &training), AfterSkip::GoBack);
        assert_eq!((standing.step, standing.sequences), (5, 40));
        let mut back = standing.gone_back_to(&checkpoint);
        assert_eq!(back, Standing { step: 1, sequences: 40, rollbacks: 1, ..Standing::default() });
        assert_eq!(back.refused(8, &training), AfterSkip::GoOn);
        let before = back;
        assert_eq!(back.refused(8, &training), AfterSkip::GiveUp);
        assert_eq!(back, before, "a step that ends the run is not done");
    }

    #[test]
    fn without_skips_the_first_refusal_ends_the_run() {
        let mut standing = Standing::default();
        assert_eq!(standing.refused(8, &training(0, 5)), AfterSkip::GiveUp);
        assert_eq!(standing.refused(8, &training(1, 0)), AfterSkip::GiveUp);
        assert_eq!(standing.refused(8, &training(1, 1)), AfterSkip::GoBack);
    }

    #[test]
    fn patience_counts_evaluations_since_the_best() {
        let mut standing = Standing::default();
        let better = [3.0, 2.0, 2.0, f64::INFINITY, f64::NAN, 1.0].map(|loss| {
            standing.step += 10;
            (standing.evaluated(loss), standing.stale)
        });
        let want = [(true, 0), (true, 0), (false, 1), (false, 2), (false, 3), (true, 0)];
        assert_eq!(better, want);
        assert_eq!(standing.best, Some(Best { step: 60, loss: 1.0 }));
        standing.evaluated(1.5);
        assert!(standing.is_stale(1) && !standing.is_stale(2) && !standing.is_stale(0));
    }
}
