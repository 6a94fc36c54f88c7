//! Who may hold a connection open: at most so many, and only those that say hello in time.
//!
//! tonic's own knob, `max_connection_age`, would cut a healthy session after a fixed time, and
//! HTTP/2 keepalive does not see a connection that never sends its preface. So each connection
//! carries a deadline that ends with a well-formed hello behind the right secret. After that,
//! keepalive and the lease watch over it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep};

use crate::metrics::{Metrics, Rejected};

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

/// Whether the other end of a connection has said hello. Shared with the session's reader.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pass(Arc<AtomicBool>);

impl Pass {
    /// Takes the deadline away.
    pub(crate) fn admit(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_admitted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection that fails at its deadline unless its pass was admitted.
#[derive(Debug)]
pub(crate) struct Guarded {
    stream: TcpStream,
    pass: Pass,
    deadline: Pin<Box<Sleep>>,
    /// Until it has counted itself as turned away.
    metrics: Option<Metrics>,
    /// Gives the place back when the connection is dropped.
    _place: OwnedSemaphorePermit,
}

impl Guarded {
    pub(crate) fn pass(&self) -> Pass {
        self.pass.clone()
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.pass.is_admitted() && self.deadline.as_mut().poll(cx).is_ready() {
            if let Some(metrics) = self.metrics.take() {
                metrics.rejected(Rejected::NoHello);
            }
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no hello before the deadline"));
        }
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

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
        let deadline = Box::pin(sleep(limits.hello_deadline));
        let (pass, metrics) = (Pass::default(), Some(metrics.clone()));
        let guarded = Guarded { stream, pass, deadline, metrics, _place: place };
        if accepted.send(Ok(guarded)).await.is_err() {
            return;
        }
    }
}
