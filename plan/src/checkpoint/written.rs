//! Which files a cell writes of a checkpoint, and how many bytes each may have at most: what a coordinator
//! that gathers them lets in. From the plan alone.

use std::collections::BTreeMap;

use crate::grid::CellId;
use crate::job::Job;
use crate::memory::{cell_bytes, layers_of};
use crate::plan::Plan;

/// Name, dtype, shape and place of a tensor in a header, or its name and file in an index.
const ENTRY_BYTES: u64 = 320;

/// Tensors of a layer beside its routed experts: attention has eight, with norms, router and shared experts fifteen.
const TENSORS_A_LAYER: u64 = 24;

/// Embedding, head, norms and what modules of MTP have of their own.
const TENSORS_BESIDE: u64 = 32;

/// A config, or the fixed part of any other file.
const SMALL_FILE_BYTES: u64 = 256 << 10;

/// A tokenizer beside its tokens: rules of splitting and normalising.
const TOKENIZER_BYTES: u64 = 4 << 20;

/// A token with the merge that makes it. The largest that is known has 130 bytes a token.
const TOKEN_BYTES: u64 = 512;

/// The files that `cell` writes, each with the bytes that it has at most. None for a cell that others
/// write for.
pub fn bytes_max(job: &Job, plan: &Plan, cell: CellId) -> BTreeMap<String, u64> {
    let at = plan.grid.cell(cell);
    if at.replica != 0 {
        return BTreeMap::new();
    }
    let values = cell_bytes(job, plan, cell).masters / 4;
    let layers = layers_of(job, plan, cell);
    let owned = plan.experts[at.expert_shard as usize].len() as u64;
    let header = SMALL_FILE_BYTES + ENTRY_BYTES * tensors(layers.len() as u64, owned);
    let n_routed = u64::from(job.model.n_routed_experts);
    let biases = 4 * layers.len() as u64 * n_routed;
    let moment = job.training.moments.bytes() / 2;
    let of_kind = |kind: &str, bytes: u64| {
        (format!("{kind}-{cell}.safetensors"), bytes.saturating_add(header))
    };
    let mut files = BTreeMap::from([
        of_kind("model", 2 * values + biases),
        of_kind("master", 4 * values),
        of_kind("exp_avg", moment * values),
        of_kind("exp_avg_sq", moment * values),
    ]);
    if job.training.ema > 0.0 {
        files.extend([of_kind("ema", 4 * values)]);
    }
    if cell == CellId(0) {
        let model = &job.model;
        let layers = model.num_hidden_layers + model.num_nextn_predict_layers;
        let index = SMALL_FILE_BYTES + ENTRY_BYTES * tensors(layers.into(), n_routed);
        let tokenizer = TOKENIZER_BYTES + TOKEN_BYTES * u64::from(model.vocab_size);
        files.extend([
            ("config.json".to_owned(), SMALL_FILE_BYTES),
            ("model.safetensors.index.json".to_owned(), index),
            ("tokenizer.json".to_owned(), tokenizer),
        ]);
    }
    files
}

/// Tensors of so many layers, each with so many routed experts, at most.
fn tensors(layers: u64, experts: u64) -> u64 {
    TENSORS_BESIDE + layers * (TENSORS_A_LAYER + 3 * experts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::Grid;
    use crate::placement::make_plan;
    use crate::plan::{Generation, WorkerId};

    #[test]
    fn cell_0_also_writes_what_makes_a_model_of_it_and_other_replicas_write_nothing() {
        let mut job = Job::example();
        job.grid = Grid { stages: 1, expert_shards: 2, replicas: 2 };
        let plan = make_plan(&job, &[WorkerId(0)], Generation(1)).unwrap();
        let names = |cell: u32| -> Vec<String> {
            bytes_max(&job, &plan, CellId(cell)).into_keys().collect()
        };
        let of_every_cell = |cell: u32| {
            let kinds = ["exp_avg", "exp_avg_sq", "master", "model"];
            kinds.map(|kind| format!("{kind}-cell-{cell}.safetensors")).to_vec()
        };
        let mut first = of_every_cell(0);
        first.extend(
            ["config.json", "model.safetensors.index.json", "tokenizer.json"].map(Into::into),
        );
        first.sort();
        assert_eq!(names(0), first);
        for cell in plan.grid.cells().skip(1) {
            let writes = plan.grid.cell(cell).replica == 0;
            let want = if writes { of_every_cell(cell.0) } else { vec![] };
            assert_eq!(names(cell.0), want);
        }
        job.training.ema = 0.9;
        assert!(bytes_max(&job, &plan, CellId(0)).contains_key("ema-cell-0.safetensors"));
    }

    #[test]
    fn no_file_may_have_more_than_its_values_and_a_header() {
        let job = Job::example();
        let plan = make_plan(&job, &[WorkerId(0)], Generation(1)).unwrap();
        let files = bytes_max(&job, &plan, CellId(0));
        let values = cell_bytes(&job, &plan, CellId(0)).masters / 4;
        let header = files["master-cell-0.safetensors"] - 4 * values;
        assert!(header < 1 << 20, "{header}");
        assert_eq!(files["exp_avg-cell-0.safetensors"], 2 * values + header, "moments in BF16");
    }
}
