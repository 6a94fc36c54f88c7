//! The files of a source: what their names say about their format, and how they lie on disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::error::{DataError, io_error};

/// What is in a file, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One document: the whole file. Every extension that is not below.
    Text,
    /// `.jsonl`, `.ndjson`: a document a line.
    JsonLines,
    /// `.parquet`: a document a row.
    Parquet,
    /// `.tokens`: our own shards.
    Shard,
    /// `.npy`: ids as NumPy's u16, u32 or i32.
    Npy,
    /// `.bin`: ids as little-endian u16, as nanoGPT writes them.
    Bin,
}

/// What a file is packed with, by its last extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    None,
    Gzip,
    Zstd,
}

/// A file with its size and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceFile {
    pub(crate) path: PathBuf,
    /// Size on disk.
    pub(crate) bytes: u64,
    /// Nanoseconds since 1970; 0 where the file system keeps no times.
    pub(crate) modified_ns: u64,
}

/// The format of a file of this name.
pub(crate) fn format_of(path: &Path) -> (Layout, Packing) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let (name, packing) = if let Some(inner) = name.strip_suffix(".gz") {
        (inner, Packing::Gzip)
    } else if let Some(inner) = name.strip_suffix(".zst") {
        (inner, Packing::Zstd)
    } else {
        (name.as_str(), Packing::None)
    };
    let layout = match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("jsonl" | "ndjson") => Layout::JsonLines,
        Some("parquet") => Layout::Parquet,
        Some("tokens") => Layout::Shard,
        Some("npy") => Layout::Npy,
        Some("bin") => Layout::Bin,
        _ => Layout::Text,
    };
    (layout, packing)
}

/// Looks at size and time.
pub(crate) fn look_at(path: &Path) -> Result<SourceFile, DataError> {
    let metadata = fs::metadata(path).map_err(io_error("reading", path))?;
    if metadata.is_dir() {
        let what = "it is a directory; name its files, e.g. with DIRECTORY/**/*.txt";
        return Err(DataError::content(path, "", what));
    }
    let modified = metadata.modified().ok();
    let since_1970 = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok(SourceFile {
        path: path.to_path_buf(),
        bytes: metadata.len(),
        modified_ns: since_1970.map_or(0, |time| time.as_nanos() as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_the_format() {
        let check = |name: &str, want| assert_eq!(format_of(Path::new(name)), want, "{name}");
        check("a.txt", (Layout::Text, Packing::None));
        check("dir.jsonl/README", (Layout::Text, Packing::None));
        check("a.rs.gz", (Layout::Text, Packing::Gzip));
        check("A.JSONL", (Layout::JsonLines, Packing::None));
        check("a.b.ndjson.zst", (Layout::JsonLines, Packing::Zstd));
        check("a.parquet", (Layout::Parquet, Packing::None));
        check("a.tokens", (Layout::Shard, Packing::None));
        check("a.npy.gz", (Layout::Npy, Packing::Gzip));
        check("a.bin", (Layout::Bin, Packing::None));
        check(".gz", (Layout::Text, Packing::Gzip));
    }
}
