//! The two threads of a connection: one writes what lies in its outbox, one reads into the inboxes.

use std::collections::BTreeMap;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use shoal_plan::grid::CellId;
use shoal_plan::plan::WorkerId;

use super::channel::Channel;
use super::frame::{self, FrameError, HEADER_BYTES, Header, Operation, PIECE_BYTES};
use super::handshake::{is_pause, printable};
use super::link::{Failure, Link, Message, Next, Outgoing, Shared, is_silence};
use super::payload::{Payload, Spare};

/// How often a writer whose peer does not read looks whether the mesh has failed meanwhile.
pub(super) const WRITE_PAUSE: Duration = Duration::from_millis(100);

/// Such pauses in a row after which a writer of a failed mesh gives up telling its peer.
const ABORT_PAUSES_MAX: u32 = 3;

/// How long a writer that broke down waits for the peer's own words.
const REASON_WAIT: Duration = Duration::from_millis(500);

const READ_BUFFER_BYTES: usize = 64 << 10;

/// Space reserved on the word of a header; more only as the bytes arrive.
const RESERVED_BYTES_MAX: u64 = 64 << 20;

impl Shared {
    /// The body of a connection's writer thread.
    pub(super) fn write_until_over(&self, peer: WorkerId) {
        let link = self.link(peer);
        loop {
            match self.next(link) {
                Next::Send(outgoing) => {
                    let written = self.write_frame(link, &outgoing);
                    self.spare.put(outgoing.payload);
                    if let Err(error) = written {
                        // A peer that stopped on purpose has said why: the reader may know more.
                        self.wait_for_end(link, REASON_WAIT);
                        self.fail(Failure::broken(peer, "sending to it: ", &error));
                        let _ = link.channel.stream().shutdown(Shutdown::Both);
                        break;
                    }
                }
                Next::SayGoodbye => {
                    // A peer that is gone already needs none.
                    let _ = self.write_frame(link, &Outgoing::control(Operation::Goodbye, vec![]));
                    let _ = link.channel.stream().shutdown(Shutdown::Write);
                    break;
                }
                Next::SayAbort(failure) => {
                    let bytes = failure.encode(self.me);
                    let _ = self.write_frame(link, &Outgoing::control(Operation::Abort, bytes));
                    let _ = link.channel.stream().shutdown(Shutdown::Both);
                    break;
                }
            }
        }
        self.thread_ends();
    }

    fn write_frame(&self, link: &Link, outgoing: &Outgoing) -> io::Result<()> {
        let mut pieces = outgoing.payload.chunks(PIECE_BYTES);
        let first = pieces.next().unwrap_or_default();
        let header = Header {
            operation: outgoing.operation,
            generation: self.generation,
            from: outgoing.from,
            to: outgoing.to,
            sequence: outgoing.sequence,
            payload_bytes: outgoing.payload.len() as u64,
            piece_crc: crc32c::crc32c(first),
        };
        // In one call and without a copy: neither header nor checksum travels alone.
        let header = header.encode();
        self.write_all(link, &mut [IoSlice::new(&header), IoSlice::new(first)])?;
        for piece in pieces {
            let crc = crc32c::crc32c(piece).to_le_bytes();
            self.write_all(link, &mut [IoSlice::new(&crc), IoSlice::new(piece)])?;
        }
        Ok(())
    }

    /// Writes all of both, but a peer that does not read cannot hold up the end of the mesh.
    fn write_all(&self, link: &Link, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut pauses = 0;
        // Drops what is empty from the front, here and after every write.
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match (&link.channel).write_vectored(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    IoSlice::advance_slices(&mut parts, n);
                    pauses = 0;
                }
                Err(error) if is_pause(error.kind()) && !is_silence(&error) => {
                    pauses += u32::from(self.has_failed());
                    if pauses > ABORT_PAUSES_MAX {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The body of a connection's reader thread.
    pub(super) fn read_until_over(&self, peer: WorkerId) {
        let link = self.link(peer);
        match self.read_frames(peer, &link.channel) {
            Ok(()) => {
                self.departs(link);
            }
            Err(failure) => self.fail(failure),
        }
        self.thread_ends();
    }

    /// Reads until the peer's goodbye.
    fn read_frames(&self, peer: WorkerId, channel: &Channel) -> Result<(), Failure> {
        let blame = |cause: String| Failure::of(peer, cause);
        let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, channel);
        let mut next_sequence: BTreeMap<(CellId, CellId), u64> = BTreeMap::new();
        loop {
            let read = read_frame(&mut reader, &self.spare);
            let (header, bytes) = read.map_err(|broken| match broken {
                Broken::Read(error) => Failure::broken(peer, "", &error),
                Broken::Frame(cause) => blame(cause),
            })?;
            if header.generation != self.generation {
                let (got, want) = (header.generation, self.generation);
                return Err(blame(format!("it sent a message of {got}, want {want}")));
            }
            match header.operation {
                Operation::Goodbye => return Ok(()),
                Operation::Abort => return Err(Failure::decode(&bytes, peer, self.me)),
                Operation::Send
                | Operation::AllToAll
                | Operation::AllReduce
                | Operation::ReduceScatter
                | Operation::AllGather
                | Operation::Broadcast => {}
            }
            let pair = (header.from, header.to);
            if !self.is_senders(peer, pair) {
                let (from, to) = pair;
                return Err(blame(format!(
                    "it sent a message from {from} to {to}, not its to send"
                )));
            }
            let want = next_sequence.entry(pair).or_default();
            if header.sequence != *want {
                let ((from, to), got) = (pair, header.sequence);
                return Err(blame(format!("message {got} from {from} to {to}, want {want}")));
            }
            *want += 1;
            self.deliver(pair, Message { operation: header.operation, bytes });
        }
    }
}

/// Why no frame was read.
enum Broken {
    Read(io::Error),
    Frame(String),
}

fn read_frame(reader: &mut impl Read, spare: &Spare) -> Result<(Header, Vec<u8>), Broken> {
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Broken::Frame("the connection closed without a goodbye".to_string());
        }
        Broken::Read(error)
    })?;
    let framed = |error: FrameError| Broken::Frame(error.to_string());
    let header = Header::decode(&header).map_err(framed)?;
    let want = header.payload_bytes;
    // Straight to where they stay, in as few calls as the system allows.
    let mut bytes = spare.take(want.min(RESERVED_BYTES_MAX) as usize);
    let (mut got, mut crc) = (0, header.piece_crc);
    loop {
        let piece = (want - got as u64).min(PIECE_BYTES as u64) as usize;
        if bytes.len() < got + piece {
            bytes.resize((got as u64 + RESERVED_BYTES_MAX).min(want) as usize, 0);
        }
        let read = read_up_to(reader, &mut bytes[got..got + piece])?;
        if read < piece {
            let got = (got + read) as u64;
            return Err(framed(FrameError::Truncated { got, want }));
        }
        frame::check_piece(&bytes[got..got + piece], crc).map_err(framed)?;
        got += piece;
        if got as u64 == want {
            return Ok((header, bytes));
        }
        let mut next = [0; 4];
        if read_up_to(reader, &mut next)? < next.len() {
            return Err(framed(FrameError::Truncated { got: got as u64, want }));
        }
        crc = u32::from_le_bytes(next);
    }
}

/// Fills `bytes`; returns how many came before the stream's end, which may be fewer.
fn read_up_to(reader: &mut impl Read, bytes: &mut [u8]) -> Result<usize, Broken> {
    let mut got = 0;
    while got < bytes.len() {
        match reader.read(&mut bytes[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Broken::Read(error)),
        }
    }
    Ok(got)
}

impl Outgoing {
    fn control(operation: Operation, bytes: Vec<u8>) -> Self {
        let payload = Payload::Own(bytes);
        Self { operation, from: CellId(0), to: CellId(0), sequence: 0, payload }
    }
}

impl Failure {
    /// For the peers: the worker at fault, then the cause.
    fn encode(&self, me: WorkerId) -> Vec<u8> {
        let mut bytes = self.peer.unwrap_or(me).0.to_le_bytes().to_vec();
        bytes.extend_from_slice(self.cause.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8], reporter: WorkerId, me: WorkerId) -> Self {
        let (at_fault, cause) = match bytes.split_first_chunk() {
            Some((id, cause)) => (WorkerId(u32::from_le_bytes(*id)), cause),
            None => (reporter, bytes),
        };
        let cause = printable(cause);
        if at_fault == reporter {
            Self::of(reporter, format!("it stopped: {cause}"))
        } else if at_fault == me {
            Self::of(reporter, format!("it stopped because of {me}: {cause}"))
        } else {
            Self::of(at_fault, format!("{reporter} says: {cause}"))
        }
    }
}
