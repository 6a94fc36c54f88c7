//! What must be refused or located: NaNs, bytes that make no sense, slots out of order.

use shoal_kernels::tensor::{DType, Tensor};
use shoal_plan::job::Precision;
use shoal_plan::numerics::{ScaleFormat, Scales};

use super::harness::{mesh, scale_of, small, tokens, train_whole, windows};
use crate::cut::Cut;
use crate::error::Error;
use crate::exchange::{Alone, Exchange, ExchangeError};
use crate::names;
use crate::options::StageOptions;
use crate::stage::Stage;

fn whole(precision: Precision) -> Stage {
    Stage::new(Cut::whole(small()), &StageOptions::new(precision, 1))
}

#[test]
fn a_nan_is_located_where_it_began() {
    let windows = windows(2, 9, 23, 1);
    let (tokens, scale) = (tokens(&windows), scale_of(&windows));
    let check = |name: &str, want: &str| {
        for precision in Precision::ALL {
            let mut stage = whole(precision);
            stage.parameters_mut().master_mut(name).fill(f32::NAN);
            stage.parameters_mut().prepare();
            train_whole(&mut stage, &tokens.batch(), &scale).unwrap();
            assert_eq!(
                stage.first_nonfinite().map(|f| f.place).as_deref(),
                Some(want),
                "{name} in {precision}"
            );
            let norms = stage.sum_of_squares();
            let sum = norms.dense + norms.expert + norms.embedding;
            assert!(!sum.is_finite(), "the vote sees it");
            stage.abandon();
            assert_eq!(stage.first_nonfinite(), None);
        }
    };
    check(names::EMBEDDING, "the embedding, forward");
    check(&names::of_layer(0, "mlp.up_proj.weight"), "layer 0 forward");
    check(&names::of_layer(1, "self_attn.kv_b_proj.weight"), "layer 1 forward, attention");
    check(&names::of_layer(2, "mlp.shared_experts.down_proj.weight"), "layer 2 forward");
    check(&names::of_layer(1, "mlp.gate.weight"), "layer 1 forward, router");
    check(names::HEAD, "main head's loss");
    check(&names::of_layer(3, "enorm.weight"), "layer 3 forward, attention");
    check(&names::of_layer(3, "shared_head.norm.weight"), "multi-token-prediction head's loss");
}

#[test]
fn an_expert_that_makes_a_nan_is_named_by_its_owner_and_its_shard_by_the_others() {
    let windows = windows(4, 9, 23, 1);
    let scale = scale_of(&windows);
    let experts = vec![0..3, 3..6];
    let mut stages: Vec<Stage> = (0..2)
        .map(|shard| Cut { experts: experts.clone(), shard, ..Cut::whole(small()) })
        .map(|cut| Stage::new(cut, &StageOptions::new(Precision::Fp8, 1)))
        .collect();
    let layers: Vec<String> = stages[0].biases().into_keys().collect();
    for stage in &mut stages {
        // Every token goes to expert 4.
        stage.set_bias(&layers[0], &[0.0, 0.0, 0.0, 0.0, 9.0, 0.0]).unwrap();
    }
    let bad = names::of_expert(1, 4, "down_proj");
    stages[1].parameters_mut().master_mut(&bad)[5] = f32::INFINITY;
    stages[1].parameters_mut().prepare();
    std::thread::scope(|scope| {
        for ((stage, windows), mut mesh) in stages.iter_mut().zip(windows.chunks(2)).zip(mesh(2)) {
            scope.spawn(move || {
                let tokens = tokens(windows);
                stage.forward(0, &tokens.batch(), None, &scale, &mut mesh).unwrap();
            });
        }
    });
    let found: Vec<_> = stages.iter().map(|stage| stage.first_nonfinite().unwrap()).collect();
    assert_eq!(found[0].place, "layer 1 forward, rows returned by expert shard 1");
    assert_eq!(found[1].place, "layer 1 expert 4 forward");
    assert!(found[1].causal_order() < found[0].causal_order(), "the owner is nearer to the cause");
}

#[test]
fn a_bad_gradient_is_named_when_no_pass_saw_it() {
    let mut stage = whole(Precision::F32);
    let name = names::of_layer(2, "self_attn.o_proj.weight");
    let id = stage.parameters().id(&name);
    stage.parameters_mut().weight_and_gradient(id).1[7] = f32::INFINITY;
    assert_eq!(stage.first_nonfinite().unwrap().place, format!("gradient of {name}"));
    assert!(!stage.sum_of_squares().dense.is_finite());
}

/// Changes one call's messages on their way.
struct Tampering<F> {
    calls: usize,
    at: usize,
    change: F,
}

impl<F: FnMut(&mut Vec<Vec<u8>>)> Exchange for Tampering<F> {
    fn size(&self) -> usize {
        1
    }

    fn rank(&self) -> usize {
        0
    }

    fn all_to_all(&mut self, mut outgoing: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        self.calls += 1;
        if self.calls == self.at + 1 {
            (self.change)(&mut outgoing);
        }
        Ok(outgoing)
    }
}

/// Trains one microbatch with call `at` tampered with.
fn tampered(
    stage: &mut Stage,
    at: usize,
    change: impl FnMut(&mut Vec<Vec<u8>>),
) -> Result<(), Error> {
    let windows = windows(1, 6, 23, 1);
    let (tokens, scale) = (tokens(&windows), scale_of(&windows));
    let mut exchange = Tampering { calls: 0, at, change };
    stage.abandon();
    stage.forward(0, &tokens.batch(), None, &scale, &mut exchange)?;
    stage.backward_input(0, None, &mut exchange)?;
    stage.backward_weight(0)
}

/// Three routed layers, two legs in each direction.
const CALLS: usize = 12;

#[test]
fn messages_of_the_wrong_length_or_number_are_refused_on_every_leg() {
    for precision in Precision::ALL {
        let mut stage = whole(precision);
        for at in 0..CALLS {
            let mut check = |change: fn(&mut Vec<Vec<u8>>)| {
                let error = tampered(&mut stage, at, change).unwrap_err();
                assert!(matches!(error, Error::Malformed { .. }), "{error}");
            };
            check(|messages| {
                messages[0].pop().unwrap();
            });
            check(|messages| messages[0].push(0));
            check(|messages| messages[0].clear());
            check(|messages| messages[0].truncate(9));
            check(Vec::clear);
            check(|messages| messages.push(Vec::new()));
        }
    }
}

#[test]
fn no_changed_byte_makes_a_panic() {
    let fp32 = ScaleFormat::Fp32;
    let scales = Scales { weights: fp32, activations: fp32, gradients: fp32 };
    let scaled = StageOptions { scales, ..StageOptions::new(Precision::Fp8, 1) };
    let scaled = Stage::new(Cut::whole(small()), &scaled);
    for mut stage in Precision::ALL.map(whole).into_iter().chain([scaled]) {
        for seed in 0..150_usize {
            let result = tampered(&mut stage, seed % CALLS, |messages| {
                let length = messages[0].len();
                for i in 0..=seed % 3 {
                    let at = (seed * 7919 + i * 104_729) % length;
                    messages[0][at] ^= 1 << ((seed + i) % 8);
                }
            });
            if let Err(error) = result {
                assert!(matches!(error, Error::Malformed { .. }), "{error}");
            }
        }
    }
}

#[test]
fn slots_out_of_order_and_strange_neighbours_are_refused() {
    let windows = windows(1, 6, 23, 1);
    let (tokens, scale) = (tokens(&windows), scale_of(&windows));
    let mut stage = whole(Precision::F32);
    let order = "of microbatch 4: it did not go forward; check the schedule";
    let error = stage.backward_input(4, None, &mut Alone).unwrap_err().to_string();
    assert!(error.ends_with(order), "{error}");
    assert!(matches!(stage.backward_weight(0), Err(Error::Order { .. })));
    stage.forward(4, &tokens.batch(), None, &scale, &mut Alone).unwrap();
    let again = stage.forward(4, &tokens.batch(), None, &scale, &mut Alone);
    assert!(matches!(again, Err(Error::Order { .. })));

    let strange = Tensor::zeros(DType::F32, &[5, 24]);
    let error = stage.forward(5, &tokens.batch(), Some(strange), &scale, &mut Alone).unwrap_err();
    let want =
        "hidden states from the previous stage of microbatch 5: got F32 [5, 24], want nothing";
    assert_eq!(error.to_string(), want);
    let mut two = mesh(2);
    let error = stage.forward(5, &tokens.batch(), None, &scale, &mut two[1]).unwrap_err();
    assert!(matches!(error, Error::Group { got_size: 2, got_rank: 1, .. }), "{error}");

    let last = Cut { layers: 1..3, first: false, ..Cut::whole(small()) };
    let mut last = Stage::new(last, &StageOptions::new(Precision::F32, 1));
    assert!(matches!(last.logits(&[1]), Err(Error::NotWhole { first: 1, end: 3 })));
    assert!(matches!(last.all_logits(&tokens.batch()), Err(Error::NotWhole { .. })));
    for wrong in [
        None,
        Some(Tensor::zeros(DType::Bf16, &[5, 24])),
        Some(Tensor::zeros(DType::F32, &[4, 24])),
    ] {
        let error = last.forward(0, &tokens.batch(), wrong, &scale, &mut Alone).unwrap_err();
        assert!(matches!(error, Error::Neighbour { .. }), "{error}");
    }
}

#[test]
fn biases_of_other_layers_or_lengths_are_refused() {
    let mut stage = whole(Precision::F32);
    let names: Vec<String> = stage.biases().into_keys().collect();
    assert_eq!(names, [1, 2, 3].map(names::of_bias));
    assert!(matches!(stage.set_bias(&names[0], &[0.0; 5]), Err(Error::Bias { want: 6, .. })));
    assert!(matches!(
        stage.set_bias(&names::of_bias(0), &[0.0; 6]),
        Err(Error::Bias { want: 0, .. })
    ));
}
