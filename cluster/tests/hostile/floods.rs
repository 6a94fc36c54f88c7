//! Messages that are too large, or say so, and floods of HTTP/2's small frames.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use rustls::pki_types::ServerName;
use shoal_trust::{Credentials, Role, SERVER_NAME};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, GO_AWAY, HEADERS, PING, RESET, Raw, SETTINGS, call, frame,
};
use crate::{Served, resident_mb};

const LOOK: &str = "/shoal.v1.Rigs/Look";

/// What memory may grow by beside the flood: tests run side by side in one process.
const GROWTH_MB: u64 = 96;

/// A server that has read nothing for so long waits for its answers to be read.
const STANDSTILL: Duration = Duration::from_secs(5);

/// A connection that is well-behaved HTTP/2.
async fn polite(served: &Served, credentials: &Credentials) -> SendRequest<Bytes> {
    let mut config = (*credentials.client().unwrap()).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(served.address()).await.unwrap();
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

/// Sends the beginning of a message that says it is so long, and returns gRPC's status.
async fn claims(client: &mut SendRequest<Bytes>, head: &[u8], encoding: Option<&str>) -> String {
    let mut request = http::Request::post(format!("https://{SERVER_NAME}{LOOK}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let (response, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
    body.send_data(Bytes::copy_from_slice(head), false).unwrap();
    let mut response = response.await.unwrap();
    if let Some(status) = response.headers().get("grpc-status") {
        return status.to_str().unwrap().to_owned();
    }
    while let Some(chunk) = response.body_mut().data().await {
        chunk.unwrap();
    }
    let trailers = response.body_mut().trailers().await.unwrap().expect("a status at the end");
    trailers.get("grpc-status").unwrap().to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_says_it_is_too_large_or_packed_is_refused_and_takes_no_memory() {
    const OUT_OF_RANGE: &str = "11";
    const UNIMPLEMENTED: &str = "12";
    const INTERNAL: &str = "13";
    let served = Served::new();
    let honest = served.honest().await;
    let mut bad = polite(&served, &served.member("bad", Role::Worker)).await;
    let length = |packed: u8, bytes: u32| {
        let mut head = vec![packed];
        head.extend_from_slice(&bytes.to_be_bytes());
        head.extend_from_slice(&[b'x'; 1000]);
        head
    };
    let before = resident_mb();
    for _ in 0..20 {
        assert_eq!(claims(&mut bad, &length(0, 5 << 20), None).await, OUT_OF_RANGE);
        assert_eq!(claims(&mut bad, &length(0, u32::MAX), None).await, OUT_OF_RANGE);
        // What would grow when it is unpacked is not unpacked.
        assert_eq!(claims(&mut bad, &length(1, 1000), Some("gzip")).await, UNIMPLEMENTED);
        assert_eq!(claims(&mut bad, &length(1, 1000), None).await, INTERNAL);
    }
    served.serves(&honest).await;
    let growth = resident_mb().saturating_sub(before);
    assert!(growth < GROWTH_MB, "{growth} MB for what was refused");
}

/// A flood: how it begins, and what follows again and again, for so many times.
struct Flood {
    what: &'static str,
    begins: Vec<u8>,
    goes_on: Box<dyn Fn(u32) -> Vec<u8> + Send>,
    times: u32,
    /// The server must end the connection; else it may bear the flood.
    must_end: bool,
}

fn floods() -> Vec<Flood> {
    let opens = call(LOOK, &[]);
    let again = opens.clone();
    let long = "x".repeat(64 << 10);
    let fat = call(LOOK, &[("x-fat", &long)]);
    let (fat_first, fat_rest) = fat.split_at(16 << 10);
    let mut fat_frames = frame(HEADERS, 0, 1, fat_first);
    for piece in fat_rest.chunks(16 << 10) {
        fat_frames.extend(frame(CONTINUATION, 0, 1, piece));
    }
    fat_frames.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
    vec![
        Flood {
            what: "streams that are opened and reset at once (CVE-2023-44487)",
            begins: Vec::new(),
            goes_on: Box::new(move |n| {
                let stream = 2 * n + 1;
                let mut frames = frame(HEADERS, END_HEADERS, stream, &again);
                frames.extend(frame(RESET, 0, stream, &8_u32.to_be_bytes()));
                frames
            }),
            times: 100_000,
            must_end: true,
        },
        Flood {
            what: "headers that never end (CVE-2024-27316)",
            begins: frame(HEADERS, 0, 1, &opens),
            goes_on: Box::new(|_| {
                let mut header = vec![0x00, 3, b'x', b'-', b'y', 100];
                header.extend_from_slice(&[b'z'; 100]);
                frame(CONTINUATION, 0, 1, &header.repeat(100))
            }),
            times: 20_000,
            must_end: true,
        },
        Flood {
            what: "data without bytes (CVE-2019-9518)",
            begins: frame(HEADERS, END_HEADERS, 1, &opens),
            goes_on: Box::new(|_| frame(DATA, 0, 1, &[]).repeat(100)),
            times: 5_000,
            must_end: false,
        },
        Flood {
            what: "settings (CVE-2019-9515)",
            begins: Vec::new(),
            goes_on: Box::new(|_| frame(SETTINGS, 0, 0, &[]).repeat(100)),
            times: 5_000,
            must_end: false,
        },
        Flood {
            what: "pings (CVE-2019-9512)",
            begins: Vec::new(),
            goes_on: Box::new(|_| frame(PING, 0, 0, &[7; 8]).repeat(100)),
            times: 5_000,
            must_end: false,
        },
        Flood {
            what: "a header of 64 KiB",
            begins: fat_frames,
            goes_on: Box::new(|_| frame(PING, 0, 0, &[7; 8])),
            times: 10,
            must_end: false,
        },
    ]
}

/// Whether the server has ended the connection before the flood was over. It does not read what is said to it, so
/// that answers pile up where somebody keeps them.
async fn flooded(served: &Served, bad: &Credentials, flood: &Flood) -> bool {
    let mut raw = Raw::connect(served.address(), bad).await;
    if raw.send(&flood.begins).await.is_err() {
        return true;
    }
    for n in 0..flood.times {
        let frames = (flood.goes_on)(n);
        match timeout(STANDSTILL, raw.send(&frames)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return true,
            // It does not read on before its answers are read, which keeps nobody else from anything.
            Err(_) => return false,
        }
    }
    flood.must_end && raw.read_until(GO_AWAY).await.is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_in_http_2_cost_the_one_who_floods_its_connection_and_nobody_else_anything() {
    let served = Served::new();
    let honest = served.honest().await;
    let bad = served.member("bad", Role::Worker);
    for flood in floods() {
        let before = resident_mb();
        let (ended, ()) = tokio::join!(flooded(&served, &bad, &flood), async {
            for _ in 0..5 {
                served.serves(&honest).await;
            }
        });
        assert!(ended || !flood.must_end, "{}: the connection goes on", flood.what);
        let growth = resident_mb().saturating_sub(before);
        assert!(growth < GROWTH_MB, "{}: {growth} MB", flood.what);
    }
    served.serves(&honest).await;
}
