//! `shoal data inspect`.

use std::path::Path;

use serde::Serialize;
use shoal_data::inspect::{ShownToken, documents, window};
use shoal_data::{Dataset, Part};

use super::tokenizer;
use crate::cli::{Inspect, Output};
use crate::exit::Stopped;
use crate::fetch;
use crate::progress::Reading;
use crate::show::json;
use crate::terminal::{data as print, harmless, heading};

/// A document, or a window of a run.
#[derive(Serialize)]
struct Shown {
    /// The file, or the part of the run's text.
    from: String,
    /// Counted from 0, in the file or the part.
    index: usize,
    tokens: Vec<ShownToken>,
}

pub(super) fn inspect(args: &Inspect) -> Result<(), Stopped> {
    let shown = match &args.run {
        Some(run) => of_run(args, &run.join("data"))?,
        None => of_files(args)?,
    };
    match args.output {
        Output::Json => print(&json(&shown)?),
        Output::Table => shown.iter().for_each(show),
    }
    Ok(())
}

/// The first documents, file by file.
fn of_files(args: &Inspect) -> Result<Vec<Shown>, Stopped> {
    let tokenizer = tokenizer(&args.tokenizer)?;
    let mut reading = Reading::start();
    let files = fetch::files(&args.files, &mut reading)?;
    drop(reading);
    let mut shown = Vec::new();
    for file in &files {
        let left = args.documents - shown.len();
        let found = documents(file, &args.field, &tokenizer, left, args.tokens)?;
        let from = file.display().to_string();
        let of_file = |(index, tokens)| Shown { from: from.clone(), index, tokens };
        shown.extend(found.into_iter().enumerate().map(of_file));
        if shown.len() >= args.documents {
            break;
        }
    }
    Ok(shown)
}

/// The first windows of every part of a run's text.
fn of_run(args: &Inspect, data: &Path) -> Result<Vec<Shown>, Stopped> {
    if !data.join(shoal_data::FILE_NAME).is_file() {
        let what = format!("{} has no text of a run: want a run directory", data.display());
        return Err(Stopped::Input(what));
    }
    let dataset = Dataset::open(data)?;
    let mut parts = Vec::new();
    for (at, source) in dataset.sources.iter().enumerate() {
        parts.push((format!("train {}", source.name), Part::Train(at), source.train_windows));
    }
    parts.push(("heldout".to_owned(), Part::Heldout, dataset.heldout_windows));
    for (name, set) in &dataset.eval_sets {
        parts.push((format!("evaluation {name}"), Part::Eval(name), set.windows));
    }
    let mut shown = Vec::new();
    for (from, part, windows) in parts {
        for index in 0..windows.min(args.documents as u64) {
            let mut tokens = window(data, part, index)?;
            tokens.truncate(args.tokens);
            shown.push(Shown { from: from.clone(), index: index as usize, tokens });
        }
    }
    Ok(shown)
}

fn show(shown: &Shown) {
    let Shown { from, index, tokens } = shown;
    heading(&format!("{}, {}: {} tokens", harmless(from.as_bytes()), index + 1, tokens.len()));
    print(&marked(tokens));
}

/// Tokens with a bar between them. Bytes run together: half of a character is no text.
fn marked(tokens: &[ShownToken]) -> String {
    let is_single = |token: &ShownToken| token.is_special || token.text.chars().count() <= 1;
    let between = if tokens.iter().all(is_single) { "" } else { "|" };
    let texts: Vec<String> = tokens.iter().map(|token| harmless(token.text.as_bytes())).collect();
    texts.join(between)
}
