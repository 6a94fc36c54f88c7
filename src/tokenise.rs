//! From the manifest's text to token shards in the run directory, once.

use std::path::{Path, PathBuf};

use shoal_data::{DataError, Dataset, Settings, Source};
use shoal_plan::job::{EndToken, Job, TokenizerChoice};

use crate::exit::Stopped;
use crate::manifest::Loaded;
use crate::progress::{Reading, short};
use crate::run_dir::RunDir;
use crate::terminal::note;

/// Turns the text into token shards, or finds that an earlier launch did.
pub(crate) fn tokenise(run_dir: &RunDir, loaded: &Loaded) -> Result<Dataset, Stopped> {
    let settings = settings(loaded);
    let reading = Reading::start();
    let mut show = |at: shoal_data::Progress<'_>| reading.show(at.done, at.all);
    let prepared = shoal_data::prepare(&settings, &run_dir.data(), &mut show);
    drop(reading);
    let dataset = prepared.map_err(|error| data_error(loaded, error))?;
    note(&told(&dataset));
    Ok(dataset)
}

fn settings(loaded: &Loaded) -> Settings {
    let job = loaded.job();
    let source = |(source, files): (&shoal_plan::job::DataSource, &Vec<PathBuf>)| Source {
        name: source.name.clone(),
        files: files.clone(),
        weight: source.weight,
        field: source.field.clone(),
    };
    Settings {
        sources: job.data.sources.iter().zip(&loaded.files).map(source).collect(),
        tokenizer: tokenizer(job, &loaded.directory),
        vocab_size: job.model.vocab_size,
        end_token: match &job.data.end_token {
            EndToken::Auto => shoal_data::EndToken::Auto,
            EndToken::None => shoal_data::EndToken::None,
            EndToken::Token(token) => shoal_data::EndToken::Token(token.clone()),
        },
        bytes_max: job.data.bytes_max,
        heldout_fraction: job.data.heldout_fraction,
        sequence: job.training.sequence,
        windows_min_train: job.training.batch.into(),
        windows_min_heldout: 1,
        eval_sets: loaded.evaluation_files.clone(),
    }
}

/// A relative path starts at the manifest, as `spec.model.config` does.
fn tokenizer(job: &Job, directory: &Path) -> shoal_data::TokenizerChoice {
    match &job.data.tokenizer {
        TokenizerChoice::Bytes => shoal_data::TokenizerChoice::Bytes,
        TokenizerChoice::Bpe => {
            shoal_data::TokenizerChoice::Bpe { vocab_size: job.model.vocab_size }
        }
        TokenizerChoice::File(path) => shoal_data::TokenizerChoice::File(directory.join(path)),
    }
}

/// One line about the text, and one for each source of a mixture.
fn told(dataset: &Dataset) -> String {
    let earlier = if dataset.reused { " (tokenised by an earlier launch)" } else { "" };
    let mut text = format!(
        "text: {} bytes, {} documents of {} files, {} tokens, {} of them held out{earlier}",
        short(dataset.bytes as f64),
        short(dataset.documents as f64),
        dataset.files,
        short(dataset.tokens as f64),
        short(dataset.heldout_tokens as f64),
    );
    if dataset.sources.len() > 1 {
        let weights: f32 = dataset.weights().iter().sum();
        for source in &dataset.sources {
            text += &format!(
                "\n  {}: {:.0} % of the sequences, {} tokens{}",
                source.name,
                100.0 * source.weight / weights,
                short(source.set.tokens as f64),
                if source.cut { ", cut at its share of max_mb" } else { "" },
            );
        }
    }
    let replaced: u64 = dataset.sources.iter().map(|source| source.set.replaced_documents).sum();
    if replaced > 0 {
        text +=
            &format!("\n  {replaced} documents are not UTF-8: what could not be read is U+FFFD");
    }
    text
}

/// Text that cannot do is the manifest's fault; a disk that cannot is not.
fn data_error(loaded: &Loaded, error: DataError) -> Stopped {
    match error {
        DataError::NoFiles | DataError::TooSmall { .. } => loaded.text_error(&error.to_string()),
        error if error.is_about_input() => Stopped::Input(error.to_string()),
        error => Stopped::Failed(error.into()),
    }
}
