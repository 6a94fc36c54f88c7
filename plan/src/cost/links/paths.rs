//! What lies on the way between two machines, link by link, for bytes that go over sockets beside the training:
//! network interfaces, which all cards of a machine share, and the links between sites, which all their rigs share.

use super::Network;
use crate::cost::efficiency as share;

/// One direction of one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// Out of a machine's network interfaces.
    Out(usize),
    /// Into them.
    In(usize),
    /// Out of a site to the internet, by the site's place in the fleet.
    SiteOut(usize),
    SiteIn(usize),
    /// A line between two sites, by its place in the fleet; `forth`: from the first to the second.
    Line {
        at: usize,
        forth: bool,
    },
}

impl Network<'_> {
    /// The links from one machine to another, over a relay where they need one. None inside a machine.
    pub fn path(&self, from: usize, to: usize) -> Vec<Link> {
        let relay = self.relay(from, to);
        relay.map_or_else(
            || self.dialed_path(from, to),
            |relay| self.relayed_path((from, to), relay),
        )
    }

    /// The same as if nothing were in between.
    pub(super) fn dialed_path(&self, from: usize, to: usize) -> Vec<Link> {
        if from == to {
            return Vec::new();
        }
        let ends = [Link::Out(from), Link::In(to)];
        let (a, b) = (self.site(from), self.site(to));
        if a == b {
            return ends.to_vec();
        }
        let line = self.fleet.line(a, b);
        let middle = line.map_or_else(
            || vec![Link::SiteOut(self.site_at(a)), Link::SiteIn(self.site_at(b))],
            |at| vec![Link::Line { at, forth: self.fleet.links[at].between[0] == a }],
        );
        ends[..1].iter().copied().chain(middle).chain(ends[1..].iter().copied()).collect()
    }

    fn site_at(&self, name: &str) -> usize {
        self.fleet.sites.keys().position(|site| site == name).expect("a rig's site is known")
    }

    fn site_named(&self, at: usize) -> &str {
        self.fleet.sites.keys().nth(at).expect("links are of sites of the fleet")
    }

    /// Bytes a second of a link, by sockets: what is sent beside the training knows no RDMA.
    pub fn rate(&self, link: Link) -> f64 {
        let raw = match link {
            Link::Out(machine) | Link::In(machine) => {
                self.fleet.rigs[self.rigs[machine]].nic.bytes_per_s()
            }
            Link::SiteOut(at) | Link::SiteIn(at) => {
                self.fleet.site(self.site_named(at)).uplink.bytes_per_s()
            }
            Link::Line { at, .. } => self.fleet.links[at].rate.bytes_per_s(),
        };
        raw * share::SOCKET
    }

    /// The link in words. Machines of a rig are alike, and have its name.
    pub fn link_name(&self, link: Link) -> String {
        match link {
            Link::Out(machine) => format!("{}, out", self.rig_name(machine)),
            Link::In(machine) => format!("{}, in", self.rig_name(machine)),
            Link::SiteOut(at) => format!("site {}, out", self.site_named(at)),
            Link::SiteIn(at) => format!("site {}, in", self.site_named(at)),
            Link::Line { at, forth } => {
                let [a, b] = [usize::from(!forth), usize::from(forth)];
                let ends = &self.fleet.links[at].between;
                format!("line {} to {}", ends[a], ends[b])
            }
        }
    }

    /// The name of a machine's rig.
    pub fn rig_name(&self, machine: usize) -> &str {
        &self.fleet.rigs[self.rigs[machine]].name
    }

    /// Bytes of a machine's memory that programs can have.
    pub fn host_bytes(&self, machine: usize) -> u64 {
        let all = self.fleet.rigs[self.rigs[machine]].host_memory_gb;
        ((all - share::HOST_RESERVED_GB).max(0.0) * 1e9) as u64
    }

    /// Bytes a second from a card into its machine's memory, while `cards` of them write.
    pub fn into_memory(&self, machine: usize, cards: usize) -> f64 {
        let rig = &self.fleet.rigs[self.rigs[machine]];
        let bus = rig.card().pcie.gb_s() * share::PCIE_PEERS;
        1e9 * bus.min(rig.host_memory_gb_s / cards.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::parse;

    #[test]
    fn a_way_between_sites_goes_over_their_uplinks_or_a_line_of_their_own() {
        let text = "apiVersion: shoal/v1\nkind: Fleet\nspec:\n  sites: {a: {}, b: {uplink: 1Gbit/s}, c: {}}\n  \
                    rigs: [{name: x, gpu: H100, site: a, machines: 2}, {name: y, gpu: H100, site: b}, \
                    {name: z, gpu: H100, site: c}]\n  links: [{between: [c, a], rate: 10Gbit/s, rtt_ms: 2}]\n";
        let fleet = parse("f", text).unwrap();
        let network = Network::new(&fleet);
        let names = |from, to| {
            let path = network.path(from, to).into_iter();
            path.map(|link| network.link_name(link)).collect::<Vec<_>>()
        };
        assert!(network.path(0, 0).is_empty());
        assert_eq!(names(0, 1), ["x, out", "x, in"]);
        assert_eq!(names(1, 2), ["x, out", "site a, out", "site b, in", "y, in"]);
        assert_eq!(names(0, 3), ["x, out", "line a to c", "z, in"]);
        assert_eq!(names(3, 0), ["z, out", "line c to a", "x, in"]);
        // The slowest link of a way is what `between` counts with, where nothing has RDMA.
        for (from, to) in [(0, 1), (1, 2), (0, 3), (3, 0), (2, 3)] {
            let rates = network.path(from, to).into_iter().map(|link| network.rate(link));
            let slowest = rates.fold(f64::INFINITY, f64::min);
            let wanted = network.between(from, to).bytes_per_s;
            assert!((slowest - wanted).abs() < 1e-6 * wanted, "{from} {to}: {slowest} {wanted}");
        }
    }
}
