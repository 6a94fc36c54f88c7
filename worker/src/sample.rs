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
    /// Tokens added to each prompt.
    pub tokens: usize,
    /// Divides the logits; lower is safer and duller. Above 0.
    pub temperature: f32,
    pub seed: u64,
}

/// Continues each prompt from the model in `checkpoint` (a `step-N` directory).
///
/// Returns the new bytes only. The context is cut to the last `max_position_embeddings` tokens.
pub fn generate(
    checkpoint: &Path,
    job: &Job,
    prompts: &[&[u8]],
    sampling: &Sampling,
) -> Result<Vec<Vec<u8>>, EngineError> {
    let cut = Cut::whole(job.model.clone());
    let mut stage = Stage::new(cut, &StageOptions::new(job.training.precision, job.training.seed));
    load_checkpoint(&mut stage, checkpoint)?;
    let mut random = Random::new(sampling.seed);
    let positions = job.model.max_position_embeddings as usize;
    let continue_one = |prompt: &&[u8]| -> Result<Vec<u8>, EngineError> {
        let mut tokens: Vec<u32> = prompt.iter().copied().map(u32::from).collect();
        for _ in 0..sampling.tokens {
            let context = &tokens[tokens.len().saturating_sub(positions)..];
            let logits = stage.logits(context)?;
            tokens.push(draw(&logits, sampling.temperature, &mut random));
        }
        Ok(tokens[prompt.len()..].iter().map(|token| *token as u8).collect())
    };
    prompts.iter().map(continue_one).collect()
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
}
