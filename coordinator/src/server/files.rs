//! Files of checkpoints over gRPC: each on a stream of its own, asked of the conductor first and again at the end,
//! read from and written to the disk off the event loop.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shoal_plan::checkpoint::complete_name;
use shoal_plan::plan::WorkerId;
use shoal_proto::wire::{CHUNK_BYTES_MAX, raw};
use shoal_proto::{Deposit, DepositPiece, Withdrawal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::conductor::{Inbound, Question};
use crate::deposits::{Begun, DepositError, Deposits, Incoming, UNDER_WAY_MAX};
use crate::door::Limits;
use crate::metrics::{Metrics, Rejected};
use crate::state::Denied;
use crate::timed::Pass;

/// Chunks of a file on its way out that wait for the network.
const AHEAD: usize = 2;

/// What the streams of files share.
#[derive(Clone)]
pub(super) struct Files {
    deposits: Arc<Deposits>,
    places: Arc<Semaphore>,
    inbox: mpsc::Sender<Inbound>,
    limits: Limits,
    metrics: Metrics,
}

/// Of one stream.
type Chunks = mpsc::Receiver<Result<raw::Chunk, Status>>;

impl Files {
    pub(super) fn new(
        checkpoints: PathBuf,
        inbox: mpsc::Sender<Inbound>,
        limits: Limits,
        metrics: Metrics,
    ) -> Self {
        let (deposits, places) =
            (Deposits::new(checkpoints), Arc::new(Semaphore::new(UNDER_WAY_MAX)));
        Self { deposits, places, inbox, limits, metrics }
    }

    /// Takes a file to its end. To be called on a task of its own: whoever asked may go, and what is then left
    /// is to be removed all the same.
    pub(super) async fn receive(
        self,
        mut pieces: Streaming<raw::DepositPiece>,
        caller: Option<WorkerId>,
        pass: Pass,
    ) -> Result<raw::Deposited, Status> {
        let received = self.receive_all(&mut pieces, caller, &pass).await;
        if let Err(status) = &received {
            tracing::info!(why = status.message(), "a file of a checkpoint was not taken");
        }
        received.map(|()| raw::Deposited {})
    }

    async fn receive_all(
        &self,
        pieces: &mut Streaming<raw::DepositPiece>,
        caller: Option<WorkerId>,
        pass: &Pass,
    ) -> Result<(), Status> {
        let deposit = self.head(pieces).await?;
        speaks_for_itself(deposit.worker, caller)?;
        self.ask(Question::Deposit(deposit.clone())).await?;
        pass.admit();
        let _place = self.place()?;
        let (deposits, head) = (Arc::clone(&self.deposits), deposit.clone());
        let begun = blocking(move || deposits.begin(&head)).await?;
        let Begun::Incoming(incoming) = begun else { return Ok(()) };
        let incoming = self.take_chunks(pieces, incoming).await?;
        // The plan may have changed meanwhile.
        match self.ask(Question::Deposit(deposit)).await {
            Ok(()) => blocking(move || incoming.finish()).await,
            Err(status) => {
                discard(incoming).await;
                Err(status)
            }
        }
    }

    async fn head(&self, pieces: &mut Streaming<raw::DepositPiece>) -> Result<Deposit, Status> {
        let first = timeout(self.limits.hello_deadline, pieces.message()).await;
        let first = first.map_err(|_| {
            self.metrics.rejected(Rejected::NoHello);
            Status::deadline_exceeded("nothing was said in time")
        })?;
        match first?.map(DepositPiece::try_from) {
            Some(Ok(DepositPiece::Head(deposit))) => Ok(deposit),
            Some(Ok(DepositPiece::Chunk(_))) | None => {
                Err(self.unfit("a deposit begins with its head"))
            }
            Some(Err(error)) => Err(self.unfit(&error.to_string())),
        }
    }

    /// All bytes of a file, until it is durable; what is left of one that does not come is removed.
    async fn take_chunks(
        &self,
        pieces: &mut Streaming<raw::DepositPiece>,
        mut incoming: Box<Incoming>,
    ) -> Result<Box<Incoming>, Status> {
        loop {
            let taken = match self.next_chunk(pieces).await {
                Ok(Some(chunk)) => with(incoming, move |incoming| incoming.take(&chunk)).await,
                Ok(None) => return with(incoming, Incoming::sync).await,
                Err(status) => {
                    discard(incoming).await;
                    return Err(status);
                }
            };
            incoming = taken?;
        }
    }

    async fn next_chunk(
        &self,
        pieces: &mut Streaming<raw::DepositPiece>,
    ) -> Result<Option<Vec<u8>>, Status> {
        let patience = self.limits.stall_deadline;
        let next = timeout(patience, pieces.message()).await.map_err(|_| stalled(patience))?;
        match next?.map(DepositPiece::try_from) {
            None => Ok(None),
            Some(Ok(DepositPiece::Chunk(chunk))) => Ok(Some(chunk)),
            Some(Ok(DepositPiece::Head(_))) => Err(self.unfit("a deposit has one head")),
            Some(Err(error)) => Err(self.unfit(&error.to_string())),
        }
    }

    /// Begins to send a file of a checkpoint.
    pub(super) async fn send(
        &self,
        raw: raw::Withdrawal,
        caller: Option<WorkerId>,
        pass: &Pass,
    ) -> Result<Chunks, Status> {
        let withdrawal = Withdrawal::try_from(raw);
        let withdrawal = withdrawal.map_err(|error| self.unfit(&error.to_string()))?;
        speaks_for_itself(withdrawal.worker, caller)?;
        self.ask(Question::Withdrawal(withdrawal.clone())).await?;
        pass.admit();
        let place = self.place()?;
        let directory = self.deposits.checkpoints().join(complete_name(withdrawal.step));
        let path = directory.join(&withdrawal.name);
        let file = spawn_blocking(move || open(&path)).await.map_err(|_| ended())??;
        let (chunks, outgoing) = mpsc::channel(AHEAD);
        tokio::spawn(send_all(file, chunks, self.limits.stall_deadline, place));
        Ok(outgoing)
    }

    /// The state's word.
    async fn ask(&self, question: Question) -> Result<(), Status> {
        let (answer, answered) = oneshot::channel();
        self.inbox.send(Inbound::Asks { question, answer }).await.map_err(|_| ended())?;
        match answered.await.map_err(|_| ended())? {
            Ok(()) => Ok(()),
            Err(Denied::NotNow(why)) => Err(Status::unavailable(why)),
            Err(Denied::Never(why)) => {
                self.metrics.rejected(Rejected::Refused);
                Err(Status::failed_precondition(why))
            }
        }
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        place.map_err(|_| {
            Status::unavailable(format!("{UNDER_WAY_MAX} files are on their way, and no more go"))
        })
    }

    fn unfit(&self, why: &str) -> Status {
        self.metrics.rejected(Rejected::BadMessage);
        Status::invalid_argument(why)
    }
}

fn ended() -> Status {
    Status::unavailable("the coordinator ends")
}

fn stalled(patience: Duration) -> Status {
    Status::deadline_exceeded(format!("nothing came or went for {} s", patience.as_secs()))
}

fn in_words(error: DepositError) -> Status {
    match error {
        DepositError::Busy(why) => Status::unavailable(why),
        DepositError::Unfit(why) => Status::failed_precondition(why),
        error @ DepositError::Disk(_) => Status::resource_exhausted(error.to_string()),
    }
}

/// Off the event loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DepositError> + Send + 'static,
) -> Result<T, Status> {
    spawn_blocking(work).await.map_err(|_| ended())?.map_err(in_words)
}

/// Does something with a file off the event loop, and gives it back; one that fails is removed there.
async fn with(
    mut incoming: Box<Incoming>,
    work: impl FnOnce(&mut Incoming) -> Result<(), DepositError> + Send + 'static,
) -> Result<Box<Incoming>, Status> {
    blocking(move || work(&mut incoming).map(|()| incoming)).await
}

async fn discard(incoming: Box<Incoming>) {
    // It fails only with the event loop, which is going then.
    spawn_blocking(move || drop(incoming)).await.ok();
}

fn open(path: &Path) -> Result<File, Status> {
    let name = path.file_name().unwrap_or_default().display();
    let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
    let opened = if is_file { File::open(path) } else { Err(ErrorKind::NotFound.into()) };
    opened.map_err(|error| {
        if error.kind() == ErrorKind::NotFound {
            return Status::not_found(format!("the checkpoint has no {name}"));
        }
        Status::data_loss(format!("opening {}: {error}", path.display()))
    })
}

/// Chunk after chunk, as fast as they are read at the other end. Whoever does not read is left.
/// A message says whose it is; where a cluster's door knows that, it is held against it.
fn speaks_for_itself(said: WorkerId, caller: Option<WorkerId>) -> Result<(), Status> {
    match caller.filter(|caller| *caller != said) {
        None => Ok(()),
        Some(caller) => {
            Err(Status::permission_denied(format!("{caller} calls, and speaks as {said}")))
        }
    }
}

async fn send_all(
    mut file: File,
    chunks: mpsc::Sender<Result<raw::Chunk, Status>>,
    patience: Duration,
    _place: OwnedSemaphorePermit,
) {
    loop {
        let read = spawn_blocking(move || {
            let mut bytes = Vec::with_capacity(CHUNK_BYTES_MAX);
            let read = file.by_ref().take(CHUNK_BYTES_MAX as u64).read_to_end(&mut bytes);
            (file, read.map(|_| bytes))
        });
        let Ok((rest, read)) = read.await else { return };
        file = rest;
        let chunk = match read {
            Ok(bytes) if bytes.is_empty() => return,
            Ok(bytes) => Ok(raw::Chunk { bytes }),
            Err(error) => Err(Status::data_loss(format!("reading it: {error}"))),
        };
        let is_last = chunk.is_err();
        let sent = timeout(patience, chunks.send(chunk)).await;
        if is_last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}
