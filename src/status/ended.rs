//! A run that is not under way, by what its last launch left behind.

use std::path::Path;

use serde::Serialize;

use crate::events::{self, Event, Kind};
use crate::exit::Stopped;
use crate::metrics;
use crate::run_dir;
use crate::show::table;
use crate::terminal::harmless;

#[derive(Debug, Serialize)]
pub(super) struct Ended {
    phase: Phase,
    /// How; nothing if its launcher was killed.
    #[serde(rename = "ended")]
    how: Option<Kind>,
    why: Option<String>,
    /// The last committed step.
    step: u64,
    steps: u64,
    loss: Option<f64>,
    checkpoint_step: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Phase {
    Ended,
    /// Its launcher is at work: workers have yet to start, or have ended.
    NotTraining,
    /// It may be under way, but nobody answers.
    Unreachable,
}

impl Ended {
    pub(super) fn of(run: &Path, may_live: bool) -> Result<Self, Stopped> {
        let steps = run_dir::recorded_job_of(run)?.training.steps;
        // Without figures there was no step.
        let rows = metrics::read(&run.join("metrics.jsonl")).map(|known| known.rows);
        let last = rows.unwrap_or_default().pop();
        let checkpoints = shoal_weights::steps(&run.join("checkpoints")).unwrap_or_default();
        let end = last_end(events::read(run).unwrap_or_default());
        let (ended, why) = end.map(|event| (event.kind, event.fact)).unzip();
        let phase = match may_live {
            true => Phase::Unreachable,
            false if run_dir::is_held(run) => Phase::NotTraining,
            false => Phase::Ended,
        };
        let is_over = phase == Phase::Ended;
        Ok(Self {
            phase,
            how: ended.filter(|_| is_over),
            why: why.filter(|_| is_over),
            step: last.as_ref().map_or(0, |row| row.step),
            steps,
            loss: last.map(|row| row.loss),
            checkpoint_step: checkpoints.into_iter().max().unwrap_or(0),
        })
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.phase != Phase::Ended
    }

    pub(super) fn text(&self, run: &Path) -> String {
        let Self { step, steps, .. } = self;
        let why = self.why.as_deref().unwrap_or_default().replace('\n', "; ");
        let why = harmless(why.as_bytes());
        let how = match (self.phase, self.how) {
            (Phase::Unreachable, _) => "does not answer".to_owned(),
            (Phase::NotTraining, _) => {
                "its launcher is at work: it is about to start the workers, or to end".to_owned()
            }
            (Phase::Ended, Some(Kind::Finished)) => format!("not under way: finished ({why})"),
            (Phase::Ended, Some(Kind::Stopped)) => format!("not under way: stopped by {why}"),
            (Phase::Ended, Some(Kind::Failed)) => format!("not under way: failed: {why}"),
            (Phase::Ended, Some(_) | None) if *step == 0 => "not under way".to_owned(),
            (Phase::Ended, Some(_) | None) => "not under way: its launcher was killed".to_owned(),
        };
        let row = |name: &str, what: String| vec![name.to_owned(), what];
        let mut rows = vec![row("step", format!("{step} of {steps}"))];
        rows.extend(self.loss.map(|loss| row("loss", format!("{loss:.4}"))));
        let checkpoint = match self.checkpoint_step {
            0 => "none".to_owned(),
            step => format!("step {step}"),
        };
        rows.push(row("checkpoint", checkpoint));
        if self.phase == Phase::Ended {
            let go_on = match self.checkpoint_step {
                _ if self.how == Some(Kind::Finished) => {
                    "launch it with more training.steps to train further".to_owned()
                }
                0 => "the same `shoal launch` starts over".to_owned(),
                step => format!("the same `shoal launch` continues after step {step}"),
            };
            rows.push(row("to go on", go_on));
        }
        format!("{}: {how}\n{}", run.display(), table(&rows))
    }
}

/// Of the last launch.
fn last_end(events: Vec<Event>) -> Option<Event> {
    let of_last = events.into_iter().rev().take_while(|event| event.kind != Kind::Launched);
    let is_end =
        |event: &Event| matches!(event.kind, Kind::Finished | Kind::Stopped | Kind::Failed);
    of_last.filter(is_end).last()
}

#[cfg(test)]
pub(super) mod tests {
    use shoal_plan::plan::Generation;

    use super::*;

    pub(in crate::status) fn ended() -> Ended {
        Ended {
            phase: Phase::Ended,
            how: Some(Kind::Stopped),
            why: Some("Ctrl-C".to_owned()),
            step: 130,
            steps: 400,
            loss: Some(2.25),
            checkpoint_step: 130,
        }
    }

    #[test]
    fn a_run_that_is_over_says_how_it_ended_and_how_to_go_on() {
        let text = ended().text(Path::new("runs/small"));
        let want = "\
runs/small: not under way: stopped by Ctrl-C
  step        130 of 400
  loss        2.2500
  checkpoint  step 130
  to go on    the same `shoal launch` continues after step 130
";
        assert_eq!(text, want);
        let killed = Ended { how: None, checkpoint_step: 0, ..ended() };
        let text = killed.text(Path::new("r"));
        assert!(text.starts_with("r: not under way: its launcher was killed\n"), "{text}");
        assert!(text.ends_with("the same `shoal launch` starts over\n"), "{text}");
    }

    #[test]
    fn only_the_last_launch_counts() {
        let event = |kind, fact: &str| {
            let (generation, fact) = (Generation(1), fact.to_owned());
            Event { time: 0.0, seconds: 0.0, generation, step: 0, kind, worker: None, fact }
        };
        let stopped = [event(Kind::Launched, "1"), event(Kind::Stopped, "Ctrl-C")];
        let exited = event(Kind::Exited, "exit code 0");
        let found = |events: &[Event]| last_end(events.to_vec()).map(|event| event.fact);
        assert_eq!(found(&[&stopped[..], &[exited]].concat()), Some("Ctrl-C".to_owned()));
        assert_eq!(found(&[&stopped[..], &[event(Kind::Launched, "2")]].concat()), None);
    }
}
