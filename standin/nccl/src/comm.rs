//! One rank of a communicator: its connections, what has come on them, and calls that are carried out.
#![expect(clippy::disallowed_methods, reason = "a peer's silence is measured on the clock")]

use std::collections::VecDeque;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::data::{Code, Fault, Type};
use crate::link::{Id, Message, Operation};
use crate::settings::{Failure, Settings};

/// What all communicators of a process share.
#[derive(Debug)]
pub struct Process {
    pub settings: Settings,
    messages: AtomicU64,
    groups: AtomicU64,
}

/// What a call moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    Send { to: usize },
    Recv { from: usize },
    AllReduce,
    ReduceScatter,
    AllGather,
    Broadcast { root: usize },
}

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub what: Move,
    /// Numbers, as the function of that name counts them.
    pub count: usize,
    pub kind: Type,
}

/// A rank.
#[derive(Debug)]
pub struct Rank {
    pub rank: usize,
    pub size: usize,
    process: &'static Process,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    streams: Vec<Option<Arc<TcpStream>>>,
    peers: Vec<Peer>,
    is_ready: bool,
    is_over: bool,
    fault: Option<Fault>,
}

/// What is known of another rank.
#[derive(Debug, Default)]
struct Peer {
    came: VecDeque<Message>,
    /// Why nothing more will come.
    end: Option<String>,
}

impl Process {
    pub fn new(settings: Settings) -> Self {
        Self { settings, messages: AtomicU64::new(0), groups: AtomicU64::new(0) }
    }

    /// Tells a fault.
    pub fn say(&self, text: &str) {
        // Nobody is left to tell if standard error is closed.
        let _ = writeln!(std::io::stderr(), "shoal stand-in nccl: {text}");
        if let Some(path) = &self.settings.report {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            if let Err(error) = file.and_then(|mut file| writeln!(file, "{text}")) {
                let _ = writeln!(std::io::stderr(), "shoal stand-in nccl: {path}: {error}");
            }
        }
    }

    fn shall(&self, failure: Failure) -> bool {
        self.settings.failures.contains(&failure)
    }
}

impl Call {
    /// Bytes that leave this rank's device, and that come to it.
    pub fn bytes(&self, rank: usize, size: usize) -> (usize, usize) {
        let n = self.count * self.kind.bytes();
        match self.what {
            Move::Send { .. } => (n, 0),
            Move::Recv { .. } => (0, n),
            Move::AllReduce => (n, n),
            Move::ReduceScatter => (n * size, n),
            Move::AllGather => (n, n * size),
            Move::Broadcast { root } => (if root == rank { n } else { 0 }, n),
        }
    }

    fn operation(&self) -> Operation {
        match self.what {
            Move::Send { .. } | Move::Recv { .. } => Operation::Send,
            Move::AllReduce => Operation::AllReduce,
            Move::ReduceScatter => Operation::ReduceScatter,
            Move::AllGather => Operation::AllGather,
            Move::Broadcast { .. } => Operation::Broadcast,
        }
    }

    /// The part that rank `peer` gets of what leaves rank `rank`, if any.
    fn part<'a>(&self, (rank, peer): (usize, usize), out: &'a [u8]) -> Option<&'a [u8]> {
        let n = self.count * self.kind.bytes();
        match self.what {
            Move::Send { to } => (to == peer).then_some(out),
            Move::Recv { .. } => None,
            Move::AllReduce | Move::AllGather => Some(out),
            Move::ReduceScatter => Some(&out[peer * n..][..n]),
            Move::Broadcast { root } => (root == rank).then_some(out),
        }
    }

    /// Whether rank `peer` sends something here.
    fn comes_from(&self, peer: usize) -> bool {
        match self.what {
            Move::Send { .. } => false,
            Move::Recv { from } => from == peer,
            Move::AllReduce | Move::AllGather | Move::ReduceScatter => true,
            Move::Broadcast { root } => root == peer,
        }
    }
}

impl Rank {
    /// Begins to look for the others, in a thread of its own.
    pub fn join(process: &'static Process, id: Id, (rank, size): (usize, usize)) -> Arc<Self> {
        let state =
            State { peers: (0..size).map(|_| Peer::default()).collect(), ..State::default() };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let this = Arc::new(Self { rank, size, process, state, changed });
        let joining = Arc::clone(&this);
        std::thread::spawn(move || joining.connect(id));
        this
    }

    fn connect(self: &Arc<Self>, id: Id) {
        if self.process.shall(Failure::Init) {
            return self.fail(Fault::new(Code::SystemError, "no communicator, as was asked for"));
        }
        let patience = self.process.settings.patience;
        match id.connect((self.rank, self.size), patience) {
            Ok(streams) => {
                let streams: Vec<_> = streams.into_iter().map(|end| end.map(Arc::new)).collect();
                for (peer, stream) in streams.iter().enumerate() {
                    let Some(stream) = stream.clone() else { continue };
                    let this = Arc::clone(self);
                    std::thread::spawn(move || this.listen(peer, &stream));
                }
                let mut state = self.lock();
                state.streams = streams;
                state.is_ready = true;
                self.changed.notify_all();
            }
            Err(error) => self.fail(Fault::new(
                Code::SystemError,
                format!("rank {} of {} did not find the others: {error}", self.rank, self.size),
            )),
        }
    }

    /// Takes what a peer sends until it goes.
    fn listen(&self, peer: usize, stream: &TcpStream) {
        loop {
            let (message, end) = match Message::read(stream) {
                Ok(message) if message.operation == Operation::Goodbye => {
                    (None, Some("has left the communicator".to_owned()))
                }
                Ok(message) => (Some(message), None),
                Err(error) => (None, Some(format!("was lost ({error})"))),
            };
            let mut state = self.lock();
            let is_over = end.is_some();
            state.peers[peer].came.extend(message);
            state.peers[peer].end = end;
            self.changed.notify_all();
            if is_over {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the first fault, and tells it.
    pub fn fail(&self, fault: Fault) {
        let mut state = self.lock();
        if state.fault.is_none() {
            if !state.is_over {
                self.process.say(&fault.text);
            }
            state.fault = Some(fault);
        }
        self.changed.notify_all();
    }

    pub fn fault(&self) -> Option<Fault> {
        self.lock().fault.clone()
    }

    pub fn is_ready(&self) -> bool {
        self.lock().is_ready
    }

    /// Waits until the others are found, or not.
    pub fn wait_until_ready(&self) -> Result<(), Fault> {
        let waiting = |state: &mut State| !state.is_ready && state.fault.is_none();
        let state = self.changed.wait_while(self.lock(), waiting);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state.fault.clone().map_or(Ok(()), Err)
    }

    /// One group of calls, of which `out` is what left the device, one after the other, and `into` what comes to it.
    pub fn carry_out(&self, calls: &[Call], out: &[u8], into: &mut [u8]) {
        if let Err(fault) = self.wait_until_ready().and_then(|()| self.exchange(calls, out, into)) {
            self.fail(fault);
        }
        let group = self.process.groups.fetch_add(1, Ordering::Relaxed) + 1;
        if self.process.shall(Failure::Async(group)) {
            let text = format!("group {group} has an asynchronous error, as was asked for");
            self.fail(Fault::new(Code::SystemError, text));
        }
    }

    fn exchange(&self, calls: &[Call], out: &[u8], into: &mut [u8]) -> Result<(), Fault> {
        let mut rest = out;
        let mut outs = Vec::with_capacity(calls.len());
        for call in calls {
            let (mine, after) = rest.split_at(call.bytes(self.rank, self.size).0);
            for peer in (0..self.size).filter(|peer| *peer != self.rank || call.is_to_itself(*peer))
            {
                if let Some(part) = call.part((self.rank, peer), mine) {
                    self.post(peer, call, part)?;
                }
            }
            outs.push(mine);
            rest = after;
        }
        let mut rest = into;
        for (call, out) in calls.iter().zip(outs) {
            let (mine, after) = rest.split_at_mut(call.bytes(self.rank, self.size).1);
            self.take_all(call, out, mine)?;
            rest = after;
        }
        Ok(())
    }

    fn post(&self, peer: usize, call: &Call, part: &[u8]) -> Result<(), Fault> {
        std::thread::sleep(self.process.settings.delay);
        let number = self.process.messages.fetch_add(1, Ordering::Relaxed) + 1;
        let message =
            Message { operation: call.operation(), kind: call.kind, bytes: part.to_vec() };
        if self.process.shall(Failure::Lose(number)) {
            self.process.say(&format!("message {number} gets lost, as was asked for"));
            return Ok(());
        }
        let mut state = self.lock();
        let Some(stream) = state.streams[peer].clone() else {
            state.peers[peer].came.push_back(message);
            return Ok(());
        };
        drop(state);
        message.write(&stream).map_err(|error| {
            let text = format!("{}: rank {peer} was lost ({error})", self.says(call, peer));
            Fault::new(Code::RemoteError, text)
        })
    }

    /// Puts together what all that take part send, in the order of ranks.
    fn take_all(&self, call: &Call, out: &[u8], into: &mut [u8]) -> Result<(), Fault> {
        let n = call.count * call.kind.bytes();
        let sums = matches!(call.what, Move::AllReduce | Move::ReduceScatter);
        let mut is_first = true;
        for peer in (0..self.size).filter(|peer| call.comes_from(*peer)) {
            let own = call.part((self.rank, peer), out).filter(|_| peer == self.rank);
            let part = match own {
                Some(own) => own.to_vec(),
                None => self.take(peer, call, n)?,
            };
            if call.what == Move::AllGather {
                into[peer * n..][..n].copy_from_slice(&part);
            } else if sums && !is_first {
                call.kind.add(into, &part)?;
            } else {
                into.copy_from_slice(&part);
            }
            is_first = false;
        }
        Ok(())
    }

    fn take(&self, peer: usize, call: &Call, want: usize) -> Result<Vec<u8>, Fault> {
        let patience = self.process.settings.patience;
        let until = Instant::now() + patience;
        let mut state = self.lock();
        let message = loop {
            if let Some(fault) = &state.fault {
                return Err(fault.clone());
            }
            if let Some(message) = state.peers[peer].came.pop_front() {
                break message;
            }
            if let Some(end) = &state.peers[peer].end {
                let text = format!("{}: rank {peer} {end}", self.says(call, peer));
                return Err(Fault::new(Code::RemoteError, text));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                let seconds = patience.as_secs_f32();
                let text = format!(
                    "deadlock: {}: nothing came for {seconds} s; does rank {peer} make the matching call?",
                    self.says(call, peer)
                );
                return Err(Fault::new(Code::InternalError, text));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        drop(state);
        let Message { operation, kind, bytes } = message;
        if (operation, kind, bytes.len()) != (call.operation(), call.kind, want) {
            let text = format!(
                "mismatch: {}: wants {want} bytes of {:?}, and rank {peer} sent {} of {kind:?} in {operation:?}",
                self.says(call, peer),
                call.kind,
                bytes.len()
            );
            return Err(Fault::new(Code::InvalidUsage, text));
        }
        Ok(bytes)
    }

    /// Who does what with whom.
    fn says(&self, call: &Call, peer: usize) -> String {
        format!("rank {} of {} in {:?} with rank {peer}", self.rank, self.size, call.what)
    }

    /// Ends all waits. The others are told by their connections.
    pub fn abort(&self) {
        let mut state = self.lock();
        state.is_over = true;
        let text = format!("rank {} was aborted", self.rank);
        state.fault.get_or_insert(Fault::new(Code::RemoteError, text));
        for stream in state.streams.iter().flatten() {
            // It may be broken already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    /// Says goodbye, and what nobody has taken.
    pub fn leave(&self) {
        let mut state = self.lock();
        state.is_over = true;
        for (peer, of_peer) in state.peers.iter().enumerate() {
            for message in &of_peer.came {
                let (from, to, bytes) = (peer, self.rank, message.bytes.len());
                self.process.say(&format!(
                    "unmatched: {bytes} bytes that rank {from} sent to rank {to} were never received"
                ));
            }
        }
        let goodbye = Message { operation: Operation::Goodbye, kind: Type::U8, bytes: Vec::new() };
        for stream in state.streams.iter().flatten() {
            // Whoever is gone needs no goodbye.
            let _ = goodbye.write(stream);
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
}

impl Call {
    /// Whether it is a message of a rank to itself, which travels like any other.
    fn is_to_itself(&self, peer: usize) -> bool {
        self.what == Move::Send { to: peer }
    }
}

#[cfg(test)]
#[path = "comm/tests.rs"]
mod tests;
