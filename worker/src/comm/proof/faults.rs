//! Everything that can go wrong between workers: each fault ends in an error that says whose it is.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use super::over::{Over, over_both};
use super::*;
use crate::comm::deadline::Deadline;
use crate::comm::frame::PIECE_BYTES;
use crate::comm::handshake::{self, Identity};
use crate::comm::{CommError, Operation};

/// All-reduces until something breaks.
fn reduce_until_lost(endpoint: &mut Endpoint, n_cells: u32) -> CommError {
    let group: Vec<_> = (0..n_cells).map(CellId).collect();
    loop {
        let mut data = vec![1.0; 1000];
        if let Err(error) = endpoint.all_reduce(&group, Sum::F32(&mut data)) {
            return error;
        }
    }
}

fn a_lost_peer_stops_every_endpoint_with_its_name(over: &Over) {
    let hosting = [0, 1, 1, 2];
    let meshes = open(over, &hosting, TIMEOUTS);
    let errors = run_cells(&meshes, &hosting, |endpoint| {
        if endpoint.cell() == CellId(3) {
            for _ in 0..20 {
                let mut data = vec![1.0; 1000];
                endpoint.all_reduce(&cells(&[0, 1, 2, 3]), Sum::F32(&mut data)).unwrap();
            }
            meshes[&WorkerId(2)].sever();
            return endpoint.recv(CellId(0)).unwrap_err();
        }
        let first = reduce_until_lost(endpoint, 4);
        // Later calls fail as well, sends and to healthy peers included.
        let later = endpoint.send(CellId(u32::from(endpoint.cell().0 == 0)), vec![1]).unwrap_err();
        assert_eq!(later.peer(), first.peer());
        first
    });
    for error in &errors[..3] {
        assert_eq!(error.peer(), Some(WorkerId(2)), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("all-reduce of cell-") && text.contains("worker-2 was lost"),
            "{text}"
        );
    }
}

fn a_poisoned_mesh_tells_its_peers_why(over: &Over) {
    let hosting = [0, 1, 2];
    let meshes = open(over, &hosting, TIMEOUTS);
    let errors = run_cells(&meshes, &hosting, |endpoint| match endpoint.cell() {
        CellId(1) => {
            meshes[&WorkerId(1)].poison("the loss is not finite");
            endpoint.recv(CellId(0)).unwrap_err()
        }
        _ => endpoint.recv(CellId(1)).unwrap_err(),
    });
    let here = "send of cell-1: the data plane was stopped here: the loss is not finite";
    assert_eq!(errors[1].to_string(), here);
    for error in [&errors[0], &errors[2]] {
        // Told by worker 1 or by the other one, who was told before.
        let text = error.to_string();
        assert_eq!(error.peer(), Some(WorkerId(1)), "{text}");
        assert!(text.ends_with("it stopped: the loss is not finite"), "{text}");
    }
}

fn leaving_in_good_order_delivers_what_was_sent_and_then_says_so(over: &Over) {
    let hosting = [0, 1];
    let mut meshes = open(over, &hosting, TIMEOUTS);
    let mesh = meshes.remove(&WorkerId(1)).unwrap();
    let payload = Dice(5).bytes(3_000_000);
    thread::scope(|scope| {
        let payload = &payload;
        scope.spawn(move || {
            mesh.endpoint(CellId(1)).send(CellId(0), payload.clone()).unwrap();
            drop(mesh);
        });
        let mut endpoint = meshes[&WorkerId(0)].endpoint(CellId(0));
        assert!(endpoint.recv(CellId(1)).unwrap() == *payload);
        let error = endpoint.recv(CellId(1)).unwrap_err().to_string();
        assert!(error.contains("worker-1 was lost: it left while cell-0 waited"), "{error}");
    });
}

fn a_silent_peer_and_a_different_operation_are_errors(over: &Over) {
    let hosting = [0, 1];
    let meshes = open(over, &hosting, Timeouts { silence: Duration::from_millis(50), ..TIMEOUTS });
    let error = meshes[&WorkerId(0)].endpoint(CellId(0)).recv(CellId(1)).unwrap_err();
    let want = "send of cell-0: nothing came from cell-1 on worker-1 for 0.05 s";
    assert_eq!(error.to_string(), want);

    let errors = run_cells(&open(over, &hosting, TIMEOUTS), &hosting, |endpoint| {
        let other = CellId(1 - endpoint.cell().0);
        if other == CellId(0) {
            endpoint.send(other, vec![1]).unwrap();
            return endpoint.recv(other).unwrap_err();
        }
        endpoint.all_gather(&cells(&[0, 1]), vec![]).unwrap_err()
    });
    assert!(matches!(errors[0], CommError::Lost { operation: Operation::AllGather, .. }));
    assert!(matches!(errors[1], CommError::Lost { operation: Operation::Send, .. }));
    // Whoever looks first says what it saw, and the other hears of it.
    for error in errors {
        let text = error.to_string();
        assert!(text.contains("expects") && text.contains("all-gather"), "{text}");
    }
}

fn parts_of_another_length_are_refused(over: &Over) {
    let hosting = [0, 1];
    let errors = run_cells(&open(over, &hosting, TIMEOUTS), &hosting, |endpoint| {
        let mut data = vec![1.0; 10 + 2 * endpoint.cell().0 as usize];
        endpoint.all_reduce(&cells(&[0, 1]), Sum::F32(&mut data)).unwrap_err().to_string()
    });
    assert!(errors.iter().any(|error| error.contains("bytes to cell-")), "{errors:?}");
}

/// Dials `address` as worker 1 of a mesh that may not be the right one, and says what came of it.
fn dial_as(over: &Over, address: SocketAddr, identity: &Identity, peer: u32) -> Result<(), String> {
    let stream = TcpStream::connect(address).unwrap();
    let deadline = Deadline::after(TIMEOUTS.handshake);
    let dialed = over
        .dial(stream, (identity.me(), WorkerId(0)), deadline)
        .and_then(|channel| handshake::dial(&channel, identity, WorkerId(peer), deadline));
    dialed.map_err(|refusal| refusal.reason)
}

fn strangers_are_refused_in_words_and_the_wait_goes_on(over: &Over) {
    let hosting = [0, 1];
    let (mut listeners, peers) = listen(&hosting);
    let address = peers[&WorkerId(0)];
    let listener = listeners.remove(&WorkerId(0)).unwrap();
    let acceptor = membership(over, WorkerId(0), &hosting, &peers);
    let acceptor = thread::spawn(move || Mesh::open(acceptor, listener, TIMEOUTS).unwrap());

    let (run, me) = (run_id(), WorkerId(1));
    let other_run = RunId("another".into());
    let identity =
        |run, secret, generation, me| Identity::new(run, secret, Generation(generation), me);
    for (identity, peer, want) in [
        (identity(&run, &[8; 32], 1, me), 0, "refused: it does not know the run's secret"),
        (identity(&other_run, &SECRET, 1, me), 0, "refused: it belongs to another run"),
        (identity(&run, &SECRET, 2, me), 0, "refused: it is of generation 2, want generation 1"),
        (identity(&run, &SECRET, 1, me), 5, "refused: it looks for worker-5, this is worker-0"),
        (identity(&run, &SECRET, 1, WorkerId(9)), 0, "refused: worker-9 is connected already or"),
    ] {
        let refusal = dial_as(over, address, &identity, peer).unwrap_err();
        assert!(refusal.starts_with(want), "{refusal}");
    }
    // One that says nothing, one that says nonsense, one that hangs up: nobody waits for them.
    let _silent = TcpStream::connect(address).unwrap();
    let mut babbler = TcpStream::connect(address).unwrap();
    babbler.write_all(&[0x16; 200]).unwrap();
    TcpStream::connect(address).unwrap().shutdown(Shutdown::Both).unwrap();

    let listener = listeners.remove(&WorkerId(1)).unwrap();
    let dialer =
        Mesh::open(membership(over, WorkerId(1), &hosting, &peers), listener, TIMEOUTS).unwrap();
    let acceptor = acceptor.join().unwrap();
    dialer.endpoint(CellId(1)).send(CellId(0), vec![42]).unwrap();
    assert_eq!(acceptor.endpoint(CellId(0)).recv(CellId(1)), Ok(vec![42]));
}

fn a_mesh_that_does_not_come_together_names_who_is_missing_and_why(over: &Over) {
    let hosting = [0, 1, 2];
    let (mut listeners, peers) = listen(&hosting);
    let short = Timeouts { join: Duration::from_secs(1), ..TIMEOUTS };
    let first = listeners.remove(&WorkerId(0)).unwrap();
    let wrong = Membership { secret: [9; 32], ..membership(over, WorkerId(1), &hosting, &peers) };
    let second = listeners.remove(&WorkerId(1)).unwrap();
    let joining = thread::spawn(move || Mesh::open(wrong, second, short).unwrap_err());
    let error =
        Mesh::open(membership(over, WorkerId(0), &hosting, &peers), first, short).unwrap_err();
    assert_eq!(error.unreachable(), [WorkerId(1), WorkerId(2)]);
    let error = error.to_string();
    let want = "data plane: worker-0 waited 1 s for worker-1, worker-2";
    assert!(error.starts_with(want) && error.contains("does not know the run's secret"), "{error}");
    let error = joining.join().unwrap().to_string();
    assert!(error.contains("worker-0 (refused: it does not know the run's secret)"), "{error}");
}

/// A port that answers no packet: its queue is full, and nobody takes anything out.
fn black_hole() -> (Socket, Vec<TcpStream>, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    let waiting = std::iter::from_fn(connect).collect();
    (socket, waiting, address)
}

fn a_peer_that_answers_no_packet_is_not_waited_for_whoever_dials_whom(over: &Over) {
    let hosting = [0, 1];
    let short = Timeouts { link: Duration::from_millis(400), ..TIMEOUTS };
    for (me, peer) in [(0, 1), (1, 0)].map(|(me, peer)| (WorkerId(me), WorkerId(peer))) {
        let (mut listeners, mut peers) = listen(&hosting);
        let (_socket, _waiting, address) = black_hole();
        peers.insert(peer, address);
        let listener = listeners.remove(&me).unwrap();
        let error =
            Mesh::open(membership(over, me, &hosting, &peers), listener, short).unwrap_err();
        assert_eq!(error.unreachable(), [peer]);
        let want = format!("{me} waited 0.4 s for {peer}, from which no packet comes back");
        assert!(error.to_string().contains(&want), "{error}");
    }
}

fn a_peer_that_lets_others_connect_and_says_nothing_is_named_when_the_patience_is_over(
    over: &Over,
) {
    let hosting = [0, 1];
    let short =
        Timeouts { join: Duration::from_millis(900), link: Duration::from_millis(400), ..TIMEOUTS };
    for (me, peer) in [(0, 1), (1, 0)].map(|(me, peer)| (WorkerId(me), WorkerId(peer))) {
        let (mut listeners, peers) = listen(&hosting);
        let listener = listeners.remove(&me).unwrap();
        let error =
            Mesh::open(membership(over, me, &hosting, &peers), listener, short).unwrap_err();
        assert_eq!(error.unreachable(), [peer], "{error}");
        assert!(error.to_string().contains(&format!("{me} waited 0.9 s for {peer}")), "{error}");
    }
}

/// Passes a connection on, turning over one bit of what the dialer sends after `clean` bytes.
fn corrupting_proxy(target: SocketAddr, clean: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (dialer, _) = listener.accept().unwrap();
        let acceptor = TcpStream::connect(target).unwrap();
        let (mut back_from, mut back_to) =
            (acceptor.try_clone().unwrap(), dialer.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
        let (mut from, mut to, mut passed) = (dialer, acceptor, 0);
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if (passed..passed + n).contains(&clean) {
                buffer[clean - passed] ^= 0x10;
            }
            passed += n;
            if to.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
    });
    address
}

fn a_corrupted_byte_is_noticed_wherever_it_is(over: &Over) {
    const HANDSHAKE_BYTES: usize = 90 + 32;
    let hosting = [0, 1];
    let piece = PIECE_BYTES + 4;
    let places = match over {
        // In the header, in the first piece, in the second one's checksum and in the third, in a later frame's
        // sequence number.
        Over::Plain => vec![
            (HANDSHAKE_BYTES + 10, "header was corrupted"),
            (HANDSHAKE_BYTES + 60, "message was corrupted"),
            (HANDSHAKE_BYTES + 48 + PIECE_BYTES + 1, "message was corrupted"),
            (HANDSHAKE_BYTES + 48 + 2 * piece + 9, "message was corrupted"),
            (HANDSHAKE_BYTES + 48 + 5000 + 4 * 4 + 30, "header"),
        ],
        // In the records of the first frame and of the second: the certificates take less than 2000.
        Over::Tls(_) => [3000, 5000, 9000].map(|at| (at, "cannot decrypt peer's message")).to_vec(),
    };
    for (at, want) in places {
        let (mut listeners, mut peers) = listen(&hosting);
        let honest = peers[&WorkerId(0)];
        peers.insert(WorkerId(0), corrupting_proxy(honest, at));
        let listener = listeners.remove(&WorkerId(0)).unwrap();
        let acceptor = membership(over, WorkerId(0), &hosting, &peers);
        let acceptor = thread::spawn(move || Mesh::open(acceptor, listener, TIMEOUTS).unwrap());
        let listener = listeners.remove(&WorkerId(1)).unwrap();
        let dialer =
            Mesh::open(membership(over, WorkerId(1), &hosting, &peers), listener, TIMEOUTS)
                .unwrap();
        let acceptor = acceptor.join().unwrap();
        let mut sender = dialer.endpoint(CellId(1));
        let mut receiver = acceptor.endpoint(CellId(0));
        sender.send(CellId(0), vec![3; 5000]).unwrap();
        let _ = sender.send(CellId(0), vec![4; 5000]);
        let error = (0..2).find_map(|_| receiver.recv(CellId(1)).err()).unwrap().to_string();
        assert!(error.contains("worker-1 was lost") && error.contains(want), "{error}");
        let told = sender.recv(CellId(0)).unwrap_err().to_string();
        assert!(told.contains("worker-0 was lost"), "{told}");
    }
}

over_both!(
    a_lost_peer_stops_every_endpoint_with_its_name,
    a_poisoned_mesh_tells_its_peers_why,
    leaving_in_good_order_delivers_what_was_sent_and_then_says_so,
    a_silent_peer_and_a_different_operation_are_errors,
    parts_of_another_length_are_refused,
    strangers_are_refused_in_words_and_the_wait_goes_on,
    a_mesh_that_does_not_come_together_names_who_is_missing_and_why,
    a_peer_that_answers_no_packet_is_not_waited_for_whoever_dials_whom,
    a_peer_that_lets_others_connect_and_says_nothing_is_named_when_the_patience_is_over,
    a_corrupted_byte_is_noticed_wherever_it_is,
);
