//! A store beside the run directory: a copy that is kept, that a lost run directory is made from,
//! and whose failure stops nobody. Here a directory; buckets are `.ci/object-store`'s.

use std::fs;
use std::path::Path;

use crate::failing::figure;
use crate::place::{PATIENCE_SECONDS, Place, wait};
use crate::saved::{STEADY, flip};

const STORED: &str = "    precision: f32
    steps: 6
  checkpoint:
    every: 2
    keep: 2
    store: nas
";

/// One worker of one cell.
const ONE: &str = "  parallelism:
    stages: 1
";

fn place(name: &str) -> Place {
    let place = Place::new(name, &[STEADY, STORED].concat());
    let file = place.0.join("job.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let (head, rest) = text.split_once("  parallelism:").unwrap();
    let (_, rest) = rest.split_once("    threads: 1\n").unwrap();
    let workers = "  workers:\n    local: 1\n    threads: 1\n";
    fs::write(file, [head, ONE, workers, rest].concat()).unwrap();
    place
}

fn steps(store: &Path) -> Vec<u64> {
    shoal_weights::steps(store).unwrap()
}

#[test]
fn a_lost_run_directory_is_made_again_from_the_store() {
    let place = place("stored");
    let nas = place.0.join("nas");
    place.launch("alone", &["--set", "checkpoint.store=null", "--set", "training.steps=8"]).done();
    place.launch("run", &[]).done();
    assert_eq!(steps(&nas), [6, 4], "the two newest, the best among them or beside them");
    assert!(nas.join("run.json").exists());
    fs::remove_dir_all(place.run_dir("run")).unwrap();
    let more = ["--set", "training.steps=8"];
    let again = place.launch("run", &more).done();
    for want in ["fetched the checkpoint of step 6", "continuing after step 6"] {
        assert!(again.err.contains(want), "want {want:?} in:\n{}", again.err);
    }
    assert_eq!(place.losses("run"), place.losses("alone")[6..], "bit-equal, as text");
    assert_eq!(steps(&nas), [8, 6]);

    // Damage in the store is passed over; what is here is not fetched.
    fs::remove_dir_all(place.run_dir("run")).unwrap();
    flip(&nas.join("step-8/master-cell-0.safetensors"));
    let passed = place.launch("run", &more).done();
    for want in
        ["step 8 is passed over", "master-cell-0.safetensors is damaged", "continuing after step 6"]
    {
        assert!(passed.err.contains(want), "want {want:?} in:\n{}", passed.err);
    }
    let verified = place.shoal(&["checkpoints", "verify", "run"]);
    assert_eq!(verified.code, Some(0), "{}", verified.err);
    let healed = blake3::hash(&fs::read(nas.join("step-8/master-cell-0.safetensors")).unwrap());
    let here = place.run_dir("run").join("checkpoints/step-8/master-cell-0.safetensors");
    assert_eq!(healed, blake3::hash(&fs::read(&here).unwrap()), "and replaced by a good one");
    // The other way round: what is damaged here is fetched.
    flip(&here);
    let fetched = place.launch("run", &["--set", "training.steps=9"]).done();
    for want in ["step 8 is passed over", "fetched the checkpoint of step 8", "after step 8"] {
        assert!(fetched.err.contains(want), "want {want:?} in:\n{}", fetched.err);
    }

    // Another run does not go on from it, and --fresh empties it.
    let other = place.launch("other", &["--set", "training.seed=2"]).ended();
    assert_eq!(other.code, Some(2), "{}", other.err);
    for want in ["nas holds a run of another manifest", "spec.training.seed: 1 -> 2", "--fresh"] {
        assert!(other.err.contains(want), "want {want:?} in:\n{}", other.err);
    }
    assert_eq!(steps(&nas), [9, 8]);
    place.launch("other", &["--set", "training.seed=2", "--fresh"]).done();
    assert_eq!(steps(&nas), [6, 4]);
    assert_eq!(place.losses("other").len(), 6);
}

#[test]
fn a_store_that_fails_stops_nobody_and_catches_up() {
    let place = place("store-down");
    let (nas, away) = (place.0.join("nas"), place.0.join("away"));
    let mut launch = place.launch("run", &["--set", "training.steps=100000"]);
    wait(PATIENCE_SECONDS, "a first copy", || nas.is_dir() && !steps(&nas).is_empty());
    // A file in its place: whatever is asked of the directory fails.
    fs::rename(&nas, &away).unwrap();
    fs::write(&nas, "").unwrap();
    let told = || fs::read_to_string(&launch.err).unwrap().matches("is not in").count();
    wait(PATIENCE_SECONDS, "the failure to be told", || told() > 0);
    let dir = place.run_dir("run");
    wait(PATIENCE_SECONDS, "the failures to be counted", || {
        figure(&dir, "shoal_checkpoint_store_failures_total") >= 2.0
    });
    let before = place.losses("run").len();
    place.wait_for_steps(&mut launch, "run", before + 4);
    fs::remove_file(&nas).unwrap();
    fs::rename(&away, &nas).unwrap();
    wait(PATIENCE_SECONDS, "the store to catch up", || {
        figure(&dir, "shoal_checkpoint_store_last_step") > before as f64
    });
    launch.signal("INT");
    let ended = launch.ended();
    assert_eq!(ended.code, Some(130), "{}", ended.err);
    assert_eq!(steps(&nas).first(), steps(&dir.join("checkpoints")).first(), "{}", ended.err);
}

#[test]
fn a_store_that_cannot_be_used_is_refused_before_anything_starts() {
    let place = place("store-refused");
    fs::write(place.0.join("file"), "").unwrap();
    for (store, wants) in [
        ("gs://bucket", &["spec.checkpoint.store", "gs:// is no kind of store", "s3://bucket"][..]),
        ("s3://key:secret@bucket", &["keys come from AWS_ACCESS_KEY_ID"]),
        ("s3://bucket/x", &["s3://bucket/x", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"]),
        ("file", &["choose a directory that can be written to"]),
    ] {
        let set = format!("checkpoint.store={store}");
        let ended = place.launch("run", &["--set", &set]).ended();
        assert_eq!(ended.code, Some(2), "{store}: {}", ended.err);
        for want in wants {
            assert!(ended.err.contains(want), "{store}: want {want:?} in:\n{}", ended.err);
        }
        assert_eq!(place.losses("run").len(), 0);
    }
}
