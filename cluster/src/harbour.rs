//! The cluster's process: one loop that owns `state` and store, writes down what has changed before anything is
//! done about it, and carries effects out. It decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use shoal_coordinator::control::Meeting;
use shoal_plan::job::Job;
use shoal_plan::plan::{RunId, WorkerId};
use shoal_trust::{Authority, Identity, Name};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::door::{Limits, Places, Tls};
use crate::launchers::{self, Launchers, Lines};
use crate::metrics::Metrics;
use crate::probing::words::Neighbour;
use crate::relaying::Relay;
use crate::server;
use crate::standing::Stands;
use crate::state::{Cluster, Effect, Key, SessionId};
use crate::store::remote::Standing;
use crate::store::{self, Change, Store, StoreError};
use crate::watching::Watch;
use crate::words::{Answer, Ask, FromLauncher, FromRig, Manifest, ToLauncher, ToRig};

mod asking;
mod effects;
mod hearing;
mod logs;
mod papers;
mod rigs;
mod standby;
mod watching;

pub use standby::{StandingBy, stand_by};

use papers::Failures;
pub(crate) use watching::Look;
use watching::Waiting;

/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(250);

/// So many messages are heard at a time before what they change is written down.
const TOGETHER: usize = 128;

/// What waits for the loop; beyond, callers wait.
const INBOX: usize = 1024;

/// Names in the state directory.
pub const SOCKET: &str = "launchers.sock";
pub const STORE: &str = "cluster.redb";
pub const JOBS: &str = "jobs";

/// What a cluster's process is started with.
#[derive(Debug)]
pub struct Settings {
    pub cluster: Name,
    pub authority: Authority,
    /// Everything of the cluster lies here. Locked by the caller, and its user's alone.
    pub directory: PathBuf,
    /// How long certificates of rigs are good; they are renewed when two thirds are over.
    pub life: Duration,
    pub limits: Limits,
    /// How it stands, where several coordinators share the store.
    pub standing: Option<watch::Receiver<Standing>>,
    /// What this coordinator is called among them: where it is reached.
    pub home: String,
}

/// Why a cluster's process cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Trust(#[from] shoal_trust::TrustError),
    #[error("opening {what}: {source}")]
    Listen { what: String, source: io::Error },
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

/// One at work. Dropping it ends it; runs go on.
#[derive(Debug)]
pub struct Running {
    pub address: SocketAddr,
    inbox: mpsc::Sender<Inbound>,
    /// Ends if the cluster's process does.
    pub ended: oneshot::Receiver<()>,
    _open: oneshot::Sender<()>,
}

/// Somebody without a certificate.
#[derive(Debug)]
pub(crate) struct Stranger {
    pub(crate) address: Option<IpAddr>,
    pub(crate) token_id: String,
    pub(crate) token_secret: Vec<u8>,
    pub(crate) name: String,
    pub(crate) request_pem: String,
}

/// A certificate, and the one that vouches for it.
#[derive(Debug)]
pub(crate) struct Paper {
    pub(crate) certificate_pem: String,
    pub(crate) ca_pem: String,
}

/// A run's coordinator, and who the caller is in it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) address: SocketAddr,
    pub(crate) secret: String,
    pub(crate) worker: WorkerId,
}

/// To a rig.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Tell(ToRig),
    Close(String),
}

/// Everything that may happen. Answers are sentences where something is refused.
#[derive(Debug)]
pub(crate) enum Inbound {
    RigCame {
        session: SessionId,
        rig: String,
        first: FromRig,
        outbox: mpsc::Sender<Outgoing>,
    },
    RigSays {
        session: SessionId,
        message: FromRig,
    },
    RigGone {
        session: SessionId,
        why: String,
    },
    Enrol {
        stranger: Stranger,
        reply: oneshot::Sender<Result<Paper, String>>,
    },
    Renew {
        identity: Identity,
        request_pem: String,
        reply: oneshot::Sender<Result<Paper, String>>,
    },
    File {
        rig: String,
        run: String,
        name: String,
        reply: oneshot::Sender<Result<PathBuf, String>>,
    },
    Neighbours {
        rig: String,
        reply: oneshot::Sender<Vec<Neighbour>>,
    },
    Member {
        rig: String,
        run: String,
        reply: oneshot::Sender<Result<Member, String>>,
    },
    /// A manifest was read that somebody applies.
    Apply {
        applied: Manifest,
        job: Box<Job>,
        reply: oneshot::Sender<Answer>,
    },
    Ask {
        ask: Ask,
        reply: oneshot::Sender<Answer>,
    },
    Log {
        job: String,
        log: String,
        reply: oneshot::Sender<Result<PathBuf, String>>,
    },
    LauncherHere {
        name: String,
        /// Of this connection.
        line: u64,
        /// Which launch it says that it is.
        nth: Option<u64>,
        outbox: mpsc::UnboundedSender<ToLauncher>,
    },
    LauncherSays {
        name: String,
        line: u64,
        message: FromLauncher,
    },
    LauncherGone {
        name: String,
        line: u64,
    },
    /// The same of one on whatever machine: it may come back.
    LauncherAway {
        name: String,
        line: u64,
    },
    ProcessEnded {
        name: String,
        /// Of this process.
        launch: u64,
        how: String,
    },
    Look(Look),
    /// A run's coordinator was told how its rigs come together: whether it took it.
    Met {
        name: String,
        run: RunId,
        meetings: Vec<Meeting>,
        taken: bool,
    },
    /// Answered by the loop, which is what makes it a sign of life.
    Alive {
        reply: oneshot::Sender<()>,
    },
    /// Runs are to write checkpoints and end. Answered when none is left.
    Rest {
        reply: oneshot::Sender<()>,
    },
}

/// Starts to serve, on the event loop it is called on.
///
/// # Errors
/// The store, the certificates or a socket cannot be opened.
pub fn serve(
    settings: Settings,
    port: std::net::TcpListener,
    mut store: Box<dyn Store>,
    launchers: Box<dyn Launchers>,
) -> Result<Running, ClusterError> {
    let listen = |what: &str| {
        let what = what.to_owned();
        move |source| ClusterError::Listen { what, source }
    };
    let mut state = Cluster::new(store::known(store.as_mut())?);
    state.is_at(&settings.home);
    let stands = Stands::new(settings.standing.clone());
    let address = port.local_addr().map_err(listen("the port"))?;
    port.set_nonblocking(true).map_err(listen("the port"))?;
    let listener = TcpListener::from_std(port).map_err(listen("the port"))?;
    let socket = settings.directory.join(SOCKET);
    let launcher_door =
        launchers::listen(&socket).map_err(listen(&socket.display().to_string()))?;
    let denied = Arc::new(RwLock::new(state.denied().keys().cloned().collect::<BTreeSet<_>>()));
    let own = papers::own(&settings, &denied)?;
    let tls: Tls = Arc::new(RwLock::new(own.config));
    let (inbox, inbound) = mpsc::channel(INBOX);
    let (places, relay) = (Places::new(settings.limits), Relay::default());
    let metrics = Metrics::new(&settings.cluster.to_string())?;
    let serving = server::serve(
        listener,
        (settings.limits, places.clone()),
        (Arc::clone(&tls), relay.clone()),
        (Arc::clone(&denied), stands.clone()),
        (inbox.clone(), metrics.calls_refused.clone()),
    );
    let harbour = Harbour {
        metrics,
        waiting_for: Waiting::default(),
        stands,
        own_due: own.due,
        settings,
        state,
        store,
        launchers,
        tls,
        denied,
        places,
        relay,
        inbox: inbox.clone(),
        started: Instant::now(),
        rigs: BTreeMap::new(),
        lines: Lines::default(),
        failures: Failures::default(),
        unwritten: BTreeSet::new(),
        waiting: Vec::new(),
        resting: Vec::new(),
    };
    let (open, closed) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let lines = inbox.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = serving => {}
            () = launchers::accept(launcher_door, lines) => {}
            () = harbour.work(inbound) => {}
            _dropped = closed => {}
        }
        end.send(()).ok();
    });
    Ok(Running { address, inbox, ended, _open: open })
}

/// Beats with the loop that does the work, and stops with it.
#[derive(Debug)]
pub struct Pulse(mpsc::Sender<Inbound>);

impl Pulse {
    /// Waits until the loop has come round; for ever, if it hangs or has ended.
    pub async fn beat(&self) {
        let (reply, done) = oneshot::channel();
        let beats = self.0.send(Inbound::Alive { reply }).await.is_ok() && done.await.is_ok();
        if !beats {
            std::future::pending::<()>().await;
        }
    }
}

impl Running {
    /// Signs of life of the loop that does the work.
    pub fn pulse(&self) -> Pulse {
        Pulse(self.inbox.clone())
    }

    /// For those who look on.
    pub fn watch(&self) -> Watch {
        Watch(self.inbox.clone())
    }

    /// Lets all runs write a checkpoint and end; they go on with the next process.
    pub async fn rest(&self) {
        let (reply, done) = oneshot::channel();
        if self.inbox.send(Inbound::Rest { reply }).await.is_ok() {
            let _ = done.await;
        }
    }
}

struct Harbour {
    settings: Settings,
    stands: Stands,
    state: Cluster,
    store: Box<dyn Store>,
    launchers: Box<dyn Launchers>,
    tls: Tls,
    /// When this process's own certificate is to be renewed.
    own_due: std::time::SystemTime,
    denied: server::Denied,
    places: Places,
    /// For pairs of rigs that know no other.
    relay: Relay,
    inbox: mpsc::Sender<Inbound>,
    started: Instant,
    rigs: BTreeMap<SessionId, mpsc::Sender<Outgoing>>,
    lines: Lines,
    failures: Failures,
    metrics: Metrics,
    waiting_for: Waiting,
    /// What has changed and could not be written down yet, and what waits for that.
    unwritten: BTreeSet<Key>,
    waiting: Vec<Effect>,
    resting: Vec<oneshot::Sender<()>>,
}

impl Harbour {
    async fn work(mut self, mut inbound: mpsc::Receiver<Inbound>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = inbound.recv() => match message {
                    Some(message) => self.hear_all(message, &mut inbound),
                    None => return,
                },
                _at = ticks.tick() => {
                    let now_ms = self.started.elapsed().as_millis() as u64;
                    self.state.tick(now_ms);
                    self.renew_own();
                }
            }
            self.settle();
            if !self.resting.is_empty()
                && !self.state.jobs().any(|(_, job)| job.phase.is_under_way())
            {
                for reply in self.resting.drain(..) {
                    let _ = reply.send(());
                }
            }
        }
    }

    /// A message, and what came with it: when all rigs come back at once, what they change is written down together.
    fn hear_all(&mut self, first: Inbound, inbound: &mut mpsc::Receiver<Inbound>) {
        self.hear(first);
        for _ in 1..TOGETHER {
            let Ok(message) = inbound.try_recv() else { return };
            self.hear(message);
        }
    }

    /// Writes down what has changed; then does what is to be done.
    fn settle(&mut self) {
        let (changed, effects) = self.state.take();
        self.unwritten.extend(changed);
        self.waiting.extend(effects);
        if self.write().is_err() {
            return;
        }
        for effect in std::mem::take(&mut self.waiting) {
            self.carry_out(effect);
        }
    }

    /// # Errors
    /// Why it is not written down yet: it is tried again.
    fn write(&mut self) -> Result<(), String> {
        if self.unwritten.is_empty() {
            return self.store.may_decide().map_err(|error| error.to_string());
        }
        let changes: Vec<Change> =
            self.unwritten.iter().map(|key| (key.text(), self.state.value(key))).collect();
        let before = self.started.elapsed();
        let written = self.store.write(&changes);
        let took = self.started.elapsed().saturating_sub(before);
        self.metrics.commit_seconds.observe(took.as_secs_f64());
        match written {
            Ok(()) => {
                self.metrics.commits.inc();
                if self.unwritten.iter().any(|key| matches!(key, Key::Denied(_))) {
                    self.deny();
                }
                self.unwritten.clear();
                Ok(())
            }
            Err(error) => {
                self.metrics.commit_failures.inc();
                tracing::error!(%error, "nothing is done until this can be written down");
                Err(format!("it cannot be written down, and is not done before it is: {error}"))
            }
        }
    }

    /// What depends on what has just changed is only said once that is written down.
    fn once_written<T>(&mut self, said: Result<T, String>) -> Result<T, String> {
        let (changed, effects) = self.state.take();
        self.unwritten.extend(changed);
        self.waiting.extend(effects);
        let said = said?;
        self.write().map(|()| said)
    }
}
