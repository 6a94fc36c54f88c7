//! What is compared.

use std::sync::Arc;

use shoal_kernels::adamw::AdamStep;
use shoal_kernels::compare::Random;
use shoal_kernels::cuda::Device;
use shoal_model::cuda::{Gpu, Kernels};
use shoal_model::{
    Alone, BatchTokens, Cut, Error, Evaluated, LossScale, Losses, Stage, StageOptions, Update,
};
use shoal_plan::job::{Precision, Recompute};
use shoal_plan::model::ModelConfig;

use super::{need, shards};

type Case = (&'static str, fn(&Device));

pub(crate) const ALL: [Case; 16] = [
    ("a step in bf16", |device| some_steps(device, &small(), Precision::Bf16, 1)),
    ("two steps in fp8", |device| some_steps(device, &small(), Precision::Fp8, 2)),
    ("sizes that are no round numbers, bf16", |device| {
        some_steps(device, &odd(), Precision::Bf16, 1);
    }),
    ("sizes that are no round numbers, fp8", |device| {
        some_steps(device, &odd(), Precision::Fp8, 1);
    }),
    ("queries of full rank and tied embeddings", |device| {
        some_steps(device, &plain(), Precision::Fp8, 1);
    }),
    ("both halves at once, and evaluation", halves_and_evaluation),
    ("computed again in fp8: the same bits", |device| computed_again(device, Precision::Fp8)),
    ("computed again in bf16: the same bits", |device| computed_again(device, Precision::Bf16)),
    ("a shard on the GPU beside one on the CPU", shards::mixed_group),
    ("two shards on the GPU in fp8", shards::on_the_gpu),
    ("memory: nothing strange that a peer sends gets there", shards::strange_messages),
    ("a NaN is named", a_nan_is_named),
    ("memory: the same in every step, and too little of it", memory),
    ("memory: as much as was planned", need::planned),
    ("memory: no byte more than is needed", need::no_byte_too_much),
    ("memory: the host gets once what has not changed", need::fetched_once),
];

/// Rows of whole tiles and of parts, a dense layer and one of experts, a low-rank query, a module. As little as has all
/// that: the stand-in executes every instruction.
pub(crate) fn small() -> ModelConfig {
    ModelConfig {
        vocab_size: 41,
        hidden_size: 136,
        intermediate_size: 144,
        moe_intermediate_size: 128,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        n_routed_experts: 4,
        num_experts_per_tok: 2,
        n_group: 2,
        topk_group: 2,
        q_lora_rank: Some(16),
        kv_lora_rank: 24,
        qk_nope_head_dim: 16,
        qk_rope_head_dim: 8,
        v_head_dim: 24,
        num_nextn_predict_layers: 1,
        ..ModelConfig::tiny()
    }
}

/// No row is a multiple of 16 bytes.
fn odd() -> ModelConfig {
    ModelConfig {
        vocab_size: 23,
        hidden_size: 26,
        intermediate_size: 33,
        moe_intermediate_size: 13,
        q_lora_rank: Some(11),
        kv_lora_rank: 9,
        qk_nope_head_dim: 6,
        qk_rope_head_dim: 4,
        v_head_dim: 5,
        num_nextn_predict_layers: 2,
        ..small()
    }
}

fn plain() -> ModelConfig {
    ModelConfig {
        q_lora_rank: None,
        tie_word_embeddings: true,
        num_nextn_predict_layers: 0,
        n_shared_experts: 0,
        ..small()
    }
}

/// Two sequences that look like noise but are always the same.
pub(crate) fn tokens(config: &ModelConfig, seed: u64) -> BatchTokens {
    let mut random = Random::new(seed);
    let mut window = || -> Vec<u32> {
        (0..18).map(|_| random.below(u64::from(config.vocab_size)) as u32).collect()
    };
    let windows = [window(), window()];
    BatchTokens::from_windows(&windows.each_ref().map(Vec::as_slice)).unwrap()
}

/// Enough for any case: the stand-in's time grows with what is allocated.
pub(crate) const ARENA: usize = 18 << 20;

pub(crate) const SCALE: LossScale = LossScale { main: 1.0 / 68.0, mtp: 0.3 / 64.0, balance: 0.01 };

pub(crate) fn update(step: u64) -> Update {
    let adam = AdamStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step,
        grad_scale: 0.5,
    };
    Update { adam, bias_speed: 0.001 }
}

pub(crate) fn options(precision: Precision) -> StageOptions {
    StageOptions { ema_decay: 0.9, ..StageOptions::new(precision, 7) }
}

pub(crate) fn gpu(device: &Device, bytes: usize) -> Gpu {
    let kernels = Arc::new(Kernels::load(device).unwrap());
    Gpu::new(device, &kernels, ("a cell's memory", bytes)).unwrap()
}

fn whole(config: &ModelConfig, precision: Precision) -> Stage {
    Stage::new(Cut::whole(config.clone()), &options(precision))
}

/// Both passes over two microbatches.
fn passes(stage: &mut Stage, config: &ModelConfig) -> Losses {
    for microbatch in 0..2 {
        let tokens = tokens(config, 5 + u64::from(microbatch));
        stage.forward(microbatch, &tokens.batch(), None, &SCALE, &mut Alone).unwrap();
    }
    for microbatch in 0..2 {
        stage.backward_input(microbatch, None, &mut Alone).unwrap();
    }
    for microbatch in 0..2 {
        stage.backward_weight(microbatch).unwrap();
    }
    stage.settle().unwrap();
    stage.take_losses()
}

/// How far two vectors are apart, relative to the second.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let sum = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let apart = sum(&mut got.iter().zip(want).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (apart / sum(&mut want.iter().map(|x| f64::from(*x))).max(1e-30)).sqrt()
}

/// As far from FP32 as the CPU is, or as a rounding of BF16, and so at most twice that from the CPU.
pub(crate) fn assert_near(what: &str, got: &[f32], (want, exact): (&[f32], &[f32])) {
    let (apart, noise) = (distance(got, want), distance(want, exact));
    assert!(
        apart <= 2.0 * noise.max(1.0 / 256.0),
        "{what}: {apart:.2e} from the CPU's, which is {noise:.2e} from FP32's"
    );
}

fn assert_losses(got: Losses, want: Losses, exact: Losses) {
    for (what, got, want, exact) in [
        ("main loss", got.main_sum, want.main_sum, exact.main_sum),
        ("loss of the modules", got.mtp_sum, want.mtp_sum, exact.mtp_sum),
        ("balance loss", got.balance_sum, want.balance_sum, exact.balance_sum),
    ] {
        // Losses are means of many rounded numbers: 2^-8 of one is far more than the mean may move.
        let room = (want - exact).abs().max(want.abs() / 1024.0);
        assert!((got - want).abs() <= room, "{what}: {got}, want {want} within {room:.2e}");
    }
}

/// Losses, counts, gradients, parameters and their average.
fn some_steps(device: &Device, config: &ModelConfig, precision: Precision, steps: u64) {
    let mut cpu = whole(config, precision);
    let mut exact = whole(config, Precision::F32);
    let mut there = whole(config, precision);
    there.move_to(gpu(device, ARENA)).unwrap();
    for step in 1..=steps {
        let (want, precise) = (passes(&mut cpu, config), passes(&mut exact, config));
        let got = passes(&mut there, config);
        assert_losses(got, want, precise);
        assert_eq!(there.first_nonfinite(), None);
        let names: Vec<String> = cpu.parameters().names().map(str::to_owned).collect();
        for name in &names {
            let of = |stage: &Stage| stage.parameters().gradient(name).to_vec();
            let what = format!("step {step}, gradient of {name}");
            assert_near(&what, &of(&there), (&of(&cpu), &of(&exact)));
        }
        if step == 1 {
            // From the same state: a token on the edge between two experts must not decide the test.
            assert_eq!(there.counts_mut(), cpu.counts_mut());
        }
        for stage in [&mut cpu, &mut exact, &mut there] {
            stage.update(&update(step)).unwrap();
        }
        there.fetch().unwrap();
        // A step of AdamW moves a number by the learning rate, whichever sign a gradient near zero has: two that were
        // moved apart are twice that apart. How near the gradients are was held above.
        let most = 2.0 * update(step).adam.lr * step as f32 * 1.01;
        for name in &names {
            let masters = |stage: &Stage| stage.parameters().master(name).to_vec();
            let averages = |stage: &Stage| stage.parameters().average(name).unwrap().to_vec();
            for (got, want, from) in [
                (masters(&there), masters(&cpu), masters(&exact)),
                (averages(&there), averages(&cpu), averages(&exact)),
            ] {
                let near = |(got, want): (&f32, &f32)| (got - want).abs() <= most;
                assert!(got.iter().zip(&want).all(near), "step {step}, {name}");
                let (apart, noise) = (distance(&got, &want), distance(&want, &from));
                assert!(apart <= 2.0 * noise.max(0.05), "step {step}, {name}: {apart:.2e} apart");
            }
        }
    }
}

fn halves_and_evaluation(device: &Device) {
    let config = small();
    let mut apart = whole(&config, Precision::Fp8);
    let mut at_once = whole(&config, Precision::Fp8);
    apart.move_to(gpu(device, ARENA)).unwrap();
    at_once.move_to(gpu(device, ARENA)).unwrap();
    let losses = passes(&mut apart, &config);
    for microbatch in 0..2 {
        let tokens = tokens(&config, 5 + u64::from(microbatch));
        at_once.forward(microbatch, &tokens.batch(), None, &SCALE, &mut Alone).unwrap();
        let again = at_once.forward(microbatch, &tokens.batch(), None, &SCALE, &mut Alone);
        assert!(matches!(again, Err(Error::Order { .. })), "{again:?}");
    }
    for microbatch in 0..2 {
        at_once.backward(microbatch, None, &mut Alone).unwrap();
        let again = at_once.backward_weight(microbatch);
        assert!(matches!(again, Err(Error::Order { .. })), "{again:?}");
    }
    at_once.settle().unwrap();
    assert_eq!(at_once.take_losses(), losses);
    for name in apart.parameters().names() {
        let (a, b) = (apart.parameters().gradient(name), at_once.parameters().gradient(name));
        assert_eq!(a, b, "{name}: the halves give the same bits");
    }
    let batch = tokens(&config, 9);
    let loss = |stage: &Stage| match stage.evaluate(&batch.batch(), None, &mut Alone).unwrap() {
        Evaluated::Loss { loss_sum, targets } => (loss_sum, targets),
        Evaluated::Hidden(_) => panic!("the last stage gives a loss"),
    };
    let ((got, targets), (want, as_many)) = (loss(&apart), loss(&whole(&config, Precision::Fp8)));
    assert_eq!(targets, as_many);
    assert!((got - want).abs() <= want / 1024.0, "{got}, want {want}");
}

/// What backward computes again instead of keeping it changes no bit.
fn computed_again(device: &Device, precision: Precision) {
    let config = small();
    let after = |recompute| {
        let options = StageOptions { recompute, ..options(precision) };
        let mut stage = Stage::new(Cut::whole(config.clone()), &options);
        stage.move_to(gpu(device, ARENA)).unwrap();
        let losses = passes(&mut stage, &config);
        (losses, stage)
    };
    let (losses, kept) = after(Recompute::None);
    let (again, computed) = after(Recompute::All);
    assert_eq!(again, losses);
    for name in kept.parameters().names() {
        let (a, b) = (kept.parameters().gradient(name), computed.parameters().gradient(name));
        assert_eq!(a, b, "{name}: the same bits");
    }
}

fn a_nan_is_named(device: &Device) {
    let config = small();
    let name = "model.layers.1.self_attn.o_proj.weight";
    let found = |on: Option<Gpu>| {
        let mut stage = whole(&config, Precision::Bf16);
        stage.parameters_mut().master_mut(name)[5] = f32::NAN;
        stage.parameters_mut().prepare();
        if let Some(gpu) = on {
            stage.move_to(gpu).unwrap();
        }
        let batch = tokens(&config, 5);
        stage.forward(0, &batch.batch(), None, &SCALE, &mut Alone).unwrap();
        stage.settle().unwrap();
        let found = stage.first_nonfinite();
        stage.abandon();
        assert_eq!(stage.first_nonfinite(), None, "an abandoned step leaves nothing behind");
        found
    };
    let there = found(Some(gpu(device, ARENA)));
    assert_eq!(there, found(None));
    assert!(there.is_some());
}

fn memory(device: &Device) {
    let config = small();
    let mut stage = whole(&config, Precision::Fp8);
    stage.move_to(gpu(device, ARENA)).unwrap();
    let mut seen = Vec::new();
    for step in 1..=2 {
        passes(&mut stage, &config);
        let at_the_end = stage.gpu().unwrap().usage();
        stage.update(&update(step)).unwrap();
        seen.push((at_the_end.used, stage.gpu().unwrap().usage().used));
    }
    assert_eq!(seen[0], seen[1], "bytes in use after the passes and after the update");

    let usage = stage.gpu().unwrap().usage();
    let mut cramped = whole(&config, Precision::Fp8);
    // Parameters fit, a microbatch does not.
    cramped.move_to(gpu(device, usage.used + (16 << 10))).unwrap();
    let batch = tokens(&config, 5);
    let error = cramped.forward(0, &batch.batch(), None, &SCALE, &mut Alone).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("out of memory on the GPU") && text.contains("wants"), "{text}");
    let mut reference = whole(&config, Precision::F32);
    let error = reference.move_to(gpu(device, 1 << 20)).unwrap_err();
    assert!(error.to_string().contains("f32 runs on the CPU alone"), "{error}");
}
