//! What a rig that looks after itself asks, as JSON.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The rig, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// `words::VERSION`.
    pub words: u32,
    pub version: String,
    /// What time it is there, in milliseconds of the calendar.
    pub unix_ms: u64,
}

/// How the coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub version: String,
    pub unix_ms: u64,
    /// From where its connection came.
    pub address: IpAddr,
    /// For what it would be refused, in full sentences.
    pub objections: Vec<String>,
}

/// Another rig that is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    pub name: String,
    pub address: Option<IpAddr>,
    /// Where it lets itself be probed.
    pub probe_port: Option<u16>,
}

/// What came of trying to reach another rig.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    pub rig: String,
    pub reached: bool,
}
