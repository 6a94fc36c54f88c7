//! `shoal generate`: a text continued, streamed to standard output.

use std::io::{IsTerminal, Read, Write, stdin, stdout};

use serde::Serialize;
use shoal_infer::{Request, Sampling, Tally, Text, Voice};

use crate::cli::{self, Output};
use crate::clock::Stopwatch;
use crate::exit::Stopped;
use crate::show::json;
use crate::terminal::{data, harmless, note};
use crate::voice::{self, Interrupted};

/// A prompt is text for a model, not a file for a disk.
const PROMPT_BYTES_MAX: u64 = 16 << 20;

/// What `-o json` prints: the first text, and figures of all.
#[derive(Serialize)]
struct Report {
    text: String,
    finish_reason: Option<&'static str>,
    prompt_tokens: usize,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Serialize)]
struct Figures {
    texts: usize,
    tokens: u64,
    prefill_seconds: f64,
    decode_seconds: f64,
    /// After the first token of each text.
    tokens_per_second: f64,
    speculative: bool,
    /// Of the tokens drafted first.
    acceptance: Option<f64>,
    tokens_per_step: f64,
}

pub(crate) fn generate(args: &cli::Generate) -> Result<(), Stopped> {
    let prompt = prompt(args)?;
    let interrupted = Interrupted::listen()?;
    let voice = voice::open(&args.model)?;
    let speculate = voice::speculates(&voice, &args.model, args.speculate)?;
    let prompt = voice.tokenizer().encode(&prompt)?.tokens;
    let begin = |number: u64| {
        let seed = args.seed.wrapping_add(number);
        let (temperature, top_p, top_k) = (args.temperature, args.top_p, args.top_k);
        let request = Request {
            prompt: prompt.clone(),
            tokens: args.tokens,
            sampling: Sampling { temperature, top_p, top_k, seed },
            stop: args.stop.clone(),
        };
        voice.begin(request, speculate)
    };
    let mut texts = (0..u64::from(args.batch)).map(begin).collect::<Result<Vec<_>, _>>()?;
    let mut shown = Shown { stream: args.output == Output::Table, text: String::new() };
    let pool = voice::pool(args.model.threads)?;
    let seconds = pool.install(|| write(&voice, &mut texts, &mut shown, &interrupted))?;
    shown.end();
    let figures = figures(&texts, seconds, speculate);
    match args.output {
        Output::Table => note(&sentence(&figures)),
        Output::Json => {
            let report = Report {
                text: shown.text,
                finish_reason: texts[0].ended().map(shoal_infer::Reason::name),
                prompt_tokens: texts[0].prompt_tokens(),
                figures,
            };
            data(&json(&report)?);
        }
    }
    match interrupted.signal() {
        Some(signal) => Err(Stopped::Signal(signal)),
        None => Ok(()),
    }
}

fn prompt(args: &cli::Generate) -> Result<Vec<u8>, Stopped> {
    let Some(file) = &args.file else {
        return Ok(args.prompt.clone().unwrap_or_default().into_bytes());
    };
    let bad = |what: String| Stopped::Input(format!("the prompt in {}: {what}", file.display()));
    let mut bytes = Vec::new();
    let read = if file.as_os_str() == "-" {
        stdin().lock().take(PROMPT_BYTES_MAX + 1).read_to_end(&mut bytes)
    } else {
        let file = std::fs::File::open(file);
        file.and_then(|file| file.take(PROMPT_BYTES_MAX + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| bad(error.to_string()))?;
    if PROMPT_BYTES_MAX < bytes.len() as u64 {
        return Err(bad(format!("more than {PROMPT_BYTES_MAX} bytes; name a shorter one")));
    }
    Ok(bytes)
}

/// Writes all texts to their ends, or until somebody interrupts or nobody reads. Returns the seconds
/// until every text had its first token, and those after.
fn write(
    voice: &Voice,
    texts: &mut [Text],
    shown: &mut Shown,
    interrupted: &Interrupted,
) -> Result<(f64, f64), Stopped> {
    let watch = Stopwatch::start();
    let mut first = None;
    while texts.iter().any(|text| text.ended().is_none()) && interrupted.signal().is_none() {
        voice.round(&mut texts.iter_mut().collect::<Vec<_>>())?;
        if first.is_none() && texts.iter().all(|text| 0 < text.tally().passes) {
            first = Some(watch.seconds());
        }
        if !shown.more(&texts[0].take_output()) {
            break;
        }
    }
    let (all, first) = (watch.seconds(), first.unwrap_or_else(|| watch.seconds()));
    Ok((first, all - first))
}

/// The first text, on its way to the reader.
struct Shown {
    stream: bool,
    text: String,
}

impl Shown {
    /// Whether somebody still reads.
    fn more(&mut self, piece: &str) -> bool {
        self.text += piece;
        if !self.stream || piece.is_empty() {
            return true;
        }
        let mut out = stdout().lock();
        // A terminal obeys control characters; a file and a pipe get the text as it is.
        let written = if out.is_terminal() {
            out.write_all(harmless(piece.as_bytes()).as_bytes())
        } else {
            out.write_all(piece.as_bytes())
        };
        written.and_then(|()| out.flush()).is_ok()
    }

    fn end(&self) {
        if self.stream && stdout().is_terminal() {
            data("");
        }
    }
}

fn figures(texts: &[Text], (prefill, decode): (f64, f64), speculative: bool) -> Figures {
    let sum = |of: fn(Tally) -> u64| texts.iter().map(|text| of(text.tally())).sum::<u64>();
    let (tokens, passes) = (sum(|tally| tally.tokens), sum(|tally| tally.passes));
    let (drafted, accepted) = (sum(|tally| tally.drafted), sum(|tally| tally.accepted));
    let after_first = tokens.saturating_sub(texts.len() as u64) as f64;
    Figures {
        texts: texts.len(),
        tokens,
        prefill_seconds: prefill,
        decode_seconds: decode,
        tokens_per_second: if 0.0 < decode { after_first / decode } else { 0.0 },
        speculative,
        acceptance: (0 < drafted).then(|| accepted as f64 / drafted as f64),
        tokens_per_step: tokens as f64 / passes.max(1) as f64,
    }
}

fn sentence(figures: &Figures) -> String {
    let Figures { tokens, prefill_seconds, decode_seconds, tokens_per_second, .. } = figures;
    let text = format!(
        "\n{tokens} tokens: the first after {prefill_seconds:.2} s, the others in {decode_seconds:.2} s, \
         {tokens_per_second:.1} tokens/s"
    );
    let Some(acceptance) = figures.acceptance else { return text };
    let (acceptance, steps) = (acceptance * 100.0, figures.tokens_per_step);
    format!("{text}; {acceptance:.1} % of drafts accepted, {steps:.2} tokens a step")
}
