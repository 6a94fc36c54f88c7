//! What is written down is what the program does: the schema and the reference of keys.
//!
//! `UPDATE_DOCUMENTS=1 cargo test --test documents` writes the generated parts anew.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;

use serde_json::Value;
use shoal_plan::fleet;
use shoal_plan::manifest::{REFERENCE_FILE, SCHEMA_FILE, reference, schema};
use shoal_plan::settings;

const BEGIN: &str = "<!-- generated from here: cargo test --test documents -->\n";
const END: &str = "<!-- generated to here -->\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares, or writes.
fn check(file: &str, wanted: &str) {
    let path = root().join(file);
    let update = std::env::var_os("UPDATE_DOCUMENTS").is_some();
    if update {
        fs::write(&path, wanted).unwrap();
    }
    let how = "UPDATE_DOCUMENTS=1 cargo test --test documents";
    let got = fs::read_to_string(&path).unwrap_or_default();
    assert!(got == wanted, "{file} is not what the program says; write it anew with {how}");
}

/// A manifest as a validator sees it.
fn json(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

#[test]
fn the_schema_in_the_repository_is_the_programs() {
    check(SCHEMA_FILE, &format!("{:#}\n", schema()));
}

#[test]
fn the_reference_lists_every_key_as_the_program_reads_it() {
    generated(REFERENCE_FILE, &reference());
}

#[test]
fn the_list_of_settings_is_the_programs() {
    generated(settings::REFERENCE_FILE, settings::reference().trim_end());
}

#[test]
fn the_fleets_schema_and_reference_are_the_programs() {
    check(fleet::SCHEMA_FILE, &format!("{:#}\n", fleet::schema()));
    generated(fleet::REFERENCE_FILE, &fleet::reference());
    let validator = jsonschema::validator_for(&fleet::schema()).unwrap();
    let example = fs::read_to_string(root().join("docs/planner/fleet.yaml")).unwrap();
    assert!(validator.is_valid(&json(&example)));
    fleet::parse("docs/planner/fleet.yaml", &example).unwrap();
    for bad in ["{name: a}", "{name: a, gpu: H100, cuont: 2}", "{name: a, gpu: H100, nic: fast}"] {
        let text = format!("apiVersion: shoal/v1\nkind: Fleet\nspec: {{rigs: [{bad}]}}\n");
        assert!(!validator.is_valid(&json(&text)), "{bad}");
    }
}

/// Compares the generated part of a document, or writes it.
fn generated(file: &str, tables: &str) {
    let old = fs::read_to_string(root().join(file)).unwrap();
    let (before, rest) = old.split_once(BEGIN).expect("the generated part has a beginning");
    let (_, after) = rest.split_once(END).expect("the generated part has an end");
    check(file, &format!("{before}{BEGIN}\n{tables}\n{END}{after}"));
    assert!(!tables.contains("|  |\n"), "every key has a meaning");
}

#[test]
fn the_schema_refuses_what_the_program_refuses() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let head = "apiVersion: shoal/v1\nkind: Training\nspec:\n  data: {files: a.txt}\n";
    assert!(validator.is_valid(&json(head)));
    for bad in [
        "  training: {step: 5}\n",
        "  training: {steps: 0}\n",
        "  training: {precision: fp4}\n",
        "  training: {scales: {weights: fp8}}\n",
        "  training: {ema: 1}\n",
        "  model: enormous\n",
        "  model: {hidden: 5}\n",
        "  parallelism: {schedule: gpipe}\n",
        "  checkpoint: {every: often}\n",
    ] {
        assert!(!validator.is_valid(&json(&format!("{head}{bad}"))), "{bad}");
    }
}
