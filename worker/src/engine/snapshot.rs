//! A cell's part of a checkpoint: which tensors it writes, and how a stage is filled from one.
//!
//! Every tensor is written whole by exactly one cell: dense ones by the first column, the
//! embedding by the first stage, experts by replica 0 of their shard. So a checkpoint is a set of
//! named tensors that any other grid can read.

use std::borrow::Cow;
use std::path::Path;

use shoal_kernels::tensor::{DType, Tensor};
use shoal_model::{Class, Stage};
use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::CellId;

use super::cell::Inputs;
use super::error::EngineError;
use super::step::Trainer;
use crate::checkpoint::{
    CheckpointReader, NamedTensor, StoredType, TensorKind, partial_directory, write_file,
    write_hf_files,
};

/// Writes this cell's files of step `step`, synced; the coordinator commits them. `None` for a cell
/// that others write for: the coordinator expects a part from every cell of replica 0.
pub(super) fn write(
    trainer: &Trainer,
    step: u64,
) -> Result<Option<Vec<CheckpointFile>>, EngineError> {
    if trainer.at.replica != 0 {
        return Ok(None);
    }
    let names = owned(trainer);
    let directory = partial_directory(&trainer.inputs.checkpoints, step)?;
    let parameters = trainer.stage.parameters();
    let write = |kind: TensorKind| {
        let biases: Vec<_> = match kind {
            TensorKind::Model => biases(trainer).collect(),
            TensorKind::Master | TensorKind::FirstMoment | TensorKind::SecondMoment => vec![],
        };
        let weights = names.iter().map(|name| NamedTensor {
            name,
            shape: parameters.shape(name).to_vec(),
            dtype: kind.stored_type(),
            bytes: match kind {
                TensorKind::Model => {
                    let master = parameters.master(name);
                    let rounded = Tensor::from_f32(DType::Bf16, &[master.len()], master);
                    Cow::Owned(rounded.bytes().to_vec())
                }
                TensorKind::Master => Cow::Borrowed(bytemuck::cast_slice(parameters.master(name))),
                TensorKind::FirstMoment => {
                    Cow::Borrowed(bytemuck::cast_slice(parameters.moments(name).0))
                }
                TensorKind::SecondMoment => {
                    Cow::Borrowed(bytemuck::cast_slice(parameters.moments(name).1))
                }
            },
        });
        let biases = biases.iter().map(|(name, values)| NamedTensor {
            name,
            shape: vec![values.len()],
            dtype: StoredType::F32,
            bytes: Cow::Borrowed(bytemuck::cast_slice(values)),
        });
        write_file(&directory, &kind.file_name(trainer.id), &mut weights.chain(biases))
    };
    let mut files = Vec::new();
    for kind in TensorKind::ALL {
        files.push(write(kind)?);
    }
    if trainer.id == CellId(0) {
        let index = index(&trainer.inputs);
        files.extend(write_hf_files(&directory, &trainer.inputs.job.model, &index)?);
    }
    Ok(Some(files))
}

/// Names of the parameters this cell writes.
fn owned(trainer: &Trainer) -> Vec<&str> {
    let parameters = trainer.stage.parameters();
    let owns = |name: &&str| owns(&trainer.inputs, trainer.id, parameters.class(name));
    parameters.names().filter(owns).collect()
}

/// Whether a cell is the one that writes the parameters of `class` it holds.
fn owns(inputs: &Inputs, cell: CellId, class: Class) -> bool {
    let grid = inputs.plan.grid;
    let at = grid.cell(cell);
    match class {
        Class::Dense => grid.column(cell) == 0,
        Class::Embedding => grid.column(cell) == 0 && at.stage == 0,
        Class::Expert => at.replica == 0,
    }
}

/// Router biases are the same on every cell of a stage; the first column writes them.
fn biases(trainer: &Trainer) -> impl Iterator<Item = (String, &[f32])> {
    let writes = owns(&trainer.inputs, trainer.id, Class::Dense);
    trainer.stage.biases().into_iter().filter(move |_| writes)
}

/// Where every tensor of the whole model is: (name, file, elements), from the plan alone.
fn index(inputs: &Inputs) -> Vec<(String, String, u64)> {
    let mut index = Vec::new();
    for cell in inputs.plan.grid.cells() {
        let file = TensorKind::Model.file_name(cell);
        let cut = inputs.cut(cell);
        for specification in shoal_model::names::specifications(&cut) {
            if owns(inputs, cell, specification.class) {
                let elements = specification.shape.iter().product::<usize>() as u64;
                index.push((specification.name, file.clone(), elements));
            }
        }
        if owns(inputs, cell, Class::Dense) {
            let experts = u64::from(cut.config.n_routed_experts);
            let layers = cut.moe_layers().into_iter();
            index.extend(
                layers.map(|layer| (shoal_model::names::of_bias(layer), file.clone(), experts)),
            );
        }
    }
    index
}

/// Fills a stage from a complete checkpoint, whatever grid wrote it: masters, moments and router
/// biases. The weights in compute follow from the masters.
pub fn load(stage: &mut Stage, directory: &Path) -> Result<(), EngineError> {
    let reader = CheckpointReader::open(directory)?;
    let parameters = stage.parameters_mut();
    let names: Vec<String> = parameters.names().map(str::to_owned).collect();
    for name in &names {
        let shape = parameters.shape(name).to_vec();
        let master = reader.read_f32(TensorKind::Master, name, &shape)?;
        parameters.master_mut(name).copy_from_slice(&master);
        let first = reader.read_bf16(TensorKind::FirstMoment, name, &shape)?;
        let second = reader.read_bf16(TensorKind::SecondMoment, name, &shape)?;
        let moments = parameters.moments_mut(name);
        moments.0.copy_from_slice(&first);
        moments.1.copy_from_slice(&second);
    }
    parameters.prepare();
    let biases: Vec<(String, usize)> =
        stage.biases().into_iter().map(|(name, values)| (name, values.len())).collect();
    for (name, experts) in biases {
        let values = reader.read_f32(TensorKind::Model, &name, &[experts])?;
        stage.set_bias(&name, &values)?;
    }
    Ok(())
}
