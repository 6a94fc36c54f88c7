//! What rigs call: one stream for as long as they are there, a new certificate, and the text of a run.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use shoal_proto::wire::CHUNK_BYTES_MAX;
use shoal_proto::wire::raw::rigs_server::Rigs;
use shoal_proto::wire::raw::{
    Chunk, FileWanted, NeighboursWanted, Papers, ProbeWanted, Probed, RenewRequest, StandingTold,
    StandingWanted, Words,
};
use shoal_trust::Identity;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{Rim, enrolment, probing};
use crate::clock;
use crate::door::Peer;
use crate::harbour::{Inbound, Outgoing};
use crate::probing::{Turn, Turns};
use crate::quota::Bucket;
use crate::state::SessionId;
use crate::words::FromRig;

/// Orders on their way to one rig. More means that it does not read.
const OUTBOX: usize = 64;

/// What a rig may say in a second, and save up, in bytes; a message counts as so many more. Beyond, it is read no
/// faster, and HTTP/2 tells it so.
const SAYS_A_SECOND: f64 = 4e6;
const SAYS_SAVED: f64 = 16e6;
const OF_A_MESSAGE: f64 = 1e3;

/// A hello takes milliseconds.
const HELLO: Duration = Duration::from_secs(10);

pub(super) struct Attending(Rim, Turns);

impl Attending {
    pub(super) fn new(rim: Rim) -> Self {
        Self(rim, Turns::default())
    }

    /// Whose turn it is to probe.
    fn turn<T>(&self, request: &Request<T>) -> Result<Turn, Status> {
        self.1.take(caller(request)?.name.as_str()).map_err(Status::resource_exhausted)
    }
}

/// Who calls: `roles` has made sure that it is a member.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Identity, Status> {
    let peer = request.extensions().get::<Peer>();
    let identity = peer.and_then(Peer::identity).cloned();
    identity.ok_or_else(|| Status::unauthenticated("no certificate was shown"))
}

#[tonic::async_trait]
impl Rigs for Attending {
    type AttendStream = Pin<Box<dyn Stream<Item = Result<Words, Status>> + Send>>;
    type FetchStream = ReceiverStream<Result<Chunk, Status>>;
    type ProbeDownStream = ReceiverStream<Result<Chunk, Status>>;

    async fn attend(
        &self,
        request: Request<Streaming<Words>>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        let rig = caller(&request)?.name.to_string();
        let session = SessionId(self.0.next_session());
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let (inbox, term) = (self.0.inbox.clone(), self.0.stands.term());
        let messages = request.into_inner();
        tokio::spawn(async move {
            let why = hear(messages, (session, rig), outbox, &inbox).await;
            // Fails when the harbour has ended, which needs no news then.
            let _ = inbox.send(Inbound::RigGone { session, why }).await;
        });
        let outgoing = ReceiverStream::new(outgoing).map(move |outgoing| match outgoing {
            Outgoing::Tell(message) => {
                let json = serde_json::to_string(&message);
                let json = json.map_err(|error| Status::internal(error.to_string()))?;
                Ok(Words { json, term })
            }
            Outgoing::Close(reason) => Err(Status::failed_precondition(reason)),
        });
        Ok(Response::new(Box::pin(outgoing)))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Papers>, Status> {
        let identity = caller(&request)?;
        let RenewRequest { request_pem } = request.into_inner();
        let renewed = |reply| Inbound::Renew { identity, request_pem, reply };
        self.0.ask(renewed).await?.map(enrolment::told).map_err(Status::invalid_argument)
    }

    async fn fetch(
        &self,
        request: Request<FileWanted>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let rig = caller(&request)?.name.to_string();
        let FileWanted { run, name } = request.into_inner();
        let path = self.0.ask(|reply| Inbound::File { rig, run, name, reply }).await?;
        let path = path.map_err(Status::permission_denied)?;
        let (chunks, stream) = mpsc::channel(4);
        tokio::spawn(async move {
            if let Err(error) = send(path, &chunks).await {
                let _ = chunks.send(Err(Status::unavailable(error.to_string()))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn look(&self, request: Request<Words>) -> Result<Response<Words>, Status> {
        let rig = caller(&request)?.name;
        let peer = request.extensions().get::<Peer>().map(|peer| peer.address.ip());
        let address = peer.ok_or_else(|| Status::internal("a call without a connection"))?;
        probing::look(rig.as_str(), address, &request.into_inner().json).map(Response::new)
    }

    async fn standing(&self, _: Request<StandingWanted>) -> Result<Response<StandingTold>, Status> {
        let stands = &self.0.stands;
        Ok(Response::new(StandingTold {
            stands: stands.is().number(),
            term: stands.term(),
            active: stands.elsewhere().unwrap_or_default(),
            coordinators: stands.coordinators(),
        }))
    }

    async fn neighbours(
        &self,
        request: Request<NeighboursWanted>,
    ) -> Result<Response<Words>, Status> {
        let rig = caller(&request)?.name.to_string();
        let found = self.0.ask(|reply| Inbound::Neighbours { rig, reply }).await?;
        probing::written(&found).map(Response::new)
    }

    async fn probe_up(
        &self,
        request: Request<Streaming<Chunk>>,
    ) -> Result<Response<Probed>, Status> {
        let turn = self.turn(&request)?;
        probing::count(request.into_inner(), turn).await.map(Response::new)
    }

    async fn probe_down(
        &self,
        request: Request<ProbeWanted>,
    ) -> Result<Response<Self::ProbeDownStream>, Status> {
        let turn = self.turn(&request)?;
        Ok(Response::new(probing::pour(request.into_inner().bytes, turn)))
    }
}

/// Reads a rig's stream to its end, and says why it came.
async fn hear(
    mut messages: Streaming<Words>,
    (session, rig): (SessionId, String),
    outbox: mpsc::Sender<Outgoing>,
    inbox: &mpsc::Sender<Inbound>,
) -> String {
    let first = timeout(HELLO, messages.message()).await;
    let Ok(mut message) = first else { return "it said no hello in time".to_owned() };
    let mut outbox = Some(outbox);
    let mut says = Bucket::new(SAYS_A_SECOND, SAYS_SAVED);
    loop {
        let words = match message {
            Ok(Some(words)) => words,
            Ok(None) => return "it hung up".to_owned(),
            Err(status) => return status.message().to_owned(),
        };
        let wait = says.take(words.json.len() as f64 + OF_A_MESSAGE, clock::running());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        let message_of_rig = match serde_json::from_str::<FromRig>(&words.json) {
            Ok(message) => message,
            Err(error) => {
                let why = format!("a message that cannot be understood: {error}");
                if let Some(outbox) = &outbox {
                    let _ = outbox.send(Outgoing::Close(why.clone())).await;
                }
                return why;
            }
        };
        let inbound = match outbox.take() {
            Some(outbox) => {
                Inbound::RigCame { session, rig: rig.clone(), first: message_of_rig, outbox }
            }
            None => Inbound::RigSays { session, message: message_of_rig },
        };
        if inbox.send(inbound).await.is_err() {
            return "the coordinator ends".to_owned();
        }
        message = messages.message().await;
    }
}

async fn send(path: PathBuf, chunks: &mpsc::Sender<Result<Chunk, Status>>) -> io::Result<()> {
    let mut file = tokio::fs::File::open(path).await?;
    loop {
        let mut bytes = vec![0; CHUNK_BYTES_MAX];
        let read = file.read(&mut bytes).await?;
        bytes.truncate(read);
        if read == 0 || chunks.send(Ok(Chunk { bytes })).await.is_err() {
            return Ok(());
        }
    }
}
