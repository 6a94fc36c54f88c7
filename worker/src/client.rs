//! The worker's gRPC rim: one stream to the coordinator, as two channels of our own types.

use std::time::Duration;

use shoal_plan::plan::RunId;
use shoal_proto::wire::raw::coordinator_client::CoordinatorClient;
use shoal_proto::wire::{FROM_WORKER_BYTES_MAX, TO_WORKER_BYTES_MAX, raw};
use shoal_proto::{FromWorker, Secret, ToWorker};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::daemon::DaemonError;

pub(crate) mod courier;
mod gate;

pub use gate::{Doors, Gate};

/// A coordinator that is not there by then will not come. It may be started anew meanwhile.
const CONNECT_DEADLINE: Duration = Duration::from_mins(1);

/// One attempt.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(2);

/// Between two attempts.
const RETRY: Duration = Duration::from_millis(200);

/// The stream, both ways. Dropping it closes the connection.
pub(crate) struct Link {
    pub(crate) outbox: mpsc::UnboundedSender<FromWorker>,
    /// Ends with `Lost` or `Closed`.
    pub(crate) inbox: mpsc::Receiver<Incoming>,
}

/// From the coordinator.
#[derive(Debug)]
pub(crate) enum Incoming {
    Message(ToWorker),
    /// Nothing follows: the connection broke.
    Lost {
        why: String,
    },
    /// Nothing follows: the coordinator closed the stream, in these words.
    Closed {
        why: String,
    },
}

/// Connects and opens the stream. A coordinator that is not there yet is tried again.
pub(crate) async fn connect(
    gate: &Gate,
    run: &RunId,
    secret: &Secret,
) -> Result<Link, DaemonError> {
    let deadline = Instant::now() + CONNECT_DEADLINE;
    loop {
        match reconnect(gate, run, secret).await {
            Err(DaemonError::Silent { .. } | DaemonError::Broken { .. })
                if Instant::now() < deadline =>
            {
                sleep(RETRY).await;
            }
            Err(DaemonError::Silent { address, .. }) => {
                let waited_ms = CONNECT_DEADLINE.as_millis();
                return Err(DaemonError::Silent { address, waited_ms });
            }
            opened => return opened,
        }
    }
}

/// Connects again, once: the session decides when to try the next time.
pub(crate) async fn reconnect(
    gate: &Gate,
    run: &RunId,
    secret: &Secret,
) -> Result<Link, DaemonError> {
    if let Gate::Here(address) = gate
        && !address.ip().is_loopback()
    {
        return Err(DaemonError::NotLoopback { address: *address });
    }
    let deadline = ATTEMPT_DEADLINE;
    let address = gate.to_string();
    let (outbox, outgoing) = mpsc::unbounded_channel();
    let outgoing = UnboundedReceiverStream::new(outgoing).map(raw::FromWorker::from);
    let request = gate.request(outgoing, run, secret);
    let open = async {
        let mut client = CoordinatorClient::new(reach(gate, deadline / 2).await)
            .max_decoding_message_size(TO_WORKER_BYTES_MAX)
            .max_encoding_message_size(FROM_WORKER_BYTES_MAX);
        client.session(request).await
    };
    let waited_ms = deadline.as_millis();
    let opened = timeout(deadline, open).await;
    let response = opened
        .map_err(|_| DaemonError::Silent { address: address.clone(), waited_ms })?
        .map_err(|status| not_opened(address, &status))?;
    let (sender, inbox) = mpsc::channel(16);
    tokio::spawn(read(response.into_inner(), sender));
    Ok(Link { outbox, inbox })
}

/// The coordinator's own words, or those of a connection that broke under the call.
fn not_opened(address: String, status: &Status) -> DaemonError {
    let why = in_words(status);
    if matches!(status.code(), Code::Unauthenticated | Code::FailedPrecondition) {
        DaemonError::Refused { address, why }
    } else {
        DaemonError::Broken { address, why }
    }
}

async fn reach(gate: &Gate, patience: Duration) -> Channel {
    loop {
        match gate.connect(patience).await {
            Ok(channel) => return channel,
            Err(why) => tracing::debug!(why, "the coordinator is not there yet"),
        }
        sleep(RETRY).await;
    }
}

async fn read(mut messages: Streaming<raw::ToWorker>, inbox: mpsc::Sender<Incoming>) {
    loop {
        let incoming = match messages.message().await {
            Ok(Some(raw)) => match ToWorker::try_from(raw) {
                Ok(message) => Incoming::Message(message),
                Err(error) => {
                    Incoming::Lost { why: format!("a message that cannot be understood: {error}") }
                }
            },
            Ok(None) => Incoming::Lost { why: "the stream has ended".to_owned() },
            Err(status) if status.code() == Code::FailedPrecondition => {
                Incoming::Closed { why: in_words(&status) }
            }
            Err(status) => Incoming::Lost { why: in_words(&status) },
        };
        let is_last = !matches!(incoming, Incoming::Message(_));
        if inbox.send(incoming).await.is_err() || is_last {
            return;
        }
    }
}

fn in_words(status: &Status) -> String {
    if status.message().is_empty() {
        status.code().to_string()
    } else {
        status.message().to_owned()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;
    use std::pin::Pin;
    use std::sync::{Arc, Mutex};

    use shoal_proto::wire::SECRET_KEY;
    use shoal_proto::wire::raw::coordinator_server::{Coordinator, CoordinatorServer};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;
    use tokio_stream::Stream;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Server;
    use tonic::{Request, Response};

    use super::*;

    type Say = mpsc::UnboundedSender<Result<raw::ToWorker, Status>>;

    /// One session at a time, with a script: the test reads what the worker says and answers.
    pub(crate) struct FakeCoordinator {
        pub(crate) address: SocketAddr,
        pub(crate) secret: Secret,
        heard: mpsc::UnboundedReceiver<FromWorker>,
        /// Of the newest session.
        say: Arc<Mutex<Option<Say>>>,
        _server: JoinHandle<()>,
    }

    impl FakeCoordinator {
        pub(crate) async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let secret = Secret::random().unwrap();
            let (hear, heard) = mpsc::unbounded_channel();
            let say = Arc::default();
            let service = Script { secret: secret.clone(), hear, say: Arc::clone(&say) };
            let server = tokio::spawn(async move {
                Server::builder()
                    .add_service(CoordinatorServer::new(service))
                    .serve_with_incoming(TcpListenerStream::new(listener))
                    .await
                    .unwrap();
            });
            Self { address, secret, heard, say, _server: server }
        }

        /// What the worker says next, but for heartbeats.
        pub(crate) async fn next(&mut self) -> FromWorker {
            loop {
                let heard = timeout(Duration::from_mins(1), self.heard.recv()).await;
                let message = heard.expect("the worker speaks").expect("the script runs");
                if !matches!(message, FromWorker::Heartbeat { .. }) {
                    return message;
                }
            }
        }

        /// In the session of what was heard last.
        pub(crate) fn say(&self, message: ToWorker) {
            self.send(Ok(message.into()));
        }

        /// Ends the session, in words.
        pub(crate) fn close(&self, why: &str) {
            self.send(Err(Status::failed_precondition(why)));
            self.cut();
        }

        /// The stream ends without a word.
        pub(crate) fn cut(&self) {
            self.say.lock().unwrap().take();
        }

        fn send(&self, what: Result<raw::ToWorker, Status>) {
            self.say.lock().unwrap().as_ref().expect("a session").send(what).unwrap();
        }
    }

    struct Script {
        secret: Secret,
        hear: mpsc::UnboundedSender<FromWorker>,
        say: Arc<Mutex<Option<Say>>>,
    }

    #[tonic::async_trait]
    impl Coordinator for Script {
        type SessionStream = Pin<Box<dyn Stream<Item = Result<raw::ToWorker, Status>> + Send>>;
        type WatchStream = Pin<Box<dyn Stream<Item = Result<raw::ToWatcher, Status>> + Send>>;
        type WithdrawStream = tokio_stream::Empty<Result<raw::Chunk, Status>>;

        async fn deposit(
            &self,
            _: Request<Streaming<raw::DepositPiece>>,
        ) -> Result<Response<raw::Deposited>, Status> {
            Err(Status::unimplemented("a script gathers nothing"))
        }

        async fn withdraw(
            &self,
            _: Request<raw::Withdrawal>,
        ) -> Result<Response<Self::WithdrawStream>, Status> {
            Err(Status::unimplemented("a script has gathered nothing"))
        }

        async fn watch(
            &self,
            _: Request<Streaming<raw::FromWatcher>>,
        ) -> Result<Response<Self::WatchStream>, Status> {
            Err(Status::unimplemented("nobody follows a script"))
        }

        async fn session(
            &self,
            request: Request<Streaming<raw::FromWorker>>,
        ) -> Result<Response<Self::SessionStream>, Status> {
            let given = request.metadata().get(SECRET_KEY).unwrap().to_str().unwrap().to_owned();
            if Secret::from_hex(&given).unwrap() != self.secret {
                return Err(Status::unauthenticated("wrong secret"));
            }
            let (say, said) = mpsc::unbounded_channel();
            *self.say.lock().unwrap() = Some(say);
            let hear = self.hear.clone();
            let mut messages = request.into_inner();
            tokio::spawn(async move {
                while let Ok(Some(raw)) = messages.message().await {
                    if hear.send(FromWorker::try_from(raw).unwrap()).is_err() {
                        return;
                    }
                }
            });
            Ok(Response::new(Box::pin(UnboundedReceiverStream::new(said))))
        }
    }

    #[tokio::test]
    async fn a_wrong_secret_and_a_far_coordinator_are_refused_in_words() {
        let coordinator = FakeCoordinator::start().await;
        let address = coordinator.address;
        let run = RunId("r".into());
        let here = Gate::Here(address);
        let wrong = Secret::random().unwrap();
        let error = connect(&here, &run, &wrong).await.map(drop).unwrap_err();
        let want = format!("the coordinator at {address} refused: wrong secret");
        assert_eq!(error.to_string(), want);
        let far = Gate::Here("192.0.2.1:7000".parse().unwrap());
        let error = connect(&far, &run, &coordinator.secret).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:7000 is not on this machine"), "{error}");
    }

    #[tokio::test]
    async fn the_coordinator_s_reason_for_closing_arrives() {
        let coordinator = FakeCoordinator::start().await;
        let (gate, run) = (Gate::Here(coordinator.address), RunId("r".into()));
        let mut link = connect(&gate, &run, &coordinator.secret).await.unwrap();
        coordinator.close("worker-0 has joined already");
        let Some(Incoming::Closed { why }) = link.inbox.recv().await else {
            panic!("want the end")
        };
        assert_eq!(why, "worker-0 has joined already");
    }
}
