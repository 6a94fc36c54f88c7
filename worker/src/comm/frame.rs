//! The frame: one message on a connection between two workers, as bytes. Pure.
//!
//! Little-endian, 48 bytes of header, then the payload in pieces:
//! magic 4, version 2, operation 1, zero 1, generation 8, from 4, to 4, sequence 8, length 8,
//! crc32c of the first piece 4, crc32c of the 44 bytes before 4; the first piece; crc32c of the next
//! piece 4, that piece; and so on. Every piece but the last has `PIECE_BYTES`.

use std::fmt;

use shoal_plan::grid::CellId;
use shoal_plan::plan::Generation;

pub(super) const HEADER_BYTES: usize = 48;

/// Larger than any message of a step, small enough that a wrong length cannot take all memory.
pub(super) const PAYLOAD_BYTES_MAX: u64 = 1 << 30;

/// Small enough to lie in a core's cache between its checksum and its way to the system, or back; large
/// enough that calls of the system cost little. In this crate's own tests every message has several.
pub(super) const PIECE_BYTES: usize = if cfg!(test) { 1 << 10 } else { 256 << 10 };

const MAGIC: [u8; 4] = *b"SHFR";
const VERSION: u16 = 2;

/// What a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    Send = 1,
    AllToAll = 2,
    AllReduce = 3,
    ReduceScatter = 4,
    AllGather = 5,
    Broadcast = 6,
    /// Between workers: nothing more will come, and all is well.
    Goodbye = 7,
    /// Between workers: the sender has failed, and the payload says why.
    Abort = 8,
}

/// Everything about a message but its bytes. `from` and `to` of `Goodbye` and `Abort` are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) operation: Operation,
    pub(super) generation: Generation,
    pub(super) from: CellId,
    pub(super) to: CellId,
    /// Counts the messages of this (from, to) pair, from 0.
    pub(super) sequence: u64,
    pub(super) payload_bytes: u64,
    /// Of the first piece.
    pub(super) piece_crc: u32,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the frame starts with {got:02x?}, want {MAGIC:02x?}")]
    Magic { got: [u8; 4] },
    #[error("frame version {got}, want {VERSION}")]
    Version { got: u16 },
    #[error("the frame's header was corrupted: crc32c {got:08x}, want {want:08x}")]
    HeaderCrc { got: u32, want: u32 },
    #[error("frame with the unknown operation {got}")]
    Operation { got: u8 },
    #[error("message of {got} bytes, at most {PAYLOAD_BYTES_MAX} are allowed")]
    TooLong { got: u64 },
    #[error("message of {got} bytes, the header says {want}")]
    Truncated { got: u64, want: u64 },
    #[error("the message was corrupted: crc32c {got:08x}, want {want:08x}")]
    PayloadCrc { got: u32, want: u32 },
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6] = self.operation as u8;
        bytes[8..16].copy_from_slice(&self.generation.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.from.0.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.to.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.piece_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let magic = field(bytes, 0);
        if magic != MAGIC {
            return Err(FrameError::Magic { got: magic });
        }
        let version = u16::from_le_bytes(field(bytes, 4));
        if version != VERSION {
            return Err(FrameError::Version { got: version });
        }
        let (got, want) = (crc32c::crc32c(&bytes[..44]), u32::from_le_bytes(field(bytes, 44)));
        if got != want {
            return Err(FrameError::HeaderCrc { got, want });
        }
        let payload_bytes = u64::from_le_bytes(field(bytes, 32));
        check_length(payload_bytes)?;
        Ok(Self {
            operation: Operation::from_code(bytes[6])?,
            generation: Generation(u64::from_le_bytes(field(bytes, 8))),
            from: CellId(u32::from_le_bytes(field(bytes, 16))),
            to: CellId(u32::from_le_bytes(field(bytes, 20))),
            sequence: u64::from_le_bytes(field(bytes, 24)),
            payload_bytes,
            piece_crc: u32::from_le_bytes(field(bytes, 40)),
        })
    }
}

/// Whether a piece that arrived is the one that was sent.
pub(super) fn check_piece(piece: &[u8], want: u32) -> Result<(), FrameError> {
    let got = crc32c::crc32c(piece);
    if got != want {
        return Err(FrameError::PayloadCrc { got, want });
    }
    Ok(())
}

/// Whether a message of this length may be sent at all.
pub(super) fn check_length(payload_bytes: u64) -> Result<(), FrameError> {
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(FrameError::TooLong { got: payload_bytes });
    }
    Ok(())
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the offsets are constants inside the header")
}

impl Operation {
    const ALL: [Self; 8] = [
        Self::Send,
        Self::AllToAll,
        Self::AllReduce,
        Self::ReduceScatter,
        Self::AllGather,
        Self::Broadcast,
        Self::Goodbye,
        Self::Abort,
    ];

    fn from_code(code: u8) -> Result<Self, FrameError> {
        let known = Self::ALL.into_iter().find(|operation| *operation as u8 == code);
        known.ok_or(FrameError::Operation { got: code })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Send => "send",
            Self::AllToAll => "all-to-all",
            Self::AllReduce => "all-reduce",
            Self::ReduceScatter => "reduce-scatter",
            Self::AllGather => "all-gather",
            Self::Broadcast => "broadcast",
            Self::Goodbye => "goodbye",
            Self::Abort => "abort",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(payload: &[u8]) -> Header {
        Header {
            operation: Operation::AllReduce,
            generation: Generation(7),
            from: CellId(3),
            to: CellId(5),
            sequence: 41,
            payload_bytes: payload.len() as u64,
            piece_crc: crc32c::crc32c(payload),
        }
    }

    #[test]
    fn a_header_survives_the_wire_with_every_operation() {
        for operation in Operation::ALL {
            let sent = Header { operation, ..header(b"tokens") };
            assert_eq!(Header::decode(&sent.encode()), Ok(sent));
        }
        assert_eq!(check_piece(b"tokens", header(b"tokens").piece_crc), Ok(()));
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_noticed() {
        let (good, payload) = (header(b"tokens").encode(), *b"tokens");
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bytes).is_err(), "bit {bit} of the header");
        }
        for bit in 0..payload.len() * 8 {
            let mut bytes = payload;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = check_piece(&bytes, header(&payload).piece_crc).unwrap_err();
            assert!(matches!(error, FrameError::PayloadCrc { .. }), "bit {bit} of the payload");
        }
    }

    #[test]
    fn each_corruption_is_named() {
        let check = |change: &dyn Fn(&mut [u8; HEADER_BYTES]), want: &str| {
            let mut bytes = header(b"x").encode();
            change(&mut bytes);
            let crc = crc32c::crc32c(&bytes[..44]);
            bytes[44..].copy_from_slice(&crc.to_le_bytes());
            let got = Header::decode(&bytes).unwrap_err().to_string();
            assert!(got.contains(want), "{got}");
        };
        check(&|bytes| bytes[0] = b'X', "starts with");
        check(&|bytes| bytes[4] = 9, "frame version 9, want 2");
        check(&|bytes| bytes[6] = 99, "unknown operation 99");
        check(&|bytes| bytes[39] = 1, "at most 1073741824 are allowed");
        let cut = FrameError::Truncated { got: 3, want: 6 }.to_string();
        assert_eq!(cut, "message of 3 bytes, the header says 6");
    }
}
