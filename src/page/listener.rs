//! Connections of the page, of which there are so many and no more, and none that is only held open: one on which nothing
//! could be written for a while is closed, whatever it sends.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

/// A browser has six for one site; beyond, whoever comes waits for a place.
const PLACES: usize = 64;

pub(super) struct Bounded {
    inner: TcpListener,
    places: Arc<Semaphore>,
    idle: Duration,
}

impl Bounded {
    pub(super) fn new(inner: TcpListener, idle: Duration) -> Self {
        Self { inner, places: Arc::new(Semaphore::new(PLACES)), idle }
    }
}

impl Listener for Bounded {
    type Io = Held;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Held, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.expect("nobody closes the places");
        let (stream, address) = Listener::accept(&mut self.inner).await;
        (Held { stream, idle: self.idle, over: Box::pin(sleep(self.idle)), _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A connection, and its place.
pub(super) struct Held {
    stream: TcpStream,
    idle: Duration,
    over: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Held {
    /// An end to waiting.
    fn unless_over<T>(
        &mut self,
        waited: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        match waited {
            Poll::Pending if self.over.as_mut().poll(context).is_ready() => {
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            }
            Poll::Pending | Poll::Ready(_) => waited,
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.unless_over(read, context)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(1..)) = written {
            let idle = self.idle;
            self.over.set(sleep(idle));
        }
        self.unless_over(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
