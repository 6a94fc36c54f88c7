//! The manifest of a checkpoint: written last, so that a checkpoint with one is complete.

use serde::{Deserialize, Serialize};

mod keeping;
mod written;

use crate::grid::Grid;
use crate::standing::Standing;

pub use keeping::{Keep, Named, complete_name, is_plain, partial_name, replaced_name};
pub use written::bytes_max;

/// Raised whenever a reader of the old form could misread the new.
pub const SCHEMA_VERSION: u32 = 2;

/// The file's name inside `checkpoints/step-N/`.
pub const FILE_NAME: &str = "manifest.json";

/// The file in `checkpoints/` that names the best checkpoint: `{"step":120,"loss":1.9}`.
pub const BEST_FILE_NAME: &str = "best.json";

/// What a complete checkpoint consists of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointManifest {
    pub schema_version: u32,
    /// Steps done, the data position, and what a resumed run must know beside the tensors.
    pub standing: Standing,
    /// The grid that wrote it. Any other grid may read it.
    pub grid: Grid,
    /// Sorted by name.
    pub files: Vec<CheckpointFile>,
}

/// Why a manifest's text is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("{0}")]
    Damaged(String),
    /// The rest may mean something else there, so nothing of it is read.
    #[error("it has schema version {got}, want {SCHEMA_VERSION}")]
    Schema { got: u64 },
}

/// The key of the text's own checksum, beside the manifest's fields.
const SEAL: &str = "blake3";

impl CheckpointManifest {
    /// The file's text: JSON with a blake3 of itself, so that a flipped digit is noticed.
    pub fn to_text(&self) -> String {
        let mut value = serde_json::to_value(self).expect("a manifest has only string keys");
        value[SEAL] = self.seal().into();
        serde_json::to_string_pretty(&value).expect("a value has only string keys")
    }

    /// Reads and checks the text of `to_text`.
    pub fn from_text(text: &[u8]) -> Result<Self, ManifestError> {
        let damaged = |error: serde_json::Error| ManifestError::Damaged(error.to_string());
        // The version first: the rest of a newer form may not parse.
        let mut value: serde_json::Value = serde_json::from_slice(text).map_err(damaged)?;
        match value.get("schema_version").and_then(serde_json::Value::as_u64) {
            Some(got) if got != u64::from(SCHEMA_VERSION) => {
                return Err(ManifestError::Schema { got });
            }
            Some(_) | None => {}
        }
        let seal = value.as_object_mut().and_then(|fields| fields.remove(SEAL));
        let manifest: Self = serde_json::from_value(value).map_err(damaged)?;
        if seal.as_ref().and_then(serde_json::Value::as_str) != Some(&manifest.seal()) {
            return Err(ManifestError::Damaged("its own blake3 does not match".to_owned()));
        }
        Ok(manifest)
    }

    fn seal(&self) -> String {
        let plain = serde_json::to_vec(self).expect("a manifest has only string keys");
        blake3::hash(&plain).to_hex().to_string()
    }
}

/// One file of a checkpoint, as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointFile {
    /// A plain file name, no directories.
    pub name: String,
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub blake3: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standing::Best;

    fn manifest() -> CheckpointManifest {
        let blake3 = blake3::hash(b"x").to_hex().to_string();
        CheckpointManifest {
            schema_version: SCHEMA_VERSION,
            // A loss whose last digit is lost by a parser that rounds twice.
            standing: Standing {
                step: 100,
                sequences: 800,
                best: Some(Best { step: 50, loss: 1.837_464_921_238_753_8 }),
                ..Standing::default()
            },
            grid: Grid { stages: 2, expert_shards: 2, replicas: 1 },
            files: vec![CheckpointFile {
                name: "model-cell-0.safetensors".into(),
                bytes: 1,
                blake3,
            }],
        }
    }

    #[test]
    fn no_byte_of_the_text_can_change_unnoticed() {
        let text = manifest().to_text().into_bytes();
        assert_eq!(CheckpointManifest::from_text(&text), Ok(manifest()));
        for at in 0..text.len() {
            let mut other = text.clone();
            other[at] ^= 1;
            // White space may change its kind without a change of meaning.
            if let Ok(read) = CheckpointManifest::from_text(&other) {
                assert_eq!(read, manifest(), "byte {at}");
            }
        }
    }

    #[test]
    fn another_schema_is_named_before_anything_else_is_read() {
        let error = CheckpointManifest::from_text(br#"{"schema_version": 9, "new": []}"#);
        assert_eq!(error, Err(ManifestError::Schema { got: 9 }));
    }
}
