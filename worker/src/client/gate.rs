//! The way to the run's coordinator: on this machine, with the run's secret; or through a cluster's door, with
//! this rig's certificate, which the door holds against the seat that the rig has in the run.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shoal_plan::plan::RunId;
use shoal_proto::Secret;
use shoal_proto::wire::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, RUN_KEY, SECRET_KEY};
use shoal_trust::{Credentials, reach};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

/// Where a worker calls.
#[derive(Clone, Debug)]
pub enum Gate {
    /// Refused unless it is this machine: nothing leaves it without TLS.
    Here(SocketAddr),
    /// `HOST:PORT` of each door of a cluster, of which one is active, and where this rig's certificate lies. It is read for every connection,
    /// so that a renewed one takes effect.
    Cluster { doors: Doors, credentials: PathBuf },
}

/// Addresses, of which the next is tried when one does not do.
#[derive(Clone, Debug)]
pub struct Doors {
    addresses: Vec<String>,
    next: Arc<AtomicUsize>,
}

impl Doors {
    /// `HOST:PORT[,HOST:PORT...]`
    pub fn new(addresses: &str) -> Self {
        let addresses = addresses.split(',').map(str::to_owned).collect();
        Self { addresses, next: Arc::default() }
    }

    /// `HOST:PORT` of each.
    pub(crate) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    fn next(&self) -> &str {
        &self.addresses[self.next.fetch_add(1, Ordering::Relaxed) % self.addresses.len()]
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(address) => write!(f, "{address}"),
            Self::Cluster { doors, .. } => f.write_str(&doors.addresses.join(",")),
        }
    }
}

impl Gate {
    /// Connects, once.
    ///
    /// # Errors
    /// Why it did not, as a sentence.
    pub(super) async fn connect(&self, patience: Duration) -> Result<Channel, String> {
        let settle = |endpoint: Endpoint| {
            endpoint
                .connect_timeout(patience)
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true)
        };
        match self {
            Self::Here(address) => {
                let endpoint = Endpoint::from_shared(format!("http://{address}"));
                let endpoint = settle(endpoint.expect("an address makes a URI"));
                endpoint.connect().await.map_err(|error| error.to_string())
            }
            Self::Cluster { doors, credentials } => {
                // A standby lets no call through: the next attempt goes to the next one.
                let address = doors.next();
                let credentials =
                    Credentials::open(credentials).map_err(|error| error.to_string())?;
                let config = credentials.client().map_err(|error| error.to_string())?;
                let endpoint = Endpoint::from_shared(format!("https://{address}"));
                let endpoint = settle(endpoint.map_err(|error| error.to_string())?);
                let reached = reach::connect(&endpoint, address, config).await;
                reached.map_err(|unreached| unreached.what)
            }
        }
    }

    /// A call that says what lets it in. The secret is not told to a cluster's door, which knows it.
    pub(super) fn request<T>(&self, message: T, run: &RunId, secret: &Secret) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        match self {
            Self::Here(_) => metadata.insert(SECRET_KEY, in_metadata(secret)),
            Self::Cluster { .. } => {
                let run = MetadataValue::try_from(&run.0).expect("ids of runs are hex digits");
                metadata.insert(RUN_KEY, run)
            }
        };
        request
    }
}

fn in_metadata(secret: &Secret) -> MetadataValue<Ascii> {
    let mut value = MetadataValue::try_from(secret.to_hex()).expect("hex digits are ASCII");
    // Keeps it out of logs and out of the header compression's table.
    value.set_sensitive(true);
    value
}
