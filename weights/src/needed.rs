//! Which files of a checkpoint hold what a reader wants: for whoever has to fetch each of them first.

use std::collections::{BTreeMap, BTreeSet};

use shoal_plan::checkpoint::{CheckpointFile, CheckpointManifest};

use crate::TensorKind;

/// What is wanted of a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Names of parameters: their masters and moments.
    pub parameters: BTreeSet<String>,
    /// Names of router biases.
    pub biases: BTreeSet<String>,
    /// Averages of these parameters, too, where there are any.
    pub averages: bool,
}

/// The files to read, in the manifest's order. `index` says in which file of the model each tensor is; the cell
/// that wrote it has written the rest of the same parameters. Where the index does not say it, all files of tensors.
pub fn files_with(
    manifest: &CheckpointManifest,
    index: &BTreeMap<String, String>,
    wanted: &Wanted,
) -> Vec<CheckpointFile> {
    let writers = |names: &BTreeSet<String>| -> Option<BTreeSet<&str>> {
        names.iter().map(|name| writer_of(index.get(name)?)).collect()
    };
    let of_parameters = writers(&wanted.parameters).zip(writers(&wanted.biases));
    let is_needed = |file: &&CheckpointFile| {
        let Some(kind) = TensorKind::of_file(&file.name) else { return false };
        let Some((parameters, biases)) = &of_parameters else { return true };
        let writer = writer_of(&file.name);
        let is_of = |writers: &BTreeSet<&str>| writer.is_some_and(|it| writers.contains(it));
        match kind {
            TensorKind::Model => is_of(biases),
            TensorKind::Master | TensorKind::FirstMoment | TensorKind::SecondMoment => {
                is_of(parameters)
            }
            TensorKind::Average => wanted.averages && is_of(parameters),
        }
    };
    manifest.files.iter().filter(is_needed).cloned().collect()
}

/// What the names of all files of one cell end in.
fn writer_of(file_name: &str) -> Option<&str> {
    TensorKind::of_file(file_name)?;
    file_name.find("-cell-").map(|at| &file_name[at..])
}

#[cfg(test)]
mod tests {
    use shoal_plan::checkpoint::SCHEMA_VERSION;
    use shoal_plan::grid::{CellId, Grid};
    use shoal_plan::standing::Standing;

    use super::*;

    fn manifest() -> CheckpointManifest {
        let cells =
            (0..2).flat_map(|cell| TensorKind::ALL.map(|kind| kind.file_name(CellId(cell))));
        let beside = ["config.json".to_owned(), "model.safetensors.index.json".to_owned()];
        let file = |name: String| CheckpointFile { name, bytes: 1, blake3: "00".repeat(32) };
        CheckpointManifest {
            schema_version: SCHEMA_VERSION,
            standing: Standing::default(),
            grid: Grid::ONE,
            files: cells.chain(beside).map(file).collect(),
        }
    }

    fn needed(parameters: &[&str], biases: &[&str], averages: bool) -> String {
        let index = [("a", 0), ("b", 1), ("bias", 1)]
            .map(|(name, cell)| (name.to_owned(), TensorKind::Model.file_name(CellId(cell))));
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let wanted = Wanted { parameters: names(parameters), biases: names(biases), averages };
        let files = files_with(&manifest(), &index.into(), &wanted);
        let short =
            |file: &CheckpointFile| file.name.replace("-cell-", "").replace(".safetensors", "");
        files.iter().map(short).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn only_the_files_of_those_who_wrote_what_is_wanted_are_needed() {
        assert_eq!(needed(&["a"], &[], false), "master0 exp_avg0 exp_avg_sq0");
        assert_eq!(needed(&["a"], &["bias"], false), "master0 exp_avg0 exp_avg_sq0 model1");
        assert_eq!(needed(&["b"], &[], true), "master1 exp_avg1 exp_avg_sq1 ema1");
        assert_eq!(needed(&[], &[], true), "");
    }

    #[test]
    fn all_files_of_tensors_are_needed_where_the_index_does_not_say_it() {
        let all = needed(&["a", "unheard of"], &[], false);
        assert_eq!(all.split(' ').count(), 10, "{all}");
    }
}
