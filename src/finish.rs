//! The end of a launch: figures, curve, samples, where everything is, what to try next.

use shoal_plan::arithmetic;
use shoal_plan::job::Job;
use shoal_plan::report::HELDOUT;

use crate::cli;
use crate::clock::Stopwatch;
use crate::curve::{Canvas, Ink, draw};
use crate::exit::Stopped;
use crate::metrics::{Ending, Metrics};
use crate::run_dir::RunDir;
use crate::samples::{self, Sample};
use crate::show;
use crate::terminal::{data, heading, note, shows_unicode, width};
use crate::train::Done;

/// Wider curves are no easier to read.
const CURVE_WIDTH_MAX: usize = 100;
const CURVE_HEIGHT: usize = 14;

/// What is known at the end.
pub(crate) struct Finish<'a> {
    pub run_dir: &'a RunDir,
    pub job: &'a Job,
    pub metrics: &'a Metrics,
    pub done: Done,
    /// Since the launch.
    pub watch: Stopwatch,
    pub args: &'a cli::Launch,
}

impl Finish<'_> {
    /// Writes the summary and shows what came out; or, stopped early, how to go on.
    pub(crate) fn tell(&self) -> Result<(), Stopped> {
        if let Some(signal) = self.done.stopped_by {
            let (step, steps) = (self.done.last_step, self.job.training.steps);
            note(&format!("stopped after step {step} of {steps}; everything up to it is saved"));
            note("to continue, run the same command again");
            return Err(Stopped::Signal(signal));
        }
        self.tell_early_end();
        let mut summary = self.metrics.summary(&Ending {
            best: self.done.best,
            no_improvement: self.done.no_improvement,
            workers: self.job.workers.local,
            wall_seconds: self.watch.seconds(),
        });
        // What the figures are the price of: runs of different networks stand side by side.
        let parameters = arithmetic::parameters(&self.job.model);
        let flops = arithmetic::flops_per_token(&self.job.model, self.job.training.sequence);
        summary["parameters"] = parameters.total.into();
        summary["parameters_active"] = parameters.active.into();
        summary["flops_per_token"] = flops.into();
        self.run_dir.write_json("summary.json", &summary)?;
        self.curve();
        heading("Results");
        data(&show::summary(&summary));
        self.samples();
        heading("Where everything is");
        data(&show::places(self.run_dir, self.done.last_step, self.done.best));
        heading("What to try next");
        data(&show::next(self.args, self.job));
        Ok(())
    }

    fn tell_early_end(&self) {
        if let (true, Some(best)) = (self.done.no_improvement, self.done.best) {
            let patience = self.job.evaluation.patience;
            let best = best.step;
            note(&format!(
                "stopped early: no improvement in {patience} evaluations; best was step {best}"
            ));
        }
    }

    fn curve(&self) {
        let rows = self.metrics.rows();
        let mut losses = Vec::<f64>::new();
        for (row, next) in rows.iter().zip(rows.iter().skip(1).map(Some).chain([None])) {
            // A skipped step has no loss of its own, and the curve goes on level.
            let steps = next.map_or(1, |next| next.step - row.step);
            losses.extend((0..steps).map(|_| row.main_loss));
        }
        let evaluations = self.metrics.evaluations().iter();
        let heldout = evaluations.filter(|row| row.set == HELDOUT);
        let heldout: Vec<(u64, f64)> =
            heldout.filter_map(|row| Some((row.step, row.loss?))).collect();
        let ink = if shows_unicode() { Ink::Braille } else { Ink::Ascii };
        let canvas = Canvas { width: width().min(CURVE_WIDTH_MAX), height: CURVE_HEIGHT, ink };
        let first = rows.first().map_or(1, |row| row.step);
        if let Some(curve) = draw(&losses, first, &heldout, canvas) {
            let mark = ink.mark();
            heading(&format!("Loss of the main head, nats per token; {mark} on held-out text"));
            data(&curve);
        }
    }

    /// Samples are a treat: when they fail, the run has still succeeded.
    fn samples(&self) {
        match samples::draw(self.run_dir, self.job, self.done.last_step) {
            Ok(samples) => {
                for (i, sample) in samples.iter().enumerate() {
                    show_sample(i + 1, sample);
                }
            }
            Err(error) => note(&format!("no samples: {error:#}")),
        }
    }
}

fn show_sample(number: usize, sample: &Sample) {
    let mark = if shows_unicode() { "▸" } else { ">>>" };
    heading(&format!("Sample {number}: held-out text, and after {mark} what the model made of it"));
    data(&format!("{}{mark}{}", sample.prompt, sample.text));
}
