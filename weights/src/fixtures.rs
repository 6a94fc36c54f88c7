//! Small Hugging Face directories for the tests.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use shoal_kernels::compare::Random;
use shoal_model::names::Role;
use shoal_plan::model::ModelConfig;

use crate::blocks::{Block, quantise, scale_name};
use crate::listing::{Part, listing};
use crate::numbers::stored;
use crate::{CONFIG_FILE, NamedTensor, StoredType, write_file};

/// A tensor as it goes to a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub shape: Vec<usize>,
    pub dtype: StoredType,
    pub bytes: Vec<u8>,
}

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// Everything there is in a V3, and nothing large: partial blocks, two groups, an MTP module.
pub(crate) fn small() -> ModelConfig {
    ModelConfig {
        vocab_size: 40,
        hidden_size: 136,
        intermediate_size: 24,
        moe_intermediate_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        n_routed_experts: 4,
        num_experts_per_tok: 2,
        n_group: 2,
        topk_group: 1,
        q_lora_rank: Some(12),
        kv_lora_rank: 16,
        qk_nope_head_dim: 8,
        qk_rope_head_dim: 4,
        v_head_dim: 8,
        ..ModelConfig::tiny()
    }
}

/// Random tensors for a model, in `dtype`: `F8E4m3` for Linears with scales and BF16 for the rest.
pub(crate) fn tensors(config: &ModelConfig, dtype: StoredType) -> Tensors {
    let (block, wide) = match dtype {
        StoredType::F8E4m3 => (Some(Block::DEEPSEEK), StoredType::Bf16),
        StoredType::F32 | StoredType::Bf16 | StoredType::F16 => (None, dtype),
    };
    let mut random = Random::new(11);
    let mut all = Tensors::new();
    for one in listing(config, block) {
        let n = one.shape.iter().product();
        let values = random.uniform(n, -1.0, 1.0);
        let tensor = |dtype, bytes: Cow<'_, [u8]>| Tensor {
            shape: one.shape.clone(),
            dtype,
            bytes: bytes.into_owned(),
        };
        match &one.part {
            Part::Weight(Role::Linear) if block.is_some() => {
                let (codes, scales) = quantise(&values, one.shape[0], one.shape[1]);
                let shape = Block::DEEPSEEK.scales_shape(&one.shape);
                let bytes = stored(StoredType::F32, &scales).into_owned();
                let scales = Tensor { shape, dtype: StoredType::F32, bytes };
                all.insert(scale_name(&one.name), scales);
                all.insert(one.name.clone(), tensor(StoredType::F8E4m3, codes.into()));
            }
            Part::Scale | Part::CopyOf(_) => {}
            Part::Bias => {
                let tensor = tensor(StoredType::F32, stored(StoredType::F32, &values));
                all.insert(one.name.clone(), tensor);
            }
            Part::Weight(_) => {
                all.insert(one.name.clone(), tensor(wide, stored(wide, &values)));
            }
        }
    }
    all
}

/// Writes tensors into one file.
pub(crate) fn write_tensors(directory: &Path, file: &str, tensors: &Tensors) {
    let named = tensors.iter().map(|(name, tensor)| NamedTensor {
        name,
        shape: tensor.shape.clone(),
        dtype: tensor.dtype,
        bytes: Cow::Borrowed(&tensor.bytes),
    });
    write_file(directory, file, &mut named.collect::<Vec<_>>().into_iter()).unwrap();
}

/// The config as `transformers` has it, with `changes` over it.
pub(crate) fn write_config(directory: &Path, config: &ModelConfig, changes: serde_json::Value) {
    let mut json = serde_json::to_value(config).unwrap();
    json["model_type"] = "deepseek_v3".into();
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    fs::write(directory.join(CONFIG_FILE), json.to_string()).unwrap();
}

/// A `quantization_config` as DeepSeek writes it.
pub(crate) fn fp8() -> serde_json::Value {
    serde_json::json!({"quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }})
}
