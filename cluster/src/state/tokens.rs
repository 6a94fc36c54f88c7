//! Who may join: tokens by the hash of their secret, with an end and so many uses; and certificates that count no
//! more.

use serde::{Deserialize, Serialize};
use shoal_trust::Role;

use super::{Cluster, Key, RigName, RigRecord};
use crate::words::TokenStatus;

/// Tokens that are kept at most: whoever wants more revokes some.
const TOKENS_MAX: usize = 1_000;

/// Certificates of one rig that are good at a time: it has two while one is being renewed.
const CERTIFICATES_MAX: usize = 32;

/// A rig that is away is forgotten so long after its last certificate was over: its name is free again.
const RIG_KEPT_SECONDS: u64 = 30 * 24 * 3600;

/// What is written down of a token: nothing that lets anybody join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    pub hash: String,
    pub role: String,
    pub uses_left: u32,
    /// Seconds of the calendar.
    pub expires: u64,
}

impl TokenRecord {
    pub(super) fn is_good(&self, unix: u64) -> bool {
        self.uses_left > 0 && unix < self.expires
    }

    pub(super) fn status(&self, id: &str, unix: u64) -> TokenStatus {
        TokenStatus {
            id: id.to_owned(),
            role: self.role.clone(),
            uses_left: self.uses_left,
            seconds_left: self.expires as i64 - unix as i64,
        }
    }
}

impl Cluster {
    /// Keeps a new token; those that are over are forgotten first.
    pub fn add_token(
        &mut self,
        id: &str,
        record: TokenRecord,
        unix: u64,
    ) -> Result<TokenStatus, String> {
        let over: Vec<String> = self
            .tokens
            .iter()
            .filter(|(_, token)| !token.is_good(unix))
            .map(|(id, _)| id.clone())
            .collect();
        for id in over {
            self.remove_token(&id);
        }
        if self.tokens.len() >= TOKENS_MAX {
            return Err(format!("there are {TOKENS_MAX} tokens already: revoke some"));
        }
        let status = record.status(id, unix);
        self.tokens.insert(id.to_owned(), record);
        self.changed.insert(Key::Token(id.to_owned()));
        Ok(status)
    }

    pub(super) fn remove_token(&mut self, id: &str) -> bool {
        self.changed.insert(Key::Token(id.to_owned()));
        self.tokens.remove(id).is_some()
    }

    /// Takes one use of a token, if `matches` says that its secret fits the hash. The role it gives. Whatever is
    /// wrong is the same to whoever asks: nothing is said of it.
    pub fn use_token(
        &mut self,
        id: &str,
        unix: u64,
        matches: impl FnOnce(&str) -> bool,
    ) -> Option<Role> {
        let token = self.tokens.get_mut(id)?;
        if !matches(&token.hash) || !token.is_good(unix) {
            return None;
        }
        let role = token.role.parse().ok()?;
        token.uses_left -= 1;
        self.changed.insert(Key::Token(id.to_owned()));
        Some(role)
    }

    /// A certificate was signed for a rig: the one before it still counts, until it ends.
    ///
    /// # Errors
    /// It has so many that are good still that this one must not be given to it.
    pub fn rig_has(
        &mut self,
        rig: &str,
        (serial, until): (&str, u64),
        unix: u64,
    ) -> Result<(), String> {
        self.forget_rigs_long_gone(unix);
        let certificates = &mut self.rigs.entry(rig.to_owned()).or_default().certificates;
        certificates.retain(|_, until| *until >= unix);
        if certificates.len() >= CERTIFICATES_MAX {
            return Err(format!("{rig} has {CERTIFICATES_MAX} certificates that are good still"));
        }
        certificates.insert(serial.to_owned(), until);
        self.changed.insert(Key::Rig(rig.to_owned()));
        Ok(())
    }

    /// Of rigs that nobody has seen for long nothing is kept: they could come back with a new token alone.
    fn forget_rigs_long_gone(&mut self, unix: u64) {
        let long_over = |record: &RigRecord| {
            record.certificates.values().all(|until| until + RIG_KEPT_SECONDS < unix)
        };
        let gone: Vec<RigName> = self
            .rigs
            .iter()
            .filter(|(rig, record)| self.away_since_ms.contains_key(*rig) && long_over(record))
            .map(|(rig, _)| rig.clone())
            .collect();
        for rig in gone {
            self.forget_rig(&rig);
        }
    }

    pub(super) fn forget_rig(&mut self, rig: &str) {
        self.rigs.remove(rig);
        self.heard_ms.remove(rig);
        self.away_since_ms.remove(rig);
        self.reach.forget(rig);
        self.changed.insert(Key::Rig(rig.to_owned()));
    }

    /// A certificate counts no more; whoever would be past their end anyway are forgotten.
    pub(super) fn deny(&mut self, serial: &str, until: u64, unix: u64) {
        let past: Vec<String> = self
            .denied
            .iter()
            .filter(|(_, until)| **until < unix)
            .map(|(serial, _)| serial.clone())
            .collect();
        for serial in past {
            self.denied.remove(&serial);
            self.changed.insert(Key::Denied(serial));
        }
        self.denied.insert(serial.to_owned(), until);
        self.changed.insert(Key::Denied(serial.to_owned()));
    }
}
