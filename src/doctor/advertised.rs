//! Where other rigs would reach this one, through which interface, and whether they can.

use std::net::IpAddr;

use shoal_cluster::probing::address::{Interface, Kind, Reach};

use super::finding::{Finding, Group};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Advertised {
    pub(super) address: IpAddr,
    pub(super) interface: Option<Interface>,
    /// Of the coordinator, as it was reached.
    pub(super) coordinator: IpAddr,
    /// From where the coordinator saw the connection come.
    pub(super) seen_from: Option<IpAddr>,
}

impl Advertised {
    pub(super) fn finding(&self) -> Finding {
        let shown = self.shown();
        let warning = |why: &str, mend: &str| {
            Group::Cluster.warning("advertises", format!("{shown}: {why}"), mend)
        };
        let problem = |why: &str, mend: &str| {
            Group::Cluster.problem("advertises", format!("{shown}: {why}"), mend)
        };
        let is_here = Reach::of(self.coordinator) == Reach::Loopback;
        let is_tunnel = self.is(Kind::Tunnel);
        let other = "shoal worker --advertise ADDRESS names one that other rigs can reach";
        match Reach::of(self.address) {
            Reach::Loopback if is_here => Group::Cluster
                .ok("advertises", format!("{shown}: this machine alone, as its coordinator does")),
            Reach::Loopback => problem("nobody else can reach it", other),
            Reach::LinkLocal => {
                problem("an address that the machine gave itself, for lack of another", other)
            }
            _ if self.is(Kind::Virtual) => {
                warning("an interface of containers: other machines do not reach it", other)
            }
            Reach::Shared if !is_tunnel && self.interface.is_some() => warning(
                "a provider's shared address: others do not reach it from outside",
                "a VPN between the rigs (Tailscale, WireGuard), and shoal worker --advertise with its address",
            ),
            _ if self.is_translated() => {
                let seen = self.seen_from.map_or_else(String::new, |seen| seen.to_string());
                warning(
                    &format!(
                        "the coordinator sees it as {seen}, so something in between translates addresses (NAT, WSL2)"
                    ),
                    "a VPN between the rigs, and shoal worker --advertise with its address; WSL2: networkingMode=mirrored in .wslconfig",
                )
            }
            Reach::Public if !is_tunnel => warning(
                "anybody on the internet can knock there",
                "let only other rigs in by the firewall, or advertise the address of a VPN with --advertise",
            ),
            _ if self.interface.is_none() => warning(
                "no interface of this machine was found to have it",
                "ip -brief address lists those that it has; --advertise names one",
            ),
            _ if self.is(Kind::Wireless) => {
                warning("radio: slow, and uneven when others talk", "a cable")
            }
            Reach::Private | Reach::Shared | Reach::Public => {
                Group::Cluster.ok("advertises", shown)
            }
        }
    }

    fn is(&self, kind: Kind) -> bool {
        self.interface.as_ref().is_some_and(|interface| interface.kind == kind)
    }

    /// A coordinator on the same machine sees whatever address was dialed.
    fn is_translated(&self) -> bool {
        self.seen_from.is_some_and(|seen| {
            let seen = seen.to_canonical();
            seen != self.address && Reach::of(seen) != Reach::Loopback
        })
    }

    fn shown(&self) -> String {
        let what = match Reach::of(self.address) {
            Reach::Loopback => "loopback",
            Reach::Private => "private",
            Reach::Shared => "shared",
            Reach::LinkLocal => "link-local",
            Reach::Public => "public",
        };
        let Some(Interface { name, kind, megabits }) = &self.interface else {
            return format!("{} ({what})", self.address);
        };
        let kind = match kind {
            Kind::Loopback | Kind::Wired => "",
            Kind::Wireless => ", wireless",
            Kind::Tunnel => ", a VPN",
            Kind::Virtual => ", of containers",
        };
        let speed = megabits.map_or_else(String::new, |megabits| format!(", {megabits} Mbit/s"));
        format!("{} through {name} ({what}{kind}{speed})", self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn of(
        address: &str,
        kind: Option<Kind>,
        coordinator: &str,
        seen: Option<&str>,
    ) -> (Level, String) {
        let interface =
            kind.map(|kind| Interface { name: "if0".into(), kind, megabits: Some(1000) });
        let parse = |text: &str| text.parse().unwrap();
        let (address, coordinator) = (parse(address), parse(coordinator));
        let found =
            Advertised { address, interface, coordinator, seen_from: seen.map(parse) }.finding();
        assert_eq!(found.mend.is_some(), found.level != Level::Ok, "{found:?}");
        (found.level, found.fact)
    }

    #[test]
    fn addresses_that_others_reach_are_well() {
        let wired = Some(Kind::Wired);
        let (is, fact) = of("192.168.1.7", wired, "192.168.1.2", Some("192.168.1.7"));
        assert_eq!(
            (is, fact.as_str()),
            (Level::Ok, "192.168.1.7 through if0 (private, 1000 Mbit/s)")
        );
        assert_eq!(of("127.0.0.1", Some(Kind::Loopback), "127.0.0.1", None).0, Level::Ok);
        assert_eq!(of("100.64.0.7", Some(Kind::Tunnel), "100.64.0.2", None).0, Level::Ok);
        assert_eq!(of("192.168.1.7", wired, "127.0.0.1", Some("127.0.0.1")).0, Level::Ok);
    }

    #[test]
    fn addresses_that_they_do_not_reach_are_said_to_be_so() {
        let wired = Some(Kind::Wired);
        assert_eq!(of("127.0.0.1", Some(Kind::Loopback), "10.0.0.1", None).0, Level::Problem);
        assert_eq!(of("169.254.1.1", wired, "169.254.1.2", None).0, Level::Problem);
        for (address, kind, seen, word) in [
            ("172.17.0.2", Some(Kind::Virtual), None, "containers"),
            ("100.64.0.7", wired, None, "provider"),
            ("172.20.1.2", wired, Some("192.168.1.7"), "WSL2"),
            ("203.0.113.7", wired, None, "internet"),
            ("10.0.0.7", None, None, "no interface"),
            ("10.0.0.7", Some(Kind::Wireless), None, "radio"),
        ] {
            let (is, fact) = of(address, kind, "10.0.0.1", seen);
            assert!(is == Level::Warning && fact.contains(word), "{address}: {fact}");
        }
    }
}
