//! The side of a vault that answers: takes copies that other workers send, and gives what it holds.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use shoal_plan::plan::WorkerId;

use super::store::Snapshot;
use super::wire::{Fault, Head, Kind, Line};
use super::{Shared, lock};
use crate::comm::channel::Channel;
use crate::comm::deadline::Deadline;
use crate::comm::handshake;
use crate::comm::way::Way;

/// Conversations at a time. Connections beyond are closed unread.
const CONVERSATIONS_MAX: usize = 64;

/// A stranger who stalls is cut off then.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// After an error of the listener, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// Until the vault's last handle is gone.
pub(super) fn accept_all(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let accepted = listener.accept();
        if shared.is_over() {
            return;
        }
        let Ok((stream, _)) = accepted else {
            thread::park_timeout(PAUSE);
            continue;
        };
        shared.converse_beside(stream);
    }
}

/// What becomes of a connection.
pub(super) enum Then {
    Over,
    /// This side may ask over it.
    Asks,
}

impl Shared {
    /// On a thread of its own; one connection too many is closed unread.
    pub(super) fn converse_beside(self: &Arc<Self>, stream: TcpStream) {
        if self.talks.fetch_add(1, Ordering::AcqRel) >= CONVERSATIONS_MAX {
            self.talks.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let shared = Arc::clone(self);
        let talk = move || {
            shared.converse(stream);
            shared.talks.fetch_sub(1, Ordering::AcqRel);
        };
        if thread::Builder::new().name("vault-talk".to_owned()).spawn(talk).is_err() {
            self.talks.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// One connection: who it is, what it wants, and that.
    fn converse(&self, stream: TcpStream) {
        // Any member may come; whose cells it may bring is the store's to say.
        let deadline = Deadline::after(HANDSHAKE);
        let trust = lock(&self.trust).clone();
        let let_in = Channel::accept(stream, trust.as_ref(), deadline).and_then(|channel| {
            let peer = handshake::accept(&channel, &self.identity, |_| Ok(()), deadline)?;
            Ok((peer, channel))
        });
        let (peer, channel) = match let_in {
            Ok(let_in) => let_in,
            Err(refusal) => {
                return tracing::debug!(why = refusal.reason, "a visitor was not let in");
            }
        };
        let is_over = || self.is_over();
        let served = Line::new(&channel, &is_over).and_then(|mut line| {
            let head = line.recv_head()?;
            self.answer(&mut line, peer, &head)
        });
        match served {
            Ok(Then::Over) => {}
            Ok(Then::Asks) => self.waiting.put(peer, channel),
            Err(fault) => tracing::debug!(%peer, ?fault, "a conversation ended early"),
        }
    }

    /// What is asked, over a connection on which everybody knows who is who.
    pub(super) fn answer(
        &self,
        line: &mut Line<'_>,
        peer: WorkerId,
        head: &Head,
    ) -> Result<Then, Fault> {
        match head.kind {
            Kind::Put => self.take(line, peer, head)?,
            Kind::Get => self.give(line, head)?,
            Kind::Snapshot => line.refuse("an answer, want a request")?,
            Kind::Wait if lock(&self.ways).to(peer) == Way::Await => {
                line.agree()?;
                return Ok(Then::Asks);
            }
            Kind::Wait => line.refuse("it can be dialed from here, as far as the plan says")?,
        }
        Ok(Then::Over)
    }

    /// Takes a copy.
    fn take(&self, line: &mut Line<'_>, peer: WorkerId, head: &Head) -> Result<(), Fault> {
        let Head { generation, cell, standing, bytes: n_bytes, blake3, .. } = *head;
        let mut store = lock(&self.store);
        if store.terms().generation == generation && store.has(cell, standing.step, blake3) {
            drop(store);
            self.tell(generation, cell, &standing, blake3);
            return line.decline();
        }
        let taken = store.buffer(peer, (generation, cell, standing.step), n_bytes);
        drop(store);
        let mut bytes = match taken {
            Ok(bytes) => bytes,
            Err(why) => return line.refuse(&why),
        };
        bytes.resize(usize::try_from(n_bytes).unwrap_or(usize::MAX), 0);
        if let Err(fault) = line.agree().and_then(|()| line.recv_body(&mut bytes, blake3)) {
            lock(&self.store).give_back(generation, cell, bytes);
            if let Fault::Damaged { got } = &fault {
                line.refuse(&format!("it arrived damaged: blake3 {got}, want {blake3}"))?;
            }
            return Err(fault);
        }
        let stored = lock(&self.store).put(generation, cell, Snapshot { standing, blake3, bytes });
        match stored {
            Ok(_) => {
                self.tell(generation, cell, &standing, blake3);
                line.agree()
            }
            Err(why) => line.refuse(&why),
        }
    }

    /// Gives what is held.
    fn give(&self, line: &mut Line<'_>, head: &Head) -> Result<(), Fault> {
        let found = lock(&self.store).get(head.cell, head.standing.step);
        let snapshot = match found {
            Ok(snapshot) => snapshot,
            Err(why) => return line.refuse(&why),
        };
        let Snapshot { standing, blake3, ref bytes } = *snapshot;
        line.agree()?;
        let (kind, n) = (Kind::Snapshot, bytes.len() as u64);
        line.send_head(&Head { kind, standing, blake3, bytes: n, ..*head })?;
        line.send_body(bytes)
    }
}
