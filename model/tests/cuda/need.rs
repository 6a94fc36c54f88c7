//! What a cell was said to need against what it takes.

use std::sync::Arc;

use shoal_kernels::cuda::Device;
use shoal_model::cuda::{Gpu, Kernels, Need, Room};
use shoal_model::{Alone, BatchTokens, Cut, Error, Stage, StageOptions};
use shoal_plan::grid::CellId;
use shoal_plan::job::{Job, Precision, Recompute};
use shoal_plan::model::ModelConfig;
use shoal_plan::numerics::{Moments, ScaleFormat, Scales};
use shoal_plan::placement::make_plan;
use shoal_plan::plan::{Generation, Plan, WorkerId};
use shoal_plan::schedule::Slot;

use super::cases::{SCALE, small, update};

const CELL: CellId = CellId(0);

/// A whole small model, two microbatches of which one is smaller.
fn job(change: impl FnOnce(&mut Job)) -> (Job, Plan) {
    let mut job = Job::example();
    job.model = ModelConfig { num_hidden_layers: 2, ..small() };
    job.training.precision = Precision::Fp8;
    (job.training.batch, job.training.microbatch, job.training.sequence) = (3, 2, 9);
    job.evaluation.tokens_max = 9;
    change(&mut job);
    let plan = make_plan(&job, &[WorkerId(0)], Generation(1)).unwrap();
    (job, plan)
}

fn stage(job: &Job, plan: &Plan, device: &Device, bytes: usize) -> Result<Stage, Error> {
    let cut = Cut::of(&job.model, plan, CELL).remove(0);
    let mut stage = Stage::new(cut, &StageOptions::from(&job.training));
    let kernels = Arc::new(Kernels::load(device)?);
    let gpu = Gpu::new(device, &kernels, ("a cell's memory", bytes))?;
    stage.move_to(gpu.with_room(Room::of(job, plan, CELL)))?;
    Ok(stage)
}

fn tokens(job: &Job, sequences: u64) -> BatchTokens {
    let length = job.training.sequence + 1;
    let word = |i: u32| (i * i + 3 * i) % job.model.vocab_size;
    let windows: Vec<Vec<u32>> =
        (0..sequences as u32).map(|at| (0..length).map(|i| word(at * 31 + i)).collect()).collect();
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    BatchTokens::from_windows(&windows).unwrap()
}

/// A step, an evaluation and a step, as the worker has them.
fn train(job: &Job, stage: &mut Stage) -> Result<(), Error> {
    for step in 1..=2 {
        let division = job.division_at(step);
        for slot in job.pipeline().slots(0, division.n_microbatches()) {
            let microbatch = slot.work().microbatch;
            let part = division.microbatch(0, microbatch.into());
            let tokens = tokens(job, part.end - part.start);
            match slot {
                Slot::Forward(_) => {
                    stage.forward(microbatch, &tokens.batch(), None, &SCALE, &mut Alone)?;
                }
                Slot::BackwardInput(_) => drop(stage.backward(microbatch, None, &mut Alone)?),
                Slot::BackwardWeight(_)
                | Slot::RecvForward(_)
                | Slot::RecvBackward(_)
                | Slot::SendForward(_)
                | Slot::SendBackward(_) => {}
            }
        }
        stage.settle()?;
        stage.take_losses();
        stage.update(&update(step))?;
        stage.evaluate(&tokens(job, 1).batch(), None, &mut Alone)?;
    }
    Ok(())
}

/// What is there at the end of a plan is what was planned; a byte less is too little. Neither hangs on how the tokens are
/// routed nor on how full a microbatch is.
#[track_caller]
fn holds(device: &Device, change: impl FnOnce(&mut Job)) {
    let (job, plan) = job(change);
    let need = Need::of(&job, &plan, CELL).unwrap();
    let mut there = stage(&job, &plan, device, need.bytes).unwrap();
    train(&job, &mut there).unwrap();
    let usage = there.gpu().unwrap().usage();
    assert_eq!((usage.high_water, usage.total), (need.bytes, need.bytes));
    let named: usize = need.kinds.values().sum();
    assert!(named <= need.bytes && need.bytes - named < need.bytes / 4, "{need:?}");
}

/// Each way in which a cell can be built, once.
pub(crate) fn planned(device: &Device) {
    holds(device, |_| {});
    holds(device, |job| {
        job.training.precision = Precision::Bf16;
        job.training.moments = Moments::F32;
        job.training.ema = 0.9;
        job.model.num_nextn_predict_layers = 0;
    });
    holds(device, |job| {
        let scale = ScaleFormat::Fp32;
        job.training.scales = Scales { weights: scale, activations: scale, gradients: scale };
        job.model.num_nextn_predict_layers = 2;
        (job.training.batch_start, job.training.batch_ramp_steps) = (1, 1);
    });
    holds(device, |job| {
        job.model.q_lora_rank = None;
        job.model.tie_word_embeddings = true;
        job.model.n_shared_experts = 0;
        job.model.num_nextn_predict_layers = 0;
    });
    for (precision, recompute) in [
        (Precision::Fp8, Recompute::All),
        (Precision::Bf16, Recompute::Attention),
        (Precision::Bf16, Recompute::FeedForward),
    ] {
        holds(device, |job| {
            (job.training.precision, job.training.recompute) = (precision, recompute);
        });
    }
}

/// One granule less is refused by name, at the latest in the step.
pub(crate) fn no_byte_too_much(device: &Device) {
    let (job, plan) = job(|job| job.model.num_nextn_predict_layers = 0);
    let need = Need::of(&job, &plan, CELL).unwrap();
    let error = stage(&job, &plan, device, need.bytes - 256)
        .and_then(|mut stage| train(&job, &mut stage))
        .unwrap_err();
    assert!(error.to_string().contains("out of memory on the GPU"), "{error}");
    let more = |change: &dyn Fn(&mut Job)| {
        let (job, plan) = self::job(change);
        Need::of(&job, &plan, CELL).unwrap().bytes
    };
    let plain = more(&|_| {});
    assert!(plain < more(&|job| job.training.ema = 0.5));
    for recompute in [Recompute::Attention, Recompute::FeedForward] {
        let less = more(&|job| job.training.recompute = recompute);
        assert!(more(&|job| job.training.recompute = Recompute::All) < less && less < plain);
    }
    assert!(plain < more(&|job| job.training.microbatch = 3));
    assert!(plain < more(&|job| job.training.moments = Moments::F32));
    let (job, plan) = self::job(|job| job.training.precision = Precision::F32);
    assert!(Need::of(&job, &plan, CELL).is_err(), "f32 is the CPU's alone");
    let (job, plan) = self::job(|job| job.training.scales.activations = ScaleFormat::Fp32);
    let error = Need::of(&job, &plan, CELL).unwrap_err().to_string();
    assert!(error.contains("two formats"), "{error}");
}

/// What was fetched is not fetched again before it has changed: the host's copy is seen to stay as it is.
pub(crate) fn fetched_once(device: &Device) {
    let (job, plan) = job(|job| job.model.num_nextn_predict_layers = 0);
    let need = Need::of(&job, &plan, CELL).unwrap();
    let mut stage = stage(&job, &plan, device, need.bytes).unwrap();
    train(&job, &mut stage).unwrap();
    let name = stage.parameters().names().next().unwrap().to_owned();
    let first = |stage: &Stage| stage.parameters().master(&name)[0];
    stage.fetch().unwrap();
    let (value, mark) = (first(&stage), 1234.5_f32);
    assert!(value.abs() < 100.0);
    stage.parameters_mut().master_mut(&name)[0] = mark;
    stage.fetch().unwrap();
    assert_eq!(first(&stage).to_bits(), mark.to_bits(), "the host has it already");
    train(&job, &mut stage).unwrap();
    stage.fetch().unwrap();
    assert!(first(&stage).abs() < 100.0, "an update has changed it");
}
