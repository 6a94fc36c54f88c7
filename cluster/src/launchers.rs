//! Launchers: processes of this machine, one for each run under way. They speak over a socket in the state
//! directory, a line each, and outlive this process: a run goes on, and its launcher comes back to whoever
//! listens next.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::harbour::Inbound;
use crate::words::{FromLauncher, Manifest, ToLauncher};

pub(crate) mod calling;

/// A job and the names and hashes of its files.
const LINE_BYTES_MAX: usize = 4 << 20;

/// What a launcher is to do.
#[derive(Clone, Debug)]
pub struct Launch {
    pub name: String,
    pub manifest: Manifest,
    /// Rigs that can help at most, and those it begins with.
    pub most: u32,
    pub first: u32,
    /// Of all launches of the job: the last one counts.
    pub nth: u64,
}

/// Resolves when the process has ended, with how.
pub type Ended = Pin<Box<dyn Future<Output = String> + Send>>;

/// Reads a file of text; may take long.
pub type ReadConfig = fn(&Path) -> io::Result<String>;

/// Starts launchers.
pub trait Launchers: Send {
    /// # Errors
    /// Why there is no process.
    fn launch(&mut self, launch: Launch) -> Result<Ended, String>;

    /// How a launcher reads the `config.json` that a manifest names, or of the weights that it starts from.
    fn config_reader(&self) -> ReadConfig {
        |path| std::fs::read_to_string(path)
    }
}

/// Which launcher speaks for each job, and which process of it counts: one that is lost is lost once.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// The line's number, and its other end.
    lines: BTreeMap<String, (u64, mpsc::UnboundedSender<ToLauncher>)>,
    /// The newest process.
    launches: BTreeMap<String, u64>,
}

impl Lines {
    /// One speaks for a job from now on, in the place of whoever did before.
    pub(crate) fn here(
        &mut self,
        name: &str,
        line: u64,
        outbox: mpsc::UnboundedSender<ToLauncher>,
    ) {
        self.lines.insert(name.to_owned(), (line, outbox));
    }

    /// Whether it is this line that speaks for the job.
    pub(crate) fn speaks(&self, name: &str, line: u64) -> bool {
        self.lines.get(name).is_some_and(|(known, _)| *known == line)
    }

    /// A line has ended. Whether with it the job's launcher is gone; its process then counts no more.
    pub(crate) fn gone(&mut self, name: &str, line: u64) -> bool {
        let spoke = self.away(name, line);
        if spoke {
            self.launched(name);
        }
        spoke
    }

    /// The same of a line to another machine: the launcher may come back over another one, or its process end.
    pub(crate) fn away(&mut self, name: &str, line: u64) -> bool {
        let spoke = self.speaks(name, line);
        if spoke {
            self.lines.remove(name);
        }
        spoke
    }

    /// A process was started: its number.
    pub(crate) fn launched(&mut self, name: &str) -> u64 {
        let launch = self.launches.entry(name.to_owned()).or_default();
        *launch += 1;
        *launch
    }

    /// A process has ended. Whether it was the newest, and has never spoken.
    pub(crate) fn ended(&self, name: &str, launch: u64) -> bool {
        self.launches.get(name) == Some(&launch) && !self.lines.contains_key(name)
    }

    pub(crate) fn tell(&self, name: &str, message: ToLauncher) {
        if let Some((_, outbox)) = self.lines.get(name) {
            // One that is gone is heard of on the other side.
            let _ = outbox.send(message);
        }
    }
}

/// Opens the socket, for this user alone.
///
/// # Errors
/// The path is too long for a socket, or the directory is not ours.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    // Left by a process that was killed; the state directory's lock says that it is gone.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts until the harbour has ended.
pub(crate) async fn accept(listener: UnixListener, inbox: mpsc::Sender<Inbound>) {
    for line in 0.. {
        let connection = tokio::select! {
            connection = listener.accept() => connection,
            () = inbox.closed() => return,
        };
        match connection {
            Ok((stream, _)) => drop(tokio::spawn(hear(stream, line, inbox.clone()))),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn hear(stream: UnixStream, line: u64, inbox: mpsc::Sender<Inbound>) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    let Some(FromLauncher::Here { name }) = next(&mut lines).await else { return };
    let (outbox, mut outgoing) = mpsc::unbounded_channel::<ToLauncher>();
    let here = Inbound::LauncherHere { name: name.clone(), line, nth: None, outbox };
    if inbox.send(here).await.is_err() {
        return;
    }
    let writing = tokio::spawn(async move {
        while let Some(message) = outgoing.recv().await {
            let Ok(mut line) = serde_json::to_string(&message) else { continue };
            line.push('\n');
            if write.write_all(line.as_bytes()).await.is_err() {
                return;
            }
        }
    });
    while let Some(message) = next(&mut lines).await {
        let says = Inbound::LauncherSays { name: name.clone(), line, message };
        if inbox.send(says).await.is_err() {
            return;
        }
    }
    // Fails when the harbour has ended, which needs no news then.
    let _ = inbox.send(Inbound::LauncherGone { name, line }).await;
    writing.abort();
}

/// The next line; none when it has hung up, or says what nobody understands.
async fn next<R: tokio::io::AsyncRead + Unpin>(lines: &mut BufReader<R>) -> Option<FromLauncher> {
    let mut line = Vec::new();
    loop {
        let available = lines.fill_buf().await.ok()?;
        if available.is_empty() || line.len() > LINE_BYTES_MAX {
            return None;
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |end| end + 1);
        line.extend_from_slice(&available[..taken]);
        lines.consume(taken);
        if end.is_some() {
            break;
        }
    }
    match serde_json::from_slice(&line) {
        Ok(message) => Some(message),
        Err(error) => {
            tracing::warn!(%error, "a launcher said what cannot be understood");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_is_lost_once_whatever_is_heard_of_it_first() {
        let mut lines = Lines::default();
        let outbox = || mpsc::unbounded_channel().0;
        let first = lines.launched("a");
        assert!(lines.ended("a", first), "it ended before it spoke");
        let second = lines.launched("a");
        assert!(!lines.ended("a", first) && lines.ended("a", second));
        lines.here("a", 7, outbox());
        assert!(!lines.ended("a", second), "its line tells more");
        assert!(lines.speaks("a", 7) && !lines.speaks("a", 6) && !lines.speaks("b", 7));
        assert!(lines.gone("a", 7) && !lines.gone("a", 7));
        assert!(!lines.ended("a", second), "it was lost with its line");
        // An end that is heard of late says nothing about who speaks now.
        lines.here("a", 9, outbox());
        assert!(!lines.gone("a", 7) && lines.speaks("a", 9));
    }
}
