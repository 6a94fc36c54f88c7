//! `rope_scaling` and rules for the network, in manifests and in a `config.json`.

use super::*;
use crate::model::RopeScaling;

fn model_of(config: &str) -> Result<ModelConfig, String> {
    model_of_config(Path::new("a/config.json"), config).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(config: &str, wanted: &[&str]) {
    let error = model_of(config).unwrap_err();
    for wanted in wanted {
        assert!(error.contains(wanted), "{error}\nwant {wanted}");
    }
}

#[test]
fn both_spellings_of_a_configuration_give_the_same_model() {
    let old = model_of(&scaled(
        "rope_scaling",
        r#"{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
            "beta_fast": 16, "beta_slow": null, "mscale": 0.7, "mscale_all_dim": null}"#,
    ));
    let five = model_of(&scaled(
        "rope_parameters",
        r#"{"rope_theta": 50000, "rope_type": "yarn", "type": "yarn", "factor": 4, "truncate": true,
            "original_max_position_embeddings": 128, "beta_fast": 16.0, "mscale": 0.7,
            "partial_rotary_factor": 1}"#,
    ));
    let want = RopeScaling { beta_fast: 16.0, mscale: Some(0.7), ..RopeScaling::yarn(4.0, 128) };
    assert_eq!(old.as_ref().unwrap().rope_scaling, Some(want));
    assert_eq!(old, five);
    // Without an original length `transformers` takes the present one.
    let short = model_of(&scaled("rope_scaling", r#"{"rope_type": "yarn", "factor": 2}"#));
    assert_eq!(short.unwrap().rope_scaling, Some(RopeScaling::yarn(2.0, 512)));
}

#[test]
fn no_scaling_has_many_spellings() {
    let plain = model_of(CONFIG).unwrap();
    assert_eq!(plain.rope_scaling, None);
    for section in [r#"{"rope_type": "default"}"#, r#"{"type": "default", "factor": 1.0}"#, "{}"] {
        assert_eq!(model_of(&scaled("rope_scaling", section)).unwrap(), plain, "{section}");
    }
    let five = scaled("rope_parameters", r#"{"rope_type": "default", "rope_theta": 50000.0}"#);
    assert_eq!(model_of(&five).unwrap(), plain);
}

#[test]
fn other_scalings_are_refused_by_name() {
    let section = |text: &str, wanted: &[&str]| refused(&scaled("rope_scaling", text), wanted);
    section(
        r#"{"rope_type": "llama3", "factor": 8}"#,
        &["a/config.json:10:", "rope_scaling.rope_type: wanted yarn or default, got `llama3`"],
    );
    section(r#"{"type": "linear", "factor": 8}"#, &["rope_scaling.type: wanted yarn", "`linear`"]);
    section(r#"{"type": 3}"#, &["rope_scaling.type: wanted yarn or default, got `3`"]);
    section("[1]", &["rope_scaling: wanted a section or null, got a list"]);
    section(
        r#"{"type": "yarn", "factor": 8, "truncate": false}"#,
        &["rope_scaling.truncate: wanted true, got false"],
    );
    section(r#"{"type": "yarn", "factor": 8, "attention_factor": 0.5}"#, &["wanted null, got 0.5"]);
    section(r#"{"type": "yarn"}"#, &["rope_scaling.factor: this key is missing"]);
    section(r#"{"type": "yarn", "factor": "8"}"#, &["rope_scaling.factor: wanted a number"]);
    refused(
        &scaled("rope_parameters", r#"{"rope_type": "longrope", "rope_theta": 1e4}"#),
        &["rope_parameters.rope_type: wanted yarn or default, got `longrope`"],
    );
}

#[test]
fn a_configuration_keeps_the_rules_for_networks() {
    refused(
        &CONFIG.replace("\"n_group\": 1", "\"n_group\": 3"),
        &["a/config.json:7:14: n_group: 8 routed experts cannot be divided evenly into 3 groups"],
    );
    refused(
        &CONFIG.replace("\"qk_rope_head_dim\": 8", "\"qk_rope_head_dim\": 7"),
        &["a/config.json:9:", "qk_rope_head_dim: wanted an even number"],
    );
    refused(
        &CONFIG.replace("\"hidden_size\": 64", "\"hidden_size\": 0"),
        &["hidden_size: wanted a number from 1 to 131072, got 0"],
    );
    refused(
        &scaled(
            "rope_scaling",
            r#"{"type": "yarn", "factor": 0.5, "original_max_position_embeddings": 1}"#,
        ),
        &["a/config.json:10:", "rope_scaling.factor: wanted a number from 1 to 65536, got 0.5"],
    );
    refused(
        &scaled(
            "rope_scaling",
            r#"{"type": "yarn", "factor": 2, "original_max_position_embeddings": 1024}"#,
        ),
        &["1024 positions before scaling, but max_position_embeddings is 512"],
    );
    refused(
        &scaled("rope_scaling", r#"{"type": "yarn", "factor": 2, "beta_slow": 40}"#),
        &["rope_scaling.beta_slow: 40 turns, but beta_fast is 32"],
    );
}

#[test]
fn a_manifest_writes_scaling_and_a_tied_head_itself() {
    let lines = "  model:\n    tie_word_embeddings: true\n    \
                 rope_scaling: {factor: 4, original_max_position_embeddings: 256}\n";
    let model = parse_with(&spec(lines), &["model.rope_scaling.beta_fast=8"]).unwrap().model;
    let want = RopeScaling { beta_fast: 8.0, ..RopeScaling::yarn(4.0, 256) };
    assert_eq!((model.rope_scaling, model.tie_word_embeddings), (Some(want), true));
    check(
        "  model: {rope_scaling: {factor: 4}}\n",
        &["original_max_position_embeddings: this key is"],
    );
    check(
        "  model:\n    rope_scaling: {type: linear, factor: 4}\n",
        &[":9:26: spec.model.rope_scaling.type: wanted one of yarn, got the text `linear`"],
    );
    check(
        "  model: {rope_scaling: {factor: 4, original_max_position_embeddings: 9, mscal: 1}}\n",
        &["unknown key `mscal`", "did you mean `spec.model.rope_scaling.mscale`?"],
    );
    check(
        "  model:\n    rope_scaling: {factor: 0, original_max_position_embeddings: 9}\n",
        &["spec.model.rope_scaling.factor: wanted a number from 1 to 65536, got 0"],
    );
}

#[test]
fn a_manifest_changes_or_removes_the_scaling_of_a_file() {
    let of = |line: &str| {
        let lines = format!("  model:\n    config: yarn.json\n{line}");
        parse_with(&spec(&lines), &[]).unwrap().model.rope_scaling
    };
    assert_eq!(of(""), Some(RopeScaling::yarn(4.0, 128)));
    assert_eq!(of("    rope_scaling: {factor: 2}\n"), Some(RopeScaling::yarn(2.0, 128)));
    assert_eq!(of("    rope_scaling: null\n"), None);
}
