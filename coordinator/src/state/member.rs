//! One worker that has said hello, as the coordinator knows it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use shoal_plan::report::Ending;
use shoal_plan::standing::Standing;
use shoal_proto::Hello;

use super::preparing::Preparing;
use super::{ConnectionId, Phase};
use crate::metrics::WorkerState;

/// A member of the run, with cells or, as a spare, without.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, in any combination")]
pub(super) struct Member {
    pub(super) connection: ConnectionId,
    /// False after a hang-up, until its session is taken up again or it is evicted.
    pub(super) connected: bool,
    /// The coordinator was started anew, and has not heard of it since.
    pub(super) awaited: bool,
    pub(super) pid: u32,
    pub(super) address: SocketAddr,
    /// Where the snapshots in its memory are reached.
    pub(super) vault: SocketAddr,
    /// The name in its rig's certificate, in a cluster.
    #[serde(default)]
    pub(super) rig: Option<String>,
    /// On which its cells are dealt out. Not zero.
    #[serde(default = "one")]
    pub(super) devices: u32,
    pub(super) heard_ms: u64,
    /// Messages read since it joined, hellos and heartbeats not counted.
    pub(super) received: u64,
    /// It wants to hand over and go.
    pub(super) leaving: bool,
    /// Why it wants no cells for now.
    pub(super) yielding: Option<String>,
    /// What it gets ready for, while it has no cells.
    pub(super) preparing: Option<Preparing>,
    /// It had cells before, and still holds what belongs to them.
    pub(super) hosted: bool,
    /// It has cells in the plan in force. What follows is about that plan.
    pub(super) hosts: bool,
    pub(super) ready: bool,
    /// The last step it has done.
    pub(super) done: u64,
    pub(super) finished: Option<Ending>,
    /// It waits to be told from where to go on.
    pub(super) going_back: Option<Standing>,
    /// It has ended between two steps, and waits for a new plan.
    pub(super) at_edge: Option<Standing>,
}

fn one() -> u32 {
    1
}

impl Member {
    /// A newcomer, without cells.
    pub(super) fn new(
        connection: ConnectionId,
        hello: &Hello,
        rig: Option<String>,
        now_ms: u64,
    ) -> Self {
        Self {
            connection,
            connected: true,
            awaited: false,
            pid: hello.pid,
            address: hello.data_address,
            vault: hello.vault_address,
            rig,
            devices: hello.devices,
            heard_ms: now_ms,
            received: 0,
            leaving: false,
            yielding: None,
            preparing: None,
            hosted: false,
            hosts: false,
            ready: false,
            done: 0,
            finished: None,
            going_back: None,
            at_edge: None,
        }
    }

    /// Whether a hello comes from the process that this member is.
    pub(super) fn is_process_of(&self, hello: &Hello) -> bool {
        (self.pid, self.address) == (hello.pid, hello.data_address)
    }

    /// A new plan begins after `step`.
    pub(super) fn begin(&mut self, hosts: bool, step: u64) {
        self.hosted |= self.hosts;
        self.preparing = None;
        (self.hosts, self.done, self.ready) = (hosts, step, false);
        (self.finished, self.going_back, self.at_edge) = (None, None, None);
    }

    /// Whether it could host if its machine were not needed for something else.
    pub(super) fn is_only_yielding(&self) -> bool {
        self.connected && !self.leaving && self.yielding.is_some()
    }

    /// Whether it has come to some end of its plan.
    pub(super) fn has_ended(&self) -> bool {
        self.finished.is_some() || self.going_back.is_some() || self.at_edge.is_some()
    }

    pub(super) fn state(&self, phase: Phase) -> WorkerState {
        match phase {
            _ if !self.connected => WorkerState::Lost,
            Phase::Gathering | Phase::Recovering | Phase::Paused => WorkerState::Joining,
            Phase::Ended => WorkerState::Finished,
            _ if !self.hosts => WorkerState::Spare,
            _ if self.finished.is_some() => WorkerState::Finished,
            Phase::Training | Phase::Stopping | Phase::Edging => WorkerState::Training,
            Phase::Preparing if self.ready => WorkerState::Ready,
            Phase::Preparing => WorkerState::Joining,
        }
    }
}
