//! The worker's protocol, case by case.

use std::collections::BTreeMap;

use shoal_plan::grid::Grid;
use shoal_plan::job::Job;
use shoal_plan::plan::{Plan, RunId, StagePlan, WorkerId};

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
    })
}

pub(crate) fn at(step: u64) -> Standing {
    Standing { step, sequences: 8 * step, ..Standing::default() }
}

fn session() -> Session {
    let (run, worker) = (RunId("r".into()), WorkerId(0));
    let data_address = "127.0.0.1:9".parse().unwrap();
    let (vault_address, resuming) = ("127.0.0.1:10".parse().unwrap(), None);
    Session::new(Hello { run, worker, data_address, pid: 1, threads: 1, vault_address, resuming })
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
        Effect::Ignored { why } => format!("ignored: {why}"),
        Effect::BeginTraining
        | Effect::StopEngine
        | Effect::EndAtEdge
        | Effect::CheckpointCommitted { .. }
        | Effect::DropEngine
        | Effect::Exit(_) => format!("{effect:?}"),
    });
    names.collect::<Vec<_>>().join(", ")
}

#[track_caller]
fn check(session: &mut Session, event: Event, want: &str) {
    assert_eq!(short(&session.apply(0, event)), want);
}

#[test]
fn a_worker_trains_from_hello_to_leave() {
    let mut s = session();
    check(&mut s, Event::Connected, "send Hello");
    check(&mut s, given(assign("r", G1)), "start 1");
    check(&mut s, Event::Engine(EngineEvent::Ready), "send Ready");
    check(&mut s, from(ToWorker::Start { generation: G1 }), "BeginTraining");
    let done = EngineEvent::StepDone { step: 5, compute_seconds: 0.5, report: None };
    check(&mut s, Event::Engine(done), "send StepDone");
    let part = EngineEvent::CheckpointPart { standing: at(5), cell: CellId(0), files: vec![] };
    check(&mut s, Event::Engine(part), "send CheckpointPart");
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
    };
    let mut s = training();
    check(&mut s, Event::Engine(failed()), "send Failed, DropEngine");
    let late = "ignored: the engine spoke after its failure";
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
    check(&mut training(), Event::Disconnected { why: "gone".into() }, want);
    check(&mut session(), Event::ParentGone, "Exit(ParentGone)");
    check(&mut training(), Event::ParentGone, "Exit(ParentGone)");
    let asked = || Event::AskedToLeave { reason: "SIGTERM".to_owned() };
    check(&mut session(), asked(), "send Leaving");
    check(&mut training(), asked(), "send Leaving");
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
    s.apply(9_600, given(assign("r", G1)));
    assert_eq!(s.apply(9_700, Event::Tick), []);
    assert_eq!(s.apply(10_000, Event::Tick), heartbeat(Some(G1), 4));
    s.apply(
        10_100,
        Event::Engine(EngineEvent::StepDone { step: 5, compute_seconds: 0.5, report: None }),
    );
    assert_eq!(s.apply(10_500, Event::Tick), []);
    assert_eq!(s.apply(10_600, Event::Tick), heartbeat(Some(G1), 5));
}
