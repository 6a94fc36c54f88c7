//! Vaults of which not both can dial the other. Where only one can, that one calls and waits to be asked; the other
//! keeps that connection, and asks over it where it would have dialed. Where neither can, each waits at a relay for
//! the other's call. So anybody puts and gets as ever.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, WorkerId};
use shoal_plan::standing::Standing;
use shoal_proto::relay::{Purpose, Role};

use super::wire::{Fault, Head, Kind, Line};
use super::{Shared, lock};
use crate::comm::channel::Channel;
use crate::comm::mesh::notice_silence;
use crate::comm::relayed::Relay;
use crate::comm::way::Call;

/// Between two calls that came to nothing: longer each time.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Connections over which this worker may ask: the newest of each peer.
#[derive(Default)]
pub(super) struct Waiting {
    channels: Mutex<BTreeMap<WorkerId, Channel>>,
    came: Condvar,
}

impl Waiting {
    pub(super) fn put(&self, peer: WorkerId, channel: Channel) {
        drop(lock(&self.channels).insert(peer, channel));
        self.came.notify_all();
    }

    /// The one of a peer, which calls again once it was asked something.
    pub(super) fn take(&self, peer: WorkerId, patience: Duration) -> Option<Channel> {
        let missing = |channels: &mut BTreeMap<_, _>| !channels.contains_key(&peer);
        let channels = lock(&self.channels);
        let waited = self.came.wait_timeout_while(channels, patience, missing);
        let (mut channels, _) = waited.unwrap_or_else(PoisonError::into_inner);
        channels.remove(&peer)
    }
}

/// Whom this worker calls, where, and whether it should any longer.
pub(super) type Calls = BTreeMap<WorkerId, (Call, Arc<AtomicBool>)>;

impl Shared {
    /// From now on calls at these peers, and at no others.
    pub(super) fn call_at(self: &Arc<Self>, peers: &BTreeMap<WorkerId, Call>) {
        let mut calls = lock(&self.calls);
        calls.retain(|peer, (call, wanted)| {
            let stays = peers.get(peer) == Some(call);
            wanted.store(stays, Ordering::Release);
            stays
        });
        for (peer, call) in peers.iter().map(|(peer, call)| (*peer, call.clone())) {
            if calls.contains_key(&peer) {
                continue;
            }
            let (shared, wanted) = (Arc::clone(self), Arc::new(AtomicBool::new(true)));
            let (still, at) = (Arc::clone(&wanted), call.clone());
            let calling = move || shared.call_again_and_again((peer, &at), &still);
            match thread::Builder::new().name("vault-call".to_owned()).spawn(calling) {
                Ok(_) => drop(calls.insert(peer, (call, wanted))),
                // The next plan tries again; copies that cannot be had meanwhile are said to be missing.
                Err(error) => tracing::warn!(%peer, %error, "no thread to call at it"),
            }
        }
    }

    fn call_again_and_again(
        self: &Arc<Self>,
        (peer, call): (WorkerId, &Call),
        wanted: &AtomicBool,
    ) {
        let is_off = || self.is_over() || !wanted.load(Ordering::Acquire);
        let mut pause = PAUSE;
        while !is_off() {
            let asked = match call {
                Call::At(address) => self.wait_there((peer, *address), &is_off),
                Call::Through(relay) => self.wait_at_a_relay((peer, relay), &is_off),
            };
            match asked {
                Ok(()) => pause = PAUSE,
                Err(fault) => {
                    tracing::debug!(%peer, ?fault, "it asks for nothing");
                    thread::park_timeout(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Calls at the peer, until it asks something, which is answered beside the next call.
    fn wait_there(
        self: &Arc<Self>,
        (peer, address): (WorkerId, SocketAddr),
        is_off: &dyn Fn() -> bool,
    ) -> Result<(), Fault> {
        let lost = |error: std::io::Error| Fault::Lost(error.to_string());
        let channel = self.dial(peer, address)?;
        let mut line = Line::new(&channel, is_off)?;
        line.send_head(&waits())?;
        line.verdict()?;
        // A peer whose packets vanish asks for nothing, either: only the system can tell.
        notice_silence(channel.stream()).map_err(lost)?;
        let head = line.wait_for_head()?;
        let shared = Arc::clone(self);
        let answer = move || shared.answer_asked(peer, &channel, &head);
        let spawned = thread::Builder::new().name("vault-talk".to_owned()).spawn(answer);
        spawned.map(drop).map_err(lost)
    }

    /// The same at a relay: whoever comes proves who it is as if it had dialed.
    fn wait_at_a_relay(
        self: &Arc<Self>,
        (peer, relay): (WorkerId, &Relay),
        is_off: &dyn Fn() -> bool,
    ) -> Result<(), Fault> {
        let trust = lock(&self.trust).clone();
        let trust = trust.ok_or_else(|| Fault::Refused("no certificates".to_owned()))?;
        let met = relay.reach(&trust, (peer, Purpose::Vault, Role::Waits), is_off);
        self.converse_beside(met.map_err(|unmet| Fault::Lost(unmet.refusal().reason))?);
        Ok(())
    }

    fn answer_asked(&self, peer: WorkerId, channel: &Channel, head: &Head) {
        let is_over = || self.is_over();
        let answered = Line::new(channel, &is_over)
            .and_then(|mut line| self.answer(&mut line, peer, head).map(drop));
        if let Err(fault) = answered {
            tracing::debug!(%peer, ?fault, "a conversation ended early");
        }
    }
}

/// Asks for nothing, and waits.
fn waits() -> Head {
    let (generation, cell, standing) = (Generation(0), CellId(0), Standing::default());
    let blake3 = blake3::Hash::from_bytes([0; 32]);
    Head { kind: Kind::Wait, generation, cell, standing, bytes: 0, blake3 }
}
