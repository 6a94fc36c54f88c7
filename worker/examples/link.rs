//! How fast one connection between two workers is, in clear and over TLS. Both are in this process and
//! talk over loopback, so each figure has the cost of both ends.
//!
//! `cargo run --release -p shoal-worker --example link`

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::collections::BTreeMap;
use std::error::Error;
use std::net::TcpListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, RunId, WorkerId};
use shoal_trust::{Authority, Credentials, Identity, Name, Request, Role};
use shoal_worker::Trust;
use shoal_worker::comm::{Comm, Endpoint, Membership, Mesh, Timeouts, Ways};

/// Rounds of each kind, alternating; the median is told.
const ROUNDS: usize = 7;
const MESSAGE_BYTES: usize = 4 << 20;
const MESSAGES: usize = 128;
const WORDS: u32 = 2000;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let scratch = std::env::temp_dir().join(format!("shoal-link-{}", std::process::id()));
    let trusts = certificates(&scratch);
    let told = trusts.and_then(|trusts| measure(&trusts));
    std::fs::remove_dir_all(&scratch)?;
    told
}

fn measure(trusts: &[Trust; 2]) -> Outcome<()> {
    let mut figures: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (kind, trusts) in [("plain", None), ("TLS", Some(trusts))] {
            let meshes = open(trusts)?;
            let mut ends = [0, 1].map(|k| meshes[k].endpoint(CellId(k as u32)));
            let mut note = |what, figure| figures.entry((what, kind)).or_default().push(figure);
            note("one way, GB/s", stream(&mut ends, false));
            note("both ways, GB/s in each", stream(&mut ends, true));
            note("there and back, us", there_and_back(&mut ends));
            drop(ends);
            // Each waits for the other's goodbye.
            let leaving = meshes.map(|mesh| thread::spawn(move || drop(mesh)));
            leaving
                .map(thread::JoinHandle::join)
                .into_iter()
                .try_for_each(|left| left.map_err(|_| "a panic"))?;
        }
    }
    for ((what, kind), mut all) in figures {
        all.sort_by(f64::total_cmp);
        let (median, least, most) = (all[all.len() / 2], all[0], all[all.len() - 1]);
        println!("{what:26} {kind:6} {median:8.3}   ({least:.3} to {most:.3})");
    }
    Ok(())
}

/// Gigabytes a second of large messages.
fn stream([a, b]: &mut [Endpoint; 2], both_ways: bool) -> f64 {
    let started = now();
    thread::scope(|scope| {
        scope.spawn(|| exchange(a, CellId(1), true, both_ways));
        scope.spawn(|| exchange(b, CellId(0), both_ways, true));
    });
    (MESSAGES * MESSAGE_BYTES) as f64 / started.elapsed().as_secs_f64() / 1e9
}

/// A few messages ahead of the other, so that memory stays small.
fn exchange(end: &mut Endpoint, other: CellId, sends: bool, receives: bool) {
    let token = |n: usize| n.is_multiple_of(8);
    for n in 0..MESSAGES {
        if sends {
            end.send(other, vec![7; MESSAGE_BYTES]).expect("the peer is there");
        }
        if receives {
            end.recv(other).expect("the peer is there");
        }
        if sends != receives && token(n) {
            if receives {
                end.send(other, vec![1]).expect("the peer is there");
            } else {
                end.recv(other).expect("the peer is there");
            }
        }
    }
}

/// Microseconds of a small message and its answer.
fn there_and_back([a, b]: &mut [Endpoint; 2]) -> f64 {
    let started = now();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..WORDS {
                a.send(CellId(1), vec![7; 64]).expect("the peer is there");
                a.recv(CellId(1)).expect("the peer is there");
            }
        });
        scope.spawn(|| {
            for _ in 0..WORDS {
                let word = b.recv(CellId(0)).expect("the peer is there");
                b.send(CellId(0), word).expect("the peer is there");
            }
        });
    });
    started.elapsed().as_secs_f64() * 1e6 / f64::from(WORDS)
}

fn open(trusts: Option<&[Trust; 2]>) -> Outcome<[Mesh; 2]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let mut peers = BTreeMap::new();
    for (id, listener) in (0..).zip(&listeners) {
        peers.insert(WorkerId(id), listener.local_addr()?);
    }
    let [first, second] = listeners;
    let member = |me: u32| Membership {
        run: RunId("link".to_owned()),
        secret: [7; 32],
        generation: Generation(1),
        me: WorkerId(me),
        hosts: vec![WorkerId(0), WorkerId(1)],
        peers: peers.clone(),
        trust: trusts.map(|trusts| trusts[me as usize].clone()),
        ways: Ways::default(),
    };
    let (zero, one) = (member(0), member(1));
    let opening = thread::spawn(move || Mesh::open(zero, first, Timeouts::default()));
    let one = Mesh::open(one, second, Timeouts::default())?;
    let zero = opening.join().map_err(|_| "opening panicked")??;
    Ok([zero, one])
}

fn certificates(scratch: &Path) -> Outcome<[Trust; 2]> {
    let authority = Authority::create(&"link".parse()?, today())?;
    let mut names: BTreeMap<WorkerId, Name> = BTreeMap::new();
    for id in 0..2 {
        let name: Name = format!("rig-{id}").parse()?;
        names.insert(WorkerId(id), name.clone());
        let request = Request::new(&name)?;
        let identity = Identity { name, role: Role::Worker };
        let life = Duration::from_hours(1);
        let signed = authority.sign(request.pem(), &identity, life, today())?;
        let ca = authority.certificate_pem();
        Credentials::new(ca, &signed.certificate_pem, request)?
            .save(&scratch.join(id.to_string()))?;
    }
    let trust = |id: u32| Trust { credentials: scratch.join(id.to_string()), names: names.clone() };
    Ok([trust(0), trust(1)])
}

#[expect(clippy::disallowed_methods, reason = "time is what is measured")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "TLS holds certificates against the system's clock")]
fn today() -> SystemTime {
    SystemTime::now()
}
