//! How a mesh comes together: of each pair of workers, the one with the higher id dials the other.
//!
//! Every handshake has its own thread and its own time limit, so that a stranger who stalls holds
//! up nobody; strangers are refused and the wait for the right peer goes on until the deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use shoal_plan::plan::WorkerId;

use super::CommError;
use super::deadline::Deadline;
use super::handshake::{self, Identity, Refusal};
use super::mesh::Timeouts;

/// Unfinished handshakes at a time. Connections beyond are closed unread.
const HANDSHAKES_MAX: usize = 64;

/// How often the one who waits for peers looks whether it still should.
const CALLED_OFF_PAUSE: Duration = Duration::from_millis(50);

const ACCEPT_PAUSE: Duration = Duration::from_millis(2);
const DIAL_PAUSE: Duration = Duration::from_millis(50);

enum Event {
    Joined(WorkerId, TcpStream),
    /// From whom, if that is known, and why.
    Refused(Option<WorkerId>, Refusal),
    Broken(String),
}

/// What the threads of one opening share.
struct Opening {
    identity: Identity,
    /// Who may dial us and has not yet.
    wanted: Mutex<BTreeSet<WorkerId>>,
    handshakes: AtomicUsize,
    over: AtomicBool,
    deadline: Deadline,
    handshake: Duration,
}

/// One open, proven connection to each of `peers`; an address is needed for those with a lower id.
pub(super) fn connect_all(
    identity: Identity,
    peers: &BTreeMap<WorkerId, Option<SocketAddr>>,
    listener: TcpListener,
    timeouts: &Timeouts,
    is_off: &dyn Fn() -> bool,
) -> Result<BTreeMap<WorkerId, TcpStream>, CommError> {
    let me = identity.me();
    let higher: BTreeSet<_> = peers.keys().copied().filter(|peer| *peer > me).collect();
    let opening = Arc::new(Opening {
        identity,
        wanted: Mutex::new(higher.clone()),
        handshakes: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        deadline: Deadline::after(timeouts.join),
        handshake: timeouts.handshake,
    });
    let (events, inbox) = mpsc::channel();
    if !higher.is_empty() {
        let (opening, events) = (Arc::clone(&opening), events.clone());
        thread::spawn(move || accept_all(&opening, &listener, &events));
    }
    for (peer, address) in peers.iter().filter(|(peer, _)| **peer < me) {
        let (opening, events, peer, address) =
            (Arc::clone(&opening), events.clone(), *peer, *address);
        thread::spawn(move || dial_until_joined(&opening, peer, address, &events));
    }
    drop(events);
    let joined = gather(me, peers, &inbox, (opening.deadline, timeouts.join), is_off);
    opening.over.store(true, Ordering::Release);
    joined
}

fn gather(
    me: WorkerId,
    peers: &BTreeMap<WorkerId, Option<SocketAddr>>,
    inbox: &mpsc::Receiver<Event>,
    (deadline, waited): (Deadline, Duration),
    is_off: &dyn Fn() -> bool,
) -> Result<BTreeMap<WorkerId, TcpStream>, CommError> {
    let mut joined = BTreeMap::new();
    // By whom, if that is known. A connection that merely broke hides no decision.
    let mut refusals: BTreeMap<Option<WorkerId>, Refusal> = BTreeMap::new();
    while joined.len() < peers.len() {
        if is_off() {
            return Err(CommError::CalledOff { me });
        }
        let wait = deadline.left().map(|left| left.min(CALLED_OFF_PAUSE));
        let event = match wait.map(|wait| inbox.recv_timeout(wait)) {
            Some(Err(mpsc::RecvTimeoutError::Timeout)) => continue,
            event => event.and_then(Result::ok),
        };
        match event {
            Some(Event::Joined(peer, stream)) => {
                joined.insert(peer, stream);
            }
            Some(Event::Refused(from, refusal)) => {
                if refusal.decided || refusals.get(&from).is_none_or(|known| !known.decided) {
                    refusals.insert(from, refusal);
                }
            }
            Some(Event::Broken(cause)) => return Err(CommError::Listener { me, cause }),
            None => {
                let missing = peers.keys().filter(|peer| !joined.contains_key(*peer));
                let missing: Vec<_> = missing
                    .map(|peer| match refusals.get(&Some(*peer)) {
                        Some(Refusal { reason, .. }) => format!("{peer} ({reason})"),
                        None => peer.to_string(),
                    })
                    .collect();
                let mut missing = missing.join(", ");
                if let Some(Refusal { reason, .. }) = refusals.get(&None) {
                    let _ = write!(missing, "; a connection was refused: {reason}");
                }
                return Err(CommError::Join { me, missing, waited });
            }
        }
    }
    Ok(joined)
}

fn accept_all(opening: &Arc<Opening>, listener: &TcpListener, events: &mpsc::Sender<Event>) {
    if let Err(error) = listener.set_nonblocking(true) {
        let _ = events.send(Event::Broken(error.to_string()));
        return;
    }
    while !opening.over.load(Ordering::Acquire) && opening.deadline.left().is_some() {
        match listener.accept() {
            Ok((stream, _)) => {
                if opening.handshakes.fetch_add(1, Ordering::AcqRel) >= HANDSHAKES_MAX {
                    opening.handshakes.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                let (opening, events) = (Arc::clone(opening), events.clone());
                thread::spawn(move || {
                    let answered = answer(&opening, stream);
                    opening.handshakes.fetch_sub(1, Ordering::AcqRel);
                    let _ = events.send(match answered {
                        Ok((peer, stream)) => Event::Joined(peer, stream),
                        Err(refusal) => Event::Refused(None, refusal),
                    });
                });
            }
            // Also after a passing error, such as a connection that was reset in the queue.
            Err(_) => thread::park_timeout(ACCEPT_PAUSE),
        }
    }
}

fn answer(opening: &Opening, stream: TcpStream) -> Result<(WorkerId, TcpStream), Refusal> {
    stream.set_nonblocking(false)?;
    let wanted = || opening.wanted.lock().unwrap_or_else(PoisonError::into_inner);
    let mut claimed = None;
    let claim = |peer| {
        if !wanted().remove(&peer) {
            return Err(format!("{peer} is connected already or hosts no cell"));
        }
        claimed = Some(peer);
        Ok(())
    };
    let deadline = opening.deadline.within(opening.handshake);
    match handshake::accept(&stream, &opening.identity, claim, deadline) {
        Ok(peer) => Ok((peer, stream)),
        Err(refusal) => {
            // It broke after its claim: the place is free again.
            wanted().extend(claimed);
            Err(refusal)
        }
    }
}

fn dial_until_joined(
    opening: &Opening,
    peer: WorkerId,
    address: Option<SocketAddr>,
    events: &mpsc::Sender<Event>,
) {
    while !opening.over.load(Ordering::Acquire) && opening.deadline.left().is_some() {
        let deadline = opening.deadline.within(opening.handshake);
        let dialed = dial(opening, peer, address, deadline);
        let joined = dialed.is_ok();
        let sent = events.send(match dialed {
            Ok(stream) => Event::Joined(peer, stream),
            Err(refusal) => Event::Refused(Some(peer), refusal),
        });
        if joined || sent.is_err() {
            return;
        }
        thread::park_timeout(DIAL_PAUSE);
    }
}

fn dial(
    opening: &Opening,
    peer: WorkerId,
    address: Option<SocketAddr>,
    deadline: Deadline,
) -> Result<TcpStream, Refusal> {
    let address = address.ok_or("its address is not known")?;
    let left = deadline.left().ok_or("no time is left")?;
    let stream = TcpStream::connect_timeout(&address, left)
        .map_err(|error| format!("connecting to {address}: {error}"))?;
    handshake::dial(&stream, &opening.identity, peer, deadline)?;
    Ok(stream)
}
