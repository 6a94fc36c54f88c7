//! How a mesh comes together: of each pair of workers, the one with the higher id dials the other, or the one that
//! can, where the plan says that only one of them can.
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
use shoal_proto::relay::{Purpose, Role};

use super::CommError;
use super::channel::Channel;
use super::deadline::Deadline;
use super::handshake::{self, Identity, Refusal};
use super::link::is_silence;
use super::mesh::Timeouts;
use super::relayed::{Relay, Unmet};
use super::trust::Trust;
use super::way::{Way, Ways};

/// Unfinished handshakes at a time. Connections beyond are closed unread.
const HANDSHAKES_MAX: usize = 64;

/// How often the one who waits for peers looks whether it still should.
const CALLED_OFF_PAUSE: Duration = Duration::from_millis(50);

const ACCEPT_PAUSE: Duration = Duration::from_millis(2);
/// A peer that has not dialed is looked after when this part of the link's patience is over.
const LOOKS: u32 = 4;

const DIAL_PAUSE: Duration = Duration::from_millis(50);

/// Between two attempts to meet at a relay, which cost a TLS handshake each.
const MEET_PAUSE: Duration = Duration::from_millis(250);

/// A relay that is not there, or does not serve the pair, for so long: the next plan may have another.
const RELAY_PATIENCE: Duration = Duration::from_secs(3);

enum Event {
    Joined(WorkerId, Channel),
    /// From whom, if that is known, and why.
    Refused(Option<WorkerId>, Refusal),
    /// For too long no packet of it came through.
    Silent(WorkerId),
    /// The relay on the way to it is of no use, and why.
    NoRelay(WorkerId, String),
    Broken(String),
}

/// What the threads of one opening share.
struct Opening {
    identity: Identity,
    trust: Option<Trust>,
    /// Who may dial us and has not yet.
    wanted: Mutex<BTreeSet<WorkerId>>,
    handshakes: AtomicUsize,
    over: AtomicBool,
    deadline: Deadline,
    handshake: Duration,
    link: Duration,
}

/// One open, proven connection to each of `peers`; an address is needed for those that this worker dials.
pub(super) fn connect_all(
    (identity, trust, ways): (Identity, Option<Trust>, Ways),
    peers: &BTreeMap<WorkerId, Option<SocketAddr>>,
    listener: TcpListener,
    timeouts: &Timeouts,
    is_off: &dyn Fn() -> bool,
) -> Result<BTreeMap<WorkerId, Channel>, CommError> {
    let me = identity.me();
    let dials = |peer: WorkerId| match ways.to(peer) {
        Way::Usual | Way::Through(_) => peer < me,
        Way::Dial => true,
        Way::Await => false,
    };
    let awaited: BTreeSet<_> = peers.keys().copied().filter(|peer| !dials(*peer)).collect();
    let opening = Arc::new(Opening {
        identity,
        trust,
        wanted: Mutex::new(awaited),
        handshakes: AtomicUsize::new(0),
        over: AtomicBool::new(false),
        deadline: Deadline::after(timeouts.join),
        handshake: timeouts.handshake,
        link: timeouts.link,
    });
    let (events, inbox) = mpsc::channel();
    if !peers.is_empty() {
        // Also where nobody is to come: those who look whether this worker is there pile up elsewise.
        let (opening, events) = (Arc::clone(&opening), events.clone());
        thread::spawn(move || accept_all(&opening, &listener, &events));
    }
    for (peer, address) in peers {
        let (opening, events, peer, address) =
            (Arc::clone(&opening), events.clone(), *peer, *address);
        match (ways.to(peer), address) {
            (Way::Through(relay), _) => {
                let role = if dials(peer) { Role::Calls } else { Role::Waits };
                thread::spawn(move || meet_until_joined(&opening, (peer, role), &relay, &events));
            }
            (Way::Usual | Way::Dial, _) if dials(peer) => {
                thread::spawn(move || dial_until_joined(&opening, peer, address, &events));
            }
            (Way::Usual, Some(address)) => {
                thread::spawn(move || look_until_joined(&opening, peer, address, &events));
            }
            (Way::Usual | Way::Dial | Way::Await, _) => {}
        }
    }
    drop(events);
    let joined = gather(me, peers, &inbox, (opening.deadline, timeouts), &ways.relayed(), is_off);
    opening.over.store(true, Ordering::Release);
    joined
}

fn gather(
    me: WorkerId,
    peers: &BTreeMap<WorkerId, Option<SocketAddr>>,
    inbox: &mpsc::Receiver<Event>,
    (deadline, timeouts): (Deadline, &Timeouts),
    relayed: &BTreeSet<WorkerId>,
    is_off: &dyn Fn() -> bool,
) -> Result<BTreeMap<WorkerId, Channel>, CommError> {
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
            Some(Event::Joined(peer, channel)) => {
                joined.insert(peer, channel);
            }
            Some(Event::Refused(from, refusal)) => {
                if refusal.decided || refusals.get(&from).is_none_or(|known| !known.decided) {
                    refusals.insert(from, refusal);
                }
            }
            // Of one that has joined meanwhile it is past.
            Some(Event::Silent(peer)) if joined.contains_key(&peer) => {}
            Some(Event::Silent(peer)) => {
                let missing = format!("{peer}, from which no packet comes back");
                let (waited, silent) = (timeouts.link, vec![peer]);
                return Err(CommError::Join { me, missing, waited, silent });
            }
            Some(Event::NoRelay(peer, why)) => {
                let (missing, waited) = (format!("{peer} ({why})"), RELAY_PATIENCE);
                return Err(CommError::Join { me, missing, waited, silent: Vec::new() });
            }
            Some(Event::Broken(cause)) => return Err(CommError::Listener { me, cause }),
            None => {
                let missing = peers.keys().filter(|peer| !joined.contains_key(*peer));
                let mut silent: Vec<WorkerId> = missing.copied().collect();
                let (missing, waited) = (told(&silent, &refusals), timeouts.join);
                // Of those behind a relay this end knows nothing at first hand.
                silent.retain(|peer| !relayed.contains(peer));
                return Err(CommError::Join { me, missing, waited, silent });
            }
        }
    }
    Ok(joined)
}

/// Who is missing, each with the last thing heard.
fn told(missing: &[WorkerId], refusals: &BTreeMap<Option<WorkerId>, Refusal>) -> String {
    let missing: Vec<_> = missing
        .iter()
        .map(|peer| match refusals.get(&Some(*peer)) {
            Some(Refusal { reason, .. }) => format!("{peer} ({reason})"),
            None => peer.to_string(),
        })
        .collect();
    let mut missing = missing.join(", ");
    if let Some(Refusal { reason, .. }) = refusals.get(&None) {
        let _ = write!(missing, "; a connection was refused: {reason}");
    }
    missing
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
                        Ok((peer, channel)) => Event::Joined(peer, channel),
                        Err(refusal) => Event::Refused(None, refusal),
                    });
                });
            }
            // Also after a passing error, such as a connection that was reset in the queue.
            Err(_) => thread::park_timeout(ACCEPT_PAUSE),
        }
    }
}

fn answer(opening: &Opening, stream: TcpStream) -> Result<(WorkerId, Channel), Refusal> {
    stream.set_nonblocking(false)?;
    let deadline = opening.deadline.within(opening.handshake);
    let channel = Channel::accept(stream, opening.trust.as_ref(), deadline)?;
    let wanted = || opening.wanted.lock().unwrap_or_else(PoisonError::into_inner);
    let mut claimed = None;
    let claim = |peer| {
        if !wanted().remove(&peer) {
            return Err(format!("{peer} is connected already or hosts no cell"));
        }
        claimed = Some(peer);
        Ok(())
    };
    match handshake::accept(&channel, &opening.identity, claim, deadline) {
        Ok(peer) => Ok((peer, channel)),
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
        let dialed = dial(opening, peer, address);
        let settled = !matches!(dialed, Event::Refused(..));
        if events.send(dialed).is_err() || settled {
            return;
        }
        thread::park_timeout(DIAL_PAUSE);
    }
}

/// Both ends dial the relay; there one calls and one waits, and from then on all is as between two that dial.
fn meet_until_joined(
    opening: &Opening,
    (peer, role): (WorkerId, Role),
    relay: &Relay,
    events: &mpsc::Sender<Event>,
) {
    let is_off = || opening.over.load(Ordering::Acquire) || opening.deadline.left().is_none();
    let refused = |refusal| Event::Refused(Some(peer), refusal);
    let mut patience = Deadline::after(RELAY_PATIENCE);
    while !is_off() {
        let purpose = Purpose::Data(opening.identity.generation());
        let no_trust = || handshake::decided("a relay is for workers with certificates".to_owned());
        let met = match &opening.trust {
            Some(trust) => relay.reach(trust, (peer, purpose, role), &is_off),
            None => Err(Unmet::Relay(no_trust())),
        };
        let event = match (met, role) {
            (Ok(stream), Role::Calls) => greet(opening, peer, stream),
            (Ok(stream), Role::Waits) => match answer(opening, stream) {
                Ok((peer, channel)) => Event::Joined(peer, channel),
                Err(refusal) => refused(refusal),
            },
            (Err(Unmet::Relay(refusal)), _) if patience.left().is_none() => {
                Event::NoRelay(peer, refusal.reason)
            }
            (Err(Unmet::Relay(refusal)), _) => refused(refusal),
            (Err(Unmet::Peer(refusal)), _) => {
                patience = Deadline::after(RELAY_PATIENCE);
                refused(refusal)
            }
        };
        let settled = !matches!(event, Event::Refused(..));
        if events.send(event).is_err() || settled {
            return;
        }
        thread::park_timeout(MEET_PAUSE);
    }
}

/// One that is to dial this worker cannot be waited for in vain: if its machine does not even answer,
/// no packet of it will come.
fn look_until_joined(
    opening: &Opening,
    peer: WorkerId,
    address: SocketAddr,
    events: &mpsc::Sender<Event>,
) {
    let waits = || {
        let wanted = opening.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.contains(&peer)
            && !opening.over.load(Ordering::Acquire)
            && opening.deadline.left().is_some()
    };
    // Most come at once. Connections are short: whoever accepts one reads its end.
    let looks = opening.link / LOOKS;
    loop {
        let mut waited = Duration::ZERO;
        while waited < looks && waits() {
            thread::park_timeout(DIAL_PAUSE);
            waited += DIAL_PAUSE;
        }
        if !waits() {
            return;
        }
        let looked = TcpStream::connect_timeout(&address, looks * (LOOKS - 1));
        if looked.is_err_and(|error| is_silence(&error)) {
            let _ = events.send(Event::Silent(peer));
            return;
        }
    }
}

fn dial(opening: &Opening, peer: WorkerId, address: Option<SocketAddr>) -> Event {
    let refused = |reason: String| Event::Refused(Some(peer), reason.into());
    let Some(address) = address else { return refused("its address is not known".to_owned()) };
    let Some(left) = opening.deadline.left() else { return refused("no time is left".to_owned()) };
    let connected = TcpStream::connect_timeout(&address, left.min(opening.link));
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) if is_silence(&error) && left > opening.link => return Event::Silent(peer),
        Err(error) => return refused(format!("connecting to {address}: {error}")),
    };
    greet(opening, peer, stream)
}

/// Of a connection to the peer, dialed or over a relay.
fn greet(opening: &Opening, peer: WorkerId, stream: TcpStream) -> Event {
    let deadline = opening.deadline.within(opening.handshake);
    let dialed =
        Channel::dial(stream, opening.trust.as_ref(), peer, deadline).and_then(|channel| {
            handshake::dial(&channel, &opening.identity, peer, deadline)?;
            Ok(channel)
        });
    match dialed {
        Ok(channel) => Event::Joined(peer, channel),
        Err(refusal) => Event::Refused(Some(peer), refusal),
    }
}
