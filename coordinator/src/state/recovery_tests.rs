//! How a run goes on without a worker, message by message.

use shoal_plan::grid::CellId;
use shoal_proto::{FailureKind, Hello, Resuming};

use super::apart::APART_MS;
use super::cause::{GRACE_MS, RECONNECT_MS};
use super::fixtures::{at, connection, finished, hello, of_generation, part, settings, step_done};
use super::tests::{Run, check, failed, written};
use super::*;
use crate::state::fixtures::G1;

const G2: Generation = Generation(2);

fn held(generation: Generation, step: u64, cell: u32) -> FromWorker {
    let (standing, cell, blake3) = (at(step), CellId(cell), "5e".repeat(32));
    FromWorker::Held { generation, standing, cell, blake3 }
}

fn exited(worker: u32) -> Event {
    let (pid, what) = (100 + worker, "killed by signal 9".into());
    Event::WorkerExited { worker: WorkerId(worker), pid, what }
}

/// Two steps are committed; each worker holds both cells after step 1.
fn remembered() -> Run {
    let mut run = Run::two_steps();
    for (worker, cell) in [(0, 0), (1, 1), (0, 1), (1, 0)] {
        check(run.say(worker, held(G1, 1, cell)), &[]);
    }
    run
}

/// What the run's last plan says: who hosts, from which step, from how many sources, from which
/// checkpoint.
fn assigned(run: &Run) -> (Vec<u32>, u64, usize, Option<u64>) {
    let assign = run.state.assignment.as_ref().unwrap();
    let hosts = assign.plan.hosts.iter().map(|host| host.0).collect();
    (hosts, assign.standing.step, assign.sources.len(), assign.resume_from)
}

const LOST: &str = r#"Evicted { worker: WorkerId(1), cause: Exited, what: "the process ended: killed by signal 9" }"#;

fn closed(why: &str) -> String {
    format!("11 closed: worker-1 is no longer part of the run: {why}")
}

#[test]
fn the_survivor_hosts_all_cells_from_memory_and_the_ledger_says_what_is_taken_back() {
    let mut run = remembered();
    assert_eq!(run.state.kept_steps(), (1, 1));
    let recovering = "Recovering { generation: Generation(2), from_step: 2, to_step: 1, workers: 1, \
                      source: Memory }";
    let out = closed("the process ended: killed by signal 9");
    let want = [&out, LOST, "ledger back to 1, next None", recovering, "planned", "10 <- Assign"];
    check(run.apply(exited(1)), &want);
    assert_eq!(assigned(&run), (vec![0, 0], 1, 2, None));
    run.now_ms += 700;
    let started = run.say(0, FromWorker::Ready { generation: G2 });
    let recovered = "Recovered { generation: Generation(2), seconds: 0.7 }";
    check(started, &["Started", "10 <- Start", recovered]);
    check(run.say(0, step_done(0, 3)), &["10 ignored: of generation 1, now is generation 2"]);
    for step in [2, 3, 4] {
        let done = run.say(0, of_generation(G2, step_done(0, step)));
        let row = format!("ledger {step} from {}", 8 * (step - 1));
        check(done, &[&row, &format!("step {step}")]);
    }
    for cell in [0, 1] {
        run.say(0, of_generation(G2, part(cell, 4)));
    }
    run.say(0, of_generation(G2, finished(4, Ending::Completed)));
    assert!(run.apply(written(4)).ends_with("ending: Completed, best: None }"));
}

#[test]
fn without_a_whole_snapshot_the_newest_checkpoint_serves_or_the_seed() {
    let mut run = Run::two_steps();
    run.say(0, held(G1, 1, 0));
    run.say(1, held(G1, 1, 1));
    run.apply(exited(1));
    assert_eq!(assigned(&run), (vec![0, 0], 0, 0, None), "cell-1's state is gone");

    let mut run = Run::two_steps();
    run.say(0, part(0, 2));
    run.say(1, part(1, 2));
    // The manifest is waited for: whichever checkpoint is the newest must be certain.
    let evicted = run.apply(exited(1));
    assert!(evicted.ends_with(LOST), "{evicted}");
    let planned = run.apply(written(2));
    assert!(planned.contains("from_step: 2, to_step: 2, workers: 1, source: Checkpoint"));
    assert!(!planned.contains("ledger"), "nothing is taken back: {planned}");
    assert_eq!(assigned(&run), (vec![0, 0], 2, 0, Some(2)));
}

#[test]
fn survivors_that_lost_a_peer_do_not_hide_which_and_stay() {
    let mut run = remembered();
    check(run.say(0, failed(FailureKind::PeerLost, "worker-1 closed the connection")), &[]);
    let out = run.apply(Event::HungUp { connection: connection(1), why: "reset".into() });
    assert!(out.contains("Evicted { worker: WorkerId(1), cause: HungUp"), "{out}");
    assert_eq!(assigned(&run).0, [0, 0]);

    // A connection that ends without more is waited for, as its process may take it up again.
    let mut run = remembered();
    run.apply(Event::HungUp { connection: connection(1), why: "reset".into() });
    assert_eq!(run.wait(RECONNECT_MS - 1, &[0]), "");
    assert!(run.wait(1, &[0]).contains("Evicted { worker: WorkerId(1), cause: HungUp"));
}

#[test]
fn a_broken_link_between_the_living_is_tried_again_before_anybody_goes() {
    let mut run = remembered();
    run.say(0, failed(FailureKind::PeerLost, "worker-1 is silent"));
    assert_eq!(run.wait(GRACE_MS - 1, &[0, 1]), "");
    let again = run.wait(1, &[0, 1]);
    assert!(again.contains("Recovering { generation: Generation(2)"), "{again}");
    assert!(!again.contains("Evicted"), "{again}");
    let lost = |generation| FromWorker::Failed {
        generation,
        step: 2,
        kind: FailureKind::PeerLost,
        what: "worker-1 is silent".into(),
        layer: None,
        unreachable: Vec::new(),
    };
    // To the step that memory holds; there it happens again, and again.
    run.say(0, lost(G2));
    let again = run.wait(GRACE_MS, &[0, 1]);
    assert!(again.contains("Recovering { generation: Generation(3)"), "{again}");
    run.say(0, lost(Generation(3)));
    let distrusted = run.wait(GRACE_MS, &[0, 1]);
    assert!(distrusted.contains("source: Seed"), "{distrusted}");
}

#[test]
fn two_that_cannot_reach_each_other_are_kept_apart_for_a_while_and_nobody_is_evicted() {
    let misses = |of: u32, generation| FromWorker::Failed {
        generation,
        step: 3,
        kind: FailureKind::PeerLost,
        what: format!("worker-{of} was lost: timed out"),
        layer: None,
        unreachable: vec![WorkerId(of)],
    };
    let mut run = remembered();
    check(run.say(0, misses(1, G1)), &[]);
    let parted = "Parted { worker: WorkerId(1), from: WorkerId(0), seconds: 20 }";
    let recovering = "Recovering { generation: Generation(2), from_step: 2, to_step: 1, workers: 1, \
                      source: Memory }";
    let want = [parted, "ledger back to 1, next None", recovering, "planned", "10 <- Assign"];
    check(run.say(1, misses(0, G1)), &want);
    assert_eq!(assigned(&run), (vec![0, 0], 1, 2, None));
    run.say(0, FromWorker::Ready { generation: G2 });
    assert_eq!(run.wait(APART_MS - 1, &[0, 1]), "");
    assert_eq!(run.wait(1, &[0, 1]), "11 <- Prepare", "they are tried again, between two steps");
    let cells = vec![(CellId(1), "5e".repeat(32))];
    let (generation, standing) = (Generation(3), at(1));
    let asked = run.say(1, FromWorker::Prepared { generation, standing, cells });
    assert!(asked.ends_with("10 <- Edge"), "{asked}");
    run.say(0, of_generation(G2, step_done(0, 2)));
    for cell in [0, 1] {
        run.say(0, held(G2, 2, cell));
    }
    run.say(0, FromWorker::AtEdge { generation: G2, standing: at(2) });
    assert_eq!(assigned(&run).0, [0, 1]);
    // Only one end says so now, and the other lives: nothing is done again, and they wait longer.
    check(run.say(1, misses(0, Generation(3))), &[]);
    let again = run.wait(GRACE_MS, &[0, 1]);
    let parted = "Parted { worker: WorkerId(0), from: WorkerId(1), seconds: 40 }";
    assert!(again.contains(parted) && again.contains("from_step: 2, to_step: 2"), "{again}");
    assert_eq!(assigned(&run).0, [1, 1]);
}

#[test]
fn a_session_is_taken_up_and_told_what_was_read_and_what_it_may_have_missed() {
    let mut run = Run::two_steps();
    run.apply(Event::HungUp { connection: connection(1), why: "reset".into() });
    let FromWorker::Hello(fresh) = hello(1) else { panic!("a hello") };
    let resuming = Some(Resuming { generation: G1, step: 3 });
    let back = FromWorker::Hello(Hello { resuming, ..fresh.clone() });
    check(run.say(9, back.clone()), &["19 <- Received", "19 <- Start"]);
    assert_eq!(run.wait(2 * RECONNECT_MS, &[0, 9]), "");
    check(run.say(0, step_done(0, 3)), &[]);
    check(run.say(9, step_done(1, 3)), &["ledger 3 from 16", "step 3"]);
    // Over a connection that nobody knew to be broken.
    let old = "19 closed: the session goes on over another connection";
    check(run.say(8, back), &[old, "18 <- Received", "18 <- Start"]);
    check(run.say(9, step_done(1, 4)), &["19 closed: a session begins with a hello"]);
    // A process that has begun anew has lost its cells.
    let anew = run.say(7, FromWorker::Hello(fresh));
    assert!(anew.contains("the same process has begun anew"), "{anew}");
    assert!(anew.contains("17 <- Received\nRejoined { worker: WorkerId(1) }"), "{anew}");
}

#[test]
fn a_worker_that_comes_back_enters_at_an_edge_and_nothing_is_taken_back() {
    let mut run = remembered();
    run.apply(exited(1));
    run.say(0, FromWorker::Ready { generation: G2 });
    let joined = ["11 <- Received", "Rejoined { worker: WorkerId(1) }", "11 <- Prepare"];
    check(run.say(1, hello(1)), &joined);
    let (generation, standing) = (Generation(3), at(1));
    let ready = FromWorker::Prepared { generation, standing, cells: vec![] };
    assert!(run.say(1, ready).ends_with("10 <- Edge"));
    run.say(0, of_generation(G2, step_done(0, 2)));
    for cell in [0, 1] {
        run.say(0, held(G2, 2, cell));
    }
    let at_edge = FromWorker::AtEdge { generation: G2, standing: at(2) };
    check(run.say(0, at_edge), &["planned", "10 <- Assign", "11 <- Assign"]);
    assert_eq!(assigned(&run), (vec![0, 1], 2, 2, None));
    let ready = || FromWorker::Ready { generation: Generation(3) };
    run.say(0, ready());
    run.now_ms += 250;
    let moved = "MovedAtEdge { generation: Generation(3), step: 2, stall_seconds: 0.25 }";
    check(run.say(1, ready()), &["Started", "10 <- Start", "11 <- Start", moved]);
}

#[test]
fn a_worker_that_leaves_hands_over_at_an_edge() {
    let mut run = remembered();
    let leaving = FromWorker::Leaving { reason: "its owner plays".into() };
    check(run.say(1, leaving), &["10 <- Edge", "11 <- Edge"]);
    for worker in [0, 1] {
        run.say(worker, step_done(worker, 3));
        run.say(worker, held(G1, 3, worker));
    }
    let at_edge = || FromWorker::AtEdge { generation: G1, standing: at(3) };
    run.say(0, at_edge());
    check(run.say(1, at_edge()), &["planned", "10 <- Assign"]);
    assert_eq!(assigned(&run), (vec![0, 0], 3, 2, None));
    let started = run.say(0, FromWorker::Ready { generation: G2 });
    assert!(started.ends_with("11 <- Leave\nLeft { worker: WorkerId(1) }"), "{started}");
    check(run.apply(exited(1)), &[]);
}

#[test]
fn below_the_minimum_the_run_pauses_and_goes_on_by_itself() {
    let mut settings = settings();
    settings.job.workers.min = 2;
    let mut run = Run::two_steps_by(settings);
    let paused = run.apply(exited(1));
    assert!(paused.ends_with("Paused { have: 1, want: 2, asked: false }"), "{paused}");
    assert!(run.state.is_paused());
    // The survivor's word about its peer changes nothing.
    let late = run.say(0, failed(FailureKind::PeerLost, "worker-1 closed the connection"));
    check(late, &["10 ignored: not expected while Paused"]);
    assert_eq!(run.wait(60_000, &[0]), "");
    let resumed = run.say(1, hello(1));
    assert!(resumed.contains("Resumed\nledger back to 0, next None\nRecovering"), "{resumed}");
    assert_eq!(assigned(&run).0, [0, 1]);
}

#[test]
fn a_flapping_worker_is_quarantined_and_an_unwilling_one_ends_the_run() {
    let mut run = Run::two_steps();
    run.apply(exited(1));
    for _ in 0..2 {
        run.say(1, hello(1));
        run.apply(exited(1));
    }
    let text = run.say(1, hello(1));
    check(text, &["11 <- Received", "Rejoined { worker: WorkerId(1) }"]);
    run.say(0, FromWorker::Ready { generation: G2 });
    assert_eq!(run.wait(59_000, &[0, 1]), "", "it has no part in the plan");
    assert!(run.wait(1_500, &[0, 1]).contains("11 <- Prepare"), "its quarantine is over");

    let mut run = Run::two_steps();
    let bug = |run: &mut Run| run.say(1, failed(FailureKind::Internal, "index out of bounds"));
    assert!(bug(&mut run).contains("cause: Reported(Internal)"));
    for generation in [G2, Generation(3)] {
        run.say(1, hello(1));
        let what = "index out of bounds".to_owned();
        let sign = run.state.sign_of(WorkerId(1), Cause::Reported(FailureKind::Internal), what);
        run.state.signs.add(sign);
        let end = run.apply(Event::Tick);
        let over = end.contains("failed: worker-1: index out of bounds");
        assert_eq!(over, generation == Generation(3), "{end}");
    }
}

#[test]
fn a_stop_while_a_plan_is_made_waits_for_it_and_while_paused_ends_at_the_checkpoint() {
    let mut run = remembered();
    run.apply(exited(1));
    check(run.apply(Event::StopRequested), &[]);
    let started = run.say(0, FromWorker::Ready { generation: G2 });
    assert!(started.ends_with("10 <- Stop"), "{started}");

    let mut settings = settings();
    settings.job.workers.min = 2;
    let mut run = Run::two_steps_by(settings);
    run.apply(exited(1));
    let end = run.apply(Event::StopRequested);
    assert!(end.starts_with("ledger back to 0, next None\nRecovering"), "{end}");
    assert!(end.ends_with("Finished { last_step: 0, ending: Stopped, best: None }"), "{end}");
}
