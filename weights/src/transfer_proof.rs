//! Proof of what `transfer` promises: numbers arrive as they left, files are whole or not there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::json;
use shoal_plan::model::ModelConfig;
use tempfile::TempDir;

use crate::fixtures::{Tensors, fp8, small, tensors, write_config, write_tensors};
use crate::numbers::{stored, widen};
use crate::{CONFIG_FILE, Copied, Copying, Form, StoredType, Target, Weights};

/// A directory with one file and what `changes` add to its config.
fn source(tensors: &Tensors, changes: serde_json::Value) -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    write_config(scratch.path(), &small(), changes);
    write_tensors(scratch.path(), "model.safetensors", tensors);
    scratch
}

fn copy(from: &Path, to: &Path, target: Target, shard_bytes: u64) -> Copied {
    let weights = Weights::open(from).unwrap();
    let copying = Copying { weights: &weights, target, shard_bytes, force: false };
    let mut heard = (0, 0);
    let copied = copying.write(to, &mut |done, all| heard = (done, all)).unwrap();
    assert_eq!(heard, (copied.bytes, copied.bytes), "progress ends at the end");
    copied
}

/// Every tensor's dtype and values, FP8 multiplied by its scales.
fn read(directory: &Path) -> BTreeMap<String, (&'static str, Vec<f32>)> {
    let weights = Weights::open(directory).unwrap();
    let hub = weights.hub().unwrap();
    let wanted = hub.expected().into_iter().filter(|one| hub.entry(&one.name).is_some());
    let wanted = wanted.filter(|one| !one.name.ends_with("_scale_inv"));
    wanted
        .map(|one| {
            let dtype = hub.entry(&one.name).unwrap().dtype;
            let values = weights.read(&one.name, &one.shape).unwrap();
            (one.name, (dtype, values))
        })
        .collect()
}

#[test]
fn what_needs_no_rounding_arrives_bit_for_bit_in_any_number_of_files() {
    for dtype in [StoredType::Bf16, StoredType::F32] {
        let tensors = tensors(&small(), dtype);
        let from = source(&tensors, json!({}));
        let scratch = tempfile::tempdir().unwrap();
        let copied = copy(from.path(), &scratch.path().join("one"), Target::Keep, u64::MAX);
        assert_eq!((copied.files.len(), copied.tensors), (1, tensors.len() as u64));
        let copied = copy(from.path(), &scratch.path().join("many"), Target::Keep, 20_000);
        assert!(copied.files.len() > 3, "{:?}", copied.files);
        let want = read(from.path());
        assert!(want.values().any(|(found, _)| *found == dtype.name()));
        assert_eq!(read(&scratch.path().join("one")), want);
        assert_eq!(read(&scratch.path().join("many")), want);
    }
}

#[test]
fn fp8_arrives_as_what_codes_and_scales_give() {
    let from = source(&tensors(&small(), StoredType::F8E4m3), fp8());
    let scratch = tempfile::tempdir().unwrap();
    let want = read(from.path());
    for (target, name) in [(Target::Keep, "keep"), (Target::All(Form::F32), "f32")] {
        let copied = copy(from.path(), &scratch.path().join(name), target, u64::MAX);
        assert_eq!(copied.form, if name == "f32" { Form::F32 } else { Form::Bf16 });
        for (tensor, (dtype, values)) in read(&scratch.path().join(name)) {
            // Powers of two times codes of four digits fit BF16.
            assert_eq!(values, want[&tensor].1, "{tensor}");
            assert!(["BF16", "F32"].contains(&dtype), "{tensor}: {dtype}");
        }
    }
    copy(from.path(), &scratch.path().join("fp8"), Target::All(Form::Fp8), u64::MAX);
    assert_eq!(read(&scratch.path().join("fp8")), want);
    copy(&scratch.path().join("f32"), &scratch.path().join("back"), Target::All(Form::Fp8), 9_000);
    assert_eq!(read(&scratch.path().join("back")), want);
}

#[test]
fn rounding_is_once_to_the_nearest_and_biases_stay_f32() {
    let from = source(&tensors(&small(), StoredType::F32), json!({}));
    let scratch = tempfile::tempdir().unwrap();
    let want = read(from.path());
    copy(from.path(), &scratch.path().join("bf16"), Target::All(Form::Bf16), u64::MAX);
    for (name, (dtype, values)) in read(&scratch.path().join("bf16")) {
        let exact = &want[&name].1;
        if name.ends_with("e_score_correction_bias") {
            assert_eq!((dtype, &values), ("F32", exact), "{name}");
        } else {
            let rounded = widen(StoredType::Bf16, &stored(StoredType::Bf16, exact));
            assert_eq!((dtype, values), ("BF16", rounded), "{name}");
        }
    }
    copy(from.path(), &scratch.path().join("fp8"), Target::All(Form::Fp8), u64::MAX);
    for (name, (_, values)) in read(&scratch.path().join("fp8")) {
        // E4M3 has three digits after the first: an error of 1/16 of a value, or of the smallest
        // step under the scale of its block: 2^-9 of at most 2 * amax / 448, amax 1.
        let is_near = |(got, want): (&f32, &f32)| (got - want).abs() <= want.abs() / 16.0 + 1e-5;
        assert!(values.iter().zip(&want[&name].1).all(is_near), "{name}");
    }
}

#[test]
fn a_directory_is_replaced_only_if_it_is_a_models_and_force_is_given() {
    let from = source(&tensors(&small(), StoredType::Bf16), json!({}));
    let weights = Weights::open(from.path()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let write = |force, out: &Path| {
        let copying = Copying { weights: &weights, target: Target::Keep, shard_bytes: 9000, force };
        copying.write(out, &mut |_, _| {}).map_err(|error| error.to_string())
    };
    fs::create_dir(&out).unwrap();
    write(false, &out).unwrap();
    assert!(write(false, &out).unwrap_err().contains("out exists"));
    fs::write(out.join("left"), "by the one before").unwrap();
    write(true, &out).unwrap();
    assert!(!out.join("left").exists());
    fs::remove_file(out.join(CONFIG_FILE)).unwrap();
    assert!(write(true, &out).unwrap_err().contains("out exists"));
    assert!(write(true, &out.join("..")).is_err());
    let names = fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["out"], "nothing is left beside it");
}

#[test]
fn a_failure_on_the_way_leaves_nothing() {
    let from = source(&tensors(&small(), StoredType::Bf16), json!({}));
    let weights = Weights::open(from.path()).unwrap();
    let file = from.path().join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    // Shortened after it was checked, in place.
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(whole.len() as u64 / 2)
        .unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let copying =
        Copying { weights: &weights, target: Target::Keep, shard_bytes: 9000, force: false };
    let error = copying.write(&scratch.path().join("out"), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("reading") && !error.is_about_writing(), "{error}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn the_tokenizer_comes_along_if_it_fits_and_a_dense_model_without_biases_is_a_model() {
    let config = ModelConfig { n_routed_experts: 0, vocab_size: 257, ..small() };
    let tensors = tensors(&config, StoredType::Bf16);
    let from = tempfile::tempdir().unwrap();
    write_config(from.path(), &config, json!({}));
    write_tensors(from.path(), "model.safetensors", &tensors);
    let scratch = tempfile::tempdir().unwrap();
    let copied = copy(from.path(), &scratch.path().join("none"), Target::Keep, u64::MAX);
    assert!(!copied.has_tokenizer && !scratch.path().join("none/tokenizer.json").exists());
    let bytes = shoal_data::Tokenizer::bytes_json(true);
    fs::write(from.path().join("tokenizer.json"), &bytes).unwrap();
    fs::write(from.path().join("tokenizer_config.json"), "{\"kept\": 1}").unwrap();
    let out = scratch.path().join("with");
    let copied = copy(from.path(), &out, Target::Keep, u64::MAX);
    assert_eq!((copied.has_tokenizer, copied.eos), (true, Some(256)));
    assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), bytes);
    assert_eq!(fs::read(out.join("tokenizer_config.json")).unwrap(), b"{\"kept\": 1}");
    let text = fs::read_to_string(out.join("generation_config.json")).unwrap();
    assert!(text.contains("\"eos_token_id\": 256"), "{text}");
    fs::write(from.path().join("tokenizer.json"), "{").unwrap();
    let weights = Weights::open(from.path()).unwrap();
    let copying =
        Copying { weights: &weights, target: Target::Keep, shard_bytes: 9000, force: false };
    let error = copying.write(&scratch.path().join("bad"), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
}
