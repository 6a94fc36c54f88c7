//! Launchers that call from wherever they run, where several coordinators share a cluster: over mutual TLS, with a
//! certificate of role coordinator. One connection is the line; each other one is a tunnel that the line asked for, and
//! leads to the run's own coordinator on the launcher's machine. Here each run gets a port on loopback, from which
//! every connection goes on through a tunnel: whoever calls a run's coordinator calls that, wherever it is.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_trust::Role;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{interval, timeout};

use super::next;
use crate::door::Secured;
use crate::harbour::Inbound;
use crate::standing::{Is, Stands};
use crate::words::{FromLauncher, ToLauncher};

/// What a launcher speaks instead of HTTP/2.
pub(crate) const PROTOCOL: &[u8] = b"shoal-launcher/1";

/// The first line of a connection.
const FIRST_BYTES_MAX: usize = 4 << 10;
const FIRST: Duration = Duration::from_secs(5);

/// Each side says so often that it is there.
pub const BEAT: Duration = Duration::from_secs(1);

/// A launcher of which nothing was heard for so long is away.
const SILENT: Duration = Duration::from_secs(15);

/// A tunnel that was asked for comes in this time, or not.
const TUNNEL: Duration = Duration::from_secs(4);

/// What a connection of a launcher is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum First {
    /// The line of a job's launcher: of which launch.
    Line { name: String, nth: u64 },
    /// The tunnel that was asked for by this number.
    Tunnel { number: u64 },
}

/// Tunnels that were asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tunnels(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    asked: BTreeMap<u64, oneshot::Sender<Secured>>,
}

impl Tunnels {
    fn ask(&self) -> (u64, oneshot::Receiver<Secured>) {
        let (here, comes) = oneshot::channel();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.next += 1;
        let number = waiting.next;
        waiting.asked.retain(|_, asked| !asked.is_closed());
        waiting.asked.insert(number, here);
        (number, comes)
    }

    fn came(&self, number: u64, tunnel: Secured) {
        let asked = self.0.lock().unwrap_or_else(PoisonError::into_inner).asked.remove(&number);
        if let Some(asked) = asked {
            // Nobody waits any more: it is closed.
            let _ = asked.send(tunnel);
        }
    }
}

/// Hears launchers until the harbour has ended.
pub(crate) async fn accept(
    mut called: mpsc::Receiver<Secured>,
    stands: Stands,
    inbox: mpsc::Sender<Inbound>,
) {
    let tunnels = Tunnels::default();
    // Apart from the numbers of lines on this machine.
    for line in (u64::MAX / 2).. {
        let Some(connection) = called.recv().await else { return };
        let (stands, inbox, tunnels) = (stands.clone(), inbox.clone(), tunnels.clone());
        tokio::spawn(hear(connection, line, (stands, tunnels), inbox));
    }
}

async fn hear(
    mut connection: Secured,
    line: u64,
    (stands, tunnels): (Stands, Tunnels),
    inbox: mpsc::Sender<Inbound>,
) {
    let is_launcher = connection.identity().is_some_and(|who| who.role == Role::Coordinator);
    if !is_launcher || connection.admit().is_err() {
        return;
    }
    match timeout(FIRST, first(&mut connection)).await {
        Ok(Some(First::Tunnel { number })) => tunnels.came(number, connection),
        Ok(Some(First::Line { name, nth })) => {
            attend(connection, (name, nth, line), (stands, tunnels), inbox).await;
        }
        Ok(None) | Err(_) => {}
    }
}

/// Byte by byte: what follows belongs to somebody else.
async fn first(connection: &mut Secured) -> Option<First> {
    let mut line = Vec::new();
    while line.len() < FIRST_BYTES_MAX {
        match connection.read_u8().await.ok()? {
            b'\n' => return serde_json::from_slice(&line).ok(),
            byte => line.push(byte),
        }
    }
    None
}

async fn attend(
    connection: Secured,
    (name, nth, line): (String, u64, u64),
    (stands, tunnels): (Stands, Tunnels),
    inbox: mpsc::Sender<Inbound>,
) {
    let (read, mut write) = tokio::io::split(connection);
    let (outbox, mut outgoing) = mpsc::unbounded_channel::<ToLauncher>();
    let here =
        Inbound::LauncherHere { name: name.clone(), line, nth: Some(nth), outbox: outbox.clone() };
    if inbox.send(here).await.is_err() {
        return;
    }
    let term = stands.term();
    let writing = tokio::spawn(async move {
        let mut beats = interval(BEAT);
        loop {
            let message = tokio::select! {
                message = outgoing.recv() => match message {
                    Some(message) => message,
                    None => return,
                },
                _at = beats.tick() => {
                    let decides = stands.is() == Is::Active && stands.term() == term;
                    ToLauncher::Beat { term, decides, coordinators: stands.coordinators() }
                }
            };
            let Ok(mut text) = serde_json::to_string(&message) else { continue };
            text.push('\n');
            if write.write_all(text.as_bytes()).await.is_err() || write.flush().await.is_err() {
                return;
            }
        }
    });
    listen(read, (&name, line), (&outbox, &tunnels), &inbox).await;
    let _ = inbox.send(Inbound::LauncherAway { name, line }).await;
    writing.abort();
}

async fn listen(
    read: impl AsyncRead + Unpin,
    (name, line): (&str, u64),
    (outbox, tunnels): (&mpsc::UnboundedSender<ToLauncher>, &Tunnels),
    inbox: &mpsc::Sender<Inbound>,
) {
    let mut lines = BufReader::new(read);
    // Ends with the line.
    let mut _port = None;
    while let Ok(Some(mut message)) = timeout(SILENT, next(&mut lines)).await {
        if let FromLauncher::Open(opened) = &mut message {
            let (closed, open) = oneshot::channel::<()>();
            match lead(outbox.clone(), tunnels.clone(), closed).await {
                Ok(address) => opened.address = address,
                Err(error) => {
                    tracing::error!(%error, "no port for a run's coordinator");
                    return;
                }
            }
            _port = Some(open);
        }
        if matches!(message, FromLauncher::Beat) {
            continue;
        }
        let says = Inbound::LauncherSays { name: name.to_owned(), line, message };
        if inbox.send(says).await.is_err() {
            return;
        }
    }
}

/// A port of this machine from which every connection goes on through a tunnel, until `closed` is.
async fn lead(
    outbox: mpsc::UnboundedSender<ToLauncher>,
    tunnels: Tunnels,
    mut closed: oneshot::Sender<()>,
) -> std::io::Result<SocketAddr> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = port.local_addr()?;
    tokio::spawn(async move {
        loop {
            let came = tokio::select! {
                came = port.accept() => came,
                () = closed.closed() => return,
            };
            let Ok((stream, _)) = came else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (number, comes) = tunnels.ask();
            if outbox.send(ToLauncher::Dial { tunnel: number }).is_err() {
                return;
            }
            tokio::spawn(through(stream, comes));
        }
    });
    Ok(address)
}

async fn through(mut stream: TcpStream, comes: oneshot::Receiver<Secured>) {
    // What cannot be reached is closed, which whoever called sees.
    let Ok(Ok(mut tunnel)) = timeout(TUNNEL, comes).await else { return };
    let _ = stream.set_nodelay(true);
    let _ = copy_bidirectional(&mut stream, &mut tunnel).await;
}
