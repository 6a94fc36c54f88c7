//! How fast steps come, and the newest loss: for people who ask, and measured anew by each coordinator.

use shoal_plan::report::{Outcome, StepReport};
use shoal_plan::routing::Routing;

/// The newest step's weight in the mean duration of a step, as the launcher's progress has it.
const SMOOTHING: f64 = 0.1;

#[derive(Debug, Default)]
pub(super) struct Tempo {
    /// Since when the next step is under way.
    since_ms: Option<u64>,
    seconds: Option<f64>,
    /// Of the newest step that was trained.
    pub(super) loss: Option<f64>,
    tokens: u64,
    /// Of the same step: as many as the network has layers of experts.
    pub(super) routers: Vec<Routing>,
}

impl Tempo {
    /// What took until now counts for no step.
    pub(super) fn rest(&mut self, now_ms: u64) {
        self.since_ms = Some(now_ms);
    }

    pub(super) fn step(&mut self, now_ms: u64, report: &StepReport) {
        let before = self.since_ms.replace(now_ms);
        let Outcome::Trained(row) = &report.outcome else { return };
        (self.loss, self.tokens) = (Some(row.loss), row.tokens);
        self.routers.clone_from(&row.router);
        let Some(before) = before else { return };
        let seconds = now_ms.saturating_sub(before) as f64 / 1e3;
        let mean = self.seconds.unwrap_or(seconds);
        self.seconds = Some(mean + SMOOTHING * (seconds - mean));
    }

    /// Smoothed; `None` before there is one, or if they take no time that this clock sees.
    pub(super) fn seconds_per_step(&self) -> Option<f64> {
        self.seconds.filter(|seconds| *seconds > 0.0)
    }

    pub(super) fn tokens_per_second(&self) -> Option<f64> {
        self.seconds_per_step().map(|seconds| self.tokens as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::row;
    use super::*;

    fn report(step: u64) -> StepReport {
        StepReport { first_sequence: 0, sequences: 8, outcome: Outcome::Trained(row(step)) }
    }

    #[test]
    fn the_rate_is_smoothed_and_what_was_waited_for_counts_for_no_step() {
        let mut tempo = Tempo::default();
        tempo.step(1_000, &report(1));
        assert_eq!((tempo.seconds_per_step(), tempo.loss), (None, Some(5.0)), "since when?");
        tempo.step(3_000, &report(2));
        assert_eq!(tempo.seconds_per_step(), Some(2.0));
        assert_eq!(tempo.tokens_per_second(), Some(64.0));
        tempo.rest(90_000);
        tempo.step(93_000, &report(3));
        assert!((tempo.seconds_per_step().unwrap() - 2.1).abs() < 1e-12);
    }

    #[test]
    fn steps_too_fast_for_the_clock_have_no_rate() {
        let mut tempo = Tempo::default();
        tempo.rest(0);
        tempo.step(0, &report(1));
        assert_eq!((tempo.seconds_per_step(), tempo.tokens_per_second()), (None, None));
    }
}
