//! A model from one directory to another, tensor by tensor: what `import` and `export` do.
//!
//! The new directory is written under another name beside it and gets its own at the very end: it
//! is there whole, or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use shoal_data::Tokenizer;
use shoal_data::tokenizer::FILE_NAME as TOKENIZER_FILE;
use shoal_model::names::{EMBEDDING, Role};

use crate::blocks::{Block, quantise, scale_name};
use crate::header::Entry;
use crate::hugging_face::{config_json, generation_json, tokenizer_config_json};
use crate::listing::{Expected, Part, listing};
use crate::numbers::stored;
use crate::save::{ModelWriter, Planned};
use crate::shelf::sync_directory;
use crate::write::write_bytes;
use crate::{CONFIG_FILE, CheckpointError, ConfigExtras, Form, StoredType, Weights, io_error};

/// Files about the tokenizer that are taken along as they are.
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const GENERATION_FILE: &str = "generation_config.json";

/// A small file is a few megabytes; what is larger is none of these.
const SMALL_BYTES_MAX: u64 = 64 << 20;

/// In which dtype weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// BF16 and F32 as they are, F16 as F32, FP8 as BF16.
    Keep,
    /// All alike; of FP8 only Linears.
    All(Form),
}

/// What to write where.
#[derive(Debug)]
pub struct Copying<'a> {
    pub weights: &'a Weights,
    pub target: Target,
    /// The most bytes of tensors in one file.
    pub shard_bytes: u64,
    /// A model's directory that is there is replaced.
    pub force: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    pub tensors: u64,
    pub elements: u64,
    /// Of all tensors.
    pub bytes: u64,
    pub files: Vec<String>,
    pub form: Form,
    pub has_tokenizer: bool,
    pub eos: Option<u32>,
}

impl Copying<'_> {
    /// Writes the model to `out`. `progress` hears bytes written and bytes in all.
    pub fn write(
        &self,
        out: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Copied, CheckpointError> {
        self.refuse_existing(out)?;
        let tokenizer = self.tokenizer()?;
        let partial = Partial::create(out)?;
        let form = self.form();
        let planned = self.planned(form);
        let mut writer = ModelWriter::create(&partial.path, &planned, self.shard_bytes)?;
        let (mut done, all) = (0, writer.tensor_bytes());
        for expected in listing(self.weights.config(), None) {
            if !matches!(expected.part, Part::CopyOf(_)) {
                done += self.copy(&expected, &mut writer)?;
                progress(done, all);
            }
        }
        let elements = |one: &Planned| one.shape.iter().map(|n| *n as u64).product::<u64>();
        let eos = tokenizer.as_ref().and_then(|(tokenizer, _)| tokenizer.end_token());
        let copied = Copied {
            tensors: planned.len() as u64,
            elements: planned.iter().map(elements).sum(),
            bytes: all,
            files: writer.files().map(str::to_owned).collect(),
            form,
            has_tokenizer: tokenizer.is_some(),
            eos,
        };
        writer.finish()?;
        let extras = ConfigExtras { eos, form };
        let config = config_json(self.weights.config(), &extras);
        write_bytes(&partial.path, CONFIG_FILE, &config)?;
        self.small_files(&partial.path, tokenizer)?;
        partial.commit(out)?;
        Ok(copied)
    }

    /// # Errors
    /// `out` is there, and may not or must not be replaced.
    pub fn refuse_existing(&self, out: &Path) -> Result<(), CheckpointError> {
        let is_empty = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
        let is_model = out.join(CONFIG_FILE).is_file();
        if !fs::exists(out).unwrap_or(true) || is_empty || (self.force && is_model) {
            return Ok(());
        }
        Err(CheckpointError::Exists { path: out.to_path_buf() })
    }

    /// The tokenizer beside the weights; a directory from elsewhere has a file or none.
    fn tokenizer(&self) -> Result<Option<(Tokenizer, Vec<u8>)>, CheckpointError> {
        let directory = self.weights.directory();
        if self.weights.hub().is_some() && !directory.join(TOKENIZER_FILE).exists() {
            return Ok(None);
        }
        Ok(Tokenizer::file_beside(directory, self.weights.config().vocab_size)?)
    }

    /// What the config will say of the whole.
    fn form(&self) -> Form {
        match (self.target, self.weights.hub()) {
            (Target::All(form), _) => form,
            (Target::Keep, None) => Form::Bf16,
            (Target::Keep, Some(hub)) => {
                let dtype = hub.entry(EMBEDDING).and_then(Entry::stored_type);
                match dtype {
                    Some(StoredType::F32 | StoredType::F16) => Form::F32,
                    Some(StoredType::Bf16 | StoredType::F8E4m3) | None => Form::Bf16,
                }
            }
        }
    }

    /// The dtype in which a tensor is written.
    fn dtype(&self, expected: &Expected) -> StoredType {
        let role = match &expected.part {
            Part::Weight(role) => *role,
            Part::Bias | Part::Scale | Part::CopyOf(_) => return StoredType::F32,
        };
        match self.target {
            Target::All(Form::F32) => StoredType::F32,
            Target::All(Form::Fp8) if role == Role::Linear => StoredType::F8E4m3,
            Target::All(Form::Bf16 | Form::Fp8) => StoredType::Bf16,
            Target::Keep => match self.stored_type(&expected.name) {
                Some(StoredType::F32 | StoredType::F16) => StoredType::F32,
                Some(StoredType::Bf16 | StoredType::F8E4m3) | None => StoredType::Bf16,
            },
        }
    }

    /// Of a directory from elsewhere, how a tensor lies there.
    fn stored_type(&self, name: &str) -> Option<StoredType> {
        self.weights.hub()?.entry(name)?.stored_type()
    }

    fn planned(&self, form: Form) -> Vec<Planned> {
        let block = (form == Form::Fp8).then_some(Block::DEEPSEEK);
        let expected = listing(self.weights.config(), block).into_iter();
        let expected = expected.filter(|one| !matches!(one.part, Part::CopyOf(_)));
        let planned = expected.map(|one| {
            let dtype = self.dtype(&one);
            Planned { name: one.name, shape: one.shape, dtype }
        });
        planned.collect()
    }

    /// Reads one tensor and writes it, its scales too; returns the bytes written.
    fn copy(&self, one: &Expected, writer: &mut ModelWriter) -> Result<u64, CheckpointError> {
        let (name, dtype) = (one.name.as_str(), self.dtype(one));
        if let Some(hub) = self.weights.hub()
            && self.stored_type(name) == Some(dtype)
            && (dtype != StoredType::F8E4m3 || hub.block() == Some(Block::DEEPSEEK))
        {
            let mut written = 0;
            let scales = scale_name(name);
            let is_quantised = dtype == StoredType::F8E4m3;
            for name in [name].into_iter().chain(is_quantised.then_some(scales.as_str())) {
                let bytes = hub.bytes(name)?;
                writer.put(name, &bytes)?;
                written += bytes.len() as u64;
            }
            return Ok(written);
        }
        let values = self.weights.read(name, &one.shape)?;
        if dtype != StoredType::F8E4m3 {
            let bytes = stored(dtype, &values);
            writer.put(name, &bytes)?;
            return Ok(bytes.len() as u64);
        }
        let (codes, scales) = quantise(&values, one.shape[0], one.shape[1]);
        let scales = stored(StoredType::F32, &scales);
        writer.put(name, &codes)?;
        writer.put(&scale_name(name), &scales)?;
        Ok((codes.len() + scales.len()) as u64)
    }

    /// The tokenizer's files and the generation config.
    fn small_files(
        &self,
        to: &Path,
        tokenizer: Option<(Tokenizer, Vec<u8>)>,
    ) -> Result<(), CheckpointError> {
        let from = self.weights.directory();
        if let Some((tokenizer, json)) = tokenizer {
            write_bytes(to, TOKENIZER_FILE, &json)?;
            let eos = tokenizer.end_token();
            let config = small_file(&from.join(TOKENIZER_CONFIG_FILE))?.unwrap_or_else(|| {
                let name = eos.and_then(|end| tokenizer.special_name(end));
                tokenizer_config_json(name.as_deref())
            });
            write_bytes(to, TOKENIZER_CONFIG_FILE, &config)?;
            let generation = small_file(&from.join(GENERATION_FILE))?;
            let generation = generation.unwrap_or_else(|| generation_json(eos));
            write_bytes(to, GENERATION_FILE, &generation)?;
        }
        Ok(())
    }
}

/// A file of little text, if it is there.
fn small_file(path: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = fs::metadata(path).map_err(io_error("reading", path))?.len();
    if bytes > SMALL_BYTES_MAX {
        let what = format!("{bytes} bytes, want at most {SMALL_BYTES_MAX}");
        return Err(CheckpointError::Damaged { path: path.to_path_buf(), what });
    }
    fs::read(path).map(Some).map_err(io_error("reading", path))
}

/// A directory under construction; gone with everything in it unless it is committed.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn create(out: &Path) -> Result<Self, CheckpointError> {
        let path = beside(out, "partial")?;
        // What an earlier attempt left that was killed.
        remove_if_there(&path)?;
        fs::create_dir_all(&path).map_err(io_error("creating", &path))?;
        Ok(Self { path })
    }

    /// Gives it its name; what had that name is gone afterwards.
    fn commit(self, out: &Path) -> Result<(), CheckpointError> {
        let old = beside(out, "old")?;
        remove_if_there(&old)?;
        sync_directory(&self.path)?;
        if out.exists() {
            fs::rename(out, &old).map_err(io_error("replacing", out))?;
        }
        fs::rename(&self.path, out).map_err(io_error("renaming", out))?;
        sync_directory(old.parent().unwrap_or(Path::new(".")))?;
        remove_if_there(&old)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Committed, it is not there; otherwise the error that is under way matters more.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// `.NAME.ending` in the same directory.
fn beside(out: &Path, ending: &str) -> Result<PathBuf, CheckpointError> {
    let Some(name) = out.file_name() else {
        return Err(CheckpointError::Exists { path: out.to_path_buf() });
    };
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    Ok(parent.join(format!(".{}.{ending}", name.to_string_lossy())))
}

fn remove_if_there(path: &Path) -> Result<(), CheckpointError> {
    if path.exists() {
        fs::remove_dir_all(path).map_err(io_error("removing", path))?;
    }
    Ok(())
}
