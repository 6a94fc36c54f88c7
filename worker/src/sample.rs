//! Text from a checkpoint: the whole model in one process, one token at a time.
//!
//! Every token runs the whole context again; a cache of keys and values comes with the decoder.

use std::path::Path;

use shoal_kernels::compare::Random;
use shoal_model::{Cut, Stage, StageOptions};
use shoal_plan::job::Job;

use crate::engine::{EngineError, load_checkpoint};

/// What to write and how.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Tokens added to each prompt, at most.
    pub tokens: usize,
    /// Only ids below this are drawn: a model may have more than its tokenizer. Not zero.
    pub vocabulary: u32,
    /// Ends a text early.
    pub end_token: Option<u32>,
    /// Divides the logits; lower is safer and duller. Above 0.
    pub temperature: f32,
    pub seed: u64,
}

/// Continues each prompt from the model in `checkpoint` (a `step-N` directory).
///
/// Returns the new tokens only, without the end token. The context is cut to the last `max_position_embeddings` tokens.
pub fn generate(
    checkpoint: &Path,
    job: &Job,
    prompts: &[Vec<u32>],
    sampling: &Sampling,
) -> Result<Vec<Vec<u32>>, EngineError> {
    let cut = Cut::whole(job.model.clone());
    let mut stage = Stage::new(cut, &StageOptions::from(&job.training));
    load_checkpoint(&mut stage, checkpoint)?;
    let mut random = Random::new(sampling.seed);
    let positions = job.model.max_position_embeddings as usize;
    let mut logits = |context: &[u32]| Ok(stage.logits(context)?);
    let write = |prompt: &Vec<u32>| write(prompt, positions, sampling, &mut random, &mut logits);
    prompts.iter().map(write).collect()
}

/// The network: a context to the logits of the token after it.
type Logits<'a> = &'a mut dyn FnMut(&[u32]) -> Result<Vec<f32>, EngineError>;

/// What `logits` of the last `positions` tokens, at most, make of a prompt.
fn write(
    prompt: &[u32],
    positions: usize,
    sampling: &Sampling,
    random: &mut Random,
    logits: Logits<'_>,
) -> Result<Vec<u32>, EngineError> {
    let mut tokens = prompt.to_vec();
    for _ in 0..sampling.tokens {
        let logits = logits(&tokens[tokens.len().saturating_sub(positions)..])?;
        let known = &logits[..logits.len().min(sampling.vocabulary as usize)];
        let token = draw(known, sampling.temperature, random);
        if Some(token) == sampling.end_token {
            break;
        }
        tokens.push(token);
    }
    Ok(tokens.split_off(prompt.len()))
}

/// Draws an index with probability softmax(`logits` / `temperature`).
fn draw(logits: &[f32], temperature: f32, random: &mut Random) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: &f32| f64::from((logit - largest) / temperature).exp();
    let total: f64 = logits.iter().map(weight).sum();
    let mut left = total * f64::from(random.uniform(1, 0.0, 1.0)[0]);
    for (index, logit) in logits.iter().enumerate() {
        left -= weight(logit);
        if left < 0.0 {
            return index as u32;
        }
    }
    logits.len() as u32 - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_probabilities_and_cold_ones_take_the_largest() {
        let logits = [0.0, (3.0_f32).ln(), f32::NEG_INFINITY];
        let mut random = Random::new(1);
        let ones = (0..4000).filter(|_| draw(&logits, 1.0, &mut random) == 1).count();
        // 3000 expected, standard deviation 27: five of them on each side.
        assert!((2860..3140).contains(&ones), "{ones}");
        assert!((0..100).all(|_| draw(&logits, 0.01, &mut random) == 1));
    }

    #[test]
    fn a_text_ends_at_the_end_token_and_has_no_token_beyond_the_tokenizer() {
        let sampling =
            Sampling { tokens: 5, vocabulary: 4, end_token: Some(3), temperature: 0.01, seed: 1 };
        let mut random = Random::new(1);
        // Token n + 1 follows token n; 5 is beyond the vocabulary and always the likeliest.
        let mut contexts = Vec::new();
        let mut next = |context: &[u32]| {
            contexts.push(context.to_vec());
            let mut logits = vec![0.0, 0.0, 0.0, 0.0, 0.0, 9.0];
            logits[*context.last().unwrap() as usize + 1] = 5.0;
            Ok(logits)
        };
        let text = write(&[0, 0, 0], 2, &sampling, &mut random, &mut next).unwrap();
        assert_eq!(text, [1, 2]);
        assert_eq!(contexts, [[0, 0], [0, 1], [1, 2]]);
        let endless = Sampling { end_token: None, tokens: 2, ..sampling };
        let text = write(&[0], 2, &endless, &mut random, &mut |_| Ok(vec![0.0, 9.0])).unwrap();
        assert_eq!(text, [1, 1]);
    }
}
