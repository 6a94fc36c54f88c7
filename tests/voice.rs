//! A trained model writes: on the command line and over HTTP, as other programs would ask it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "voice/http.rs"]
mod http;
#[path = "processes/network.rs"]
mod network;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

use crate::network::SMALL_NETWORK;

/// One small run for all tests, in cargo's directory for such things.
static RUN: LazyLock<PathBuf> = LazyLock::new(|| {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("voice");
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("text.txt"), "one fish, two fish, red fish, blue fish\n".repeat(500))
        .unwrap();
    let network = SMALL_NETWORK.replace("embeddings: 64", "embeddings: 200");
    let manifest = format!(
        "apiVersion: shoal/v1
kind: Training
metadata:
  name: voice
spec:
  model:
{network}  data:
    files: text.txt
  workers:
    local: 1
    threads: 1
  training:
    steps: 60
    batch: 4
    sequence: 16
    lr: 1e-2
    warmup_steps: 1
    precision: bf16
"
    );
    fs::write(place.join("job.yaml"), manifest).unwrap();
    let ended = shoal(&place, &["launch", "job.yaml", "--run-dir", "run"]);
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert!(text(&ended.stdout).contains("Sample 1"), "a run ends with samples");
    place.join("run")
});

fn shoal(place: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.args(args).current_dir(place).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn generate(more: &[&str]) -> Output {
    let run = RUN.display().to_string();
    shoal(&RUN, &[&["generate", &run, "--threads", "1"], more].concat())
}

fn report(more: &[&str]) -> Value {
    let ended = generate(&[more, &["-o", "json"]].concat());
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    serde_json::from_slice(&ended.stdout).unwrap()
}

#[test]
fn drafts_change_nothing_but_the_number_of_steps() {
    for prompt in ["one ", "fish", "\n"] {
        for precision in ["f32", "bf16", "fp8"] {
            let args = [prompt, "--temperature", "0", "--tokens", "60", "--precision", precision];
            let drafted = report(&args);
            let plain = report(&[&args[..], &["--speculate", "off"]].concat());
            assert_eq!(drafted["text"], plain["text"], "{prompt:?}, {precision}");
            assert_eq!(drafted["tokens"], 60);
            assert_eq!(
                (plain["tokens_per_step"].as_f64(), &plain["acceptance"]),
                (Some(1.0), &Value::Null)
            );
            assert!(drafted["acceptance"].is_number() && drafted["speculative"] == true);
        }
    }
}

#[test]
fn text_goes_to_standard_output_and_what_it_took_to_standard_error() {
    let ended = generate(&["one ", "--tokens", "20", "--temperature", "0"]);
    let wanted = report(&["one ", "--tokens", "20", "--temperature", "0"]);
    assert_eq!(text(&ended.stdout), wanted["text"].as_str().unwrap());
    assert!(text(&ended.stderr).contains(" tokens/s"), "{}", text(&ended.stderr));
    // The same seed writes the same text, and a prompt in a file is a prompt.
    fs::write(RUN.join("prompt.txt"), "two ").unwrap();
    let file = RUN.join("prompt.txt").display().to_string();
    let warm =
        |seed| report(&["--file", &file, "--tokens", "30", "--temperature", "1", "--seed", seed]);
    assert_eq!(warm("5")["text"], warm("5")["text"]);
    assert_eq!(warm("5")["prompt_tokens"], 4);
    let stopped = report(&["one ", "--temperature", "0", "--tokens", "100", "--stop", "i"]);
    assert!(!stopped["text"].as_str().unwrap().contains('i'));
    assert_eq!(
        report(&["one ", "--tokens", "500", "--temperature", "0"])["finish_reason"],
        "length"
    );
    assert_eq!(report(&["one ", "--tokens", "9", "--batch", "3"])["texts"], 3);
}

#[test]
fn what_cannot_be_done_is_said_with_its_exit_code() {
    let check = |args: &[&str], code: i32, wanted: &str| {
        let ended = shoal(&RUN, args);
        let error = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(wanted), "want {wanted:?} in: {error}");
        assert!(ended.stdout.is_empty());
    };
    let run = RUN.display().to_string();
    check(&["generate", "nowhere", "x"], 5, "nowhere");
    check(&["serve", "nowhere"], 5, "nowhere");
    check(&["generate", &run, "x", "--temperature=-1"], 2, "temperature");
    check(&["generate", &run, "x", "--top-p", "0"], 2, "top_p is 0, want a number above 0");
    check(&["generate", &run], 2, "the prompt has no token");
    check(&["generate", &run, "--file", "no-such-file"], 2, "no-such-file");
    check(&["generate", &run, &"x".repeat(201)], 2, "201 tokens, and the model takes 200");
    check(&["serve", &run, "--listen", "0.0.0.0:0"], 2, "--token-file");
    check(&["bench", "decode", &run, "--batch", "0"], 2, "batches of 1 or more");
}

#[test]
fn a_bench_has_a_row_for_every_batch() {
    let run = RUN.display().to_string();
    let args = [
        "bench",
        "decode",
        &run,
        "--batch",
        "1,3",
        "--tokens",
        "12",
        "--threads",
        "1",
        "-o",
        "json",
    ];
    let ended = shoal(&RUN, &args);
    let rows: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!(row["identical"], true);
        assert!(row["bound"].as_f64().unwrap() > 0.0 && row["acceptance"].is_number());
    }
}
