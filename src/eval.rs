//! The `eval` verb: a model on disk held against text or token ids.

use serde::Serialize;
use shoal_data::{Tokenizer, inspect};
use shoal_eval::{EvalError, Examples, Found, Measured, Output as Tensors, Wanted};
use shoal_plan::job::Precision;
use shoal_weights::Weights;

use crate::cli::{self, Output};
use crate::clock::Stopwatch;
use crate::data::tokenizer;
use crate::exit::Stopped;
use crate::fetch;
use crate::progress::{Reading, short};
use crate::show::{json, table};
use crate::terminal::{data as print, note};

/// Tokens of a window unless the model has fewer positions: attention's time grows with them.
const SEQUENCE_MAX: u32 = 1024;

/// What came out.
#[derive(Serialize)]
struct Report {
    model: String,
    precision: String,
    sequences: usize,
    /// Of a sequence.
    sequence: usize,
    /// Targets that count.
    tokens: u64,
    /// Of text behind them, where the tokenizer is known.
    bytes: Option<u64>,
    /// Nats per token.
    loss: f64,
    perplexity: f64,
    bits_per_byte: Option<f64>,
    mtp_loss: Option<f64>,
    tokens_per_second: f64,
}

pub(crate) fn eval(args: &cli::Eval) -> Result<(), Stopped> {
    for path in [&args.logits, &args.gradients].into_iter().flatten() {
        shoal_eval::check(path, args.force)?;
    }
    if args.logits.is_some() && args.logits == args.gradients {
        return Err(Stopped::Input("--logits and --gradients name the same file".to_owned()));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    shoal_eval::use_threads(args.threads.map_or(cores, |threads| threads as usize));
    let weights = Weights::open(&args.model)?;
    weights.notes().iter().for_each(|text| note(text));
    let mut reading = Reading::start();
    let (examples, tokenizer) = examples(args, &weights, &mut reading)?;
    let precision: Precision = args.precision.into();
    let (gradients, logits) = (args.gradients.is_some(), args.logits.is_some());
    let wanted = Wanted { precision, mtp: args.mtp, gradients, logits };
    let mut model = Measured::open(&weights, wanted)?;
    let watch = Stopwatch::start();
    let found =
        model.measure(&examples, &mut |done, all| reading.tokens("evaluating", done, all))?;
    let seconds = watch.seconds();
    drop(reading);
    write(args, &model, &examples, &found)?;
    let tokenizer = tokenizer.as_ref();
    let bytes = tokenizer.map(|tokenizer| {
        examples.targets().map(|token| u64::from(tokenizer.token_bytes(token))).sum::<u64>()
    });
    let bytes = bytes.filter(|bytes| *bytes > 0);
    let nats = found.loss * found.targets as f64;
    tell(
        args.output,
        &Report {
            model: weights.directory().display().to_string(),
            precision: precision.to_string(),
            sequences: examples.sequences,
            sequence: examples.tokens,
            tokens: found.targets,
            bytes,
            loss: found.loss,
            perplexity: found.loss.exp(),
            bits_per_byte: bytes.map(|bytes| nats / bytes as f64 / std::f64::consts::LN_2),
            mtp_loss: found.mtp_loss,
            tokens_per_second: found.targets as f64 / seconds.max(1e-6),
        },
    )
}

/// What the model is held against, and the tokenizer, if it is known.
fn examples(
    args: &cli::Eval,
    weights: &Weights,
    reading: &mut Reading,
) -> Result<(Examples, Option<Tokenizer>), Stopped> {
    let model = weights.config();
    let named =
        args.tokenizer.as_deref().map(|choice| named(choice, model.vocab_size)).transpose()?;
    if let Some(path) = &args.tokens {
        // Only the bytes of the tokens hang on it.
        let beside = || Tokenizer::beside(weights.directory(), model.vocab_size).ok();
        return Ok((Examples::read(path, model)?, named.or_else(beside)));
    }
    let tokenizer = match named {
        Some(tokenizer) => tokenizer,
        None => Tokenizer::beside(weights.directory(), model.vocab_size)?,
    };
    let positions = model.max_position_embeddings;
    let sequence = args.sequence.unwrap_or(positions.min(SEQUENCE_MAX));
    if sequence > positions {
        let what = format!("--sequence {sequence}, but the model has {positions} positions");
        return Err(Stopped::Input(what));
    }
    let files = fetch::files(&args.files, reading)?;
    let mut told = |done, all| reading.bytes("tokenising", done, Some(all));
    let mut tokens = inspect::tokens(&files, &args.field, &tokenizer, &mut told)?;
    tokens.truncate(args.tokens_max.map_or(usize::MAX, |max| max as usize));
    Ok((Examples::windows(&tokens, sequence as usize)?, Some(tokenizer)))
}

/// A tokenizer by its name, for a model.
fn named(choice: &str, vocab_size: u32) -> Result<Tokenizer, Stopped> {
    let found = tokenizer(choice)?;
    Ok(found.usual(vocab_size)?)
}

fn write(
    args: &cli::Eval,
    model: &Measured,
    examples: &Examples,
    found: &Found,
) -> Result<(), Stopped> {
    if let (Some(path), Some(values)) = (&args.logits, &found.logits) {
        let shape = [examples.sequences, examples.tokens, model.vocabulary()];
        Tensors::write(path, &[Tensors { name: "logits", shape: &shape, values }])?;
    }
    if let Some(path) = &args.gradients {
        let gradients = model.gradients();
        let tensors = gradients.map(|(name, shape, values)| Tensors { name, shape, values });
        Tensors::write(path, &tensors.collect::<Vec<_>>())?;
    }
    Ok(())
}

fn tell(output: Output, report: &Report) -> Result<(), Stopped> {
    match output {
        Output::Json => print(&json(report)?),
        Output::Table => print(&shown(report)),
    }
    Ok(())
}

fn shown(report: &Report) -> String {
    let mut rows = vec![
        ("model", format!("{}, in {}", report.model, report.precision)),
        (
            "text",
            format!(
                "{} tokens, {} sequences of {}",
                report.tokens, report.sequences, report.sequence
            ),
        ),
        ("loss", format!("{:.6} nats per token", report.loss)),
        ("perplexity", format!("{:.4}", report.perplexity)),
    ];
    if let (Some(bits), Some(bytes)) = (report.bits_per_byte, report.bytes) {
        rows.push(("bits per byte", format!("{bits:.4}, of {bytes} bytes")));
    }
    if let Some(loss) = report.mtp_loss {
        rows.push(("MTP loss", format!("{loss:.6} nats per token")));
    }
    rows.push(("speed", format!("{} tokens/s", short(report.tokens_per_second))));
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    table(&rows).trim_end().to_owned()
}

impl From<EvalError> for Stopped {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Input { .. } | EvalError::Wanted(_) => Self::Input(error.to_string()),
            EvalError::Weights(error) => error.into(),
            EvalError::NotFinite { .. } | EvalError::Model(_) => Self::Failed(error.into()),
        }
    }
}
