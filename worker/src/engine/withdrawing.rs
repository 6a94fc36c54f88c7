//! What a worker's cells read of the checkpoint that their plan starts from, where a coordinator gathers them: it
//! gives the manifest, the index, and of the files of tensors those that hold something of these cells. They
//! lie in scratch files until all cells are filled.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use shoal_model::{Cut, names};
use shoal_plan::checkpoint::{CheckpointFile, CheckpointManifest, FILE_NAME, complete_name};
use shoal_plan::grid::CellId;
use shoal_weights::{
    CheckpointReader, INDEX_FILE, MANIFEST_BYTES_MAX, Wanted, files_with, index, manifest_of,
};

use super::cell::Inputs;
use super::error::EngineError;
use crate::daemon::{Courier, CourierError};

/// The checkpoint of a step, as far as these cells need it.
pub(super) fn withdraw(
    courier: &Courier,
    inputs: &Inputs,
    (step, cells): (u64, &[CellId]),
    is_off: &dyn Fn() -> bool,
) -> Result<CheckpointReader, EngineError> {
    // What errors call it: there is no such directory here.
    let directory = PathBuf::from(complete_name(step));
    let text = courier.withdraw_manifest(step, MANIFEST_BYTES_MAX, is_off)?;
    let manifest = manifest_of(&directory.join(FILE_NAME), &text)?;
    let index = match manifest.files.iter().find(|file| file.name == INDEX_FILE) {
        Some(file) => read_index(courier, (step, file), is_off)?,
        None => BTreeMap::new(),
    };
    let files = files_with(&manifest, &index, &wanted(inputs, cells));
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    tracing::info!(step, files = files.len(), bytes, "reading a checkpoint from the coordinator");
    open(courier, (step, manifest, files), is_off, &directory)
}

fn open(
    courier: &Courier,
    (step, manifest, files): (u64, CheckpointManifest, Vec<CheckpointFile>),
    is_off: &dyn Fn() -> bool,
    directory: &Path,
) -> Result<CheckpointReader, EngineError> {
    let files: Result<Vec<_>, CourierError> = (files.into_iter())
        .map(|file| courier.withdraw_file(step, &file, is_off).map(|content| (file, content)))
        .collect();
    Ok(CheckpointReader::over(directory, manifest, files?)?)
}

/// Where the model's tensors are. One that cannot be read is passed over: then all files are needed.
fn read_index(
    courier: &Courier,
    (step, file): (u64, &CheckpointFile),
    is_off: &dyn Fn() -> bool,
) -> Result<BTreeMap<String, String>, EngineError> {
    let mut text = Vec::new();
    let read = courier.withdraw_file(step, file, is_off)?.read_to_end(&mut text);
    Ok(read.ok().and_then(|_| index::parse(&text).ok()).unwrap_or_default())
}

/// All parameters of these cells, and the biases of their routers.
fn wanted(inputs: &Inputs, cells: &[CellId]) -> Wanted {
    let cuts: Vec<Cut> = cells.iter().flat_map(|cell| inputs.cuts(*cell)).collect();
    let parameters = cuts.iter().flat_map(names::specifications).map(|one| one.name);
    let biases = cuts.iter().flat_map(Cut::moe_layers).map(names::of_bias);
    Wanted {
        parameters: parameters.collect(),
        biases: biases.collect(),
        averages: 0.0 < inputs.job.training.ema,
    }
}
