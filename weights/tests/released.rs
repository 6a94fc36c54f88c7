//! The loader's arithmetic on models that are out there, from their `config.json` alone.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

use shoal_weights::listing::{Part, listing};
use shoal_weights::{Block, StoredConfig};

fn config(name: &str) -> Result<StoredConfig, String> {
    let path: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs").join(format!("{name}.json"));
    let text = fs::read(&path).unwrap();
    StoredConfig::parse(&path, &text).map_err(|error| error.to_string())
}

/// Tensors and elements.
fn counted(config: &StoredConfig) -> (usize, u64) {
    let all = listing(&config.model, config.block);
    let elements = |shape: &[usize]| shape.iter().map(|n| *n as u64).product::<u64>();
    (all.len(), all.iter().map(|one| elements(&one.shape)).sum())
}

/// The released listing: names, scales of every quantised Linear, router biases, and the MTP
/// module's copies of embedding and head.
#[test]
fn deepseek_v3_has_the_tensors_of_the_released_listing() {
    let config = config("deepseek-v3").unwrap();
    assert_eq!(config.block, Some(Block::DEEPSEEK));
    assert_eq!(counted(&config), (91_991, 684_531_386_000));
    let all = listing(&config.model, config.block);
    let shape = |name: &str| {
        let one = all.iter().find(|one| one.name == name);
        one.map(|one| one.shape.clone()).unwrap_or_default()
    };
    assert_eq!(shape("model.layers.3.mlp.experts.255.down_proj.weight_scale_inv"), [56, 16]);
    assert_eq!(shape("model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"), [5, 56]);
    assert_eq!(shape("model.layers.61.eh_proj.weight"), [7168, 14_336]);
    assert_eq!(shape("model.layers.61.shared_head.head.weight"), [129_280, 7168]);
    let count = |part: &Part| all.iter().filter(|one| one.part == *part).count();
    assert_eq!(count(&Part::Bias), 59);
    for missing in
        ["model.embed_tokens.weight_scale_inv", "model.layers.61.eh_proj.weight_scale_inv"]
    {
        assert!(shape(missing).is_empty(), "{missing}");
    }
}

/// 15.96 B parameters in BF16 without an MTP module, and 26 router biases of 64.
#[test]
fn moonlight_can_be_trained() {
    let config = config("moonlight").unwrap();
    assert_eq!((config.block, config.model.num_nextn_predict_layers), (None, 0));
    let parameters = shoal_plan::arithmetic::parameters(&config.model).total;
    let (_, elements) = counted(&config);
    assert_eq!(elements, parameters + 26 * 64);
}

#[test]
fn v2_lite_is_refused_with_the_reason() {
    let error = config("v2-lite").unwrap_err();
    for want in ["v2-lite.json", "deepseek_v2", "softmax", "v2-lite-like"] {
        assert!(error.contains(want), "{error}");
    }
}
