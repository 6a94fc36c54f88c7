//! How this worker and each of its peers come together. Where both can dial the other, whoever has the higher id
//! does on the data plane, and anybody in the memory of snapshots; a plan names the pairs for which that does not hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use shoal_plan::plan::{RunId, WorkerId};
use shoal_proto::{self as proto, Meeting};
use shoal_trust::{Identity, Role};

use super::relayed::{Place, Relay};

/// The way to one peer, seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Both can dial.
    Usual,
    /// Only this worker can.
    Dial,
    /// Only the peer can.
    Await,
    /// Neither can: both dial a relay.
    Through(Relay),
}

/// Where this worker waits to be asked by a peer that cannot dial it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// At the peer's own vault.
    At(SocketAddr),
    Through(Relay),
}

/// The ways that are not usual.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways(BTreeMap<WorkerId, Way>);

impl Ways {
    /// Of this worker in a plan. `doors` are the cluster's, as `HOST:PORT`; without a cluster nobody meets there.
    pub fn of(me: WorkerId, meetings: &[Meeting], (run, doors): (&RunId, &[String])) -> Self {
        let relay = |name: &str, role, place| {
            let identity = Identity { name: name.parse().ok()?, role };
            Some(Way::Through(Relay { run: run.clone(), identity, place }))
        };
        let way = |meeting: &Meeting| {
            let (a, b) = meeting.ends;
            let peer = if a == me { Some(b) } else { (b == me).then_some(a) }?;
            let way = match &meeting.way {
                proto::Way::From(from) if *from == me => Way::Dial,
                proto::Way::From(_) => Way::Await,
                proto::Way::Through { rig, at } => relay(rig, Role::Worker, Place::At(*at))?,
                proto::Way::ThroughDoor if doors.is_empty() => return None,
                proto::Way::ThroughDoor => {
                    relay("coordinator", Role::Coordinator, Place::Doors(doors.to_vec()))?
                }
            };
            Some((peer, way))
        };
        Self(meetings.iter().filter_map(way).collect())
    }

    pub(crate) fn to(&self, peer: WorkerId) -> Way {
        self.0.get(&peer).cloned().unwrap_or(Way::Usual)
    }

    /// Peers that are met at a relay.
    pub(crate) fn relayed(&self) -> BTreeSet<WorkerId> {
        let through = self.0.iter().filter(|(_, way)| matches!(way, Way::Through(_)));
        through.map(|(peer, _)| *peer).collect()
    }

    /// Where this worker waits for the peers that cannot dial its memory.
    pub(crate) fn calls(
        &self,
        vaults: &BTreeMap<WorkerId, SocketAddr>,
    ) -> BTreeMap<WorkerId, Call> {
        let call = |(peer, way): (&WorkerId, &Way)| match way {
            Way::Usual | Way::Await => None,
            Way::Dial => Some((*peer, Call::At(*vaults.get(peer)?))),
            Way::Through(relay) => Some((*peer, Call::Through(relay.clone()))),
        };
        self.0.iter().filter_map(call).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_pair_read_the_same_meeting() {
        let [a, b, c] = [0, 1, 2].map(WorkerId);
        let at = "10.0.0.3:7403".parse().unwrap();
        let meetings = [
            Meeting { ends: (a, c), way: proto::Way::From(a) },
            Meeting { ends: (b, c), way: proto::Way::Through { rig: "r".into(), at } },
        ];
        let run = RunId("5e".into());
        let ways = |me| Ways::of(me, &meetings, (&run, &[]));
        assert_eq!((ways(a).to(c), ways(c).to(a)), (Way::Dial, Way::Await));
        assert_eq!((ways(a).to(b), ways(b).to(a)), (Way::Usual, Way::Usual));
        assert!(matches!(ways(b).to(c), Way::Through(relay) if relay.place == Place::At(at)));
        assert_eq!(ways(b).to(c), ways(c).to(b));
        let address = "127.0.0.1:9".parse().unwrap();
        let vaults = [a, b, c].map(|worker| (worker, address)).into();
        assert_eq!(ways(a).calls(&vaults), BTreeMap::from([(c, Call::At(address))]));
        assert_eq!(ways(c).calls(&vaults).len(), 1, "it waits for b at the relay, and for a here");
    }

    #[test]
    fn the_door_is_a_relay_for_members_of_a_cluster() {
        let [a, b] = [0, 1].map(WorkerId);
        let meetings = [Meeting { ends: (a, b), way: proto::Way::ThroughDoor }];
        let (run, doors) = (RunId("5e".into()), ["here:7400".to_owned()]);
        let Way::Through(relay) = Ways::of(a, &meetings, (&run, &doors)).to(b) else {
            panic!("want a relay")
        };
        assert_eq!(
            (relay.place, relay.identity.role),
            (Place::Doors(doors.to_vec()), Role::Coordinator)
        );
        assert_eq!(Ways::of(a, &meetings, (&run, &[])).to(b), Way::Usual);
    }
}
