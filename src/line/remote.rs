//! The line of a launcher where several coordinators share a cluster: it looks for whichever is active, stays with it
//! for as long as that one decides, and lets its calls through to the run's own coordinator.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use shoal_cluster::dialing::{BEAT, Dialer, First};
use shoal_cluster::words::{FromLauncher, ToLauncher};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep, timeout};

use super::{Heard, LOST_SECONDS, Line, RETRY};
use crate::clock::Stopwatch;

/// A coordinator says so often that it is there; each time that one is silent for so long, it is away.
const SILENT: Duration = Duration::from_secs(4);

/// While the coordinator does not decide, others are asked so often whether they do.
const LOOK: Duration = Duration::from_secs(2);

/// Where coordinators are, and who calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) coordinators: Vec<String>,
    pub(crate) dialer: Dialer,
    /// Which launch of the job it is.
    pub(crate) nth: u64,
}

type Reading = Lines<BufReader<Box<dyn AsyncRead + Send + Unpin>>>;

/// A connection to whoever is active.
struct Found {
    reading: Reading,
    writing: Box<dyn AsyncWrite + Send + Unpin>,
    address: String,
}

/// How a connection ended.
enum Over {
    Lost,
    /// Nobody is interested any more.
    Done,
    /// Another coordinator is active.
    Moved(Found),
}

struct Calling {
    line: Line,
    caller: Caller,
    tell: mpsc::UnboundedSender<Heard>,
    /// The highest that was seen: nobody of a lower one is believed.
    term: u64,
    /// Where the line leads now.
    at: String,
}

/// Looks for the active coordinator, on a thread of its own.
pub(super) fn listen(line: Line, caller: Caller, tell: mpsc::UnboundedSender<Heard>) {
    thread::spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "no event loop for the line to the coordinator");
                return;
            }
        };
        runtime.block_on(Calling { line, caller, tell, term: 0, at: String::new() }.work());
    });
}

impl Calling {
    async fn work(mut self) {
        let mut is_first = true;
        let mut next = None;
        loop {
            let found = match next.take() {
                Some(found) => found,
                None => match self.find().await {
                    Some(found) => found,
                    None => return drop(self.tell.send(Heard::GivenUp)),
                },
            };
            tracing::info!(address = found.address, term = self.term, "the line is taken up");
            if !is_first && self.tell.send(Heard::Back).is_err() {
                return;
            }
            is_first = false;
            let over = self.serve(found).await;
            self.line.state().stream = None;
            if matches!(over, Over::Done) || self.tell.send(Heard::Lost).is_err() {
                return;
            }
            if let Over::Moved(found) = over {
                next = Some(found);
            }
        }
    }

    /// Asks one after the other until one is active.
    async fn find(&mut self) -> Option<Found> {
        let watch = Stopwatch::start();
        while watch.seconds() < LOST_SECONDS {
            for address in self.caller.coordinators.clone() {
                match self.attempt(&address, 0).await {
                    Ok(found) => return Some(found),
                    Err(why) => tracing::debug!(address, why, "not the active coordinator"),
                }
            }
            sleep(RETRY).await;
        }
        None
    }

    /// # Errors
    /// It is not there, or not active, or of a term that is over; `above`: or of one that is not higher.
    async fn attempt(&mut self, address: &str, above: u64) -> Result<Found, String> {
        let (name, nth) = (self.line.0.name.clone(), self.caller.nth);
        let stream = self.caller.dialer.dial(address, &First::Line { name, nth }).await?;
        let (read, write) = tokio::io::split(stream);
        let read: Box<dyn AsyncRead + Send + Unpin> = Box::new(read);
        let mut reading = BufReader::new(read).lines();
        let first = timeout(SILENT, reading.next_line()).await;
        let first = first.map_err(|_| "it says nothing")?.map_err(|error| error.to_string())?;
        let first = first.ok_or("it hung up: it stands by")?;
        match serde_json::from_str(&first) {
            Ok(ToLauncher::Beat { term, decides: true, coordinators })
                if term >= self.term && term > above =>
            {
                self.learn(term, coordinators);
                Ok(Found { reading, writing: Box::new(write), address: address.to_owned() })
            }
            Ok(ToLauncher::Beat { term, .. }) => {
                Err(format!("it is not active, or was so in term {term} alone"))
            }
            Ok(_) | Err(_) => Err("it does not begin with its term".to_owned()),
        }
    }

    fn learn(&mut self, term: u64, coordinators: Vec<String>) {
        self.term = self.term.max(term);
        for address in coordinators {
            if !self.caller.coordinators.contains(&address) {
                self.caller.coordinators.push(address);
            }
        }
    }

    async fn serve(&mut self, found: Found) -> Over {
        let Found { mut reading, mut writing, address } = found;
        self.at = address;
        let mut heard = Stopwatch::start();
        let (say, mut said) = mpsc::unbounded_channel::<String>();
        self.line.take_up(say);
        let (mut beats, mut looks) = (interval(BEAT), interval(LOOK));
        let mut decides = true;
        loop {
            tokio::select! {
                Some(text) = said.recv() => {
                    let sent = writing.write_all(text.as_bytes()).await;
                    if sent.is_err() || writing.flush().await.is_err() {
                        return Over::Lost;
                    }
                    self.line.0.unsent.fetch_sub(1, Ordering::SeqCst);
                }
                line = reading.next_line() => {
                    let Ok(Some(line)) = line else { return Over::Lost };
                    heard = Stopwatch::start();
                    match serde_json::from_str(&line) {
                        Ok(ToLauncher::Beat { term, .. }) if term < self.term => return Over::Lost,
                        Ok(ToLauncher::Beat { term, decides: now, coordinators }) => {
                            decides = now;
                            self.learn(term, coordinators);
                        }
                        Ok(ToLauncher::Dial { tunnel }) => self.dial(tunnel),
                        Ok(word) => {
                            if self.tell.send(Heard::Word(word)).is_err() {
                                return Over::Done;
                            }
                        }
                        // A word of another version: what it wants is said again by what follows.
                        Err(_) => {}
                    }
                }
                _at = beats.tick() => {
                    if heard.seconds() > SILENT.as_secs_f64() {
                        return Over::Lost;
                    }
                    self.line.say(&FromLauncher::Beat);
                }
                _at = looks.tick(), if !decides => {
                    for address in self.caller.coordinators.clone() {
                        if let Ok(found) = self.attempt(&address, self.term).await {
                            return Over::Moved(found);
                        }
                    }
                }
            }
        }
    }

    /// Opens a tunnel to the run's own coordinator, beside everything else.
    fn dial(&self, number: u64) {
        let Some(address) = self.line.state().opened.as_ref().map(|opened| opened.address) else {
            return;
        };
        let (dialer, to) = (self.caller.dialer.clone(), self.at.clone());
        tokio::spawn(async move {
            if let Err(why) = tunnel(&dialer, &to, number, address).await {
                tracing::warn!(why, "a tunnel did not come about");
            }
        });
    }
}

async fn tunnel(dialer: &Dialer, to: &str, number: u64, address: SocketAddr) -> Result<(), String> {
    let here = TcpStream::connect(address).await;
    let mut here = here.map_err(|error| format!("the run's coordinator at {address}: {error}"))?;
    here.set_nodelay(true).map_err(|error| error.to_string())?;
    let mut there = dialer.dial(to, &First::Tunnel { number }).await?;
    // Either end may close it at any time.
    let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
    Ok(())
}
