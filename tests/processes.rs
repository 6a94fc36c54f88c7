//! Real launches of the real binary: to the end, stopped, killed, refused, continued. The models
//! are as small as models get; the processes, sockets, signals and files are real.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;

use serde_json::Value;

use place::{ALL_OR_NOTHING, DEATH_SECONDS, PATIENCE_SECONDS, Place, json, keys, signal, wait};

#[path = "processes/evaluation.rs"]
mod evaluation;
#[path = "processes/failing.rs"]
mod failing;
#[path = "processes/gathered.rs"]
mod gathered;
#[path = "chaos/ledger.rs"]
mod ledger;
#[path = "processes/network.rs"]
mod network;
#[path = "processes/place.rs"]
mod place;
#[path = "processes/recovery.rs"]
mod recovery;
#[path = "processes/saved.rs"]
mod saved;
#[path = "processes/stored.rs"]
mod stored;

/// Of a step: layer 1 and the MTP module's, each on a stage of its own.
fn routers_are_healthy(row: &Value) -> bool {
    let routers = row["router"].as_array().unwrap();
    let layers = routers.iter().map(|layer| layer["layer"].as_u64().unwrap());
    layers.eq(1..=2) && routers.iter().all(|layer| layer["dropped"] == 0)
}

#[test]
fn a_run_goes_to_its_end_and_leaves_what_it_promised() {
    let place = Place::new("end", "    steps: 12\n");
    let ended = place.launch("run", &[]).done();
    place.no_worker_is_left("run");
    for wanted in [
        "worker-3",
        "Why:",
        "Loss",
        "held-out loss",
        "Sample 2",
        "Where everything is",
        "What to try next",
    ] {
        assert!(ended.out.contains(wanted), "want {wanted:?} in:\n{}", ended.out);
    }
    assert!(ended.err.contains("step 12/12") && !ended.err.contains('\r'), "{}", ended.err);
    let run = place.run_dir("run");
    let rows = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let mut rows: Vec<Value> =
        rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let evaluation = rows.pop().unwrap();
    let evaluation_keys =
        ["bits_per_byte", "bytes", "evaluation", "loss", "perplexity", "step", "tokens"];
    assert_eq!((keys(&evaluation), &evaluation["step"]), (evaluation_keys.into(), &12.into()));
    assert_eq!(rows.len(), 12);
    let row_keys = [
        "balance_loss",
        "grad_norm",
        "loss",
        "lr",
        "main_loss",
        "mtp_loss",
        "router",
        "step",
        "tokens",
        "tokens_per_second",
    ];
    let fits = |(row, step): (&Value, u64)| keys(row) == row_keys && row["step"] == step;
    assert!(rows.iter().zip(1..).all(fits) && rows.iter().all(routers_are_healthy), "{rows:?}");
    let summary = json(&run.join("summary.json"));
    assert_eq!(summary["router"]["dropped_tokens"], 0);
    let summary_keys = [
        "best",
        "evaluations",
        "flops_per_token",
        "heldout_loss",
        "heldout_nats_per_byte",
        "parameters",
        "parameters_active",
        "rollbacks",
        "router",
        "skipped_steps",
        "steps",
        "stopped_early",
        "tokens",
        "tokens_per_second",
        "train_loss",
        "wall_seconds",
        "workers",
    ];
    assert_eq!(keys(&summary), summary_keys);
    assert_eq!((summary["steps"].as_u64(), summary["workers"].as_u64()), (Some(12), Some(4)));
    assert_eq!(summary["tokens"].as_u64(), rows.iter().map(|row| row["tokens"].as_u64()).sum());
    let (heldout, per_byte) = (&summary["heldout_loss"], &summary["heldout_nats_per_byte"]);
    let (heldout, per_byte) = (heldout.as_f64().unwrap(), per_byte.as_f64().unwrap());
    assert!(heldout > 0.0 && (heldout / per_byte - 1.0).abs() < 1e-12, "a token is a byte");
    assert_eq!(summary["evaluations"]["heldout"]["loss"], evaluation["loss"]);
    assert_eq!(json(&run.join("plan.json"))["hosts"].as_array().unwrap().len(), 4);
    assert!(run.join("checkpoints/step-12/manifest.json").exists());
    assert!(run.join("logs/worker-0.log").exists());
}

#[test]
fn a_finished_run_says_so_and_another_manifest_is_refused() {
    let place = Place::new("finished", "    steps: 4\n    precision: f32\n");
    place.launch("run", &[]).done();
    let rows = place.losses("run");
    let again = place.launch("run", &[]).done();
    assert!(again.out.contains("finished: 4 steps"), "{}", again.out);
    let other = place.launch("run", &["--set", "training.seed=2"]).ended();
    assert_eq!(other.code, Some(2), "{}", other.err);
    assert!(
        other.err.contains("spec.training.seed: 1 -> 2") && other.err.contains("--fresh"),
        "{}",
        other.err
    );
    assert_eq!(place.losses("run"), rows, "refusals change nothing");
    let more = place.launch("run", &["--set", "training.steps=6"]).done();
    assert!(more.err.contains("continuing after step 4"), "{}", more.err);
    assert_eq!(place.losses("run")[..4], rows);
    assert_eq!(place.losses("run").len(), 6);
    place.launch("run", &["--set", "training.seed=2", "--fresh"]).done();
    assert_eq!(place.losses("run").len(), 4);
    assert_ne!(place.losses("run"), rows);
}

#[test]
fn stopped_by_ctrl_c_and_continued_on_other_workers_it_equals_the_run_left_alone() {
    let place = Place::new("resume", "    steps: 150\n");
    place.launch("alone", &[]).done();
    let mut first = place.launch("stopped", &[]);
    place.wait_for_steps(&mut first, "stopped", 3);
    let second = place.launch("stopped", &[]).ended();
    assert_eq!(second.code, Some(1), "{}", second.err);
    assert!(second.err.contains(&format!("process {}", first.child.id())), "{}", second.err);
    first.signal("INT");
    let stopped = first.ended();
    assert_eq!(stopped.code, Some(130), "{}", stopped.err);
    place.no_worker_is_left("stopped");
    let done = place.losses("stopped").len();
    assert!(done < 150, "stopped too late to show anything");
    assert!(stopped.err.contains(&format!("stopped after step {done} of 150")), "{}", stopped.err);
    let continued = place.launch("stopped", &["--set", "workers.local=2"]).done();
    assert!(continued.err.contains(&format!("continuing after step {done}")), "{}", continued.err);
    assert_eq!(place.losses("stopped"), place.losses("alone"), "bit-equal, as text");
    let heldout =
        |run: &str| json(&place.run_dir(run).join("summary.json"))["heldout_loss"].clone();
    assert_eq!(heldout("stopped"), heldout("alone"));
}

/// Where nobody is started anew and all are needed, the loss of one ends the run: what a launch on
/// this run directory then does is the same as after a power cut.
#[test]
fn a_killed_worker_ends_the_job_by_name_and_the_next_launch_continues() {
    let place = Place::new("killed", "    steps: 150\n  checkpoint:\n    every: 2\n");
    let mut launch = place.launch("run", &ALL_OR_NOTHING);
    place.wait_for_steps(&mut launch, "run", 5);
    place.wait_for_a_checkpoint("run");
    let (id, pid) = place.workers("run")[2];
    signal(pid, "KILL");
    let ended = launch.ended_within(DEATH_SECONDS);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    let committed = place.losses("run").len();
    assert!(committed < 150, "killed too late to show anything");
    for wanted in [
        format!("worker-{id}"),
        format!("last committed step: {committed}"),
        "same command".to_owned(),
    ] {
        assert!(ended.err.contains(&wanted), "want {wanted:?} in:\n{}", ended.err);
    }
    place.no_worker_is_left("run");
    let next = place.launch("run", &[]).done();
    assert!(next.err.contains("continuing after step"), "{}", next.err);
    assert_eq!(place.losses("run").len(), 150);
}

#[test]
fn no_worker_outlives_a_killed_launcher() {
    let place = Place::new("orphans", "    steps: 100000\n  checkpoint:\n    every: 2\n");
    let mut launch = place.launch("run", &[]);
    place.wait_for_steps(&mut launch, "run", 3);
    place.wait_for_a_checkpoint("run");
    assert_eq!(place.workers("run").len(), 4);
    launch.signal("KILL");
    assert_eq!(launch.ended().code, None);
    place.no_worker_is_left("run");
    let mut next = place.launch("run", &["--set", "workers.local=1"]);
    // Its own steps: those of the first launch stand in the file until this one reads it.
    wait(PATIENCE_SECONDS, "the second launch to train", || place.count("run", "started") == 2);
    place.wait_for_steps(&mut next, "run", 6);
    next.signal("HUP");
    let ended = next.ended();
    assert_eq!(ended.code, Some(129), "{}", ended.err);
    assert!(ended.err.contains("continuing after step"), "{}", ended.err);
    place.no_worker_is_left("run");
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let place = Place::new("twice", "    steps: 100000\n");
    let mut launch = place.launch("run", &[]);
    place.wait_for_steps(&mut launch, "run", 2);
    // A stopped worker cannot agree to a checkpoint, so the first Ctrl-C alone would wait for it.
    let (_, pid) = place.workers("run")[1];
    signal(pid, "STOP");
    launch.signal("INT");
    wait(DEATH_SECONDS, "the first Ctrl-C to be heard", || {
        fs::read_to_string(&launch.err).unwrap().contains("writing a checkpoint")
    });
    launch.signal("INT");
    assert_eq!(launch.ended_within(DEATH_SECONDS).code, Some(130));
    place.no_worker_is_left("run");
}

#[test]
fn a_step_that_is_not_finite_is_refused_everywhere_and_named() {
    // A decay of lr x weight_decay = 10 multiplies every weight by -9 a step, until it overflows.
    let place = Place::new("refused", "    steps: 60\n    lr: 1\n    weight_decay: 10\n");
    let ended = place.launch("run", &["--set", "training.warmup_steps=0"]).ended();
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    let committed = place.losses("run").len();
    for wanted in [
        "refused on all cells before the update, after 2 skipped steps in a row and 2 rollbacks"
            .to_owned(),
        "(2 in a row)".to_owned(),
        "the run goes back to its initial parameters, rollback 2 of 2".to_owned(),
        "error: worker-".to_owned(),
        format!("at step {}, in ", committed + 1),
        format!("last committed step: {committed}"),
        "lower training.lr".to_owned(),
    ] {
        assert!(ended.err.contains(&wanted), "want {wanted:?} in:\n{}", ended.err);
    }
    place.no_worker_is_left("run");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_training_goes_on_from_the_one_before() {
    let place = Place::new("damaged", "    steps: 6\n  checkpoint:\n    every: 2\n");
    place.launch("run", &["--set", "parallelism.replicas=2"]).done();
    let (rows, run) = (place.losses("run"), place.run_dir("run"));
    let path = run.join("checkpoints/step-6/master-cell-1.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let args = ["--set", "parallelism.replicas=2", "--set", "training.steps=8"];
    let more = place.launch("run", &args).done();
    for wanted in ["master-cell-1.safetensors", "step 6", "continuing after step 4"] {
        assert!(more.err.contains(wanted), "want {wanted:?} in:\n{}", more.err);
    }
    assert_eq!(place.losses("run")[..4], rows[..4]);
    assert_eq!(place.losses("run").len(), 8);
}
