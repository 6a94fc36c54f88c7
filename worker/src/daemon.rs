//! The worker's process: waits for the coordinator, the engine, the clock and the parent, hands
//! each event to `session`, and carries its effects out. It decides nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::ops::Range;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use shoal_plan::job::{Gather, Job};
use shoal_plan::plan::{Generation, Plan, RunId, WorkerId};
use shoal_plan::standing::Standing;
use shoal_proto::{Assign, Hello, Secret, Source};
use shoal_trust::TrustError;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

pub use crate::client::courier::{Courier, CourierError};
use crate::client::{self, Incoming, Link};
pub use crate::client::{Doors, Gate};
use crate::comm::{Trust, Ways};
use crate::session::{Effect, Event, Session};
pub use crate::session::{EngineEvent, ExitReason, Prepared};
use crate::vault::{Held, Vault};

/// A quarter of a heartbeat.
const TICK: Duration = Duration::from_millis(125);

/// How long an engine may take to tear itself down before the process ends without it.
pub(crate) const TEAR_DOWN: Duration = Duration::from_secs(2);

/// What the process was started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The way to the coordinator.
    pub join: Gate,
    pub secret: Secret,
    pub run: RunId,
    pub worker: WorkerId,
    pub run_dir: PathBuf,
    /// Compute threads. Not zero.
    pub threads: usize,
    /// Weights of `training.init` that were brought here; none: where the job says.
    pub init: Option<PathBuf>,
    /// Over which its cells are dealt out. Not zero.
    pub devices: u32,
    /// Where the other workers' connections are taken.
    pub bind: IpAddr,
    /// At which address the others reach this worker.
    pub advertise: IpAddr,
    /// Other workers reach data on this port and snapshots on the next; 0: any free ones.
    pub first_port: u16,
    /// How workers know each other; needed to leave this machine.
    pub trust: Option<Trust>,
    /// Why somebody else needs this machine, while that is so.
    pub yielding: watch::Receiver<Option<String>>,
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
    /// The way of checkpoints' files, where the coordinator gathers them.
    pub courier: Option<Courier>,
    /// Listens on the address that the peers know.
    pub listener: TcpListener,
    /// With the names of this plan.
    pub trust: Option<Trust>,
    /// How this worker and each other come together.
    pub ways: Ways,
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
    /// Note what the cells do in these steps, and report `EngineEvent::Traced` after each.
    fn trace(&self, steps: Range<u64>);
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

    /// Gets ready for a plan that may come, while no engine runs, and tells what it has. Another call, or
    /// `start`, takes its place.
    fn prepare(&self, assignment: Assignment, told: mpsc::UnboundedSender<Prepared>);

    /// No plan is to be expected: gives back the memory that is kept for one.
    fn release(&self);
}

/// Why a worker could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("the coordinator {address} is not on this machine: without TLS nothing leaves it")]
    NotLoopback { address: SocketAddr },
    #[error("opening a port for the other workers on {bind}")]
    Listen { bind: IpAddr, source: io::Error },
    #[error(
        "other workers would reach this one at {address}, in clear: without certificates nothing \
         leaves this machine; join a cluster with a token first, or use 127.0.0.1"
    )]
    InClear { address: IpAddr },
    #[error("{address} is no address that others can dial: advertise one of this machine's")]
    Nowhere { address: IpAddr },
    #[error("this worker's credentials in {} are of no use", path.display())]
    Credentials { path: PathBuf, source: TrustError },
    #[error(
        "the coordinator's plan goes by certificates, and this worker has none: join the cluster with \
         a token first"
    )]
    NoCredentials,
    #[error("the coordinator at {address} did not answer within {waited_ms} ms")]
    Silent { address: String, waited_ms: u128 },
    #[error("the coordinator at {address} refused: {why}")]
    Refused { address: String, why: String },
    #[error("the connection to the coordinator at {address} broke: {why}")]
    Broken { address: String, why: String },
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
    check_network(&options)?;
    let (bind, at) = (options.bind, |port| SocketAddr::new(options.advertise, port));
    let listen = |source| DaemonError::Listen { bind, source };
    let port =
        |nth| if options.first_port == 0 { 0 } else { options.first_port.saturating_add(nth) };
    let listener = TcpListener::bind((bind, port(0))).map_err(listen)?;
    let (tell, held) = mpsc::unbounded_channel();
    let network = (SocketAddr::new(bind, port(1)), options.trust.clone());
    let vault = Vault::open(&options.run, &options.secret, options.worker, network, tell);
    let vault = vault.map_err(listen)?;
    let hello = Hello {
        run: options.run.clone(),
        worker: options.worker,
        data_address: at(listener.local_addr().map_err(listen)?.port()),
        pid: std::process::id(),
        threads: options.threads as u32,
        devices: options.devices,
        vault_address: at(vault.address().port()),
        resuming: None,
    };
    let link = tokio::select! {
        link = client::connect(&options.join, &options.run, &options.secret) => link?,
        () = &mut parent_gone => return Ok(ExitReason::ParentGone),
    };
    let session = Session::new(hello);
    let (link, connecting) = (Some(link), None);
    let (engine, generation, exit) = (None, None, None);
    let prepared = mpsc::unbounded_channel();
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
        prepared,
        generation,
        exit,
    };
    daemon.work(parent_gone, wanted_back).await
}

/// Whether what others can reach is for members alone, and they can reach it at all.
fn check_network(options: &Options) -> Result<(), DaemonError> {
    let Options { bind, advertise, ref trust, .. } = *options;
    if advertise.is_unspecified() {
        return Err(DaemonError::Nowhere { address: advertise });
    }
    let Some(trust) = trust else {
        let others = [bind, advertise].into_iter().find(|address| !address.is_loopback());
        return others.map_or(Ok(()), |address| Err(DaemonError::InClear { address }));
    };
    let path = &trust.credentials;
    let opened = trust.open().map(drop);
    opened.map_err(|source| DaemonError::Credentials { path: path.clone(), source })
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
    /// What is got ready comes back here.
    prepared: (mpsc::UnboundedSender<Prepared>, mpsc::UnboundedReceiver<Prepared>),
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
                reason = changed(&mut self.options.yielding) => Event::YieldRequested { reason },
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
                Some(prepared) = self.prepared.1.recv() => Event::Prepared(prepared),
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
                let Options { join, run, secret, .. } = &self.options;
                let (join, run, secret) = (join.clone(), run.clone(), secret.clone());
                let attempt = async move { client::reconnect(&join, &run, &secret).await };
                self.connecting = Some(tokio::spawn(attempt));
            }
            Effect::StartEngine(assign) => self.start_engine(*assign)?,
            Effect::Prepare(assign) => {
                let assignment = self.assignment(*assign)?;
                self.engines.prepare(assignment, self.prepared.0.clone());
            }
            Effect::Release => {
                self.engine.take().map(tear_down);
                self.engines.release();
                self.vault.clear();
            }
            Effect::BeginTraining => self.tell_engine(|engine| engine.begin()),
            Effect::StopEngine => self.tell_engine(|engine| engine.stop()),
            Effect::EndAtEdge => self.tell_engine(|engine| engine.edge()),
            Effect::Trace { first, steps } => {
                self.tell_engine(|engine| engine.trace(first..first.saturating_add(steps)));
            }
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
        self.generation = Some(assign.plan.generation);
        let assignment = self.assignment(assign)?;
        let (sender, events) = mpsc::unbounded_channel();
        let engine = self.engines.start(assignment, sender);
        self.engine = Some(Running { engine, events, gone: false });
        Ok(())
    }

    fn assignment(&self, assign: Assign) -> Result<Assignment, DaemonError> {
        let Assign {
            run,
            plan,
            mut job,
            peers,
            resume_from,
            standing,
            vaults,
            sources,
            names,
            meetings,
        } = assign;
        let (bind, trust) = (self.options.bind, self.options.trust.as_ref());
        if trust.is_none() && !names.is_empty() {
            return Err(DaemonError::NoCredentials);
        }
        let door = match &self.options.join {
            Gate::Here(_) => &[],
            Gate::Cluster { doors, .. } => doors.addresses(),
        };
        let ways = Ways::of(self.options.worker, &meetings, (&run, door));
        self.vault.meet(&names, &ways, &vaults);
        if let (Some(wanted), Some(here)) = (&mut job.training.init, &self.options.init) {
            *wanted = here.display().to_string();
        }
        let listener = self.listener.try_clone();
        let courier = (job.checkpoint.gather == Gather::Coordinator).then(|| Courier {
            coordinator: self.options.join.clone(),
            secret: self.options.secret.clone(),
            run: run.clone(),
            me: self.options.worker,
            generation: plan.generation,
            runtime: Handle::current(),
        });
        Ok(Assignment {
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
            courier,
            listener: listener.map_err(|source| DaemonError::Listen { bind, source })?,
            trust: trust.map(|trust| trust.naming(&names)),
            ways,
            threads: self.options.threads,
        })
    }

    fn tell_engine(&self, tell: impl FnOnce(&dyn Engine)) {
        if let Some(running) = &self.engine {
            tell(running.engine.as_ref());
        }
    }
}

/// The next word on whether this machine is needed; never if nobody watches.
async fn changed(yielding: &mut watch::Receiver<Option<String>>) -> Option<String> {
    if yielding.changed().await.is_err() {
        return std::future::pending().await;
    }
    yielding.borrow_and_update().clone()
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
mod tests;
