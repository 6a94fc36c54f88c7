//! What a setting's value may be.

use std::net::{IpAddr, SocketAddr};

use crate::device::DeviceChoice;

/// The form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Never shown.
    Secret,
    /// A file or a directory; in a file of settings from where that file is.
    Path,
    /// A name, or a directory where there is a slash.
    Cluster,
    /// An address and a port of this machine.
    Socket,
    Address,
    Port,
    /// Compute threads.
    Threads,
    /// Such as `24h`.
    Time,
    Choice(&'static [&'static str]),
    /// Of `spec.workers.device`.
    Devices,
    /// Where a cluster's state is kept.
    Store,
    /// Several texts.
    Texts,
}

/// The most compute threads.
const THREADS_MAX: u32 = 1024;

impl Kind {
    pub fn takes(self, value: &str) -> bool {
        match self {
            Self::Text | Self::Secret | Self::Path | Self::Cluster | Self::Texts => {
                !value.is_empty()
            }
            Self::Socket => value.parse::<SocketAddr>().is_ok(),
            Self::Address => value.parse::<IpAddr>().is_ok(),
            Self::Port => value.parse::<u16>().is_ok(),
            Self::Threads => value.parse().is_ok_and(|n: u32| (1..=THREADS_MAX).contains(&n)),
            Self::Time => seconds(value).is_some(),
            Self::Store => value.starts_with("etcd://"),
            Self::Devices => value.parse::<DeviceChoice>().is_ok(),
            Self::Choice(words) => words.contains(&value),
        }
    }

    /// For messages and documents.
    pub fn wanted(self) -> String {
        match self {
            Self::Text | Self::Secret => "text".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Cluster => "a name, or a directory".to_owned(),
            Self::Socket => "an address and a port, such as 127.0.0.1:7400".to_owned(),
            Self::Address => "an address, such as 10.0.0.2".to_owned(),
            Self::Port => "a port, 0 to 65535".to_owned(),
            Self::Threads => format!("a whole number from 1 to {THREADS_MAX}"),
            Self::Time => "a number and s, m, h or d, such as 24h".to_owned(),
            Self::Store => "etcd://HOST:PORT[,HOST:PORT...][/PREFIX]".to_owned(),
            Self::Devices => "auto, cpu, cuda, or some GPUs, such as cuda:0,2".to_owned(),
            Self::Choice(words) => words.join(", "),
            Self::Texts => "text, or a list of texts".to_owned(),
        }
    }

    pub(super) fn is_path(self, value: &str) -> bool {
        match self {
            Self::Path => true,
            Self::Cluster => value.contains('/'),
            Self::Text
            | Self::Secret
            | Self::Socket
            | Self::Address
            | Self::Port
            | Self::Threads
            | Self::Time
            | Self::Store
            | Self::Devices
            | Self::Choice(_)
            | Self::Texts => false,
        }
    }
}

/// `90s`, `15m`, `24h` or `7d`; none for what is no time, or no time at all.
pub fn seconds(text: &str) -> Option<u64> {
    let unit = text.chars().last()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    number.checked_mul(seconds).filter(|seconds| *seconds > 0)
}
