//! THE HARBOUR: a cluster of rigs, behind one port. Who belongs to it, which rig does what, which job is next;
//! what a run decides about training is its own coordinator's business, to which workers' calls are passed on.
//!
//! One meaning each: *cluster* (what one authority signs for), *rig* (a machine that has joined), *job* (a
//! manifest that was applied), *run* (one launch of a job), *seat* (a rig's place as a worker of a run), *launcher*
//! (the process that looks after a run, on the coordinator's machine), *token* (an invitation).

mod client;
mod clock;
pub mod dialing;
mod door;
pub mod election;
pub mod exposition;
pub mod fitness;
mod harbour;
mod launchers;
mod metrics;
pub mod probing;
mod quota;
pub mod relaying;
mod roles;
mod server;
mod standing;
pub mod state;
pub mod store;
pub mod watching;
pub mod words;

pub use client::{Attending, Client, ClientError, Wanted, join};
pub use door::Limits;
pub use harbour::{
    ClusterError, JOBS, Pulse, Running, SOCKET, STORE, Settings, StandingBy, serve, stand_by,
};
pub use launchers::{Ended, Launch, Launchers, ReadConfig};
