//! What whoever looks after the run orders from another terminal: a worker to go, the run to stop, to pause,
//! to go on. Each order is answered, and an order that was given before is no other order.

use shoal_plan::plan::WorkerId;

use super::{Effect, Phase, State};
use crate::control::Order;
use crate::news::News;

/// Accepted, and what happens now; or refused, and why.
pub type Reply = Result<String, String>;

impl State {
    pub(super) fn ordered(&mut self, asked: u64, order: Order) {
        let reply = match order {
            Order::Drain { worker, force } => self.drain(worker, force),
            Order::Stop { now } => Ok(self.stop_as_ordered(now)),
            Order::Pause => self.pause_as_ordered(),
            Order::Resume => self.resume_as_ordered(),
            Order::Meet(meetings) => self.meet(meetings),
            Order::Trace { steps } => self.trace(steps),
        };
        self.effects.push(Effect::Answer { asked, reply });
    }

    /// What a SIGTERM to the worker does, and for good: whatever process takes its place goes, too.
    fn drain(&mut self, worker: WorkerId, force: bool) -> Reply {
        self.may_be_drained(worker, force)?;
        let how = match self.phase {
            Phase::Paused if self.pause_wanted => "when the run goes on",
            Phase::Paused => "now",
            Phase::Gathering | Phase::Preparing | Phase::Recovering => "when all train",
            Phase::Training | Phase::Stopping | Phase::Edging | Phase::Ended => {
                "at the end of a step"
            }
        };
        if self.member(worker).leaving {
            return Ok(format!("{worker} was asked to go before; it leaves {how}"));
        }
        self.histories.entry(worker).or_default().drained = true;
        self.news(News::Draining { worker });
        self.wants_to_leave(worker, "somebody wants it to");
        Ok(format!("{worker} hands over its cells and leaves {how}"))
    }

    fn may_be_drained(&self, worker: WorkerId, force: bool) -> Result<(), String> {
        let wanted = self.settings.workers_wanted;
        let Some(member) = self.members.get(&worker) else {
            return Err(match self.histories.get(&worker) {
                _ if worker.0 >= wanted => {
                    let last = WorkerId(wanted.saturating_sub(1));
                    format!("{worker} is not of this run, which has worker-0 to {last}")
                }
                Some(history) if history.left => format!("{worker} has left already"),
                Some(history) if history.gone => {
                    format!("{worker} is lost and not back: it has nothing to hand over")
                }
                Some(_) | None => format!("{worker} has not joined yet"),
            });
        };
        match self.phase {
            Phase::Gathering => {
                return Err("the run waits for its workers: drain one when it trains".to_owned());
            }
            Phase::Stopping => {
                return Err(format!("the run is stopping, and {worker} leaves with all others"));
            }
            Phase::Preparing
            | Phase::Training
            | Phase::Edging
            | Phase::Recovering
            | Phase::Paused
            | Phase::Ended => {}
        }
        let (others, min) = (self.others_than(worker), self.settings.job.workers.min);
        if member.leaving {
            return Ok(());
        }
        if others == 0 {
            return Err(format!(
                "nobody but {worker} is here to take its cells: `shoal stop` writes a checkpoint and \
                 ends the run"
            ));
        }
        if others < min && !force {
            return Err(format!(
                "without {worker} there are {others} workers, and workers.min is {min}: the run would \
                 pause, and end if nobody can come; --force drains it all the same"
            ));
        }
        Ok(())
    }

    /// How many could host without this one. After a restart of the coordinator whoever was here counts as
    /// here until it is known to be lost.
    fn others_than(&self, worker: WorkerId) -> u32 {
        let stays = |(id, member): &(&WorkerId, &super::Member)| {
            **id != worker && !member.leaving && member.yielding.is_none()
        };
        let others = if self.is_awaiting() {
            self.members.iter().filter(stays).count()
        } else {
            self.eligible().filter(|other| *other != worker).count()
        };
        others as u32
    }

    /// The launcher hears of it and stops as it does by Ctrl-C; "now" is its affair alone.
    fn stop_as_ordered(&mut self, now: bool) -> String {
        if now {
            self.news(News::StopAsked { now });
            return "the launcher ends the run at once".to_owned();
        }
        if self.stop_wanted {
            return "the run is stopping already".to_owned();
        }
        self.news(News::StopAsked { now });
        self.stop();
        "the run writes a checkpoint and stops".to_owned()
    }

    fn pause_as_ordered(&mut self) -> Reply {
        match self.phase {
            Phase::Gathering => {
                return Err("the run waits for its workers: pause it when it trains".to_owned());
            }
            Phase::Stopping => return Err("the run is stopping".to_owned()),
            Phase::Preparing
            | Phase::Training
            | Phase::Edging
            | Phase::Recovering
            | Phase::Paused
            | Phase::Ended => {}
        }
        if self.stop_wanted {
            return Err("the run is stopping".to_owned());
        }
        let was_wanted = std::mem::replace(&mut self.pause_wanted, true);
        Ok(match self.phase {
            Phase::Paused if was_wanted => "the run is paused already".to_owned(),
            Phase::Paused => {
                "the run is paused, and stays so when enough workers are back".to_owned()
            }
            Phase::Gathering
            | Phase::Preparing
            | Phase::Training
            | Phase::Stopping
            | Phase::Edging
            | Phase::Recovering
            | Phase::Ended => "the run pauses after a step".to_owned(),
        })
    }

    fn resume_as_ordered(&mut self) -> Reply {
        let was_wanted = std::mem::take(&mut self.pause_wanted);
        if self.phase == Phase::Paused && !self.has_enough() {
            let (have, want) = (self.eligible().count(), self.settings.job.workers.min);
            let what = format!(
                "{have} workers are here, and workers.min is {want}: the run goes on by itself when \
                 enough are back"
            );
            if !was_wanted {
                return Err(what);
            }
            self.let_all_leavers_go();
            return Ok(what);
        }
        Ok(if was_wanted { "the run goes on" } else { "the run is not paused" }.to_owned())
    }

    /// Whether enough workers are here to train.
    pub(super) fn has_enough(&self) -> bool {
        self.eligible().count() as u32 >= self.settings.job.workers.min
    }
}
