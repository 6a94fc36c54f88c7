//! The coordinator's process under way: it is started again when it ends, as workers are, and the run goes
//! on meanwhile.

use anyhow::anyhow;

use super::Training;
use crate::children::Exit;
use crate::events::Kind;
use crate::exit::Stopped;
use crate::progress::Progress;
use crate::restarts::{Next, WINDOW_SECONDS};

impl Training<'_> {
    /// # Errors
    /// It is not started any more: the run ends.
    pub(super) fn look_after_the_coordinator(
        &mut self,
        progress: &Progress,
    ) -> Result<(), Stopped> {
        let now = self.watch.seconds();
        if let Some(exit) = self.coordinator.newly_exited() {
            self.coordinator_ended(exit, now, progress)?;
        }
        if !self.coordinator_restarts.due(now).is_empty()
            && let Err(error) = self.coordinator.start_again()
        {
            progress.say(&format!("warning: {error:#}"));
            self.coordinator_ended(Exit::never_began(), now, progress)?;
        }
        Ok(())
    }

    fn coordinator_ended(
        &mut self,
        exit: Exit,
        now: f64,
        progress: &Progress,
    ) -> Result<(), Stopped> {
        self.coordinator_gone.get_or_insert(now);
        self.events.add(Kind::CoordinatorExited, None, exit.to_string());
        let log = self.run_dir.coordinator_log();
        let how = if exit.is_final() {
            // It says itself why no other would do better.
            self.coordinator.last_words().unwrap_or_else(|| exit.to_string())
        } else {
            match self.coordinator_restarts.exited((), false, now) {
                Next::Again { in_seconds, nth } => {
                    progress.say(&format!(
                        "the coordinator has ended: {exit}; the workers train on, and it is started \
                         again in {in_seconds} s, {nth} of {} in ten minutes",
                        self.job.workers.restarts
                    ));
                    return Ok(());
                }
                Next::GivenUp { times: 1 } | Next::Left => {
                    format!("the coordinator has ended and is not started again: {exit}")
                }
                Next::GivenUp { times } => format!(
                    "the coordinator is given up: it ended {times} times in {} minutes, the last time \
                     with {exit}",
                    WINDOW_SECONDS / 60.0
                ),
            }
        };
        self.events.add(Kind::Failed, None, &how);
        let next = self.how_to_continue();
        Err(Stopped::Failed(anyhow!("{how}\nmore in {}\n{next}", log.display())))
    }

    /// Every worker is back with it, or lost.
    pub(super) fn coordinator_is_back(&mut self, (nth, workers): (u64, u32), progress: &Progress) {
        let away = self.coordinator_gone.take().map(|gone| self.watch.seconds() - gone);
        let away = away.map_or_else(String::new, |seconds| format!(" after {seconds:.1} s"));
        let fact = format!("restart {nth}: {workers} workers have caught up{away}");
        self.events.add(Kind::CoordinatorBack, None, &fact);
        progress.say(&format!("the coordinator is back, {fact}"));
    }
}
