//! `config.json` of a model on disk.

use std::fs;
use std::path::Path;

use shoal_plan::manifest::model_of_config;
use shoal_plan::model::ModelConfig;

use crate::blocks::Block;
use crate::{CheckpointError, io_error, pickle};

/// The file's name.
pub const CONFIG_FILE: &str = "config.json";

/// A `config.json` is a few kilobytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// What a `config.json` says about the weights beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredConfig {
    pub model: ModelConfig,
    /// Of weights in FP8.
    pub block: Option<Block>,
}

impl StoredConfig {
    /// Reads `directory/config.json`.
    pub fn read(directory: &Path) -> Result<Self, CheckpointError> {
        let path = directory.join(CONFIG_FILE);
        if !path.exists() {
            return Err(nothing_there(directory));
        }
        let bytes = fs::metadata(&path).map_err(io_error("reading", &path))?.len();
        if bytes > CONFIG_BYTES_MAX {
            let what = format!("{bytes} bytes, want at most {CONFIG_BYTES_MAX}");
            return Err(CheckpointError::Damaged { path, what });
        }
        let text = fs::read(&path).map_err(io_error("reading", &path))?;
        Self::parse(&path, &text)
    }

    /// From the text of a file; `path` is for messages.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, CheckpointError> {
        let damaged = |what: String| CheckpointError::Damaged { path: path.to_path_buf(), what };
        let text = str::from_utf8(text).map_err(|error| damaged(error.to_string()))?;
        let json: serde_json::Value =
            serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
        if let Some(what) = other_architecture(&json) {
            return Err(CheckpointError::NoModel {
                path: path.to_path_buf(),
                what,
                help: "shoal reads models of model_type deepseek_v3, such as DeepSeek-V3 and \
                       Moonlight"
                    .into(),
            });
        }
        let model = model_of_config(path, text)?;
        let block = Block::of_config(&json).map_err(|what| CheckpointError::NoModel {
            path: path.to_path_buf(),
            what,
            help: "shoal reads DeepSeek's block-FP8 form, BF16, F16 and F32".into(),
        })?;
        Ok(Self { model, block })
    }
}

/// Why a model is not one that we can train, where its type alone says so.
fn other_architecture(config: &serde_json::Value) -> Option<String> {
    match config.get("model_type").and_then(serde_json::Value::as_str)? {
        "deepseek_v3" => None,
        "deepseek_v2" => Some(
            "model_type is deepseek_v2 (DeepSeek-V2 and V2-Lite): its router is a softmax without \
             biases, not V3's sigmoid, so it cannot be trained or run here; the preset v2-lite-like \
             has its sizes"
                .into(),
        ),
        other => {
            let shown: String = other.chars().filter(|c| !c.is_control()).take(60).collect();
            Some(format!("model_type is {shown}, want deepseek_v3"))
        }
    }
}

/// What to say about a directory without a `config.json`.
fn nothing_there(directory: &Path) -> CheckpointError {
    if !directory.is_dir() {
        return CheckpointError::NoModel {
            path: directory.to_path_buf(),
            what: if directory.exists() {
                "it is no directory"
            } else {
                "there is no such directory"
            }
            .into(),
            help: "wanted a run or a checkpoint of shoal, or the directory of a Hugging Face model"
                .into(),
        };
    }
    if let Some(pickled) = pickle::named_so(directory) {
        return pickle::refusal(&pickled, "a pickled PyTorch file");
    }
    let is_run = directory.join("checkpoints").is_dir();
    CheckpointError::NoModel {
        path: directory.to_path_buf(),
        what: if is_run { "the run has no good checkpoint yet" } else { "there is no config.json" }
            .into(),
        help: "wanted a run or a checkpoint of shoal, or the directory of a Hugging Face model"
            .into(),
    }
}
