//! Where the coordinator writes down what it must know after a crash: records, each durable before
//! anything that depends on it is said.
//!
//! The store is two files of fixed size in the run directory that are written in turn. Records go one after
//! the other into one of them; when it is full, everything that is still of use goes as one record into
//! the other. So what is kept has a bound, nothing is renamed or deleted, and a disk that fills up
//! later takes no record away: the room is there from the start.
//!
//! A record is
//!
//! | bytes | what |
//! |---|---|
//! | 8 | turn: how often the files were changed, little endian |
//! | 8 | number of the record in its turn, from 0 |
//! | 8 | length of the text |
//! | 32 | BLAKE3 of the three numbers and the text |
//! | length | the text |
//!
//! A record that was cut short by a crash is the last, was never spoken of, and is left out. One that does
//! not fit its hash and has others behind it is damage.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::checkpoints::io;
use crate::error::Error;

/// Names of the two files, in the run directory.
pub const FILE_NAMES: [&str; 2] = ["coordinator-0.journal", "coordinator-1.journal"];

/// Room of each file. Of a few workers it takes a hundred records and more.
const FILE_BYTES: u64 = 512 << 10;

const NUMBERS_BYTES: usize = 24;
const HEAD_BYTES: usize = NUMBERS_BYTES + 32;

/// What takes records. The simulation has one of its own, in memory.
pub trait Store {
    /// All records since the last that replaced those before it, that one first; none at the very start.
    fn load(&mut self) -> Result<Vec<Vec<u8>>, Error>;

    /// Adds a record. It is durable when this returns.
    fn append(&mut self, record: &[u8]) -> Result<(), Error>;

    /// One record in the place of all: durable when this returns, and before that all are there.
    fn replace(&mut self, record: &[u8]) -> Result<(), Error>;

    /// Whether a record of so many bytes may be added; otherwise it is time to replace them.
    fn has_room(&self, bytes: usize) -> bool;
}

/// The two files.
#[derive(Debug)]
pub(crate) struct Journal {
    files: [File; 2],
    paths: [PathBuf; 2],
    turn: u64,
    /// Of the next record.
    number: u64,
    end: u64,
}

/// The records of one file; none if its first one is not whole.
struct Found {
    /// Of the records; else of the newest that lies behind the first, if any does.
    turn: u64,
    records: Vec<Vec<u8>>,
}

impl Journal {
    /// Opens or creates the files, and takes their room.
    pub(crate) fn open(run_dir: &Path) -> Result<Self, Error> {
        let paths = FILE_NAMES.map(|name| run_dir.join(name));
        let [first, second] = &paths;
        let files = [open(first)?, open(second)?];
        let synced = File::open(run_dir).and_then(|directory| directory.sync_all());
        synced.map_err(io("syncing", run_dir))?;
        Ok(Self { files, paths, turn: 0, number: 0, end: 0 })
    }

    fn slot(&self) -> usize {
        (self.turn % 2) as usize
    }

    fn write(&mut self, record: &[u8]) -> Result<(), Error> {
        let slot = self.slot();
        let bytes = framed(self.turn, self.number, record);
        let file = &self.files[slot];
        let written = file.write_all_at(&bytes, self.end).and_then(|()| file.sync_data());
        written.map_err(io("writing", &self.paths[slot]))?;
        self.number += 1;
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn read(&self, slot: usize) -> Result<Found, Error> {
        let path = &self.paths[slot];
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(io("reading", path))?;
        let Some((first, turn)) = record_at(&bytes, 0).map(|record| (record, turn_of(&bytes)))
        else {
            let places = 0..bytes.len().saturating_sub(HEAD_BYTES);
            let behind = places.filter(|place| record_at(&bytes, *place).is_some());
            let turn = behind.map(|place| turn_of(&bytes[place..])).max().unwrap_or(0);
            return Ok(Found { turn, records: Vec::new() });
        };
        let (mut records, mut at) = (vec![first.to_vec()], HEAD_BYTES + first.len());
        while let Some(record) = record_at(&bytes, at).filter(|_| {
            (turn_of(&bytes[at..]), number_of(&bytes[at..])) == (turn, records.len() as u64)
        }) {
            records.push(record.to_vec());
            at += HEAD_BYTES + record.len();
        }
        if later_record(&bytes, at, turn) {
            return Err(Error::Journal { path: path.clone(), at: at as u64 });
        }
        Ok(Found { turn, records })
    }
}

impl Store for Journal {
    fn load(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        let found = [self.read(0)?, self.read(1)?];
        let slot = usize::from(found[1].turn > found[0].turn);
        let [first, second] = found;
        let newest = if slot == 0 { first } else { second };
        if newest.turn == 0 {
            return Ok(Vec::new());
        }
        if newest.records.is_empty() {
            return Err(Error::Journal { path: self.paths[slot].clone(), at: 0 });
        }
        // Nothing is added behind what was cut short: the next record begins the other file.
        (self.turn, self.end) = (newest.turn, u64::MAX);
        Ok(newest.records)
    }

    fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        if self.turn == 0 || self.end == u64::MAX {
            return self.replace(record);
        }
        self.write(record)
    }

    fn replace(&mut self, record: &[u8]) -> Result<(), Error> {
        let before = (self.turn, self.number, self.end);
        (self.turn, self.number, self.end) = (self.turn + 1, 0, 0);
        let written = self.write(record);
        if written.is_err() {
            // The next attempt must not go over what is whole.
            (self.turn, self.number, self.end) = before;
        }
        written
    }

    fn has_room(&self, bytes: usize) -> bool {
        let after = self.end.saturating_add((HEAD_BYTES + bytes) as u64);
        self.turn > 0 && after <= FILE_BYTES
    }
}

fn open(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false).open(path);
    let file = opened.map_err(io("opening", path))?;
    let taken = || {
        let has = file.metadata()?.len();
        if has < FILE_BYTES {
            // Zeros, and not a hole: a hole takes room only when it is written.
            file.write_all_at(&vec![0; (FILE_BYTES - has) as usize], has)?;
            file.sync_all()?;
        }
        Ok(())
    };
    taken().map_err(io("taking room for", path))?;
    Ok(file)
}

/// The records of an earlier launch are nothing to go on with: its workers are gone.
pub fn forget(run_dir: &Path) -> io::Result<()> {
    for name in FILE_NAMES {
        match std::fs::remove_file(run_dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn framed(turn: u64, number: u64, record: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + record.len());
    for value in [turn, number, record.len() as u64] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes.extend_from_slice(hash(&bytes, record).as_bytes());
    bytes.extend_from_slice(record);
    bytes
}

fn hash(numbers: &[u8], record: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&numbers[..NUMBERS_BYTES]).update(record);
    hasher.finalize()
}

/// The record that begins at a place, if there is a whole one.
fn record_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let head = bytes.get(at..at.checked_add(HEAD_BYTES)?)?;
    let length = usize::try_from(u64_at(head, 16)).ok().filter(|_| u64_at(head, 0) > 0)?;
    let begin = at + HEAD_BYTES;
    let record = bytes.get(begin..begin.checked_add(length)?)?;
    (hash(head, record).as_bytes() == &head[NUMBERS_BYTES..]).then_some(record)
}

/// Whether a whole record of this turn lies somewhere behind a place where none is.
fn later_record(bytes: &[u8], at: usize, turn: u64) -> bool {
    let places = at..bytes.len().saturating_sub(HEAD_BYTES);
    places
        .filter(|place| u64_at(bytes, *place) == turn)
        .any(|place| record_at(bytes, place).is_some())
}

fn turn_of(head: &[u8]) -> u64 {
    u64_at(head, 0)
}

fn number_of(head: &[u8]) -> u64 {
    u64_at(head, 8)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::checkpoints::tests::TestDir;

    fn loaded(dir: &TestDir) -> Vec<String> {
        let records = Journal::open(&dir.0).unwrap().load().unwrap();
        records.into_iter().map(|record| String::from_utf8(record).unwrap()).collect()
    }

    fn file(dir: &TestDir, slot: usize) -> PathBuf {
        dir.0.join(FILE_NAMES[slot])
    }

    /// `replace` went to file 1, and three records follow it.
    fn written(name: &str) -> TestDir {
        let dir = TestDir::new(name);
        let mut journal = Journal::open(&dir.0).unwrap();
        assert!(!journal.has_room(1) && journal.load().unwrap().is_empty());
        for text in ["first", "second", "third"] {
            journal.append(text.as_bytes()).unwrap();
        }
        dir
    }

    #[test]
    fn records_come_back_in_order_and_the_files_are_as_long_as_at_the_start() {
        let dir = written("journal-order");
        assert_eq!(loaded(&dir), ["first", "second", "third"]);
        let mut journal = Journal::open(&dir.0).unwrap();
        journal.load().unwrap();
        assert!(!journal.has_room(1), "after a crash the other file is next");
        for turn in 0..5 {
            journal.replace(format!("all {turn}").as_bytes()).unwrap();
            assert!(journal.has_room(1_000) && !journal.has_room(FILE_BYTES as usize));
            journal.append(b"one more").unwrap();
            assert_eq!(loaded(&dir), [format!("all {turn}"), "one more".to_owned()]);
        }
        for slot in [0, 1] {
            assert_eq!(fs::metadata(file(&dir, slot)).unwrap().len(), FILE_BYTES);
        }
        forget(&dir.0).unwrap();
        forget(&dir.0).unwrap();
        assert!(loaded(&dir).is_empty());
    }

    #[test]
    fn a_record_cut_short_is_left_out_and_a_torn_beginning_leaves_the_file_before() {
        let dir = written("journal-torn");
        let whole = fs::read(file(&dir, 1)).unwrap();
        let end = 3 * HEAD_BYTES + "firstsecondthird".len();
        let third = end - HEAD_BYTES - "third".len();
        for cut in third..end {
            let mut bytes = whole.clone();
            bytes[cut..end].fill(0);
            fs::write(file(&dir, 1), bytes).unwrap();
            assert_eq!(loaded(&dir), ["first", "second"], "cut at {cut}");
        }
        fs::write(file(&dir, 1), whole).unwrap();
        let mut journal = Journal::open(&dir.0).unwrap();
        journal.load().unwrap();
        journal.replace(b"all").unwrap();
        let mut torn = fs::read(file(&dir, 0)).unwrap();
        torn[HEAD_BYTES + 1] ^= 1;
        fs::write(file(&dir, 0), torn).unwrap();
        assert_eq!(loaded(&dir), ["first", "second", "third"]);
    }

    #[test]
    fn a_flipped_bit_before_the_last_record_is_damage_that_is_named_with_what_to_do() {
        let dir = written("journal-flipped");
        let whole = fs::read(file(&dir, 1)).unwrap();
        let second = HEAD_BYTES + "first".len();
        let third = second + HEAD_BYTES + "second".len();
        for (byte, at) in
            (0..second).map(|byte| (byte, 0)).chain((second..third).map(|byte| (byte, second)))
        {
            let mut bytes = whole.clone();
            bytes[byte] ^= 0x10;
            fs::write(file(&dir, 1), bytes).unwrap();
            let error = Journal::open(&dir.0).unwrap().load().unwrap_err().to_string();
            assert!(
                error.contains(&format!("coordinator-1.journal is damaged at byte {at}:")),
                "{error}"
            );
            assert!(error.contains("the same command"), "{error}");
        }
    }
}
