//! What only the members of one run know. It is never logged and never on a command line.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

/// The per-run secret: 32 random bytes. `Debug` does not show it; two are compared in constant
/// time, so that a stranger learns nothing from how long a refusal takes.
#[derive(Clone)]
pub struct Secret([u8; Self::BYTES]);

/// Why a text is no secret, or none could be made.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the secret has {got} characters: want {want} hexadecimal digits")]
    Length { got: usize, want: usize },
    #[error("the secret has something else than a hexadecimal digit at character {at}")]
    Digit { at: usize },
    #[error("reading random bytes from /dev/urandom")]
    Random { source: io::Error },
}

impl Secret {
    /// Its length, as the data plane's MAC key.
    pub const BYTES: usize = 32;

    /// A new one, from the system's generator.
    pub fn random() -> Result<Self, SecretError> {
        let mut bytes = [0; Self::BYTES];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .map_err(|source| SecretError::Random { source })?;
        Ok(Self(bytes))
    }

    /// Reads what `to_hex` wrote. White space around it is ignored.
    pub fn from_hex(text: &str) -> Result<Self, SecretError> {
        let digits = text.trim().as_bytes();
        let want = 2 * Self::BYTES;
        if digits.len() != want {
            return Err(SecretError::Length { got: digits.len(), want });
        }
        let digit = |at: usize| {
            let value =
                char::from(digits[at]).to_digit(16).ok_or(SecretError::Digit { at: at + 1 });
            value.map(|value| value as u8)
        };
        let mut bytes = [0; Self::BYTES];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = digit(2 * i)? << 4 | digit(2 * i + 1)?;
        }
        Ok(Self(bytes))
    }

    /// 64 lower-case hexadecimal digits: for the worker's standard input and the gRPC metadata.
    pub fn to_hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// The key of the data plane's handshake.
    pub fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl PartialEq for Secret {
    /// `blake3::Hash` compares in constant time.
    fn eq(&self, other: &Self) -> bool {
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_survives_its_text_form_and_hides_in_debug() {
        let secret = Secret::random().unwrap();
        let text = secret.to_hex();
        assert_eq!(Secret::from_hex(&format!("{text}\n")).unwrap(), secret);
        assert_eq!(Secret::from_hex(&text.to_uppercase()).unwrap(), secret);
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert_ne!(Secret::random().unwrap(), secret);
    }

    #[test]
    fn a_broken_text_is_refused_without_being_repeated() {
        let message = |text: &str| Secret::from_hex(text).unwrap_err().to_string();
        assert_eq!(message("abc"), "the secret has 3 characters: want 64 hexadecimal digits");
        let bad = format!("{}x{}", "a".repeat(9), "b".repeat(54));
        let want = "the secret has something else than a hexadecimal digit at character 10";
        assert_eq!(message(&bad), want);
    }
}
