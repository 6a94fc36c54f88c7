//! The worker's protocol, case by case.

use std::collections::BTreeMap;

use shoal_plan::grid::{CellId, Grid};
use shoal_plan::job::Job;
use shoal_plan::plan::{Plan, RunId, StagePlan, WorkerId};
use shoal_plan::report::Ending;
use shoal_plan::standing::Standing;

use super::*;

const G1: Generation = Generation(1);
const G2: Generation = Generation(2);

pub(crate) fn assign(run: &str, generation: Generation) -> Box<Assign> {
    let reason = "the only one".to_owned();
    let plan = Plan {
        generation,
        grid: Grid::ONE,
        stages: vec![StagePlan { layers: 0..4, flops_per_token: 1.0, reason }],
        experts: std::iter::once(0..16).collect(),
        hosts: vec![WorkerId(0)],
        reasons: BTreeMap::new(),
    };
    let peers = BTreeMap::new();
    Box::new(Assign {
        run: RunId(run.into()),
        plan,
        job: Job::example(),
        peers,
        resume_from: Some(4),
        standing: at(4),
        vaults: BTreeMap::new(),
        sources: vec![],
        names: BTreeMap::new(),
        meetings: vec![],
    })
}

pub(crate) fn at(step: u64) -> Standing {
    Standing { step, sequences: 8 * step, ..Standing::default() }
}

fn session() -> Session {
    let (run, worker) = (RunId("r".into()), WorkerId(0));
    let data_address = "127.0.0.1:9".parse().unwrap();
    let (vault_address, resuming) = ("127.0.0.1:10".parse().unwrap(), None);
    let (pid, threads, devices) = (1, 1, 1);
    Session::new(Hello {
        run,
        worker,
        data_address,
        pid,
        threads,
        devices,
        vault_address,
        resuming,
    })
}

fn from(message: ToWorker) -> Event {
    Event::FromCoordinator(message)
}

fn given(assign: Box<Assign>) -> Event {
    from(ToWorker::Assign(assign))
}

fn training() -> Session {
    let mut session = session();
    session.apply(0, Event::Connected);
    session.apply(0, from(ToWorker::Received { messages: 0 }));
    session.apply(0, given(assign("r", G1)));
    session.apply(0, Event::Engine(EngineEvent::Ready));
    session.apply(0, from(ToWorker::Start { generation: G1 }));
    session
}

fn short(effects: &[Effect]) -> String {
    let names = effects.iter().map(|effect| match effect {
        Effect::Send(message) => {
            let text = format!("{message:?}");
            format!("send {}", text.split([' ', '(']).next().unwrap_or_default())
        }
        Effect::StartEngine(assign) => format!("start {}", assign.plan.generation.0),
        Effect::Prepare(assign) => format!("prepare {}", assign.plan.generation.0),
        Effect::Ignored { why } => format!("ignored: {why}"),
        Effect::Connect
        | Effect::BeginTraining
        | Effect::StopEngine
        | Effect::EndAtEdge
        | Effect::CheckpointCommitted { .. }
        | Effect::Trace { .. }
        | Effect::DropEngine
        | Effect::Release
        | Effect::Exit(_) => format!("{effect:?}"),
    });
    names.collect::<Vec<_>>().join(", ")
}

#[track_caller]
fn check(session: &mut Session, event: Event, want: &str) {
    assert_eq!(short(&session.apply(0, event)), want);
}

/// What is traced goes out at once or never: nobody counts it, and nobody hears it later.
#[test]
fn a_trace_is_said_once() {
    let traced = || {
        let (step, cell, began_us) = (7, CellId(0), 0);
        let trace = StepTrace { step, cell, began_us, spans: vec![], left_out: 0, whole: true };
        Event::Engine(EngineEvent::Traced(Box::new(trace)))
    };
    let mut s = session();
    check(&mut s, Event::Connected, "send Hello");
    check(&mut s, from(ToWorker::Received { messages: 0 }), "");
    check(&mut s, given(assign("r", G1)), "start 1");
    check(&mut s, Event::Engine(EngineEvent::Ready), "send Ready");
    check(&mut s, from(ToWorker::Start { generation: G1 }), "BeginTraining");
    let order = |generation| from(ToWorker::Trace { generation, first: 7, steps: 2 });
    check(&mut s, order(G1), "Trace { first: 7, steps: 2 }");
    check(&mut s, order(Generation(9)), "ignored: a message of generation 9, now is generation 1");
    check(&mut s, traced(), "send Traced");
    check(&mut s, Event::Disconnected { why: "cable".into() }, "");
    check(&mut s, traced(), "ignored: the trace of step 7: there is no connection");
    s.apply(60_000 - 1, Event::Tick);
    check(&mut s, Event::Connected, "send Hello");
    // Of what was said before only what counts is said again.
    check(&mut s, from(ToWorker::Received { messages: 0 }), "send Ready");
}

#[test]
fn a_worker_trains_from_hello_to_leave() {
    let mut s = session();
    check(&mut s, Event::Connected, "send Hello");
    check(&mut s, from(ToWorker::Received { messages: 0 }), "");
    check(&mut s, given(assign("r", G1)), "start 1");
    check(&mut s, Event::Engine(EngineEvent::Ready), "send Ready");
    check(&mut s, from(ToWorker::Start { generation: G1 }), "BeginTraining");
    let done = EngineEvent::StepDone { step: 5, compute_seconds: 0.5, report: None, sums: vec![] };
    check(&mut s, Event::Engine(done), "send StepDone");
    let part = EngineEvent::CheckpointPart { standing: at(5), cell: CellId(0), files: vec![] };
    check(&mut s, Event::Engine(part), "send CheckpointPart");
    let why = "disk full".to_owned();
    let part = EngineEvent::CheckpointPartFailed { standing: at(5), cell: CellId(0), why };
    check(&mut s, Event::Engine(part), "send CheckpointPartFailed");
    let committed = ToWorker::CheckpointCommitted { generation: G1, step: 5 };
    check(&mut s, from(committed), "CheckpointCommitted { step: 5 }");
    check(&mut s, from(ToWorker::Stop { generation: G1 }), "StopEngine");
    let finished = EngineEvent::Finished { step: 5, ending: Ending::Stopped };
    check(&mut s, Event::Engine(finished), "send Finished");
    check(&mut s, Event::EngineGone, "");
    let want = r#"Exit(Left { reason: "done" })"#;
    check(&mut s, from(ToWorker::Leave { reason: "done".into() }), want);
}

#[test]
fn a_worker_that_goes_back_waits_for_the_next_plan() {
    let mut s = training();
    check(&mut s, Event::Engine(EngineEvent::GoBack { standing: at(6) }), "send GoBack");
    check(&mut s, Event::EngineGone, "");
    let stop = ToWorker::Stop { generation: G1 };
    check(&mut s, from(stop), "ignored: no engine runs");
    check(&mut s, given(assign("r", G2)), "start 2");
    check(&mut s, Event::Engine(EngineEvent::Ready), "send Ready");
    check(&mut s, from(ToWorker::Start { generation: G2 }), "BeginTraining");
}

#[test]
fn messages_of_another_run_or_generation_or_out_of_turn_are_ignored() {
    let mut s = session();
    s.apply(0, Event::Connected);
    s.apply(0, from(ToWorker::Received { messages: 0 }));
    let early = ToWorker::Start { generation: G1 };
    check(&mut s, from(early), "ignored: a message of generation 1, before any plan");
    check(&mut s, given(assign("x", G1)), "ignored: a plan of run x, this is run r");
    check(&mut s, given(assign("r", G2)), "start 2");
    let stale = "ignored: a plan of generation 1, which is not newer";
    check(&mut s, given(assign("r", G1)), stale);
    let stop = ToWorker::Stop { generation: G1 };
    check(&mut s, from(stop), "ignored: a message of generation 1, now is generation 2");
    let want = "ignored: told to start before it was ready, or twice";
    check(&mut s, from(ToWorker::Start { generation: G2 }), want);
    check(&mut s, Event::Engine(EngineEvent::Ready), "send Ready");
    check(&mut s, from(ToWorker::Start { generation: G2 }), "BeginTraining");
    check(&mut s, from(ToWorker::Start { generation: G2 }), want);
    check(&mut s, given(assign("r", Generation(3))), "start 3");
}

#[test]
fn a_failure_is_reported_once_and_the_last_word_is_waited_for() {
    let failed = || EngineEvent::Failed {
        step: 6,
        kind: FailureKind::NonFinite,
        what: "loss is NaN".into(),
        layer: None,
        unreachable: Vec::new(),
    };
    let mut s = training();
    check(&mut s, Event::Engine(failed()), "send Failed, DropEngine");
    let late = "ignored: the engine spoke after its end";
    check(&mut s, Event::Engine(EngineEvent::Ready), late);
    check(&mut s, Event::EngineGone, "");
    assert_eq!(short(&s.apply(LAST_WORD_MS - 1, Event::Tick)), "send Heartbeat");
    let want = r#"Exit(Failed { what: "loss is NaN" })"#;
    assert_eq!(short(&s.apply(LAST_WORD_MS, Event::Tick)), want);
    check(&mut s, Event::Disconnected { why: "gone".into() }, want);

    let mut s = training();
    check(&mut s, Event::EngineGone, "send Failed, DropEngine");
    let want = r#"Exit(Aborted { reason: "worker-0" })"#;
    check(&mut s, from(ToWorker::Abort { reason: "worker-0".into() }), want);
}

#[test]
fn a_worker_outlives_neither_coordinator_nor_parent() {
    let want = r#"Exit(CoordinatorLost { why: "gone" })"#;
    let mut s = training();
    check(&mut s, Event::Disconnected { why: "gone".into() }, "");
    assert_eq!(short(&s.apply(GIVE_UP_MS - 1, Event::Tick)), "Connect");
    s.apply(GIVE_UP_MS - 1, Event::Disconnected { why: "gone".into() });
    assert_eq!(short(&s.apply(GIVE_UP_MS, Event::Tick)), want);
    check(&mut session(), Event::ParentGone, "Exit(ParentGone)");
    check(&mut training(), Event::ParentGone, "Exit(ParentGone)");
    let codes = [
        (ExitReason::Left { reason: String::new() }, 0),
        (ExitReason::Aborted { reason: String::new() }, 1),
        (ExitReason::ParentGone, 1),
    ];
    assert!(codes.iter().all(|(reason, code)| reason.code() == *code));
}

#[test]
fn a_silent_worker_sends_a_heartbeat_with_its_step() {
    let mut s = session();
    assert_eq!(s.apply(9_000, Event::Tick), []);
    s.apply(9_000, Event::Connected);
    assert_eq!(s.apply(9_000 + HEARTBEAT_MS - 1, Event::Tick), []);
    let heartbeat = |generation, step| [Effect::Send(FromWorker::Heartbeat { generation, step })];
    assert_eq!(s.apply(9_000 + HEARTBEAT_MS, Event::Tick), heartbeat(None, 0));
    s.apply(9_550, from(ToWorker::Received { messages: 0 }));
    s.apply(9_600, given(assign("r", G1)));
    assert_eq!(s.apply(9_700, Event::Tick), []);
    assert_eq!(s.apply(10_000, Event::Tick), heartbeat(Some(G1), 4));
    s.apply(
        10_100,
        Event::Engine(EngineEvent::StepDone {
            step: 5,
            compute_seconds: 0.5,
            report: None,
            sums: vec![],
        }),
    );
    assert_eq!(s.apply(10_500, Event::Tick), []);
    assert_eq!(s.apply(10_600, Event::Tick), heartbeat(Some(G1), 5));
}

#[test]
fn a_worker_that_lost_a_peer_waits_for_the_next_plan() {
    let mut s = training();
    let lost = EngineEvent::Failed {
        step: 6,
        kind: FailureKind::PeerLost,
        what: "worker-1 closed the connection".into(),
        layer: None,
        unreachable: Vec::new(),
    };
    check(&mut s, Event::Engine(lost), "send Failed, DropEngine");
    check(&mut s, Event::EngineGone, "");
    assert_eq!(short(&s.apply(10 * LAST_WORD_MS, Event::Tick)), "send Heartbeat");
    check(&mut s, given(assign("r", G2)), "start 2");
}

#[test]
fn a_session_is_taken_up_with_what_has_not_arrived() {
    let mut s = training();
    let done = |step| {
        Event::Engine(EngineEvent::StepDone {
            step,
            compute_seconds: 0.5,
            report: None,
            sums: vec![],
        })
    };
    check(&mut s, done(5), "send StepDone");
    check(&mut s, Event::Disconnected { why: "reset".into() }, "");
    check(&mut s, done(6), "");
    assert_eq!(short(&s.apply(99, Event::Tick)), "");
    assert_eq!(short(&s.apply(100, Event::Tick)), "Connect");
    assert_eq!(short(&s.apply(100, Event::Tick)), "", "one attempt at a time");
    // A coordinator that is not there is tried again, ever more seldom.
    s.apply(100, Event::Disconnected { why: "refused".into() });
    assert_eq!(short(&s.apply(299, Event::Tick)), "");
    assert_eq!(short(&s.apply(300, Event::Tick)), "Connect");
    let hello = s.apply(310, Event::Connected);
    let [Effect::Send(FromWorker::Hello(hello))] = &hello[..] else { panic!("want a hello") };
    assert_eq!(hello.resuming, Some(Resuming { generation: G1, step: 6 }));
    check(&mut s, done(7), "");
    // Ready was read, step 5 was not.
    let again = s.apply(320, from(ToWorker::Received { messages: 1 }));
    let steps = again.iter().map(|effect| {
        let Effect::Send(FromWorker::StepDone { step, .. }) = effect else {
            panic!("want a step, got {effect:?}")
        };
        *step
    });
    assert_eq!(steps.collect::<Vec<_>>(), [5, 6, 7]);
    check(&mut s, from(ToWorker::Received { messages: 4 }), "");
    check(&mut s, done(8), "send StepDone");
    let start = from(ToWorker::Start { generation: G1 });
    check(&mut s, start, "ignored: told to start before it was ready, or twice");
    check(&mut s, from(ToWorker::Edge { generation: G1 }), "EndAtEdge");
    check(&mut s, from(ToWorker::Edge { generation: G1 }), "ignored: said again");
}

#[test]
fn a_worker_without_a_part_in_the_plan_drops_its_engine_and_says_hello_anew() {
    let mut s = training();
    let why = || "worker-0 is no longer part of the run".to_owned();
    check(&mut s, Event::Closed { why: why() }, "DropEngine");
    check(&mut s, Event::EngineGone, "");
    let late = Event::Engine(EngineEvent::Finished { step: 5, ending: Ending::Stopped });
    check(&mut s, late, "ignored: an engine spoke before any plan");
    assert_eq!(short(&s.apply(100, Event::Tick)), "Connect");
    let hello = s.apply(100, Event::Connected);
    let [Effect::Send(FromWorker::Hello(hello))] = &hello[..] else { panic!("want a hello") };
    assert_eq!(hello.resuming, None);
    check(&mut s, from(ToWorker::Received { messages: 0 }), "");
    // The coordinator's generation is the newer, whatever this worker had before.
    check(&mut s, given(assign("r", G2)), "start 2");
}

#[test]
fn a_worker_whose_machine_is_wanted_says_so_and_stays_until_it_is_let_go() {
    let mut s = training();
    let leave = Event::LeaveRequested { reason: "its owner plays".into() };
    check(&mut s, leave, "send Leaving");
    check(&mut s, from(ToWorker::Edge { generation: G1 }), "EndAtEdge");
    check(&mut s, Event::Engine(EngineEvent::AtEdge { standing: at(6) }), "send AtEdge");
    check(&mut s, Event::EngineGone, "");
    assert_eq!(short(&s.apply(60_000, Event::Tick)), "send Heartbeat");
}

#[test]
fn a_worker_gets_ready_for_a_plan_only_while_no_engine_runs() {
    let prepare = |generation| from(ToWorker::Prepare(assign("r", generation)));
    let ready =
        |generation| Event::Prepared(Prepared { generation, standing: at(4), cells: vec![] });
    let mut s = session();
    s.apply(0, Event::Connected);
    s.apply(0, from(ToWorker::Received { messages: 0 }));
    check(
        &mut s,
        from(ToWorker::Prepare(assign("x", G1))),
        "ignored: a plan of run x, to get ready for",
    );
    check(&mut s, prepare(G1), "prepare 1");
    check(&mut s, prepare(G2), "prepare 2");
    check(&mut s, ready(G1), "ignored: ready for generation 1, which is not wanted any more");
    check(&mut s, ready(G2), "send Prepared");
    check(&mut s, given(assign("r", G2)), "start 2");
    check(&mut s, ready(G2), "ignored: ready for generation 2, which is not wanted any more");
    check(
        &mut s,
        prepare(Generation(3)),
        "ignored: told to get ready for a plan while an engine runs",
    );
    // At the edge it has handed over, and the next plan does without it.
    let released = |generation| from(ToWorker::Released { generation });
    check(&mut s, released(Generation(3)), "ignored: generation 3 needs nothing of what is here");
    check(&mut s, Event::Engine(EngineEvent::AtEdge { standing: at(6) }), "send AtEdge");
    check(&mut s, released(G2), "ignored: generation 2 needs nothing of what is here");
    check(&mut s, released(Generation(3)), "Release");
    check(&mut s, prepare(Generation(4)), "prepare 4");
}

#[test]
fn a_worker_that_gives_way_says_so_again_when_it_joins_anew() {
    let mut s = training();
    let way = |reason: Option<&str>| Event::YieldRequested { reason: reason.map(str::to_owned) };
    check(&mut s, way(Some("game runs")), "send Yielding");
    check(&mut s, Event::Closed { why: "lost".to_owned() }, "DropEngine");
    assert_eq!(short(&s.apply(100, Event::Tick)), "Connect");
    // The hello goes out first, and the rest when it is taken.
    check(&mut s, Event::Connected, "send Hello");
    check(&mut s, from(ToWorker::Received { messages: 0 }), "send Yielding");
    check(&mut s, way(None), "send Yielding");
    check(&mut s, Event::Closed { why: "lost".to_owned() }, "");
    assert_eq!(short(&s.apply(5_000, Event::Tick)), "Connect");
    check(&mut s, Event::Connected, "send Hello");
    check(&mut s, from(ToWorker::Received { messages: 0 }), "");
}
