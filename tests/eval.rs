//! `shoal eval` with the real binary: against the run's own figures, against finite differences, and
//! against a loss worked out from its logits.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::{Value, json};
use shoal_plan::checkpoint::{CheckpointManifest, FILE_NAME};

const VOCABULARY: usize = 256;

/// A directory below the tests' own, empty.
fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("eval").join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

fn shoal(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shoal")).args(args).output().unwrap()
}

/// Trains a few steps in F32 below `name`; `more` is added to the model's sizes.
fn train(name: &str, more: &str) -> PathBuf {
    let dir = scratch(name);
    let lines = (0..4000_u32).map(|i| format!("fish {} swims {} miles\n", i % 97, i * 7 % 31));
    fs::write(dir.join("text.txt"), lines.collect::<String>()).unwrap();
    let manifest = format!(
        "apiVersion: shoal/v1\nkind: Training\nspec:\n  \
         model: {{hidden_size: 32, intermediate_size: 48, moe_intermediate_size: 16{more}}}\n  \
         data: {{files: [\"{}\"]}}\n  \
         training: {{steps: 12, batch: 4, sequence: 16, warmup_steps: 1, precision: f32, lr: 1e-3}}\n  \
         evaluation: {{tokens_max: 1000000}}\n  workers: {{local: 1, threads: 2}}\n  \
         checkpoint: {{every: 12}}\n",
        dir.join("text.txt").display()
    );
    fs::write(dir.join("job.yaml"), manifest).unwrap();
    let (job, run) = (dir.join("job.yaml"), dir.join("run"));
    let output = shoal(&["launch", job.to_str().unwrap(), "--run-dir", run.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    run
}

/// A run that several tests look at.
fn run() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| train("run", ""))
}

fn checkpoint() -> PathBuf {
    run().join("checkpoints/step-12")
}

/// The figures of an evaluation.
fn eval(args: &[&str]) -> Value {
    let output = shoal(&[&["eval"], args, &["-o", "json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refuses(args: &[&str], code: i32, wanted: &str) {
    let output = shoal(&[&["eval"], args].concat());
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
    assert!(told.contains(wanted), "{args:?}: want {wanted}: {told}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

/// Tensors of a safetensors file.
fn header(path: &Path) -> serde_json::Map<String, Value> {
    let bytes = fs::read(path).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let mut entries: serde_json::Map<_, _> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    entries.remove("__metadata__");
    entries
}

/// A tensor of a safetensors file: where its bytes begin in the file, and its values.
fn tensor(path: &Path, name: &str) -> (usize, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let entries: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let entry = &entries[name];
    assert_eq!(entry["dtype"], "F32", "{name} of {}", path.display());
    let offset = |i: usize| usize::try_from(entry["data_offsets"][i].as_u64().unwrap()).unwrap();
    let (start, end) = (8 + header + offset(0), 8 + header + offset(1));
    let values = bytes[start..end].as_chunks().0.iter().map(|four| f32::from_le_bytes(*four));
    (start, values.collect())
}

/// Token ids that look like noise.
fn ids(sequences: u64, tokens: u64) -> Vec<Vec<u64>> {
    let id = |at: u64| (at + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56;
    (0..sequences).map(|s| (0..tokens).map(|t| id(s * tokens + t)).collect()).collect()
}

/// The same ids as safetensors.
fn as_safetensors(ids: &[Vec<u64>]) -> Vec<u8> {
    let n = ids.len() * ids[0].len() * 8;
    let entry =
        json!({ "dtype": "I64", "shape": [ids.len(), ids[0].len()], "data_offsets": [0, n] });
    let header = json!({ "input_ids": entry }).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(ids.iter().flatten().flat_map(|id| id.to_le_bytes()));
    bytes
}

#[test]
fn a_runs_checkpoint_has_the_loss_that_the_run_told() {
    let summary = fs::read_to_string(run().join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let told = &summary["evaluations"]["heldout"];
    let heldout = run().join("data/heldout-text-00000.tokens");
    let heldout = heldout.to_str().unwrap();
    let run_dir = run().to_str().unwrap();
    let checkpoint = checkpoint();
    for model in [run_dir, checkpoint.to_str().unwrap()] {
        let found = eval(&[model, heldout, "--sequence", "16"]);
        assert_eq!(found["tokens"], told["tokens"]);
        assert_eq!(found["bytes"], told["bytes"]);
        for key in ["loss", "bits_per_byte", "perplexity"] {
            let (got, want) = (found[key].as_f64().unwrap(), told[key].as_f64().unwrap());
            // The same sums of the same products, in pieces of another size.
            assert!((got - want).abs() < 1e-5 * want, "{key}: {got}, want {want}");
        }
    }
    let one = eval(&[run_dir, heldout, "--sequence", "16", "--tokens-max", "17", "--threads", "1"]);
    assert_eq!((&one["sequences"], &one["tokens"]), (&json!(1), &json!(16)));
    let bf16 = eval(&[run_dir, heldout, "--sequence", "16", "--precision", "bf16", "--mtp"]);
    let (loss, want) = (bf16["loss"].as_f64().unwrap(), told["loss"].as_f64().unwrap());
    // BF16 has 8 bits: a thousandth of the loss is far more than its mean error.
    assert!(
        (loss - want).abs() < 1e-2 * want && bf16["mtp_loss"].as_f64().unwrap() > 1.0,
        "{bf16}"
    );
}

#[test]
fn both_forms_of_ids_agree_and_the_logits_give_the_loss() {
    let dir = scratch("ids");
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let ids = ids(3, 9);
    fs::write(path("ids.json"), json!({ "input_ids": ids }).to_string()).unwrap();
    fs::write(path("ids.safetensors"), as_safetensors(&ids)).unwrap();
    let mut labels: Vec<Vec<i64>> =
        ids.iter().map(|row| row.iter().map(|id| *id as i64).collect()).collect();
    for (sequence, token) in [(0, 4), (1, 1), (2, 8), (2, 7)] {
        labels[sequence][token] = -100;
    }
    let labelled = json!({ "input_ids": ids, "labels": labels });
    fs::write(path("labelled.json"), labelled.to_string()).unwrap();
    let model = checkpoint();
    let model = model.to_str().unwrap();

    let of_json =
        eval(&[model, "--tokens", &path("ids.json"), "--logits", &path("logits.safetensors")]);
    let of_tensors = eval(&[model, "--tokens", &path("ids.safetensors")]);
    assert_eq!(of_json["loss"], of_tensors["loss"]);
    assert_eq!(of_json["tokens"], json!(3 * 8));
    let of_labels = eval(&[model, "--tokens", &path("labelled.json")]);
    assert_eq!(of_labels["tokens"], json!(3 * 8 - 4));

    let (_, logits) = tensor(&dir.join("logits.safetensors"), "logits");
    assert_eq!(logits.len(), 3 * 9 * VOCABULARY);
    let worked_out = |labels: &[Vec<i64>]| {
        let (mut sum, mut n) = (0.0, 0);
        for (at, row) in logits.chunks_exact(VOCABULARY).enumerate() {
            let (sequence, token) = (at / 9, at % 9);
            let Some(label) = labels[sequence].get(token + 1).filter(|label| **label >= 0) else {
                continue;
            };
            let exp: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
            sum += exp.ln() - f64::from(row[*label as usize]);
            n += 1;
        }
        sum / f64::from(n)
    };
    let plain: Vec<Vec<i64>> =
        ids.iter().map(|row| row.iter().map(|id| *id as i64).collect()).collect();
    for (found, labels) in [(&of_json, &plain), (&of_labels, &labels)] {
        let (got, want) = (found["loss"].as_f64().unwrap(), worked_out(labels));
        assert!((got - want).abs() < 1e-5 * want, "{got}, want {want}");
    }
}

/// A copy of a checkpoint whose masters `name` moved by `step` along `direction`.
fn moved(checkpoint: &Path, name: &str, direction: &[f32], step: f32) -> PathBuf {
    let dir = scratch("moved");
    for entry in fs::read_dir(checkpoint).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    let file = "master-cell-0.safetensors";
    let (start, values) = tensor(&dir.join(file), name);
    let mut bytes = fs::read(dir.join(file)).unwrap();
    for ((at, value), along) in (start..).step_by(4).zip(&values).zip(direction) {
        bytes[at..at + 4].copy_from_slice(&(value + step * along).to_le_bytes());
    }
    fs::write(dir.join(file), &bytes).unwrap();
    let text = fs::read(dir.join(FILE_NAME)).unwrap();
    let mut manifest = CheckpointManifest::from_text(&text).unwrap();
    let entry = manifest.files.iter_mut().find(|entry| entry.name == file).unwrap();
    entry.blake3 = blake3::hash(&bytes).to_hex().to_string();
    fs::write(dir.join(FILE_NAME), manifest.to_text()).unwrap();
    dir
}

#[test]
fn gradients_are_the_differences_of_the_loss() {
    let dir = scratch("gradients");
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    fs::write(path("ids.json"), json!({ "input_ids": ids(2, 24) }).to_string()).unwrap();
    // Every token meets every expert: where it chooses, the loss jumps with the choice. And no weight
    // is so small that a step turns a hidden state around.
    let all = ", initializer_range: 0.2, n_routed_experts: 4, num_experts_per_tok: 4, n_group: 1, topk_group: 1";
    let model = train("smooth", all).join("checkpoints/step-12");
    let out = path("gradients.safetensors");
    let found =
        eval(&[model.to_str().unwrap(), "--tokens", &path("ids.json"), "--gradients", &out]);
    let plain = eval(&[model.to_str().unwrap(), "--tokens", &path("ids.json")]);
    let (loss, want) = (found["loss"].as_f64().unwrap(), plain["loss"].as_f64().unwrap());
    assert!((loss - want).abs() < 1e-6 * want, "{loss}, want {want}");
    for name in [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_a_proj.weight",
        "model.layers.1.self_attn.kv_b_proj.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.2.mlp.experts.3.up_proj.weight",
        "model.layers.2.mlp.shared_experts.down_proj.weight",
        "model.layers.3.input_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
    ] {
        let (_, gradient) = tensor(&dir.join("gradients.safetensors"), name);
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let along: Vec<f32> = gradient.iter().map(|g| (f64::from(*g) / norm) as f32).collect();
        // So that the loss moves by a thousandth or two, whatever the gradient's size.
        let step = (2e-3 / norm).min(2e-2) as f32;
        let loss = |step: f32| {
            let model = moved(&model, name, &along, step);
            let found = eval(&[model.to_str().unwrap(), "--tokens", &path("ids.json")]);
            found["loss"].as_f64().unwrap()
        };
        let slope = (loss(step) - loss(-step)) / (2.0 * f64::from(step));
        // A loss of 5 in F32 sums is known to about 1e-6: a thousandth of its change, or 5e-5 where
        // the step is the largest.
        assert!((slope - norm).abs() < 0.01 * norm + 1e-4, "{name}: {slope}, want {norm}");
    }
}

/// The distance of two lists relative to the size of the second.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let off = squares(&mut got.iter().zip(want).map(|(a, b)| f64::from(a - b)));
    let size = squares(&mut want.iter().map(|x| f64::from(*x)));
    // An expert that no token chose has no gradient on either side.
    (off / size.max(f64::MIN_POSITIVE)).sqrt()
}

/// What `tests/golden/make.py` had `transformers` compute, from the same files, through the command that
/// anybody can type.
#[test]
fn transformers_finds_the_same_loss_logits_and_gradients() {
    let dir = scratch("transformers");
    let (logits, gradients) = (dir.join("logits.safetensors"), dir.join("gradients.safetensors"));
    let outputs =
        ["--logits", logits.to_str().unwrap(), "--gradients", gradients.to_str().unwrap()];
    for case in ["groups", "wide", "tied", "yarn"] {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        let golden = model.join("golden.safetensors");
        let asked = [model.to_str().unwrap(), "--tokens", golden.to_str().unwrap(), "--force"];
        let found = eval(&[&asked[..], &outputs].concat());
        let want = f64::from(tensor(&golden, "loss").1[0]);
        let loss = found["loss"].as_f64().unwrap();
        assert!((loss - want).abs() < 1e-6 * want, "{case}: {loss}, want {want}");
        let (got, want) = (tensor(&logits, "logits").1, tensor(&golden, "logits").1);
        let off = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-4, "{case}: logits are off by {off}");
        let mut judged = 0;
        for (name, _) in header(&gradients) {
            let want = tensor(&golden, &format!("gradient.{name}")).1;
            let off = distance(&tensor(&gradients, &name).1, &want);
            assert!(off < 1e-3, "{case}: the gradient of {name} is off by {off}");
            judged += 1;
        }
        let all = header(&golden).into_iter().filter(|(name, _)| name.starts_with("gradient."));
        assert_eq!(judged, all.count(), "{case}");
    }
    for case in ["mtp", "mtp_two"] {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case);
        let golden = model.join("golden.safetensors");
        let found = eval(&[model.to_str().unwrap(), "--tokens", golden.to_str().unwrap(), "--mtp"]);
        let depths = tensor(&golden, "mtp_losses").1;
        let mtp = depths.iter().copied().map(f64::from).sum::<f64>() / depths.len() as f64;
        let main = f64::from(tensor(&golden, "loss").1[0]);
        for (key, want) in [("loss", main), ("mtp_loss", mtp)] {
            let got = found[key].as_f64().unwrap();
            assert!((got - want).abs() < 1e-6 * want, "{case}: {key} {got}, want {want}");
        }
    }
}

#[test]
fn what_cannot_be_evaluated_is_refused_and_nothing_is_written() {
    let dir = scratch("refused");
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let model = checkpoint();
    let model = model.to_str().unwrap();
    fs::write(path("ids.json"), r#"{"input_ids": [[1, 2, 3]]}"#).unwrap();
    fs::write(path("far.json"), r#"{"input_ids": [[1, 2, 256]]}"#).unwrap();
    fs::write(path("there.safetensors"), "mine").unwrap();
    fs::write(path("text.txt"), "some text").unwrap();
    let (ids, text) = (path("ids.json"), path("text.txt"));
    refuses(&[&path("nowhere"), "--tokens", &ids], 5, "nowhere");
    refuses(&[dir.to_str().unwrap(), "--tokens", &ids], 5, "config.json");
    refuses(
        &[model, "--tokens", &path("far.json")],
        2,
        "far.json: input_ids[0][2]: 256 is no token",
    );
    refuses(&[model, "--tokens", &path("none.json")], 2, "none.json");
    refuses(&[model, &path("none.txt")], 2, "none.txt");
    refuses(&[model], 2, "required");
    refuses(&[model, &text, "--sequence", "1025"], 2, "the model has 1024 positions");
    let there = path("there.safetensors");
    refuses(&[model, "--tokens", &ids, "--logits", &there], 2, "--force replaces it");
    refuses(&[model, "--tokens", &ids, "--logits", &path("no/where")], 2, "no such directory");
    refuses(
        &[model, "--tokens", &path("far.json"), "--logits", &there, "--force"],
        2,
        "is no token",
    );
    assert_eq!(fs::read_to_string(&there).unwrap(), "mine");
    eval(&[model, "--tokens", &ids, "--logits", &there, "--force"]);
    assert_eq!(tensor(Path::new(&there), "logits").1.len(), 3 * VOCABULARY);
    let mut left: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["far.json", "ids.json", "text.txt", "there.safetensors"]);
}
