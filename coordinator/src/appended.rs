//! A file that lines are appended to, which a full disk neither tears nor ends: what cannot be
//! written waits in memory, in order, and goes out with what comes after.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that may wait: some hundred thousand lines.
const WAITING_MAX: usize = 64 << 20;

/// The open file, and what is not yet in it.
#[derive(Debug)]
pub struct Appended {
    file: File,
    /// Bytes of whole lines in the file.
    end: u64,
    waiting: Vec<u8>,
}

impl Appended {
    /// Lines come after what is there. The file must be open for writing, and not for appending:
    /// Linux then ignores where a write should go.
    pub fn to(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        Ok(Self { file, end, waiting: Vec::new() })
    }

    /// Appends whole lines, now or later.
    ///
    /// # Errors
    /// So much waits that it is better to stop than to hold more.
    pub fn push(&mut self, lines: &[u8]) -> io::Result<()> {
        let held_before = !self.waiting.is_empty();
        self.waiting.extend_from_slice(lines);
        match self.flush() {
            Err(error) if self.waiting.len() > WAITING_MAX => Err(error),
            Err(error) => {
                if !held_before {
                    tracing::warn!(%error, "lines wait in memory until the disk takes them");
                }
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// The disk does not take it; it waits on, and the file ends with a whole line.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.file.write_all_at(&self.waiting, self.end) {
            // Should this fail, too, the torn line is removed when the file is next opened.
            self.file.set_len(self.end).ok();
            return Err(error);
        }
        self.end += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    /// The file itself, for a sync.
    pub fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};

    use super::*;
    use crate::checkpoints::tests::TestDir;

    #[test]
    fn what_a_disk_does_not_take_waits_in_order() {
        let dir = TestDir::new("appended");
        let path = dir.0.join("lines");
        fs::write(&path, "first\n").unwrap();
        // A file that is open for reading alone takes nothing.
        let mut lines = Appended::to(File::open(&path).unwrap()).unwrap();
        lines.push(b"second\n").unwrap();
        lines.push(b"third\n").unwrap();
        assert!(lines.flush().is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "first\n");
        lines.file = OpenOptions::new().write(true).open(&path).unwrap();
        lines.push(b"fourth\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "first\nsecond\nthird\nfourth\n");
        lines.flush().unwrap();
        lines.file = File::open(&path).unwrap();
        assert!(lines.push(&vec![b'x'; WAITING_MAX + 1]).is_err(), "not without end");
    }
}
