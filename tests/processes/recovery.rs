//! Steps that are not finite: skipped, gone back from, given up, with kills in between.
//!
//! The fault is a real one in the real path: a checkpoint whose embedding of the letter `Z` is NaN.
//! Every step that draws a window with a `Z` is then not finite, and every other step is.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use shoal_plan::checkpoint::{CheckpointManifest, FILE_NAME};

use crate::ledger::{self, Account};
use crate::place::{ALL_OR_NOTHING, DEATH_SECONDS, Place, signal, words};

/// Steps trained before the checkpoint is poisoned.
const GOOD_STEPS: u64 = 4;

/// A poisoned run to copy, over texts with a `Z` every `every` bytes.
fn poisoned(name: &str, every: usize) -> Place {
    let place = Place::new(name, "    steps: 4\n  checkpoint:\n    every: 4\n");
    for seed in 0..8 {
        let mut text = words(seed, 4000).into_bytes();
        text.iter_mut().skip(every / 2).step_by(every).for_each(|byte| *byte = b'Z');
        fs::write(place.0.join(format!("text-{seed}.txt")), text).unwrap();
    }
    place.launch("poisoned", &[]).done();
    poison(&place.run_dir("poisoned").join("checkpoints/step-4"));
    place
}

/// Makes the embedding of `Z` NaN in the masters of a checkpoint, hashes included.
fn poison(checkpoint: &Path) {
    let path = checkpoint.join("master-cell-0.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let length = u64::from_le_bytes(*length) as usize;
    let header: Value = serde_json::from_slice(&rest[..length]).unwrap();
    let embedding = &header["model.embed_tokens.weight"];
    let width = embedding["shape"][1].as_u64().unwrap() as usize * 4;
    let start = embedding["data_offsets"][0].as_u64().unwrap() as usize;
    let row = 8 + length + start + usize::from(b'Z') * width;
    bytes[row..row + width].copy_from_slice(&f32::NAN.to_le_bytes().repeat(width / 4));
    fs::write(&path, &bytes).unwrap();
    let manifest = checkpoint.join(FILE_NAME);
    let mut read = CheckpointManifest::from_text(&fs::read(&manifest).unwrap()).unwrap();
    let file = read.files.iter_mut().find(|file| path.ends_with(&file.name)).unwrap();
    file.blake3 = blake3::hash(&bytes).to_hex().to_string();
    fs::write(manifest, read.to_text()).unwrap();
}

impl Place {
    fn copy_of_poisoned(&self, run: &str) {
        let copied = Command::new("cp")
            .arg("-r")
            .args([self.run_dir("poisoned"), self.run_dir(run)])
            .status()
            .unwrap();
        assert!(copied.success());
    }
}

/// How many sequences were trained, skipped and passed over.
fn account(run_dir: &Path) -> (u64, u64, u64) {
    let Account { trained, skipped, passed_over, .. } = ledger::account(run_dir);
    (trained, skipped, passed_over)
}

fn skipped(rows: &[String]) -> usize {
    rows.iter().filter(|row| row.contains("\"skipped\"")).count()
}

#[test]
fn a_step_that_is_not_finite_is_skipped_alike_on_any_number_of_workers() {
    // A Z every 1500 bytes: in about one of a dozen steps.
    let place = poisoned("skipped", 1500);
    let steps = ["--set", "training.steps=80", "--set", "checkpoint.every=8"];
    let mut first = None;
    for (run, workers) in [("four", 4), ("two", 2), ("one", 1)] {
        place.copy_of_poisoned(run);
        let workers = format!("workers.local={workers}");
        let ended = place.launch(run, &[&steps[..], &["--set", &workers]].concat()).done();
        let rows = place.losses(run);
        assert_eq!(rows.len(), 80);
        let n = skipped(&rows);
        assert!(n > 0 && n < 40, "{n} steps skipped");
        assert!(ended.err.contains(" on worker-0 (1 in a row)"), "{}", ended.err);
        assert!(ended.out.contains(&format!("80 ({n} of them skipped)")), "{}", ended.out);
        let (trained, left_out, passed_over) = account(&place.run_dir(run));
        assert_eq!((trained + left_out, left_out, passed_over), (320, 4 * n as u64, 0));
        let first = first.get_or_insert_with(|| rows.clone());
        // A row names the worker, which differs; everything else is the same.
        let strip = |rows: &[String]| -> Vec<String> {
            rows.iter().map(|row| row.split(",\"worker\"").next().unwrap().to_owned()).collect()
        };
        assert_eq!(strip(&rows), strip(first), "{run}");
    }
    // Killed in the midst and continued, it skips the same.
    place.copy_of_poisoned("killed");
    let mut launch = place.launch("killed", &[&steps[..], &ALL_OR_NOTHING].concat());
    place.wait_for_steps(&mut launch, "killed", 15);
    signal(place.workers("killed")[1].1, "KILL");
    assert_eq!(launch.ended_within(DEATH_SECONDS).code, Some(1));
    place.launch("killed", &steps).done();
    assert_eq!(place.losses("killed"), first.unwrap());
    account(&place.run_dir("killed"));
}

#[test]
fn too_many_skipped_steps_go_back_and_pass_over_the_text_that_failed() {
    let place = poisoned("rollback", 1500);
    let settings = [
        "--set",
        "training.steps=80",
        "--set",
        "checkpoint.every=3",
        "--set",
        "training.skips_max=1",
        "--set",
        "training.rollbacks_max=50",
    ];
    // skips_max and rollbacks_max change the numbers, so the poisoned run has them from the start.
    let manifest = fs::read_to_string(place.0.join("job.yaml")).unwrap();
    let with = "  training:\n    skips_max: 1\n    rollbacks_max: 50\n";
    fs::write(place.0.join("job.yaml"), manifest.replacen("  training:\n", with, 1)).unwrap();
    fs::remove_dir_all(place.run_dir("poisoned")).unwrap();
    place.launch("poisoned", &[]).done();
    poison(&place.run_dir("poisoned").join("checkpoints/step-4"));

    place.copy_of_poisoned("alone");
    let ended = place.launch("alone", &settings).done();
    let rows = place.losses("alone");
    assert_eq!((rows.len(), skipped(&rows)), (80, 0), "what was skipped is superseded");
    assert!(ended.err.contains("rollback 1 of 50"), "{}", ended.err);
    assert!(ended.err.contains("sequences drawn since are passed over"), "{}", ended.err);
    assert!(ended.out.contains("rollbacks"), "{}", ended.out);
    let (trained, left_out, passed_over) = account(&place.run_dir("alone"));
    assert_eq!((trained, left_out), (320, 0));
    assert!(passed_over > 0);

    for (run, worker_count) in [("two", "workers.local=2"), ("one", "workers.local=1")] {
        place.copy_of_poisoned(run);
        place.launch(run, &[&settings[..], &["--set", worker_count]].concat()).done();
        assert_eq!(place.losses(run), rows, "{worker_count}");
        assert_eq!(account(&place.run_dir(run)), (trained, left_out, passed_over));
    }
    for (run, at) in [("early", 7), ("late", 15)] {
        place.copy_of_poisoned(run);
        let mut launch = place.launch(run, &[&settings[..], &ALL_OR_NOTHING].concat());
        place.wait_for_steps(&mut launch, run, at);
        let stops = run == "early";
        if stops {
            launch.signal("INT");
        } else {
            signal(place.workers(run)[2].1, "KILL");
        }
        assert_ne!(launch.ended_within(DEATH_SECONDS).code, Some(0));
        place.no_worker_is_left(run);
        place.launch(run, &settings).done();
        assert_eq!(place.losses(run), rows, "{run}");
        assert_eq!(account(&place.run_dir(run)), (trained, left_out, passed_over));
    }
}

#[test]
fn a_run_that_is_never_finite_again_gives_up_by_name_with_its_checkpoint_intact() {
    let place = poisoned("forever", 16);
    place.copy_of_poisoned("run");
    let steps = ["--set", "training.steps=40"];
    for _ in 0..2 {
        let ended = place.launch("run", &steps).ended();
        assert_eq!(ended.code, Some(1), "{}", ended.err);
        for wanted in [
            "step 5 skipped: ",
            "(3 in a row)",
            "after step 7 the run goes back to the checkpoint of step 4, rollback 1 of 2; \
             12 sequences drawn since are passed over",
            "rollback 2 of 2; 24 sequences",
            "error: worker-0: a value was not finite",
            "after 2 skipped steps in a row and 2 rollbacks; lower training.lr",
            "at step 7, in ",
            "last committed step: 6",
            "to continue after step 4",
        ] {
            assert!(ended.err.contains(wanted), "want {wanted:?} in:\n{}", ended.err);
        }
        place.no_worker_is_left("run");
        let manifest = format!("checkpoints/step-{GOOD_STEPS}/manifest.json");
        assert!(place.run_dir("run").join(manifest).exists());
        assert_eq!(account(&place.run_dir("run")), (16, 8, 24));
    }
    let at_once = ["--set", "training.steps=40", "--set", "training.skips_max=0", "--fresh"];
    assert_eq!(place.launch("run", &at_once).ended().code, Some(0), "without poison it trains");
}
