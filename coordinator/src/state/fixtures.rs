//! A small run for tests: its settings, and what its two workers say.

use std::collections::BTreeMap;

use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::{CellId, Grid};
use shoal_plan::job::Job;
use shoal_plan::plan::{Generation, Plan, RunId, StagePlan, WorkerId};
use shoal_plan::report::{Evaluation, StepRow};
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
        hosts: workers.to_vec(),
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
    })
}

pub(crate) fn step_done(worker: u32, step: u64) -> FromWorker {
    let row = StepRow {
        step,
        loss: 5.0,
        main_loss: 4.0,
        mtp_loss: 3.0,
        balance_loss: 0.0,
        grad_norm: 1.0,
        lr: 1e-3,
        tokens: 128,
    };
    FromWorker::StepDone { generation: G1, step, row: (worker == 0).then_some(row) }
}

pub(crate) fn part(worker: u32, step: u64) -> FromWorker {
    let (name, blake3) = (format!("model-{worker}.safetensors"), "00".repeat(32));
    let files = vec![CheckpointFile { name, bytes: 1, blake3 }];
    FromWorker::CheckpointPart { generation: G1, step, cell: CellId(worker), files }
}

pub(crate) fn finished(worker: u32, step: u64, stopped_early: bool) -> FromWorker {
    let evaluation = Evaluation { loss: 2.0, tokens: 10, bytes: 10 };
    let evaluation = (worker == 0 && !stopped_early).then_some(evaluation);
    FromWorker::Finished { generation: G1, step, evaluation, stopped_early }
}
