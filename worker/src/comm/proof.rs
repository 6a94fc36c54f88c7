//! Proof of what `comm` promises, over real connections of both kinds: equal bits for any hosting, and, in
//! `faults` and `ends`, an error that names the worker at fault, everywhere, for whatever goes wrong.

mod ends;
mod faults;
pub(crate) mod over;
mod strangers;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, RunId, WorkerId};

use self::over::{Over, over_both};
use super::{Comm, Endpoint, Membership, Mesh, Sum, Timeouts, Ways};

const SECRET: [u8; 32] = [7; 32];
const TIMEOUTS: Timeouts = Timeouts {
    join: Duration::from_secs(20),
    link: Duration::from_secs(15),
    handshake: Duration::from_secs(10),
    silence: Duration::from_secs(20),
    shutdown: Duration::from_secs(2),
};

/// `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> usize {
        (self.next() % n) as usize
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    /// Of very different sizes, so that another order of summation would show.
    fn float(&mut self) -> f32 {
        let exponent = self.below(16) as i32 - 8;
        (self.next() as f32 / u64::MAX as f32 - 0.5) * 10f32.powi(exponent)
    }
}

fn run_id() -> RunId {
    RunId("00112233445566778899aabbccddeeff".into())
}

fn membership(
    over: &Over,
    me: WorkerId,
    hosting: &[u32],
    peers: &BTreeMap<WorkerId, SocketAddr>,
) -> Membership {
    Membership {
        run: run_id(),
        secret: SECRET,
        generation: Generation(1),
        me,
        hosts: hosting.iter().map(|host| WorkerId(*host)).collect(),
        peers: peers.clone(),
        trust: over.trust(me),
        ways: Ways::default(),
    }
}

/// One listener for each worker, and where they are.
fn listen(hosting: &[u32]) -> (BTreeMap<WorkerId, TcpListener>, BTreeMap<WorkerId, SocketAddr>) {
    let mut listeners = BTreeMap::new();
    for host in hosting {
        let fresh = || TcpListener::bind("127.0.0.1:0").unwrap();
        listeners.entry(WorkerId(*host)).or_insert_with(fresh);
    }
    let addresses =
        |(id, listener): (&WorkerId, &TcpListener)| (*id, listener.local_addr().unwrap());
    let peers = listeners.iter().map(addresses).collect();
    (listeners, peers)
}

/// Opens the mesh of every worker; `hosting[cell]` is the worker of a cell.
fn open(over: &Over, hosting: &[u32], timeouts: Timeouts) -> BTreeMap<WorkerId, Mesh> {
    let (listeners, peers) = listen(hosting);
    thread::scope(|scope| {
        let open = |(me, listener)| {
            let membership = membership(over, me, hosting, &peers);
            (me, scope.spawn(move || Mesh::open(membership, listener, timeouts).unwrap()))
        };
        let opening: Vec<_> = listeners.into_iter().map(open).collect();
        opening.into_iter().map(|(me, mesh)| (me, mesh.join().unwrap())).collect()
    })
}

/// Runs the program of every cell on its own thread and returns what each returned.
fn run_cells<T: Send>(
    meshes: &BTreeMap<WorkerId, Mesh>,
    hosting: &[u32],
    program: impl Fn(&mut Endpoint) -> T + Sync,
) -> Vec<T> {
    let program = &program;
    thread::scope(|scope| {
        let start = |(cell, host): (usize, &u32)| {
            let mut endpoint = meshes[&WorkerId(*host)].endpoint(CellId(cell as u32));
            scope.spawn(move || program(&mut endpoint))
        };
        let cells: Vec<_> = hosting.iter().enumerate().map(start).collect();
        cells.into_iter().map(|cell| cell.join().unwrap()).collect()
    })
}

fn cells(ids: &[u32]) -> Vec<CellId> {
    ids.iter().copied().map(CellId).collect()
}

fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|value| value.to_bits()).collect()
}

fn an_all_reduce_has_the_same_bits_on_one_worker_two_or_four(over: &Over) {
    let group = cells(&[0, 1, 2, 3]);
    for n in [0, 1, 3, 127, 1000, 40_001] {
        let part = |cell: CellId| -> Vec<f32> {
            let mut dice = Dice(u64::from(cell.0));
            (0..n).map(|_| dice.float()).collect()
        };
        // The plain sum, in group order.
        let mut want = part(group[0]);
        for cell in &group[1..] {
            want.iter_mut().zip(part(*cell)).for_each(|(sum, value)| *sum += value);
        }
        for hosting in [[0, 0, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 2, 3]] {
            let sums = run_cells(&open(over, &hosting, TIMEOUTS), &hosting, |endpoint| {
                let mut data = part(endpoint.cell());
                endpoint.all_reduce(&group, Sum::F32(&mut data)).unwrap();
                data
            });
            for sum in sums {
                assert_eq!(bits(&sum), bits(&want), "{n} elements hosted {hosting:?}");
            }
        }
    }
}

/// One random program of sends and collectives; every cell plays its part and returns all it got.
fn play(endpoint: &mut Endpoint, n_cells: u64, seed: u64) -> Vec<Vec<u8>> {
    let (me, mut script) = (endpoint.cell(), Dice(seed));
    let mut got = Vec::new();
    for round in 0..30 {
        let mut own = Dice(seed ^ (u64::from(me.0) << 32) ^ round);
        let mut group: Vec<CellId> = (0..n_cells as u32).map(CellId).collect();
        for k in (1..group.len()).rev() {
            group.swap(k, script.below(k as u64 + 1));
        }
        group.truncate(1 + script.below(n_cells));
        let (kind, n) = (script.below(7), script.below(5000));
        let root = group[script.below(group.len() as u64)];
        if !group.contains(&me) {
            continue;
        }
        match kind {
            0 => {
                let mut parts = Vec::new();
                for _ in &group {
                    let n = own.below(2) * own.below(40_000);
                    parts.push(own.bytes(n));
                }
                got.extend(endpoint.all_to_all(&group, parts).unwrap());
            }
            1 => {
                let mut data: Vec<f32> = (0..n).map(|_| own.float()).collect();
                endpoint.all_reduce(&group, Sum::F32(&mut data)).unwrap();
                got.push(bytemuck::cast_slice(&data).to_vec());
            }
            2 => {
                let mut data: Vec<u64> = (0..n).map(|_| own.next()).collect();
                endpoint.all_reduce(&group, Sum::U64(&mut data)).unwrap();
                got.push(bytemuck::cast_slice(&data).to_vec());
            }
            3 => {
                let mut data: Vec<f64> = (0..n).map(|_| f64::from(own.float())).collect();
                let mine = endpoint.reduce_scatter(&group, Sum::F64(&mut data)).unwrap();
                got.push(bytemuck::cast_slice(&data[mine]).to_vec());
            }
            4 => {
                let mine = own.below(3000);
                got.extend(endpoint.all_gather(&group, own.bytes(mine)).unwrap());
            }
            5 => got.push(endpoint.broadcast(&group, root, own.bytes(n)).unwrap()),
            _ => {
                // Everybody sends to everybody before anybody receives.
                for other in group.iter().filter(|other| **other != me) {
                    endpoint.send(*other, own.bytes(n)).unwrap();
                }
                for other in group.iter().filter(|other| **other != me) {
                    got.push(endpoint.recv(*other).unwrap());
                }
            }
        }
    }
    got
}

fn random_programs_on_random_hostings_give_the_bytes_of_one_process(over: &Over) {
    for seed in 0..12 {
        let mut dice = Dice(seed);
        let n_cells = 1 + dice.next() % 8;
        let alone = vec![0; n_cells as usize];
        let n_workers = 1 + dice.next() % n_cells;
        let hosting: Vec<u32> = alone.iter().map(|_| dice.below(n_workers) as u32).collect();
        let play = |endpoint: &mut Endpoint| play(endpoint, n_cells, seed);
        let want = run_cells(&open(over, &alone, TIMEOUTS), &alone, play);
        let got = run_cells(&open(over, &hosting, TIMEOUTS), &hosting, play);
        assert!(got == want, "seed {seed}, hosted {hosting:?}");
    }
}

fn traffic_counts_what_leaves_the_cell_and_what_leaves_the_worker(over: &Over) {
    let hosting = [0, 0, 1];
    let traffic = run_cells(&open(over, &hosting, TIMEOUTS), &hosting, |endpoint| {
        let parts = vec![vec![1; 10], vec![2; 20], vec![]];
        endpoint.all_to_all(&cells(&[0, 1, 2]), parts).unwrap();
        endpoint.traffic()
    });
    let counts: Vec<_> = traffic
        .iter()
        .map(|t| (t.sent_bytes, t.received_bytes, t.sent_remote_bytes, t.received_remote_bytes))
        .collect();
    assert_eq!(counts, [(20, 20, 0, 10), (10, 40, 0, 20), (30, 0, 30, 0)]);
}

over_both!(
    an_all_reduce_has_the_same_bits_on_one_worker_two_or_four,
    random_programs_on_random_hostings_give_the_bytes_of_one_process,
    traffic_counts_what_leaves_the_cell_and_what_leaves_the_worker,
);
