//! Faults for as long as one likes, on real processes: `.ci/chaos` runs all of it.
//!
//! ```text
//! cargo run --release --example chaos -- soak --seconds 600
//! cargo run --release --example chaos -- churn --seconds 60 --seed 7
//! cargo run --release --example chaos -- moments --kills 20
//! cargo run --release --example chaos -- partitions          # as root
//! ```
//!
//! The launcher under test is the `shoal` of the same build. Exit code 0: every promise was kept.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stdout, reason = "its figures are what it is for")]

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

mod ledger;
mod moments;
#[path = "../processes/network.rs"]
mod network;
mod partitions;
#[expect(dead_code, reason = "what other tests need of it")]
#[path = "../processes/place.rs"]
mod place;
mod soak;
mod watched;

/// Kills, stops and cuts off workers of real runs, and holds the runs to their promises.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    fault: Fault,
}

#[derive(Debug, Subcommand)]
enum Fault {
    /// Kill one random worker every 30 s: recovery times, and goodput against the fault-free run
    Soak(Timed),
    /// Kill one random worker every 0.5 to 2 s: nothing is lost, and no minute goes by without a step
    Churn(Timed),
    /// Kill random workers of a small run at random moments within a step
    Moments(Moments),
    /// Cut workers off from the coordinator and from each other (root; a network namespace of its own)
    Partitions,
}

#[derive(Clone, Copy, Debug, Args)]
struct Timed {
    /// How long workers are killed
    #[arg(long, default_value_t = 120)]
    seconds: u32,
    /// Of the choice of workers and moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, Args)]
struct Moments {
    /// How many workers are killed, one after the other
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Of the choice of workers and moments
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() {
    match Cli::parse().fault {
        Fault::Soak(Timed { seconds, seed }) => {
            let gaps = (Duration::from_secs(30), Duration::from_secs(30));
            soak::run("soak", Duration::from_secs(seconds.into()), gaps, seed);
        }
        Fault::Churn(Timed { seconds, seed }) => {
            let gaps = (Duration::from_millis(500), Duration::from_secs(2));
            soak::run("churn", Duration::from_secs(seconds.into()), gaps, seed);
        }
        Fault::Moments(Moments { kills, seed }) => moments::run(kills, seed),
        Fault::Partitions => partitions::run(),
    }
}

/// `SplitMix64`: the same seed makes the same choices.
struct Dice(u64);

impl Dice {
    /// From 0 to below `n`.
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (place::mix(self.0) % n as u64) as usize
    }

    /// Between the two.
    fn between(&mut self, (least, most): (Duration, Duration)) -> Duration {
        let span = most.saturating_sub(least).as_millis() as usize;
        least + Duration::from_millis(self.below(span + 1) as u64)
    }
}
