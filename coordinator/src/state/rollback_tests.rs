//! A run that goes back to its checkpoint, message by message.

use shoal_plan::plan::Generation;

use super::fixtures::{
    at, connection, evaluated, finished, go_back, of_generation, part, settings, step_done,
    step_skipped,
};
use super::tests::{Run, check, written};
use super::*;

const G2: Generation = Generation(2);

/// Step 2's checkpoint is committed and step 3 was skipped by both.
fn skipped() -> Run {
    let mut run = Run::two_steps();
    run.say(0, part(0, 2));
    run.say(1, part(1, 2));
    run.apply(written(2));
    run.say(0, step_skipped(0, 3, 1));
    let line = run.say(1, step_skipped(1, 3, 1));
    check(line, &["ledger 3 from 16, skipped", "step 3"]);
    run
}

#[test]
fn all_go_back_to_the_newest_checkpoint_and_pass_over_what_was_drawn_since() {
    let mut run = skipped();
    check(run.say(0, go_back(3, 1)), &[]);
    check(run.say(0, go_back(3, 1)), &["10 ignored: known already"]);
    let back = "RolledBack { from: 3, to: 2, passed_over: 8, rollbacks: 1 }";
    let ledger = "ledger back to 2, next Some(24)";
    let again = ["planned", "10 <- Assign", "11 <- Assign"];
    check(run.say(1, go_back(3, 1)), &[ledger, back, again[0], again[1], again[2]]);
    assert_eq!(run.state.start, Standing { sequences: 24, rollbacks: 1, ..at(2) });
    check(run.say(1, step_done(1, 4)), &["11 ignored: of generation 1, now is generation 2"]);
    let ready = || FromWorker::Ready { generation: G2 };
    run.say(0, ready());
    check(run.say(1, ready()), &["Started", "10 <- Start", "11 <- Start"]);
    for step in [3, 4] {
        for worker in [0, 1] {
            run.say(worker, of_generation(G2, step_done(worker, step)));
            run.say(worker, of_generation(G2, part(worker, step)));
        }
    }
    run.apply(written(3));
    for worker in [0, 1] {
        run.say(worker, of_generation(G2, finished(4, Ending::Completed)));
    }
    let end = run.apply(written(4));
    assert!(end.ends_with("Finished { last_step: 4, ending: Completed, best: None }"), "{end}");
}

#[test]
fn without_a_checkpoint_the_run_goes_back_to_its_initial_parameters() {
    let mut run = Run::training();
    for worker in [0, 1] {
        run.say(worker, step_skipped(worker, 1, 1));
    }
    run.say(0, go_back(1, 1));
    let effects = run
        .state
        .apply(run.now_ms, Event::Message { connection: connection(1), message: go_back(1, 1) });
    let assigned: Vec<_> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { message: ToWorker::Assign(assign), .. } => {
                Some((assign.plan.generation, assign.resume_from, assign.standing))
            }
            Effect::Send { .. }
            | Effect::Close { .. }
            | Effect::Ignored { .. }
            | Effect::Record(_)
            | Effect::CommitCheckpoint(_)
            | Effect::DiscardCheckpoint { .. }
            | Effect::Answer { .. }
            | Effect::Trace { .. }
            | Effect::News(_) => None,
        })
        .collect();
    let standing = Standing { sequences: 8, rollbacks: 1, ..Standing::default() };
    assert_eq!(assigned, vec![(G2, None, standing); 2]);
}

#[test]
fn a_checkpoint_that_is_being_written_is_waited_for() {
    let mut run = Run::two_steps();
    for worker in [0, 1] {
        run.say(worker, part(worker, 2));
        run.say(worker, step_skipped(worker, 3, 1));
        assert!(!run.say(worker, go_back(3, 1)).contains("RolledBack"));
    }
    let back = run.apply(written(2));
    assert!(back.contains("RolledBack { from: 3, to: 2,"), "{back}");

    // One that fails leaves the one before: here the initial parameters.
    let mut run = Run::two_steps();
    for worker in [0, 1] {
        run.say(worker, part(worker, 2));
        run.say(worker, step_skipped(worker, 3, 1));
        run.say(worker, go_back(3, 1));
    }
    let back = run.apply(Event::CheckpointWritten { step: 2, result: Err("disk full".into()) });
    assert!(
        back.contains("RolledBack { from: 3, to: 0, passed_over: 24, rollbacks: 1 }"),
        "{back}"
    );
}

#[test]
fn a_run_that_is_stopped_goes_back_and_ends_there() {
    let mut run = skipped();
    run.apply(Event::StopRequested);
    run.say(0, go_back(3, 1));
    let end = run.say(1, go_back(3, 1));
    assert!(end.starts_with("ledger back to 2, next None\n"), "{end}");
    assert!(end.ends_with("Finished { last_step: 2, ending: Stopped, best: None }"), "{end}");
}

#[test]
fn workers_that_disagree_about_where_they_stand_end_the_run() {
    let mut run = skipped();
    run.say(0, go_back(3, 1));
    let end = run.say(1, go_back(3, 2));
    assert!(end.contains("failed: workers go back from Standing"), "{end}");
}

#[test]
fn an_evaluation_is_told_after_its_step_and_before_its_checkpoint() {
    let mut run = Run::training();
    run.say(0, step_done(0, 1));
    check(run.say(0, evaluated(1, 2.5)), &[]);
    run.say(0, part(0, 1));
    let told = run.say(1, step_done(1, 1));
    check(told, &["ledger 1 from 0", "step 1", "evaluated 1: heldout 2.5"]);
    check(run.say(1, part(1, 1)), &["commit 1 of 2 files"]);
}

#[test]
fn the_best_evaluation_is_told_at_the_end_and_comes_with_a_resumed_run() {
    let best = Some(shoal_plan::standing::Best { step: 2, loss: 1.5 });
    let resumed = Settings { resume_from: Some(Standing { best, ..at(2) }), ..settings() };
    let mut run = Run::new(resumed);
    let end = run.apply(Event::StopRequested);
    assert!(end.contains("best: Some(Best { step: 2, loss: 1.5 })"), "{end}");
}
