//! Proof of what `hub` promises: a good directory is read whole, and everything that is wrong with
//! a bad one is said.

use std::fs;
use std::path::Path;

use serde_json::json;
use shoal_model::{Cut, Stage, StageOptions};
use shoal_plan::job::Precision;
use shoal_plan::model::ModelConfig;
use tempfile::TempDir;

use crate::blocks::{Block, scale_name};
use crate::fixtures::{Tensors, fp8, small, tensors, write_config, write_tensors};
use crate::numbers::widen;
use crate::{StoredType, Weights};

const EXPERT: &str = "model.layers.1.mlp.experts.3.down_proj.weight";
const GATE: &str = "model.layers.1.mlp.gate.weight";
const BIAS: &str = "model.layers.1.mlp.gate.e_score_correction_bias";

/// A directory with one file.
fn single(config: &ModelConfig, tensors: &Tensors, changes: serde_json::Value) -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    write_config(scratch.path(), config, changes);
    write_tensors(scratch.path(), "model.safetensors", tensors);
    scratch
}

/// A directory with two files and their index.
fn sharded(config: &ModelConfig, tensors: &Tensors) -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    write_config(scratch.path(), config, json!({}));
    let mut halves = [Tensors::new(), Tensors::new()];
    let mut map = serde_json::Map::new();
    for (at, (name, tensor)) in tensors.iter().enumerate() {
        halves[at % 2].insert(name.clone(), tensor.clone());
        map.insert(name.clone(), json!(file(at % 2)));
    }
    for (at, half) in halves.iter().enumerate() {
        write_tensors(scratch.path(), &file(at), half);
    }
    write_index(scratch.path(), map);
    scratch
}

fn file(at: usize) -> String {
    format!("model-0000{}-of-00002.safetensors", at + 1)
}

fn write_index(directory: &Path, map: serde_json::Map<String, serde_json::Value>) {
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(directory.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn refused(directory: &Path) -> String {
    match Weights::open(directory) {
        Ok(_) => "opened".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_form_of_a_model_fills_a_stage() {
    let config = small();
    for dtype in [StoredType::F32, StoredType::Bf16, StoredType::F8E4m3] {
        let tensors = tensors(&config, dtype);
        let is_fp8 = dtype == StoredType::F8E4m3;
        let changes = if is_fp8 { fp8() } else { json!({}) };
        let scratch = single(&config, &tensors, changes);
        let weights = Weights::open(scratch.path()).unwrap();
        assert_eq!(weights.config(), &config);
        assert_eq!(weights.notes(), [""; 0]);
        let options = StageOptions::new(Precision::F32, 1);
        let mut stage = Stage::new(Cut::whole(config.clone()), &options);
        weights.fill(&mut stage).unwrap();
        for name in stage.parameters().names() {
            let tensor = &tensors[name];
            let mut want = widen(tensor.dtype, &tensor.bytes);
            if tensor.dtype == StoredType::F8E4m3 {
                let scales = widen(StoredType::F32, &tensors[&scale_name(name)].bytes);
                Block::DEEPSEEK.apply(&mut want, tensor.shape[1], &scales);
            }
            assert_eq!(stage.parameters().master(name), want, "{name}");
        }
        assert_eq!(stage.biases()[BIAS], widen(StoredType::F32, &tensors[BIAS].bytes));
    }
}

#[test]
fn shards_are_read_through_their_index() {
    let (config, tensors) = (small(), tensors(&small(), StoredType::Bf16));
    let scratch = sharded(&config, &tensors);
    let weights = Weights::open(scratch.path()).unwrap();
    for (name, tensor) in &tensors {
        let got = weights.read(name, &tensor.shape).unwrap();
        assert_eq!(got, widen(tensor.dtype, &tensor.bytes), "{name}");
    }
    let error = weights.read(GATE, &[136, 4]).unwrap_err().to_string();
    assert!(error.contains("is BF16 [4, 136], want the shape [136, 4]"), "{error}");
    assert!(weights.read("nobody", &[1]).unwrap_err().to_string().contains("no tensor named"));
}

#[test]
fn every_mismatch_is_listed_at_once() {
    let mut tensors = tensors(&small(), StoredType::Bf16);
    let expert = tensors.remove(EXPERT).unwrap();
    tensors.insert("model.layers.1.mlp.experts.4.down_proj.weight".into(), expert);
    tensors.get_mut(GATE).unwrap().shape.reverse();
    let bias = tensors.get_mut(BIAS).unwrap();
    (bias.dtype, bias.shape) = (StoredType::F8E4m3, vec![4]);
    bias.bytes.truncate(4);
    let scratch = single(&small(), &tensors, json!({}));
    let error = refused(scratch.path());
    for want in [
        "4 tensors are not as",
        &format!("{EXPERT}: missing, want [136, 8]"),
        "experts.4.down_proj.weight: BF16 [136, 8], which the config asks for nowhere",
        &format!("{GATE}: BF16 [136, 4], want the shape [4, 136]"),
        &format!("{BIAS}: F8_E4M3 [4], want BF16, F16 or F32: only Linears"),
    ] {
        assert!(error.contains(want), "{error}\nwant {want}");
    }
}

#[test]
fn a_long_list_of_mismatches_is_cut_and_counted() {
    let scratch = single(&small(), &Tensors::new(), json!({"num_nextn_predict_layers": 0}));
    let error = refused(scratch.path());
    assert_eq!(error.lines().count(), 22, "{error}");
    assert!(error.lines().last().unwrap().starts_with("  ... and "), "{error}");
}

#[test]
fn a_config_that_asks_for_millions_of_tensors_gets_none() {
    let huge = json!({"num_hidden_layers": 500, "n_routed_experts": 4096});
    let scratch = single(&small(), &tensors(&small(), StoredType::Bf16), huge);
    let error = refused(scratch.path());
    assert!(error.contains("tensors of routed experts are wanted"), "{error}");
}

#[test]
fn a_model_without_its_mtp_module_is_taken_without_it_and_half_a_module_is_refused() {
    let mut tensors = tensors(&small(), StoredType::F32);
    tensors.retain(|name, _| !name.contains("layers.2.") || name.contains("enorm"));
    let scratch = single(&small(), &tensors, json!({}));
    assert!(refused(scratch.path()).contains("model.layers.2.eh_proj.weight: missing"));
    tensors.retain(|name, _| !name.contains("layers.2."));
    let scratch = single(&small(), &tensors, json!({}));
    let weights = Weights::open(scratch.path()).unwrap();
    assert_eq!(weights.config().num_nextn_predict_layers, 0);
    assert!(weights.notes()[0].contains("num_nextn_predict_layers 1"), "{:?}", weights.notes());
    // A stage with the module keeps what it drew for it.
    let options = StageOptions::new(Precision::F32, 1);
    let mut stage = Stage::new(Cut::whole(small()), &options);
    let name = "model.layers.2.eh_proj.weight";
    let drawn = stage.parameters().master(name).to_vec();
    weights.fill(&mut stage).unwrap();
    assert_eq!(stage.parameters().master(name), drawn);
}

#[test]
fn copies_of_embedding_and_head_are_compared() {
    let mut tensors = tensors(&small(), StoredType::Bf16);
    let embedding = tensors["model.embed_tokens.weight"].clone();
    tensors.insert("model.layers.2.embed_tokens.weight".into(), embedding.clone());
    tensors.insert("model.layers.2.shared_head.head.weight".into(), embedding);
    let scratch = single(&small(), &tensors, json!({}));
    let weights = Weights::open(scratch.path()).unwrap();
    let differ = weights.hub().unwrap().copies_that_differ().unwrap();
    assert_eq!(
        differ,
        ["model.layers.2.shared_head.head.weight is not lm_head.weight; it is left out"]
    );
}

#[test]
fn an_index_that_lies_is_refused() {
    let (config, tensors) = (small(), tensors(&small(), StoredType::Bf16));
    let map = || {
        let pair = |(at, name): (usize, &String)| (name.clone(), json!(file(at % 2)));
        tensors.keys().enumerate().map(pair).collect::<serde_json::Map<_, _>>()
    };
    let check = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>), want: &str| {
        let scratch = sharded(&config, &tensors);
        let mut map = map();
        change(&mut map);
        write_index(scratch.path(), map);
        let error = refused(scratch.path());
        assert!(error.contains(want), "{error}, want {want}");
    };
    check(&|_| {}, "opened");
    let other = |map: &mut serde_json::Map<_, _>| {
        let old = map[GATE].clone();
        map[GATE] = if old == json!(file(0)) { json!(file(1)) } else { json!(file(0)) };
    };
    check(&other, "but it is in model-0000");
    check(&|map| drop(map.remove(GATE)), "but not in model.safetensors.index.json");
    check(
        &|map| drop(map.insert("x".into(), json!(file(0)))),
        "x: model.safetensors.index.json says",
    );
    check(&|map| map[GATE] = json!("gone.safetensors"), "opening");
    check(&|map| map[GATE] = json!("../gone.safetensors"), "want a .safetensors file of the same");
}

#[test]
fn files_that_are_no_safetensors_are_refused_with_their_names() {
    let check = |file: &str, content: &[u8], want: &str| {
        let scratch = tempfile::tempdir().unwrap();
        write_config(scratch.path(), &small(), json!({}));
        fs::write(scratch.path().join(file), content).unwrap();
        let error = refused(scratch.path());
        assert!(error.contains(want) && error.contains(file), "{error}, want {want}");
    };
    check("pytorch_model.bin", b"PK\x03\x04", "convert to safetensors");
    check("consolidated.00.pth", b"", "convert to safetensors");
    check("model.safetensors", b"PK\x03\x04\0\0\x08\x08\0\0\0", "convert to safetensors");
    check("model.safetensors", b"\x80\x02}q\0(X\0\0", "it is a pickle");
    check("model.safetensors", b"", "0 bytes are no safetensors file");
    check("model.safetensors", &[0xff; 100], "want at most 92");
    check("model.safetensors", b"\x02\0\0\0\0\0\0\0[]", "no JSON object");
    check("model.safetensors.index.json", b"{}", "damaged");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let scratch = single(&small(), &tensors(&small(), StoredType::Bf16), json!({}));
    let path = scratch.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for at in [0, 7, 8, 9, 1000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..at]).unwrap();
        let error = refused(scratch.path());
        assert!(error.contains("model.safetensors is damaged"), "{at}: {error}");
    }
    fs::write(&path, [whole.as_slice(), &[0]].concat()).unwrap();
    assert!(refused(scratch.path()).contains("1 bytes at the end belong to no tensor"));
}

#[test]
fn other_models_are_refused_by_name() {
    let check = |changes: serde_json::Value, want: &str| {
        let scratch = single(&small(), &Tensors::new(), changes);
        let error = refused(scratch.path());
        assert!(error.contains(want) && error.contains("config.json"), "{error}, want {want}");
    };
    check(json!({"model_type": "deepseek_v2"}), "its router is a softmax");
    check(json!({"model_type": "llama"}), "model_type is llama, want deepseek_v3");
    check(json!({"model_type": 3}), "wanted deepseek_v3, got");
    check(json!({"quantization_config": {"quant_method": "awq"}}), "wanted fp8, got");
    check(json!({"hidden_size": -1}), "hidden_size");
    check(json!({"hidden_size": "wide"}), "hidden_size");
    let error = refused(Path::new("no-such-directory"));
    assert!(error.contains("there is no such directory"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    assert!(refused(empty.path()).contains("there is no config.json"));
}
