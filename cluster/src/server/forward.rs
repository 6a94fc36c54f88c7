//! The way of a run's workers to its coordinator: their calls come through the cluster's one port, are held
//! against certificate and seat, and go on over loopback as they are. The run's coordinator stays one for this
//! machine alone, and hears from us which worker it is that calls.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request as HttpRequest, Response as HttpResponse};
use shoal_proto::wire::{MEMBER_KEY, RIG_KEY, RUN_KEY, SECRET_KEY};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tower_service::Service;

use super::Rim;
use crate::door::Peer;
use crate::harbour::Inbound;

/// To a process of this machine.
const CONNECT: Duration = Duration::from_secs(2);

/// A run's coordinator on this machine that hangs is pinged so often.
const KEEPALIVE: Duration = Duration::from_secs(4);

#[derive(Clone)]
pub(super) struct Forward(Rim);

impl Forward {
    pub(super) fn new(rim: Rim) -> Self {
        Self(rim)
    }
}

impl NamedService for Forward {
    const NAME: &'static str = "shoal.v1.Coordinator";
}

impl Service<HttpRequest<Body>> for Forward {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let rim = self.0.clone();
        Box::pin(async move { Ok(pass_on(&rim, request).await.unwrap_or_else(Status::into_http)) })
    }
}

async fn pass_on(rim: &Rim, mut request: HttpRequest<Body>) -> Result<HttpResponse<Body>, Status> {
    let peer = request.extensions().get::<Peer>().and_then(Peer::identity).cloned();
    let rig = peer.ok_or_else(|| Status::unauthenticated("no certificate was shown"))?.name;
    let run = request.headers().get(RUN_KEY).and_then(|run| run.to_str().ok());
    let run = run.ok_or_else(|| Status::invalid_argument(format!("{RUN_KEY} is missing")))?;
    let (asked, run) = (rig.to_string(), run.to_owned());
    let member = rim.ask(|reply| Inbound::Member { rig: asked, run, reply }).await?;
    let member = member.map_err(Status::failed_precondition)?;
    let headers = request.headers_mut();
    // Whatever the caller says of itself, it is what its certificate says.
    headers.insert(SECRET_KEY, value(&member.secret)?);
    headers.insert(MEMBER_KEY, value(&member.worker.0.to_string())?);
    headers.insert(RIG_KEY, value(rig.as_str())?);
    let endpoint = Endpoint::from_shared(format!("http://{}", member.address));
    let endpoint = endpoint.map_err(|error| Status::internal(error.to_string()))?;
    let endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true);
    let endpoint = endpoint.http2_keep_alive_interval(KEEPALIVE).keep_alive_while_idle(true);
    let away = |why: String| {
        Status::unavailable(format!("the run's coordinator is being started anew: {why}"))
    };
    let mut channel = endpoint.connect().await.map_err(|error| away(error.to_string()))?;
    let ready = std::future::poll_fn(|cx| channel.poll_ready(cx)).await;
    ready.map_err(|error| away(error.to_string()))?;
    channel.call(request).await.map_err(|error| Status::new(Code::Unavailable, error.to_string()))
}

fn value(text: &str) -> Result<http::HeaderValue, Status> {
    http::HeaderValue::from_str(text).map_err(|error| Status::internal(error.to_string()))
}
