//! Names and roles, and what a certificate's owner is called when it is dialed.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::{DnsName, ServerName};
use sha2::{Digest, Sha256};

use crate::TrustError;
use crate::error::shown;
use crate::pin::hex;

/// What every coordinator is dialed as, wherever it is.
pub const SERVER_NAME: &str = "coordinator.shoal.internal";

const NAME_BYTES_MAX: usize = 63;

/// Bytes of a name's hash in what it is dialed as: nobody finds two names of one hash.
const LABEL_BYTES: usize = 16;

/// What a member is called: safe in logs, paths, labels and URIs as it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_allowed);
        if fits && !text.starts_with(['.', '-']) {
            return Ok(Self(text.to_owned()));
        }
        Err(TrustError::Name { got: shown(text) })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a member is there for. Which calls that allows is the coordinator's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Coordinator,
    Admin,
    Worker,
    Viewer,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Coordinator, Self::Admin, Self::Worker, Self::Viewer];

    /// Whether others may dial it: its certificate is good for a server.
    pub fn serves(self) -> bool {
        matches!(self, Self::Coordinator | Self::Worker)
    }
}

impl FromStr for Role {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let known = Self::ALL.into_iter().find(|role| role.to_string() == text);
        known.ok_or_else(|| TrustError::Role { got: shown(text) })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coordinator => "coordinator",
            Self::Admin => "admin",
            Self::Worker => "worker",
            Self::Viewer => "viewer",
        })
    }
}

/// Who somebody is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    pub name: Name,
    pub role: Role,
}

const SCHEME: &str = "shoal://";

impl Identity {
    /// As it stands in the certificate.
    pub(crate) fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.role, self.name)
    }

    pub(crate) fn from_uri(uri: &str) -> Result<Self, TrustError> {
        let parts = uri.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/'));
        let (role, name) = parts
            .ok_or_else(|| TrustError::Identity { why: format!("it has {:?}", shown(uri)) })?;
        Ok(Self { name: name.parse()?, role: role.parse()? })
    }

    /// What it is dialed as. A worker's name is hashed: DNS does not tell `Rig` from `rig`, and
    /// allows fewer characters.
    pub(crate) fn dialed_as(&self) -> String {
        if self.role == Role::Coordinator {
            return SERVER_NAME.to_owned();
        }
        let hash = Sha256::digest(self.name.as_str());
        format!("{}.{}.shoal.internal", hex(&hash[..LABEL_BYTES]), self.role)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

/// What to dial somebody as, so that nobody else can answer. Admins and viewers cannot be dialed:
/// no certificate of theirs answers to the name that this gives.
pub fn server_name(identity: &Identity) -> ServerName<'static> {
    let name = DnsName::try_from(identity.dialed_as());
    ServerName::DnsName(name.expect("hexadecimal digits and constants are a DNS name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_wherever_they_are_shown() {
        for good in ["a", "Rig-7", "_x", "0", "a.b-c_d", &"n".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().to_string(), good);
        }
        let long = "n".repeat(64);
        for bad in ["", ".", "..", "-x", ".x", "a b", "a/b", "a\n", "é", "a\0", "<img>", &long] {
            let error = bad.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains("1 to 63 of A-Z"), "{error}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn an_identity_survives_its_uri_and_nothing_else_is_one() {
        for role in Role::ALL {
            let identity = Identity { name: "Rig-7".parse().unwrap(), role };
            assert_eq!(Identity::from_uri(&identity.uri()).unwrap(), identity);
        }
        for uri in [
            "shoal://worker",
            "shoal://worker/",
            "shoal://worker/a/b",
            "shoal://king/a",
            "shoal://Worker/a",
            "SHOAL://worker/a",
            "https://worker/a",
            "shoal://worker/%61",
            " shoal://worker/a",
        ] {
            assert!(Identity::from_uri(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn no_two_members_are_dialed_by_one_name() {
        let dialed = |name: &str, role| {
            let name = name.parse().unwrap();
            server_name(&Identity { name, role }).to_str().into_owned()
        };
        assert_ne!(dialed("Rig", Role::Worker), dialed("rig", Role::Worker));
        assert_ne!(dialed("rig", Role::Worker), dialed("rig", Role::Viewer));
        assert_eq!(dialed("a", Role::Coordinator), SERVER_NAME);
        assert_eq!(dialed("b", Role::Coordinator), SERVER_NAME);
        // Names that DNS would not take.
        assert!(dialed("a..b_-.", Role::Worker).ends_with(".worker.shoal.internal"));
    }
}
