//! A small run for tests: its settings, and what its two workers say.

use std::collections::BTreeMap;

use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::{CellId, Grid};
use shoal_plan::job::Job;
use shoal_plan::plan::{Generation, Plan, RunId, StagePlan, WorkerId};
use shoal_plan::report::{
    Ending, Evaluation, HELDOUT, Outcome, Pass, SkippedStep, StepReport, StepRow,
};
use shoal_plan::standing::Standing;
use shoal_proto::{FromWorker, Hello, Secret};

use super::ConnectionId;
use crate::settings::Settings;

pub(crate) const G1: Generation = Generation(1);
pub(crate) const LAST_STEP: u64 = 4;

/// Two stages on two workers; steps 1 to 4, 8 sequences each.
pub(crate) fn settings() -> Settings {
    let mut job = Job::example();
    job.training.steps = LAST_STEP;
    job.grid = Grid { stages: 2, expert_shards: 1, replicas: 1 };
    job.workers.local = 2;
    job.checkpoint.every = 2;
    job.checkpoint.keep = 2;
    Settings {
        run: RunId("run".into()),
        secret: Secret::from_hex(&"5e".repeat(32)).unwrap(),
        job,
        workers_wanted: 2,
        workers_first: 2,
        resume_from: None,
        run_dir: std::path::PathBuf::new(),
        lease_ms: 5_000,
        join_deadline_ms: 30_000,
        make_plan: one_cell_each,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the signature of every plan maker")]
fn one_cell_each(job: &Job, workers: &[WorkerId], generation: Generation) -> Result<Plan, String> {
    let stage = |layers| StagePlan { layers, flops_per_token: 1.0, reason: "half".into() };
    Ok(Plan {
        generation,
        grid: job.grid,
        stages: vec![stage(0..2), stage(2..4)],
        experts: std::iter::once(0..16).collect(),
        hosts: job.grid.cells().map(|cell| workers[cell.0 as usize % workers.len()]).collect(),
        reasons: BTreeMap::new(),
    })
}

/// Worker `n` speaks over connection `10 + n`.
pub(crate) fn connection(worker: u32) -> ConnectionId {
    ConnectionId(u64::from(10 + worker))
}

pub(crate) fn hello(worker: u32) -> FromWorker {
    FromWorker::Hello(Hello {
        run: RunId("run".into()),
        worker: WorkerId(worker),
        data_address: "127.0.0.1:4000".parse().unwrap(),
        pid: 100 + worker,
        threads: 1,
        devices: 1,
        vault_address: "127.0.0.1:4001".parse().unwrap(),
        resuming: None,
    })
}

pub(crate) fn step_done(worker: u32, step: u64) -> FromWorker {
    done(worker, step, Outcome::Trained(row(step)))
}

pub(crate) fn row(step: u64) -> StepRow {
    StepRow {
        step,
        loss: 5.0,
        main_loss: 4.0,
        mtp_loss: 3.0,
        balance_loss: 0.0,
        grad_norm: 1.0,
        lr: 1e-3,
        tokens: 128,
        router: Vec::new(),
    }
}

pub(crate) fn step_skipped(worker: u32, step: u64, in_a_row: u32) -> FromWorker {
    let skipped = "layer 3 forward".to_owned();
    done(
        worker,
        step,
        Outcome::Skipped(SkippedStep {
            step,
            skipped,
            worker: WorkerId(1),
            in_a_row,
            pass: Pass::Forward,
        }),
    )
}

fn done(worker: u32, step: u64, outcome: Outcome) -> FromWorker {
    let report = StepReport { first_sequence: (step - 1) * 8, sequences: 8, outcome };
    let report = (worker == 0).then_some(report);
    FromWorker::StepDone { generation: G1, step, compute_seconds: 0.5, report, sums: vec![] }
}

/// After this many steps of 8 sequences.
pub(crate) fn at(step: u64) -> Standing {
    Standing { step, sequences: 8 * step, ..Standing::default() }
}

pub(crate) fn go_back(step: u64, skips: u32) -> FromWorker {
    FromWorker::GoBack { generation: G1, standing: Standing { skips, ..at(step) } }
}

pub(crate) fn evaluated(step: u64, loss: f64) -> FromWorker {
    let evaluation = Evaluation { set: HELDOUT.into(), loss, tokens: 10, bytes: 10 };
    FromWorker::Evaluated { generation: G1, step, evaluations: vec![evaluation] }
}

/// The same words in a later generation.
pub(crate) fn of_generation(generation: Generation, mut message: FromWorker) -> FromWorker {
    if let Some(fence) = message.fence() {
        *fence = generation;
    }
    message
}

pub(crate) fn part(worker: u32, step: u64) -> FromWorker {
    let (name, blake3) = (format!("model-{worker}.safetensors"), "00".repeat(32));
    let files = vec![CheckpointFile { name, bytes: 1, blake3 }];
    let (standing, cell) = (at(step), CellId(worker));
    FromWorker::CheckpointPart { generation: G1, standing, cell, files }
}

pub(crate) fn part_failed(worker: u32, step: u64) -> FromWorker {
    let (standing, cell, why) = (at(step), CellId(worker), "disk full".to_owned());
    FromWorker::CheckpointPartFailed { generation: G1, standing, cell, why }
}

pub(crate) fn finished(step: u64, ending: Ending) -> FromWorker {
    FromWorker::Finished { generation: G1, step, ending }
}
