//! The session's connection: whether it stands, when to try again, and what has not surely arrived.
//!
//! A session outlives its connections. Messages are numbered by their order; the coordinator says
//! how many it has read, and what came after is said again over the next connection.

use std::collections::VecDeque;

use shoal_proto::FromWorker;

/// The first wait before another attempt; it doubles up to the longest.
const RETRY_MS: u64 = 100;
const RETRY_MS_MAX: u64 = 2_000;

/// A coordinator that was out of reach for so long will not come back.
pub const GIVE_UP_MS: u64 = 60_000;

/// The connection and what is underway on it.
#[derive(Debug)]
pub(super) struct Connection {
    state: State,
    /// When the coordinator was last in touch, and how long to wait before the next attempt.
    lost_ms: Option<u64>,
    retry_ms: u64,
    /// Why the last connection ended.
    why: String,
    /// Messages said since the hello, from number `read` on.
    log: VecDeque<FromWorker>,
    read: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first attempt, or another, is under way.
    Connecting,
    /// The next attempt is made then.
    Waiting {
        until_ms: u64,
    },
    /// Connected, and the hello is out; what is said waits until it is taken.
    Greeting,
    Up,
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            state: State::Connecting,
            lost_ms: None,
            retry_ms: RETRY_MS,
            why: String::new(),
            log: VecDeque::new(),
            read: 0,
        }
    }

    /// The connection stands, and a hello goes out over it: of a new session, or of this one.
    pub(super) fn connected(&mut self, anew: bool) {
        self.state = State::Greeting;
        if anew {
            self.begin_anew();
        }
    }

    /// Nothing that was said counts any more.
    pub(super) fn begin_anew(&mut self) {
        self.log.clear();
        self.read = 0;
    }

    /// The connection, or an attempt at one, has ended.
    pub(super) fn ended(&mut self, now_ms: u64, why: String) {
        self.lost_ms.get_or_insert(now_ms);
        self.state = State::Waiting { until_ms: now_ms + self.retry_ms };
        self.retry_ms = (self.retry_ms * 2).min(RETRY_MS_MAX);
        self.why = why;
    }

    /// Whether the coordinator had read more before, and lost it: what it lacks cannot be said again.
    pub(super) fn has_forgotten(&self, messages: u64) -> bool {
        messages < self.read
    }

    /// The coordinator has read so many messages and takes the session on. Returns what is to be
    /// said again.
    pub(super) fn received(&mut self, messages: u64) -> Vec<FromWorker> {
        while self.read < messages && self.log.pop_front().is_some() {
            self.read += 1;
        }
        self.retry_ms = RETRY_MS;
        self.lost_ms = None;
        let was_greeting = self.state == State::Greeting;
        self.state = State::Up;
        if was_greeting { self.log.iter().cloned().collect() } else { Vec::new() }
    }

    /// Notes a message; true if it can go out now.
    pub(super) fn say(&mut self, message: &FromWorker) -> bool {
        self.log.push_back(message.clone());
        self.state == State::Up
    }

    /// Whether what is not said again would arrive in its place.
    pub(super) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Whether a heartbeat has a way to go.
    pub(super) fn stands(&self) -> bool {
        matches!(self.state, State::Greeting | State::Up)
    }

    /// Whether it is time for another attempt.
    pub(super) fn try_again(&mut self, now_ms: u64) -> bool {
        let due = matches!(self.state, State::Waiting { until_ms } if until_ms <= now_ms);
        if due {
            self.state = State::Connecting;
        }
        due
    }

    /// Why to give up, when it is time to.
    pub(super) fn given_up(&self, now_ms: u64) -> Option<String> {
        let since_ms = self.lost_ms?;
        (now_ms.saturating_sub(since_ms) >= GIVE_UP_MS).then(|| self.why.clone())
    }
}
