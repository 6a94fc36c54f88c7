//! An invitation to a cluster. Whoever was given it knows which CA to believe before they say
//! anything, and has a secret to show; the cluster keeps only the secret's hash.

use std::fmt;
use std::str::FromStr;

use crate::pin::{from_hex, hex};
use crate::{Pin, TrustError, tls};

const PREFIX: &str = "shoal1";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// A token. How long and how often it is good for is the coordinator's to keep.
#[derive(Clone)]
pub struct Token {
    /// 16 hexadecimal digits, not secret: what the cluster knows it by.
    pub id: String,
    secret: [u8; SECRET_BYTES],
    pub pin: Pin,
}

impl Token {
    pub fn create(pin: Pin) -> Result<Self, TrustError> {
        let id: [u8; ID_BYTES] = tls::random()?;
        Ok(Self { id: hex(&id), secret: tls::random()?, pin })
    }

    /// What is given to whoever is invited: `shoal1.<pin>.<id>.<secret>`. A method and no `Display`,
    /// so that it gets into no log by accident.
    pub fn text(&self) -> String {
        format!("{PREFIX}.{}.{}.{}", self.pin, self.id, hex(&self.secret))
    }

    /// What is shown to the coordinator, once its certificate was held against the pin.
    pub fn secret(&self) -> &[u8; SECRET_BYTES] {
        &self.secret
    }

    /// What the cluster stores: 64 hexadecimal digits. The secret is 32 random bytes, so no slow hash
    /// would make it harder to find.
    pub fn hash(&self) -> String {
        hash(&self.secret).to_hex().to_string()
    }

    /// Whether a secret that was shown is the one whose hash is stored. Takes as long for any that is
    /// wrong.
    pub fn matches(stored: &str, secret: &[u8]) -> bool {
        // `Hash` compares in constant time.
        blake3::Hash::from_hex(stored).is_ok_and(|stored| stored == hash(secret))
    }
}

fn hash(secret: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_derive_key("shoal 2026-11 secret of a join token");
    hasher.update(secret).finalize()
}

impl FromStr for Token {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let no = |why: String| TrustError::Token { why };
        let &[prefix, pin, id, secret] = parts.as_slice() else {
            return Err(no(format!("it has {} parts between dots, want 4", parts.len())));
        };
        if prefix != PREFIX {
            return Err(no(format!("it does not begin with {PREFIX}")));
        }
        let part = |name: &str, why: String| no(format!("in its {name}, {why}"));
        let pin = pin.parse::<Pin>().map_err(|error| part("pin", error.to_string()))?;
        from_hex::<ID_BYTES>(id).map_err(|why| part("id", why))?;
        let secret = from_hex(secret).map_err(|why| part("secret", why))?;
        Ok(Self { id: id.to_owned(), secret, pin })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;

    use super::*;

    fn token() -> Token {
        Token::create(Pin::of(&CertificateDer::from(&b"ca"[..]))).unwrap()
    }

    #[test]
    fn a_token_survives_its_text_and_its_secret_matches_its_hash_alone() {
        let (token, other) = (token(), token());
        let again: Token = format!(" {}\n", token.text()).parse().unwrap();
        assert_eq!((&again.id, again.secret, again.pin), (&token.id, token.secret, token.pin));
        assert!(Token::matches(&token.hash(), again.secret()));
        assert!(!Token::matches(&token.hash(), other.secret()));
        assert!(!Token::matches(&token.hash(), &token.secret()[..31]));
        assert!(!Token::matches("", token.secret()) && !Token::matches("zz", &[]));
        assert_ne!(token.id, other.id);
    }

    #[test]
    fn what_is_wrong_with_a_token_is_said_without_saying_it() {
        let token = token();
        let text = token.text();
        let secret = hex(&token.secret);
        let cut = &text[..text.len() - 1];
        for (bad, want) in [
            ("", "it has 1 parts between dots, want 4"),
            (cut, "in its secret, it has 63 characters, want 64"),
            (&text.replace("shoal1", "shoal2"), "it does not begin with shoal1"),
            (&text.replace(&token.pin.to_string(), "00"), "in its pin, "),
            (&text.replace(&token.id, "xyz"), "in its id, it has 3 characters, want 16"),
            (&text.replace(&secret, &secret.to_uppercase()), "in its secret, character "),
        ] {
            let error = bad.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
            assert!(!error.contains(&secret[..16]), "{error}");
        }
        assert!(!format!("{token:?}").contains(&secret[..16]));
    }
}
