//! Somebody wants to know all about some steps: which ones, and who is told.

use shoal_proto::ToWorker;

use super::ordered::Reply;
use super::{Effect, Phase, Range, State};
use crate::control::TRACED_STEPS_MAX;

/// The first step is so far off that every worker hears of it before.
const AHEAD_SECONDS: f64 = 0.5;
const AHEAD_STEPS: u64 = 2;

impl State {
    /// All cells note the same steps, and training does not wait for anything.
    pub(super) fn trace(&mut self, steps: u64) -> Reply {
        if self.phase != Phase::Training {
            return Err("the run is not training now: trace it when it is".to_owned());
        }
        if steps == 0 || steps > TRACED_STEPS_MAX {
            return Err(format!("{steps} steps: want 1 to {TRACED_STEPS_MAX}"));
        }
        let generation = self.generation();
        let under_way =
            |(of, range): &(_, Range<u64>)| *of == generation && self.committed + 1 < range.end;
        if let Some((_, range)) = self.traced.clone().filter(under_way) {
            let said = format!("steps {} to {} are traced", range.start, range.end - 1);
            let to_the_end = range.end > self.settings.job.training.steps;
            let same = to_the_end || range.end - range.start == steps;
            return if same { Ok(said) } else { Err(format!("{said} now: ask again after them")) };
        }
        let rate = self.tempo.seconds_per_step().map_or(1.0, |seconds| AHEAD_SECONDS / seconds);
        let first = self.committed + AHEAD_STEPS.max(rate.ceil() as u64);
        let last = (first + steps - 1).min(self.settings.job.training.steps);
        if first > last {
            return Err("the run is about to end: no step is left to trace".to_owned());
        }
        let steps = last + 1 - first;
        self.traced = Some((generation, first..last + 1));
        self.send_to_hosts(&ToWorker::Trace { generation, first, steps });
        let hosts = self.plan().hosts.clone();
        self.effects.push(Effect::Trace { first, steps, hosts });
        Ok(format!("steps {first} to {last} are traced"))
    }
}
