//! The same cases on the GPU that is made of CPU: this executable again, as a child that finds the stand-in
//! driver as its `libcuda`.

use std::process::Output;

use shoal_standin_driver::report::Check;
use shoal_standin_driver::testing::StandIn;

/// One of each kind that has an image of its own.
const CARDS: [&str; 3] = ["3090", "4090", "5090"];

/// Seed of numbers and of the order of work, with the way warps take turns.
const TURNS: [(u64, &str); 2] = [(1, "round-robin"), (2, "random")];

/// Runs the chosen cases on every card. What failed, one text for each child.
pub(crate) fn run(words: &[String]) -> Vec<String> {
    let mut failures = Vec::new();
    for (card, (seed, schedule)) in
        CARDS.into_iter().flat_map(|card| TURNS.map(|turn| (card, turn)))
    {
        let standin = StandIn::new().cards(card).seed(seed).set("SHOAL_STANDIN_SCHEDULE", schedule);
        let seed = seed.to_string();
        let output =
            child(&standin, &[&["--seed", seed.as_str()], words_as_str(words).as_slice()].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let summary = text.lines().last().unwrap_or("nothing").to_owned();
        println!("stand-in {card}, {schedule}: {summary}");
        if !output.status.success() {
            let failed: Vec<&str> = text.lines().filter(|line| !line.starts_with("ok ")).collect();
            let said = String::from_utf8_lossy(&output.stderr);
            failures.push(format!("on the {card}:\n{}\n{said}", failed.join("\n")));
        }
        failures.extend(complaints(&standin).map(|text| format!("on the {card}: {text}")));
    }
    failures
}

fn words_as_str(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
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
    let found = reports.into_iter().flat_map(|report| {
        let leaks = report.leaks.into_iter().map(|leak| format!("{leak:?}"));
        let faults = report.faults.into_iter().filter(|fault| fault.check != Check::Module);
        leaks.chain(faults.map(|fault| format!("{fault:?}"))).collect::<Vec<_>>()
    });
    found
}

/// What cannot be opened says so: words that the error must have, for each machine.
const MACHINES: [(&str, &[(&str, &str)], &[&str]); 7] = [
    ("0", &[("SHOAL_STANDIN_CARDS", "none")], &["asked for 0, this machine has 0"]),
    ("1", &[("SHOAL_STANDIN_CARDS", "4090")], &["asked for 1, this machine has 1"]),
    (
        "0",
        &[("SHOAL_STANDIN_CARDS", "3090"), ("SHOAL_STANDIN_DRIVER", "11.4")],
        &["driver too old for this PTX: has CUDA 11.4, needs 11.7", "515", "8.6"],
    ),
    (
        "0",
        &[("SHOAL_STANDIN_CARDS", "4090"), ("SHOAL_STANDIN_DRIVER", "12.2")],
        &["driver too old for this PTX: has CUDA 12.2, needs 12.4", "550", "8.9"],
    ),
    (
        "0",
        &[("SHOAL_STANDIN_CARDS", "5090"), ("SHOAL_STANDIN_DRIVER", "12.6")],
        &["driver too old for this PTX: has CUDA 12.6, needs 12.8", "570", "12.0"],
    ),
    (
        "0",
        &[("SHOAL_STANDIN_CARDS", "4090"), ("SHOAL_STANDIN_COMPUTE_MODE", "exclusive")],
        &["is not free: its compute mode is exclusive process"],
    ),
    (
        "0",
        &[("SHOAL_STANDIN_CARDS", "4090"), ("SHOAL_STANDIN_COMPUTE_MODE", "prohibited")],
        &["is not free: its compute mode is prohibited"],
    ),
];

/// Machines on which `Device::open` fails. What it said that it should not have, or the other way round.
pub(crate) fn open() -> Vec<String> {
    let mut failures = Vec::new();
    for (ordinal, settings, words) in MACHINES {
        let mut standin = StandIn::new();
        for (variable, value) in settings {
            standin = standin.set(variable, value);
        }
        let output = child(&standin, &["--open", ordinal]);
        let said = String::from_utf8_lossy(&output.stdout);
        let missing: Vec<_> = words.iter().filter(|word| !said.contains(**word)).collect();
        if !missing.is_empty() || !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            failures.push(format!("{settings:?}: {said:?} lacks {missing:?}\n{stderr}"));
        }
    }
    println!(
        "stand-in: {} machines without a usable card, {} wrong",
        MACHINES.len(),
        failures.len()
    );
    failures
}
