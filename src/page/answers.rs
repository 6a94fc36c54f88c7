//! The page over HTTP: its files, and `/live`, which tells each client what it does not know yet, for as long as it listens.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, HOST, HeaderName, LOCATION,
    REFERRER_POLICY, SET_COOKIE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::assets::ASSETS;
use super::door::{Asked, Door, Verdict};
use super::telling::Told;
use super::watcher::{Viewer, Watcher};

/// Nothing but the page's own files; nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Said when there is nothing to say, so that both ends see that the other is there.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A client that takes nothing for so long has gone.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Service {
    pub(super) door: Door,
    pub(super) watcher: Watcher,
    /// Of those who listen.
    pub(super) seats: Arc<Semaphore>,
    pub(super) n_seats: usize,
    /// The command that makes another link.
    pub(super) again: String,
}

pub(super) fn router(service: Arc<Service>) -> Router {
    Router::new().route("/live", get(live)).fallback(get(asset)).with_state(service)
}

async fn asset(
    State(service): State<Arc<Service>>,
    uri: Uri,
    query: RawQuery,
    headers: HeaderMap,
) -> Response {
    let token = query.0.as_deref().and_then(token).filter(|_| uri.path() == "/");
    let answer = match service.admit(&headers, token) {
        Ok(Entrance::Exchange) => {
            let moved = (StatusCode::SEE_OTHER, [(LOCATION, "/")]).into_response();
            with(moved, SET_COOKIE, &service.door.cookie())
        }
        Ok(Entrance::GoOn) => (StatusCode::SEE_OTHER, [(LOCATION, "/")]).into_response(),
        Ok(Entrance::Inside) => match ASSETS.iter().find(|asset| asset.path == uri.path()) {
            Some(asset) => ([(CONTENT_TYPE, asset.kind)], asset.text).into_response(),
            None => said(StatusCode::NOT_FOUND, "there is nothing here: the page is at /"),
        },
        Err((code, why)) => said(code, &why),
    };
    secured(answer)
}

async fn live(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    if let Err((code, why)) = service.admit(&headers, None) {
        return secured(said(code, &why));
    }
    let Ok(seat) = Arc::clone(&service.seats).try_acquire_owned() else {
        let full = format!(
            "{} are looking already, which is as many as may: close one, and this goes on by itself",
            service.n_seats
        );
        return secured(said(StatusCode::SERVICE_UNAVAILABLE, &full));
    };
    // What a client has yet to take is one event, never more: a slow one misses some, and hears all that is different
    // in the next.
    let (out, events) = channel::<Result<String, Infallible>>(1);
    tokio::spawn(tell(service.watcher.viewer(), out, seat));
    let body = Body::from_stream(ReceiverStream::new(events));
    secured(([(CONTENT_TYPE, "text/event-stream; charset=utf-8")], body).into_response())
}

async fn tell(
    mut viewer: Viewer,
    out: Sender<Result<String, Infallible>>,
    _seat: OwnedSemaphorePermit,
) {
    let mut told = Told::default();
    loop {
        let event = tokio::select! {
            changed = viewer.newest.changed() => {
                if changed.is_err() {
                    return;
                }
                told.next(&viewer.newest.borrow_and_update().clone())
            }
            () = sleep(KEEPALIVE) => ": still here\n\n".to_owned(),
            () = out.closed() => return,
        };
        if !matches!(timeout(PATIENCE, out.send(Ok(event))).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// How somebody comes in.
enum Entrance {
    Inside,
    Exchange,
    GoOn,
}

/// How somebody does not, and why.
type Refused = (StatusCode, String);

impl Service {
    fn admit(&self, headers: &HeaderMap, token: Option<&str>) -> Result<Entrance, Refused> {
        let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let asked = Asked {
            host: header(HOST),
            cookies: header(COOKIE),
            token,
            site: header(HeaderName::from_static("sec-fetch-site")),
        };
        let again = &self.again;
        let (code, text) = match self.door.judge(asked) {
            Verdict::Welcome => return Ok(Entrance::Inside),
            Verdict::Exchange => return Ok(Entrance::Exchange),
            Verdict::GoOn => return Ok(Entrance::GoOn),
            Verdict::NoCookie => (
                StatusCode::UNAUTHORIZED,
                format!(
                    "this page is opened by the link that was printed where it was started: it ends in ?token=... . \
                     Where you have just opened that link from another page, reload this one. A new link: {again}"
                ),
            ),
            Verdict::WrongCookie => (
                StatusCode::UNAUTHORIZED,
                format!("this browser's cookie is not the one that was set here. A new link: {again}"),
            ),
            Verdict::WrongToken => (
                StatusCode::FORBIDDEN,
                format!("the token is not that of the link: was it cut off? A new link: {again}"),
            ),
            Verdict::UsedToken => (
                StatusCode::FORBIDDEN,
                format!("this link was opened already, and is good once. A new one: {again}"),
            ),
            Verdict::WrongHost => (
                StatusCode::FORBIDDEN,
                "this page answers to 127.0.0.1, localhost and [::1] alone; from another machine go through a \
                 tunnel: ssh -L PORT:127.0.0.1:PORT THAT-MACHINE"
                    .to_owned(),
            ),
            Verdict::WrongPage => {
                (StatusCode::FORBIDDEN, "another page may not read this one".to_owned())
            }
        };
        Err((code, text))
    }
}

fn token(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("token="))
}

fn said(code: StatusCode, text: &str) -> Response {
    (code, [(CONTENT_TYPE, "text/plain; charset=utf-8")], format!("{text}\n")).into_response()
}

fn with(mut response: Response, name: HeaderName, value: &str) -> Response {
    let value = HeaderValue::from_str(value).expect("our own words are a header");
    response.headers_mut().insert(name, value);
    response
}

/// What every answer says to the browser.
fn secured(response: Response) -> Response {
    let headers = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    headers.into_iter().fold(response, |response, (name, value)| with(response, name, value))
}
