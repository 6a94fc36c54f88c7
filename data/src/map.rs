//! Finished files, mapped into memory. The only `unsafe` about files.

#![expect(unsafe_code, reason = "a memory map is a promise about other processes")]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a file of a run directory that is complete: a token shard or a checkpoint's file that has
/// its final name.
pub fn complete_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: a map is sound while nobody shortens or changes the file. The callers' writers give
    // a file its final name only when it is complete and never open it for writing afterwards, and
    // the run directory belongs to one launch at a time (`lock`).
    unsafe { Mmap::map(&file) }
}
