//! Writes a model's tensors into safetensors files, one tensor at a time: which file a tensor is in
//! and where follows from names, shapes and dtypes, so headers are written first and tensors may
//! come in any order. Nothing but the tensor at hand is in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::hub::{INDEX_FILE, SINGLE_FILE};
use crate::hugging_face::index_json;
use crate::write::{Placed, header_of, write_bytes};
use crate::{CheckpointError, StoredType, io_error};

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: StoredType,
}

/// Files with room for all tensors of a model.
#[derive(Debug)]
pub struct ModelWriter {
    directory: PathBuf,
    shards: Vec<Shard>,
    places: BTreeMap<String, Place>,
    /// Names of tensors that have not come yet.
    waiting: BTreeSet<String>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    name: String,
    file: File,
}

/// Where a tensor goes.
#[derive(Clone, Copy, Debug)]
struct Place {
    shard: usize,
    start: u64,
    bytes: u64,
}

/// Name, first byte and bytes of each tensor of a file.
type Starts = Vec<(String, u64, u64)>;

impl Planned {
    fn bytes(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product::<u64>() * self.dtype.size() as u64
    }
}

impl ModelWriter {
    /// Creates the files and writes their headers. A file has at most `shard_bytes` of tensors, or
    /// one tensor that has more. Nothing may be planned twice.
    pub fn create(
        directory: &Path,
        planned: &[Planned],
        shard_bytes: u64,
    ) -> Result<Self, CheckpointError> {
        let parts = divide(planned, shard_bytes);
        let (mut shards, mut places) = (Vec::new(), BTreeMap::new());
        for (at, part) in parts.iter().enumerate() {
            let name = match parts.len() {
                1 => SINGLE_FILE.to_owned(),
                n => format!("model-{:05}-of-{n:05}.safetensors", at + 1),
            };
            let path = directory.join(&name);
            let (file, placed) = create_shard(&path, part)?;
            places.extend(
                placed
                    .into_iter()
                    .map(|(name, start, bytes)| (name, Place { shard: at, start, bytes })),
            );
            shards.push(Shard { path, name, file });
        }
        assert_eq!(places.len(), planned.len(), "every tensor is planned once");
        let waiting = places.keys().cloned().collect();
        Ok(Self { directory: directory.to_path_buf(), shards, places, waiting })
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.places.values().map(|place| place.bytes).sum()
    }

    /// Names of the files, in order.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().map(|shard| shard.name.as_str())
    }

    /// Writes one tensor, row-major and little-endian. It must have been planned with that size.
    pub fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let place = self.places[name];
        assert_eq!(bytes.len() as u64, place.bytes, "{name} has another size than was planned");
        assert!(self.waiting.remove(name), "{name} came twice");
        let Shard { path, file, .. } = &self.shards[place.shard];
        file.write_all_at(bytes, place.start).map_err(io_error("writing", path))
    }

    /// Syncs the files, and writes the index if there are several. All tensors must have come.
    pub fn finish(self) -> Result<(), CheckpointError> {
        assert!(self.waiting.is_empty(), "{} tensors did not come", self.waiting.len());
        for Shard { path, file, .. } in &self.shards {
            file.sync_all().map_err(io_error("syncing", path))?;
        }
        if self.shards.len() > 1 {
            let shard = |place: &Place| self.shards[place.shard].name.as_str();
            let map = self.places.iter().map(|(name, place)| (name.as_str(), shard(place)));
            let index = index_json(map.collect(), self.tensor_bytes());
            write_bytes(&self.directory, INDEX_FILE, &index)?;
        }
        Ok(())
    }
}

/// Consecutive tensors for each file.
fn divide(planned: &[Planned], shard_bytes: u64) -> Vec<Vec<&Planned>> {
    let mut parts: Vec<Vec<&Planned>> = vec![Vec::new()];
    let mut filled = 0;
    for one in planned {
        if filled > 0 && filled + one.bytes() > shard_bytes {
            parts.push(Vec::new());
            filled = 0;
        }
        filled += one.bytes();
        parts.last_mut().expect("there is a first").push(one);
    }
    parts
}

/// A file of its final size with its header: and each tensor's name, place and bytes.
fn create_shard(path: &Path, part: &[&Planned]) -> Result<(File, Starts), CheckpointError> {
    let mut sorted = part.to_vec();
    // The widest first: then every tensor is aligned to its own elements.
    sorted.sort_by(|a, b| (b.dtype.size(), &a.name).cmp(&(a.dtype.size(), &b.name)));
    let placed: Vec<Placed<'_>> = (sorted.iter())
        .map(|one| Placed {
            name: &one.name,
            shape: &one.shape,
            dtype: one.dtype,
            bytes: one.bytes() as usize,
        })
        .collect();
    let header = header_of(&placed, path)?;
    let file = File::create(path).map_err(io_error("creating", path))?;
    let mut start = 8 + header.len() as u64;
    let length = (header.len() as u64).to_le_bytes();
    let write = |bytes: &[u8], at| file.write_all_at(bytes, at).map_err(io_error("writing", path));
    write(&length, 0)?;
    write(&header, 8)?;
    let mut all = Vec::new();
    for one in sorted {
        all.push((one.name.clone(), start, one.bytes()));
        start += one.bytes();
    }
    file.set_len(start).map_err(io_error("writing", path))?;
    Ok((file, all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorFile;

    fn planned(name: &str, n: usize, dtype: StoredType) -> Planned {
        Planned { name: name.into(), shape: vec![n], dtype }
    }

    #[test]
    fn tensors_in_any_order_are_read_back_from_the_files_of_the_index() {
        let scratch = tempfile::tempdir().unwrap();
        let all = [
            planned("a", 3, StoredType::F8E4m3),
            planned("b", 2, StoredType::F32),
            planned("c", 5, StoredType::Bf16),
            planned("d", 1, StoredType::F32),
        ];
        let mut writer = ModelWriter::create(scratch.path(), &all, 11).unwrap();
        assert_eq!(writer.tensor_bytes(), 3 + 8 + 10 + 4);
        let bytes = |one: &Planned| vec![one.name.as_bytes()[0]; one.bytes() as usize];
        for one in all.iter().rev() {
            writer.put(&one.name, &bytes(one)).unwrap();
        }
        let files: Vec<String> = writer.files().map(str::to_owned).collect();
        assert_eq!(files.len(), 3, "{files:?}");
        writer.finish().unwrap();
        let text = std::fs::read(scratch.path().join(INDEX_FILE)).unwrap();
        let index = crate::index::parse(&text).unwrap();
        for one in &all {
            let file = TensorFile::open(&scratch.path().join(&index[&one.name])).unwrap();
            assert_eq!(file.read(&one.name).unwrap(), bytes(one));
        }
        assert_eq!(index["a"], "model-00001-of-00003.safetensors");
        assert_eq!(index["a"], index["b"]);
    }

    #[test]
    #[should_panic(expected = "1 tensors did not come")]
    fn a_file_with_a_hole_is_a_bug() {
        let scratch = tempfile::tempdir().unwrap();
        let all = [planned("a", 3, StoredType::F32)];
        ModelWriter::create(scratch.path(), &all, u64::MAX).unwrap().finish().unwrap();
    }
}
