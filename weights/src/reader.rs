//! Reads a complete checkpoint, whatever grid wrote it: tensors are found by kind and name. Hashes
//! are `newest_good`'s business.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use shoal_plan::checkpoint::{CheckpointFile, CheckpointManifest};

use crate::numbers::widen;
use crate::tensor_file::TensorFile;
use crate::{CheckpointError, StoredType, TensorKind, newest};

/// Tensors by kind and name.
pub struct CheckpointReader {
    directory: PathBuf,
    manifest: CheckpointManifest,
    files: Vec<TensorFile>,
    tensors: BTreeMap<(TensorKind, String), Located>,
}

/// Where a tensor is.
struct Located {
    file: usize,
    dtype: StoredType,
    shape: Vec<usize>,
}

impl CheckpointReader {
    /// Opens and indexes every file of tensors that the manifest names.
    pub fn open(directory: &Path) -> Result<Self, CheckpointError> {
        Self::open_where(directory, is_of_tensors)
    }

    /// The same without what an optimizer kept, which need not be there.
    pub(crate) fn open_weights(directory: &Path) -> Result<Self, CheckpointError> {
        Self::open_where(directory, |name| {
            TensorKind::of_file(name).is_some_and(TensorKind::is_weight)
        })
    }

    fn open_where(
        directory: &Path,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Self, CheckpointError> {
        let manifest = newest::read_manifest(directory)?;
        let mut reader = Self::empty(directory, manifest.clone());
        for file in manifest.files.iter().filter(|file| is_wanted(&file.name)) {
            reader.add(TensorFile::open(&directory.join(&file.name))?, file)?;
        }
        Ok(reader)
    }

    /// Indexes files of a checkpoint that are open: of all that its manifest names, those from which something
    /// will be read. Errors call their directory `directory`.
    pub fn over(
        directory: &Path,
        manifest: CheckpointManifest,
        files: Vec<(CheckpointFile, File)>,
    ) -> Result<Self, CheckpointError> {
        let mut reader = Self::empty(directory, manifest);
        for (file, open) in files {
            reader.add(TensorFile::of(open, &directory.join(&file.name))?, &file)?;
        }
        Ok(reader)
    }

    fn empty(directory: &Path, manifest: CheckpointManifest) -> Self {
        let directory = directory.to_path_buf();
        Self { directory, manifest, files: Vec::new(), tensors: BTreeMap::new() }
    }

    /// Steps done, sequences consumed, and the grid that wrote it.
    pub fn manifest(&self) -> &CheckpointManifest {
        &self.manifest
    }

    /// Names of one kind, sorted.
    pub fn names(&self, kind: TensorKind) -> impl Iterator<Item = &str> {
        self.tensors.keys().filter(move |(of, _)| *of == kind).map(|(_, name)| name.as_str())
    }

    /// Whether there is a tensor of this kind and name.
    pub fn contains(&self, kind: TensorKind, name: &str) -> bool {
        self.tensors.contains_key(&(kind, name.to_owned()))
    }

    /// The values of an F32 tensor of exactly this shape.
    pub fn read_f32(
        &self,
        kind: TensorKind,
        name: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>, CheckpointError> {
        self.values(kind, name, Some(StoredType::F32), shape)
    }

    /// The values of a tensor of exactly this shape, in whatever dtype it is.
    pub fn read_widened(
        &self,
        kind: TensorKind,
        name: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>, CheckpointError> {
        self.values(kind, name, None, shape)
    }

    fn values(
        &self,
        kind: TensorKind,
        name: &str,
        dtype: Option<StoredType>,
        shape: &[usize],
    ) -> Result<Vec<f32>, CheckpointError> {
        let (path, name) = (self.directory.clone(), name.to_string());
        let Some(found) = self.tensors.get(&(kind, name.clone())) else {
            return Err(CheckpointError::Missing { path, kind, name });
        };
        let dtype = dtype.unwrap_or(found.dtype);
        if found.dtype != dtype || found.shape != shape {
            let got = format!("{} {:?}", found.dtype.name(), found.shape);
            let want = format!("{} {shape:?}", dtype.name());
            return Err(CheckpointError::Tensor { path, kind, name, got, want });
        }
        Ok(widen(dtype, &self.files[found.file].read(&name)?))
    }

    fn add(&mut self, file: TensorFile, want: &CheckpointFile) -> Result<(), CheckpointError> {
        let path = file.path().to_path_buf();
        let damaged = |what: String| CheckpointError::Damaged { path: path.clone(), what };
        let kind = TensorKind::of_file(&want.name)
            .ok_or_else(|| damaged("its name says nothing of what it holds".into()))?;
        if file.file_bytes() != want.bytes {
            return Err(damaged(format!("{} bytes, want {}", file.file_bytes(), want.bytes)));
        }
        for (name, entry) in file.entries() {
            let dtype = match entry.stored_type() {
                Some(dtype @ (StoredType::F32 | StoredType::Bf16)) => dtype,
                Some(StoredType::F16 | StoredType::F8E4m3) | None => {
                    return Err(damaged(format!("{name} is {}, want F32 or BF16", entry.dtype)));
                }
            };
            let located = Located { file: self.files.len(), dtype, shape: entry.shape.clone() };
            if self.tensors.insert((kind, name.clone()), located).is_some() {
                return Err(damaged(format!("{name} stands in another file as well")));
            }
        }
        self.files.push(file);
        Ok(())
    }
}

fn is_of_tensors(file_name: &str) -> bool {
    Path::new(file_name).extension().is_some_and(|extension| extension == "safetensors")
}

impl fmt::Debug for CheckpointReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("CheckpointReader");
        f.field("directory", &self.directory).field("tensors", &self.tensors.len());
        f.finish_non_exhaustive()
    }
}
