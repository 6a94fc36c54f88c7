//! Connections that end at a deadline unless somebody lets them pass: of a run's coordinator, and of a cluster's
//! door.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Whether the other end of a connection may stay. Shared with whoever decides that.
#[derive(Clone, Debug, Default)]
pub struct Pass(Arc<AtomicBool>);

impl Pass {
    /// Takes the deadline away.
    pub fn admit(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_admitted(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What goes with a connection, and has a word when its time is up.
pub trait Late: Unpin {
    /// The deadline has passed: why that ends the connection. May be asked again.
    fn late(&mut self) -> &'static str;
}

/// A connection that fails at its deadline unless its pass was admitted.
#[derive(Debug)]
pub struct Timed<L> {
    stream: TcpStream,
    pass: Pass,
    deadline: Pin<Box<Sleep>>,
    late: L,
}

impl<L: Late> Timed<L> {
    pub fn new(stream: TcpStream, patience: Duration, late: L) -> Self {
        Self { stream, pass: Pass::default(), deadline: Box::pin(sleep(patience)), late }
    }

    pub fn pass(&self) -> Pass {
        self.pass.clone()
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.pass.is_admitted() && self.deadline.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, self.late.late()));
        }
        Ok(())
    }
}

impl<L: Late> AsyncRead for Timed<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<L: Late> AsyncWrite for Timed<L> {
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
