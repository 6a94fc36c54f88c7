//! Vaults of several workers over real connections: copies arrive and are fetched, and whatever is
//! wrong with a visitor, a connection or a byte ends in a named error and leaves nothing behind.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::time::Duration;

use shoal_proto::{self as proto, Meeting, Source};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::wire::{Fault, Head, Kind, Line};
use super::*;
use crate::comm::channel::Channel;
use crate::comm::deadline::Deadline;
use crate::comm::handshake;
use crate::comm::proof::over::{Over, over_both};

const G1: Generation = Generation(1);
const CELL: CellId = CellId(4);
const N: u64 = 700_000;

struct Place {
    vault: Vault,
    held: UnboundedReceiver<Held>,
}

fn run() -> RunId {
    RunId("vaults".into())
}

/// Vaults of so many workers. Cell 4 is worker 0's, and all may hold it.
fn open(over: &Over, n: u32, secret: &Secret) -> Vec<Place> {
    let place = |id| {
        let (tell, held) = unbounded_channel();
        let me = WorkerId(id);
        let network = ((Ipv4Addr::LOCALHOST, 0).into(), over.trust(me));
        let vault = Vault::open(&run(), secret, me, network, tell).unwrap();
        vault.begin(terms(G1, None));
        Place { vault, held }
    };
    (0..n).map(place).collect()
}

fn terms(generation: Generation, start: Option<u64>) -> Terms {
    let cells = BTreeMap::from([(CELL, (WorkerId(0), N))]);
    Terms { generation, start, last: 100, cells }
}

fn at(step: u64) -> Standing {
    Standing { step, sequences: 8 * step, ..Standing::default() }
}

/// Bytes that differ everywhere.
fn state(step: u64) -> Vec<u8> {
    let mut bytes = vec![0; N as usize];
    let mut reader = blake3::Hasher::new();
    reader.update(&step.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn write(step: u64) -> impl FnOnce(&mut Vec<u8>) {
    move |into| {
        into.clear();
        into.extend(state(step));
    }
}

fn hash(step: u64) -> String {
    blake3::hash(&state(step)).to_hex().to_string()
}

fn source(worker: u32, step: u64) -> Source {
    Source { worker: WorkerId(worker), cell: CELL, blake3: hash(step) }
}

fn heard(place: &mut Place) -> (u64, CellId, String) {
    let Held { standing, cell, blake3, .. } = place.held.blocking_recv().unwrap();
    (standing.step, cell, blake3)
}

/// Waits until an own snapshot is stored and copied, or given up.
fn settled(place: &Place) {
    while place.vault.is_busy(G1, CELL) {
        thread::park_timeout(Duration::from_millis(1));
    }
}

fn a_snapshot_is_stored_copied_and_fetched_by_who_needs_it(over: &Over) {
    let secret = Secret::random().unwrap();
    let mut places = open(over, 3, &secret);
    let targets = BTreeMap::from([(WorkerId(1), places[1].vault.address())]);
    for step in [10, 20, 30] {
        let vault = &places[0].vault;
        vault.snapshot((G1, CELL, at(step)), N, &targets, write(step)).unwrap();
        settled(&places[0]);
        for place in &mut places[..2] {
            assert_eq!(heard(place), (step, CELL, hash(step)));
        }
    }
    // Worker 2 goes on with the cell from worker 1's copy, under a later plan; standing and all.
    for place in &places {
        place.vault.begin(terms(Generation(2), Some(20)));
    }
    let (what, goes_on) = ((Generation(2), CELL, at(20)), || false);
    let address = Some(places[1].vault.address());
    let vault = &places[2].vault;
    let got = vault.fetch(what, (&source(1, 20), address), N, &goes_on).unwrap();
    assert!(got.bytes == state(20) && got.standing == at(20));
    // It is held here now: nobody is asked again.
    let again = vault.fetch(what, (&source(9, 20), None), N, &goes_on).unwrap();
    assert!(Arc::ptr_eq(&got, &again));
    // What the plan does not go on from is gone, and who asks is told what there is.
    let what = (Generation(2), CELL, at(30));
    let error =
        vault.fetch(what, (&source(1, 30), address), N, &goes_on).err().unwrap().to_string();
    let want = "worker-1 refused the snapshot of cell-4 after step 30: it does not hold step 30 of \
                cell-4; steps of it that it holds: 20";
    assert_eq!(error, want);
}

fn a_copy_that_is_there_already_is_not_sent_again(over: &Over) {
    let secret = Secret::random().unwrap();
    let mut places = open(over, 2, &secret);
    let targets = BTreeMap::from([(WorkerId(1), places[1].vault.address())]);
    let vault = places[0].vault.clone();
    let stored = vault.store((G1, CELL, at(5)), N, write(5)).unwrap();
    for _ in 0..2 {
        vault.copy((G1, CELL, at(5)), Arc::clone(&stored), &targets);
        settled(&places[0]);
        assert_eq!(heard(&mut places[1]), (5, CELL, hash(5)));
    }
    assert!(
        places[0].held.try_recv().is_err(),
        "what is stored for the next plan the engine tells"
    );
}

/// The first words of a visitor, and the line after them.
fn visit(over: &Over, place: &Place, identity: &Identity, peer: u32) -> Result<Channel, String> {
    let stream = TcpStream::connect(place.vault.address()).unwrap();
    let deadline = Deadline::after(Duration::from_secs(10));
    let pair = (identity.me(), place.vault.0.shared.me);
    let greeted = over.dial(stream, pair, deadline).and_then(|channel| {
        handshake::dial(&channel, identity, WorkerId(peer), deadline)?;
        Ok(channel)
    });
    greeted.map_err(|refusal| refusal.reason)
}

fn strangers_and_members_of_the_data_plane_are_not_let_in(over: &Over) {
    let secret = Secret::random().unwrap();
    let places = open(over, 1, &secret);
    let vault = &places[0].vault;
    let me = WorkerId(1);
    let other = Secret::random().unwrap();
    for (identity, peer, want) in [
        (Identity::of_vault(&run(), other.bytes(), me), 0, "it does not know the run's secret"),
        (Identity::of_vault(&RunId("x".into()), secret.bytes(), me), 0, "belongs to another run"),
        (Identity::of_vault(&run(), secret.bytes(), me), 3, "it looks for worker-3"),
        (Identity::new(&run(), secret.bytes(), G1, me), 0, "does not speak this port's protocol"),
    ] {
        let refusal = visit(over, &places[0], &identity, peer).unwrap_err();
        assert!(refusal.contains(want), "{refusal}");
    }
    // One that says nothing, one that says nonsense, one that hangs up: nobody waits for them.
    let _silent = TcpStream::connect(vault.address()).unwrap();
    TcpStream::connect(vault.address()).unwrap().write_all(&[0x16; 400]).unwrap();
    TcpStream::connect(vault.address()).unwrap().shutdown(Shutdown::Both).unwrap();
    let identity = Identity::of_vault(&run(), secret.bytes(), me);
    visit(over, &places[0], &identity, 0).unwrap();
}

fn a_wrong_secret_is_named_by_who_wants_a_snapshot(over: &Over) {
    let places = open(over, 1, &Secret::random().unwrap());
    let foreign = open(over, 1, &Secret::random().unwrap());
    let what = (G1, CELL, at(10));
    let address = Some(places[0].vault.address());
    let fetched = foreign[0].vault.fetch(what, (&source(0, 10), address), N, &|| false);
    let error = fetched.err().unwrap().to_string();
    assert!(error.contains("worker-0 refused") && error.contains("the run's secret"), "{error}");
}

/// Sends one snapshot by hand, with `change` made to its bytes on the way, and says how it went.
fn put(
    over: &Over,
    place: &Place,
    identity: &Identity,
    (head, bytes): (&Head, &[u8]),
) -> Result<(), Fault> {
    let channel = visit(over, place, identity, 1).unwrap();
    let goes_on = || false;
    let mut line = Line::new(&channel, &goes_on)?;
    line.send_head(head)?;
    line.verdict()?;
    line.send_body(bytes)?;
    line.verdict()
}

fn a_copy_that_is_not_wanted_or_arrives_damaged_is_refused_in_words(over: &Over) {
    let secret = Secret::random().unwrap();
    let mut places = open(over, 2, &secret);
    let from = |worker| Identity::of_vault(&run(), secret.bytes(), WorkerId(worker));
    let bytes = state(10);
    let head = Head {
        kind: Kind::Put,
        generation: G1,
        cell: CELL,
        standing: at(10),
        bytes: N,
        blake3: blake3::hash(&bytes),
    };
    let refused = |place: &Place, worker, head: &Head, bytes: &[u8]| match put(
        over,
        place,
        &from(worker),
        (head, bytes),
    ) {
        Err(Fault::Refused(why)) => why,
        other => panic!("want a refusal, got {other:?}"),
    };
    let place = &places[1];
    let why = refused(place, 3, &head, &bytes);
    assert_eq!(why, "worker-3 does not host cell-4, worker-0 does");
    let why = refused(place, 0, &Head { bytes: 1 << 60, ..head }, &[]);
    assert_eq!(why, "a snapshot of cell-4 has 700000 bytes, not 1152921504606846976");
    let why = refused(place, 0, &Head { generation: Generation(2), ..head }, &[]);
    assert!(why.contains("of generation 2"), "{why}");
    for at in [0, 300_000, N as usize - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 4;
        let why = refused(place, 0, &head, &changed);
        assert!(why.starts_with("it arrived damaged: blake3 "), "{why}");
    }
    // Nothing of all this is held; and the place is free for the right one.
    assert!(lock(&place.vault.0.shared.store).get(CELL, 10).is_err());
    assert!(put(over, place, &from(0), (&head, &bytes)).is_ok());
    assert_eq!(heard(&mut places[1]), (10, CELL, hash(10)));
}

/// Passes connections on to a vault; `change` may alter what the vault answers, and ends it all by
/// returning false.
fn between(
    vault: &Vault,
    change: impl Fn(usize, &mut [u8]) -> bool + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, target) = (listener.local_addr().unwrap(), vault.address());
    thread::spawn(move || {
        while let Ok((visitor, _)) = listener.accept() {
            let vault = TcpStream::connect(target).unwrap();
            let (mut from, mut to) = (visitor.try_clone().unwrap(), vault.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut from, &mut to));
            let (mut from, mut to, mut passed) = (vault, visitor, 0);
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                if !change(passed, &mut buffer[..n]) || to.write_all(&buffer[..n]).is_err() {
                    break;
                }
                passed += n;
            }
            drop(to.shutdown(Shutdown::Both));
        }
    });
    address
}

fn a_donor_that_dies_midway_and_a_byte_that_flips_are_told_apart(over: &Over) {
    let secret = Secret::random().unwrap();
    let places = open(over, 2, &secret);
    places[0].vault.store((G1, CELL, at(10)), N, write(10)).unwrap();
    let (what, vault) = ((G1, CELL, at(10)), &places[1].vault);
    let fetch = |address, is_over: &dyn Fn() -> bool| {
        vault.fetch(what, (&source(0, 10), Some(address)), N, is_over)
    };
    let flips = between(&places[0].vault, |passed, bytes| {
        if (passed..passed + bytes.len()).contains(&400_000) {
            bytes[400_000 - passed] ^= 1;
        }
        true
    });
    let error = fetch(flips, &|| matches!(over, Over::Tls(_))).err().unwrap();
    let want = match over {
        Over::Plain => "cell-4 after step 10 from worker-0 is damaged",
        // A record that was changed is not even read.
        Over::Tls(_) => "cannot decrypt peer's message",
    };
    assert!(error.to_string().contains(want), "{error}");
    // Cut off again and again, until whoever waits for it has had enough.
    let dies = between(&places[0].vault, |passed, _| passed < 400_000);
    let asked = std::cell::Cell::new(0);
    let enough = || {
        asked.set(asked.get() + 1);
        asked.get() > 3
    };
    let error = fetch(dies, &enough).err().unwrap();
    assert!(matches!(&error, VaultError::Lost { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("worker-0 at ") && text.contains("closed early"), "{text}");
    // Nothing of it stayed, and the honest way still works.
    assert!(lock(&vault.0.shared.store).get(CELL, 10).is_err());
    assert!(fetch(places[0].vault.address(), &|| false).is_ok());
}

fn a_copy_nobody_takes_is_given_up_and_a_new_plan_does_not_wait_for_it(over: &Over) {
    let secret = Secret::random().unwrap();
    let places = open(over, 1, &secret);
    let vault = &places[0].vault;
    // Listens, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let targets = BTreeMap::from([(WorkerId(1), silent.local_addr().unwrap())]);
    vault.snapshot((G1, CELL, at(10)), N, &targets, write(10)).unwrap();
    assert!(vault.is_busy(G1, CELL));
    vault.begin(terms(Generation(2), Some(10)));
    assert!(!vault.is_busy(Generation(2), CELL));
    // Nobody listens: it is given up.
    drop(silent);
    let what = (Generation(2), CELL, at(20));
    vault.snapshot(what, N, &targets, write(20)).unwrap();
    while vault.is_busy(Generation(2), CELL) {
        thread::park_timeout(Duration::from_millis(1));
    }
    assert!(lock(&vault.0.shared.store).get(CELL, 20).is_ok(), "it is held here all the same");
}

/// Worker 1 can dial worker 0 and is dialed by nobody: it calls, and is asked over that connection.
fn whoever_cannot_be_dialed_is_asked_over_its_own_call(over: &Over) {
    let secret = Secret::random().unwrap();
    let mut places = open(over, 2, &secret);
    let names = BTreeMap::new();
    let ends = (WorkerId(0), WorkerId(1));
    let meetings = [Meeting { ends, way: proto::Way::From(ends.1) }];
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let vaults = BTreeMap::from([(ends.0, places[0].vault.address()), (ends.1, nowhere)]);
    // Before it is known here that the plan says so, it is told so, and calls again.
    places[1].vault.meet(&names, &Ways::of(ends.1, &meetings, (&run(), &[])), &vaults);
    places[0].vault.meet(&names, &Ways::of(ends.0, &meetings, (&run(), &[])), &vaults);
    let targets = BTreeMap::from([(ends.1, nowhere)]);
    for step in [10, 20] {
        let vault = &places[0].vault;
        vault.snapshot((G1, CELL, at(step)), N, &targets, write(step)).unwrap();
        settled(&places[0]);
        assert_eq!(heard(&mut places[1]), (step, CELL, hash(step)));
    }
    for place in &places {
        place.vault.begin(terms(Generation(2), Some(20)));
    }
    // What it alone holds is fetched the same way; it itself asks as usual.
    lock(&places[0].vault.0.shared.store).clear();
    places[0].vault.begin(terms(Generation(2), Some(20)));
    let what = (Generation(2), CELL, at(20));
    let got = places[0].vault.fetch(what, (&source(1, 20), Some(nowhere)), N, &|| false).unwrap();
    assert!(got.bytes == state(20));
    let what = (Generation(2), CELL, at(30));
    let error =
        places[1].vault.fetch(what, (&source(0, 30), vaults.get(&ends.0).copied()), N, &|| false);
    let error = error.err().unwrap().to_string();
    assert!(error.contains("worker-0 refused the snapshot"), "{error}");
}

over_both!(
    whoever_cannot_be_dialed_is_asked_over_its_own_call,
    a_snapshot_is_stored_copied_and_fetched_by_who_needs_it,
    a_copy_that_is_there_already_is_not_sent_again,
    strangers_and_members_of_the_data_plane_are_not_let_in,
    a_wrong_secret_is_named_by_who_wants_a_snapshot,
    a_copy_that_is_not_wanted_or_arrives_damaged_is_refused_in_words,
    a_donor_that_dies_midway_and_a_byte_that_flips_are_told_apart,
    a_copy_nobody_takes_is_given_up_and_a_new_plan_does_not_wait_for_it,
);

#[test]
fn a_worker_whose_certificate_is_not_known_or_another_s_gets_nothing_until_the_plan_names_it() {
    let over = Over::tls();
    let secret = Secret::random().unwrap();
    let places = open(&over, 1, &secret);
    let vault = &places[0].vault;
    let identity = Identity::of_vault(&run(), secret.bytes(), WorkerId(1));
    let all = over.trust(WorkerId(0)).unwrap().names;
    lock(&vault.0.shared.trust).as_mut().unwrap().names.clear();
    let refusal = visit(&over, &places[0], &identity, 0).unwrap_err();
    assert_eq!(refusal, "refused: the plan has no certificate's name for worker-1");
    let mut wrong = all.clone();
    wrong.insert(WorkerId(1), all[&WorkerId(2)].clone());
    vault.meet(&wrong, &Ways::default(), &BTreeMap::new());
    let refusal = visit(&over, &places[0], &identity, 0).unwrap_err();
    let want = "refused: worker-1 is the worker rig-2, and its certificate says rig-1";
    assert_eq!(refusal, want);
    vault.meet(&all, &Ways::default(), &BTreeMap::new());
    visit(&over, &places[0], &identity, 0).unwrap();
}
