//! What the options of a stage change, and what they leave alone.

use shoal_kernels::bf16;
use shoal_plan::job::Precision;
use shoal_plan::model::ModelConfig;
use shoal_plan::numerics::{Moments as Kept, ParameterGroup, ScaleFormat, Scales};

use super::harness::{scale_of, small, tokens, train_whole, update, windows};
use crate::cut::Cut;
use crate::exchange::Alone;
use crate::names::{self, EMBEDDING, HEAD};
use crate::options::StageOptions;
use crate::parameters::Moments;
use crate::stage::{Evaluated, Stage};

fn stage(options: &StageOptions) -> Stage {
    Stage::new(Cut::whole(small()), options)
}

fn f32_options() -> StageOptions {
    StageOptions::new(Precision::F32, 1)
}

/// Trains step `step`.
fn train(stage: &mut Stage, step: u64) {
    let windows = windows(2, 9, 23, step);
    train_whole(stage, &tokens(&windows).batch(), &scale_of(&windows)).unwrap();
    stage.update(&update(step, 1e-2)).unwrap();
}

fn narrowed(values: &[f32]) -> Vec<u16> {
    let mut bits = vec![0; values.len()];
    bf16::narrow(values, &mut bits);
    bits
}

#[test]
fn fp32_moments_are_the_bf16_ones_before_they_were_rounded() {
    let mut exact = stage(&StageOptions { moments: Kept::F32, ..f32_options() });
    let mut rounded = stage(&f32_options());
    train(&mut exact, 1);
    train(&mut rounded, 1);
    for name in rounded.parameters().names() {
        let (exact, rounded) = (exact.parameters(), rounded.parameters());
        assert_eq!(exact.master(name), rounded.master(name), "{name}");
        let Moments::F32(first, second) = exact.moments(name) else { panic!("{name} is BF16") };
        let (first, second) = (narrowed(first), narrowed(second));
        assert_eq!(rounded.moments(name), Moments::Bf16(&first, &second), "{name}");
    }
    // From the second step on the rounding shows.
    train(&mut exact, 2);
    train(&mut rounded, 2);
    assert_ne!(exact.parameters().master(HEAD), rounded.parameters().master(HEAD));
}

#[test]
fn loaded_moments_take_the_form_in_which_they_are_kept() {
    let name = names::FINAL_NORM;
    let (first, second) = ([1.0 / 3.0; 24], [0.2; 24]);
    for moments in [Kept::Bf16, Kept::F32] {
        let mut stage = stage(&StageOptions { moments, ..f32_options() });
        stage.parameters_mut().set_moments(name, &first, &second);
        match stage.parameters().moments(name) {
            Moments::F32(m, v) => assert_eq!((m, v), (&first[..], &second[..])),
            Moments::Bf16(m, v) => {
                assert_eq!((m, v), (&narrowed(&first)[..], &narrowed(&second)[..]));
            }
        }
    }
}

#[test]
fn groups_that_are_excluded_do_not_decay_and_all_others_do() {
    use ParameterGroup::{Embedding, Head, Norms, Router};
    let check_model = |config: ModelConfig, weight_decay_exclude: &[ParameterGroup]| {
        let options =
            StageOptions { weight_decay_exclude: weight_decay_exclude.to_vec(), ..f32_options() };
        let mut stage = Stage::new(Cut::whole(config), &options);
        let before = stage.clone();
        // No gradients: whatever moves has decayed.
        stage.update(&update(1, 1e-2)).unwrap();
        for name in before.parameters().names() {
            let group = match name {
                EMBEDDING => Some(Embedding),
                HEAD => Some(Head),
                name if name.contains("norm.weight") => Some(Norms),
                name if name.ends_with("mlp.gate.weight") => Some(Router),
                _ => None,
            };
            let kept = group.is_some_and(|group| weight_decay_exclude.contains(&group));
            let factor = if kept { 1.0 } else { 1.0 - 1e-2_f32 * 0.1 };
            let want: Vec<f32> =
                before.parameters().master(name).iter().map(|p| p * factor).collect();
            assert_eq!(stage.parameters().master(name), want, "{name}, {weight_decay_exclude:?}");
        }
        assert_eq!(stage.biases(), before.biases(), "a router's bias is not decayed");
    };
    // A tied head is the embedding, and of no other group.
    let check = |excluded: &[ParameterGroup]| {
        check_model(small(), excluded);
        check_model(ModelConfig { tie_word_embeddings: true, ..small() }, excluded);
    };
    check(&ParameterGroup::NOT_DECAYED);
    check(&[Head]);
    check(&[]);
    check(&[Embedding, Head]);
    check(&[Norms, Router]);
}

#[test]
fn the_average_starts_at_the_masters_and_follows_every_update() {
    let options = StageOptions { ema_decay: 0.75, ..StageOptions::new(Precision::Fp8, 1) };
    let mut stage = stage(&options);
    let names: Vec<String> = stage.parameters().names().map(String::from).collect();
    let masters = |stage: &Stage| -> Vec<Vec<f32>> {
        names.iter().map(|name| stage.parameters().master(name).to_vec()).collect()
    };
    let mut want = masters(&stage);
    for step in 1..=3 {
        train(&mut stage, step);
        for (want, master) in want.iter_mut().zip(masters(&stage)) {
            for (want, p) in want.iter_mut().zip(master) {
                *want = 0.75 * *want + 0.25 * p;
            }
        }
    }
    for (name, want) in names.iter().zip(&want) {
        assert_eq!(stage.parameters().average(name).unwrap(), want, "{name}");
    }
    stage.parameters_mut().restart_average();
    for (name, master) in names.iter().zip(masters(&stage)) {
        assert_eq!(stage.parameters().average(name).unwrap(), master, "{name}");
    }
}

#[test]
fn the_average_is_no_part_of_training() {
    let mut plain = stage(&f32_options());
    let mut averaged = stage(&StageOptions { ema_decay: 0.9, ..f32_options() });
    for step in 1..=2 {
        train(&mut plain, step);
        train(&mut averaged, step);
        averaged.swap_ema().unwrap();
        averaged.swap_ema().unwrap();
    }
    assert_eq!(plain.parameters().average(HEAD), None);
    for name in plain.parameters().names() {
        assert_eq!(plain.parameters().master(name), averaged.parameters().master(name), "{name}");
    }
}

#[test]
fn evaluation_can_run_on_the_average_and_then_on_the_masters_again() {
    let options = StageOptions { ema_decay: 0.75, ..StageOptions::new(Precision::Fp8, 1) };
    let mut averaged = stage(&options);
    for step in 1..=3 {
        train(&mut averaged, step);
    }
    let mut other = averaged.clone();
    let names: Vec<String> = averaged.parameters().names().map(String::from).collect();
    for name in &names {
        let average = averaged.parameters().average(name).unwrap();
        other.parameters_mut().master_mut(name).copy_from_slice(average);
    }
    other.parameters_mut().prepare();
    let windows = windows(2, 9, 23, 1);
    let loss = |stage: &Stage| match stage.evaluate(&tokens(&windows).batch(), None, &mut Alone) {
        Ok(Evaluated::Loss { loss_sum, .. }) => loss_sum.to_bits(),
        Ok(Evaluated::Hidden(_)) | Err(_) => panic!("the whole model ends in a loss"),
    };
    let masters = loss(&averaged);
    averaged.swap_ema().unwrap();
    assert_eq!(loss(&averaged), loss(&other));
    assert_ne!(loss(&averaged), masters);
    averaged.swap_ema().unwrap();
    assert_eq!(loss(&averaged), masters);
    // Without an average there is nothing to exchange.
    let mut plain = stage(&f32_options());
    let before = loss(&plain);
    plain.swap_ema().unwrap();
    assert_eq!(loss(&plain), before);
}

#[test]
#[should_panic(expected = "not their average")]
fn an_update_of_the_average_is_a_bug() {
    let mut stage = stage(&StageOptions { ema_decay: 0.5, ..f32_options() });
    stage.swap_ema().unwrap();
    stage.update(&update(1, 1e-2)).unwrap();
}

#[test]
fn scales_are_of_no_account_without_fp8() {
    let fp32 = ScaleFormat::Fp32;
    let scales = Scales { weights: fp32, activations: fp32, gradients: fp32 };
    for precision in [Precision::Bf16, Precision::F32] {
        let mut plain = stage(&StageOptions::new(precision, 1));
        let mut scaled = stage(&StageOptions { scales, ..StageOptions::new(precision, 1) });
        train(&mut plain, 1);
        train(&mut scaled, 1);
        assert_eq!(plain.parameters().master(HEAD), scaled.parameters().master(HEAD));
    }
}
