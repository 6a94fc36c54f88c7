//! How a gRPC client reaches a coordinator by certificate: TCP, TLS by a `ClientConfig` of this crate, HTTP/2.

use std::io;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::{SERVER_NAME, explain};

/// Why nobody was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreached {
    pub what: String,
    pub kind: Kind,
}

/// What another attempt would be worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nobody answered: somebody may the next time.
    Away,
    /// Somebody answered who is not who was wanted.
    Stranger,
    /// Who was wanted answered, and does not want this certificate.
    Refused,
}

/// Connects to the coordinator at `address`, `HOST:PORT`, which must prove that it is one of the authority that
/// `config` trusts. A connection that breaks later is not made anew: the caller connects again.
///
/// # Errors
/// Why it was not reached, as a sentence.
pub async fn connect(
    endpoint: &Endpoint,
    address: &str,
    config: Arc<ClientConfig>,
) -> Result<Channel, Unreached> {
    let unreached =
        |error: &dyn std::error::Error| Unreached { what: in_full(error), kind: Kind::Away };
    let stream = TcpStream::connect(address).await.map_err(|error| unreached(&error))?;
    stream.set_nodelay(true).map_err(|error| unreached(&error))?;
    let mut config = (*config).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(SERVER_NAME).expect("a constant that is a name");
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let mut stream = stream.map_err(|error| of_tls(&error))?;
    // In TLS 1.3 a server's word on our certificate comes after the handshake: before its first frame, or in its
    // place.
    stream.fill_buf().await.map_err(|error| of_tls(&error))?;
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take();
        async move {
            let ended = || io::Error::new(io::ErrorKind::NotConnected, "the connection has ended");
            stream.map(TokioIo::new).ok_or_else(ended)
        }
    });
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map_err(|error| unreached(&error))
}

fn of_tls(error: &io::Error) -> Unreached {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let kind = match tls {
        Some(rustls::Error::AlertReceived(_)) => Kind::Refused,
        Some(_) => Kind::Stranger,
        None => Kind::Away,
    };
    Unreached { what: tls.map_or_else(|| error.to_string(), explain), kind }
}

/// An error with its causes, which is where tonic says what happened.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
