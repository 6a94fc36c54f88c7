//! How often the run has seen its text, source by source.

use shoal_data::Dataset;
use shoal_data::inspect::epochs;
use shoal_plan::job::{Job, Training};
use shoal_plan::report::StepReport;
use shoal_plan::samples::Mixture;

/// Later epochs are told only now and then: a source of one window begins one at each sequence.
const TOLD_EACH: u64 = 10;

/// The order in which the cells draw sequences.
pub(crate) struct Epochs {
    mixture: Mixture,
    /// Name, weight and windows of each source.
    sources: Vec<(String, f32, u64)>,
}

impl Epochs {
    pub(crate) fn new(job: &Job, dataset: &Dataset) -> Self {
        let source = |source: &shoal_data::SourceFacts| {
            (source.name.clone(), source.weight, source.train_windows)
        };
        let sources: Vec<_> = dataset.sources.iter().map(source).collect();
        let shares: Vec<_> =
            sources.iter().map(|(_, weight, windows)| (*weight, *windows)).collect();
        let mixture = Mixture::new(job.training.seed, &shares);
        Self { mixture, sources }
    }

    /// How often the whole run will see each source.
    pub(crate) fn overview(&self, training: &Training) -> String {
        let sequences = training.sequences_before(training.steps + 1);
        let shares: Vec<_> =
            self.sources.iter().map(|(_, weight, windows)| (*weight, *windows)).collect();
        let seen = epochs(&shares, sequences).into_iter().zip(&self.sources);
        let seen = seen.map(|(epochs, (name, ..))| format!("{epochs:.2} of `{name}`"));
        format!("epochs in this run: {}", seen.collect::<Vec<_>>().join(", "))
    }

    /// What begins with a step that was done.
    pub(crate) fn begun(&self, report: &StepReport) -> Vec<String> {
        let (first, step) = (report.first_sequence, report.step());
        let is_told =
            |(_, epoch): &(usize, u64)| *epoch < TOLD_EACH || (epoch + 1).is_multiple_of(TOLD_EACH);
        let begun = self.mixture.epochs_begun(first..first + report.sequences);
        let told = |(source, epoch): (usize, u64)| {
            format!("epoch {} of `{}` begins at step {step}", epoch + 1, self.sources[source].0)
        };
        begun.into_iter().filter(is_told).map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use shoal_plan::plan::WorkerId;
    use shoal_plan::report::{Outcome, Pass, SkippedStep};

    use super::*;

    fn epochs_of(sources: &[(&str, f32, u64)]) -> Epochs {
        let shares: Vec<_> =
            sources.iter().map(|(_, weight, windows)| (*weight, *windows)).collect();
        let named =
            |(name, weight, windows): &(&str, f32, u64)| ((*name).to_owned(), *weight, *windows);
        let sources = sources.iter().map(named).collect();
        Epochs { mixture: Mixture::new(1, &shares), sources }
    }

    /// A step of a run in which all have so many sequences.
    fn report(step: u64, sequences: u64) -> StepReport {
        let (skipped, worker) = ("inf in the loss".to_owned(), WorkerId(0));
        let pass = Pass::Forward;
        let outcome = Outcome::Skipped(SkippedStep { step, skipped, worker, in_a_row: 1, pass });
        StepReport { first_sequence: (step - 1) * sequences, sequences, outcome }
    }

    #[test]
    fn an_epoch_is_told_at_the_step_that_begins_it() {
        let training = Training { batch: 32, steps: 64, ..Job::example().training };
        let epochs = epochs_of(&[("code", 1.0, 300), ("books", 1.0, 700)]);
        let overview = "epochs in this run: 3.41 of `code`, 1.46 of `books`";
        assert_eq!(epochs.overview(&training), overview);
        let told: Vec<String> = (1..=64).flat_map(|step| epochs.begun(&report(step, 32))).collect();
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(told[0].starts_with("epoch 2 of `code` begins at step "), "{told:?}");
        assert!(told[1].starts_with("epoch 3 of `code`"), "{told:?}");
        assert!(told[2].starts_with("epoch 2 of `books`"), "{told:?}");
        assert!(told[3].starts_with("epoch 4 of `code`"), "{told:?}");
    }

    #[test]
    fn many_epochs_are_told_now_and_then() {
        let epochs = epochs_of(&[("text", 1.0, 1)]);
        let told: Vec<String> = (1..=40).flat_map(|step| epochs.begun(&report(step, 1))).collect();
        assert_eq!(told.len(), 9 + 3, "2 to 10, then 20, 30, 40: {told:?}");
        assert_eq!(told.last().unwrap(), "epoch 40 of `text` begins at step 40");
    }
}
