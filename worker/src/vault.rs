//! Snapshots in a worker's memory: the state of its cells after some steps, and copies of others'.
//! A vault outlives the engines that fill it, so that a run that loses a worker goes on from here.
//!
//! A cell's thread writes its state into a buffer and goes on with the next step; `keep` hashes and
//! stores it on a thread of its own, `copies` sends it to the workers that hold copies of it. While
//! that is under way `is_busy` says so, and all cells pass the next snapshot over (`engine/vote.rs`):
//! nothing queues up.
//!
//! Anybody of the run may ask for what is held (`serve`), whatever generation it is at. Who does not
//! know the run's secret is refused before anything is allocated for it. Bytes travel in TLS where workers
//! have certificates, and in clear on loopback otherwise, as on the data plane.

mod copies;
mod keep;
#[cfg(test)]
mod proof;
mod serve;
mod standing;
mod store;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, RunId, WorkerId};
use shoal_plan::standing::Standing;
use shoal_proto::Secret;
use shoal_trust::Name;
use tokio::sync::mpsc::UnboundedSender;

use crate::comm::handshake::Identity;
use crate::comm::trust::Trust;
use crate::comm::way::Ways;
use standing::{Calls, Waiting};
use store::Store;
pub(crate) use store::{Snapshot, Terms};

/// A snapshot is in this worker's memory: its own cell's, or a copy of another's.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Of the plan under which it was made.
    pub generation: Generation,
    pub standing: Standing,
    pub cell: CellId,
    /// In lower-case hexadecimal.
    pub blake3: String,
}

/// Why a snapshot could not be stored or had.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// This worker's own vault does not take it.
    #[error("the snapshot of {cell} after step {step} was not stored: {why}")]
    NotTaken { cell: CellId, step: u64, why: String },

    #[error("no address is known for the memory of {worker}, which holds {cell}")]
    NoAddress { worker: WorkerId, cell: CellId },

    #[error("{worker} refused the snapshot of {cell} after step {step}: {why}")]
    Refused { worker: WorkerId, cell: CellId, step: u64, why: String },

    #[error(
        "{worker} at {address} was lost while the snapshot of {cell} after step {step} was under \
         way: {cause}"
    )]
    Lost { worker: WorkerId, address: SocketAddr, cell: CellId, step: u64, cause: String },

    #[error(
        "the snapshot of {cell} after step {step} from {worker} is damaged: blake3 {got}, want {want}"
    )]
    Damaged { worker: WorkerId, cell: CellId, step: u64, got: String, want: String },

    /// The engine that wanted it is being torn down.
    #[error("the snapshot of {cell} is no longer wanted")]
    Stopped { cell: CellId },
}

/// A worker's vault. Clones are the same vault; it closes with the last of them.
#[derive(Clone)]
pub struct Vault(Arc<Owner>);

/// Stops the threads when the last handle goes.
struct Owner {
    shared: Arc<Shared>,
    /// Where cells leave what is to be stored.
    keep: Mutex<Sender<keep::Job>>,
    /// Where a copy is left that is to be made of what is stored already.
    copy: Mutex<Sender<copies::Copy>>,
    address: SocketAddr,
}

/// What handles and threads share.
struct Shared {
    identity: Identity,
    /// With the names of all plans so far.
    trust: Mutex<Option<Trust>>,
    /// How this worker and each other come together, by the newest plan.
    ways: Mutex<Ways>,
    /// Peers that cannot be dialed, and have called.
    waiting: Waiting,
    /// Peers that cannot dial this worker, and where it waits for what they ask.
    calls: Mutex<Calls>,
    /// Conversations under way.
    talks: AtomicUsize,
    me: WorkerId,
    store: Mutex<Store>,
    /// Own cells whose newest snapshot is not stored and copied yet.
    busy: Mutex<BTreeMap<CellId, Generation>>,
    over: AtomicBool,
    events: UnboundedSender<Held>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics between two changes that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vault {
    /// Listens at `bind`, on any free port where that is 0. What comes to be held is told through `events`.
    pub fn open(
        run: &RunId,
        secret: &Secret,
        me: WorkerId,
        (bind, trust): (SocketAddr, Option<Trust>),
        events: UnboundedSender<Held>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(bind)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            identity: Identity::of_vault(run, secret.bytes(), me),
            trust: Mutex::new(trust),
            ways: Mutex::default(),
            waiting: Waiting::default(),
            calls: Mutex::default(),
            talks: AtomicUsize::new(0),
            me,
            store: Mutex::new(Store::new()),
            busy: Mutex::default(),
            over: AtomicBool::new(false),
            events,
        });
        let (keep, kept) = channel();
        let (copy, copied) = channel();
        let copies = Mutex::new(copy.clone());
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        let server = Arc::clone(&shared);
        named("vault-serve").spawn(move || serve::accept_all(&server, &listener))?;
        let keeper = Arc::clone(&shared);
        named("vault-keep").spawn(move || keep::run(&keeper, &kept, &copy))?;
        let copier = Arc::clone(&shared);
        named("vault-copy").spawn(move || copies::run(&copier, &copied))?;
        Ok(Self(Arc::new(Owner { shared, keep: Mutex::new(keep), copy: copies, address })))
    }

    /// Where it listens: where the other workers reach it, unless that is any address.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Who is who in a plan that is in force, or may come, and how they come together.
    pub(crate) fn meet(
        &self,
        names: &BTreeMap<WorkerId, Name>,
        ways: &Ways,
        vaults: &BTreeMap<WorkerId, SocketAddr>,
    ) {
        let shared = &self.0.shared;
        let mut trust = lock(&shared.trust);
        *trust = trust.take().map(|trust| trust.naming(names));
        drop(trust);
        ways.clone_into(&mut lock(&shared.ways));
        shared.call_at(&ways.calls(vaults));
    }

    /// A new plan: from now on snapshots of its generation alone are taken, and what it cannot go on
    /// from is dropped.
    pub(crate) fn begin(&self, terms: Terms) {
        lock(&self.0.shared.store).begin(terms);
    }

    /// Gives back all memory: others hold what was held here.
    pub(crate) fn clear(&self) {
        lock(&self.0.shared.store).clear();
    }

    /// Whether the newest snapshot of an own cell is still on its way into this memory or others'.
    pub(crate) fn is_busy(&self, generation: Generation, cell: CellId) -> bool {
        lock(&self.0.shared.busy).get(&cell) == Some(&generation)
    }

    /// Takes a snapshot of an own cell: `fill` writes its state, of `bytes` bytes, into a buffer,
    /// which is all that the caller waits for. It is then stored, and copied to `targets`.
    pub(crate) fn snapshot(
        &self,
        (generation, cell, standing): (Generation, CellId, Standing),
        bytes: u64,
        targets: &BTreeMap<WorkerId, SocketAddr>,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), VaultError> {
        let shared = &self.0.shared;
        let bytes = shared.filled((generation, cell, standing.step), bytes, fill)?;
        lock(&shared.busy).insert(cell, generation);
        let job = keep::Job { generation, cell, standing, bytes, targets: targets.clone() };
        // The thread lives as long as this handle.
        drop(lock(&self.0.keep).send(job));
        Ok(())
    }

    /// Copies an own cell's snapshot that is held here to `targets`, which may have it already.
    pub(crate) fn copy(
        &self,
        (generation, cell, _): (Generation, CellId, Standing),
        snapshot: Arc<Snapshot>,
        targets: &BTreeMap<WorkerId, SocketAddr>,
    ) {
        if targets.is_empty() {
            return;
        }
        lock(&self.0.shared.busy).insert(cell, generation);
        let copy = copies::Copy { generation, cell, snapshot, targets: targets.clone() };
        drop(lock(&self.0.copy).send(copy));
    }

    /// As `snapshot`, but stored before the return, told to nobody, and copied nowhere.
    pub(crate) fn store(
        &self,
        (generation, cell, standing): (Generation, CellId, Standing),
        bytes: u64,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Arc<Snapshot>, VaultError> {
        let shared = &self.0.shared;
        let step = standing.step;
        let bytes = shared.filled((generation, cell, step), bytes, fill)?;
        let snapshot = Snapshot { standing, blake3: blake3::hash(&bytes), bytes };
        let stored = lock(&shared.store).put(generation, cell, snapshot);
        stored.map_err(|why| VaultError::NotTaken { cell, step, why })
    }
}

impl Shared {
    /// A buffer for this worker's own cell, filled.
    fn filled(
        &self,
        (generation, cell, step): (Generation, CellId, u64),
        bytes: u64,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<u8>, VaultError> {
        let taken = lock(&self.store).buffer(self.me, (generation, cell, step), bytes);
        let mut buffer = taken.map_err(|why| VaultError::NotTaken { cell, step, why })?;
        fill(&mut buffer);
        assert_eq!(buffer.len() as u64, bytes, "the state of {cell} is as long as its layout says");
        Ok(buffer)
    }

    /// Tells the daemon. It is gone only when the process ends.
    fn tell(
        &self,
        generation: Generation,
        cell: CellId,
        standing: &Standing,
        blake3: blake3::Hash,
    ) {
        let (standing, blake3) = (*standing, blake3.to_hex().to_string());
        drop(self.events.send(Held { generation, standing, cell, blake3 }));
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Whether what was begun under a plan is no longer of use.
    fn is_past(&self, generation: Generation) -> bool {
        self.is_over() || lock(&self.store).terms().generation != generation
    }

    /// An own cell's newest snapshot is where it should be, or given up.
    fn done(&self, generation: Generation, cell: CellId) {
        let mut busy = lock(&self.busy);
        if busy.get(&cell) == Some(&generation) {
            busy.remove(&cell);
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        // The listener's thread wakes up and looks.
        let mut address = self.address;
        if address.ip().is_unspecified() {
            let v4 = address.is_ipv4();
            let here = if v4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            address.set_ip(here);
        }
        drop(TcpStream::connect(address));
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("me", &self.0.shared.me).finish_non_exhaustive()
    }
}
