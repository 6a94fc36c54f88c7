//! What the planner expects a cell to hold, against what it holds.

use shoal_plan::grid::{CellId, Grid};
use shoal_plan::job::{Job, Precision, Recompute};
use shoal_plan::memory::cell_bytes;
use shoal_plan::placement::make_plan;
use shoal_plan::plan::{Generation, WorkerId};

use super::harness::{scale_of, tokens, windows};
use crate::cut::Cut;
use crate::exchange::Alone;
use crate::memory::Memory;
use crate::options::StageOptions;
use crate::stage::Stage;

/// One microbatch through a cell that is the whole model: after forward, and between the halves.
fn measure(job: &Job) -> [Memory; 2] {
    let mut stage = Stage::new(Cut::whole(job.model.clone()), &StageOptions::from(&job.training));
    let (n, length) = (job.training.batch as usize, job.training.sequence as usize + 1);
    let windows = windows(n, length, job.model.vocab_size, 5);
    let batch = tokens(&windows);
    stage.forward(0, &batch.batch(), None, &scale_of(&windows), &mut Alone).unwrap();
    let after_forward = stage.memory();
    stage.backward_input(0, None, &mut Alone).unwrap();
    [after_forward, stage.memory()]
}

#[test]
fn the_planner_expects_what_a_cell_holds() {
    let mut job = Job::example();
    job.grid = Grid { stages: 1, expert_shards: 1, replicas: 1 };
    (job.training.batch, job.training.microbatch, job.training.sequence) = (2, 2, 96);
    for (dense, recompute) in [false, true]
        .into_iter()
        .flat_map(|dense| Recompute::ALL.into_iter().map(move |recompute| (dense, recompute)))
    {
        job.training.recompute = recompute;
        for precision in Precision::ALL {
            job.training.precision = precision;
            if dense {
                job.model.n_routed_experts = 0;
            }
            let plan = make_plan(&job, &[WorkerId(0)], Generation(1)).unwrap();
            let planned = cell_bytes(&job, &plan, CellId(0));
            let [forward, between] = measure(&job);
            let what = format!(
                "{precision}, dense: {dense}, {recompute:?}: {planned:?}\n{forward:?}\n{between:?}"
            );
            assert_eq!(planned.masters, forward.masters as u64, "{what}");
            assert_eq!(planned.gradients, forward.gradients as u64, "{what}");
            assert_eq!(planned.moments, forward.moments as u64, "{what}");
            let logits = 4 * 192 * u64::from(job.model.vocab_size);
            let held = forward.cached().max(between.cached()) as u64 + logits;
            assert_eq!(planned.activations, held, "{what}");
            // The estimate counts what compute reads from the masters (norms, routers, in f32 the
            // embedding), and not
            // the scales of weights.
            let weights = (forward.linear_weights + forward.other_weights) as f64;
            let off = weights / planned.weights as f64 - 1.0;
            assert!(off.abs() < 0.03, "{off} {what}");
        }
    }
}

/// Less is kept after forward, and every gradient has the same bits.
#[test]
fn what_is_computed_again_changes_no_bit_and_is_not_kept() {
    for precision in Precision::ALL {
        let after = |recompute| {
            let mut job = Job::example();
            (job.training.precision, job.training.recompute) = (precision, recompute);
            let options = StageOptions::from(&job.training);
            let mut stage = Stage::new(Cut::whole(job.model.clone()), &options);
            let windows = windows(2, 33, job.model.vocab_size, 5);
            let batch = tokens(&windows);
            stage.forward(0, &batch.batch(), None, &scale_of(&windows), &mut Alone).unwrap();
            let kept = stage.memory().cached();
            stage.backward(0, None, &mut Alone).unwrap();
            (kept, stage)
        };
        let (most, kept) = after(Recompute::None);
        let [attention, feed_forward, all] =
            [Recompute::Attention, Recompute::FeedForward, Recompute::All].map(|recompute| {
                let (held, again) = after(recompute);
                for name in kept.parameters().names() {
                    let bits = |stage: &Stage| {
                        let gradient = stage.parameters().gradient(name).iter();
                        gradient.map(|g| g.to_bits()).collect::<Vec<_>>()
                    };
                    assert_eq!(bits(&again), bits(&kept), "{precision}, {recompute:?}: {name}");
                }
                held
            });
        assert!(attention < most && feed_forward < most, "{precision}");
        assert_eq!(most - all, (most - attention) + (most - feed_forward), "{precision}");
    }
}

#[test]
fn nothing_is_held_once_the_weight_half_is_done() {
    let job = Job::example();
    let mut stage = Stage::new(Cut::whole(job.model.clone()), &StageOptions::from(&job.training));
    let before = stage.memory();
    let windows = windows(1, 33, job.model.vocab_size, 5);
    let batch = tokens(&windows);
    stage.forward(0, &batch.batch(), None, &scale_of(&windows), &mut Alone).unwrap();
    stage.backward_input(0, None, &mut Alone).unwrap();
    assert!(0 < stage.memory().deferred);
    stage.backward_weight(0).unwrap();
    assert_eq!(stage.memory(), before);
}

#[test]
fn both_halves_at_once_give_the_same_gradients_to_the_bit_and_hold_nothing_either() {
    for precision in Precision::ALL {
        let mut job = Job::example();
        job.training.precision = precision;
        let stage =
            || Stage::new(Cut::whole(job.model.clone()), &StageOptions::from(&job.training));
        let (mut apart, mut at_once) = (stage(), stage());
        let before = at_once.memory();
        let windows = windows(2, 33, job.model.vocab_size, 5);
        let batch = tokens(&windows);
        for stage in [&mut apart, &mut at_once] {
            stage.forward(0, &batch.batch(), None, &scale_of(&windows), &mut Alone).unwrap();
        }
        apart.backward_input(0, None, &mut Alone).unwrap();
        apart.backward_weight(0).unwrap();
        at_once.backward(0, None, &mut Alone).unwrap();
        assert_eq!(at_once.memory(), before);
        for name in apart.parameters().names() {
            let bits = |stage: &Stage| {
                let gradient = stage.parameters().gradient(name).iter();
                gradient.map(|g| g.to_bits()).collect::<Vec<_>>()
            };
            assert_eq!(bits(&apart), bits(&at_once), "{precision}: {name}");
        }
        assert!(at_once.backward_weight(0).is_err(), "there is no half left");
    }
}
