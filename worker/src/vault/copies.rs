//! From vault to vault: a thread that sends this worker's snapshots to those who hold copies, and
//! the fetching of one that is needed here.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, WorkerId};
use shoal_plan::standing::Standing;
use shoal_proto::Source;
use shoal_proto::relay::{Purpose, Role};

use super::store::Snapshot;
use super::wire::{Fault, Head, Kind, Line, PATIENCE};
use super::{Shared, Vault, VaultError, lock};
use crate::comm::channel::Channel;
use crate::comm::deadline::Deadline;
use crate::comm::handshake::{self, Refusal};
use crate::comm::way::Way;

/// For connecting, and as much for the handshake.
const CONNECT: Duration = Duration::from_secs(2);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// A copy that failed so often is given up, and a snapshot that arrived damaged so often is.
const TRIES: u32 = 3;

/// A stored snapshot and who is to hold it, too.
pub(super) struct Copy {
    pub(super) generation: Generation,
    pub(super) cell: CellId,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) targets: BTreeMap<WorkerId, SocketAddr>,
}

/// Sends one after the other until the vault's last handle is gone.
pub(super) fn run(shared: &Arc<Shared>, copies: &Receiver<Copy>) {
    while let Ok(copy) = copies.recv() {
        for (worker, address) in &copy.targets {
            shared.copy(&copy, *worker, *address);
        }
        let Copy { generation, cell, .. } = copy;
        // The buffer is free before the next snapshot looks for one.
        drop(copy);
        shared.done(generation, cell);
    }
}

impl Shared {
    /// Sends one copy, and says so where that fails.
    fn copy(&self, copy: &Copy, worker: WorkerId, address: SocketAddr) {
        for _ in 0..TRIES {
            let error = match self.put(copy, worker, address) {
                Ok(()) => return,
                Err(error) => error,
            };
            if self.is_past(copy.generation) {
                return;
            }
            tracing::warn!(%error, "a copy was not taken");
            thread::park_timeout(PAUSE);
        }
        let (cell, step) = (copy.cell, copy.snapshot.standing.step);
        tracing::warn!(%cell, step, %worker, "the snapshot goes without this copy");
    }

    fn put(&self, copy: &Copy, worker: WorkerId, address: SocketAddr) -> Result<(), VaultError> {
        let Copy { generation, cell, ref snapshot, .. } = *copy;
        let Snapshot { standing, blake3, ref bytes } = **snapshot;
        let is_over = || self.is_past(generation);
        let send = || {
            let channel = self.reach(worker, address)?;
            let mut line = Line::new(&channel, &is_over)?;
            let (kind, n) = (Kind::Put, bytes.len() as u64);
            line.send_head(&Head { kind, generation, cell, standing, bytes: n, blake3 })?;
            line.verdict()?;
            line.send_body(bytes)?;
            line.verdict()
        };
        let sent = match send() {
            Err(Fault::Needless) => Ok(()),
            sent => sent,
        };
        sent.map_err(|fault| fault.told((worker, address), (cell, standing.step), blake3))
    }

    /// A connection on which a worker's vault answers.
    fn reach(&self, worker: WorkerId, address: SocketAddr) -> Result<Channel, Fault> {
        let way = lock(&self.ways).to(worker);
        match way {
            Way::Usual | Way::Dial => self.dial(worker, address),
            Way::Through(relay) => {
                let trust = lock(&self.trust).clone();
                let trust = trust.ok_or_else(|| Fault::Refused("no certificates".to_owned()))?;
                let deadline = Deadline::after(CONNECT * 3);
                let is_off = || self.is_over() || deadline.left().is_none();
                let met = relay.reach(&trust, (worker, Purpose::Vault, Role::Calls), &is_off);
                self.greet(worker, met.map_err(|unmet| fault(unmet.refusal()))?)
            }
            Way::Await => self.waiting.take(worker, CONNECT).ok_or_else(|| {
                let waited = CONNECT.as_secs();
                Fault::Lost(format!("it cannot be dialed, and has not called for {waited} s"))
            }),
        }
    }

    /// A connection to a worker's vault, past the handshake.
    pub(super) fn dial(&self, worker: WorkerId, address: SocketAddr) -> Result<Channel, Fault> {
        let lost = |error: &dyn std::fmt::Display| Fault::Lost(error.to_string());
        let stream = TcpStream::connect_timeout(&address, CONNECT).map_err(|error| lost(&error))?;
        self.greet(worker, stream)
    }

    fn greet(&self, worker: WorkerId, stream: TcpStream) -> Result<Channel, Fault> {
        let deadline = Deadline::after(CONNECT);
        let trust = lock(&self.trust).clone();
        let greeted = Channel::dial(stream, trust.as_ref(), worker, deadline).and_then(|channel| {
            handshake::dial(&channel, &self.identity, worker, deadline)?;
            Ok(channel)
        });
        greeted.map_err(fault)
    }

    /// One try to get a snapshot from another worker's vault.
    fn get(
        &self,
        (worker, address): (WorkerId, SocketAddr),
        wanted: &Head,
        n_bytes: u64,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Snapshot, Fault> {
        let channel = self.reach(worker, address)?;
        let mut line = Line::new(&channel, is_over)?;
        line.send_head(wanted)?;
        line.verdict()?;
        let head = line.recv_head()?;
        if head.blake3 != wanted.blake3 || head.standing.step != wanted.standing.step {
            return Err(Fault::Damaged { got: head.blake3 });
        }
        if head.bytes != n_bytes {
            let got = head.bytes;
            return Err(Fault::Refused(format!("it has {got} bytes of it, want {n_bytes}")));
        }
        let mut bytes = vec![0; usize::try_from(n_bytes).unwrap_or(usize::MAX)];
        line.recv_body(&mut bytes, head.blake3)?;
        Ok(Snapshot { standing: head.standing, blake3: head.blake3, bytes })
    }
}

impl Vault {
    /// The snapshot from which an own cell starts, of `n_bytes` bytes: from this worker's memory if
    /// it is there, otherwise from its source at `address`, tried again while there is hope. It is
    /// held here afterwards. Returns early when `is_over` says so.
    pub(crate) fn fetch(
        &self,
        (generation, cell, standing): (Generation, CellId, Standing),
        (source, address): (&Source, Option<SocketAddr>),
        n_bytes: u64,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Arc<Snapshot>, VaultError> {
        let (what, step) = ((generation, standing), standing.step);
        let snapshot = self.look((source, address), what, n_bytes, is_over)?;
        let adopted = lock(&self.0.shared.store).adopt(generation, cell, &snapshot);
        adopted.map_err(|why| VaultError::NotTaken { cell, step, why })?;
        Ok(snapshot)
    }

    /// A snapshot of any plan, from this worker's memory or from its source: only looked at, and held
    /// nowhere afterwards.
    pub(crate) fn look(
        &self,
        (source, address): (&Source, Option<SocketAddr>),
        what: (Generation, Standing),
        n_bytes: u64,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Arc<Snapshot>, VaultError> {
        let shared = &self.0.shared;
        let here = lock(&shared.store).get(source.cell, what.1.step).ok();
        if let Some(here) = here.filter(|here| *here.blake3.to_hex() == *source.blake3) {
            return Ok(here);
        }
        let (worker, cell) = (source.worker, source.cell);
        let address = address.ok_or(VaultError::NoAddress { worker, cell })?;
        Ok(Arc::new(shared.fetch((source, address), what, n_bytes, is_over)?))
    }
}

impl Shared {
    fn fetch(
        &self,
        (source, address): (&Source, SocketAddr),
        (generation, standing): (Generation, Standing),
        n_bytes: u64,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Snapshot, VaultError> {
        let (worker, cell, step) = (source.worker, source.cell, standing.step);
        let Ok(blake3) = blake3::Hash::from_hex(&source.blake3) else {
            let why = format!("{:?} is no blake3", source.blake3);
            return Err(VaultError::NotTaken { cell, step, why });
        };
        let wanted = Head { kind: Kind::Get, generation, cell, standing, bytes: 0, blake3 };
        let patience = Deadline::after(PATIENCE);
        let mut damaged = 0;
        loop {
            let fault = match self.get((worker, address), &wanted, n_bytes, is_over) {
                Ok(snapshot) => return Ok(snapshot),
                Err(fault) => fault,
            };
            let again = match &fault {
                Fault::Lost(_) => patience.left().is_some(),
                Fault::Damaged { .. } => {
                    damaged += 1;
                    damaged < TRIES
                }
                Fault::Refused(_) | Fault::Needless | Fault::Stopped => false,
            };
            if !again || is_over() {
                return Err(fault.told((worker, address), (cell, step), blake3));
            }
            thread::park_timeout(PAUSE);
        }
    }
}

fn fault(refusal: Refusal) -> Fault {
    let told = if refusal.decided { Fault::Refused } else { Fault::Lost };
    told(refusal.reason)
}

impl Fault {
    fn told(
        self,
        (worker, address): (WorkerId, SocketAddr),
        (cell, step): (CellId, u64),
        want: blake3::Hash,
    ) -> VaultError {
        match self {
            Self::Refused(why) => VaultError::Refused { worker, cell, step, why },
            Self::Lost(cause) => VaultError::Lost { worker, address, cell, step, cause },
            Self::Damaged { got } => {
                let (got, want) = (got.to_hex().to_string(), want.to_hex().to_string());
                VaultError::Damaged { worker, cell, step, got, want }
            }
            Self::Needless | Self::Stopped => VaultError::Stopped { cell },
        }
    }
}
