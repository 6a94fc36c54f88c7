//! A file as a stream of bytes: counted and hashed as it lies on disk, then unpacked.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

use super::Reading;
use crate::error::{DataError, io_error};
use crate::files::Packing;

const READ_BYTES: usize = 1 << 20;

/// Windows of zstd up to 2^27 bytes, 128 MiB: what its own tool unpacks without being asked.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Counts and hashes what is read of a file.
#[derive(Clone, Default)]
pub(crate) struct Tally(Rc<Sums>);

#[derive(Default)]
struct Sums {
    bytes: Cell<u64>,
    hasher: RefCell<blake3::Hasher>,
}

impl Tally {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes.get()
    }

    pub(crate) fn hash(&self) -> blake3::Hash {
        self.0.hasher.borrow().finalize()
    }

    pub(super) fn add(&self, bytes: &[u8]) {
        self.0.bytes.set(self.bytes() + bytes.len() as u64);
        self.0.hasher.borrow_mut().update(bytes);
    }

    /// Adds a whole file.
    pub(super) fn add_all(&self, file: &mut File) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                n => self.add(&buffer[..n]),
            }
        }
    }

    /// Forgets what was counted: the file is read once more.
    pub(super) fn restart(&self) {
        self.0.bytes.set(0);
        self.0.hasher.borrow_mut().reset();
    }
}

struct Counted {
    file: File,
    tally: Tally,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.tally.add(&buffer[..n]);
        Ok(n)
    }
}

/// Opens a file, unpacked.
pub(super) fn open(
    reading: &Reading<'_>,
    packing: Packing,
    tally: &Tally,
) -> Result<Box<dyn BufRead>, DataError> {
    let path = &reading.file.path;
    let file = File::open(path).map_err(io_error("opening", path))?;
    let counted = Counted { file, tally: tally.clone() };
    Ok(match packing {
        Packing::None => Box::new(BufReader::with_capacity(READ_BYTES, counted)),
        Packing::Gzip => {
            let packed = BufReader::with_capacity(READ_BYTES, counted);
            Box::new(BufReader::with_capacity(READ_BYTES, MultiGzDecoder::new(packed)))
        }
        Packing::Zstd => {
            let packed = BufReader::with_capacity(READ_BYTES, counted);
            let unpacked = zstd::stream::read::Decoder::with_buffer(packed).and_then(|mut zstd| {
                zstd.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Ok(zstd)
            });
            let unpacked = unpacked.map_err(io_error("opening", path))?;
            Box::new(BufReader::with_capacity(READ_BYTES, unpacked))
        }
    })
}

/// An error while reading such a stream: for packed files most likely the content.
pub(super) fn stream_error(
    reading: &Reading<'_>,
    packing: Packing,
) -> impl Fn(io::Error) -> DataError {
    let path = reading.file.path.clone();
    move |error| match packing {
        Packing::None => io_error("reading", &path)(error),
        Packing::Gzip | Packing::Zstd => {
            let what =
                format!("the packed data is damaged or ends early ({error}); fetch the file again");
            DataError::content(&path, "", what)
        }
    }
}

/// The hash of the first `bytes` of a file, and how many there were.
pub(crate) fn hash_start(
    path: &Path,
    bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(u64, blake3::Hash), DataError> {
    let file = File::open(path).map_err(io_error("opening", path))?;
    let mut start = file.take(bytes);
    let mut buffer = vec![0; READ_BYTES];
    let tally = Tally::default();
    loop {
        let n = start.read(&mut buffer).map_err(io_error("reading", path))?;
        if n == 0 {
            return Ok((tally.bytes(), tally.hash()));
        }
        tally.add(&buffer[..n]);
        progress(tally.bytes());
    }
}
