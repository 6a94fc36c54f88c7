//! A cell's part of a checkpoint: which tensors it writes, and how a stage is filled from one.
//!
//! Every tensor is written whole by exactly one cell: dense ones by the first column, the
//! embedding by the cell of it that has the first layers, experts by replica 0 of their shard. So a
//! checkpoint is a set of named tensors that any other grid can read. A cell may own several
//! stages: their names differ, and stand in the same files.

use std::borrow::Cow;
use std::fs::{self, File};
use std::path::Path;

use shoal_data::Tokenizer;
use shoal_data::tokenizer::FILE_NAME as TOKENIZER_FILE;
use shoal_kernels::tensor::{DType, Tensor};
use shoal_model::{Class, Cut, Moments, Stage, names};
use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::{CellId, Grid};

use super::cell::Inputs;
use super::error::EngineError;
use shoal_weights::{
    CheckpointReader, ConfigExtras, Directory, NamedTensor, Scratch, Shelf, StoredType, TensorKind,
    partial_directory, write_hf_files, write_tensors,
};

/// A cell's place in the grid, which says what it writes.
#[derive(Clone, Copy)]
struct Writer {
    grid: Grid,
    cell: CellId,
}

/// Whether a cell writes anything: others write for the cells of further replicas, and the coordinator expects a
/// part from every cell of the first.
pub(super) fn is_written_by(inputs: &Inputs, cell: CellId) -> bool {
    inputs.plan.grid.cell(cell).replica == 0
}

/// Writes a cell's files of step `step` into `checkpoints`, synced; the coordinator commits them.
/// `stages` are all that the cell owns.
pub(super) fn write(
    inputs: &Inputs,
    (cell, stages): (CellId, &[&Stage]),
    (checkpoints, step): (&Path, u64),
) -> Result<Vec<CheckpointFile>, EngineError> {
    let writer = Writer { grid: inputs.plan.grid, cell };
    let directory = partial_directory(checkpoints, step, inputs.plan.generation)?;
    let written = writer.write_all(inputs, &mut Directory(&directory), stages);
    if written.is_err() {
        // On a full disk half a file is in the way of the next whole one. What cannot be removed
        // goes with the directory, which the coordinator discards.
        for kind in TensorKind::ALL {
            fs::remove_file(directory.join(kind.file_name(cell))).ok();
        }
    }
    written
}

/// Writes a cell's files into scratch files, from which they are sent to the coordinator.
pub(super) fn write_scratch(
    inputs: &Inputs,
    cell: CellId,
    stages: &[&Stage],
) -> Result<Vec<(CheckpointFile, File)>, EngineError> {
    let mut scratch = Scratch::default();
    Writer { grid: inputs.plan.grid, cell }.write_all(inputs, &mut scratch, stages)?;
    Ok(scratch.files)
}

impl Writer {
    /// The tensors, and from cell 0 what `transformers` wants beside them.
    fn write_all(
        self,
        inputs: &Inputs,
        shelf: &mut dyn Shelf,
        stages: &[&Stage],
    ) -> Result<Vec<CheckpointFile>, EngineError> {
        let mut files = self.write(shelf, stages)?;
        if self.cell == CellId(0) {
            let index = index(inputs);
            let eos = inputs.text.tokenizer.end_token();
            let extras = ConfigExtras { eos, ..ConfigExtras::default() };
            files.extend(write_hf_files(shelf, &inputs.job.model, &extras, &index)?);
            let beside = Tokenizer::file_beside(&inputs.run_dir, inputs.job.model.vocab_size)?;
            if let Some((_, json)) = beside {
                files.push(shelf.put(TOKENIZER_FILE, &mut [json.as_slice()].into_iter())?);
            }
        }
        Ok(files)
    }

    /// One file of each kind of tensors that the stages have.
    fn write(
        self,
        shelf: &mut dyn Shelf,
        stages: &[&Stage],
    ) -> Result<Vec<CheckpointFile>, EngineError> {
        let averaged = stages.iter().any(|stage| stage.parameters().is_averaged());
        let kinds = TensorKind::ALL.into_iter();
        let kinds = kinds.filter(|kind| averaged || *kind != TensorKind::Average);
        let mut file = |kind: TensorKind| {
            let biases: Vec<(String, &[f32])> = match kind {
                TensorKind::Model => stages.iter().flat_map(|stage| self.biases(stage)).collect(),
                TensorKind::Master
                | TensorKind::FirstMoment
                | TensorKind::SecondMoment
                | TensorKind::Average => vec![],
            };
            let mut tensors: Vec<NamedTensor<'_>> =
                stages.iter().flat_map(|stage| self.weights(stage, kind)).collect();
            tensors.extend(biases.iter().map(|(name, values)| NamedTensor {
                name,
                shape: vec![values.len()],
                dtype: StoredType::F32,
                bytes: Cow::Borrowed(bytemuck::cast_slice(values)),
            }));
            let name = kind.file_name(self.cell);
            Ok(write_tensors(shelf, &name, &mut tensors.into_iter())?)
        };
        kinds.map(&mut file).collect()
    }

    /// What this cell writes of one kind, of one stage.
    fn weights(self, stage: &Stage, kind: TensorKind) -> impl Iterator<Item = NamedTensor<'_>> {
        let parameters = stage.parameters();
        let owned = move |name: &&str| self.owns(stage.cut(), parameters.class(name));
        parameters.names().filter(owned).map(move |name| {
            let (dtype, bytes) = stored(stage, kind, name);
            NamedTensor { name, shape: parameters.shape(name).to_vec(), dtype, bytes }
        })
    }

    /// Whether the cell is the one that writes the parameters of `class` of one of its stages.
    fn owns(self, cut: &Cut, class: Class) -> bool {
        match class {
            Class::Dense => self.grid.column(self.cell) == 0,
            Class::Embedding => self.grid.column(self.cell) == 0 && cut.first,
            Class::Expert => self.grid.cell(self.cell).replica == 0,
        }
    }

    /// Router biases are the same on every cell of a stage; the first column writes them.
    fn biases(self, stage: &Stage) -> impl Iterator<Item = (String, &[f32])> {
        let writes = self.owns(stage.cut(), Class::Dense);
        stage.biases().into_iter().filter(move |_| writes)
    }
}

/// A parameter's numbers of one kind as they go to a file.
fn stored<'a>(stage: &'a Stage, kind: TensorKind, name: &str) -> (StoredType, Cow<'a, [u8]>) {
    let parameters = stage.parameters();
    let f32 = |values: &'a [f32]| (StoredType::F32, Cow::Borrowed(bytemuck::cast_slice(values)));
    let bf16 = |bits: &'a [u16]| (StoredType::Bf16, Cow::Borrowed(bytemuck::cast_slice(bits)));
    match (kind, parameters.moments(name)) {
        (TensorKind::Model, _) => {
            let master = parameters.master(name);
            let rounded = Tensor::from_f32(DType::Bf16, &[master.len()], master);
            (StoredType::Bf16, Cow::Owned(rounded.bytes().to_vec()))
        }
        (TensorKind::Master, _) => f32(parameters.master(name)),
        (TensorKind::Average, _) => {
            f32(parameters.average(name).expect("all stages of a run keep an average, or none"))
        }
        (TensorKind::FirstMoment, Moments::Bf16(first, _)) => bf16(first),
        (TensorKind::FirstMoment, Moments::F32(first, _)) => f32(first),
        (TensorKind::SecondMoment, Moments::Bf16(_, second)) => bf16(second),
        (TensorKind::SecondMoment, Moments::F32(_, second)) => f32(second),
    }
}

/// Where every tensor of the whole model is: (name, file, elements), from the plan alone.
fn index(inputs: &Inputs) -> Vec<(String, String, u64)> {
    let mut index = Vec::new();
    for cell in inputs.plan.grid.cells() {
        let writer = Writer { grid: inputs.plan.grid, cell };
        let file = TensorKind::Model.file_name(cell);
        for cut in inputs.cuts(cell) {
            for specification in names::specifications(&cut) {
                if writer.owns(&cut, specification.class) {
                    let elements = specification.shape.iter().product::<usize>() as u64;
                    index.push((specification.name, file.clone(), elements));
                }
            }
            if writer.owns(&cut, Class::Dense) {
                let experts = u64::from(cut.config.n_routed_experts);
                let layers = cut.moe_layers().into_iter();
                index.extend(layers.map(|layer| (names::of_bias(layer), file.clone(), experts)));
            }
        }
    }
    index
}

/// Where a stage's numbers come from. Asked for each parameter in arena order (master, moments,
/// average), then for each router bias.
pub(super) trait Numbers {
    /// Whether there are averages of the masters.
    fn has_average(&self) -> bool;
    fn master(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EngineError>;
    /// First and second, widened.
    fn moments(&mut self, name: &str, shape: &[usize])
    -> Result<(Vec<f32>, Vec<f32>), EngineError>;
    fn average(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EngineError>;
    fn bias(&mut self, name: &str, experts: usize) -> Result<Vec<f32>, EngineError>;
}

/// Fills a stage: masters, moments, the average and router biases. The weights in compute follow from
/// the masters. Moments of the other dtype are converted; an average starts at the masters where there
/// is none.
pub(super) fn fill(stage: &mut Stage, numbers: &mut dyn Numbers) -> Result<(), EngineError> {
    let has_average = numbers.has_average();
    let parameters = stage.parameters_mut();
    let names: Vec<String> = parameters.names().map(str::to_owned).collect();
    for name in &names {
        let shape = parameters.shape(name).to_vec();
        parameters.master_mut(name).copy_from_slice(&numbers.master(name, &shape)?);
        let (first, second) = numbers.moments(name, &shape)?;
        parameters.set_moments(name, &first, &second);
        if has_average && let Some(average) = parameters.average_mut(name) {
            average.copy_from_slice(&numbers.average(name, &shape)?);
        }
    }
    if !has_average {
        parameters.restart_average();
    }
    parameters.prepare();
    let biases: Vec<(String, usize)> =
        stage.biases().into_iter().map(|(name, values)| (name, values.len())).collect();
    for (name, experts) in biases {
        stage.set_bias(&name, &numbers.bias(&name, experts)?)?;
    }
    Ok(())
}

/// Fills a stage from a complete checkpoint, whatever grid wrote it.
pub fn load(stage: &mut Stage, directory: &Path) -> Result<(), EngineError> {
    load_from(stage, &CheckpointReader::open(directory)?)
}

/// The same from one that is open.
pub(super) fn load_from(
    stage: &mut Stage,
    checkpoint: &CheckpointReader,
) -> Result<(), EngineError> {
    fill(stage, &mut &*checkpoint)
}

impl Numbers for &CheckpointReader {
    fn has_average(&self) -> bool {
        self.names(TensorKind::Average).next().is_some()
    }

    fn master(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EngineError> {
        Ok(self.read_f32(TensorKind::Master, name, shape)?)
    }

    fn moments(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> Result<(Vec<f32>, Vec<f32>), EngineError> {
        let first = self.read_widened(TensorKind::FirstMoment, name, shape)?;
        Ok((first, self.read_widened(TensorKind::SecondMoment, name, shape)?))
    }

    fn average(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EngineError> {
        Ok(self.read_f32(TensorKind::Average, name, shape)?)
    }

    fn bias(&mut self, name: &str, experts: usize) -> Result<Vec<f32>, EngineError> {
        Ok(self.read_f32(TensorKind::Model, name, &[experts])?)
    }
}

#[cfg(test)]
mod tests;
