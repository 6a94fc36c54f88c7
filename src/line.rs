//! A launcher's line to its cluster's coordinator: a socket of this machine. A coordinator that dies takes
//! nothing with it: the line is taken up again, and everything that the next one must know is said again.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use shoal_cluster::words::{FromLauncher, LaunchEnd, Opened, ToLauncher};
use tokio::sync::mpsc;

use crate::clock::Stopwatch;

mod remote;

pub(crate) use remote::Caller;

/// How often it is looked whether the last word is on its way.
const SENDING: Duration = Duration::from_millis(20);

/// Between two attempts to take the line up.
const RETRY: Duration = Duration::from_millis(200);

/// A coordinator that is not back by then will not come: the run ends, and goes on from its checkpoint with the
/// next one.
const LOST_SECONDS: f64 = 600.0;

/// What was to be said last is tried for so long.
const LAST_WORD_SECONDS: f64 = 60.0;

/// What comes over the line.
#[derive(Debug)]
pub(crate) enum Heard {
    Word(ToLauncher),
    /// Nobody listens any more.
    Lost,
    /// Somebody does again.
    Back,
    /// Nobody did for too long.
    GivenUp,
}

/// The launcher's end.
#[derive(Clone, Debug)]
pub(crate) struct Line(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: String,
    state: Mutex<State>,
    /// Words that lie before somebody else who sends them.
    unsent: AtomicUsize,
}

/// To this machine, or to wherever the active coordinator is.
#[derive(Debug)]
enum Stream {
    Here(UnixStream),
    There(mpsc::UnboundedSender<String>),
}

#[derive(Debug, Default)]
struct State {
    stream: Option<Stream>,
    opened: Option<Box<Opened>>,
}

impl Line {
    /// Calls, and says whose launcher this is.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(crate) fn call(
        socket: &Path,
        name: &str,
    ) -> anyhow::Result<(Self, mpsc::UnboundedReceiver<Heard>)> {
        let line = Self::new(name);
        let stream = line.connect(socket);
        let stream =
            stream.with_context(|| format!("calling the coordinator at {}", socket.display()))?;
        let (tell, heard) = mpsc::unbounded_channel();
        let (own, socket) = (line.clone(), socket.to_path_buf());
        thread::spawn(move || own.listen(stream, &socket, &tell));
        Ok((line, heard))
    }

    fn new(name: &str) -> Self {
        let (name, state, unsent) = (name.to_owned(), Mutex::default(), AtomicUsize::new(0));
        Self(Arc::new(Shared { name, state, unsent }))
    }

    /// Calls whichever of several coordinators is active, and says so often that it is there.
    pub(crate) fn call_any(name: &str, caller: Caller) -> (Self, mpsc::UnboundedReceiver<Heard>) {
        let line = Self::new(name);
        let (tell, heard) = mpsc::unbounded_channel();
        remote::listen(line.clone(), caller, tell);
        (line, heard)
    }

    fn connect(&self, socket: &Path) -> std::io::Result<UnixStream> {
        let stream = UnixStream::connect(socket)?;
        let mut state = self.state();
        state.stream = Some(Stream::Here(stream.try_clone()?));
        let here = FromLauncher::Here { name: self.0.name.clone() };
        let mut written = self.write(&mut state, &here);
        if let Some(opened) = state.opened.clone() {
            written = written.and_then(|()| self.write(&mut state, &FromLauncher::Open(opened)));
        }
        written.map(|()| stream)
    }

    /// Somebody listens who knows already whose line it is.
    fn take_up(&self, stream: mpsc::UnboundedSender<String>) {
        let mut state = self.state();
        self.0.unsent.store(0, Ordering::SeqCst);
        state.stream = Some(Stream::There(stream));
        if let Some(opened) = state.opened.clone() {
            // Fails where it has ended again, which is seen.
            let _ = self.write(&mut state, &FromLauncher::Open(opened));
        }
    }

    fn listen(&self, mut stream: UnixStream, socket: &Path, tell: &mpsc::UnboundedSender<Heard>) {
        loop {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { break };
                // A word of another version is passed over: what it wants is said again by what follows.
                if let Ok(word) = serde_json::from_str(&line)
                    && tell.send(Heard::Word(word)).is_err()
                {
                    return;
                }
            }
            self.state().stream = None;
            if tell.send(Heard::Lost).is_err() {
                return;
            }
            let watch = Stopwatch::start();
            stream = loop {
                thread::park_timeout(RETRY);
                if let Ok(stream) = self.connect(socket) {
                    break stream;
                }
                if watch.seconds() > LOST_SECONDS {
                    // Fails when the run has ended meanwhile.
                    let _ = tell.send(Heard::GivenUp);
                    return;
                }
            };
            if tell.send(Heard::Back).is_err() {
                return;
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run's coordinator listens. Said again to whoever takes up the line.
    pub(crate) fn opened(&self, opened: Opened) {
        let mut state = self.state();
        state.opened = Some(Box::new(opened.clone()));
        // Nobody there: it is said when somebody is.
        let _ = self.write(&mut state, &FromLauncher::Open(Box::new(opened)));
    }

    /// Says something that means nothing later, to whoever is there now.
    pub(crate) fn say(&self, word: &FromLauncher) {
        let _ = self.write(&mut self.state(), word);
    }

    /// The last word: waits for somebody to hear it.
    pub(crate) fn end(&self, end: LaunchEnd) {
        let (watch, word) = (Stopwatch::start(), FromLauncher::Ended(end));
        while !self.is_said(&word, &watch) && watch.seconds() < LAST_WORD_SECONDS {
            thread::park_timeout(RETRY);
        }
    }

    /// Says it, and waits until it is on its way.
    fn is_said(&self, word: &FromLauncher, watch: &Stopwatch) -> bool {
        if self.write(&mut self.state(), word).is_err() {
            return false;
        }
        while self.0.unsent.load(Ordering::SeqCst) > 0 && watch.seconds() < LAST_WORD_SECONDS {
            if self.state().stream.is_none() {
                return false;
            }
            thread::park_timeout(SENDING);
        }
        true
    }

    fn write(&self, state: &mut State, word: &FromLauncher) -> std::io::Result<()> {
        let gone = || std::io::Error::from(std::io::ErrorKind::NotConnected);
        let mut text = serde_json::to_string(word)?;
        text.push('\n');
        match state.stream.as_mut().ok_or_else(gone)? {
            Stream::Here(stream) => stream.write_all(text.as_bytes()),
            Stream::There(sender) => {
                self.0.unsent.fetch_add(1, Ordering::SeqCst);
                sender.send(text).map_err(|_| gone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn next(reader: &mut impl BufRead) -> FromLauncher {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn a_line_that_breaks_is_taken_up_and_says_again_what_must_be_known() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let (line, mut heard) = Line::call(&socket, "job").unwrap();
        let (first, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(first.try_clone().unwrap());
        let here = FromLauncher::Here { name: "job".into() };
        assert_eq!(next(&mut reader), here);
        let opened = Opened {
            run: shoal_plan::plan::RunId("r".into()),
            secret: "5e".into(),
            address: "127.0.0.1:1".parse().unwrap(),
            files: Vec::new(),
        };
        line.opened(opened.clone());
        assert_eq!(next(&mut reader), FromLauncher::Open(Box::new(opened.clone())));
        writeln!(&first, "{}", serde_json::to_string(&ToLauncher::Stop).unwrap()).unwrap();
        assert!(matches!(heard.blocking_recv(), Some(Heard::Word(ToLauncher::Stop))));
        drop((first, reader));
        assert!(matches!(heard.blocking_recv(), Some(Heard::Lost)));
        let (second, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(second);
        assert_eq!(next(&mut reader), here);
        assert_eq!(next(&mut reader), FromLauncher::Open(Box::new(opened)));
        assert!(matches!(heard.blocking_recv(), Some(Heard::Back)));
        line.end(LaunchEnd::Finished);
        assert_eq!(next(&mut reader), FromLauncher::Ended(LaunchEnd::Finished));
    }
}
