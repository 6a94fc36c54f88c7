//! Two pieces of text by the model itself: its last checkpoint, loaded again in this process.

use anyhow::Context;
use shoal_data::{Part, TokenShards, Tokenizer};
use shoal_infer::{Options, Request, Sampling, Text, Voice};
use shoal_plan::job::Job;

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
    let (precision, scales) = (job.training.precision, job.training.scales);
    let options = Options { precision, scales, tokenizer: None };
    let voice = Voice::open(&run_dir.checkpoint(step), &options).context("loading the model")?;
    let begin = |prompt: &Vec<u32>| {
        let seed = job.training.seed;
        let sampling = Sampling { temperature: TEMPERATURE, seed, ..Sampling::default() };
        let (tokens, stop) = (lengths.sample, Vec::new());
        voice.begin(Request { prompt: prompt.clone(), tokens, sampling, stop }, true)
    };
    let mut texts: Vec<Text> = prompts.iter().map(begin).collect::<Result<_, _>>()?;
    while texts.iter().any(|text| text.ended().is_none()) {
        voice.round(&mut texts.iter_mut().collect::<Vec<_>>()).context("writing samples")?;
    }
    let text = |tokens: &[u32]| harmless(&tokenizer.decode(tokens));
    let samples = prompts.iter().zip(&texts);
    let sample = |(prompt, new): (&Vec<u32>, &Text)| Sample {
        prompt: text(prompt),
        text: text(new.new_tokens()),
    };
    Ok(samples.map(sample).collect())
}
