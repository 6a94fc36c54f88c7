//! One process: the model learns, evaluates and predicts.

use shoal_kernels::compare::{Tolerance, assert_close};
use shoal_plan::job::Precision;
use shoal_plan::numerics::{Moments, ScaleFormat, Scales};

use super::harness::{scale_of, small, tokens, train_whole, update, windows};
use crate::cut::Cut;
use crate::exchange::Alone;
use crate::options::StageOptions;
use crate::stage::{Evaluated, Stage};

/// A text of 13 letters, over and over, that needs two letters of context.
const TEXT: [u32; 13] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9];

fn repeated(start: usize, n: usize) -> Vec<u32> {
    TEXT.iter().copied().cycle().skip(start).take(n).collect()
}

#[test]
fn the_model_learns_a_repeating_text_and_continues_it() {
    let fp32 = ScaleFormat::Fp32;
    let other = StageOptions {
        scales: Scales { weights: fp32, activations: fp32, gradients: fp32 },
        moments: Moments::F32,
        weight_decay_exclude: vec![],
        ema_decay: 0.9,
        ..StageOptions::new(Precision::Fp8, 1)
    };
    let defaults = Precision::ALL.map(|precision| StageOptions::new(precision, 1));
    for options in defaults.into_iter().chain([other]) {
        let mut stage = Stage::new(Cut::whole(small()), &options);
        let mut last = f64::INFINITY;
        for step in 1..=80 {
            let windows: Vec<_> = (0..4).map(|i| repeated(step as usize * 4 + i * 3, 21)).collect();
            let (tokens, scale) = (tokens(&windows), scale_of(&windows));
            train_whole(&mut stage, &tokens.batch(), &scale).unwrap();
            assert_eq!(stage.first_nonfinite(), None);
            last = stage.take_losses().main_sum * f64::from(scale.main);
            stage.update(&update(step, 1e-2)).unwrap();
        }
        assert!(last < 0.3, "{options:?}: {last} nats a token");
        let best = |stage: &Stage| {
            let logits = stage.logits(&repeated(5, 20)).unwrap();
            (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
        };
        assert_eq!(best(&stage) as u32, repeated(25, 1)[0], "{options:?}");
        stage.swap_ema().unwrap();
        assert_eq!(best(&stage) as u32, repeated(25, 1)[0], "the average of {options:?}");
    }
}

#[test]
fn evaluation_is_the_main_heads_loss_and_leaves_no_trace() {
    let windows = windows(2, 9, 23, 1);
    let (tokens, scale) = (tokens(&windows), scale_of(&windows));
    let whole = Cut::whole(small());
    let mut stage = Stage::new(whole.clone(), &StageOptions::new(Precision::F32, 1));
    let Evaluated::Loss { loss_sum, targets } =
        stage.evaluate(&tokens.batch(), None, &mut Alone).unwrap()
    else {
        panic!("the whole model ends in a loss")
    };
    assert_eq!(targets, 16);
    assert!(stage.counts_mut().iter().all(|count| *count == 0));
    train_whole(&mut stage, &tokens.batch(), &scale).unwrap();
    let trained = stage.take_losses().main_sum;
    assert!((loss_sum - trained).abs() < 1e-5 * trained, "{loss_sum} want {trained}");
    assert_eq!(stage.counts_mut().iter().sum::<u64>(), 3 * 16 * 2);

    let first = Stage::new(
        Cut { layers: 0..1, last: false, ..whole.clone() },
        &StageOptions::new(Precision::F32, 1),
    );
    let last = Stage::new(
        Cut { layers: 1..3, first: false, ..whole },
        &StageOptions::new(Precision::F32, 1),
    );
    let Evaluated::Hidden(hidden) = first.evaluate(&tokens.batch(), None, &mut Alone).unwrap()
    else {
        panic!("a first stage ends in hidden states")
    };
    let Evaluated::Loss { loss_sum: staged, .. } =
        last.evaluate(&tokens.batch(), Some(hidden), &mut Alone).unwrap()
    else {
        panic!("a last stage ends in a loss")
    };
    assert!((staged - loss_sum).abs() < 1e-9 * loss_sum);
}

#[test]
fn an_abandoned_step_changes_nothing() {
    let windows = windows(2, 9, 23, 1);
    let (tokens, scale) = (tokens(&windows), scale_of(&windows));
    let mut clean = Stage::new(Cut::whole(small()), &StageOptions::new(Precision::Fp8, 1));
    let mut stage = clean.clone();
    stage.forward(0, &tokens.batch(), None, &scale, &mut Alone).unwrap();
    stage.forward(1, &tokens.batch(), None, &scale, &mut Alone).unwrap();
    stage.backward_input(0, None, &mut Alone).unwrap();
    stage.abandon();
    for stage in [&mut clean, &mut stage] {
        train_whole(stage, &tokens.batch(), &scale).unwrap();
        stage.update(&update(1, 1e-2)).unwrap();
    }
    assert_eq!(stage.take_losses(), clean.take_losses());
    for name in clean.parameters().names() {
        assert_eq!(stage.parameters().master(name), clean.parameters().master(name), "{name}");
    }
    assert_eq!(stage.biases(), clean.biases());
}

#[test]
fn all_logits_are_those_after_every_start_of_every_sequence_and_give_the_loss() {
    let windows = windows(2, 9, 23, 1);
    let tokens = tokens(&windows);
    let stage = Stage::new(Cut::whole(small()), &StageOptions::new(Precision::F32, 1));
    let all = stage.all_logits(&tokens.batch()).unwrap();
    assert_eq!(all.len(), 2 * 8 * 23);
    let (mut loss, mut rows) = (0.0, all.chunks(23));
    for window in &windows {
        for at in 1..window.len() {
            let (got, want) = (rows.next().unwrap(), stage.logits(&window[..at]).unwrap());
            assert_close("logits", got, &want, Tolerance::F32);
            let sum: f64 = got.iter().map(|logit| f64::from(*logit).exp()).sum();
            loss += sum.ln() - f64::from(got[window[at] as usize]);
        }
    }
    let Evaluated::Loss { loss_sum, .. } =
        stage.evaluate(&tokens.batch(), None, &mut Alone).unwrap()
    else {
        panic!("the last stage has a loss")
    };
    assert!((loss - loss_sum).abs() < 1e-4, "{loss} want {loss_sum}");
}
