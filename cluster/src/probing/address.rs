//! Addresses of this machine: which of its interfaces has one, and from where it can be reached.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

/// Who can reach an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// This machine alone.
    Loopback,
    /// Its network, or a VPN with such addresses.
    Private,
    /// 100.64.0.0/10: Tailscale's, or a provider's that translates them.
    Shared,
    /// What a machine without DHCP gives itself.
    LinkLocal,
    /// Everybody.
    Public,
}

impl Reach {
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [first, second, ..] = address.octets();
        if address.is_loopback() {
            Self::Loopback
        } else if address.is_private() {
            Self::Private
        } else if address.is_link_local() {
            Self::LinkLocal
        } else if first == 100 && second & 0xC0 == 64 {
            Self::Shared
        } else {
            Self::Public
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        if address.is_loopback() {
            Self::Loopback
        } else if address.is_unique_local() {
            Self::Private
        } else if address.is_unicast_link_local() {
            Self::LinkLocal
        } else {
            Self::Public
        }
    }
}

/// What an interface is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    pub name: String,
    pub kind: Kind,
    /// What its cable carries, where it says so.
    pub megabits: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Loopback,
    Wired,
    Wireless,
    /// A VPN.
    Tunnel,
    /// Of containers or virtual machines on this machine.
    Virtual,
}

/// The interface that has this address, if one says so.
pub fn interface_of(address: IpAddr) -> Option<Interface> {
    let class = Path::new("/sys/class/net");
    let mut names: Vec<String> = (fs::read_dir(class).ok()?.flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let name = names.into_iter().find(|name| has(name, address))?;
    Some(described(&name, &class.join(&name)))
}

/// Whether packets that leave through it leave from there. None is sent.
fn has(name: &str, address: IpAddr) -> bool {
    let asked = || -> std::io::Result<bool> {
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind_device(Some(name.as_bytes()))?;
        // An interface's own address is local to it and to no other.
        socket.connect(&SocketAddr::new(address, 9).into())?;
        let from = socket.local_addr()?.as_socket();
        Ok(from.is_some_and(|from| from.ip() == address))
    };
    asked().unwrap_or(false)
}

fn described(name: &str, directory: &Path) -> Interface {
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let (sort, speed) = (read("type"), read("speed"));
    let has = |file: &str| directory.join(file).exists();
    let begins = |with: &[&str]| with.iter().any(|with| name.starts_with(with));
    // Types of the kernel's if_arp.h: 772 is loopback, 65534 has no header of its own.
    let kind = if sort.trim() == "772" {
        Kind::Loopback
    } else if sort.trim() == "65534" || begins(&["wg", "tun", "tap", "tailscale", "zt"]) {
        Kind::Tunnel
    } else if has("wireless") || has("phy80211") {
        Kind::Wireless
    } else if begins(&["docker", "br-", "veth", "virbr", "cni"]) {
        Kind::Virtual
    } else {
        Kind::Wired
    };
    let megabits = speed.trim().parse().ok().filter(|speed| *speed > 0);
    Interface { name: name.to_owned(), kind, megabits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_who_can_reach_them() {
        for (address, reach) in [
            ("127.0.0.1", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("192.168.1.7", Reach::Private),
            ("172.31.0.1", Reach::Private),
            ("172.32.0.1", Reach::Public),
            ("fd7a::1", Reach::Private),
            ("100.64.0.1", Reach::Shared),
            ("100.127.255.254", Reach::Shared),
            ("100.128.0.1", Reach::Public),
            ("169.254.3.4", Reach::LinkLocal),
            ("fe80::1", Reach::LinkLocal),
            ("203.0.113.5", Reach::Public),
            ("2001:db8::1", Reach::Public),
        ] {
            assert_eq!(Reach::of(address.parse().unwrap()), reach, "{address}");
        }
    }

    #[test]
    fn loopback_is_known_by_its_address() {
        // A system that does not let us look has no interface to show.
        if let Some(found) = interface_of([127, 0, 0, 1].into()) {
            assert_eq!((found.name.as_str(), found.kind), ("lo", Kind::Loopback));
        }
    }
}
