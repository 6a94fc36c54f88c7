//! Reads a complete checkpoint, whatever grid wrote it: files are mapped, tensors found by name.
//!
//! Files may come from elsewhere, so nothing in a header is taken on trust. The `safetensors` crate
//! checks sizes, offsets and overlaps; it accepts repeated and path-like names, which are refused
//! here. Hashes are `newest_good`'s business.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use shoal_data::map::complete_file;
use shoal_kernels::bf16_to_f32;
use shoal_plan::checkpoint::CheckpointManifest;

use crate::{CheckpointError, StoredType, TensorKind, io_error, is_plain, newest};

/// Tensors by kind and name.
pub struct CheckpointReader {
    directory: PathBuf,
    manifest: CheckpointManifest,
    maps: Vec<Mmap>,
    tensors: BTreeMap<(TensorKind, String), Located>,
}

/// Where a tensor is.
struct Located {
    map: usize,
    bytes: Range<usize>,
    dtype: StoredType,
    shape: Vec<usize>,
}

impl CheckpointReader {
    /// Maps and indexes every file of tensors that the manifest names.
    pub fn open(directory: &Path) -> Result<Self, CheckpointError> {
        let manifest = newest::read_manifest(directory)?;
        let mut reader = Self {
            directory: directory.to_path_buf(),
            manifest: manifest.clone(),
            maps: Vec::new(),
            tensors: BTreeMap::new(),
        };
        for file in &manifest.files {
            if Path::new(&file.name).extension().is_some_and(|extension| extension == "safetensors")
            {
                reader.add(&file.name, file.bytes)?;
            }
        }
        Ok(reader)
    }

    /// Steps done, sequences consumed, and the grid that wrote it.
    pub fn manifest(&self) -> &CheckpointManifest {
        &self.manifest
    }

    /// Names of one kind, sorted.
    pub fn names(&self, kind: TensorKind) -> impl Iterator<Item = &str> {
        self.tensors.keys().filter(move |(of, _)| *of == kind).map(|(_, name)| name.as_str())
    }

    /// The values of an F32 tensor of exactly this shape.
    pub fn read_f32(
        &self,
        kind: TensorKind,
        name: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>, CheckpointError> {
        let bytes = self.bytes(kind, name, StoredType::F32, shape)?;
        let values = bytes.chunks_exact(4);
        Ok(values
            .map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]]))
            .collect())
    }

    /// The values of a tensor of exactly this shape, in whatever dtype it is.
    pub fn read_widened(
        &self,
        kind: TensorKind,
        name: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>, CheckpointError> {
        let found = self.tensors.get(&(kind, name.to_string()));
        if found.is_none_or(|found| found.dtype == StoredType::F32) {
            return self.read_f32(kind, name, shape);
        }
        let bytes = self.bytes(kind, name, StoredType::Bf16, shape)?;
        let bits = bytes.chunks_exact(2).map(|bits| u16::from_le_bytes([bits[0], bits[1]]));
        Ok(bits.map(bf16_to_f32).collect())
    }

    fn bytes(
        &self,
        kind: TensorKind,
        name: &str,
        dtype: StoredType,
        shape: &[usize],
    ) -> Result<&[u8], CheckpointError> {
        let (path, name) = (self.directory.clone(), name.to_string());
        let Some(found) = self.tensors.get(&(kind, name.clone())) else {
            return Err(CheckpointError::Missing { path, kind, name });
        };
        if found.dtype != dtype || found.shape != shape {
            let got = format!("{} {:?}", found.dtype.name(), found.shape);
            let want = format!("{} {shape:?}", dtype.name());
            return Err(CheckpointError::Tensor { path, kind, name, got, want });
        }
        Ok(&self.maps[found.map][found.bytes.clone()])
    }

    fn add(&mut self, file_name: &str, want_bytes: u64) -> Result<(), CheckpointError> {
        let path = self.directory.join(file_name);
        let damaged = |what: String| CheckpointError::Damaged { path: path.clone(), what };
        let kind = TensorKind::of_file(file_name)
            .ok_or_else(|| damaged("its name says nothing of what it holds".into()))?;
        let map = complete_file(&path).map_err(io_error("opening", &path))?;
        if map.len() as u64 != want_bytes {
            return Err(damaged(format!("{} bytes, want {want_bytes}", map.len())));
        }
        for (name, located) in index(&map, self.maps.len()).map_err(damaged)? {
            let twice = format!("{name} stands in another file as well");
            if self.tensors.insert((kind, name), located).is_some() {
                return Err(CheckpointError::Damaged { path, what: twice });
            }
        }
        self.maps.push(map);
        Ok(())
    }
}

impl fmt::Debug for CheckpointReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("CheckpointReader");
        f.field("directory", &self.directory).field("tensors", &self.tensors.len());
        f.finish_non_exhaustive()
    }
}

/// Every tensor of one file, checked. The error says what is wrong with it.
fn index(bytes: &[u8], map: usize) -> Result<Vec<(String, Located)>, String> {
    let (header_bytes, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let data_start = size_of::<u64>() + header_bytes;
    let mut located = Vec::new();
    for name in names(&bytes[size_of::<u64>()..data_start])? {
        let info = metadata.info(&name).ok_or_else(|| format!("{name} is not a tensor"))?;
        let dtype = if info.dtype == Dtype::F32 {
            StoredType::F32
        } else if info.dtype == Dtype::BF16 {
            StoredType::Bf16
        } else {
            return Err(format!("{name} is {:?}, want F32 or BF16", info.dtype));
        };
        let (start, end) = info.data_offsets;
        let bytes = data_start + start..data_start + end;
        located.push((name, Located { map, bytes, dtype, shape: info.shape.clone() }));
    }
    Ok(located)
}

/// The names in a header, each plain and there once.
fn names(header: &[u8]) -> Result<BTreeSet<String>, String> {
    struct Names;

    impl<'de> Visitor<'de> for Names {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a safetensors header")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut names = Vec::new();
            while let Some((name, IgnoredAny)) = map.next_entry()? {
                names.push(name);
            }
            Ok(names)
        }
    }

    let mut json = serde_json::Deserializer::from_slice(header);
    let names = json.deserialize_map(Names).map_err(|error| error.to_string())?;
    let mut unique = BTreeSet::new();
    for name in names {
        if name == "__metadata__" {
            continue;
        }
        if !is_plain(&name) {
            return Err(format!("{name:?} is no name for a tensor"));
        }
        if let Some(name) = unique.replace(name) {
            return Err(format!("{name} is there twice"));
        }
    }
    Ok(unique)
}
