//! What precision and scales change: the bytes that travel, and the first step's numbers by as much
//! as a dtype explains.

use shoal_plan::grid::Grid;
use shoal_plan::job::Precision;
use shoal_plan::model::ModelConfig;
use shoal_plan::numerics::ScaleFormat::{self, Fp32, Pow2};
use shoal_plan::numerics::Scales;

use super::harness::{Cluster, scale_of, small, tokens, train_whole, windows};
use crate::cut::Cut;
use crate::exchange::{Exchange, ExchangeError};
use crate::options::StageOptions;
use crate::stage::Stage;

/// BF16 has 8 bits of significand: a rounding is off by 2^-8 of the value at most, and in the root
/// mean square by some 2^-9.
const ROUNDING: f64 = 1.0 / 512.0;

/// Exchanges with itself and notes the length of every message.
struct Noting(Vec<usize>);

impl Exchange for Noting {
    fn size(&self) -> usize {
        1
    }

    fn rank(&self) -> usize {
        0
    }

    fn all_to_all(&mut self, outgoing: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        self.0.extend(outgoing.iter().map(Vec::len));
        Ok(outgoing)
    }
}

#[test]
fn rows_travel_in_their_precisions_dtype_on_every_leg() {
    let scales = |activations, gradients| Scales { weights: Fp32, activations, gradients };
    // Bytes of a row of 24 values: a token's, its gradient's, and what comes back for either.
    for (precision, scales, out, d_out, back) in [
        (Precision::Fp8, Scales::default(), 24 + 1, 24 + 1, 48),
        (Precision::Fp8, scales(Fp32, Pow2), 24 + 4, 24 + 1, 48),
        (Precision::Fp8, scales(Pow2, Fp32), 24 + 1, 24 + 4, 48),
        (Precision::Bf16, scales(Fp32, Fp32), 48, 48, 48),
        (Precision::F32, scales(Fp32, Fp32), 96, 96, 96),
    ] {
        let windows = windows(1, 6, 23, 1);
        let (tokens, scale) = (tokens(&windows), scale_of(&windows));
        let options = StageOptions { scales, ..StageOptions::new(precision, 1) };
        let mut stage = Stage::new(Cut::whole(small()), &options);
        let mut exchange = Noting(Vec::new());
        stage.forward(0, &tokens.batch(), None, &scale, &mut exchange).unwrap();
        stage.backward_input(0, None, &mut exchange).unwrap();

        // Five tokens, two experts each; three routed layers.
        let dispatch = 8 + 5 * out + 10 * 12;
        let (combine, gradient_dispatch, gradient_combine) =
            (5 * back, 5 * d_out, 5 * back + 10 * 4);
        let forward = [dispatch, combine].repeat(3);
        let backward = [gradient_dispatch, gradient_combine].repeat(3);
        assert_eq!(exchange.0, [forward, backward].concat(), "{precision}");
    }
}

/// Both first steps start from the same masters, so they differ by roundings alone. Some hundred of
/// them lie between a token and a gradient (a dozen in each of four layers, forward and backward),
/// independent of each other, so that a gradient is off by about ten of them; one parameter's alone,
/// which may be a small difference of large terms, by four times that. Measured over five sets of
/// windows: 3.0 to 3.7 for all parameters together, at most 11 for one; in fp8, 23 to 27. The loss
/// is a mean over 256 tokens, whose errors cancel: it must be off by less than one rounding.
///
/// Every token goes to every expert, because a choice that flips is no rounding.
#[test]
fn the_first_step_in_bf16_is_the_one_in_f32_but_for_roundings() {
    let all = ModelConfig { num_experts_per_tok: 6, n_group: 1, topk_group: 1, ..small() };
    let config = ModelConfig { initializer_range: 0.05, ..all };
    let windows = windows(8, 33, config.vocab_size, 100);
    let first_step = |precision| {
        let mut cluster = Cluster::new(&config, Grid::ONE, precision, 8);
        (cluster.gradients(&windows), cluster)
    };
    let (want_loss, exact) = first_step(Precision::F32);
    let (got_loss, rounded) = first_step(Precision::Bf16);
    let off = (got_loss - want_loss).abs();
    assert!(off < ROUNDING * want_loss, "loss {got_loss}, want {want_loss}");

    let (mut sum_of_errors, mut sum_of_squares) = (0.0, 0.0);
    for name in exact.columns[0][0].parameters().names() {
        let (got, want) = (rounded.gradient(name), exact.gradient(name));
        let error: f64 = got.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let square: f64 = want.iter().map(|g| f64::from(*g).powi(2)).sum();
        let roundings = (error / square).sqrt() / ROUNDING;
        assert!(roundings < 40.0, "gradient of {name} is off by {roundings} roundings");
        sum_of_errors += error;
        sum_of_squares += square;
    }
    let roundings = (sum_of_errors / sum_of_squares).sqrt() / ROUNDING;
    assert!(roundings < 10.0, "the gradient is off by {roundings} roundings");
    assert!(1.0 < roundings, "off by {roundings} roundings: was anything BF16?");
}

/// E4M3 has 4 bits of significand: a rounding is off by 2^-4 of the value at most. The gradient as a
/// whole, whose errors partly cancel, must be off by less than one, whatever the scales are.
/// Measured: 4.7 % with powers of two, 4.1 % with FP32 scales.
#[test]
fn the_first_step_in_fp8_is_near_the_one_in_f32_with_either_scales() {
    let all = ModelConfig { num_experts_per_tok: 6, n_group: 1, topk_group: 1, ..small() };
    let config = ModelConfig { initializer_range: 0.05, ..all };
    let windows = windows(8, 33, config.vocab_size, 100);
    let (tokens, scale) = (tokens(&windows), scale_of(&windows));
    let first_step = |options: &StageOptions| {
        let mut stage = Stage::new(Cut::whole(config.clone()), options);
        train_whole(&mut stage, &tokens.batch(), &scale).unwrap();
        stage
    };
    let exact = first_step(&StageOptions::new(Precision::F32, 11));
    let mut seen: Vec<u64> = Vec::new();
    for bits in 0..8 {
        let format = |bit: u32| -> ScaleFormat { if bits >> bit & 1 == 0 { Pow2 } else { Fp32 } };
        let scales = Scales { weights: format(0), activations: format(1), gradients: format(2) };
        let stage = first_step(&StageOptions { scales, ..StageOptions::new(Precision::Fp8, 11) });
        let (mut error, mut square) = (0.0, 0.0);
        for name in exact.parameters().names() {
            let (got, want) =
                (stage.parameters().gradient(name), exact.parameters().gradient(name));
            error += got.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            square += want.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
        }
        let off = (error / square).sqrt();
        assert!(off < 1.0 / 16.0, "{scales:?}: the gradient is off by {off}");
        assert!(!seen.contains(&off.to_bits()), "{scales:?} changes nothing");
        seen.push(off.to_bits());
    }
}
