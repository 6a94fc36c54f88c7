//! The way to a coordinator, one step after the other, so that what fails has a name.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error};
use shoal_trust::{Credentials, Pin, SERVER_NAME, pinned};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

/// Of each step.
const PATIENCE: Duration = Duration::from_secs(5);

/// What HTTP/2 begins with, and settings that change nothing: after that a server that lets us in speaks.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// How far one got. Steps after the one that failed are `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reached {
    pub resolved: Option<Result<Vec<IpAddr>, String>>,
    pub tcp: Option<Result<Connected, String>>,
    pub tls: Option<Result<(), Untrusted>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Connected {
    pub from: IpAddr,
    pub to: SocketAddr,
    pub seconds: f64,
}

/// Why TLS did not come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Untrusted {
    /// The coordinator's certificate is of another authority than the one that is believed here.
    OtherAuthority,
    /// By this machine's clock, the coordinator's certificate is over, or has not begun.
    TheirTime,
    /// The coordinator says that ours is over.
    OurTime,
    /// The coordinator does not know the authority of ours.
    OursUnknown,
    /// Ours was denied.
    Denied,
    /// In the words of whoever failed.
    Other(String),
}

/// By what a coordinator is believed.
#[derive(Clone, Copy, Debug)]
pub enum Trusting<'a> {
    /// Nothing yet: TLS is not tried.
    Nobody,
    /// The certificate of this rig, which is shown, too.
    Member(&'a Credentials),
    /// An invitation.
    Pinned(Pin),
}

/// Goes as far as it gets.
pub async fn reach(address: &str, trusting: Trusting<'_>) -> Reached {
    let config = match trusting {
        Trusting::Nobody => None,
        Trusting::Member(credentials) => Some(credentials.client()),
        Trusting::Pinned(pin) => Some(Ok(pinned(pin))),
    };
    let mut reached = Reached::default();
    let found = match timeout(PATIENCE, lookup_host(address)).await {
        Ok(Ok(found)) => Ok(found.collect::<Vec<_>>()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    let places = found.as_ref().ok().cloned().unwrap_or_default();
    reached.resolved = Some(found.map(|places| places.iter().map(SocketAddr::ip).collect()));
    let mut stream = None;
    for place in places {
        match connect(place).await {
            Ok((connected, open)) => {
                (reached.tcp, stream) = (Some(Ok(connected)), Some(open));
                break;
            }
            Err(why) => reached.tcp = Some(Err(why)),
        }
    }
    if let (Some(stream), Some(config)) = (stream, config) {
        let silent = || Untrusted::Other(format!("no answer within {} s", PATIENCE.as_secs()));
        reached.tls = Some(match config {
            Ok(config) => {
                let spoken = timeout(PATIENCE, speak(stream, config)).await;
                spoken.unwrap_or_else(|_| Err(silent()))
            }
            Err(error) => Err(Untrusted::Other(error.to_string())),
        });
    }
    reached
}

async fn connect(place: SocketAddr) -> Result<(Connected, TcpStream), String> {
    let since = Instant::now();
    match timeout(PATIENCE, TcpStream::connect(place)).await {
        Ok(Ok(stream)) => {
            let seconds = since.elapsed().as_secs_f64();
            let from = stream.local_addr().map_err(|error| error.to_string())?.ip();
            Ok((Connected { from, to: place, seconds }, stream))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// Under TLS 1.3 a client hears only after its own handshake whether its certificate was taken.
async fn speak(stream: TcpStream, config: Arc<ClientConfig>) -> Result<(), Untrusted> {
    let mut config = (*config).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(SERVER_NAME).expect("a constant that is a name");
    let mut stream =
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(because)?;
    // A server that has hung up already has said why, which is read below.
    let _ = stream.write_all(PREFACE).await;
    let _ = stream.flush().await;
    match stream.read(&mut [0; 64]).await {
        Ok(0) => Err(Untrusted::Other("it hung up without a word".to_owned())),
        Ok(_) => Ok(()),
        Err(error) => Err(because(error)),
    }
}

fn because(error: io::Error) -> Untrusted {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => named(error),
        None => Untrusted::Other(error.to_string()),
    }
}

fn named(error: &Error) -> Untrusted {
    use CertificateError::{
        Expired, ExpiredContext, NotValidYet, NotValidYetContext, UnknownIssuer,
    };
    if let Error::InvalidCertificate(why) = error {
        if *why == UnknownIssuer {
            return Untrusted::OtherAuthority;
        }
        let time = |why: &_| {
            matches!(why, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
        };
        if time(why) {
            return Untrusted::TheirTime;
        }
    }
    if let Error::AlertReceived(alert) = error {
        let ours = [
            (AlertDescription::CertificateExpired, Untrusted::OurTime),
            (AlertDescription::UnknownCA, Untrusted::OursUnknown),
            (AlertDescription::CertificateRevoked, Untrusted::Denied),
        ];
        if let Some((_, why)) = ours.into_iter().find(|(known, _)| known == alert) {
            return why;
        }
    }
    Untrusted::Other(shoal_trust::explain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_tls_to_fail_has_its_name() {
        let of = |error| because(io::Error::new(io::ErrorKind::InvalidData, error));
        let certificate = |why| of(Error::InvalidCertificate(why));
        assert_eq!(certificate(CertificateError::UnknownIssuer), Untrusted::OtherAuthority);
        assert_eq!(certificate(CertificateError::Expired), Untrusted::TheirTime);
        assert_eq!(certificate(CertificateError::NotValidYet), Untrusted::TheirTime);
        let alert = |alert| of(Error::AlertReceived(alert));
        assert_eq!(alert(AlertDescription::CertificateExpired), Untrusted::OurTime);
        assert_eq!(alert(AlertDescription::UnknownCA), Untrusted::OursUnknown);
        assert_eq!(alert(AlertDescription::CertificateRevoked), Untrusted::Denied);
        assert!(matches!(alert(AlertDescription::HandshakeFailure), Untrusted::Other(_)));
    }

    #[tokio::test]
    async fn what_is_not_there_stops_at_its_step() {
        let nowhere = reach("nobody.invalid:1", Trusting::Nobody).await;
        assert!(matches!(nowhere.resolved, Some(Err(_))) && nowhere.tcp.is_none());
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let closed = reach(&port.to_string(), Trusting::Nobody).await;
        assert!(matches!(closed.tcp, Some(Err(_))) && closed.tls.is_none(), "{closed:?}");
    }
}
