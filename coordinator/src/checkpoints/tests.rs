//! Commits that go well, that fail, and that are cut off by a crash at every call to the system.

use shoal_plan::checkpoint::{CheckpointFile, SCHEMA_VERSION};
use shoal_plan::grid::Grid;
use shoal_plan::plan::Generation;
use shoal_plan::standing::Standing;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::*;

thread_local! {
    /// Calls to the system until the crash; `None`: none comes.
    static CRASH_IN: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Ends the world where the countdown says so. Nothing runs after it that touches the disk: the
/// unwinding only closes files, as the end of a process does.
pub(super) fn crash_point() {
    if let Some(left) = CRASH_IN.get() {
        if left == 0 {
            // Without the message of a panic: there are dozens in one test.
            resume_unwind(Box::new("the crash of this test"));
        }
        CRASH_IN.set(Some(left - 1));
    }
}

/// Commits with a crash before the call numbered `at`. False if there is no such call.
fn crashes_at(at: u32, dir: &Path, manifest: &CheckpointManifest, keep: Keep) -> bool {
    CRASH_IN.set(Some(at));
    let committed = catch_unwind(AssertUnwindSafe(|| commit(dir, G1, manifest, keep)));
    CRASH_IN.set(None);
    match committed {
        Ok(result) => {
            result.unwrap();
            false
        }
        Err(_) => true,
    }
}

/// A directory that is gone when the test is over.
pub(crate) struct TestDir(pub(crate) PathBuf);

impl TestDir {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shoal-{name}-{}", std::process::id()));
        remove(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn written(dir: &Path, step: u64) -> CheckpointManifest {
    written_by(dir, step, G1)
}

fn written_by(dir: &Path, step: u64, generation: Generation) -> CheckpointManifest {
    let partial = dir.join(partial_name(step, generation));
    fs::create_dir_all(&partial).unwrap();
    fs::write(partial.join("model-0.safetensors"), step.to_string()).unwrap();
    let bytes = step.to_string().len() as u64;
    let (name, blake3) = ("model-0.safetensors".into(), "00".repeat(32));
    CheckpointManifest {
        schema_version: SCHEMA_VERSION,
        standing: Standing { step, sequences: 8 * step, ..Standing::default() },
        grid: Grid::ONE,
        files: vec![CheckpointFile { name, bytes, blake3 }],
    }
}

const G1: Generation = Generation(1);

/// Only the newest two.
const TWO: Keep = Keep { newest: 2, best: false };

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn a_committed_checkpoint_holds_its_files_and_manifest_and_old_ones_go() {
    let dir = TestDir::new("commit");
    for step in [50, 100, 150] {
        let manifest = written(&dir.0, step);
        fs::write(dir.0.join(format!(".step-{step}.g1.partial/leftover")), "x").unwrap();
        fs::create_dir(dir.0.join(format!(".step-{}.g1.partial", step - 1))).unwrap();
        fs::create_dir(dir.0.join(format!(".step-{}.g1.partial", step + 1))).unwrap();
        commit(&dir.0, G1, &manifest, TWO).unwrap();
        let complete = dir.0.join(format!("step-{step}"));
        assert_eq!(names(&complete), ["manifest.json", "model-0.safetensors"]);
        let text = fs::read_to_string(complete.join(FILE_NAME)).unwrap();
        assert_eq!(CheckpointManifest::from_text(text.as_bytes()).unwrap(), manifest);
    }
    assert_eq!(names(&dir.0), [".step-151.g1.partial", "step-100", "step-150"]);
}

/// An evicted worker that still lives goes on writing, into the files that it had open and into new ones.
#[test]
fn whoever_writes_for_an_older_plan_changes_no_byte_of_what_is_committed() {
    let dir = TestDir::new("stale");
    written(&dir.0, 50);
    let stale_dir = dir.0.join(partial_name(50, G1));
    let mut stale =
        File::options().append(true).open(stale_dir.join("model-0.safetensors")).unwrap();
    let manifest = written_by(&dir.0, 50, Generation(2));
    let write = |stale: &mut File| stale.write_all(b"stale").unwrap();
    write(&mut stale);
    let error = commit(&dir.0, G1, &manifest, TWO).unwrap_err().to_string();
    assert!(error.contains("has 7 bytes"), "what the older plan wrote is no part of it: {error}");
    let mut stale = stale;
    commit(&dir.0, Generation(2), &manifest, TWO).unwrap();
    write(&mut stale);
    assert!(!stale_dir.exists(), "what was written aside of this step is gone");
    fs::create_dir_all(&stale_dir).unwrap();
    fs::write(stale_dir.join("model-0.safetensors"), "stale").unwrap();
    let file = dir.0.join("step-50/model-0.safetensors");
    assert_eq!(fs::read_to_string(file).unwrap(), "50");
    commit(&dir.0, Generation(2), &written_by(&dir.0, 60, Generation(2)), TWO).unwrap();
    assert_eq!(names(&dir.0), ["step-50", "step-60"]);
}

#[test]
fn a_checkpoint_newer_than_this_one_does_not_count_and_is_replaced_in_its_turn() {
    let dir = TestDir::new("newer");
    fs::create_dir(dir.0.join("step-100")).unwrap();
    fs::write(dir.0.join("step-100/damaged"), "x").unwrap();
    for step in [50, 75, 100] {
        commit(&dir.0, G1, &written(&dir.0, step), TWO).unwrap();
    }
    assert_eq!(names(&dir.0), ["step-100", "step-75"]);
    assert_eq!(names(&dir.0.join("step-100")), ["manifest.json", "model-0.safetensors"]);
}

#[test]
fn a_missing_or_short_file_is_named_and_nothing_is_committed() {
    let dir = TestDir::new("short");
    let manifest = written(&dir.0, 50);
    let file = dir.0.join(".step-50.g1.partial/model-0.safetensors");
    fs::write(&file, "5").unwrap();
    let error = commit(&dir.0, G1, &manifest, TWO).unwrap_err().to_string();
    assert!(error.ends_with("model-0.safetensors has 1 bytes, and its worker wrote 2"), "{error}");
    assert!(names(&dir.0).is_empty(), "its room may be what the next one lacks");
    let manifest = written(&dir.0, 50);
    fs::remove_file(&file).unwrap();
    let error = commit(&dir.0, G1, &manifest, TWO).unwrap_err().to_string();
    assert!(error.starts_with("looking for "), "{error}");
    assert!(names(&dir.0).is_empty());
}

#[test]
fn the_best_checkpoint_is_named_and_outlives_newer_ones() {
    let dir = TestDir::new("best");
    let keep = Keep { newest: 1, best: true };
    let commit_with = |step, best_step, loss| {
        let mut manifest = written(&dir.0, step);
        manifest.standing.best = Some(Best { step: best_step, loss });
        commit(&dir.0, G1, &manifest, keep).unwrap();
        fs::read_to_string(dir.0.join(BEST_FILE_NAME)).unwrap_or_default()
    };
    // The best so far has no checkpoint: `keep_best` was not set then.
    assert_eq!(commit_with(10, 5, 3.0), "");
    assert_eq!(commit_with(20, 20, 2.5), "{\"step\":20,\"loss\":2.5}\n");
    assert_eq!(commit_with(30, 20, 2.5), "{\"step\":20,\"loss\":2.5}\n");
    assert_eq!(names(&dir.0), ["best.json", "step-20", "step-30"]);
    assert_eq!(commit_with(40, 40, 2.0), "{\"step\":40,\"loss\":2.0}\n");
    assert_eq!(names(&dir.0), ["best.json", "step-40"]);
}

/// The steps of complete checkpoints; each must be whole.
fn whole(dir: &Path) -> Vec<u64> {
    let mut steps = Vec::new();
    for name in names(dir) {
        let Some(Named::Complete(step)) = Named::of(&name) else { continue };
        let Ok(text) = fs::read(dir.join(&name).join(FILE_NAME)) else { continue };
        let manifest = CheckpointManifest::from_text(&text).unwrap();
        assert_eq!(manifest.standing.step, step);
        let content = fs::read_to_string(dir.join(&name).join("model-0.safetensors")).unwrap();
        assert_eq!(content, step.to_string());
        steps.push(step);
    }
    steps.sort_unstable();
    steps
}

/// A kill -9 before every write, rename, sync and deletion of a commit: the newest checkpoint is
/// the one before or the new one, whole, and what is left over goes with the next commit.
#[test]
fn a_crash_at_any_call_of_a_commit_loses_nothing() {
    let keep = Keep { newest: 1, best: true };
    let with_best = |dir: &Path, step, best| {
        let mut manifest = written(dir, step);
        manifest.standing.best = Some(Best { step: best, loss: 1.0 });
        manifest
    };
    // Without and with a damaged checkpoint of the same step in the way.
    for in_the_way in [false, true] {
        let (mut at, mut crashed) = (0, true);
        let mut outcomes = std::collections::BTreeSet::new();
        while crashed {
            let dir = TestDir::new(&format!("crash-{in_the_way}-{at}"));
            for (step, best) in [(10, 10), (20, 10), (30, 10)] {
                commit(&dir.0, G1, &with_best(&dir.0, step, best), keep).unwrap();
            }
            assert_eq!(whole(&dir.0), [10, 30]);
            fs::create_dir(dir.0.join(".step-25.g1.partial")).unwrap();
            if in_the_way {
                fs::create_dir(dir.0.join("step-40")).unwrap();
                fs::write(dir.0.join("step-40/model-0.safetensors"), "damaged").unwrap();
            }
            crashed = crashes_at(at, &dir.0, &with_best(&dir.0, 40, 40), keep);
            let after = whole(&dir.0);
            let (newest, before) = (after.last().copied().unwrap(), &after[..after.len() - 1]);
            assert!([30, 40].contains(&newest), "call {at}: {after:?}");
            assert!(
                newest == 40 || before == [10],
                "call {at}: the best is still there: {after:?}"
            );
            // What `best.json` names is there, in full, or there is none.
            let named = fs::read(dir.0.join(BEST_FILE_NAME)).unwrap();
            let named: Best = serde_json::from_slice(&named).unwrap();
            assert!(after.contains(&named.step), "call {at}: {named:?} of {after:?}");
            outcomes.insert(newest);
            // The next launch goes on from there and comes to its next checkpoint.
            commit(&dir.0, G1, &with_best(&dir.0, 50, 50), keep).unwrap();
            assert_eq!(names(&dir.0), ["best.json", "step-50"], "call {at}");
            at += 1;
        }
        assert!(at >= 15, "only {at} calls were swept");
        assert_eq!(outcomes.len(), 2, "the sweep passes the moment at which it counts");
    }
}

/// A coordinator that dies in a commit is told of it again when it is back: whatever was done by then, the rest is.
#[test]
fn a_commit_that_crashed_at_any_call_is_done_by_the_next_try() {
    let keep = Keep { newest: 1, best: true };
    let with_best = |manifest: CheckpointManifest, step| {
        let best = Some(Best { step, loss: 1.0 });
        CheckpointManifest { standing: Standing { best, ..manifest.standing }, ..manifest }
    };
    let (mut at, mut crashed) = (0, true);
    while crashed {
        let dir = TestDir::new(&format!("again-{at}"));
        commit(&dir.0, G1, &with_best(written(&dir.0, 30), 30), keep).unwrap();
        let manifest = with_best(written(&dir.0, 40), 40);
        crashed = crashes_at(at, &dir.0, &manifest, keep);
        commit(&dir.0, G1, &manifest, keep).unwrap();
        assert_eq!(names(&dir.0), ["best.json", "step-40"], "call {at}");
        at += 1;
    }
    assert!(at >= 10, "only {at} calls were swept");
}

#[test]
fn what_lies_in_the_way_of_the_manifest_goes() {
    let dir = TestDir::new("in-the-way");
    let manifest = written(&dir.0, 20);
    fs::create_dir(dir.0.join(".step-20.g1.partial/manifest.json")).unwrap();
    fs::write(dir.0.join(".step-20.g1.partial/manifest.json/x"), "x").unwrap();
    commit(&dir.0, G1, &manifest, TWO).unwrap();
    assert_eq!(whole(&dir.0), [20]);
}
