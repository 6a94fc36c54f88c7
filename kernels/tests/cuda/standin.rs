//! The same cases on the GPU that is made of CPU: this executable again, as a child that finds the stand-in
//! driver as its `libcuda`.

use std::num::NonZero;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::thread;

use shoal_standin_driver::report::Check;
use shoal_standin_driver::testing::StandIn;

use super::honest;

/// One of each kind that has an image of its own.
const CARDS: [&str; 4] = ["3090", "4090", "h100", "5090"];

/// Seed of numbers and of the order of work, with the way warps take turns and how tensor cores add.
const TURNS: [(u64, &str, &str); 2] = [(1, "round-robin", "exact"), (2, "random", "hardware")];

/// Cases of the second turn: every kernel, but the largest families at few sizes.
const SECOND_TURN: &[&str] = &[
    "200x320x272",
    "96x80 8 experts",
    "adamw bf16 Fp8(Pow2) 129x132",
    "attention",
    "device",
    "embedding",
    "first non-finite",
    "quantise",
    "rmsnorm backward residual",
    "rmsnorm forward residual",
    "rope",
    "sum of squares",
    "swiglu backward fp8 gates 20x300",
    "transpose",
    "window",
];

/// The card that runs all cases in either turn. The others run every second one unless all are asked for: their images
/// come from the same source, and every case runs on two or three cards.
const WHOLE: &str = "4090";

/// Runs the chosen cases on every card, as many cards at a time as there are cores. What failed, one text for
/// each child and one for each complaint.
///
/// - `all`: no case is left out on any card.
pub(crate) fn run(words: &[String], all: bool) -> Vec<String> {
    let turns = CARDS.into_iter().enumerate().flat_map(|card| TURNS.map(|turn| (card, turn)));
    let waiting = Mutex::new(turns);
    let next = || waiting.lock().expect("no thread died").next();
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while let Some(((place, card), turn)) = next() {
                    let half = (!all && words.is_empty() && card != WHOLE).then_some(place % 2);
                    let found = one_turn(card, turn, words, half);
                    failures.lock().expect("no thread died").extend(found);
                }
            });
        }
    });
    failures.into_inner().expect("no thread died")
}

fn one_turn(
    card: &str,
    (seed, schedule, sums): (u64, &str, &str),
    words: &[String],
    half: Option<usize>,
) -> Vec<String> {
    let standin = StandIn::new().cards(card).seed(seed);
    let standin =
        standin.set("SHOAL_STANDIN_SCHEDULE", schedule).set("SHOAL_STANDIN_ACCUMULATE", sums);
    let chosen: Vec<&str> = match (seed, words.is_empty()) {
        (2, true) => SECOND_TURN.to_vec(),
        _ => words.iter().map(String::as_str).collect(),
    };
    let seed = seed.to_string();
    let half = half.map(|half| half.to_string());
    let half: Vec<&str> = half.iter().flat_map(|half| ["--half", half]).collect();
    let arguments = [&["--seed", seed.as_str()], half.as_slice(), chosen.as_slice()].concat();
    let output = child(&standin, &arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let summary = text.lines().last().unwrap_or("nothing").to_owned();
    println!("stand-in {card}, {schedule}, {sums} sums: {summary}");
    let mut failures = Vec::new();
    if !output.status.success() {
        let failed: Vec<&str> = text.lines().filter(|line| !line.starts_with("ok ")).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        failures.push(format!("on the {card}:\n{}\n{said}", failed.join("\n")));
    }
    failures.extend(complaints(&standin).map(|text| format!("on the {card}: {text}")));
    failures
}

fn child(standin: &StandIn, arguments: &[&str]) -> Output {
    let executable = std::env::current_exe().expect("the path of this executable");
    let mut command = standin.command(executable);
    command.args(arguments).env("REQUIRE_CUDA", "1");
    command.output().expect("this executable starts again")
}

/// What the driver noted beside what the cases saw: leaks, races, memory freed in use. Modules that do not load
/// are left out: a case hands it one on purpose.
fn complaints(standin: &StandIn) -> impl Iterator<Item = String> {
    let reports = standin.reports();
    reports.into_iter().flat_map(|report| {
        let leaks = report.leaks.into_iter().map(|leak| format!("{leak:?}"));
        let faults = report.faults.into_iter().filter(|fault| fault.check != Check::Module);
        leaks.chain(faults.map(|fault| format!("{fault:?}"))).collect::<Vec<_>>()
    })
}

/// A machine, the device that is asked for there, and words of what comes of it.
struct Machine {
    ordinal: &'static str,
    settings: &'static [(&'static str, &'static str)],
    says: &'static [&'static str],
}

/// What cannot be opened says why.
const MACHINES: [Machine; 8] = [
    Machine {
        ordinal: "0",
        settings: &[("SHOAL_STANDIN_CARDS", "none")],
        says: &["asked for 0, this machine has 0"],
    },
    Machine {
        ordinal: "1",
        settings: &[("SHOAL_STANDIN_CARDS", "4090")],
        says: &["asked for 1, this machine has 1"],
    },
    Machine {
        ordinal: "0",
        settings: &[("SHOAL_STANDIN_CARDS", "3090"), ("SHOAL_STANDIN_DRIVER", "11.4")],
        says: &["driver too old for this PTX: has CUDA 11.4, needs 11.7", "515", "8.6"],
    },
    Machine {
        ordinal: "0",
        settings: &[("SHOAL_STANDIN_CARDS", "4090"), ("SHOAL_STANDIN_DRIVER", "12.2")],
        says: &["driver too old for this PTX: has CUDA 12.2, needs 12.4", "550", "8.9"],
    },
    Machine {
        ordinal: "0",
        settings: &[("SHOAL_STANDIN_CARDS", "5090"), ("SHOAL_STANDIN_DRIVER", "12.6")],
        says: &["driver too old for this PTX: has CUDA 12.6, needs 12.8", "570", "12.0"],
    },
    Machine {
        ordinal: "0",
        settings: &[
            ("SHOAL_STANDIN_CARDS", "4090"),
            ("SHOAL_STANDIN_COMPUTE_MODE", "exclusive"),
            ("SHOAL_STANDIN_FAIL", "cuDevicePrimaryCtxRetain:device_unavailable"),
        ],
        says: &["is not free: its compute mode is exclusive process"],
    },
    Machine {
        ordinal: "0",
        settings: &[("SHOAL_STANDIN_CARDS", "4090"), ("SHOAL_STANDIN_COMPUTE_MODE", "prohibited")],
        says: &["is not free: its compute mode is prohibited"],
    },
    Machine {
        ordinal: "0",
        settings: &[("SHOAL_STANDIN_FAIL", "init:unknown")],
        says: &["cuInit: CUDA_ERROR_UNKNOWN (unknown error)"],
    },
];

/// Machines on which `Device::open` fails. Where it did not, or said something else.
pub(crate) fn open() -> Vec<String> {
    let mut failures = Vec::new();
    for Machine { ordinal, settings, says } in MACHINES {
        let mut standin = StandIn::new();
        for (variable, value) in settings {
            standin = standin.set(variable, value);
        }
        let output = child(&standin, &["--open", ordinal]);
        failures.extend(lacks(&format!("{settings:?}"), &output, says));
    }
    failures.extend(without_functions());
    println!(
        "stand-in: {} machines without a usable card, {} wrong",
        MACHINES.len() + 1,
        failures.len()
    );
    failures
}

/// A library that is called as the driver's, but is something else: the C library.
fn without_functions() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the files of this process");
    let libc = maps.split_whitespace().find(|word| word.ends_with("/libc.so.6"))?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["libcuda.so", "libcuda.so.1"] {
        let link = folder.path().join(name);
        std::os::unix::fs::symlink(libc, link).expect("a link in a folder of ours");
    }
    let executable = std::env::current_exe().expect("the path of this executable");
    let mut command = Command::new(executable);
    command.args(["--open", "0"]).env("LD_LIBRARY_PATH", folder.path());
    let output = command.output().expect("this executable starts again");
    lacks("a library without functions", &output, &["driver too old: its libcuda has no cuInit"])
}

fn lacks(machine: &str, output: &Output, says: &[&str]) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stdout);
    let missing: Vec<_> = says.iter().filter(|word| !said.contains(**word)).collect();
    let stderr = String::from_utf8_lossy(&output.stderr);
    (!missing.is_empty() || !output.status.success())
        .then(|| format!("{machine}: {said:?} lacks {missing:?}\n{stderr}"))
}

/// Kernels with one word changed. Those that nobody noticed.
pub(crate) fn mutants() -> Vec<String> {
    let mut failures = Vec::new();
    let mutants = honest::mutants();
    for (at, mutant) in mutants.iter().enumerate() {
        let standin = StandIn::new().cards("4090").seed(1);
        let output = child(&standin, &["--mutant", &at.to_string(), mutant.cases]);
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        if output.status.success() || !said.contains("FAILED") || !said.contains(mutant.says) {
            failures.push(format!(
                "mutant {:?} is not noticed as {:?}:\n{said}",
                mutant.what, mutant.says
            ));
        }
    }
    println!("stand-in: {} mutants, {} not noticed", mutants.len(), failures.len());
    failures
}
