//! The one task that owns the state: it waits, hands each event to `State::apply`, and carries the
//! effects out. It decides nothing.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_plan::checkpoint::{CheckpointManifest, Keep};
use shoal_proto::{FromWorker, ToWorker};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::checkpoints;
use crate::error::Error;
use crate::ledger::Ledger;
use crate::metrics::{Committed, Metrics, Rejected};
use crate::news::{Command, News};
use crate::settings::Settings;
use crate::state::{ConnectionId, Effect, Event, State};

/// How often leases and deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);

/// How long workers get to read their last message and go.
const FAREWELL: Duration = Duration::from_secs(5);

/// From the rim.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// A stream began; its events follow.
    Opened {
        connection: ConnectionId,
        session: Session,
    },
    Event(Event),
}

/// The way back to one worker. Dropping it ends the stream and its reader.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) outbox: mpsc::Sender<Outgoing>,
    /// Its reader waits for this to be dropped.
    pub(crate) _open: oneshot::Sender<()>,
}

/// To one worker.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Message(ToWorker),
    /// Nothing follows.
    Close {
        reason: String,
    },
}

/// Everything the task owns.
pub(crate) struct Conductor {
    state: State,
    ledger: Ledger,
    checkpoints: PathBuf,
    keep: Keep,
    started: Instant,
    sessions: BTreeMap<ConnectionId, Session>,
    news: mpsc::UnboundedSender<News>,
    metrics: Metrics,
    /// When the last step was committed, or training began.
    stepped: Option<Instant>,
    /// When the run went back, until all train again.
    went_back: Option<Instant>,
    /// Results of manifests that were written on other threads.
    written: (mpsc::UnboundedSender<Event>, mpsc::UnboundedReceiver<Event>),
    /// What carrying out an effect gave rise to.
    follow_ups: VecDeque<Event>,
}

impl Conductor {
    pub(crate) fn new(
        settings: Settings,
        news: mpsc::UnboundedSender<News>,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        Ok(Self {
            ledger: Ledger::open(&settings.run_dir, settings.resume_from.map(|at| at.step))?,
            checkpoints: settings.run_dir.join("checkpoints"),
            keep: Keep::of(&settings.job.checkpoint),
            state: State::new(settings, 0),
            started: Instant::now(),
            sessions: BTreeMap::new(),
            news,
            metrics,
            stepped: None,
            went_back: None,
            written: mpsc::unbounded_channel(),
            follow_ups: VecDeque::new(),
        })
    }

    /// Runs until the end of the run has reached every worker.
    pub(crate) async fn conduct(
        mut self,
        mut inbox: mpsc::Receiver<Inbound>,
        mut commands: mpsc::Receiver<Command>,
    ) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commanded = true;
        let mut farewell = None;
        while farewell.is_none() || !self.sessions.is_empty() {
            let inbound = tokio::select! {
                // Messages first: a lease must not end while its heartbeat waits to be read.
                biased;
                Some(inbound) = inbox.recv() => inbound,
                Some(event) = self.written.1.recv() => Inbound::Event(event),
                command = commands.recv(), if commanded => {
                    commanded = command.is_some();
                    Inbound::Event(command.map_or_else(abandoned, event))
                }
                () = sleep_until(farewell.unwrap_or_else(Instant::now)), if farewell.is_some() => {
                    break;
                }
                _at = ticks.tick() => Inbound::Event(Event::Tick),
            };
            match inbound {
                Inbound::Opened { connection, session } => {
                    self.sessions.insert(connection, session);
                }
                Inbound::Event(event) => self.apply(event),
            }
            if self.state.is_over() {
                farewell.get_or_insert(Instant::now() + FAREWELL);
            }
        }
    }

    fn apply(&mut self, event: Event) {
        self.follow_ups.push_back(event);
        while let Some(event) = self.follow_ups.pop_front() {
            if let Event::HungUp { connection, .. } = &event {
                self.sessions.remove(connection);
            }
            let heard = self.hear(&event);
            let now_ms = self.started.elapsed().as_millis() as u64;
            for effect in self.state.apply(now_ms, event) {
                if let (Effect::Close { connection, .. }, Some(speaker)) = (&effect, heard)
                    && *connection == speaker
                    && self.state.worker_of(speaker).is_none()
                {
                    self.metrics.rejected(Rejected::Refused);
                }
                self.carry_out(effect);
            }
            self.metrics.workers(&self.state.workers());
            self.metrics.kept(self.state.kept_steps(), self.state.is_paused());
        }
    }

    /// Notes who spoke, and what a worker says of its speed. Returns the speaker of a message that
    /// was understood.
    fn hear(&self, event: &Event) -> Option<ConnectionId> {
        let Event::Message { connection, message } = event else { return None };
        if let Some(worker) = self.state.worker_of(*connection) {
            self.metrics.heard(worker, unix_seconds());
            if let FromWorker::StepDone { compute_seconds, .. } = message {
                self.metrics.computed(worker, *compute_seconds);
            }
        }
        Some(*connection)
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { connection, message } => self.send(connection, message),
            Effect::Close { connection, reason } => {
                tracing::info!(connection = connection.0, reason, "closing a connection");
                if let Some(session) = self.sessions.remove(&connection) {
                    // A full outbox means that nobody reads: then the reason is lost.
                    session.outbox.try_send(Outgoing::Close { reason }).ok();
                }
            }
            Effect::Ignored { connection, why } => {
                tracing::debug!(connection = connection.0, %why, "ignored a message");
            }
            Effect::Record(row) => {
                if let Err(error) = self.ledger.record(&row) {
                    let why = in_full(&error);
                    self.follow_ups.push_back(Event::LedgerFailed { why });
                }
            }
            Effect::CommitCheckpoint(manifest) => self.commit(manifest),
            Effect::DiscardCheckpoint { step } => checkpoints::discard(&self.checkpoints, step),
            Effect::News(news) => {
                self.measure(&news);
                // Nobody listens when the launcher has given up; the workers still get their word.
                self.news.send(news).ok();
            }
        }
    }

    /// Steps come as fast as the slowest worker: the time between two is the cluster's.
    fn measure(&mut self, news: &News) {
        let seconds = match news {
            News::Started => {
                self.stepped = Some(Instant::now());
                self.went_back.take().map(|then| then.elapsed().as_secs_f64())
            }
            News::RolledBack { .. } => {
                self.went_back = Some(Instant::now());
                None
            }
            News::Step(_) => {
                let before = self.stepped.replace(Instant::now());
                before.map(|before| before.elapsed().as_secs_f64())
            }
            News::Recovered { seconds, .. } => Some(*seconds),
            News::MovedAtEdge { stall_seconds, .. } => Some(*stall_seconds),
            News::Evicted { .. }
            | News::Recovering { .. }
            | News::Rejoined { .. }
            | News::JoinedLate { .. }
            | News::Left { .. }
            | News::Paused { .. }
            | News::Resumed
            | News::Quarantined { .. }
            | News::SharesMove { .. }
            | News::Prepared { .. }
            | News::Yielding { .. }
            | News::Diverged { .. }
            | News::Straggler { .. }
            | News::Joined { .. }
            | News::Planned(_)
            | News::Evaluated { .. }
            | News::CheckpointCommitted { .. }
            | News::CheckpointFailed { .. }
            | News::Finished { .. }
            | News::Failed(_) => None,
        };
        self.metrics.observe(news, seconds);
    }

    fn send(&mut self, connection: ConnectionId, message: ToWorker) {
        let Some(session) = self.sessions.get(&connection) else { return };
        if session.outbox.try_send(Outgoing::Message(message)).is_err() {
            let why = "the worker does not read its messages".to_owned();
            self.follow_ups.push_back(Event::HungUp { connection, why });
        }
    }

    fn commit(&mut self, manifest: CheckpointManifest) {
        let (checkpoints, keep) = (self.checkpoints.clone(), self.keep);
        let (sync, done) = (self.ledger.syncer(), self.written.0.clone());
        let metrics = self.metrics.clone();
        tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            // The rows a checkpoint stands on must not be younger than it after a power cut.
            let result = sync
                .and_then(|sync| sync())
                .and_then(|()| checkpoints::commit(&checkpoints, &manifest, keep));
            let step = manifest.standing.step;
            let committed = Committed {
                step,
                bytes: manifest.files.iter().map(|file| file.bytes).sum(),
                seconds: started.elapsed().as_secs_f64(),
                unix_seconds: unix_seconds(),
            };
            metrics.committed(&committed, result.as_ref().copied());
            let result = result.map_err(|error| in_full(&error));
            done.send(Event::CheckpointWritten { step, result }).ok();
        });
    }
}

/// Now, for people and Prometheus: nothing is decided by it.
#[expect(clippy::disallowed_methods, reason = "a timestamp for Prometheus is wall time")]
fn unix_seconds() -> f64 {
    // A clock before 1970 is set wrong, and its owner will see it in the metrics.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn event(command: Command) -> Event {
    match command {
        Command::Stop => Event::StopRequested,
        Command::Abort(reason) => Event::AbortRequested { reason },
        Command::WorkerExited { worker, what } => Event::WorkerExited { worker, what },
    }
}

fn abandoned() -> Event {
    Event::AbortRequested { reason: "the launcher has given up".to_owned() }
}

/// An error with its sources, in one line.
fn in_full(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
