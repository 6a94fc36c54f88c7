//! What is said on a rig's probe port: a byte that asks, what belongs to it, and the answer. Pieces have their
//! length before them; one of no bytes is the last.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::{BYTES_MAX, GRACE, PIECE, Rate, TIME, noise};

/// Nothing else may be spoken with this port, and this with no other.
pub(super) const PROTOCOL: &[u8] = b"shoal-probe/1";

pub(super) const ECHO: u8 = 1;
pub(super) const UP: u8 = 2;
pub(super) const DOWN: u8 = 3;
pub(super) const BACK: u8 = 4;

/// An address and a port.
pub(super) const PLACE_BYTES: usize = 18;

pub(super) fn place(address: IpAddr, port: u16) -> [u8; PLACE_BYTES] {
    let mut bytes = [0; PLACE_BYTES];
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    bytes[..16].copy_from_slice(&address.octets());
    bytes[16..].copy_from_slice(&port.to_be_bytes());
    bytes
}

pub(super) fn read_place(bytes: [u8; PLACE_BYTES]) -> (IpAddr, u16) {
    let mut address = [0; 16];
    address.copy_from_slice(&bytes[..16]);
    (Ipv6Addr::from(address).to_canonical(), u16::from_be_bytes([bytes[16], bytes[17]]))
}

/// Sends pieces until there are enough of them, or it took long enough.
pub(super) async fn pour(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let (noise, since, mut sent) = (noise(), Instant::now(), 0);
    while sent < BYTES_MAX && since.elapsed() < TIME {
        within(since, stream.write_u32(noise.len() as u32)).await?;
        within(since, stream.write_all(&noise)).await?;
        sent += noise.len() as u64;
    }
    within(since, stream.write_u32(0)).await?;
    within(since, stream.flush()).await
}

/// Counts pieces to the last.
pub(super) async fn count(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Rate> {
    let begun = Instant::now();
    let (mut since, mut rate) = (None, Rate { bytes: 0, seconds: 0.0 });
    let mut piece = vec![0; PIECE];
    loop {
        let bytes = within(begun, stream.read_u32()).await? as usize;
        if bytes == 0 {
            return Ok(rate);
        }
        if bytes > PIECE || rate.bytes + bytes as u64 > BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more than a probe has"));
        }
        within(begun, stream.read_exact(&mut piece[..bytes])).await?;
        // The first is there when the clock starts.
        let since: &mut Instant = since.get_or_insert_with(Instant::now);
        rate.bytes += bytes as u64;
        rate.seconds = since.elapsed().as_secs_f64();
    }
}

async fn within<T>(since: Instant, what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout_at(since + TIME + GRACE, what)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_the_wire() {
        for address in ["10.0.0.7", "::1", "fd00::7"] {
            let address = address.parse().unwrap();
            assert_eq!(read_place(place(address, 7_400)), (address, 7_400));
        }
    }

    #[tokio::test]
    async fn what_is_poured_is_counted_and_more_than_that_is_refused() {
        let (mut here, mut there) = tokio::io::duplex(1 << 20);
        let (poured, counted) = tokio::join!(pour(&mut here), count(&mut there));
        poured.unwrap();
        assert!((1..=BYTES_MAX).contains(&counted.unwrap().bytes));
        here.write_u32(PIECE as u32 + 1).await.unwrap();
        assert!(count(&mut there).await.unwrap_err().to_string().contains("more than a probe"));
    }
}
