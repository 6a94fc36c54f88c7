//! A launcher's side of its line, where several coordinators share a cluster: it calls whichever is active, by
//! certificate, and says what the connection is for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use shoal_trust::{Credentials, SERVER_NAME, explain};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::launchers::calling::PROTOCOL;
pub use crate::launchers::calling::{BEAT, First};

/// One attempt.
const PATIENCE: Duration = Duration::from_secs(2);

/// By what a launcher is known. Read anew for each connection: it is renewed now and then.
#[derive(Clone, Debug)]
pub struct Dialer {
    pub credentials: PathBuf,
}

impl Dialer {
    /// # Errors
    /// Nobody is there, or somebody else; in words.
    pub async fn dial(&self, address: &str, first: &First) -> Result<TlsStream<TcpStream>, String> {
        let dialed = timeout(PATIENCE, dialed(&self.credentials, address, first)).await;
        dialed.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
    }
}

async fn dialed(
    credentials: &Path,
    address: &str,
    first: &First,
) -> Result<TlsStream<TcpStream>, String> {
    let credentials = Credentials::open(credentials).map_err(|error| error.to_string())?;
    let config = credentials.client().map_err(|error| error.to_string())?;
    let mut config = (*config).clone();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    let said = |error: std::io::Error| {
        let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        tls.map_or_else(|| error.to_string(), explain)
    };
    let stream = TcpStream::connect(address).await.map_err(said)?;
    stream.set_nodelay(true).map_err(said)?;
    let name = ServerName::try_from(SERVER_NAME).expect("a constant that is a name");
    let mut stream =
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(said)?;
    let mut line = serde_json::to_string(first).map_err(|error| error.to_string())?;
    line.push('\n');
    stream.write_all(line.as_bytes()).await.map_err(said)?;
    stream.flush().await.map_err(said)?;
    Ok(stream)
}
