//! Requests and answers: who may ask, how much, for how long, and in which form it comes back.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::routing::{get, post};
use serde_json::{Value, json};
use shoal_infer::Reason;
use tokio::sync::mpsc::{UnboundedReceiver, channel};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::words::{Completion, Problem, answer};
use super::writer::{Event, Refused, Writer};
use crate::clock::unix_seconds;

/// Of a request's body.
const BODY_BYTES_MAX: usize = 4 << 20;

/// A client that sends its body more slowly is not served.
const BODY_SECONDS: u64 = 30;

/// Events of a stream that wait for a slow reader.
const EVENTS: usize = 256;

/// What all requests share.
pub(super) struct Service {
    name: String,
    writer: Writer,
    token: Option<String>,
    limit: Duration,
    /// Numbers answers, and seeds those that name no seed.
    count: AtomicU64,
    started: u64,
}

/// One completion under way.
struct Answer {
    id: String,
    model: String,
    created: u64,
    prompt_tokens: usize,
    texts: Vec<UnboundedReceiver<Event>>,
}

impl Service {
    pub(super) fn new(
        name: String,
        writer: Writer,
        token: Option<String>,
        limit: Duration,
    ) -> Self {
        let started = unix_seconds();
        Self { name, writer, token, limit, count: AtomicU64::new(started), started }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether a request brings the token; every byte is looked at, wherever they differ.
    fn allows(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(token) = &self.token else { return Ok(()) };
        let brought = headers.get(AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes);
        let brought = brought.strip_prefix(b"Bearer ").unwrap_or_default();
        let differs = brought.iter().zip(token.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
        if brought.len() == token.len() && differs == 0 {
            return Ok(());
        }
        let message = "want the header `Authorization: Bearer TOKEN` with the server's token";
        Err(Problem::new(StatusCode::UNAUTHORIZED, "authentication_error", message))
    }

    async fn begin(&self, request: Request) -> Result<(Answer, bool, bool), Problem> {
        self.allows(request.headers())?;
        let kind = request.headers().get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
        if !kind.starts_with(b"application/json") {
            // Also what keeps pages of other sites from asking: a browser would ask us first.
            let (status, message) =
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "want `Content-Type: application/json`");
            return Err(Problem::new(status, "invalid_request_error", message));
        }
        let body = to_bytes(request.into_body(), BODY_BYTES_MAX);
        let body = timeout(Duration::from_secs(BODY_SECONDS), body).await.map_err(|_| {
            let message = format!("the body took longer than {BODY_SECONDS} seconds");
            Problem::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
        })?;
        let body = body.map_err(|_| {
            let message = format!("the body is cut off, or longer than {BODY_BYTES_MAX} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
        })?;
        let asked = Completion::parse(&body)?;
        if let Some(model) = asked.model.as_ref().filter(|model| **model != self.name) {
            let message = format!("no model {model:?} here, only {:?}", self.name);
            return Err(Problem::new(StatusCode::NOT_FOUND, "invalid_request_error", message));
        }
        let stream = asked.stream.unwrap_or(false);
        let usage = asked.stream_options.as_ref().is_some_and(|options| options.include_usage);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let requests = asked.requests(self.writer.voice(), number)?;
        let prompt_tokens = requests.iter().map(|request| request.prompt.len()).sum();
        let texts = self.writer.take(requests).map_err(refused)?;
        let (id, model) = (format!("cmpl-{number}"), self.name.clone());
        Ok((Answer { id, model, created: unix_seconds(), prompt_tokens, texts }, stream, usage))
    }
}

fn refused(refused: Refused) -> Problem {
    match refused {
        Refused::Full { queue } => {
            let message = format!("{queue} texts are under way already: try again later");
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
        }
        Refused::Request(error) => Problem::request(error.to_string()),
        Refused::Gone => failed("the model has stopped"),
    }
}

fn failed(message: impl Into<String>) -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
}

pub(super) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/health", get(|| async { answer(StatusCode::OK, &json!({ "status": "ok" })) }))
        .route("/v1/models", get(models))
        .route("/v1/completions", post(completions))
        .fallback(|| async {
            let message = "there are POST /v1/completions, GET /v1/models and GET /health";
            Problem::new(StatusCode::NOT_FOUND, "invalid_request_error", message).response()
        })
        .method_not_allowed_fallback(|| async {
            let message = "there are POST /v1/completions, GET /v1/models and GET /health";
            let status = StatusCode::METHOD_NOT_ALLOWED;
            Problem::new(status, "invalid_request_error", message).response()
        })
        .with_state(service)
}

async fn models(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response<Body> {
    if let Err(problem) = service.allows(&headers) {
        return problem.response();
    }
    let (id, created) = (service.name(), service.started);
    let model = json!({ "id": id, "object": "model", "created": created, "owned_by": "shoal" });
    answer(StatusCode::OK, &json!({ "object": "list", "data": [model] }))
}

async fn completions(State(service): State<Arc<Service>>, request: Request) -> Response<Body> {
    match service.begin(request).await {
        Err(problem) => problem.response(),
        Ok((completion, true, usage)) => streamed(completion, service.limit, usage),
        Ok((completion, false, _)) => match timeout(service.limit, whole(completion)).await {
            Ok(Ok(value)) => answer(StatusCode::OK, &value),
            Ok(Err(problem)) => problem.response(),
            Err(_) => too_slow(service.limit).response(),
        },
    }
}

fn too_slow(limit: Duration) -> Problem {
    let message = format!("the answer took longer than {} seconds", limit.as_secs());
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message)
}

impl Answer {
    fn choice(index: usize, text: &str, reason: Option<Reason>) -> Value {
        let finish_reason = reason.map(Reason::name);
        json!({ "text": text, "index": index, "logprobs": null, "finish_reason": finish_reason })
    }

    fn object(&self, choices: &[Value]) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created,
            "model": self.model, "choices": choices,
        })
    }

    fn usage(&self, tokens: u64) -> Value {
        let total = self.prompt_tokens as u64 + tokens;
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": tokens, "total_tokens": total,
        })
    }
}

/// All texts at once. Dropped half-way, as when the client goes away, it ends what is being written.
async fn whole(mut completion: Answer) -> Result<Value, Problem> {
    let (mut choices, mut tokens) = (Vec::new(), 0);
    for (index, events) in std::mem::take(&mut completion.texts).iter_mut().enumerate() {
        let mut text = String::new();
        loop {
            match events.recv().await {
                Some(Event::Piece(piece)) => text += &piece,
                Some(Event::End { reason, tally }) => {
                    tokens += tally.tokens;
                    choices.push(Answer::choice(index, &text, Some(reason)));
                    break;
                }
                Some(Event::Failed(message)) => return Err(failed(message)),
                None => return Err(failed("the model has stopped")),
            }
        }
    }
    let mut value = completion.object(&choices);
    value["usage"] = completion.usage(tokens);
    Ok(value)
}

/// Server-sent events: pieces of all texts as they come, then `[DONE]`.
fn streamed(completion: Answer, limit: Duration, usage: bool) -> Response<Body> {
    let (out, lines) = channel::<Result<String, Infallible>>(EVENTS);
    tokio::spawn(async move {
        let line = |value: &Value| Ok(format!("data: {value}\n\n"));
        let all = relay(completion, usage, |value| {
            let (out, line) = (out.clone(), line(&value));
            async move { out.send(line).await.is_ok() }
        });
        // Where the reader is gone there is nobody to tell.
        let last = match timeout(limit, all).await {
            Ok(Ok(())) => Ok("data: [DONE]\n\n".to_owned()),
            Ok(Err(problem)) => line(&problem.json()),
            Err(_) => line(&too_slow(limit).json()),
        };
        let _ = out.send(last).await;
    });
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(lines)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Sends every piece of every text until all have ended, or the reader is gone.
async fn relay<F: Future<Output = bool>>(
    mut completion: Answer,
    usage: bool,
    send: impl Fn(Value) -> F,
) -> Result<(), Problem> {
    let mut joined = Joined::new(std::mem::take(&mut completion.texts));
    let mut tokens = 0;
    while let Some((index, event)) = joined.recv().await {
        let choice = match event {
            Some(Event::Piece(piece)) => Answer::choice(index, &piece, None),
            Some(Event::End { reason, tally }) => {
                tokens += tally.tokens;
                Answer::choice(index, "", Some(reason))
            }
            Some(Event::Failed(message)) => return Err(failed(message)),
            None => return Err(failed("the model has stopped")),
        };
        if !send(completion.object(&[choice])).await {
            return Ok(());
        }
    }
    if usage {
        let mut value = completion.object(&[]);
        value["usage"] = completion.usage(tokens);
        send(value).await;
    }
    Ok(())
}

/// The events of several texts in the order they come.
struct Joined(Vec<(usize, UnboundedReceiver<Event>)>);

impl Joined {
    fn new(texts: Vec<UnboundedReceiver<Event>>) -> Self {
        Self(texts.into_iter().enumerate().collect())
    }

    /// The next event and its text; none once all have ended.
    async fn recv(&mut self) -> Option<(usize, Option<Event>)> {
        if self.0.is_empty() {
            return None;
        }
        let (at, event) = std::future::poll_fn(|context| {
            for (at, (_, events)) in self.0.iter_mut().enumerate() {
                if let std::task::Poll::Ready(event) = events.poll_recv(context) {
                    return std::task::Poll::Ready((at, event));
                }
            }
            std::task::Poll::Pending
        })
        .await;
        let index = self.0[at].0;
        if matches!(event, Some(Event::End { .. }) | None) {
            self.0.remove(at);
        }
        Some((index, event))
    }
}
