//! The network against Hugging Face `transformers`: the same weights, tokens, logits, losses and
//! gradients, for every directory of `tests/golden` (written by its `make.py`).
//!
//! `cargo test -p shoal-weights --test parity -- --nocapture` shows the largest differences.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use shoal_model::{Alone, Batch, BatchTokens, Cut, LossScale, Stage, StageOptions};
use shoal_plan::job::Precision;
use shoal_plan::model::{ModelConfig, RopeScaling};
use shoal_weights::Weights;

/// As `VERSION` and `MTP_WEIGHT` in make.py.
const VERSION: &str = "1";
const MTP_WEIGHT: f32 = 0.3;

/// Each with its layers, those of MTP modules included.
const CASES: [(&str, u32); 7] = [
    ("groups", 3),
    ("wide", 2),
    ("yarn", 2),
    ("yarn_magnitudes", 2),
    ("tied", 2),
    ("mtp", 3),
    ("mtp_two", 3),
];

/// What one side computes of a case.
struct Results {
    /// [B (T + 1), V]: after every token, also the last, which has no target.
    logits: Vec<f32>,
    /// Mean over the main head's targets.
    loss: f64,
    /// Mean over the modules of their means; 0 without one.
    mtp_loss: f64,
    /// By name on disk.
    gradients: BTreeMap<String, Vec<f32>>,
}

/// Differences of a case.
struct Distance {
    logits: f64,
    /// Of the two losses, the larger.
    loss: f64,
    /// Of the tensor that is farthest off.
    gradient: f64,
    name: String,
    /// Over all tensors.
    gradient_mean: f64,
}

/// Room for a case.
#[derive(Debug)]
struct Room {
    logits: f64,
    loss: f64,
    gradient: f64,
    gradient_mean: f64,
}

fn directory(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(case)
}

/// What `transformers` said, and the tokens it said it about, [B][T + 1].
fn golden(case: &str) -> (Results, Vec<Vec<u32>>) {
    let bytes = fs::read(directory(case).join("golden.safetensors")).expect("the case is there");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("make.py writes safetensors");
    let metadata = header.metadata().as_ref().expect("make.py writes its version");
    assert_eq!(metadata["version"], VERSION, "{case}: written by another make.py");
    assert_eq!(metadata["mtp_weight"], MTP_WEIGHT.to_string());
    let file = SafeTensors::deserialize(&bytes).expect("make.py writes safetensors");
    let ids = file.tensor("input_ids").expect("make.py writes the tokens");
    assert_eq!(ids.dtype(), Dtype::I64);
    let (ids_of, _) = ids.data().as_chunks::<8>();
    let ids_of: Vec<u32> = ids_of.iter().map(|id| i64::from_le_bytes(*id) as u32).collect();
    let values = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).expect("the name is the file's");
        assert_eq!(tensor.dtype(), Dtype::F32, "{case}: {name}");
        let (values, _) = tensor.data().as_chunks::<4>();
        values.iter().map(|value| f32::from_le_bytes(*value)).collect()
    };
    let gradients = file
        .names()
        .into_iter()
        .filter_map(|name| Some((name.strip_prefix("gradient.")?.to_owned(), values(name))));
    let mtp = file.tensor("mtp_losses").map_or(Vec::new(), |_| values("mtp_losses"));
    let results = Results {
        logits: values("logits"),
        loss: values("loss")[0].into(),
        mtp_loss: mtp.iter().map(|loss| f64::from(*loss)).sum::<f64>() / mtp.len().max(1) as f64,
        gradients: gradients.collect(),
    };
    (results, ids_of.chunks(ids.shape()[1]).map(<[u32]>::to_vec).collect())
}

/// Another reading of a configuration.
type Change = fn(&mut ModelConfig);

/// The model of a case, with a configuration that may be changed first.
fn stage(case: &str, precision: Precision, change: Change) -> Stage {
    let weights = Weights::open(&directory(case)).expect("an ordinary Hugging Face directory");
    let mut config = weights.config().clone();
    change(&mut config);
    let mut stage = Stage::new(Cut::whole(config), &StageOptions::new(precision, 1));
    weights.fill(&mut stage).expect("every tensor is there");
    stage
}

fn logits(stage: &Stage, windows: &[Vec<u32>]) -> Vec<f32> {
    let all = windows.concat();
    let batch = Batch { sequences: windows.len(), inputs: &all, targets: &all };
    stage.all_logits(&batch).expect("the whole model")
}

/// What we say about the same tokens.
fn ours(case: &str, windows: &[Vec<u32>], precision: Precision) -> Results {
    let mut stage = stage(case, precision, |_| {});
    let logits = logits(&stage, windows);
    let with_mtp = stage.cut().config.num_nextn_predict_layers > 0;
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let tokens = BatchTokens::from_windows(&windows).expect("windows of one length");
    let targets = tokens.batch().n_targets() as f32;
    let mtp_targets = targets - windows.len() as f32;
    let mtp = if with_mtp { MTP_WEIGHT / mtp_targets } else { 0.0 };
    let scale = LossScale { main: 1.0 / targets, mtp, balance: 0.0 };
    stage.forward(0, &tokens.batch(), None, &scale, &mut Alone).expect("forward");
    stage.backward_input(0, None, &mut Alone).expect("the input half");
    stage.backward_weight(0).expect("the weight half");
    let losses = stage.take_losses();
    let parameters = stage.parameters();
    let gradient = |name: &str| (name.to_owned(), parameters.gradient(name).to_vec());
    Results {
        logits,
        loss: losses.main_sum / f64::from(targets),
        mtp_loss: losses.mtp_sum / f64::from(mtp_targets),
        gradients: parameters.names().map(gradient).collect(),
    }
}

/// The largest difference relative to the largest wanted value. Not finite counts as infinite.
fn by_largest(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let off = got.iter().zip(want).map(|(a, b)| f64::from((a - b).abs()));
    let off = off.fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
    off / f64::from(want.iter().fold(1e-30_f32, |a, b| a.max(b.abs())))
}

/// The norm of the difference relative to the norm of what is wanted.
fn by_norm(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f32| f64::from(x).powi(2);
    let off: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
    let size: f64 = want.iter().map(|x| square(*x)).sum();
    let ratio = (off / size.max(1e-60)).sqrt();
    if ratio.is_nan() { f64::INFINITY } else { ratio }
}

/// Holds a case against `transformers` and shows the result as a row of a table.
#[expect(clippy::print_stdout, reason = "the table of docs/deepseek.md is made of these rows")]
fn distance(case: &str, precision: Precision, of: fn(&[f32], &[f32]) -> f64) -> Distance {
    let (want, windows) = golden(case);
    let got = ours(case, &windows, precision);
    let names = |results: &Results| results.gradients.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&got), names(&want), "{case}: other parameters");
    let pairs = want.gradients.iter().map(|(name, want)| (of(&got.gradients[name], want), name));
    let pairs: Vec<(f64, &String)> = pairs.collect();
    let gradient_mean = pairs.iter().map(|(off, _)| off).sum::<f64>() / pairs.len() as f64;
    let (gradient, name) =
        pairs.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).expect("it has parameters");
    let relative = |got: f64, want: f64| (got - want).abs() / want.max(1e-9);
    let losses = [relative(got.loss, want.loss), relative(got.mtp_loss, want.mtp_loss)];
    let loss =
        if losses.iter().any(|x| x.is_nan()) { f64::INFINITY } else { losses[0].max(losses[1]) };
    let logits = of(&got.logits, &want.logits);
    let figures = format!("{logits:.1e} | {loss:.1e} | {gradient:.1e} | {gradient_mean:.1e}");
    println!("| {case} | {precision} | {figures} | `{name}` |");
    Distance { logits, loss, gradient, name: name.clone(), gradient_mean }
}

fn assert_within(case: &str, off: &Distance, room: &Room) {
    let Distance { logits, loss, gradient, name, gradient_mean } = off;
    assert!(*logits <= room.logits, "{case}: logits are off by {logits}, {room:?}");
    assert!(*loss <= room.loss, "{case}: a loss is off by {loss}, {room:?}");
    assert!(
        *gradient <= room.gradient,
        "{case}: gradient of {name} is off by {gradient}, {room:?}"
    );
    let mean = *gradient_mean;
    assert!(mean <= room.gradient_mean, "{case}: gradients are off by {mean} on average, {room:?}");
}

/// Two orders of the same FP32 sums: some hundred roundings of 2^-24, 6e-8, in what is relative to the
/// largest value of a tensor; ten times more in gradients, whose terms cancel.
#[test]
fn logits_losses_and_every_gradient_are_those_of_transformers() {
    for (case, _) in CASES {
        let off = distance(case, Precision::F32, by_largest);
        let room = Room { logits: 1e-5, loss: 1e-5, gradient: 1e-4, gradient_mean: 1e-5 };
        assert_within(case, &off, &room);
    }
}

/// The room of a dtype, relative to the norms of tensors.
///
/// A number rounded to s bits of significand is off by up to 2^-s of its power of two, by 2^-s / sqrt(3)
/// on average (root mean square), which is 0.74 of that relative to the number itself (numbers spread
/// evenly over a power of two in their logarithm: the mean of 1 / m^2 over m from 1 to 2 is 0.54). Errors of n
/// roundings in a row are independent, so they add up to sqrt(n) of it; a product sums terms whose errors are
/// independent as well, so its relative error is that of one term. Logits stand behind `roundings` for each
/// layer; a gradient behind those of forward, of backward, and of the operand it is multiplied with: three
/// times as many. A loss is a mean over forty targets of differences of two logits, which are about as large
/// as it is. The mean over tensors may be twice what is expected; the rest, and so the one tensor that is
/// farthest off, such as that of an expert with few tokens, three times.
fn room(bits: i32, roundings: u32, layers: u32) -> Room {
    let one = 2_f64.powi(-bits) / 3_f64.sqrt() * 0.74;
    let n = f64::from(roundings * layers);
    let (logits, gradient) = (one * n.sqrt(), one * (3.0 * n).sqrt());
    let (logits, loss) = (3.0 * logits, 3.0 * logits / 40_f64.sqrt());
    Room { logits, loss, gradient: 3.0 * gradient, gradient_mean: 2.0 * gradient }
}

/// Weights are BF16 in the file. What is rounded in a layer, in a row: norm, two latents, a norm and a
/// projection of each, values, attention, the stream after it; norm, gate, product, output, the stream.
/// Where attention multiplies pairs of BF16, also its weights, and on the way back the gradients of its scores.
#[test]
fn bf16_is_as_far_from_it_as_its_roundings() {
    for (case, layers) in CASES {
        assert_within(case, &distance(case, Precision::Bf16, by_norm), &room(8, 14, layers));
    }
}

/// Seven products in a row (both projections of the two paths of attention and its output; gate, up and
/// down), each of two operands in E4M3, 4 bits. Some tokens go to other experts for it, which is within
/// the room.
#[test]
fn fp8_is_as_far_from_it_as_its_roundings() {
    for (case, layers) in CASES {
        assert_within(case, &distance(case, Precision::Fp8, by_norm), &room(4, 14, layers));
    }
}

/// What each case is there for shows in its logits: another reading of the configuration is far outside
/// of what `logits_losses_and_every_gradient_are_those_of_transformers` lets pass.
#[test]
fn every_case_notices_what_it_is_there_for() {
    let changes: [(&str, Change); 10] = [
        ("groups", |model| model.topk_group = 4),
        ("wide", |model| model.rms_norm_eps = 1e-6),
        ("wide", |model| model.routed_scaling_factor = 2.5),
        ("wide", |model| model.rope_theta = 10_000.0),
        ("yarn", |model| model.rope_scaling = None),
        ("yarn", |model| scaling(model).mscale_all_dim = None),
        ("yarn_magnitudes", |model| scaling(model).mscale = None),
        ("yarn_magnitudes", |model| scaling(model).beta_slow = 1.0),
        ("tied", |model| model.norm_topk_prob = true),
        ("mtp_two", |model| model.rope_scaling = None),
    ];
    for (at, (case, change)) in changes.into_iter().enumerate() {
        let (want, windows) = golden(case);
        let off = by_largest(&logits(&stage(case, Precision::F32, change), &windows), &want.logits);
        assert!(off > 1e-3, "change {at} of {case} shows by {off} only");
    }
    for case in ["groups", "yarn", "tied", "mtp"] {
        let (want, windows) = golden(case);
        let mut stage = stage(case, Precision::F32, |_| {});
        let biases: Vec<(String, usize)> =
            stage.biases().into_iter().map(|(name, bias)| (name, bias.len())).collect();
        for (name, experts) in biases {
            stage.set_bias(&name, &vec![0.0; experts]).expect("as many experts as before");
        }
        let off = by_largest(&logits(&stage, &windows), &want.logits);
        assert!(off > 1e-3, "{case}: biases show by {off} only");
    }
}

fn scaling(model: &mut ModelConfig) -> &mut RopeScaling {
    model.rope_scaling.as_mut().expect("the case scales positions")
}
