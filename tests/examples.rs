//! Every manifest below `examples/` trains: with the real binary, shortened to two steps.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use shoal_plan::arithmetic::parameters;
use shoal_plan::job::Job;
use shoal_plan::manifest::{SCHEMA_FILE, parse, schema};
use shoal_plan::model::ModelConfig;

/// What makes a run short and leaves its grid, its processes and its precision as they are. Samples
/// at the end read as many tokens as the model has positions.
const SHORT: [&str; 7] = [
    "model.max_position_embeddings=16",
    "training.sequence=16",
    "training.microbatch=2",
    "training.warmup_steps=1",
    "evaluation.tokens_max=64",
    "data.max_mb=0.2",
    "checkpoint.every=1000",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The manifests, by their names below `examples/`.
fn examples() -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![root().join("examples")];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.file_name().unwrap() != "run" {
                assert_eq!(path.extension().unwrap(), "yaml", "{}", path.display());
                let name = path.strip_prefix(root().join("examples")).unwrap();
                found.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn text(name: &str) -> String {
    fs::read_to_string(root().join("examples").join(name)).unwrap()
}

/// The job of an example. One that trains on starts from weights of the preset `tiny`.
fn job(name: &str) -> Job {
    let mut config = serde_json::to_value(ModelConfig::tiny()).unwrap();
    config["model_type"] = "deepseek_v3".into();
    let read = |_: &Path| Ok(config.to_string());
    parse(name, &text(name), &[], &read).unwrap().job
}

/// What makes an example that trains on start from a run that is there.
fn from_there(name: &str) -> Vec<String> {
    static SOURCE: OnceLock<PathBuf> = OnceLock::new();
    if job(name).training.init.is_none() {
        return Vec::new();
    }
    let source = SOURCE.get_or_init(|| {
        let source = run_dir("source");
        launch("quickstart.yaml", &source, 2);
        source
    });
    vec!["--set".to_owned(), format!("training.init={}", source.display())]
}

/// The binary, where a person would run it. `TEXT` is the reader's own, not the example's.
fn shoal(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.args(args).current_dir(root()).env_remove("TEXT").stdin(Stdio::null());
    command.output().unwrap()
}

/// A tokenizer is trained on so little text soon, if it is small.
fn vocabulary(job: &Job) -> String {
    format!("model.vocab_size={}", job.model.vocab_size.min(512))
}

/// A directory for one run, empty.
fn run_dir(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("examples").join(name);
    let _ = fs::remove_dir_all(&path);
    path
}

/// Launches an example, shortened, and returns what it told people on standard error.
fn launch(name: &str, run_dir: &Path, steps: u32) -> String {
    let (steps, vocabulary) = (format!("training.steps={steps}"), vocabulary(&job(name)));
    let manifest = format!("examples/{name}");
    let mut args = vec!["launch", &manifest, "--run-dir", run_dir.to_str().unwrap()];
    for change in [steps.as_str(), &vocabulary].iter().chain(&SHORT) {
        args.extend(["--set", change]);
    }
    let source = from_there(name);
    args.extend(source.iter().map(String::as_str));
    let output = shoal(&args);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{name}: {told}");
    told
}

fn is_finite(value: &Value) -> bool {
    value.as_f64().is_some_and(f64::is_finite)
}

/// The lines of `metrics.jsonl` about steps, without the speed.
fn steps(run_dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut rows: Vec<Value> = rows.filter(|row| row["evaluation"].is_null()).collect();
    for row in &mut rows {
        row.as_object_mut().unwrap().remove("tokens_per_second").unwrap();
    }
    rows
}

#[test]
fn every_example_trains_two_steps_to_finite_losses() {
    for name in examples() {
        let run_dir = run_dir(&name);
        launch(&name, &run_dir, 2);
        let rows = steps(&run_dir);
        assert_eq!(rows.len(), 2, "{name}");
        assert!(rows.iter().all(|row| is_finite(&row["loss"])), "{name}: {rows:?}");
        let summary = fs::read_to_string(run_dir.join("summary.json")).unwrap();
        let summary: Value = serde_json::from_str(&summary).unwrap();
        let job = job(&name);
        assert_eq!(summary["workers"], job.workers.local, "{name}");
        assert!(is_finite(&summary["train_loss"]), "{name}: {summary}");
        let evaluations = summary["evaluations"].as_object().unwrap();
        assert_eq!(evaluations.len(), 1 + job.evaluation.sets.len(), "{name}: {summary}");
        let per_byte = |row: &Value| is_finite(&row["loss"]) && is_finite(&row["bits_per_byte"]);
        assert!(evaluations.values().all(per_byte), "{name}: {summary}");
        fs::remove_dir_all(&run_dir).unwrap();
    }
}

#[test]
fn the_example_of_going_on_loses_nothing_by_the_stop() {
    let (stopped, alone) = (run_dir("stopped"), run_dir("alone"));
    launch("resume.yaml", &stopped, 2);
    let told = launch("resume.yaml", &stopped, 4);
    assert!(told.contains("continuing after step 2"), "{told}");
    launch("resume.yaml", &alone, 4);
    assert_eq!(steps(&alone).len(), 4);
    assert_eq!(steps(&stopped), steps(&alone), "bit-equal");
}

#[test]
fn every_example_is_valid_as_it_stands() {
    for name in examples() {
        let (manifest, source) = (format!("examples/{name}"), from_there(&name));
        let mut args = vec!["validate", &manifest];
        args.extend(source.iter().map(String::as_str));
        if !source.is_empty() {
            // The source was made short; the real one is as long as its preset.
            args.extend(["--set", "model.max_position_embeddings=512"]);
        }
        let output = shoal(&args);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_example_trains_on_versions_that_are_locked() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for name in examples() {
        let manifest = text(&name);
        let crates = manifest.lines().filter_map(|line| line.split_once("/src/*/"));
        let crates: Vec<&str> = crates.filter_map(|(_, rest)| rest.split('/').next()).collect();
        assert!(!crates.is_empty(), "{name} needs text that is on every machine");
        for one in crates {
            let (package, version) = one.rsplit_once('-').unwrap();
            let entry = format!("name = \"{package}\"\nversion = \"{version}\"");
            assert!(lock.contains(&entry), "{one} is not in Cargo.lock: change examples/{name}");
        }
    }
}

#[test]
fn every_example_says_how_to_run_it() {
    for name in examples() {
        let command = format!("#   cargo run --release -- launch examples/{name}");
        let with_text = format!("#   TEXT=~/notes cargo run --release -- launch examples/{name}");
        let manifest = text(&name);
        let mut lines = manifest.lines();
        assert!(lines.any(|line| line == command || line == with_text), "{name}");
    }
}

#[test]
fn the_dense_baseline_differs_from_the_quickstart_in_the_experts_alone() {
    let (mixture, dense) = (job("quickstart.yaml"), job("dense-baseline.yaml"));
    assert_eq!(dense.training, mixture.training);
    assert_eq!(dense.data, mixture.data);
    let (mixture, dense) = (parameters(&mixture.model), parameters(&dense.model));
    assert_eq!(dense.total, dense.active);
    let ratio = dense.active as f64 / mixture.active as f64;
    assert!((ratio - 1.0).abs() < 0.01, "{dense:?}, {mixture:?}");
    assert!(mixture.total > 2 * dense.total, "{dense:?}, {mixture:?}");
}

#[test]
fn every_ablation_differs_from_the_base_in_one_knob() {
    let base = job("ablation/base.yaml");
    for name in ["bias-off", "balance-off", "mtp-0", "mtp-2"] {
        let mut other = job(&format!("ablation/{name}.yaml"));
        assert_ne!((&other.training, &other.model), (&base.training, &base.model), "{name}");
        other.name.clone_from(&base.name);
        match name {
            "bias-off" => other.training.bias_speed = base.training.bias_speed,
            "balance-off" => other.training.balance_weight = base.training.balance_weight,
            _ => other.model.num_nextn_predict_layers = base.model.num_nextn_predict_layers,
        }
        assert_eq!(other, base, "{name}");
    }
}

/// The two claims of `examples/experts`: equal active, and equal total parameters.
#[test]
fn the_dense_models_beside_the_experts_are_as_large_as_they_say() {
    let mixture = job("experts/moe.yaml");
    let of = parameters(&mixture.model);
    for (name, want) in [("dense-active", of.active), ("dense-total", of.total)] {
        let dense = job(&format!("experts/{name}.yaml"));
        assert_eq!((&dense.training, &dense.data), (&mixture.training, &mixture.data), "{name}");
        let got = parameters(&dense.model).total;
        assert!((got as f64 / want as f64 - 1.0).abs() < 0.01, "{name}: {got}, want {want}");
    }
}

#[test]
fn the_examples_of_precision_differ_in_nothing_else() {
    let mut jobs = ["fp8", "bf16", "f32"].map(|name| job(&format!("precision/{name}.yaml")));
    let mut seen: Vec<String> = Vec::new();
    for job in &mut jobs {
        seen.push(job.training.precision.to_string());
        job.training.precision = shoal_plan::job::Precision::F32;
        job.name.clear();
    }
    assert_eq!(seen, ["fp8", "bf16", "f32"]);
    assert!(jobs.iter().all(|job| *job == jobs[0]));
}

#[test]
fn the_schema_takes_every_example_and_every_example_names_it() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let examples = examples();
    assert!(!examples.is_empty());
    for name in examples {
        let path = root().join("examples").join(&name);
        let text = text(&name);
        let errors: Vec<String> = validator
            .iter_errors(&serde_saphyr::from_str(&text).unwrap())
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        let first = text.lines().next().unwrap();
        let named = first.strip_prefix("# yaml-language-server: $schema=").unwrap_or_default();
        let named = path.parent().unwrap().join(named);
        let schema = root().join(SCHEMA_FILE).canonicalize().unwrap();
        assert_eq!(named.canonicalize().unwrap_or_default(), schema, "{}", path.display());
    }
}
