//! The daemon over a real connection, with engines that are puppets.

use std::sync::mpsc as std_mpsc;

use shoal_plan::grid::CellId;
use shoal_plan::report::Ending;
use shoal_plan::trace::StepTrace;
use shoal_proto::{FailureKind, FromWorker, ToWorker};

use super::*;
use crate::client::tests::FakeCoordinator;
use crate::comm::proof::over::Over;
use crate::session::tests::assign;

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Says ready at once, does one step when told to begin, and finishes when told to stop.
struct Puppets {
    dropped: std_mpsc::Sender<()>,
}

struct Puppet {
    events: mpsc::UnboundedSender<EngineEvent>,
    dropped: std_mpsc::Sender<()>,
}

impl EngineFactory for Puppets {
    fn start(
        &self,
        assignment: Assignment,
        events: mpsc::UnboundedSender<EngineEvent>,
    ) -> Box<dyn Engine> {
        assert_eq!(assignment.resume_from, Some(4));
        assert!(assignment.listener.local_addr().unwrap().ip().is_loopback());
        events.send(EngineEvent::Ready).unwrap();
        Box::new(Puppet { events, dropped: self.dropped.clone() })
    }

    fn prepare(&self, assignment: Assignment, told: mpsc::UnboundedSender<Prepared>) {
        let Assignment { plan, standing, .. } = assignment;
        told.send(Prepared { generation: plan.generation, standing, cells: vec![] }).unwrap();
    }

    fn release(&self) {}
}

impl Engine for Puppet {
    fn begin(&self) {
        self.events
            .send(EngineEvent::StepDone {
                step: 5,
                compute_seconds: 0.5,
                report: None,
                sums: vec![],
            })
            .unwrap();
    }

    fn stop(&self) {
        let finished = EngineEvent::Finished { step: 5, ending: Ending::Stopped };
        self.events.send(finished).unwrap();
    }

    fn edge(&self) {}

    fn trace(&self, steps: Range<u64>) {
        let (step, cell) = (steps.start, CellId(0));
        let (began_us, spans, left_out, whole) = (0, vec![], 0, true);
        let trace = StepTrace { step, cell, began_us, spans, left_out, whole };
        self.events.send(EngineEvent::Traced(Box::new(trace))).unwrap();
    }

    fn checkpoint_committed(&self, step: u64) {
        let (kind, layer) = (FailureKind::Checkpoint, None);
        let what = "as the test wants it".to_owned();
        let unreachable = Vec::new();
        let failed = EngineEvent::Failed { step, kind, what, layer, unreachable };
        self.events.send(failed).unwrap();
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        self.dropped.send(()).unwrap();
    }
}

fn options(coordinator: &FakeCoordinator) -> Options {
    Options {
        join: Gate::Here(coordinator.address),
        secret: coordinator.secret.clone(),
        run: RunId("r".into()),
        worker: WorkerId(0),
        run_dir: std::env::temp_dir(),
        threads: 1,
        devices: 1,
        init: None,
        bind: LOOPBACK,
        advertise: LOOPBACK,
        first_port: 0,
        trust: None,
        yielding: watch::channel(None).1,
    }
}

async fn started() -> (FakeCoordinator, JoinHandle<ExitReason>, std_mpsc::Receiver<()>) {
    let mut coordinator = FakeCoordinator::start().await;
    let (dropped, was_dropped) = std_mpsc::channel();
    let options = options(&coordinator);
    let daemon = tokio::spawn(async move {
        let (never, nobody) = (std::future::pending(), std::future::pending());
        run(options, Puppets { dropped }, never, nobody).await.unwrap()
    });
    let FromWorker::Hello(hello) = coordinator.next().await else { panic!("want a hello") };
    let mut assign = assign("r", Generation(1));
    assign.peers.insert(WorkerId(0), hello.data_address);
    assign.vaults.insert(WorkerId(0), hello.vault_address);
    coordinator.say(ToWorker::Received { messages: 0 });
    coordinator.say(ToWorker::Assign(assign));
    let generation = Generation(1);
    assert_eq!(coordinator.next().await, FromWorker::Ready { generation });
    coordinator.say(ToWorker::Start { generation });
    let done = FromWorker::StepDone {
        generation,
        step: 5,
        compute_seconds: 0.5,
        report: None,
        sums: vec![],
    };
    assert_eq!(coordinator.next().await, done);
    (coordinator, daemon, was_dropped)
}

#[tokio::test]
async fn a_worker_trains_over_grpc_and_leaves_with_its_engine_torn_down() {
    let (mut coordinator, daemon, was_dropped) = started().await;
    let generation = Generation(1);
    coordinator.say(ToWorker::Stop { generation });
    let finished = FromWorker::Finished { generation, step: 5, ending: Ending::Stopped };
    assert_eq!(coordinator.next().await, finished);
    coordinator.say(ToWorker::Leave { reason: "done".into() });
    assert_eq!(daemon.await.unwrap(), ExitReason::Left { reason: "done".into() });
    was_dropped.try_recv().expect("the engine is gone before the daemon");
}

#[tokio::test]
async fn an_engine_that_fails_is_dropped_while_the_coordinator_thinks() {
    let (mut coordinator, daemon, was_dropped) = started().await;
    coordinator.say(ToWorker::CheckpointCommitted { generation: Generation(1), step: 5 });
    let FromWorker::Failed { kind, .. } = coordinator.next().await else {
        panic!("want the engine's failure");
    };
    assert_eq!(kind, FailureKind::Checkpoint);
    let patience = Duration::from_mins(1);
    tokio::task::spawn_blocking(move || was_dropped.recv_timeout(patience).unwrap()).await.unwrap();
    coordinator.say(ToWorker::Abort { reason: "worker-0 failed".into() });
    let reason = "worker-0 failed".into();
    assert_eq!(daemon.await.unwrap(), ExitReason::Aborted { reason });
}

#[tokio::test]
async fn a_session_that_was_cut_off_is_taken_up_with_the_engine_running() {
    let (mut coordinator, daemon, was_dropped) = started().await;
    coordinator.cut();
    let FromWorker::Hello(hello) = coordinator.next().await else { panic!("want a hello") };
    let resuming = hello.resuming.expect("the engine goes on");
    assert_eq!((resuming.generation, resuming.step), (Generation(1), 5));
    // It has read Ready, and not the step.
    coordinator.say(ToWorker::Received { messages: 1 });
    let FromWorker::StepDone { step: 5, .. } = coordinator.next().await else {
        panic!("want the step again");
    };
    was_dropped.try_recv().expect_err("the engine runs");
    coordinator.close("worker-0 has no part in generation 1 any more");
    let FromWorker::Hello(hello) = coordinator.next().await else { panic!("want a hello") };
    assert_eq!(hello.resuming, None);
    let patience = Duration::from_mins(1);
    tokio::task::spawn_blocking(move || was_dropped.recv_timeout(patience).unwrap()).await.unwrap();
    coordinator.say(ToWorker::Leave { reason: "done".into() });
    assert_eq!(daemon.await.unwrap(), ExitReason::Left { reason: "done".into() });
}

#[tokio::test]
async fn a_worker_whose_parent_is_gone_ends_even_before_it_has_joined() {
    let coordinator = FakeCoordinator::start().await;
    let (dropped, _) = std_mpsc::channel();
    let options =
        Options { join: Gate::Here("127.0.0.1:1".parse().unwrap()), ..options(&coordinator) };
    let parent_gone = std::future::ready(());
    let reason =
        run(options, Puppets { dropped }, parent_gone, std::future::pending()).await.unwrap();
    assert_eq!(reason, ExitReason::ParentGone);
}

#[tokio::test]
async fn nothing_leaves_this_machine_in_clear() {
    let coordinator = FakeCoordinator::start().await;
    let any: IpAddr = "0.0.0.0".parse().unwrap();
    let rig: IpAddr = "192.0.2.7".parse().unwrap();
    let plain = || options(&coordinator);
    let gone = Trust { credentials: "not/there".into(), names: BTreeMap::new() };
    for (options, want) in [
        (Options { bind: any, ..plain() }, "reach this one at 0.0.0.0, in clear"),
        (Options { advertise: rig, ..plain() }, "reach this one at 192.0.2.7, in clear"),
        (Options { advertise: any, ..plain() }, "0.0.0.0 is no address that others can dial"),
        (Options { bind: any, trust: Some(gone), ..plain() }, "credentials in not/there"),
    ] {
        let (dropped, _) = std_mpsc::channel();
        let (never, nobody) = (std::future::pending(), std::future::pending());
        let refused = run(options, Puppets { dropped }, never, nobody).await;
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[tokio::test]
async fn a_worker_with_certificates_is_reached_where_it_says() {
    let over = Over::tls();
    let mut coordinator = FakeCoordinator::start().await;
    let (bind, advertise) = ("0.0.0.0".parse().unwrap(), "192.0.2.7".parse().unwrap());
    let trust = over.trust(WorkerId(0));
    let options = Options { bind, advertise, trust, ..options(&coordinator) };
    let (dropped, _was_dropped) = std_mpsc::channel();
    let daemon = tokio::spawn(async move {
        let (never, nobody) = (std::future::pending(), std::future::pending());
        run(options, Puppets { dropped }, never, nobody).await.unwrap()
    });
    let FromWorker::Hello(hello) = coordinator.next().await else { panic!("want a hello") };
    assert_eq!((hello.data_address.ip(), hello.vault_address.ip()), (advertise, advertise));
    coordinator.say(ToWorker::Leave { reason: "done".into() });
    assert_eq!(daemon.await.unwrap(), ExitReason::Left { reason: "done".into() });
}

#[tokio::test]
async fn a_plan_that_goes_by_certificates_is_not_carried_out_without_one() {
    let mut coordinator = FakeCoordinator::start().await;
    let options = options(&coordinator);
    let (dropped, _was_dropped) = std_mpsc::channel();
    let daemon = tokio::spawn(async move {
        let (never, nobody) = (std::future::pending(), std::future::pending());
        run(options, Puppets { dropped }, never, nobody).await.unwrap_err()
    });
    let FromWorker::Hello(hello) = coordinator.next().await else { panic!("want a hello") };
    let mut assign = assign("r", Generation(1));
    assign.peers.insert(WorkerId(0), hello.data_address);
    assign.vaults.insert(WorkerId(0), hello.vault_address);
    assign.names.insert(WorkerId(0), "rig-0".parse().unwrap());
    coordinator.say(ToWorker::Received { messages: 0 });
    coordinator.say(ToWorker::Assign(assign));
    assert!(matches!(daemon.await.unwrap(), DaemonError::NoCredentials));
}
