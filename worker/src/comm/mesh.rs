//! All workers of a generation, connected pair by pair, and the endpoints of the cells hosted here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, RunId, WorkerId};

use super::frame::Operation;
use super::handshake::Identity;
use super::link::{Failure, Outgoing, Shared};
use super::payload::{Payload, Spare};
use super::threads::WRITE_PAUSE;
use super::trust::Trust;
use super::way::Ways;
use super::{CommError, Traffic, opening};

/// Who belongs to the mesh, and how members know each other.
#[derive(Clone)]
pub struct Membership {
    pub run: RunId,
    /// Known to this run's workers only.
    pub secret: [u8; 32],
    pub generation: Generation,
    pub me: WorkerId,
    /// The host of each cell, in cell order.
    pub hosts: Vec<WorkerId>,
    /// Where each worker listens for data; its own entry is not needed.
    pub peers: BTreeMap<WorkerId, SocketAddr>,
    /// Without it connections are in clear.
    pub trust: Option<Trust>,
    /// How this worker and each other come together.
    pub ways: Ways,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("run", &self.run)
            .field("generation", &self.generation)
            .field("me", &self.me)
            .field("hosts", &self.hosts)
            .field("peers", &self.peers)
            .field("trust", &self.trust)
            .field("ways", &self.ways)
            .finish_non_exhaustive()
    }
}

/// Between two signs of life that the kernel asks of a silent peer's.
const LINK_ASKS_EVERY: Duration = Duration::from_secs(1);

/// Unanswered, so many end a connection. With the wait before the first: 4 s, within the lease that a
/// silent coordinator's link has.
const LINK_ASKS: u32 = 3;

/// For all peers to join a plan that is not the run's first. An engine that is being torn down may
/// take two seconds of it.
const JOIN_AGAIN: Duration = Duration::from_secs(10);

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For all peers to join.
    pub join: Duration,
    /// For a sign of life from a peer's machine while it has not joined: longer without one, and no
    /// packet comes through.
    pub link: Duration,
    /// For one handshake: a stranger who stalls is cut off then.
    pub handshake: Duration,
    /// For the next message of a living peer.
    pub silence: Duration,
    /// For peers to take what is still queued, when the mesh is dropped.
    pub shutdown: Duration,
}

impl Timeouts {
    /// Of a generation of the plan. At the first, workers may have to find their data; at later ones
    /// all have done so, and whoever is not there soon keeps the others waiting.
    pub fn of(generation: Generation) -> Self {
        let first = Self::default();
        if generation > Generation(1) { Self { join: JOIN_AGAIN, ..first } } else { first }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            join: Duration::from_secs(30),
            link: LINK_ASKS_EVERY * (LINK_ASKS + 1),
            handshake: Duration::from_secs(5),
            silence: Duration::from_mins(2),
            shutdown: Duration::from_secs(2),
        }
    }
}

/// An open mesh. Dropping it sends what is queued and says goodbye; it takes at most
/// `Timeouts::shutdown` (and a failed mesh a fraction of a second).
pub struct Mesh {
    shared: Arc<Shared>,
    me: WorkerId,
    shutdown: Duration,
    taken: Mutex<BTreeSet<CellId>>,
    threads: Vec<JoinHandle<()>>,
}

impl Mesh {
    /// Connects to every other host of a cell. `listener` is where this worker's own address in
    /// the plan points to; it is closed once everybody is here. A worker that hosts no cell has an
    /// empty mesh.
    pub fn open(
        membership: Membership,
        listener: TcpListener,
        timeouts: Timeouts,
    ) -> Result<Self, CommError> {
        Self::open_unless(membership, listener, timeouts, &|| false)
    }

    /// The same, but gives up soon after `is_off` says so.
    pub fn open_unless(
        membership: Membership,
        listener: TcpListener,
        timeouts: Timeouts,
        is_off: &dyn Fn() -> bool,
    ) -> Result<Self, CommError> {
        let Membership { run, secret, generation, me, hosts, peers, trust, ways } = membership;
        let mut members: BTreeSet<WorkerId> = hosts.iter().copied().collect();
        if !members.remove(&me) {
            members.clear();
        }
        let addresses = members.iter().map(|peer| (*peer, peers.get(peer).copied())).collect();
        let identity = Identity::new(&run, &secret, generation, me);
        let relayed = ways.relayed();
        let members = (identity, trust, ways);
        let channels = opening::connect_all(members, &addresses, listener, &timeouts, is_off)?;
        for (peer, channel) in &channels {
            let stream = channel.stream();
            let tuned = stream
                .set_nodelay(true)
                .and_then(|()| stream.set_read_timeout(None))
                .and_then(|()| stream.set_write_timeout(Some(WRITE_PAUSE)))
                .and_then(|()| notice_silence(stream));
            tuned.map_err(|error| CommError::Join {
                me,
                missing: format!("{peer} (its connection broke: {error})"),
                waited: Duration::ZERO,
                silent: Vec::new(),
            })?;
        }
        let shared =
            Arc::new(Shared::new(me, generation, hosts, timeouts.silence, (channels, relayed)));
        let threads = shared.peers().flat_map(|peer| spawn_threads(&shared, peer)).collect();
        Ok(Self { shared, me, shutdown: timeouts.shutdown, taken: Mutex::default(), threads })
    }

    /// The endpoint of a cell hosted here, for that cell's thread. Each can be taken once.
    pub fn endpoint(&self, cell: CellId) -> Endpoint {
        assert!(self.shared.host(cell) == self.me, "{cell} is not hosted by {}", self.me);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(taken.insert(cell), "the endpoint of {cell} was taken before");
        Endpoint {
            shared: Arc::clone(&self.shared),
            cell,
            next_sequence: BTreeMap::new(),
            traffic: Traffic::default(),
        }
    }

    /// Stops every endpoint here and, through the peers, everywhere, with this reason.
    pub fn poison(&self, reason: &str) {
        self.shared.fail(Failure::own(reason));
    }

    /// Loses all connections without a word, as if this process had died.
    #[cfg(test)]
    pub(crate) fn sever(&self) {
        self.shared.die();
    }
}

/// A link whose packets vanish looks like a peer that computes: only the kernel can tell. It asks an
/// idle peer for a sign of life, and gives a connection up whose bytes nobody acknowledges.
pub(crate) fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    let asks = socket2::TcpKeepalive::new()
        .with_time(LINK_ASKS_EVERY)
        .with_interval(LINK_ASKS_EVERY)
        .with_retries(LINK_ASKS);
    socket.set_tcp_keepalive(&asks)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(Timeouts::default().link))?;
    Ok(())
}

fn spawn_threads(shared: &Arc<Shared>, peer: WorkerId) -> [JoinHandle<()>; 2] {
    let (reader, writer) = (Arc::clone(shared), Arc::clone(shared));
    [
        thread::spawn(move || reader.read_until_over(peer)),
        thread::spawn(move || writer.write_until_over(peer)),
    ]
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.shared.close();
        self.shared.wait_and_cut(self.shutdown);
        for thread in self.threads.drain(..) {
            // Its panic has been printed; the endpoints' errors say what was lost.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("me", &self.me).finish_non_exhaustive()
    }
}

/// One cell's end of the mesh: see `Comm` for what it does.
pub struct Endpoint {
    shared: Arc<Shared>,
    cell: CellId,
    next_sequence: BTreeMap<CellId, u64>,
    traffic: Traffic,
}

impl Endpoint {
    /// Bytes moved so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    pub(super) fn id(&self) -> CellId {
        self.cell
    }

    pub(super) fn post(
        &mut self,
        operation: Operation,
        to: CellId,
        payload: Payload,
    ) -> Result<(), CommError> {
        assert!(to != self.cell, "{to} sends a message to itself");
        let n = payload.len() as u64;
        let next = self.next_sequence.entry(to).or_default();
        let sequence = *next;
        self.shared.push(Outgoing { operation, from: self.cell, to, sequence, payload })?;
        *next += 1;
        self.traffic.sent_bytes += n;
        self.traffic.sent_remote_bytes += if self.shared.is_remote(to) { n } else { 0 };
        Ok(())
    }

    pub(super) fn take(
        &mut self,
        operation: Operation,
        from: CellId,
    ) -> Result<Vec<u8>, CommError> {
        assert!(from != self.cell, "{from} waits for a message of its own");
        let bytes = self.shared.pop(operation, from, self.cell)?;
        let n = bytes.len() as u64;
        self.traffic.received_bytes += n;
        self.traffic.received_remote_bytes += if self.shared.is_remote(from) { n } else { 0 };
        Ok(bytes)
    }

    /// Where buffers come from and go back to.
    pub(super) fn spare(&self) -> &Spare {
        &self.shared.spare
    }

    /// Poisons the mesh because of what a message said.
    pub(super) fn refuse(&self, operation: Operation, from: CellId, cause: String) -> CommError {
        self.shared.fail_call(self.shared.host(from), cause, operation, self.cell)
    }

    /// What to do when this cell fails for a reason of its own: everybody else stops waiting.
    pub fn poison(&self, reason: &str) {
        self.shared.fail(Failure::own(reason));
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cell, traffic, .. } = self;
        let mut f = f.debug_struct("Endpoint");
        f.field("cell", cell).field("traffic", traffic).finish_non_exhaustive()
    }
}
