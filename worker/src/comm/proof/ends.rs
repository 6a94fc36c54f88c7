//! How waiting ends: at once for everybody when a peer is gone, and without the peer where it never
//! answers. Time-outs here are an hour: a wait that only they would end is a test that hangs.

use std::net::TcpStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use super::over::{Over, over_both};
use shoal_proto::{Meeting, Way};

use super::*;
use crate::comm::CommError;
use crate::comm::deadline::Deadline;
use crate::comm::handshake::{self, Identity};

const HOUR: Duration = Duration::from_hours(1);
const HOURS: Timeouts =
    Timeouts { join: HOUR, link: HOUR, handshake: HOUR, silence: HOUR, shutdown: HOUR };

fn a_lost_peer_ends_every_all_to_all_and_the_next_call_of_who_computes(over: &Over) {
    let hosting = [0, 0, 0, 1];
    let mut meshes = open(over, &hosting, HOURS);
    let (lost, computed) = (meshes.remove(&WorkerId(1)).unwrap(), Barrier::new(2));
    let mut errors = Vec::new();
    thread::scope(|scope| {
        let mesh = &meshes[&WorkerId(0)];
        let waiting: Vec<_> = [0, 1]
            .map(|cell| {
                let mut endpoint = mesh.endpoint(CellId(cell));
                scope.spawn(move || {
                    let parts = vec![vec![cell as u8]; 4];
                    endpoint.all_to_all(&cells(&[0, 1, 2, 3]), parts).unwrap_err()
                })
            })
            .into_iter()
            .collect();
        let (mut endpoint, computed) = (mesh.endpoint(CellId(2)), &computed);
        let computing = scope.spawn(move || {
            computed.wait();
            endpoint.recv(CellId(3)).unwrap_err()
        });
        lost.sever();
        errors.extend(waiting.into_iter().map(|cell| cell.join().unwrap()));
        computed.wait();
        errors.push(computing.join().unwrap());
    });
    for error in errors {
        assert_eq!(error.peer(), Some(WorkerId(1)), "{error}");
    }
    drop(lost);
}

fn a_peer_that_takes_nothing_holds_up_neither_the_end_nor_the_tear_down(over: &Over) {
    let hosting = [0, 1];
    let (mut listeners, peers) = listen(&hosting);
    let (address, listener) = (peers[&WorkerId(0)], listeners.remove(&WorkerId(0)).unwrap());
    let membership = membership(over, WorkerId(0), &hosting, &peers);
    let opening = thread::spawn(move || Mesh::open(membership, listener, HOURS).unwrap());
    // Proves who it is, and is stopped then: it reads nothing, says nothing, and stays connected.
    let stopped = TcpStream::connect(address).unwrap();
    let pair = (WorkerId(1), WorkerId(0));
    let stopped = over.dial(stopped, pair, Deadline::after(HOUR)).unwrap();
    let identity = Identity::new(&run_id(), &SECRET, Generation(1), WorkerId(1));
    handshake::dial(&stopped, &identity, WorkerId(0), Deadline::after(HOUR)).unwrap();
    let mesh = opening.join().unwrap();
    let mut endpoint = mesh.endpoint(CellId(0));
    // More than the system takes in on its own: the writer blocks.
    endpoint.send(CellId(1), vec![7; 64 << 20]).unwrap();
    let waiting = thread::spawn(move || endpoint.recv(CellId(1)).unwrap_err());
    mesh.poison("the plan has changed");
    assert!(matches!(waiting.join().unwrap(), CommError::Stopped { .. }));
    drop(mesh);
    drop(stopped);
}

fn an_opening_that_is_called_off_waits_for_nobody_and_leaves_the_port_to_the_next(over: &Over) {
    let hosting = [0, 1];
    let (mut listeners, peers) = listen(&hosting);
    let listener = listeners.remove(&WorkerId(0)).unwrap();
    let of = |me, generation| Membership {
        generation: Generation(generation),
        ..membership(over, WorkerId(me), &hosting, &peers)
    };
    let off = AtomicBool::new(false);
    thread::scope(|scope| {
        let (first, listener) = (of(0, 1), listener.try_clone().unwrap());
        let off = &off;
        let is_off = move || off.load(Ordering::SeqCst);
        let opening =
            scope.spawn(move || Mesh::open_unless(first, listener, HOURS, &is_off).unwrap_err());
        off.store(true, Ordering::SeqCst);
        let error = opening.join().unwrap();
        assert_eq!(error, CommError::CalledOff { me: WorkerId(0) });
    });
    let second = of(0, 2);
    let opening = thread::spawn(move || Mesh::open(second, listener, HOURS).unwrap());
    let dialer = listeners.remove(&WorkerId(1)).unwrap();
    let dialer = Mesh::open(of(1, 2), dialer, HOURS).unwrap();
    let acceptor = opening.join().unwrap();
    dialer.endpoint(CellId(1)).send(CellId(0), vec![42]).unwrap();
    assert_eq!(acceptor.endpoint(CellId(0)).recv(CellId(1)), Ok(vec![42]));
    // Both leave: each waits for the other's goodbye.
    let leaving = thread::spawn(move || drop(acceptor));
    drop(dialer);
    leaving.join().unwrap();
}

/// Of a pair of which only one can dial the other, that one does, whatever its id: nobody else knows an address.
fn whoever_can_dials_where_only_one_of_two_can(over: &Over) {
    let hosting = [0, 1, 2];
    for from in [0, 2] {
        let (listeners, peers) = listen(&hosting);
        let ends = (WorkerId(0), WorkerId(2));
        let meetings = [Meeting { ends, way: Way::From(WorkerId(from)) }];
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let meshes: BTreeMap<_, _> = thread::scope(|scope| {
            let open = |(me, listener): (WorkerId, TcpListener)| {
                let mut peers = peers.clone();
                let other = if me == ends.0 { ends.1 } else { ends.0 };
                if me != WorkerId(from) && me != WorkerId(1) {
                    peers.insert(other, nowhere);
                }
                let ways = Ways::of(me, &meetings, (&run_id(), &[]));
                let membership = Membership { ways, ..membership(over, me, &hosting, &peers) };
                (me, scope.spawn(move || Mesh::open(membership, listener, TIMEOUTS).unwrap()))
            };
            let opening: Vec<_> = listeners.into_iter().map(open).collect();
            opening.into_iter().map(|(me, mesh)| (me, mesh.join().unwrap())).collect()
        });
        let got = run_cells(&meshes, &hosting, |endpoint| {
            endpoint.all_gather(&cells(&[0, 1, 2]), vec![endpoint.cell().0 as u8]).unwrap()
        });
        assert!(got.iter().all(|all| *all == [[0], [1], [2]]), "{got:?}");
    }
}

over_both!(
    whoever_can_dials_where_only_one_of_two_can,
    a_lost_peer_ends_every_all_to_all_and_the_next_call_of_who_computes,
    a_peer_that_takes_nothing_holds_up_neither_the_end_nor_the_tear_down,
    an_opening_that_is_called_off_waits_for_nobody_and_leaves_the_port_to_the_next,
);
