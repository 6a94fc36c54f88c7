//! Checkpoints written by one set of cells and read by another: grids, several stages in a cell,
//! other moments, with an average and without.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use tempfile::TempDir;

use shoal_kernels::{bf16_to_f32, f32_to_bf16};
use shoal_model::StageOptions;
use shoal_plan::checkpoint::{CheckpointManifest, FILE_NAME, SCHEMA_VERSION, bytes_max};
use shoal_plan::job::{Job, Precision};
use shoal_plan::model::ModelConfig;
use shoal_plan::numerics;
use shoal_plan::placement::make_plan;
use shoal_plan::plan::{Generation, WorkerId};
use shoal_plan::standing::Standing;

use super::*;

const GRID: Grid = Grid { stages: 2, expert_shards: 2, replicas: 1 };
const EXPERTS: [Range<u32>; 2] = [0..4, 4..6];

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 23,
        hidden_size: 24,
        intermediate_size: 33,
        moe_intermediate_size: 12,
        num_nextn_predict_layers: 2,
        num_attention_heads: 2,
        n_routed_experts: 6,
        num_experts_per_tok: 2,
        n_group: 3,
        ..ModelConfig::tiny()
    }
}

fn options(moments: numerics::Moments, ema_decay: f32) -> StageOptions {
    StageOptions { moments, ema_decay, ..StageOptions::new(Precision::F32, 5) }
}

/// Fills everything but the masters with numbers that follow from the name alone.
fn filled(mut stage: Stage) -> Stage {
    let number = |name: &str, salt: u32| {
        let hash = blake3::hash(format!("{name} {salt}").as_bytes());
        f32::from(hash.as_bytes()[0]) / 256.0 + 1.0 / 3.0
    };
    let names: Vec<String> = stage.parameters().names().map(str::to_owned).collect();
    for name in &names {
        let parameters = stage.parameters_mut();
        let n = parameters.master(name).len();
        parameters.set_moments(name, &vec![number(name, 1); n], &vec![number(name, 2); n]);
        if let Some(average) = parameters.average_mut(name) {
            average.fill(number(name, 3));
        }
    }
    let biases: Vec<String> = stage.biases().into_keys().collect();
    for name in biases {
        stage.set_bias(&name, &[number(&name, 4); 6]).unwrap();
    }
    stage
}

/// The stages of each cell, when stage s of the grid has the chunks `chunks[s]` of one layer each.
fn cells(chunks: &[Vec<u32>; 2], options: &StageOptions) -> BTreeMap<CellId, Vec<Stage>> {
    let stages = |cell: CellId| {
        let at = GRID.cell(cell);
        let stage = |chunk: &u32| {
            let cut = Cut {
                layers: *chunk..chunk + 1,
                first: *chunk == 0,
                last: *chunk == 3,
                experts: EXPERTS.to_vec(),
                shard: at.expert_shard as usize,
                config: config(),
            };
            filled(Stage::new(cut, options))
        };
        (cell, chunks[at.stage as usize].iter().map(stage).collect())
    };
    GRID.cells().map(stages).collect()
}

fn whole(options: &StageOptions) -> Stage {
    Stage::new(Cut::whole(config()), options)
}

/// Writes a complete checkpoint.
fn written(grid: Grid, cells: &BTreeMap<CellId, Vec<Stage>>) -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (cell, stages) in cells {
        let stages: Vec<&Stage> = stages.iter().collect();
        files.extend(
            Writer { grid, cell: *cell }.write(&mut Directory(scratch.path()), &stages).unwrap(),
        );
    }
    let standing = Standing { step: 1, sequences: 8, ..Standing::default() };
    let manifest = CheckpointManifest { schema_version: SCHEMA_VERSION, standing, grid, files };
    fs::write(scratch.path().join(FILE_NAME), manifest.to_text()).unwrap();
    scratch
}

#[track_caller]
fn assert_same(got: &Stage, want: &Stage) {
    let (p, q) = (got.parameters(), want.parameters());
    for name in p.names() {
        assert_eq!(p.master(name), q.master(name), "{name}");
        assert_eq!(p.moments(name), q.moments(name), "{name}");
        assert_eq!(p.average(name), q.average(name), "{name}");
    }
    let biases = want.biases();
    assert!(got.biases().iter().all(|(name, values)| biases[name] == *values));
}

#[test]
fn cells_with_several_stages_write_what_any_grid_reads() {
    for moments in [numerics::Moments::Bf16, numerics::Moments::F32] {
        let options = options(moments, 0.9);
        let want = filled(whole(&options));
        // In turns; and the first and the last chunk, both with an embedding, in one cell.
        for chunks in [[vec![0, 2], vec![1, 3]], [vec![0, 3], vec![1, 2]], [vec![0], vec![1, 2, 3]]]
        {
            let cells = cells(&chunks, &options);
            let checkpoint = written(GRID, &cells);
            let mut got = whole(&StageOptions { seed: 6, ..options.clone() });
            load(&mut got, checkpoint.path()).unwrap();
            assert_same(&got, &want);
        }
        let one = BTreeMap::from([(CellId(0), vec![want.clone()])]);
        let checkpoint = written(Grid::ONE, &one);
        let other = StageOptions { seed: 6, ..options };
        for mut got in cells(&[vec![0, 3], vec![1, 2]], &other).into_values().flatten() {
            load(&mut got, checkpoint.path()).unwrap();
            assert_same(&got, &want);
        }
    }
}

#[test]
fn moments_of_the_other_dtype_are_converted() {
    use numerics::Moments::{Bf16, F32};
    let name = names::FINAL_NORM;
    for (from, to) in [(Bf16, F32), (F32, Bf16)] {
        let source = filled(whole(&options(from, 0.0)));
        let checkpoint = written(Grid::ONE, &BTreeMap::from([(CellId(0), vec![source.clone()])]));
        let mut got = whole(&options(to, 0.0));
        load(&mut got, checkpoint.path()).unwrap();
        match (source.parameters().moments(name), got.parameters().moments(name)) {
            (Moments::Bf16(m, v), Moments::F32(got_m, got_v)) => {
                assert!(
                    m.iter().zip(got_m).all(|(m, got)| bf16_to_f32(*m).to_bits() == got.to_bits())
                );
                assert!(
                    v.iter().zip(got_v).all(|(v, got)| bf16_to_f32(*v).to_bits() == got.to_bits())
                );
            }
            (Moments::F32(m, v), Moments::Bf16(got_m, got_v)) => {
                assert!(m.iter().zip(got_m).all(|(m, got)| f32_to_bf16(*m) == *got));
                assert!(v.iter().zip(got_v).all(|(v, got)| f32_to_bf16(*v) == *got));
            }
            (Moments::Bf16(..) | Moments::F32(..), _) => panic!("nothing was converted"),
        }
    }
}

#[test]
fn an_average_starts_at_the_masters_of_a_checkpoint_that_has_none() {
    let moments = numerics::Moments::Bf16;
    let source = whole(&options(moments, 0.0));
    let plain = written(Grid::ONE, &BTreeMap::from([(CellId(0), vec![source.clone()])]));
    assert!(!plain.path().join(TensorKind::Average.file_name(CellId(0))).exists());
    let mut got = whole(&StageOptions { seed: 6, ..options(moments, 0.9) });
    load(&mut got, plain.path()).unwrap();
    let parameters = got.parameters();
    for name in parameters.names() {
        assert_eq!(parameters.average(name), Some(source.parameters().master(name)), "{name}");
    }
    // And one that is not wanted any more is left where it is.
    let averaged = filled(whole(&options(moments, 0.9)));
    let checkpoint = written(Grid::ONE, &BTreeMap::from([(CellId(0), vec![averaged.clone()])]));
    let mut got = whole(&StageOptions { seed: 6, ..options(moments, 0.0) });
    load(&mut got, checkpoint.path()).unwrap();
    assert_eq!(got.parameters().average(names::HEAD), None);
    assert_eq!(got.parameters().master(names::HEAD), averaged.parameters().master(names::HEAD));
}

/// A coordinator that gathers files takes no more than the plan says of each. Headers count: of small models they are
/// most of a file.
#[test]
fn no_cell_writes_a_file_that_a_coordinator_would_not_take() {
    let grids = [Grid::ONE, GRID, Grid { stages: 4, expert_shards: 4, replicas: 2 }];
    let models = ModelConfig::PRESETS.map(|name| ModelConfig::preset(name).unwrap());
    for (model, grid) in
        models.iter().chain([&config()]).flat_map(|model| grids.map(|g| (model, g)))
    {
        let mut job = Job::example();
        (job.model, job.grid, job.training.ema) = (model.clone(), grid, 0.9);
        let Ok(plan) = make_plan(&job, &[WorkerId(0)], Generation(1)) else { continue };
        for cell in grid.cells().filter(|cell| grid.cell(*cell).replica == 0) {
            let bounds = bytes_max(&job, &plan, cell);
            let writer = Writer { grid, cell };
            for kind in TensorKind::ALL {
                let width = match kind {
                    TensorKind::Master | TensorKind::Average => 4,
                    TensorKind::Model | TensorKind::FirstMoment | TensorKind::SecondMoment => 2,
                };
                let mut bytes = 0;
                for cut in Cut::of(&job.model, &plan, cell) {
                    for one in names::specifications(&cut) {
                        if writer.owns(&cut, one.class) {
                            let values: u64 = one.shape.iter().map(|n| *n as u64).product();
                            // Name, dtype, shape and places of twelve digits each.
                            bytes += values * width + one.name.len() as u64 + 100;
                        }
                    }
                    if kind == TensorKind::Model {
                        let experts = u64::from(cut.config.n_routed_experts);
                        bytes += cut.moe_layers().len() as u64 * (4 * experts + 200);
                    }
                }
                let (name, most) = (kind.file_name(cell), bounds[&kind.file_name(cell)]);
                assert!(bytes <= most, "{name} of {grid}: {bytes} bytes, at most {most}");
            }
        }
    }
}
