//! The coordinator's real state and real worker sessions over virtual time, with everything between
//! and around them modelled: network, data plane, memories, checkpoint disk, launcher. Faults come by
//! seed; after every event the invariants are checked, and when the faults stop the run must finish
//! with the parameters of an undisturbed one.
//!
//! A failing seed prints the line that replays it. `SHOAL_SEED=n` runs one seed and prints what
//! happened; `SHOAL_SEEDS=n` runs so many.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "simulation/checks.rs"]
mod checks;
#[path = "simulation/coordinator.rs"]
mod coordinator;
#[path = "simulation/counts.rs"]
mod counts;
#[path = "simulation/defects.rs"]
mod defects;
#[path = "simulation/engines.rs"]
mod engines;
#[path = "simulation/faults.rs"]
mod faults;
#[path = "simulation/links.rs"]
mod links;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/reference.rs"]
mod reference;
#[path = "simulation/vault.rs"]
mod vault;
#[path = "simulation/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use counts::Counts;
use defects::Defect;
use world::World;

/// Seeds of one run of the tests.
const SEEDS: u64 = 1_000;

/// Runs one seed. The complaint of a checker, or a panic of the code under test, is an error.
fn run(seed: u64, defect: Option<Defect>, quiet: bool) -> Result<Counts, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| World::new(seed, defect, quiet).run()));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn every_seed_finishes_with_the_parameters_of_an_undisturbed_run() {
    if let Some(seed) = number("SHOAL_SEED") {
        run(seed, None, false).unwrap_or_else(|complaint| panic!("seed {seed}: {complaint}"));
        return;
    }
    let mut all = Counts::default();
    for seed in 0..number("SHOAL_SEEDS").unwrap_or(SEEDS) {
        match run(seed, None, true) {
            Ok(counts) => all.add(&counts),
            Err(complaint) => panic!(
                "{complaint}\nreplay: SHOAL_SEED={seed} cargo test --test simulation \
                 every_seed -- --nocapture"
            ),
        }
    }
    // What never happened was not tested.
    assert!(all.has_met_everything(), "{all:?}");
}

#[test]
fn the_checkers_find_each_of_the_known_bugs() {
    let mut missed = Vec::new();
    for (defect, wanted) in Defect::ALL {
        let complaint = (0..300).find_map(|seed| run(seed, Some(defect), true).err());
        let complaint = complaint.unwrap_or_else(|| "nothing is found".to_owned());
        if !wanted.iter().any(|want| complaint.contains(want)) {
            missed.push(format!("{defect:?}: {complaint}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    let text = |seed| format!("{:?}", run(seed, None, true));
    for seed in 0..20 {
        assert_eq!(text(seed), text(seed));
    }
}
