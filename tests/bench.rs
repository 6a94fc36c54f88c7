//! `shoal bench` from outside: what it prints and what it refuses. Never a time: figures have a shape
//! and belong together.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::Value;
use shoal_standin_driver::testing::StandIn;

fn shoal(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shoal")).arg("bench").args(args).output().unwrap()
}

fn json(args: &[&str]) -> Value {
    let ended = shoal(&[args, &["-o", "json"]].concat());
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    serde_json::from_slice(&ended.stdout).unwrap()
}

fn positive(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value[key].as_f64().is_some_and(|number| number > 0.0), "{key} in {value}");
    }
}

/// A few tokens: what is looked at here does not depend on how many.
const FEW: [&str; 6] = ["--batch", "2", "--tokens", "16", "--threads", "1"];

#[test]
fn a_trained_cell_is_measured_and_its_figures_belong_together() {
    let args = [&["train", "--precision", "f32", "--mtp", "0", "--steps", "2"], &FEW[..]].concat();
    let report = json(&args);
    assert_eq!((&report["preset"], &report["precision"]), (&"tiny".into(), &"f32".into()));
    assert_eq!(
        (&report["steps"], &report["mtp"], &report["threads"]),
        (&2.into(), &0.into(), &1.into())
    );
    positive(&report, &["tokens_per_second", "gflops", "loss_first", "held_bytes"]);
    positive(&report["peak"], &["f32_gflops", "read_gigabytes_per_second"]);
    let number = |key: &str| report[key].as_f64().unwrap();
    let share = number("gflops") / report["peak"]["f32_gflops"].as_f64().unwrap();
    assert!((number("share_of_peak") / share - 1.0).abs() < 1e-9, "{report}");
    assert!(number("fastest_seconds") <= number("median_seconds"));
    assert!(number("allocations_per_step") >= 0.0);
    // A uniform guess over 256 bytes costs ln 256 = 5.55 nats.
    assert!((number("loss_first") - 5.55).abs() < 0.3, "{report}");
}

#[test]
fn the_table_of_a_trained_cell_says_what_it_is_in_words() {
    let args = [&["train", "--precision", "fp8", "--steps", "1"], &FEW[..]].concat();
    let ended = shoal(&args);
    let text = String::from_utf8(ended.stdout).unwrap();
    for word in ["tiny Fp8, 1 MTP", "tokens/s, median of 1", "% of the peak", "a step"] {
        assert!(text.contains(word), "want {word:?} in: {text}");
    }
}

#[test]
fn without_a_word_every_operation_is_measured() {
    let report = json(&FEW);
    let operations = report["operations"].as_array().unwrap();
    assert!(operations.len() > 40, "{}", operations.len());
    for row in operations {
        positive(row, &["seconds", "bytes", "share_of_peak", "times"]);
    }
    let sum = |row: &Value| row["seconds"].as_f64().unwrap() * row["times"].as_f64().unwrap();
    let all: f64 = operations.iter().map(sum).sum();
    assert!((report["sum_seconds"].as_f64().unwrap() / all - 1.0).abs() < 1e-9);
    let has = |name: &str| operations.iter().any(|row| row["operation"] == name);
    assert!(has("q_b forward") && has("experts down d_w") && has("attention backward"));
}

/// A bench on a card that the stand-in driver makes of the CPU; `--quick`, or it would take hours.
fn on_card(standin: &StandIn, args: &[&str]) -> Output {
    let mut command = standin.command(env!("CARGO_BIN_EXE_shoal"));
    command.arg("bench").args(args).args(["--device", "cuda"]).output().unwrap()
}

/// The report of it, if all went well on the card, too, and the kernels that ran.
fn measured_on_card(card: &str, args: &[&str]) -> (Value, BTreeSet<String>) {
    let standin = StandIn::new().cards(card).seed(1);
    let ended = on_card(&standin, &[args, &["--quick", "-o", "json"]].concat());
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let seen = standin.report();
    seen.assert_clean();
    (serde_json::from_slice(&ended.stdout).unwrap(), seen.launches.into_keys().collect())
}

const FEW_ON_CARD: [&str; 4] = ["--batch", "2", "--tokens", "16"];

/// The sizes that the report has of every operation belong together.
#[track_caller]
fn belongs_together(row: &Value, peak: &Value) {
    positive(row, &["seconds", "bytes", "times", "share_of_peak"]);
    let number = |key: &str| row[key].as_f64().unwrap();
    let (fastest, slowest) = (number("fastest_seconds"), number("slowest_seconds"));
    assert!(fastest <= number("seconds") && number("seconds") <= slowest, "{row}");
    let (rate, of) = match row["bound"].as_str().unwrap() {
        "bf16_products" => ("gflops", "stated_bf16_gflops"),
        "fp8_products" => ("gflops", "stated_fp8_gflops"),
        "f32_products" => ("gflops", "stated_f32_gflops"),
        "memory" => ("gigabytes_per_second", "copy_gigabytes_per_second"),
        "link" => ("gigabytes_per_second", "stated_link_gigabytes_per_second"),
        other => panic!("{other}"),
    };
    let share = number(rate) / peak[of].as_f64().unwrap();
    assert!((number("share_of_peak") / share - 1.0).abs() < 1e-9, "{row}");
}

#[test]
fn on_a_gpu_every_operation_of_a_step_is_measured() {
    for precision in ["fp8", "bf16"] {
        let args = [&FEW_ON_CARD[..], &["--precision", precision]].concat();
        let (report, of_operations) = measured_on_card("4090", &args);
        let device = &report["device"];
        assert_eq!(device["name"], "NVIDIA GeForce RTX 4090");
        assert_eq!((&device["catalogue"], &device["image"]), (&"RTX4090".into(), &"sm_89".into()));
        assert_eq!((&device["ordinal"], &device["compute_capability"]), (&0.into(), &"8.9".into()));
        positive(device, &["memory_bytes", "multiprocessors"]);
        assert_eq!(report["effort"]["rounds"], 1);
        let peak = &report["peak"];
        positive(peak, &["bf16_product_gflops", "fp8_product_gflops", "product_side"]);
        assert!((peak["stated_fp8_gflops"].as_f64().unwrap() - 330_300.0).abs() < 1.0);
        let operations = report["operations"].as_array().unwrap();
        for row in operations {
            belongs_together(row, peak);
        }
        let sum = |row: &Value| row["seconds"].as_f64().unwrap() * row["times"].as_f64().unwrap();
        let all: f64 = operations.iter().map(sum).sum();
        assert!((report["sum_seconds"].as_f64().unwrap() / all - 1.0).abs() < 1e-9);

        // Whole steps launch nothing else, but what fills a stage when it moves to a card.
        let few = ["--batch", "1", "--tokens", "8", "--mtp", "1", "--threads", "1"];
        let args = ["--precision", precision, "--steps", "1", "--device-mb", "300"];
        let args = [&few[..], &args].concat();
        let (report, of_steps) = measured_on_card("4090", &[&["train"], &args[..]].concat());
        positive(&report, &["tokens_per_second", "gflops", "share_of_peak", "device_bytes"]);
        assert_eq!(report["device"]["name"], "NVIDIA GeForce RTX 4090");
        assert!((report["loss_first"].as_f64().unwrap() - 5.55).abs() < 0.3, "{report}");
        let more: Vec<&String> = of_steps.difference(&of_operations).collect();
        assert!(more.iter().all(|kernel| kernel.starts_with("quantise_blocks")), "{more:?}");
    }
}

#[test]
fn the_table_of_a_gpu_says_which_card_and_of_which_peak() {
    let standin = StandIn::new().cards("4090").seed(1);
    let few = ["--batch", "1", "--tokens", "8", "--quick"];
    let ended = on_card(&standin, &few);
    let text = String::from_utf8(ended.stdout).unwrap();
    for word in ["cuda:0 NVIDIA GeForce RTX 4090, compute", "% of BF16", "% of copy", "% of slot"] {
        assert!(text.contains(word), "want {word:?} in: {text}");
    }
}

#[test]
fn a_gpu_that_cannot_be_measured_is_said() {
    let standin = |cards: &str| StandIn::new().cards(cards).seed(1);
    let none = "--device: no such GPU: asked for 0, this machine has 0";
    let cases = [
        (standin("none"), 2, &["ops"][..], none),
        (standin("none"), 2, &["train"], none),
        (standin("4090").fail("init:unknown"), 2, &["ops"], "cuInit: CUDA_ERROR_UNKNOWN"),
        (standin("4090"), 2, &["ops", "--precision", "f32"], "want bf16 or fp8"),
        (standin("4090"), 2, &["train", "--precision", "f32"], "want bf16 or fp8"),
        (standin("4090"), 1, &["train", "--device-mb", "1"], "on the GPU"),
    ];
    for (standin, code, args, wanted) in cases {
        let ended = on_card(&standin, args);
        let error = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(wanted) && ended.stdout.is_empty(), "want {wanted:?} in: {error}");
    }
}

#[test]
fn growth_has_a_row_for_every_size() {
    let report = json(&[&["growth", "--over", "layers", "--seconds", "0.01"], &FEW[..]].concat());
    let rows = report["rows"].as_array().unwrap();
    let sizes: Vec<u64> = rows.iter().map(|row| row["size"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [2, 4, 8, 16]);
    let fastest = rows.iter().map(|row| row["cost_per_flop"].as_f64().unwrap());
    assert!((fastest.fold(f64::INFINITY, f64::min) - 1.0).abs() < 1e-9);
}

#[test]
fn collectives_are_measured_between_processes() {
    let report = json(&["comm", "--workers", "3", "--mib", "1,2", "--seconds", "0.05"]);
    assert_eq!(report["workers"], 3);
    let tcp = ["one_way_gigabytes_per_second", "both_ways_gigabytes_per_second"];
    positive(&report["tcp"], &tcp);
    positive(&report["tcp"], &["round_trip_seconds"]);
    positive(&report, &["round_trip_seconds"]);
    let rows = report["rows"].as_array().unwrap();
    let kinds = ["all-to-all", "all-reduce", "reduce-scatter", "all-gather"];
    let wanted = [1, 2].into_iter().flat_map(|mib| kinds.map(|kind| (kind, mib)));
    assert!(
        rows.iter()
            .map(|row| (row["operation"].as_str().unwrap(), row["mib"].as_u64().unwrap()))
            .eq(wanted)
    );
    for row in rows {
        positive(row, &["seconds", "gigabytes_per_second", "share_of_tcp"]);
        assert!(row["rounds"].as_u64().unwrap() >= 5, "{row}");
        let bytes =
            row["gigabytes_per_second"].as_f64().unwrap() * row["seconds"].as_f64().unwrap() * 1e9;
        let want = row["mib"].as_f64().unwrap() * f64::from(1 << 20);
        assert!((bytes / want - 1.0).abs() < 1e-9, "{row}");
    }
}

#[test]
fn what_cannot_be_measured_is_said() {
    let alone = shoal(&["comm", "--workers", "1"]);
    assert_eq!(alone.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&alone.stderr).contains("1 is not in 2..=16"));
    let cases = [
        (&["train", "--seconds", "0"][..], "--seconds is 0, want a number above 0"),
        (&["train", "--text", "no-such-file"], "reading no-such-file"),
        (&["train", "--batch", "4", "--microbatches", "3"], "a divisor of the batch, 4"),
        (&["train", "--preset", "huge"], "huge"),
        (&["train", "--mtp", "9"], "9"),
        (&["growth", "--seconds=-1"], "--seconds is -1"),
        (&["ops", "--precision", "int4"], "int4"),
        // Without a driver, and with one but not so many cards.
        (&["--device", "cuda:63"], "--device: "),
        (&["--device", "cuda:0,1"], "want cpu, cuda, or one GPU such as cuda:1"),
        (&["train", "--device", "auto"], "want cpu, cuda, or one GPU"),
        (&["--device", "gpu"], "gpu"),
        (&["--quick"], "--quick is for a GPU"),
        (&["train", "--preset", "v2-lite-like"], "is for single operations on a GPU"),
        (&["growth", "--preset", "v2-lite-like"], "is for single operations on a GPU"),
    ];
    for (args, wanted) in cases {
        let ended = shoal(args);
        let error = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(wanted) && ended.stdout.is_empty(), "want {wanted:?} in: {error}");
    }
}

#[test]
fn an_instruction_set_that_is_none_is_refused_by_every_verb() {
    let verbs: [&[&str]; 2] = [&["bench", "train"], &["launch", "examples/quickstart.yaml"]];
    for verb in verbs {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        let ended = command.args(verb).env("SHOAL_CPU", "mmx").output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains("SHOAL_CPU=mmx") && said.contains("portable"), "{said}");
    }
}
