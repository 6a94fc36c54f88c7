//! A run on a mixture, with a tokenizer trained for it and an evaluation set of its own.

use std::fs;

use serde_json::Value;

use crate::network::SMALL_NETWORK;
use crate::{Place, json, json_file, story};

/// A network and a grid of two workers that train a step in a moment.
pub(crate) fn manifest(vocab_size: u32, data: &str, steps: u32) -> String {
    format!(
        "apiVersion: shoal/v1
kind: Training
metadata:
  name: text
spec:
  model:
{SMALL_NETWORK}    vocab_size: {vocab_size}
  parallelism:
    stages: 2
  workers:
    local: 2
    threads: 1
  training:
    steps: {steps}
    batch: 4
    sequence: 16
    warmup_steps: 1
{data}"
    )
}

const MIXTURE: &str = "  data:
    sources:
      - name: tales
        files: [a.txt, b.txt]
        weight: 3
      - name: notes
        files: c.jsonl.gz
        weight: 1
    tokenizer: bpe
    heldout: 0.2
  evaluation:
    sets:
      own: [own.txt]
";

#[test]
fn a_mixture_with_a_tokenizer_of_its_own_trains_evaluates_resumes_and_refuses_another() {
    let place = Place::new("mixture");
    place.write("own.txt", &story(99, 20));
    place.write("job.yaml", &manifest(512, MIXTURE, 80));
    let launch = ["launch", "job.yaml", "--run-dir", "run"];
    let short = [&launch[..], &["--set", "training.steps=4"]].concat();
    let ended = place.done(&short);
    for wanted in [
        "tokenizer: BPE of 512 tokens, trained on ",
        " bytes per token; documents end with <|endoftext|> (0)",
        "tales: 75 % of the sequences",
        "notes: 25 % of the sequences",
        "epochs in this run: ",
    ] {
        assert!(ended.err.contains(wanted), "want {wanted:?} in:\n{}", ended.err);
    }
    assert!(!ended.err.contains('\r'), "no bar into a pipe");
    for wanted in ["own loss", "bits per byte", "Sample 2"] {
        assert!(ended.out.contains(wanted), "want {wanted:?} in:\n{}", ended.out);
    }
    let samples = ended.out.split("Sample 1").nth(1).unwrap();
    assert!(samples.contains("day") && samples.contains("reef"), "held-out words: {samples}");

    let summary = json_file(&place.0.join("run/summary.json"));
    let sets = summary["evaluations"].as_object().unwrap();
    assert_eq!(sets.keys().collect::<Vec<_>>(), ["heldout", "own"]);
    let number = |value: &Value| value.as_f64().unwrap();
    let rows = fs::read_to_string(place.0.join("run/metrics.jsonl")).unwrap();
    for row in rows.lines().map(json).filter(|row| !row["evaluation"].is_null()) {
        let (tokens, bytes) = (number(&row["tokens"]), number(&row["bytes"]));
        assert!(bytes > 1.5 * tokens, "a token is several bytes: {row}");
        let bits = number(&row["loss"]) * tokens / bytes / std::f64::consts::LN_2;
        assert!((bits / number(&row["bits_per_byte"]) - 1.0).abs() < 1e-12, "{row}");
        if row["evaluation"] == "heldout" {
            let per_byte = number(&summary["heldout_nats_per_byte"]);
            assert!((number(&row["loss"]) * tokens / bytes / per_byte - 1.0).abs() < 1e-12);
        }
    }

    let continued = place.done(&launch);
    assert!(continued.err.contains("continuing after step 4"), "{}", continued.err);
    assert!(continued.err.contains("tokenised by an earlier launch"), "{}", continued.err);
    assert!(continued.err.contains("epoch 2 of `"), "{}", continued.err);

    let shown = place.done(&["data", "inspect", "--run", "run", "--documents", "1", "-o", "json"]);
    let shown = json(&shown.out);
    let parts: Vec<&str> =
        shown.as_array().unwrap().iter().map(|part| part["from"].as_str().unwrap()).collect();
    assert_eq!(parts, ["train tales", "train notes", "heldout", "evaluation own"]);
    assert!(shown.as_array().unwrap().iter().all(|part| part["tokens"][16]["id"].is_u64()));

    let stats = json(&place.done(&["data", "stats", "job.yaml", "-o", "json"]).out);
    assert!(number(&stats["sources"]["tales"]["epochs"]) > 1.0, "{stats}");
    assert_eq!(stats["evaluation_sets"]["own"]["documents"], 1);
}

#[test]
fn another_tokenizer_is_refused_and_the_same_one_elsewhere_is_not() {
    let place = Place::new("another");
    for (name, vocab) in [("t.json", "300"), ("u.json", "310")] {
        place.done(&["data", "tokenizer", "*.txt", "--vocab", vocab, "-o", name]);
    }
    let data = "  data:\n    files: c.jsonl.gz\n    heldout: 0.2\n    tokenizer: t.json\n";
    place.write("job.yaml", &manifest(320, data, 2));
    let launch = ["launch", "job.yaml", "--run-dir", "run"];
    let ended = place.done(&launch);
    assert!(ended.err.contains("tokenizer: t.json of 300 tokens; "), "{}", ended.err);
    let longer = [&launch[..], &["--set", "training.steps=3"]].concat();
    fs::rename(place.0.join("t.json"), place.0.join("kept.json")).unwrap();
    fs::copy(place.0.join("u.json"), place.0.join("t.json")).unwrap();
    place.refused(&longer, "t.json has changed since this run was started");
    let bytes = [&longer[..], &["--set", "data.tokenizer=bytes"]].concat();
    place.refused(&bytes, "spec.data.tokenizer");
    fs::rename(place.0.join("kept.json"), place.0.join("t.json")).unwrap();
    place.done(&longer);
}
