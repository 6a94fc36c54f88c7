//! The one task that owns the state: it waits, hands what came to `State::apply`, has it written down, and
//! then carries out what follows. It decides nothing.
//!
//! While the disk takes a record, what comes waits and goes into the next one together: the slower the
//! disk, the fewer records.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_plan::checkpoint::{CheckpointManifest, Keep};
use shoal_plan::trace::StepTrace;
use shoal_proto::{Deposit, FromWorker, ToWorker, Withdrawal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::checkpoints;
use crate::control::{Answer, Ask};
use crate::durable::{Durable, Output};
use crate::error::Error;
use crate::journal::Journal;
use crate::ledger::{Ledger, LedgerRow};
use crate::metrics::{Committed, Metrics, Rejected};
use crate::news::{Command, News};
use crate::settings::Settings;
use crate::state::{ConnectionId, Denied, Effect, Event};
use crate::traces::Traces;

/// How often leases and deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);

/// How long workers get to read their last message and go.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is taken in before it is written down, at most.
const AT_ONCE: usize = 256;

/// From the rim.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// A stream began; its events follow.
    Opened {
        connection: ConnectionId,
        session: Session,
    },
    Event(Event),
    /// Somebody follows the run who has heard so many news. One does at a time.
    Follows {
        heard: u64,
        outbox: Follower,
    },
    /// News up to this number were heard.
    Heard(u64),
    Command(Command),
    /// Somebody waits to hear whether a file may come or go.
    Asks {
        question: Question,
        answer: oneshot::Sender<Result<(), Denied>>,
    },
    /// Somebody at another terminal asks, and waits for the answer.
    Asked {
        ask: Ask,
        answer: Answering,
    },
}

/// About a file of a checkpoint.
#[derive(Debug)]
pub(crate) enum Question {
    Deposit(Deposit),
    Withdrawal(Withdrawal),
}

/// The way back to whoever asked. They may be gone by then.
pub(crate) type Answering = oneshot::Sender<Answer>;

/// Numbered news on their way.
pub(crate) type Follower = mpsc::UnboundedSender<(u64, News)>;

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
    durable: Durable<Journal>,
    ledger: Ledger,
    checkpoints: PathBuf,
    keep: Keep,
    started: Instant,
    /// On the state's clock.
    started_ms: u64,
    sessions: BTreeMap<ConnectionId, Session>,
    follower: Option<Follower>,
    /// Whoever follows from now on, once all that was decided before is out.
    newcomers: Vec<(u64, Follower)>,
    /// Those that gave an order, by its number. The rim lets few in at a time.
    orderers: BTreeMap<u64, Answering>,
    orders: u64,
    /// Those that want to know how the run is, once what it has come to is written down.
    curious: Vec<Answering>,
    metrics: Metrics,
    /// When the last step was committed, or training began.
    stepped: Option<Instant>,
    /// When the run went back, until all train again.
    went_back: Option<Instant>,
    /// Results of manifests that were written on other threads.
    written: (mpsc::UnboundedSender<Event>, mpsc::UnboundedReceiver<Event>),
    traces: Traces,
    /// What carrying out an effect gave rise to.
    follow_ups: VecDeque<Event>,
}

impl Conductor {
    /// Of a run that begins, or of one that was under way when its coordinator ended.
    pub(crate) fn new(settings: Settings, metrics: Metrics) -> Result<Self, Error> {
        let run_dir = settings.run_dir.clone();
        let checkpoints = run_dir.join("checkpoints");
        let keep = Keep::of(&settings.job.checkpoint);
        let (durable, ledger) = match Durable::reopen(&settings, Journal::open(&run_dir)?)? {
            Ok(durable) => {
                let ledger = Ledger::reopen(&run_dir, durable.ledger_lines())?;
                let state = durable.state();
                metrics.restored(state.restarts(), state.committed(), state.plan_in_force());
                tracing::info!(restarts = state.restarts(), "going on where the last one ended");
                (durable, ledger)
            }
            Err(journal) => {
                let ledger = Ledger::open(&run_dir, settings.resume_from.map(|at| at.step))?;
                let lines = ledger.first();
                (Durable::begin(settings, journal, lines), ledger)
            }
        };
        Ok(Self {
            ledger,
            checkpoints,
            keep,
            started: Instant::now(),
            started_ms: durable.state().now_ms(),
            durable,
            sessions: BTreeMap::new(),
            follower: None,
            newcomers: Vec::new(),
            orderers: BTreeMap::new(),
            orders: 0,
            curious: Vec::new(),
            metrics,
            stepped: None,
            went_back: None,
            written: mpsc::unbounded_channel(),
            traces: Traces::default(),
            follow_ups: VecDeque::new(),
        })
    }

    /// The first connection's number: those of a coordinator before are not used again.
    pub(crate) fn first_connection(&self) -> u64 {
        self.durable.state().restarts() << 32
    }

    /// Runs for as long as somebody may call: whoever was cut off still hears how the run ended.
    pub(crate) async fn conduct(mut self, mut inbox: mpsc::Receiver<Inbound>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut farewell = None;
        self.write_down_and_carry_out();
        loop {
            let inbound = tokio::select! {
                // Messages first: a lease must not end while its heartbeat waits to be read.
                biased;
                inbound = inbox.recv() => match inbound {
                    Some(inbound) => inbound,
                    None => return,
                },
                Some(event) = self.written.1.recv() => Inbound::Event(event),
                () = sleep_until(farewell.unwrap_or_else(Instant::now)), if farewell.is_some() => {
                    (self.sessions, farewell) = (BTreeMap::new(), None);
                    continue;
                }
                _at = ticks.tick() => Inbound::Event(Event::Tick),
            };
            let was_over = self.durable.state().is_over();
            self.take_in(inbound);
            for _ in 1..AT_ONCE {
                let Ok(inbound) = inbox.try_recv() else { break };
                self.take_in(inbound);
            }
            self.write_down_and_carry_out();
            if self.durable.state().is_over() && !was_over {
                farewell = Some(Instant::now() + FAREWELL);
            }
        }
    }

    fn take_in(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Opened { connection, session } => {
                self.sessions.insert(connection, session);
            }
            Inbound::Event(event) => self.apply(event),
            Inbound::Follows { heard, outbox } => self.newcomers.push((heard, outbox)),
            Inbound::Heard(number) => self.durable.heard(number),
            Inbound::Asked { ask: Ask::Status, answer } => self.curious.push(answer),
            Inbound::Asked { ask: Ask::Traced { after }, answer } => {
                answer.send(self.traces.answer(self.started.elapsed(), after)).ok();
            }
            Inbound::Asked { ask: Ask::Order(order), answer } => {
                self.orders += 1;
                self.orderers.insert(self.orders, answer);
                tracing::info!(?order, "somebody wants something");
                self.apply(Event::Ordered { asked: self.orders, order });
            }
            Inbound::Command(Command::Stored { step, checkpoints, bytes }) => {
                self.metrics.stored(step, (checkpoints, bytes), unix_seconds());
            }
            Inbound::Command(Command::NotStored) => self.metrics.not_stored(),
            Inbound::Command(Command::Stop) => self.apply(Event::StopRequested),
            Inbound::Command(Command::Abort(reason)) => {
                self.apply(Event::AbortRequested { reason });
            }
            Inbound::Command(Command::WorkerExited { worker, pid, what }) => {
                self.apply(Event::WorkerExited { worker, pid, what });
            }
            Inbound::Asks { question, answer } => {
                let state = self.durable.state();
                let word = match &question {
                    Question::Deposit(deposit) => state.may_deposit(deposit),
                    Question::Withdrawal(withdrawal) => state.may_withdraw(withdrawal),
                };
                // Whoever has gone meanwhile needs none.
                answer.send(word).ok();
            }
        }
    }

    fn apply(&mut self, mut event: Event) {
        self.take_trace(&mut event);
        if let Event::HungUp { connection, .. } = &event {
            self.sessions.remove(connection);
        }
        let heard = self.hear(&event);
        let now_ms = self.started_ms + self.started.elapsed().as_millis() as u64;
        let refused = |output: &Output| match output {
            Output::Effect(Effect::Close { connection, .. }) => Some(*connection) == heard,
            Output::Effect(_) | Output::News { .. } | Output::Row { .. } => false,
        };
        let refused = self.durable.apply(now_ms, event).iter().any(refused);
        if refused && heard.is_some_and(|heard| self.durable.state().worker_of(heard).is_none()) {
            self.metrics.rejected(Rejected::Refused);
        }
    }

    /// What carrying out gives rise to is taken in, too, until nothing is left to do.
    fn write_down_and_carry_out(&mut self) {
        loop {
            self.write_down();
            for output in self.durable.outputs() {
                match output {
                    Output::Effect(effect) => self.carry_out(effect),
                    Output::Row { number, row } => self.record(number, &row),
                    Output::News { number, news } => self.tell(number, news),
                }
            }
            if self.follow_ups.is_empty() {
                break;
            }
            while let Some(event) = self.follow_ups.pop_front() {
                self.apply(event);
            }
        }
        for (heard, outbox) in std::mem::take(&mut self.newcomers) {
            self.durable.heard(heard);
            for (number, news) in self.durable.unheard() {
                outbox.send((*number, news.clone())).ok();
            }
            self.follower = Some(outbox);
        }
        let state = self.durable.state();
        for answer in std::mem::take(&mut self.curious) {
            answer.send(Answer::Status(Box::new(state.status()))).ok();
        }
        self.metrics.workers(&state.workers());
        self.metrics.kept(state.kept_steps(), state.is_paused());
    }

    fn write_down(&mut self) {
        if self.durable.says_something() && self.durable.is_full() {
            // Then the record leaves out the rows that are in the ledger for good.
            let rows = self.ledger.rows();
            if self.ledger.syncer().and_then(|sync| sync()).is_ok() {
                self.durable.recorded(rows);
            }
        }
        if let Err(error) = self.durable.persist() {
            // Training goes on without it; but a coordinator that dies now knows less when it is back.
            let error = in_full(&error);
            tracing::error!(error, "could not be written down: a crash would lose it");
            self.metrics.not_journalled();
        }
    }

    /// What cells did in a step goes to whoever asked, and leaves the state alone.
    fn take_trace(&mut self, event: &mut Event) {
        if *event == Event::Tick {
            self.traces.forget_if_nobody_asks(self.started.elapsed());
        }
        let Event::Message { connection, message: FromWorker::Traced { generation, trace } } =
            event
        else {
            return;
        };
        let state = self.durable.state();
        let worker = state.worker_of(*connection);
        if let Some(worker) = worker.filter(|_| *generation == state.generation_in_force()) {
            let spans = std::mem::take(&mut trace.spans);
            self.traces.add(worker, StepTrace { spans, ..(**trace).clone() });
        }
    }

    /// Notes who spoke, and what a worker says of its speed. Returns the speaker of a message that
    /// was understood.
    fn hear(&self, event: &Event) -> Option<ConnectionId> {
        let Event::Message { connection, message } = event else { return None };
        if let Some(worker) = self.durable.state().worker_of(*connection) {
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
            Effect::Answer { asked, reply } => {
                if let Some(answer) = self.orderers.remove(&asked) {
                    let reply = reply.map_or_else(Answer::Refused, Answer::Accepted);
                    answer.send(reply).ok();
                }
            }
            Effect::Trace { first, steps, hosts } => {
                self.traces.begin(self.started.elapsed(), (first, steps), hosts);
            }
            Effect::CommitCheckpoint(manifest) => self.commit(manifest),
            Effect::DiscardCheckpoint { step } => checkpoints::discard(&self.checkpoints, step),
            // They have a number each.
            Effect::Record(_) | Effect::News(_) => {}
        }
    }

    fn record(&mut self, number: u64, row: &LedgerRow) {
        if let Err(error) = self.ledger.record(number, row) {
            let why = in_full(&error);
            self.follow_ups.push_back(Event::LedgerFailed { why });
        }
    }

    fn tell(&mut self, number: u64, news: News) {
        self.measure(&news);
        if let Some(follower) = &self.follower {
            // Whoever follows next hears what this one does not.
            follower.send((number, news)).ok();
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
            | News::Draining { .. }
            | News::StopAsked { .. }
            | News::Paused { .. }
            | News::Resumed
            | News::Quarantined { .. }
            | News::Parted { .. }
            | News::SharesMove { .. }
            | News::Prepared { .. }
            | News::Yielding { .. }
            | News::Diverged { .. }
            | News::Straggler { .. }
            | News::CaughtUp { .. }
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
        // No other plan comes before the manifest is written.
        let generation = self.durable.state().generation_in_force();
        tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            // The rows a checkpoint stands on must not be younger than it after a power cut.
            let result = sync
                .and_then(|sync| sync())
                .and_then(|()| checkpoints::commit(&checkpoints, generation, &manifest, keep));
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
