//! The bound grid by grid, where expert groups stay inside machines, whose cards are all alike.
//!
//! A *unit* is an expert group: so many cards of one machine. For a trial length of the step it is known how many whole
//! layers a unit has time and room for, and which machines' networks carry what a stage must send; the least length at
//! which the layers of the network find a place is a bound. It is found by bisection, for every number of expert shards
//! and replicas and every range of microbatch sizes, and the least of all is the answer.

use super::super::{Layout, Question};
use super::row_bytes;
use super::unit::{Room, room, unit_times};
use crate::arithmetic;

/// Prices of a place one further from the end, in layers: see `Case::holds`.
const PRICES: [f64; 7] = [0.0, 0.02, 0.04, 0.07, 0.1, 0.15, 0.25];

/// A machine in one kind of grid.
struct Machine {
    /// Expert groups in it.
    units: usize,
    room: Room,
    /// Seconds for one sequence in a dense layer, in a mixture, and in what the last stage has besides.
    dense: f64,
    moe: f64,
    last: f64,
    /// Of `moe`, the forward without exchanges.
    forward: f64,
    /// Bytes a second into its network.
    nic: f64,
    site: usize,
}

/// One kind of grid, microbatches of one range of sizes.
struct Case<'a> {
    question: &'a Question<'a>,
    machines: Vec<Machine>,
    replicas: f64,
    layers: f64,
    dense_layers: f64,
    batch: f64,
    /// Sequences of an expert group that are worked on at a time: no fewer than, and no more than.
    at_once: [f64; 2],
    /// Bytes of a sequence's hidden states between two stages.
    hop: f64,
    /// Bytes of a layer's gradients that replicas sum.
    layer_gradients: f64,
    /// The fastest link between two sites; infinite where there is only one.
    between_sites: f64,
}

/// Seconds below which no such grid's step can be.
pub(super) fn bound(question: &Question<'_>, layout: &Layout<'_>) -> f64 {
    let (job, fleet) = (question.job, question.fleet);
    let most = fleet.rigs.iter().map(|rig| rig.count).max().unwrap_or(1);
    let cards = fleet.gpus();
    let mut least = f64::INFINITY;
    for shards in 1..=most.min(job.model.n_routed_experts.max(1)) {
        // From `low` sequences at a time to fewer than twice as many.
        let mut low = 1_u32;
        while low <= job.training.batch {
            for replicas in 1..=(cards / shards).min(job.training.batch) {
                let case = Case::new(question, layout, (shards, replicas), low);
                least = case.bound(least);
                // More copies than there is room for.
                if case.room() < f64::from(replicas) * case.layers {
                    break;
                }
            }
            low *= 2;
        }
    }
    least
}

impl<'a> Case<'a> {
    fn new(
        question: &'a Question<'a>,
        layout: &Layout<'_>,
        (shards, replicas): (u32, u32),
        low: u32,
    ) -> Self {
        let (job, fleet, model) = (question.job, question.fleet, &question.job.model);
        let names: Vec<&str> = fleet.sites.keys().map(String::as_str).collect();
        let of = |machine: usize| -> Machine {
            let rig = &fleet.rigs[layout.network.rig(machine)];
            let units = (rig.count / shards) as usize;
            let times = unit_times(question, layout, machine, shards, low);
            let [dense, moe, last, forward] = times;
            Machine {
                units,
                room: room(question, layout.network.rig(machine), shards, low),
                dense,
                moe,
                last,
                forward,
                nic: layout.network.nic(machine),
                site: names.iter().position(|name| *name == rig.site).unwrap_or(0),
            }
        };
        // Machines of a rig are alike.
        let mut machines: Vec<Machine> = Vec::new();
        for machine in 0..layout.network.machines() {
            machines.push(of(machine));
        }
        for (site, name) in names.iter().enumerate() {
            machines.extend(Self::left_over(question, layout, shards, low, (site, name)));
        }
        let dense_layers = (0..model.num_hidden_layers).filter(|at| !model.is_moe(*at)).count();
        let layer = model.num_hidden_layers - 1;
        let experts = arithmetic::routed_linears(model, layer, model.n_routed_experts) as f64;
        let copies = f64::from(replicas);
        let gradients =
            arithmetic::dense_linears(model, layer) as f64 + experts * (copies - 1.0) / copies;
        let count = layout.network.machines();
        let pairs = (0..count).flat_map(|a| (0..a).map(move |b| (a, b)));
        let apart = pairs.filter(|(a, b)| machines[*a].site != machines[*b].site);
        let between_sites = apart
            .map(|(a, b)| layout.network.between(a, b).bytes_per_s)
            .fold(f64::NEG_INFINITY, f64::max);
        Self {
            question,
            machines,
            replicas: copies,
            layers: f64::from(model.num_hidden_layers),
            dense_layers: dense_layers as f64,
            batch: f64::from(job.training.batch),
            at_once: [low, (2 * low - 1).min(job.training.batch)].map(|n| f64::from(n * shards)),
            hop: f64::from(job.training.sequence) * row_bytes(job),
            layer_gradients: 4.0 * gradients,
            between_sites: if between_sites > 0.0 { between_sites } else { f64::INFINITY },
        }
    }

    /// The cards of a site that their machines' units leave over, as units of cards as fast and as roomy as the best of them.
    ///
    /// A card that does the share `x` of a unit's work sends or receives `x (1 - x)` of its rows at least: `x` of the tokens
    /// are its own and choose other cards' experts, or `x` of the experts are its own and chosen by others' tokens.
    fn left_over(
        question: &Question<'_>,
        layout: &Layout<'_>,
        shards: u32,
        low: u32,
        (site, name): (usize, &str),
    ) -> Option<Machine> {
        let fleet = question.fleet;
        let here = (0..layout.network.machines()).filter(|machine| {
            let rig = &fleet.rigs[layout.network.rig(*machine)];
            rig.site == name && !rig.count.is_multiple_of(shards)
        });
        let here: Vec<usize> = here.collect();
        let cards: u32 =
            here.iter().map(|at| fleet.rigs[layout.network.rig(*at)].count % shards).sum();
        if cards < shards {
            return None;
        }
        let alone = here.iter().map(|at| unit_times(question, layout, *at, 1, low * shards));
        let alone = alone.reduce(|a, b| [0, 1, 2, 3].map(|at| a[at].min(b[at])))?;
        let nic = here.iter().map(|at| layout.network.nic(*at)).fold(0.0, f64::max);
        let wide = row_bytes(question.job);
        let narrow = wide.min(f64::from(question.job.model.hidden_size));
        let sequence = f64::from(question.job.training.sequence);
        let exchange = sequence * 2.0 * (narrow + wide) / nic;
        let others = f64::from(shards - 1);
        let of_share = |most: f64, exchange: f64, whole: f64| {
            (whole * most).max(whole * (1.0 - most) / others) + exchange * most * (1.0 - most)
        };
        let best = |exchange: f64, whole: f64| {
            let shares = (0..=64).map(|at| f64::from(at) / 64.0);
            let shares = shares.filter(|most| *most * f64::from(shards) >= 1.0);
            // Between two shares of the grid it is no more than one step's work less.
            let least =
                shares.map(|most| of_share(most, exchange, whole)).fold(f64::INFINITY, f64::min);
            least - (whole + exchange) / 64.0
        };
        let room = here.iter().map(|at| room(question, layout.network.rig(*at), shards, low));
        let room = room.reduce(|a, b| if a.free > b.free { a } else { b })?;
        let all = f64::from(shards);
        Some(Machine {
            units: (cards / shards) as usize,
            // Of cards that are all as roomy as the best an even split holds most.
            room,
            dense: alone[0] / all,
            moe: best(exchange, alone[1]).max(alone[1] / all),
            last: alone[2] / all,
            forward: alone[3] / all,
            nic: nic * all,
            site,
        })
    }

    /// Layers of all units together, one copy or several.
    fn room(&self) -> f64 {
        self.machines.iter().map(|machine| machine.units as f64 * machine.room.layers(1.0)[0]).sum()
    }

    /// The least length, or `least` if that is less.
    fn bound(&self, mut least: f64) -> f64 {
        let all: Vec<usize> = (0..self.machines.len()).collect();
        least = self.least(&all, self.between_sites, least);
        for site in 0..self.question.fleet.sites.len() {
            let here = all.iter().copied().filter(|at| self.machines[*at].site == site);
            least = self.least(&here.collect::<Vec<usize>>(), f64::INFINITY, least);
        }
        least
    }

    /// The least length on these machines, if some stage's messages cross at `crossing` bytes a second.
    fn least(&self, machines: &[usize], crossing: f64, least: f64) -> f64 {
        // The replica with most sequences crosses with so many at least.
        let sent = self.batch / self.replicas * self.hop / crossing;
        let units: Vec<usize> = machines.iter().map(|at| self.machines[*at].units).collect();
        if self.replicas < 1.5 {
            return self.chained(machines, sent, least);
        }
        // Replicas of a stage are all in one machine, where they share the batch as its cards are alike; or the gradients
        // of some stage cross the network, and where a replica keeps to its site, they cross between sites.
        let together = self.chained(machines, sent, least);
        let summed = self.layer_gradients / crossing;
        let inside = machines.iter().zip(&units);
        let inside = inside.filter(|(_, units)| **units as f64 >= self.replicas);
        let inside: Vec<usize> = inside.map(|(at, _)| *at).collect();
        if !self.copies_fit(machines) {
            return together.min(least);
        }
        let pipeline =
            bisect(0.0, |seconds| self.flows(machines, seconds)).max(self.handed_on(machines));
        let sums = self.sums(machines, &inside);
        let apart = if crossing.is_finite() {
            (pipeline.max(sent) + sums).min(pipeline + sums.max(summed))
        } else {
            pipeline + sums
        };
        together.min(apart).min(least)
    }

    /// Seconds in which the replica with most sequences hands their hidden states on, if no machine holds the whole model.
    fn handed_on(&self, machines: &[usize]) -> f64 {
        let here = machines.iter().map(|at| &self.machines[*at]);
        let whole = |one: &Machine| one.units as f64 * one.room.layers(1.0)[0] >= self.layers;
        if here.clone().any(whole) {
            return 0.0;
        }
        let fastest = here.map(|machine| machine.nic).fold(0.0, f64::max);
        self.batch / self.replicas * self.hop / fastest
    }

    /// Whether there is room for every replica's layers and what its stages have under way, as `holds` looks at one.
    fn copies_fit(&self, machines: &[usize]) -> bool {
        let pool: Vec<(&Machine, usize)> = machines
            .iter()
            .map(|at| (&self.machines[*at], self.machines[*at].units))
            .filter(|(_, units)| *units > 0)
            .collect();
        let units: usize = pool.iter().map(|(_, units)| units).sum();
        let copies = self.replicas as usize;
        let rounds = (self.batch / self.replicas / self.at_once[1]).ceil();
        (1..=(units / copies).min(self.layers as usize)).any(|n| {
            let at = |machine: &Machine, k: usize| machine.room.layers((k as f64).min(rounds));
            let (mut first, mut last) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
            for (machine, _) in &pool {
                let [mid, start, _] = at(machine, n);
                first = first.max(start - mid);
                let [mid, _, end] = at(machine, 1);
                last = last.max(end - mid);
            }
            let table: Vec<(Vec<f64>, usize)> = pool
                .iter()
                .map(|(machine, units)| ((1..=n).map(|k| at(machine, k)[0]).collect(), *units))
                .collect();
            let most = copies as f64 * self.layers;
            PRICES.iter().all(|price| {
                let sum = dearest(&table, *price, n * copies);
                sum + copies as f64 * (first + last) >= most
            })
        })
    }

    /// One replica, or all replicas of a stage in one machine. What needs no look at the stages' places comes first, as it
    /// rules most out.
    fn chained(&self, machines: &[usize], sent: f64, least: f64) -> f64 {
        let rough = bisect(0.0, |seconds| self.fits(machines, seconds, false)).max(sent);
        if rough >= least || self.fits(machines, rough * (1.0 + 1e-6), true) {
            return rough.min(least);
        }
        if !self.fits(machines, least.min(1e9), true) {
            return least;
        }
        bisect(rough, |seconds| self.fits(machines, seconds, true)).min(least)
    }

    /// The sum of gradients over the network, where some stage's replicas are in several machines.
    fn sums(&self, machines: &[usize], inside: &[usize]) -> f64 {
        let nic = machines.iter().map(|at| self.machines[*at].nic);
        let (all, fastest) =
            nic.fold((0.0, 0.0_f64), |(all, most), nic| (all + nic, most.max(nic)));
        let held_inside: f64 = inside
            .iter()
            .map(|at| {
                let machine = &self.machines[*at];
                (machine.units as f64 / self.replicas).floor() * machine.room.layers(1.0)[0]
            })
            .sum();
        let crossing = (self.layers - held_inside).max(1.0) * self.layer_gradients;
        // Each machine's network carries what its stages sum, and two machines at least have each.
        (self.layer_gradients / fastest).max(2.0 * crossing / all)
    }

    /// Whether all layers of one replica find time and room; with a look at the stages' places, or without.
    fn fits(&self, machines: &[usize], seconds: f64, places: bool) -> bool {
        let sent = self.batch * self.hop;
        let mut pool: Vec<(&Machine, usize)> = Vec::new();
        let mut ends: Vec<(&Machine, usize)> = Vec::new();
        for machine in machines.iter().map(|at| &self.machines[*at]) {
            let units = machine.units / self.replicas as usize;
            if units == 0 {
                continue;
            }
            // A stage in the middle sends on, and back; two stages of a machine share that.
            let both = if units == 1 { 2.0 } else { 1.0 };
            if both * sent / machine.nic <= seconds {
                pool.push((machine, units));
            } else {
                // All of it in one machine: nothing is sent.
                if self.chain(&[(machine, units)], seconds, places) {
                    return true;
                }
                if sent / machine.nic <= seconds {
                    ends.push((machine, units));
                }
            }
        }
        // Two machines at the ends of the pipeline send in one direction only.
        let whole = |one: &(&Machine, usize)| self.layers_in(one.0, seconds, 1.0)[0] * one.1 as f64;
        ends.sort_by(|a, b| whole(b).total_cmp(&whole(a)));
        pool.extend(ends.into_iter().take(2));
        self.chain(&pool, seconds, places)
    }

    /// Whether these machines hold all layers.
    fn chain(&self, pool: &[(&Machine, usize)], seconds: f64, places: bool) -> bool {
        let units: usize = pool.iter().map(|(_, units)| units).sum();
        if !places {
            return self.holds(pool, seconds, None);
        }
        (1..=units.min(self.layers as usize)).any(|stages| self.holds(pool, seconds, Some(stages)))
    }

    /// The same of so many stages. The stage with `k - 1` behind it has `k` microbatches under way at least, and starts and
    /// ends later than the first one. Each `k` belongs to one stage, but a unit is free to choose its own here, at a price for
    /// the early places: Lagrange's relaxation of the assignment, which bounds it from above at any price.
    fn holds(&self, pool: &[(&Machine, usize)], seconds: f64, stages: Option<usize>) -> bool {
        let n = stages.unwrap_or(1);
        let fill = pool.iter().map(|(machine, _)| machine.forward).fold(f64::INFINITY, f64::min);
        let fill = fill * self.at_once[0];
        let rounds = (self.batch / self.replicas / self.at_once[1]).ceil();
        let at = |machine: &Machine, k: usize| {
            self.layers_in(machine, seconds - (n - k) as f64 * fill, (k as f64).min(rounds))
        };
        let table: Vec<Vec<f64>> =
            pool.iter().map(|(machine, _)| (1..=n).map(|k| at(machine, k)[0]).collect()).collect();
        let (mut first, mut last) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
        for (machine, _) in pool {
            let [mid, start, _] = at(machine, n);
            first = first.max(start - mid);
            let [mid, _, end] = at(machine, 1);
            last = last.max(end - mid);
        }
        let table: Vec<(Vec<f64>, usize)> =
            table.into_iter().zip(pool).map(|(row, (_, units))| (row, *units)).collect();
        // Without a look at places, any number of units.
        let many = stages.unwrap_or(usize::MAX);
        PRICES.iter().all(|price| dearest(&table, *price, many) + first + last >= self.layers)
    }

    /// Several replicas: whether the batch finds time, and every copy of the layers room.
    fn flows(&self, machines: &[usize], seconds: f64) -> bool {
        let (mut done, mut room) = (0.0, 0.0);
        for machine in machines.iter().map(|at| &self.machines[*at]).filter(|one| one.units > 0) {
            let layers = machine.units as f64 * machine.room.layers(1.0)[0];
            room += layers;
            let arithmetic = machine.units as f64 * seconds / machine.moe;
            let fed = layers * seconds * machine.nic / self.hop;
            done += if layers >= self.layers { arithmetic } else { arithmetic.min(fed) };
        }
        room >= self.replicas * self.layers
            && done >= self.batch * (self.layers - self.dense_layers)
    }

    /// Whole layers of a unit that trains every sequence: in the middle, at the start, and at the end of the pipeline.
    fn layers_in(&self, machine: &Machine, seconds: f64, under_way: f64) -> [f64; 3] {
        let seconds = seconds * self.replicas;
        let moe = self.batch * machine.moe;
        let count = |seconds: f64| (seconds / moe * (1.0 + 1e-9)).floor().max(0.0);
        let dense = self.dense_layers * self.batch * machine.dense;
        let start = if dense <= seconds { self.dense_layers + count(seconds - dense) } else { 0.0 };
        let end = count(seconds - self.batch * machine.last);
        let room = machine.room.layers(under_way);
        [count(seconds).min(room[0]), start.min(room[1]), end.min(room[2])]
    }
}

/// The most layers of so many units, each free to choose its place from the end at a price: `table` has each unit's layers at every
/// place, and how many units are alike.
fn dearest(table: &[(Vec<f64>, usize)], price: f64, many: usize) -> f64 {
    let mut values: Vec<f64> = Vec::new();
    for (row, units) in table {
        let middle = (row.len() + 1) as f64 / 2.0;
        let paid = row.iter().zip(1..).map(|(layers, k)| layers + price * (f64::from(k) - middle));
        values.extend(std::iter::repeat_n(paid.fold(f64::NEG_INFINITY, f64::max), *units));
    }
    values.sort_by(|a, b| b.total_cmp(a));
    values.into_iter().take(many).sum()
}

/// The least length above `low` that is enough, a little less.
fn bisect(mut low: f64, enough: impl Fn(f64) -> bool) -> f64 {
    let mut high = low.max(0.5) * 2.0;
    while !enough(high) {
        low = high;
        high *= 2.0;
        if high > 1e9 {
            return f64::INFINITY;
        }
    }
    while high - low > 1e-3 * high {
        let middle = f64::midpoint(low, high);
        if enough(middle) { high = middle } else { low = middle }
    }
    low
}
