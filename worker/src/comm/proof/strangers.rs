//! Connections with certificates: who is let in, who is not, and what is told; and that they carry
//! bytes as plain ones do.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};

use shoal_trust::{Identity as Certified, Role};

use super::over::{Cluster, Over, name};
use super::*;
use crate::comm::channel::Channel;
use crate::comm::deadline::Deadline;
use crate::comm::handshake::{self, Identity};
use crate::comm::trust::Trust;

const ME: WorkerId = WorkerId(1);
const PEER: WorkerId = WorkerId(0);

fn soon() -> Deadline {
    Deadline::after(TIMEOUTS.handshake)
}

/// Says all that a member says, with the certificate of this trust, and tells what came of it.
fn visit(address: SocketAddr, trust: Option<&Trust>) -> Result<(), String> {
    let stream = TcpStream::connect(address).unwrap();
    let identity = Identity::new(&run_id(), &SECRET, Generation(1), ME);
    let visited = Channel::dial(stream, trust, PEER, soon())
        .and_then(|channel| handshake::dial(&channel, &identity, PEER, soon()));
    visited.map_err(|refusal| refusal.reason)
}

#[test]
fn only_the_worker_that_the_plan_means_gets_in_and_the_wait_for_it_goes_on() {
    let (over, other) = (Over::tls(), Cluster::new());
    let Over::Tls(cluster) = &over else { unreachable!("it was just made") };
    let hosting = [0, 1];
    let (mut listeners, peers) = listen(&hosting);
    let address = peers[&PEER];
    let listener = listeners.remove(&PEER).unwrap();
    let acceptor = membership(&over, PEER, &hosting, &peers);
    let acceptor = thread::spawn(move || Mesh::open(acceptor, listener, TIMEOUTS).unwrap());

    // Without TLS: it is not even asked for the secret.
    let refusal = visit(address, None).unwrap_err();
    assert!(!refusal.contains("secret"), "{refusal}");
    // Of another authority, which it believes to be ours.
    let refusal = visit(address, Some(&other.trust(ME))).unwrap_err();
    assert!(refusal.contains("another authority signed it"), "{refusal}");
    // It knows the run's secret, is of this cluster, and is not the worker that it says it is.
    let refusal = visit(address, Some(&cluster.trust(WorkerId(2)))).unwrap_err();
    let want = "refused: worker-1 is the worker rig-1, and its certificate says rig-2";
    assert_eq!(refusal, want);
    // An admin may do much, but not compute. Its own door is past it.
    let ann = Certified { name: name(ME), role: Role::Admin };
    cluster.give(WorkerId(3), &ann);
    let refusal = visit(address, Some(&cluster.trust(WorkerId(3)))).unwrap_err();
    assert!(refusal.contains("want one for a worker"), "{refusal}");
    let stream = TcpStream::connect(address).unwrap();
    let refusal = as_admin(cluster, stream).unwrap_err();
    assert!(!refusal.is_empty());
    // Who says nothing keeps nobody waiting.
    let _silent = TcpStream::connect(address).unwrap();

    let listener = listeners.remove(&ME).unwrap();
    let dialer = membership(&over, ME, &hosting, &peers);
    let dialer = Mesh::open(dialer, listener, TIMEOUTS).unwrap();
    let acceptor = acceptor.join().unwrap();
    dialer.endpoint(CellId(1)).send(CellId(0), vec![42]).unwrap();
    assert_eq!(acceptor.endpoint(CellId(0)).recv(CellId(1)), Ok(vec![42]));
}

/// Past our own door: an admin's certificate on the data plane.
fn as_admin(cluster: &Cluster, stream: TcpStream) -> Result<(), String> {
    let credentials = shoal_trust::Credentials::open(&cluster.place(WorkerId(3))).unwrap();
    let peer = Certified { name: name(PEER), role: Role::Worker };
    let dialed = shoal_trust::server_name(&peer);
    let client = rustls::ClientConnection::new(credentials.client().unwrap(), dialed).unwrap();
    let mut client = rustls::StreamOwned::new(client, stream.try_clone().unwrap());
    stream.set_read_timeout(Some(TIMEOUTS.handshake)).unwrap();
    client.write_all(&[7; 90]).map_err(|error| error.to_string())?;
    let read = client.read(&mut [0; 33]).map_err(|error| error.to_string())?;
    drop(stream.shutdown(std::net::Shutdown::Both));
    if read == 0 { Err("closed".to_owned()) } else { Ok(()) }
}

#[test]
fn who_answers_must_be_who_was_dialed() {
    let over = Over::tls();
    let hosting = [0, 1];
    let (mut listeners, peers) = listen(&hosting);
    // The plan means rig-0, and rig-4 is there.
    let short = Timeouts { join: Duration::from_secs(1), ..TIMEOUTS };
    let listener = listeners.remove(&PEER).unwrap();
    let wrong = over.trust(WorkerId(4));
    let acceptor = Membership { trust: wrong, ..membership(&over, PEER, &hosting, &peers) };
    let acceptor = thread::spawn(move || Mesh::open(acceptor, listener, short).unwrap_err());
    let listener = listeners.remove(&ME).unwrap();
    let dialer = membership(&over, ME, &hosting, &peers);
    let error = Mesh::open(dialer, listener, short).unwrap_err().to_string();
    assert!(error.contains("worker-0 (its certificate is refused"), "{error}");
    assert!(error.contains("the certificate of worker rig-4 is for worker"), "{error}");
    let error = acceptor.join().unwrap().to_string();
    assert!(error.contains("it refused the connection, or the certificate"), "{error}");
}

#[test]
fn a_plan_without_a_name_and_credentials_that_are_gone_are_told() {
    let over = Over::tls();
    let Over::Tls(cluster) = &over else { unreachable!("it was just made") };
    let (_listeners, peers) = listen(&[0]);
    let mut trust = cluster.trust(ME);
    trust.names.remove(&PEER);
    let refusal = visit(peers[&PEER], Some(&trust)).unwrap_err();
    assert_eq!(refusal, "the plan has no certificate's name for worker-0");
    let trust = Trust { credentials: cluster.place(WorkerId(77)), ..cluster.trust(ME) };
    let refusal = visit(peers[&PEER], Some(&trust)).unwrap_err();
    assert!(refusal.starts_with("this worker's own credentials are of no use"), "{refusal}");
}

#[test]
fn renewed_credentials_are_used_from_the_next_connection_on() {
    let (over, other) = (Over::tls(), Cluster::new());
    let hosting = [0, 1];
    let (mut listeners, peers) = listen(&hosting);
    let listener = listeners.remove(&PEER).unwrap();
    let acceptor = membership(&over, PEER, &hosting, &peers);
    let acceptor = thread::spawn(move || Mesh::open(acceptor, listener, TIMEOUTS).unwrap());
    // Until now its credentials were of no use; it tries all the same.
    let trust = other.trust(ME);
    let listener = listeners.remove(&ME).unwrap();
    let dialer = Membership { trust: Some(trust), ..membership(&over, ME, &hosting, &peers) };
    let dialer = thread::spawn(move || Mesh::open(dialer, listener, TIMEOUTS).unwrap());
    thread::park_timeout(Duration::from_millis(100));
    let Over::Tls(cluster) = &over else { unreachable!("it was just made") };
    let renewed = shoal_trust::Credentials::open(&cluster.place(ME)).unwrap();
    renewed.save(&other.place(ME)).unwrap();
    let (dialer, acceptor) = (dialer.join().unwrap(), acceptor.join().unwrap());
    dialer.endpoint(CellId(1)).send(CellId(0), vec![42]).unwrap();
    assert_eq!(acceptor.endpoint(CellId(0)).recv(CellId(1)), Ok(vec![42]));
}

/// Both ends of a connection.
fn pair(over: &Over) -> [Channel; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    thread::scope(|scope| {
        let trust = over.trust(PEER);
        let accept = move || Channel::accept(accepted, trust.as_ref(), soon()).unwrap();
        let accepting = scope.spawn(accept);
        let dialed = over.dial(stream, (ME, PEER), soon()).unwrap();
        [dialed, accepting.join().unwrap()]
    })
}

fn bytes_cross_both_ways_at_once_whatever_the_pieces_and_the_pauses(over: &Over) {
    const BYTES: usize = 3_000_000;
    let ends = pair(over);
    for end in &ends {
        // So that much is written in part, and again.
        let socket = socket2::SockRef::from(end.stream());
        socket.set_send_buffer_size(8 << 10).unwrap();
        end.stream().set_write_timeout(Some(Duration::from_millis(1))).unwrap();
        end.stream().set_read_timeout(Some(TIMEOUTS.silence)).unwrap();
    }
    thread::scope(|scope| {
        for (seed, [from, to]) in [(1, [&ends[0], &ends[1]]), (2, [&ends[1], &ends[0]])] {
            scope.spawn(move || {
                let (all, mut dice) = (Dice(seed).bytes(BYTES), Dice(seed + 10));
                let (mut sent, mut channel) = (0, from);
                while sent < all.len() {
                    let n = (1 + dice.below(300_000)).min(all.len() - sent);
                    let until = sent + n;
                    while sent < until {
                        let (head, tail) = all[sent..until].split_at((until - sent).min(48));
                        match channel.write_vectored(&[IoSlice::new(head), IoSlice::new(tail)]) {
                            Ok(0) => panic!("closed"),
                            Ok(n) => sent += n,
                            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    from.change_keys();
                }
            });
            scope.spawn(move || {
                let (want, mut dice) = (Dice(seed).bytes(BYTES), Dice(seed + 20));
                let (mut got, mut channel) = (Vec::new(), to);
                let mut buffer = vec![0; 200_000];
                while got.len() < want.len() {
                    let n = 1 + dice.below(buffer.len() as u64);
                    match channel.read(&mut buffer[..n]) {
                        Ok(0) => panic!("closed"),
                        Ok(n) => got.extend_from_slice(&buffer[..n]),
                        Err(error) => panic!("{error}"),
                    }
                    if dice.below(20) == 0 {
                        thread::park_timeout(Duration::from_millis(5));
                    }
                }
                assert!(got == want, "direction {seed}");
            });
        }
    });
}

fn an_end_is_an_end_and_what_came_before_it_is_read(over: &Over) {
    let [from, to] = pair(over);
    (&from).write_all(&vec![7; 100_000]).unwrap();
    from.stream().shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = Vec::new();
    (&to).read_to_end(&mut got).unwrap();
    assert!(got == vec![7; 100_000]);
    // The other way is still open.
    (&to).write_all(b"bye").unwrap();
    let mut word = [0; 3];
    (&from).read_exact(&mut word).unwrap();
    assert_eq!(&word, b"bye");
}

super::over::over_both!(
    bytes_cross_both_ways_at_once_whatever_the_pieces_and_the_pauses,
    an_end_is_an_end_and_what_came_before_it_is_read,
);

#[test]
fn nobody_in_between_reads_what_is_sent() {
    let over = Over::tls();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let dialed = TcpStream::connect(between.local_addr().unwrap()).unwrap();
    let (mut from, _) = between.accept().unwrap();
    let mut to = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let word = b"the weights of a whole stage";
    let seen = thread::scope(|scope| {
        let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
        scope.spawn(move || std::io::copy(&mut back_from, &mut back_to));
        let seen = scope.spawn(move || {
            let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                seen.extend_from_slice(&buffer[..n]);
                to.write_all(&buffer[..n]).unwrap();
            }
            drop(to.shutdown(std::net::Shutdown::Both));
            seen
        });
        let trust = over.trust(PEER);
        let reading = scope.spawn(move || {
            let channel = Channel::accept(accepted, trust.as_ref(), soon()).unwrap();
            let mut got = [0; 28];
            (&channel).read_exact(&mut got).unwrap();
            got
        });
        let channel = over.dial(dialed, (ME, PEER), soon()).unwrap();
        (&channel).write_all(word).unwrap();
        assert_eq!(&reading.join().unwrap(), word);
        drop(channel);
        seen.join().unwrap()
    });
    assert!(seen.len() > 1000, "a handshake and a record");
    assert!(!seen.windows(8).any(|some| some == &word[..8]));
    // Nor who it is that comes: certificates are sent encrypted, too.
    assert!(!seen.windows(5).any(|some| some == b"rig-1"));
}
