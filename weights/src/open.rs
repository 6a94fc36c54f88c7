//! One door to the weights of a model, whoever wrote them: a checkpoint of ours, the newest of a
//! run, or a directory from Hugging Face.

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use shoal_model::Stage;
use shoal_plan::checkpoint::FILE_NAME;
use shoal_plan::model::ModelConfig;

use crate::config::{CONFIG_FILE, StoredConfig};
use crate::hub::{Hub, INDEX_FILE};
use crate::listing::layer_of;
use crate::{CheckpointError, CheckpointReader, TensorKind, io_error, newest, newest_good};

/// A model on disk: its sizes, and its tensors by their Hugging Face names.
pub struct Weights {
    directory: PathBuf,
    config: ModelConfig,
    source: Source,
    /// The parameters' average is read in their place.
    averaged: bool,
}

/// Who wrote it.
enum Source {
    Checkpoint(CheckpointReader),
    Hub(Hub),
}

impl Weights {
    /// Opens `directory`: a checkpoint (`RUN/checkpoints/step-N`), a run directory (its newest good
    /// checkpoint), or a Hugging Face directory (`config.json` and safetensors).
    ///
    /// Of a Hugging Face directory the names, shapes and dtypes of all tensors are compared with
    /// what its config asks for; every mismatch is in the error.
    pub fn open(directory: &Path) -> Result<Self, CheckpointError> {
        let named = directory;
        let directory = place(named)?;
        let config = StoredConfig::read(&directory)?;
        let (config, source) = if directory.join(FILE_NAME).exists() {
            if directory == named {
                newest::verify_weights(&directory)?;
            }
            (config.model, Source::Checkpoint(CheckpointReader::open_weights(&directory)?))
        } else {
            let hub = Hub::open(&directory, config)?;
            (hub.config().clone(), Source::Hub(hub))
        };
        Ok(Self { directory, config, source, averaged: false })
    }

    /// Where `config.json` is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The files that are read of it: enough of a copy to train on from, without what an optimizer kept.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn files(&self) -> Result<Vec<PathBuf>, CheckpointError> {
        let mut files = Vec::new();
        let reading = || io_error("reading", &self.directory);
        for entry in fs::read_dir(&self.directory).map_err(reading())? {
            let path = entry.map_err(reading())?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_read = match TensorKind::of_file(&name) {
                Some(kind) => kind.is_weight(),
                None => {
                    [CONFIG_FILE, INDEX_FILE, FILE_NAME].contains(&&*name)
                        || name.ends_with(".safetensors")
                }
            };
            if is_read && path.is_file() {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// What there is. A Hugging Face model whose multi-token-prediction modules were dropped has
    /// none, whatever its `config.json` says.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What was found that a person should know.
    pub fn notes(&self) -> &[String] {
        match &self.source {
            Source::Checkpoint(_) => &[],
            Source::Hub(hub) => hub.notes(),
        }
    }

    /// `notes`, and what has to be read to be found: tensors that should repeat others and do not.
    pub fn all_notes(&self) -> Result<Vec<String>, CheckpointError> {
        let mut notes = self.notes().to_vec();
        if let Source::Hub(hub) = &self.source {
            notes.extend(hub.copies_that_differ()?);
        }
        Ok(notes)
    }

    /// The same, but for the parameters' average in their place.
    ///
    /// # Errors
    /// None is there.
    pub fn averaged(self) -> Result<Self, CheckpointError> {
        let has_average = match &self.source {
            Source::Checkpoint(reader) => reader.names(TensorKind::Average).next().is_some(),
            Source::Hub(_) => false,
        };
        if !has_average {
            return Err(CheckpointError::NoModel {
                path: self.directory,
                what: "no average of the parameters is kept there".into(),
                help: "training.ema above 0 keeps one from the run's start".into(),
            });
        }
        Ok(Self { averaged: true, ..self })
    }

    /// The directory from Hugging Face, if it is one.
    pub fn hub(&self) -> Option<&Hub> {
        match &self.source {
            Source::Checkpoint(_) => None,
            Source::Hub(hub) => Some(hub),
        }
    }

    /// The values of a tensor of exactly this shape, as exact as they were stored: a checkpoint's
    /// masters rather than its BF16 weights, and of FP8 what codes and scales give.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        match &self.source {
            Source::Checkpoint(reader) => {
                let wide = if self.averaged { TensorKind::Average } else { TensorKind::Master };
                let kind = if reader.contains(wide, name) { wide } else { TensorKind::Model };
                reader.read_widened(kind, name, shape)
            }
            Source::Hub(hub) => {
                if let Some(entry) = hub.entry(name)
                    && entry.shape != shape
                {
                    return Err(CheckpointError::Tensor {
                        path: self.directory.clone(),
                        kind: TensorKind::Model,
                        name: name.to_owned(),
                        got: entry.to_string(),
                        want: format!("the shape {shape:?}"),
                    });
                }
                hub.values(name)
            }
        }
    }

    /// Fills the parameters and router biases that a stage owns, and prepares it to compute. The
    /// optimizer's state is left as it is, and so are multi-token-prediction modules that are not
    /// there.
    pub fn fill(&self, stage: &mut Stage) -> Result<(), CheckpointError> {
        let there = |name: &str| layer_of(name).is_none_or(|n| n < self.config.mtp_layers().end);
        let parameters = stage.parameters_mut();
        let names: Vec<String> = parameters.names().map(str::to_owned).collect();
        for name in names.iter().filter(|name| there(name)) {
            let values = self.read(name, parameters.shape(name))?;
            parameters.master_mut(name).copy_from_slice(&values);
        }
        parameters.restart_average();
        parameters.prepare();
        let biases: Vec<(String, usize)> =
            stage.biases().into_iter().map(|(name, values)| (name, values.len())).collect();
        for (name, experts) in biases.into_iter().filter(|(name, _)| there(name)) {
            let values = self.read(&name, &[experts])?;
            stage.set_bias(&name, &values).expect("the shape was read from the stage");
        }
        Ok(())
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Where the model that `directory` means is: itself, or the newest good checkpoint of a run.
///
/// # Errors
/// Checkpoints that could be read by another shoal or another user.
pub fn place(directory: &Path) -> Result<PathBuf, CheckpointError> {
    if directory.join(CONFIG_FILE).exists() {
        return Ok(directory.to_path_buf());
    }
    let newest = newest_good(&directory.join("checkpoints"))?.directory;
    Ok(newest.unwrap_or_else(|| directory.to_path_buf()))
}
