//! What is written down is what the program does: the schema, the reference of keys, the examples.
//!
//! `UPDATE_DOCUMENTS=1 cargo test --test documents` writes the generated parts anew.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use shoal_plan::manifest::{REFERENCE_FILE, SCHEMA_FILE, reference, schema};

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

/// Every manifest below `examples/`.
fn examples() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![root().join("examples")];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
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
    let old = fs::read_to_string(root().join(REFERENCE_FILE)).unwrap();
    let (before, rest) = old.split_once(BEGIN).expect("the generated part has a beginning");
    let (_, after) = rest.split_once(END).expect("the generated part has an end");
    check(REFERENCE_FILE, &format!("{before}{BEGIN}\n{}\n{END}{after}", reference()));
    assert!(!reference().contains("|  |\n"), "every key has a meaning");
}

#[test]
fn the_schema_takes_every_example_and_every_example_names_it() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let examples = examples();
    assert!(!examples.is_empty());
    for path in examples {
        let text = fs::read_to_string(&path).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(&json(&text)).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        let first = text.lines().next().unwrap();
        let named = first.strip_prefix("# yaml-language-server: $schema=").unwrap_or_default();
        let named = path.parent().unwrap().join(named);
        let schema = root().join(SCHEMA_FILE).canonicalize().unwrap();
        assert_eq!(named.canonicalize().unwrap_or_default(), schema, "{}", path.display());
    }
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
