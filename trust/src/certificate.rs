//! What is read from certificates: the identity of their owner, and whether two belong together.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::identity::Identity;
use crate::pin::hex;
use crate::{Role, TrustError};

/// Larger than any of ours, which have some 600 bytes.
const PEM_BYTES_MAX: usize = 16 << 10;

/// Who a certificate says its owner is, its serial number in hexadecimal, and when it ends. Whether
/// any of it is true is the business of whoever verified its signature.
pub fn identity_of(
    certificate: &CertificateDer<'_>,
) -> Result<(Identity, String, SystemTime), TrustError> {
    let parsed = parse(certificate, "the certificate")?;
    let names = parsed.subject_alternative_name();
    let names = names.map_err(|error| TrustError::Identity { why: error.to_string() })?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let &[uri] = uris.as_slice() else {
        return Err(TrustError::Identity { why: format!("it has {} URIs", uris.len()) });
    };
    let identity = Identity::from_uri(uri)?;
    Ok((identity, serial(&parsed), at(parsed.validity().not_after.timestamp())))
}

/// Its life, from and to.
pub(crate) fn life(certificate: &CertificateDer<'_>) -> Result<[SystemTime; 2], TrustError> {
    let parsed = parse(certificate, "the certificate")?;
    let validity = parsed.validity();
    Ok([validity.not_before, validity.not_after].map(|time| at(time.timestamp())))
}

/// Reads the one certificate of a text.
pub(crate) fn from_pem(pem: &str, what: &str) -> Result<CertificateDer<'static>, TrustError> {
    let damaged =
        |why: String| TrustError::Damaged { what: what.to_owned(), why, want: "one certificate" };
    if pem.len() > PEM_BYTES_MAX {
        return Err(damaged(format!("it has {} bytes, at most {PEM_BYTES_MAX}", pem.len())));
    }
    let mut found = CertificateDer::pem_slice_iter(pem.as_bytes());
    let first = found.next().ok_or_else(|| damaged("it holds none".to_owned()))?;
    let certificate = first.map_err(|error| damaged(error.to_string()))?;
    if found.next().is_some() {
        return Err(damaged("it holds more than one".to_owned()));
    }
    parse(&certificate, what)?;
    Ok(certificate)
}

/// Whether the CA of this certificate signed that one, and for a member: not another authority.
pub(crate) fn is_signed_by(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
) -> Result<bool, TrustError> {
    let ca = parse(ca, "the CA certificate")?;
    let certificate = parse(certificate, "the certificate")?;
    Ok(ca.is_ca()
        && !certificate.is_ca()
        && certificate.issuer() == ca.subject()
        && certificate.verify_signature(Some(ca.public_key())).is_ok())
}

/// Whether it holds this public key, given in full with its algorithm.
pub(crate) fn has_key(
    certificate: &CertificateDer<'_>,
    key_info: &[u8],
) -> Result<bool, TrustError> {
    Ok(parse(certificate, "the certificate")?.public_key().raw == key_info)
}

/// A role's certificate is needed; tells who has which.
pub(crate) fn wants(identity: &Identity, want: &str) -> TrustError {
    let (subject, got) = (identity.to_string(), identity.role);
    let got = match got {
        Role::Admin | Role::Viewer => format!("a client ({got})"),
        Role::Coordinator | Role::Worker => got.to_string(),
    };
    TrustError::Purpose { subject, got, want: want.to_owned() }
}

fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
    what: &str,
) -> Result<X509Certificate<'a>, TrustError> {
    let damaged =
        |why: String| TrustError::Damaged { what: what.to_owned(), why, want: "one certificate" };
    let (rest, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| damaged(format!("it is no X.509 certificate ({error})")))?;
    if !rest.is_empty() {
        return Err(damaged(format!("{} bytes follow it", rest.len())));
    }
    Ok(parsed)
}

/// As the serial's number, whatever zeros DER puts before it.
fn serial(certificate: &X509Certificate<'_>) -> String {
    let bytes = certificate.raw_serial();
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    hex(&bytes[zeros..])
}

fn at(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0) as u64)
}
