//! The gRPC rim: turns streams into events and messages into streams. It decides nothing.
//!
//! Limits: tonic's defaults leave idle and stalled connections open for ever, so everything that a
//! stranger can make grow has a bound here or in `door`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shoal_plan::plan::WorkerId;
use shoal_proto::wire::raw::control_server::ControlServer;
use shoal_proto::wire::raw::coordinator_server::{Coordinator, CoordinatorServer};
use shoal_proto::wire::{
    ANSWER_BYTES_MAX, FROM_WORKER_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MEMBER_KEY,
    QUESTION_BYTES_MAX, RIG_KEY, SECRET_KEY, TO_WORKER_BYTES_MAX, raw,
};
use shoal_proto::{FromWorker, Secret};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataMap;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use crate::conductor::{Conductor, Follower, Inbound, Outgoing, Session};
use crate::door::{self, Guarded, Limits};
use crate::error::Error;
use crate::metrics::{AuthFailure, Metrics, Rejected};
use crate::news::News;
use crate::settings::Settings;
use crate::state::{ConnectionId, Event};
use crate::timed::Pass;
use files::Files;
use questions::Questions;

mod files;
mod questions;

/// Messages on their way to one worker. Seven suffice for a run; more means that it does not read.
const OUTBOX: usize = 64;

/// Messages of all workers on their way to the conductor; beyond, the streams wait.
const INBOX: usize = 256;

/// A coordinator at work. Dropping it ends it, and what it knows stays in the run directory.
#[derive(Debug)]
pub struct Running {
    /// Where workers join, and the launcher follows the run.
    pub address: SocketAddr,
    pub metrics: Metrics,
    /// Ends if the coordinator does.
    pub ended: oneshot::Receiver<()>,
    _open: oneshot::Sender<()>,
}

/// Starts a coordinator, or one that goes on where the last one of this run ended, on a port of 127.0.0.1:
/// without TLS nothing else is offered. Runs on the event loop it is called on. Whoever keeps the port open between two of them loses no caller.
pub fn serve(settings: Settings, port: std::net::TcpListener) -> Result<Running, Error> {
    serve_within(settings, port, Limits::USUAL)
}

fn serve_within(
    settings: Settings,
    port: std::net::TcpListener,
    limits: Limits,
) -> Result<Running, Error> {
    let listen = |source| Error::Listen { source };
    let address = port.local_addr().map_err(listen)?;
    if !address.ip().is_loopback() {
        return Err(listen(io::Error::other(format!("{address} is not on this machine"))));
    }
    port.set_nonblocking(true).map_err(listen)?;
    let listener = TcpListener::from_std(port).map_err(listen)?;
    let secret = settings.secret.clone();
    let (inbox_sender, inbox) = mpsc::channel(INBOX);
    let metrics = Metrics::new(&settings).map_err(|source| Error::Metrics { source })?;
    let checkpoints = settings.run_dir.join("checkpoints");
    let files = Files::new(checkpoints, inbox_sender.clone(), limits, metrics.clone());
    let conductor = Conductor::new(settings, metrics.clone())?;

    let (accepted_sender, accepted) = mpsc::channel(1);
    let accepting = door::accept(listener, limits, accepted_sender, metrics.clone());
    let opened = AtomicU64::new(conductor.first_connection());
    let questions = ControlServer::new(Questions::new(inbox_sender.clone()))
        .max_decoding_message_size(QUESTION_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    let sessions =
        Sessions { inbox: inbox_sender, opened, limits, metrics: metrics.clone(), files };
    let service = CoordinatorServer::new(sessions)
        .max_decoding_message_size(FROM_WORKER_BYTES_MAX)
        .max_encoding_message_size(TO_WORKER_BYTES_MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        // A session has one, and so has whoever follows; files go over connections of their own, one at a time,
        // so that neither a heartbeat nor the connection's window waits for one.
        .max_concurrent_streams(2)
        .concurrency_limit_per_connection(2)
        .http2_max_header_list_size(16 << 10)
        .http2_max_pending_accept_reset_streams(Some(8))
        .http2_max_local_error_reset_streams(Some(8))
        .add_service(InterceptedService::new(
            service,
            only_members(secret.clone(), metrics.clone()),
        ))
        .add_service(InterceptedService::new(questions, only_members(secret, metrics.clone())))
        .serve_with_incoming(ReceiverStream::new(accepted));
    let (open, closed) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            result = server => {
                if let Err(error) = result {
                    tracing::error!(%error, "the gRPC server failed");
                }
            }
            () = conductor.conduct(inbox) => {}
            () = accepting => {}
            _dropped = closed => {}
        }
        end.send(()).ok();
    });
    Ok(Running { address, metrics, ended, _open: open })
}

/// Refuses whoever does not know the run's secret, in the same words whatever is wrong with it.
fn only_members(
    secret: Secret,
    metrics: Metrics,
) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync + 'static {
    move |request| {
        let given = request.metadata().get(SECRET_KEY);
        let read =
            given.map(|value| value.to_str().ok().and_then(|hex| Secret::from_hex(hex).ok()));
        metrics.auth_failed(match read {
            Some(Some(given)) if given == secret => return Ok(request),
            Some(Some(_)) => AuthFailure::Wrong,
            Some(None) => AuthFailure::Malformed,
            None => AuthFailure::Missing,
        });
        tracing::warn!("a connection without the run's secret was refused");
        Err(Status::unauthenticated("the secret of this run is missing or wrong"))
    }
}

/// Who calls, where a cluster's door has passed the call on. Whoever knows the run's secret is believed.
fn caller(metadata: &MetadataMap) -> Result<Option<(WorkerId, String)>, Status> {
    let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
    let (Some(worker), Some(rig)) = (text(MEMBER_KEY), text(RIG_KEY)) else { return Ok(None) };
    let worker = worker.parse().map(WorkerId);
    let worker = worker.map_err(|_| Status::invalid_argument(format!("{MEMBER_KEY} is no number")));
    worker.map(|worker| Some((worker, rig.to_owned())))
}

impl Connected for Guarded {
    type ConnectInfo = Pass;

    fn connect_info(&self) -> Pass {
        self.pass()
    }
}

struct Sessions {
    inbox: mpsc::Sender<Inbound>,
    opened: AtomicU64,
    limits: Limits,
    metrics: Metrics,
    files: Files,
}

#[tonic::async_trait]
impl Coordinator for Sessions {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<raw::ToWorker, Status>> + Send>>;
    type WatchStream = Pin<Box<dyn Stream<Item = Result<raw::ToWatcher, Status>> + Send>>;
    type WithdrawStream = ReceiverStream<Result<raw::Chunk, Status>>;

    async fn deposit(
        &self,
        request: Request<Streaming<raw::DepositPiece>>,
    ) -> Result<Response<raw::Deposited>, Status> {
        let pass = request.extensions().get::<Pass>().cloned().unwrap_or_default();
        let caller = caller(request.metadata())?.map(|(worker, _)| worker);
        let receiving = self.files.clone().receive(request.into_inner(), caller, pass);
        let received = tokio::spawn(receiving).await;
        received.map_err(|_| Status::unavailable("the coordinator ends"))?.map(Response::new)
    }

    async fn withdraw(
        &self,
        request: Request<raw::Withdrawal>,
    ) -> Result<Response<Self::WithdrawStream>, Status> {
        let pass = request.extensions().get::<Pass>().cloned().unwrap_or_default();
        let caller = caller(request.metadata())?.map(|(worker, _)| worker);
        let chunks = self.files.send(request.into_inner(), caller, &pass).await?;
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    async fn session(
        &self,
        request: Request<Streaming<raw::FromWorker>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let pass = request.extensions().get::<Pass>().cloned().unwrap_or_default();
        let connection = ConnectionId(self.opened.fetch_add(1, Ordering::Relaxed));
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let (open, closed) = oneshot::channel();
        let session = Session { outbox, _open: open };
        if self.inbox.send(Inbound::Opened { connection, session }).await.is_err() {
            return Err(Status::unavailable("the run has ended"));
        }
        if let Some((worker, rig)) = caller(request.metadata())? {
            let proven = Inbound::Event(Event::Proven { connection, worker, rig });
            self.inbox.send(proven).await.map_err(|_| Status::unavailable("the run has ended"))?;
        }
        let (inbox, limits) = (self.inbox.clone(), self.limits);
        let (messages, metrics) = (request.into_inner(), self.metrics.clone());
        let reader = Reader { connection, messages, pass, inbox, metrics };
        tokio::spawn(async move {
            tokio::select! {
                () = reader.read(limits) => {}
                _ = closed => {}
            }
        });
        let outgoing = ReceiverStream::new(outgoing).map(|outgoing| match outgoing {
            Outgoing::Message(message) => Ok(raw::ToWorker::from(message)),
            Outgoing::Close { reason } => Err(Status::failed_precondition(reason)),
        });
        Ok(Response::new(Box::pin(outgoing)))
    }

    async fn watch(
        &self,
        request: Request<Streaming<raw::FromWatcher>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let pass = request.extensions().get::<Pass>().cloned().unwrap_or_default();
        let (outbox, news) = mpsc::unbounded_channel();
        let (inbox, deadline) = (self.inbox.clone(), self.limits.hello_deadline);
        tokio::spawn(async move {
            if let Err(why) = listen(request.into_inner(), (pass, deadline), outbox, inbox).await {
                tracing::info!(why, "nobody follows the run any more");
            }
        });
        let news = UnboundedReceiverStream::new(news).map(|(number, news): (u64, News)| {
            let news_json = serde_json::to_string(&news);
            let news_json = news_json.map_err(|error| Status::internal(error.to_string()))?;
            Ok(raw::ToWatcher { number, news_json })
        });
        Ok(Response::new(Box::pin(news)))
    }
}

/// Hears whoever follows the run, to the end, and says why it came.
async fn listen(
    mut messages: Streaming<raw::FromWatcher>,
    (pass, deadline): (Pass, Duration),
    outbox: Follower,
    inbox: mpsc::Sender<Inbound>,
) -> Result<(), String> {
    let ended = || "the coordinator ends".to_owned();
    let first = tokio::time::timeout(deadline, messages.message()).await;
    let mut message = first.map_err(|_| "nothing was said in time".to_owned())?;
    let mut outbox = Some(outbox);
    loop {
        let heard = message.map_err(|status| status.message().to_owned())?;
        let Some(raw::FromWatcher { heard, command_json }) = heard else {
            return Err("it has hung up".to_owned());
        };
        let inbound = match outbox.take() {
            Some(outbox) => {
                pass.admit();
                Inbound::Follows { heard, outbox }
            }
            None => Inbound::Heard(heard),
        };
        inbox.send(inbound).await.map_err(|_| ended())?;
        if let Some(json) = command_json {
            let command = serde_json::from_str(&json);
            let command = command.map_err(|error| format!("an unknown command: {error}"))?;
            inbox.send(Inbound::Command(command)).await.map_err(|_| ended())?;
        }
        message = messages.message().await;
    }
}

/// Reads one worker's stream to its end.
struct Reader {
    connection: ConnectionId,
    messages: Streaming<raw::FromWorker>,
    pass: Pass,
    inbox: mpsc::Sender<Inbound>,
    metrics: Metrics,
}

impl Reader {
    async fn read(mut self, limits: Limits) {
        let connection = self.connection;
        let first = tokio::time::timeout(limits.hello_deadline, self.next()).await;
        let metrics = self.metrics.clone();
        let late = || {
            metrics.rejected(Rejected::NoHello);
            Event::BadMessage { connection, why: "no hello in time".to_owned() }
        };
        let mut event = first.unwrap_or_else(|_| late());
        if let Event::Message { message: FromWorker::Hello(_), .. } = event {
            self.pass.admit();
        }
        loop {
            let is_last = !matches!(event, Event::Message { .. });
            if self.inbox.send(Inbound::Event(event)).await.is_err() || is_last {
                return;
            }
            event = self.next().await;
        }
    }

    async fn next(&mut self) -> Event {
        let connection = self.connection;
        match self.messages.message().await {
            Ok(Some(raw)) => match FromWorker::try_from(raw) {
                Ok(message) => Event::Message { connection, message },
                Err(error) => {
                    self.metrics.rejected(Rejected::BadMessage);
                    Event::BadMessage { connection, why: error.to_string() }
                }
            },
            Ok(None) => Event::HungUp { connection, why: "closed by the worker".to_owned() },
            Err(status) => Event::HungUp { connection, why: status.message().to_owned() },
        }
    }
}

#[cfg(test)]
mod tests;
