//! Connections that end at a deadline unless somebody lets them pass: of a run's coordinator, and of a cluster's
//! door.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Whether the other end of a connection may stay. Shared with whoever decides that.
#[derive(Clone, Debug, Default)]
pub struct Pass(Arc<Mutex<Standing>>);

#[derive(Debug, Default)]
struct Standing {
    admitted: bool,
    cut: bool,
    /// Of the task that reads: it may wait for bytes that never come.
    reader: Option<Waker>,
}

impl Pass {
    /// Takes the deadline away.
    pub fn admit(&self) {
        self.standing().admitted = true;
    }

    pub fn is_admitted(&self) -> bool {
        self.standing().admitted
    }

    pub fn is_cut(&self) -> bool {
        self.standing().cut
    }

    /// Ends the connection, whatever it is at.
    pub fn cut(&self) {
        let reader = {
            let mut standing = self.standing();
            standing.cut = true;
            standing.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, Standing> {
        // Nothing panics between two changes that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn pass(&self) -> Pass {
        self.pass.clone()
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let admitted = {
            let standing = self.pass.standing();
            if standing.cut {
                let why = "whoever is at the other end counts no more";
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
            }
            standing.admitted
        };
        if !admitted && self.deadline.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, self.late.late()));
        }
        Ok(())
    }

    /// As `check`, for a read, which may wait for long: a cut wakes it.
    fn check_reading(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        {
            let mut standing = self.pass.standing();
            match &mut standing.reader {
                Some(reader) => reader.clone_from(cx.waker()),
                none @ None => *none = Some(cx.waker().clone()),
            }
        }
        self.check(cx)
    }
}

impl<L: Late> AsyncRead for Timed<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_reading(cx)?;
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
