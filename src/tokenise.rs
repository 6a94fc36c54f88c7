//! From the manifest's text to token shards in the run directory, once.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use shoal_data::{
    DataError, Dataset, Settings, Source, Tokenizer, TokenizerChoice as TokenizerMade,
};
use shoal_plan::job::{Job, TokenizerChoice};

use crate::exit::Stopped;
use crate::fetch::{Texts, texts};
use crate::initial;
use crate::manifest::Loaded;
use crate::progress::{Reading, short};
use crate::run_dir::RunDir;
use crate::terminal::{harmless, note};

/// Turns the text into token shards, or finds that an earlier launch did.
pub(crate) fn tokenise(run_dir: &RunDir, loaded: &Loaded) -> Result<Dataset, Stopped> {
    let mut reading = Reading::start();
    let settings = settings(loaded, texts(loaded, &mut reading)?)?;
    let mut show = |at: shoal_data::Progress<'_>| reading.show(at);
    let prepared = shoal_data::prepare(&settings, &run_dir.data(), &mut show);
    let trained_on = reading.trained_on();
    drop(reading);
    let dataset = prepared.map_err(|error| data_error(loaded, error))?;
    let tokenizer = Tokenizer::open(&run_dir.data())?;
    note(&told(&dataset));
    note(&told_tokenizer(&settings.tokenizer, trained_on, &dataset, &tokenizer));
    Ok(dataset)
}

/// What the job says about its text, with the files that were found and fetched.
pub(crate) fn settings(loaded: &Loaded, texts: Texts) -> Result<Settings, Stopped> {
    let job = loaded.job();
    let source = |(source, files): (&shoal_plan::job::DataSource, &Vec<PathBuf>)| Source {
        name: source.name.clone(),
        files: files.clone(),
        weight: source.weight,
        field: source.field.clone(),
    };
    Ok(Settings {
        sources: job.data.sources.iter().zip(&texts.sources).map(source).collect(),
        tokenizer: tokenizer(job, &loaded.directory)?,
        vocab_size: job.model.vocab_size,
        end_token: job.data.end_token.clone(),
        bytes_max: job.data.bytes_max,
        heldout_fraction: job.data.heldout_fraction,
        sequence: job.training.sequence,
        windows_min_train: job.training.batch.into(),
        windows_min_heldout: 1,
        eval_sets: texts.sets,
    })
}

/// A relative path starts at the manifest, as `spec.model.config` does.
fn tokenizer(job: &Job, directory: &Path) -> Result<TokenizerMade, Stopped> {
    Ok(match &job.data.tokenizer {
        TokenizerChoice::Bytes => TokenizerMade::Bytes,
        TokenizerChoice::Bpe => TokenizerMade::Bpe { vocab_size: job.model.vocab_size },
        TokenizerChoice::File(path) => TokenizerMade::File(directory.join(path)),
        TokenizerChoice::Weights => beside_weights(job, directory)?,
    })
}

/// The tokenizer of the weights that training starts from.
fn beside_weights(job: &Job, directory: &Path) -> Result<TokenizerMade, Stopped> {
    let weights = initial::directory(job, directory).unwrap_or_default();
    let weights = shoal_weights::place(&weights)?;
    let file = weights.join(shoal_data::tokenizer::FILE_NAME);
    if file.exists() {
        let is_bytes = Tokenizer::read(&file)?.is_bytes();
        return Ok(if is_bytes { TokenizerMade::Bytes } else { TokenizerMade::File(file) });
    }
    let tokenizer = Tokenizer::beside(&weights, job.model.vocab_size)
        .map_err(|error| Stopped::Input(format!("{error}; in a manifest: data.tokenizer")))?;
    if tokenizer.is_bytes() {
        return Ok(TokenizerMade::Bytes);
    }
    // Of a run from before checkpoints had a copy.
    let beside_run = weights.join("../../data").join(shoal_data::tokenizer::FILE_NAME);
    Ok(TokenizerMade::File(beside_run))
}

/// `tokenizer: BPE of 8192 tokens, trained on 12.3MB; 3.42 bytes per token; ...`.
fn told_tokenizer(
    choice: &TokenizerMade,
    trained_on: Option<u64>,
    dataset: &Dataset,
    tokenizer: &Tokenizer,
) -> String {
    let what = match (choice, trained_on) {
        (TokenizerMade::Bytes, _) => "bytes".to_owned(),
        (TokenizerMade::Bpe { .. }, trained_on) => {
            let on = trained_on.map(|bytes| format!(", trained on {}B", short(bytes as f64)));
            format!("BPE of {} tokens{}", dataset.n_tokens, on.unwrap_or_default())
        }
        (TokenizerMade::File(path), _) => {
            format!("{} of {} tokens", path.display(), dataset.n_tokens)
        }
    };
    let end = dataset.end_token.map_or_else(
        || "no end token".to_owned(),
        |token| format!("documents end with {}", name_of(tokenizer, token)),
    );
    let bytes = dataset.bytes as f64 / dataset.tokens.max(1) as f64;
    format!("tokenizer: {what}; {bytes:.2} bytes per token; {end}")
}

/// A token by its name and number. Names come from files of others.
fn name_of(tokenizer: &Tokenizer, token: u32) -> String {
    let name = tokenizer.special_name(token).unwrap_or_default();
    format!("{} ({token})", harmless(name.as_bytes()))
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
            let _ = write!(
                text,
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
        let _ = write!(
            text,
            "\n  {replaced} documents are not UTF-8: what could not be read is U+FFFD"
        );
    }
    text
}

/// Text that cannot do is the manifest's fault; a disk that cannot is not.
fn data_error(loaded: &Loaded, error: DataError) -> Stopped {
    if matches!(error, DataError::NoFiles | DataError::TooSmall { .. }) {
        loaded.text_error(&error.to_string())
    } else {
        error.into()
    }
}
