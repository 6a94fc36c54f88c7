//! A relay: passes bytes between two rigs of which neither can dial the other. Both come to it and prove who they are;
//! the cluster's coordinator has said which pairs of which runs it serves. What passes is the two ends' own TLS: a
//! relay reads nothing of it, and cannot pose as either. With the run all its connections end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shoal_plan::plan::RunId;
use shoal_proto::relay::{ASKED_BYTES, Asked, BEGIN, GO_ON, NOBODY, Purpose, REFUSED, Role};
use shoal_trust::Name;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

mod passing;
#[cfg(test)]
mod proof;

/// Ends at a time, those that wait among them: two make a connection.
const ENDS_MAX: usize = 512;

/// Of one kind that wait for one peer. A worker keeps one for data and one for snapshots.
const WAITING_MAX: usize = 4;

/// From TLS to the question, and from the word that both are there to the byte that begins.
const WORDS: Duration = Duration::from_secs(5);

/// One that calls is told when the other does not come.
const CALL: Duration = Duration::from_secs(5);

/// The pairs of rigs that a relay serves, by run, the names of a pair in order.
pub type Served = BTreeMap<RunId, BTreeSet<(String, String)>>;

/// One relay. Clones are the same.
#[derive(Clone, Debug)]
pub struct Relay(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    served: watch::Sender<Served>,
    ends: Mutex<Ends>,
}

#[derive(Debug, Default)]
struct Ends {
    here: usize,
    waiting: BTreeMap<Key, VecDeque<(u64, oneshot::Sender<Offer>)>>,
    next: u64,
}

/// Who waits for whom, to do what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    run: RunId,
    purpose: Purpose,
    role: Role,
    me: String,
    peer: String,
}

/// To an end that waits: the other one is here, and both go on once it hands itself over.
type Offer = oneshot::Sender<(Box<dyn Ciphertext>, Place)>;

/// A connection past the relay's own TLS.
trait Ciphertext: AsyncRead + AsyncWrite + Unpin + Send + fmt::Debug {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + fmt::Debug> Ciphertext for T {}

impl Default for Relay {
    fn default() -> Self {
        let (served, _) = watch::channel(Served::new());
        Self(Arc::new(Shared { served, ends: Mutex::default() }))
    }
}

/// One end's place, given back when it is dropped.
#[derive(Debug)]
struct Place(Relay);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.ends().here -= 1;
    }
}

impl Relay {
    /// What it serves from now on. Connections of runs that are not in there any more end; those of a pair that is
    /// not go on, as nobody opens another.
    pub fn serve(&self, served: Served) {
        self.0.served.send_replace(served);
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        // Nothing panics between two changes that belong together.
        self.0.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> Option<Place> {
        let mut ends = self.ends();
        if ends.here >= ENDS_MAX {
            return None;
        }
        ends.here += 1;
        drop(ends);
        Some(Place(self.clone()))
    }

    fn serves(&self, run: &RunId, a: &str, b: &str) -> bool {
        let pair = (a.min(b).to_owned(), a.max(b).to_owned());
        self.0.served.borrow().get(run).is_some_and(|pairs| pairs.contains(&pair))
    }

    /// One connection, of a rig that TLS has seen the certificate of, to its end.
    ///
    /// # Errors
    /// Why it ended early.
    pub(crate) async fn attend<S>(&self, mut stream: TlsStream<S>, who: &Name) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + fmt::Debug + 'static,
    {
        let mut bytes = [0; ASKED_BYTES];
        let read = timeout(WORDS, stream.read_exact(&mut bytes)).await;
        read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let Some(place) = self.place() else {
            return refuse(&mut stream, REFUSED, "this relay serves as many as it can").await;
        };
        let asked = match Asked::decode(&bytes) {
            Ok(asked) => asked,
            Err(why) => return refuse(&mut stream, REFUSED, &why).await,
        };
        if !self.serves(&asked.run, who.as_str(), asked.peer.as_str()) {
            let why = format!("this relay does not serve {who} and {} in this run", asked.peer);
            return refuse(&mut stream, REFUSED, &why).await;
        }
        let Asked { run, purpose, role, peer } = asked;
        let peer = peer.as_str().to_owned();
        let key = Key { run, purpose, role, me: who.as_str().to_owned(), peer };
        let mut over = self.0.served.subscribe();
        let run = key.run.clone();
        tokio::select! {
            met = self.meet((stream, place), key) => met,
            () = is_over(&mut over, &run) => Ok(()),
        }
    }

    /// Waits for the other end, or goes on with the one that waits.
    async fn meet<S>(&self, (stream, place): (TlsStream<S>, Place), key: Key) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + fmt::Debug + 'static,
    {
        let other = Key {
            role: key.role.other(),
            me: key.peer.clone(),
            peer: key.me.clone(),
            ..key.clone()
        };
        loop {
            let waiting = self.ends().waiting.get_mut(&other).and_then(VecDeque::pop_front);
            let Some((_, waiting)) = waiting else { return self.wait((stream, place), key).await };
            let (offer, offered) = oneshot::channel();
            // One that has gone meanwhile is passed over.
            if waiting.send(offer).is_err() {
                continue;
            }
            let mut here = begin(stream).await?;
            let Ok((mut there, _their_place)) = offered.await else {
                return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the other end left"));
            };
            return passing::both_ways(&mut here, &mut there).await;
        }
    }

    async fn wait<S>(&self, (mut stream, place): (TlsStream<S>, Place), key: Key) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + fmt::Debug + 'static,
    {
        let (tell, mut told) = oneshot::channel();
        let _waiting = self.stand(key.clone(), tell);
        let patience = async {
            match key.role {
                Role::Calls => tokio::time::sleep(CALL).await,
                Role::Waits => std::future::pending().await,
            }
        };
        let mut nothing = [0];
        let offer = tokio::select! {
            offer = &mut told => offer,
            () = patience => {
                let why = format!("{} has not come to the relay", key.peer);
                return refuse(&mut stream, NOBODY, &why).await;
            }
            // It has nothing to say until both are here: it is gone.
            _end = stream.read(&mut nothing) => return Ok(()),
        };
        let Ok(offer) = offer else {
            return refuse(&mut stream, NOBODY, "a newer connection has taken its place").await;
        };
        let here = begin(stream).await?;
        // The other end's task passes bytes on, and watches over the run.
        drop(offer.send((Box::new(here), place)));
        Ok(())
    }

    /// Among those that wait, until what is returned is dropped. Of too many the oldest goes.
    fn stand(&self, key: Key, tell: oneshot::Sender<Offer>) -> Standing {
        let mut ends = self.ends();
        let number = ends.next;
        ends.next += 1;
        let waiting = ends.waiting.entry(key.clone()).or_default();
        if waiting.len() >= WAITING_MAX {
            waiting.pop_front();
        }
        waiting.push_back((number, tell));
        drop(ends);
        Standing { relay: self.clone(), key, number }
    }
}

struct Standing {
    relay: Relay,
    key: Key,
    number: u64,
}

impl Drop for Standing {
    fn drop(&mut self) {
        let mut ends = self.relay.ends();
        if let Some(waiting) = ends.waiting.get_mut(&self.key) {
            waiting.retain(|(number, _)| *number != self.number);
            if waiting.is_empty() {
                ends.waiting.remove(&self.key);
            }
        }
    }
}

/// Resolves when the run is served no more.
async fn is_over(served: &mut watch::Receiver<Served>, run: &RunId) {
    // An error: the relay itself is gone.
    let _ = served.wait_for(|served| !served.contains_key(run)).await;
}

/// Says that both are here, and leaves TLS: what follows is the other end's.
async fn begin<S>(mut stream: TlsStream<S>) -> io::Result<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let begun = async {
        stream.write_u8(GO_ON).await?;
        stream.flush().await?;
        let (mut raw, _) = stream.into_inner();
        let byte = raw.read_u8().await?;
        if byte == BEGIN {
            return Ok(raw);
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "it did not begin as it should"))
    };
    timeout(WORDS, begun).await.map_err(late)?
}

async fn refuse<S>(stream: &mut TlsStream<S>, word: u8, why: &str) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let said = async {
        stream.write_u8(word).await?;
        stream.write_u16_le(why.len() as u16).await?;
        stream.write_all(why.as_bytes()).await?;
        stream.shutdown().await
    };
    // One that does not read it has gone.
    let _ = timeout(WORDS, said).await;
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned()))
}

/// As workers' own connections: an end whose packets vanish is given up after four seconds.
pub(crate) fn watch_over(stream: &TcpStream) -> io::Result<()> {
    const EVERY: Duration = Duration::from_secs(1);
    const ASKS: u32 = 3;
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let asks = socket2::TcpKeepalive::new().with_time(EVERY).with_interval(EVERY);
    socket.set_tcp_keepalive(&asks.with_retries(ASKS))?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(EVERY * (ASKS + 1)))?;
    Ok(())
}
