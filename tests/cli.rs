//! The command line from outside: what it says, where it says it, and its exit codes. Nothing here
//! starts a worker.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "cli/page.rs"]
mod page;
#[path = "cli/top.rs"]
mod top;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shoal(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    // Whoever runs the tests may be known to a cluster.
    let nowhere = std::env::temp_dir().join("shoal-cli-without-a-home");
    command.env("XDG_CONFIG_HOME", nowhere).env_remove("SHOAL_CLUSTER").env_remove("SHOAL_OUTPUT");
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
    let worker = shoal(&["host", "--help"]);
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
fn verbs_for_a_run_under_way_want_a_run_and_a_worker() {
    let place = Place::new("steering");
    let here = place.0.display().to_string();
    let cases: [(&[&str], &str); 8] = [
        (&["drain", &here], "which worker?"),
        (&["drain", &here, "two"], "wanted a worker, such as worker-2 or 2"),
        (&["drain", &here, "1"], "is not a run directory: it has no manifest.json"),
        (&["status", &here], "is not a run directory"),
        (&["status", &here, "-o", "xml"], "[possible values: table, json, yaml]"),
        (&["stop", "no-such-run"], "no-such-run is not a run directory"),
        (&["pause"], "<RUN>"),
        (&["resume", &here, "now"], "unexpected argument"),
    ];
    for (args, wanted) in cases {
        let output = shoal(args);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {err}");
        assert!(err.contains(wanted) && output.stdout.is_empty(), "{args:?}: {err}");
    }
    fs::write(place.0.join("manifest.json"), "{}").unwrap();
    for verb in ["stop", "pause", "resume"] {
        let output = shoal(&[verb, &here]);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{verb}: {err}");
        assert_eq!(err, format!("error: no run is under way in {here}\n"));
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
        "host",
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

#[test]
fn a_fleet_is_planned_for_people_and_for_programs() {
    let place = Place::new("plan");
    let fleet = |rigs: &str| {
        let path = place.0.join("fleet.yaml");
        fs::write(&path, format!("apiVersion: shoal/v1\nkind: Fleet\nspec:\n  rigs: {rigs}\n"))
            .unwrap();
        path.display().to_string()
    };
    let job = "docs/planner/job.yaml";
    let two = fleet("[{name: a, gpu: RTX5090, count: 2}, {name: b, gpu: RTX4090}]");
    let picture = place.0.join("step.svg").display().to_string();
    let small = ["--set", "model.num_hidden_layers=4", "--set", "model.vocab_size=32000"];
    let plan = |fleet: &str, more: &[&str]| {
        let mut args = vec!["plan", job, "--fleet", fleet];
        args.extend(more);
        shoal(&args)
    };
    let mut more = small.to_vec();
    more.extend(["--tokens", "1B", "--svg", &picture, "--what-if", "rig-=b"]);
    let shown = plan(&two, &more);
    let told = text(&shown.stdout);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    for wanted in ["lower bound", "bound by", "To 1.0B tokens", "rig-=b", "In the manifest:"] {
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
    assert!(fs::read_to_string(&picture).unwrap().starts_with("<svg "));
    more.extend(["-o", "json"]);
    let answer: serde_json::Value = serde_json::from_slice(&plan(&two, &more).stdout).unwrap();
    assert!(answer["step_s"].as_f64().unwrap() >= answer["bound_s"].as_f64().unwrap());
    assert_eq!(answer["what_if"][0]["change"], "rig-=b");

    let unknown = plan(&fleet("[{name: a, gpu: RTX4909}]"), &small);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("did you mean `RTX4090`?"));
    let tiny = plan(&fleet("[{name: a, gpu: RTX3070}]"), &[]);
    assert_eq!(tiny.status.code(), Some(1));
    let told = text(&tiny.stderr);
    assert!(told.contains("a card of a lacks") && told.contains("more like a"), "{told}");
}

#[test]
fn a_plan_refuses_snapshots_that_a_link_or_a_rig_has_no_room_for() {
    let place = Place::new("plan-snapshots");
    let fleet = |site: &str, gb: u32| {
        let path = place.0.join(format!("fleet-{gb}.yaml"));
        let rig = |name: &str, site: &str| {
            format!("{{name: {name}, gpu: RTX4090, site: {site}, host_memory_gb: {gb}}}")
        };
        let text = format!(
            "apiVersion: shoal/v1\nkind: Fleet\nspec:\n  sites: {{a: {{}}, b: {{}}}}\n  rigs: [{}, {}]\n",
            rig("attic", "a"),
            rig("desk", site)
        );
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let plan = |fleet: &str, sets: &[&str]| {
        let mut args = vec!["plan", "docs/planner/job.yaml", "--fleet", fleet];
        let small = ["model.num_hidden_layers=8", "model.vocab_size=32000"];
        for set in small.iter().chain(sets) {
            args.extend(["--set", set]);
        }
        shoal(&args)
    };
    let apart = fleet("b", 64);
    let silent = plan(&apart, &[]);
    let told = text(&silent.stdout);
    assert!(silent.status.success() && told.contains("Snapshots in memory: every "), "{told}");
    assert!(told.contains("attic"), "{told}");

    let often = plan(&apart, &["checkpoint.memory.every=1"]);
    assert_eq!(often.status.code(), Some(2));
    let told = text(&often.stderr);
    for wanted in [
        "spec.checkpoint.memory.every: a snapshot every step is too often",
        "site ",
        "set every: ",
        "copies: 0",
    ] {
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
    // What it says to set, is taken.
    let every = told.split("set every: ").nth(1).unwrap();
    let every: String = every.chars().take_while(char::is_ascii_digit).collect();
    let taken = plan(&apart, &[&format!("checkpoint.memory.every={every}")]);
    assert!(taken.status.success(), "{}", text(&taken.stderr));
    let fewer: u64 = every.parse().unwrap();
    let refused = plan(&apart, &[&format!("checkpoint.memory.every={}", fewer - 1)]);
    assert_eq!(refused.status.code(), Some(2));
    let without = plan(&apart, &["checkpoint.memory.every=1", "checkpoint.memory.copies=0"]);
    assert!(without.status.success(), "{}", text(&without.stderr));

    let small = fleet("a", 16);
    let refused = plan(&small, &["checkpoint.memory.every=10"]);
    let told = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{told}");
    assert!(
        told.contains("do not fit into the memory of") && told.contains("12.0 GB there"),
        "{told}"
    );
    let chosen = plan(&small, &[]);
    let told = text(&chosen.stdout);
    assert!(chosen.status.success() && told.contains("checkpoint: {memory: {every: 0}}"), "{told}");
}

/// A worker's standard error is a file of the run, on a disk that may be full.
#[test]
fn log_lines_that_cannot_be_written_take_nobody_with_them() {
    let args = ["host", "--join", "127.0.0.1:1", "--run", "r", "--id", "0", "--threads", "1"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.args(args).args(["--run-dir", ".", "--cores", "100000"]);
    // With a core that is not there it has something to say, and without a secret it ends.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command.stdin(std::process::Stdio::null()).stderr(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "101 is a panic");
}

#[test]
fn what_is_set_is_shown_with_where_it_comes_from_and_secrets_are_not() {
    let place = Place::new("settings");
    let config = place.0.join("config/shoal");
    fs::create_dir_all(&config).unwrap();
    let head = "apiVersion: shoal/v1\nkind: Config\nspec:\n";
    fs::write(config.join("config.yaml"), format!("{head}  cluster: home\n  log_format: json\n"))
        .unwrap();
    let project = place.0.join("shoal.yaml");
    fs::write(&project, format!("{head}  cluster: lab\n  threads: 3\n")).unwrap();
    let inside = place.0.join("deep");
    fs::create_dir_all(&inside).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        command.env_clear().env("XDG_CONFIG_HOME", place.0.join("config"));
        command.env("SHOAL_THREADS", "2").env("SHOAL_TOKEN", "hunter2").current_dir(&inside);
        command.args(args).output().unwrap()
    };
    let output = run(&["config", "view", "--show-origin", "-o", "json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let project = fs::canonicalize(&project).unwrap();
    let whence = |key: &str| {
        let row = rows.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap();
        (
            row["value"].as_str().unwrap().to_owned(),
            row["origin"]["place"].as_str().unwrap().to_owned(),
        )
    };
    let pair = |value: &str, place: String| (value.to_owned(), place);
    assert_eq!(whence("cluster"), pair("lab", format!("{}:4", project.display())));
    assert_eq!(whence("threads"), pair("2", "SHOAL_THREADS".to_owned()));
    let user = config.join("config.yaml").display().to_string();
    assert_eq!(whence("log_format"), pair("json", format!("{user}:5")));
    assert_eq!(whence("output"), pair("json", "--output".to_owned()));
    assert_eq!(whence("coordinator.listen"), pair("127.0.0.1:7400", "default".to_owned()));
    assert!(!text(&output.stdout).contains("hunter2"));
    let output = run(&["config", "view", "--show-origin", "--", "ps", "--cluster", "other"]);
    let shown = text(&output.stdout);
    assert!(shown.contains("other") && shown.contains("--cluster"), "{shown}");
    assert!(!shown.contains("log_format") && !shown.contains("hunter2"), "{shown}");
    // It is not only shown: the verb looks for that cluster.
    let output = run(&["ps"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("nothing is known of the cluster lab"),
        "{}",
        text(&output.stderr)
    );
    fs::write(&project, format!("{head}  clutser: lab\n")).unwrap();
    let output = run(&["ps"]);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(err.contains("shoal.yaml:4:3: spec.clutser") && err.contains("did you mean"), "{err}");
    // Whoever asks for help gets it all the same.
    assert!(run(&["ps", "--help"]).status.success());
}
