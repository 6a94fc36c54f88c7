//! `shoal data stats`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use shoal_data::inspect::{self, Counted, epochs};
use shoal_data::{EVAL_FIELD, Settings, Tokenizer, tokenizer_for};

use super::{SEQUENCE, tokenizer};
use crate::cli::{self, Output};
use crate::exit::Stopped;
use crate::fetch;
use crate::manifest::{self, Loaded};
use crate::progress::{Reading, short};
use crate::show::{json, table};
use crate::terminal::data as print;
use crate::tokenise;

/// Figures about all text, by name.
#[derive(Serialize)]
struct Report {
    /// Tokens of a window.
    sequence: u32,
    sources: BTreeMap<String, Row>,
    evaluation_sets: BTreeMap<String, Row>,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    stats: inspect::Stats,
    /// How often the run of a manifest sees it, near enough: the held-out share is taken off.
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<f64>,
}

pub(super) fn stats(args: &cli::Stats) -> Result<(), Stopped> {
    let report = match args.files.as_slice() {
        [file] if is_manifest(file) => of_manifest(args, file)?,
        files => of_files(args, files)?,
    };
    match args.output {
        Output::Json => print(&json(&report)?),
        Output::Table => print(&shown(&report)),
    }
    Ok(())
}

fn is_manifest(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn of_files(args: &cli::Stats, files: &[String]) -> Result<Report, Stopped> {
    if !args.overrides.is_empty() {
        return Err(Stopped::Input("--set is for a manifest; these are files".to_owned()));
    }
    let tokenizer = tokenizer(args.tokenizer.as_deref().unwrap_or("bytes"))?;
    let mut reading = Reading::start();
    let files = fetch::files(files, &mut reading)?;
    let field = args.field.as_deref().unwrap_or("text");
    let (tokenizer, bytes_max) = (&tokenizer, u64::MAX);
    let counted = Counted { files: &files, field, tokenizer, sequence: SEQUENCE, bytes_max };
    let row = Row { stats: count("files", &counted, &mut reading)?, epochs: None };
    let sources = BTreeMap::from([("files".to_owned(), row)]);
    Ok(Report { sequence: SEQUENCE, sources, evaluation_sets: BTreeMap::new() })
}

fn of_manifest(args: &cli::Stats, file: &str) -> Result<Report, Stopped> {
    if args.tokenizer.is_some() || args.field.is_some() {
        let what = "--tokenizer and --field are for files; change the manifest's with --set";
        return Err(Stopped::Input(what.to_owned()));
    }
    let file = PathBuf::from(file);
    let loaded =
        manifest::read(&cli::Manifest { file, overrides: args.overrides.clone(), text: None })?;
    let mut reading = Reading::start();
    let settings = tokenise::settings(&loaded, fetch::texts(&loaded, &mut reading)?)?;
    let tokenizer = tokenizer_for(&settings, &mut |at| reading.show(at))?;
    let sources = count_sources(&loaded, &settings, &tokenizer, &mut reading)?;
    let mut evaluation_sets = BTreeMap::new();
    let (sequence, tokenizer, bytes_max) = (settings.sequence, &tokenizer, u64::MAX);
    for (name, files) in &settings.eval_sets {
        let counted = Counted { files, field: EVAL_FIELD, tokenizer, sequence, bytes_max };
        let row = Row { stats: count(name, &counted, &mut reading)?, epochs: None };
        evaluation_sets.insert(name.clone(), row);
    }
    Ok(Report { sequence, sources, evaluation_sets })
}

fn count_sources(
    loaded: &Loaded,
    settings: &Settings,
    tokenizer: &Tokenizer,
    reading: &mut Reading,
) -> Result<BTreeMap<String, Row>, Stopped> {
    let mut found = Vec::new();
    for (at, source) in settings.sources.iter().enumerate() {
        let (files, field, sequence) = (&source.files, &source.field, settings.sequence);
        let bytes_max = settings.bytes_max_of(at);
        let counted = Counted { files, field, tokenizer, sequence, bytes_max };
        found.push(count(&source.name, &counted, reading)?);
    }
    let trained = 1.0 - f64::from(settings.heldout_fraction);
    let windows = |stats: &inspect::Stats| (stats.windows as f64 * trained).round() as u64;
    let weights = settings.sources.iter().zip(&found);
    let shares: Vec<_> = weights.map(|(source, stats)| (source.weight, windows(stats))).collect();
    let training = &loaded.job().training;
    let seen = epochs(&shares, training.sequences_before(training.steps + 1));
    let rows = settings.sources.iter().zip(found).zip(seen);
    let row = |((source, stats), epochs): ((&shoal_data::Source, _), _)| {
        (source.name.clone(), Row { stats, epochs: Some(epochs) })
    };
    Ok(rows.map(row).collect())
}

fn count(
    name: &str,
    counted: &Counted<'_>,
    reading: &mut Reading,
) -> Result<inspect::Stats, Stopped> {
    let task = format!("counting {name}");
    Ok(inspect::stats(counted, &mut |done, all| reading.bytes(&task, done, Some(all)))?)
}

fn shown(report: &Report) -> String {
    let header = [
        "text",
        "files",
        "documents",
        "copies",
        "bytes",
        "tokens",
        "bytes/token",
        "median",
        "longest",
        "windows",
        "epochs",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let row = |name: String, row: &Row| {
        let Row { stats, epochs } = row;
        let counts = [stats.files as u64, stats.documents, stats.duplicates];
        let mut cells = vec![name];
        cells.extend(counts.map(|count| count.to_string()));
        cells.extend([stats.bytes, stats.tokens].map(|count| short(count as f64)));
        cells.push(format!("{:.2}", stats.bytes_per_token));
        let lengths = [stats.median, stats.longest, stats.windows];
        cells.extend(lengths.map(|count| count.to_string()));
        cells.push(epochs.map_or_else(|| "-".to_owned(), |epochs| format!("{epochs:.2}")));
        cells
    };
    rows.extend(report.sources.iter().map(|(name, figures)| row(name.clone(), figures)));
    let sets = report.evaluation_sets.iter();
    rows.extend(sets.map(|(name, figures)| row(format!("evaluation {name}"), figures)));
    let all = report.sources.values().chain(report.evaluation_sets.values());
    let replaced: u64 = all.map(|row| row.stats.replaced_documents).sum();
    let mut text = table(&rows);
    if replaced > 0 {
        let what = "documents are not UTF-8 and partly replaced by U+FFFD";
        let _ = writeln!(text, "  {replaced} {what}");
    }
    text + &format!("  median and longest in tokens; windows of {} tokens", report.sequence)
}
