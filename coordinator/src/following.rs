//! The launcher's end: the news of a run, each once and in order, whatever becomes of the connection or
//! of the coordinator.

use std::net::SocketAddr;
use std::time::Duration;

use shoal_proto::Secret;
use shoal_proto::wire::raw::coordinator_client::CoordinatorClient;
use shoal_proto::wire::{
    FROM_WORKER_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, SECRET_KEY, TO_WORKER_BYTES_MAX,
    raw,
};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

use crate::news::{Command, News};

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

/// A run that is followed. Dropping it ends that, and nothing else.
#[derive(Debug)]
pub struct Following {
    /// Waits while there is no coordinator, and goes on with the next one.
    pub news: mpsc::UnboundedReceiver<News>,
    /// Said again to the next coordinator, unless it was about a process that is followed by another.
    pub commands: mpsc::UnboundedSender<Command>,
}

/// Follows a run from its beginning.
pub fn follow(address: SocketAddr, secret: Secret) -> Following {
    let (news_sender, news) = mpsc::unbounded_channel();
    let (commands, command_receiver) = mpsc::unbounded_channel();
    let follower =
        Follower { address, secret, news: news_sender, heard: 0, standing: Standing::default() };
    tokio::spawn(follower.follow(command_receiver));
    Following { news, commands }
}

struct Follower {
    address: SocketAddr,
    secret: Secret,
    news: mpsc::UnboundedSender<News>,
    /// The number of the last news that was heard.
    heard: u64,
    standing: Standing,
}

/// Commands that a new coordinator may not know of. Saying them twice changes nothing.
#[derive(Debug, Default)]
struct Standing(Vec<Command>);

impl Standing {
    fn add(&mut self, command: &Command) {
        match command {
            Command::WorkerExited { worker, .. } => {
                let other = |known: &Command| !matches!(known, Command::WorkerExited { worker: of, .. } if of == worker);
                self.0.retain(other);
                self.0.push(command.clone());
            }
            Command::Stop | Command::Abort(_) => self.0.push(command.clone()),
            // Counted by whoever is there.
            Command::Stored { .. } | Command::NotStored => {}
        }
    }
}

type Outbox = mpsc::UnboundedSender<raw::FromWatcher>;

impl Follower {
    /// Until nobody wants to hear or say anything.
    async fn follow(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            let connected = tokio::select! {
                connected = self.connect() => connected,
                command = commands.recv() => {
                    let Some(command) = command else { return };
                    self.standing.add(&command);
                    continue;
                }
            };
            match connected {
                Ok((outbox, messages)) => {
                    let Some(why) = self.listen(&outbox, messages, &mut commands).await else {
                        return;
                    };
                    tracing::warn!(why, "the coordinator is out of reach");
                }
                Err(why) => tracing::debug!(why, "the coordinator is not there"),
            }
            sleep(RETRY).await;
        }
    }

    async fn connect(&self) -> Result<(Outbox, Streaming<raw::ToWatcher>), String> {
        let channel: Channel =
            endpoint(self.address).connect().await.map_err(|error| error.to_string())?;
        let mut client = CoordinatorClient::new(channel)
            .max_decoding_message_size(TO_WORKER_BYTES_MAX)
            .max_encoding_message_size(FROM_WORKER_BYTES_MAX);
        let (outbox, outgoing) = mpsc::unbounded_channel();
        let mut first = vec![None];
        first.extend(self.standing.0.iter().map(Some));
        for command in first {
            outbox.send(from_watcher(self.heard, command)).ok();
        }
        let mut request = Request::new(UnboundedReceiverStream::new(outgoing));
        carry_secret(&mut request, &self.secret);
        let opened = client.watch(request).await;
        let messages = opened.map_err(|status| status.message().to_owned())?.into_inner();
        Ok((outbox, messages))
    }

    /// Why the stream ended; `None` if nobody wants it any more.
    async fn listen(
        &mut self,
        outbox: &Outbox,
        mut messages: Streaming<raw::ToWatcher>,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> Option<String> {
        loop {
            tokio::select! {
                message = messages.message() => {
                    let raw::ToWatcher { number, news_json } = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return Some("the stream has ended".to_owned()),
                        Err(status) => return Some(status.message().to_owned()),
                    };
                    if number <= self.heard {
                        continue;
                    }
                    if number > self.heard + 1 {
                        let heard = self.heard;
                        return Some(format!("news {number} came after {heard}"));
                    }
                    let news = match serde_json::from_str(&news_json) {
                        Ok(news) => news,
                        Err(error) => return Some(format!("news that are none: {error}")),
                    };
                    self.heard = number;
                    outbox.send(from_watcher(number, None)).ok();
                    if self.news.send(news).is_err() {
                        return None;
                    }
                }
                command = commands.recv() => {
                    let command = command?;
                    self.standing.add(&command);
                    outbox.send(from_watcher(self.heard, Some(&command))).ok();
                }
            }
        }
    }
}

/// A coordinator, and how soon it is seen to be gone.
pub(crate) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("an address makes a URI")
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
}

pub(crate) fn carry_secret<T>(request: &mut Request<T>, secret: &Secret) {
    let mut secret = secret.to_hex().parse::<tonic::metadata::MetadataValue<_>>();
    if let Ok(secret) = &mut secret {
        secret.set_sensitive(true);
        request.metadata_mut().insert(SECRET_KEY, secret.clone());
    }
}

fn from_watcher(heard: u64, command: Option<&Command>) -> raw::FromWatcher {
    let json = |command| serde_json::to_string(command).expect("a command has only string keys");
    raw::FromWatcher { heard, command_json: command.map(json) }
}
