//! From the coordinator's start to the last worker's exit: listens to news, children and signals,
//! and decides nothing about training.

use std::time::Duration;

use anyhow::{Context, anyhow};
use shoal_coordinator::{Command, Failure, News, Running};
use shoal_plan::job::Job;
use shoal_plan::report::{Ending, Outcome, StepReport};
use shoal_plan::standing::Best;
use tokio::time::{MissedTickBehavior, interval};

use crate::children::Children;
use crate::clock::Stopwatch;
use crate::epochs::Epochs;
use crate::exit::Stopped;
use crate::metrics::{EvaluationRow, Metrics};
use crate::progress::Progress;
use crate::run_dir::RunDir;
use crate::signals::{Signal, Signals};
use crate::terminal::note;

/// How often exited children are looked for.
const LOOK: Duration = Duration::from_millis(100);

/// Workers that were told to leave, or to abort, get this long before they are killed.
const LEAVE_SECONDS: f64 = 5.0;

/// How training ended, when it ended well.
pub(crate) struct Done {
    pub last_step: u64,
    /// The best evaluation of the held-out text.
    pub best: Option<Best>,
    /// Ended before its last step, because evaluations no longer improved.
    pub no_improvement: bool,
    /// The signal that stopped it before its last step.
    pub stopped_by: Option<Signal>,
}

/// What the loop works on.
pub(crate) struct Training<'a> {
    pub run_dir: &'a RunDir,
    pub metrics: &'a mut Metrics,
    pub epochs: Epochs,
    pub children: Children,
    pub coordinator: Running,
    pub signals: &'a mut Signals,
    /// The step of the newest checkpoint.
    pub checkpoint: Option<u64>,
    pub job: &'a Job,
}

impl Training<'_> {
    /// Runs to the end. On every way out, all children are gone.
    pub(crate) async fn run(mut self) -> Result<Done, Stopped> {
        let mut progress = Progress::start(self.checkpoint.unwrap_or(0), self.job.training.steps);
        let ended = self.listen(&mut progress).await;
        progress.end();
        if ended.is_ok() {
            self.wait_for_workers().await;
        }
        self.children.kill();
        ended
    }

    async fn listen(&mut self, progress: &mut Progress) -> Result<Done, Stopped> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = None;
        loop {
            tokio::select! {
                news = self.coordinator.news.recv() => {
                    let news = news.context("the coordinator ended without a word")?;
                    if let Some(done) = self.hear(news, progress, stopping)? {
                        return Ok(done);
                    }
                }
                signal = self.signals.next() => {
                    if stopping.is_some() && signal.is_insistent() {
                        let next = self.how_to_continue();
                        progress.say(&format!("{signal}: stopping at once\n{next}"));
                        return Err(Stopped::Signal(signal));
                    }
                    if stopping.replace(signal).is_none() {
                        let how = "writing a checkpoint and stopping; once more stops at once";
                        progress.say(&format!("{signal}: {how}"));
                        self.command(Command::Stop).await;
                    }
                }
                _at = look.tick() => {
                    for (worker, what) in self.children.newly_exited() {
                        self.command(Command::WorkerExited { worker, what }).await;
                    }
                }
            }
        }
    }

    /// Shows or keeps one piece of news. `Some` when it was the last.
    fn hear(
        &mut self,
        news: News,
        progress: &mut Progress,
        stopping: Option<Signal>,
    ) -> Result<Option<Done>, Stopped> {
        match news {
            News::Joined { worker, pid, joined, wanted } => {
                tracing::info!(%worker, pid, joined, wanted, "has joined");
            }
            News::Planned(plan) => tracing::info!(generation = %plan.generation, "the plan stands"),
            News::Started => progress.begin(),
            News::Step(report) => self.step(report, progress)?,
            News::Evaluated { step, evaluations } => {
                for evaluation in &evaluations {
                    let row = EvaluationRow::new(step, evaluation);
                    progress.evaluated(&row, self.metrics.best(&row.set));
                    self.metrics.push_evaluation(row)?;
                }
            }
            News::RolledBack { from, to, passed_over, rollbacks } => {
                let allowed = self.job.training.rollbacks_max;
                progress.rolled_back(to, &went_back((from, to), passed_over, (rollbacks, allowed)));
                self.metrics.roll_back((from, to), passed_over, rollbacks)?;
            }
            News::Evicted { .. }
            | News::Recovering { .. }
            | News::Recovered { .. }
            | News::Rejoined { .. }
            | News::JoinedLate { .. }
            | News::Left { .. }
            | News::Paused { .. }
            | News::Resumed
            | News::Quarantined { .. }
            | News::Straggler { .. }
            | News::MovedAtEdge { .. } => {
                tracing::info!("{news}");
                progress.say(&news.to_string());
            }
            News::CheckpointCommitted { step } => {
                self.checkpoint = Some(step);
                tracing::info!(step, "the checkpoint is complete");
            }
            News::CheckpointFailed { step, why } => {
                progress.say(&format!("warning: no checkpoint of step {step}: {why}"));
            }
            News::Finished { last_step, ending, best } => {
                // Without a signal nobody asked to stop; if it happens all the same, say so.
                let stopped_by =
                    (ending == Ending::Stopped).then(|| stopping.unwrap_or(Signal::Terminate));
                let no_improvement = ending == Ending::NoImprovement;
                return Ok(Some(Done { last_step, best, no_improvement, stopped_by }));
            }
            News::Failed(failure) => return Err(Stopped::Failed(anyhow!(self.story(&failure)))),
        }
        Ok(None)
    }

    fn step(&mut self, report: StepReport, progress: &mut Progress) -> Result<(), Stopped> {
        for line in self.epochs.begun(&report) {
            progress.say(&line);
        }
        match report.outcome {
            Outcome::Trained(row) => {
                let seconds = progress.step(&row);
                self.metrics.push(row, seconds)?;
            }
            Outcome::Skipped(skipped) => {
                progress.skipped(&skipped);
                self.metrics.push_skipped(skipped)?;
            }
        }
        Ok(())
    }

    /// What happened and to whom, as the coordinator says it, and where to read more.
    fn story(&self, failure: &Failure) -> String {
        let log = match failure.worker {
            Some(worker) => self.run_dir.worker_log(worker),
            None => self.run_dir.logs(),
        };
        format!("{failure}\nmore in {}\n{}", log.display(), self.how_to_continue())
    }

    fn how_to_continue(&self) -> String {
        match self.checkpoint {
            Some(step) => format!("to continue after step {step}, run the same command again"),
            None => "there is no checkpoint yet: the same command starts over".to_owned(),
        }
    }

    /// Fails only when the coordinator has ended, which its news say better.
    async fn command(&self, command: Command) {
        let _ = self.coordinator.commands.send(command).await;
    }

    /// They were told to leave.
    async fn wait_for_workers(&mut self) {
        let (watch, mut look) = (Stopwatch::start(), interval(LOOK));
        while !self.children.all_exited() && watch.seconds() < LEAVE_SECONDS {
            tokio::select! {
                _at = look.tick() => {
                    for (worker, what) in self.children.newly_exited() {
                        tracing::info!(%worker, what, "has left");
                    }
                }
                signal = self.signals.next() => {
                    note(&format!("{signal}: not waiting for the workers"));
                    return;
                }
            }
        }
    }
}

/// What a rollback means, in a line.
fn went_back((from, to): (u64, u64), passed_over: u64, (rollbacks, allowed): (u32, u32)) -> String {
    let place = match to {
        0 => "its initial parameters".to_owned(),
        step => format!("the checkpoint of step {step}"),
    };
    format!(
        "after step {from} the run goes back to {place}, rollback {rollbacks} of {allowed}; \
         {passed_over} sequences drawn since are passed over"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_says_from_where_to_where_and_how_many_are_left() {
        let text = went_back((59, 50), 72, (1, 2));
        let want = "after step 59 the run goes back to the checkpoint of step 50, rollback 1 of 2; \
                    72 sequences drawn since are passed over";
        assert_eq!(text, want);
        assert!(went_back((3, 0), 24, (2, 2)).contains("its initial parameters, rollback 2 of 2"));
    }
}
