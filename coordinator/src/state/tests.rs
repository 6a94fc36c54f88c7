//! The protocol, case by case. `Run` is a rim for tests: it feeds events and remembers effects.

use shoal_plan::job::Job;
use shoal_plan::plan::RunId;
use shoal_proto::{FailureKind, Hello, Resuming};

use super::fixtures::{
    G1, at, connection, evaluated, finished, go_back, hello, part, part_failed, settings, step_done,
};
use super::*;
use crate::ledger::Rollback;

pub(super) fn failed(kind: FailureKind, what: &str) -> FromWorker {
    let layer = Some("model.layers.3".to_owned()).filter(|_| kind == FailureKind::NonFinite);
    let (what, unreachable) = (what.into(), Vec::new());
    FromWorker::Failed { generation: G1, step: 3, kind, what, layer, unreachable }
}

pub(super) struct Run {
    pub(super) state: State,
    pub(super) now_ms: u64,
}

impl Run {
    pub(super) fn new(settings: Settings) -> Self {
        Self { state: State::new(settings, 0), now_ms: 0 }
    }

    fn gathered() -> Self {
        Self::gathered_by(settings())
    }

    fn gathered_by(settings: Settings) -> Self {
        let mut run = Self::new(settings);
        run.say(0, hello(0));
        run.say(1, hello(1));
        run
    }

    pub(super) fn training() -> Self {
        Self::training_by(settings())
    }

    pub(super) fn training_by(settings: Settings) -> Self {
        let mut run = Self::gathered_by(settings);
        run.say(0, FromWorker::Ready { generation: G1 });
        run.say(1, FromWorker::Ready { generation: G1 });
        run
    }

    /// After step 2, its checkpoint not yet committed.
    pub(super) fn two_steps() -> Self {
        Self::two_steps_by(settings())
    }

    pub(super) fn two_steps_by(settings: Settings) -> Self {
        let mut run = Self::training_by(settings);
        for step in [1, 2] {
            run.say(0, step_done(0, step));
            run.say(1, step_done(1, step));
        }
        run
    }

    /// Applies an event and writes its effects as one line each.
    pub(super) fn apply(&mut self, event: Event) -> String {
        let effects = self.state.apply(self.now_ms, event);
        effects.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn say(&mut self, worker: u32, message: FromWorker) -> String {
        self.apply(Event::Message { connection: connection(worker), message })
    }

    /// Ticks until `ms` have passed; worker `alive`, if any, sends heartbeats meanwhile.
    pub(super) fn wait(&mut self, ms: u64, alive: &[u32]) -> String {
        let end_ms = self.now_ms + ms;
        let mut lines = Vec::new();
        while self.now_ms < end_ms {
            self.now_ms = (self.now_ms + 250).min(end_ms);
            for worker in alive {
                let heartbeat = FromWorker::Heartbeat { generation: Some(G1), step: 0 };
                lines.push(self.say(*worker, heartbeat));
            }
            lines.push(self.apply(Event::Tick));
        }
        lines.retain(|line| !line.is_empty());
        lines.join("\n")
    }
}

fn line(effect: &Effect) -> String {
    match effect {
        Effect::Send { connection, message } => {
            let text = format!("{message:?}");
            let name = text.split([' ', '(']).next().unwrap_or_default();
            if let ToWorker::Abort { reason } = message {
                return format!("{} <- abort: {reason}", connection.0);
            }
            format!("{} <- {name}", connection.0)
        }
        Effect::Close { connection, reason } => format!("{} closed: {reason}", connection.0),
        Effect::Ignored { connection, why } => format!("{} ignored: {why}", connection.0),
        Effect::Record(LedgerRow::Step(row)) => {
            let how = row.skipped.as_ref().map_or("", |_| ", skipped");
            format!("ledger {} from {}{how}", row.step, row.first_sequence)
        }
        Effect::Record(LedgerRow::RolledBack(Rollback { rolled_back_to, next_sequence })) => {
            format!("ledger back to {rolled_back_to}, next {next_sequence:?}")
        }
        Effect::CommitCheckpoint(manifest) => {
            format!("commit {} of {} files", manifest.standing.step, manifest.files.len())
        }
        Effect::Trace { first, steps, hosts } => {
            format!("trace {first} to {} of {hosts:?}", first + steps - 1)
        }
        Effect::DiscardCheckpoint { step } => format!("discard {step}"),
        Effect::News(News::Step(report)) => format!("step {}", report.step()),
        Effect::News(News::Evaluated { step, evaluations }) => {
            format!("evaluated {step}: {} {}", evaluations[0].set, evaluations[0].loss)
        }
        Effect::News(News::Failed(failure)) => format!("failed: {failure}"),
        Effect::News(News::Planned(_)) => "planned".into(),
        Effect::News(news) => format!("{news:?}"),
        Effect::Answer { asked, reply } => format!("answer {asked}: {reply:?}"),
    }
}

#[track_caller]
pub(super) fn check(got: String, want: &[&str]) {
    assert_eq!(got, want.join("\n"));
}

pub(super) fn written(step: u64) -> Event {
    Event::CheckpointWritten { step, result: Ok(()) }
}

#[test]
fn a_run_goes_from_hello_to_leave() {
    let mut run = Run::new(settings());
    check(
        run.say(1, hello(1)),
        &["11 <- Received", "Joined { worker: WorkerId(1), pid: 101, joined: 1, wanted: 2 }"],
    );
    let joined = "Joined { worker: WorkerId(0), pid: 100, joined: 2, wanted: 2 }";
    let planned = ["planned", "10 <- Assign", "11 <- Assign"];
    check(run.say(0, hello(0)), &[&["10 <- Received", joined], &planned[..]].concat());
    check(run.say(1, FromWorker::Ready { generation: G1 }), &[]);
    let started = ["Started", "10 <- Start", "11 <- Start"];
    check(run.say(0, FromWorker::Ready { generation: G1 }), &started);
    check(run.say(1, step_done(1, 1)), &[]);
    check(run.say(1, step_done(1, 2)), &[]);
    check(run.say(0, step_done(0, 1)), &["ledger 1 from 0", "step 1"]);
    // Both parts are here before the step is committed.
    check(run.say(1, part(1, 2)), &[]);
    check(run.say(0, part(0, 2)), &[]);
    check(run.say(0, step_done(0, 2)), &["ledger 2 from 8", "step 2", "commit 2 of 2 files"]);
    let committed = ["CheckpointCommitted { step: 2 }", "10 <- CheckpointCommitted"];
    check(run.apply(written(2)), &[committed[0], committed[1], "11 <- CheckpointCommitted"]);
    for step in [3, 4] {
        run.say(0, step_done(0, step));
        run.say(1, step_done(1, step));
    }
    run.say(0, part(0, 4));
    check(run.say(0, evaluated(4, 2.5)), &["evaluated 4: heldout 2.5"]);
    check(run.say(0, finished(4, Ending::Completed)), &[]);
    check(run.say(1, part(1, 4)), &["commit 4 of 2 files"]);
    check(run.say(1, finished(4, Ending::Completed)), &[]);
    let end = run.apply(written(4));
    let want = "Finished { last_step: 4, ending: Completed, best: None }";
    assert!(end.ends_with(&format!("10 <- Leave\n11 <- Leave\n{want}")), "{end}");
    check(run.apply(Event::HungUp { connection: connection(0), why: "bye".into() }), &[]);
    check(run.say(7, hello(1)), &["17 closed: the run has ended"]);
}

#[test]
fn who_may_not_join_is_told_why() {
    let mut run = Run::new(settings());
    run.say(0, hello(0));
    let refused = |run: &mut Run, change: fn(&mut Hello), want: &str| {
        let FromWorker::Hello(mut hello) = hello(1) else { unreachable!("a hello") };
        change(&mut hello);
        check(run.say(9, FromWorker::Hello(hello)), &[&format!("19 closed: {want}")]);
    };
    refused(&mut run, |h| h.run = RunId("old".into()), "this is run run, not run old");
    refused(&mut run, |h| (h.worker, h.pid) = (WorkerId(0), 7), "worker-0 has joined already");
    refused(
        &mut run,
        |h| h.resuming = Some(Resuming { generation: G1, step: 3 }),
        "worker-1 has no part in generation 1 any more: say hello anew",
    );
    refused(&mut run, |h| h.worker = WorkerId(2), "worker-2 is not of this run, which wants 2");
    refused(
        &mut run,
        |h| h.data_address = "10.0.0.1:5".parse().unwrap(),
        "10.0.0.1:5 is not on this machine: without TLS nothing leaves it",
    );
    let twice = "10 closed: this session is worker-0's, and a session says hello once";
    check(run.say(0, hello(1)), &[twice]);
    let mute = FromWorker::Heartbeat { generation: None, step: 0 };
    check(run.say(9, mute), &["19 closed: a session begins with a hello"]);
    let why = "hello.threads must not be zero".to_owned();
    let bad = Event::BadMessage { connection: connection(9), why };
    check(run.apply(bad), &["19 closed: hello.threads must not be zero"]);
    assert!(run.say(1, hello(1)).contains("planned"), "the run goes on");
}

#[test]
fn stale_repeated_and_untimely_messages_are_ignored() {
    let mut run = Run::new(settings());
    run.say(0, hello(0));
    let ready = |generation| FromWorker::Ready { generation: Generation(generation) };
    check(run.say(0, ready(1)), &["10 ignored: of generation 1, before any plan"]);
    run.say(1, hello(1));
    check(run.say(0, ready(2)), &["10 ignored: of generation 2, now is generation 1"]);
    check(run.say(0, step_done(0, 1)), &["10 ignored: not expected while Preparing"]);
    check(run.say(0, finished(0, Ending::Stopped)), &["10 ignored: not expected while Preparing"]);
    run.say(0, ready(1));
    check(run.say(0, ready(1)), &["10 ignored: not expected while Preparing"]);
    run.say(1, ready(1));
    check(run.say(0, ready(1)), &["10 ignored: not expected while Training"]);
    run.say(0, step_done(0, 1));
    check(run.say(0, step_done(0, 1)), &["10 ignored: known already"]);
    run.say(0, part(0, 2));
    check(run.say(0, part(0, 2)), &["10 ignored: known already"]);
    check(run.apply(written(2)), &[]);
    let (generation, ending) = (Generation(0), Ending::Stopped);
    let old = FromWorker::Finished { generation, step: 1, ending };
    check(run.say(0, old), &["10 ignored: of generation 0, now is generation 1"]);
    check(run.say(1, step_done(1, 1)), &["ledger 1 from 0", "step 1"]);
}

#[test]
fn a_worker_that_breaks_the_protocol_ends_the_run() {
    let cases = [
        (1, step_done(1, 4), "step 4 done: want step 3 of 4"),
        (1, step_done(0, 3), "step 3 done: want its figures from the host of cell-0 only"),
        (0, step_done(1, 3), "step 3 done: want its figures from the host of cell-0 only"),
        (1, part(0, 2), "a checkpoint's part of cell-0, which it does not host"),
        (1, part(9, 2), "a checkpoint's part of cell-9, which it does not host"),
        (1, part(1, 5), "a checkpoint of step 5: want 4 or less"),
        (1, finished(3, Ending::Completed), "finished after step 3: the last step it did is 2"),
        (1, evaluated(2, 1.0), "step 2 evaluated: want step 2, from the host of cell-0"),
        (0, evaluated(1, 1.0), "step 1 evaluated: want step 2, from the host of cell-0"),
        (1, go_back(3, 1), "going back after step 3: the last it did is 2"),
    ];
    for (worker, message, want) in cases {
        let mut run = Run::two_steps();
        let failed = format!("worker-{worker}: {want} (last committed step: 2)");
        let (to_0, to_1) = (format!("10 <- abort: {failed}"), format!("11 <- abort: {failed}"));
        check(run.say(worker, message), &[&to_0, &to_1, &format!("failed: {failed}")]);
    }
}

/// One worker is as good as none: the run ends as it does where nobody is started anew.
fn alone_it_cannot() -> Settings {
    let mut settings = settings();
    (settings.job.workers.min, settings.job.workers.restarts) = (2, 0);
    settings
}

#[test]
fn where_nobody_comes_back_a_death_names_the_worker_and_the_last_committed_step() {
    let joined = || {
        let mut run = Run::new(Settings { workers_wanted: 3, ..alone_it_cannot() });
        run.say(0, hello(0));
        run.say(1, hello(1));
        run
    };
    let gathered = || Run::gathered_by(alone_it_cannot());
    let stopping = || {
        let mut run = Run::two_steps_by(alone_it_cannot());
        run.apply(Event::StopRequested);
        run
    };
    let two_steps = || Run::two_steps_by(alone_it_cannot());
    let phases: [(fn() -> Run, u64); 4] =
        [(joined, 0), (gathered, 0), (two_steps, 2), (stopping, 2)];
    for (start, step) in phases {
        // The reader sees the end of the stream, the launcher the exit: the exit says more.
        let mut run = start();
        let why = "connection reset".to_owned();
        assert_eq!(run.apply(Event::HungUp { connection: connection(1), why }), "");
        let what = "killed by signal 9".to_owned();
        let end = run.apply(Event::WorkerExited { worker: WorkerId(1), pid: 101, what });
        let want = format!("the process ended: killed by signal 9 (last committed step: {step})");
        assert!(end.ends_with(&format!("failed: worker-1: {want}")), "{end}");
        assert!(!end.contains("11 <-"), "nothing is sent to the dead: {end}");

        // A worker that hangs is given its lease.
        let mut run = start();
        assert_eq!(run.wait(5_000, &[0]), "");
        let end = run.wait(250, &[0]);
        let out = "11 closed: worker-1 is no longer part of the run: no sign of life for 5000 ms";
        assert!(end.contains(out), "{end}");
        let want = format!("no sign of life for 5000 ms (last committed step: {step})");
        assert!(end.contains(&format!("failed: worker-1: {want}")), "{end}");
    }
}

#[test]
fn a_nan_ends_the_run_at_once_naming_step_layer_and_worker() {
    let mut run = Run::two_steps();
    run.say(0, failed(FailureKind::PeerLost, "worker-1 closed the connection"));
    let end = run.say(1, failed(FailureKind::NonFinite, "the gradient is NaN"));
    let want =
        "worker-1: the gradient is NaN, at step 3, in model.layers.3 (last committed step: 2)";
    assert!(end.ends_with(&format!("failed: {want}")), "{end}");
    assert_eq!(run.wait(10_000, &[]), "", "the run fails once");
}

#[test]
fn a_stop_in_each_phase() {
    let nothing_done = "Finished { last_step: 0, ending: Stopped, best: None }";
    check(Run::new(settings()).apply(Event::StopRequested), &[nothing_done]);
    let left = ["10 <- Leave", "11 <- Leave", nothing_done];
    check(Run::gathered().apply(Event::StopRequested), &left);

    let mut run = Run::two_steps();
    check(run.apply(Event::StopRequested), &["10 <- Stop", "11 <- Stop"]);
    check(run.apply(Event::StopRequested), &[]);
    for worker in [0, 1] {
        run.say(worker, step_done(worker, 3));
        run.say(worker, part(worker, 3));
        assert_eq!(run.say(worker, finished(3, Ending::Stopped)), "");
    }
    let end = run.apply(written(3));
    let want = "Finished { last_step: 3, ending: Stopped, best: None }";
    assert!(end.ends_with(want), "{end}");
    check(run.apply(Event::StopRequested), &[]);
}

#[test]
fn a_resumed_run_counts_from_its_checkpoint_and_may_stop_there() {
    let mut run = Run::new(Settings { resume_from: Some(at(2)), ..settings() });
    for worker in [0, 1] {
        run.say(worker, hello(worker));
    }
    for worker in [0, 1] {
        run.say(worker, FromWorker::Ready { generation: G1 });
    }
    check(run.say(0, part(0, 2)), &["10 ignored: known already"]);
    run.apply(Event::StopRequested);
    run.say(0, finished(2, Ending::Stopped));
    let end = run.say(1, finished(2, Ending::Stopped));
    let want = "Finished { last_step: 2, ending: Stopped, best: None }";
    assert!(end.ends_with(want), "{end}");
}

#[test]
fn a_checkpoint_that_fails_ends_the_run_only_if_it_is_the_last() {
    let mut run = Run::two_steps();
    run.say(0, part(0, 2));
    run.say(1, part(1, 2));
    let result = || Err("disk full".to_owned());
    let failed = run.apply(Event::CheckpointWritten { step: 2, result: result() });
    check(failed, &[r#"CheckpointFailed { step: 2, cell: None, why: "disk full" }"#]);
    for worker in [0, 1] {
        run.say(worker, step_done(worker, 3));
        run.say(worker, step_done(worker, 4));
        run.say(worker, part(worker, 4));
        run.say(worker, finished(4, Ending::Completed));
    }
    let end = run.apply(Event::CheckpointWritten { step: 4, result: result() });
    let want = "failed: the checkpoint of step 4, the run's last, could not be completed: disk full \
                (last committed step: 4)";
    assert!(end.ends_with(want), "{end}");
}

#[test]
fn a_cell_that_cannot_write_costs_a_checkpoint_and_not_the_run() {
    let mut run = Run::two_steps();
    let told = r#"CheckpointFailed { step: 2, cell: Some(CellId(1)), why: "worker-1, cell-1: disk full" }"#;
    check(run.say(1, part_failed(1, 2)), &[told]);
    check(run.say(1, part_failed(1, 2)), &["11 ignored: known already"]);
    check(run.say(0, part(0, 2)), &["discard 2"]);
    for step in [3, 4] {
        run.say(0, step_done(0, step));
        run.say(1, step_done(1, step));
    }
    run.say(0, part_failed(0, 4));
    run.say(0, finished(4, Ending::Completed));
    check(run.say(1, part_failed(1, 4)), &["discard 4"]);
    let end = run.say(1, finished(4, Ending::Completed));
    assert!(end.contains("the run's last, could not be completed: worker-0, cell-0"), "{end}");
    let mut wrong = Run::two_steps();
    let end = wrong.say(0, part_failed(1, 2));
    assert!(end.contains("a checkpoint's part of cell-1, which it does not host"), "{end}");
}

#[test]
fn a_last_checkpoint_that_never_completes_is_not_waited_for_without_end() {
    let mut run = Run::two_steps();
    run.say(0, part(0, 2));
    run.say(0, finished(2, Ending::Stopped));
    run.say(1, finished(2, Ending::Stopped));
    assert_eq!(run.wait(60_000, &[0, 1]), "");
    let end = run.wait(250, &[0, 1]);
    assert!(end.contains("the checkpoint of step 2 is not complete: cell-1 is missing"), "{end}");
}

#[test]
fn workers_that_do_not_join_are_named() {
    let mut run = Run::new(settings());
    run.say(1, hello(1));
    assert_eq!(run.wait(30_000, &[1]), "");
    let end = run.wait(250, &[1]);
    assert!(end.contains("failed: not joined within 30000 ms: worker-0"), "{end}");
}

#[test]
fn a_coordinator_that_slept_blames_nobody() {
    let mut run = Run::two_steps();
    run.now_ms += 3_600_000;
    check(run.apply(Event::Tick), &[]);
    assert_eq!(run.wait(4_750, &[]), "");
    assert!(run.wait(250 + 250, &[]).contains("11 closed: worker-1 is no longer part"));
}

#[test]
fn what_the_rim_cannot_do_ends_the_run() {
    let plan = |_: &Job, _: &[WorkerId], _: Generation| Err("2 workers for 1 cell".to_owned());
    let mut run = Run::new(Settings { make_plan: plan, ..settings() });
    run.say(0, hello(0));
    let end = run.say(1, hello(1));
    assert!(end.contains("failed: 2 workers for 1 cell (last committed step: 0)"), "{end}");

    let end = Run::two_steps().apply(Event::LedgerFailed { why: "disk full".into() });
    assert!(end.contains("failed: disk full (last committed step: 2)"), "{end}");
    let end = Run::training().apply(Event::AbortRequested { reason: "stopped twice".into() });
    assert!(end.starts_with("10 <- abort: stopped twice"), "{end}");
}
