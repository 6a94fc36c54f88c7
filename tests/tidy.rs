//! Keeps the shape of the workspace: who may use whom, how long a file may be, what may stand
//! where. A rule that gets in the way is changed here, with its reason, not stepped around.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of the longest file that is still read in one go.
const LINES_MAX: usize = 500;

/// For each crate, the crates of ours it may use.
const ARROWS: [(&str, &[&str]); 18] = [
    ("plan", &[]),
    ("kernels", &[]),
    ("proto", &["plan", "trust"]),
    ("trust", &[]),
    ("data", &["plan"]),
    ("model", &["kernels", "plan"]),
    ("coordinator", &["proto", "plan"]),
    ("cluster", &["coordinator", "proto", "plan", "trust"]),
    ("weights", &["plan", "data", "kernels", "model"]),
    ("eval", &["plan", "kernels", "model", "weights"]),
    ("infer", &["plan", "data", "kernels", "model", "weights"]),
    ("store", &["plan"]),
    ("worker", &["proto", "plan", "trust", "data", "kernels", "model", "weights"]),
    ("bench", &["plan", "kernels", "model"]),
    ("standin", &[]),
    ("standin/driver", &["standin"]),
    ("standin/nccl", &[]),
    (
        ".",
        &[
            "bench",
            "cluster",
            "coordinator",
            "worker",
            "store",
            "trust",
            "weights",
            "eval",
            "infer",
            "data",
            "plan",
        ],
    ),
];

/// What anybody's tests may use beside that.
const FOR_TESTS: [&str; 2] = ["standin-driver", "proto"];

/// Where the driver of the GPU is called: the device, and the tests of what stands in for it.
const CUDARC: [&str; 3] = ["kernels/src/cuda/", "standin/driver/tests/", "standin/nccl/tests/"];

/// Words that are on no live path. Split, so that this file does not hold them itself.
const FORBIDDEN: [(&str, &str, &str); 6] = [
    ("todo", "!(", "a stub on a live path"),
    ("unimplemented", "!(", "a stub on a live path"),
    ("#[ig", "nore", "assert the wrong behaviour and say why it is wrong"),
    ("/ro", "ot/", "a path of one machine"),
    ("/wo", "rk/", "a path of one machine"),
    ("/ho", "me/", "a path of one machine"),
];

/// Where gRPC may be seen: its messages stop at `proto`'s door, its calls in two rims.
const GRPC: [&str; 12] = [
    "proto/",
    "cluster/src/server",
    "cluster/src/door.rs",
    "cluster/src/client.rs",
    "cluster/src/roles.rs",    // every call by its path
    "cluster/src/store/etcd/", // etcd speaks gRPC
    "trust/src/reach.rs",
    "coordinator/src/server",
    "coordinator/src/following.rs", // the launcher's end of the same service
    "coordinator/src/asking.rs",    // and another terminal's
    "coordinator/tests/",
    "worker/src/client",
];

/// No waiting in here: decisions and numbers.
const WITHOUT_TOKIO: [&str; 10] = [
    "plan/",
    "data/",
    "kernels/",
    "model/",
    "weights/",
    "eval/",
    "bench/",
    "coordinator/src/state",
    "cluster/src/state",
    "worker/src/session",
];

/// Where the system is called in ways the compiler cannot check.
const UNSAFE: [&str; 14] = [
    "kernels/src/gemm",
    "kernels/src/vector/x86.rs",      // two instructions on pairs of BF16
    "kernels/src/attention/panel.rs", // columns of one matrix, written side by side
    "bench/src/peak.rs",
    "src/bench/meter.rs",
    "kernels/src/cuda/", // the driver is C; a launch is a promise about sizes
    "kernels/tests/cuda/device.rs", // launches a kernel of its own
    "data/src/map.rs",
    "standin/driver/src/abi", // what C hands over are raw pointers
    "standin/driver/tests/cudarc/scenarios/calls.rs", // and cudarc wants them
    "standin/driver/tests/cudarc/scenarios/raw.rs",
    "standin/nccl/src/abi",
    "standin/nccl/src/cuda.rs",
    "standin/nccl/tests/ranks/",
];

/// Where the binary looks at variables of the environment: settings, the terminal's own, and what a doctor asks about.
const VARIABLES: [&str; 4] =
    ["src/settings.rs", "src/terminal.rs", "src/people.rs", "src/doctor/libraries.rs"];

/// Where the clock may be read.
const CLOCK: [&str; 24] = [
    "cluster/src/clock.rs",
    "cluster/src/harbour.rs", // leases, on a clock that does not go back
    "coordinator/src/conductor.rs",
    "src/clock.rs",
    "coordinator/src/server",
    "coordinator/tests/",
    "cluster/src/probing",           // time is what they measure
    "cluster/src/relaying/proof.rs", // certificates have an end
    "cluster/src/server/probing.rs",
    "trust/src/proof", // as rustls does
    "worker/src/daemon",
    "worker/src/client",
    "worker/src/comm",
    "worker/src/metrics", // time is what they measure
    "worker/examples/",
    "cluster/examples/",
    "cluster/tests/hostile/",   // certificates have an end
    "standin/nccl/src/comm.rs", // peers that never come
    "standin/nccl/src/link.rs",
    "standin/nccl/tests/",
    "kernels/examples/",
    "model/examples/",
    "examples/",
    "tests/",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file of ours with its path from the root, `/` between the parts.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting: Vec<PathBuf> = ARROWS.iter().map(|(name, _)| root().join(name)).collect();
    waiting.push(root().join("src"));
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir()
                && !name.starts_with('.')
                && !name.starts_with("target")
                && name != "runs"
            {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root()).unwrap();
                let relative = relative.strip_prefix(".").unwrap_or(relative);
                found.insert(relative.display().to_string(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    assert!(found.contains_key("tests/tidy.rs") && found.contains_key("plan/src/lib.rs"));
    found
}

fn is_under(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path.starts_with(place))
}

/// Lines of code: without comments, but with doc examples and strings.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Fails with all offences at once: one run shows everything there is to do.
#[track_caller]
fn hold(rule: &str, offences: Vec<String>) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

/// Lines outside `places` that have one of the words.
fn words_outside(places: &[&str], words: &[&str]) -> Vec<String> {
    let mut offences = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| !is_under(path, places)) {
        let hits = code(text).filter(|(_, line)| words.iter().any(|word| line.contains(word)));
        offences.extend(hits.map(|(n, line)| format!("{path}:{n}: {}", line.trim())));
    }
    offences
}

#[test]
fn crates_use_each_other_only_along_the_arrows() {
    let mut offences = Vec::new();
    for (name, allowed) in ARROWS {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let mut table = "";
        for line in manifest.lines() {
            if line.starts_with('[') {
                table = line;
            }
            let uses =
                line.strip_prefix("shoal-").and_then(|rest| rest.split(['.', ' ', '=']).next());
            let Some(uses) =
                uses.filter(|_| table.contains("dependencies") && !table.contains("workspace"))
            else {
                continue;
            };
            let for_tests = table.contains("dev-dependencies") && FOR_TESTS.contains(&uses);
            if !allowed.contains(&uses) && !for_tests {
                offences.push(format!("{name} uses {uses}"));
            }
        }
    }
    hold("an arrow that is not in the picture", offences);
}

#[test]
fn every_member_of_the_workspace_is_in_the_arrows() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let members: BTreeSet<&str> = members.split('"').skip(1).step_by(2).collect();
    let ours: BTreeSet<&str> =
        ARROWS.iter().map(|(name, _)| *name).filter(|name| *name != ".").collect();
    assert_eq!(members, ours);
}

#[test]
fn every_file_says_what_it_is_and_can_be_read_in_one_go() {
    let mut offences = Vec::new();
    for (path, text) in sources() {
        if !text.starts_with("//! ") {
            offences.push(format!("{path} does not open with `//!`"));
        }
        let lines = text.lines().count();
        if lines > LINES_MAX {
            offences.push(format!("{path} has {lines} lines, at most {LINES_MAX}"));
        }
    }
    hold("a file out of shape", offences);
}

#[test]
fn no_stub_and_no_path_of_one_machine() {
    let mut offences = Vec::new();
    for (path, text) in sources() {
        for (head, tail, why) in FORBIDDEN {
            let word = format!("{head}{tail}");
            // A made-up person's home may stand in an example.
            let made_up = format!("{word}ann");
            let is_hit = |line: &str| line.replace(&made_up, "").contains(&word);
            let hits = text.lines().enumerate().filter(|(_, line)| is_hit(line));
            offences.extend(hits.map(|(i, _)| format!("{path}:{}: {word} ({why})", i + 1)));
        }
    }
    hold("a forbidden word", offences);
}

#[test]
fn modules_are_named_after_what_they_do() {
    let vague = ["mod", "utils", "util", "common", "helpers", "misc", "types"];
    let offences = sources().into_keys().filter(|path| {
        let path = Path::new(path);
        // The last part without `.rs`, and every directory above it.
        path.with_extension("").iter().any(|part| vague.contains(&part.to_str().unwrap()))
    });
    hold("a module whose name says nothing", offences.collect());
}

#[test]
fn wire_types_stop_at_one_door() {
    let words = [["ton", "ic::"].concat(), ["pro", "st::"].concat()];
    hold("gRPC outside its rims", words_outside(&GRPC, &[&words[0], &words[1]]));
}

#[test]
fn the_driver_of_the_gpu_is_called_in_one_place() {
    let word = ["cuda", "rc::"].concat();
    hold("cudarc outside the device", words_outside(&CUDARC, &[&word]));
}

#[test]
fn decisions_and_numbers_wait_for_nothing() {
    let mut offences = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| is_under(path, &WITHOUT_TOKIO)) {
        let hits = code(text).filter(|(_, line)| line.contains("tokio"));
        offences.extend(hits.map(|(n, line)| format!("{path}:{n}: {}", line.trim())));
    }
    hold("tokio in a pure file", offences);
}

#[test]
fn unsafe_code_is_where_the_system_is_called() {
    let words = [["expect(un", "safe_code"].concat(), ["un", "safe {"].concat()];
    hold("unsafe outside its files", words_outside(&UNSAFE, &[&words[0], &words[1]]));
}

#[test]
fn the_clock_is_read_in_the_rims() {
    let words = [["Instant", "::now("].concat(), ["SystemTime", "::now("].concat()];
    hold("the clock outside the rims", words_outside(&CLOCK, &[&words[0], &words[1]]));
}

/// One resolver: a verb that read a variable beside it would have a setting that nobody sees.
#[test]
fn variables_are_read_by_the_settings_alone() {
    let words = [["env::", "var"].concat(), ["#[arg(long, env", " ="].concat()];
    let mut offences = words_outside(&VARIABLES, &[&words[0], &words[1]]);
    // Libraries have doors of their own, and tests are told what to do.
    offences.retain(|line| line.starts_with("src/"));
    hold("a variable beside the settings", offences);
}

#[test]
fn the_tree_in_the_readme_is_the_one_on_disk() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let layout = readme.split("\n## Layout").nth(1).expect("README has a section Layout");
    let tree = layout.split("```").nth(1).expect("the section has a fenced tree");
    let shown: BTreeSet<&str> = (tree.lines().filter(|line| !line.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.contains(['/', '.']))
        .map(|name| name.trim_end_matches('/'))
        .collect();
    let gone = shown
        .iter()
        .filter(|name| !root().join(name).exists())
        .map(|name| format!("{name} is not on disk"));
    let mut offences: Vec<String> = gone.collect();
    for (name, _) in ARROWS.iter().filter(|(name, _)| *name != ".") {
        if !shown.contains(name) {
            offences.push(format!("{name}/ is not in README"));
        }
    }
    hold("README's tree", offences);
}
