//! The learning rate of every step, and the two other numbers that change on the way: pure
//! functions of the job, so that any cell, after any restart, finds the same.

use std::f64::consts::PI;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::Training;

/// What the learning rate does after its linear warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// A cosine down to `lr * lr_final_ratio` at the last step.
    Cosine,
    /// Warm-up, stable, decay: the peak, then a line down to `lr * lr_final_ratio` over the last
    /// `lr_decay_fraction` of the steps. Hu et al. 2024, arXiv:2404.06395, section 4.
    Wsd,
    /// The shape of DeepSeek-V3's pre-training (report, section 4.2), scaled to the run.
    V3,
    /// The peak.
    Constant,
}

/// DeepSeek-V3's pre-training in billions of tokens, and where its phases end: 10T at the peak,
/// 4.3T of cosine, 333B at the cosine's end, 167B at a last rate. Report, section 4.2.
const V3_TOKENS: u64 = 14_800;
const V3_PEAK_END: u64 = 10_000;
const V3_COSINE_END: u64 = 14_300;
const V3_LOW_END: u64 = 14_633;

/// Rates as shares of the peak of 2.2e-4: 2.2e-5, then 7.3e-6. Report, section 4.2.
const V3_LOW: f64 = 0.1;
const V3_LAST: f64 = 7.3e-6 / 2.2e-4;

impl Training {
    /// The learning rate of a step (1-based): linear warm-up, then as `lr_schedule` says. A step
    /// that ends exactly at a phase's end still belongs to that phase.
    pub fn lr_at(&self, step: u64) -> f32 {
        let lr = f64::from(self.lr);
        if step <= self.warmup_steps {
            return (lr * step as f64 / self.warmup_steps as f64) as f32;
        }
        let last = lr * f64::from(self.lr_final_ratio);
        let rate = match self.lr_schedule {
            LrSchedule::Cosine => cosine(lr, last, share(step, self.warmup_steps, self.steps)),
            LrSchedule::Wsd => {
                // A trial run may be shorter than its warm-up: then the decay waits for it.
                let start = self.steps.saturating_sub(self.decay_steps()).max(self.warmup_steps);
                lr + (last - lr) * share(step, start, self.steps)
            }
            LrSchedule::V3 => self.v3_at(step),
            LrSchedule::Constant => lr,
        };
        rate as f32
    }

    /// Weight of the MTP loss at a step (1-based): `mtp_weight`, and `mtp_weight_final` after the
    /// share `mtp_weight_until` of the steps. DeepSeek-V3 report, section 4.2: 0.3 for the first 10T
    /// tokens, then 0.1.
    pub fn mtp_weight_at(&self, step: u64) -> f32 {
        let early = step <= self.phase_end(self.mtp_weight_until);
        if early { self.mtp_weight } else { self.mtp_weight_final }
    }

    /// Update speed of the router biases at a step (1-based): `bias_speed`, and 0 after the share
    /// `bias_speed_until` of the steps. DeepSeek-V3 report, section 4.2: 0.001 for the first 14.3T
    /// tokens, then 0.
    pub fn bias_speed_at(&self, step: u64) -> f32 {
        if step <= self.phase_end(self.bias_speed_until) { self.bias_speed } else { 0.0 }
    }

    /// The last step of a phase that takes a share of the steps. A step that ends exactly at the
    /// phase's end belongs to it. Shares count in millionths, in whole numbers: 0.676 of 1000 steps
    /// is 676, whatever an f32 makes of it.
    fn phase_end(&self, share: f32) -> u64 {
        const MILLION: u64 = 1_000_000;
        let millionths = (f64::from(share) * MILLION as f64).round() as u64;
        self.steps * millionths / MILLION
    }

    /// The last step at the peak, if the schedule keeps the peak for a while and then leaves it.
    /// The warm-up must be over by then.
    pub fn peak_end(&self) -> Option<u64> {
        match self.lr_schedule {
            LrSchedule::Wsd => Some(self.steps.saturating_sub(self.decay_steps())),
            LrSchedule::V3 => Some(self.steps * V3_PEAK_END / V3_TOKENS),
            LrSchedule::Cosine | LrSchedule::Constant => None,
        }
    }

    /// Steps of the decay of `wsd`: at least the last one.
    fn decay_steps(&self) -> u64 {
        let steps = self.steps as f64 * f64::from(self.lr_decay_fraction);
        (steps.round() as u64).max(1)
    }

    fn v3_at(&self, step: u64) -> f64 {
        let lr = f64::from(self.lr);
        // Where the step ends, times the run's steps: compared as whole numbers, the knees of a
        // run are exact. At most 1e9 steps, so nothing overflows.
        let at = step.min(self.steps) * V3_TOKENS;
        let end = |tokens: u64| self.steps * tokens;
        if at <= end(V3_PEAK_END) {
            lr
        } else if at <= end(V3_COSINE_END) {
            cosine(lr, lr * V3_LOW, share(at, end(V3_PEAK_END), end(V3_COSINE_END)))
        } else if at <= end(V3_LOW_END) {
            lr * V3_LOW
        } else {
            lr * V3_LAST
        }
    }
}

/// How much of the way from `start` to `end` is done: 0 to 1.
fn share(at: u64, start: u64, end: u64) -> f64 {
    let length = end.saturating_sub(start).max(1);
    (at.saturating_sub(start) as f64 / length as f64).min(1.0)
}

/// From `first` down to `last`.
fn cosine(first: f64, last: f64, done: f64) -> f64 {
    last + (first - last) * 0.5 * (1.0 + (PI * done).cos())
}

/// As in the manifest.
impl fmt::Display for LrSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cosine => "cosine",
            Self::Wsd => "wsd",
            Self::V3 => "v3",
            Self::Constant => "constant",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Job;

    const ALL: [LrSchedule; 4] =
        [LrSchedule::Cosine, LrSchedule::Wsd, LrSchedule::V3, LrSchedule::Constant];

    fn training(lr_schedule: LrSchedule, steps: u64, warmup_steps: u64) -> Training {
        let (lr, lr_final_ratio) = (2e-3, 0.1);
        Training { steps, lr, lr_schedule, lr_final_ratio, warmup_steps, ..Job::example().training }
    }

    /// f32 results of f64 arithmetic on f32 inputs: a few roundings, 2^-24 relative each.
    #[track_caller]
    fn check(training: &Training, step: u64, wanted: f64) {
        let got = f64::from(training.lr_at(step));
        assert!((got - wanted).abs() <= wanted * 1e-6, "step {step}: {got}, want {wanted}");
    }

    #[test]
    fn the_cosine_warms_up_linearly_and_ends_at_its_final_ratio() {
        let training = training(LrSchedule::Cosine, 100, 10);
        check(&training, 1, 2e-4);
        check(&training, 5, 1e-3);
        check(&training, 10, 2e-3);
        check(&training, 55, 1.1e-3);
        check(&training, 100, 2e-4);
        // Nobody trains past the end, but the rate stays where it is.
        check(&training, 150, 2e-4);
        let falls = |step: u64| training.lr_at(step + 1) < training.lr_at(step);
        assert!((10..100).all(falls));
    }

    #[test]
    fn the_constant_schedule_only_warms_up() {
        let training = training(LrSchedule::Constant, 100, 10);
        check(&training, 1, 2e-4);
        check(&training, 10, 2e-3);
        for step in [11, 50, 100, 150] {
            check(&training, step, 2e-3);
        }
    }

    #[test]
    fn wsd_stays_at_the_peak_and_falls_along_a_line_at_the_end() {
        let mut training = training(LrSchedule::Wsd, 100, 10);
        check(&training, 9, 1.8e-3);
        check(&training, 10, 2e-3);
        check(&training, 11, 2e-3);
        // The last 20 of 100 steps.
        assert_eq!(training.peak_end(), Some(80));
        check(&training, 80, 2e-3);
        check(&training, 81, 2e-3 - 1.8e-3 / 20.0);
        check(&training, 90, 1.1e-3);
        check(&training, 99, 2e-4 + 1.8e-3 / 20.0);
        check(&training, 100, 2e-4);
        check(&training, 150, 2e-4);
        (training.lr_decay_fraction, training.lr_final_ratio) = (0.5, 0.0);
        check(&training, 50, 2e-3);
        check(&training, 75, 1e-3);
        assert_eq!(training.lr_at(100).to_bits(), 0);
        // A fraction below one step is one step.
        training.lr_decay_fraction = 0.001;
        check(&training, 99, 2e-3);
        assert_eq!(training.lr_at(100).to_bits(), 0);
    }

    #[test]
    fn v3_turns_where_the_report_says() {
        // One step is a billion tokens.
        let training = training(LrSchedule::V3, 14_800, 100);
        check(&training, 50, 1e-3);
        check(&training, 100, 2e-3);
        check(&training, 101, 2e-3);
        assert_eq!(training.peak_end(), Some(10_000));
        check(&training, 10_000, 2e-3);
        assert!(training.lr_at(10_001) < training.lr);
        check(&training, 10_000 + 2_150, 2e-3 * 0.55);
        check(&training, 14_300, 2e-4);
        check(&training, 14_301, 2e-4);
        check(&training, 14_633, 2e-4);
        check(&training, 14_634, 2e-3 * 7.3e-6 / 2.2e-4);
        check(&training, 14_800, 2e-3 * 7.3e-6 / 2.2e-4);
        check(&training, 20_000, 2e-3 * 7.3e-6 / 2.2e-4);
        let falls = |step: u64| training.lr_at(step + 1) < training.lr_at(step);
        assert!((10_000..14_300).all(falls));
    }

    #[test]
    fn v3_with_its_own_figures_gives_its_own_rates() {
        let mut training = training(LrSchedule::V3, 14_800, 2);
        training.lr = 2.2e-4;
        check(&training, 10_000, 2.2e-4);
        check(&training, 14_500, 2.2e-5);
        check(&training, 14_800, 7.3e-6);
    }

    #[test]
    fn v3_scales_to_short_runs() {
        let training = training(LrSchedule::V3, 100, 0);
        // 10 / 14.8 of 100 steps is 67.6, 14.3 / 14.8 is 96.6, and 14.633 / 14.8 is 98.9.
        check(&training, 67, 2e-3);
        assert!(training.lr_at(68) < training.lr && training.lr_at(96) > 2e-4);
        check(&training, 97, 2e-4);
        check(&training, 98, 2e-4);
        check(&training, 99, 2e-3 * 7.3e-6 / 2.2e-4);
    }

    #[test]
    fn every_schedule_starts_near_the_peak_without_warm_up_and_survives_short_runs() {
        for schedule in ALL {
            let long = training(schedule, 1000, 0);
            assert!((long.lr_at(1) / long.lr - 1.0).abs() < 1e-4, "{schedule}");
            // The default warm-up may be longer than a trial run.
            let trial = training(schedule, 1000, 2000);
            assert!(trial.lr_at(1000) < trial.lr, "{schedule}");
            for (steps, warmup_steps) in [(1, 0), (1, 1), (2, 1), (5, 4), (5, 5), (5, 20)] {
                let short = training(schedule, steps, warmup_steps);
                let sane = |step: u64| (0.0..=short.lr).contains(&short.lr_at(step));
                assert!((1..=steps + 2).all(sane), "{schedule}: {steps} steps");
            }
        }
    }

    #[test]
    fn the_mtp_weight_and_the_bias_speed_change_after_their_share_of_the_steps() {
        let mut training = training(LrSchedule::V3, 1000, 0);
        let bits = f32::to_bits;
        let (mtp, bias) = (training.mtp_weight, training.bias_speed);
        for (step, weight, speed) in [
            (1, mtp, bias),
            (676, mtp, bias),
            (677, training.mtp_weight_final, bias),
            (966, training.mtp_weight_final, bias),
            (967, training.mtp_weight_final, 0.0),
            (1000, training.mtp_weight_final, 0.0),
        ] {
            assert_eq!(bits(training.mtp_weight_at(step)), bits(weight), "step {step}");
            assert_eq!(bits(training.bias_speed_at(step)), bits(speed), "step {step}");
        }
        // Whole shares: always, and never.
        (training.mtp_weight_until, training.bias_speed_until) = (1.0, 0.0);
        assert_eq!(bits(training.mtp_weight_at(1000)), bits(mtp));
        assert_eq!(bits(training.bias_speed_at(1)), bits(0.0));
        // As the knees of `v3`: 67.6 of 100 steps are 67.
        (training.steps, training.mtp_weight_until) = (100, 0.676);
        assert_eq!(bits(training.mtp_weight_at(67)), bits(mtp));
        assert_eq!(bits(training.mtp_weight_at(68)), bits(training.mtp_weight_final));
    }
}
