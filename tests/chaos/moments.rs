//! Kills at random moments of a small run, where most of a step is exchange: many land within an
//! all-to-all. The run must come to its end by itself, with the parameters of a run left alone.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::Dice;
use crate::place::{Place, signal};
use crate::watched::{LIVENESS_SECONDS, Watched, equal_losses, sleep};

/// Long enough for a hundred kills on any machine that tests run on: the run is then let go.
const STEPS: u64 = 6000;

/// Between a recovery and the next kill.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(400));

pub(crate) fn run(kills: u32, seed: u64) {
    println!("moments: seed {seed}, {kills} kills");
    let settings = format!(
        "    steps: {STEPS}\n  evaluation:\n    every: 0\n  checkpoint:\n    every: 1000\n"
    );
    let place = Place::new("moments", &settings);
    // What is killed all the time is not to be given up, nor to wait for long.
    let restarts = ["--set", "workers.restarts=1000"];
    let mut run = Watched::start(&place, "killed", &restarts);
    let mut dice = Dice(seed);
    for kill in 1..=kills {
        sleep(dice.between(PAUSE));
        let workers = run.workers();
        let Some((worker, pid)) = workers.get(dice.below(workers.len().max(1))).copied() else {
            panic!("no worker is left before kill {kill}");
        };
        let (evicted, steps) = (run.count("evicted"), run.steps());
        signal(pid, "KILL");
        run.wait_until(&format!("kill {kill}, of worker-{worker}, to be noticed"), |run| {
            run.count("evicted") > evicted || !run.workers().contains(&(worker, pid))
        });
        run.wait_until(&format!("new steps after kill {kill}, of worker-{worker}"), |run| {
            run.steps() > steps + 3
        });
    }
    println!("  {} recoveries by step {} of {STEPS}", run.count("recovered"), run.steps());
    let ended = run.launch.ended_within(5 * LIVENESS_SECONDS);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    place.no_worker_is_left("killed");
    let account = run.account();
    assert_eq!(account.steps, STEPS);
    let mut alone = place.launch("alone", &[]);
    assert_eq!(alone.ended_within(5 * LIVENESS_SECONDS).code, Some(0));
    equal_losses(&place, "alone", "killed");
    assert_eq!(last_checkpoint(&place, "alone"), last_checkpoint(&place, "killed"));
    println!(
        "  {} committed steps were done again; the parameters are equal, bit for bit",
        account.taken_back
    );
}

fn last_checkpoint(place: &Place, run: &str) -> BTreeMap<String, Vec<u8>> {
    let directory = place.run_dir(run).join(format!("checkpoints/step-{STEPS}"));
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let named = files.map(|file| (file.file_name().into_string().unwrap(), file.path()));
    let of_state = named.filter(|(name, _)| name.ends_with(".safetensors"));
    of_state.map(|(name, path)| (name, fs::read(path).unwrap())).collect()
}
