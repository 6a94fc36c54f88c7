//! Two pieces of text by the model itself: its last checkpoint, loaded again in this process.

use anyhow::Context;
use shoal_data::{Part, TokenShards, Tokenizer};
use shoal_plan::job::Job;
use shoal_worker::sample::{Sampling, generate};

use crate::run_dir::RunDir;
use crate::terminal::harmless;

/// How long prompts and samples are, in tokens.
struct Lengths {
    /// Of held-out text that the model is asked to continue.
    prompt: usize,
    /// That it writes, at most.
    sample: usize,
}

const OF_BYTES: Lengths = Lengths { prompt: 48, sample: 160 };

/// A token of a tokenizer is three or four bytes of most texts.
const OF_TOKENIZERS: Lengths = Lengths { prompt: 16, sample: 56 };

/// A little below 1: fewer slips, still lively.
const TEMPERATURE: f32 = 0.7;

/// A prompt and what the model made of it, both harmless to print.
pub(crate) struct Sample {
    pub prompt: String,
    pub text: String,
}

/// Continues the starts of two pieces of held-out text.
pub(crate) fn draw(run_dir: &RunDir, job: &Job, step: u64) -> anyhow::Result<Vec<Sample>> {
    let data = run_dir.data();
    let tokenizer = Tokenizer::open(&data).context("opening the tokenizer")?;
    let heldout = TokenShards::open(&data, Part::Heldout).context("opening the held-out text")?;
    let lengths = if tokenizer.is_bytes() { OF_BYTES } else { OF_TOKENIZERS };
    let windows = heldout.windows(job.training.sequence);
    let mut starts = vec![0, windows / 2];
    starts.dedup();
    let prompt = |window: u64| -> Vec<u32> {
        let mut tokens = heldout.window(window, job.training.sequence);
        tokens.truncate(lengths.prompt);
        tokens
    };
    let prompts: Vec<Vec<u32>> = starts.into_iter().map(prompt).collect();
    let sampling = Sampling {
        tokens: lengths.sample,
        vocabulary: tokenizer.n_tokens(),
        end_token: tokenizer.end_token(),
        temperature: TEMPERATURE,
        seed: job.training.seed,
    };
    let texts =
        generate(&run_dir.checkpoint(step), job, &prompts, &sampling).context("writing samples")?;
    let text = |tokens: &[u32]| harmless(&tokenizer.decode(tokens));
    let samples = prompts.iter().zip(&texts);
    Ok(samples.map(|(prompt, new)| Sample { prompt: text(prompt), text: text(new) }).collect())
}
