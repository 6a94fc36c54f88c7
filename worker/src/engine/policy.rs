//! How a cell goes from step to step: what follows a step that was refused, when it evaluates, when
//! it writes a checkpoint, and when it ends.
//!
//! Every decision here is a function of the job and of figures that all cells have gathered alike
//! (the vote, the evaluations), so all cells decide the same without a further word.

use std::sync::Arc;

use shoal_plan::grid::CellId;
use shoal_plan::report::{Ending, Evaluation, HELDOUT, Outcome, SkippedStep, StepReport};
use shoal_plan::standing::AfterSkip;

use super::cell::{Cell, Checkpoints};
use super::error::{EngineError, Refusal};
use super::step::Trainer;
use super::vote::Wishes;
use super::{CellNews, Control, snapshot};
use crate::metrics::StepWatch;

/// Why a cell trains no further in this generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Finished(Ending),
    /// All cells build themselves again, from a checkpoint.
    GoBack,
    /// The same, from what they have left in memory.
    AtEdge,
}

/// What is left of a step for the rest of the loop.
struct Taken {
    /// What somebody wishes.
    wishes: Wishes,
    after_skip: Option<AfterSkip>,
}

/// Where a cell's news go.
type Say<'a> = &'a mut dyn FnMut(CellNews);

impl Cell {
    /// Trains until the job's last step, until all cells agree to stop or to go back, or until
    /// evaluations no longer improve. Evaluations and checkpoints come on the way and at the end.
    pub(super) fn train(&mut self, control: &Control, say: Say<'_>) -> Result<Ended, EngineError> {
        let ended = self.train_to_an_end(control, say)?;
        if let Some(depositor) = &mut self.depositor {
            // What follows may be another plan, under which these files would be nobody's.
            depositor.wait();
        }
        Ok(ended)
    }

    fn train_to_an_end(&mut self, control: &Control, say: Say<'_>) -> Result<Ended, EngineError> {
        let inputs = Arc::clone(&self.trainer.inputs);
        let job = &inputs.job;
        let mut evaluated = false;
        let ending = loop {
            if self.standing.step >= job.training.steps {
                break Ending::Completed;
            }
            if self.standing.is_stale(job.evaluation.patience) {
                break Ending::NoImprovement;
            }
            let Taken { wishes, after_skip } = self.take_step(control, say)?;
            if after_skip == Some(AfterSkip::GoBack) {
                return Ok(Ended::GoBack);
            }
            // A stop waits for the end of a row of skipped steps, which is near: a run that goes on
            // from a checkpoint in their midst would go back to that, and not to one before them.
            let (step, skipped) = (self.standing.step, after_skip.is_some());
            let (last, stops) = (step == job.training.steps, wishes.stop && !skipped);
            let every = job.evaluation.every;
            evaluated = last || (every > 0 && step.is_multiple_of(every) && !skipped);
            let best = evaluated && self.evaluate(say)? && every > 0 && job.checkpoint.keep_best;
            // A skipped step leaves the state as the step before it did: a checkpoint of it would
            // hold the parameters that have just failed under a newer step, and a rollback would
            // end there.
            let due = step.is_multiple_of(job.checkpoint.every) && !skipped;
            let stale = self.standing.is_stale(job.evaluation.patience);
            let writes = snapshot::is_written_by(&inputs, self.trainer.id);
            if writes && (due || best || last || stops || stale) {
                self.trainer.fetch()?;
                self.write_checkpoint(say);
            }
            if last || stale {
                continue;
            }
            if stops {
                break Ending::Stopped;
            }
            if !skipped && self.remember(wishes, say)? {
                return Ok(Ended::AtEdge);
            }
        };
        // A run that goes on after its last step was never told how it ended.
        if ending != Ending::Stopped && !evaluated {
            let evaluations = self.trainer.evaluate_all()?;
            self.tell_evaluations(evaluations, say);
        }
        Ok(Ended::Finished(ending))
    }

    /// What this cell's worker was asked, and whether its last snapshot is on its way.
    fn wishes(&self, control: &Control) -> Wishes {
        let Self { trainer, recall, .. } = self;
        let memory = trainer.inputs.memory.as_ref().zip(recall.as_ref());
        let busy = memory.is_some_and(|(memory, recall)| recall.is_busy(&trainer.inputs, memory));
        Wishes { stop: control.stop_wanted(), edge: control.edge_wanted(), busy }
    }

    /// Puts the state into memory where that is due. True if the cells end here for the next plan:
    /// not before the last snapshot is everywhere, so that there is one to go on from whoever is lost
    /// meanwhile.
    fn remember(&mut self, wishes: Wishes, say: Say<'_>) -> Result<bool, EngineError> {
        let Self { trainer, recall, standing, watch, .. } = self;
        let inputs = Arc::clone(&trainer.inputs);
        let Some((memory, recall)) = inputs.memory.as_ref().zip(recall.as_ref()) else {
            return Ok(false);
        };
        let (every, step) = (inputs.job.checkpoint.memory.every, standing.step);
        let due = every > 0 && step.is_multiple_of(every);
        if wishes.busy {
            if due {
                let cell = recall.cell;
                tracing::warn!(%cell, step, "no snapshot: copies of the last are on their way");
            }
            return Ok(false);
        }
        if !wishes.edge && !due {
            return Ok(false);
        }
        trainer.fetch()?;
        let state = (trainer.chunks(), *standing);
        if wishes.edge {
            let blake3 = recall.hand_over(&inputs, memory, state)?;
            say(CellNews::Held { standing: *standing, blake3 });
        } else {
            watched(watch.as_ref(), "memory", || recall.remember(&inputs, memory, state))?;
        }
        Ok(wishes.edge)
    }

    fn take_step(&mut self, control: &Control, say: Say<'_>) -> Result<Taken, EngineError> {
        let (inputs, wishes) = (Arc::clone(&self.trainer.inputs), self.wishes(control));
        let step = self.standing.step + 1;
        if let Some(watch) = &self.watch {
            watch.begins(control.is_traced(step));
        }
        let (first_sequence, sequences) = (inputs.first_sequence(step), inputs.sequences(step));
        let Self { trainer, watch, .. } = self;
        let mut train = || trainer.train(step, wishes);
        let (trained, compute_seconds) = match watch {
            Some(watch) => watch.step(&mut train),
            None => (train(), 0.0),
        };
        let mut checksum = None;
        let (outcome, taken) = match trained {
            Ok(done) => {
                self.standing.trained(sequences);
                checksum = Some(done.checksum);
                (Outcome::Trained(done.row), Taken { wishes: done.wishes, after_skip: None })
            }
            Err(EngineError::Refused(refusal)) => self.skip(refusal, sequences)?,
            Err(error) => return Err(error),
        };
        let report = StepReport { first_sequence, sequences, outcome };
        let report = (self.trainer.id == CellId(0)).then_some(report);
        say(CellNews::StepDone { step, compute_seconds, report, checksum });
        if let Some(watch) = &self.watch {
            for piece in watch.traced(step, self.trainer.id) {
                say(CellNews::Traced(piece));
            }
        }
        Ok(taken)
    }

    /// Skips the step under way, if the job allows another.
    fn skip(&mut self, refusal: Refusal, sequences: u64) -> Result<(Outcome, Taken), EngineError> {
        let training = &self.trainer.inputs.job.training;
        let after_skip = self.standing.refused(sequences, training);
        if after_skip == AfterSkip::GiveUp {
            // The first worker to leave cuts all others off. If that were before the vote has reached
            // the worker whose value it was, nobody would say so. Who cannot wait has the verdict.
            let Trainer { comm, groups, .. } = &mut self.trainer;
            drop(comm.all_gather(&groups.all, Vec::new()));
            let (skips, rollbacks) = (self.standing.skips, self.standing.rollbacks);
            return Err(EngineError::GaveUp { refusal, skips, rollbacks });
        }
        let Refusal { worker, nonfinite, wishes, .. } = refusal;
        let (step, in_a_row) = (self.standing.step, self.standing.skips);
        let (skipped, pass) = (nonfinite.to_string(), nonfinite.pass);
        let skipped = SkippedStep { step, skipped, worker, in_a_row, pass };
        Ok((Outcome::Skipped(skipped), Taken { wishes, after_skip: Some(after_skip) }))
    }

    /// Evaluates every set. True if the held-out text has never come off better.
    fn evaluate(&mut self, say: Say<'_>) -> Result<bool, EngineError> {
        let evaluations = self.trainer.evaluate_all()?;
        let heldout = evaluations.iter().find(|evaluation| evaluation.set == HELDOUT);
        let best = heldout.is_some_and(|heldout| self.standing.evaluated(heldout.loss));
        self.tell_evaluations(evaluations, say);
        Ok(best)
    }

    fn tell_evaluations(&self, evaluations: Vec<Evaluation>, say: Say<'_>) {
        if self.trainer.id == CellId(0) {
            say(CellNews::Evaluated { step: self.standing.step, evaluations });
        }
    }

    /// A disk that is full, or may not be written to, costs a checkpoint and not the run: the
    /// coordinator counts it, and whether the run may end without one is for it to say.
    fn write_checkpoint(&mut self, say: Say<'_>) {
        let Self { trainer, standing, watch, depositor, .. } = self;
        let standing = *standing;
        let written = match (&trainer.inputs.checkpoints, depositor) {
            (Checkpoints::InDirectory(directory), _) => {
                let write = || trainer.write_checkpoint((directory, standing.step));
                let written = watched(watch.as_ref(), "write", write);
                written.map(|files| say(CellNews::Part { standing, files }))
            }
            (Checkpoints::AtCoordinator, Some(depositor)) => {
                depositor.wait();
                let written = watched(watch.as_ref(), "write", || trainer.write_scratch());
                written.map(|files| {
                    if !depositor.send(standing, files, watch.clone()) {
                        let why = "the thread that sends files has ended".to_owned();
                        say(CellNews::PartFailed { standing, why });
                    }
                })
            }
            (Checkpoints::AtCoordinator, None) => {
                unreachable!(
                    "an engine whose coordinator gathers files gives its cells a way there"
                )
            }
        };
        if let Err(error) = written {
            let (step, why) = (standing.step, error.to_string());
            tracing::error!(cell = %trainer.id, step, why, "no files of the checkpoint");
            say(CellNews::PartFailed { standing, why });
        }
    }
}

/// Measures what training waits for.
fn watched<T>(watch: Option<&StepWatch>, phase: &str, work: impl FnOnce() -> T) -> T {
    match watch {
        Some(watch) => watch.checkpoint(phase, work),
        None => work(),
    }
}
