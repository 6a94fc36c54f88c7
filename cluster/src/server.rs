//! The gRPC rim of the cluster: who calls is known by certificate, what they may call stands in `roles`, and what
//! is decided is decided in `state`, to which everything here goes as an `Inbound`.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request as HttpRequest, Response as HttpResponse};
use prometheus::IntCounter;
use shoal_proto::wire::raw::cluster_server::ClusterServer;
use shoal_proto::wire::raw::enrolment_server::EnrolmentServer;
use shoal_proto::wire::raw::rigs_server::RigsServer;
use shoal_proto::wire::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, TERM_KEY};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Server;
use tower_service::Service;

use crate::door::{self, Limits, Peer, Places, Tls};
use crate::harbour::Inbound;
use crate::launchers::calling;
use crate::relaying::Relay;
use crate::roles;
use crate::standing::Stands;

mod enrolment;
mod forward;
mod people;
mod probing;
mod rigs;

/// The largest message of a person: a manifest as JSON in JSON.
const ASK_BYTES_MAX: usize = 4 << 20;

/// The largest of a rig: lines of a log.
pub(crate) const WORDS_BYTES_MAX: usize = 256 << 10;

/// The largest to a rig: a job and the names of its files.
pub(crate) const ORDER_BYTES_MAX: usize = 4 << 20;

/// What the services share.
#[derive(Clone)]
pub(crate) struct Rim {
    pub(crate) inbox: mpsc::Sender<Inbound>,
    pub(crate) stands: Stands,
    sessions: Arc<AtomicU64>,
}

impl Rim {
    pub(crate) fn new(inbox: mpsc::Sender<Inbound>, stands: Stands) -> Self {
        Self { inbox, stands, sessions: Arc::new(AtomicU64::new(1)) }
    }

    fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    /// Puts something before the harbour and waits for what it says.
    async fn ask<T>(
        &self,
        make: impl FnOnce(tokio::sync::oneshot::Sender<T>) -> Inbound,
    ) -> Result<T, Status> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let ends = || Status::unavailable("the coordinator ends");
        self.inbox.send(make(reply)).await.map_err(|_| ends())?;
        answer.await.map_err(|_| ends())
    }
}

/// Serves until the listener fails or the future is dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    door: (Limits, Places),
    (tls, relay): (Tls, Relay),
    (denied, stands): (Denied, Stands),
    (inbox, refused): (mpsc::Sender<Inbound>, IntCounter),
) {
    let rim = Rim::new(inbox.clone(), stands.clone());
    let (accepted_sender, accepted) = mpsc::channel(1);
    let (called_sender, called) = mpsc::channel(16);
    let accepting = door::accept(listener, door, (tls, relay), (accepted_sender, called_sender));
    let launchers = calling::accept(called, stands.clone(), inbox);
    let enrolment = EnrolmentServer::new(enrolment::Enrolling::new(rim.clone()))
        .max_decoding_message_size(16 << 10)
        .max_encoding_message_size(64 << 10);
    let rigs = RigsServer::new(rigs::Attending::new(rim.clone()))
        .max_decoding_message_size(WORDS_BYTES_MAX)
        .max_encoding_message_size(ORDER_BYTES_MAX);
    let people = ClusterServer::new(people::Asking::new(rim.clone()))
        .max_decoding_message_size(ASK_BYTES_MAX)
        .max_encoding_message_size(ASK_BYTES_MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(8)
        .concurrency_limit_per_connection(8)
        .http2_max_header_list_size(16 << 10)
        .http2_max_pending_accept_reset_streams(Some(8))
        .http2_max_local_error_reset_streams(Some(8))
        .layer(Checked { denied, stands, refused })
        .add_service(enrolment)
        .add_service(rigs)
        .add_service(people)
        .add_service(forward::Forward::new(rim))
        .serve_with_incoming(ReceiverStream::new(accepted));
    tokio::select! {
        result = server => {
            if let Err(error) = result {
                tracing::error!(%error, "the gRPC server failed");
            }
        }
        () = accepting => {}
        () = launchers => {}
    }
}

/// Serial numbers of certificates that count no more.
pub(crate) type Denied = Arc<RwLock<std::collections::BTreeSet<String>>>;

/// Holds every call against `roles`, before anything of it is read.
#[derive(Clone)]
struct Checked {
    denied: Denied,
    stands: Stands,
    refused: IntCounter,
}

#[derive(Clone)]
struct CheckedService<S> {
    inner: S,
    denied: Denied,
    stands: Stands,
    refused: IntCounter,
}

impl<S> tower_layer::Layer<S> for Checked {
    type Service = CheckedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { denied, stands, refused } = self.clone();
        CheckedService { inner, denied, stands, refused }
    }
}

type Answering<E> = Pin<Box<dyn Future<Output = Result<HttpResponse<Body>, E>> + Send>>;

impl<S> Service<HttpRequest<Body>> for CheckedService<S>
where
    S: Service<HttpRequest<Body>, Response = HttpResponse<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = HttpResponse<Body>;
    type Error = S::Error;
    type Future = Answering<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let term = HeaderValue::from(self.stands.term());
        let wait = match self.check(&request) {
            Ok(wait) => wait,
            Err(status) => {
                self.refused.inc();
                let mut answer = status.into_http();
                answer.headers_mut().insert(TERM_KEY, term);
                return Box::pin(std::future::ready(Ok(answer)));
            }
        };
        // The one that was made ready goes with the call.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move {
            if !wait.is_zero() {
                sleep(wait).await;
            }
            let mut answer = inner.call(request).await?;
            answer.headers_mut().insert(TERM_KEY, term);
            Ok(answer)
        })
    }
}

impl<S> CheckedService<S> {
    /// How long the call waits for its turn.
    fn check(&self, request: &HttpRequest<Body>) -> Result<Duration, Status> {
        let peer = request.extensions().get::<Peer>();
        let peer = peer.ok_or_else(|| Status::internal("a call without a connection"))?;
        if let Some((identity, serial)) = &peer.identity
            && self.denied.read().is_ok_and(|denied| denied.contains(serial))
        {
            let who =
                format!("{} ({}) was expelled from this cluster", identity.name, identity.role);
            return Err(Status::permission_denied(who));
        }
        if let Err(why) = roles::may(request.uri().path(), peer.identity()) {
            let address: SocketAddr = peer.address;
            tracing::warn!(%address, why, "a call was refused");
            return Err(match peer.identity {
                None => Status::unauthenticated(why),
                Some(_) => Status::permission_denied(why),
            });
        }
        // A stranger that enrols stays one: its time is short.
        let wait = peer.admit().map_err(Status::resource_exhausted)?;
        let path = request.uri().path();
        if path == roles::STANDING {
            return Ok(wait);
        }
        if let Some(why) = self.stands.refusal(roles::changes(path)) {
            return Err(Status::unavailable(why));
        }
        Ok(wait)
    }
}
