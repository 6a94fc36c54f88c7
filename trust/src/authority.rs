//! The cluster's authority: one key, one certificate, and what is signed with them.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;

use crate::files::{self, Aside};
use crate::pin::hex;
use crate::{Identity, Name, Pin, TrustError, certificate, identity_of, tls};

pub(crate) const CA_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";

const LIFE: Duration = Duration::from_hours(24 * 3652);

/// Certificates begin so much before they are signed: not every rig's clock is right.
const CLOCKS_APART: Duration = Duration::from_mins(5);

const SERIAL_BYTES: usize = 16;

/// A signing request of ours has some 400 bytes.
const REQUEST_BYTES_MAX: usize = 8 << 10;

/// The CA. Whoever has its key can be anybody in the cluster.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
}

/// What the authority says of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    pub certificate_pem: String,
    /// In hexadecimal, as `identity_of` reads it.
    pub serial: String,
    pub not_after: SystemTime,
}

impl Authority {
    /// A new one: ECDSA P-256, ten years, and nobody may sign in its name.
    pub fn create(cluster: &Name, now: SystemTime) -> Result<Self, TrustError> {
        let key = KeyPair::generate()?;
        // Two clusters of one name are told apart: "unknown issuer" says more than "bad signature".
        let which: [u8; 4] = tls::random()?;
        let subject = format!("shoal cluster {cluster} {}", hex(&which));
        let mut params = params(&subject, [now, now + LIFE])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key)?;
        Self::new(certificate.pem(), key)
    }

    /// Writes `ca.key`, which only its owner may read, and `ca.pem`, for everybody. There must be
    /// none yet.
    pub fn save(&self, dir: &Path) -> Result<(), TrustError> {
        files::directory(dir)?;
        // The key decides: of two who begin at once, the second fails before it wrote anything.
        let key = self.issuer.key().serialize_pem();
        Aside::private(&dir.join(KEY_FILE), &key)?.create()?;
        Aside::public(&dir.join(CA_FILE), &self.certificate_pem)?.replace()?;
        files::sync(dir)
    }

    /// Reads what `save` wrote.
    pub fn open(dir: &Path) -> Result<Self, TrustError> {
        let path = dir.join(KEY_FILE);
        let key = files::read_private(&path)?;
        let key = KeyPair::from_pem(&key).map_err(|error| TrustError::Damaged {
            what: path.display().to_string(),
            why: error.to_string(),
            want: "a private key",
        })?;
        Self::new(files::read_public(&dir.join(CA_FILE))?, key)
    }

    fn new(certificate_pem: String, key: KeyPair) -> Result<Self, TrustError> {
        let certificate = certificate::from_pem(&certificate_pem, CA_FILE)?;
        if !certificate::has_key(&certificate, &key.subject_public_key_info())? {
            return Err(TrustError::Mismatch {
                what: CA_FILE.to_owned(),
                with: KEY_FILE.to_owned(),
                mend: "put back the two that were made together",
            });
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { issuer, certificate, certificate_pem })
    }

    pub fn pin(&self) -> Pin {
        Pin::of(&self.certificate)
    }

    /// What members believe.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    #[cfg(test)]
    pub(crate) fn issuer_for_tests(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// Says that whoever has the key of this request is `identity`. What the request calls itself is
    /// not even looked at; that its sender has the key, its own signature proves.
    pub fn sign(
        &self,
        request_pem: &str,
        identity: &Identity,
        life: Duration,
        now: SystemTime,
    ) -> Result<Signed, TrustError> {
        let [not_before, not_after] = certificate::life(&self.certificate)?;
        if now < not_before || now >= not_after {
            let why = format!("{:?} is not within its ten years", now.duration_since(not_before));
            return Err(TrustError::Expired { why });
        }
        let key = requested_key(request_pem)?;
        let name = identity.name.as_str();
        let mut params = params(name, [now, (now + life).min(not_after)])?;
        let uri = identity.uri().as_str().try_into()?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if identity.role.serves() {
            let dialed_as = identity.dialed_as().as_str().try_into()?;
            params.subject_alt_names.push(SanType::DnsName(dialed_as));
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let certificate = params.signed_by(&key.public_key, &self.issuer)?;
        let (_, serial, not_after) = identity_of(certificate.der())?;
        Ok(Signed { certificate_pem: certificate.pem(), serial, not_after })
    }
}

/// The request, its signature checked. Only keys of the one kind that we make ourselves are taken.
fn requested_key(request_pem: &str) -> Result<CertificateSigningRequestParams, TrustError> {
    let no = |why: String| TrustError::Request { why };
    if request_pem.len() > REQUEST_BYTES_MAX {
        let n = request_pem.len();
        return Err(no(format!("it has {n} bytes, at most {REQUEST_BYTES_MAX}")));
    }
    let request = CertificateSigningRequestParams::from_pem(request_pem);
    let request = request.map_err(|error| no(error.to_string()))?;
    // The algorithm is that of its signature; the length is that of an uncompressed point of P-256.
    let is_p256 = *request.public_key.algorithm() == rcgen::PKCS_ECDSA_P256_SHA256
        && request.public_key.der_bytes().len() == 65;
    if is_p256 { Ok(request) } else { Err(no("its key is not ECDSA P-256".to_owned())) }
}

/// What all our certificates have in common.
fn params(common_name: &str, life: [SystemTime; 2]) -> Result<CertificateParams, TrustError> {
    let mut serial: [u8; SERIAL_BYTES] = tls::random()?;
    // Positive and of one length, however DER writes numbers.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = (life[0] - CLOCKS_APART).into();
    params.not_after = life[1].into();
    Ok(params)
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("pin", &self.pin()).finish_non_exhaustive()
    }
}
