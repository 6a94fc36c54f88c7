//! The network on a GPU against the network on the CPU: the same losses, gradients and parameters, within what the
//! precision itself costs.
//!
//! Under cargo some cases run on the stand-in driver; `REQUIRE_CUDA=1 ./cuda` runs them on a card,
//! and fails without one. Words on the command line choose cases.
#![expect(clippy::print_stdout, reason = "a table for whoever runs it")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "cuda/cases.rs"]
mod cases;
#[path = "cuda/need.rs"]
mod need;
#[path = "cuda/shards.rs"]
mod shards;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use shoal_kernels::cuda::Device;
use shoal_standin_driver::testing::StandIn;

/// What cargo runs when nothing is asked for: the stand-in takes minutes for all of it. Words choose more: `step` is in most
/// names, and `-- a` in all of them.
const CARD: &str = "4090";
const CHOSEN: [&str; 3] = ["in fp8", "NaN", "memory: "];

/// Those that words are tried on: one of each kind that has an image of its own.
const CARDS: [&str; 4] = ["4090", "3090", "5090", "h100"];

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if std::env::args().any(|word| word == "--list") {
        for (name, _) in cases::ALL {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let required = std::env::var_os("REQUIRE_CUDA").is_some_and(|value| value != "0");
    let good = if required { on_device(&words) } else { on_standins(&words) };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// This executable again for each card, as a child that finds the stand-in driver.
fn on_standins(words: &[String]) -> bool {
    let mut good = true;
    let chosen: Vec<&str> = words.iter().map(String::as_str).collect();
    let (cards, chosen) =
        if words.is_empty() { (&[CARD][..], CHOSEN.to_vec()) } else { (&CARDS[..], chosen) };
    for card in cards {
        let standin = StandIn::new().cards(card).seed(1);
        let mut command = standin.command(std::env::current_exe().unwrap());
        command.env("REQUIRE_CUDA", "1").args(&chosen);
        let output = command.output().unwrap();
        print!("stand-in {card}\n{}", String::from_utf8_lossy(&output.stdout));
        print!("{}", String::from_utf8_lossy(&output.stderr));
        let reports = standin.reports();
        let complaints = reports.iter().any(|report| {
            for fault in &report.faults {
                println!("{fault:?}");
            }
            for leak in &report.leaks {
                println!("{leak:?}");
            }
            !report.faults.is_empty() || !report.leaks.is_empty()
        });
        good &= output.status.success() && !complaints;
    }
    good
}

fn on_device(words: &[String]) -> bool {
    let device = Device::open(0).unwrap();
    let mut failed = 0;
    for (name, case) in cases::ALL {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let result = catch_unwind(AssertUnwindSafe(|| case(&device)));
        println!("{} {name}", if result.is_ok() { "ok    " } else { "FAILED" });
        failed += u32::from(result.is_err());
    }
    failed == 0
}
