//! One safetensors file, opened and checked: the header is read and held against the file's size,
//! tensors are read by name when they are wanted.
//!
//! Files are read, not mapped: somebody else may shorten them while we look.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::header::{self, Entry, LENGTH_BYTES};
use crate::{CheckpointError, io_error, pickle};

/// A file of tensors.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    /// Where the data begins.
    data_start: u64,
    bytes: u64,
    entries: BTreeMap<String, Entry>,
}

impl TensorFile {
    /// Opens a file and checks its header.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::of(File::open(path).map_err(io_error("opening", path))?, path)
    }

    /// Checks the header of a file that is open, at its beginning; errors call it `path`.
    pub(crate) fn of(mut file: File, path: &Path) -> Result<Self, CheckpointError> {
        let damaged = |what: String| CheckpointError::Damaged { path: path.to_path_buf(), what };
        let metadata = file.metadata().map_err(io_error("reading", path))?;
        if !metadata.is_file() {
            return Err(damaged("it is not a file".into()));
        }
        let bytes = metadata.len();
        let mut first = [0; LENGTH_BYTES as usize];
        if bytes < LENGTH_BYTES {
            return Err(damaged(format!("{bytes} bytes are no safetensors file")));
        }
        file.read_exact(&mut first).map_err(io_error("reading", path))?;
        if let Some(kind) = pickle::kind_of_bytes(first) {
            return Err(pickle::refusal(path, kind));
        }
        let length = header::length(first, bytes).map_err(damaged)?;
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(io_error("reading", path))?;
        let data_start = LENGTH_BYTES + length;
        let entries = header::parse(&header, bytes - data_start).map_err(damaged)?;
        Ok(Self { path: path.to_path_buf(), file, data_start, bytes, entries })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's size.
    pub fn file_bytes(&self) -> u64 {
        self.bytes
    }

    /// Every tensor by name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The bytes of a tensor, row-major and little-endian.
    ///
    /// # Errors
    /// No tensor of that name; or the file is shorter than it was.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let Some(entry) = self.entries.get(name) else {
            let what = format!("it has no tensor {name}");
            return Err(CheckpointError::Damaged { path: self.path.clone(), what });
        };
        let mut bytes = vec![0; (entry.bytes.end - entry.bytes.start) as usize];
        let at = self.data_start + entry.bytes.start;
        self.file.read_exact_at(&mut bytes, at).map_err(io_error("reading", &self.path))?;
        Ok(bytes)
    }
}
