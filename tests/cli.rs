//! The command line from outside: what it says, where it says it, and its exit codes. Nothing here
//! starts a worker.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shoal(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.args(args).current_dir(root()).env_remove("RUST_LOG").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A directory for one test, with a little text to train on.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shoal-cli-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("text.txt"), "a line of text to learn from\n".repeat(2000)).unwrap();
        Self(path)
    }

    fn manifest(&self, spec: &str) -> String {
        let path = self.0.join("job.yaml");
        let head = "apiVersion: shoal/v1\nkind: Training\nmetadata:\n  name: test\nspec:\n";
        let spec = spec.replace("HERE", &self.0.display().to_string());
        fs::write(&path, format!("{head}{spec}")).unwrap();
        path.display().to_string()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const DATA: &str = "  data:\n    files: HERE/text.txt\n";

#[test]
fn the_version_and_the_help_go_to_standard_output() {
    let version = shoal(&["--version"]);
    assert_eq!(text(&version.stdout), format!("shoal {}\n", env!("CARGO_PKG_VERSION")));
    let help = shoal(&["--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("Exit codes"));
    let worker = shoal(&["worker", "--help"]);
    assert!(worker.status.success() && text(&worker.stdout).contains("secret"));
}

#[test]
fn wrong_usage_exits_with_two_and_leaves_standard_output_empty() {
    for args in
        [&["lunch"][..], &["launch"], &["launch", "no-such-file.yaml"], &["validate", "a", "b"]]
    {
        let output = shoal(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_valid_manifest_is_shown_as_a_plan_and_starts_nothing() {
    let place = Place::new("valid");
    let file = place.manifest(&format!("{DATA}  parallelism:\n    stages: 2\n"));
    let output = shoal(&["validate", &file, "--set", "workers.local=2"]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{err}");
    assert!(out.contains("worker-1") && out.contains("Why:"), "{out}");
    assert!(out.contains("schedule 1f1b: stages wait 8 % of a step; under zb-h1 4 %"), "{out}");
    assert!(err.contains("is valid"), "{err}");
    assert!(!out.contains('\u{1b}') && !err.contains('\u{1b}'), "no colours into a pipe");
    let left: Vec<_> = fs::read_dir(&place.0).unwrap().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// Every bad manifest: what it says in `spec`, and fragments of the answer.
const BAD: [(&str, &[&str]); 8] = [
    ("  data:\n    files: HERE/*.nothing\n", &["no file matches", "job.yaml:7:12", "^^^"]),
    ("  data:\n    files: HERE/text.txt\n    fils: 3\n", &["fils", "files", "job.yaml:8:5", "^"]),
    ("  training:\n    steps: 3\n", &["data"]),
    (
        "  data:\n    files: HERE/text.txt\n  training:\n    steps: many\n",
        &["spec.training.steps", ":9:"],
    ),
    (
        "  data:\n    files: HERE/text.txt\n  training:\n    batch: 8\n    batch: 9\n",
        &["batch", ":10:"],
    ),
    ("  data:\n    files: HERE/text.txt\n  parallelism:\n    stages: 9\n", &["stages", ":9:"]),
    (
        "  data:\n    files: HERE/text.txt\n  parallelism:\n    expert_shards: 17\n",
        &["expert_shards", ":9:"],
    ),
    (
        "  data:\n    files: HERE/text.txt\n  training:\n    batch: 400\n",
        &["less text than one batch", "job.yaml:7:12", "^^^"],
    ),
];

#[test]
fn a_bad_manifest_is_shown_with_its_place_and_nothing_is_started() {
    for (i, (spec, fragments)) in BAD.into_iter().enumerate() {
        let place = Place::new(&format!("bad-{i}"));
        let file = place.manifest(spec);
        let run_dir = place.0.join("run");
        for args in
            [vec!["validate", &file], vec!["launch", &file, "--run-dir", run_dir.to_str().unwrap()]]
        {
            let output = shoal(&args);
            let err = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{err}");
            assert!(
                fragments.iter().all(|fragment| err.contains(fragment)),
                "want {fragments:?} in:\n{err}"
            );
            assert!(output.stdout.is_empty() && !run_dir.exists());
        }
    }
}

#[test]
fn a_worker_without_a_secret_says_who_starts_it() {
    let args = [
        "worker",
        "--join",
        "127.0.0.1:1",
        "--run",
        "r",
        "--id",
        "0",
        "--run-dir",
        ".",
        "--threads",
        "1",
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    let output = command.args(args).stdin(std::process::Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("shoal launch"), "{}", text(&output.stderr));
}
