//! What a run has saved: listed, verified, cleaned up, exported, damaged in every way, and read by
//! other grids and other numbers of workers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use shoal_plan::checkpoint::{CheckpointManifest, FILE_NAME};

use crate::place::{Ended, Place, json};

/// Nothing in it depends on how many steps are planned: a run that is lengthened goes on as the long
/// one would.
pub(crate) const STEADY: &str = "    lr_schedule: constant
    mtp_weight_final: 0.3
    bias_speed_until: 1
";

/// A checkpoint of every second step, and the best.
const SAVED: &str = "    steps: 6
    precision: f32
  checkpoint:
    every: 2
  evaluation:
    every: 2
    tokens_max: 256
";

/// One worker of one cell.
const ONE: [&str; 6] = [
    "--set",
    "parallelism.stages=1",
    "--set",
    "parallelism.expert_shards=1",
    "--set",
    "workers.local=1",
];

impl Place {
    /// Runs another verb, in the directory of the place.
    pub(crate) fn shoal(&self, args: &[&str]) -> Ended {
        let output = Command::new(env!("CARGO_BIN_EXE_shoal"))
            .args(args)
            .current_dir(&self.0)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    fn checkpoints(&self, code: i32, args: &[&str]) -> Ended {
        let ended = self.shoal(&[&["checkpoints"], args].concat());
        assert_eq!(ended.code, Some(code), "{args:?}\n{}\n{}", ended.out, ended.err);
        ended
    }

    #[track_caller]
    fn found(&self, code: i32, args: &[&str]) -> Value {
        let ended = self.checkpoints(code, &[args, &["-o", "json"]].concat());
        serde_json::from_str(&ended.out).unwrap()
    }

    fn copy(&self, from: &str, to: &str) -> PathBuf {
        let copied = Command::new("cp")
            .arg("-r")
            .args([self.run_dir(from), self.run_dir(to)])
            .status()
            .unwrap();
        assert!(copied.success());
        self.run_dir(to).join("checkpoints")
    }
}

fn files_of(checkpoint: &Path) -> Vec<String> {
    let manifest = fs::read(checkpoint.join(FILE_NAME)).unwrap();
    let files = CheckpointManifest::from_text(&manifest).unwrap().files;
    files.into_iter().map(|file| file.name).collect()
}

/// Flips one bit of the middle byte.
pub(crate) fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn checkpoints_are_listed_verified_cleaned_up_and_exported() {
    let place = Place::new("saved", &[STEADY, SAVED].concat());
    place.launch("run", &ONE).done();
    let checkpoints = place.run_dir("run").join("checkpoints");

    let listed = place.found(0, &["ls", "run"]);
    let steps: Vec<u64> =
        listed.as_array().unwrap().iter().map(|one| one["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [6, 4, 2]);
    let best = json(&checkpoints.join("best.json"))["step"].clone();
    for one in listed.as_array().unwrap() {
        assert_eq!(one["state"], "complete");
        assert_eq!((&one["grid"], one["best"] == true), (&"1x1x1".into(), one["step"] == best));
        assert!(one["train_loss"].as_f64().unwrap() > 0.0 && one["heldout_loss"].is_f64());
        let files = files_of(Path::new(&place.0.join(one["path"].as_str().unwrap())));
        assert_eq!(one["files"], files.len() + 1, "and the manifest");
    }
    let table = place.checkpoints(0, &["ls", "run"]).out;
    assert!(table.contains("STEP") && table.contains("1x1x1") && table.contains("best"), "{table}");

    let verified = place.checkpoints(0, &["verify", "run"]);
    assert!(verified.out.contains("step-6  good") && verified.err.is_empty(), "{}", verified.err);
    place.checkpoints(0, &["export", "run", "--step", "4", "-o", "by-step"]);
    place.shoal(&["export", "run/checkpoints/step-4", "-o", "by-path"]);
    let exported = |name: &str| fs::read(place.0.join(name).join("model.safetensors")).unwrap();
    assert_eq!(exported("by-step"), exported("by-path"));
    let gone = place.checkpoints(5, &["export", "run", "--step", "5", "-o", "x"]);
    assert!(gone.err.contains("no checkpoint of step 5; there are: 6, 4, 2"), "{}", gone.err);

    // What crashes leave behind, and what is no checkpoint.
    for name in [".step-4.partial", ".step-9.discarded", ".step-2.replaced", "step-007"] {
        fs::create_dir(checkpoints.join(name)).unwrap();
        fs::write(checkpoints.join(name).join("x"), "x").unwrap();
    }
    flip(&checkpoints.join("step-6/master-cell-0.safetensors"));
    let before = place.found(0, &["ls", "run"]);
    assert_eq!(before.as_array().unwrap().len(), 6, "{before}");
    let dry = place.found(0, &["gc", "run", "--keep", "1", "--dry-run"]);
    let ageless = |mut listed: Value| {
        for one in listed.as_array_mut().unwrap() {
            one.as_object_mut().unwrap().remove("age_seconds").unwrap();
        }
        listed
    };
    let after = place.found(0, &["ls", "run"]);
    assert_eq!(ageless(after), ageless(before), "a dry run deletes nothing");
    let fate = |report: &Value, name: &str| {
        let all = report["checkpoints"].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).map(|one| one["goes"] == true)
    };
    assert_eq!(fate(&dry, "step-6"), Some(false), "damaged, and nobody said --damaged");
    assert_eq!(fate(&dry, "step-4"), Some(false), "the newest good one");
    assert_eq!(fate(&dry, "step-2"), Some(best != 2));
    assert_eq!(fate(&dry, ".step-9.discarded"), Some(true));
    let done = place.found(0, &["gc", "run", "--keep", "1", "--damaged"]);
    assert_eq!(fate(&done, "step-6"), Some(true));
    let left = place.found(0, &["ls", "run"]);
    let left = left.as_array().unwrap();
    assert!(left.iter().any(|one| one["step"] == 4) && left.iter().all(|one| one["step"] != 6));
    assert!(left.iter().all(|one| one["state"] == "complete"), "{left:?}");
    assert!(checkpoints.join("step-007").exists(), "not ours");

    for (code, args, want) in [
        (2, &["ls", "nowhere"][..], "nowhere is not a run directory"),
        (2, &["ls"], "which run?"),
        (2, &["gc", "run", "--keep", "0"], "--keep"),
        (5, &["verify", "run", "--step", "6"], "no checkpoint of step 6"),
    ] {
        let ended = place.checkpoints(code, args);
        assert!(ended.err.contains(want), "{args:?}: {}", ended.err);
    }
    fs::remove_dir_all(&checkpoints).unwrap();
    fs::create_dir(&checkpoints).unwrap();
    assert!(place.checkpoints(5, &["verify", "run"]).err.contains("has no checkpoint"));
}

/// What can become of a file, and how `verify` names it.
type Damage = (&'static str, fn(&Path));

const DAMAGES: [Damage; 8] = [
    ("changed", |step| flip(&step.join("master-cell-0.safetensors"))),
    ("truncated", |step| {
        let path = step.join("exp_avg-cell-0.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    }),
    ("too_long", |step| {
        let path = step.join("exp_avg_sq-cell-0.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
    }),
    ("empty", |step| fs::write(step.join("config.json"), "").unwrap()),
    ("missing", |step| fs::remove_file(step.join("model-cell-0.safetensors")).unwrap()),
    ("swapped", |step| {
        let (a, b) = ("exp_avg-cell-0.safetensors", "exp_avg_sq-cell-0.safetensors");
        fs::rename(step.join(a), step.join("x")).unwrap();
        fs::rename(step.join(b), step.join(a)).unwrap();
        fs::rename(step.join("x"), step.join(b)).unwrap();
    }),
    ("missing", |step| fs::remove_file(step.join(FILE_NAME)).unwrap()),
    ("manifest", |step| flip(&step.join(FILE_NAME))),
];

#[test]
fn every_damage_is_found_by_name_and_hash_and_the_checkpoint_before_is_used() {
    let place = Place::new("damages", &[STEADY, SAVED].concat());
    place.launch("run", &ONE).done();
    let rows = place.losses("run");
    let args = [&ONE[..], &["--set", "training.steps=7"]].concat();
    let mut longer = None;
    for (at, (fault, damage)) in DAMAGES.into_iter().enumerate() {
        let run = format!("damaged-{at}");
        let checkpoints = place.copy("run", &run);
        damage(&checkpoints.join("step-6"));
        let found = place.found(5, &["verify", &run]);
        let [six, four, two] = &found.as_array().unwrap()[..] else { panic!("{found}") };
        assert!(four["good"] == true && two["good"] == true && six["good"] == false, "{found}");
        let problem = &six["problems"][0];
        let named = problem["fault"].as_str().or_else(|| {
            problem["fault"].as_object().and_then(|fault| fault.keys().next()).map(String::as_str)
        });
        assert_eq!(named, Some(fault), "{found}");
        let file = problem["file"].as_str().unwrap();
        if file != FILE_NAME && fault != "missing" {
            let (want, got) = (&problem["expected"]["blake3"], &problem["actual"]["blake3"]);
            assert!(want.is_string() && got.is_string() && want != got, "{found}");
        }
        let told = place.checkpoints(5, &["verify", &run, "--step", "6"]);
        assert!(told.out.contains("step-6  damaged") && told.out.contains(file), "{}", told.out);
        let more = place.launch(&run, &args).done();
        for want in ["the checkpoint of step 6 is passed over", "continuing after step 4"] {
            assert!(more.err.contains(want), "{fault}: want {want:?} in:\n{}", more.err);
        }
        if fault != "swapped" {
            assert!(more.err.contains(file), "{fault}: want {file} in:\n{}", more.err);
        }
        // Whatever was damaged, the same steps come out, and the damaged one is replaced.
        let losses = place.losses(&run);
        assert_eq!(losses[..6], rows, "{fault}");
        assert_eq!(longer.get_or_insert(losses.clone()), &losses, "{fault}");
        place.checkpoints(0, &["verify", &run]);
    }
}

#[test]
fn a_flipped_bit_is_found_in_every_file() {
    let place = Place::new("flipped", SAVED);
    place.launch("run", &["--set", "training.steps=2"]).done();
    let step = place.run_dir("run").join("checkpoints/step-2");
    let files = files_of(&step);
    assert!(files.len() > 16, "four cells write four kinds each: {files:?}");
    for file in files {
        flip(&step.join(&file));
        let found = place.found(5, &["verify", "run"]);
        let problems = found[0]["problems"].as_array().unwrap();
        assert_eq!(problems.len(), 1, "{file}: {found}");
        assert_eq!(
            (&problems[0]["file"], &problems[0]["fault"]),
            (&file.into(), &"changed".into())
        );
        flip(&step.join(problems[0]["file"].as_str().unwrap()));
    }
    place.checkpoints(0, &["verify", "run"]);
}

/// Main losses by step, evaluations left out.
fn main_losses(place: &Place, run: &str) -> Vec<f64> {
    let loss = |line: &String| {
        serde_json::from_str::<Value>(&format!("{line}}}")).unwrap()["main_loss"].as_f64().unwrap()
    };
    place.losses(run).iter().map(loss).collect()
}

#[test]
fn four_three_one_and_eight_workers_go_on_from_each_other_bit_for_bit() {
    let place = Place::new("workers", &[STEADY, "    steps: 8\n"].concat());
    let grid = ["--set", "parallelism.replicas=2"];
    place.launch("alone", &grid).done();
    for (workers, steps) in [(4, 2), (3, 4), (1, 6), (8, 8)] {
        let (workers, steps) =
            (format!("workers.local={workers}"), format!("training.steps={steps}"));
        let args = [&grid[..], &["--set", &workers, "--set", &steps]].concat();
        place.launch("moved", &args).done();
    }
    assert_eq!(place.losses("moved"), place.losses("alone"), "bit-equal, as text");
}

#[test]
fn every_grid_goes_on_from_every_other_grids_checkpoint() {
    let place = Place::new("grids", &[STEADY, "    steps: 9\n    precision: f32\n"].concat());
    place.launch("alone", &[]).done();
    for (at, (stages, shards, replicas)) in [(2, 2, 1), (1, 4, 1), (2, 1, 2)].iter().enumerate() {
        let sets = [
            format!("training.steps={}", 3 * (at + 1)),
            format!("parallelism.stages={stages}"),
            format!("parallelism.expert_shards={shards}"),
            format!("parallelism.replicas={replicas}"),
            "workers.local=2".to_owned(),
        ];
        let args: Vec<&str> = sets.iter().flat_map(|set| ["--set", set.as_str()]).collect();
        let ended = place.launch("moved", &args).done();
        let note = "losses go on within rounding";
        assert_eq!(ended.err.contains(note), at > 0, "{}", ended.err);
    }
    let (alone, moved) = (main_losses(&place, "alone"), main_losses(&place, "moved"));
    assert_eq!(alone[..3], moved[..3], "the same grid so far");
    assert_ne!(alone, moved, "other grids sum in another order: nothing would be shown");
    // A sum of n FP32 terms in another order is off by about sqrt(n) 2^-24, and AdamW divides by what
    // may be small: a few steps on, a loss may be off by a hundred times that.
    for (step, (a, b)) in alone.iter().zip(&moved).enumerate() {
        assert!(((a - b) / a).abs() < 1e-5, "step {}: {a} and {b}", step + 1);
    }
}
