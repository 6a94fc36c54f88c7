//! HTTP/2 by hand (RFC 9113, HPACK of RFC 7541 without compression), to say what no library would.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use shoal_trust::{Credentials, SERVER_NAME};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GO_AWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

/// Flags of `HEADERS`.
pub(crate) const END_HEADERS: u8 = 4;

/// How long a server may take to say that it has had enough.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection of a member.
pub(crate) struct Raw(TlsStream<TcpStream>);

impl Raw {
    pub(crate) async fn connect(address: SocketAddr, credentials: &Credentials) -> Self {
        let mut config = (*credentials.client().unwrap()).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let mut raw = Self(stream);
        raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        raw.send(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        raw
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// Reads until a frame of this kind comes: what it holds. Nothing, when the server hangs up before that.
    pub(crate) async fn read_until(&mut self, wanted: u8) -> Option<Vec<u8>> {
        let mut seen = Vec::new();
        loop {
            while let Some((kind, payload)) = take_frame(&mut seen) {
                if kind == wanted {
                    return Some(payload);
                }
            }
            let mut some = vec![0; 16 << 10];
            let read = timeout(PATIENCE, self.0.read(&mut some)).await.expect("it says nothing");
            match read {
                Ok(0) | Err(_) => return None,
                Ok(read) => seen.extend_from_slice(&some[..read]),
            }
        }
    }
}

fn take_frame(seen: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let head: [u8; 9] = seen.get(..9)?.try_into().ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let payload = seen.get(9..9 + length)?.to_vec();
    seen.drain(..9 + length);
    Some((head[3], payload))
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The head of a call, and more headers behind it.
pub(crate) fn call(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    // POST and https stand in the static table; path and authority by the name's index.
    let mut block = vec![0x83, 0x87];
    block.push(0x04);
    literal(&mut block, path);
    block.push(0x01);
    literal(&mut block, SERVER_NAME);
    let usual = [("content-type", "application/grpc"), ("te", "trailers")];
    for (name, value) in usual.iter().chain(more) {
        block.push(0x00);
        literal(&mut block, name);
        literal(&mut block, value);
    }
    block
}

/// A string that is not compressed, behind its length: HPACK's integer with a prefix of seven bits.
fn literal(block: &mut Vec<u8>, value: &str) {
    let mut length = value.len();
    if length < 127 {
        block.push(length as u8);
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push((length % 128) as u8 | 128);
            length /= 128;
        }
        block.push(length as u8);
    }
    block.extend_from_slice(value.as_bytes());
}
