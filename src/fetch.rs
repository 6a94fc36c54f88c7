//! The files of text, wherever they are: what is at a distance is fetched, once, into a cache.

use std::collections::BTreeMap;
use std::path::PathBuf;

use shoal_data::download::{FilesError, resolve};

use crate::exit::Stopped;
use crate::manifest::Loaded;
use crate::progress::Reading;
use crate::settings::environment;

/// The files a job reads, all of them on this machine.
pub(crate) struct Texts {
    /// Of each source, in the job's order.
    pub sources: Vec<Vec<PathBuf>>,
    /// Of each further evaluation set.
    pub sets: BTreeMap<String, Vec<PathBuf>>,
}

/// Fetches what a job's manifest names by address. The others were found when it was read.
pub(crate) fn texts(loaded: &Loaded, reading: &mut Reading) -> Result<Texts, Stopped> {
    let job = loaded.job();
    let mut texts = Texts { sources: Vec::new(), sets: BTreeMap::new() };
    for source in &job.data.sources {
        texts.sources.push(files(&source.files, reading)?);
    }
    for (name, entries) in &job.evaluation.sets {
        texts.sets.insert(name.clone(), files(entries, reading)?);
    }
    Ok(texts)
}

/// The files that paths, patterns and addresses name.
pub(crate) fn files(entries: &[String], reading: &mut Reading) -> Result<Vec<PathBuf>, Stopped> {
    let mut told = |address: &str, done: u64, all: Option<u64>| {
        reading.bytes(&format!("fetching {address}"), done, all);
    };
    resolve(entries, &environment, &mut told).map_err(|error| match error {
        FilesError::Glob(error) => Stopped::Input(error.to_string()),
        FilesError::Data(error) => error.into(),
    })
}
