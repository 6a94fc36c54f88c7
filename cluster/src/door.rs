//! The one port. Whoever comes is a stranger until a call of theirs was let through: strangers have few places,
//! few of them for one address, and little time, whatever they stall with: TCP, TLS, HTTP/2's preface, or a
//! call that never ends. Members have many places, and are watched by keepalive.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use shoal_coordinator::timed::{Late, Pass, Timed};
use shoal_proto::relay;
use shoal_trust::{Identity, Role};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::launchers::calling;
use crate::relaying::{Relay, watch_over};

mod places;

pub use places::Limits;
use places::Place;
pub(crate) use places::Places;

/// Who is at the other end of a connection. Every call has it among its extensions.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) identity: Option<(Identity, String)>,
    pass: Pass,
    place: Arc<Mutex<Place>>,
}

impl Peer {
    /// A call of a member is to be let through: how long it waits for its turn. From the first on, keepalive watches
    /// over the connection.
    ///
    /// # Errors
    /// There is no place for one more connection.
    pub(crate) fn admit(&self) -> Result<Duration, &'static str> {
        let Some((identity, _)) = &self.identity else { return Ok(Duration::ZERO) };
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.call(identity, &self.pass)
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref().map(|(identity, _)| identity)
    }
}

/// Somebody of whom no call was let through yet.
#[derive(Debug)]
pub(crate) struct Stranger;

impl Late for Stranger {
    fn late(&mut self) -> &'static str {
        "no call was let through before the deadline"
    }
}

/// A connection behind TLS.
#[derive(Debug)]
pub(crate) struct Secured {
    stream: TlsStream<Timed<Stranger>>,
    peer: Peer,
}

impl Secured {
    fn wants_a_relay(&self) -> bool {
        self.stream.get_ref().1.alpn_protocol() == Some(relay::PROTOCOL)
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.peer.identity()
    }

    /// # Errors
    /// There is no place for one more connection.
    pub(crate) fn admit(&self) -> Result<Duration, &'static str> {
        self.peer.admit()
    }

    /// Whether no HTTP/2 is to be spoken.
    fn is_launchers(&self) -> bool {
        self.stream.get_ref().1.alpn_protocol() == Some(calling::PROTOCOL)
    }
}

impl Connected for Secured {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What TLS is spoken with; another one takes its place when the certificate is renewed.
pub(crate) type Tls = Arc<RwLock<Arc<ServerConfig>>>;

/// Accepts until `accepted` is closed.
pub(crate) async fn accept(
    listener: TcpListener,
    (limits, places): (Limits, Places),
    (tls, relay): (Tls, Relay),
    (accepted, called): (mpsc::Sender<io::Result<Secured>>, mpsc::Sender<Secured>),
) {
    loop {
        let connection = tokio::select! {
            connection = listener.accept() => connection,
            () = accepted.closed() => return,
        };
        let Ok((stream, address)) = connection else {
            // Most likely no file descriptor is free: wait for some to come back.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(place) = places.take(address.ip()) else {
            tracing::warn!(%address, "a stranger too many was turned away");
            continue;
        };
        let (tls, relay) = (Arc::clone(&tls), relay.clone());
        let (accepted, called) = (accepted.clone(), called.clone());
        tokio::spawn(async move {
            match timeout(limits.patience, secure(stream, address, place, limits, &tls)).await {
                Ok(Ok(secured)) if secured.is_launchers() => drop(called.send(secured).await),
                Ok(Ok(secured)) if secured.wants_a_relay() => {
                    if let Err(error) = relayed(secured, &relay).await {
                        tracing::info!(%address, %error, "a relayed connection ended early");
                    }
                }
                Ok(Ok(secured)) => drop(accepted.send(Ok(secured)).await),
                Ok(Err(error)) => tracing::info!(%address, %error, "a connection was refused"),
                Err(_) => tracing::info!(%address, "a handshake took too long"),
            }
        });
    }
}

/// As a call of a member: among its connections, in its turn, and over when it is expelled.
async fn relayed(secured: Secured, relay: &Relay) -> io::Result<()> {
    let Secured { stream, peer } = secured;
    let rig = peer.identity().filter(|identity| identity.role == Role::Worker);
    let rig = rig.ok_or_else(|| io::Error::other("only rigs are relayed"))?;
    sleep(peer.admit().map_err(io::Error::other)?).await;
    watch_over(stream.get_ref().0.stream())?;
    relay.attend(stream, &rig.name).await
}

async fn secure(
    stream: TcpStream,
    address: SocketAddr,
    place: Place,
    limits: Limits,
    tls: &Tls,
) -> io::Result<Secured> {
    stream.set_nodelay(true)?;
    let guarded = Timed::new(stream, limits.patience, Stranger);
    let pass = guarded.pass();
    let config = Arc::clone(&tls.read().unwrap_or_else(PoisonError::into_inner));
    let stream = TlsAcceptor::from(config).accept(guarded).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let identity = shown
        .map(|certificate| shoal_trust::identity_of(certificate))
        .transpose()
        .map_err(io::Error::other)?
        .map(|(identity, serial, _)| (identity, serial));
    let peer = Peer { address, identity, pass, place: Arc::new(Mutex::new(place)) };
    Ok(Secured { stream, peer })
}
