//! A relay and those that come to it, over real connections: who meets, who is refused, and where it ends.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::SystemTime;

use shoal_plan::plan::Generation;
use shoal_trust::{Authority, Credentials, Identity, Request, Role as Who, server_name};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::probing::neighbour::{Listening, listen};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DATA: Purpose = Purpose::Data(Generation(1));

struct Reef {
    authority: Authority,
    directory: TempDir,
    relay: Relay,
    port: Listening,
}

#[expect(clippy::disallowed_methods, reason = "rustls asks the system, too")]
fn now() -> SystemTime {
    SystemTime::now()
}

impl Reef {
    fn new() -> Self {
        let authority = Authority::create(&"test".parse().unwrap(), now()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let relay = Relay::default();
        let place = directory.path().join("relay");
        member(&authority, "relay", Who::Worker).save(&place).unwrap();
        let port = listen(HERE, 0, &place, relay.clone()).unwrap();
        let reef = Self { authority, directory, relay, port };
        reef.serve(&["run"], &[("a", "b")]);
        reef
    }

    fn serve(&self, runs: &[&str], pairs: &[(&str, &str)]) {
        let pairs: BTreeSet<_> =
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let run = |run: &&str| (RunId((*run).to_owned()), pairs.clone());
        self.relay.serve(runs.iter().map(run).collect());
    }

    /// TLS with the relay, and the question.
    async fn asks(&self, me: &str, asked: &Asked) -> client::TlsStream<TcpStream> {
        let credentials = member(&self.authority, me, Who::Worker);
        let mut config = (*credentials.client().unwrap()).clone();
        config.alpn_protocols = vec![shoal_proto::relay::PROTOCOL.to_vec()];
        let stream = TcpStream::connect((HERE, self.port.port)).await.unwrap();
        let relay = Identity { name: "relay".parse().unwrap(), role: Who::Worker };
        let connector = TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(server_name(&relay), stream).await.unwrap();
        stream.write_all(&asked.encode().unwrap()).await.unwrap();
        stream
    }

    async fn refused(&self, me: &str, asked: &Asked) -> String {
        let mut stream = self.asks(me, asked).await;
        assert!([REFUSED, NOBODY].contains(&stream.read_u8().await.unwrap()));
        let mut why = vec![0; stream.read_u16_le().await.unwrap().into()];
        stream.read_exact(&mut why).await.unwrap();
        String::from_utf8(why).unwrap()
    }

    fn here(&self) -> usize {
        self.relay.ends().here
    }

    async fn until(&self, here: usize) {
        while self.here() != here {
            tokio::task::yield_now().await;
        }
    }
}

fn member(authority: &Authority, name: &str, role: Who) -> Credentials {
    let name: Name = name.parse().unwrap();
    let request = Request::new(&name).unwrap();
    let life = Duration::from_mins(10);
    let signed = authority.sign(request.pem(), &Identity { name, role }, life, now()).unwrap();
    Credentials::new(authority.certificate_pem(), &signed.certificate_pem, request).unwrap()
}

fn asked(run: &str, purpose: Purpose, role: Role, peer: &str) -> Asked {
    Asked { run: RunId(run.to_owned()), purpose, role, peer: peer.parse().unwrap() }
}

/// Leaves the relay's TLS.
async fn goes_on(mut stream: client::TlsStream<TcpStream>) -> TcpStream {
    assert_eq!(stream.read_u8().await.unwrap(), GO_ON);
    let (mut raw, _) = stream.into_inner();
    raw.write_all(&[BEGIN]).await.unwrap();
    raw
}

/// `b` waits, `a` calls.
async fn met(reef: &Reef, purpose: Purpose) -> (TcpStream, TcpStream) {
    let b = reef.asks("b", &asked("run", purpose, Role::Waits, "a")).await;
    let a = reef.asks("a", &asked("run", purpose, Role::Calls, "b")).await;
    let (a, b) = tokio::join!(goes_on(a), goes_on(b));
    (a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ends_meet_and_all_bytes_pass_both_ways_to_the_last() {
    let reef = Reef::new();
    let (mut a, mut b) = met(&reef, DATA).await;
    let (mut c, mut d) = met(&reef, Purpose::Vault).await;
    let sent: Vec<u8> =
        (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (up, down) = (sent.clone(), sent.clone());
    let ends = async {
        // An end that says no more hears what is still to come.
        let (mut read_a, mut write_a) = a.split();
        let (mut read_b, mut write_b) = b.split();
        let (mut heard, mut answered) = (Vec::new(), Vec::new());
        let (_, _, (), ()) = tokio::join!(
            async { read_b.read_to_end(&mut heard).await.unwrap() },
            async { read_a.read_to_end(&mut answered).await.unwrap() },
            async {
                write_a.write_all(&up).await.unwrap();
                write_a.shutdown().await.unwrap();
            },
            async {
                write_b.write_all(&down).await.unwrap();
                write_b.shutdown().await.unwrap();
            },
        );
        assert!(heard == sent && answered == sent);
    };
    ends.await;
    c.write_all(b"snapshot").await.unwrap();
    let mut heard = [0; 8];
    d.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"snapshot");
    drop((c, d));
    reef.until(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_of_a_served_pair_is_refused_and_who_calls_in_vain_is_told() {
    let reef = Reef::new();
    let (calls, waits) = (Role::Calls, Role::Waits);
    for (me, run, peer) in [("c", "run", "a"), ("a", "run", "c"), ("a", "other", "b")] {
        let why = reef.refused(me, &asked(run, DATA, calls, peer)).await;
        assert!(why.contains("does not serve"), "{why}");
    }
    // Those that want something else do not meet.
    let waiting = reef.asks("b", &asked("run", Purpose::Vault, waits, "a")).await;
    let stale = reef.asks("b", &asked("run", Purpose::Data(Generation(2)), waits, "a")).await;
    let why = reef.refused("a", &asked("run", DATA, calls, "b")).await;
    assert_eq!(why, "b has not come to the relay");
    drop((waiting, stale));
    reef.until(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_ends_with_the_run_and_an_end_that_goes_takes_the_other_with_it() {
    let reef = Reef::new();
    let (mut a, b) = met(&reef, DATA).await;
    drop(b);
    assert_eq!(a.read(&mut [0]).await.unwrap_or(0), 0);
    drop(a);
    reef.until(0).await;
    let (mut a, mut b) = met(&reef, DATA).await;
    let mut waiting = reef.asks("b", &asked("run", DATA, Role::Waits, "a")).await;
    reef.until(3).await;
    // The pair has another relay from now on: what is open goes on, and nothing is opened.
    reef.serve(&["run"], &[]);
    a.write_all(b"on").await.unwrap();
    b.read_exact(&mut [0; 2]).await.unwrap();
    let why = reef.refused("a", &asked("run", DATA, Role::Calls, "b")).await;
    assert!(why.contains("does not serve"), "{why}");
    reef.serve(&[], &[]);
    for end in [&mut a, &mut b] {
        assert_eq!(end.read(&mut [0]).await.unwrap_or(0), 0);
    }
    assert!(waiting.read_u8().await.is_err());
    reef.until(0).await;
    assert!(reef.directory.path().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_too_many_that_wait_the_oldest_goes_and_one_that_is_gone_is_passed_over() {
    let reef = Reef::new();
    let question = asked("run", DATA, Role::Waits, "a");
    let mut oldest = reef.asks("b", &question).await;
    reef.until(1).await;
    let gone = reef.asks("b", &question).await;
    reef.until(2).await;
    let mut kept = Vec::new();
    for n in 3..=WAITING_MAX {
        kept.push(reef.asks("b", &question).await);
        reef.until(n).await;
    }
    kept.push(reef.asks("b", &question).await);
    assert_eq!(oldest.read_u8().await.unwrap(), NOBODY);
    drop(gone);
    reef.until(WAITING_MAX - 1).await;
    let a = reef.asks("a", &asked("run", DATA, Role::Calls, "b")).await;
    let (mut a, mut b) = tokio::join!(goes_on(a), goes_on(kept.remove(0)));
    a.write_all(b"x").await.unwrap();
    b.read_exact(&mut [0]).await.unwrap();
}
