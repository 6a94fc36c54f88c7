//! The voice as a whole: drafting changes no token at temperature 0, and no distribution above it.

use std::convert::Infallible;

use shoal_data::Tokenizer;
use shoal_kernels::compare::Random;
use shoal_model::{Cut, Decoder, Stage, StageOptions};
use shoal_plan::job::Precision;
use shoal_plan::model::ModelConfig;
use shoal_plan::numerics::Scales;

use crate::{Reason, Request, Sampling, Text, Voice};

/// A model of the first 16 bytes with random weights: few enough for drafts to be right by chance.
fn voice(modules: u32, precision: Precision, spread: f32) -> Voice {
    let config = ModelConfig {
        vocab_size: 16,
        hidden_size: 24,
        intermediate_size: 33,
        moe_intermediate_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        n_routed_experts: 6,
        num_experts_per_tok: 2,
        q_lora_rank: Some(12),
        kv_lora_rank: 10,
        qk_nope_head_dim: 6,
        qk_rope_head_dim: 4,
        v_head_dim: 5,
        num_nextn_predict_layers: modules,
        initializer_range: spread,
        max_position_embeddings: 600,
        n_group: 3,
        topk_group: 2,
        ..ModelConfig::tiny()
    };
    let stage = Stage::new(Cut::whole(config.clone()), &StageOptions::new(precision, 3));
    let mut read = |name: &str, shape: &[usize]| {
        let is_bias = stage.biases().contains_key(name);
        let master = || stage.parameters().master(name).to_vec();
        Ok::<_, Infallible>(if is_bias { vec![0.0; shape[0]] } else { master() })
    };
    let decoder = Decoder::load(&config, precision, Scales::default(), &mut read).unwrap();
    Voice::new(decoder, Tokenizer::bytes())
}

fn request(prompt: &[u32], tokens: usize, temperature: f32, seed: u64) -> Request {
    let sampling = Sampling { temperature, seed, ..Sampling::default() };
    Request { prompt: prompt.to_vec(), tokens, sampling, stop: Vec::new() }
}

fn prompt(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.below(16) as u32).collect()
}

fn finish(voice: &Voice, texts: &mut [Text]) {
    while texts.iter().any(|text| text.ended().is_none()) {
        voice.round(&mut texts.iter_mut().collect::<Vec<_>>()).unwrap();
    }
}

fn write(voice: &Voice, request: Request, speculate: bool) -> Text {
    let mut texts = [voice.begin(request, speculate).unwrap()];
    finish(voice, &mut texts);
    let [text] = texts;
    text
}

/// Drafts and how many were right, over some texts.
fn drafts_of(voice: &Voice, n: u64) -> (u64, u64) {
    let tallies =
        (0..n).map(|seed| write(voice, request(&prompt(5, seed), 30, 0.0, 1), true).tally());
    tallies.fold((0, 0), |(drafted, accepted), tally| {
        (drafted + tally.drafted, accepted + tally.accepted)
    })
}

#[test]
fn drafting_changes_no_token_at_temperature_zero() {
    for modules in 1..=3 {
        for precision in Precision::ALL {
            let voice = voice(modules, precision, 0.2);
            for seed in 0..12 {
                // Prompts of one token, and longer than a round takes up.
                let prompt = prompt([1, 7, 40, 300][seed as usize % 4], seed);
                let plain = write(&voice, request(&prompt, 60, 0.0, 1), false);
                let drafted = write(&voice, request(&prompt, 60, 0.0, 1), true);
                assert_eq!(
                    plain.new_tokens(),
                    drafted.new_tokens(),
                    "{modules}, {precision}, {seed}"
                );
                assert_eq!(plain.new_tokens().len(), 60);
                assert_eq!(plain.tally().drafted, 0);
                let tally = drafted.tally();
                assert!(0 < tally.drafted && tally.passes <= 60, "{tally:?}");
            }
            let (drafted, accepted) = drafts_of(&voice, 12);
            assert!(
                0 < accepted && accepted < drafted,
                "{accepted} of {drafted}: both ways are tested"
            );
        }
    }
}

#[test]
fn texts_do_not_feel_their_company() {
    let voice = voice(2, Precision::Bf16, 0.2);
    let of = |seed: u64| request(&prompt(1 + 37 * seed as usize, seed), 20 + seed as usize, 0.0, 1);
    let alone: Vec<Vec<u32>> =
        (0..9).map(|seed| write(&voice, of(seed), false).new_tokens().to_vec()).collect();
    let mut texts: Vec<Text> =
        (0..9).map(|seed| voice.begin(of(seed), seed % 2 == 0).unwrap()).collect();
    finish(&voice, &mut texts);
    for (text, alone) in texts.iter().zip(&alone) {
        assert_eq!(text.new_tokens(), alone);
    }
}

/// Pearson's statistic of two samples of equal size over all that occurs often enough, and the
/// degrees of freedom.
fn chi_square(a: &[u32], b: &[u32]) -> (f64, f64) {
    let often = a.iter().zip(b).filter(|(a, b)| 10 <= **a + **b);
    let (mut statistic, mut n) = (0.0, 0.0);
    for (a, b) in often {
        let (a, b) = (f64::from(*a), f64::from(*b));
        statistic += (a - b).powi(2) / (a + b);
        n += 1.0;
    }
    (statistic, n - 1.0)
}

#[test]
fn drafting_changes_no_distribution_above_temperature_zero() {
    let voice = voice(2, Precision::F32, 0.35);
    let count = |speculate: bool| {
        // The second to fourth token: the first is never drafted.
        let (mut counts, mut tally) = (vec![vec![0_u32; 16]; 3], (0, 0));
        for group in 0..40 {
            let begin = |i: u64| {
                let seed = 1 + group * 100 + i + if speculate { 1_000_000 } else { 0 };
                let mut request = request(&[5, 6, 7], 5, 0.8, seed);
                request.sampling.top_k = 8;
                voice.begin(request, speculate).unwrap()
            };
            let mut texts: Vec<Text> = (0..100).map(begin).collect();
            finish(&voice, &mut texts);
            for text in &texts {
                for (place, counts) in counts.iter_mut().enumerate() {
                    counts[text.new_tokens()[1 + place] as usize] += 1;
                }
                tally.0 += text.tally().drafted;
                tally.1 += text.tally().accepted;
            }
        }
        (counts, tally)
    };
    let (plain, _) = count(false);
    let (drafted, (n_drafted, n_accepted)) = count(true);
    assert!(0 < n_accepted && n_accepted < n_drafted, "{n_accepted} of {n_drafted}");
    for (plain, drafted) in plain.iter().zip(&drafted) {
        let (statistic, freedom) = chi_square(plain, drafted);
        // Mean `freedom`, variance 2 * freedom: five standard deviations.
        assert!(
            freedom > 3.0 && statistic < freedom + 5.0 * (2.0 * freedom).sqrt(),
            "{statistic} of {freedom}"
        );
    }
}

#[test]
fn a_text_ends_where_the_models_positions_do() {
    let voice = voice(2, Precision::F32, 0.2);
    for n in [590, 599, 600] {
        let prompt = prompt(n, 4);
        let plain = write(&voice, request(&prompt, 100, 0.0, 1), false);
        let drafted = write(&voice, request(&prompt, 100, 0.0, 1), true);
        assert_eq!(plain.ended(), Some(Reason::Length));
        assert_eq!(plain.new_tokens().len(), 601 - n, "the last token has no successor");
        assert_eq!(plain.new_tokens(), drafted.new_tokens());
    }
    let error = voice.begin(request(&prompt(601, 4), 1, 0.0, 1), true).unwrap_err().to_string();
    assert!(error.contains("601 tokens, and the model takes 600"), "{error}");
    assert!(
        voice.begin(request(&[], 1, 0.0, 1), true).is_err(),
        "bytes have no token to begin with"
    );
    assert_eq!(write(&voice, request(&[1], 0, 0.0, 1), true).ended(), Some(Reason::Length));
}

#[test]
fn a_stop_string_ends_the_text_with_and_without_drafts() {
    let voice = voice(1, Precision::F32, 0.2);
    let whole = write(&voice, request(&[3, 4], 40, 0.0, 1), false);
    let bytes: Vec<u8> = whole.new_tokens().iter().map(|token| *token as u8).collect();
    let Some(at) = bytes.windows(2).position(<[u8]>::is_ascii) else {
        panic!("the model writes two ASCII letters in a row: {bytes:?}")
    };
    let stop = String::from_utf8(bytes[at..at + 2].to_vec()).unwrap();
    let first = bytes.windows(2).position(|pair| pair == stop.as_bytes()).unwrap();
    for speculate in [false, true] {
        let asked = Request { stop: vec![stop.clone()], ..request(&[3, 4], 40, 0.0, 1) };
        let mut text = write(&voice, asked, speculate);
        assert_eq!(text.ended(), Some(Reason::Stop));
        assert_eq!(text.take_output(), String::from_utf8_lossy(&bytes[..first]));
    }
}
