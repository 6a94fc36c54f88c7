//! Machines of which neither can dial the other, and what carries their bytes: the machine that makes the best way of
//! all that both can dial, else the cluster's coordinator, of whose own link nothing is known.

use super::paths::Link;
use super::{Network, Way};
use crate::cost::efficiency as share;
use crate::fleet::{Fleet, Reach};

/// Who passes the bytes of a pair on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relay {
    Machine(usize),
    Coordinator,
}

/// One machine of each rig that can be dialed.
pub(super) fn open(fleet: &Fleet, rigs: &[usize]) -> Vec<usize> {
    let is_open = |at: &usize| fleet.rigs[rigs[*at]].reach == Reach::Open;
    let is_first = |at: &usize| *at == 0 || rigs[*at] != rigs[*at - 1];
    (0..rigs.len()).filter(|at| is_first(at) && is_open(at)).collect()
}

impl Network<'_> {
    /// The relay of a pair, where it needs one: neither can be dialed from outside, and they share neither a site nor
    /// a line.
    pub fn relay(&self, a: usize, b: usize) -> Option<Relay> {
        let closed = |machine: usize| self.fleet.rigs[self.rigs[machine]].reach == Reach::Outbound;
        let (here, there) = (self.site(a), self.site(b));
        if !closed(a) || !closed(b) || here == there || self.fleet.line(here, there).is_some() {
            return None;
        }
        let ways = self.open.iter().map(|relay| {
            let relay = Relay::Machine(*relay);
            (relay, self.relayed((a, b), relay))
        });
        // The fastest; of equals the nearest, then the first.
        let best = ways.min_by(|(_, a), (_, b)| {
            b.bytes_per_s.total_cmp(&a.bytes_per_s).then(a.latency_s.total_cmp(&b.latency_s))
        });
        Some(best.map_or(Relay::Coordinator, |(relay, _)| relay))
    }

    /// The relay by name.
    pub fn relay_name(&self, relay: Relay) -> &str {
        match relay {
            Relay::Machine(machine) => self.rig_name(machine),
            Relay::Coordinator => "the coordinator",
        }
    }

    /// Both legs one after the other. The relay's interfaces carry what goes forth and what comes back, each of it in
    /// and out: half of them is left for each direction, and of its site's uplink where both legs go over that.
    pub(super) fn relayed(&self, (a, b): (usize, usize), relay: Relay) -> Way {
        match relay {
            Relay::Machine(relay) => {
                let legs = [self.dialed(a, relay), self.dialed(relay, b)];
                let slower = legs[0].bytes_per_s.min(legs[1].bytes_per_s);
                let mut own = self.fleet.rigs[self.rigs[relay]].nic.bytes_per_s();
                let site = self.site(relay);
                let is_far = |end: usize| {
                    self.site(end) != site && self.fleet.line(self.site(end), site).is_none()
                };
                if is_far(a) && is_far(b) {
                    own = own.min(self.fleet.site(site).uplink.bytes_per_s());
                }
                let bytes_per_s = slower.min(own * share::SOCKET / 2.0);
                Way { latency_s: legs[0].latency_s + legs[1].latency_s, bytes_per_s }
            }
            Relay::Coordinator => {
                let [here, there] = [a, b].map(|end| self.fleet.site(self.site(end)));
                let uplinks = here.uplink.bytes_per_s().min(there.uplink.bytes_per_s());
                let nics = self.nic(a).min(self.nic(b));
                let latency_s = (here.rtt_ms + there.rtt_ms) / 2000.0;
                Way { latency_s, bytes_per_s: nics.min(uplinks * share::SOCKET) }
            }
        }
    }

    /// The links over a relay, in order: its interfaces are among them twice, in and out.
    pub(super) fn relayed_path(&self, (from, to): (usize, usize), relay: Relay) -> Vec<Link> {
        match relay {
            Relay::Machine(relay) => {
                let legs = [self.dialed_path(from, relay), self.dialed_path(relay, to)];
                legs.concat()
            }
            Relay::Coordinator => self.dialed_path(from, to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::parse;

    const HEAD: &str = "apiVersion: shoal/v1\nkind: Fleet\nspec:\n";

    fn fleet(rigs: &str, more: &str) -> Fleet {
        let sites = "sites: {a: {uplink: 100Mbit/s, rtt_ms: 20}, b: {uplink: 200Mbit/s, rtt_ms: 30}, \
                     c: {uplink: 150Mbit/s, rtt_ms: 10}, d: {uplink: 1Gbit/s, rtt_ms: 40}}";
        parse("f", &format!("{HEAD}  {sites}\n  rigs: [{rigs}]\n{more}")).unwrap()
    }

    const BEHIND: &str = "{name: x, gpu: H100, site: a, reach: outbound}, \
                          {name: y, gpu: H100, site: b, reach: outbound}";

    #[test]
    fn two_that_nobody_can_dial_go_over_the_best_relay_which_carries_all_twice() {
        let rigs =
            format!("{BEHIND}, {{name: r, gpu: H100, site: c}}, {{name: s, gpu: H100, site: d}}");
        let fleet = fleet(&rigs, "");
        let network = Network::new(&fleet);
        let relay = network.relay(0, 1).unwrap();
        // Half of c's uplink is less than a's, half of d's is not.
        assert_eq!((relay, network.relay_name(relay)), (Relay::Machine(3), "s"));
        let way = network.between(0, 1);
        assert!((way.bytes_per_s - 12.5e6 * share::SOCKET).abs() < 1.0, "{way:?}");
        assert!((way.latency_s - 0.040).abs() < 1e-9, "{way:?}");
        let over_r = network.relayed((0, 1), Relay::Machine(2));
        assert!((over_r.bytes_per_s - 18.75e6 / 2.0 * share::SOCKET).abs() < 1.0, "{over_r:?}");
        let names: Vec<String> =
            network.path(0, 1).into_iter().map(|link| network.link_name(link)).collect();
        let wanted = [
            "x, out",
            "site a, out",
            "site d, in",
            "s, in",
            "s, out",
            "site d, out",
            "site b, in",
            "y, in",
        ];
        assert_eq!(names, wanted);
    }

    #[test]
    fn one_that_can_be_dialed_a_site_or_a_line_in_common_need_no_relay() {
        let rigs = "{name: x, gpu: H100, site: a, reach: outbound, machines: 2}, \
                    {name: y, gpu: H100, site: b, reach: outbound}, {name: z, gpu: H100, site: c}";
        let of = fleet(rigs, "");
        let network = Network::new(&of);
        for (a, b) in [(0, 1), (0, 3), (2, 3)] {
            assert_eq!(network.relay(a, b), None, "{a} {b}");
        }
        assert_eq!(network.relay(1, 2), Some(Relay::Machine(3)));
        let line = "  links: [{between: [a, b], rate: 1Gbit/s, rtt_ms: 5}]\n";
        let of = fleet(rigs, line);
        assert_eq!(Network::new(&of).relay(0, 2), None);
    }

    #[test]
    fn where_nobody_can_be_dialed_the_coordinator_carries_it() {
        let of = fleet(BEHIND, "");
        let network = Network::new(&of);
        assert_eq!(network.relay(0, 1), Some(Relay::Coordinator));
        let way = network.between(0, 1);
        assert!((way.latency_s - 0.025).abs() < 1e-9, "{way:?}");
        assert!((way.bytes_per_s - 12.5e6 * share::SOCKET).abs() < 1.0, "{way:?}");
        assert_eq!(network.path(0, 1).len(), 4);
    }
}
