//! What snapshots in memory take on a fleet (`spec.checkpoint.memory`): how long the copies are on their way beside the
//! training's own traffic, what a step waits for them, and the memory of every machine. `choose` says how often they can be taken.

mod choose;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::{Layout, Prediction, Question};
use crate::buddies::{Places, STEPS_KEPT, buddies_near};
use crate::cost::efficiency::{COPY_ROUND_TRIPS, HASH_BYTES_PER_S};
use crate::cost::links::{Link, Network};
use crate::job::Job;
use crate::memory::{PROCESS_BYTES, cell_bytes};
use crate::plan::{Plan, WorkerId};
use crate::planner::Candidate;

pub use choose::{Choice, Chosen, Refusal, choose, gb};

/// The share of the time that snapshots may cost.
pub const COST_MAX: f64 = 0.02;

/// Who keeps what, where, and what else is on the links.
#[derive(Clone, Debug)]
pub struct Setting<'a> {
    pub plan: &'a Plan,
    pub places: &'a Places<'a>,
    /// Of a snapshot of each cell, in cell order.
    pub bytes: &'a [u64],
    /// Who holds copies of each cell, in cell order.
    pub buddies: &'a [Vec<WorkerId>],
    pub step_s: f64,
    /// Bytes of a step's training from one machine to another.
    pub training: &'a BTreeMap<(usize, usize), f64>,
}

/// A link, and what the copies of one snapshot of all cells do on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkUse {
    pub link: Link,
    pub bytes: u64,
    /// Seconds until they are through, while the training sends as well.
    pub seconds: f64,
    /// The share of the time that the training itself needs the link.
    pub training: f64,
    /// Seconds that the training waits for them, of one snapshot.
    pub delay_s: f64,
    /// Bytes of the training's step.
    pub training_bytes: f64,
}

/// The memory of a machine, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineUse {
    pub machine: usize,
    /// A snapshot of its own cells.
    pub own: u64,
    /// A snapshot of the cells it is buddy for.
    pub others: u64,
    /// What leaves it, of one snapshot.
    pub sent: u64,
    /// Two of all it holds, and its processes.
    pub need: u64,
    pub have: u64,
}

/// What one snapshot of all cells takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Price {
    pub step_s: f64,
    /// What a step waits for: the states on their way from the cards into memory.
    pub write_s: f64,
    /// Hashing, before anything is sent.
    pub hash_s: f64,
    /// Until the last copy has arrived, hashing included.
    pub arrive_s: f64,
    /// What the training loses to one snapshot: `write_s`, and what its messages wait for copies.
    pub cost_s: f64,
    /// Every machine with a cell.
    pub machines: Vec<MachineUse>,
    /// Every link with copies on it, the slowest first.
    pub links: Vec<LinkUse>,
    /// Cells that have fewer copies elsewhere than were asked for.
    pub lacking: u32,
    /// Cells whose state is on one machine alone: lost with it.
    pub alone: u32,
    /// The fewest steps between two snapshots: copies arrive before the next, and cost `COST_MAX`.
    pub every_min: u64,
    /// The fewest for the first of these alone.
    pub every_arriving: u64,
}

/// The price of a candidate's snapshots.
pub fn price(
    question: &Question<'_>,
    layout: &Layout<'_>,
    candidate: &Candidate,
    prediction: &Prediction,
) -> Price {
    let job = candidate.job(question.job);
    let plan = candidate.committed();
    let bytes = snapshot_bytes(&job, &plan);
    let machines =
        candidate.cards.iter().map(|card| (WorkerId(*card as u32), layout.machines[*card]));
    let places = Places { network: &layout.network, machines: machines.collect() };
    let copies = job.checkpoint.memory.copies;
    let buddies = buddies_near(&plan, &bytes, copies, &places);
    let setting = Setting {
        plan: &plan,
        places: &places,
        bytes: &bytes,
        buddies: &buddies,
        step_s: prediction.step_s,
        training: &prediction.bytes_between,
    };
    setting.price(copies)
}

/// Bytes of a snapshot of each cell, in cell order. Twins have the same.
fn snapshot_bytes(job: &Job, plan: &Plan) -> Vec<u64> {
    let mut known: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    let of = |id| {
        let at = plan.grid.cell(id);
        let bytes = known.entry((at.stage, at.expert_shard));
        *bytes.or_insert_with(|| cell_bytes(job, plan, id).snapshot())
    };
    plan.grid.cells().map(of).collect()
}

impl Setting<'_> {
    /// The price, where `copies` were asked for.
    pub fn price(&self, copies: u32) -> Price {
        let machines = self.machines();
        let machines_are_one = machines.len() < 2;
        let links = self.links();
        let (write_s, hash_s) = (self.write_s(), self.hash_s());
        let through = links.iter().map(|link| link.seconds).fold(self.sending_s(), f64::max);
        let arrive_s = hash_s + through;
        let delay_s = links.iter().map(|link| link.delay_s).fold(0.0, f64::max);
        let cost_s = write_s + delay_s;
        let every_arriving = at_least(arrive_s / self.step_s);
        Price {
            step_s: self.step_s,
            write_s,
            hash_s,
            arrive_s,
            cost_s,
            machines,
            links,
            lacking: self.with_fewer(copies, machines_are_one),
            alone: self.with_fewer(1, false),
            every_min: every_arriving.max(at_least(cost_s / (COST_MAX * self.step_s))),
            every_arriving,
        }
    }

    fn network(&self) -> &Network<'_> {
        self.places.network
    }

    /// Every copy: from which worker, on which machine, to which machine, and its bytes.
    fn flows(&self) -> impl Iterator<Item = (WorkerId, usize, usize, u64)> {
        let machine = |worker: WorkerId| self.places.machines[&worker];
        self.plan.grid.cells().flat_map(move |cell| {
            let (host, bytes) = (self.plan.host(cell), self.bytes[cell.0 as usize]);
            let to = self.buddies[cell.0 as usize].iter();
            to.map(move |to| (host, machine(host), machine(*to), bytes))
        })
    }

    fn machines(&self) -> Vec<MachineUse> {
        let mut all: BTreeMap<usize, MachineUse> = BTreeMap::new();
        for machine in self.places.machines.values() {
            let have = self.network().host_bytes(*machine);
            let one = MachineUse { machine: *machine, have, ..MachineUse::default() };
            all.entry(*machine).or_insert(one).need += PROCESS_BYTES;
        }
        for (host, bytes) in self.plan.hosts.iter().zip(self.bytes) {
            let own = &mut all.get_mut(&self.places.machines[host]).expect("it has a cell").own;
            *own = own.saturating_add(*bytes);
        }
        for (_, from, to, bytes) in self.flows() {
            let to_itself = from == to;
            let others = &mut all.get_mut(&to).expect("it has a cell").others;
            *others = others.saturating_add(bytes);
            let sent = &mut all.get_mut(&from).expect("it has a cell").sent;
            *sent = sent.saturating_add(if to_itself { 0 } else { bytes });
        }
        for one in all.values_mut() {
            let held = one.own.saturating_add(one.others).saturating_mul(STEPS_KEPT);
            one.need = one.need.saturating_add(held);
        }
        all.into_values().collect()
    }

    /// Bytes of copies over what a link carries; while the training needs a share of the time for itself, both are
    /// served in turn. A second of copies then costs the training that share of a second, and itself as much.
    fn links(&self) -> Vec<LinkUse> {
        let mut copies: BTreeMap<Link, (u64, f64)> = BTreeMap::new();
        for (_, from, to, bytes) in self.flows() {
            let latency_s = self.latency_s(from, to);
            for link in self.network().path(from, to) {
                let (sum, latency) = copies.entry(link).or_default();
                *sum = sum.saturating_add(bytes);
                *latency = latency.max(latency_s);
            }
        }
        let mut training: BTreeMap<Link, f64> = BTreeMap::new();
        for ((from, to), bytes) in self.training {
            for link in self.network().path(*from, *to) {
                *training.entry(link).or_default() += bytes;
            }
        }
        let of = |(link, (bytes, latency_s)): (Link, (u64, f64))| {
            let rate = self.network().rate(link);
            let training_bytes = training.get(&link).copied().unwrap_or(0.0);
            let training = (training_bytes / rate / self.step_s).min(1.0);
            let alone_s = bytes as f64 / rate;
            let delay_s = training * alone_s;
            let seconds = latency_s + alone_s + delay_s;
            LinkUse { link, bytes, seconds, training, delay_s, training_bytes }
        };
        let mut links: Vec<LinkUse> = copies.into_iter().map(of).collect();
        links.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then(a.link.cmp(&b.link)));
        links
    }

    fn latency_s(&self, from: usize, to: usize) -> f64 {
        2.0 * COPY_ROUND_TRIPS * self.network().between(from, to).latency_s
    }

    /// Of the slowest worker, which sends one copy after the other, and each no faster than the other end hashes it.
    fn sending_s(&self) -> f64 {
        let mut all: BTreeMap<WorkerId, f64> = BTreeMap::new();
        for (host, from, to, bytes) in self.flows().filter(|(_, from, to, _)| from != to) {
            let path = self.network().path(from, to).into_iter();
            let rate = path.map(|link| self.network().rate(link)).fold(HASH_BYTES_PER_S, f64::min);
            *all.entry(host).or_default() += self.latency_s(from, to) + bytes as f64 / rate;
        }
        all.into_values().fold(0.0, f64::max)
    }

    /// All cards of a machine write at once.
    fn write_s(&self) -> f64 {
        let mut cards: BTreeMap<usize, usize> = BTreeMap::new();
        for machine in self.places.machines.values() {
            *cards.entry(*machine).or_default() += 1;
        }
        let of = |(worker, bytes): (WorkerId, u64)| {
            let machine = self.places.machines[&worker];
            bytes as f64 / self.network().into_memory(machine, cards[&machine])
        };
        self.by_worker().into_iter().map(of).fold(0.0, f64::max)
    }

    fn hash_s(&self) -> f64 {
        let most = self.by_worker().into_values().max().unwrap_or(0);
        most as f64 / HASH_BYTES_PER_S
    }

    /// Bytes of a snapshot of each worker's own cells.
    fn by_worker(&self) -> BTreeMap<WorkerId, u64> {
        let mut all: BTreeMap<WorkerId, u64> = BTreeMap::new();
        for (host, bytes) in self.plan.hosts.iter().zip(self.bytes) {
            let sum = all.entry(*host).or_default();
            *sum = sum.saturating_add(*bytes);
        }
        all
    }

    /// Cells whose state is on fewer than so many machines beside their own; or workers, where that is what counts.
    fn with_fewer(&self, copies: u32, workers: bool) -> u32 {
        let place = |worker: WorkerId| {
            if workers { worker.0 as usize } else { self.places.machines[&worker] }
        };
        let firsts = self.plan.grid.cells().filter(|cell| self.plan.grid.cell(*cell).replica == 0);
        let few = firsts.filter(|cell| {
            let twins = self.plan.grid.replica_group(*cell).into_iter();
            let mut places: Vec<usize> = twins.map(|twin| place(self.plan.host(twin))).collect();
            places.extend(self.buddies[cell.0 as usize].iter().map(|worker| place(*worker)));
            places.sort_unstable();
            places.dedup();
            places.len() <= copies as usize
        });
        few.count() as u32
    }
}

impl Price {
    /// The machine that lacks most memory.
    pub fn short(&self) -> Option<&MachineUse> {
        let lack = |one: &&MachineUse| one.need.saturating_sub(one.have);
        self.machines.iter().rev().max_by_key(lack).filter(|one| lack(one) > 0)
    }

    /// What snapshots cost of the time, taken every so many steps.
    pub fn cost(&self, every: u64) -> f64 {
        self.cost_s / (self.step_s * every.max(1) as f64)
    }

    /// Steps that a lost machine costs at most: the newest snapshot may still be on its way.
    pub fn steps_lost(&self, every: u64) -> u64 {
        every.saturating_add(at_least(self.arrive_s / self.step_s))
    }
}

impl LinkUse {
    /// The share of what the link carries that is copies, with a snapshot every so many steps.
    pub fn share(&self, every: u64) -> f64 {
        let copies = self.bytes as f64 / every.max(1) as f64;
        if copies > 0.0 { copies / (copies + self.training_bytes) } else { 0.0 }
    }
}

/// Whole steps, at least one.
fn at_least(steps: f64) -> u64 {
    // Saturates where it is more than anybody counts.
    steps.ceil().max(1.0) as u64
}
