//! Where an etcd is, as a person says it, and who asks to be active there.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use tokio::sync::watch;

use super::Store;
use crate::election::Stand;

/// Where nothing else is said.
const PREFIX: &str = "shoal";

/// `etcd://HOST:PORT[,HOST:PORT...][/PREFIX]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// `HOST:PORT` each.
    pub endpoints: Vec<String>,
    /// Keys of this cluster begin with it, and a slash.
    pub prefix: String,
    /// In clear without it.
    pub tls: Option<Tls>,
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Whose certificate etcd's is to be of.
    pub ca: PathBuf,
    /// What is shown to etcd: a certificate and its key.
    pub shown: Option<(PathBuf, PathBuf)>,
}

/// A coordinator that asks to be active.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Where rigs and people reach it.
    pub address: String,
    /// What the cluster is called, and its authority's pin.
    pub cluster: (String, String),
    /// Remembers there which etcd it was.
    pub directory: PathBuf,
}

/// A store that may be written to while this coordinator is the active one.
pub struct Candidacy {
    pub store: Box<dyn Store>,
    pub standing: watch::Receiver<Standing>,
}

/// How this coordinator stands, and who else is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub stand: Stand,
    /// Where coordinators of this cluster are reached, this one among them.
    pub coordinators: Vec<String>,
}

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!("{text:?} is no store: {why}; want etcd://HOST:PORT[,HOST:PORT...][/PREFIX]")
        };
        let rest = text.strip_prefix("etcd://").ok_or_else(|| wrong("it is of no known kind"))?;
        let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, PREFIX));
        let prefix = if prefix.is_empty() { PREFIX } else { prefix };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !prefix.chars().all(is_plain) {
            return Err(wrong("a prefix has letters, digits, `-`, `_` and `.`"));
        }
        let endpoints: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        let is_endpoint = |endpoint: &String| {
            let (host, port) = endpoint.rsplit_once(':').unwrap_or_default();
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        };
        if let Some(endpoint) = endpoints.iter().find(|endpoint| !is_endpoint(endpoint)) {
            return Err(wrong(&format!("{endpoint:?} is no HOST:PORT")));
        }
        Ok(Self { endpoints, prefix: prefix.to_owned(), tls: None })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}/{}", self.endpoints.join(","), self.prefix)
    }
}

impl Remote {
    /// Whether all of it is on this machine.
    pub fn is_here(&self) -> bool {
        self.endpoints.iter().all(|endpoint| {
            let host = endpoint.rsplit_once(':').map_or(endpoint.as_str(), |(host, _)| host);
            let host = host.trim_matches(['[', ']']);
            host == "localhost"
                || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_hosts_and_a_prefix() {
        let shown = |text: &str| text.parse::<Remote>().map(|remote| remote.to_string());
        assert_eq!(shown("etcd://a:1").unwrap(), "etcd://a:1/shoal");
        assert_eq!(shown("etcd://a:1,[::1]:2/lab").unwrap(), "etcd://a:1,[::1]:2/lab");
        for text in ["", "redis://a:1", "etcd://", "etcd://a", "etcd://a:0", "etcd://a:1,/x"] {
            assert!(shown(text).unwrap_err().contains("want etcd://HOST:PORT"), "{text}");
        }
        assert!(shown("etcd://a:1/x/y").unwrap_err().contains("a prefix has"));
        let is_here = |text: &str| text.parse::<Remote>().unwrap().is_here();
        assert!(is_here("etcd://127.0.0.1:1,localhost:2,[::1]:3"));
        assert!(!is_here("etcd://127.0.0.1:1,10.0.0.1:2"));
    }
}
