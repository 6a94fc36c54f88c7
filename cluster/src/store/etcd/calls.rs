//! Calls to whichever node of etcd answers. Each is bounded, and tried at the next node when one does not answer: a
//! call that fails in the end may have been carried out all the same.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, Error};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use crate::clock;
use crate::store::StoreError;
use crate::store::remote::{Remote, Tls};

/// One node has so long for one attempt.
const ATTEMPT: Duration = Duration::from_millis(700);

/// Between two attempts where nobody listens.
const PAUSE: Duration = Duration::from_millis(100);

/// A node that hangs is pinged so often.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// The nodes, of which one is asked first.
pub(super) struct Calls {
    nodes: Vec<Client>,
    first: AtomicUsize,
}

impl Calls {
    /// Connects to nobody yet.
    pub(super) async fn new(remote: &Remote) -> Result<Self, StoreError> {
        let tls = remote.tls.as_ref().map(config).transpose()?.map(Arc::new);
        let mut nodes = Vec::new();
        for address in &remote.endpoints {
            let channel = channel(address, tls.clone()).map_err(StoreError::Unfit)?;
            let options = ConnectOptions::new().with_require_leader(true);
            let client = Client::from_channel(Channel::Tonic(channel), Some(options)).await;
            nodes.push(client.map_err(|error| StoreError::Unfit(error.to_string()))?);
        }
        Ok(Self { nodes, first: AtomicUsize::new(0) })
    }

    /// The node that answered last.
    pub(super) fn node(&self) -> Client {
        self.nodes[self.first.load(Ordering::Relaxed) % self.nodes.len()].clone()
    }

    /// Puts a call to one node after the other, for so long.
    ///
    /// # Errors
    /// What the last one said, or that none did. It may have been carried out.
    pub(super) async fn call<T, Calling>(
        &self,
        patience: Duration,
        call: impl Fn(Client) -> Calling,
    ) -> Result<T, String>
    where
        Calling: Future<Output = Result<T, Error>>,
    {
        let until = clock::running() + patience;
        loop {
            let at = self.first.load(Ordering::Relaxed);
            let why = match timeout(ATTEMPT, call(self.node())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => in_words(&error),
                Err(_) => format!("no answer within {} ms", ATTEMPT.as_millis()),
            };
            // Another task may have gone on already.
            let next = at.wrapping_add(1);
            let _ = self.first.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
            if clock::running() + PAUSE >= until {
                return Err(why);
            }
            sleep(PAUSE).await;
        }
    }
}

fn in_words(error: &Error) -> String {
    match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        Error::InvalidArgs(_)
        | Error::InvalidUri(_)
        | Error::IoError(_)
        | Error::TransportError(_)
        | Error::WatchError(_)
        | Error::Utf8Error(_)
        | Error::LeaseKeepAliveError(_)
        | Error::ElectError(_)
        | Error::InvalidMetadataValue(_)
        | Error::EndpointError(_)
        | Error::EndpointsNotManaged
        | Error::Internal(_) => error.to_string(),
    }
}

fn channel(
    address: &str,
    tls: Option<Arc<ClientConfig>>,
) -> Result<tonic::transport::Channel, String> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"));
    let endpoint = endpoint
        .map_err(|error| format!("{address}: {error}"))?
        .connect_timeout(ATTEMPT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    let Some(tls) = tls else { return Ok(endpoint.connect_lazy()) };
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).map_err(|error| format!("{address}: {error}"))?;
    let address = address.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (tls, name, address) = (Arc::clone(&tls), name.clone(), address.clone());
        async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let stream = TlsConnector::from(tls).connect(name, stream).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

fn config(tls: &Tls) -> Result<ClientConfig, StoreError> {
    let unfit = |path: &Path, why: &dyn std::fmt::Display| {
        StoreError::Unfit(format!("{}: {why}", path.display()))
    };
    let chain = |path: &Path| -> Result<Vec<CertificateDer<'static>>, StoreError> {
        let read = CertificateDer::pem_file_iter(path).map_err(|error| unfit(path, &error))?;
        read.collect::<Result<_, _>>().map_err(|error| unfit(path, &error))
    };
    let mut roots = RootCertStore::empty();
    for certificate in chain(&tls.ca)? {
        roots.add(certificate).map_err(|error| unfit(&tls.ca, &error))?;
    }
    if roots.is_empty() {
        return Err(unfit(&tls.ca, &"it holds no certificate in PEM"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::Unfit(error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match &tls.shown {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let mode = fs::metadata(key).map_err(|error| unfit(key, &error))?.permissions().mode();
            if mode & 0o077 != 0 {
                let path = key.display();
                let what =
                    format!("others may read it (mode {:03o}): chmod 600 {path}", mode & 0o777);
                return Err(unfit(key, &what));
            }
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unfit(key, &error))?;
            let shown = builder.with_client_auth_cert(chain(certificate)?, private);
            shown.map_err(|error| unfit(certificate, &error))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_others_may_read_and_files_that_hold_nothing_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let missing = Tls { ca: path("none"), shown: None };
        assert!(config(&missing).unwrap_err().to_string().contains("none: "));
        fs::write(path("empty"), "").unwrap();
        let empty = Tls { ca: path("empty"), shown: None };
        assert!(config(&empty).unwrap_err().to_string().contains("no certificate in PEM"));
        let mut ca = shoal_trust::Authority::create(&"etcd".parse().unwrap(), clock::now())
            .unwrap()
            .certificate_pem()
            .to_owned();
        ca.push('\n');
        fs::write(path("ca"), ca).unwrap();
        config(&Tls { ca: path("ca"), shown: None }).unwrap();
        fs::write(path("key"), "").unwrap();
        fs::set_permissions(path("key"), fs::Permissions::from_mode(0o640)).unwrap();
        let open = Tls { ca: path("ca"), shown: Some((path("ca"), path("key"))) };
        let said = config(&open).unwrap_err().to_string();
        assert!(said.contains("(mode 640): chmod 600"), "{said}");
    }
}
