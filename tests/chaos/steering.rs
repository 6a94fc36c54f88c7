//! Real runs are asked and told things by real verbs: whatever is ordered, the numbers are those of the run
//! that was left alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;

use crate::ledger::account;
use crate::place::{Launch, PATIENCE_SECONDS, Place, signal, wait};
use crate::{EARLY, Undisturbed, count, manifest, pid, says, wait_for};

/// Of the runs that end by themselves: a verb is a process that has yet to start.
const STEPS: u64 = 240;

fn undisturbed() -> &'static Undisturbed {
    static ONCE: OnceLock<Undisturbed> = OnceLock::new();
    ONCE.get_or_init(|| Undisturbed::by_running(STEPS))
}

/// A verb about the run, to its end.
fn shoal(place: &Place, verb: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.arg(verb).arg(place.run_dir("run")).args(more).output().unwrap()
}

/// Its exit code has to be this one; what it told.
#[track_caller]
fn told(place: &Place, (verb, more): (&str, &[&str]), code: i32) -> String {
    let output = shoal(place, verb, more);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{verb} {more:?}: {err}");
    assert_eq!(output.stdout.is_empty(), verb != "status" || code != 0, "{verb} {more:?}");
    err
}

#[track_caller]
fn status(place: &Place) -> Value {
    let output = shoal(place, "status", &["-o", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A run of so many steps, some of which are done.
fn training(name: &str, steps: u64, settings: &[&str]) -> (Place, Launch) {
    let place = Place::new(&format!("steering-{name}"), &manifest(steps));
    let mut launch = place.launch("run", settings);
    place.wait_for_steps(&mut launch, "run", EARLY);
    (place, launch)
}

#[track_caller]
fn none_of(place: &Place, kinds: &[&str]) {
    for kind in kinds {
        assert_eq!(count(place, kind), 0, "{kind}: {:?}", place.events("run"));
    }
}

#[test]
fn a_drained_worker_hands_over_leaves_and_is_not_started_again() {
    let (place, mut launch) = training("drain", STEPS, &[]);
    let last = place.workers("run").into_iter().find(|(id, _)| *id == 1).unwrap();
    let left = told(&place, ("drain", &["worker-1"]), 0);
    assert!(left.contains("worker-1 hands over its cells and leaves at the end of a step"));
    assert!(left.contains("worker-1 has left after step "), "{left}");
    assert!(left.contains("3 workers go on"), "{left}");
    wait(PATIENCE_SECONDS, "the process to end", || !place.workers("run").contains(&last));
    let again = told(&place, ("drain", &["1"]), 4);
    assert!(again.contains("worker-1 has left already"), "{again}");
    let unknown = told(&place, ("drain", &["7"]), 4);
    assert!(unknown.contains("worker-7 is not of this run, which has worker-0 to worker-3"));
    let ended = launch.done();
    undisturbed().equals(&place);
    says(&ended, &["worker-1 is to hand over", "worker-1 has handed over its cells and left"]);
    none_of(&place, &["evicted", "restarted", "recovering", "given_up"]);
    assert_eq!((count(&place, "draining"), count(&place, "left")), (1, 1));
    assert_eq!(account(&place.run_dir("run")).taken_back, 0, "no step is done again");
}

/// The steps that are traced are steps like any other, and the file says what all cells did in them.
#[test]
fn steps_are_traced_while_training_goes_on() {
    let (place, mut launch) = training("trace", STEPS, &[]);
    let file = place.run_dir("run").join("trace.json");
    let path = file.to_str().unwrap().to_owned();
    let output = shoal(&place, "trace", &["--steps", "2", "-o", &path]);
    let (table, err) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr));
    let err = err.unwrap();
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(err.contains(" are traced") && err.contains(" events in "), "{err}");
    assert!(!err.contains("missing") && !err.contains("its clock"), "{err}");
    let cells: Vec<&str> =
        table.lines().skip(1).map(|row| row.split_whitespace().next().unwrap()).collect();
    assert_eq!(cells, ["cell-0", "cell-1", "cell-2", "cell-3"], "{table}");
    let trace: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for cell in 0..4_u64 {
        let of = |name: &str| {
            let is = |event: &&Value| event["tid"] == cell && event["name"] == *name;
            events.iter().filter(is).count()
        };
        assert_eq!((of("vote"), of("update"), of("thread_name")), (2, 2, 1), "{cell}");
        assert_eq!((of("forward 0"), of("forward 1"), of("message")), (2, 2, 8), "{cell}");
        // The first stage has no experts, and nothing to send between the halves of backward.
        let halves = (of("backward 0"), of("backward input 0"), of("backward weight 0"));
        let wanted = if cell < 2 { ((2, 0, 0), 0) } else { ((0, 2, 2), 2 * 16) };
        assert_eq!((halves, of("all_to_all")), wanted, "{cell}");
    }
    let steps = events.iter().filter(|event| event["name"].as_str().unwrap().starts_with("step "));
    assert_eq!(steps.count(), 2 * 4);
    let refused = told(&place, ("trace", &["--steps", "0"]), 2);
    assert!(refused.contains("0 is not in 1..=100"), "{refused}");
    launch.done();
    undisturbed().equals(&place);
    let over = told(&place, ("trace", &[]), 3);
    assert!(over.contains("no run is under way"), "{over}");
}

#[test]
fn an_order_that_was_taken_outlives_the_coordinator() {
    let (place, mut launch) = training("drain-conductor", STEPS, &[]);
    told(&place, ("drain", &["2", "--no-wait"]), 0);
    signal(place.coordinator("run").unwrap(), "KILL");
    let ended = launch.done();
    undisturbed().equals(&place);
    says(&ended, &["the coordinator has ended: killed by signal 9", "worker-2 has handed over"]);
    none_of(&place, &["evicted", "restarted", "recovering"]);
    assert_eq!(account(&place.run_dir("run")).taken_back, 0);
}

#[test]
fn a_worker_that_dies_before_it_could_hand_over_is_let_go_when_it_is_back() {
    let (place, mut launch) = training("drain-dies", 1_000_000, &[]);
    let dying = pid(&place, 1);
    signal(dying, "STOP");
    told(&place, ("drain", &["1", "--no-wait"]), 0);
    signal(dying, "KILL");
    wait_for(&place, &mut launch, "left", 1);
    wait_for(&place, &mut launch, "recovered", 1);
    told(&place, ("stop", &[]), 0);
    assert_eq!(launch.ended().code, Some(130));
    assert_eq!((count(&place, "evicted"), count(&place, "restarted")), (1, 1), "once");
}

#[test]
fn whom_the_others_need_is_drained_by_force_alone_and_the_last_one_never() {
    let (place, mut launch) = training("drain-needed", 1_000_000, &["--set", "workers.min=4"]);
    let refused = told(&place, ("drain", &["1"]), 4);
    assert!(refused.contains("without worker-1 there are 3 workers, and workers.min is 4"));
    assert_eq!(count(&place, "draining"), 0);
    let forced = told(&place, ("drain", &["1", "--force", "--no-wait"]), 0);
    assert!(forced.contains("worker-1 hands over"), "{forced}");
    let ended = launch.ended();
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    says(&ended, &["3 workers are left and workers.min is 4: worker-1 has left"]);
    place.no_worker_is_left("run");

    let one = ["--set", "workers.local=1"];
    let (place, mut launch) = training("drain-last", 1_000_000, &one);
    let refused = told(&place, ("drain", &["0", "--force"]), 4);
    assert!(refused.contains("nobody but worker-0 is here to take its cells"), "{refused}");
    told(&place, ("stop", &[]), 0);
    assert_eq!(launch.ended().code, Some(130));
}

#[test]
fn a_run_says_how_it_is_while_it_trains_and_its_files_do_afterwards() {
    let (place, mut launch) = training("status", 1_000_000, &[]);
    wait(PATIENCE_SECONDS, "paces and a snapshot", || {
        let status = status(&place);
        status["workers"][0]["pace"].is_number() && status["snapshot_step"].as_u64() > Some(0)
    });
    let now = status(&place);
    assert_eq!((now["under_way"].as_bool(), now["phase"].as_str()), (Some(true), Some("training")));
    assert!(now["step"].as_u64() >= Some(EARLY as u64) && now["steps"] == 1_000_000, "{now}");
    for rate in ["loss", "seconds_per_step", "tokens_per_second", "seconds_left"] {
        assert!(now[rate].as_f64() > Some(0.0), "{rate}: {now}");
    }
    let workers = now["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 4);
    for worker in workers {
        assert_eq!(worker["state"], "training", "{now}");
        assert_eq!(worker["cells"].as_array().unwrap().len(), 1, "{now}");
        assert!(worker["heard_seconds_ago"].is_number(), "{now}");
    }
    let table = String::from_utf8(shoal(&place, "status", &[]).stdout).unwrap();
    assert!(table.contains(": training, step ") && table.contains("worker-3"), "{table}");

    told(&place, ("stop", &[]), 0);
    assert_eq!(launch.ended().code, Some(130));
    let after = status(&place);
    assert_eq!(
        (after["under_way"].as_bool(), after["phase"].as_str()),
        (Some(false), Some("ended"))
    );
    assert_eq!(
        (after["ended"].as_str(), &after["step"]),
        (Some("stopped"), &after["checkpoint_step"])
    );
    assert_eq!(after["step"].as_u64().unwrap(), place.losses("run").len() as u64);
    let table = String::from_utf8(shoal(&place, "status", &[]).stdout).unwrap();
    assert!(table.contains("not under way: stopped by `shoal stop`"), "{table}");
    for verb in [("drain", &["1"][..]), ("stop", &[]), ("pause", &[]), ("resume", &[])] {
        let nobody = told(&place, verb, 3);
        assert!(nobody.contains("no run is under way in "), "{nobody}");
    }
}

#[test]
fn a_run_is_stopped_from_another_terminal_and_goes_on_with_the_next_launch() {
    let (place, mut launch) = training("stop", 1_000_000, &[]);
    let stopped = told(&place, ("stop", &[]), 0);
    assert!(stopped.contains("stopped after step "), "{stopped}");
    let ended = launch.ended();
    assert_eq!(ended.code, Some(130), "as after Ctrl-C: {}", ended.err);
    says(
        &ended,
        &["`shoal stop`: writing a checkpoint and stopping", "everything up to it is saved"],
    );
    let events = place.events("run");
    let last = events.iter().find(|event| event["kind"] == "stopped").unwrap();
    assert_eq!(last["fact"], "`shoal stop`");
    let step = place.losses("run").len();
    assert!(place.run_dir("run").join(format!("checkpoints/step-{step}/manifest.json")).exists());
    assert!(!place.run_dir("run").join("control.json").exists());

    let mut launch = place.launch("run", &[]);
    place.wait_for_steps(&mut launch, "run", step + EARLY);
    told(&place, ("stop", &["--now"]), 0);
    let ended = launch.ended();
    assert_eq!(ended.code, Some(130), "{}", ended.err);
    says(&ended, &["`shoal stop`: stopping at once"]);
    place.no_worker_is_left("run");
    assert_eq!(account(&place.run_dir("run")).taken_back, 0);
}

#[test]
fn a_run_pauses_between_two_steps_and_goes_on_as_if_nothing_had_been() {
    let (place, mut launch) = training("pause", STEPS, &[]);
    let before: Vec<_> = place.workers("run");
    let paused = told(&place, ("pause", &[]), 0);
    assert!(paused.contains("paused after step "), "{paused}");
    let now = status(&place);
    assert_eq!(now["phase"], "paused", "{now}");
    assert!(now["why"].as_str().unwrap().contains("shoal resume"), "{now}");
    // It survives the coordinator, too.
    signal(place.coordinator("run").unwrap(), "KILL");
    wait_for(&place, &mut launch, "coordinator_back", 1);
    assert_eq!(
        (status(&place)["phase"].as_str(), &status(&place)["step"]),
        (Some("paused"), &now["step"])
    );
    told(&place, ("resume", &[]), 0);
    wait_for(&place, &mut launch, "resumed", 1);
    let ended = launch.done();
    undisturbed().equals(&place);
    says(&ended, &["paused: as it was asked to"]);
    none_of(&place, &["evicted", "restarted"]);
    assert_eq!(account(&place.run_dir("run")).taken_back, 0, "no step is done again");
    assert_eq!(before.len(), 4);
}

#[test]
fn whoever_has_not_the_secret_is_refused_and_a_file_left_behind_leads_to_nobody() {
    let (place, mut launch) = training("secret", 1_000_000, &[]);
    let path = place.run_dir("run").join("control.json");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    let text = fs::read_to_string(&path).unwrap();
    let mut control: Value = serde_json::from_str(&text).unwrap();
    control["secret"] = "5e".repeat(32).into();
    fs::write(&path, control.to_string()).unwrap();
    for verb in [("status", &[][..]), ("stop", &[])] {
        let refused = told(&place, verb, 4);
        assert!(refused.contains("has another secret"), "{refused}");
    }
    fs::write(&path, &text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let refused = told(&place, ("stop", &[]), 4);
    assert!(refused.contains("has mode 640: others may have read it"), "{refused}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(status(&place)["phase"], "training");

    launch.signal("KILL");
    launch.ended();
    place.no_worker_is_left("run");
    assert!(path.exists(), "nobody was there to remove it");
    told(&place, ("stop", &[]), 3);
    let after = String::from_utf8(shoal(&place, "status", &[]).stdout).unwrap();
    assert!(after.contains("not under way: its launcher was killed"), "{after}");
    let mut launch = place.launch("run", &["--fresh"]);
    wait(PATIENCE_SECONDS, "the next launch to say where it is asked", || {
        fs::read_to_string(&path).is_ok_and(|now| now != text)
    });
    wait(PATIENCE_SECONDS, "the next launch to train", || status(&place)["phase"] == "training");
    told(&place, ("stop", &[]), 0);
    assert_eq!(launch.ended().code, Some(130));
}
