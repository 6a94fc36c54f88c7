//! Two pieces of text by the model itself: its last checkpoint, loaded again in this process.

use anyhow::Context;
use shoal_data::{Part, TokenShards};
use shoal_plan::job::Job;
use shoal_worker::sample::{Sampling, generate};

use crate::run_dir::RunDir;
use crate::terminal::harmless;

/// Bytes of held-out text the model is asked to continue.
const PROMPT_BYTES: usize = 48;

/// Bytes it writes.
const SAMPLE_BYTES: usize = 160;

/// A little below 1: fewer slips, still lively.
const TEMPERATURE: f32 = 0.7;

/// A prompt and what the model made of it, both harmless to print.
pub(crate) struct Sample {
    pub prompt: String,
    pub text: String,
}

/// Continues the starts of two pieces of held-out text.
pub(crate) fn draw(run_dir: &RunDir, job: &Job, step: u64) -> anyhow::Result<Vec<Sample>> {
    let heldout =
        TokenShards::open(&run_dir.data(), Part::Heldout).context("opening the held-out text")?;
    let windows = heldout.windows(job.training.sequence);
    let mut starts = vec![0, windows / 2];
    starts.dedup();
    let prompt = |window: u64| -> Vec<u8> {
        let tokens = heldout.window(window, job.training.sequence);
        tokens.iter().take(PROMPT_BYTES).map(|token| *token as u8).collect()
    };
    let prompts: Vec<Vec<u8>> = starts.into_iter().map(prompt).collect();
    let borrowed: Vec<&[u8]> = prompts.iter().map(Vec::as_slice).collect();
    let sampling =
        Sampling { tokens: SAMPLE_BYTES, temperature: TEMPERATURE, seed: job.training.seed };
    let texts = generate(&run_dir.checkpoint(step), job, &borrowed, &sampling)
        .context("writing samples")?;
    let samples = prompts.iter().zip(&texts);
    Ok(samples
        .map(|(prompt, text)| Sample { prompt: harmless(prompt), text: harmless(text) })
        .collect())
}
