//! What a member has: its own key, the certificate that was signed for it, and the CA it believes.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::authority::CA_FILE;
use crate::files::{self, Aside};
use crate::tls::{self, Clients};
use crate::{Identity, Name, Pin, TrustError, certificate, identity_of};

const CERTIFICATE_FILE: &str = "certificate.pem";
const KEY_FILE: &str = "key.pem";

/// A renewal puts two files in place one after the other; who reads in between reads again.
const READS: u32 = 3;

/// A new key, and what asks the authority to sign it.
pub struct Request {
    key: KeyPair,
    pem: String,
}

impl Request {
    /// The name is for whoever reads the request: the authority decides on its own.
    pub fn new(name: &Name) -> Result<Self, TrustError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        let pem = params.serialize_request(&key)?.pem()?;
        Ok(Self { key, pem })
    }

    /// What is sent: no secret.
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

/// A member's proof of who it is. One that exists is whole: its key is the certificate's, which this
/// CA signed. Whether it is still good is a matter of time: `not_after`.
pub struct Credentials {
    ca: CertificateDer<'static>,
    ca_pem: String,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: KeyPair,
    identity: Identity,
    serial: String,
    life: [SystemTime; 2],
}

impl Credentials {
    /// From the answer to a request. Whether the CA is the right one is the caller's to ask of its
    /// pin before it believes anything.
    pub fn new(ca_pem: &str, certificate_pem: &str, request: Request) -> Result<Self, TrustError> {
        Self::of(ca_pem.to_owned(), certificate_pem.to_owned(), request.key)
    }

    fn of(ca_pem: String, certificate_pem: String, key: KeyPair) -> Result<Self, TrustError> {
        let ca = certificate::from_pem(&ca_pem, CA_FILE)?;
        let certificate = certificate::from_pem(&certificate_pem, CERTIFICATE_FILE)?;
        let apart = |with: &str| TrustError::Mismatch {
            what: CERTIFICATE_FILE.to_owned(),
            with: with.to_owned(),
            mend: "join the cluster again with a new token",
        };
        if !certificate::is_signed_by(&certificate, &ca)? {
            return Err(apart(CA_FILE));
        }
        if !certificate::has_key(&certificate, &key.subject_public_key_info())? {
            return Err(apart(KEY_FILE));
        }
        let (identity, serial, _) = identity_of(&certificate)?;
        let life = certificate::life(&certificate)?;
        Ok(Self { ca, ca_pem, certificate, certificate_pem, key, identity, serial, life })
    }

    /// Writes `ca.pem`, `certificate.pem` and `key.pem`, in the place of earlier ones.
    pub fn save(&self, dir: &Path) -> Result<(), TrustError> {
        files::directory(dir)?;
        let ca = Aside::public(&dir.join(CA_FILE), &self.ca_pem)?;
        let certificate = Aside::public(&dir.join(CERTIFICATE_FILE), &self.certificate_pem)?;
        let key = Aside::private(&dir.join(KEY_FILE), &self.key.serialize_pem())?;
        ca.replace()?;
        certificate.replace()?;
        key.replace()?;
        files::sync(dir)
    }

    /// Reads what `save` wrote.
    pub fn open(dir: &Path) -> Result<Self, TrustError> {
        let mut reads = 1;
        loop {
            match Self::read(dir) {
                Err(TrustError::Mismatch { .. }) if reads < READS => reads += 1,
                read => return read,
            }
        }
    }

    fn read(dir: &Path) -> Result<Self, TrustError> {
        let path = dir.join(KEY_FILE);
        let key = files::read_private(&path)?;
        let key = KeyPair::from_pem(&key).map_err(|error| TrustError::Damaged {
            what: path.display().to_string(),
            why: error.to_string(),
            want: "a private key",
        })?;
        let ca = files::read_public(&dir.join(CA_FILE))?;
        Self::of(ca, files::read_public(&dir.join(CERTIFICATE_FILE))?, key)
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Of the CA that is believed.
    pub fn pin(&self) -> Pin {
        Pin::of(&self.ca)
    }

    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// In hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    pub fn not_after(&self) -> SystemTime {
        self.life[1]
    }

    /// Whether it is time for a new one: two thirds of its life are over, and a third is left to
    /// find a coordinator in.
    pub fn is_due(&self, now: SystemTime) -> bool {
        let [from, to] = self.life;
        let life = to.duration_since(from).unwrap_or_default();
        now >= from + life * 2 / 3
    }

    /// For whoever listens. A client's certificate must be of the same CA, of its time, say an
    /// identity, and have no serial for which `denied` says so.
    pub fn server(
        &self,
        denied: impl Fn(&str) -> bool + Send + Sync + 'static,
        clients: Clients,
    ) -> Result<Arc<ServerConfig>, TrustError> {
        if !self.identity.role.serves() {
            return Err(certificate::wants(&self.identity, "a server (coordinator or worker)"));
        }
        let verifier = tls::client_verifier(&self.ca, Box::new(denied), clients)?;
        tls::server(self.chain(), self.key_der(), verifier)
    }

    /// For whoever dials: shows its certificate, and accepts only what `server_name` of an identity
    /// of the same CA answers to.
    pub fn client(&self) -> Result<Arc<ClientConfig>, TrustError> {
        tls::client(tls::server_verifier(&self.ca)?, self.chain(), self.key_der())
    }

    /// The CA goes along: who knows but its pin sees it there.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.ca.clone()]
    }

    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Credentials");
        f.field("identity", &self.identity).field("serial", &self.serial).finish_non_exhaustive()
    }
}
