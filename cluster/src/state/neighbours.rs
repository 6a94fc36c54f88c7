//! What rigs are told of each other.

use super::Cluster;
use crate::probing::words::Neighbour;

impl Cluster {
    /// The rigs that are here, without the one that asks.
    pub fn neighbours(&self, rig: &str) -> Vec<Neighbour> {
        let others = self.rigs.iter().filter(|(name, _)| {
            name.as_str() != rig && self.sessions.values().any(|session| session.rig == **name)
        });
        let neighbour = |(name, record): (&String, &super::RigRecord)| Neighbour {
            name: name.clone(),
            address: record.facts.address,
            probe_port: record.facts.probe_port,
        };
        others.map(neighbour).collect()
    }
}
