//! Who may hold a connection open: at most so many, and only those that say hello in time.
//!
//! tonic's own knob, `max_connection_age`, would cut a healthy session after a fixed time, and
//! HTTP/2 keepalive does not see a connection that never sends its preface. So each connection
//! carries a deadline that ends with a well-formed hello behind the right secret. After that,
//! keepalive and the lease watch over it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::sleep;

use crate::metrics::{Metrics, Rejected};
use crate::timed::{Late, Timed};

/// How many, how long without a hello, and how long a file may stand still on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections_max: usize,
    pub(crate) hello_deadline: Duration,
    pub(crate) stall_deadline: Duration,
}

impl Limits {
    /// Far more than the workers of a few machines, each with a session and a file on its way; a hello takes milliseconds,
    /// and a chunk of a file about a second over the slowest link that one could train over.
    pub(crate) const USUAL: Self = Self {
        connections_max: 128,
        hello_deadline: Duration::from_secs(10),
        stall_deadline: Duration::from_secs(10),
    };
}

/// What goes with a connection.
#[derive(Debug)]
pub(crate) struct Visitor {
    /// Until it has counted itself as turned away.
    metrics: Option<Metrics>,
    /// Gives the place back when the connection is dropped.
    _place: OwnedSemaphorePermit,
}

impl Late for Visitor {
    fn late(&mut self) -> &'static str {
        if let Some(metrics) = self.metrics.take() {
            metrics.rejected(Rejected::NoHello);
        }
        "no hello before the deadline"
    }
}

/// A connection that fails at its deadline unless its pass was admitted.
pub(crate) type Guarded = Timed<Visitor>;

/// Accepts until `accepted` is closed. A connection too many is closed at once.
pub(crate) async fn accept(
    listener: TcpListener,
    limits: Limits,
    accepted: mpsc::Sender<io::Result<Guarded>>,
    metrics: Metrics,
) {
    let places = Arc::new(Semaphore::new(limits.connections_max));
    loop {
        let stream = tokio::select! {
            stream = listener.accept() => stream,
            () = accepted.closed() => return,
        };
        let Ok((stream, _)) = stream else {
            // Most likely no file descriptor is free: wait for some to come back.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            metrics.rejected(Rejected::Connections);
            tracing::warn!(limits.connections_max, "a connection too many was closed");
            continue;
        };
        if stream.set_nodelay(true).is_err() {
            // It is gone already.
            continue;
        }
        let visitor = Visitor { metrics: Some(metrics.clone()), _place: place };
        let guarded = Timed::new(stream, limits.hello_deadline, visitor);
        if accepted.send(Ok(guarded)).await.is_err() {
            return;
        }
    }
}
