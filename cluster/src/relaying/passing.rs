//! Bytes from one end to the other, both ways, until one of them ends.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;

/// As much as workers encrypt at a time.
const CHUNK_BYTES: usize = 128 << 10;

/// Workers give each other up after two minutes of silence: whatever is still open then is nobody's.
const IDLE: Duration = Duration::from_mins(5);

/// An end that says no more may still be told the rest; an error ends both ways at once.
pub(super) async fn both_ways(
    here: &mut (impl AsyncRead + AsyncWrite + Unpin),
    there: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<()> {
    let moved = AtomicU64::new(0);
    let ((read_here, write_here), (read_there, write_there)) = (split(here), split(there));
    let there = one_way(read_here, write_there, &moved);
    let back = one_way(read_there, write_here, &moved);
    tokio::try_join!(there, back).map(drop)
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &AtomicU64,
) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK_BYTES];
    loop {
        let before = moved.load(Ordering::Relaxed);
        let read = match timeout(IDLE, from.read(&mut bytes)).await {
            Ok(read) => read?,
            // The other way may be at work.
            Err(_) if moved.load(Ordering::Relaxed) != before => continue,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        if read == 0 {
            return to.shutdown().await;
        }
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        timeout(IDLE, to.write_all(&bytes[..read])).await.map_err(late)??;
        moved.fetch_add(read as u64, Ordering::Relaxed);
    }
}
