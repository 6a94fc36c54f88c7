//! Evaluations on the way: what is measured, what is kept, and a run that ends by itself.

use std::fs;

use crate::place::{Place, json};

/// A learning rate far too high: after the first steps the held-out loss gets no better.
const RESTLESS: &str = "    steps: 400\n    lr: 0.3\n    lr_schedule: constant\n    mtp_weight_final: 0.3\n    bias_speed_until: 1\n  evaluation:\n    every: 2\n    patience: 3\n\
                        \x20 checkpoint:\n    every: 50\n    keep: 1\n";

#[test]
fn evaluations_are_bit_equal_on_any_number_of_workers_and_after_a_stop() {
    let place = Place::new(
        "evaluations",
        "    steps: 30\n  evaluation:\n    every: 4\n    tokens_max: 3000\n",
    );
    let told = place.launch("four", &[]).done();
    let wanted = place.evaluations("four");
    let steps: Vec<u64> = wanted.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [4, 8, 12, 16, 20, 24, 28, 30]);
    // 93 windows of 32 tokens: whole rounds of two columns of one window, and a half one.
    assert!(wanted.iter().all(|row| row["tokens"] == 93 * 32), "{wanted:?}");
    assert!(told.err.contains("step 4  heldout: loss "), "{}", told.err);
    assert!(told.err.contains(" bits/byte, perplexity "), "{}", told.err);
    for (run, workers) in [("two", 2), ("one", 1)] {
        place.launch(run, &["--set", &format!("workers.local={workers}")]).done();
        assert_eq!(place.evaluations(run), wanted, "{workers} workers");
    }
    let mut first = place.launch("stopped", &[]);
    place.wait_for_steps(&mut first, "stopped", 5);
    first.signal("INT");
    first.ended();
    place.launch("stopped", &[]).done();
    assert_eq!(place.evaluations("stopped"), wanted, "stopped and continued");
    assert_eq!(place.losses("stopped"), place.losses("four"));
}

#[test]
fn a_run_that_gets_no_better_ends_early_and_keeps_its_best_checkpoint() {
    let place = Place::new("early", RESTLESS);
    let ended = place.launch("run", &[]).done();
    let evaluations = place.evaluations("run");
    let loss = |row: &serde_json::Value| row["loss"].as_f64().unwrap_or(f64::INFINITY);
    let best = evaluations.iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap();
    let step = |row: &serde_json::Value| row["step"].as_u64().unwrap();
    let (best, last) = (step(best), step(evaluations.last().unwrap()));
    assert_eq!(evaluations.iter().filter(|row| step(row) > best).count(), 3, "{evaluations:?}");
    let said = format!("stopped early: no improvement in 3 evaluations; best was step {best}");
    assert!(ended.err.contains(&said), "want {said:?} in:\n{}", ended.err);
    let run = place.run_dir("run");
    let summary = json(&run.join("summary.json"));
    assert_eq!(summary["stopped_early"], true);
    assert_eq!((&summary["best"]["step"], &summary["steps"]), (&best.into(), &last.into()));
    assert_eq!(json(&run.join("checkpoints/best.json"))["step"], best);
    for step in [best, last] {
        let manifest = run.join(format!("checkpoints/step-{step}/manifest.json"));
        assert!(manifest.exists(), "{}", manifest.display());
    }
    assert_eq!(fs::read_dir(run.join("checkpoints")).unwrap().count(), 3, "and no others");

    let again = place.launch("run", &[]).done();
    assert!(again.out.contains(&format!("finished: {last} steps")), "{}", again.out);

    // In two launches it counts on from where it was.
    place.launch("two", &["--set", "training.steps=10"]).done();
    let continued = place.launch("two", &[]).done();
    assert!(continued.err.contains(&said), "want {said:?} in:\n{}", continued.err);
    assert_eq!(place.losses("two"), place.losses("run"));
}
