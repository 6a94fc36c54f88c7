//! The coordinator is killed: while the workers connect, while they train, while they recover, again and
//! again. They train on, and nothing that was committed is lost or done again.

use std::fs;

use crate::ledger::account;
use crate::place::{ALL_OR_NOTHING, Launch, PATIENCE_SECONDS, Place, signal, wait};
use crate::{
    EARLY, STEPS, count, equals_the_undisturbed, manifest, pid, says, stop, survives, wait_for,
};

/// Kills the coordinator that is not `before`; returns which it was.
#[track_caller]
fn kill(place: &Place, launch: &mut Launch, before: Option<u32>) -> u32 {
    let mut found = None;
    wait(PATIENCE_SECONDS, "a coordinator", || {
        if let Some(status) = launch.child.try_wait().unwrap() {
            panic!("{status}: {}", fs::read_to_string(&launch.err).unwrap());
        }
        found = place.coordinator("run").filter(|pid| Some(*pid) != before);
        found.is_some()
    });
    signal(found.unwrap(), "KILL");
    found.unwrap()
}

fn taken_back(place: &Place) -> u64 {
    account(&place.run_dir("run")).taken_back
}

#[test]
fn workers_train_on_without_their_coordinator_and_no_step_is_done_again() {
    let (place, ended) = survives("conductor", &[], |place, launch| {
        kill(place, launch, None);
    });
    says(
        &ended,
        &[
            "the coordinator has ended: killed by signal 9",
            "the workers train on",
            "the coordinator is back, restart 1: 4 workers have caught up after ",
        ],
    );
    assert_eq!(taken_back(&place), 0);
    for (kind, times) in
        [("coordinator_exited", 1), ("coordinator_back", 1), ("evicted", 0), ("recovering", 0)]
    {
        assert_eq!(count(&place, kind), times, "{kind}");
    }
}

#[test]
fn a_coordinator_that_dies_while_workers_connect_is_not_missed() {
    let place = Place::new("chaos-conductor-early", &manifest(STEPS));
    let mut launch = place.launch("run", &[]);
    let first = kill(&place, &mut launch, None);
    kill(&place, &mut launch, Some(first));
    launch.done();
    equals_the_undisturbed(&place);
    assert_eq!((taken_back(&place), count(&place, "evicted")), (0, 0));
}

#[test]
fn a_coordinator_that_dies_with_a_worker_recovers_from_both() {
    let (place, ended) = survives("conductor-recovers", &[], |place, launch| {
        signal(pid(place, 2), "KILL");
        kill(place, launch, None);
    });
    says(&ended, &["worker-2 is lost: ", "the coordinator is back, restart 1: "]);
    assert_eq!(count(&place, "evicted"), 1, "nobody else");
}

#[test]
fn a_coordinator_that_dies_again_and_again_loses_nothing() {
    let place = Place::new("chaos-conductor-often", &manifest(1_000_000));
    let mut launch = place.launch("run", &[]);
    place.wait_for_steps(&mut launch, "run", EARLY);
    let mut last = None;
    for _ in 0..3 {
        last = Some(kill(&place, &mut launch, last));
    }
    wait_for(&place, &mut launch, "coordinator_back", 1);
    let steps = place.losses("run").len();
    place.wait_for_steps(&mut launch, "run", steps + 5);
    stop(&place, &mut launch);
    assert_eq!((taken_back(&place), count(&place, "evicted")), (0, 0));
}

#[test]
fn where_nothing_is_started_again_the_run_ends_and_says_how_to_go_on() {
    let place = Place::new("chaos-conductor-final", &manifest(1_000_000));
    let mut launch = place.launch("run", &ALL_OR_NOTHING);
    place.wait_for_steps(&mut launch, "run", EARLY);
    kill(&place, &mut launch, None);
    let ended = launch.ended();
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    says(
        &ended,
        &[
            "the coordinator has ended and is not started again: killed by signal 9",
            "coordinator.log",
            "the same command starts over",
        ],
    );
    place.no_worker_is_left("run");
}
