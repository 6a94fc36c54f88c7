//! The sections as people write them: mixtures of text, divisions of the work, evaluations.

use super::{check, parse_with, spec};
use crate::job::{EndToken, TokenizerChoice};
use crate::numerics::{ParameterGroup, ScaleFormat};

const HEAD: &str = "apiVersion: shoal/v1\nkind: Training\nspec:\n";

#[test]
fn a_mixture_has_names_weights_and_fields() {
    let text = format!(
        "{HEAD}  data:\n    field: content\n    sources:\n    - {{name: code, files: a.rs, weight: 3}}\n    \
         - {{name: web, files: [b.jsonl], weight: 1, field: text.body}}\n"
    );
    let job = parse_with(&text, &[]).unwrap();
    let [code, web] = &job.data.sources[..] else { panic!("{:?}", job.data.sources) };
    assert_eq!((code.name.as_str(), code.field.as_str()), ("code", "content"));
    assert_eq!((web.files.as_slice(), web.field.as_str()), (&["b.jsonl".into()][..], "text.body"));
    let refuse = |change: (&str, &str), wanted: &[&str]| {
        super::check_text(&text.replace(change.0, change.1), &[], wanted);
    };
    refuse(("name: web", "name: code"), &["spec.data.sources", "two sources are named `code`"]);
    refuse(("weight: 1", "weight: 0"), &["web: wanted a weight above 0"]);
    refuse(("files: a.rs", "files: []"), &["spec.data.sources[0].files", "empty list"]);
    refuse(("name: web", "nam: web"), &["spec.data.sources[1].nam", "unknown key"]);
    refuse(("field: content", "files: x"), &["either `files` or `sources`"]);
}

#[test]
fn the_tokenizer_follows_the_vocabulary_unless_it_is_named() {
    let of = |lines: &str| parse_with(&spec(""), &[lines]).unwrap().data;
    assert_eq!(of("model.vocab_size=256").tokenizer, TokenizerChoice::Bytes);
    assert_eq!(of("model.vocab_size=4096").tokenizer, TokenizerChoice::Bpe);
    let named = parse_with(
        &spec(""),
        &["model.vocab_size=4096", "data.tokenizer=t/tokenizer.json", "data.end_token=</s>"],
    );
    let data = named.unwrap().data;
    assert_eq!(data.tokenizer, TokenizerChoice::File("t/tokenizer.json".into()));
    assert_eq!(data.end_token, EndToken::Token("</s>".into()));
    check("  model: {vocab_size: 200}\n", &["wanted 256 or more for bytes, got 200"]);
}

#[test]
fn what_is_listed_by_hand_must_add_up() {
    let parallelism =
        |line: &str, wanted: &[&str]| check(&format!("  parallelism: {{{line}}}\n"), wanted);
    parallelism(
        "stages: 2, layers: [1, 2]",
        &[":8:36: spec.parallelism.layers", "3 layers in all, but the model has 4"],
    );
    parallelism("stages: 2, layers: [1, 2, 1]", &["3 numbers for 2 parts", "add up to 4"]);
    parallelism("expert_shards: 2, experts: [16, 0]", &["got a 0"]);
    parallelism("expert_shards: 2, experts: [10, 7]", &["17 experts in all"]);
    parallelism("expert_shards: 2, shares: [1]", &["1 numbers for 2 cells of a stage"]);
    parallelism("expert_shards: 2, shares: [0, 0]", &["no cell would train"]);
    parallelism("chunks: 2", &["spec.parallelism.chunks", "only the schedule interleaved"]);
    parallelism("stages: 2, schedule: interleaved", &["set chunks: 2 or more"]);
    parallelism("schedule: interleaved, chunks: 2", &["needs more stages than one"]);
    parallelism("stages: 3, schedule: interleaved, chunks: 2", &["3 stages x 2 chunks for 4"]);
    let line =
        "  parallelism: {stages: 2, schedule: interleaved, chunks: 2, layers: [1, 1, 1, 1]}\n";
    let job = parse_with(&spec(line), &[]).unwrap();
    assert_eq!((job.pipeline().chunks, job.division.layers.len()), (2, 4));
    let line = "  parallelism: {expert_shards: 2, experts: [10, 6], shares: [3, 0]}\n";
    let division = parse_with(&spec(line), &[]).unwrap().division;
    assert_eq!((division.experts, division.shares), (vec![10, 6], vec![3, 0]));
}

#[test]
fn a_dense_model_has_nothing_to_shard() {
    let dense = "  model: {n_routed_experts: 0}\n";
    assert_eq!(parse_with(&spec(dense), &[]).unwrap().model.n_routed_experts, 0);
    check(&format!("{dense}  parallelism: {{expert_shards: 2}}\n"), &["the model is dense"]);
}

#[test]
fn number_formats_and_ramps_are_checked() {
    let training =
        |line: &str, wanted: &[&str]| check(&format!("  training: {{{line}}}\n"), wanted);
    training("batch_start: 4", &["set spec.training.batch_ramp_steps"]);
    training("batch_ramp_steps: 4", &["a ramp of 4 steps from nowhere"]);
    training("batch_start: 9, batch_ramp_steps: 4", &["starts at 9, above batch 8"]);
    training("precision: bf16, scales: {weights: fp32}", &["only precision fp8 reads it"]);
    training("scales: {weight: fp32}", &["did you mean `spec.training.scales.weights`?"]);
    training("moments: fp16", &["wanted one of bf16, f32"]);
    training("weight_decay_exclude: [norm]", &["did you mean `norms`?"]);
    training("ema: 1", &["from 0 and below 1"]);
    let line = "  training: {scales: {gradients: fp32}, weight_decay_exclude: [norms, head]}\n";
    let training = parse_with(&spec(line), &[]).unwrap().training;
    assert_eq!(training.scales.gradients, ScaleFormat::Fp32);
    assert_eq!(training.scales.weights, ScaleFormat::Pow2);
    assert_eq!(training.weight_decay_exclude, [ParameterGroup::Norms, ParameterGroup::Head]);
}

#[test]
fn evaluations_have_names_of_their_own() {
    let evaluation =
        |line: &str, wanted: &[&str]| check(&format!("  evaluation: {{{line}}}\n"), wanted);
    evaluation("patience: 2", &["set spec.evaluation.every"]);
    evaluation("sets: {heldout: [a.txt]}", &["spec.evaluation.sets", "kept back from training"]);
    evaluation("sets: {code: []}", &["code: wanted at least one file"]);
    evaluation("sets: [a.txt]", &["wanted a section of `key: value` lines"]);
    let line = "  evaluation: {every: 10, patience: 2, sets: {code: [a.rs], web: [b.txt]}}\n";
    let job = parse_with(&spec(line), &[]).unwrap();
    assert_eq!(job.evaluation.sets["web"], ["b.txt"]);
    assert_eq!((job.evaluation.every, job.evaluation.patience), (10, 2));
}

#[test]
fn every_worker_has_a_port_after_the_coordinators() {
    let ports = |port: u32, workers: u32| {
        format!(
            "  parallelism: {{stages: 4}}\n  workers: {{local: {workers}}}\n  metrics: {{port: {port}}}\n"
        )
    };
    let wanted = ["spec.metrics.port", "4 workers after port 65532 would need ports up to 65536"];
    check(&ports(65_532, 4), &wanted);
    // The last ports there are, and any free ones.
    for fits in [ports(65_531, 4), ports(0, 4)] {
        parse_with(&spec(&fits), &[]).unwrap();
    }
}
