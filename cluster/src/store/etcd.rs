//! An etcd that several coordinators share. Whatever is written is fenced: each transaction compares the revision at
//! which the leader's key was made with this coordinator's term, and the revision of the write before with the one that
//! is known: neither a deposed coordinator nor a write that was taken for lost changes anything later.
//!
//! A thread of its own speaks to etcd and keeps the lease: a loop that is busy does not lose it, and one that waits here
//! waits for a bounded time. Keys, below the prefix: `leader`, `cluster` (its name and authority), `coordinators/…`
//! (who is there), `sequence`, `facts/…` (what is known), and `stage/…` with `promise` (`staged.rs`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, RuntimeFlavor};
use tokio::sync::{mpsc, watch};
use tokio::task::block_in_place;

use super::remote::{Candidacy, Candidate, Remote, Standing};
use super::{Change, Store, StoreError};
use crate::clock;
use crate::election::Stand;
use calls::Calls;
use driver::Driver;
use remembered::Remembered;
use writer::Writer;

mod calls;
mod driver;
mod remembered;
mod staged;
mod writer;

/// The first answer of etcd is waited for so long.
const OPEN: Duration = Duration::from_secs(4);

/// The loop waits so long for a write, which ends by itself before: well within a lease.
const WAIT: Duration = Duration::from_millis(3_500);

/// Everything is read at the beginning, when nothing else waits.
const LOAD: Duration = Duration::from_secs(30);

/// A write that failed is not tried again before this is over: who waits is answered at once.
const AGAIN: Duration = Duration::from_secs(1);

/// The last word to etcd has so long.
const FAREWELL: Duration = Duration::from_millis(1_500);

/// Names of keys.
#[derive(Clone, Debug)]
struct Keys(String);

impl Keys {
    fn of(&self, what: &str) -> String {
        format!("{}/{what}", self.0)
    }
}

/// What the thread's tasks share.
struct Shared {
    calls: Calls,
    keys: Keys,
    place: PathBuf,
    standing: watch::Sender<Standing>,
    /// Tells the driver that a write was refused.
    fenced: mpsc::UnboundedSender<String>,
    /// Where this coordinator is reached.
    address: String,
}

impl Shared {
    fn away(&self, why: String) -> StoreError {
        StoreError::Away { place: self.place.clone(), why }
    }
}

type Reply<T> = SyncSender<Result<T, StoreError>>;

/// To the thread.
enum Command {
    Load(Reply<Vec<(String, Vec<u8>)>>),
    Write(Vec<Change>, Reply<()>),
    /// The lease is given back.
    End(SyncSender<()>),
}

/// The loop's end.
struct Etcd {
    place: PathBuf,
    commands: mpsc::UnboundedSender<Command>,
    standing: watch::Receiver<Standing>,
    failed: Option<(Duration, String)>,
}

/// Makes itself a candidate. Whether it is active, the candidacy says from then on.
///
/// # Errors
/// `Away`: etcd does not answer yet. `Unfit`: it is not the one that it was, or of another cluster.
pub fn open(remote: &Remote, candidate: Candidate) -> Result<Candidacy, StoreError> {
    let place = PathBuf::from(remote.to_string());
    let remembered = Remembered::open(&candidate.directory)?;
    let stand = Stand::Standby { active: None };
    let first = Standing { stand, coordinators: vec![candidate.address.clone()] };
    let (tell, standing) = watch::channel(first);
    let (commands, told) = mpsc::unbounded_channel();
    let (opened, is_open) = sync_channel(1);
    let (remote, at) = (remote.clone(), place.clone());
    let work = move || {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(opened.send(Err(StoreError::Unfit(error.to_string())))),
        };
        runtime.block_on(async {
            let (fenced, refused) = mpsc::unbounded_channel();
            let begun = async {
                let calls = Calls::new(&remote).await?;
                let keys = Keys(remote.prefix.clone());
                let address = candidate.address.clone();
                let shared = Shared { calls, keys, place: at, standing: tell, fenced, address };
                let shared = Arc::new(shared);
                let driver = Driver::new(Arc::clone(&shared), candidate, remembered, refused);
                Ok((driver.begin().await?, shared))
            };
            match begun.await {
                Ok((driver, shared)) => {
                    let _ = opened.send(Ok(()));
                    serve(driver, shared, told).await;
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        });
    };
    let spawned = thread::Builder::new().name("etcd".to_owned()).spawn(work);
    spawned.map_err(|error| StoreError::Unfit(format!("starting a thread: {error}")))?;
    answer(&place, &is_open, OPEN * 2)?;
    let store = Etcd { place, commands, standing: standing.clone(), failed: None };
    Ok(Candidacy { store: Box::new(store), standing })
}

/// Until the loop's end is gone.
async fn serve(driver: Driver, shared: Arc<Shared>, mut told: mpsc::UnboundedReceiver<Command>) {
    let election = tokio::spawn(driver.run());
    let mut writer = Writer::new(Arc::clone(&shared));
    let mut ended = None;
    while let Some(command) = told.recv().await {
        match command {
            Command::Load(reply) => drop(reply.send(writer.load().await)),
            Command::Write(changes, reply) => drop(reply.send(writer.write(&changes).await)),
            Command::End(reply) => {
                ended = Some(reply);
                break;
            }
        }
    }
    election.abort();
    driver::give_back(&shared).await;
    drop(ended);
}

fn answer<T>(
    place: &std::path::Path,
    from: &Receiver<Result<T, StoreError>>,
    patience: Duration,
) -> Result<T, StoreError> {
    let wait = || from.recv_timeout(patience);
    // Others on this event loop go on meanwhile, where it has several threads.
    let threads = Handle::try_current().map(|handle| handle.runtime_flavor());
    let answered = if matches!(threads, Ok(RuntimeFlavor::MultiThread)) {
        block_in_place(wait)
    } else {
        wait()
    };
    answered.unwrap_or_else(|error| {
        let why = match error {
            RecvTimeoutError::Timeout => format!("no answer within {} s", patience.as_secs()),
            RecvTimeoutError::Disconnected => "the thread that speaks to it has ended".to_owned(),
        };
        Err(StoreError::Away { place: place.to_path_buf(), why })
    })
}

impl Etcd {
    fn put<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
        patience: Duration,
    ) -> Result<T, StoreError> {
        let (reply, from) = sync_channel(1);
        // Fails where the thread has ended, which is seen at once.
        let _ = self.commands.send(command(reply));
        answer(&self.place, &from, patience)
    }
}

impl Store for Etcd {
    fn load(&mut self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.put(Command::Load, LOAD)
    }

    fn write(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.may_decide()?;
        if changes.is_empty() {
            return Ok(());
        }
        if let Some((at, why)) = &self.failed
            && clock::running() < *at + AGAIN
        {
            return Err(StoreError::Away { place: self.place.clone(), why: why.clone() });
        }
        let written = self.put(|reply| Command::Write(changes.to_vec(), reply), WAIT);
        self.failed = match &written {
            Err(StoreError::Away { why, .. }) => Some((clock::running(), why.clone())),
            Ok(()) | Err(_) => None,
        };
        written
    }

    fn place(&self) -> PathBuf {
        self.place.clone()
    }

    fn value_bytes_max(&self) -> usize {
        staged::VALUE_BYTES_MAX
    }

    fn may_decide(&self) -> Result<(), StoreError> {
        let stand = self.standing.borrow().stand.clone();
        let place = self.place.clone();
        match stand {
            Stand::Active { until, .. } if clock::running() < until => Ok(()),
            Stand::Active { .. } => {
                let why = "this coordinator's lease could not be renewed".to_owned();
                Err(StoreError::Away { place, why })
            }
            Stand::Standby { .. } => {
                Err(StoreError::Fenced { place, why: "it is a standby".to_owned() })
            }
            Stand::Deposed { why } => Err(StoreError::Fenced { place, why }),
        }
    }
}

impl Drop for Etcd {
    /// The next one need not wait for the lease's end.
    fn drop(&mut self) {
        let (reply, ended) = sync_channel(1);
        if self.commands.send(Command::End(reply)).is_ok() {
            let _ = ended.recv_timeout(FAREWELL);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
