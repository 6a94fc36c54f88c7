//! Orders from another terminal, in every phase: what is answered, and what comes of it.

use shoal_plan::plan::WorkerId;

use super::fixtures::{
    G1, at, connection, finished, hello, of_generation, part, settings, step_done,
};
use super::tests::{Run, check, written};
use super::*;
use crate::control::{RunPhase, WorkerIs};

const G2: Generation = Generation(2);

fn held(generation: Generation, step: u64, cell: u32) -> FromWorker {
    let (standing, cell) = (at(step), shoal_plan::grid::CellId(cell));
    FromWorker::Held { generation, standing, cell, blake3: "5e".repeat(32) }
}

fn exited(worker: u32) -> Event {
    let what = "killed by signal 9".to_owned();
    Event::WorkerExited { worker: WorkerId(worker), pid: 100 + worker, what }
}

fn order(run: &mut Run, order: Order) -> String {
    run.apply(Event::Ordered { asked: 7, order })
}

fn drain(run: &mut Run, worker: u32) -> String {
    order(run, Order::Drain { worker: WorkerId(worker), force: false })
}

fn is(run: &Run, worker: u32) -> WorkerIs {
    run.state.status().workers[worker as usize].state
}

fn phase(run: &Run) -> RunPhase {
    run.state.status().phase
}

/// Both end after `step` with their cells in memory.
fn edge(run: &mut Run, step: u64) -> String {
    edge_over(run, step, 0)
}

/// The same over other connections: as many on.
fn edge_over(run: &mut Run, step: u64, on: u32) -> String {
    let mut said = String::new();
    for worker in [0, 1] {
        run.say(on + worker, step_done(worker, step));
        run.say(on + worker, held(G1, step, worker));
        said = run.say(on + worker, FromWorker::AtEdge { generation: G1, standing: at(step) });
    }
    said
}

/// As it is after a restart, when both workers are back over connections 20 on.
fn restarted(run: Run, step: u64) -> (Run, String) {
    let text = serde_json::to_string(&run.state.save()).unwrap();
    let saved: Saved = serde_json::from_str(&text).unwrap();
    let (state, _) = State::restore(run.state.settings.clone(), saved);
    let mut run = Run { now_ms: state.now_ms(), state };
    assert_eq!((is(&run, 0), is(&run, 1)), (WorkerIs::CutOff, WorkerIs::CutOff));
    let mut told = Vec::new();
    for worker in [0, 1] {
        let FromWorker::Hello(mut again) = hello(worker) else { panic!("a hello") };
        again.resuming = Some(shoal_proto::Resuming { generation: G1, step });
        told.push(run.say(20 + worker, FromWorker::Hello(again)));
    }
    (run, told.join("\n"))
}

fn needs_both() -> Settings {
    let mut settings = settings();
    settings.job.workers.min = 2;
    settings
}

const ACCEPTED: &str =
    r#"answer 7: Ok("worker-1 hands over its cells and leaves at the end of a step")"#;

#[test]
fn a_drained_worker_hands_over_at_an_edge_and_is_gone_for_good() {
    let mut run = Run::two_steps();
    let draining = "Draining { worker: WorkerId(1) }";
    check(drain(&mut run, 1), &[draining, ACCEPTED, "10 <- Edge", "11 <- Edge"]);
    assert_eq!(is(&run, 1), WorkerIs::Draining);
    let again =
        r#"answer 7: Ok("worker-1 was asked to go before; it leaves at the end of a step")"#;
    check(drain(&mut run, 1), &[again]);
    check(edge(&mut run, 3), &["planned", "10 <- Assign"]);
    let left = "Left { worker: WorkerId(1) }";
    let started = run.say(0, FromWorker::Ready { generation: G2 });
    assert!(started.ends_with(&format!("11 <- Leave\n{left}")), "{started}");
    assert!(!started.contains("Evicted") && !started.contains("ledger back"), "{started}");
    let status = run.state.status();
    assert_eq!((is(&run, 1), status.recoveries, status.step), (WorkerIs::Left, 0, 3));
    check(drain(&mut run, 1), &[r#"answer 7: Err("worker-1 has left already")"#]);
    // A process that takes its place, though nobody should have started it.
    let back = run.say(1, hello(1));
    assert!(back.ends_with(&format!("11 <- Leave\n{left}")), "{back}");
}

#[test]
fn a_worker_that_dies_before_it_could_go_is_let_go_when_it_is_back() {
    let mut run = Run::two_steps();
    drain(&mut run, 1);
    let lost = run.apply(exited(1));
    assert!(lost.contains("Evicted { worker: WorkerId(1)"), "{lost}");
    let lost = r#"answer 7: Err("worker-1 is lost and not back: it has nothing to hand over")"#;
    check(drain(&mut run, 1), &[lost]);
    run.say(0, FromWorker::Ready { generation: G2 });
    let back = run.say(1, hello(1));
    assert!(back.ends_with("11 <- Leave\nLeft { worker: WorkerId(1) }"), "{back}");
    assert!(!back.contains("Edge") && !back.contains("Prepare"), "{back}");
}

#[test]
fn a_drain_survives_the_coordinator() {
    let mut run = Run::two_steps();
    drain(&mut run, 1);
    let (mut run, told) = restarted(run, 2);
    assert!(told.contains("30 <- Edge") && told.contains("31 <- Edge"), "{told}");
    edge_over(&mut run, 3, 20);
    let started = run.say(20, FromWorker::Ready { generation: G2 });
    assert!(started.ends_with("31 <- Leave\nLeft { worker: WorkerId(1) }"), "{started}");
}

#[test]
fn whom_nobody_can_do_without_is_not_drained() {
    let refused = |mut run: Run, worker, why: &str| {
        let said = drain(&mut run, worker);
        assert_eq!(said, format!("answer 7: Err({why:?})"));
        assert_eq!(run.state.members.values().filter(|member| member.leaving).count(), 0);
    };
    refused(Run::two_steps(), 2, "worker-2 is not of this run, which has worker-0 to worker-1");
    refused(
        Run::two_steps_by(needs_both()),
        1,
        "without worker-1 there are 1 workers, and workers.min is 2: the run would pause, and end if \
         nobody can come; --force drains it all the same",
    );
    let mut alone = Run::two_steps();
    alone.apply(exited(1));
    let last = "nobody but worker-0 is here to take its cells: `shoal stop` writes a checkpoint and \
                ends the run";
    refused(alone, 0, last);
    let mut early = Run::new(settings());
    early.say(1, hello(1));
    refused(early, 0, "worker-0 has not joined yet");
    let mut early = Run::new(settings());
    early.say(1, hello(1));
    refused(early, 1, "the run waits for its workers: drain one when it trains");
    let mut stopping = Run::two_steps();
    stopping.apply(Event::StopRequested);
    refused(stopping, 1, "the run is stopping, and worker-1 leaves with all others");
}

#[test]
fn by_force_the_run_pauses_as_it_does_when_a_worker_goes_by_itself() {
    let mut run = Run::two_steps_by(needs_both());
    let said = order(&mut run, Order::Drain { worker: WorkerId(1), force: true });
    let gone =
        "11 <- Leave\nLeft { worker: WorkerId(1) }\nPaused { have: 1, want: 2, asked: false }";
    assert!(said.ends_with(gone), "{said}");
    assert_eq!((phase(&run), is(&run, 1)), (RunPhase::Paused, WorkerIs::Left));
    let why = run.state.status().why.unwrap();
    assert_eq!(why, "1 workers are here, and workers.min is 2");
    check(
        order(&mut run, Order::Resume),
        &[
            r#"answer 7: Err("1 workers are here, and workers.min is 2: the run goes on by itself when enough are back")"#,
        ],
    );
}

#[test]
fn a_drain_while_the_others_recover_is_part_of_the_new_plan() {
    let mut settings = settings();
    (settings.workers_wanted, settings.workers_first) = (3, 3);
    settings.job.grid.stages = 3;
    let mut run = Run::new(settings);
    for worker in 0..3 {
        run.say(worker, hello(worker));
    }
    for worker in 0..3 {
        run.say(worker, FromWorker::Ready { generation: G1 });
    }
    run.apply(exited(2));
    assert_eq!(phase(&run), RunPhase::Preparing);
    let said = drain(&mut run, 1);
    assert!(said.contains("leaves when all train"), "{said}");
    // Nobody waits for cells that are to move again.
    assert!(said.contains("planned") && said.ends_with("10 <- Assign"), "{said}");
    let started = run.say(0, FromWorker::Ready { generation: Generation(3) });
    assert!(started.ends_with("11 <- Leave\nLeft { worker: WorkerId(1) }"), "{started}");
    assert_eq!(run.state.status().recoveries, 1, "a drain is none");
}

#[test]
fn a_run_pauses_between_two_steps_and_goes_on_with_everything() {
    let mut run = Run::two_steps();
    let pauses = r#"answer 7: Ok("the run pauses after a step")"#;
    check(order(&mut run, Order::Pause), &[pauses, "10 <- Edge", "11 <- Edge"]);
    check(order(&mut run, Order::Pause), &[pauses]);
    check(edge(&mut run, 3), &["Paused { have: 2, want: 1, asked: true }"]);
    check(order(&mut run, Order::Pause), &[r#"answer 7: Ok("the run is paused already")"#]);
    assert_eq!(run.wait(600_000, &[0, 1]), "", "for as long as anybody likes");
    let status = run.state.status();
    assert_eq!((status.phase, is(&run, 0)), (RunPhase::Paused, WorkerIs::Waiting));
    assert!(status.why.unwrap().contains("shoal resume"));
    let (mut run, told) = restarted(run, 3);
    assert!(!told.contains("Resumed") && phase(&run) == RunPhase::Paused, "{told}");
    let said = order(&mut run, Order::Resume);
    let on = "Resumed\nRecovering { generation: Generation(2), from_step: 3, to_step: 3, workers: 2, \
              source: Memory }\nplanned\n30 <- Assign\n31 <- Assign";
    assert_eq!(said, format!("answer 7: Ok(\"the run goes on\")\n{on}"));
    run.now_ms += 100;
    run.say(20, FromWorker::Ready { generation: G2 });
    let started = run.say(21, FromWorker::Ready { generation: G2 });
    assert!(
        started.ends_with("Recovered { generation: Generation(2), seconds: 0.1 }"),
        "{started}"
    );
    check(order(&mut run, Order::Resume), &[r#"answer 7: Ok("the run is not paused")"#]);
    assert_eq!(run.state.status().recoveries, 0);
}

#[test]
fn steps_are_traced_once_by_all_hosts_and_none_that_is_past() {
    let mut run = Run::two_steps();
    run.state.settings.job.training.steps = 10;
    let trace = |run: &mut Run, steps| order(run, Order::Trace { steps });
    let said = r#"answer 7: Ok("steps 4 to 5 are traced")"#;
    let told = "trace 4 to 5 of [WorkerId(0), WorkerId(1)]";
    check(trace(&mut run, 2), &["10 <- Trace", "11 <- Trace", told, said]);
    check(trace(&mut run, 2), &[said]);
    let another = r#"answer 7: Err("steps 4 to 5 are traced now: ask again after them")"#;
    check(trace(&mut run, 3), &[another]);
    check(trace(&mut run, 0), &[r#"answer 7: Err("0 steps: want 1 to 100")"#]);
    for step in [3, 4, 5] {
        run.say(0, step_done(0, step));
        run.say(1, step_done(1, step));
    }
    let again = trace(&mut run, 2);
    assert!(again.ends_with(r#"answer 7: Ok("steps 7 to 8 are traced")"#), "{again}");
    for step in 6..=8 {
        run.say(0, step_done(0, step));
        run.say(1, step_done(1, step));
    }
    let last_one = "trace 10 to 10 of [WorkerId(0), WorkerId(1)]";
    let last_said = r#"answer 7: Ok("steps 10 to 10 are traced")"#;
    check(trace(&mut run, 5), &["10 <- Trace", "11 <- Trace", last_one, last_said]);
    check(trace(&mut run, 5), &[last_said]);
    let mut short = Run::two_steps();
    short.state.settings.job.training.steps = 3;
    let end = r#"answer 7: Err("the run is about to end: no step is left to trace")"#;
    check(trace(&mut short, 1), &[end]);
    order(&mut run, Order::Pause);
    let refused = r#"answer 7: Err("the run is not training now: trace it when it is")"#;
    check(trace(&mut run, 2), &[refused]);
}

#[test]
fn a_drain_while_paused_waits_for_the_run_to_go_on_and_costs_nothing() {
    let mut run = Run::two_steps();
    order(&mut run, Order::Pause);
    edge(&mut run, 3);
    let said = drain(&mut run, 1);
    let answer = r#"answer 7: Ok("worker-1 hands over its cells and leaves when the run goes on")"#;
    check(said, &["Draining { worker: WorkerId(1) }", answer]);
    let said = order(&mut run, Order::Resume);
    assert!(said.contains("from_step: 3, to_step: 3, workers: 1, source: Memory"), "{said}");
    let started = run.say(0, FromWorker::Ready { generation: G2 });
    assert!(started.ends_with("11 <- Leave\nLeft { worker: WorkerId(1) }"), "{started}");
}

#[test]
fn a_stop_ends_a_pause_and_writes_down_what_was_in_memory() {
    let mut run = Run::two_steps();
    order(&mut run, Order::Pause);
    edge(&mut run, 3);
    let said = order(&mut run, Order::Stop { now: false });
    assert!(said.starts_with("StopAsked { now: false }\nanswer 7: Ok("), "{said}");
    assert!(said.contains("to_step: 3, workers: 2, source: Memory"), "{said}");
    run.say(0, FromWorker::Ready { generation: G2 });
    let started = run.say(1, FromWorker::Ready { generation: G2 });
    assert!(started.ends_with("10 <- Stop\n11 <- Stop"), "{started}");
    for worker in [0, 1] {
        for message in [step_done(worker, 4), part(worker, 4), finished(4, Ending::Stopped)] {
            run.say(worker, of_generation(G2, message));
        }
    }
    let end = run.apply(written(4));
    assert!(end.ends_with("Finished { last_step: 4, ending: Stopped, best: None }"), "{end}");
    check(order(&mut run, Order::Pause), &[r#"answer 7: Err("the run has ended")"#]);
}

#[test]
fn a_stop_is_told_to_the_launcher_once_and_one_at_once_is_its_affair() {
    let mut run = Run::two_steps();
    let asked = "StopAsked { now: false }";
    let stops = r#"answer 7: Ok("the run writes a checkpoint and stops")"#;
    let said = order(&mut run, Order::Stop { now: false });
    check(said, &[asked, "10 <- Stop", "11 <- Stop", stops]);
    let again = r#"answer 7: Ok("the run is stopping already")"#;
    check(order(&mut run, Order::Stop { now: false }), &[again]);
    check(order(&mut run, Order::Pause), &[r#"answer 7: Err("the run is stopping")"#]);
    let now = r#"answer 7: Ok("the launcher ends the run at once")"#;
    check(order(&mut run, Order::Stop { now: true }), &["StopAsked { now: true }", now]);
}

#[test]
fn a_run_tells_how_it_is() {
    let mut run = Run::training();
    for step in [1, 2] {
        run.now_ms += 2_000;
        for worker in [0, 1] {
            run.say(worker, step_done(worker, step));
        }
    }
    for worker in [0, 1] {
        run.say(worker, held(G1, 2, worker));
    }
    run.now_ms += 300;
    run.say(0, FromWorker::Heartbeat { generation: Some(G1), step: 2 });
    let status = run.state.status();
    assert_eq!((status.phase, status.step, status.steps), (RunPhase::Training, 2, 4));
    assert_eq!((status.loss, status.seconds_per_step), (Some(5.0), Some(2.0)));
    assert_eq!((status.seconds_left, status.tokens_per_second), (Some(4.0), Some(64.0)));
    assert_eq!((status.checkpoint_step, status.snapshot_step), (0, 2));
    let heard: Vec<_> = status.workers.iter().map(|worker| worker.heard_seconds_ago).collect();
    assert_eq!(heard, [Some(0.0), Some(0.3)]);
    assert_eq!(status.workers[1].cells, [1]);
    run.apply(Event::HungUp { connection: connection(1), why: "reset".into() });
    assert_eq!(is(&run, 1), WorkerIs::CutOff);
    run.apply(exited(1));
    let status = run.state.status();
    assert_eq!((status.workers[1].state, status.workers[1].losses), (WorkerIs::Lost, 1));
    assert_eq!((status.recoveries, status.workers[1].cells.len()), (0, 0), "it is not over");
    assert_eq!(status.why.unwrap(), "0 of 1 workers are ready");
    run.say(0, FromWorker::Ready { generation: G2 });
    assert_eq!(run.state.status().recoveries, 1);
}
