//! The first words of a connection between two workers: each proves that it knows the run's secret
//! and belongs to the same run and generation, before anything else is read or allocated. Vaults begin
//! with the same words under another magic, and without a generation. Where workers have certificates
//! these words are said inside TLS, and the id that is claimed must be the certificate's.
//!
//! 1. dialer: magic, version, hash of the run, generation, its id, the id it wants, 32 random bytes
//! 2. acceptor: "go on" and 32 random bytes, or a refusal in words
//! 3. dialer: keyed blake3 over all of the above and the word "dialer"
//! 4. acceptor: "go on" and the same with the word "acceptor", or a refusal in words

use std::fs::File;
use std::io::{ErrorKind, Read, Write};

use shoal_plan::plan::{Generation, RunId, WorkerId};

use super::channel::{self, Channel};
use super::deadline::Deadline;

/// Opens a connection of the data plane.
const DATA_MAGIC: [u8; 8] = *b"SHOALNET";
/// Opens a connection to a vault, which outlives generations.
const VAULT_MAGIC: [u8; 8] = *b"SHOALVLT";
const VERSION: u16 = 2;
const HELLO_BYTES: usize = 8 + 2 + 32 + 8 + 4 + 4 + 32;
const GO_ON: u8 = 0;
const REFUSED: u8 = 1;
const REASON_BYTES_MAX: usize = 512;

/// Who this worker is, to its peers.
#[derive(Clone)]
pub(crate) struct Identity {
    magic: [u8; 8],
    run: [u8; 32],
    secret: [u8; 32],
    generation: Generation,
    me: WorkerId,
}

type Nonce = [u8; 32];

/// Why a handshake did not end well.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Somebody decided so, here or there; otherwise the connection merely broke.
    pub(crate) decided: bool,
    pub(crate) reason: String,
}

impl<T: ToString> From<T> for Refusal {
    fn from(cause: T) -> Self {
        Self { decided: false, reason: cause.to_string() }
    }
}

pub(super) fn decided(reason: String) -> Refusal {
    Refusal { decided: true, reason }
}

/// The first message: all that both sides later sign, but for the acceptor's nonce.
struct Hello {
    run: [u8; 32],
    generation: Generation,
    from: WorkerId,
    to: WorkerId,
    nonce: Nonce,
}

impl Identity {
    pub(crate) fn new(
        run: &RunId,
        secret: &[u8; 32],
        generation: Generation,
        me: WorkerId,
    ) -> Self {
        let run = *blake3::hash(run.0.as_bytes()).as_bytes();
        Self { magic: DATA_MAGIC, run, secret: *secret, generation, me }
    }

    /// Of a member of the run, whatever its generation.
    pub(crate) fn of_vault(run: &RunId, secret: &[u8; 32], me: WorkerId) -> Self {
        Self { magic: VAULT_MAGIC, ..Self::new(run, secret, Generation(0), me) }
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    pub(crate) fn me(&self) -> WorkerId {
        self.me
    }

    fn proof(&self, role: &str, hello: &[u8; HELLO_BYTES], nonce: &Nonce) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(role.as_bytes()).update(hello).update(nonce);
        hasher.finalize()
    }

    /// Why this hello cannot come from a member of this mesh.
    fn objection(&self, hello: &Hello) -> Option<String> {
        if hello.run != self.run {
            return Some("it belongs to another run".into());
        }
        if hello.generation != self.generation {
            return Some(format!("it is of {}, want {}", hello.generation, self.generation));
        }
        if hello.to != self.me {
            return Some(format!("it looks for {}, this is {}", hello.to, self.me));
        }
        None
    }
}

/// Opens a connection to `peer`.
pub(crate) fn dial(
    channel: &Channel,
    identity: &Identity,
    peer: WorkerId,
    deadline: Deadline,
) -> Result<(), Refusal> {
    let hello = Hello {
        run: identity.run,
        generation: identity.generation,
        from: identity.me,
        to: peer,
        nonce: nonce()?,
    }
    .encode(identity.magic);
    write(channel, &hello, deadline)?;
    read_verdict(channel, deadline)?;
    let mut their_nonce = [0; 32];
    read(channel, &mut their_nonce, deadline)?;
    write(channel, identity.proof("dialer", &hello, &their_nonce).as_bytes(), deadline)?;
    read_verdict(channel, deadline)?;
    let mut proof = [0; 32];
    read(channel, &mut proof, deadline)?;
    // `Hash` compares in constant time.
    if blake3::Hash::from_bytes(proof) != identity.proof("acceptor", &hello, &their_nonce) {
        return Err(decided(format!("{peer} does not know the run's secret")));
    }
    Ok(())
}

/// Answers a connection. `claim` decides, once the peer has proved who it is, whether it is wanted.
/// On an error the peer has been told the reason and the connection is of no more use.
pub(crate) fn accept(
    channel: &Channel,
    identity: &Identity,
    claim: impl FnOnce(WorkerId) -> Result<(), String>,
    deadline: Deadline,
) -> Result<WorkerId, Refusal> {
    let mut bytes = [0; HELLO_BYTES];
    read(channel, &mut bytes, deadline)?;
    let hello = match Hello::decode(&bytes, identity.magic) {
        Ok(hello) => hello,
        Err(reason) => return refuse(channel, reason, deadline),
    };
    if let Some(reason) = identity.objection(&hello).or_else(|| channel.objection(hello.from)) {
        return refuse(channel, reason, deadline);
    }
    let nonce = nonce()?;
    let mut answer = vec![GO_ON];
    answer.extend_from_slice(&nonce);
    write(channel, &answer, deadline)?;
    let mut proof = [0; 32];
    read(channel, &mut proof, deadline)?;
    if blake3::Hash::from_bytes(proof) != identity.proof("dialer", &bytes, &nonce) {
        return refuse(channel, "it does not know the run's secret".into(), deadline);
    }
    if let Err(reason) = claim(hello.from) {
        return refuse(channel, reason, deadline);
    }
    let mut answer = vec![GO_ON];
    answer.extend_from_slice(identity.proof("acceptor", &bytes, &nonce).as_bytes());
    write(channel, &answer, deadline)?;
    Ok(hello.from)
}

impl Hello {
    fn encode(&self, magic: [u8; 8]) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&magic);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..42].copy_from_slice(&self.run);
        bytes[42..50].copy_from_slice(&self.generation.0.to_le_bytes());
        bytes[50..54].copy_from_slice(&self.from.0.to_le_bytes());
        bytes[54..58].copy_from_slice(&self.to.0.to_le_bytes());
        bytes[58..].copy_from_slice(&self.nonce);
        bytes
    }

    fn decode(bytes: &[u8; HELLO_BYTES], magic: [u8; 8]) -> Result<Self, String> {
        fn field<const N: usize>(bytes: &[u8; HELLO_BYTES], at: usize) -> [u8; N] {
            bytes[at..at + N].try_into().expect("the offsets are constants inside the hello")
        }
        if field(bytes, 0) != magic {
            return Err("it does not speak this port's protocol of shoal".into());
        }
        let version = u16::from_le_bytes(field(bytes, 8));
        if version != VERSION {
            return Err(format!(
                "it speaks version {version} of the data protocol, want {VERSION}"
            ));
        }
        Ok(Self {
            run: field(bytes, 10),
            generation: Generation(u64::from_le_bytes(field(bytes, 42))),
            from: WorkerId(u32::from_le_bytes(field(bytes, 50))),
            to: WorkerId(u32::from_le_bytes(field(bytes, 54))),
            nonce: field(bytes, 58),
        })
    }
}

fn refuse(channel: &Channel, reason: String, deadline: Deadline) -> Result<WorkerId, Refusal> {
    let text = &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)];
    let mut bytes = vec![REFUSED];
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text);
    // The peer may be gone already; the reason to refuse it stays the same.
    let _ = write(channel, &bytes, deadline);
    Err(decided(reason))
}

fn read_verdict(channel: &Channel, deadline: Deadline) -> Result<(), Refusal> {
    let mut verdict = [0];
    read(channel, &mut verdict, deadline)?;
    match verdict[0] {
        GO_ON => Ok(()),
        REFUSED => {
            let mut length = [0; 2];
            read(channel, &mut length, deadline)?;
            let length = usize::from(u16::from_le_bytes(length)).min(REASON_BYTES_MAX);
            let mut reason = vec![0; length];
            read(channel, &mut reason, deadline)?;
            Err(decided(format!("refused: {}", printable(&reason))))
        }
        other => Err(decided(format!("the peer answered the handshake with {other}, want 0 or 1"))),
    }
}

fn read(mut channel: &Channel, bytes: &mut [u8], deadline: Deadline) -> Result<(), Refusal> {
    let mut done = 0;
    while done < bytes.len() {
        let left = deadline.left().ok_or("the handshake took too long")?;
        channel.stream().set_read_timeout(Some(left))?;
        match channel.read(&mut bytes[done..]) {
            Ok(0) => return Err("the connection closed during the handshake".into()),
            Ok(n) => done += n,
            Err(error) if is_pause(error.kind()) => {}
            Err(error) => {
                return Err(channel::refused(&error).unwrap_or_else(|| error.into()));
            }
        }
    }
    Ok(())
}

fn write(mut channel: &Channel, bytes: &[u8], deadline: Deadline) -> Result<(), Refusal> {
    let mut done = 0;
    while done < bytes.len() {
        let left = deadline.left().ok_or("the handshake took too long")?;
        channel.stream().set_write_timeout(Some(left))?;
        match channel.write(&bytes[done..]) {
            Ok(0) => return Err("the connection closed during the handshake".into()),
            Ok(n) => done += n,
            Err(error) if is_pause(error.kind()) => {}
            Err(error) => {
                return Err(channel::refused(&error).unwrap_or_else(|| error.into()));
            }
        }
    }
    Ok(())
}

/// Words from outside, without control characters: they reach logs and terminals.
pub(crate) fn printable(words: &[u8]) -> String {
    String::from_utf8_lossy(words).replace(char::is_control, "\u{fffd}")
}

/// Whether a socket only ran out of its time-out or was interrupted.
pub(crate) fn is_pause(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn nonce() -> Result<Nonce, String> {
    let mut nonce = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut nonce))
        .map_err(|error| format!("no random bytes from /dev/urandom: {error}"))?;
    Ok(nonce)
}
