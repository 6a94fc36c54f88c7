//! A directory from Hugging Face with a `deepseek_v3` model: `config.json`, and one
//! `model.safetensors` or several files with their index. Everything is held against the config
//! before anything is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use shoal_plan::model::ModelConfig;

use crate::blocks::{Block, scale_name};
use crate::config::StoredConfig;
use crate::header::Entry;
use crate::index::{self, INDEX_BYTES_MAX};
use crate::listing::{Expected, Part, layer_of, listing, mismatches};
use crate::numbers::widen;
use crate::tensor_file::TensorFile;
use crate::{CheckpointError, StoredType, io_error, pickle};

/// The only file of a model that is small.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// Where the tensors of a large one are.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Of more missing tensors not even the names are made: a config of a few bytes could ask for
/// millions.
const LISTED_MISSING_MAX: usize = 100_000;

/// An opened directory.
pub struct Hub {
    directory: PathBuf,
    config: ModelConfig,
    block: Option<Block>,
    files: Vec<TensorFile>,
    /// Tensor to its place in `files`.
    places: BTreeMap<String, usize>,
    notes: Vec<String>,
}

impl Hub {
    /// Opens `directory`, which has a `config.json`, and compares names, shapes and dtypes.
    pub fn open(directory: &Path, config: StoredConfig) -> Result<Self, CheckpointError> {
        let files = open_files(directory)?;
        let mut places = BTreeMap::new();
        for (at, file) in files.iter().enumerate() {
            for name in file.entries().keys() {
                if let Some(other) = places.insert(name.clone(), at) {
                    let what =
                        format!("{name} stands in {} as well", files[other].path().display());
                    return Err(CheckpointError::Damaged { path: file.path().to_path_buf(), what });
                }
            }
        }
        let StoredConfig { model, block } = config;
        let mut hub = Self {
            directory: directory.to_path_buf(),
            config: model,
            block,
            files,
            places,
            notes: Vec::new(),
        };
        hub.leave_out_missing_modules();
        hub.check()?;
        Ok(hub)
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The blocks of the weights that are quantised.
    pub fn block(&self) -> Option<Block> {
        self.block
    }

    /// What was found that a person should know.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The tensors of the model, in the order of the network.
    pub fn expected(&self) -> Vec<Expected> {
        listing(&self.config, self.block)
    }

    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.files[*self.places.get(name)?].entries().get(name)
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(TensorFile::file_bytes).sum()
    }

    /// A tensor as it is stored.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let Some(at) = self.places.get(name) else {
            return Err(self.no_tensor(name));
        };
        self.files[*at].read(name)
    }

    /// The values of a tensor; what is FP8 is multiplied by its scales.
    pub fn values(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let Some((entry, dtype)) = self.entry(name).and_then(|e| Some((e, e.stored_type()?)))
        else {
            return Err(self.no_tensor(name));
        };
        let mut values = widen(dtype, &self.bytes(name)?);
        if dtype == StoredType::F8E4m3 {
            let block = self.block.expect("FP8 without blocks was refused");
            let scales = widen(StoredType::F32, &self.bytes(&scale_name(name))?);
            block.apply(&mut values, entry.shape[1], &scales);
        }
        Ok(values)
    }

    /// Reads what repeats other tensors, and names what does not.
    pub fn copies_that_differ(&self) -> Result<Vec<String>, CheckpointError> {
        let mut differ = Vec::new();
        for expected in self.expected() {
            let Part::CopyOf(original) = expected.part else { continue };
            if !self.places.contains_key(&expected.name) {
                continue;
            }
            let same_form = self.entry(&expected.name).map(|entry| entry.dtype)
                == self.entry(original).map(|entry| entry.dtype);
            let same = if same_form {
                self.bytes(&expected.name)? == self.bytes(original)?
            } else {
                self.values(&expected.name)? == self.values(original)?
            };
            if !same {
                differ.push(format!("{} is not {original}; it is left out", expected.name));
            }
        }
        Ok(differ)
    }

    fn no_tensor(&self, name: &str) -> CheckpointError {
        CheckpointError::NoTensor { path: self.directory.clone(), name: name.to_owned() }
    }

    /// `transformers` drops the multi-token-prediction modules and leaves their number in the
    /// config: a model without a single tensor of its last modules has so many less.
    fn leave_out_missing_modules(&mut self) {
        let layers: BTreeSet<u32> = self.places.keys().filter_map(|name| layer_of(name)).collect();
        let claimed = self.config.num_nextn_predict_layers;
        while 0 < self.config.num_nextn_predict_layers
            && !layers.contains(&(self.config.mtp_layers().end - 1))
        {
            self.config.num_nextn_predict_layers -= 1;
        }
        let found = self.config.num_nextn_predict_layers;
        if found < claimed {
            self.notes.push(format!(
                "config.json has num_nextn_predict_layers {claimed}, but the weights are of \
                 {found} multi-token-prediction modules: the model is taken without the others"
            ));
        }
    }

    fn check(&self) -> Result<(), CheckpointError> {
        let (wanted, found) = (experts_tensors(&self.config), self.places.len());
        if found.saturating_add(LISTED_MISSING_MAX) < wanted {
            let problem =
                format!("{wanted} tensors of routed experts are wanted, {found} are there");
            let path = self.directory.clone();
            return Err(CheckpointError::Unfit { path, problems: vec![problem] });
        }
        let found = self
            .places
            .iter()
            .filter_map(|(name, at)| Some((name.as_str(), self.files[*at].entries().get(name)?)));
        let problems = mismatches(&self.expected(), &found.collect());
        if problems.is_empty() {
            return Ok(());
        }
        let problems = problems.iter().map(ToString::to_string).collect();
        Err(CheckpointError::Unfit { path: self.directory.clone(), problems })
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Hub");
        f.field("directory", &self.directory).field("tensors", &self.places.len());
        f.finish_non_exhaustive()
    }
}

/// Weights of routed experts, counted without being listed.
fn experts_tensors(config: &ModelConfig) -> usize {
    let layers = (0..config.mtp_layers().end).filter(|layer| config.is_moe(*layer)).count();
    layers * 3 * config.n_routed_experts as usize
}

fn open_files(directory: &Path) -> Result<Vec<TensorFile>, CheckpointError> {
    let index = directory.join(INDEX_FILE);
    if index.exists() {
        return open_indexed(directory, &index);
    }
    let single = directory.join(SINGLE_FILE);
    if single.exists() {
        return Ok(vec![TensorFile::open(&single)?]);
    }
    if let Some(pickled) = pickle::named_so(directory) {
        return Err(pickle::refusal(&pickled, "a pickled PyTorch file"));
    }
    Err(CheckpointError::NoModel {
        path: directory.to_path_buf(),
        what: format!("there is neither {SINGLE_FILE} nor {INDEX_FILE}"),
        help: "wanted the directory of a Hugging Face model, a checkpoint or a run of shoal".into(),
    })
}

/// The files of an index, each holding exactly the tensors that the index says.
fn open_indexed(directory: &Path, path: &Path) -> Result<Vec<TensorFile>, CheckpointError> {
    let damaged = |what: String| CheckpointError::Damaged { path: path.to_path_buf(), what };
    let bytes = fs::metadata(path).map_err(io_error("reading", path))?.len();
    if bytes > INDEX_BYTES_MAX {
        return Err(damaged(format!("{bytes} bytes, want at most {INDEX_BYTES_MAX}")));
    }
    let text = fs::read(path).map_err(io_error("reading", path))?;
    let map = index::parse(&text).map_err(damaged)?;
    let names: Vec<&str> = index::files(&map).into_iter().collect();
    let files = names.iter().map(|name| TensorFile::open(&directory.join(name)));
    let files: Vec<TensorFile> = files.collect::<Result<_, _>>()?;
    let place = |name: &str| {
        let at = files.iter().position(|file| file.entries().contains_key(name));
        at.map_or("in no file that it names".to_owned(), |at| format!("in {}", names[at]))
    };
    let mut problems = Vec::new();
    for (name, file) in &map {
        let at = names.binary_search(&file.as_str()).expect("every file of the map was listed");
        if !files[at].entries().contains_key(name) {
            problems
                .push(format!("{name}: {INDEX_FILE} says in {file}, but it is {}", place(name)));
        }
    }
    for (at, file) in files.iter().enumerate() {
        let unnamed = file.entries().keys().filter(|name| !map.contains_key(*name));
        problems.extend(
            unnamed.map(|name| format!("{name}: in {}, but not in {INDEX_FILE}", names[at])),
        );
    }
    if problems.is_empty() {
        return Ok(files);
    }
    Err(CheckpointError::Unfit { path: directory.to_path_buf(), problems })
}
