//! One door to the weights of a model, whoever wrote them: a checkpoint of ours, the newest of a
//! run, or a directory from Hugging Face.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use shoal_model::Stage;
use shoal_plan::checkpoint::FILE_NAME;
use shoal_plan::manifest::model_of_config;
use shoal_plan::model::ModelConfig;

use crate::{CheckpointError, CheckpointReader, TensorKind, io_error, newest_good};

/// A `config.json` is a few kilobytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// A model on disk: its sizes, and its tensors by their Hugging Face names.
pub struct Weights {
    directory: PathBuf,
    config: ModelConfig,
    reader: CheckpointReader,
}

impl Weights {
    /// Opens `directory`: a checkpoint (`RUN/checkpoints/step-N`), a run directory (its newest good
    /// checkpoint), or a Hugging Face directory (`config.json` and safetensors).
    pub fn open(directory: &Path) -> Result<Self, CheckpointError> {
        let directory = match newest_good(&directory.join("checkpoints"))?.directory {
            Some(checkpoint) if !directory.join("config.json").exists() => checkpoint,
            Some(_) | None => directory.to_path_buf(),
        };
        let config = read_config(&directory.join("config.json"))?;
        if !directory.join(FILE_NAME).exists() {
            return Err(CheckpointError::NoModel {
                path: directory,
                what: format!("there is no {FILE_NAME}"),
                help: "wanted a checkpoint or a run of shoal".into(),
            });
        }
        let reader = CheckpointReader::open(&directory)?;
        Ok(Self { directory, config, reader })
    }

    /// Where `config.json` is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The values of a tensor of exactly this shape, as exact as they were stored: a checkpoint's
    /// masters rather than its BF16 weights.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let has_master = self.reader.names(TensorKind::Master).any(|master| master == name);
        let kind = if has_master { TensorKind::Master } else { TensorKind::Model };
        self.reader.read_widened(kind, name, shape)
    }

    /// Fills the parameters and router biases that a stage owns, and prepares it to compute. The
    /// optimizer's state is left as it is.
    pub fn fill(&self, stage: &mut Stage) -> Result<(), CheckpointError> {
        let parameters = stage.parameters_mut();
        let names: Vec<String> = parameters.names().map(str::to_owned).collect();
        for name in &names {
            let values = self.read(name, &parameters.shape(name).to_vec())?;
            parameters.master_mut(name).copy_from_slice(&values);
        }
        parameters.restart_average();
        parameters.prepare();
        let biases: Vec<(String, usize)> =
            stage.biases().into_iter().map(|(name, values)| (name, values.len())).collect();
        for (name, experts) in biases {
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

fn read_config(path: &Path) -> Result<ModelConfig, CheckpointError> {
    let bytes = fs::metadata(path).map_err(io_error("reading", path))?.len();
    if bytes > CONFIG_BYTES_MAX {
        let what = format!("{bytes} bytes, want at most {CONFIG_BYTES_MAX}");
        return Err(CheckpointError::Damaged { path: path.to_path_buf(), what });
    }
    let text = fs::read_to_string(path).map_err(io_error("reading", path))?;
    Ok(model_of_config(path, &text)?)
}
