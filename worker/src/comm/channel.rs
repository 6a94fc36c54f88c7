//! A connection between two workers: a socket, and TLS over it where they have certificates.
//!
//! One thread reads and one writes. What they share, the TLS connection, is locked only while bytes are
//! encrypted or decrypted in memory, never while the socket is waited for. A socket's time-outs mean
//! the same over both kinds, and so do `Ok(0)`, the end, and every error but that of a broken record.
//!
//! TLS's own goodbye is not said: every conversation here knows by its own words whether it is whole.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::{ClientConnection, Connection, ServerConnection};
use shoal_plan::plan::WorkerId;
use shoal_trust::{Clients, Name, Role, explain, identity_of, server_name};

use super::deadline::Deadline;
use super::handshake::{Refusal, decided, is_pause};
use super::trust::Trust;

/// Bytes that are encrypted, or taken from the socket, at a time: several records, and small enough to
/// stay in the cache. No other size was tried.
const CHUNK_BYTES: usize = 128 << 10;

/// What a refused dialer may still say before it reads why.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// An open connection. Whoever is at the other end has shown a worker's certificate if there is TLS.
pub(crate) struct Channel {
    stream: TcpStream,
    tls: Option<Box<Tls>>,
}

struct Tls {
    connection: Mutex<Connection>,
    /// The reader's.
    arrived: Mutex<Arrived>,
    /// The writer's.
    leaving: Mutex<Leaving>,
    trust: Trust,
    peer: Name,
}

/// Encrypted bytes that came and are not decrypted yet.
struct Arrived {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

/// Encrypted bytes on their way out.
#[derive(Default)]
struct Leaving {
    bytes: Vec<u8>,
    sent: usize,
    /// Of what the caller wants to write, how much is in there and was not told to be written.
    plain: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in this file panics between two changes that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Channel {
    /// Without TLS.
    pub(crate) fn plain(stream: TcpStream) -> Self {
        Self { stream, tls: None }
    }

    /// Of a connection that was just made to a worker: only that worker can answer.
    pub(crate) fn dial(
        stream: TcpStream,
        trust: Option<&Trust>,
        peer: WorkerId,
        deadline: Deadline,
    ) -> Result<Self, Refusal> {
        let Some(trust) = trust else { return Ok(Self::plain(stream)) };
        let expected = trust.expected(peer).map_err(decided)?;
        let config = trust.open().and_then(|own| own.client()).map_err(own_fault)?;
        let connection = ClientConnection::new(config, server_name(&expected))?;
        Self::open(stream, connection.into(), trust, deadline)
    }

    /// Of a connection that somebody made: only a worker of the same authority can have.
    pub(crate) fn accept(
        stream: TcpStream,
        trust: Option<&Trust>,
        deadline: Deadline,
    ) -> Result<Self, Refusal> {
        let Some(trust) = trust else { return Ok(Self::plain(stream)) };
        // Which rigs are out of the cluster the coordinator knows, and leaves out of its plans.
        let config = trust.open().and_then(|own| own.server(|_| false, Clients::Required));
        let connection = ServerConnection::new(config.map_err(own_fault)?)?;
        Self::open(stream, connection.into(), trust, deadline)
    }

    fn open(
        stream: TcpStream,
        mut connection: Connection,
        trust: &Trust,
        deadline: Deadline,
    ) -> Result<Self, Refusal> {
        if let Err(refusal) = shake_hands(&mut connection, &stream, deadline) {
            let_read(&stream, deadline);
            return Err(refusal);
        }
        let certificate = connection.peer_certificates().and_then(|chain| chain.first());
        let certificate = certificate.ok_or_else(|| decided("it shows no certificate".into()))?;
        let (identity, ..) = identity_of(certificate).map_err(|why| decided(why.to_string()))?;
        if identity.role != Role::Worker {
            let_read(&stream, deadline);
            return Err(decided(format!("it is the {identity}, want a worker")));
        }
        // All of a chunk is encrypted before any of it is sent.
        connection.set_buffer_limit(None);
        let bytes = vec![0; CHUNK_BYTES].into_boxed_slice();
        let tls = Tls {
            connection: Mutex::new(connection),
            arrived: Mutex::new(Arrived { bytes, from: 0, to: 0 }),
            leaving: Mutex::default(),
            trust: trust.clone(),
            peer: identity.name,
        };
        Ok(Self { stream, tls: Some(Box::new(tls)) })
    }

    /// For its time-outs, and to shut it down.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Has both ends encrypt with new keys from here on, as TLS does of itself now and then.
    #[cfg(test)]
    pub(super) fn change_keys(&self) {
        if let Some(tls) = &self.tls {
            lock(&tls.connection).refresh_traffic_keys().expect("the handshake is over");
        }
    }

    /// Why the other end cannot be the worker it claims to be.
    pub(super) fn objection(&self, claimed: WorkerId) -> Option<String> {
        let tls = self.tls.as_ref()?;
        tls.trust.objection(&tls.peer, claimed)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self.tls.as_ref().map(|tls| &tls.peer);
        f.debug_struct("Channel").field("peer", &peer).finish_non_exhaustive()
    }
}

pub(super) fn own_fault(error: shoal_trust::TrustError) -> Refusal {
    decided(format!("this worker's own credentials are of no use: {error}"))
}

/// Both prove who they are, or the other end is told that it did not.
pub(super) fn shake_hands(
    connection: &mut Connection,
    mut stream: &TcpStream,
    deadline: Deadline,
) -> Result<(), Refusal> {
    let left = || deadline.left().ok_or("the TLS handshake took too long");
    loop {
        while connection.wants_write() {
            stream.set_write_timeout(Some(left()?))?;
            match connection.write_tls(&mut stream) {
                Ok(_) => {}
                Err(error) if is_pause(error.kind()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !connection.is_handshaking() {
            return Ok(());
        }
        stream.set_read_timeout(Some(left()?))?;
        match connection.read_tls(&mut stream) {
            Ok(0) => return Err("the connection closed during the TLS handshake".into()),
            Ok(_) => {}
            Err(error) if is_pause(error.kind()) => continue,
            Err(error) => return Err(error.into()),
        }
        if let Err(error) = connection.process_new_packets() {
            // What is wrong, as far as TLS has a word for it. The other end may be gone.
            let _ = connection.write_tls(&mut stream);
            return Err(decided(explain(&error)));
        }
    }
}

/// A socket that is closed over what it has not read resets the connection, and takes the last words
/// from whoever is to read them.
fn let_read(mut stream: &TcpStream, deadline: Deadline) {
    let deadline = deadline.within(LAST_WORDS);
    let _ = stream.shutdown(Shutdown::Write);
    while let Some(left) = deadline.left() {
        let read = stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut [0; 1024]));
        if matches!(read, Ok(0) | Err(_)) {
            return;
        }
    }
}

/// What a TLS connection said through a socket's error, if it did.
pub(super) fn refused(error: &io::Error) -> Option<Refusal> {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    inner.map(|error| decided(explain(error)))
}

impl Read for &Channel {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => (&self.stream).read(bytes),
            Some(tls) => tls.read(&self.stream, bytes),
        }
    }
}

/// After a pause, the same bytes are to be written again: some may be encrypted already.
impl Write for &Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => (&self.stream).write(bytes),
            Some(tls) => tls.write(&self.stream, &[IoSlice::new(bytes)]),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.tls {
            None => (&self.stream).write_vectored(parts),
            Some(tls) => tls.write(&self.stream, parts),
        }
    }

    /// What was told to be written has left.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tls {
    fn read(&self, mut stream: &TcpStream, bytes: &mut [u8]) -> io::Result<usize> {
        let mut arrived = lock(&self.arrived);
        loop {
            let got = self.decrypt(&mut arrived, bytes)?;
            if got > 0 || bytes.is_empty() {
                return Ok(got);
            }
            let n = stream.read(&mut arrived.bytes)?;
            if n == 0 {
                return Ok(0);
            }
            (arrived.from, arrived.to) = (0, n);
        }
    }

    /// As much as is here, and fits.
    fn decrypt(&self, arrived: &mut Arrived, bytes: &mut [u8]) -> io::Result<usize> {
        let mut connection = lock(&self.connection);
        let mut got = 0;
        loop {
            match connection.reader().read(&mut bytes[got..]) {
                Ok(n) => got += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let mut rest = &arrived.bytes[arrived.from..arrived.to];
            if got == bytes.len() || rest.is_empty() {
                return Ok(got);
            }
            let taken = connection.read_tls(&mut rest)?;
            if taken == 0 {
                // It said goodbye, and what follows is not its own.
                return Ok(got);
            }
            arrived.from += taken;
            let processed = connection.process_new_packets();
            processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }

    fn write(&self, mut stream: &TcpStream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut leaving = lock(&self.leaving);
        let leaving = &mut *leaving;
        if leaving.sent == leaving.bytes.len()
            && let Err(error) = self.encrypt(leaving, parts)
        {
            // It is broken, and nothing can be said any more but TLS's own word for that.
            let _ = stream.write(&leaving.bytes);
            return Err(error);
        }
        while leaving.sent < leaving.bytes.len() {
            let n = stream.write(&leaving.bytes[leaving.sent..])?;
            if n == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            leaving.sent += n;
            // Whoever waits is to see that bytes move, though no record may be whole on the other side.
            let is_all = leaving.sent == leaving.bytes.len();
            let moved = if is_all { leaving.plain } else { n.min(leaving.plain.saturating_sub(1)) };
            leaving.plain -= moved;
            if moved > 0 {
                return Ok(moved);
            }
        }
        Ok(0)
    }

    /// The next chunk, straight from where it lies.
    fn encrypt(&self, leaving: &mut Leaving, parts: &[IoSlice<'_>]) -> io::Result<()> {
        leaving.bytes.clear();
        leaving.sent = 0;
        let mut room = CHUNK_BYTES;
        let mut chunk = [IoSlice::new(&[]); 2];
        for (part, whole) in chunk.iter_mut().zip(parts) {
            *part = IoSlice::new(&whole[..whole.len().min(room)]);
            room -= part.len();
        }
        let mut connection = lock(&self.connection);
        let taken = connection.writer().write_vectored(&chunk);
        while connection.wants_write() {
            connection.write_tls(&mut leaving.bytes)?;
        }
        leaving.plain = taken?;
        Ok(())
    }
}
