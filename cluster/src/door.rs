//! The one port. Whoever comes is a stranger until a call of theirs was let through: strangers have few places,
//! few of them for one address, and little time, whatever they stall with: TCP, TLS, HTTP/2's preface, or a
//! call that never ends. Members have many places, and are watched by keepalive.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use shoal_coordinator::timed::{Late, Pass, Timed};
use shoal_trust::Identity;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// Places, and patience.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub strangers_max: usize,
    pub strangers_of_an_address: usize,
    pub members_max: usize,
    /// From the connection to a call that is let through.
    pub patience: Duration,
}

impl Limits {
    /// A rig has two connections, and one for each file on its way.
    pub const USUAL: Self = Self {
        strangers_max: 256,
        strangers_of_an_address: 64,
        members_max: 30_000,
        patience: Duration::from_secs(10),
    };
}

/// Who is in.
#[derive(Debug)]
struct Places {
    limits: Limits,
    strangers: BTreeMap<IpAddr, usize>,
    members: usize,
}

type Shared = Arc<Mutex<Places>>;

fn lock(places: &Shared) -> std::sync::MutexGuard<'_, Places> {
    // Nothing panics between two changes that belong together.
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection's place, given back when it is dropped.
#[derive(Debug)]
struct Place {
    places: Shared,
    address: IpAddr,
    is_member: bool,
}

impl Place {
    fn take(places: &Shared, address: IpAddr) -> Option<Self> {
        let mut state = lock(places);
        let all: usize = state.strangers.values().sum();
        let here = state.strangers.get(&address).copied().unwrap_or(0);
        let limits = state.limits;
        if all >= limits.strangers_max || here >= limits.strangers_of_an_address {
            return None;
        }
        state.strangers.insert(address, here + 1);
        drop(state);
        Some(Self { places: Arc::clone(places), address, is_member: false })
    }

    /// Makes room among the strangers. Whether there is a place among the members.
    fn promote(&mut self) -> bool {
        let places = Arc::clone(&self.places);
        let mut state = lock(&places);
        if state.members >= state.limits.members_max {
            return false;
        }
        state.members += 1;
        Self::stranger_goes(&mut state, self.address);
        self.is_member = true;
        true
    }

    fn stranger_goes(state: &mut Places, address: IpAddr) {
        if let Some(count) = state.strangers.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                state.strangers.remove(&address);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.places);
        if self.is_member {
            state.members -= 1;
        } else {
            Self::stranger_goes(&mut state, self.address);
        }
    }
}

/// Who is at the other end of a connection. Every call has it among its extensions.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) identity: Option<(Identity, String)>,
    pass: Pass,
    place: Arc<Mutex<Place>>,
}

impl Peer {
    /// A call of a member was let through: from now on keepalive watches over the connection.
    pub(crate) fn admit(&self) -> bool {
        if self.pass.is_admitted() {
            return true;
        }
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let has_place = place.is_member || place.promote();
        if has_place {
            self.pass.admit();
        }
        has_place
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
    limits: Limits,
    tls: Tls,
    accepted: mpsc::Sender<io::Result<Secured>>,
) {
    let places = Arc::new(Mutex::new(Places { limits, strangers: BTreeMap::new(), members: 0 }));
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
        let Some(place) = Place::take(&places, address.ip()) else {
            tracing::warn!(%address, "a stranger too many was turned away");
            continue;
        };
        let (tls, accepted) = (Arc::clone(&tls), accepted.clone());
        tokio::spawn(async move {
            match timeout(limits.patience, secure(stream, address, place, limits, &tls)).await {
                Ok(Ok(secured)) => drop(accepted.send(Ok(secured)).await),
                Ok(Err(error)) => tracing::info!(%address, %error, "a connection was refused"),
                Err(_) => tracing::info!(%address, "a handshake took too long"),
            }
        });
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_have_few_places_and_members_make_room_for_them() {
        let limits = Limits {
            strangers_max: 3,
            strangers_of_an_address: 2,
            members_max: 1,
            patience: Duration::from_secs(1),
        };
        let places =
            Arc::new(Mutex::new(Places { limits, strangers: BTreeMap::new(), members: 0 }));
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut first = Place::take(&places, address(1)).unwrap();
        let second = Place::take(&places, address(1)).unwrap();
        assert!(Place::take(&places, address(1)).is_none(), "one address has two");
        let mut third = Place::take(&places, address(2)).unwrap();
        assert!(Place::take(&places, address(3)).is_none(), "all have three");
        assert!(first.promote());
        let fourth = Place::take(&places, address(1)).unwrap();
        assert!(!third.promote(), "there is one member already");
        drop((first, second, third, fourth));
        let state = lock(&places);
        assert!(state.strangers.is_empty() && state.members == 0);
    }
}
