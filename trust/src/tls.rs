//! TLS as the cluster speaks it: 1.3 alone, both ends by certificates of one authority, and nothing
//! resumed, so that every connection asks again who is there.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme, version,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::{Identity, Pin, Role, SERVER_NAME, TrustError, certificate, identity_of, server_name};

/// Whether a server lets those in who show no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    Required,
    /// Those who join have none yet. Who shows one must show a good one.
    Optional,
}

type Denied = Box<dyn Fn(&str) -> bool + Send + Sync>;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], TrustError> {
    let mut bytes = [0; N];
    provider().secure_random.fill(&mut bytes).map_err(|_| TrustError::Random)?;
    Ok(bytes)
}

pub(crate) fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, TrustError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    // Who resumes is not asked for a certificate again: a denied one would come back that way.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

pub(crate) fn client(
    verifier: Arc<dyn ServerCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, TrustError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// For whoever has an invitation and no certificate yet: believes only a coordinator whose chain holds
/// the CA with this pin, and is signed by it. No secret is said before that is so.
pub fn pinned(pin: Pin) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .expect("the provider speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pin, provider: provider() }))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

pub(crate) fn server_verifier(
    ca: &CertificateDer<'static>,
) -> Result<Arc<dyn ServerCertVerifier>, TrustError> {
    Ok(Arc::new(Members { usual: usual_server(ca)? }))
}

fn usual_server(ca: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let usual = WebPkiServerVerifier::builder_with_provider(roots(ca)?, provider()).build();
    usual.map_err(|error| Error::General(error.to_string()))
}

pub(crate) fn client_verifier(
    ca: &CertificateDer<'static>,
    denied: Denied,
    clients: Clients,
) -> Result<Arc<dyn ClientCertVerifier>, TrustError> {
    let usual = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider());
    let usual = match clients {
        Clients::Required => usual,
        Clients::Optional => usual.allow_unauthenticated(),
    };
    let usual = usual.build().map_err(|error| Error::General(error.to_string()))?;
    Ok(Arc::new(Callers { usual, denied }))
}

fn roots(ca: &CertificateDer<'_>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned())?;
    Ok(Arc::new(roots))
}

fn refused(error: TrustError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// What went wrong between two who spoke TLS, for whoever has to mend it. What a peer refuses it does
/// not explain: its own log does.
pub fn explain(error: &Error) -> String {
    if let Error::InvalidCertificate(why) = error {
        let text = why.to_string();
        let why = if let CertificateError::Other(OtherError(ours)) = why {
            ours.to_string()
        } else if *why == CertificateError::UnknownIssuer {
            format!("another authority signed it ({text})")
        } else {
            text
        };
        return format!("its certificate is refused: {why}");
    }
    if let Error::AlertReceived(alert) = error {
        return format!("it refused the connection, or the certificate shown to it ({alert:?})");
    }
    if *error == Error::NoCertificatesPresented {
        return "it shows no certificate".to_owned();
    }
    error.to_string()
}

/// Servers of this CA, each under its own name.
#[derive(Debug)]
struct Members {
    usual: Arc<WebPkiServerVerifier>,
}

impl Members {
    /// The identity is held against the dialed name, too: the DNS name alone would do, as long as
    /// the authority never signs one that does not fit.
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        dialed: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<Identity, Error> {
        let verified = self.usual.verify_server_cert(certificate, &[], dialed, &[], now);
        // The name comes last in there: all else is well, and who it is instead can be said.
        let is_misnamed = matches!(
            verified,
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            ))
        );
        if !is_misnamed {
            verified?;
        }
        let (identity, ..) = identity_of(certificate).map_err(refused)?;
        if is_misnamed || !identity.role.serves() || server_name(&identity) != *dialed {
            return Err(refused(certificate::wants(&identity, &dialed.to_str())));
        }
        Ok(identity)
    }
}

impl ServerCertVerifier for Members {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        dialed: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(certificate, dialed, now).map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

/// The coordinators of the CA with this pin.
#[derive(Debug)]
struct Pinned {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _dialed: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = chain.iter().find(|ca| Pin::of(ca) == self.pin);
        let ca = ca.ok_or(CertificateError::UnknownIssuer)?;
        let members = Members { usual: usual_server(ca)? };
        // Whatever the address was called: it must be a coordinator.
        let dialed = ServerName::try_from(SERVER_NAME).map_err(|_| Error::EncryptError)?;
        let identity = members.verify(certificate, &dialed, now)?;
        if identity.role != Role::Coordinator {
            return Err(refused(certificate::wants(&identity, "a coordinator")));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Members who call. What they may do is the server's to decide, by their identity.
struct Callers {
    usual: Arc<dyn ClientCertVerifier>,
    denied: Denied,
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callers").field("usual", &self.usual).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Callers {
    fn client_auth_mandatory(&self) -> bool {
        self.usual.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.usual.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.usual.verify_client_cert(certificate, &[], now)?;
        let (_, serial, _) = identity_of(certificate).map_err(refused)?;
        if (self.denied)(&serial) {
            return Err(CertificateError::Revoked.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
