//! Decoding against the training pass, which computes the whole context again.

use shoal_kernels::compare::{Random, Tolerance, with_one_and_three_threads};
use shoal_plan::job::Precision;
use shoal_plan::model::{ModelConfig, RopeScaling};

use super::*;
use crate::Stage;
use crate::options::StageOptions;
use crate::whole_model::harness;

/// Two modules, and positions for long contexts.
fn small() -> ModelConfig {
    ModelConfig {
        num_attention_heads: 5,
        num_nextn_predict_layers: 2,
        max_position_embeddings: 300,
        ..harness::small()
    }
}

fn yarn() -> RopeScaling {
    let scaling = r#"{"type": "yarn", "factor": 8, "original_max_position_embeddings": 32,
        "mscale": 0.8, "mscale_all_dim": 1.0}"#;
    serde_json::from_str(scaling).unwrap()
}

fn configs() -> Vec<ModelConfig> {
    vec![
        small(),
        ModelConfig { q_lora_rank: None, n_shared_experts: 0, ..small() },
        ModelConfig { n_routed_experts: 0, num_nextn_predict_layers: 0, ..small() },
        ModelConfig { tie_word_embeddings: true, rope_scaling: Some(yarn()), ..small() },
    ]
}

/// A stage with router biases that change the choice, and a decoder of the same parameters.
fn both(config: &ModelConfig, precision: Precision) -> (Stage, Decoder) {
    let mut stage = Stage::new(Cut::whole(config.clone()), &StageOptions::new(precision, 7));
    let mut random = Random::new(11);
    let biases: Vec<String> = stage.biases().into_keys().collect();
    for name in biases {
        let bias = random.uniform(config.n_routed_experts as usize, -0.3, 0.3);
        stage.set_bias(&name, &bias).unwrap();
    }
    let decoder = decoder(&stage, precision);
    (stage, decoder)
}

fn decoder(stage: &Stage, precision: Precision) -> Decoder {
    let mut read = |name: &str, shape: &[usize]| {
        let biases = stage.biases();
        let values = match biases.get(name) {
            Some(bias) => bias.to_vec(),
            None => stage.parameters().master(name).to_vec(),
        };
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        Ok::<_, std::convert::Infallible>(values)
    };
    Decoder::load(&stage.cut().config, precision, Scales::default(), &mut read).unwrap()
}

fn text(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.below(23) as u32).collect()
}

/// Logits of the tokens after `tokens`, from an empty cache, fed in pieces of these lengths.
fn in_pieces(decoder: &Decoder, tokens: &[u32], pieces: &[usize]) -> Vec<f32> {
    let (mut cache, mut rest, mut hidden) = (decoder.cache(), tokens, Vec::new());
    for piece in pieces {
        let (now, later) = rest.split_at(*piece);
        hidden = decoder.advance(&mut [Step { cache: &mut cache, tokens: now }]).unwrap();
        rest = later;
    }
    assert!(rest.is_empty());
    decoder.logits(&hidden[hidden.len() - decoder.config.hidden_size as usize..])
}

#[test]
fn logits_are_those_of_the_whole_context_in_every_precision() {
    for config in configs() {
        for (precision, tolerance) in [
            (Precision::F32, Tolerance::F32.times(20.0)),
            // Each of some 30 roundings in a row is one of 2^-9, and logits are of order one.
            (Precision::Bf16, Tolerance { abs: 0.1, rel: 0.05 }),
            (Precision::Fp8, Tolerance { abs: 0.4, rel: 0.2 }),
        ] {
            let (stage, decoder) = both(&config, precision);
            // Two scores nearer than a rounding may be chosen between in two ways, and then another
            // expert answers: of rounded numbers, one text of eight may end in such a choice.
            let may_differ =
                usize::from(precision != Precision::F32 && 0 < config.n_routed_experts);
            let mut differ = Vec::new();
            for n in [1, 2, 9, 256, 257, 258, 259, 260] {
                let tokens = text(n, n as u64);
                let want = stage.logits(&tokens).unwrap();
                let got = in_pieces(&decoder, &tokens, &[n]);
                let is_close = |(got, want): (&f32, &f32)| {
                    (got - want).abs() <= tolerance.abs + tolerance.rel * want.abs()
                };
                assert_eq!(got.len(), want.len());
                if !got.iter().zip(&want).all(is_close) {
                    assert!(got.iter().all(|x| x.is_finite()), "{precision}, {n} tokens: {got:?}");
                    differ.push((n, got, want));
                }
            }
            assert!(differ.len() <= may_differ, "{precision}: {differ:?}");
        }
    }
}

#[test]
fn pieces_companions_and_threads_do_not_change_a_bit() {
    for precision in Precision::ALL {
        let (_, decoder) = both(&small(), precision);
        let tokens = text(40, 1);
        let want = in_pieces(&decoder, &tokens, &[40]);
        for pieces in [&[1; 40][..], &[17, 1, 2, 20], &[38, 2]] {
            assert_eq!(in_pieces(&decoder, &tokens, pieces), want, "{precision}, {pieces:?}");
        }
        let others: Vec<Vec<u32>> = (0..32).map(|i| text(30 + i % 5, i as u64)).collect();
        let together = || {
            let mut caches = vec![decoder.cache(); 33];
            let texts = std::iter::once(&tokens).chain(&others);
            let steps = caches.iter_mut().zip(texts);
            let mut steps: Vec<Step<'_>> =
                steps.map(|(cache, tokens)| Step { cache, tokens }).collect();
            let hidden = decoder.advance(&mut steps).unwrap();
            decoder.logits(&hidden[39 * 24..40 * 24])
        };
        let (one, three) = with_one_and_three_threads(together);
        assert_eq!((&one, &three), (&want, &want), "{precision}");
    }
}

#[test]
fn a_draft_that_was_wrong_leaves_nothing_behind() {
    let (_, decoder) = both(&small(), Precision::Bf16);
    let tokens = text(100, 2);
    let mut cache = decoder.cache();
    let feed =
        |cache: &mut Cache, tokens: &[u32]| decoder.advance(&mut [Step { cache, tokens }]).unwrap();
    feed(&mut cache, &tokens[..60]);
    feed(&mut cache, &[3, 4, 5, 6, 7]);
    cache.truncate(60);
    assert_eq!(cache.len(), 60);
    let hidden = feed(&mut cache, &tokens[60..]);
    let want = in_pieces(&decoder, &tokens, &[100]);
    assert_eq!(decoder.logits(&hidden[hidden.len() - 24..]), want);
    let latent = 10 + 4;
    assert_eq!(cache.bytes(), 3 * 128 * latent * 2, "BF16, no keys or values per head");
}

/// The modules' losses of the training pass, from the decoder's drafts.
#[test]
fn modules_predict_what_they_predict_in_training() {
    let config = small();
    let (mut stage, decoder) = both(&config, Precision::F32);
    let window = text(33, 3);
    let tokens = crate::BatchTokens::from_windows(&[&window]).unwrap();
    let scale = crate::LossScale { main: 1.0, mtp: 1.0, balance: 0.0 };
    stage.forward(0, &tokens.batch(), None, &scale, &mut crate::Alone).unwrap();
    let want = stage.take_losses();

    let mut cache = decoder.cache();
    let inputs = &window[..32];
    let mut hidden = decoder.advance(&mut [Step { cache: &mut cache, tokens: inputs }]).unwrap();
    let loss = |hidden: &[f32], depth: usize| -> f64 {
        let logits = decoder.logits(hidden);
        let targets = window[1 + depth..].iter();
        logits.chunks_exact(23).zip(targets).map(|(row, target)| surprise(row, *target)).sum()
    };
    let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-3, "{got}, want {want}");
    near(loss(&hidden, 0), want.main_sum);
    let mut sums = Vec::new();
    for depth in 1..=2 {
        let mut cache = decoder.module_cache();
        // In two pieces: a module has a cache, too.
        let (first, rest) = window[depth..32].split_at(10);
        let (h_first, h_rest) = hidden[..(32 - depth) * 24].split_at(240);
        let mut feed = |h: &[f32], tokens: &[u32]| {
            decoder.predict(depth, h, &mut [Step { cache: &mut cache, tokens }]).unwrap()
        };
        hidden = [feed(h_first, first), feed(h_rest, rest)].concat();
        sums.push(loss(&hidden, depth));
    }
    // Each module's sum is brought to the number of targets of the first.
    near(f64::midpoint(sums[0], sums[1] * 31.0 / 30.0), want.mtp_sum);
}

/// -ln p of a target.
fn surprise(logits: &[f32], target: u32) -> f64 {
    let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
    total.ln() - f64::from(logits[target as usize])
}

#[test]
fn what_does_not_fit_is_refused_and_the_cache_is_as_before() {
    let (_, decoder) = both(&small(), Precision::F32);
    let mut cache = decoder.cache();
    let mut feed = |tokens: &[u32]| {
        let ended = decoder.advance(&mut [Step { cache: &mut cache, tokens }]);
        (ended.map(|_| ()).map_err(|error| error.to_string()), cache.len())
    };
    let (ended, len) = feed(&[1, 2, 23]);
    assert!(ended.unwrap_err().contains("token 23 at position 2"));
    assert_eq!(len, 0);
    assert_eq!(feed(&text(300, 5)), (Ok(()), 300));
    let (ended, len) = feed(&[1]);
    assert!(ended.unwrap_err().contains("301 tokens, and the model takes 300"));
    assert_eq!(len, 300);
}
