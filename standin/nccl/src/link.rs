//! How ranks find each other, and the connections between them.
//!
//! An id names a port of loopback where whoever made it waits for all ranks, each of which says where it listens and
//! gets everybody's ports. Then every two ranks have one connection, dialled by the higher one.
#![expect(
    clippy::disallowed_methods,
    reason = "a peer that does not come is measured on the clock"
)]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::data::{Code, Fault, Type};

/// Bytes of NCCL's id.
pub const ID_BYTES: usize = 128;
const MAGIC: [u8; 8] = *b"SHOALNCL";
/// Between two looks for a connection that has not come.
const PAUSE: Duration = Duration::from_millis(2);

/// What ranks of one communicator share before they know each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    port: u16,
    /// So that ranks of another communicator, which find a port that was used before, are strangers.
    key: [u8; 8],
}

/// What a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    Send = 1,
    AllReduce = 2,
    ReduceScatter = 3,
    AllGather = 4,
    Broadcast = 5,
    /// The sender goes, and has sent all.
    Goodbye = 6,
}

impl Operation {
    const ALL: [Self; 6] = [
        Self::Send,
        Self::AllReduce,
        Self::ReduceScatter,
        Self::AllGather,
        Self::Broadcast,
        Self::Goodbye,
    ];
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub operation: Operation,
    pub kind: Type,
    pub bytes: Vec<u8>,
}

impl Id {
    /// A new one; a thread waits for its ranks until `patience` is over.
    pub fn new(patience: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let mut key = [0; 8];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut key)?;
        let id = Self { port, key };
        std::thread::spawn(move || {
            // Ranks that get no answer say so themselves.
            let _ = id.introduce(&listener, patience);
        });
        Ok(id)
    }

    pub fn to_bytes(self) -> [u8; ID_BYTES] {
        let mut bytes = [0; ID_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.key);
        bytes[16..18].copy_from_slice(&self.port.to_le_bytes());
        bytes
    }

    pub fn of_bytes(bytes: &[u8; ID_BYTES]) -> Result<Self, Fault> {
        let mut key = [0; 8];
        key.copy_from_slice(&bytes[8..16]);
        let port = u16::from_le_bytes([bytes[16], bytes[17]]);
        if bytes[..8] != MAGIC {
            return Err(Fault::new(Code::InvalidArgument, "an id that this library did not make"));
        }
        Ok(Self { port, key })
    }

    /// Waits for as many ranks as the first one says there are, and tells each all ports.
    fn introduce(self, listener: &TcpListener, patience: Duration) -> io::Result<()> {
        let until = Instant::now() + patience;
        let mut ranks: Vec<Option<(TcpStream, u16)>> = Vec::new();
        while ranks.is_empty() || ranks.iter().any(Option::is_none) {
            let mut stream = accept(listener, until)?;
            let mut hello = [0; 18];
            stream.set_read_timeout(Some(patience))?;
            stream.read_exact(&mut hello)?;
            let rank = u32::from_le_bytes([hello[8], hello[9], hello[10], hello[11]]) as usize;
            let size = u32::from_le_bytes([hello[12], hello[13], hello[14], hello[15]]) as usize;
            if hello[..8] != self.key {
                continue;
            }
            if ranks.is_empty() {
                ranks.resize_with(size, || None);
            }
            // Closed without an answer: two that want to be one rank, or that count differently.
            if let Some(place) = ranks.get_mut(rank).filter(|place| place.is_none())
                && size > rank
            {
                *place = Some((stream, u16::from_le_bytes([hello[16], hello[17]])));
            }
        }
        let ports: Vec<u8> =
            ranks.iter().flatten().flat_map(|(_, port)| port.to_le_bytes()).collect();
        for (stream, _) in ranks.iter_mut().flatten() {
            stream.write_all(&ports)?;
        }
        Ok(())
    }

    /// The connections of one rank, by peer; at its own place there is none.
    pub fn connect(
        self,
        (rank, size): (usize, usize),
        patience: Duration,
    ) -> io::Result<Vec<Option<TcpStream>>> {
        let until = Instant::now() + patience;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut root = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        let numbers = [rank as u32, size as u32].map(u32::to_le_bytes).concat();
        let port = listener.local_addr()?.port().to_le_bytes();
        root.write_all(&[&self.key[..], &numbers, &port].concat())?;
        root.set_read_timeout(Some(patience))?;
        let mut ports = vec![0; 2 * size];
        root.read_exact(&mut ports)?;
        let mut streams: Vec<Option<TcpStream>> = (0..size).map(|_| None).collect();
        for (peer, port) in ports.as_chunks().0.iter().enumerate().take(rank) {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, u16::from_le_bytes(*port)));
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(&[&self.key[..], &(rank as u32).to_le_bytes()].concat())?;
            streams[peer] = Some(stream);
        }
        while streams[rank + 1..].iter().any(Option::is_none) {
            let mut stream = accept(&listener, until)?;
            let mut hello = [0; 12];
            stream.set_read_timeout(Some(patience))?;
            stream.read_exact(&mut hello)?;
            let peer = u32::from_le_bytes([hello[8], hello[9], hello[10], hello[11]]) as usize;
            if hello[..8] == self.key && rank < peer && peer < size {
                stream.set_read_timeout(None)?;
                streams[peer] = Some(stream);
            }
        }
        for stream in streams.iter().flatten() {
            stream.set_nodelay(true)?;
        }
        Ok(streams)
    }
}

/// The next connection, if one comes in time.
fn accept(listener: &TcpListener, until: Instant) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

impl Message {
    pub fn write(&self, mut stream: &TcpStream) -> io::Result<()> {
        let length = (self.bytes.len() as u64).to_le_bytes();
        stream.write_all(&[&[self.operation as u8, self.kind as u8][..], &length].concat())?;
        stream.write_all(&self.bytes)
    }

    pub fn read(mut stream: &TcpStream) -> io::Result<Self> {
        let mut head = [0; 10];
        stream.read_exact(&mut head)?;
        let operation = Operation::ALL.into_iter().find(|known| *known as u8 == head[0]);
        let kind = Type::of(i32::from(head[1])).ok();
        let (Some(operation), Some(kind)) = (operation, kind) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message of nobody's"));
        };
        let mut length = [0; 8];
        length.copy_from_slice(&head[2..]);
        let length = usize::try_from(u64::from_le_bytes(length)).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes)?;
        Ok(Self { operation, kind, bytes })
    }
}
