//! A launcher's line to its cluster's coordinator: a socket of this machine. A coordinator that dies takes
//! nothing with it: the line is taken up again, and everything that the next one must know is said again.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use shoal_cluster::words::{FromLauncher, LaunchEnd, Opened, ToLauncher};
use tokio::sync::mpsc;

use crate::clock::Stopwatch;

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
}

#[derive(Debug, Default)]
struct State {
    stream: Option<UnixStream>,
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
        let line = Self(Arc::new(Shared { name: name.to_owned(), state: Mutex::default() }));
        let stream = line.connect(socket);
        let stream =
            stream.with_context(|| format!("calling the coordinator at {}", socket.display()))?;
        let (tell, heard) = mpsc::unbounded_channel();
        let (own, socket) = (line.clone(), socket.to_path_buf());
        thread::spawn(move || own.listen(stream, &socket, &tell));
        Ok((line, heard))
    }

    fn connect(&self, socket: &Path) -> std::io::Result<UnixStream> {
        let stream = UnixStream::connect(socket)?;
        let mut state = self.state();
        state.stream = Some(stream.try_clone()?);
        let here = FromLauncher::Here { name: self.0.name.clone() };
        let mut written = write(&mut state, &here);
        if let Some(opened) = state.opened.clone() {
            written = written.and_then(|()| write(&mut state, &FromLauncher::Open(opened)));
        }
        written.map(|()| stream)
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
        let _ = write(&mut state, &FromLauncher::Open(Box::new(opened)));
    }

    /// Says something that means nothing later, to whoever is there now.
    pub(crate) fn say(&self, word: &FromLauncher) {
        let _ = write(&mut self.state(), word);
    }

    /// The last word: waits for somebody to hear it.
    pub(crate) fn end(&self, end: LaunchEnd) {
        let (watch, word) = (Stopwatch::start(), FromLauncher::Ended(end));
        while write(&mut self.state(), &word).is_err() && watch.seconds() < LAST_WORD_SECONDS {
            thread::park_timeout(RETRY);
        }
    }
}

fn write(state: &mut State, word: &FromLauncher) -> std::io::Result<()> {
    let Some(stream) = &mut state.stream else {
        return Err(std::io::ErrorKind::NotConnected.into());
    };
    let mut text = serde_json::to_string(word)?;
    text.push('\n');
    stream.write_all(text.as_bytes())
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
