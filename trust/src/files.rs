//! Keys and certificates on disk. What is secret is nobody's but its owner's, from the first byte on,
//! and a file is there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::TrustError;

/// Larger than any file of ours.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Of what is secret: read and written by its owner.
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;
const OTHERS: u32 = 0o077;

/// Whether a file's owner keeps it to themselves; an error says how to mend it. A link is refused,
/// whatever it leads to: who may change it decides what is read.
pub fn refuse_if_others_may_read(path: &Path) -> Result<(), TrustError> {
    let metadata = fs::symlink_metadata(path).map_err(|source| file("looking at", path, source))?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let got = if kind.is_symlink() { "a symbolic link" } else { "not a file" };
        return Err(TrustError::NotRegular { path: path.to_owned(), got });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(TrustError::OthersMayRead { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Reads a file that only its owner may read.
pub(crate) fn read_private(path: &Path) -> Result<String, TrustError> {
    refuse_if_others_may_read(path)?;
    let reading = |source| file("reading", path, source);
    let looked_at = fs::symlink_metadata(path).map_err(reading)?;
    let opened = File::open(path).map_err(reading)?;
    let metadata = opened.metadata().map_err(reading)?;
    if (metadata.dev(), metadata.ino()) != (looked_at.dev(), looked_at.ino()) {
        let got = "another file than a moment ago";
        return Err(TrustError::NotRegular { path: path.to_owned(), got });
    }
    text(opened).map_err(reading)
}

/// Reads a file that anybody may read.
pub(crate) fn read_public(path: &Path) -> Result<String, TrustError> {
    let reading = |source| file("reading", path, source);
    text(File::open(path).map_err(reading)?).map_err(reading)
}

fn text(opened: File) -> io::Result<String> {
    let mut text = String::new();
    opened.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let words = format!("it has more than {FILE_BYTES_MAX} bytes");
        return Err(io::Error::new(ErrorKind::InvalidData, words));
    }
    Ok(text)
}

/// A file that is written and synced under another name, and gone again unless it is put in place.
pub(crate) struct Aside {
    from: PathBuf,
    to: PathBuf,
}

impl Aside {
    pub(crate) fn private(to: &Path, text: &str) -> Result<Self, TrustError> {
        Self::write(to, text, PRIVATE)
    }

    pub(crate) fn public(to: &Path, text: &str) -> Result<Self, TrustError> {
        Self::write(to, text, PUBLIC)
    }

    fn write(to: &Path, text: &str, mode: u32) -> Result<Self, TrustError> {
        let writing = |source| file("writing", to, source);
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        let from = to.with_file_name(format!(".{name}.{}", std::process::id()));
        // Left behind by a process of the same number that was killed.
        match fs::remove_file(&from) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(writing(error)),
            Ok(()) | Err(_) => {}
        }
        let aside = Self { from, to: to.to_owned() };
        let mut opened = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&aside.from)
            .map_err(writing)?;
        opened.write_all(text.as_bytes()).and_then(|()| opened.sync_all()).map_err(writing)?;
        Ok(aside)
    }

    /// In the place of what is there.
    pub(crate) fn replace(self) -> Result<(), TrustError> {
        fs::rename(&self.from, &self.to).map_err(|source| file("replacing", &self.to, source))
    }

    /// Only where nothing is, even if two do this at once.
    pub(crate) fn create(self) -> Result<(), TrustError> {
        fs::hard_link(&self.from, &self.to).map_err(|source| {
            if source.kind() == ErrorKind::AlreadyExists {
                return TrustError::Exists { path: self.to.clone() };
            }
            file("creating", &self.to, source)
        })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Renamed, it is not there any more.
        let _ = fs::remove_file(&self.from);
    }
}

/// Makes a directory for keys, which others may not look into. One that is there stays as it is.
pub(crate) fn directory(path: &Path) -> Result<(), TrustError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| file("making the directory", path, source))
}

/// Makes what was put in place durable.
pub(crate) fn sync(directory: &Path) -> Result<(), TrustError> {
    let synced = File::open(directory).and_then(|opened| opened.sync_all());
    synced.map_err(|source| file("syncing", directory, source))
}

fn file(doing: &'static str, path: &Path, source: io::Error) -> TrustError {
    TrustError::File { doing, path: path.to_owned(), source }
}
