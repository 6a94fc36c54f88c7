//! Real workers and coordinators of real runs are killed, stopped, asked to go, and die at every start. Whatever
//! happens, the run ends as it should: every sample trained once, and the same parameters, bit for bit,
//! as if nothing had happened. No time is asserted; waits have deadlines far beyond what they wait for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use ledger::account;
use place::{Ended, Launch, PATIENCE_SECONDS, Place, signal, wait};

#[path = "chaos/conducting.rs"]
mod conducting;
#[path = "chaos/gathering.rs"]
mod gathering;
#[path = "chaos/ledger.rs"]
mod ledger;
#[path = "processes/network.rs"]
mod network;
#[expect(dead_code, reason = "what other tests need of it")]
#[path = "processes/place.rs"]
mod place;
#[path = "chaos/slow.rs"]
mod slow;
#[path = "chaos/steering.rs"]
mod steering;

/// Of the runs that end by themselves.
const STEPS: u64 = 120;

/// Steps before anything happens.
const EARLY: usize = 15;

/// The same step has the same figures whatever the number of steps: the runs here have several.
fn manifest(steps: u64) -> String {
    format!(
        "    steps: {steps}\n    lr_schedule: constant\n    mtp_weight_final: 0.3\n    bias_speed_until: 1\n  \
         evaluation:\n    every: 0\n  checkpoint:\n    every: 60\n    memory:\n      every: 10\n"
    )
}

/// A run that nobody disturbed.
struct Undisturbed {
    losses: Vec<String>,
    /// Hashes of the last checkpoint's files, by name.
    files: BTreeMap<String, blake3::Hash>,
}

fn undisturbed() -> &'static Undisturbed {
    static ONCE: OnceLock<Undisturbed> = OnceLock::new();
    ONCE.get_or_init(|| Undisturbed::by_running(STEPS))
}

impl Undisturbed {
    fn by_running(steps: u64) -> Self {
        let place = Place::new(&format!("chaos-undisturbed-{steps}"), &manifest(steps));
        place.launch("run", &[]).done();
        let losses = place.losses("run");
        assert_eq!(losses.len() as u64, steps);
        Self { losses, files: last_checkpoint(&place.run_dir("run"), steps) }
    }

    /// Of a run that came to its last step.
    #[track_caller]
    fn equals(&self, place: &Place) {
        place.no_worker_is_left("run");
        let (account, steps) = (account(&place.run_dir("run")), self.losses.len() as u64);
        assert_eq!((account.steps, account.trained), (steps, 4 * steps), "{account:?}");
        assert_eq!(place.losses("run"), self.losses, "losses, as text");
        let files = last_checkpoint(&place.run_dir("run"), steps);
        assert_eq!(files, self.files, "parameters, bit for bit");
    }
}

/// Masters, moments, biases and what is exported: all but the manifest, which has times in it.
fn last_checkpoint(run_dir: &Path, steps: u64) -> BTreeMap<String, blake3::Hash> {
    let directory = run_dir.join(format!("checkpoints/step-{steps}"));
    let files = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap());
    let named = files.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    let of_state = named.filter(|(name, _)| name.ends_with(".safetensors"));
    let hashed: BTreeMap<_, _> =
        of_state.map(|(name, path)| (name, blake3::hash(&fs::read(path).unwrap()))).collect();
    assert!(hashed.keys().any(|name| name.starts_with("master-cell-3")), "{hashed:?}");
    hashed
}

fn count(place: &Place, kind: &str) -> usize {
    place.count("run", kind)
}

/// Waits for the nth event of a kind, in a run that must not end before.
#[track_caller]
fn wait_for(place: &Place, launch: &mut Launch, kind: &str, n: usize) {
    wait(PATIENCE_SECONDS, &format!("event {kind} ({n})"), || {
        if let Some(status) = launch.child.try_wait().unwrap() {
            let told = fs::read_to_string(&launch.err).unwrap();
            panic!("{status} before {kind} ({n}): {told}");
        }
        count(place, kind) >= n
    });
}

/// Waits until a worker that was lost is back and an edge came after that, at which it was given its
/// cells. Cells also move for other reasons.
#[track_caller]
fn wait_until_it_is_back(place: &Place, launch: &mut Launch) {
    wait_for(place, launch, "rejoined", 1);
    let moved_since = || {
        let events = place.events("run");
        let kinds = events.iter().map(|event| event["kind"].as_str().unwrap());
        kinds.skip_while(|kind| *kind != "rejoined").any(|kind| kind == "moved")
    };
    wait(PATIENCE_SECONDS, "cells to move to the worker that is back", moved_since);
}

fn pid(place: &Place, worker: u32) -> u32 {
    let workers = place.workers("run");
    let found = workers.iter().find(|(id, _)| *id == worker);
    found.unwrap_or_else(|| panic!("no worker-{worker} among {workers:?}")).1
}

/// Launches, does something to it once it trains, and holds it to its end and to the run that was
/// left alone.
#[track_caller]
fn survives(
    name: &str,
    settings: &[&str],
    disturb: impl FnOnce(&Place, &mut Launch),
) -> (Place, Ended) {
    let place = Place::new(&format!("chaos-{name}"), &manifest(STEPS));
    let mut launch = place.launch("run", settings);
    place.wait_for_steps(&mut launch, "run", EARLY);
    disturb(&place, &mut launch);
    let ended = launch.done();
    equals_the_undisturbed(&place);
    (place, ended)
}

/// Of a run that came to its last step.
#[track_caller]
fn equals_the_undisturbed(place: &Place) {
    undisturbed().equals(place);
}

/// Stops a run that was made to last, and holds what it did to the run that was left alone.
#[track_caller]
fn stop(place: &Place, launch: &mut Launch) -> Ended {
    launch.signal("INT");
    let ended = launch.ended();
    assert_eq!(ended.code, Some(130), "{}", ended.err);
    place.no_worker_is_left("run");
    let account = account(&place.run_dir("run"));
    let losses = place.losses("run");
    assert_eq!(account.steps, losses.len() as u64);
    let n = losses.len().min(undisturbed().losses.len());
    assert_eq!(losses[..n], undisturbed().losses[..n], "losses, as text");
    ended
}

#[track_caller]
fn says(ended: &Ended, wanted: &[&str]) {
    for wanted in wanted {
        assert!(ended.err.contains(wanted), "want {wanted:?} in:\n{}", ended.err);
    }
}

#[test]
fn a_killed_worker_costs_nothing_but_time() {
    let (place, ended) = survives("killed", &[], |place, _| signal(pid(place, 2), "KILL"));
    says(
        &ended,
        &[
            "worker-2 is lost: the process ended: killed by signal 9",
            "going on with 3 workers from step ",
            "back at step ",
        ],
    );
    let events = place.events("run");
    let at = |kind: &str| events.iter().position(|event| event["kind"] == kind);
    let [exited, evicted, recovering, recovered] =
        ["exited", "evicted", "recovering", "recovered"].map(|kind| at(kind).expect(kind));
    assert!(exited < evicted && evicted < recovering && recovering < recovered, "{events:?}");
    assert_eq!(events[evicted]["worker"], 2);
}

#[test]
fn the_host_of_cell_0_is_no_better_than_the_others() {
    survives("first", &[], |place, _| signal(pid(place, 0), "KILL"));
}

#[test]
fn two_workers_are_lost_at_once() {
    let (_place, ended) = survives("two", &[], |place, _| {
        for pid in [pid(place, 1), pid(place, 2)] {
            signal(pid, "KILL");
        }
    });
    says(&ended, &["worker-1 is lost", "worker-2 is lost"]);
}

#[test]
fn a_worker_that_crashes_is_lost_by_its_own_signal() {
    let (_place, ended) = survives("crash", &[], |place, launch| {
        let crashing = pid(place, 3);
        // Rust's runtime looks at the first one and lets it pass: no stack had overflowed.
        wait(PATIENCE_SECONDS, "the worker to crash", || {
            let _ = Command::new("kill").args(["-SEGV", &crashing.to_string()]).output().unwrap();
            !place.workers("run").contains(&(3, crashing))
        });
        wait_for(place, launch, "exited", 1);
    });
    says(&ended, &["worker-3 is lost: the process ended: killed by signal 11"]);
}

#[test]
fn a_worker_is_started_anew_and_gets_its_cells_back() {
    let place = Place::new("chaos-back", &manifest(1_000_000));
    let mut launch = place.launch("run", &[]);
    place.wait_for_steps(&mut launch, "run", EARLY);
    let before = pid(&place, 2);
    signal(before, "KILL");
    wait_until_it_is_back(&place, &mut launch);
    assert_ne!(pid(&place, 2), before);
    let steps = place.losses("run").len();
    place.wait_for_steps(&mut launch, "run", steps + 5);
    let ended = stop(&place, &mut launch);
    says(&ended, &["worker-2 is back", "cells moved at step "]);
}

#[test]
fn a_worker_that_slept_past_its_lease_is_fenced_and_comes_back() {
    let place = Place::new("chaos-asleep", &manifest(1_000_000));
    let mut launch = place.launch("run", &[]);
    place.wait_for_steps(&mut launch, "run", EARLY);
    let sleeper = pid(&place, 1);
    signal(sleeper, "STOP");
    wait_for(&place, &mut launch, "recovered", 1);
    signal(sleeper, "CONT");
    wait_until_it_is_back(&place, &mut launch);
    assert_eq!(pid(&place, 1), sleeper, "the same process");
    let steps = place.losses("run").len();
    place.wait_for_steps(&mut launch, "run", steps + 5);
    stop(&place, &mut launch);
    assert_eq!((count(&place, "exited"), count(&place, "restarted")), (4, 0), "at the end only");
}

#[test]
fn a_worker_that_is_asked_to_go_hands_over_and_is_no_failure() {
    let (place, ended) = survives("asked", &[], |place, launch| {
        signal(pid(place, 1), "TERM");
        wait_for(place, launch, "left", 1);
    });
    says(&ended, &["worker-1 has handed over its cells and left"]);
    for kind in ["evicted", "restarted", "recovering"] {
        assert_eq!(count(&place, kind), 0, "{kind}");
    }
    assert_eq!(account(&place.run_dir("run")).taken_back, 0);
}

#[test]
fn below_the_minimum_the_run_pauses_and_goes_on_by_itself() {
    let (place, ended) = survives("minimum", &["--set", "workers.min=4"], |place, launch| {
        signal(pid(place, 2), "KILL");
        wait_for(place, launch, "paused", 1);
    });
    says(&ended, &["paused: 3 of 4 workers", "resumed"]);
    assert_eq!(count(&place, "resumed"), 1);
}

#[test]
fn a_run_gives_way_to_the_owner_of_the_machine_and_goes_on_by_itself() {
    let owner = std::env::temp_dir().join(format!("shoal-owner-{}", std::process::id()));
    fs::remove_file(&owner).ok();
    let setting = format!("workers.yield_to=[{}]", owner.display());
    let (place, ended) = survives("yield", &["--set", &setting], |place, launch| {
        fs::write(&owner, "mine").unwrap();
        wait_for(place, launch, "paused", 1);
        assert_eq!(place.workers("run").len(), 4, "they stay");
        fs::remove_file(&owner).unwrap();
        wait_for(place, launch, "resumed", 1);
    });
    let reason = format!("gives way: {} is there", owner.display());
    says(&ended, &[&reason, "paused: 0 of 1 workers", "may work again"]);
    for kind in ["evicted", "exited"] {
        // Four leave at the end.
        assert_eq!(count(&place, kind), if kind == "exited" { 4 } else { 0 }, "{kind}");
    }
    assert_eq!(account(&place.run_dir("run")).taken_back, 0, "no step is done again");
}

/// Five free ports in a row, for the metrics of a coordinator and four workers.
fn free_ports() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut first = 20_000 + (std::process::id() % 9_000) as u16;
    while !(first..first + 5).all(is_free) {
        first += 5;
    }
    first
}

/// Kills worker 2 and takes the port without which it cannot start.
fn kill_for_good(place: &Place, first_port: u16) -> TcpListener {
    signal(pid(place, 2), "KILL");
    let mut taken = None;
    wait(PATIENCE_SECONDS, "the worker's port to be free", || {
        taken = TcpListener::bind(("127.0.0.1", first_port + 3)).ok();
        taken.is_some()
    });
    taken.unwrap()
}

#[test]
fn a_worker_that_dies_at_every_start_is_given_up_and_the_others_go_on() {
    let ports = free_ports();
    let port = format!("metrics.port={ports}");
    let settings = ["--set", "workers.restarts=2", "--set", &port];
    let place = Place::new("chaos-hopeless", &manifest(1_000_000));
    let mut launch = place.launch("run", &settings);
    place.wait_for_steps(&mut launch, "run", EARLY);
    let taken = kill_for_good(&place, ports);
    wait_for(&place, &mut launch, "given_up", 1);
    let steps = place.losses("run").len();
    place.wait_for_steps(&mut launch, "run", steps + 5);
    let ended = stop(&place, &mut launch);
    says(&ended, &["worker-2 is given up: it ended 3 times in 10 minutes", "worker-2.log"]);
    drop(taken);

    // The same where all four are wanted: then the run ends, and says why.
    let place = Place::new("chaos-too-few", &manifest(1_000_000));
    let settings = [&settings[..], &["--set", "workers.min=4"]].concat();
    let mut launch = place.launch("run", &settings);
    place.wait_for_steps(&mut launch, "run", EARLY);
    let _taken = kill_for_good(&place, ports);
    let ended = launch.ended();
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    says(
        &ended,
        &[
            "3 workers are left and workers.min is 4: worker-2 is given up",
            "the same command starts over",
        ],
    );
    place.no_worker_is_left("run");
    account(&place.run_dir("run"));
}
