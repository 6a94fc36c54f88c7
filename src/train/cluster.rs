//! A run whose workers are rigs of a cluster: what its coordinator says of them. While that is away, rigs reach
//! nobody: the run's own coordinator is put to sleep, so that it takes nobody for dead, and the workers train on.

use shoal_cluster::words::ToLauncher;
use shoal_coordinator::Command;
use tokio::sync::mpsc;

use super::Training;
use crate::events::Kind;
use crate::exit::Stopped;
use crate::line::Heard;
use crate::progress::Progress;
use crate::signals::Signal;

/// What comes over the line; never ends where there is none.
pub(super) async fn next(heard: &mut Option<mpsc::UnboundedReceiver<Heard>>) -> Heard {
    let Some(line) = heard else { return std::future::pending().await };
    match line.recv().await {
        Some(word) => word,
        None => std::future::pending().await,
    }
}

impl Training<'_> {
    /// # Errors
    /// The cluster's coordinator does not come back: the run ends here.
    pub(super) fn cluster_says(
        &mut self,
        heard: Heard,
        stopping: &mut Option<Signal>,
        progress: &Progress,
    ) -> Result<(), Stopped> {
        match heard {
            Heard::Word(word) => self.hear_of_rigs(&word, stopping, progress)?,
            Heard::Lost => {
                progress.say("the cluster's coordinator is away: the workers train on");
                self.coordinator_gone.get_or_insert(self.watch.seconds());
                self.coordinator.kill();
            }
            Heard::Back => {
                progress.say("the cluster's coordinator is back");
                self.coordinator.start_again()?;
            }
            Heard::GivenUp => {
                let what = "the cluster's coordinator has not come back";
                self.events.add(Kind::Failed, None, what);
                return Err(Stopped::Failed(anyhow::anyhow!("{what}: {}", self.how_to_continue())));
            }
        }
        Ok(())
    }

    fn hear_of_rigs(
        &mut self,
        word: &ToLauncher,
        stopping: &mut Option<Signal>,
        progress: &Progress,
    ) -> Result<(), Stopped> {
        self.hands.heard(word);
        match word {
            // Seen to where children are, and by the line itself.
            ToLauncher::Exited { .. } | ToLauncher::Beat { .. } | ToLauncher::Dial { .. } => {}
            ToLauncher::Seated { worker, rig } => {
                self.restarts.begins_anew(*worker, self.watch.seconds());
                self.events.add(Kind::Restarted, Some(*worker), format!("on rig {rig}"));
                progress.say(&format!("{worker} is rig {rig} from now on"));
            }
            ToLauncher::Unseated { worker, why } => {
                progress.say(&format!("{worker} has no rig: {why}"));
            }
            ToLauncher::Superseded => {
                let what = "another launcher has this run now";
                self.events.add(Kind::Failed, None, what);
                return Err(Stopped::Failed(anyhow::anyhow!(what)));
            }
            ToLauncher::Stop => {
                self.wants_to_stop(Signal::Ordered, false, stopping, progress)?;
                self.command(Command::Stop);
            }
        }
        Ok(())
    }
}
