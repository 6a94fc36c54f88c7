//! Files to and from a coordinator that refuses, puts off, breaks off, damages and hangs.

use std::collections::BTreeMap;
use std::io::Read;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use shoal_proto::wire::raw::coordinator_server::{Coordinator, CoordinatorServer};
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Response, Streaming};

use super::*;

/// What the coordinator does to an attempt; without one it does as it should.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Refuse(Code),
    /// After the head, or after the first chunk that goes out.
    BreakOff,
    /// One byte is another.
    Damage,
    /// Nothing moves any more.
    Hang,
}

#[derive(Clone, Default)]
struct Counter {
    troubles: Arc<Mutex<Vec<Trouble>>>,
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    heads: Arc<Mutex<Vec<Deposit>>>,
}

type Chunks = Pin<Box<dyn Stream<Item = Result<raw::Chunk, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Counter {
    type SessionStream = tokio_stream::Empty<Result<raw::ToWorker, Status>>;
    type WatchStream = tokio_stream::Empty<Result<raw::ToWatcher, Status>>;
    type WithdrawStream = Chunks;

    async fn session(
        &self,
        _: Request<Streaming<raw::FromWorker>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("files only"))
    }

    async fn watch(
        &self,
        _: Request<Streaming<raw::FromWatcher>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("files only"))
    }

    async fn deposit(
        &self,
        request: Request<Streaming<raw::DepositPiece>>,
    ) -> Result<Response<raw::Deposited>, Status> {
        let mut pieces = request.into_inner();
        let head = DepositPiece::try_from(pieces.message().await?.unwrap()).unwrap();
        let DepositPiece::Head(head) = head else { panic!("a head comes first") };
        self.heads.lock().unwrap().push(head.clone());
        let trouble = self.troubles.lock().unwrap().pop();
        match trouble {
            Some(Trouble::Refuse(code)) => return Err(Status::new(code, "as the test wants it")),
            Some(Trouble::BreakOff) => return Err(Status::cancelled("broken off")),
            Some(Trouble::Hang) => std::future::pending().await,
            Some(Trouble::Damage) | None => {}
        }
        let mut bytes = Vec::new();
        while let Some(raw) = pieces.message().await? {
            let DepositPiece::Chunk(chunk) = DepositPiece::try_from(raw).unwrap() else { panic!() };
            bytes.extend(chunk);
        }
        self.files.lock().unwrap().insert(head.file.name, bytes);
        Ok(Response::new(raw::Deposited {}))
    }

    async fn withdraw(
        &self,
        request: Request<raw::Withdrawal>,
    ) -> Result<Response<Chunks>, Status> {
        let asked = Withdrawal::try_from(request.into_inner()).unwrap();
        let trouble = self.troubles.lock().unwrap().pop();
        let mut bytes = self.files.lock().unwrap()[&asked.name].clone();
        match trouble {
            Some(Trouble::Refuse(code)) => return Err(Status::new(code, "as the test wants it")),
            Some(Trouble::Damage) => bytes[0] ^= 1,
            Some(Trouble::Hang) => return Ok(Response::new(Box::pin(tokio_stream::pending()))),
            Some(Trouble::BreakOff) | None => {}
        }
        let mut chunks: Vec<_> = (bytes.chunks(CHUNK_BYTES_MAX))
            .map(|chunk| Ok(raw::Chunk { bytes: chunk.to_vec() }))
            .collect();
        if matches!(trouble, Some(Trouble::BreakOff)) {
            chunks.truncate(1);
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
}

/// A courier on a thread that may wait, as an engine's.
struct Place {
    counter: Counter,
    courier: Courier,
    _runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let counter = Counter::default();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let coordinator = listener.local_addr().unwrap();
        let service = CoordinatorServer::new(counter.clone());
        runtime.spawn(async move {
            let server = Server::builder().add_service(service);
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        let courier = Courier {
            coordinator: Gate::Here(coordinator),
            secret: Secret::random().unwrap(),
            run: RunId("r".into()),
            me: WorkerId(2),
            generation: Generation(3),
            runtime: runtime.handle().clone(),
        };
        Self { counter, courier, _runtime: runtime }
    }

    /// The next attempts go so, the last one first.
    fn trouble(&self, troubles: &[Trouble]) {
        *self.counter.troubles.lock().unwrap() = troubles.to_vec();
    }

    fn deposit(&self, bytes: &[u8]) -> Result<(), CourierError> {
        let (mut content, _) = scratch_file().unwrap();
        content.write_all(bytes).unwrap();
        let standing = Standing { step: 4, ..Standing::default() };
        self.courier.deposit((standing, CellId(1)), (&file(bytes), &content), &|| false)
    }

    fn withdraw(&self, bytes: &[u8]) -> Result<Vec<u8>, CourierError> {
        let mut content = self.courier.withdraw_file(4, &file(bytes), &|| false)?;
        let mut read = Vec::new();
        content.read_to_end(&mut read).unwrap();
        Ok(read)
    }
}

fn file(bytes: &[u8]) -> CheckpointFile {
    let blake3 = blake3::hash(bytes).to_hex().to_string();
    CheckpointFile { name: "x.safetensors".into(), bytes: bytes.len() as u64, blake3 }
}

fn large() -> Vec<u8> {
    (0..5 * CHUNK_BYTES_MAX + 3).map(|at| (at % 251) as u8).collect()
}

#[test]
fn a_file_goes_there_and_comes_back() {
    let place = Place::new();
    place.deposit(&large()).unwrap();
    assert_eq!(place.counter.files.lock().unwrap()["x.safetensors"], large());
    let head = place.counter.heads.lock().unwrap().remove(0);
    assert_eq!((head.worker, head.generation, head.cell), (WorkerId(2), Generation(3), CellId(1)));
    assert_eq!(place.withdraw(&large()).unwrap(), large());
    place.counter.files.lock().unwrap().insert(FILE_NAME.into(), b"{}".to_vec());
    assert_eq!(place.courier.withdraw_manifest(4, 10, &|| false).unwrap(), b"{}");
}

#[test]
fn what_passes_is_tried_again_from_the_first_byte() {
    let place = Place::new();
    place.trouble(&[Trouble::BreakOff, Trouble::Refuse(Code::Unavailable)]);
    place.deposit(&large()).unwrap();
    assert_eq!(place.counter.heads.lock().unwrap().len(), 3);
    assert_eq!(place.counter.files.lock().unwrap()["x.safetensors"], large());
    place.trouble(&[Trouble::Damage, Trouble::BreakOff, Trouble::Refuse(Code::Unavailable)]);
    assert_eq!(place.withdraw(&large()).unwrap(), large());
    // What always breaks off ends, and says how.
    place.trouble(&[Trouble::BreakOff; 20]);
    let error = place.withdraw(&large()).unwrap_err().to_string();
    assert!(error.contains("does not get through"), "{error}");
    assert!(error.ends_with("it ends after 131072 of 655363 bytes"), "{error}");
}

#[test]
fn what_is_refused_is_not_tried_again() {
    let place = Place::new();
    place.counter.files.lock().unwrap().insert("x.safetensors".into(), b"x".to_vec());
    for code in [Code::FailedPrecondition, Code::ResourceExhausted, Code::InvalidArgument] {
        place.trouble(&[Trouble::Refuse(code)]);
        let error = place.deposit(b"x").unwrap_err().to_string();
        assert_eq!(error, "the coordinator does not take x.safetensors: as the test wants it");
        place.trouble(&[Trouble::Refuse(code)]);
        let error = place.withdraw(b"x").unwrap_err().to_string();
        assert_eq!(error, "the coordinator does not give x.safetensors: as the test wants it");
    }
    assert_eq!(place.counter.heads.lock().unwrap().len(), 3);
    let error = place.courier.withdraw_file(4, &file(b"xy"), &|| false).unwrap_err();
    assert!(error.to_string().ends_with("it ends after 1 of 2 bytes"), "{error}");
}

#[test]
fn whoever_waits_for_a_coordinator_that_hangs_is_let_go_when_nobody_wants_the_file() {
    let place = Place::new();
    place.counter.files.lock().unwrap().insert("x.safetensors".into(), b"x".to_vec());
    let asked = std::cell::Cell::new(0);
    let soon = || {
        asked.set(asked.get() + 1);
        asked.get() > 3
    };
    place.trouble(&[Trouble::Hang]);
    let (content, _) = scratch_file().unwrap();
    let whose = (Standing::default(), CellId(0));
    let error = place.courier.deposit(whose, (&file(b""), &content), &soon).unwrap_err();
    assert!(matches!(error, CourierError::Stopped { .. }), "{error}");
    asked.set(0);
    place.trouble(&[Trouble::Hang]);
    let error = place.courier.withdraw_file(4, &file(b"x"), &soon).unwrap_err();
    assert!(matches!(error, CourierError::Stopped { .. }), "{error}");
}
