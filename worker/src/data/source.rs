//! The text files: which are read, how far, what they hold, and which are held out.

use std::fs::{self, File};
use std::io::{Read, Take};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::{DataError, Settings, io_error, windows};

const READ_BYTES: usize = 1 << 20;

/// A held-out share above this many times the wanted one means that documents are too uneven.
const SHARE_EXCESS_MAX: f64 = 3.0;

/// A file of the corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) path: PathBuf,
    /// Size on disk.
    pub(super) bytes: u64,
    /// How much of it is text of this run: less than `bytes` where the limit cuts it.
    pub(super) bytes_read: u64,
    /// Nanoseconds since 1970; 0 where the file system keeps no times.
    pub(super) modified_ns: u64,
    /// Of the bytes read.
    pub(super) hash: blake3::Hash,
}

/// The files up to the limit, not yet read: their hashes are those of nothing.
pub(super) struct Corpus {
    pub(super) files: Vec<Document>,
}

/// Which part of the stream is kept for evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HoldOut {
    /// One flag per document.
    Documents(Vec<bool>),
    /// The last so many bytes.
    Tail(u64),
}

impl Corpus {
    /// Looks at sizes and times, up to the limit.
    pub(super) fn survey(files: &[PathBuf], bytes_max: u64) -> Result<Self, DataError> {
        let mut left = bytes_max;
        let mut surveyed = Vec::new();
        for path in files {
            if left == 0 {
                break;
            }
            let metadata = fs::metadata(path).map_err(io_error("reading", path))?;
            let modified = metadata.modified().ok();
            let since_1970 = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let bytes_read = metadata.len().min(left);
            left -= bytes_read;
            surveyed.push(Document {
                path: path.clone(),
                bytes: metadata.len(),
                bytes_read,
                modified_ns: since_1970.map_or(0, |time| time.as_nanos() as u64),
                hash: blake3::hash(b""),
            });
        }
        Ok(Self { files: surveyed })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes_read).sum()
    }

    /// Reads every file once. `progress` is told the bytes done.
    pub(super) fn hash(self, progress: &mut dyn FnMut(u64)) -> Result<Vec<Document>, DataError> {
        let mut done = 0;
        let mut documents = self.files;
        for document in &mut documents {
            let mut hasher = blake3::Hasher::new();
            document.for_each_piece(&mut |piece| {
                hasher.update(piece);
                done += piece.len() as u64;
                progress(done);
                Ok(())
            })?;
            document.hash = hasher.finalize();
        }
        Ok(documents)
    }
}

impl Document {
    /// Hands the text over piece by piece; an error if there is less of it than was surveyed.
    pub(super) fn for_each_piece(
        &self,
        take: &mut dyn FnMut(&[u8]) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let file = File::open(&self.path).map_err(io_error("opening", &self.path))?;
        let mut text: Take<File> = file.take(self.bytes_read);
        let mut buffer = vec![0; READ_BYTES.min(self.bytes_read as usize)];
        let mut got = 0;
        while got < self.bytes_read {
            let n = text.read(&mut buffer).map_err(io_error("reading", &self.path))?;
            if n == 0 {
                return Err(DataError::ChangedWhileRead { path: self.path.clone() });
            }
            got += n as u64;
            take(&buffer[..n])?;
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Chooses what is held out: documents by content, or the tail where that leaves a side too small.
pub(super) fn hold_out(documents: &[Document], settings: &Settings) -> Result<HoldOut, DataError> {
    let fraction = f64::from(settings.heldout_fraction);
    let total: u64 = documents.iter().map(|document| document.bytes_read).sum();
    let chosen: Vec<bool> =
        documents.iter().map(|document| unit_interval(&document.hash) < fraction).collect();
    let heldout = documents.iter().zip(&chosen).filter(|(_, chosen)| **chosen);
    let heldout: u64 = heldout.map(|(document, _)| document.bytes_read).sum();

    let Settings { sequence, windows_min_train, windows_min_heldout, .. } = *settings;
    let is_enough = |heldout: u64| {
        windows(heldout, sequence) >= windows_min_heldout
            && windows(total - heldout, sequence) >= windows_min_train
    };
    if is_enough(heldout) && heldout as f64 <= SHARE_EXCESS_MAX * fraction * total as f64 {
        return Ok(HoldOut::Documents(chosen));
    }
    let sequence_bytes = u64::from(sequence);
    let heldout_min = windows_min_heldout * sequence_bytes + 1;
    let tail = ((total as f64 * fraction).round() as u64).max(heldout_min).min(total);
    if is_enough(tail) {
        return Ok(HoldOut::Tail(tail));
    }
    if is_enough(heldout_min.min(total)) {
        return Ok(HoldOut::Tail(heldout_min));
    }
    let want = heldout_min + windows_min_train * sequence_bytes + 1;
    Err(DataError::TooSmall { got: total, files: documents.len(), want, sequence })
}

/// The first 8 bytes of a hash as a number, 0 <= x < 1, equally likely everywhere.
fn unit_interval(hash: &blake3::Hash) -> f64 {
    let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    (u64::from_le_bytes(*first) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sizes: &[u64], settings: Settings, want: &str) {
        let document = |(at, bytes): (usize, &u64)| Document {
            path: PathBuf::from(format!("text-{at}")),
            bytes: *bytes,
            bytes_read: *bytes,
            modified_ns: 0,
            hash: blake3::hash(&[at as u8]),
        };
        let documents: Vec<_> = sizes.iter().enumerate().map(document).collect();
        let got = match hold_out(&documents, &settings) {
            Ok(HoldOut::Documents(chosen)) => {
                format!("{} of {}", chosen.iter().filter(|chosen| **chosen).count(), chosen.len())
            }
            Ok(HoldOut::Tail(bytes)) => format!("tail {bytes}"),
            Err(error) => error.to_string(),
        };
        assert!(got.starts_with(want), "{got}");
    }

    #[test]
    fn documents_are_held_out_where_both_sides_get_enough() {
        let settings = Settings {
            bytes_max: u64::MAX,
            heldout_fraction: 0.1,
            sequence: 10,
            windows_min_train: 2,
            windows_min_heldout: 1,
        };
        check(&[100; 100], settings, "13 of 100");
        // One document: the tail of it.
        check(&[1000], settings, "tail 100");
        // The share is less than a window: one window all the same.
        check(&[60], settings, "tail 11");
        check(&[32], settings, "tail 11");
        check(&[31], settings, "too little text: 31 bytes in 1 files, want 32");
        // A chosen document that is most of the text.
        let first_chosen = Settings { heldout_fraction: 0.2, ..settings };
        let mut sizes = [10; 30];
        sizes[chosen_one(0.2)] = 10_000;
        check(&sizes, first_chosen, "tail 2058");
    }

    fn chosen_one(fraction: f64) -> usize {
        (0..30).find(|at| unit_interval(&blake3::hash(&[*at as u8])) < fraction).unwrap()
    }
}
