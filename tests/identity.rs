//! The grid fixes the numbers: many cells train as one does, and where they run changes nothing.
//!
//! Workers are threads here, each with its own mesh over loopback TCP; everything below them is
//! what `shoal host` runs.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;

use shoal_data::{EndToken, Settings, Source, TokenizerChoice, prepare};
use shoal_plan::grid::{CellId, Grid};
use shoal_plan::job::{Job, Precision, Recompute};
use shoal_plan::manifest;
use shoal_plan::model::RopeScaling;
use shoal_plan::placement::make_plan;
use shoal_plan::plan::{Generation, RunId, WorkerId};
use shoal_plan::routing::Routing;
use shoal_plan::schedule::Schedule;
use shoal_worker::comm::{Membership, Mesh, Timeouts, Ways};
use shoal_worker::engine::{Cell, Inputs};

const STEPS: u64 = 20;

/// Four layers (one dense), eight experts, widths that are no multiple of 128. The learning rate is
/// low because training is chaotic: a token whose two best experts are nearly tied goes to another
/// one after the last bit changed, and at 0.003 that has grown to 1e-4 within twenty steps.
const MANIFEST: &str = "
apiVersion: shoal/v1
kind: Training
metadata:
  name: identity
spec:
  model:
    preset: tiny
    hidden_size: 96
    intermediate_size: 160
    moe_intermediate_size: 64
    n_routed_experts: 8
    num_experts_per_tok: 3
    q_lora_rank: 40
    kv_lora_rank: 48
    max_position_embeddings: 64
  data:
    files: unused
  training:
    steps: 20
    batch: 8
    sequence: 32
    warmup_steps: 4
    lr: 0.001
";

/// What a run showed: every step's losses and routers, and the first step's gradient of every parameter.
struct Run {
    losses: Vec<f64>,
    routers: Vec<Vec<Routing>>,
    grad_norms: Vec<f64>,
    gradients: BTreeMap<String, Vec<f32>>,
}

/// Stages, expert shards, replicas.
type GridSize = (u32, u32, u32);

fn job(grid: GridSize, precision: Precision) -> Job {
    let read = |_: &Path| unreachable!("the manifest names no config.json");
    let job = manifest::parse("identity.yaml", MANIFEST, &[], &read).expect("a good manifest").job;
    let (stages, expert_shards, replicas) = grid;
    let mut job = Job { grid: Grid { stages, expert_shards, replicas }, ..job };
    job.training.precision = precision;
    job
}

/// A run directory with the tokens of a text with structure, written once per test process.
fn tokens() -> &'static Path {
    static RUN_DIR: OnceLock<PathBuf> = OnceLock::new();
    RUN_DIR.get_or_init(write_tokens)
}

fn write_tokens() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("identity");
    let text = dir.join("text.txt");
    // What an earlier run of the tests left there may be of other text.
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("the temporary directory is writable");
    let lines =
        (0..2000_u32).map(|i| format!("the {}th fish swims {} miles\n", i % 97, i * 7 % 31));
    fs::write(&text, lines.collect::<String>()).expect("the text is written");
    let source =
        Source { name: "text".into(), files: vec![text], weight: 1.0, field: "text".into() };
    let settings = Settings {
        sources: vec![source],
        tokenizer: TokenizerChoice::Bytes,
        vocab_size: 256,
        end_token: EndToken::Auto,
        eval_sets: BTreeMap::new(),
        bytes_max: 1 << 20,
        heldout_fraction: 0.05,
        sequence: 32,
        windows_min_train: 8,
        windows_min_heldout: 8,
    };
    prepare(&settings, &dir.join("data"), &mut |_| {}).expect("the text is tokenised");
    dir
}

/// Trains `STEPS` steps of `job` on `n_workers` workers.
fn train(job: &Job, run_dir: &Path, n_workers: u32) -> Run {
    let workers: Vec<WorkerId> = (0..n_workers).map(WorkerId).collect();
    let plan = make_plan(job, &workers, Generation(1)).expect("the grid fits the model");
    let listeners: Vec<TcpListener> = (workers.iter())
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("loopback has a free port"))
        .collect();
    let peers: BTreeMap<_, _> = (workers.iter().zip(&listeners))
        .map(|(worker, listener)| (*worker, listener.local_addr().expect("it is bound")))
        .collect();
    let inputs = Inputs::open(job, &plan, run_dir, None).expect("the tokens are there");
    let inputs = Arc::new(inputs);
    let hosts: Vec<_> = (workers.iter().zip(listeners))
        .map(|(me, listener)| {
            let membership = Membership {
                run: RunId("identity".to_owned()),
                secret: [7; 32],
                generation: Generation(1),
                me: *me,
                hosts: plan.hosts.clone(),
                peers: peers.clone(),
                trust: None,
                ways: Ways::default(),
            };
            let (cells, inputs) = (plan.cells_of(*me), Arc::clone(&inputs));
            thread::spawn(move || host(membership, listener, &cells, &inputs))
        })
        .collect();
    let mut cells: Vec<(CellId, Run)> =
        hosts.into_iter().flat_map(|host| host.join().expect("a worker's thread ends")).collect();
    cells.sort_by_key(|(cell, _)| *cell);
    combine(cells)
}

/// One worker: a mesh and a thread per cell.
fn host(
    membership: Membership,
    listener: TcpListener,
    cells: &[CellId],
    inputs: &Arc<Inputs>,
) -> Vec<(CellId, Run)> {
    let mesh = Mesh::open(membership, listener, Timeouts::default()).expect("the mesh opens");
    let threads: Vec<_> = (cells.iter())
        .map(|cell| {
            let (comm, inputs) = (mesh.endpoint(*cell), Arc::clone(inputs));
            let cell = Cell::new(inputs, Box::new(comm)).expect("the cell is built");
            thread::spawn(move || run_cell(cell))
        })
        .collect();
    let runs = threads.into_iter().map(|thread| thread.join().expect("a cell's thread ends"));
    cells.iter().copied().zip(runs).collect()
}

fn run_cell(cell: Cell) -> Run {
    let mut trainer = cell.into_trainer();
    trainer.gradients_of(1).expect("step 1 runs");
    let mut gradients = BTreeMap::new();
    for chunk in trainer.chunks() {
        let parameters = chunk.parameters();
        gradients.extend(
            (parameters.names()).map(|name| (name.to_owned(), parameters.gradient(name).to_vec())),
        );
    }
    let mut run = Run { losses: vec![], routers: vec![], grad_norms: vec![], gradients };
    trainer.forget_gradients();
    for step in 1..=STEPS {
        let row = trainer.train_step(step, false).expect("the step is committed").row;
        run.losses.push(row.loss);
        run.routers.push(row.router);
        run.grad_norms.push(row.grad_norm);
    }
    run
}

/// All cells must have seen the same figures, and copies of a parameter the same gradient.
fn combine(cells: Vec<(CellId, Run)>) -> Run {
    let mut cells = cells.into_iter();
    let (_, mut first) = cells.next().expect("a grid has a cell");
    for (cell, run) in cells {
        assert_eq!(run.losses, first.losses, "{cell} saw other losses");
        assert_eq!(run.routers, first.routers, "{cell} saw other routers");
        assert_eq!(run.grad_norms, first.grad_norms, "{cell} saw other norms");
        for (name, gradient) in run.gradients {
            if let Some(seen) = first.gradients.get(&name) {
                assert!(bits(seen).eq(bits(&gradient)), "{cell}: another gradient of {name}");
            }
            first.gradients.insert(name, gradient);
        }
    }
    first
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|value| value.to_bits())
}

/// The largest relative difference of two loss curves; NaN counts as infinite.
fn largest_difference(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let relative = |(got, want): (&f64, &f64)| {
        let difference = ((got - want) / want).abs();
        if difference.is_nan() { f64::INFINITY } else { difference }
    };
    got.iter().zip(want).map(relative).fold(0.0, f64::max)
}

/// Holds every gradient of the first step and every loss against those of another grid in FP32.
#[track_caller]
fn assert_alike(cut: &Run, one: &Run, what: &str) {
    assert_eq!(cut.gradients.len(), one.gradients.len(), "{what}: another set of parameters");
    for (name, want) in &one.gradients {
        let distance = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let zeros = vec![0.0; want.len()];
        let (off, size) = (distance(&cut.gradients[name], want), distance(want, &zeros));
        assert!(off <= 1e-5 * size, "{what}: gradient of {name} is off by {off} of {size}");
    }
    assert_losses_alike(cut, one, what);
}

/// Holds every loss in FP32 against another grid's. Sums are added in another order there, so a token whose
/// two best experts are nearly tied may go to another one; from that step on the runs are two runs, and stay
/// only as close as such runs do. It shows in the routers' figures, and never at once.
#[track_caller]
fn assert_losses_alike(cut: &Run, one: &Run, what: &str) {
    let same = cut.routers.iter().zip(&one.routers).take_while(|(cut, one)| cut == one).count();
    assert!(3 < same, "{what}: tokens chose other experts in step {}", same + 1);
    let off = largest_difference(&cut.losses[..same], &one.losses[..same]);
    assert!(off < 1e-4, "{what}: losses differ by {off} with the same experts: {:?}", cut.losses);
    let off = largest_difference(&cut.losses, &one.losses);
    assert!(off < 2e-3, "{what}: losses differ by {off}: {:?}", cut.losses);
}

#[test]
fn every_grid_trains_as_one_cell_does_in_f32() {
    let dir = tokens();
    let one = train(&job((1, 1, 1), Precision::F32), dir, 1);
    assert!(one.losses[STEPS as usize - 1] < 0.8 * one.losses[0], "it learns: {:?}", one.losses);
    for grid in [(2, 1, 1), (1, 2, 1), (3, 1, 1), (1, 8, 1), (2, 2, 2)] {
        let cut = train(&job(grid, Precision::F32), dir, grid.0);
        assert_alike(&cut, &one, &format!("{grid:?}"));
    }
}

/// 7 sequences divide over no grid, 16 experts not by 3; a cell may have no sequence at all.
#[test]
fn a_batch_that_does_not_divide_trains_the_same_on_every_grid() {
    let dir = tokens();
    let job = |grid, microbatch, shares: &[u32]| {
        let mut job = job(grid, Precision::F32);
        (job.model.n_routed_experts, job.training.batch) = (16, 7);
        (job.training.microbatch, job.division.shares) = (microbatch, shares.to_vec());
        job
    };
    let one = train(&job((1, 1, 1), 1, &[]), dir, 1);
    let cases: [(GridSize, u32, &[u32]); 6] = [
        ((1, 1, 1), 3, &[]),
        ((1, 3, 1), 2, &[]),
        ((1, 2, 1), 2, &[3, 1]),
        ((1, 1, 2), 1, &[3, 1]),
        ((2, 2, 1), 2, &[0, 1]),
        ((1, 2, 2), 1, &[0, 0, 2, 1]),
    ];
    for (grid, microbatch, shares) in cases {
        let cut = train(&job(grid, microbatch, shares), dir, 1);
        assert_alike(&cut, &one, &format!("{grid:?}, microbatch {microbatch}, {shares:?}"));
    }
}

/// Which layers and experts a cell has changes no more than the order of sums.
#[test]
fn a_division_by_hand_and_a_growing_batch_train_as_one_cell_does() {
    let dir = tokens();
    let ramp = |grid| {
        let mut job = job(grid, Precision::F32);
        (job.training.batch_start, job.training.batch_ramp_steps) = (3, 10);
        job
    };
    let one = train(&ramp((1, 1, 1)), dir, 1);
    let mut by_hand = ramp((2, 2, 1));
    by_hand.division.layers = vec![1, 3];
    by_hand.division.experts = vec![7, 1];
    assert_alike(&train(&by_hand, dir, 2), &one, "by hand");
}

#[test]
fn models_of_any_depth_of_prediction_and_dense_ones_are_cut_as_well() {
    for (depth, experts) in [(0, 8), (2, 8), (1, 0)] {
        let run = |grid| {
            let mut job = job(grid, Precision::F32);
            job.model.num_nextn_predict_layers = depth;
            job.model.n_routed_experts = experts;
            train(&job, tokens(), 1)
        };
        let (one, cut) = (run((1, 1, 1)), run((2, 2, 1)));
        let what = format!("depth {depth}, {experts} experts");
        assert_losses_alike(&cut, &one, &what);
        assert!(one.losses[STEPS as usize - 1] < 0.8 * one.losses[0], "{what}: {:?}", one.losses);
    }
}

/// Names and what they change.
type Knob = (&'static str, fn(&mut Job));

/// They change the numbers, and every topology changes them alike.
#[test]
fn every_knob_of_balance_and_prediction_works_on_every_topology() {
    let knobs: [Knob; 4] = [
        ("no bias update, a strong balance loss", |job| {
            (job.training.bias_speed, job.training.balance_weight) = (0.0, 0.01);
        }),
        ("a bias update that ends, no balance loss", |job| {
            (job.training.bias_speed, job.training.bias_speed_until) = (0.002, 0.5);
            job.training.balance_weight = 0.0;
        }),
        ("one group, an MTP weight that changes", |job| {
            (job.model.n_group, job.model.topk_group) = (1, 1);
            (job.training.mtp_weight, job.training.mtp_weight_final) = (1.0, 0.0);
            job.training.mtp_weight_until = 0.3;
        }),
        ("all groups, two MTP modules", |job| {
            job.model.topk_group = job.model.n_group;
            job.model.num_nextn_predict_layers = 2;
        }),
    ];
    let dir = tokens();
    let calm = |mut job: Job, turn: fn(&mut Job)| {
        turn(&mut job);
        // Four networks are four chances of a near tie between experts: see `MANIFEST`.
        job.training.lr = 3e-4;
        train(&job, dir, 1)
    };
    let base = calm(job((1, 1, 1), Precision::F32), |_| {});
    for (name, turn) in knobs {
        let turned = |job: Job| calm(job, turn);
        let one = turned(job((1, 1, 1), Precision::F32));
        assert_ne!(one.losses, base.losses, "{name} changes nothing");
        assert_alike(&turned(job((2, 2, 1), Precision::F32)), &one, &format!("{name}, 2x2x1"));
        let chunks = turned(interleaved((2, 1, 1), Precision::F32, 8));
        assert_alike(&chunks, &one, &format!("{name}, interleaved"));
    }
}

/// The last stage multiplies by the table that the first one looks tokens up in. Every token goes to every
/// expert: with a choice, one that flips on the last bit moves a tied model's losses by 2e-4.
#[test]
fn a_tied_head_and_scaled_positions_train_as_on_one_cell() {
    let dir = tokens();
    for depth in [0, 1] {
        let tied = |job: Job| {
            let mut job = job;
            (job.model.tie_word_embeddings, job.model.num_nextn_predict_layers) = (true, depth);
            job.model.rope_scaling = Some(RopeScaling::yarn(4.0, 16));
            (job.model.n_group, job.model.topk_group) = (1, 1);
            job.model.num_experts_per_tok = job.model.n_routed_experts;
            job
        };
        let run = |grid| train(&tied(job(grid, Precision::F32)), dir, 1);
        let one = run((1, 1, 1));
        assert!(
            one.losses[STEPS as usize - 1] < 0.8 * one.losses[0],
            "it learns: {:?}",
            one.losses
        );
        for grid in [(2, 1, 1), (2, 2, 2)] {
            assert_alike(&run(grid), &one, &format!("{grid:?}, depth {depth}"));
        }
        let chunks = train(&tied(interleaved((2, 1, 1), Precision::F32, 8)), dir, 2);
        assert_alike(&chunks, &one, &format!("2 chunks, depth {depth}"));
    }
}

#[test]
fn the_same_grid_is_bit_equal_on_any_number_of_workers_and_twice_in_a_row() {
    let dir = tokens();
    for precision in Precision::ALL {
        let job = job((2, 2, 1), precision);
        let four = train(&job, dir, 4);
        for n_workers in [4, 2, 1] {
            let again = train(&job, dir, n_workers);
            assert_eq!(again.losses, four.losses, "{precision}: {n_workers} workers");
            assert_eq!(again.grad_norms, four.grad_norms, "{precision}: {n_workers} workers");
        }
    }
}

/// On stage 1 of 2 another list of slots, with one weight half deferred at any time.
#[test]
fn both_pipeline_schedules_are_bit_equal() {
    let dir = tokens();
    for precision in Precision::ALL {
        let plain = job((2, 2, 1), precision);
        let zb = Job { schedule: Schedule::ZbH1, ..plain.clone() };
        let n_micro = plain.largest_division().n_microbatches();
        let slots = |job: &Job| job.pipeline().slots(1, n_micro);
        assert_ne!(slots(&plain), slots(&zb), "nothing would be shown");
        let (plain, zb) = (train(&plain, dir, 2), train(&zb, dir, 2));
        assert_eq!(zb.losses, plain.losses, "{precision}");
        assert_eq!(zb.grad_norms, plain.grad_norms, "{precision}");
        assert_eq!(zb.gradients.len(), plain.gradients.len(), "{precision}");
        for (name, want) in &plain.gradients {
            assert!(bits(&zb.gradients[name]).eq(bits(want)), "{precision}: gradient of {name}");
        }
    }
}

/// It changes what is kept, and nothing else.
#[test]
fn what_is_computed_again_is_bit_equal() {
    let kept = job((2, 2, 1), Precision::Fp8);
    let mut again = kept.clone();
    again.training.recompute = Recompute::All;
    let (kept, again) = (train(&kept, tokens(), 2), train(&again, tokens(), 2));
    assert_eq!(again.losses, kept.losses);
    assert_eq!(again.grad_norms, kept.grad_norms);
    assert_eq!(again.routers, kept.routers, "routers count once");
}

/// Two stages of two chunks.
fn interleaved(grid: GridSize, precision: Precision, batch: u32) -> Job {
    let mut job = job(grid, precision);
    (job.schedule, job.division.chunks) = (Schedule::Interleaved, 2);
    job.training.batch = batch;
    job
}

#[test]
fn interleaved_chunks_train_as_one_cell_does() {
    let dir = tokens();
    let one = train(&job((1, 1, 1), Precision::F32), dir, 1);
    for grid in [(2, 1, 1), (2, 2, 2)] {
        let chunks = train(&interleaved(grid, Precision::F32, 8), dir, grid.0);
        assert_alike(&chunks, &one, &format!("{grid:?} with 2 chunks"));
    }
}

/// Cut at the same places, every gradient is summed in the same order. 7 microbatches are no
/// multiple of 2 stages.
#[test]
fn interleaved_chunks_are_bit_equal_to_as_many_stages() {
    let dir = tokens();
    let chunks = train(&interleaved((2, 1, 1), Precision::F32, 7), dir, 2);
    let mut stages = job((4, 1, 1), Precision::F32);
    stages.training.batch = 7;
    let stages = train(&stages, dir, 1);
    assert_eq!(chunks.losses, stages.losses);
    for (name, want) in &stages.gradients {
        assert!(bits(&chunks.gradients[name]).eq(bits(want)), "gradient of {name}");
    }
}

#[test]
fn interleaved_chunks_are_bit_equal_on_any_number_of_workers() {
    let dir = tokens();
    for precision in [Precision::Fp8, Precision::F32] {
        let job = interleaved((2, 2, 1), precision, 8);
        let four = train(&job, dir, 4);
        for n_workers in [2, 1] {
            let again = train(&job, dir, n_workers);
            assert_eq!(again.losses, four.losses, "{precision}: {n_workers} workers");
            assert_eq!(again.grad_norms, four.grad_norms, "{precision}: {n_workers} workers");
        }
    }
}

#[test]
fn fp8_and_bf16_grids_stay_within_a_hundredth_of_one_cell() {
    let dir = tokens();
    for precision in [Precision::Fp8, Precision::Bf16] {
        let one = train(&job((1, 1, 1), precision), dir, 1);
        for grid in [(2, 1, 1), (1, 2, 1), (2, 2, 1), (2, 2, 2)] {
            let cut = train(&job(grid, precision), dir, 1);
            let off = largest_difference(&cut.losses, &one.losses);
            assert!(off < 0.01, "{precision} {grid:?}: off by {off}: {:?}", cut.losses);
        }
    }
}
