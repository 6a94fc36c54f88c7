//! Models as directories: a run is exported, imported, and trained on from its weights on several
//! grids. The real binary on a network that trains a step in a moment.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

#[path = "processes/network.rs"]
mod network;

use network::SMALL_NETWORK;

/// A directory for one test.
struct Place(PathBuf);

/// How the binary ended.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shoal-models-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        let mut text = String::new();
        for i in 0..3000_u32 {
            let _ = writeln!(text, "the {}th fish swims {} miles", i % 97, i * 7 % 31);
        }
        fs::write(path.join("text.txt"), text).unwrap();
        Self(path)
    }

    /// A manifest in FP32; `rest` has further lines of `spec.training` and further sections.
    fn manifest(&self, name: &str, model: &str, rest: &str) {
        let text = format!(
            "apiVersion: shoal/v1
kind: Training
metadata:
  name: {name}
spec:
  data:
    files: text.txt
  workers:
    threads: 1
{model}  training:
    batch: 4
    sequence: 32
    warmup_steps: 0
    precision: f32
{rest}"
        );
        fs::write(self.0.join(format!("{name}.yaml")), text).unwrap();
    }

    fn shoal(&self, args: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        let command = command.args(args).current_dir(&self.0).env_remove("RUST_LOG");
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: status.code(), out: text(stdout), err: text(stderr) }
    }

    fn done(&self, args: &[&str]) -> Ended {
        let ended = self.shoal(args);
        assert_eq!(ended.code, Some(0), "{args:?}\n{}\n{}", ended.out, ended.err);
        ended
    }

    fn refused(&self, code: i32, args: &[&str], want: &str) {
        let ended = self.shoal(args);
        assert_eq!(ended.code, Some(code), "{args:?}\n{}\n{}", ended.out, ended.err);
        assert!(ended.err.contains(want), "{args:?}: {}\nwant {want}", ended.err);
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&fs::read(self.0.join(file)).unwrap()).unwrap()
    }

    /// The loss of the first step, and the held-out loss at the end.
    fn losses(&self, run: &str) -> (f64, f64) {
        let rows = fs::read_to_string(self.0.join(run).join("metrics.jsonl")).unwrap();
        let rows: Vec<Value> =
            rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let first = rows.iter().find_map(|row| row["main_loss"].as_f64()).unwrap();
        let summary = self.json(&format!("{run}/summary.json"));
        (first, summary["evaluations"]["heldout"]["loss"].as_f64().unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A run of six steps in `first`.
fn trained(name: &str) -> Place {
    let place = Place::new(name);
    let model = format!("  model:\n{SMALL_NETWORK}    vocab_size: 257\n");
    place.manifest("first", &model, "    steps: 6\n    lr: 0.01\n    ema: 0.5\n");
    place.done(&["launch", "first.yaml", "--run-dir", "first"]);
    place
}

/// Steps so small that they change nothing: what is evaluated are the weights that were loaded.
const STANDSTILL: &str = "    steps: 1\n    lr: 1.0e-9\n    bias_speed: 0\n";

#[test]
fn a_run_is_exported_imported_and_trained_on_from_on_every_grid() {
    let place = trained("around");
    place.done(&["export", "first", "-o", "f32", "--dtype", "f32"]);
    let shards = ["--dtype", "f32", "--shard-size", "1", "--show", "json"];
    let shown = place.done(&[&["import", "f32", "-o", "again"], &shards[..]].concat());
    let shown: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!((&shown["dtype"], &shown["eos_token_id"]), (&"f32".into(), &256.into()));
    let config = place.json("again/config.json");
    assert_eq!(config["torch_dtype"], "float32");
    assert_eq!(config["eos_token_id"], 256);
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert!(place.0.join("again").join(file).is_file(), "{file}");
    }

    // The held-out loss of the source, and of what starts from it before its first step.
    let (_, source) = place.losses("first");
    let (mut first_losses, mut heldout) = (Vec::new(), Vec::new());
    for (at, (init, grid)) in [
        ("again", "{stages: 1}"),
        ("f32", "{stages: 2, expert_shards: 2}"),
        ("first", "{stages: 1, expert_shards: 2}"),
        ("first/checkpoints/step-6", "{stages: 2}"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("next-{at}");
        let rest = format!("{STANDSTILL}    init: {init}\n  parallelism: {grid}\n");
        place.manifest(&name, "", &rest);
        let ended = place.done(&["launch", &format!("{name}.yaml"), "--run-dir", &name]);
        assert!(ended.err.contains("starting from the weights in"), "{}", ended.err);
        let (first, after) = place.losses(&name);
        first_losses.push(first);
        heldout.push(after);
    }
    // FP32 sums in another order: a few parts in ten million each.
    let alike = |a: f64, b: f64| ((a - b) / b).abs() < 1e-5;
    assert!(first_losses.iter().all(|loss| alike(*loss, first_losses[0])), "{first_losses:?}");
    assert!(heldout.iter().all(|loss| alike(*loss, source)), "{heldout:?}, want {source}");

    // A run that goes on neither reads the weights again nor takes others.
    let launch = ["launch", "next-0.yaml", "--run-dir", "next-0", "--set", "training.steps=2"];
    let ended = place.done(&launch);
    assert!(!ended.err.contains("starting from the weights"), "{}", ended.err);
    let other = [&launch[..], &["--set", "training.init=f32"]].concat();
    place.refused(2, &other, "spec.training.init: \"again\" -> \"f32\" (changes the numbers)");
}

#[test]
fn modules_that_the_weights_do_not_have_start_fresh_and_one_too_many_is_left_out() {
    let place = Place::new("modules");
    let model = format!("  model:\n{SMALL_NETWORK}    vocab_size: 256\n");
    place.manifest("first", &model, "    steps: 2\n");
    let none = ["--set", "model.num_nextn_predict_layers=0"];
    place.done(&[&["launch", "first.yaml", "--run-dir", "none"], &none[..]].concat());
    place.done(&["launch", "first.yaml", "--run-dir", "one"]);
    place.manifest("next", "", &format!("{STANDSTILL}    init: none\n"));
    let one = ["--set", "model.num_nextn_predict_layers=1"];
    let launch = ["launch", "next.yaml", "--run-dir"];
    let ended = place.done(&[&launch, &["a"][..], &one].concat());
    assert!(
        ended.err.contains("1 multi-token-prediction module(s) are not there"),
        "{}",
        ended.err
    );
    let from_one = ["b", "--set", "training.init=one"];
    let ended = place.done(&[&launch, &from_one[..], &none].concat());
    assert!(ended.err.contains("module(s) of the weights are left out"), "{}", ended.err);
}

#[test]
fn the_average_fp8_and_bf16_leave_as_files_of_their_own() {
    let place = trained("forms");
    for args in [
        &["export", "first", "-o", "bf16"][..],
        &["export", "first", "-o", "average", "--average"],
        &["export", "first", "-o", "fp8", "--dtype", "fp8"],
    ] {
        place.done(args);
    }
    let weights = |name: &str| fs::read(place.0.join(name).join("model.safetensors")).unwrap();
    assert_ne!(weights("bf16"), weights("average"));
    assert!(weights("fp8").len() < weights("bf16").len());
    let config = place.json("fp8/config.json");
    assert_eq!(config["quantization_config"]["quant_method"], "fp8");
    assert_eq!(config["quantization_config"]["weight_block_size"], serde_json::json!([128, 128]));
    place.refused(5, &["export", "bf16", "-o", "x", "--average"], "no average of the parameters");
    // What is exported twice is the same, and what is FP8 stays the same numbers.
    place.done(&["export", "bf16", "-o", "bf16-again"]);
    assert_eq!(weights("bf16"), weights("bf16-again"));
    place.done(&["import", "fp8", "-o", "wide", "--dtype", "f32"]);
    place.done(&["export", "wide", "-o", "fp8-again", "--dtype", "fp8"]);
    assert_eq!(weights("fp8"), weights("fp8-again"));
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_written() {
    let place = trained("wrong");
    place.done(&["export", "first", "-o", "good"]);
    let before = fs::read(place.0.join("good/model.safetensors")).unwrap();
    place.refused(2, &["export", "first", "-o", "good"], "good exists");
    place.refused(2, &["export", "first", "-o", "first", "--force"], "first exists");
    place.refused(5, &["import", "gone", "-o", "out"], "there is no such directory");
    place.refused(2, &["import", "good"], "--output");
    place.refused(2, &["import", "good", "-o", "out", "--dtype", "f64"], "f64");
    fs::write(place.0.join("good/model.safetensors"), &before[..before.len() - 1]).unwrap();
    place.refused(5, &["import", "good", "-o", "out"], "model.safetensors is damaged");
    place.done(&["export", "first", "-o", "good", "--force"]);
    assert_eq!(fs::read(place.0.join("good/model.safetensors")).unwrap(), before);

    let config = fs::read_to_string(place.0.join("good/config.json")).unwrap();
    let with = |old: &str, new: &str| {
        assert!(config.contains(old), "{config}");
        fs::write(place.0.join("good/config.json"), config.replace(old, new)).unwrap();
    };
    place.done(&["export", "first", "-o", "bf16"]);
    with("\"vocab_size\": 257", "\"vocab_size\": 200");
    place.refused(5, &["import", "good", "-o", "out"], "lm_head.weight: BF16 [257, 32], want");
    with("\"moe_intermediate_size\": 16", "\"moe_intermediate_size\": 17");
    place.refused(5, &["import", "good", "-o", "out"], "... and ");
    with("deepseek_v3\"", "deepseek_v2\"");
    place.refused(5, &["import", "good", "-o", "out"], "its router is a softmax");
    let left = fs::read_dir(&place.0).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<String> = left.map(|name| name.into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name == "out" || name.starts_with('.')), "{left:?}");

    // A flipped bit in a checkpoint that is named itself: its hash tells.
    let master = place.0.join("first/checkpoints/step-6/master-cell-0.safetensors");
    let mut bytes = fs::read(&master).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&master, bytes).unwrap();
    let step = "first/checkpoints/step-6";
    place.refused(5, &["export", step, "-o", "out"], "master-cell-0.safetensors is damaged");
    place.refused(5, &["export", "first", "-o", "out"], "the run has no good checkpoint");

    place.manifest("next", "", "    init: gone\n");
    place.refused(2, &["validate", "next.yaml"], "gone/config.json");
    let model = format!("  model:\n{SMALL_NETWORK}    vocab_size: 300\n");
    place.manifest("next", &model, "    init: bf16\n");
    place.refused(2, &["validate", "next.yaml"], "vocab_size 300 (the weights: 257)");
}
