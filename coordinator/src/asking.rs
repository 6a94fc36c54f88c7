//! Another terminal's end: one question to a run under way. A coordinator that is being started anew is waited
//! for; where nobody listens any more, that is the answer.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use shoal_proto::Secret;
use shoal_proto::wire::raw::control_client::ControlClient;
use shoal_proto::wire::{ANSWER_BYTES_MAX, QUESTION_BYTES_MAX, raw};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request};

use crate::control::{Answer, Ask};
use crate::following::{carry_secret, endpoint};

/// One attempt, and the time between two.
const ATTEMPT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

/// Attempts: the launcher starts a coordinator again after half a second, at first.
const ATTEMPTS: u32 = 3;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The launcher holds the port for as long as the run is under way: it is not.
    #[error("nobody listens at {address}")]
    Nobody { address: SocketAddr },
    #[error("the run at {address} has another secret")]
    Secret { address: SocketAddr },
    #[error("the run at {address} does not understand: {why}")]
    Misunderstood { address: SocketAddr, why: String },
    #[error("the coordinator at {address} does not answer: {why}")]
    Silent { address: SocketAddr, why: String },
}

/// Asks, and asks again where the answer was lost: no order means more the second time.
pub async fn ask(address: SocketAddr, secret: &Secret, ask: &Ask) -> Result<Answer, AskError> {
    let mut attempt = 1;
    loop {
        let error = match timeout(ATTEMPT, ask_once(address, secret, ask)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_late) => {
                let why = format!("nothing came within {} s", ATTEMPT.as_secs());
                AskError::Silent { address, why }
            }
        };
        if attempt == ATTEMPTS || !matches!(error, AskError::Silent { .. }) {
            return Err(error);
        }
        attempt += 1;
        sleep(PAUSE).await;
    }
}

async fn ask_once(address: SocketAddr, secret: &Secret, ask: &Ask) -> Result<Answer, AskError> {
    let channel = endpoint(address).connect().await.map_err(|error| {
        if is_refused(&error) {
            AskError::Nobody { address }
        } else {
            AskError::Silent { address, why: error.to_string() }
        }
    })?;
    let mut client = ControlClient::new(channel)
        .max_decoding_message_size(ANSWER_BYTES_MAX)
        .max_encoding_message_size(QUESTION_BYTES_MAX);
    let ask_json = serde_json::to_string(ask).expect("a question has only string keys");
    let mut request = Request::new(raw::Question { ask_json });
    carry_secret(&mut request, secret);
    let answered = client.ask(request).await.map_err(|status| {
        let (why, code) = (status.message().to_owned(), status.code());
        if code == Code::Unauthenticated {
            AskError::Secret { address }
        } else if [Code::InvalidArgument, Code::Unimplemented, Code::OutOfRange].contains(&code) {
            AskError::Misunderstood { address, why }
        } else {
            AskError::Silent { address, why }
        }
    })?;
    serde_json::from_str(&answered.into_inner().answer_json).map_err(|error| {
        let why = format!("its answer is of another version of shoal ({error})");
        AskError::Misunderstood { address, why }
    })
}

fn is_refused(error: &tonic::transport::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused) {
            return true;
        }
        source = error.source();
    }
    false
}
