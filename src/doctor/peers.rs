//! The links to other rigs, both ways.

use std::net::IpAddr;

use shoal_cluster::probing::neighbour::{Back, Met};

use super::coordinator::{shown, speed};
use super::finding::{Finding, Group, Level};

/// Another rig, and what came of probing it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) address: Option<IpAddr>,
    /// It lets itself be probed.
    pub(super) has_port: bool,
    pub(super) met: Result<Met, String>,
}

/// A step sends dozens of messages one after the other.
const RTT_SECONDS: f64 = 0.1;

pub(super) fn findings(peers: &[Peer]) -> Vec<Finding> {
    if peers.is_empty() {
        return vec![Group::Peers.ok("none", "no other rig is here now")];
    }
    peers.iter().map(Peer::finding).collect()
}

impl Peer {
    fn finding(&self) -> Finding {
        let name = &self.name;
        let place = self
            .address
            .map_or_else(|| "an address that it does not say".to_owned(), |at| at.to_string());
        let met = match &self.met {
            Err(why) if self.has_port => {
                return Group::Peers.problem(
                    name,
                    format!("cannot be reached: {why}"),
                    format!("let TCP from this rig into {place} (there: sudo ufw allow from ADDRESS), or a VPN and --advertise"),
                );
            }
            Err(why) => {
                let mend =
                    format!("start `shoal worker` anew on {name}, of the same version as here");
                return Group::Peers.warning(name, format!("not measured: {why}"), mend);
            }
            Ok(met) => met,
        };
        let fact = format!(
            "{place} in {:.1} ms, up {}, down {}",
            met.seconds * 1e3,
            shown(met.up),
            shown(met.down)
        );
        let blocked = |why: &str| {
            let mend = "let TCP from other rigs in here (sudo ufw allow from ADDRESS), or name an address that they reach with --advertise";
            Group::Peers.problem(name, format!("{fact}; it does not reach this rig: {why}"), mend)
        };
        match met.back {
            Some(Back::Refused) => return blocked("the connection is refused"),
            Some(Back::Silent) => return blocked("nothing answers, as behind a firewall"),
            Some(Back::Stranger) => return blocked("somebody else answers at that address"),
            Some(Back::Reached) | None => {}
        }
        if met.seconds > RTT_SECONDS {
            let mend = "rigs in one place, or a grid with fewer stages: `shoal plan` says what distance costs";
            return Group::Peers.warning(name, fact, mend);
        }
        for (way, rate) in [("up", met.up), ("down", met.down)] {
            let judged = speed(Group::Peers, name, &Ok(rate));
            if judged.level != Level::Ok {
                return Group::Peers.warning(
                    name,
                    format!("{fact}; slow {way}"),
                    judged.mend.unwrap_or_default(),
                );
            }
        }
        let back = if met.back.is_some() { "; reaches this rig, too" } else { "" };
        Group::Peers.ok(name, format!("{fact}{back}"))
    }
}

#[cfg(test)]
mod tests {
    use shoal_cluster::probing::Rate;

    use super::*;

    fn met(change: impl Fn(&mut Met)) -> Finding {
        let rate = Rate { bytes: 16 << 20, seconds: 0.2 };
        let mut met = Met { seconds: 0.001, up: rate, down: rate, back: Some(Back::Reached) };
        change(&mut met);
        of(true, Ok(met))
    }

    fn of(has_port: bool, met: Result<Met, String>) -> Finding {
        let peer =
            Peer { name: "attic".into(), address: Some([10, 0, 0, 3].into()), has_port, met };
        findings(&[peer]).remove(0)
    }

    #[test]
    fn a_peer_is_well_when_both_reach_each_other() {
        let good = met(|_| {});
        assert!(
            good.level == Level::Ok && good.fact.ends_with("reaches this rig, too"),
            "{good:?}"
        );
        assert_eq!(met(|met| met.back = None).level, Level::Ok);
        assert_eq!(findings(&[])[0].level, Level::Ok);
    }

    #[test]
    fn a_way_that_is_closed_is_a_problem_and_a_slow_one_warns() {
        for back in [Back::Refused, Back::Silent, Back::Stranger] {
            let found = met(|met| met.back = Some(back));
            assert!(
                found.level == Level::Problem && found.fact.contains("does not reach this rig")
            );
        }
        assert_eq!(of(true, Err("no answer".into())).level, Level::Problem);
        assert_eq!(of(false, Err("no port".into())).level, Level::Warning);
        assert_eq!(met(|met| met.seconds = 0.2).level, Level::Warning);
        let slow = met(|met| met.up = Rate { bytes: 1000, seconds: 3.0 });
        assert!(slow.level == Level::Warning && slow.fact.ends_with("slow up"), "{slow:?}");
    }
}
