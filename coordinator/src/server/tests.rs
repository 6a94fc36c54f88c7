//! The rim against real clients and against strangers, over loopback.

use std::time::Duration;

use shoal_plan::plan::WorkerId;
use shoal_plan::report::Ending;
use shoal_proto::wire::raw::coordinator_client::CoordinatorClient;
use shoal_proto::{Hello, Resuming, ToWorker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;

use super::*;
use crate::checkpoints::tests::TestDir;
use crate::following::{Following, follow};
use crate::news::{Cause, Command};
use crate::state::fixtures::{G1, finished, hello, part, settings, step_done};

mod files;

/// Ends a test that hangs; far beyond anything that is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

/// One worker over raw gRPC.
struct Worker {
    say: mpsc::UnboundedSender<raw::FromWorker>,
    heard: Streaming<raw::ToWorker>,
}

impl Worker {
    async fn open(address: SocketAddr, secret: &str) -> Result<Self, Status> {
        let mut client = CoordinatorClient::connect(format!("http://{address}")).await.unwrap();
        let (say, said) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(said));
        if !secret.is_empty() {
            request.metadata_mut().insert(SECRET_KEY, secret.parse().unwrap());
        }
        let heard = client.session(request).await?.into_inner();
        Ok(Self { say, heard })
    }

    async fn join(running: &Run, secret: &Secret, worker: u32) -> Self {
        let this = Self::open(running.address, &secret.to_hex()).await.unwrap();
        this.say(hello(worker));
        this
    }

    fn say(&self, message: FromWorker) {
        self.say.send(message.into()).unwrap();
    }

    /// The next message, but for the word that the hello was taken.
    async fn next(&mut self) -> Result<ToWorker, Status> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.heard.message()).await.unwrap()?;
            let next = ToWorker::try_from(next.expect("the stream goes on")).unwrap();
            if !matches!(next, ToWorker::Received { .. }) {
                return Ok(next);
            }
        }
    }
}

/// A coordinator, and whoever follows it.
struct Run {
    running: Option<Running>,
    address: SocketAddr,
    metrics: Metrics,
    following: Following,
    port: std::net::TcpListener,
    settings: Settings,
    limits: Limits,
}

impl Run {
    /// The coordinator is gone without a word.
    async fn end(&mut self) {
        let ended = {
            let running = self.running.take().unwrap();
            running.ended
        };
        ended.await.unwrap();
    }

    /// The coordinator is gone without a word, and another goes on.
    async fn restart(&mut self) {
        self.end().await;
        let port = self.port.try_clone().unwrap();
        let running = serve_within(self.settings.clone(), port, self.limits).unwrap();
        self.metrics = running.metrics.clone();
        self.running = Some(running);
    }
}

fn started(dir: &TestDir) -> (Run, Secret) {
    started_within(dir, Limits::USUAL)
}

fn started_within(dir: &TestDir, limits: Limits) -> (Run, Secret) {
    started_by(settings(), dir, limits)
}

fn started_by(settings: Settings, dir: &TestDir, limits: Limits) -> (Run, Secret) {
    let settings = Settings { run_dir: dir.0.clone(), ..settings };
    let secret = settings.secret.clone();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let shared = port.try_clone().unwrap();
    let running = serve_within(settings.clone(), shared, limits).unwrap();
    let following = follow(running.address, secret.clone());
    let (address, metrics) = (running.address, running.metrics.clone());
    let running = Some(running);
    (Run { running, address, metrics, following, port, settings, limits }, secret)
}

/// Waits for the news that `pick` accepts.
async fn news<T>(running: &mut Run, pick: impl Fn(News) -> Option<T>) -> T {
    loop {
        let news = tokio::time::timeout(PATIENCE, running.following.news.recv()).await.unwrap();
        if let Some(found) = pick(news.expect("the run goes on")) {
            return found;
        }
    }
}

fn joined(news: News) -> Option<()> {
    matches!(news, News::Joined { .. }).then_some(())
}

/// Waits until the metrics have a line; events are counted a moment after they are seen here.
async fn counted(running: &Run, line: &str) {
    let waited = async {
        while !running.metrics.text().lines().any(|found| found == line) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, waited).await;
    in_time.unwrap_or_else(|_| panic!("want {line} in:\n{}", running.metrics.text()));
}

/// The other end closes, and says nothing but what HTTP/2 says by itself.
async fn closes(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    // A reset is as good as an end.
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.unwrap().ok();
}

#[tokio::test]
async fn a_run_over_grpc_ends_with_its_checkpoint_and_its_ledger_on_disk() {
    let dir = TestDir::new("server-run");
    let (mut running, secret) = started(&dir);
    let mut workers =
        [Worker::join(&running, &secret, 0).await, Worker::join(&running, &secret, 1).await];
    for worker in &mut workers {
        let ToWorker::Assign(assign) = worker.next().await.unwrap() else { panic!("want a plan") };
        let generation = assign.plan.generation;
        worker.say(FromWorker::Ready { generation });
    }
    let partial = dir.0.join("checkpoints/.step-1.g1.partial");
    std::fs::create_dir_all(&partial).unwrap();
    for (n, worker) in (0..).zip(&mut workers) {
        assert!(matches!(worker.next().await.unwrap(), ToWorker::Start { .. }));
        std::fs::write(partial.join(format!("model-{n}.safetensors")), "x").unwrap();
        worker.say(step_done(n, 1));
        worker.say(part(n, 1));
    }
    for worker in &mut workers {
        let committed = worker.next().await.unwrap();
        assert!(matches!(committed, ToWorker::CheckpointCommitted { step: 1, .. }));
        worker.say(finished(1, Ending::Stopped));
    }
    for worker in &mut workers {
        assert!(matches!(worker.next().await.unwrap(), ToWorker::Leave { .. }));
    }
    let finished = |news| {
        let News::Finished { last_step, ending, .. } = news else { return None };
        Some((last_step, ending))
    };
    assert_eq!(news(&mut running, finished).await, (1, Ending::Stopped));
    drop(workers);
    assert!(dir.0.join("checkpoints/step-1/manifest.json").exists());
    let ledger = std::fs::read_to_string(dir.0.join("ledger.jsonl")).unwrap();
    assert_eq!(ledger.lines().count(), 1);
}

#[tokio::test]
async fn strangers_are_refused_in_the_same_words_whatever_they_lack() {
    let dir = TestDir::new("server-secret");
    let (running, secret) = started(&dir);
    let wrong = Secret::random().unwrap().to_hex();
    let short = &secret.to_hex()[..62];
    for given in ["", "nonsense", &wrong, short] {
        let status = Worker::open(running.address, given).await.map(drop).unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{given}");
        assert_eq!(status.message(), "the secret of this run is missing or wrong");
    }
    for (reason, times) in [("missing", 1), ("malformed", 2), ("wrong", 1)] {
        let line = format!("shoal_auth_failures_total{{reason=\"{reason}\"}} {times}");
        counted(&running, &line).await;
    }
}

#[tokio::test]
async fn a_second_worker_with_a_taken_number_is_told_so_and_the_first_stays() {
    let dir = TestDir::new("server-taken");
    let (mut running, secret) = started(&dir);
    let mut first = Worker::join(&running, &secret, 0).await;
    news(&mut running, joined).await;
    let mut second = Worker::open(running.address, &secret.to_hex()).await.unwrap();
    let FromWorker::Hello(taken) = hello(0) else { panic!("a hello") };
    second.say(FromWorker::Hello(Hello { pid: 7, ..taken }));
    let status = second.next().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "worker-0 has joined already");
    counted(&running, "shoal_rpc_rejected_total{reason=\"refused\"} 1").await;
    counted(&running, "shoal_workers{state=\"joining\"} 1").await;
    let _second = Worker::join(&running, &secret, 1).await;
    assert!(matches!(first.next().await.unwrap(), ToWorker::Assign(_)));
}

#[tokio::test]
async fn idle_and_stalled_connections_are_closed_while_a_worker_stays() {
    let dir = TestDir::new("server-idle");
    // Long enough for a worker's hello on a busy machine.
    let limits =
        Limits { connections_max: 8, hello_deadline: Duration::from_secs(2), ..Limits::USUAL };
    let (mut running, secret) = started_within(&dir, limits);
    let mut worker = Worker::join(&running, &secret, 0).await;
    news(&mut running, joined).await;
    let idle = TcpStream::connect(running.address).await.unwrap();
    let mut half = TcpStream::connect(running.address).await.unwrap();
    half.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let mut preface = TcpStream::connect(running.address).await.unwrap();
    // The preface and an empty SETTINGS frame, then silence.
    preface.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut mute = Worker::open(running.address, &secret.to_hex()).await.unwrap();
    closes(idle).await;
    closes(half).await;
    closes(preface).await;
    mute.next().await.unwrap_err();
    // The mute one is known to its stream's reader before its connection's deadline, or after.
    let mut lines = (4..=5).map(|n| format!("shoal_rpc_rejected_total{{reason=\"no_hello\"}} {n}"));
    let text = running.metrics.text();
    assert!(lines.any(|line| text.lines().any(|found| found == line)), "{text}");
    let _second = Worker::join(&running, &secret, 1).await;
    assert!(matches!(worker.next().await.unwrap(), ToWorker::Assign(_)));
}

#[tokio::test]
async fn a_connection_too_many_is_closed_at_once() {
    let dir = TestDir::new("server-flood");
    // One is of whoever follows the run.
    let limits = Limits { connections_max: 3, hello_deadline: PATIENCE * 2, ..Limits::USUAL };
    let (running, _) = started_within(&dir, limits);
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(TcpStream::connect(running.address).await.unwrap());
    }
    closes(streams.pop().unwrap()).await;
    counted(&running, "shoal_rpc_rejected_total{reason=\"connections\"} 1").await;
}

#[tokio::test]
async fn a_message_beyond_the_limit_ends_the_session_and_names_the_worker() {
    let dir = TestDir::new("server-large");
    let (mut running, secret) = started(&dir);
    let worker = Worker::join(&running, &secret, 1).await;
    news(&mut running, joined).await;
    let file = raw::CheckpointFile { name: "x".repeat(1 << 20), ..Default::default() };
    let part = raw::CheckpointPart { files: vec![file], ..Default::default() };
    let message = Some(raw::from_worker::Message::CheckpointPart(part));
    worker.say.send(raw::FromWorker { message }).unwrap();
    let evicted = |news| {
        let News::Evicted { worker, cause, what } = news else { return None };
        Some((worker, cause, what))
    };
    let (worker, cause, what) = news(&mut running, evicted).await;
    assert_eq!((worker, cause), (WorkerId(1), Cause::HungUp));
    assert!(what.contains("limit is: 262144"), "{what}");
}

#[tokio::test]
async fn workers_hear_why_the_launcher_aborts() {
    let dir = TestDir::new("server-abort");
    let (mut running, secret) = started(&dir);
    let mut worker = Worker::join(&running, &secret, 0).await;
    news(&mut running, joined).await;
    running.following.commands.send(Command::Abort("stopped twice".into())).unwrap();
    let ToWorker::Abort { reason } = worker.next().await.unwrap() else { panic!("want why") };
    assert!(reason.starts_with("stopped twice"), "{reason}");
}

#[tokio::test]
async fn a_coordinator_started_anew_at_any_moment_goes_on_where_the_last_one_was() {
    let dir = TestDir::new("server-restart");
    let (mut running, secret) = started(&dir);
    let first = Worker::join(&running, &secret, 0).await;
    news(&mut running, joined).await;
    running.restart().await;
    drop(first);
    // The first says its hello again: it has had no plan.
    let mut workers =
        [Worker::join(&running, &secret, 0).await, Worker::join(&running, &secret, 1).await];
    for worker in &mut workers {
        assert!(matches!(worker.next().await.unwrap(), ToWorker::Assign(_)));
    }
    workers[0].say(FromWorker::Ready { generation: G1 });
    running.restart().await;
    let mut workers =
        [resumed(&running, &secret, 0, 0).await, resumed(&running, &secret, 1, 0).await];
    // Whether the first one's word had been read before is not known to it: it says it again.
    for worker in &mut workers {
        let ToWorker::Assign(assign) = worker.next().await.unwrap() else { panic!("want a plan") };
        assert_eq!(assign.plan.generation, G1);
        worker.say(FromWorker::Ready { generation: G1 });
    }
    for (n, worker) in (0..).zip(&mut workers) {
        assert!(matches!(worker.next().await.unwrap(), ToWorker::Start { .. }));
        worker.say(step_done(n, 1));
    }
    let step = |news| matches!(news, News::Step(_)).then_some(());
    news(&mut running, step).await;
    running.restart().await;
    let line = "shoal_coordinator_restarts_total 3";
    counted(&running, line).await;
    counted(&running, "shoal_step 1").await;
    let mut workers =
        [resumed(&running, &secret, 0, 1).await, resumed(&running, &secret, 1, 1).await];
    let caught_up = |news| {
        let News::CaughtUp { restarts, workers, .. } = news else { return None };
        Some((restarts, workers))
    };
    loop {
        let found = news(&mut running, caught_up).await;
        if found.0 == 3 {
            assert_eq!(found, (3, 2));
            break;
        }
    }
    for (n, worker) in (0..).zip(&mut workers) {
        assert!(matches!(worker.next().await.unwrap(), ToWorker::Start { .. }));
        worker.say(step_done(n, 2));
    }
    news(&mut running, step).await;
    let ledger = std::fs::read_to_string(dir.0.join("ledger.jsonl")).unwrap();
    assert_eq!(ledger.lines().count(), 2, "{ledger}");
    running.following.commands.send(Command::Abort("enough".into())).unwrap();
    news(&mut running, |news| matches!(news, News::Failed(_)).then_some(())).await;
    // Whoever was cut off at the end hears of it from the next one.
    running.restart().await;
    let mut late = resumed(&running, &secret, 0, 2).await;
    let ToWorker::Abort { reason } = late.next().await.unwrap() else { panic!("want why") };
    assert!(reason.starts_with("enough"), "{reason}");
}

/// The process that a worker was comes back, with so many steps done.
async fn resumed(running: &Run, secret: &Secret, worker: u32, step: u64) -> Worker {
    let this = Worker::open(running.address, &secret.to_hex()).await.unwrap();
    let FromWorker::Hello(hello) = hello(worker) else { panic!("a hello") };
    let resuming = Some(Resuming { generation: G1, step });
    this.say(FromWorker::Hello(Hello { resuming, ..hello }));
    this
}

#[tokio::test]
async fn a_damaged_journal_is_refused_in_words() {
    let dir = TestDir::new("server-damaged");
    let (mut running, secret) = started(&dir);
    let _workers =
        [Worker::join(&running, &secret, 0).await, Worker::join(&running, &secret, 1).await];
    news(&mut running, |news| matches!(news, News::Planned(_)).then_some(())).await;
    running.end().await;
    let path = dir.0.join(crate::journal::FILE_NAMES[1]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let port = running.port.try_clone().unwrap();
    let error = serve_within(running.settings, port, running.limits).unwrap_err();
    assert!(error.to_string().contains("coordinator-1.journal is damaged at byte 0"), "{error}");
}

mod asked;
