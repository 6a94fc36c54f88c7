//! Replays a ledger line by line and holds it to its promises: committed steps follow each other,
//! every sequence is trained once, and what is done again comes out the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// What became of every sequence, and of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Sequences in force.
    pub(crate) trained: u64,
    pub(crate) skipped: u64,
    pub(crate) passed_over: u64,
    /// Committed steps in force.
    pub(crate) steps: u64,
    /// Committed steps that were taken back.
    pub(crate) taken_back: u64,
    /// The generation of the last line.
    pub(crate) generation: u64,
}

/// A span of sequences in force: a step's, or those passed over before it.
#[derive(Clone, Debug)]
struct Span {
    step: u64,
    first: u64,
    end: u64,
    what: What,
    loss: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Trained,
    Skipped,
    PassedOver,
}

/// The account of a run directory's ledger, which must be in order. Nothing before the first line.
#[track_caller]
pub(crate) fn account(run_dir: &Path) -> Account {
    let path = run_dir.join("ledger.jsonl");
    let text = fs::read_to_string(&path).unwrap_or_default();
    match replay(&text) {
        Ok(account) => account,
        Err(why) => panic!("{}: {why}", path.display()),
    }
}

/// The first line that breaks a promise is named.
pub(crate) fn replay(text: &str) -> Result<Account, String> {
    let mut ledger = Ledger::default();
    for (line, number) in text.split_inclusive('\n').zip(1..) {
        // A run that is under way may be in the midst of a line.
        if line.ends_with('\n') {
            ledger.add(line).map_err(|why| format!("line {number}: {why}: {line}"))?;
        }
    }
    Ok(ledger.account())
}

#[derive(Default)]
struct Ledger {
    in_force: Vec<Span>,
    /// The last taken-back span of each step.
    before: BTreeMap<u64, Span>,
    taken_back: u64,
    generation: u64,
}

impl Ledger {
    fn add(&mut self, line: &str) -> Result<(), String> {
        let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let number = |key: &str| value[key].as_u64();
        if let Some(to) = number("rolled_back_to") {
            return self.go_back(to, number("next_sequence"));
        }
        let (step, first) = (number("step"), number("first_sequence"));
        let (Some(step), Some(first), Some(n)) = (step, first, number("sequences")) else {
            return Err("neither a step nor a rollback".to_owned());
        };
        let (last, end) = (self.last_step(), self.end());
        if step != last + 1 {
            return Err(format!("step {step} after step {last}"));
        }
        if first != end {
            return Err(format!("sequence {first} after sequence {end}"));
        }
        let generation = number("generation").ok_or("no generation")?;
        // Every launch counts its plans from 1.
        if generation < self.generation && generation != 1 {
            return Err(format!("generation {generation} after {}", self.generation));
        }
        self.generation = generation;
        let loss = value["loss"].as_f64().map(f64::to_bits);
        if loss.is_some() == value["skipped"].is_string() {
            return Err("want a loss or a reason to skip".to_owned());
        }
        let what = if loss.is_some() { What::Trained } else { What::Skipped };
        let span = Span { step, first, end: first + n, what, loss };
        if let Some(before) = self.before.get(&step)
            && before.first == span.first
            && (before.end, before.loss) != (span.end, span.loss)
        {
            return Err(format!("step {step} is done again, and differs from {before:?}"));
        }
        self.in_force.push(span);
        Ok(())
    }

    fn go_back(&mut self, to: u64, next: Option<u64>) -> Result<(), String> {
        let last = self.last_step();
        if to > last {
            return Err(format!("back to step {to} from step {last}"));
        }
        let at = self.in_force.partition_point(|span| span.step <= to);
        for span in self.in_force.split_off(at) {
            self.taken_back += u64::from(span.what != What::PassedOver);
            self.before.insert(span.step, span);
        }
        if let Some(next) = next {
            let first = self.end();
            if next < first {
                return Err(format!("back to sequence {next} before {first}"));
            }
            // What is passed over after step N belongs to step N + 1.
            let (step, what) = (to + 1, What::PassedOver);
            self.in_force.push(Span { step, first, end: next, what, loss: None });
        }
        Ok(())
    }

    /// The last committed step in force.
    fn last_step(&self) -> u64 {
        let done = self.in_force.iter().rev().find(|span| span.what != What::PassedOver);
        done.map_or(0, |span| span.step)
    }

    fn end(&self) -> u64 {
        self.in_force.last().map_or(0, |span| span.end)
    }

    fn account(&self) -> Account {
        let of = |what: What| {
            let spans = self.in_force.iter().filter(move |span| span.what == what);
            spans.map(|span| span.end - span.first).sum()
        };
        Account {
            trained: of(What::Trained),
            skipped: of(What::Skipped),
            passed_over: of(What::PassedOver),
            steps: self.last_step(),
            taken_back: self.taken_back,
            generation: self.generation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(generation: u64, step: u64, loss: f64) -> String {
        let first = (step - 1) * 4;
        format!(
            "{{\"generation\":{generation},\"step\":{step},\"first_sequence\":{first},\
             \"sequences\":4,\"loss\":{loss}}}\n"
        )
    }

    fn rows(steps: std::ops::RangeInclusive<u64>) -> String {
        steps.map(|step| row(1, step, 5.0 - step as f64)).collect()
    }

    #[test]
    fn steps_that_are_taken_back_and_done_again_count_once() {
        let text = format!("{}{{\"rolled_back_to\":2}}\n{}", rows(1..=4), rows(3..=5));
        let account = replay(&text).unwrap();
        assert_eq!((account.trained, account.steps, account.taken_back), (20, 5, 2));
    }

    #[test]
    fn every_broken_promise_is_found() {
        let good = rows(1..=3);
        for (broken, want) in [
            (format!("{good}{}", row(1, 5, 1.0)), "step 5 after step 3"),
            (format!("{good}{}", row(1, 3, 2.0)), "step 3 after step 3"),
            (format!("{good}{{\"rolled_back_to\":4}}\n"), "back to step 4 from step 3"),
            (
                format!("{good}{}", row(1, 4, 1.0).replace("\":12", "\":13")),
                "sequence 13 after sequence 12",
            ),
            (format!("{}{}", row(3, 1, 4.0), row(2, 2, 3.0)), "generation 2 after 3"),
            (
                format!("{good}{{\"rolled_back_to\":2}}\n{}", row(2, 3, 2.5)),
                "step 3 is done again, and differs",
            ),
            (good.replace(",\"loss\":3", ""), "want a loss or a reason to skip"),
            (format!("{good}nonsense\n"), "line 4"),
        ] {
            let why = replay(&broken).unwrap_err();
            assert!(why.contains(want), "want {want:?} in {why:?}");
        }
        assert!(replay(&format!("{good}{{\"gener")).is_ok(), "a line that is being written");
    }
}
