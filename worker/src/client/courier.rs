//! Carries files of checkpoints to the coordinator and from it, each over a connection of its own: heartbeats go
//! over another. A connection that breaks, or a coordinator that is started anew, costs another attempt; what the
//! coordinator refuses is not tried again.
//!
//! Called from threads that may wait: what is done here takes as long as the network does.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use shoal_plan::checkpoint::{CheckpointFile, FILE_NAME};
use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, RunId, WorkerId};
use shoal_plan::standing::Standing;
use shoal_proto::wire::raw::coordinator_client::CoordinatorClient;
use shoal_proto::wire::{CHUNK_BYTES_MAX, raw};
use shoal_proto::{Deposit, DepositPiece, Secret, Withdrawal};
use shoal_weights::scratch_file;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::gate::Gate;
use super::{ATTEMPT_DEADLINE, RETRY, in_words};

/// A coordinator that takes or gives nothing for so long will not: its session ends then, too.
const PATIENCE: Duration = Duration::from_mins(1);

/// Attempts of one file that broke off in the midst of it.
const BREAKS_MAX: u32 = 8;

/// A coordinator that takes no chunk, or gives none, for so long hangs. It closes what stalls sooner.
const STALL: Duration = Duration::from_secs(30);

/// From the last byte of a file until the coordinator has it on its disk; the most of it is there before.
const ANSWER: Duration = Duration::from_mins(2);

/// Chunks that wait for the network.
const AHEAD: usize = 4;

/// How often it is asked whether anybody still wants the file.
const LOOK: Duration = Duration::from_millis(50);

/// One worker's, under one plan.
#[derive(Clone, Debug)]
pub struct Courier {
    pub(crate) coordinator: Gate,
    pub(crate) secret: Secret,
    pub(crate) run: RunId,
    pub(crate) me: WorkerId,
    pub(crate) generation: Generation,
    /// Where the network is waited for.
    pub(crate) runtime: Handle,
}

/// Why a file did not get through.
#[derive(Debug, thiserror::Error)]
pub enum CourierError {
    #[error("the coordinator does not {doing} {name}: {why}")]
    Refused { doing: &'static str, name: String, why: String },

    #[error("{name} does not get through between here and the coordinator at {coordinator}: {why}")]
    Unreachable { coordinator: Gate, name: String, why: String },

    #[error(
        "{name} takes more room than there is for temporary files: writing {}: {source}; TMPDIR names \
         another place", path.display()
    )]
    Scratch { name: String, path: PathBuf, source: io::Error },

    #[error("{name} is not wanted any more")]
    Stopped { name: String },
}

/// What to do about an attempt that went wrong.
enum Failure {
    /// Another may go well. `broke`: it was under way.
    Again {
        why: String,
        broke: bool,
    },
    Final(CourierError),
}

/// A file to be read.
struct Asked<'a> {
    step: u64,
    name: &'a str,
    /// What it has to be; a manifest says so of itself.
    want: Option<&'a CheckpointFile>,
    bytes_max: u64,
}

impl Courier {
    /// Leaves a file of a cell's part with the coordinator. It is durable there after `Ok`.
    ///
    /// # Errors
    /// Refused, unreachable, or `is_off`.
    pub fn deposit(
        &self,
        (standing, cell): (Standing, CellId),
        (file, content): (&CheckpointFile, &File),
        is_off: &dyn Fn() -> bool,
    ) -> Result<(), CourierError> {
        let head = Deposit {
            run: self.run.clone(),
            worker: self.me,
            generation: self.generation,
            standing,
            cell,
            file: file.clone(),
        };
        self.persist(&file.name, is_off, async || self.leave(&head, content).await)
    }

    /// Reads the manifest of the checkpoint of a step, which has at most so many bytes. It has its hash in itself.
    ///
    /// # Errors
    /// Refused, unreachable, or `is_off`.
    pub fn withdraw_manifest(
        &self,
        step: u64,
        bytes_max: u64,
        is_off: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, CourierError> {
        let name = FILE_NAME;
        let (content, path) =
            self.withdraw(&Asked { step, name, want: None, bytes_max }, is_off)?;
        read_all(&content).map_err(|source| CourierError::Scratch {
            name: name.to_owned(),
            path,
            source,
        })
    }

    /// Reads a file of the checkpoint of a step into a scratch file, at whose beginning it then stands. It is
    /// what the manifest says it is.
    ///
    /// # Errors
    /// Refused, unreachable, or `is_off`.
    pub fn withdraw_file(
        &self,
        step: u64,
        file: &CheckpointFile,
        is_off: &dyn Fn() -> bool,
    ) -> Result<File, CourierError> {
        let CheckpointFile { name, bytes, .. } = file;
        let asked = Asked { step, name, want: Some(file), bytes_max: *bytes };
        self.withdraw(&asked, is_off).map(|(content, _)| content)
    }

    fn withdraw(
        &self,
        asked: &Asked<'_>,
        is_off: &dyn Fn() -> bool,
    ) -> Result<(File, PathBuf), CourierError> {
        let (content, path) = scratch_file().map_err(|error| CourierError::Scratch {
            name: asked.name.to_owned(),
            path: std::env::temp_dir(),
            source: io::Error::other(error.to_string()),
        })?;
        self.persist(asked.name, is_off, async || self.fetch(asked, (&content, &path)).await)?;
        Ok((content, path))
    }

    /// Tries until it goes well, it is refused, nobody wants it any more, or nothing moves.
    fn persist<A: AsyncFnMut() -> Result<(), Failure>>(
        &self,
        name: &str,
        is_off: &dyn Fn() -> bool,
        mut attempt: A,
    ) -> Result<(), CourierError> {
        let attempts = async {
            let (mut since, mut breaks) = (None, 0);
            loop {
                let (why, broke) = match attempt().await {
                    Ok(()) => return Ok(()),
                    Err(Failure::Final(error)) => return Err(error),
                    Err(Failure::Again { why, broke }) => (why, broke),
                };
                tracing::debug!(name, why, "another attempt");
                breaks += u32::from(broke);
                let now = Instant::now();
                if broke {
                    since = Some(now);
                }
                if breaks > BREAKS_MAX || now >= *since.get_or_insert(now) + PATIENCE {
                    let (coordinator, name) = (self.coordinator.clone(), name.to_owned());
                    return Err(CourierError::Unreachable { coordinator, name, why });
                }
                sleep(RETRY).await;
            }
        };
        self.runtime.block_on(async {
            let mut attempts = pin!(attempts);
            let mut looks = interval(LOOK);
            loop {
                tokio::select! {
                    done = &mut attempts => return done,
                    _at = looks.tick() => if is_off() {
                        return Err(CourierError::Stopped { name: name.to_owned() });
                    }
                }
            }
        })
    }

    async fn connect(&self) -> Result<CoordinatorClient<Channel>, Failure> {
        let connected = timeout(ATTEMPT_DEADLINE, self.coordinator.connect(ATTEMPT_DEADLINE)).await;
        let connected = connected.unwrap_or_else(|_| Err("it does not answer".to_owned()));
        let channel = connected.map_err(|why| Failure::Again { why, broke: false })?;
        Ok(CoordinatorClient::new(channel))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        self.coordinator.request(message, &self.run, &self.secret)
    }

    async fn leave(&self, head: &Deposit, content: &File) -> Result<(), Failure> {
        let mut client = self.connect().await?;
        let (pieces, said) = mpsc::channel(AHEAD);
        let said = ReceiverStream::new(said).map(raw::DepositPiece::from);
        let mut answer = pin!(client.deposit(self.request(said)));
        let fed = tokio::select! {
            answer = &mut answer => Some(answer),
            fed = feed(head, content, pieces) => {
                fed?;
                None
            }
        };
        let answer = match fed {
            // Before the end of the file: it is there already, or refused.
            Some(answer) => answer,
            None => timeout(ANSWER, answer).await.map_err(|_| Failure::Again {
                why: "it is not on the coordinator's disk yet".into(),
                broke: true,
            })?,
        };
        answer.map(drop).map_err(|status| failure("take", &head.file.name, &status))
    }

    /// One attempt, from the first byte.
    async fn fetch(
        &self,
        asked: &Asked<'_>,
        (mut content, path): (&File, &PathBuf),
    ) -> Result<(), Failure> {
        let name = asked.name.to_owned();
        let scratch = |source| {
            let (name, path) = (asked.name.to_owned(), path.clone());
            Failure::Final(CourierError::Scratch { name, path, source })
        };
        content.set_len(0).and_then(|()| content.seek(SeekFrom::Start(0))).map_err(scratch)?;
        let mut client = self.connect().await?;
        let (run, worker, generation) = (self.run.clone(), self.me, self.generation);
        let withdrawal = Withdrawal { run, worker, generation, step: asked.step, name };
        let request = self.request(raw::Withdrawal::from(withdrawal));
        let refused = |status: Status| failure("give", asked.name, &status);
        let again = |why: String| Failure::Again { why, broke: true };
        let hangs = |_| again(format!("nothing came for {} s", STALL.as_secs()));
        let answered = timeout(STALL, client.withdraw(request)).await.map_err(hangs)?;
        let mut chunks = answered.map_err(refused)?.into_inner();
        let (mut bytes, mut hasher) = (0, blake3::Hasher::new());
        while let Some(raw) =
            timeout(STALL, chunks.message()).await.map_err(hangs)?.map_err(refused)?
        {
            let chunk = shoal_proto::wire::chunk(raw).map_err(|error| again(error.to_string()))?;
            bytes += chunk.len() as u64;
            if bytes > asked.bytes_max {
                return Err(again(format!("more than {} bytes came", asked.bytes_max)));
            }
            hasher.update(&chunk);
            content.write_all(&chunk).map_err(scratch)?;
        }
        if let Some(CheckpointFile { bytes: want, blake3, .. }) = asked.want {
            if bytes != *want {
                return Err(again(format!("it ends after {bytes} of {want} bytes")));
            }
            let got = hasher.finalize().to_hex();
            if got.as_str() != blake3 {
                return Err(again(format!("it came with blake3 {got}, want {blake3}")));
            }
        }
        content.seek(SeekFrom::Start(0)).map_err(scratch)?;
        Ok(())
    }
}

/// Says all of a file, as fast as it is taken.
async fn feed(
    head: &Deposit,
    content: &File,
    pieces: mpsc::Sender<DepositPiece>,
) -> Result<(), Failure> {
    let CheckpointFile { name, bytes, .. } = &head.file;
    let (mut next, mut at) = (DepositPiece::Head(head.clone()), 0);
    loop {
        let Ok(said) = timeout(STALL, pieces.send(next)).await else {
            let why = format!("nothing was taken for {} s", STALL.as_secs());
            return Err(Failure::Again { why, broke: true });
        };
        // Nobody listens: the answer says why.
        if said.is_err() || at == *bytes {
            return if said.is_err() { std::future::pending().await } else { Ok(()) };
        }
        let mut chunk = vec![0; CHUNK_BYTES_MAX.min((bytes - at) as usize)];
        content.read_exact_at(&mut chunk, at).map_err(|source| {
            let path = std::env::temp_dir();
            Failure::Final(CourierError::Scratch { name: name.clone(), path, source })
        })?;
        at += chunk.len() as u64;
        next = DepositPiece::Chunk(chunk);
    }
}

fn read_all(content: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(content.metadata()?.len()).map_err(io::Error::other)?];
    content.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The coordinator's own words are final, but for those that pass by themselves; all else is the connection's.
fn failure(doing: &'static str, name: &str, status: &Status) -> Failure {
    let why = in_words(status);
    match status.code() {
        Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::NotFound
        | Code::Unauthenticated
        | Code::ResourceExhausted
        | Code::DataLoss
        | Code::Unimplemented => {
            Failure::Final(CourierError::Refused { doing, name: name.to_owned(), why })
        }
        Code::Unavailable => Failure::Again { why, broke: false },
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal => Failure::Again { why, broke: true },
    }
}

#[cfg(test)]
mod tests;
