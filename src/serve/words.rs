//! The words of `OpenAI`'s completions interface: what requests say, and how errors look.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_infer::{Request, Sampling, Voice};

/// New tokens of a request that does not say.
const TOKENS: usize = 16;

/// Texts of one request: prompts times `n`.
const TEXTS_MAX: usize = 128;

/// Stop strings of one request.
const STOPS_MAX: usize = 16;

/// The body of `POST /v1/completions`. Fields that are not known are passed over.
#[derive(Debug, Deserialize)]
pub(super) struct Completion {
    pub(super) model: Option<String>,
    prompt: Option<OneOrMany>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    n: Option<usize>,
    stop: Option<OneOrMany>,
    seed: Option<i64>,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    echo: Option<bool>,
    logprobs: Option<Value>,
    suffix: Option<Value>,
    best_of: Option<usize>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamOptions {
    #[serde(default)]
    pub(super) include_usage: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// What went wrong, for the client.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) message: String,
}

impl Problem {
    /// The request is at fault.
    pub(super) fn request(message: impl Into<String>) -> Self {
        let kind = "invalid_request_error";
        Self { status: StatusCode::BAD_REQUEST, kind, message: message.into() }
    }

    pub(super) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into() }
    }

    pub(super) fn json(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": null, "code": self.status.as_u16(),
        }})
    }

    pub(super) fn response(&self) -> Response<Body> {
        answer(self.status, &self.json())
    }
}

/// A JSON answer.
pub(super) fn answer(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    let json = axum::http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

impl Completion {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Problem> {
        serde_json::from_slice(body).map_err(|error| {
            Problem::request(format!("the body is no completion request: {error}"))
        })
    }

    /// One request for each text, prompt after prompt. `seed` is for those that name none.
    pub(super) fn requests(self, voice: &Voice, seed: u64) -> Result<Vec<Request>, Problem> {
        let n = self.n.unwrap_or(1);
        let has_extras = self.echo == Some(true)
            || [&self.logprobs, &self.suffix].iter().any(|extra| extra.is_some())
            || self.best_of.is_some_and(|best_of| best_of != n);
        if has_extras {
            let what = "echo, logprobs, suffix and best_of are not supported: leave them out";
            return Err(Problem::request(what));
        }
        let prompts = self.prompt.map_or_else(|| vec![String::new()], OneOrMany::list);
        let stop = self.stop.map_or_else(Vec::new, OneOrMany::list);
        let texts = n.saturating_mul(prompts.len());
        if texts == 0 || TEXTS_MAX < texts {
            let what = format!("prompts times n are {texts} texts, want 1 to {TEXTS_MAX}");
            return Err(Problem::request(what));
        }
        if STOPS_MAX < stop.len() {
            let what = format!("{} stop strings, want at most {STOPS_MAX}", stop.len());
            return Err(Problem::request(what));
        }
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            top_k: 0,
            seed: self.seed.map_or(seed, i64::cast_unsigned),
        };
        let mut requests = Vec::with_capacity(texts);
        for prompt in prompts {
            let prompt = voice.tokenizer().encode(prompt.as_bytes());
            let prompt = prompt.map_err(|error| Problem::request(error.to_string()))?.tokens;
            requests.extend((0..n as u64).map(|i| Request {
                prompt: prompt.clone(),
                tokens: self.max_tokens.unwrap_or(TOKENS),
                sampling: Sampling { seed: sampling.seed.wrapping_add(i), ..sampling.clone() },
                stop: stop.clone(),
            }));
        }
        Ok(requests)
    }
}
