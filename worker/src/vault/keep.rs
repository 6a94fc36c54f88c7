//! The thread that hashes and stores what cells leave behind, one snapshot after the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, WorkerId};
use shoal_plan::standing::Standing;

use super::copies::Copy;
use super::store::Snapshot;
use super::{Shared, lock};

/// A filled buffer. At most one of each own cell at a time: cells ask `Vault::is_busy` before.
pub(super) struct Job {
    pub(super) generation: Generation,
    pub(super) cell: CellId,
    pub(super) standing: Standing,
    pub(super) bytes: Vec<u8>,
    pub(super) targets: BTreeMap<WorkerId, SocketAddr>,
}

/// Until the vault's last handle is gone.
pub(super) fn run(shared: &Arc<Shared>, jobs: &Receiver<Job>, copies: &Sender<Copy>) {
    while let Ok(Job { generation, cell, standing, bytes, targets }) = jobs.recv() {
        let snapshot = Snapshot { standing, blake3: blake3::hash(&bytes), bytes };
        match lock(&shared.store).put(generation, cell, snapshot) {
            Ok(snapshot) => {
                shared.tell(generation, cell, &snapshot.standing, snapshot.blake3);
                if targets.is_empty() {
                    shared.done(generation, cell);
                } else {
                    drop(copies.send(Copy { generation, cell, snapshot, targets }));
                }
            }
            // The next plan has begun.
            Err(why) => {
                tracing::debug!(%cell, step = standing.step, why, "a snapshot came too late");
            }
        }
    }
}
