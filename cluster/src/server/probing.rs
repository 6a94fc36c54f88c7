//! Probes of rigs, as the coordinator answers them.

use std::net::IpAddr;

use shoal_proto::wire::raw::{Chunk, Probed, Words};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::clock::unix_ms;
use crate::fitness;
use crate::probing::words::{Look, Seen};
use crate::probing::{BYTES_MAX, GRACE, TIME, Turn, noise};

/// Judges a rig without letting it in.
pub(super) fn look(rig: &str, address: IpAddr, asked: &str) -> Result<Words, Status> {
    let look: Look = serde_json::from_str(asked).map_err(|error| {
        Status::invalid_argument(format!("a look that cannot be understood: {error}"))
    })?;
    let (version, unix_ms) = (env!("CARGO_PKG_VERSION").to_owned(), unix_ms());
    let words = fitness::words(rig, &look.version, look.words, &version);
    let clocks = fitness::clocks(rig, look.unix_ms, unix_ms);
    let objections = words.into_iter().chain(clocks).collect();
    written(&Seen { version, unix_ms, address, objections })
}

pub(super) fn written<T: serde::Serialize>(what: &T) -> Result<Words, Status> {
    let json = serde_json::to_string(what).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Words { json, term: 0 })
}

/// Counts what comes, and keeps none of it.
pub(super) async fn count(mut chunks: Streaming<Chunk>, _turn: Turn) -> Result<Probed, Status> {
    let late = |_| Status::deadline_exceeded("no byte of the probe came");
    let first = timeout(GRACE, chunks.message()).await.map_err(late)??;
    let mut bytes = first.map_or(0, |chunk| chunk.bytes.len() as u64);
    let since = Instant::now();
    let mut took = since.elapsed();
    // An end in time is the sender's; after that what came is what is said.
    while bytes < BYTES_MAX
        && let Ok(next) = timeout_at(since + TIME + GRACE, chunks.message()).await
        && let Some(chunk) = next?
    {
        bytes += chunk.bytes.len() as u64;
        took = since.elapsed();
        if took > TIME {
            break;
        }
    }
    Ok(Probed { bytes, microseconds: took.as_micros() as u64 })
}

/// Sends what was asked for, within the bounds.
pub(super) fn pour(wanted: u64, turn: Turn) -> ReceiverStream<Result<Chunk, Status>> {
    let (chunks, stream) = mpsc::channel(2);
    tokio::spawn(async move {
        let _turn = turn;
        let (noise, since, mut sent) = (noise(), Instant::now(), 0);
        while sent < wanted.min(BYTES_MAX) && since.elapsed() < TIME {
            let chunk = Chunk { bytes: noise.clone() };
            sent += chunk.bytes.len() as u64;
            // Whoever does not read, or went away, is given no more.
            if !matches!(timeout(TIME, chunks.send(Ok(chunk))).await, Ok(Ok(()))) {
                return;
            }
        }
    });
    ReceiverStream::new(stream)
}
