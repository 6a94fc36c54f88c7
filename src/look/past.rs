//! What was seen, look by look: the newest look, losses, rates between two looks, and what was seen to happen. No clock,
//! no screen.

use std::collections::{BTreeMap, VecDeque};

use shoal_plan::plan::WorkerId;

use super::{Look, Traffic};

/// More of the past than any terminal is wide.
const LOSSES_MAX: usize = 4096;

/// Of what was seen to happen.
const EVENTS_MAX: usize = 256;

#[derive(Debug, Default)]
pub(crate) struct Past {
    pub(crate) look: Look,
    pub(crate) losses: Vec<(u64, f64)>,
    /// Bytes a second, by worker.
    pub(crate) rates: BTreeMap<WorkerId, Traffic>,
    /// Seen to happen; where a run's file says what happened, that is shown instead.
    pub(crate) seen: VecDeque<String>,
}

impl Past {
    /// Takes in a look.
    pub(crate) fn take(&mut self, look: Look) {
        let is_first = self.look.title.is_empty();
        let same_run = match (&self.look.run, &look.run) {
            (Some(before), Some(now)) => before.name == now.name,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if same_run {
            self.rate(&look);
        } else {
            self.losses.clear();
            self.rates.clear();
        }
        self.lose(&look);
        if !is_first {
            self.seen.extend(differences(&self.look, &look));
            self.forget();
        }
        self.look = look;
    }

    fn forget(&mut self) {
        while self.seen.len() > EVENTS_MAX {
            self.seen.pop_front();
        }
    }

    /// Nobody answered: what was seen before stands, and is said to be old.
    pub(crate) fn trouble(&mut self, why: String) {
        if self.look.trouble.as_ref() != Some(&why) {
            self.seen.push_back(why.clone());
            self.forget();
        }
        self.look.trouble = Some(why);
    }

    /// Bytes a second since the look before.
    fn rate(&mut self, look: &Look) {
        let seconds = look.seconds - self.look.seconds;
        let (Some(before), Some(now)) = (&self.look.run, &look.run) else { return };
        if seconds <= 0.0 {
            return;
        }
        let rates = now.traffic.iter().filter_map(|(worker, now)| {
            let before = before.traffic.get(worker)?;
            // A worker that was started anew counts from 0.
            let rate = |now: f64, before: f64| (now - before).max(0.0) / seconds;
            let sent = rate(now.sent, before.sent);
            Some((*worker, Traffic { sent, received: rate(now.received, before.received) }))
        });
        self.rates = rates.collect();
    }

    /// Losses of the files, or one more of what the run says.
    fn lose(&mut self, look: &Look) {
        let Some(run) = &look.run else { return };
        if !run.losses.is_empty() {
            self.losses.clone_from(&run.losses);
            return;
        }
        let Some((step, loss)) = run.status.as_ref().and_then(|s| Some((s.step, s.loss?))) else {
            return;
        };
        // A run that went back says smaller steps again.
        self.losses.retain(|(known, _)| *known < step);
        self.losses.push((step, loss));
        thin(&mut self.losses);
    }
}

/// Every second of the older half, so that what is kept has an end.
pub(crate) fn thin(losses: &mut Vec<(u64, f64)>) {
    if losses.len() > LOSSES_MAX {
        let (mut at, half) = (0, LOSSES_MAX / 2);
        losses.retain(|_| {
            at += 1;
            at > half || at % 2 == 0
        });
    }
}

/// What is different now, as sentences.
fn differences(before: &Look, now: &Look) -> Vec<String> {
    let mut told = Vec::new();
    for rig in &now.rigs {
        match before.rigs.iter().find(|old| old.name == rig.name) {
            None => told.push(format!("rig {} is here", rig.name)),
            Some(old) => {
                if old.is != rig.is {
                    told.push(format!("rig {} is {}, was {}", rig.name, rig.is, old.is));
                }
                if old.cordoned != rig.cordoned {
                    let is = if rig.cordoned { "cordoned" } else { "given work again" };
                    told.push(format!("rig {} is {is}", rig.name));
                }
            }
        }
    }
    for job in &now.jobs {
        match before.jobs.iter().find(|old| old.name == job.name) {
            Some(old) if old.phase == job.phase => {}
            Some(_) | None => {
                let why = job.why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
                told.push(format!("job {} is {}{why}", job.name, job.phase));
            }
        }
    }
    let status = |look: &'_ Look| look.run.as_ref().and_then(|run| run.status.clone());
    if let (Some(old), Some(new)) = (status(before), status(now)) {
        if old.generation != new.generation {
            told.push(format!("plan {} is in force after step {}", new.generation, new.step));
        }
        if old.phase != new.phase {
            let why = new.why.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            told.push(format!("the run is {}{why}", new.phase));
        }
        for worker in &new.workers {
            let was = old.workers.iter().find(|old| old.worker == worker.worker);
            if was.is_some_and(|was| was.state != worker.state) {
                told.push(format!("{} is {}", worker.worker, worker.state));
            }
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::Run;

    fn look(seconds: f64, sent: f64) -> Look {
        let traffic = BTreeMap::from([(WorkerId(0), Traffic { sent, received: sent * 2.0 })]);
        let run = Run { name: "a".to_owned(), traffic, ..Run::default() };
        Look { seconds, title: "a".to_owned(), run: Some(run), ..Look::default() }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks_and_never_negative() {
        let mut past = Past::default();
        past.take(look(1.0, 100.0));
        assert!(past.rates.is_empty());
        past.take(look(3.0, 500.0));
        assert_eq!(past.rates[&WorkerId(0)], Traffic { sent: 200.0, received: 400.0 });
        // Started anew, it counts from 0.
        past.take(look(4.0, 10.0));
        assert_eq!(past.rates[&WorkerId(0)], Traffic::default());
        let mut other = look(5.0, 1e9);
        other.run.as_mut().unwrap().name = "b".to_owned();
        past.take(other);
        assert!(past.rates.is_empty(), "another run's bytes are no rate of this one");
    }

    #[test]
    fn what_is_kept_has_an_end() {
        let mut losses: Vec<(u64, f64)> = (0..=LOSSES_MAX as u64).map(|step| (step, 1.0)).collect();
        thin(&mut losses);
        assert!(losses.len() <= LOSSES_MAX && losses.len() > LOSSES_MAX / 2);
        assert_eq!(losses.last(), Some(&(LOSSES_MAX as u64, 1.0)));
        let mut past = Past::default();
        for n in 0..2 * EVENTS_MAX {
            past.trouble(format!("trouble {n}"));
        }
        assert!(past.seen.len() <= EVENTS_MAX);
    }
}
