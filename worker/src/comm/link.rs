//! What endpoints meet in once a mesh is open: an inbox per pair of cells, an outbox per connection,
//! and the one failure that stops them all. `threads` moves bytes between outboxes and inboxes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, WorkerId};

use super::CommError;
use super::channel::Channel;
use super::frame::{self, Operation};
use super::payload::{Payload, Spare};

/// The first failure: whose, and why. `None` is this worker's own decision.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) peer: Option<WorkerId>,
    pub(super) cause: String,
    /// No packet comes through between the peer and this worker.
    pub(super) silent: bool,
}

impl Failure {
    /// A peer's, whatever of it was at fault but silence.
    pub(super) fn of(peer: WorkerId, cause: String) -> Self {
        Self { peer: Some(peer), cause, silent: false }
    }

    /// This worker's own decision.
    pub(super) fn own(reason: &str) -> Self {
        Self { peer: None, cause: reason.to_owned(), silent: false }
    }

    /// What a system call on the peer's connection said.
    pub(super) fn broken(peer: WorkerId, what: &str, error: &io::Error) -> Self {
        Self { peer: Some(peer), cause: format!("{what}{error}"), silent: is_silence(error) }
    }
}

/// Whether the system gave a connection up because nothing came back; a socket's own time-out reads
/// otherwise on Unix (`WouldBlock`).
pub(super) fn is_silence(error: &io::Error) -> bool {
    let given_up = cfg!(unix) && error.kind() == io::ErrorKind::TimedOut;
    let no_way = [io::ErrorKind::HostUnreachable, io::ErrorKind::NetworkUnreachable];
    given_up || no_way.contains(&error.kind())
}

pub(super) struct Message {
    pub(super) operation: Operation,
    pub(super) bytes: Vec<u8>,
}

/// A message on its way out, numbered within its (from, to) pair.
pub(super) struct Outgoing {
    pub(super) operation: Operation,
    pub(super) from: CellId,
    pub(super) to: CellId,
    pub(super) sequence: u64,
    pub(super) payload: Payload,
}

#[derive(Default)]
struct Inbox {
    queue: Mutex<VecDeque<Message>>,
    changed: Condvar,
}

/// One connection.
pub(super) struct Link {
    pub(super) channel: Channel,
    outbox: Mutex<VecDeque<Outgoing>>,
    changed: Condvar,
    /// The peer has said goodbye.
    departed: AtomicBool,
}

/// What endpoints and threads of one mesh share.
pub(super) struct Shared {
    pub(super) me: WorkerId,
    pub(super) generation: Generation,
    hosts: Vec<WorkerId>,
    silence: Duration,
    failure: OnceLock<Failure>,
    closing: AtomicBool,
    /// By (from, to); `to` is hosted here.
    inboxes: BTreeMap<(CellId, CellId), Inbox>,
    links: BTreeMap<WorkerId, Link>,
    /// Those whose links go over a relay.
    relayed: BTreeSet<WorkerId>,
    threads_running: Mutex<usize>,
    thread_ended: Condvar,
    pub(super) spare: Spare,
}

/// What a writer does next.
pub(super) enum Next {
    Send(Outgoing),
    SayGoodbye,
    SayAbort(Failure),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in this file panics between two changes that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(
        me: WorkerId,
        generation: Generation,
        hosts: Vec<WorkerId>,
        silence: Duration,
        (channels, relayed): (BTreeMap<WorkerId, Channel>, BTreeSet<WorkerId>),
    ) -> Self {
        let cells = || (0..hosts.len() as u32).map(CellId);
        let inboxes = cells()
            .filter(|to| hosts[to.0 as usize] == me)
            .flat_map(|to| cells().filter(move |from| *from != to).map(move |from| (from, to)))
            .map(|pair| (pair, Inbox::default()))
            .collect();
        let link = |channel| Link {
            channel,
            outbox: Mutex::default(),
            changed: Condvar::new(),
            departed: AtomicBool::new(false),
        };
        Self {
            me,
            generation,
            hosts,
            silence,
            failure: OnceLock::new(),
            closing: AtomicBool::new(false),
            inboxes,
            threads_running: Mutex::new(2 * channels.len()),
            thread_ended: Condvar::new(),
            spare: Spare::default(),
            relayed,
            links: channels.into_iter().map(|(peer, channel)| (peer, link(channel))).collect(),
        }
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = WorkerId> {
        self.links.keys().copied()
    }

    pub(super) fn host(&self, cell: CellId) -> WorkerId {
        assert!((cell.0 as usize) < self.hosts.len(), "{cell} is not in the grid");
        self.hosts[cell.0 as usize]
    }

    pub(super) fn is_remote(&self, cell: CellId) -> bool {
        self.host(cell) != self.me
    }

    /// Stops everything with this failure, unless it has failed or is closing already.
    pub(super) fn fail(&self, mut failure: Failure) {
        // That a relay is silent says nothing of who is behind it.
        failure.silent &= failure.peer.is_none_or(|peer| !self.relayed.contains(&peer));
        if !self.closing.load(Ordering::Acquire) && self.failure.set(failure).is_ok() {
            self.wake_all();
        }
    }

    /// Ends in good order: what is queued still goes out, then a goodbye.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Waits until all threads have ended, or for `wait`; then cuts the connections.
    pub(super) fn wait_and_cut(&self, wait: Duration) {
        let running = lock(&self.threads_running);
        let waited = self.thread_ended.wait_timeout_while(running, wait, |running| *running > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.cut();
    }

    /// Loses all connections without a word to anybody.
    #[cfg(test)]
    pub(super) fn die(&self) {
        self.closing.store(true, Ordering::Release);
        self.cut();
    }

    fn cut(&self) {
        for link in self.links.values() {
            let _ = link.channel.stream().shutdown(Shutdown::Both);
        }
    }

    /// The error every call of an endpoint returns from now on, if any.
    pub(super) fn stopped(&self, operation: Operation, cell: CellId) -> Option<CommError> {
        if let Some(Failure { peer, cause, silent }) = self.failure.get() {
            let (cause, silent) = (cause.clone(), *silent);
            return Some(match *peer {
                Some(peer) => CommError::Lost { operation, cell, peer, cause, silent },
                None => CommError::Stopped { operation, cell, cause },
            });
        }
        let closing = self.closing.load(Ordering::Acquire);
        let cause = "it was closed".into();
        closing.then_some(CommError::Stopped { operation, cell, cause })
    }

    /// Queues a message.
    pub(super) fn push(&self, outgoing: Outgoing) -> Result<(), CommError> {
        let (operation, from, to) = (outgoing.operation, outgoing.from, outgoing.to);
        let peer = self.host(to);
        if let Some(error) = self.stopped(operation, from) {
            return Err(error);
        }
        let Some(link) = self.links.get(&peer) else {
            let bytes = outgoing.payload.into_bytes();
            self.deliver((from, to), Message { operation, bytes });
            return Ok(());
        };
        let refused = if link.departed.load(Ordering::Acquire) {
            Err("it has left".into())
        } else {
            frame::check_length(outgoing.payload.len() as u64).map_err(|error| error.to_string())
        };
        if let Err(cause) = refused {
            return Err(self.fail_call(peer, cause, operation, from));
        }
        lock(&link.outbox).push_back(outgoing);
        link.changed.notify_one();
        Ok(())
    }

    /// Waits for the next message of `from` to `to`, which must belong to `operation`.
    pub(super) fn pop(
        &self,
        operation: Operation,
        from: CellId,
        to: CellId,
    ) -> Result<Vec<u8>, CommError> {
        let peer = self.host(from);
        let link = self.links.get(&peer);
        let has_left = || link.is_some_and(|link| link.departed.load(Ordering::Acquire));
        let inbox = &self.inboxes[&(from, to)];
        let queue = lock(&inbox.queue);
        let waits = |queue: &mut VecDeque<Message>| {
            queue.is_empty() && self.stopped(operation, to).is_none() && !has_left()
        };
        let waited = inbox.changed.wait_timeout_while(queue, self.silence, waits);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = self.stopped(operation, to) {
            return Err(error);
        }
        let message = queue.pop_front();
        drop(queue);
        match message {
            Some(message) if message.operation == operation => Ok(message.bytes),
            Some(message) => {
                let cause = format!("{from} sent {}, {to} expects {operation}", message.operation);
                Err(self.fail_call(peer, cause, operation, to))
            }
            None if has_left() => {
                let cause = format!("it left while {to} waited for {from}");
                Err(self.fail_call(peer, cause, operation, to))
            }
            None => {
                let waited = self.silence;
                let cause = format!("{from} was silent for {} s", waited.as_secs_f32());
                self.fail(Failure::of(peer, cause));
                Err(CommError::Silent { operation, cell: to, from, peer, waited })
            }
        }
    }

    /// Poisons the mesh because of what `peer` did, and says so to the caller.
    pub(super) fn fail_call(
        &self,
        peer: WorkerId,
        cause: String,
        operation: Operation,
        cell: CellId,
    ) -> CommError {
        self.fail(Failure::of(peer, cause.clone()));
        let earlier = self.stopped(operation, cell);
        let silent = false;
        earlier.unwrap_or(CommError::Lost { operation, cell, peer, cause, silent })
    }

    pub(super) fn deliver(&self, pair: (CellId, CellId), message: Message) {
        let inbox = &self.inboxes[&pair];
        lock(&inbox.queue).push_back(message);
        inbox.changed.notify_one();
    }

    fn wake_all(&self) {
        // The lock makes sure that nobody is between looking and falling asleep.
        for inbox in self.inboxes.values() {
            drop(lock(&inbox.queue));
            inbox.changed.notify_all();
        }
        for link in self.links.values() {
            drop(lock(&link.outbox));
            link.changed.notify_all();
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.failure.get().is_some() || self.closing.load(Ordering::Acquire)
    }

    pub(super) fn thread_ends(&self) {
        *lock(&self.threads_running) -= 1;
        self.thread_ended.notify_all();
    }

    /// What a writer does next; waits until there is something.
    pub(super) fn next(&self, link: &Link) -> Next {
        let outbox = lock(&link.outbox);
        // A goodbye is answered with one, so that a peer who leaves first knows all has arrived.
        let has_left = || link.departed.load(Ordering::Acquire);
        let waits =
            |outbox: &mut VecDeque<Outgoing>| outbox.is_empty() && !self.is_over() && !has_left();
        let waited = link.changed.wait_while(outbox, waits);
        let mut outbox = waited.unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = self.failure.get() {
            return Next::SayAbort(failure.clone());
        }
        outbox.pop_front().map_or(Next::SayGoodbye, Next::Send)
    }

    /// Waits until the mesh has failed or is closing, but no longer than `wait`.
    pub(super) fn wait_for_end(&self, link: &Link, wait: Duration) {
        let outbox = lock(&link.outbox);
        let waited = link.changed.wait_timeout_while(outbox, wait, |_| !self.is_over());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn link(&self, peer: WorkerId) -> &Link {
        &self.links[&peer]
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Notes that a peer has said goodbye: nothing more comes from it.
    pub(super) fn departs(&self, link: &Link) {
        link.departed.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Whether `peer` may send from and to these cells.
    pub(super) fn is_senders(&self, peer: WorkerId, pair: (CellId, CellId)) -> bool {
        self.hosts.get(pair.0.0 as usize) == Some(&peer) && self.inboxes.contains_key(&pair)
    }
}
