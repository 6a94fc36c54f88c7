//! Rigs that nobody can dial: they say that they are reached at addresses of nobody (RFC 5737). They train all the
//! same, through a rig that both reach or through the coordinator, and no number differs.

use crate::harbour::{Harbour, Process, wait};

/// Long enough that a relay can die meanwhile.
const STEPS: u64 = 600;

fn behind(harbour: &Harbour, name: &str, token: &std::path::Path, address: &str) -> Process {
    let rig = harbour.rig_with(name, Some(token), &["--advertise", address]);
    wait(name, || harbour.rig_is(name) != "away");
    rig
}

fn status(harbour: &Harbour) -> String {
    harbour.ok(&["status", "small"])
}

/// One machine's, of the same manifest.
fn same_as_a_launch(harbour: &Harbour) {
    let launched = harbour.path.join("launched");
    let args = ["launch", "small.yaml", "--run-dir", "launched", "--set", "workers.local=2"];
    harbour.ok(&args);
    assert_eq!(Harbour::losses(&harbour.run_dir("small")), Harbour::losses(&launched));
}

#[test]
fn one_that_cannot_be_dialed_dials_and_its_snapshots_come_over_its_own_call() {
    let harbour = Harbour::new("outward");
    let _coordinator = harbour.coordinator();
    let token = harbour.token(&["--uses", "2"]);
    let _a = behind(&harbour, "a", &token, "198.51.100.1");
    let _b = harbour.rig("b", Some(&token));
    harbour.apply("small", 40, &["--set", "workers.local=2", "--set", "workers.min=2"]);
    harbour.wait_for_step("small", 5);
    assert!(status(&harbour).contains("worker-0 and worker-1  from a"), "{}", status(&harbour));
    wait("a snapshot on both", || !status(&harbour).contains("in memory   none"));
    harbour.wait_for("small", "finished");
    let events = harbour.events("small");
    assert!(!events.iter().any(|event| event["kind"] == "evicted"), "{events:#?}");
    same_as_a_launch(&harbour);
}

#[test]
fn two_that_cannot_reach_each_other_train_through_a_third_and_then_through_the_coordinator() {
    let harbour = Harbour::new("relayed");
    let _coordinator = harbour.coordinator();
    let token = harbour.token(&["--uses", "3"]);
    let relay = harbour.rig_with("r", Some(&token), &["--relay-only"]);
    wait("the relay", || harbour.rig_is("r") == "free");
    let _a = behind(&harbour, "a", &token, "198.51.100.1");
    let _b = behind(&harbour, "b", &token, "203.0.113.2");
    harbour.apply("small", STEPS, &["--set", "workers.local=2", "--set", "workers.min=2"]);
    harbour.wait_for_step("small", 10);
    assert!(status(&harbour).contains("worker-0 and worker-1  through r"), "{}", status(&harbour));
    let ps = harbour.ok(&["ps"]);
    assert!(ps.contains("only relays, relays 1"), "{ps}");
    relay.kill();
    let step = harbour.step("small");
    wait("another way", || {
        status(&harbour).contains("worker-0 and worker-1  through the coordinator")
    });
    harbour.wait_for_step("small", step + 10);
    harbour.wait_for("small", "finished");
    let events = harbour.events("small");
    assert!(events.iter().any(|event| event["kind"] == "recovered"), "{events:#?}");
    assert!(!events.iter().any(|event| event["kind"] == "evicted"), "{events:#?}");
    same_as_a_launch(&harbour);
}
