//! The two small files beside the weights that make a checkpoint open in `transformers`:
//! `config.json` and `model.safetensors.index.json`.
//!
//! Source of the fields: the released config of DeepSeek-V3 and `DeepseekV3Config`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::model::ModelConfig;

use crate::blocks::Block;
use crate::hub::INDEX_FILE;
use crate::shelf::Shelf;
use crate::{CheckpointError, StoredType};

/// How the name of a router bias ends: the one kind of weight stored in F32.
const BIAS_ENDING: &str = ".e_score_correction_bias";

/// What a config says beside the model's sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigExtras {
    /// The token after every document.
    pub eos: Option<u32>,
    /// How most of the weights lie there.
    pub form: Form,
}

/// What the dtype of a model's weights is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    #[default]
    Bf16,
    F32,
    /// Linears in blocks of 128 x 128, everything else in BF16.
    Fp8,
}

/// DeepSeek's own section about weights in FP8.
#[derive(Serialize)]
struct Quantization {
    activation_scheme: &'static str,
    fmt: &'static str,
    quant_method: &'static str,
    weight_block_size: [usize; 2],
}

#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "the fields are Hugging Face's")]
struct Config<'a> {
    architectures: [&'static str; 1],
    model_type: &'static str,
    #[serde(flatten)]
    model: Cow<'a, ModelConfig>,
    /// MLA has as many key-value heads as query heads.
    num_key_value_heads: u32,
    scoring_func: &'static str,
    topk_method: &'static str,
    moe_layer_freq: u32,
    ep_size: u32,
    hidden_act: &'static str,
    attention_bias: bool,
    attention_dropout: f32,
    /// Positions rotate neighbouring pairs, as in `DeepSeek`'s own code.
    rope_interleave: bool,
    use_cache: bool,
    pretraining_tp: u32,
    /// No token begins a text.
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
    torch_dtype: &'static str,
    #[serde(rename = "quantization_config", skip_serializing_if = "Option::is_none")]
    quantization: Option<Quantization>,
    /// Ours: what the multi-token-prediction module reads.
    mtp_reads_final_norm: bool,
}

#[derive(Serialize)]
struct Index<'a> {
    metadata: IndexMetadata,
    /// Tensor to file.
    weight_map: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
struct IndexMetadata {
    /// Bytes of all weights.
    total_size: u64,
}

/// Writes both files into `directory`. `weights` lists every tensor of the whole model: its name,
/// the file that holds it, and its number of elements.
pub fn write_hf_files(
    shelf: &mut dyn Shelf,
    model: &ModelConfig,
    extras: &ConfigExtras,
    weights: &[(String, String, u64)],
) -> Result<Vec<CheckpointFile>, CheckpointError> {
    let bytes = |(name, _, elements): &(String, String, u64)| {
        let is_bias = name.ends_with(BIAS_ENDING);
        let dtype = if is_bias { StoredType::F32 } else { StoredType::Bf16 };
        elements * dtype.size() as u64
    };
    let index = Index {
        metadata: IndexMetadata { total_size: weights.iter().map(bytes).sum() },
        weight_map: weights.iter().map(|(name, file, _)| (name.as_str(), file.as_str())).collect(),
    };
    Ok(vec![
        write_json(shelf, "config.json", &config(model, extras))?,
        write_json(shelf, INDEX_FILE, &index)?,
    ])
}

/// The text of a `config.json`.
pub(crate) fn config_json(model: &ModelConfig, extras: &ConfigExtras) -> Vec<u8> {
    json_text(&config(model, extras))
}

/// The text of an index: tensor to file, and the bytes of all.
pub(crate) fn index_json(weight_map: BTreeMap<&str, &str>, total_size: u64) -> Vec<u8> {
    json_text(&Index { metadata: IndexMetadata { total_size }, weight_map })
}

/// The text of a `generation_config.json`.
pub(crate) fn generation_json(eos: Option<u32>) -> Vec<u8> {
    json_text(&serde_json::json!({ "eos_token_id": eos, "pad_token_id": eos }))
}

/// The text of a `tokenizer_config.json` beside a `tokenizer.json`.
pub(crate) fn tokenizer_config_json(eos: Option<&str>) -> Vec<u8> {
    json_text(&serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "eos_token": eos,
        "pad_token": eos,
    }))
}

fn json_text(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain data");
    text.push(b'\n');
    text
}

fn config<'a>(model: &'a ModelConfig, extras: &ConfigExtras) -> Config<'a> {
    let mut stored = Cow::Borrowed(model);
    if model.n_routed_experts == 0 {
        // `transformers` asks this field alone which layers are dense.
        stored.to_mut().first_k_dense_replace = model.num_hidden_layers;
    }
    Config {
        architectures: ["DeepseekV3ForCausalLM"],
        model_type: "deepseek_v3",
        model: stored,
        num_key_value_heads: model.num_attention_heads,
        scoring_func: "sigmoid",
        topk_method: "noaux_tc",
        moe_layer_freq: 1,
        ep_size: 1,
        hidden_act: "silu",
        attention_bias: false,
        attention_dropout: 0.0,
        rope_interleave: true,
        use_cache: true,
        pretraining_tp: 1,
        bos_token_id: None,
        eos_token_id: extras.eos,
        torch_dtype: if extras.form == Form::F32 { "float32" } else { "bfloat16" },
        quantization: (extras.form == Form::Fp8).then_some(Quantization {
            activation_scheme: "dynamic",
            fmt: "e4m3",
            quant_method: "fp8",
            weight_block_size: Block::DEEPSEEK.0,
        }),
        mtp_reads_final_norm: true,
    }
}

fn write_json(
    shelf: &mut dyn Shelf,
    file_name: &str,
    value: &impl Serialize,
) -> Result<CheckpointFile, CheckpointError> {
    shelf.put(file_name, &mut [json_text(value).as_slice()].into_iter())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use shoal_plan::model::RopeScaling;

    use super::*;
    use crate::shelf::Directory;

    #[test]
    fn a_dense_models_layers_are_dense_for_transformers_as_well() {
        let dense = ModelConfig { n_routed_experts: 0, ..ModelConfig::tiny() };
        let json = serde_json::to_value(config(&dense, &ConfigExtras::default())).unwrap();
        assert_eq!(
            (&json["n_routed_experts"], &json["first_k_dense_replace"]),
            (&0.into(), &4.into())
        );
        let experts =
            serde_json::to_value(config(&ModelConfig::tiny(), &ConfigExtras::default())).unwrap();
        assert_eq!(experts["first_k_dense_replace"], 1);
    }

    /// `type`, which DeepSeek's own code reads, and no key without a value, which it would read as one.
    #[test]
    fn scaled_positions_and_a_tied_head_are_written_as_they_are_read() {
        let scaling = RopeScaling { mscale: Some(0.707), ..RopeScaling::yarn(40.0, 4096) };
        let model = ModelConfig {
            tie_word_embeddings: true,
            rope_scaling: Some(scaling),
            max_position_embeddings: 163_840,
            ..ModelConfig::tiny()
        };
        let text = serde_json::to_string_pretty(&config(&model, &ConfigExtras::default())).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let scaling = &json["rope_scaling"];
        assert_eq!((&scaling["type"], &scaling["factor"]), (&"yarn".into(), &40.0.into()));
        assert_eq!(scaling.get("mscale_all_dim"), None);
        assert_eq!(json["tie_word_embeddings"], true);
        let read = shoal_plan::manifest::model_of_config(Path::new("config.json"), &text).unwrap();
        assert_eq!(read, model);
    }

    #[test]
    fn the_config_is_deepseek_v3s_and_holds_every_size_of_the_model() {
        let scratch = tempfile::tempdir().unwrap();
        let weights = [
            ("model.norm.weight".to_string(), "model-cell-2.safetensors".to_string(), 256),
            ("model.layers.1.mlp.gate.e_score_correction_bias".into(), "m".into(), 16),
        ];
        let files = write_hf_files(
            &mut Directory(scratch.path()),
            &ModelConfig::tiny(),
            &ConfigExtras::default(),
            &weights,
        )
        .unwrap();
        assert_eq!(files.len(), 2);
        let text = fs::read_to_string(scratch.path().join("config.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["architectures"], serde_json::json!(["DeepseekV3ForCausalLM"]));
        assert_eq!(json["model_type"], "deepseek_v3");
        assert_eq!(json["scoring_func"], "sigmoid");
        assert_eq!(json["topk_method"], "noaux_tc");
        assert_eq!(json["tie_word_embeddings"], false);
        assert_eq!(json["num_key_value_heads"], 4);
        // Not 9.99999997e-7, which is what 1e-6 becomes on its way through f64.
        assert!(text.contains("\"rms_norm_eps\": 0.000001,"), "{text}");
        assert_eq!(json["rope_scaling"], serde_json::Value::Null);
        let model: ModelConfig = serde_json::from_value(json).unwrap();
        assert_eq!(model, ModelConfig::tiny());

        let index = fs::read(scratch.path().join("model.safetensors.index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["metadata"]["total_size"], 256 * 2 + 16 * 4);
        assert_eq!(index["weight_map"]["model.norm.weight"], "model-cell-2.safetensors");
    }
}
