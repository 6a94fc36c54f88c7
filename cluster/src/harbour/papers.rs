//! Certificates: this process's own, those of members, and how tokens are tried.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use shoal_coordinator::timed::Pass;
use shoal_proto::relay;
use shoal_trust::{Clients, Credentials, Identity, Name, Pin, Request, Role, Token, TrustError};

use super::{Harbour, Paper, Settings, Stranger};
use crate::clock::{self, unix};
use crate::launchers::calling;
use crate::server::Denied;
use crate::state::TokenRecord;
use crate::words::{Answer, NewToken};

/// Of this process; renewed as others are.
const OWN_LIFE: Duration = Duration::from_hours(30 * 24);

/// Of people, who come back less often than rigs.
const PEOPLE_LIFE: Duration = Duration::from_hours(90 * 24);

/// Tokens are good for at most so long, and so often.
const TOKEN_SECONDS_MAX: u64 = 30 * 24 * 3600;
const TOKEN_USES_MAX: u32 = 10_000;

/// An address that was wrong so often within this time waits for its end.
const FAILURES_MAX: u32 = 5;
const FAILURES_SECONDS: u64 = 60;

/// Addresses that are remembered: whoever has more of them than this is not slowed down.
const ADDRESSES_MAX: usize = 10_000;

/// What all refusals of a token say: nothing about what is wrong with it.
const REFUSED: &str = "the token was refused: it is wrong, used up, over, or revoked. `shoal token create` on the \
                       coordinator's machine makes a new one";

/// What this process shows.
pub(super) struct Own {
    pub(super) config: Arc<ServerConfig>,
    pub(super) due: SystemTime,
}

/// Signs a certificate for this process, and makes what TLS needs.
pub(super) fn own(settings: &Settings, denied: &Denied) -> Result<Own, TrustError> {
    let now = clock::now();
    let name: Name = "coordinator".parse()?;
    let identity = Identity { name: name.clone(), role: Role::Coordinator };
    let request = Request::new(&name)?;
    let signed = settings.authority.sign(request.pem(), &identity, OWN_LIFE, now)?;
    let ca = settings.authority.certificate_pem();
    let credentials = Credentials::new(ca, &signed.certificate_pem, request)?;
    let denied = Arc::clone(denied);
    let is_denied =
        move |serial: &str| denied.read().unwrap_or_else(PoisonError::into_inner).contains(serial);
    let mut config = (*credentials.server(is_denied, Clients::Optional)?).clone();
    let protocols = [b"h2".as_slice(), calling::PROTOCOL, relay::PROTOCOL];
    config.alpn_protocols = protocols.map(<[u8]>::to_vec).to_vec();
    Ok(Own { config: Arc::new(config), due: now + OWN_LIFE * 2 / 3 })
}

/// Who tried which wrong tokens.
#[derive(Debug, Default)]
pub(super) struct Failures(BTreeMap<IpAddr, (u32, u64)>);

impl Failures {
    fn may_try(&self, address: Option<IpAddr>, unix: u64) -> bool {
        let known = address.and_then(|address| self.0.get(&address));
        known.is_none_or(|(times, since)| *times < FAILURES_MAX || since + FAILURES_SECONDS <= unix)
    }

    fn failed(&mut self, address: Option<IpAddr>, unix: u64) {
        let Some(address) = address else { return };
        if self.0.len() >= ADDRESSES_MAX {
            self.0.retain(|_, (_, since)| *since + FAILURES_SECONDS > unix);
        }
        if self.0.len() < ADDRESSES_MAX || self.0.contains_key(&address) {
            let (times, since) = self.0.entry(address).or_insert((0, unix));
            if *since + FAILURES_SECONDS <= unix {
                (*times, *since) = (0, unix);
            }
            *times += 1;
        }
    }
}

/// Whoever is expelled has so long to hear that it is; then its connections end, and with them its sessions with
/// the coordinators of runs.
const FAREWELL: Duration = Duration::from_secs(1);

impl Harbour {
    /// What is denied was written down: calls and new connections with it are refused from now on.
    pub(super) fn deny(&self) {
        let serials = self.state.denied().keys().cloned().collect();
        *self.denied.write().unwrap_or_else(PoisonError::into_inner) = serials;
    }

    /// Ends the connections that a rig has now, in a moment. Those were opened with whatever certificate it had then.
    pub(super) fn cut(&self, rig: &str) {
        let Ok(name) = rig.parse::<Name>() else { return };
        let passes = self.places.passes_of(&Identity { name, role: Role::Worker });
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            passes.iter().for_each(Pass::cut);
        });
    }

    pub(super) fn renew_own(&mut self) {
        if clock::now() < self.own_due {
            return;
        }
        match own(&self.settings, &self.denied) {
            Ok(own) => {
                *self.tls.write().unwrap_or_else(PoisonError::into_inner) = own.config;
                self.own_due = own.due;
            }
            Err(error) => {
                tracing::error!(%error, "the coordinator's certificate cannot be renewed");
                self.own_due += Duration::from_mins(10);
            }
        }
    }

    pub(super) fn enrol(&mut self, stranger: Stranger) -> Result<Paper, String> {
        let Stranger { address, token_id, token_secret, name, request_pem } = stranger;
        let now = unix();
        let shown_address = address.map_or_else(|| "?".to_owned(), |address| address.to_string());
        if !self.failures.may_try(address, now) {
            self.metrics.tokens_refused.inc();
            tracing::warn!(address = shown_address, "too many wrong tokens: not looked at");
            return Err(REFUSED.to_owned());
        }
        let name: Name = name.parse().map_err(|error: TrustError| error.to_string())?;
        let matches = |hash: &str| Token::matches(hash, &token_secret);
        let Some(role) = self.state.use_token(&token_id, now, matches) else {
            self.metrics.tokens_refused.inc();
            self.failures.failed(address, now);
            tracing::warn!(address = shown_address, "a token was refused");
            return Err(REFUSED.to_owned());
        };
        if role == Role::Worker && self.state.rig(name.as_str()).is_some() {
            return Err(format!(
                "there is a rig {name} already. If it is this one and has lost its certificate, `shoal expel {name}` \
                 lets it join anew; else choose another name with --name. The token has one use less"
            ));
        }
        tracing::info!(%name, %role, address = shown_address, "joins with a token");
        self.metrics.enrolments.inc();
        self.sign(&Identity { name, role }, &request_pem)
    }

    /// Signs for a member whose name and role are proven.
    pub(super) fn sign(&mut self, identity: &Identity, request_pem: &str) -> Result<Paper, String> {
        let life = if identity.role == Role::Worker { self.settings.life } else { PEOPLE_LIFE };
        let now = clock::now();
        let signed = self.settings.authority.sign(request_pem, identity, life, now);
        let signed = signed.map_err(|error| error.to_string())?;
        if identity.role == Role::Worker {
            let certificate = (signed.serial.as_str(), clock::unix_of(signed.not_after));
            self.state.rig_has(identity.name.as_str(), certificate, unix())?;
        }
        let ca_pem = self.settings.authority.certificate_pem().to_owned();
        Ok(Paper { certificate_pem: signed.certificate_pem, ca_pem })
    }

    pub(super) fn create_token(&mut self, new: &NewToken) -> Answer {
        let role = match new.role.parse() {
            Ok(Role::Coordinator) | Err(_) => {
                let what = format!("there is no token for the role {:?}", new.role);
                return Answer::Refused(format!("{what}: want worker, viewer or admin"));
            }
            Ok(role @ (Role::Worker | Role::Viewer | Role::Admin)) => role,
        };
        if !(1..=TOKEN_USES_MAX).contains(&new.uses)
            || !(1..=TOKEN_SECONDS_MAX).contains(&new.seconds)
        {
            return Answer::Refused(format!(
                "a token is good for 1 to {TOKEN_USES_MAX} uses and at most 30 days"
            ));
        }
        let pin: Pin = self.settings.authority.pin();
        let token = match Token::create(pin) {
            Ok(token) => token,
            Err(error) => return Answer::Refused(error.to_string()),
        };
        let now = unix();
        let record = TokenRecord {
            hash: token.hash(),
            role: role.to_string(),
            uses_left: new.uses,
            expires: now + new.seconds,
        };
        match self.state.add_token(&token.id, record, now) {
            Ok(status) => Answer::Token { token: token.text(), status },
            Err(why) => Answer::Refused(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_wrong_too_often_waits_and_others_do_not() {
        let mut failures = Failures::default();
        let (bad, good) = (Some([10, 0, 0, 1].into()), Some([10, 0, 0, 2].into()));
        for _ in 0..FAILURES_MAX {
            assert!(failures.may_try(bad, 100));
            failures.failed(bad, 100);
        }
        assert!(!failures.may_try(bad, 100 + FAILURES_SECONDS - 1) && failures.may_try(good, 100));
        assert!(failures.may_try(bad, 100 + FAILURES_SECONDS));
        failures.failed(bad, 100 + FAILURES_SECONDS);
        assert!(failures.may_try(bad, 100 + FAILURES_SECONDS), "it begins anew");
    }
}
