//! From rig to rig: a port on which others see whether they reach this one, how far away it is and how fast, and
//! whether it reaches them; where they reach it, it can be their relay. Both ends show a certificate of role worker
//! before anything else is read.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shoal_proto::relay::PROTOCOL;
use shoal_trust::{Clients, Credentials, Identity, Name, Role, identity_of, server_name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::words::{Neighbour, Trial};
use super::{Rate, Turn, Turns, median, wire};
use crate::relaying::{Relay, watch_over};

/// Connections that are served at once, strangers' among them.
const CONNECTIONS_MAX: usize = 16;

/// From the connection to certificates that are good.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Of one connection, all in all.
const LIFE: Duration = Duration::from_secs(30);

/// To the answer of somebody who is there.
const DIAL: Duration = Duration::from_secs(3);

const ECHOES: usize = 9;

/// Questions of one connection.
const QUESTIONS_MAX: usize = 16;

/// What a rig that was asked to dial back has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    Reached,
    /// Nobody listens there, or the way is closed with a word.
    Refused,
    /// Nothing came back: a firewall, or no way at all.
    Silent,
    /// Somebody else answered.
    Stranger,
}

/// What was measured with another rig.
#[derive(Clone, Debug, PartialEq)]
pub struct Met {
    pub seconds: f64,
    pub up: Rate,
    pub down: Rate,
    /// From there to here, where that was asked for.
    pub back: Option<Back>,
}

/// An open probe port. Dropping it closes it.
#[derive(Debug)]
pub struct Listening {
    pub port: u16,
    serving: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Opens a probe port (0: any free one) at the address where others reach this rig; where that is not an address of this machine
/// itself, because something in between translates it, on all of them. The certificate is read anew for each
/// connection: it is renewed.
///
/// # Errors
/// No port can be opened.
pub fn listen(
    advertised: IpAddr,
    port: u16,
    certificate: &Path,
    relay: Relay,
) -> io::Result<Listening> {
    let any: IpAddr = if advertised.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let bind = |address| std::net::TcpListener::bind(SocketAddr::new(address, port));
    let listener = match bind(advertised) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => bind(any)?,
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let listener = TcpListener::from_std(listener)?;
    let serving = tokio::spawn(serve(listener, certificate.to_owned(), relay));
    Ok(Listening { port, serving })
}

async fn serve(listener: TcpListener, certificate: PathBuf, relay: Relay) {
    let (places, turns) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Turns::default());
    loop {
        let Ok((stream, address)) = listener.accept().await else {
            // Most likely no file descriptor is free: wait for some to come back.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        // One too many is closed at once.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (certificate, turns, relay) = (certificate.clone(), turns.clone(), relay.clone());
        tokio::spawn(async move {
            let served = async {
                let credentials = Credentials::open(&certificate).map_err(io::Error::other)?;
                let stream = accept(stream, &credentials).await?;
                let caller = caller(&stream)?;
                if stream.get_ref().1.alpn_protocol() == Some(PROTOCOL) {
                    // It has a place among the relay's, and may stay.
                    drop(place);
                    return relay.attend(stream, &caller.name).await;
                }
                let answered = timeout(LIFE, answer(stream, &caller, &credentials, &turns)).await;
                answered.unwrap_or(Ok(()))
            };
            if let Err(error) = served.await {
                tracing::info!(%address, %error, "a neighbour's connection ended early");
            }
        });
    }
}

async fn accept(
    stream: TcpStream,
    credentials: &Credentials,
) -> io::Result<server::TlsStream<TcpStream>> {
    watch_over(&stream)?;
    let config = credentials.server(|_| false, Clients::Required).map_err(io::Error::other)?;
    let mut config = (*config).clone();
    config.alpn_protocols = vec![wire::PROTOCOL.to_vec(), PROTOCOL.to_vec()];
    let accepted = timeout(HANDSHAKE, TlsAcceptor::from(Arc::new(config)).accept(stream)).await;
    accepted.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn answer(
    mut stream: server::TlsStream<TcpStream>,
    caller: &Identity,
    credentials: &Credentials,
    turns: &Turns,
) -> io::Result<()> {
    let _turn = turn(turns, caller.name.as_str()).await?;
    let mut dialed = false;
    for _ in 0..QUESTIONS_MAX {
        let Ok(question) = stream.read_u8().await else { return Ok(()) };
        match question {
            wire::ECHO => stream.write_u8(wire::ECHO).await?,
            wire::UP => {
                let rate = wire::count(&mut stream).await?;
                stream.write_u64(rate.bytes).await?;
                stream.write_u64((rate.seconds * 1e6) as u64).await?;
            }
            wire::DOWN => wire::pour(&mut stream).await?,
            wire::BACK if !dialed => {
                dialed = true;
                let mut place = [0; wire::PLACE_BYTES];
                stream.read_exact(&mut place).await?;
                let (address, port) = wire::read_place(place);
                let found = dial(SocketAddr::new(address, port), caller, credentials).await;
                stream.write_u8(found.err().map_or(0, |(back, _)| back as u8)).await?;
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no question of a probe")),
        }
        stream.flush().await?;
    }
    Ok(())
}

/// The connection before may be about to end.
async fn turn(turns: &Turns, name: &str) -> io::Result<Turn> {
    let since = Instant::now();
    loop {
        match turns.take(name) {
            Ok(turn) => return Ok(turn),
            Err(why) if since.elapsed() > HANDSHAKE => return Err(io::Error::other(why)),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Another rig of this cluster, by the certificate that TLS has verified.
fn caller(stream: &server::TlsStream<TcpStream>) -> io::Result<Identity> {
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let shown = shown.ok_or_else(|| io::Error::other("no certificate was shown"))?;
    let (identity, ..) = identity_of(shown).map_err(io::Error::other)?;
    let spoken = stream.get_ref().1.alpn_protocol();
    if identity.role == Role::Worker && [wire::PROTOCOL, PROTOCOL].map(Some).contains(&spoken) {
        return Ok(identity);
    }
    Err(io::Error::other(format!("{identity} does not probe rigs")))
}

async fn dial(
    address: SocketAddr,
    whom: &Identity,
    credentials: &Credentials,
) -> Result<client::TlsStream<TcpStream>, (Back, String)> {
    let silent =
        |_| (Back::Silent, format!("no answer from {address} within {} s", DIAL.as_secs()));
    let refused = |error: io::Error| {
        // What the system gives up by itself was as silent as what we give up.
        let is_silent =
            matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable);
        (if is_silent { Back::Silent } else { Back::Refused }, format!("{address}: {error}"))
    };
    let stream =
        timeout(DIAL, TcpStream::connect(address)).await.map_err(silent)?.map_err(refused)?;
    stream.set_nodelay(true).map_err(refused)?;
    let strange = |error: io::Error| (Back::Stranger, format!("{address}: {error}"));
    let config = credentials.client().map_err(|error| strange(io::Error::other(error)))?;
    let mut config = (*config).clone();
    config.alpn_protocols = vec![wire::PROTOCOL.to_vec()];
    let connecting = TlsConnector::from(Arc::new(config)).connect(server_name(whom), stream);
    timeout(HANDSHAKE, connecting).await.map_err(silent)?.map_err(strange)
}

/// Measures the way to another rig and back. `back` is where it is asked to dial this one.
///
/// # Errors
/// Why it was not reached, as a sentence.
pub async fn meet(
    whom: &Neighbour,
    credentials: &Credentials,
    back: Option<(IpAddr, u16)>,
) -> Result<Met, String> {
    let (place, whom) = place(whom)?;
    let stream = dial(place, &whom, credentials).await.map_err(|(_, why)| why)?;
    match timeout(LIFE, measure(stream, back)).await {
        Ok(met) => met.map_err(|error| format!("{place}: {error}")),
        Err(_) => Err(format!("{place} was not done within {} s", LIFE.as_secs())),
    }
}

/// Neighbours that are tried at once.
const TRIED_AT_ONCE: usize = 16;

/// A port that is busy, or just opens, hangs up: it is tried again after so long, longer each time.
const TRY_PAUSE: Duration = Duration::from_millis(200);
const TRIES: u32 = 4;

/// Which of these rigs this one reaches, by their probe ports: who is reached there is who was meant.
pub async fn try_all(neighbours: Vec<Neighbour>, certificate: &Path) -> Vec<Trial> {
    let places = Arc::new(Semaphore::new(TRIED_AT_ONCE));
    let mut trying = JoinSet::new();
    for neighbour in neighbours {
        let (places, certificate) = (Arc::clone(&places), certificate.to_owned());
        trying.spawn(async move {
            let _place = places.acquire_owned().await;
            let reached = reaches(&neighbour, &certificate).await;
            if let Err(why) = &reached {
                tracing::info!(rig = neighbour.name, why, "a neighbour is not reached");
            }
            Trial { rig: neighbour.name, reached: reached.is_ok() }
        });
    }
    let mut trials = Vec::new();
    while let Some(trial) = trying.join_next().await {
        trials.extend(trial.ok());
    }
    trials
}

async fn reaches(neighbour: &Neighbour, certificate: &Path) -> Result<(), String> {
    let mut pause = TRY_PAUSE;
    for tried in 1.. {
        let credentials = Credentials::open(certificate).map_err(|error| error.to_string())?;
        let (place, whom) = place(neighbour)?;
        match dial(place, &whom, &credentials).await {
            Ok(_) => break,
            Err((Back::Silent, why)) => return Err(why),
            Err((_, why)) if tried == TRIES => return Err(why),
            Err(_) => sleep(pause).await,
        }
        pause *= 2;
    }
    Ok(())
}

/// Where a rig is probed, and who must answer there.
fn place(whom: &Neighbour) -> Result<(SocketAddr, Identity), String> {
    let name: Name =
        whom.name.parse().map_err(|error: shoal_trust::TrustError| error.to_string())?;
    let (Some(address), Some(port)) = (whom.address, whom.probe_port) else {
        return Err(format!(
            "{name} has no probe port: its `shoal worker` is older, or could not open one"
        ));
    };
    Ok((SocketAddr::new(address, port), Identity { name, role: Role::Worker }))
}

async fn measure(
    mut stream: client::TlsStream<TcpStream>,
    back: Option<(IpAddr, u16)>,
) -> io::Result<Met> {
    let mut seconds = Vec::new();
    for _ in 0..ECHOES {
        let since = Instant::now();
        stream.write_u8(wire::ECHO).await?;
        stream.flush().await?;
        stream.read_u8().await?;
        seconds.push(since.elapsed().as_secs_f64());
    }
    stream.write_u8(wire::UP).await?;
    wire::pour(&mut stream).await?;
    let bytes = stream.read_u64().await?;
    let up = Rate { bytes, seconds: stream.read_u64().await? as f64 / 1e6 };
    stream.write_u8(wire::DOWN).await?;
    stream.flush().await?;
    let down = wire::count(&mut stream).await?;
    let back = match back {
        Some((address, port)) => {
            stream.write_u8(wire::BACK).await?;
            stream.write_all(&wire::place(address, port)).await?;
            stream.flush().await?;
            let verdicts = BTreeMap::from([
                (Back::Reached as u8, Back::Reached),
                (Back::Refused as u8, Back::Refused),
                (Back::Silent as u8, Back::Silent),
                (Back::Stranger as u8, Back::Stranger),
            ]);
            verdicts.get(&stream.read_u8().await?).copied()
        }
        None => None,
    };
    Ok(Met { seconds: median(seconds), up, down, back })
}
