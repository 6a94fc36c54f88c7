//! The verbs `import` and `export`: a model from one directory to another, checked on the way.

use std::path::Path;

use serde::Serialize;
use shoal_plan::arithmetic;
use shoal_plan::model::ModelConfig;
use shoal_weights::{Copied, Copying, Form, Target, Weights};

use crate::cli::{Export, ExportDtype, Import, ImportDtype, Output, Writing};
use crate::exit::Stopped;
use crate::progress::{Reading, short};
use crate::show::{json, table};
use crate::terminal::{data as print, note};

const MEGABYTE: u64 = 1_000_000;

/// What was written, for programs.
#[derive(Serialize)]
struct Summary<'a> {
    output: String,
    tensors: u64,
    elements: u64,
    bytes: u64,
    files: &'a [String],
    dtype: &'static str,
    parameters: Parameters,
    num_nextn_predict_layers: u32,
    tokenizer: bool,
    eos_token_id: Option<u32>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct Parameters {
    total: u64,
    /// At work on each token.
    active: u64,
}

pub(crate) fn import(args: &Import) -> Result<(), Stopped> {
    let target = match args.dtype {
        None => Target::Keep,
        Some(ImportDtype::Bf16) => Target::All(Form::Bf16),
        Some(ImportDtype::F32) => Target::All(Form::F32),
    };
    copy(&Weights::open(&args.model)?, target, &args.output, &args.writing)
}

pub(crate) fn export(args: &Export) -> Result<(), Stopped> {
    let to = &args.exporting;
    let form = match to.dtype {
        ExportDtype::Bf16 => Form::Bf16,
        ExportDtype::F32 => Form::F32,
        ExportDtype::Fp8 => Form::Fp8,
    };
    let mut weights = Weights::open(&args.model)?;
    if to.average {
        weights = weights.averaged()?;
    }
    copy(&weights, Target::All(form), &to.output, &to.writing)
}

fn copy(weights: &Weights, target: Target, out: &Path, args: &Writing) -> Result<(), Stopped> {
    let shard_bytes = args.shard_size * MEGABYTE;
    let copying = Copying { weights, target, shard_bytes, force: args.force };
    copying.refuse_existing(out)?;
    let notes = weights.all_notes()?;
    for text in &notes {
        note(&format!("note: {text}"));
    }
    let mut reading = Reading::start();
    let task = format!("writing {}", out.display());
    let copied = copying.write(out, &mut |done, all| reading.bytes(&task, done, Some(all)))?;
    drop(reading);
    let summary = summary(weights.config(), out, &copied, &notes);
    match args.show {
        Output::Table => print(shown(&summary).trim_end()),
        Output::Json => print(&json(&summary)?),
    }
    note(&format!("to train on from here, write in a manifest: training.init: {}", out.display()));
    Ok(())
}

fn summary<'a>(
    model: &ModelConfig,
    out: &Path,
    copied: &'a Copied,
    notes: &'a [String],
) -> Summary<'a> {
    let parameters = arithmetic::parameters(model);
    Summary {
        output: out.display().to_string(),
        tensors: copied.tensors,
        elements: copied.elements,
        bytes: copied.bytes,
        files: &copied.files,
        dtype: match copied.form {
            Form::Bf16 => "bf16",
            Form::F32 => "f32",
            Form::Fp8 => "fp8",
        },
        parameters: Parameters { total: parameters.total, active: parameters.active },
        num_nextn_predict_layers: model.num_nextn_predict_layers,
        tokenizer: copied.has_tokenizer,
        eos_token_id: copied.eos,
        notes,
    }
}

fn shown(summary: &Summary<'_>) -> String {
    let count = |n: u64| short(n as f64).replace('G', "B");
    let row = |name: &str, text: String| vec![name.to_owned(), text];
    let tokenizer = match (summary.tokenizer, summary.eos_token_id) {
        (false, _) => "none".to_owned(),
        (true, None) => "tokenizer.json, no end token".to_owned(),
        (true, Some(eos)) => format!("tokenizer.json, end token {eos}"),
    };
    table(&[
        row("model", summary.output.clone()),
        row(
            "parameters",
            format!(
                "{}, {} at work on each token",
                count(summary.parameters.total),
                count(summary.parameters.active)
            ),
        ),
        row("tensors", format!("{} with {} elements", summary.tensors, summary.elements)),
        row(
            "weights",
            format!(
                "{}, {}B in {}",
                summary.dtype,
                short(summary.bytes as f64),
                match summary.files.len() {
                    1 => "1 file".to_owned(),
                    n => format!("{n} files"),
                },
            ),
        ),
        row("MTP modules", summary.num_nextn_predict_layers.to_string()),
        row("tokenizer", tokenizer),
    ])
}
