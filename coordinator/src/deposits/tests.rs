//! Files that come as announced, and files that do not: on a real disk, without a network.

use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, RunId, WorkerId};
use shoal_plan::standing::Standing;

use super::*;
use crate::checkpoints::tests::TestDir;

fn deposit(step: u64, name: &str, bytes: &[u8]) -> Deposit {
    let blake3 = blake3::hash(bytes).to_hex().to_string();
    Deposit {
        run: RunId("r".into()),
        worker: WorkerId(0),
        generation: Generation(1),
        standing: Standing { step, ..Standing::default() },
        cell: CellId(0),
        file: CheckpointFile { name: name.into(), bytes: bytes.len() as u64, blake3 },
    }
}

fn begun(deposits: &Arc<Deposits>, deposit: &Deposit) -> Box<Incoming> {
    match deposits.begin(deposit).unwrap() {
        Begun::Incoming(incoming) => incoming,
        Begun::Here => panic!("nothing is there"),
    }
}

fn left(deposit: &Arc<Deposits>, bytes: &[&[u8]], want: &Deposit) -> Result<(), DepositError> {
    let mut incoming = begun(deposit, want);
    for chunk in bytes {
        incoming.take(chunk)?;
    }
    incoming.sync()?;
    incoming.finish()
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_has_its_name_when_all_of_it_is_there_and_not_before() {
    let dir = TestDir::new("deposits-whole");
    let deposits = Deposits::new(dir.0.clone());
    let want = deposit(4, "x.safetensors", b"abcdef");
    let mut incoming = begun(&deposits, &want);
    incoming.take(b"abc").unwrap();
    let partial = dir.0.join(".step-4.g1.partial");
    assert_eq!(names(&partial), [".x.safetensors.deposit"]);
    incoming.take(b"def").unwrap();
    incoming.sync().unwrap();
    incoming.finish().unwrap();
    assert_eq!(names(&partial), ["x.safetensors"]);
    assert_eq!(fs::read(partial.join("x.safetensors")).unwrap(), b"abcdef");
    // Said twice, because the answer was lost, it is there; another one of that name is refused.
    assert!(matches!(deposits.begin(&want).unwrap(), Begun::Here));
    for other in [&b"abcdeg"[..], b"abcde"] {
        let error = deposits.begin(&deposit(4, "x.safetensors", other)).unwrap_err();
        assert_eq!(error.to_string(), "another x.safetensors is here already");
    }
}

#[test]
fn what_is_not_as_announced_is_refused_and_leaves_nothing() {
    let dir = TestDir::new("deposits-unfit");
    let deposits = Deposits::new(dir.0.clone());
    let want = deposit(4, "x", b"abcdef");
    for (chunks, why) in [
        (&[&b"abcdef"[..], b"g"][..], "x is longer than 6 bytes"),
        (&[b"abcdefg"], "x is longer than 6 bytes"),
        (&[b"abcde"], "x ends after 5 of 6 bytes"),
        (&[], "x ends after 0 of 6 bytes"),
        (&[b"abcdeg"], "x has blake3 "),
    ] {
        let error = left(&deposits, chunks, &want).unwrap_err();
        assert!(matches!(error, DepositError::Unfit(_)) && error.to_string().starts_with(why));
        assert_eq!(names(&dir.0), [""; 0], "{why}");
    }
    left(&deposits, &[b"abcdef"], &want).unwrap();
    // What breaks off beside a good one takes that with it.
    drop(begun(&deposits, &deposit(4, "y", b"y")));
    assert_eq!(names(&dir.0.join(".step-4.g1.partial")), ["x"]);
}

#[test]
fn a_file_on_its_way_is_not_sent_twice_and_a_dead_coordinators_rest_is_replaced() {
    let dir = TestDir::new("deposits-twice");
    let deposits = Deposits::new(dir.0.clone());
    let want = deposit(4, "x", b"abcdef");
    let first = begun(&deposits, &want);
    let error = deposits.begin(&want).unwrap_err();
    assert_eq!(error.to_string(), "x is on its way already");
    assert!(matches!(error, DepositError::Busy(_)));
    drop(first);
    // As a kill leaves it.
    let partial = dir.0.join(".step-4.g1.partial");
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join(".x.deposit"), "half of another file, and longer").unwrap();
    let next = Deposits::new(dir.0.clone());
    left(&next, &[b"abc", b"def"], &want).unwrap();
    assert_eq!(names(&partial), ["x"]);
    assert_eq!(fs::read(partial.join("x")).unwrap(), b"abcdef");
}

#[test]
fn checkpoints_that_are_begun_and_never_complete_do_not_fill_the_disk() {
    let dir = TestDir::new("deposits-many");
    let deposits = Deposits::new(dir.0.clone());
    for step in 1..=BEGUN_MAX as u64 {
        left(&deposits, &[b"x"], &deposit(step, "x", b"x")).unwrap();
    }
    for name in ["step-1", ".step-2.replaced", "mine"] {
        fs::create_dir(dir.0.join(name)).unwrap();
    }
    let error = deposits.begin(&deposit(99, "x", b"x")).unwrap_err();
    assert!(error.to_string().starts_with("8 checkpoints are begun and not"), "{error}");
    left(&deposits, &[b"y"], &deposit(1, "y", b"y")).unwrap();
    // Of what an earlier plan began nothing will ever be complete.
    let next = Deposit { generation: Generation(2), ..deposit(99, "x", b"x") };
    left(&deposits, &[b"x"], &next).unwrap();
    assert_eq!(names(&dir.0), [".step-2.replaced", ".step-99.g2.partial", "mine", "step-1"]);
}

#[test]
fn a_disk_that_takes_nothing_says_so_with_the_path() {
    let dir = TestDir::new("deposits-disk");
    let missing = dir.0.join("missing");
    let error = Deposits::new(missing.clone()).begin(&deposit(1, "x", b"x")).unwrap_err();
    let want = format!("reading {}: No such file or directory", missing.display());
    assert!(error.to_string().starts_with(&want), "{error}");
}
