//! The door of a coordinator that stands by: it says who is active, and nothing else.

use std::sync::{Arc, RwLock};

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{ClusterError, Settings, papers};
use crate::door::Places;
use crate::metrics::Metrics;
use crate::relaying::Relay;
use crate::server;
use crate::standing::Stands;

/// Ends when it is dropped.
#[derive(Debug)]
pub struct StandingBy(JoinHandle<()>);

impl Drop for StandingBy {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens the door, on the event loop it is called on.
///
/// # Errors
/// The port or the certificates cannot be used.
pub fn stand_by(
    settings: &Settings,
    port: std::net::TcpListener,
) -> Result<StandingBy, ClusterError> {
    let opened = port.set_nonblocking(true).and_then(|()| TcpListener::from_std(port));
    let listen = |source| ClusterError::Listen { what: "the port".to_owned(), source };
    let listener = opened.map_err(listen)?;
    let denied = Arc::default();
    let own = papers::own(settings, &denied)?;
    let stands = Stands::new(settings.standing.clone());
    // Nobody hears what a standby is asked.
    let (inbox, _) = mpsc::channel(1);
    let told = (inbox, Metrics::new(&settings.cluster.to_string())?.calls_refused);
    let (limits, places) = (settings.limits, Places::new(settings.limits));
    let tls = Arc::new(RwLock::new(own.config));
    Ok(StandingBy(tokio::spawn(async move {
        server::serve(listener, (limits, places), (tls, Relay::default()), (denied, stands), told)
            .await;
    })))
}
