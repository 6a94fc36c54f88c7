//! The way to a peer over a relay, for whoever calls and for whoever waits: both dial out. What comes back is a socket
//! on which the two ends speak as over one of their own, their TLS included: the relay has no key to that.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConnection, Connection};
use shoal_plan::plan::{RunId, WorkerId};
use shoal_proto::relay::{
    Asked, BEGIN, GO_ON, NOBODY, PROTOCOL, Purpose, REASON_BYTES_MAX, REFUSED, Role,
};
use shoal_trust::{Identity, server_name};

use super::channel::{own_fault, shake_hands};
use super::deadline::Deadline;
use super::handshake::{Refusal, decided, is_pause, printable};
use super::mesh::notice_silence;
use super::trust::Trust;

/// To reach the relay, and as much for its TLS.
const CONNECT: Duration = Duration::from_secs(4);

/// How often one that waits looks whether it still should.
const LOOK: Duration = Duration::from_millis(100);

/// Between two rigs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relay {
    pub(crate) run: RunId,
    /// Who answers there: a rig, or the cluster's coordinator.
    pub(crate) identity: Identity,
    pub(crate) place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    At(SocketAddr),
    /// `HOST:PORT` of each of the cluster's doors: only the active one serves anybody.
    Doors(Vec<String>),
}

impl Place {
    /// Each address as it is said, tried in this order.
    fn addresses(&self) -> Vec<String> {
        match self {
            Self::At(address) => vec![address.to_string()],
            Self::Doors(addresses) => addresses.clone(),
        }
    }
}

fn connect(address: &str) -> Result<TcpStream, String> {
    let found = address.to_socket_addrs().map_err(|error| error.to_string())?;
    let mut why = "its name has no address".to_owned();
    for address in found {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

/// Why two did not meet.
#[derive(Debug)]
pub(crate) enum Unmet {
    /// The relay is not there, or does not serve them.
    Relay(Refusal),
    /// The other end has not come, or nobody waits for it any more.
    Peer(Refusal),
}

impl Unmet {
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Self::Relay(refusal) | Self::Peer(refusal) => refusal,
        }
    }
}

impl Relay {
    /// A socket whose other end is the peer's, once both have come. One that waits does so until `is_off`; the relay
    /// tells one that calls in vain.
    pub(crate) fn reach(
        &self,
        trust: &Trust,
        (peer, purpose, role): (WorkerId, Purpose, Role),
        is_off: &dyn Fn() -> bool,
    ) -> Result<TcpStream, Unmet> {
        let mut unmet = Unmet::Relay("it has no address".into());
        for address in self.place.addresses() {
            let named = |refusal: Refusal| {
                let reason =
                    format!("through the {} at {address}: {}", self.identity, refusal.reason);
                Refusal { reason, ..refusal }
            };
            match self.reach_there(&address, trust, (peer, purpose, role), is_off) {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(why)) => return Err(Unmet::Peer(named(why.into()))),
                Err(refusal) => unmet = Unmet::Relay(named(refusal)),
            }
        }
        Err(unmet)
    }

    /// The inner error: the other end is not there.
    fn reach_there(
        &self,
        address: &str,
        trust: &Trust,
        (peer, purpose, role): (WorkerId, Purpose, Role),
        is_off: &dyn Fn() -> bool,
    ) -> Result<Result<TcpStream, String>, Refusal> {
        let run = self.run.clone();
        let asked = Asked { run, purpose, role, peer: trust.expected(peer).map_err(decided)?.name };
        let asked = asked.encode().map_err(decided)?;
        let config = trust.open().and_then(|own| own.client()).map_err(own_fault)?;
        let mut config = (*config).clone();
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        let stream = connect(address)?;
        notice_silence(&stream)?;
        stream.set_nodelay(true)?;
        let connection = ClientConnection::new(Arc::new(config), server_name(&self.identity))?;
        let mut connection = Connection::from(connection);
        let deadline = Deadline::after(CONNECT);
        shake_hands(&mut connection, &stream, deadline)?;
        let mut words = Words { connection, stream: &stream };
        words.write(&asked)?;
        if let Some(why) = words.verdict(is_off)? {
            return Ok(Err(why));
        }
        // From here on the relay's own TLS is not spoken: it has said its last word, and hears this one in clear.
        (&stream).write_all(&[BEGIN])?;
        stream.set_read_timeout(None)?;
        Ok(Ok(stream))
    }
}

/// The relay's own TLS, for two words.
struct Words<'a> {
    connection: Connection,
    stream: &'a TcpStream,
}

impl Words<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.connection.writer().write_all(bytes)?;
        while self.connection.wants_write() {
            self.connection.write_tls(&mut self.stream)?;
        }
        Ok(())
    }

    /// Why the other end is not there, if it is not.
    fn verdict(&mut self, is_off: &dyn Fn() -> bool) -> Result<Option<String>, Refusal> {
        self.stream.set_read_timeout(Some(LOOK))?;
        let word = self.byte(is_off)?;
        if word == GO_ON {
            return Ok(None);
        }
        if ![REFUSED, NOBODY].contains(&word) {
            return Err(format!("it answered with {word}, want 0, 1 or 2").into());
        }
        let length = u16::from_le_bytes([self.byte(is_off)?, self.byte(is_off)?]);
        let length = usize::from(length).min(REASON_BYTES_MAX);
        let reason: Result<Vec<u8>, Refusal> = (0..length).map(|_| self.byte(is_off)).collect();
        let reason = printable(&reason?);
        if word == NOBODY { Ok(Some(reason)) } else { Err(reason.into()) }
    }

    fn byte(&mut self, is_off: &dyn Fn() -> bool) -> Result<u8, Refusal> {
        let mut byte = [0];
        loop {
            match self.connection.reader().read(&mut byte) {
                Ok(1) => return Ok(byte[0]),
                Ok(_) => return Err("it hung up".into()),
                Err(error) if is_pause(error.kind()) => {}
                Err(error) => return Err(error.into()),
            }
            if is_off() {
                return Err("nobody waits any more".into());
            }
            match self.connection.read_tls(&mut self.stream) {
                Ok(0) => return Err("it hung up".into()),
                Ok(_) => {
                    self.connection.process_new_packets()?;
                }
                Err(error) if is_pause(error.kind()) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
