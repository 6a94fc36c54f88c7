//! What changed between two manifests, and whether a run may go on regardless.

use std::fmt;

use serde_json::{Map, Value};

use crate::job::Job;
use crate::learning_rate::LrSchedule;

/// One value that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// As in the manifest, such as `spec.training.steps`.
    pub path: String,
    pub old: String,
    pub new: String,
    /// The run may go on from its checkpoint with the new value.
    pub harmless: bool,
    /// What the change means for the run.
    pub note: &'static str,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, old, new, note, .. } = self;
        write!(f, "{path}: {old} -> {new} ({note})")
    }
}

/// Everything that differs between the job a run was started with and the one it is given now.
pub fn difference(old: &Job, new: &Job) -> Vec<Change> {
    let json = |job: &Job| serde_json::to_value(job).expect("plain structs of numbers and text");
    let mut changes = Vec::new();
    compare("", &json(old), &json(new), &mut changes);
    for change in &mut changes {
        if change.path == "spec.training.steps" && old.training.steps < new.training.steps {
            change.harmless = true;
            change.note = match new.training.lr_schedule {
                LrSchedule::Constant => {
                    "harmless: more steps, at the same learning rate; weights that change at a \
                     share of the steps change later"
                }
                LrSchedule::Cosine | LrSchedule::Wsd | LrSchedule::V3 => {
                    "harmless: more steps; the learning rate from here on follows the longer \
                     schedule, so losses differ from a run planned so from the start"
                }
            };
        }
    }
    changes
}

fn compare(path: &str, old: &Value, new: &Value, changes: &mut Vec<Change>) {
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        let added = new.keys().filter(|key| !old.contains_key(*key));
        for key in old.keys().chain(added) {
            let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let of = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
            compare(&inner, &of(old), &of(new), changes);
        }
    } else if old != new {
        let (path, harmless, note) = meaning(path);
        changes.push(Change { path, old: show(old), new: show(new), harmless, note });
    }
}

/// The manifest's name of a path in `Job`, and what changing it means.
fn meaning(path: &str) -> (String, bool, &'static str) {
    const NUMBERS: &str = "changes the numbers";
    const SPEED: &str = "harmless: changes only the speed";
    const ORDER: &str = "harmless: changes only the speed, every loss stays the same bits";
    const AGAIN: &str = "harmless: changes memory and speed, every loss stays the same bits";
    const ROUNDING: &str = "harmless: sums run in another order, so losses go on within rounding";
    const DEVICE: &str =
        "harmless: a GPU and a CPU agree within rounding, so losses go on within it";
    const STORE: &str = "harmless: changes only what is kept";
    const SHOWN: &str = "harmless: changes only what is measured and shown";
    let (section, rest) = path.split_once('.').unwrap_or((path, ""));
    match section {
        "name" => ("metadata.name".to_owned(), false, "names another run"),
        "grid" | "division" => (format!("spec.parallelism.{rest}"), true, ROUNDING),
        "schedule" => ("spec.parallelism.schedule".to_owned(), true, ORDER),
        "workers" if path == "workers.device" => (format!("spec.{path}"), true, DEVICE),
        "workers" => (format!("spec.{path}"), true, SPEED),
        "checkpoint" => (format!("spec.{path}"), true, STORE),
        "evaluation" | "metrics" => (format!("spec.{path}"), true, SHOWN),
        _ => match path {
            "training.recompute" => (format!("spec.{path}"), true, AGAIN),
            "data.bytes_max" => ("spec.data.max_mb".to_owned(), false, NUMBERS),
            "data.heldout_fraction" => ("spec.data.heldout".to_owned(), false, NUMBERS),
            _ => (format!("spec.{path}"), false, NUMBERS),
        },
    }
}

fn show(value: &Value) -> String {
    match value {
        // Every fraction of a job is an f32: shown as one, 0.002 is not 0.0020000000949949026.
        Value::Number(number) if number.is_f64() => {
            format!("{}", number.as_f64().unwrap_or(f64::NAN) as f32)
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Precision, Recompute};
    use crate::model::{ModelConfig, RopeScaling};
    use crate::schedule::Schedule;

    fn check(change: impl Fn(&mut Job), wanted: &str) {
        let old = Job::example();
        let mut new = old.clone();
        change(&mut new);
        let found = difference(&old, &new);
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(lines.len() == 1 && lines[0].starts_with(wanted), "{lines:?}, want {wanted}");
        assert_eq!(found[0].harmless, found[0].note.starts_with("harmless"));
    }

    #[test]
    fn equal_jobs_do_not_differ() {
        assert_eq!(difference(&Job::example(), &Job::example()), []);
    }

    #[test]
    fn more_steps_say_what_becomes_of_the_learning_rate() {
        for (schedule, wanted) in [
            (LrSchedule::Cosine, "follows the longer schedule"),
            (LrSchedule::Wsd, "follows the longer schedule"),
            (LrSchedule::Constant, "at the same learning rate"),
        ] {
            let mut old = Job::example();
            old.training.lr_schedule = schedule;
            let mut new = old.clone();
            new.training.steps = 500;
            let changes = difference(&old, &new);
            assert!(changes[0].harmless && changes[0].note.contains(wanted), "{changes:?}");
        }
    }

    #[test]
    fn changes_are_named_as_in_the_manifest_and_judged() {
        check(|job| job.training.steps = 500, "spec.training.steps: 300 -> 500 (harmless: more");
        check(|job| job.training.steps = 5, "spec.training.steps: 300 -> 5 (changes the numbers)");
        check(
            |job| job.training.init = Some("w".into()),
            "spec.training.init: null -> \"w\" (changes the numbers)",
        );
        check(|job| job.training.lr = 1e-3, "spec.training.lr: 0.002 -> 0.001 (changes the");
        check(|job| job.workers.local = 2, "spec.workers.local: 1 -> 2 (harmless: changes only");
        check(|job| job.checkpoint.keep = 9, "spec.checkpoint.keep: 3 -> 9 (harmless");
        check(
            |job| job.checkpoint.memory.copies = 2,
            "spec.checkpoint.memory.copies: 1 -> 2 (harmless: changes only what is kept",
        );
        check(|job| job.grid.stages = 2, "spec.parallelism.stages: 1 -> 2 (harmless: sums");
        check(
            |job| job.schedule = Schedule::ZbH1,
            "spec.parallelism.schedule: \"1f1b\" -> \"zb-h1\" (harmless: changes only the speed, \
             every loss stays the same bits)",
        );
        check(
            |job| job.training.recompute = Recompute::All,
            "spec.training.recompute: \"none\" -> \"all\" (harmless: changes memory and speed",
        );
        check(
            |job| job.training.lr_schedule = LrSchedule::Wsd,
            "spec.training.lr_schedule: \"cosine\" -> \"wsd\" (changes the numbers)",
        );
        check(
            |job| job.training.lr_decay_fraction = 0.5,
            "spec.training.lr_decay_fraction: 0.2 -> 0.5 (changes the numbers)",
        );
        check(|job| job.name = "b".into(), "metadata.name: \"example\" -> \"b\" (names another");
        check(|job| job.data.bytes_max = 1, "spec.data.max_mb: 64000000 -> 1 (changes");
        check(|job| job.data.sources[0].weight = 2.0, "spec.data.sources");
        check(
            |job| job.training.precision = Precision::F32,
            "spec.training.precision: \"fp8\" -> \"f32\" (changes the numbers)",
        );
        check(
            |job| job.model = ModelConfig { q_lora_rank: None, ..ModelConfig::tiny() },
            "spec.model.q_lora_rank: 96 -> null (changes the numbers)",
        );
        check(
            |job| job.model.tie_word_embeddings = true,
            "spec.model.tie_word_embeddings: false -> true (changes the numbers)",
        );
        check(
            |job| job.model.rope_scaling = Some(RopeScaling::yarn(4.0, 64)),
            "spec.model.rope_scaling: null -> {\"",
        );
    }

    #[test]
    fn a_weight_that_was_not_written_before_is_a_change() {
        let mut old = Job::example();
        old.model.rope_scaling = Some(RopeScaling::yarn(4.0, 64));
        let mut new = old.clone();
        new.model.rope_scaling =
            Some(RopeScaling { mscale: Some(0.5), ..RopeScaling::yarn(4.0, 64) });
        let path = "spec.model.rope_scaling.mscale";
        let line = |old: &Job, new: &Job| difference(old, new)[0].to_string();
        assert_eq!(line(&old, &new), format!("{path}: null -> 0.5 (changes the numbers)"));
        assert_eq!(line(&new, &old), format!("{path}: 0.5 -> null (changes the numbers)"));
    }
}
