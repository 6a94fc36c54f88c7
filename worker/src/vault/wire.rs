//! What is said to a vault, after the handshake: one request a connection.
//!
//! A request is a head of 128 bytes. `Put`: the vault answers with a verdict, then the bytes follow,
//! then comes a second verdict: it holds them. `Get`: the vault answers with a verdict, a head and
//! the bytes. `Wait`: the vault answers with a verdict, and some time later with a request of its own, over
//! the same connection. A verdict is one byte 0, or 1 and the reason in words (u16 length), or 2: held already.
//!
//! Head, little endian: kind 1, zero 3, generation 8, cell 4, standing 45 (step 8, sequences 8,
//! skips 4, rollbacks 4, best known 1, its step 8, its loss 8, stale 4), length of the snapshot 8,
//! its blake3 32, zero 19, crc32c of the 124 bytes before 4.

use std::io::{self, Read, Write};
use std::time::Duration;

use shoal_plan::grid::CellId;
use shoal_plan::plan::Generation;
use shoal_plan::standing::{Best, Standing};

use crate::comm::channel::Channel;
use crate::comm::deadline::Deadline;
use crate::comm::handshake::{is_pause, printable};

/// How long a peer may move no byte.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How often one that waits looks whether it still should.
const PAUSE: Duration = Duration::from_millis(50);

/// Bytes that are sent or received, and hashed, at a time.
const CHUNK_BYTES: usize = 256 << 10;

const HEAD_BYTES: usize = 128;
const CRC_AT: usize = HEAD_BYTES - 4;
const REASON_BYTES_MAX: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Put = 1,
    Get = 2,
    /// The answer to `Get`.
    Snapshot = 3,
    /// Nothing is wanted: whoever was dialed may ask over this connection, later.
    Wait = 4,
}

/// Everything about a snapshot but its bytes. Of a `Get` the standing has its step alone, and the
/// length is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) generation: Generation,
    pub(super) cell: CellId,
    pub(super) standing: Standing,
    pub(super) bytes: u64,
    pub(super) blake3: blake3::Hash,
}

/// Why a conversation ended early.
#[derive(Debug)]
pub(super) enum Fault {
    /// The other side decided so, and said why.
    Refused(String),
    /// The connection broke, or nothing came any more.
    Lost(String),
    /// Bytes arrived that were not sent.
    Damaged { got: blake3::Hash },
    /// It is there already.
    Needless,
    /// This side no longer wants it.
    Stopped,
}

impl Head {
    fn encode(&self) -> [u8; HEAD_BYTES] {
        let Standing { step, sequences, skips, rollbacks, best, stale } = self.standing;
        let mut bytes = vec![self.kind as u8, 0, 0, 0];
        bytes.extend(self.generation.0.to_le_bytes());
        bytes.extend(self.cell.0.to_le_bytes());
        bytes.extend(step.to_le_bytes());
        bytes.extend(sequences.to_le_bytes());
        bytes.extend(skips.to_le_bytes());
        bytes.extend(rollbacks.to_le_bytes());
        bytes.push(u8::from(best.is_some()));
        let best = best.unwrap_or(Best { step: 0, loss: 0.0 });
        bytes.extend(best.step.to_le_bytes());
        bytes.extend(best.loss.to_le_bytes());
        bytes.extend(stale.to_le_bytes());
        bytes.extend(self.bytes.to_le_bytes());
        bytes.extend(self.blake3.as_bytes());
        let mut head = [0; HEAD_BYTES];
        head[..bytes.len()].copy_from_slice(&bytes);
        let crc = crc32c::crc32c(&head[..CRC_AT]);
        head[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        head
    }

    fn decode(head: &[u8; HEAD_BYTES]) -> Result<Self, String> {
        let (want, got) =
            (u32::from_le_bytes(field(head, CRC_AT)), crc32c::crc32c(&head[..CRC_AT]));
        if got != want {
            return Err(format!("a head was corrupted: crc32c {got:08x}, want {want:08x}"));
        }
        let eight = |at| u64::from_le_bytes(field(head, at));
        let four = |at| u32::from_le_bytes(field(head, at));
        let kinds = [Kind::Put, Kind::Get, Kind::Snapshot, Kind::Wait];
        let kind = kinds.into_iter().find(|kind| *kind as u8 == head[0]);
        let best = Best { step: eight(41), loss: f64::from_bits(eight(49)) };
        Ok(Self {
            kind: kind.ok_or_else(|| format!("a head of the unknown kind {}", head[0]))?,
            generation: Generation(eight(4)),
            cell: CellId(four(12)),
            standing: Standing {
                step: eight(16),
                sequences: eight(24),
                skips: four(32),
                rollbacks: four(36),
                best: (head[40] != 0).then_some(best),
                stale: four(57),
            },
            bytes: eight(61),
            blake3: blake3::Hash::from_bytes(field(head, 69)),
        })
    }
}

fn field<const N: usize>(bytes: &[u8; HEAD_BYTES], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the offsets are constants inside the head")
}

/// A connection on which nobody waits longer than `PATIENCE` without a byte, nor when it is over.
pub(super) struct Line<'a> {
    channel: &'a Channel,
    is_over: &'a dyn Fn() -> bool,
}

impl<'a> Line<'a> {
    pub(super) fn new(channel: &'a Channel, is_over: &'a dyn Fn() -> bool) -> Result<Self, Fault> {
        let stream = channel.stream();
        let tuned = (stream.set_nodelay(true))
            .and_then(|()| stream.set_read_timeout(Some(PAUSE)))
            .and_then(|()| stream.set_write_timeout(Some(PAUSE)));
        tuned.map_err(|error| Fault::Lost(error.to_string()))?;
        Ok(Self { channel, is_over })
    }

    pub(super) fn send_head(&mut self, head: &Head) -> Result<(), Fault> {
        self.write(&head.encode())
    }

    pub(super) fn recv_head(&mut self) -> Result<Head, Fault> {
        let mut head = [0; HEAD_BYTES];
        self.read(&mut head)?;
        Head::decode(&head).map_err(Fault::Lost)
    }

    /// The same, however long nothing comes.
    pub(super) fn wait_for_head(&mut self) -> Result<Head, Fault> {
        let (mut head, mut channel) = ([0; HEAD_BYTES], self.channel);
        loop {
            match channel.read(&mut head[..1]) {
                Ok(0) => return Err(Fault::Lost("the connection closed".to_owned())),
                Ok(_) => break,
                Err(error) if is_pause(error.kind()) && (self.is_over)() => {
                    return Err(Fault::Stopped);
                }
                Err(error) if is_pause(error.kind()) => {}
                Err(error) => return Err(Fault::Lost(error.to_string())),
            }
        }
        self.read(&mut head[1..])?;
        Head::decode(&head).map_err(Fault::Lost)
    }

    pub(super) fn send_body(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        bytes.chunks(CHUNK_BYTES).try_for_each(|chunk| self.write(chunk))
    }

    /// Fills `bytes` and holds them against the hash.
    pub(super) fn recv_body(&mut self, bytes: &mut [u8], want: blake3::Hash) -> Result<(), Fault> {
        let mut hasher = blake3::Hasher::new();
        for chunk in bytes.chunks_mut(CHUNK_BYTES) {
            self.read(chunk)?;
            hasher.update(chunk);
        }
        let got = hasher.finalize();
        if got == want { Ok(()) } else { Err(Fault::Damaged { got }) }
    }

    pub(super) fn agree(&mut self) -> Result<(), Fault> {
        self.write(&[0])
    }

    pub(super) fn decline(&mut self) -> Result<(), Fault> {
        self.write(&[2])
    }

    pub(super) fn refuse(&mut self, reason: &str) -> Result<(), Fault> {
        let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)];
        let mut bytes = vec![1];
        bytes.extend((reason.len() as u16).to_le_bytes());
        bytes.extend(reason);
        self.write(&bytes)
    }

    /// The other side's verdict; an error if it refused.
    pub(super) fn verdict(&mut self) -> Result<(), Fault> {
        let mut verdict = [0];
        self.read(&mut verdict)?;
        match verdict[0] {
            0 => Ok(()),
            1 => {
                let mut length = [0; 2];
                self.read(&mut length)?;
                let length = usize::from(u16::from_le_bytes(length)).min(REASON_BYTES_MAX);
                let mut reason = vec![0; length];
                self.read(&mut reason)?;
                Err(Fault::Refused(printable(&reason)))
            }
            2 => Err(Fault::Needless),
            other => Err(Fault::Lost(format!("it answered with {other}, want 0, 1 or 2"))),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Fault> {
        let mut channel = self.channel;
        self.moved(bytes.len(), |done| channel.read(&mut bytes[done..]))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut channel = self.channel;
        self.moved(bytes.len(), |done| channel.write(&bytes[done..]))
    }

    /// Moves so many bytes, by calls that begin after those `done` and say how many more they moved.
    fn moved(
        &self,
        n_bytes: usize,
        mut more: impl FnMut(usize) -> io::Result<usize>,
    ) -> Result<(), Fault> {
        let mut done = 0;
        let mut patience = Deadline::after(PATIENCE);
        while done < n_bytes {
            match more(done) {
                Ok(0) => return Err(Fault::Lost("the connection closed early".to_owned())),
                Ok(n) => {
                    done += n;
                    patience = Deadline::after(PATIENCE);
                }
                Err(error) if is_pause(error.kind()) => self.still_wanted(patience)?,
                Err(error) => return Err(Fault::Lost(error.to_string())),
            }
        }
        Ok(())
    }

    fn still_wanted(&self, patience: Deadline) -> Result<(), Fault> {
        if (self.is_over)() {
            return Err(Fault::Stopped);
        }
        if patience.left().is_none() {
            let waited = PATIENCE.as_secs();
            return Err(Fault::Lost(format!("it moved no byte for {waited} s")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_the_wire_and_every_flipped_bit_is_noticed() {
        let best = Some(Best { step: 7, loss: 0.1 + 0.2 });
        for best in [best, None] {
            let (step, sequences) = (9, u64::MAX - 1);
            let standing = Standing { step, sequences, skips: 2, rollbacks: 3, best, stale: 4 };
            let head = Head {
                kind: Kind::Put,
                generation: Generation(1 << 40),
                cell: CellId(77),
                standing,
                bytes: 1 << 33,
                blake3: blake3::hash(b"state"),
            };
            let good = head.encode();
            assert_eq!(Head::decode(&good), Ok(head));
            for bit in 0..8 * HEAD_BYTES {
                let mut bytes = good;
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(Head::decode(&bytes).is_err(), "bit {bit}");
            }
        }
    }
}
