//! Files of weights, in and out. `Weights` opens any directory with a model in it: a checkpoint of
//! ours, the run it belongs to, or a directory from Hugging Face.
//!
//! Checkpoints are files in `checkpoints/step-N/`: the model under its Hugging Face names, so that
//! it opens in `transformers`, and the optimizer's state under the same names in files beside it.
//!
//! Cells write into `.step-N.gG.partial/` and sync, or into scratch files which the coordinator gathers there; the coordinator then writes the manifest and
//! renames the directory. So a directory named `step-N` with a manifest is complete, and damage
//! since then shows in sizes and hashes. A crash at any point leaves the checkpoint before intact.
//!
//! Files from elsewhere are held against their config before anything is read, and nothing in them
//! is taken on trust. Pickled files (`.pt`, `.bin`) are never read.

mod blocks;
mod config;
#[cfg(test)]
mod fixtures;
pub mod header;
mod hub;
#[cfg(test)]
mod hub_proof;
mod hugging_face;
pub mod index;
pub mod listing;
mod needed;
mod newest;
mod numbers;
mod open;
mod pickle;
#[cfg(test)]
mod proof;
mod reader;
mod save;
mod shelf;
mod tensor_file;
mod transfer;
#[cfg(test)]
mod transfer_proof;
mod verify;
mod write;

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use shoal_plan::checkpoint;
use shoal_plan::checkpoint::is_plain;
use shoal_plan::grid::CellId;
use shoal_plan::plan::Generation;

pub use blocks::Block;
pub use config::{CONFIG_FILE, StoredConfig};
pub use hub::{Hub, INDEX_FILE};
pub use hugging_face::{ConfigExtras, Form, write_hf_files};
pub use needed::{Wanted, files_with};
pub use newest::{
    MANIFEST_BYTES_MAX, Newest, Warning, manifest_of, newest_good, read_manifest, steps,
};
pub use open::{Weights, place};
pub use reader::CheckpointReader;
pub use save::ModelWriter;
pub use shelf::{Directory, Scratch, Shelf, scratch_file};
pub use tensor_file::TensorFile;
pub use transfer::{Copied, Copying, Target};
pub use verify::{Fault, Fingerprint, Problem, Verified, verify};
pub use write::{NamedTensor, write_bytes, write_file, write_tensors};

/// Of a longer list of problems the rest is only counted.
const PROBLEMS_SHOWN: usize = 20;

/// How numbers lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    F32,
    Bf16,
    /// Read only.
    F16,
    /// With scales beside them.
    F8E4m3,
}

/// What a file of tensors holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorKind {
    /// The model: weights in BF16, router biases in F32.
    Model,
    /// The optimizer's masters, F32.
    Master,
    /// The mean of the gradient, BF16 or F32.
    FirstMoment,
    /// The mean of its square, as the first.
    SecondMoment,
    /// The average of the masters over the steps, F32, where one is kept.
    Average,
}

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: String },

    /// Nothing older is used in its place: the run would silently lose what the newer did.
    #[error(
        "{} has schema version {got}, this shoal reads {want}: use the shoal that wrote it",
        path.display()
    )]
    Schema { path: PathBuf, got: u64, want: u32 },

    #[error("checkpoint {}: no {kind} named {name}", path.display())]
    Missing { path: PathBuf, kind: TensorKind, name: String },

    #[error("{}: no tensor named {name}", path.display())]
    NoTensor { path: PathBuf, name: String },

    /// Tensors that are not what the config, or the index, says.
    #[error("{}: {}", path.display(), listed(problems))]
    Unfit { path: PathBuf, problems: Vec<String> },

    #[error("checkpoint {}: {kind} {name} is {got}, want {want}", path.display())]
    Tensor { path: PathBuf, kind: TensorKind, name: String, got: String, want: String },

    /// Nothing of a model is there, or nothing that can be read.
    #[error("{}: {what}; {help}", path.display())]
    NoModel { path: PathBuf, what: String, help: String },

    #[error("{} exists: --force replaces a model's directory, and no other", path.display())]
    Exists { path: PathBuf },

    #[error("{0}")]
    Data(#[from] shoal_data::DataError),

    #[error("{0}")]
    Config(#[from] shoal_plan::manifest::ManifestError),

    #[error("tensor {name:?} cannot be written to {}: {what}", path.display())]
    Unwritable { path: PathBuf, name: String, what: String },
}

impl StoredType {
    pub(crate) const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::F16, Self::F8E4m3];

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::F8E4m3 => 1,
        }
    }

    /// Its name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F8E4m3 => "F8_E4M3",
        }
    }
}

impl TensorKind {
    pub const ALL: [Self; 5] =
        [Self::Model, Self::Master, Self::FirstMoment, Self::SecondMoment, Self::Average];

    /// The file that a cell writes, e.g. `exp_avg-cell-3.safetensors`.
    pub fn file_name(self, cell: CellId) -> String {
        format!("{}-{cell}.safetensors", self.prefix())
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Master => "master",
            Self::FirstMoment => "exp_avg",
            Self::SecondMoment => "exp_avg_sq",
            Self::Average => "ema",
        }
    }

    /// Of the model, and not what an optimizer keeps of it.
    fn is_weight(self) -> bool {
        match self {
            Self::Model | Self::Master | Self::Average => true,
            Self::FirstMoment | Self::SecondMoment => false,
        }
    }

    /// What a file name promises; `None` if it is no file of tensors of ours.
    fn of_file(name: &str) -> Option<Self> {
        let (prefix, cell) = name.strip_suffix(".safetensors")?.split_once("-cell-")?;
        cell.parse::<u32>().ok()?;
        Self::ALL.into_iter().find(|kind| kind.prefix() == prefix)
    }
}

impl std::fmt::Display for TensorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.prefix())
    }
}

/// The directory where the cells of the plan of `generation` write step `step`, made if need be.
pub fn partial_directory(
    checkpoints: &Path,
    step: u64,
    generation: Generation,
) -> Result<PathBuf, CheckpointError> {
    let path = checkpoints.join(checkpoint::partial_name(step, generation));
    fs::create_dir_all(&path).map_err(io_error("creating", &path))?;
    Ok(path)
}

/// The directory of step `step` once it is complete.
pub fn directory(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(checkpoint::complete_name(step))
}

impl CheckpointError {
    /// Whether it is the disk that could not take what was to be written.
    pub fn is_about_writing(&self) -> bool {
        match self {
            Self::Io { action, .. } => !matches!(*action, "opening" | "reading"),
            Self::Unwritable { .. } => true,
            Self::Damaged { .. }
            | Self::Schema { .. }
            | Self::Missing { .. }
            | Self::NoTensor { .. }
            | Self::Unfit { .. }
            | Self::Tensor { .. }
            | Self::NoModel { .. }
            | Self::Exists { .. }
            | Self::Data(_)
            | Self::Config(_) => false,
        }
    }
}

/// The first of many problems, a line each, and how many there are.
fn listed(problems: &[String]) -> String {
    let (n, shown) = (problems.len(), problems.len().min(PROBLEMS_SHOWN));
    let what = if n == 1 { "1 tensor is" } else { &format!("{n} tensors are") };
    let mut text = format!("{what} not as config.json and the index say:");
    for problem in &problems[..shown] {
        text.push_str("\n  ");
        text.push_str(problem);
    }
    if shown < n {
        let _ = write!(text, "\n  ... and {} more", n - shown);
    }
    text
}

/// Attaches the path and what was being done to an I/O error.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    move |source| CheckpointError::Io { action, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_pass() {
        for name in
            ["model.layers.0.mlp.experts.15.up_proj.weight", "a", "exp_avg-cell-0.safetensors"]
        {
            assert!(is_plain(name), "{name:?}");
        }
        let long = "x".repeat(256);
        for name in [
            "",
            ".",
            "..",
            ".hidden",
            "../../etc/passwd",
            "a/b",
            "a\\b",
            "a..b",
            "a\0",
            "a\nb",
            "C:",
            "a b",
            "\u{e9}",
            &long,
        ] {
            assert!(!is_plain(name), "{name:?}");
        }
    }

    #[test]
    fn a_file_name_says_what_is_in_it() {
        for kind in TensorKind::ALL {
            assert_eq!(TensorKind::of_file(&kind.file_name(CellId(12))), Some(kind));
        }
        assert_eq!(TensorKind::SecondMoment.file_name(CellId(3)), "exp_avg_sq-cell-3.safetensors");
        for name in
            ["model.safetensors", "model-cell-x.safetensors", "config.json", "x-cell-0.safetensors"]
        {
            assert_eq!(TensorKind::of_file(name), None, "{name}");
        }
    }
}
