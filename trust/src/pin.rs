//! The fingerprint of a cluster's authority: what an invitation carries instead of the certificate.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use crate::TrustError;
use crate::certificate;

/// SHA-256 of the CA certificate's DER.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin([u8; 32]);

impl Pin {
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// Of a CA certificate as it was sent or stored.
    pub fn of_pem(ca_pem: &str) -> Result<Self, TrustError> {
        Ok(Self::of(&certificate::from_pem(ca_pem, "the CA certificate")?))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

impl FromStr for Pin {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        from_hex(text).map(Self).map_err(|why| TrustError::Pin { why })
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Reads lower-case hexadecimal digits. What is wrong is said without the text.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return Err(format!("it has {} characters, want {}", text.chars().count(), 2 * N));
    }
    let digit = |at: usize| match digits[at] {
        digit @ b'0'..=b'9' => Ok(digit - b'0'),
        digit @ b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(format!("character {} is not one of 0-9, a-f", at + 1)),
    };
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = digit(2 * i)? << 4 | digit(2 * i + 1)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_survives_its_text_and_is_refused_in_words() {
        let pin = Pin::of(&CertificateDer::from(&b"abc"[..]));
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(pin.to_string(), text);
        assert_eq!(text.parse::<Pin>().unwrap(), pin);
        let why = |text: &str| text.parse::<Pin>().unwrap_err().to_string();
        assert!(why(&text[1..]).contains("63 characters, want 64"));
        assert!(why(&text.replace('b', "B")).contains("character 1 is not one of 0-9, a-f"));
        assert!(why(&"é".repeat(32)).contains("character 1"));
    }
}
