//! A fleet: the rigs somebody has or means to buy, where they stand, and what power and rent cost. One
//! YAML file beside the manifest (`kind: Fleet`), read by the manifest's reader, with its errors.

mod rate;
mod read;
mod reference;
mod what_if;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gpus::{self, Gpu};

pub use rate::Rate;
pub use read::parse;
pub use reference::{REFERENCE_FILE, SCHEMA_FILE, reference, schema};
pub use what_if::{WhatIfError, what_if};

/// `kind` of a fleet's file.
pub const KIND: &str = "Fleet";

/// The most machines of a fleet.
pub const MACHINES_MAX: u32 = 100_000;

/// `spec` of a fleet's file, checked: every rig's GPU is in the catalogue, every name is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// What prices are in; only printed.
    #[serde(default = "usd")]
    pub currency: String,
    /// Places, by name. A rig that names none stands at the site `home`.
    #[serde(default)]
    pub sites: BTreeMap<String, Site>,
    /// Machines, or several alike.
    pub rigs: Vec<Rig>,
    /// Links between two sites that are not their ways to the internet.
    #[serde(default)]
    pub links: Vec<SiteLink>,
}

/// A place: rigs of one site share a switch, and a way out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// To the other sites, in each direction, shared by all rigs of the site.
    #[serde(default = "Site::uplink")]
    pub uplink: Rate,
    /// Round trip to the other sites.
    #[serde(default = "Site::rtt_ms")]
    pub rtt_ms: f64,
    /// Round trip between two rigs of the site.
    #[serde(default = "Site::lan_rtt_ms")]
    pub lan_rtt_ms: f64,
    /// Price of a kilowatt-hour.
    #[serde(default)]
    pub electricity_per_kwh: f64,
}

/// One machine, or several alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rig {
    /// Names it in the plan.
    pub name: String,
    /// A name of the catalogue, such as RTX4090.
    pub gpu: String,
    /// GPUs of one machine.
    #[serde(default = "one")]
    pub count: u32,
    /// Machines like this one.
    #[serde(default = "one")]
    pub machines: u32,
    /// Where it stands.
    #[serde(default = "home")]
    pub site: String,
    /// Its network interfaces together, in each direction, shared by its GPUs.
    #[serde(default = "Rig::nic")]
    pub nic: Rate,
    /// Whether rigs of other sites can dial it; two that cannot be dialed need a relay, or a line in `links`.
    #[serde(default)]
    pub reach: Reach,
    /// Whether the network moves GPU memory without the CPU (`InfiniBand`, RoCE).
    #[serde(default)]
    pub rdma: bool,
    /// Memory of the machine, where snapshots are kept.
    #[serde(default = "Rig::host_memory_gb")]
    pub host_memory_gb: f64,
    /// Bandwidth of that memory: what GPUs without a direct way to each other share.
    #[serde(default = "Rig::host_memory_gb_s")]
    pub host_memory_gb_s: f64,
    /// What the machine draws beside its GPUs.
    #[serde(default = "Rig::host_watts")]
    pub host_watts: f64,
    /// Price of one GPU for an hour, where it is rented.
    #[serde(default)]
    pub rent_per_gpu_hour: f64,
    /// The share of the time it is there.
    #[serde(default = "Rig::availability")]
    pub availability: f64,
    /// What was measured, instead of the catalogue's figures.
    #[serde(default)]
    pub measured: Measured,
}

/// Who can dial a rig.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Everybody.
    #[default]
    Open,
    /// Rigs of its own site: a router translates addresses.
    Outbound,
}

/// Measured figures of a rig. null: the catalogue's, times the stated efficiency.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Of one GPU in a large BF16 product: what it really does.
    pub bf16_tflops: Option<f64>,
    /// The same in FP8 with 128-wide scales.
    pub fp8_tflops: Option<f64>,
    /// Of a GPU's memory, in a large copy.
    pub memory_gb_s: Option<f64>,
    /// Of an all-to-all inside the machine: what one GPU sends while it receives as much.
    pub peers_gb_s: Option<f64>,
    /// Of one GPU that is free for training.
    pub free_gib: Option<f64>,
}

/// A link between two sites.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteLink {
    /// The two sites.
    pub between: Vec<String>,
    /// In each direction.
    pub rate: Rate,
    /// Round trip.
    pub rtt_ms: f64,
}

fn usd() -> String {
    "USD".to_owned()
}

fn home() -> String {
    "home".to_owned()
}

fn one() -> u32 {
    1
}

/// Defaults. Of a home: 100 Mbit/s to the world, a millisecond or less to the next rig.
impl Site {
    fn uplink() -> Rate {
        Rate::from_bits_per_s(100e6)
    }

    fn rtt_ms() -> f64 {
        30.0
    }

    fn lan_rtt_ms() -> f64 {
        0.2
    }
}

impl Default for Site {
    fn default() -> Self {
        Self {
            uplink: Self::uplink(),
            rtt_ms: Self::rtt_ms(),
            lan_rtt_ms: Self::lan_rtt_ms(),
            electricity_per_kwh: 0.0,
        }
    }
}

/// Defaults. Of a desktop: 1 Gbit/s, and two channels of DDR5-5600, 89.6 GB/s at its peak, of which a
/// copy gets about two thirds.
impl Rig {
    fn nic() -> Rate {
        Rate::from_bits_per_s(1e9)
    }

    fn host_memory_gb() -> f64 {
        64.0
    }

    fn host_memory_gb_s() -> f64 {
        60.0
    }

    fn host_watts() -> f64 {
        100.0
    }

    fn availability() -> f64 {
        1.0
    }

    /// Its card in the catalogue.
    pub fn card(&self) -> &'static Gpu {
        gpus::find(&self.gpu).expect("a fleet that exists was checked").1
    }

    /// GPUs of all its machines.
    pub fn gpus(&self) -> u32 {
        self.count * self.machines
    }

    /// A rig with every default.
    pub fn new(name: &str, gpu: &str, count: u32) -> Self {
        Self {
            name: name.to_owned(),
            gpu: gpu.to_owned(),
            count,
            machines: 1,
            site: home(),
            nic: Self::nic(),
            reach: Reach::Open,
            rdma: false,
            host_memory_gb: Self::host_memory_gb(),
            host_memory_gb_s: Self::host_memory_gb_s(),
            host_watts: Self::host_watts(),
            rent_per_gpu_hour: 0.0,
            availability: 1.0,
            measured: Measured::default(),
        }
    }
}

impl Fleet {
    /// Rigs at one site, with every default.
    pub fn of(rigs: Vec<Rig>) -> Self {
        let sites = BTreeMap::from([(home(), Site::default())]);
        Self { currency: usd(), sites, rigs, links: Vec::new() }
    }

    /// GPUs of all rigs.
    pub fn gpus(&self) -> u32 {
        self.rigs.iter().map(Rig::gpus).sum()
    }

    /// The place where a rig stands.
    pub fn site(&self, name: &str) -> &Site {
        self.sites.get(name).expect("a fleet that exists was checked")
    }

    /// The place among `links` of a line between two sites.
    pub fn line(&self, a: &str, b: &str) -> Option<usize> {
        let has = |link: &SiteLink, site: &str| link.between.iter().any(|end| end == site);
        self.links.iter().position(|link| has(link, a) && has(link, b))
    }

    /// Bytes a second, each way, and half the round trip in seconds, between two different sites.
    pub fn between(&self, a: &str, b: &str) -> (f64, f64) {
        let (rate, rtt_ms) = if let Some(at) = self.line(a, b) {
            (self.links[at].rate.bytes_per_s(), self.links[at].rtt_ms)
        } else {
            let (a, b) = (self.site(a), self.site(b));
            let slower = a.uplink.bytes_per_s().min(b.uplink.bytes_per_s());
            (slower, a.rtt_ms.max(b.rtt_ms))
        };
        (rate, rtt_ms / 2000.0)
    }
}
