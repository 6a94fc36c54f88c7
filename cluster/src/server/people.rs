//! What people ask, and the logs that they read.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::time::Duration;

use shoal_proto::wire::CHUNK_BYTES_MAX;
use shoal_proto::wire::raw::cluster_server::Cluster;
use shoal_proto::wire::raw::{Answer, Chunk, LogWanted, Question};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Rim, rigs};
use crate::harbour::Inbound;
use crate::roles;
use crate::words::Ask;

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);

pub(super) struct Asking(Rim);

impl Asking {
    pub(super) fn new(rim: Rim) -> Self {
        Self(rim)
    }
}

type Chunks = mpsc::Sender<Result<Chunk, Status>>;

#[tonic::async_trait]
impl Cluster for Asking {
    type LogsStream = ReceiverStream<Result<Chunk, Status>>;

    async fn ask(&self, request: Request<Question>) -> Result<Response<Answer>, Status> {
        let who = rigs::caller(&request)?;
        let ask: Ask = serde_json::from_str(&request.into_inner().ask_json).map_err(|error| {
            Status::invalid_argument(format!("a question that cannot be understood: {error}"))
        })?;
        if !roles::may_ask(&ask, who.role) {
            let why = format!("that is not for a {}: ask as an {}", who.role, roles::needs(&ask));
            return Err(Status::permission_denied(why));
        }
        let answer = self.0.ask(|reply| Inbound::Ask { ask, reply }).await?;
        let answer_json = serde_json::to_string(&answer);
        let answer_json = answer_json.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(Answer { answer_json }))
    }

    async fn logs(
        &self,
        request: Request<LogWanted>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let LogWanted { job, log, tail_bytes, follow } = request.into_inner();
        let path = self.0.ask(|reply| Inbound::Log { job, log, reply }).await?;
        let path = path.map_err(Status::not_found)?;
        let (chunks, stream) = mpsc::channel(4);
        tokio::spawn(async move {
            if let Err(error) = read(path, tail_bytes, follow, &chunks).await {
                let _ = chunks.send(Err(Status::unavailable(error.to_string()))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// The end of a file, and what is added to it. One that is shorter than before was begun anew.
async fn read(path: PathBuf, tail: u64, follow: bool, chunks: &Chunks) -> std::io::Result<()> {
    let mut file = tokio::fs::File::open(&path).await?;
    let mut at = file.metadata().await?.len().saturating_sub(tail);
    file.seek(SeekFrom::Start(at)).await?;
    loop {
        let mut bytes = vec![0; CHUNK_BYTES_MAX];
        let read = file.read(&mut bytes).await?;
        bytes.truncate(read);
        at += read as u64;
        if read > 0 {
            if chunks.send(Ok(Chunk { bytes })).await.is_err() {
                return Ok(());
            }
            continue;
        }
        if !follow {
            return Ok(());
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = chunks.closed() => return Ok(()),
        }
        if tokio::fs::metadata(&path).await.is_ok_and(|now| now.len() < at) {
            file = tokio::fs::File::open(&path).await?;
            at = 0;
        }
    }
}
