//! From the coordinator's start to the last worker's exit: listens to news, children and signals,
//! and decides nothing about training.

mod cluster;
mod coordinator;
mod incidents;

use std::time::Duration;

use anyhow::{Context, anyhow};
use shoal_coordinator::{Cause, Command, Failure, Following, News};
use shoal_plan::job::Job;
use shoal_plan::plan::WorkerId;
use shoal_plan::report::{Ending, Outcome, StepReport};
use shoal_plan::standing::Best;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::children::{Coordinator, Exit};
use crate::clock::Stopwatch;
use crate::epochs::Epochs;
use crate::events::{Kind, Log};
use crate::exit::Stopped;
use crate::hands::Hands;
use crate::line::Heard;
use crate::metrics::{EvaluationRow, Metrics};
use crate::mirror::Copying;
use crate::progress::Progress;
use crate::restarts::{Next, Restarts, WINDOW_SECONDS};
use crate::run_dir::RunDir;
use crate::signals::{Signal, Signals};
use crate::terminal::note;
use incidents::Incident;

pub(crate) use incidents::Recovery;

/// How often exited children are looked for.
const LOOK: Duration = Duration::from_millis(100);

/// A worker whose connection ended gets so long for its process to be seen to end.
const EXIT_LOOK: Duration = Duration::from_millis(2);
const EXIT_LOOKS: u32 = 10;

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
    pub events: &'a mut Log,
    pub hands: Hands,
    /// The line to the cluster's coordinator, where the workers are rigs.
    pub heard: Option<mpsc::UnboundedReceiver<Heard>>,
    pub coordinator: Coordinator,
    /// When its process was seen to end that has not caught up yet, in seconds.
    pub coordinator_gone: Option<f64>,
    pub coordinator_restarts: Restarts<()>,
    pub following: Following,
    pub signals: &'a mut Signals,
    /// The step of the newest checkpoint.
    pub checkpoint: Option<u64>,
    /// Of checkpoints to a store, where there is one.
    pub copying: Option<Copying>,
    pub job: &'a Job,
    pub restarts: Restarts<WorkerId>,
    pub recovery: Recovery,
    /// Since the workers were started.
    pub watch: Stopwatch,
}

impl Training<'_> {
    /// Runs to the end. On every way out, all children are gone.
    pub(crate) async fn run(mut self) -> Result<Done, Stopped> {
        let mut progress = Progress::start(self.checkpoint.unwrap_or(0), self.job.training.steps);
        let ended = self.listen(&mut progress).await;
        progress.end();
        if ended.is_ok() {
            self.wait_for_workers().await;
            self.wait_for_store().await;
        }
        self.hands.kill();
        self.coordinator.kill();
        ended
    }

    async fn listen(&mut self, progress: &mut Progress) -> Result<Done, Stopped> {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = None;
        loop {
            tokio::select! {
                news = self.following.news.recv() => {
                    let mut news = news.context("nobody follows the run any more")?;
                    if let News::StopAsked { now } = news {
                        self.wants_to_stop(Signal::Ordered, now, &mut stopping, progress)?;
                    }
                    if let News::Evicted { worker, what, .. } = &mut news {
                        self.how_it_ended(*worker, what, progress, stopping.is_some()).await;
                    }
                    if let Some(done) = self.hear(news, progress, stopping)? {
                        return Ok(done);
                    }
                }
                signal = self.signals.next() => {
                    let at_once = stopping.is_some() && signal.is_insistent();
                    self.wants_to_stop(signal, at_once, &mut stopping, progress)?;
                }
                Some(text) = heard(&mut self.copying) => progress.say(&text),
                heard = cluster::next(&mut self.heard) => {
                    self.cluster_says(heard, &mut stopping, progress)?;
                }
                _at = look.tick() => {
                    self.look_after_the_children(progress, stopping.is_some());
                    self.look_after_the_coordinator(progress)?;
                }
            }
        }
    }

    /// # Errors
    /// At once: the run ends here.
    fn wants_to_stop(
        &mut self,
        signal: Signal,
        at_once: bool,
        stopping: &mut Option<Signal>,
        progress: &Progress,
    ) -> Result<(), Stopped> {
        if at_once {
            let next = self.how_to_continue();
            self.events.add(Kind::Stopped, None, format!("{signal}, at once"));
            progress.say(&format!("{signal}: stopping at once\n{next}"));
            return Err(Stopped::Signal(signal));
        }
        if stopping.replace(signal).is_none() {
            let how = "writing a checkpoint and stopping; once more stops at once";
            progress.say(&format!("{signal}: {how}"));
            if signal != Signal::Ordered {
                self.command(Command::Stop);
            }
        }
        Ok(())
    }

    /// The end of a connection is often heard a moment before that of the process, which says more.
    async fn how_it_ended(
        &mut self,
        worker: WorkerId,
        what: &mut String,
        progress: &Progress,
        stopping: bool,
    ) {
        for _ in 0..EXIT_LOOKS {
            self.look_after_the_children(progress, stopping);
            if let Some(exit) = self.hands.exit_of(worker) {
                *what = format!("the process ended: {exit}");
                return;
            }
            sleep(EXIT_LOOK).await;
        }
    }

    /// Tells the coordinator who exited, and starts anew whose time has come.
    fn look_after_the_children(&mut self, progress: &Progress, stopping: bool) {
        let now = self.watch.seconds();
        for (worker, pid, exit) in self.hands.newly_exited() {
            let what = exit.to_string();
            self.events.add(Kind::Exited, Some(worker), &what);
            if !exit.was_asked_for() {
                self.recovery.exited(worker, now);
            }
            self.command(Command::WorkerExited { worker, pid, what });
            // One that ends while all end is not wanted back.
            if !stopping {
                self.gone(worker, exit, now, progress);
            }
        }
        let due = if stopping { Vec::new() } else { self.restarts.due(now) };
        for worker in due {
            match self.hands.start_one(worker) {
                Ok(()) => self.events.add(Kind::Restarted, Some(worker), "its wait is over"),
                Err(error) => {
                    let what = format!("it cannot be started: {error:#}");
                    self.events.add(Kind::Exited, Some(worker), &what);
                    self.gone(worker, Exit::never_began(), now, progress);
                }
            }
        }
    }

    /// Whether a worker that exited comes back; if too few are left, the run ends.
    fn gone(&mut self, worker: WorkerId, exit: Exit, now: f64, progress: &Progress) {
        let allowed = self.job.workers.restarts;
        let last = match self.restarts.exited(worker, exit.was_asked_for(), now) {
            Next::Again { in_seconds, nth } => {
                let how = format!("again in {in_seconds} s, {nth} of {allowed} in ten minutes");
                tracing::info!(%worker, how, "will be started");
                return;
            }
            Next::GivenUp { times: 1 } => format!("{worker} is not started again: {exit}"),
            Next::GivenUp { times } => {
                let minutes = WINDOW_SECONDS / 60.0;
                format!(
                    "{worker} is given up: it ended {times} times in {minutes} minutes, \
                     the last time with {exit}; see {}",
                    self.run_dir.worker_log(worker).display()
                )
            }
            Next::Left => format!("{worker} has left"),
        };
        if !exit.was_asked_for() {
            self.events.add(Kind::GivenUp, Some(worker), &last);
            progress.say(&last);
            if self.hands.give_up(worker, &last) {
                return;
            }
        }
        // With rigs the run waits: others may come.
        if matches!(self.hands, Hands::Rigs(_)) {
            return;
        }
        let (left, min) = (self.restarts.left(), self.job.workers.min.max(1));
        if left < min {
            let reason = format!("{left} workers are left and workers.min is {min}: {last}");
            self.command(Command::Abort(reason));
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
                let fact = format!("process {pid}, {joined} of {wanted}");
                self.events.add(Kind::Joined, Some(worker), fact);
            }
            News::Planned(plan) => self.events.generation_is(plan.generation),
            News::Started => {
                self.events.add(Kind::Started, None, "all workers are ready");
                progress.begin();
            }
            News::Step(report) => self.step(report, progress)?,
            News::Evaluated { step, evaluations } => {
                for evaluation in &evaluations {
                    let row = EvaluationRow::new(step, evaluation);
                    progress.evaluated(&row, self.metrics.best(&row.set));
                    self.metrics.push_evaluation(row)?;
                }
            }
            News::RolledBack { from, to, passed_over, rollbacks } => {
                self.rolled_back((from, to), passed_over, rollbacks, progress)?;
            }
            news @ (News::Evicted { .. }
            | News::Recovering { .. }
            | News::Recovered { .. }
            | News::Rejoined { .. }
            | News::JoinedLate { .. }
            | News::Left { .. }
            | News::Draining { .. }
            | News::Paused { .. }
            | News::Resumed
            | News::Quarantined { .. }
            | News::Parted { .. }
            | News::SharesMove { .. }
            | News::Prepared { .. }
            | News::Yielding { .. }
            | News::Diverged { .. }
            | News::Straggler { .. }
            | News::CaughtUp { .. }
            | News::MovedAtEdge { .. }) => self.incident(&news, progress)?,
            // Whoever waits for news has seen to it.
            News::StopAsked { .. } => {}
            News::CheckpointCommitted { step } => {
                self.checkpoint = Some(step);
                if let Some(copying) = &self.copying {
                    copying.committed(step);
                }
                tracing::info!(step, "the checkpoint is complete");
            }
            News::CheckpointFailed { step, why, .. } => {
                self.events.add(Kind::CheckpointFailed, None, format!("of step {step}: {why}"));
                progress.say(&format!("warning: no checkpoint of step {step}: {why}"));
            }
            News::Finished { last_step, ending, best } => {
                // Without a signal nobody asked to stop; if it happens all the same, say so.
                let stopped_by =
                    (ending == Ending::Stopped).then(|| stopping.unwrap_or(Signal::Terminate));
                let no_improvement = ending == Ending::NoImprovement;
                self.ended_well(last_step, no_improvement, stopped_by);
                return Ok(Some(Done { last_step, best, no_improvement, stopped_by }));
            }
            News::Failed(failure) => {
                self.events.add(Kind::Failed, failure.worker, failure.to_string());
                let story = self.story(&failure);
                // What was trained since is lost, and trying again would end the same way.
                return Err(if failure.kind == Cause::Checkpoint {
                    Stopped::Checkpoint(story)
                } else {
                    Stopped::Failed(anyhow!(story))
                });
            }
        }
        Ok(None)
    }

    /// Too many steps were refused.
    fn rolled_back(
        &mut self,
        (from, to): (u64, u64),
        passed_over: u64,
        rollbacks: u32,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        let allowed = self.job.training.rollbacks_max;
        let story = went_back((from, to), passed_over, (rollbacks, allowed));
        self.events.step_is(to);
        self.events.add(Kind::RolledBack, None, &story);
        progress.rolled_back(to, &story);
        self.metrics.roll_back((from, to), passed_over, rollbacks)
    }

    /// Somebody was lost, came back or went: says so, and follows where the run goes on from.
    fn incident(&mut self, news: &News, progress: &mut Progress) -> Result<(), Stopped> {
        let now = self.watch.seconds();
        self.recovery.heard(news, now);
        if let Some(incident) = Incident::of(news)
            && self.recovery.is_worth_a_line(news, now)
        {
            self.events.generation_is(incident.generation.unwrap_or(self.events.generation()));
            self.events.add(incident.kind, incident.worker, &incident.fact);
            progress.say(&incident.line());
        }
        if let News::Recovering { from_step, to_step, .. } = news {
            self.events.step_is(*to_step);
            progress.recovering(*to_step);
            self.metrics.take_back((*from_step, *to_step))?;
        } else if let News::Recovered { .. } | News::MovedAtEdge { .. } = news {
            progress.begin();
        } else if let News::Paused { .. } = news {
            progress.pause();
        } else if let News::CaughtUp { restarts, workers, .. } = news {
            self.coordinator_is_back((*restarts, *workers), progress);
        }
        Ok(())
    }

    fn ended_well(&mut self, last_step: u64, early: bool, stopped_by: Option<Signal>) {
        self.events.step_is(last_step);
        match stopped_by {
            Some(signal) => self.events.add(Kind::Stopped, None, signal.to_string()),
            None if early => self.events.add(Kind::Finished, None, "no improvement any more"),
            None => self.events.add(Kind::Finished, None, "the last step"),
        }
    }

    fn step(&mut self, report: StepReport, progress: &mut Progress) -> Result<(), Stopped> {
        let step = report.step();
        self.events.step_is(step);
        if let Some(seconds) = self.recovery.stepped(self.watch.seconds()) {
            let fact = back_after(step, seconds);
            self.events.add(Kind::Recovered, None, &fact);
            progress.say(&fact);
        }
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

    /// Waits for the next coordinator if there is none.
    fn command(&self, command: Command) {
        // Fails only when nobody follows the run any more, which is heard on the other side.
        let _ = self.following.commands.send(command);
    }

    /// The last checkpoint is worth a moment, and no more than the person wants to give it.
    async fn wait_for_store(&mut self) {
        let Some(copying) = self.copying.take() else { return };
        tokio::select! {
            () = copying.finish() => {}
            signal = self.signals.next() => {
                note(&format!("{signal}: not waiting for the store; the next launch sends the rest"));
            }
        }
    }

    /// They were told to leave.
    async fn wait_for_workers(&mut self) {
        let (watch, mut look) = (Stopwatch::start(), interval(LOOK));
        while !self.hands.all_exited() && watch.seconds() < LEAVE_SECONDS {
            tokio::select! {
                _at = look.tick() => {
                    for (worker, _, exit) in self.hands.newly_exited() {
                        self.events.add(Kind::Exited, Some(worker), exit.to_string());
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

/// What the copying says next; never ends where there is nothing to copy to.
async fn heard(copying: &mut Option<Copying>) -> Option<String> {
    match copying {
        Some(copying) => copying.next().await,
        None => std::future::pending().await,
    }
}

/// `back at step 41 after 1.2 s`.
fn back_after(step: u64, seconds: f64) -> String {
    let places = if seconds < 1.0 { 2 } else { 1 };
    format!("back at step {step} after {seconds:.places$} s")
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
    fn a_short_recovery_is_told_to_the_hundredth() {
        assert_eq!(back_after(41, 1.24), "back at step 41 after 1.2 s");
        assert_eq!(back_after(41, 0.052), "back at step 41 after 0.05 s");
    }

    #[test]
    fn a_rollback_says_from_where_to_where_and_how_many_are_left() {
        let text = went_back((59, 50), 72, (1, 2));
        let want = "after step 59 the run goes back to the checkpoint of step 50, rollback 1 of 2; \
                    72 sequences drawn since are passed over";
        assert_eq!(text, want);
        assert!(went_back((3, 0), 24, (2, 2)).contains("its initial parameters, rollback 2 of 2"));
    }
}
