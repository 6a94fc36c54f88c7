//! Where files are put as they are written: into a directory, under their names and synced; or into scratch files
//! that have no names, from which they are sent elsewhere. Either way they are hashed as they go by.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use shoal_plan::checkpoint::CheckpointFile;

use crate::{CheckpointError, io_error, is_plain};

/// Takes files, one after the other.
pub trait Shelf {
    /// Takes the parts of a file, replacing an earlier one of its name.
    ///
    /// # Errors
    /// A disk that takes no more.
    fn put(
        &mut self,
        file_name: &str,
        parts: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<CheckpointFile, CheckpointError>;

    /// What to call the file in an error.
    fn place(&self, file_name: &str) -> PathBuf;
}

/// Files in a directory; each is synced, and so is the directory.
#[derive(Debug)]
pub struct Directory<'a>(pub &'a Path);

/// Files that only this process knows of. They take room where the system keeps temporary files (`TMPDIR`), and give
/// it back when they are dropped, however the process ends.
#[derive(Debug, Default)]
pub struct Scratch {
    pub files: Vec<(CheckpointFile, File)>,
}

impl Shelf for Directory<'_> {
    fn put(
        &mut self,
        file_name: &str,
        parts: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<CheckpointFile, CheckpointError> {
        assert!(is_plain(file_name), "{file_name:?} is no plain file name");
        let path = self.place(file_name);
        let mut file = File::create(&path).map_err(io_error("creating", &path))?;
        let written = write(&mut file, &path, file_name, parts)?;
        file.sync_all().map_err(io_error("syncing", &path))?;
        sync_directory(self.0)?;
        Ok(written)
    }

    fn place(&self, file_name: &str) -> PathBuf {
        self.0.join(file_name)
    }
}

impl Shelf for Scratch {
    fn put(
        &mut self,
        file_name: &str,
        parts: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<CheckpointFile, CheckpointError> {
        let (mut file, path) = scratch_file()?;
        let written = write(&mut file, &path, file_name, parts)?;
        file.seek(SeekFrom::Start(0)).map_err(io_error("rewinding", &path))?;
        self.files.retain(|(earlier, _)| earlier.name != file_name);
        self.files.push((written.clone(), file));
        Ok(written)
    }

    fn place(&self, file_name: &str) -> PathBuf {
        std::env::temp_dir().join(file_name)
    }
}

/// A file without a name, and what it was called before it lost it.
///
/// # Errors
/// No room for temporary files, or no leave to make one.
pub fn scratch_file() -> Result<(File, PathBuf), CheckpointError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!(".shoal-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        match opened {
            Ok(file) => {
                fs::remove_file(&path).map_err(io_error("unlinking", &path))?;
                return Ok((file, path));
            }
            // Another process of this number was killed between the two calls: its file stays, empty.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_error("creating", &path)(error)),
        }
    }
}

fn write(
    file: &mut File,
    path: &Path,
    file_name: &str,
    parts: &mut dyn Iterator<Item = &[u8]>,
) -> Result<CheckpointFile, CheckpointError> {
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    for part in parts {
        hasher.update(part);
        bytes += part.len() as u64;
        file.write_all(part).map_err(io_error("writing", path))?;
    }
    let blake3 = hasher.finalize().to_hex().to_string();
    Ok(CheckpointFile { name: file_name.to_string(), bytes, blake3 })
}

/// Makes a rename or a new file last.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), CheckpointError> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(io_error("syncing", directory))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_scratch_file_has_the_same_bytes_and_hash_and_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let parts = [&b"abc"[..], b"", b"def"];
        let mut scratch = Scratch::default();
        let named = Directory(dir.path()).put("x", &mut parts.into_iter()).unwrap();
        assert_eq!(scratch.put("x", &mut [&b"older"[..]].into_iter()).unwrap().bytes, 5);
        assert_eq!(scratch.put("x", &mut parts.into_iter()).unwrap(), named);
        let [(file, content)] = &mut scratch.files[..] else { panic!("one of a name") };
        let mut text = String::new();
        content.read_to_string(&mut text).unwrap();
        assert_eq!((&*file, text.as_str()), (&named, "abcdef"));
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&content.metadata().unwrap()), 0);
    }
}
