//! The other end of the door: joining a cluster, attending it as a rig, and asking it as a person.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use shoal_proto::wire::raw::cluster_client::ClusterClient;
use shoal_proto::wire::raw::enrolment_client::EnrolmentClient;
use shoal_proto::wire::raw::rigs_client::RigsClient;
use shoal_proto::wire::raw::{
    EnrolRequest, FileWanted, LogWanted, Papers, Question, RenewRequest, StandingTold,
    StandingWanted, Words,
};
use shoal_proto::wire::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, TERM_KEY};
use shoal_trust::{Credentials, Name, Request, Token, TrustError, pinned, reach};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::server::{ORDER_BYTES_MAX, WORDS_BYTES_MAX};
use crate::standing::Is;
use crate::words::{Answer, Ask, DataFile, FromRig, ToRig};

/// To the first answer.
const CONNECT: Duration = Duration::from_secs(5);

/// An answer may wait for a run's coordinator.
pub(crate) const ANSWER: Duration = Duration::from_secs(15);

/// Between two chunks of a file.
const STALL: Duration = Duration::from_secs(20);

/// Messages on their way out.
const OUTBOX: usize = 256;

const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why a cluster was not reached, or did not want to.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the coordinator at {address} cannot be reached: {why}")]
    Unreachable { address: String, why: String },
    #[error("the coordinator at {address} refused: {why}")]
    Refused { address: String, why: String },
    #[error("{address} is not the coordinator that the token or certificate is of: {why}")]
    Stranger { address: String, why: String },
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Joins at whichever of `HOST:PORT[,HOST:PORT...]` is active: proves the token to the coordinator that it pins, and to no other, and keeps the certificate in
/// `directory`.
///
/// # Errors
/// The coordinator is another one, or refuses the token or the name.
pub async fn join(
    addresses: &str,
    token: &Token,
    name: &Name,
    directory: &Path,
) -> Result<Credentials, ClientError> {
    let mut failure = None;
    for address in addresses.split(',') {
        match join_at(address, token, name, directory).await {
            Err(error @ ClientError::Unreachable { .. }) => failure = failure.or(Some(error)),
            joined => return joined,
        }
    }
    Err(failure.unwrap_or_else(|| nobody(addresses)))
}

/// Where not even one address is named.
fn nobody(addresses: &str) -> ClientError {
    let (address, why) = (addresses.to_owned(), "want HOST:PORT".to_owned());
    ClientError::Unreachable { address, why }
}

async fn join_at(
    address: &str,
    token: &Token,
    name: &Name,
    directory: &Path,
) -> Result<Credentials, ClientError> {
    let channel = connect(address, pinned(token.pin)).await?;
    let request = Request::new(name)?;
    let asked = EnrolRequest {
        token_id: token.id.clone(),
        token_secret: token.secret().to_vec(),
        name: name.to_string(),
        request_pem: request.pem().to_owned(),
    };
    let answer = timeout(ANSWER, EnrolmentClient::new(channel).enrol(asked)).await;
    let papers = told(address, answer)?;
    keep(&papers, request, directory)
}

fn keep(papers: &Papers, request: Request, directory: &Path) -> Result<Credentials, ClientError> {
    let credentials = Credentials::new(&papers.ca_pem, &papers.certificate_pem, request)?;
    credentials.save(directory)?;
    Ok(credentials)
}

async fn connect(address: &str, config: Arc<ClientConfig>) -> Result<Channel, ClientError> {
    let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(|error| {
        let why = format!("want HOST:PORT, {error}");
        ClientError::Unreachable { address: address.to_owned(), why }
    })?;
    let endpoint = endpoint
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let reached = timeout(CONNECT, reach::connect(&endpoint, address, config)).await;
    let silent = || format!("no answer within {} s", CONNECT.as_secs());
    let unreachable = |why| ClientError::Unreachable { address: address.to_owned(), why };
    match reached {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(reach::Unreached { what, kind })) => Err(match kind {
            reach::Kind::Away => unreachable(what),
            reach::Kind::Stranger => {
                ClientError::Stranger { address: address.to_owned(), why: what }
            }
            reach::Kind::Refused => {
                let why = format!(
                    "{what}. A rig that was expelled, or away until its certificate was over, joins anew with a token"
                );
                ClientError::Refused { address: address.to_owned(), why }
            }
        }),
        Err(_) => Err(unreachable(silent())),
    }
}

pub(crate) fn told<T>(
    address: &str,
    answer: Result<Result<tonic::Response<T>, Status>, tokio::time::error::Elapsed>,
) -> Result<T, ClientError> {
    let address = address.to_owned();
    match answer {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(failed(address, &status)),
        Err(_) => {
            let why = format!("no answer within {} s", ANSWER.as_secs());
            Err(ClientError::Unreachable { address, why })
        }
    }
}

pub(crate) fn failed(address: String, status: &Status) -> ClientError {
    let why = if status.message().is_empty() {
        status.code().to_string()
    } else {
        status.message().to_owned()
    };
    let passes = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::DeadlineExceeded];
    if passes.contains(&status.code()) {
        ClientError::Unreachable { address, why }
    } else {
        ClientError::Refused { address, why }
    }
}

/// A member at the door, with a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) address: String,
    pub(crate) channel: Channel,
    /// Of the coordinator at the other end; 0 where there is only one.
    term: u64,
    coordinators: Vec<String>,
}

/// Which log, and how much of it.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub job: String,
    pub log: String,
    pub tail_bytes: u64,
    pub follow: bool,
}

impl Client {
    /// Connects to whichever coordinator is active. `addresses`: `HOST:PORT[,HOST:PORT...]`.
    ///
    /// # Errors
    /// Nobody is there, or somebody else; or all stand by.
    pub async fn connect(addresses: &str, credentials: &Credentials) -> Result<Self, ClientError> {
        Self::connect_after(addresses, credentials, 0).await
    }

    /// The same, for whoever has seen a term: a coordinator of a lower one is not believed.
    ///
    /// # Errors
    /// As for `connect`.
    pub async fn connect_after(
        addresses: &str,
        credentials: &Credentials,
        seen: u64,
    ) -> Result<Self, ClientError> {
        let mut left: Vec<String> = addresses.split(',').map(str::to_owned).collect();
        let (mut at, mut undecided, mut failure) = (0, None, None);
        while let Some(address) = left.get(at).cloned() {
            at += 1;
            let channel = match connect(&address, credentials.client()?).await {
                Ok(channel) => channel,
                Err(error) => {
                    failure.get_or_insert(error);
                    continue;
                }
            };
            let mut asking = RigsClient::new(channel.clone());
            let stands = timeout(CONNECT, asking.standing(StandingWanted {})).await;
            // Whatever else is wrong, the call that follows says.
            let stands = stands.ok().and_then(Result::ok).map(tonic::Response::into_inner);
            let StandingTold { stands, term, active, coordinators } = stands.unwrap_or_default();
            let client = Self { address: address.clone(), channel, term, coordinators };
            if term < seen && stands != Is::Standby.number() {
                let why = format!("it was active in term {term}, and term {seen} has begun");
                failure = Some(ClientError::Unreachable { address, why });
            } else if stands == Is::Standby.number() {
                if !active.is_empty() && !left.contains(&active) {
                    left.push(active);
                }
                let why = "it stands by, and no active coordinator is reached".to_owned();
                failure = Some(ClientError::Unreachable { address, why });
            } else if stands == Is::Undecided.number() {
                undecided.get_or_insert(client);
            } else {
                return Ok(client);
            }
        }
        undecided.ok_or_else(|| failure.unwrap_or_else(|| nobody(addresses)))
    }

    /// What was answered, if it is of the term that the coordinator said it is active in.
    fn told<T>(
        &self,
        answer: Result<Result<tonic::Response<T>, Status>, tokio::time::error::Elapsed>,
    ) -> Result<T, ClientError> {
        if let Ok(Ok(response)) = &answer {
            let said = response.metadata().get(TERM_KEY).and_then(|term| term.to_str().ok());
            if said.and_then(|term| term.parse().ok()).unwrap_or(0) < self.term {
                let why = "it answered in a term that is over".to_owned();
                return Err(ClientError::Unreachable { address: self.address.clone(), why });
            }
        }
        told(&self.address, answer)
    }

    /// In which the coordinator at the other end is active.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Where coordinators of the cluster are, as far as it knows.
    pub fn coordinators(&self) -> &[String] {
        &self.coordinators
    }

    /// # Errors
    /// It is not for this member, or nobody answers.
    pub async fn ask(&self, ask: &Ask) -> Result<Answer, ClientError> {
        let misunderstood = |error: serde_json::Error| ClientError::Refused {
            address: self.address.clone(),
            why: format!("an answer that cannot be understood: {error}"),
        };
        let question = Question { ask_json: serde_json::to_string(ask).map_err(misunderstood)? };
        let mut client = ClusterClient::new(self.channel.clone())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
            .max_encoding_message_size(ORDER_BYTES_MAX);
        let answer = self.told(timeout(ANSWER, client.ask(question)).await)?;
        serde_json::from_str(&answer.answer_json).map_err(misunderstood)
    }

    /// Hands pieces of a log to `take` as they come, until it ends or `take` has enough.
    ///
    /// # Errors
    /// There is no such log, or the connection broke.
    pub async fn logs(
        &self,
        wanted: Wanted,
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), ClientError> {
        let Wanted { job, log, tail_bytes, follow } = wanted;
        let asked = LogWanted { job, log, tail_bytes, follow };
        let mut client = ClusterClient::new(self.channel.clone());
        let mut chunks = self.told(timeout(ANSWER, client.logs(asked)).await)?;
        loop {
            match chunks.message().await {
                Ok(Some(chunk)) if take(&chunk.bytes) => {}
                Ok(_) => return Ok(()),
                Err(status) => return Err(failed(self.address.clone(), &status)),
            }
        }
    }

    /// A new certificate in the place of the one in `directory`.
    ///
    /// # Errors
    /// The coordinator does not want to, or the files cannot be written.
    pub async fn renew(&self, name: &Name, directory: &Path) -> Result<Credentials, ClientError> {
        let request = Request::new(name)?;
        let asked = RenewRequest { request_pem: request.pem().to_owned() };
        let mut client = RigsClient::new(self.channel.clone());
        let papers = self.told(timeout(ANSWER, client.renew(asked)).await)?;
        keep(&papers, request, directory)
    }

    /// Attends as a rig, until the connection ends.
    ///
    /// # Errors
    /// This member is no rig.
    pub async fn attend(&self, hello: FromRig) -> Result<Attending, ClientError> {
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        // There is room: it is the first.
        let _ = outbox.try_send(hello);
        let words = ReceiverStream::new(outgoing).map(|message: FromRig| {
            let json = serde_json::to_string(&message).expect("plain structs of numbers and text");
            Words { json, term: 0 }
        });
        let mut client = RigsClient::new(self.channel.clone())
            .max_decoding_message_size(ORDER_BYTES_MAX)
            .max_encoding_message_size(WORDS_BYTES_MAX);
        let incoming = self.told(timeout(ANSWER, client.attend(words)).await)?;
        Ok(Attending { address: self.address.clone(), outbox, incoming, term: self.term })
    }

    /// Brings a file of a run's text into `directory`, checked, and whole or not at all.
    ///
    /// # Errors
    /// It is not what was promised, the disk is full, or the connection stands still.
    pub async fn fetch(
        &self,
        run: &str,
        file: &DataFile,
        directory: &Path,
    ) -> Result<(), ClientError> {
        let asked = FileWanted { run: run.to_owned(), name: file.name.clone() };
        let mut client = RigsClient::new(self.channel.clone());
        let mut chunks = self.told(timeout(ANSWER, client.fetch(asked)).await)?;
        let aside = directory.join(format!("{}.partial", file.name));
        let failing = |why: String| ClientError::File { path: aside.clone(), why };
        let opened = tokio::fs::File::create(&aside).await;
        let mut written = opened.map_err(|error| failing(error.to_string()))?;
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0_u64);
        loop {
            let next = timeout(STALL, chunks.message()).await;
            let next = next.map_err(|_| failing("the coordinator stopped sending".to_owned()))?;
            let Some(chunk) = next.map_err(|status| failed(self.address.clone(), &status))? else {
                break;
            };
            bytes += chunk.bytes.len() as u64;
            if bytes > file.bytes {
                return Err(failing(format!(
                    "more than the {} bytes that were promised",
                    file.bytes
                )));
            }
            hasher.update(&chunk.bytes);
            let wrote = written.write_all(&chunk.bytes).await;
            wrote.map_err(|error| failing(error.to_string()))?;
        }
        let hash = hasher.finalize().to_hex().to_string();
        if (bytes, &hash) != (file.bytes, &file.blake3) {
            let want = format!("{} bytes with BLAKE3 {}", file.bytes, file.blake3);
            return Err(failing(format!("{bytes} bytes with BLAKE3 {hash} came, want {want}")));
        }
        written.sync_all().await.map_err(|error| failing(error.to_string()))?;
        let named = tokio::fs::rename(&aside, directory.join(&file.name)).await;
        named.map_err(|error| failing(error.to_string()))
    }
}

/// A rig's stream.
#[derive(Debug)]
pub struct Attending {
    address: String,
    pub outbox: mpsc::Sender<FromRig>,
    incoming: tonic::Streaming<Words>,
    /// What was seen when it began.
    term: u64,
}

impl Attending {
    /// The next word of the coordinator.
    ///
    /// # Errors
    /// Why the stream has ended. `Refused`: the coordinator wants no more of this rig.
    pub async fn next(&mut self) -> Result<ToRig, ClientError> {
        let broken = |why: &str| {
            let (address, why) = (self.address.clone(), why.to_owned());
            ClientError::Unreachable { address, why }
        };
        match self.incoming.message().await {
            Ok(Some(words)) if words.term < self.term => {
                Err(broken("it gave an order of a term that is over"))
            }
            Ok(Some(words)) => serde_json::from_str(&words.json).map_err(|error| {
                let address = self.address.clone();
                let why = format!("it said what this shoal does not understand: {error}");
                ClientError::Refused { address, why }
            }),
            Ok(None) => Err(broken("the stream has ended")),
            Err(status) => Err(failed(self.address.clone(), &status)),
        }
    }
}
