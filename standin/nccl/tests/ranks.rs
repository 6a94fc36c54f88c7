//! Ranks that load the library as a product would, as processes and as threads of one, over the stand-in driver.
#![expect(clippy::print_stdout, reason = "a test of its own main")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "ranks wait for each other")]

#[path = "ranks/nccl.rs"]
mod nccl;
#[path = "ranks/scenarios.rs"]
mod scenarios;

use std::path::Path;
use std::process::{Child, ExitCode, Stdio};

use shoal_standin_driver::testing::{StandIn, folder};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [role, scenario, rank, size, folder] = &words[..]
        && role == "rank"
    {
        scenarios::rank(
            scenario,
            (rank.parse().unwrap(), size.parse().unwrap()),
            Path::new(folder),
        );
        return ExitCode::SUCCESS;
    }
    if words.iter().any(|word| word == "--list") {
        for (name, ..) in TESTS {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    for (name, scenario, processes, want) in TESTS {
        check(scenario, processes, want);
        println!("ok {name}");
    }
    ExitCode::SUCCESS
}

/// A name, a scenario, how many processes it has, and what the faults that are reported must say: nothing, or this.
const TESTS: [(&str, &str, usize, &str); 5] = [
    ("processes trade in the order of their streams", "trade", 3, ""),
    ("so do threads of one process", "threads", 1, ""),
    (
        "a rank that dies is named to those that wait",
        "die",
        2,
        "in Recv { from: 1 } with rank 1: rank 1 was lost",
    ),
    (
        "a rank that waits for nobody is a deadlock, and an abort ends it",
        "alone",
        2,
        "deadlock: rank 0 of 2",
    ),
    ("without a wait for the last call the next is refused", "hasty", 2, ""),
];

fn check(scenario: &str, processes: usize, want: &str) {
    let (driver, nccl) = (
        StandIn::new().cards("4090").seed(3),
        folder("shoal-standin-nccl", &["libnccl.so.2", "libnccl.so"]),
    );
    let children: Vec<Child> = (0..processes)
        .map(|rank| {
            let mut command = driver.command(std::env::current_exe().unwrap());
            let path = format!("{}:{}", nccl.path().display(), driver.folder().display());
            let report = nccl.path().join("faults");
            command.env("LD_LIBRARY_PATH", path).env("SHOAL_STANDIN_NCCL_REPORT", report);
            command.env("SHOAL_STANDIN_NCCL_PATIENCE_MS", "3000");
            command.args(["rank", scenario, &rank.to_string(), &processes.to_string()]);
            command.arg(nccl.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (rank, child) in children.into_iter().enumerate() {
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        let dies = scenario == "die" && rank == 1;
        assert!(ended.status.success() != dies, "{scenario}, rank {rank}: {said}");
    }
    let faults = std::fs::read_to_string(nccl.path().join("faults")).unwrap_or_default();
    assert!(faults.contains(want) && want.is_empty() == faults.is_empty(), "{scenario}: {faults}");
    for report in driver.reports() {
        report.assert_clean();
    }
}
