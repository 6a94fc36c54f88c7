//! Clusters of real processes on this machine: rigs join with tokens, jobs are applied, and everything that may
//! die dies. The numbers are those of a launch; strangers get nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "cluster/doctor.rs"]
mod doctor;
#[path = "cluster/door.rs"]
mod door;
#[path = "cluster/harbour.rs"]
mod harbour;
#[path = "cluster/metrics.rs"]
mod metrics;
#[path = "processes/network.rs"]
mod network;
#[path = "cluster/relays.rs"]
mod relays;
#[path = "cluster/secrets.rs"]
mod secrets;

use harbour::{Harbour, wait};
use serde_json::Value;

/// Long enough that something can happen meanwhile.
const STEPS: u64 = 1500;

#[test]
fn a_job_trains_on_rigs_and_its_numbers_are_those_of_a_launch() {
    let harbour = Harbour::new("numbers");
    let _coordinator = harbour.coordinator();
    let token = harbour.token(&["--uses", "2"]);
    let _rigs = [harbour.rig("a", Some(&token)), harbour.rig("b", Some(&token))];
    harbour.apply("small", 20, &[]);
    harbour.wait_for("small", "finished");
    let launched = harbour.path.join("launched");
    let args = ["launch", "small.yaml", "--run-dir", "launched", "--set", "workers.local=2"];
    harbour.ok(&args);
    assert_eq!(Harbour::losses(&harbour.run_dir("small")), Harbour::losses(&launched));
    let summary = |directory: &std::path::Path| -> Value {
        serde_json::from_str(&std::fs::read_to_string(directory.join("summary.json")).unwrap())
            .unwrap()
    };
    let (rigs, here) = (summary(&harbour.run_dir("small")), summary(&launched));
    assert_eq!(rigs["heldout_loss"], here["heldout_loss"], "{rigs} {here}");
    // Its logs are where the coordinator is, the workers' too.
    let log = harbour.ok(&["logs", "small", "--log", "worker-1"]);
    assert!(log.contains("INFO"), "{log}");
    assert!(harbour.ok(&["logs", "small"]).contains("step 20/20"));
    // Applied again nothing changes; longer, it goes on.
    let (code, _, err) =
        harbour.run(&["apply", "small.yaml", "--set", "training.steps=30", "--dry-run"]);
    assert_eq!(code, Some(6), "{err}");
    harbour.ok(&["apply", "small.yaml", "--set", "training.steps=30"]);
    wait("30 steps", || {
        harbour.overview()["jobs"][0]["phase"] == "finished"
            && Harbour::losses(&harbour.run_dir("small")).len() == 30
    });
}

#[test]
fn rigs_fetch_the_weights_that_a_job_starts_from() {
    let harbour = Harbour::new("weights");
    harbour.manifest("first", 4);
    harbour.ok(&["launch", "first.yaml", "--run-dir", "first", "--set", "workers.local=2"]);
    let _coordinator = harbour.coordinator();
    let token = harbour.token(&["--uses", "2"]);
    let _rigs = [harbour.rig("a", Some(&token)), harbour.rig("b", Some(&token))];
    let init = ["--set", "training.init=first"];
    harbour.apply("next", 6, &init);
    harbour.wait_for("next", "finished");
    let launch = ["launch", "next.yaml", "--run-dir", "launched", "--set", "workers.local=2"];
    harbour.ok(&[&launch[..], &init[..]].concat());
    let losses = Harbour::losses(&harbour.run_dir("next"));
    assert_eq!(losses, Harbour::losses(&harbour.path.join("launched")));
    assert_ne!(losses[0], Harbour::losses(&harbour.path.join("first"))[0], "not from the seed");
    // Moments of the old run are of no use to the new one, and do not travel.
    let brought = harbour.path.join("a/jobs/next/init");
    let names: Vec<String> = std::fs::read_dir(&brought)
        .unwrap_or_else(|error| panic!("{}: {error}", brought.display()))
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(names.contains(&"config.json".to_owned()), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("exp_avg")), "{names:?}");
    // A run that goes on does not bring them again.
    harbour.ok(&["apply", "next.yaml", "--set", "training.steps=8", init[0], init[1]]);
    wait("8 steps", || Harbour::losses(&harbour.run_dir("next")).len() == 8);
    assert!(!harbour.run_dir("next").join("data/init.config.json").exists());
}

#[test]
fn a_coordinator_and_rigs_that_die_cost_no_number() {
    let harbour = Harbour::new("deaths");
    let coordinator = harbour.coordinator();
    let token = harbour.token(&["--uses", "4"]);
    let a = harbour.rig("a", Some(&token));
    let _b = harbour.rig("b", Some(&token));
    harbour.apply("small", STEPS, &[]);
    harbour.wait_for_step("small", 10);
    // The coordinator first: the workers train on, and are found again.
    coordinator.kill();
    let _coordinator = harbour.coordinator();
    harbour.wait_for_step("small", 30);
    let events = harbour.events("small");
    let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
    assert_eq!((of("launched"), of("coordinator_back")), (1, 1), "{events:#?}");
    assert_eq!((of("evicted"), of("recovering")), (0, 0), "nobody was taken for dead: {events:#?}");
    // Then a rig: the other goes on alone, and a third comes.
    a.kill();
    wait("a rig to be away", || harbour.rig_is("a") == "away");
    let _c = harbour.rig("c", Some(&token));
    harbour.wait_for("small", "finished");
    let events = harbour.events("small");
    let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
    assert!(of("recovered") > 0 && of("joined_late") + of("rejoined") > 0, "{events:#?}");
    let launched = harbour.path.join("launched");
    let steps = format!("training.steps={STEPS}");
    let args = [
        "launch",
        "small.yaml",
        "--run-dir",
        "launched",
        "--set",
        "workers.local=1",
        "--set",
        &steps,
    ];
    harbour.ok(&args);
    assert_eq!(Harbour::losses(&harbour.run_dir("small")), Harbour::losses(&launched));
}

#[test]
fn jobs_queue_stop_pause_and_rest_with_their_coordinator() {
    let harbour = Harbour::new("queue");
    let coordinator = harbour.coordinator();
    let token = harbour.token(&[]);
    let rig = harbour.rig("a", Some(&token));
    harbour.apply("small", 4_000, &[]);
    harbour.wait_for_step("small", 3);
    harbour.apply("next", 5, &[]);
    assert_eq!(harbour.phase("next"), "queued");
    harbour.ok(&["pause", "small"]);
    let paused = harbour.overview()["jobs"][1]["run"]["phase"].clone();
    assert_eq!(paused, "paused");
    harbour.ok(&["resume", "small"]);
    let status: Value =
        serde_json::from_str(&harbour.ok(&["status", "small", "-o", "json"])).unwrap();
    assert_eq!(status["workers"][0]["state"], "training", "{status}");
    // The coordinator goes for a while, in good order: the run has a checkpoint, and goes on by itself.
    coordinator.terminate();
    let _coordinator = harbour.coordinator();
    let step = harbour.events("small").last().unwrap()["step"].as_u64().unwrap();
    harbour.wait_for_step("small", step + 3);
    // What one rig has to do, it does one after the other.
    harbour.ok(&["stop", "small"]);
    assert_eq!(harbour.phase("small"), "stopped");
    harbour.wait_for("next", "finished");
    let (code, _, err) = harbour.run(&["stop", "small"]);
    assert_eq!(code, Some(4), "{err}");
    let (code, _, err) = harbour.run(&["pause", "nothing"]);
    assert_eq!(code, Some(4), "{err}");
    harbour.ok(&["forget", "next"]);
    assert_eq!(harbour.overview()["jobs"].as_array().unwrap().len(), 1);
    // A rig that is drained hands over and gets nothing more.
    harbour.ok(&["drain", "a"]);
    harbour.apply("small", 4_001, &[]);
    assert_eq!(harbour.phase("small"), "queued");
    harbour.ok(&["uncordon", "a"]);
    harbour.wait_for_step("small", step + 6);
    assert_eq!(rig.terminate(), Some(0), "its person may have the machine back at any time");
    assert_eq!(harbour.rig_is("a"), "away");
}

/// Whoever looks after a run is replaced, once, and the run goes on from its checkpoint.
#[test]
fn a_launcher_that_dies_is_replaced_by_one() {
    let harbour = Harbour::new("launcher");
    let _coordinator = harbour.coordinator();
    let token = harbour.token(&[]);
    let _rig = harbour.rig("a", Some(&token));
    harbour.apply("small", 600, &["--set", "checkpoint.every=20"]);
    harbour.wait_for_step("small", 45);
    let pattern = format!("launch .*--run-dir {}", harbour.run_dir("small").display());
    let killed =
        std::process::Command::new("pkill").args(["-KILL", "-f", &pattern]).status().unwrap();
    assert!(killed.success());
    harbour.wait_for("small", "finished");
    let events = harbour.events("small");
    let launches: Vec<&Value> = events.iter().filter(|event| event["kind"] == "launched").collect();
    assert_eq!(launches.len(), 2, "{events:#?}");
    assert!(
        launches[1]["fact"].as_str().unwrap().contains("from the newest checkpoint"),
        "{launches:?}"
    );
    assert_eq!(Harbour::losses(&harbour.run_dir("small")).len(), 600);
}

#[test]
fn certificates_are_renewed_while_a_run_goes_on() {
    let harbour = Harbour::new("renewal");
    let _coordinator = harbour.coordinator_with(&["--certificate-life", "9s"]);
    let token = harbour.token(&["--ttl", "1m"]);
    let _rig = harbour.rig("a", Some(&token));
    let serial =
        || std::fs::read_to_string(harbour.path.join("a/certificate/certificate.pem")).unwrap();
    let first = serial();
    harbour.apply("small", 100_000, &[]);
    harbour.wait_for_step("small", 3);
    wait("two renewals", || {
        harbour.logs_of_rig("a").matches("certificate was renewed").count() >= 2
    });
    assert_ne!(serial(), first);
    // A connection made after the first one's end.
    let step = harbour.step("small");
    harbour.wait_for_step("small", step + 3);
    let events = harbour.events("small");
    assert!(!events.iter().any(|event| event["kind"] == "evicted"), "{events:#?}");
}
