//! Files of checkpoints over real connections: what is taken, what is refused and in which words, and what is left
//! of a file that does not come.

use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::CellId;
use shoal_plan::job::Gather;
use shoal_plan::plan::{Generation, RunId};
use shoal_proto::wire::CHUNK_BYTES_MAX;
use shoal_proto::{Deposit, DepositPiece, Withdrawal};

use super::*;
use crate::state::fixtures::at;

type Client = CoordinatorClient<tonic::transport::Channel>;

/// A run whose two workers have done step 1.
struct Gathered {
    run: Run,
    secret: Secret,
    workers: [Worker; 2],
    dir: TestDir,
}

async fn gathered(name: &str, limits: Limits) -> Gathered {
    let dir = TestDir::new(name);
    std::fs::create_dir(dir.0.join("checkpoints")).unwrap();
    let mut settings = settings();
    settings.job.checkpoint.gather = Gather::Coordinator;
    let (mut run, secret) = started_by(settings, &dir, limits);
    let mut workers = [Worker::join(&run, &secret, 0).await, Worker::join(&run, &secret, 1).await];
    for worker in &mut workers {
        assert!(matches!(worker.next().await.unwrap(), ToWorker::Assign(_)));
        worker.say(FromWorker::Ready { generation: G1 });
    }
    for (n, worker) in (0..).zip(&mut workers) {
        assert!(matches!(worker.next().await.unwrap(), ToWorker::Start { .. }));
        worker.say(step_done(n, 1));
    }
    news(&mut run, |news| matches!(news, News::Step(_)).then_some(())).await;
    Gathered { run, secret, workers, dir }
}

/// Of worker n's own cell, n.
fn deposit(worker: u32, kind: &str, bytes: &[u8]) -> Deposit {
    Deposit {
        run: RunId("run".into()),
        worker: WorkerId(worker),
        generation: G1,
        standing: at(1),
        cell: CellId(worker),
        file: CheckpointFile {
            name: format!("{kind}-cell-{worker}.safetensors"),
            bytes: bytes.len() as u64,
            blake3: blake3::hash(bytes).to_hex().to_string(),
        },
    }
}

fn chunks(bytes: &[u8]) -> Vec<DepositPiece> {
    bytes.chunks(CHUNK_BYTES_MAX).map(|chunk| DepositPiece::Chunk(chunk.to_vec())).collect()
}

fn sensitive<T>(message: T, secret: &Secret) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(SECRET_KEY, secret.to_hex().parse().unwrap());
    request
}

impl Gathered {
    async fn client(&self) -> Client {
        CoordinatorClient::connect(format!("http://{}", self.run.address)).await.unwrap()
    }

    async fn leave(&self, head: Deposit, rest: Vec<DepositPiece>) -> Result<(), Status> {
        let pieces = [vec![DepositPiece::Head(head)], rest].concat();
        let pieces: Vec<raw::DepositPiece> = pieces.into_iter().map(Into::into).collect();
        let request = sensitive(tokio_stream::iter(pieces), &self.secret);
        let mut client = self.client().await;
        tokio::time::timeout(PATIENCE, client.deposit(request)).await.unwrap().map(drop)
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(self.begun(), [""; 0]);
    }

    /// Files of checkpoints in the making.
    fn begun(&self) -> Vec<String> {
        let mut names = Vec::new();
        for partial in std::fs::read_dir(self.dir.0.join("checkpoints")).unwrap() {
            for file in std::fs::read_dir(partial.unwrap().path()).unwrap() {
                names.push(file.unwrap().file_name().into_string().unwrap());
            }
        }
        names.sort();
        names
    }
}

fn refused(left: Result<(), Status>, code: Code, want: &str) {
    let status = left.expect_err(want);
    assert_eq!(
        (status.code(), status.message().contains(want)),
        (code, true),
        "{status:?}, {want}"
    );
}

#[tokio::test]
async fn a_checkpoint_is_gathered_and_given_back() {
    let mut run = gathered("files-whole", Limits::USUAL).await;
    let large = vec![7; 3 * CHUNK_BYTES_MAX + 5];
    let files = [deposit(0, "model", &large), deposit(1, "model", b"small")];
    run.leave(files[0].clone(), chunks(&large)).await.unwrap();
    run.leave(files[1].clone(), chunks(b"small")).await.unwrap();
    for (worker, file) in run.workers.iter().zip(&files) {
        let Deposit { generation, standing, cell, file, .. } = file.clone();
        worker.say(FromWorker::CheckpointPart { generation, standing, cell, files: vec![file] });
    }
    for worker in &mut run.workers {
        let committed = worker.next().await.unwrap();
        assert!(matches!(committed, ToWorker::CheckpointCommitted { step: 1, .. }));
    }
    let complete = run.dir.0.join("checkpoints/step-1");
    assert_eq!(std::fs::read(complete.join("model-cell-0.safetensors")).unwrap(), large);
    // Too late, and of a checkpoint that no plan starts from.
    refused(
        run.leave(files[0].clone(), chunks(&large)).await,
        Code::FailedPrecondition,
        "cell-0's part of the checkpoint of step 1 is over",
    );
    refused(
        run.read(0, 1, "manifest.json").await.map(drop),
        Code::FailedPrecondition,
        "starts from no",
    );
}

#[tokio::test]
async fn a_plan_s_own_checkpoint_is_read_file_by_file() {
    let dir = TestDir::new("files-read");
    let complete = dir.0.join("checkpoints/step-1");
    std::fs::create_dir_all(&complete).unwrap();
    let large = vec![7; 3 * CHUNK_BYTES_MAX + 5];
    std::fs::write(complete.join("x"), &large).unwrap();
    std::fs::write(dir.0.join("ledger"), "not of it").unwrap();
    std::os::unix::fs::symlink(dir.0.join("ledger"), complete.join("link")).unwrap();
    let mut settings = settings();
    settings.job.checkpoint.gather = Gather::Coordinator;
    settings.resume_from = Some(at(1));
    let (run, secret) = started_by(settings, &dir, Limits::USUAL);
    let mut workers = [Worker::join(&run, &secret, 0).await, Worker::join(&run, &secret, 1).await];
    for worker in &mut workers {
        assert!(matches!(worker.next().await.unwrap(), ToWorker::Assign(_)));
    }
    let run = Gathered { run, secret, workers, dir };
    assert_eq!(run.read(0, 1, "x").await.unwrap(), large);
    for (name, code, want) in [
        ("y", Code::NotFound, "the checkpoint has no y"),
        ("link", Code::NotFound, "the checkpoint has no link"),
        ("../../ledger", Code::InvalidArgument, "withdrawal.name is ../../ledger"),
    ] {
        refused(run.read(0, 1, name).await.map(drop), code, want);
    }
    refused(run.read(0, 2, "x").await.map(drop), Code::FailedPrecondition, "that of step 1");
    refused(run.read(5, 1, "x").await.map(drop), Code::FailedPrecondition, "hosts nothing");
}

impl Gathered {
    async fn read(&self, worker: u32, step: u64, name: &str) -> Result<Vec<u8>, Status> {
        let (run, worker) = (RunId("run".into()), WorkerId(worker));
        let asked = Withdrawal { run, worker, generation: G1, step, name: name.into() };
        let request = sensitive(raw::Withdrawal::from(asked), &self.secret);
        let mut chunks = self.client().await.withdraw(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            bytes.extend(shoal_proto::wire::chunk(chunk).unwrap());
        }
        Ok(bytes)
    }
}

#[tokio::test]
async fn what_may_not_come_is_refused_in_words_and_leaves_nothing() {
    let run = gathered("files-refused", Limits::USUAL).await;
    let (good, bytes) = (deposit(0, "model", b"abcdef"), b"abcdef");
    let never = Code::FailedPrecondition;
    let foreign = Deposit { cell: CellId(1), ..good.clone() };
    refused(run.leave(foreign, chunks(bytes)).await, never, "cell-1, which it does not host");
    let stale = Deposit { generation: Generation(0), ..good.clone() };
    refused(run.leave(stale, chunks(bytes)).await, never, "of generation 0, now is generation 1");
    let early = Deposit { standing: at(2), ..good.clone() };
    refused(run.leave(early, chunks(bytes)).await, Code::Unavailable, "has not done step 2 yet");
    refused(run.leave(deposit(0, "other", bytes), chunks(bytes)).await, never, "is no file that");
    let mut long_named = good.clone();
    long_named.file.name = "../model-cell-0.safetensors".into();
    refused(run.leave(long_named, chunks(bytes)).await, Code::InvalidArgument, "a plain file name");
    let mut large = good.clone();
    large.file.bytes = 1 << 40;
    refused(run.leave(large, chunks(bytes)).await, never, "1099511627776 bytes, want 1 to");

    refused(run.leave(good.clone(), chunks(b"abcde")).await, never, "ends after 5 of 6 bytes");
    refused(run.leave(good.clone(), chunks(b"abcdefg")).await, never, "is longer than 6 bytes");
    refused(run.leave(good.clone(), chunks(b"abcdeg")).await, never, "has blake3 ");
    let twice = vec![DepositPiece::Head(good.clone())];
    refused(run.leave(good.clone(), twice).await, Code::InvalidArgument, "a deposit has one head");
    let empty = vec![DepositPiece::Chunk(Vec::new())];
    refused(run.leave(good.clone(), empty).await, Code::InvalidArgument, "chunk.bytes is 0 bytes");
    run.nothing_is_left();

    // A message beyond what any may have, in the midst of a file.
    let huge = vec![DepositPiece::Chunk(vec![0; FROM_WORKER_BYTES_MAX + 1])];
    refused(run.leave(good.clone(), huge).await, Code::OutOfRange, "limit is: 262144");
    run.nothing_is_left();

    run.leave(good.clone(), chunks(bytes)).await.unwrap();
    run.leave(good.clone(), chunks(bytes)).await.expect("the same again is no harm");
    let other = deposit(0, "model", b"ghijkl");
    refused(run.leave(other, chunks(b"ghijkl")).await, never, "another model-cell-0.safetensors");
    assert_eq!(run.begun(), ["model-cell-0.safetensors"]);
}

#[tokio::test]
async fn without_the_secret_nothing_is_taken_or_given() {
    let run = gathered("files-secret", Limits::USUAL).await;
    let wrong = Secret::random().unwrap();
    let head = raw::DepositPiece::from(DepositPiece::Head(deposit(0, "model", b"x")));
    let request = sensitive(tokio_stream::iter(vec![head]), &wrong);
    let status = run.client().await.deposit(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let request = sensitive(raw::Withdrawal::default(), &wrong);
    let status = run.client().await.withdraw(request).await.map(drop).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    run.nothing_is_left();
}

#[tokio::test]
async fn a_stream_that_stalls_or_breaks_is_closed_and_what_came_of_it_removed() {
    let stall_deadline = Duration::from_millis(300);
    let limits = Limits { hello_deadline: Duration::from_secs(2), stall_deadline, ..Limits::USUAL };
    let run = gathered("files-stall", limits).await;
    let good = deposit(0, "model", b"abcdef");
    let begin = |pieces: Vec<DepositPiece>| {
        let (say, said) = mpsc::unbounded_channel();
        for piece in pieces {
            say.send(raw::DepositPiece::from(piece)).unwrap();
        }
        (say, sensitive(UnboundedReceiverStream::new(said), &run.secret))
    };
    let (open, request) = begin(vec![DepositPiece::Head(good.clone()), chunks(b"abc").remove(0)]);
    let status = run.client().await.deposit(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    run.nothing_is_left();
    drop(open);

    let (open, request) = begin(Vec::new());
    let status = run.client().await.deposit(request).await.unwrap_err();
    assert!(!status.message().is_empty(), "no head ever came: {status:?}");
    drop(open);

    // The worker dies in the midst of it.
    let (open, request) = begin(vec![DepositPiece::Head(good.clone()), chunks(b"abc").remove(0)]);
    let mut client = run.client().await;
    let dying = tokio::spawn(async move { client.deposit(request).await.map(drop) });
    while run.begun().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    dying.abort();
    drop(open);
    while !run.begun().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    run.leave(good, chunks(b"abcdef")).await.unwrap();
}
