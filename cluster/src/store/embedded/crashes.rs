//! A disk that loses power at any of its operations, with what was not synced yet written in part or not at all; and
//! one that is full for a while.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::*;

/// Transactions of one life.
const WRITES: u64 = 12;

/// What was not synced is lost in so many different ways.
const WAYS: u64 = 3;

#[derive(Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Length(u64),
}

/// What is wrong with the disk, and from which of its operations on.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    /// Nothing works any more.
    Dead {
        from: u64,
    },
    /// Nothing can be written, for so many operations.
    Full {
        from: u64,
        times: u64,
    },
}

#[derive(Debug, Default)]
struct State {
    synced: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<Op>,
    /// Writes, changes of length and syncs so far.
    operations: u64,
}

#[derive(Clone, Debug)]
struct Disk(Arc<Mutex<State>>, Trouble);

fn apply(bytes: &mut Vec<u8>, op: &Op, part: usize) {
    match op {
        Op::Write(at, data) => {
            let (at, data) = (*at as usize, &data[..part.min(data.len())]);
            let end = at + data.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[at..end].copy_from_slice(data);
        }
        Op::Length(length) => bytes.resize(*length as usize, 0),
    }
}

impl Disk {
    /// With a database on it that was just made.
    fn new(trouble: Trouble) -> Self {
        let disk = Self(Arc::default(), Trouble::None);
        drop(disk.store().unwrap());
        let mut state = disk.0.lock().unwrap();
        (state.operations, state.synced, state.unsynced) = (0, state.now.clone(), Vec::new());
        drop(state);
        Self(disk.0, trouble)
    }

    /// What is found when the power is back: of what was not synced, some, all or a part.
    fn after_the_crash(&self, seed: u64) -> Self {
        let state = self.0.lock().unwrap();
        let mut found = state.synced.clone();
        let mut dice = seed;
        for op in &state.unsynced {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            match dice >> 62 {
                0 => {}
                // Sectors arrive in any order, and whole.
                1 => apply(&mut found, op, 512 * ((dice >> 40) as usize % 8)),
                _ => apply(&mut found, op, usize::MAX),
            }
        }
        let state = State { synced: found.clone(), now: found, ..State::default() };
        Self(Arc::new(Mutex::new(state)), Trouble::None)
    }

    fn operation(&self, is_write: bool, op: impl FnOnce(&mut State)) -> Result<(), io::Error> {
        let mut state = self.0.lock().unwrap();
        let n = state.operations;
        state.operations += 1;
        let broken = match self.1 {
            Trouble::None => None,
            Trouble::Dead { from } => (n >= from).then_some(ErrorKind::Other),
            Trouble::Full { from, times } => {
                (is_write && (from..from + times).contains(&n)).then_some(ErrorKind::StorageFull)
            }
        };
        if let Some(kind) = broken {
            return Err(io::Error::from(kind));
        }
        op(&mut state);
        Ok(())
    }

    fn change(&self, op: Op) -> Result<(), io::Error> {
        self.operation(true, |state| {
            apply(&mut state.now, &op, usize::MAX);
            state.unsynced.push(op);
        })
    }

    fn store(&self) -> Result<Embedded, StoreError> {
        let disk = self.clone();
        let open = move |_: &Path| Database::builder().create_with_backend(disk.clone());
        Embedded::over(Path::new("cluster.redb"), Box::new(open))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let state = self.0.lock().unwrap();
        let at = offset as usize;
        let found = state.now.get(at..at + out.len());
        let found = found.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.change(Op::Length(len))
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.operation(false, |state| {
            state.synced.clone_from(&state.now);
            state.unsynced.clear();
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.change(Op::Write(offset, data.to_vec()))
    }
}

/// What the n-th transaction changes: three keys together, one of them long, and one that goes.
fn changes(n: u64) -> Vec<Change> {
    let put = |key: String, value: Vec<u8>| (key, Some(value));
    vec![
        put("first".to_owned(), n.to_le_bytes().to_vec()),
        put(format!("long/{}", n % 3), vec![n as u8; 3_000 * (n as usize % 4)]),
        put(format!("short/{n}"), vec![n as u8; 10]),
        (format!("short/{}", n.saturating_sub(4)), None),
        put("last".to_owned(), n.to_le_bytes().to_vec()),
    ]
}

/// What is there after the first n.
fn model(n: u64) -> Vec<(String, Vec<u8>)> {
    let mut known = BTreeMap::new();
    for (key, value) in (1..=n).flat_map(changes) {
        match value {
            Some(value) => drop(known.insert(key, value)),
            None => drop(known.remove(&key)),
        }
    }
    known.into_iter().collect()
}

/// Operations of a whole life of a disk that is sound.
fn operations() -> u64 {
    let disk = Disk::new(Trouble::None);
    let mut store = disk.store().unwrap();
    for n in 1..=WRITES {
        store.write(&changes(n)).unwrap();
    }
    let operations = disk.0.lock().unwrap().operations;
    assert!(operations > WRITES * 3, "{operations}: each writes, and syncs");
    operations
}

#[test]
fn what_was_answered_survives_a_crash_at_every_operation_of_the_disk() {
    for from in 0..operations() {
        let disk = Disk::new(Trouble::Dead { from });
        let mut answered = 0;
        if let Ok(mut store) = disk.store() {
            for n in 1..=WRITES {
                if store.write(&changes(n)).is_err() {
                    break;
                }
                answered = n;
            }
        }
        for seed in 0..WAYS {
            let found = disk.after_the_crash(seed + WAYS * from);
            let mut store = found.store().unwrap_or_else(|error| panic!("at {from}: {error}"));
            let read = store.load().unwrap_or_else(|error| panic!("at {from}: {error}"));
            // What was under way when it happened may be there whole.
            let is_whole = read == model(answered) || read == model(answered + 1);
            assert!(is_whole, "at {from}, after {answered}: {:?}", keys(&read));
            store.write(&changes(answered + 1)).unwrap();
            assert_eq!(keys(&store.load().unwrap()), keys(&model(answered + 1)), "at {from}");
        }
    }
}

#[test]
fn a_disk_that_was_full_for_a_while_takes_what_it_refused() {
    for from in (0..operations()).step_by(3) {
        let disk = Disk::new(Trouble::Full { from, times: 5 });
        let mut refused = 0;
        let mut store = loop {
            match disk.store() {
                Ok(store) => break store,
                Err(error) => {
                    refused += 1;
                    assert!(refused < 100, "at {from}: {error}");
                }
            }
        };
        for n in 1..=WRITES {
            while store.write(&changes(n)).is_err() {
                refused += 1;
                assert!(refused < 100, "at {from}: it is full for five operations");
                let read = store.load();
                let is_whole =
                    read.as_ref().map_or(true, |read| *read == model(n - 1) || *read == model(n));
                assert!(is_whole, "at {from}, before {n}: {read:?}");
            }
        }
        assert_eq!(store.load().unwrap(), model(WRITES), "at {from}");
        drop(store);
        assert_eq!(disk.store().unwrap().load().unwrap(), model(WRITES), "at {from}");
    }
}

fn keys(records: &[(String, Vec<u8>)]) -> Vec<(&str, usize)> {
    records.iter().map(|(key, value)| (key.as_str(), value.len())).collect()
}
