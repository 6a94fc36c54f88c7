//! The worker's process: waits for the coordinator, the engine, the clock and the parent, hands
//! each event to `session`, and carries its effects out. It decides nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use shoal_plan::job::Job;
use shoal_plan::plan::{Generation, Plan, RunId, WorkerId};
use shoal_plan::standing::Standing;
use shoal_proto::{Assign, Hello, Secret, Source};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::client::{self, Incoming, Link};
use crate::session::{Effect, Event, Session};
pub use crate::session::{EngineEvent, ExitReason};
use crate::vault::{Held, Vault};

/// A quarter of a heartbeat.
const TICK: Duration = Duration::from_millis(125);

/// How long an engine may take to tear itself down before the process ends without it.
pub(crate) const TEAR_DOWN: Duration = Duration::from_secs(2);

/// What the process was started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The coordinator. Refused unless it is on this machine.
    pub join: SocketAddr,
    pub secret: Secret,
    pub run: RunId,
    pub worker: WorkerId,
    pub run_dir: PathBuf,
    /// Compute threads. Not zero.
    pub threads: usize,
}

/// Everything an engine needs to train its cells of one generation.
#[derive(Debug)]
pub struct Assignment {
    pub job: Job,
    pub plan: Plan,
    pub me: WorkerId,
    pub run: RunId,
    pub secret: Secret,
    /// Data addresses of all workers of the plan, the own included.
    pub peers: BTreeMap<WorkerId, SocketAddr>,
    /// The step of the checkpoint to load.
    pub resume_from: Option<u64>,
    /// From where to go on.
    pub standing: Standing,
    /// This worker's memory of states.
    pub vault: Vault,
    /// Where the workers' memories are reached.
    pub vaults: BTreeMap<WorkerId, SocketAddr>,
    /// Where each cell's state is found in them, in cell order; none if it is in no memory.
    pub sources: Vec<Source>,
    pub run_dir: PathBuf,
    /// Listens on the address that the peers know.
    pub listener: TcpListener,
    pub threads: usize,
}

/// What computes. Dropping it tears everything down.
pub trait Engine: Send {
    /// All workers are ready: train. Called once, after `EngineEvent::Ready`.
    fn begin(&self);
    /// Checkpoint at the next step that all workers agree on, and finish. Called at most once, and
    /// possibly before `begin` or after the last step.
    fn stop(&self);
    /// End at the next step that all workers agree on, and keep the state in memory for the next
    /// plan. Called at most once, and possibly before `begin` or after the last step.
    fn edge(&self);
    /// The checkpoint of this step is complete and durable.
    fn checkpoint_committed(&self, step: u64);
}

/// Makes engines. `start` returns at once: the work is done on threads of the engine's own, which
/// report through `events` and drop it when they end.
pub trait EngineFactory: Send {
    fn start(
        &self,
        assignment: Assignment,
        events: mpsc::UnboundedSender<EngineEvent>,
    ) -> Box<dyn Engine>;
}

/// Why a worker could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("the coordinator {address} is not on this machine: without TLS nothing leaves it")]
    NotLoopback { address: SocketAddr },
    #[error("opening a port for the other workers on 127.0.0.1")]
    Listen { source: io::Error },
    #[error("the coordinator at {address} did not answer within {waited_ms} ms")]
    Silent { address: SocketAddr, waited_ms: u128 },
    #[error("the coordinator at {address} refused: {why}")]
    Refused { address: SocketAddr, why: String },
    #[error("the connection to the coordinator at {address} broke: {why}")]
    Broken { address: SocketAddr, why: String },
    #[error("the attempt to connect was interrupted")]
    Interrupted,
}

/// Works until the coordinator lets go, something fails, or `parent_gone` resolves. When
/// `wanted_back` resolves, with a reason, the worker hands over what it has and goes.
///
/// After the return the process should end without waiting for other threads: an engine that
/// could not be torn down in time is left behind on one.
pub async fn run(
    options: Options,
    engines: impl EngineFactory,
    parent_gone: impl Future<Output = ()>,
    wanted_back: impl Future<Output = String>,
) -> Result<ExitReason, DaemonError> {
    let (mut parent_gone, wanted_back) = (pin!(parent_gone), pin!(wanted_back));
    let listen = |source| DaemonError::Listen { source };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(listen)?;
    let (tell, held) = mpsc::unbounded_channel();
    let vault = Vault::open(&options.run, &options.secret, options.worker, tell).map_err(listen)?;
    let hello = Hello {
        run: options.run.clone(),
        worker: options.worker,
        data_address: listener.local_addr().map_err(listen)?,
        pid: std::process::id(),
        threads: options.threads as u32,
        vault_address: vault.address(),
        resuming: None,
    };
    let link = tokio::select! {
        link = client::connect(options.join, &options.secret) => link?,
        () = &mut parent_gone => return Ok(ExitReason::ParentGone),
    };
    let session = Session::new(hello);
    let (link, connecting) = (Some(link), None);
    let (engine, generation, exit) = (None, None, None);
    let daemon = Daemon {
        options,
        listener,
        vault,
        held,
        engines,
        session,
        link,
        connecting,
        engine,
        generation,
        exit,
    };
    daemon.work(parent_gone, wanted_back).await
}

struct Daemon<F> {
    options: Options,
    listener: TcpListener,
    vault: Vault,
    held: mpsc::UnboundedReceiver<Held>,
    engines: F,
    session: Session,
    /// `None` while there is no connection.
    link: Option<Link>,
    connecting: Option<Connecting>,
    engine: Option<Running>,
    /// Of the last engine.
    generation: Option<Generation>,
    exit: Option<ExitReason>,
}

type Connecting = JoinHandle<Result<Link, DaemonError>>;

struct Running {
    engine: Box<dyn Engine>,
    events: mpsc::UnboundedReceiver<EngineEvent>,
    /// Its threads are gone, and the session knows.
    gone: bool,
}

impl<F: EngineFactory> Daemon<F> {
    async fn work(
        mut self,
        mut parent_gone: impl Future<Output = ()> + Unpin,
        mut wanted_back: impl Future<Output = String> + Unpin,
    ) -> Result<ExitReason, DaemonError> {
        let started = Instant::now();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut event = Event::Connected;
        let mut is_wanted = false;
        loop {
            let now_ms = started.elapsed().as_millis() as u64;
            for effect in self.session.apply(now_ms, event) {
                self.carry_out(effect)?;
            }
            if let Some(reason) = self.exit {
                if let Some(running) = self.engine.take() {
                    // One that takes longer ends with the process.
                    timeout(TEAR_DOWN, tear_down(running)).await.ok();
                }
                return Ok(reason);
            }
            event = tokio::select! {
                () = &mut parent_gone => Event::ParentGone,
                reason = &mut wanted_back, if !is_wanted => {
                    is_wanted = true;
                    Event::LeaveRequested { reason }
                }
                incoming = heard(&mut self.link) => {
                    if !matches!(incoming, Event::FromCoordinator(_)) {
                        self.link = None;
                    }
                    incoming
                }
                connected = attempted(&mut self.connecting) => {
                    self.connecting = None;
                    match connected {
                        Ok(link) => {
                            self.link = Some(link);
                            Event::Connected
                        }
                        Err(error) => Event::Disconnected { why: error.to_string() },
                    }
                }
                event = engine_event(&mut self.engine) => {
                    event.map_or(Event::EngineGone, Event::Engine)
                }
                Some(held) = self.held.recv() => self.held(held),
                _at = ticks.tick() => Event::Tick,
            };
        }
    }

    /// What the vault tells. Of a plan that is over it says nothing: what was held then may be gone.
    fn held(&self, held: Held) -> Event {
        let Held { generation, standing, cell, blake3 } = held;
        if self.generation == Some(generation) {
            return Event::Engine(EngineEvent::Held { standing, cell, blake3 });
        }
        Event::Tick
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), DaemonError> {
        match effect {
            Effect::Send(message) => {
                // A broken stream is heard of on the other side of the link.
                if let Some(link) = &self.link {
                    link.outbox.send(message).ok();
                }
            }
            Effect::Connect => {
                let (join, secret) = (self.options.join, self.options.secret.clone());
                let attempt = async move { client::reconnect(join, &secret).await };
                self.connecting = Some(tokio::spawn(attempt));
            }
            Effect::StartEngine(assign) => self.start_engine(*assign)?,
            Effect::BeginTraining => self.tell_engine(|engine| engine.begin()),
            Effect::StopEngine => self.tell_engine(|engine| engine.stop()),
            Effect::EndAtEdge => self.tell_engine(|engine| engine.edge()),
            Effect::CheckpointCommitted { step } => {
                self.tell_engine(|engine| engine.checkpoint_committed(step));
            }
            Effect::DropEngine => {
                self.engine.take().map(tear_down);
            }
            Effect::Ignored { why } => tracing::warn!(why, "ignored a message"),
            Effect::Exit(reason) => self.exit = Some(reason),
        }
        Ok(())
    }

    fn start_engine(&mut self, assign: Assign) -> Result<(), DaemonError> {
        self.engine.take().map(tear_down);
        let Assign { run, plan, job, peers, resume_from, standing, vaults, sources } = assign;
        self.generation = Some(plan.generation);
        let listener = self.listener.try_clone();
        let assignment = Assignment {
            job,
            plan,
            me: self.options.worker,
            run,
            secret: self.options.secret.clone(),
            peers,
            resume_from,
            standing,
            vault: self.vault.clone(),
            vaults,
            sources,
            run_dir: self.options.run_dir.clone(),
            listener: listener.map_err(|source| DaemonError::Listen { source })?,
            threads: self.options.threads,
        };
        let (sender, events) = mpsc::unbounded_channel();
        let engine = self.engines.start(assignment, sender);
        self.engine = Some(Running { engine, events, gone: false });
        Ok(())
    }

    fn tell_engine(&self, tell: impl FnOnce(&dyn Engine)) {
        if let Some(running) = &self.engine {
            tell(running.engine.as_ref());
        }
    }
}

/// What comes over the link; never if there is none.
async fn heard(link: &mut Option<Link>) -> Event {
    let Some(link) = link else { return std::future::pending().await };
    match link.inbox.recv().await {
        Some(Incoming::Message(message)) => Event::FromCoordinator(message),
        Some(Incoming::Lost { why }) => Event::Disconnected { why },
        Some(Incoming::Closed { why }) => Event::Closed { why },
        None => Event::Disconnected { why: "the stream has ended".to_owned() },
    }
}

/// The end of an attempt to connect; never if none is under way.
async fn attempted(connecting: &mut Option<Connecting>) -> Result<Link, DaemonError> {
    let Some(attempt) = connecting else { return std::future::pending().await };
    attempt.await.unwrap_or(Err(DaemonError::Interrupted))
}

/// The engine's next event; `None` once, when its threads are gone; never if there is no engine.
async fn engine_event(engine: &mut Option<Running>) -> Option<EngineEvent> {
    let Some(running) = engine.as_mut().filter(|running| !running.gone) else {
        return std::future::pending().await;
    };
    let event = running.events.recv().await;
    running.gone = event.is_none();
    event
}

/// An engine's threads may need a moment to end: nothing else waits for them.
fn tear_down(running: Running) -> JoinHandle<()> {
    tokio::task::spawn_blocking(move || drop(running))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;

    use shoal_plan::report::Ending;
    use shoal_proto::{FailureKind, FromWorker, ToWorker};

    use super::*;
    use crate::client::tests::FakeCoordinator;
    use crate::session::tests::assign;

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
    }

    impl Engine for Puppet {
        fn begin(&self) {
            self.events
                .send(EngineEvent::StepDone { step: 5, compute_seconds: 0.5, report: None })
                .unwrap();
        }

        fn stop(&self) {
            let finished = EngineEvent::Finished { step: 5, ending: Ending::Stopped };
            self.events.send(finished).unwrap();
        }

        fn edge(&self) {}

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
            join: coordinator.address,
            secret: coordinator.secret.clone(),
            run: RunId("r".into()),
            worker: WorkerId(0),
            run_dir: std::env::temp_dir(),
            threads: 1,
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
        let done = FromWorker::StepDone { generation, step: 5, compute_seconds: 0.5, report: None };
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
        tokio::task::spawn_blocking(move || was_dropped.recv_timeout(patience).unwrap())
            .await
            .unwrap();
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
        tokio::task::spawn_blocking(move || was_dropped.recv_timeout(patience).unwrap())
            .await
            .unwrap();
        coordinator.say(ToWorker::Leave { reason: "done".into() });
        assert_eq!(daemon.await.unwrap(), ExitReason::Left { reason: "done".into() });
    }

    #[tokio::test]
    async fn a_worker_whose_parent_is_gone_ends_even_before_it_has_joined() {
        let coordinator = FakeCoordinator::start().await;
        let (dropped, _) = std_mpsc::channel();
        let options = Options { join: "127.0.0.1:1".parse().unwrap(), ..options(&coordinator) };
        let parent_gone = std::future::ready(());
        let reason =
            run(options, Puppets { dropped }, parent_gone, std::future::pending()).await.unwrap();
        assert_eq!(reason, ExitReason::ParentGone);
    }
}
