//! The first words on a connection to a relay. Whoever connects proves by TLS who it is, says in one message of fixed
//! length whom it wants, and waits. When both are there each is told so, says one byte in clear, and from then on the
//! relay passes bytes on as they come: they are the TLS of the two ends, to which the relay has no key.
//!
//! Magic 8, version 2, purpose 1, role 1, generation 8, length of the run's id 1, the id 64, length of the peer's
//! name 1, the name 63; little endian. The answer is a byte 0, or 1 or 2 and the reason in words (u16 length).

use shoal_plan::plan::{Generation, RunId};

use crate::Name;

/// Spoken with a relay by ALPN, and nothing else is.
pub const PROTOCOL: &[u8] = b"shoal-relay/1";

pub const ASKED_BYTES: usize = 149;
pub const GO_ON: u8 = 0;
/// The relay does not serve this.
pub const REFUSED: u8 = 1;
/// It would, and the other end is not there.
pub const NOBODY: u8 = 2;
pub const REASON_BYTES_MAX: usize = 512;
/// The only byte of an end that is neither the relay's TLS nor the other end's: it has read that it may go on.
pub const BEGIN: u8 = 7;

const MAGIC: [u8; 8] = *b"SHOALRLY";
const VERSION: u16 = 1;
const RUN_BYTES_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 63;

/// What the connection is for: only ends that want the same meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The data plane of this generation.
    Data(Generation),
    /// Snapshots.
    Vault,
}

/// Each connection has one end of either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Calls,
    Waits,
}

impl Role {
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Calls => Self::Waits,
            Self::Waits => Self::Calls,
        }
    }
}

/// What an end wants of a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub run: RunId,
    pub purpose: Purpose,
    pub role: Role,
    /// The other end, by its rig's name.
    pub peer: Name,
}

impl Asked {
    /// # Errors
    /// The run's id is longer than any is.
    pub fn encode(&self) -> Result<[u8; ASKED_BYTES], String> {
        let (run, peer) = (self.run.0.as_bytes(), self.peer.as_str().as_bytes());
        if run.len() > RUN_BYTES_MAX || peer.len() > NAME_BYTES_MAX {
            return Err(format!("{:?} is no id of a run", self.run.0));
        }
        let (purpose, generation) = match self.purpose {
            Purpose::Data(generation) => (1, generation.0),
            Purpose::Vault => (2, 0),
        };
        let mut bytes = [0; ASKED_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10] = purpose;
        bytes[11] = match self.role {
            Role::Calls => 1,
            Role::Waits => 2,
        };
        bytes[12..20].copy_from_slice(&generation.to_le_bytes());
        bytes[20] = run.len() as u8;
        bytes[21..21 + run.len()].copy_from_slice(run);
        bytes[85] = peer.len() as u8;
        bytes[86..86 + peer.len()].copy_from_slice(peer);
        Ok(bytes)
    }

    /// # Errors
    /// What is wrong, as a sentence.
    pub fn decode(bytes: &[u8; ASKED_BYTES]) -> Result<Self, String> {
        if bytes[..8] != MAGIC {
            return Err("it does not speak to a relay of shoal".to_owned());
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(format!(
                "it speaks version {version} of the relay's words, want {VERSION}"
            ));
        }
        let mut generation = [0; 8];
        generation.copy_from_slice(&bytes[12..20]);
        let purpose = match bytes[10] {
            1 => Purpose::Data(Generation(u64::from_le_bytes(generation))),
            2 => Purpose::Vault,
            other => return Err(format!("a connection for {other}, want 1 or 2")),
        };
        let role = match bytes[11] {
            1 => Role::Calls,
            2 => Role::Waits,
            other => return Err(format!("an end of kind {other}, want 1 or 2")),
        };
        let text = |at: usize, most: usize| {
            let length = usize::from(bytes[at]).min(most);
            String::from_utf8(bytes[at + 1..at + 1 + length].to_vec())
                .map_err(|_| "a name that is no text".to_owned())
        };
        let peer = text(85, NAME_BYTES_MAX)?.parse();
        let peer = peer.map_err(|error: shoal_trust::TrustError| error.to_string())?;
        Ok(Self { run: RunId(text(20, RUN_BYTES_MAX)?), purpose, role, peer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(purpose: Purpose, role: Role) -> Asked {
        Asked { run: RunId("5e".repeat(32)), purpose, role, peer: "n".repeat(63).parse().unwrap() }
    }

    #[test]
    fn what_is_asked_survives_the_wire() {
        for purpose in [Purpose::Data(Generation(1 << 40)), Purpose::Vault] {
            for role in [Role::Calls, Role::Waits] {
                let asked = asked(purpose, role);
                assert_eq!(Asked::decode(&asked.encode().unwrap()), Ok(asked));
            }
        }
        let long = Asked { run: RunId("5".repeat(65)), ..asked(Purpose::Vault, Role::Calls) };
        assert!(long.encode().unwrap_err().contains("no id of a run"));
    }

    #[test]
    fn what_is_no_question_is_refused_in_words() {
        let good = asked(Purpose::Vault, Role::Calls).encode().unwrap();
        for (at, byte, why) in [
            (0, 0, "does not speak to a relay"),
            (8, 9, "speaks version 9"),
            (10, 3, "a connection for 3"),
            (11, 0, "an end of kind 0"),
            (85, 0, "1 to 63 of A-Z"),
            (86, b'/', "1 to 63 of A-Z"),
            (86, 0xff, "no text"),
        ] {
            let mut bytes = good;
            bytes[at] = byte;
            assert!(Asked::decode(&bytes).unwrap_err().contains(why), "{why}");
        }
    }
}
