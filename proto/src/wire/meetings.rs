//! How workers come together, through the door.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use shoal_plan::plan::WorkerId;
use shoal_trust::Name;

use super::{WireError, address, present, value};
use crate::message::{Meeting, Way};

/// Each pair once, of workers that others may have to do with.
pub(super) fn read(
    raw: Vec<super::raw::Meeting>,
    vaults: &BTreeMap<WorkerId, SocketAddr>,
) -> Result<Vec<Meeting>, WireError> {
    let mut pairs = BTreeSet::new();
    let meeting = |raw: super::raw::Meeting| {
        let ends = (WorkerId(raw.first), WorkerId(raw.second));
        if ends.0 >= ends.1 || !pairs.insert(ends) {
            let got = format!("{} and {}", ends.0, ends.1);
            return Err(value("assign.meetings", got, "each pair once, the lower id first"));
        }
        if let Some(stranger) = [ends.0, ends.1].iter().find(|end| !vaults.contains_key(end)) {
            return Err(value("assign.meetings", stranger, "a worker with a vault"));
        }
        let way = match present("assign.meetings.way", raw.way)? {
            super::raw::meeting::Way::From(from) => Way::From(WorkerId(from)),
            super::raw::meeting::Way::Through(relay) => {
                let (field, name) = ("assign.meetings.through.rig", relay.rig.parse::<Name>());
                name.map_err(|source| WireError::Name { field, source })?;
                let at = address("assign.meetings.through.address", &relay.address)?;
                Way::Through { rig: relay.rig, at }
            }
            super::raw::meeting::Way::ThroughDoor(true) => Way::ThroughDoor,
            super::raw::meeting::Way::ThroughDoor(false) => {
                return Err(value("assign.meetings.through_door", false, "true"));
            }
        };
        if let Way::From(from) = way
            && from != ends.0
            && from != ends.1
        {
            return Err(value("assign.meetings.from", from, "one of the two"));
        }
        Ok(Meeting { ends, way })
    };
    raw.into_iter().map(meeting).collect()
}

pub(super) fn raw(meeting: Meeting) -> super::raw::Meeting {
    let (first, second) = (meeting.ends.0.0, meeting.ends.1.0);
    let way = match meeting.way {
        Way::From(from) => super::raw::meeting::Way::From(from.0),
        Way::Through { rig, at } => {
            let address = at.to_string();
            super::raw::meeting::Way::Through(super::raw::Relay { rig, address })
        }
        Way::ThroughDoor => super::raw::meeting::Way::ThroughDoor(true),
    };
    super::raw::Meeting { first, second, way: Some(way) }
}
