//! Workers that catch up, give way, give cells to others, or disagree, message by message.

use shoal_plan::grid::CellId;
use shoal_proto::FailureKind;

use super::fixtures::{G1, at, connection, hello, of_generation, settings, step_done};
use super::tests::{Run, check};
use super::*;

const G2: Generation = Generation(2);
const G3: Generation = Generation(3);

fn held(generation: Generation, step: u64, cell: u32) -> FromWorker {
    let (standing, cell, blake3) = (at(step), CellId(cell), "5e".repeat(32));
    FromWorker::Held { generation, standing, cell, blake3 }
}

fn exited(worker: u32) -> Event {
    Event::WorkerExited {
        worker: WorkerId(worker),
        pid: 100 + worker,
        what: "killed by signal 9".into(),
    }
}

fn yielding(reason: Option<&str>) -> FromWorker {
    FromWorker::Yielding { reason: reason.map(str::to_owned) }
}

fn prepared(generation: Generation, step: u64, cells: &[u32]) -> FromWorker {
    let cells = cells.iter().map(|cell| (CellId(*cell), "5e".repeat(32))).collect();
    FromWorker::Prepared { generation, standing: at(step), cells }
}

fn hosts(run: &Run) -> Vec<u32> {
    run.state.plan().hosts.iter().map(|host| host.0).collect()
}

/// Worker 1 was lost and is back; worker 0 hosts both cells and trains, whose states after step 1 it holds.
fn one_hosts_and_one_is_back() -> (Run, String) {
    let mut run = Run::two_steps();
    for cell in [0, 1] {
        run.say(0, held(G1, 1, cell));
    }
    run.apply(exited(1));
    run.say(0, FromWorker::Ready { generation: G2 });
    let said = run.say(1, hello(1));
    (run, said)
}

/// All hosts end after `step` with their cells in memory.
fn edge(run: &mut Run, generation: Generation, step: u64, workers: &[(u32, &[u32])]) -> String {
    let mut said = String::new();
    let speaker = hosts(run)[0];
    for (worker, cells) in workers {
        let figures_from = u32::from(*worker != speaker);
        run.say(*worker, of_generation(generation, step_done(figures_from, step)));
        for cell in *cells {
            run.say(*worker, held(generation, step, *cell));
        }
        said = run.say(*worker, FromWorker::AtEdge { generation, standing: at(step) });
    }
    said
}

#[test]
fn a_newcomer_catches_up_while_the_others_train_and_the_edge_comes_when_it_has() {
    let (mut run, said) = one_hosts_and_one_is_back();
    check(said, &["11 <- Received", "Rejoined { worker: WorkerId(1) }", "11 <- Prepare"]);
    let Some(preparing) = &run.state.members[&WorkerId(1)].preparing else {
        panic!("it was asked")
    };
    let asked = format!("{preparing:?}");
    assert!(
        asked.contains("generation: Generation(3)") && asked.contains("done: false"),
        "{asked}"
    );
    check(run.say(0, of_generation(G2, step_done(0, 2))), &["ledger 2 from 8", "step 2"]);
    run.now_ms += 400;
    check(run.say(1, prepared(G2, 1, &[1])), &["11 ignored: known already"]);
    let ready = "Prepared { worker: WorkerId(1), cells: 1, step: 1, seconds: 0.4 }";
    check(run.say(1, prepared(G3, 1, &[1])), &[ready, "10 <- Edge"]);
    check(edge(&mut run, G2, 3, &[(0, &[0, 1])]), &["planned", "10 <- Assign", "11 <- Assign"]);
    assert_eq!(hosts(&run), [0, 1]);
}

#[test]
fn whoever_does_not_catch_up_holds_nobody_up_and_a_wrong_hash_counts_for_nothing() {
    let (mut run, _) = one_hosts_and_one_is_back();
    assert_eq!(run.wait(preparing::PATIENCE_MS - 250, &[0, 1]), "");
    check(run.wait(250, &[0, 1]), &["10 <- Edge"]);

    let (mut run, _) = one_hosts_and_one_is_back();
    let cells = vec![(CellId(1), "00".repeat(32))];
    let wrong = FromWorker::Prepared { generation: G3, standing: at(1), cells };
    let ignored = "11 ignored: cell-1 after step 1 is not what others hold of it";
    check(run.say(1, wrong), &[ignored, "10 <- Edge"]);

    // It dies meanwhile: the others never noticed that it was there.
    let (mut run, _) = one_hosts_and_one_is_back();
    let gone = run.apply(exited(1));
    assert!(gone.contains("Evicted { worker: WorkerId(1)") && !gone.contains("Edge"), "{gone}");
    assert_eq!(run.wait(2 * preparing::PATIENCE_MS, &[0]), "");
}

#[test]
fn a_worker_gives_way_at_an_edge_stays_and_comes_back() {
    let mut run = Run::two_steps();
    let reason = "game runs on its machine";
    let gives_way = format!("Yielding {{ worker: WorkerId(1), reason: Some({reason:?}) }}");
    let said = run.say(1, yielding(Some(reason)));
    check(said, &[&gives_way, "10 <- Edge", "11 <- Edge"]);
    check(run.say(1, yielding(Some(reason))), &["11 ignored: known already"]);
    let moved = edge(&mut run, G1, 3, &[(0, &[0]), (1, &[1])]);
    assert_eq!(moved.lines().collect::<Vec<_>>(), ["planned", "10 <- Assign"]);
    assert_eq!(hosts(&run), [0, 0]);
    let started = run.say(0, FromWorker::Ready { generation: G2 });
    assert!(started.contains("MovedAtEdge") && !started.contains("Released"), "{started}");
    // Its memory is wanted until another has what it holds.
    check(run.say(0, held(G2, 3, 1)), &["11 <- Released"]);
    assert_eq!(run.wait(60_000, &[0, 1]), "", "it is a member, and has no part in the plan");
    let back = "Yielding { worker: WorkerId(1), reason: None }";
    check(run.say(1, yielding(None)), &[back, "11 <- Prepare"]);
    run.say(1, prepared(G3, 3, &[1]));
    edge(&mut run, G2, 4, &[(0, &[0, 1])]);
    assert_eq!(hosts(&run), [0, 1]);
}

#[test]
fn with_too_few_others_the_run_pauses_at_the_edge_and_nothing_is_done_again() {
    let mut settings = settings();
    settings.job.workers.min = 2;
    settings.job.workers.restarts = 0;
    let mut run = Run::two_steps_by(settings);
    let said = run.say(0, yielding(Some("mine is there")));
    assert!(said.ends_with("10 <- Edge\n11 <- Edge"), "{said}");
    let paused = edge(&mut run, G1, 3, &[(0, &[0]), (1, &[1])]);
    check(paused, &["Paused { have: 1, want: 2, asked: false }"]);
    assert_eq!(run.wait(120_000, &[0, 1]), "");
    let resumed = run.say(0, yielding(None));
    assert!(
        resumed
            .contains("Resumed\nRecovering { generation: Generation(2), from_step: 3, to_step: 3"),
        "{resumed}"
    );
    assert!(!resumed.contains("ledger back"), "{resumed}");
    assert_eq!(hosts(&run), [0, 1]);
}

#[test]
fn a_run_begins_without_those_that_give_way_and_waits_where_they_are_too_many() {
    for (min, want) in [(1, true), (2, false)] {
        let mut settings = settings();
        settings.job.workers.min = min;
        let mut run = Run::new(settings);
        run.say(1, hello(1));
        run.say(1, yielding(Some("game runs")));
        let said = run.say(0, hello(0));
        assert_eq!(said.contains("planned"), want, "{said}");
        if want {
            assert_eq!(hosts(&run), [0, 0]);
            continue;
        }
        assert_eq!(run.wait(60_000, &[0, 1]), "", "nobody is missing");
        let begun = run.say(1, yielding(None));
        assert!(begun.contains("planned"), "{begun}");
        assert_eq!(hosts(&run), [0, 1]);
    }
}

/// Two replicas of one cell on two workers, training.
fn twins() -> Run {
    let mut settings = settings();
    settings.job.grid = shoal_plan::grid::Grid { stages: 1, expert_shards: 1, replicas: 2 };
    settings.job.training.steps = 20;
    settings.make_plan = |job, workers, generation| {
        shoal_plan::placement::make_plan(job, workers, generation).map_err(|e| e.to_string())
    };
    Run::training_by(settings)
}

fn done_with_sum(generation: Generation, worker: u32, step: u64, sum: u64) -> FromWorker {
    let mut message = of_generation(generation, step_done(worker, step));
    if let FromWorker::StepDone { sums, .. } = &mut message {
        sums.push((CellId(worker), sum));
    }
    message
}

#[test]
fn twins_that_differ_are_rolled_back_to_where_they_agreed_and_the_third_time_ends_the_run() {
    let mut run = twins();
    run.say(0, done_with_sum(G1, 0, 1, 77));
    check(run.say(1, done_with_sum(G1, 1, 1, 77)), &["ledger 1 from 0", "step 1"]);
    for (worker, step) in [(0, 1), (1, 1), (0, 2), (1, 2)] {
        run.say(worker, held(G1, step, worker));
    }
    run.say(0, done_with_sum(G1, 0, 2, 78));
    let what = "after step 2 twins differ: cell-0 on worker-0 has 000000000000004e, cell-1 on worker-1 \
                has 000000000000004f";
    let diverged = format!("Diverged {{ step: 2, what: {what:?} }}");
    let again = "Recovering { generation: Generation(2), from_step: 1, to_step: 1, workers: 2, source: \
                 Memory }";
    let said = run.say(1, done_with_sum(G1, 1, 2, 79));
    check(said, &[&diverged, again, "planned", "10 <- Assign", "11 <- Assign"]);
    for generation in [G2, G3] {
        for worker in [0, 1] {
            run.say(worker, FromWorker::Ready { generation });
        }
        run.say(0, done_with_sum(generation, 0, 2, 78));
        let said = run.say(1, done_with_sum(generation, 1, 2, 79));
        let over = said.contains(&format!("failed: {what}; 3 times in a row"));
        assert_eq!(over, generation == G3, "{said}");
    }
}

#[test]
fn a_sum_of_a_foreign_cell_breaks_the_protocol() {
    let mut run = twins();
    let mut message = step_done(0, 1);
    if let FromWorker::StepDone { sums, .. } = &mut message {
        sums.push((CellId(1), 5));
    }
    let said = run.say(0, message);
    assert!(said.contains("a sum of cell-1, which it does not host"), "{said}");
}

#[test]
fn a_quarantine_gives_way_below_the_minimum_and_keeps_out_above_it() {
    // Three losses in two minutes, and back.
    let flapping = |min: u32| {
        let mut settings = settings();
        settings.job.workers.min = min;
        let mut run = Run::two_steps_by(settings);
        for _ in 0..3 {
            run.apply(exited(1));
            run.say(1, hello(1));
        }
        run
    };
    let eligible = |run: &Run| run.state.eligible().map(|worker| worker.0).collect::<Vec<_>>();
    let mut run = flapping(1);
    assert_eq!(eligible(&run), [0], "one is enough");
    // It is needed as soon as the other one goes.
    run.say(0, FromWorker::Ready { generation: G2 });
    run.apply(exited(0));
    assert_eq!(eligible(&run), [1]);
    assert_eq!(hosts(&run), [1, 1]);

    let run = flapping(2);
    assert_eq!(eligible(&run), [0, 1], "two are wanted, and two are here");
    assert_eq!(hosts(&run), [0, 1]);
    // Whoever is cut off, leaves or gives way is not made eligible by being needed.
    for change in 0..3 {
        let mut run = flapping(2);
        match change {
            0 => drop(run.apply(Event::HungUp { connection: connection(1), why: "reset".into() })),
            1 => drop(run.say(1, FromWorker::Leaving { reason: "its owner plays".into() })),
            _ => drop(run.say(1, yielding(Some("game runs")))),
        }
        assert_eq!(eligible(&run), [0], "{change}");
    }
    // Its quarantine is over.
    let mut run = flapping(1);
    run.say(0, FromWorker::Ready { generation: G2 });
    run.wait(61_000, &[0, 1]);
    assert_eq!(eligible(&run), [0, 1]);
}

/// Four replicas on two workers, the first of which takes `ratio` times as long.
fn paced(ratio: f64) -> (Run, Vec<String>) {
    let mut settings = settings();
    settings.job.grid = shoal_plan::grid::Grid { stages: 1, expert_shards: 1, replicas: 4 };
    settings.job.training.steps = 500;
    settings.make_plan = |job, workers, generation| {
        shoal_plan::placement::make_plan(job, workers, generation).map_err(|e| e.to_string())
    };
    let mut run = Run::training_by(settings);
    let mut said = Vec::new();
    for step in 1..=10 {
        for (worker, seconds) in [(0, ratio), (1, 1.0)] {
            let mut message = step_done(worker, step);
            if let FromWorker::StepDone { compute_seconds, .. } = &mut message {
                *compute_seconds = seconds;
            }
            said.push(run.say(worker, message));
        }
    }
    (run, said)
}

#[test]
fn a_straggler_gives_a_cell_away_at_an_edge_and_no_failure_is_counted() {
    let (run, said) = paced(1.1);
    assert!(run.state.phase == Phase::Training && !said.join("\n").contains("Edge"));
    let (mut run, said) = paced(3.0);
    let said = said.join("\n");
    assert!(said.contains("Straggler { worker: WorkerId(0), ratio: 3.0 }"), "{said}");
    let why = "SharesMove { what: \"cell-0 from worker-0 to worker-1: the slowest computes 3.000 s a step";
    assert!(said.contains(why) && said.contains("10 <- Edge\n11 <- Edge"), "{said}");
    // Steps 9 and 10 came before everybody had heard of it.
    let moved = edge(&mut run, G1, 11, &[(0, &[0, 1]), (1, &[2, 3])]);
    assert!(moved.starts_with("planned"), "{moved}");
    assert_eq!(hosts(&run), [1, 0, 1, 1]);
    assert!(run.state.plan().reasons[&WorkerId(0)].contains("1 cells, by its pace: 3.0 times"));
    for worker in [0, 1] {
        run.say(worker, FromWorker::Ready { generation: G2 });
    }
    assert!(run.state.histories.values().all(|past| !past.gone));
    run.say(1, held(G2, 11, 1));
    // Lost and back, it still has the small share.
    let failed = FromWorker::Failed {
        generation: G2,
        step: 12,
        kind: FailureKind::Internal,
        what: "a bug".into(),
        layer: None,
        unreachable: Vec::new(),
    };
    run.say(0, failed);
    assert_eq!(hosts(&run), [1, 1, 1, 1]);
    run.say(1, FromWorker::Ready { generation: G3 });
    run.say(0, hello(0));
    run.say(0, prepared(Generation(4), 11, &[]));
    edge(&mut run, G3, 12, &[(1, &[0, 1, 2, 3])]);
    assert_eq!(hosts(&run).iter().filter(|host| **host == 0).count(), 1, "{:?}", hosts(&run));
}
