//! Every parameter's gradient against differences of the loss, in f32.

use shoal_plan::job::Precision;
use shoal_plan::model::{ModelConfig, RopeScaling};

use super::harness::{scale_of, small, tokens, train_whole, weighted, windows};
use crate::batch::Batch;
use crate::cut::Cut;
use crate::exchange::Alone;
use crate::names;
use crate::options::StageOptions;
use crate::stage::{LossScale, Stage};

/// Step of the differences. The loss is exact to some 3e-7, so that a difference is to some 1e-4.
const STEP: f32 = 2e-3;
const ABSOLUTE: f64 = 5e-4;
/// What a flipped choice may add before the two steps disagree visibly.
const RELATIVE: f64 = 0.02;

fn loss(stage: &mut Stage, batch: &Batch<'_>, scale: &LossScale) -> f64 {
    stage.forward(0, batch, None, scale, &mut Alone).unwrap();
    let loss = weighted(stage.take_losses(), scale);
    stage.abandon();
    loss
}

/// The loss's slope when one parameter moves along `direction`.
fn slope(
    stage: &mut Stage,
    name: &str,
    direction: &[f32],
    step: f32,
    mut loss: impl FnMut(&mut Stage) -> f64,
) -> f64 {
    let old = stage.parameters().master(name).to_vec();
    let mut at = |sign: f32| {
        let master = stage.parameters_mut().master_mut(name);
        for ((value, old), along) in master.iter_mut().zip(&old).zip(direction) {
            *value = old + sign * step * along;
        }
        stage.parameters_mut().prepare();
        loss(stage)
    };
    let difference = at(1.0) - at(-1.0);
    at(0.0);
    difference / (2.0 * f64::from(step))
}

/// Judges the three largest elements of the gradient of each parameter, two others, and the slope
/// along the gradient. Two steps extrapolate the third derivative away. A choice of experts that
/// flips inside the step is no derivative: steps that disagree judge nothing, and only few may.
fn check(config: ModelConfig) {
    let windows = windows(2, 8, config.vocab_size, 5);
    let (tokens, scale) = (tokens(&windows), scale_of(&windows));
    let batch = tokens.batch();
    let mut stage = Stage::new(Cut::whole(config), &StageOptions::new(Precision::F32, 3));
    let layers: Vec<String> = stage.biases().into_keys().collect();
    for name in layers {
        stage.set_bias(&name, &[0.1, -0.1, 0.05, 0.0, -0.05, 0.1]).unwrap();
    }
    train_whole(&mut stage, &batch, &scale).unwrap();
    assert_eq!(stage.first_nonfinite(), None);
    let names: Vec<String> = stage.parameters().names().map(String::from).collect();
    let gradients: Vec<_> = names.iter().map(|n| stage.parameters().gradient(n).to_vec()).collect();
    stage.abandon();

    let (mut judged, mut skipped) = (0, 0);
    for (name, gradient) in names.iter().zip(gradients) {
        let mut order: Vec<usize> = (0..gradient.len()).collect();
        order.sort_by(|a, b| gradient[*b].abs().total_cmp(&gradient[*a].abs()));
        let mut chosen = order[..3.min(order.len())].to_vec();
        chosen.extend([order[order.len() / 3], order[order.len() / 2]]);
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let mut directions: Vec<(String, Vec<f32>, f64)> = Vec::new();
        for at in chosen {
            let mut direction = vec![0.0; gradient.len()];
            direction[at] = 1.0;
            directions.push((format!("element {at}"), direction, f64::from(gradient[at])));
        }
        if 0.0 < norm {
            let along = gradient.iter().map(|g| (f64::from(*g) / norm) as f32).collect();
            directions.push(("along the gradient".into(), along, norm));
        }
        for (what, direction, got) in directions {
            let mut at = |step| {
                slope(&mut stage, name, &direction, step, |stage| loss(stage, &batch, &scale))
            };
            let (wide, narrow) = (at(STEP), at(STEP / 2.0));
            let want = (4.0 * narrow - wide) / 3.0;
            let tolerance = ABSOLUTE + RELATIVE * want.abs();
            if tolerance < 2.5 * (wide - narrow).abs() {
                skipped += 1;
                continue;
            }
            judged += 1;
            assert!((got - want).abs() < tolerance, "{name}, {what}: {got} want {want}");
        }
    }
    assert!(skipped * 10 < judged, "{skipped} of {} samples judged nothing", judged + skipped);
}

#[test]
fn every_parameters_gradient_is_the_losss_slope() {
    check(small());
}

#[test]
fn the_same_without_a_query_latent_normalised_gates_or_shared_experts() {
    check(ModelConfig {
        q_lora_rank: None,
        norm_topk_prob: false,
        n_shared_experts: 0,
        n_group: 1,
        topk_group: 1,
        first_k_dense_replace: 0,
        num_hidden_layers: 2,
        ..small()
    });
}

#[test]
fn the_same_without_multi_token_prediction_and_with_two_shared_experts() {
    let one = ModelConfig { num_nextn_predict_layers: 0, n_shared_experts: 2, ..small() };
    check(ModelConfig { num_hidden_layers: 2, ..one });
}

#[test]
fn the_same_with_two_and_three_tokens_more_predicted() {
    for num_nextn_predict_layers in [2, 3] {
        check(ModelConfig { num_nextn_predict_layers, num_hidden_layers: 2, ..small() });
    }
}

#[test]
fn the_same_with_a_tied_head_and_positions_that_are_scaled() {
    let scaling =
        RopeScaling { mscale: Some(0.5), mscale_all_dim: Some(0.8), ..RopeScaling::yarn(4.0, 16) };
    let rope_scaling = Some(scaling);
    // A tied head's logits bend more, and a step along the table moves every layer: calmer weights, and
    // no choice of experts that could flip.
    let all = ModelConfig { num_experts_per_tok: 6, n_group: 1, topk_group: 1, ..small() };
    let tied =
        ModelConfig { tie_word_embeddings: true, rope_scaling, initializer_range: 0.15, ..all };
    for num_nextn_predict_layers in [0, 1] {
        check(ModelConfig { num_nextn_predict_layers, num_hidden_layers: 2, ..tied.clone() });
    }
}

#[test]
fn the_same_in_a_dense_model() {
    let dense = ModelConfig { n_routed_experts: 0, num_hidden_layers: 2, ..small() };
    check(ModelConfig { num_nextn_predict_layers: 2, ..dense });
}

#[test]
fn the_same_where_only_the_multi_token_prediction_module_has_experts() {
    check(ModelConfig { first_k_dense_replace: 9, num_hidden_layers: 2, ..small() });
}

#[test]
fn the_multi_token_prediction_loss_is_the_mean_over_depths_of_each_ones_mean() {
    let mut windows = windows(2, 8, 23, 5);
    let config = ModelConfig { num_nextn_predict_layers: 3, ..small() };
    let sum = |windows: &[Vec<u32>]| {
        let mut stage =
            Stage::new(Cut::whole(config.clone()), &StageOptions::new(Precision::F32, 3));
        // A head without weights gives every token ln V nats, at every depth.
        stage.parameters_mut().master_mut(names::HEAD).fill(0.0);
        stage.parameters_mut().prepare();
        let (tokens, scale) = (tokens(windows), scale_of(windows));
        stage.forward(0, &tokens.batch(), None, &scale, &mut Alone).unwrap();
        stage.take_losses().mtp_sum
    };
    // Two sequences of seven tokens: twelve targets at depth 1.
    let mean = sum(&windows) / 12.0;
    assert!((mean - 23.0_f64.ln()).abs() < 1e-6, "{mean}");
    // Sequences of two tokens have a target at depth 1 and none behind it.
    for window in &mut windows {
        window.truncate(3);
    }
    let mean = sum(&windows) / 2.0;
    assert!((mean - 23.0_f64.ln() / 3.0).abs() < 1e-6, "{mean}");
}

#[test]
fn the_heads_share_the_embedding_and_the_head() {
    let windows = windows(2, 8, 23, 5);
    let (tokens, scale) = (tokens(&windows), scale_of(&windows));
    let gradient = |scale: LossScale| {
        let mut stage = Stage::new(Cut::whole(small()), &StageOptions::new(Precision::F32, 3));
        train_whole(&mut stage, &tokens.batch(), &scale).unwrap();
        let of = |name| stage.parameters().gradient(name).to_vec();
        (of(names::EMBEDDING), of(names::HEAD))
    };
    let both = gradient(scale);
    let main = gradient(LossScale { mtp: 0.0, ..scale });
    let mtp = gradient(LossScale { main: 0.0, balance: 0.0, ..scale });
    for (both, (main, mtp)) in [(both.0, (main.0, mtp.0)), (both.1, (main.1, mtp.1))] {
        assert!(mtp.iter().any(|g| 1e-4 < g.abs()));
        for (both, (main, mtp)) in both.iter().zip(main.iter().zip(&mtp)) {
            // A few FP32 roundings of terms below one.
            assert!((both - (main + mtp)).abs() < 1e-6, "{both} want {main} + {mtp}");
        }
    }
}
