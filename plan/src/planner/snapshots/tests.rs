//! Figures worked out by hand on a fleet of three rigs, and what must hold of any.

use super::*;
use crate::fleet::{Fleet, parse};
use crate::grid::{CellId, Grid};
use crate::job::MemorySnapshots;
use crate::plan::Generation;

const GB: u64 = 1_000_000_000;

/// Two rigs in a flat on 1 Gbit/s, one elsewhere behind 100 Mbit/s: sockets make 100 and 10 MB/s of it.
fn three_rigs(more: &str) -> Fleet {
    let text = format!(
        "apiVersion: shoal/v1\nkind: Fleet\nspec:\n  sites: {{home: {{}}, lab: {{rtt_ms: 30}}}}\n  rigs:\n    \
         - {{name: attic, gpu: RTX4090{more}}}\n    - {{name: desk, gpu: RTX4090}}\n    \
         - {{name: far, gpu: RTX4090, site: lab}}\n"
    );
    parse("fleet.yaml", &text).unwrap()
}

/// A plan of three stages, one on each rig: its cells' snapshots have 8, 6 and 4 GB.
fn plan() -> Plan {
    Plan {
        generation: Generation(1),
        grid: Grid { stages: 3, expert_shards: 1, replicas: 1 },
        stages: Vec::new(),
        experts: Vec::new(),
        hosts: (0..3).map(WorkerId).collect(),
        reasons: BTreeMap::new(),
    }
}

const BYTES: [u64; 3] = [8 * GB, 6 * GB, 4 * GB];

/// Steps of 10 s, in which the training sends so much from rig to rig. `buddies`: chosen, or as given.
fn priced(
    fleet: &Fleet,
    copies: u32,
    training: &[((usize, usize), f64)],
    buddies: Option<&[Vec<WorkerId>]>,
) -> Price {
    let network = Network::new(fleet);
    let machines = (0..3).map(|at| (WorkerId(at), at as usize)).collect();
    let places = Places { network: &network, machines };
    let chosen = buddies_near(&plan(), &BYTES, copies, &places);
    let setting = Setting {
        plan: &plan(),
        places: &places,
        bytes: &BYTES,
        buddies: buddies.unwrap_or(&chosen),
        step_s: 10.0,
        training: &training.iter().copied().collect(),
    };
    setting.price(copies)
}

fn near(got: f64, wanted: f64) {
    assert!((got - wanted).abs() < 1e-9 * wanted.abs().max(1.0), "{got}, want {wanted}");
}

/// The link of that name: bytes, seconds, the training's share of the time, seconds of delay.
fn link(price: &Price, fleet: &Fleet, name: &str) -> (u64, f64, f64, f64) {
    let network = Network::new(fleet);
    let found = price.links.iter().find(|one| network.link_name(one.link) == name);
    let one = found.unwrap_or_else(|| panic!("{name} is not among the links"));
    (one.bytes, one.seconds, one.training, one.delay_s)
}

#[test]
fn three_rigs_as_worked_out_by_hand() {
    let fleet = three_rigs("");
    // Nothing else on the links. Attic's 8 GB go to the desk, the desk's 6 GB and the far rig's 4 GB to the attic.
    let price = priced(&fleet, 1, &[], None);
    // At home a round trip takes 0.2 ms and the sockets' own 2 x 14 us: four of them. Between sites 4 x 30 ms.
    let (lan, wan) = (8.0 * (1e-4 + 14e-6), 8.0 * 0.015);
    for (name, bytes, alone_s, latency) in [
        ("attic, out", 8 * GB, 80.0, lan),
        ("desk, in", 8 * GB, 80.0, lan),
        ("desk, out", 6 * GB, 60.0, lan),
        ("attic, in", 10 * GB, 100.0, wan),
        ("far, out", 4 * GB, 40.0, wan),
        ("site lab, out", 4 * GB, 400.0, wan),
        ("site home, in", 4 * GB, 400.0, wan),
    ] {
        let (got, seconds, training, delay) = link(&price, &fleet, name);
        assert_eq!(got, bytes, "{name}");
        near(seconds, alone_s + latency);
        near(training, 0.0);
        near(delay, 0.0);
    }
    assert_eq!(price.links.len(), 7);
    // PCIe 4 x16 has 31.508 GB/s, 0.85 of which a copy gets; 3 GB/s are hashed.
    near(price.write_s, 8.0 / (0.85 * 16.0 * 16.0 / 8.0 * 128.0 / 130.0));
    near(price.hash_s, 8.0 / 3.0);
    near(price.arrive_s, 8.0 / 3.0 + 400.0 + wan);
    near(price.cost_s, price.write_s);
    // 402.8 s are 41 steps of 10 s; 0.3 s of writing are 2 % of 1.5 steps.
    assert_eq!((price.every_arriving, price.every_min), (41, 41));
    assert_eq!((price.steps_lost(41), price.lacking, price.alone), (82, 0, 0));
    near(price.cost(41), price.write_s / 410.0);
    let memory: Vec<_> = price.machines.iter().map(|one| (one.own, one.others, one.sent)).collect();
    assert_eq!(memory, [(8 * GB, 10 * GB, 8 * GB), (6 * GB, 8 * GB, 6 * GB), (4 * GB, 0, 4 * GB)]);
    let need: Vec<u64> = price.machines.iter().map(|one| one.need - PROCESS_BYTES).collect();
    assert_eq!(need, [36 * GB, 28 * GB, 8 * GB]);
    assert!(price.machines.iter().all(|one| one.have == 60 * GB) && price.short().is_none());
}

#[test]
fn the_training_s_own_traffic_is_beside_them() {
    let fleet = three_rigs("");
    // 500 MB a step from the attic to the desk: 5 of 10 s. 20 MB a step to the lab: 2 s of its uplink's 10.
    let training = [((0, 1), 5e8), ((2, 0), 2e7)];
    let price = priced(&fleet, 1, &training, None);
    let (_, seconds, share, delay) = link(&price, &fleet, "attic, out");
    near(share, 0.5);
    near(delay, 40.0);
    near(seconds, 120.0 + 8.0 * (1e-4 + 14e-6));
    let (_, seconds, share, delay) = link(&price, &fleet, "site lab, out");
    near(share, 0.2);
    near(delay, 80.0);
    near(seconds, 480.0 + 0.12);
    // The step waits for the slowest: 80 s, which are 2 % of 400 steps, and a little for writing.
    near(price.cost_s, 80.0 + price.write_s);
    assert_eq!((price.every_arriving, price.every_min), (49, 402));
    let uplink = price.links[0];
    assert_eq!(Network::new(&fleet).link_name(uplink.link), "site lab, out");
    // 4 GB in 400 steps are 10 MB a step beside the training's 20.
    near(uplink.share(400), 1.0 / 3.0);
}

#[test]
fn a_slower_link_never_lets_snapshots_be_taken_more_often() {
    let fleet = three_rigs("");
    let training = [((0, 1), 3e8), ((1, 0), 1e8), ((2, 0), 2e7), ((1, 2), 3e7)];
    let network = Network::new(&fleet);
    let machines = (0..3).map(|at| (WorkerId(at), at as usize)).collect();
    let places = Places { network: &network, machines };
    for copies in 1..=2 {
        let chosen = buddies_near(&plan(), &BYTES, copies, &places);
        let mut before = vec![0; 5];
        for rate in ["40Gbit/s", "10Gbit/s", "1Gbit/s", "300Mbit/s", "50Mbit/s", "1Mbit/s"] {
            let rate = rate.parse().unwrap();
            let of = |which: usize| {
                let mut fleet = fleet.clone();
                let sites = &mut fleet.sites;
                match which {
                    0..=2 => fleet.rigs[which].nic = rate,
                    3 => sites.get_mut("home").unwrap().uplink = rate,
                    _ => sites.get_mut("lab").unwrap().uplink = rate,
                }
                priced(&fleet, copies, &training, Some(&chosen)).every_min
            };
            let now: Vec<u64> = (0..5).map(of).collect();
            assert!(
                now.iter().zip(&before).all(|(now, before)| now >= before),
                "{now:?} {before:?}"
            );
            before = now;
        }
        assert!(before.iter().all(|every| *every > 1000), "the last is slow: {before:?}");
    }
}

#[test]
fn more_copies_are_never_cheaper() {
    let training = [((0, 1), 3e8), ((1, 2), 3e7)];
    for more in ["", ", nic: 10Gbit/s", ", nic: 100Mbit/s", ", site: lab", ", host_memory_gb: 30"] {
        let fleet = three_rigs(more);
        let all: Vec<Price> = (0..4).map(|n| priced(&fleet, n, &training, None)).collect();
        for pair in all.windows(2) {
            let (few, many) = (&pair[0], &pair[1]);
            assert!(few.every_min <= many.every_min && few.arrive_s <= many.arrive_s, "{more}");
            assert!(few.cost_s <= many.cost_s, "{more}");
            for (few, many) in few.machines.iter().zip(&many.machines) {
                assert!(few.need <= many.need && few.sent <= many.sent, "{more}");
            }
        }
        assert!(all[0].links.is_empty() && all[0].cost_s < all[1].cost_s + 1e-12);
        // Three rigs have room for two copies elsewhere.
        assert_eq!(all.iter().map(|price| price.lacking).collect::<Vec<_>>(), [0, 0, 0, 3]);
    }
}

fn choice(every: u64, copies: u32, given: (bool, bool)) -> Choice {
    let memory = MemorySnapshots { every, copies };
    Choice { memory, every_given: given.0, copies_given: given.1, steps: 20_000 }
}

#[test]
fn the_plan_chooses_where_the_manifest_does_not() {
    let fleet = three_rigs("");
    let network = Network::new(&fleet);
    let price = priced(&fleet, 1, &[], None);
    let of = |choice| choose(&price, choice, &network);
    let silent = (false, false);
    assert_eq!(of(choice(10, 1, silent)), Ok(Chosen::Fewest(41)));
    assert_eq!(of(choice(100, 1, silent)), Ok(Chosen::Default(100)));
    assert_eq!(of(choice(41, 1, (true, false))), Ok(Chosen::Asked(41)));
    assert_eq!(of(choice(0, 1, (true, false))), Ok(Chosen::Asked(0)));
    assert_eq!(of(Choice { steps: 40, ..choice(10, 1, silent) }), Ok(Chosen::TooSlow));
    // What costs more than 2 % of the time and arrives is taken at the manifest's word.
    let busy = priced(&fleet, 1, &[((2, 0), 2e7)], None);
    assert_eq!(choose(&busy, choice(60, 1, (true, false)), &network), Ok(Chosen::Asked(60)));
    assert_eq!(choose(&busy, choice(60, 1, silent), &network), Ok(Chosen::Fewest(402)));

    let small = three_rigs(", host_memory_gb: 30");
    let price = priced(&small, 2, &[], None);
    let got = choose(&price, choice(10, 2, silent), &Network::new(&small));
    assert_eq!((got.clone(), got.map(Chosen::every)), (Ok(Chosen::NoRoom), Ok(0)));
}

#[test]
fn a_refusal_names_the_link_or_the_rig_and_what_to_set() {
    let fleet = three_rigs("");
    let price = priced(&fleet, 1, &[((2, 0), 2e7)], None);
    let refused = choose(&price, choice(48, 1, (true, true)), &Network::new(&fleet)).unwrap_err();
    assert_eq!(refused.path, "spec.checkpoint.memory.every");
    assert_eq!(
        refused.what,
        "a snapshot every 48 steps is too often: its copies arrive after 49 steps (8.0 min), as 4.0 GB take 8.0 min \
         through site lab, out (10.0 MB/s, 20 % of which the training needs)"
    );
    assert_eq!(
        refused.help,
        "set every: 49 (every: 402 costs no more than 2 % of the time), or copies: 0, with which a lost rig costs the \
         steps since the last checkpoint"
    );

    // Attic keeps two of its own 8 GB and of others' 10 GB: not in 30 GB, of which 4 are the system's.
    let mut small = three_rigs("");
    for rig in &mut small.rigs {
        rig.host_memory_gb = 30.0;
    }
    let price = priced(&small, 2, &[], None);
    let network = Network::new(&small);
    let refused = choose(&price, choice(10, 2, (true, true)), &network).unwrap_err();
    assert_eq!(
        (refused.path, refused.what.as_str()),
        (
            "spec.checkpoint.memory.every",
            "snapshots do not fit into the memory of attic: 36.1 GB needed (2 of its own cells' 8.0 GB and of 10.0 GB \
             of others'), 26.0 GB there"
        )
    );
    assert_eq!(
        refused.help,
        "set fewer copies, or copies: 0, with which attic needs 16.1 GB, or every: 0, or give attic more memory"
    );
    let copies = choose(&price, choice(10, 2, (false, true)), &network).unwrap_err();
    assert_eq!(copies.path, "spec.checkpoint.memory.copies");
    small.rigs[0].host_memory_gb = 19.0;
    let price = priced(&small, 1, &[], None);
    let refused = choose(&price, choice(10, 1, (true, false)), &Network::new(&small)).unwrap_err();
    assert!(refused.help.starts_with("set every: 0, as its own alone are too much"), "{refused}");
}

#[test]
fn one_machine_copies_over_no_link() {
    let fleet = parse(
        "fleet.yaml",
        "apiVersion: shoal/v1\nkind: Fleet\nspec:\n  rigs: [{name: a, gpu: RTX4090, count: 3}]\n",
    );
    let fleet = fleet.unwrap();
    let network = Network::new(&fleet);
    let machines = (0..3).map(|at| (WorkerId(at), 0)).collect();
    let places = Places { network: &network, machines };
    let buddies = buddies_near(&plan(), &BYTES, 1, &places);
    let setting = Setting {
        plan: &plan(),
        places: &places,
        bytes: &BYTES,
        buddies: &buddies,
        step_s: 10.0,
        training: &BTreeMap::new(),
    };
    let price = setting.price(1);
    assert!(price.links.is_empty() && price.machines.len() == 1);
    assert_eq!(
        (price.lacking, price.alone),
        (0, 3),
        "another worker has a copy, another machine has none"
    );
    let one = price.machines[0];
    assert_eq!((one.own, one.others, one.sent), (18 * GB, 18 * GB, 0));
    assert_eq!(one.need, 72 * GB + 3 * PROCESS_BYTES);
    // Three cards write at once, and share 60 GB/s: 20 each, less than the bus.
    near(price.write_s, 8.0 / 20.0);
    assert_eq!(price.short().map(|one| one.machine), Some(0));
    assert_eq!(plan().host(CellId(2)), WorkerId(2));
}
