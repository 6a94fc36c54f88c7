//! The bias update balances a gate that favours few experts, and without it nothing does.

use shoal_plan::job::Precision;
use shoal_plan::routing::RouterHealth;

use super::harness::{scale_of, small, tokens, train_whole, update, windows};
use crate::cut::Cut;
use crate::optimizer::Update;
use crate::options::StageOptions;
use crate::stage::Stage;

const STEPS: u64 = 200;

/// A stage in which every token has something in common, and every gate likes it in experts 0 and 1.
fn skewed() -> Stage {
    let config = small();
    let (d, layers) = (config.hidden_size as usize, 1..=config.num_hidden_layers);
    let mut stage = Stage::new(Cut::whole(config), &StageOptions::new(Precision::F32, 1));
    let parameters = stage.parameters_mut();
    for row in parameters.master_mut("model.embed_tokens.weight").chunks_exact_mut(d) {
        row[0] = 2.0;
    }
    for layer in layers {
        let gate = parameters.master_mut(&format!("model.layers.{layer}.mlp.gate.weight"));
        for (expert, row) in gate.chunks_exact_mut(d).enumerate() {
            row[0] = if expert < 2 { 0.5 } else { -0.5 };
        }
    }
    parameters.prepare();
    stage
}

/// The routers after the first step and over the last ten, when nothing but the biases learns.
fn before_and_after(bias_speed: f32) -> (RouterHealth, RouterHealth) {
    let mut stage = skewed();
    let mut layers = Vec::new();
    for step in 1..=STEPS {
        let windows = windows(8, 17, 23, step);
        let (tokens, scale) = (tokens(&windows), scale_of(&windows));
        train_whole(&mut stage, &tokens.batch(), &scale).unwrap();
        layers.push(stage.routing(tokens.batch().n_targets()));
        stage.update(&Update { bias_speed, ..update(step, 0.0) }).unwrap();
    }
    let late: Vec<_> = layers[layers.len() - 10..].concat();
    let of = |layers: &[_]| RouterHealth::of(layers).unwrap();
    (of(&layers[0]), of(&late))
}

#[test]
fn the_bias_update_balances_a_skewed_gate() {
    let (before, after) = before_and_after(0.01);
    assert!(before.load_entropy < 0.75 && before.load_max > 2.5, "{before:?}");
    assert!(after.load_entropy > 0.95 && after.load_max < 1.8, "{after:?}");
    assert!(after.bias_min < 0.0 && after.bias_max > 0.0, "{after:?}");
    assert_eq!((before.dropped, after.dropped), (0, 0));
}

#[test]
fn without_it_the_gate_stays_skewed() {
    let (before, after) = before_and_after(0.0);
    assert!(before.load_entropy < 0.75 && after.load_entropy < 0.75, "{before:?}, {after:?}");
    assert!(after.load_max > 2.5, "{after:?}");
    assert_eq!((after.bias_min.to_bits(), after.bias_max.to_bits()), (0, 0));
    assert_eq!((before.dropped, after.dropped), (0, 0));
}
