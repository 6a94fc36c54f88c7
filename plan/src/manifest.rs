//! The manifest: one YAML file, and `--set` flags over it, become a checked `Job` or an error that
//! shows the line.
//!
//! The text becomes a tree of located values (`tree`), flags are laid over it (`overrides`), and
//! defaults below it (`defaults`); serde reads the shared types out of the result (`reader`), so
//! the key list is theirs. Relations between values are `rules`.

pub(crate) mod complaint;
mod data_section;
mod defaults;
mod difference;
mod init;
mod model_section;
pub(crate) mod nearest;
mod overrides;
pub(crate) mod reader;
pub(crate) mod reference;
mod rules;
mod schema;
pub(crate) mod tree;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::globs;
use crate::grid::Grid;
use crate::job::{DataSource, Division, Job};
use crate::model::ModelConfig;
use crate::schedule::Schedule;
use complaint::{Complaint, Sources};
use tree::Node;

pub use complaint::{ManifestError, Problem};
pub use difference::{Change, difference};
pub use reference::{REFERENCE_FILE, reference};
pub use schema::{SCHEMA_FILE, schema};

/// The only `apiVersion` there is.
pub const API_VERSION: &str = "shoal/v1";

/// The only `kind` there is.
pub const KIND: &str = "Training";

/// A larger manifest is a mistake (a data file, say), and is not read.
pub const BYTES_MAX: usize = 1 << 20;

/// Reads a file on the parser's behalf: the model's `config.json`.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

/// A checked manifest that still knows where everything was written.
#[derive(Debug)]
pub struct Manifest {
    pub job: Job,
    sources: Sources,
    root: Node,
}

/// Parses a manifest.
///
/// - `file_name`: for messages, and where a relative `spec.model.config` starts.
/// - `overrides`: what came with `--set`, such as `training.steps=50`; the last one wins.
/// - `read`: reads the file of `spec.model.config`.
pub fn parse(
    file_name: &str,
    text: &str,
    overrides: &[String],
    read: ReadFile<'_>,
) -> Result<Manifest, ManifestError> {
    let mut sources = Sources::new(file_name, text);
    match build(&mut sources, overrides, read) {
        Ok((job, root)) => Ok(Manifest { job, sources, root }),
        Err(complaints) => Err(sources.explain(&complaints)),
    }
}

/// The network that a Hugging Face `config.json` describes, if it keeps every rule for networks.
/// `path` is for messages.
pub fn model_of_config(path: &Path, text: &str) -> Result<ModelConfig, ManifestError> {
    let sources = Sources::new(&path.display().to_string(), text);
    let read = || model_section::of_config(tree::parse(text, 0)?, 0);
    read().map_err(|complaints: Vec<Complaint>| sources.explain(&complaints))
}

impl Manifest {
    /// The files of each source that are on this machine, in the order of `Data::sources`; see
    /// `globs`. A pattern that matches nothing is an error at its line. Addresses are passed over.
    pub fn files(&self, env: globs::Environment<'_>) -> Result<Vec<Vec<PathBuf>>, ManifestError> {
        let sources = self.job.data.sources.iter().enumerate();
        let of_one = |(at, source): (usize, &DataSource)| {
            self.expand(&source.files, &self.path_of_source(at), env)
        };
        sources.map(of_one).collect()
    }

    /// Where the files of a source were written, for `error_at`.
    fn path_of_source(&self, at: usize) -> String {
        if self.root.locate("spec.data.sources").1 {
            format!("spec.data.sources[{at}].files")
        } else {
            "spec.data.files".to_owned()
        }
    }

    /// Every address among the files of sources and evaluation sets, once, with its place in the
    /// manifest, for `error_at`.
    pub fn addresses(&self) -> BTreeMap<String, String> {
        let sources = self.job.data.sources.iter().enumerate();
        let sources = sources.map(|(at, source)| (self.path_of_source(at), &source.files));
        let sets = self.job.evaluation.sets.iter();
        let sets = sets.map(|(name, files)| (format!("spec.evaluation.sets.{name}"), files));
        let entries = sources.chain(sets).flat_map(|(path, files)| {
            files.iter().enumerate().map(move |(i, entry)| (entry.clone(), format!("{path}[{i}]")))
        });
        entries.filter(|(entry, _)| globs::is_address(entry)).collect()
    }

    /// The files of each further evaluation set that are on this machine, by its name.
    pub fn evaluation_files(
        &self,
        env: globs::Environment<'_>,
    ) -> Result<BTreeMap<String, Vec<PathBuf>>, ManifestError> {
        let sets = self.job.evaluation.sets.iter();
        let of_one = |(name, files): (&String, &Vec<String>)| {
            let path = format!("spec.evaluation.sets.{name}");
            Ok((name.clone(), self.expand(files, &path, env)?))
        };
        sets.map(of_one).collect()
    }

    /// Sorted and each once.
    fn expand(
        &self,
        patterns: &[String],
        path: &str,
        env: globs::Environment<'_>,
    ) -> Result<Vec<PathBuf>, ManifestError> {
        let mut files = Vec::new();
        let local = patterns.iter().enumerate().filter(|(_, entry)| !globs::is_address(entry));
        for (i, pattern) in local {
            match globs::expand(std::slice::from_ref(pattern), env) {
                Ok(found) => files.extend(found),
                Err(error) => {
                    return Err(self.error_at(&format!("{path}[{i}]"), &error.to_string(), ""));
                }
            }
        }
        files.sort();
        files.dedup();
        Ok(files)
    }

    /// Whether the manifest or a flag says so; otherwise it is a default.
    pub fn says(&self, path: &str) -> bool {
        self.root.locate(path).1
    }

    /// An error that points at the value of a path such as `spec.training.batch`. For what only
    /// the world can tell, such as too little text. `help` may be empty.
    pub fn error_at(&self, path: &str, what: &str, help: &str) -> ManifestError {
        let (at, given) = self.root.locate(path);
        let what = if given { what.to_owned() } else { format!("{what} (a default)") };
        self.sources.explain(&[Complaint::new(at, path, what).help(help)])
    }
}

/// The first level. Sections are read later, each with its defaults.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Envelope<S> {
    #[serde(rename = "apiVersion")]
    pub(crate) api_version: String,
    pub(crate) kind: String,
    metadata: Option<Metadata>,
    pub(crate) spec: S,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: Option<String>,
}

/// Only the names of the sections.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "its fields are the list of sections; each is read on its own")]
struct Spec {
    model: Option<IgnoredAny>,
    data: Option<IgnoredAny>,
    training: Option<IgnoredAny>,
    evaluation: Option<IgnoredAny>,
    parallelism: Option<IgnoredAny>,
    workers: Option<IgnoredAny>,
    checkpoint: Option<IgnoredAny>,
    metrics: Option<IgnoredAny>,
}

/// `spec.parallelism` as written: the grid, and the order of its work.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Parallelism {
    /// Pipeline stages: consecutive layers.
    stages: u32,
    /// Parts the routed experts are divided into.
    expert_shards: u32,
    /// Copies of every expert. Every cell of a stage trains its own sequences all the same.
    replicas: u32,
    schedule: Schedule,
    /// Runs of layers per stage, of the schedule `interleaved`; 1 in every other.
    chunks: u32,
    /// Layers of each run, in the order of the network: `stages * chunks` numbers. Empty: balanced
    /// by FLOPs.
    layers: Vec<u32>,
    /// Routed experts of each shard. Empty: as even as can be.
    experts: Vec<u32>,
    /// Relative shares of the batch of the cells of a stage (replica by replica, shard by shard
    /// in each). Empty: equal. A cell with share 0 only works for the others' tokens.
    shares: Vec<u32>,
}

fn build(
    sources: &mut Sources,
    overrides: &[String],
    read: ReadFile<'_>,
) -> Result<(Job, Node), Vec<Complaint>> {
    let (mut root, stem) = {
        let source = sources.manifest();
        if source.text.len() > BYTES_MAX {
            let what = format!("{} bytes; a manifest has at most {BYTES_MAX}", source.text.len());
            return Err(vec![Complaint::new(tree::At::start(0), "", what)]);
        }
        let stem = Path::new(&source.name).file_stem().map(|stem| stem.to_string_lossy());
        (tree::parse(&source.text, 0)?, stem.unwrap_or_default().into_owned())
    };
    overrides::apply(&mut root, overrides, sources)?;
    let envelope: Envelope<Spec> = reader::read(&root, "")?;
    check_word(&root, "apiVersion", &envelope.api_version, API_VERSION)?;
    check_word(&root, "kind", &envelope.kind, KIND)?;
    let Envelope { metadata, spec: Spec { .. }, .. } = envelope;

    init::give_model(&mut root)?;
    let model = model_section::read(&mut root, sources, read)?;
    init::check_model(&root, &model, sources, read)?;
    let data = data_section::read(&mut root, &model)?;
    let training = section(&mut root, "training", &defaults::training())?;
    let evaluation = section(&mut root, "evaluation", &defaults::evaluation())?;
    let parallelism: Parallelism = section(&mut root, "parallelism", &defaults::parallelism())?;
    let Parallelism { stages, expert_shards, replicas, schedule, .. } = parallelism;
    let grid = Grid { stages, expert_shards, replicas };
    let Parallelism { chunks, layers, experts, shares, .. } = parallelism;
    let division = Division { chunks, layers, experts, shares };
    let workers = section(&mut root, "workers", &defaults::workers())?;
    let checkpoint = section(&mut root, "checkpoint", &defaults::checkpoint())?;
    let metrics = section(&mut root, "metrics", &defaults::metrics())?;
    let name = metadata.and_then(|metadata| metadata.name).unwrap_or(stem);
    let job = Job {
        name,
        model,
        data,
        training,
        evaluation,
        grid,
        division,
        schedule,
        workers,
        checkpoint,
        metrics,
    };
    rules::check(&job, &root)?;
    Ok((job, root))
}

pub(crate) fn check_word(
    root: &Node,
    path: &str,
    got: &str,
    wanted: &str,
) -> Result<(), Complaint> {
    if got == wanted {
        return Ok(());
    }
    let what = format!("wanted {wanted}, got {}", complaint::quote(got));
    Err(Complaint::new(root.locate(path).0, path, what))
}

/// Reads a section of `spec` over its defaults, and leaves the result in the tree.
fn section<T: for<'de> Deserialize<'de>>(
    root: &mut Node,
    name: &str,
    defaults: &impl Serialize,
) -> Result<T, Complaint> {
    let path = format!("spec.{name}");
    let given = root.at_path(&path).cloned().unwrap_or_default();
    let merged = Node::of(defaults).overlay(given, &path)?;
    let section = reader::read(&merged, &path)?;
    root.put(&path, merged);
    Ok(section)
}

/// Where in the manifest a key of this name belongs, if anywhere.
fn section_of(key: &str) -> Option<String> {
    let sections = [
        ("training", Node::of(&defaults::training())),
        ("parallelism", Node::of(&defaults::parallelism())),
        ("workers", Node::of(&defaults::workers())),
        ("checkpoint", Node::of(&defaults::checkpoint())),
        ("evaluation", Node::of(&defaults::evaluation())),
        ("metrics", Node::of(&defaults::metrics())),
        ("data", Node::of(&defaults::data())),
        ("model", Node::of(&ModelConfig::tiny())),
    ];
    let home = sections.iter().find(|(_, section)| section.get(key).is_some());
    home.map(|(name, _)| format!("spec.{name}.{key}"))
}

#[cfg(test)]
mod tests;
