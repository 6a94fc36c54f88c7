//! How long a step of a candidate takes, and what every cell keeps: the schedule's own slot lists, timed by the cost
//! model, with the memory that `memory` counts.

mod room;
mod traffic;

use std::collections::BTreeMap;

use super::{Candidate, Layout, Question};
use crate::arithmetic;
use crate::batch::BatchDivision;
use crate::cost::compute::{Card, Halves, LayerTimes, Load};
use crate::cost::efficiency::RESERVED_GIB;
use crate::cost::links::{Exchange, Member, Way};
use crate::job::{Job, Precision};
use crate::memory::CellBytes;
use crate::schedule::timeline::{Timeline, Wire, run};
use crate::schedule::{Piece, Slot, Work, run_dual_pipe};

pub(crate) use traffic::sums;

/// Seconds of a step by what they are spent on, at the busiest stage of the slowest replica. They add up to the step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Kinds {
    pub compute: f64,
    /// Exchanges of tokens between expert shards that hide behind nothing.
    pub exchange: f64,
    /// Waiting for messages of other stages while they are under way.
    pub messages: f64,
    /// Waiting for other stages.
    pub bubble: f64,
    /// Sums of gradients.
    pub sums: f64,
    /// The optimizer.
    pub update: f64,
}

/// The memory of one cell on its card, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CellUse {
    pub stage: u32,
    pub column: u32,
    pub card: usize,
    pub bytes: CellBytes,
    /// Rows on their way: exchanged tokens, and messages between stages.
    pub buffers: u64,
    /// What the card has for training.
    pub capacity: u64,
}

impl CellUse {
    pub fn total(&self) -> u64 {
        self.bytes.total().saturating_add(self.buffers)
    }
}

/// What a candidate would take.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    pub step_s: f64,
    pub kinds: Kinds,
    pub tokens_per_s: f64,
    /// Of the BF16 peak of the cards that are used, as reports count it: causal FLOPs, no recomputation.
    pub mfu: f64,
    /// The cell of every stage and replica with the most memory for its card.
    pub cells: Vec<CellUse>,
    /// Bytes of a step that leave each machine that is used.
    pub bytes_out: BTreeMap<usize, f64>,
    /// The same, by where they go.
    pub bytes_between: BTreeMap<(usize, usize), f64>,
    /// Seconds each stage of the slowest replica works.
    pub busy: Vec<f64>,
    /// The slowest replica.
    pub slowest: u32,
    pub timeline: Timeline,
}

/// Bytes that a card has for training.
pub(crate) fn capacity(question: &Question<'_>, rig: usize) -> u64 {
    let rig = &question.fleet.rigs[rig];
    let gib = rig.measured.free_gib.unwrap_or(rig.card().memory_gib - RESERVED_GIB);
    (gib * f64::from(1 << 30)) as u64
}

/// Predicts a step. Memory is counted and not judged: see `Prediction::short`.
pub fn predict(question: &Question<'_>, layout: &Layout<'_>, candidate: &Candidate) -> Prediction {
    Predictor::new(question, layout, candidate).predict()
}

impl Prediction {
    /// Bytes that the worst cell lacks, and which it is.
    pub fn short(&self) -> Option<(u64, &CellUse)> {
        let over = |cell: &CellUse| cell.total().saturating_sub(cell.capacity);
        let worst = self.cells.iter().max_by_key(|cell| over(cell))?;
        (over(worst) > 0).then(|| (over(worst), worst))
    }
}

struct Predictor<'a> {
    question: &'a Question<'a>,
    layout: &'a Layout<'a>,
    candidate: &'a Candidate,
    job: Job,
    division: BatchDivision,
    cards: Vec<Card>,
}

/// A stage of a replica in one microbatch: its times without and with exchanges.
#[derive(Clone, Copy, Debug, Default)]
struct StageTimes {
    compute: Halves,
    /// What exchanges add to a forward, and to an input half.
    exchange: f64,
    /// How long they take where they hide behind nothing.
    exchanged: f64,
    message: Wire,
}

impl<'a> Predictor<'a> {
    fn new(question: &'a Question<'a>, layout: &'a Layout<'a>, candidate: &'a Candidate) -> Self {
        let job = candidate.job(question.job);
        let division = job.largest_division();
        let rigs = question.fleet.rigs.iter();
        let cards = rigs.map(|rig| Card::of(rig, &job, question.software)).collect();
        Self { question, layout, candidate, job, division, cards }
    }

    fn predict(&self) -> Prediction {
        let grid = self.candidate.grid;
        // Replicas on the same cards with the same shares take the same time.
        let mut alike: BTreeMap<Vec<usize>, u32> = BTreeMap::new();
        for replica in 0..grid.replicas {
            alike.entry(self.likeness(replica)).or_insert(replica);
        }
        let mut slowest: Option<(u32, Timeline, Timeline)> = None;
        let (mut cells, mut bytes_between) = (Vec::new(), BTreeMap::new());
        for replica in alike.into_values() {
            let times = self.stages(replica);
            let timeline = self.run(&times, true);
            if slowest.as_ref().is_none_or(|(_, old, _)| old.end < timeline.end) {
                slowest = Some((replica, timeline, self.run(&times, false)));
            }
            cells.extend(self.memory(replica));
        }
        let (slowest, timeline, unsent) = slowest.expect("a grid has a replica");
        for replica in 0..grid.replicas {
            self.count_messages(replica, &mut bytes_between);
        }
        let summed = sums(&self.job, self.layout, self.candidate);
        for (machines, bytes) in summed.rings.iter().filter(|(machines, _)| machines.len() > 1) {
            for (at, from) in machines.iter().enumerate() {
                let to = machines[(at + 1) % machines.len()];
                *bytes_between.entry((*from, to)).or_default() += bytes;
            }
        }
        let used = self.candidate.cards.iter().map(|card| (self.layout.machines[*card], 0.0));
        let mut bytes_out: BTreeMap<usize, f64> = used.collect();
        for ((from, _), bytes) in &bytes_between {
            *bytes_out.entry(*from).or_default() += bytes;
        }
        let sums = summed.seconds;
        let update = self.update();
        let busy: Vec<f64> = (0..grid.stages).map(|stage| timeline.busy(stage)).collect();
        let most = busy.iter().copied().fold(0.0, f64::max);
        let busiest = busy.iter().position(|busy| *busy >= most).unwrap_or(0);
        let exchange = self.exchanged((slowest, busiest as u32), most);
        let kinds = Kinds {
            compute: most - exchange,
            exchange,
            messages: (timeline.end - unsent.end).max(0.0),
            bubble: (unsent.end.min(timeline.end) - most).max(0.0),
            sums,
            update,
        };
        let step_s = timeline.end + sums + update;
        let tokens = f64::from(self.job.training.batch) * f64::from(self.job.training.sequence);
        let peak =
            |card: &usize| self.question.fleet.rigs[self.layout.rig(*card)].card().bf16_tflops;
        let peak: f64 = self.candidate.cards.iter().map(peak).sum::<f64>() * 1e12;
        let flops = arithmetic::flops_per_token(&self.job.model, self.job.training.sequence);
        Prediction {
            step_s,
            kinds,
            tokens_per_s: tokens / step_s,
            mfu: flops * tokens / step_s / peak,
            cells,
            bytes_out,
            bytes_between,
            busy,
            slowest,
            timeline,
        }
    }

    fn columns(&self, replica: u32) -> std::ops::Range<u32> {
        let shards = self.candidate.grid.expert_shards;
        replica * shards..(replica + 1) * shards
    }

    /// What a replica's times depend on: rigs, which machines are the same, sites' links, and shares.
    fn likeness(&self, replica: u32) -> Vec<usize> {
        let mut machines: BTreeMap<usize, usize> = BTreeMap::new();
        let mut key = Vec::new();
        for stage in 0..self.candidate.grid.stages {
            for column in self.columns(replica) {
                let machine = self.layout.machines[self.candidate.card(stage, column)];
                let next = machines.len();
                key.push(self.layout.network.rig(machine));
                key.push(*machines.entry(machine).or_insert(next));
            }
        }
        let part = |column| self.division.column(column);
        key.extend(
            self.columns(replica).map(|column| (part(column).end - part(column).start) as usize),
        );
        key
    }

    /// By microbatch: the times of every stage's chunks, `[chunk * stages + stage]`.
    fn stages(&self, replica: u32) -> Vec<Vec<StageTimes>> {
        let mut known: BTreeMap<Vec<u64>, Vec<StageTimes>> = BTreeMap::new();
        let of = |micro: u64| {
            let part = |column| self.division.microbatch(column, micro);
            let sizes: Vec<u64> =
                self.columns(replica).map(|c| part(c).end - part(c).start).collect();
            let times =
                known.entry(sizes.clone()).or_insert_with(|| self.microbatch(replica, &sizes));
            times.clone()
        };
        (0..self.division.rounds()).map(of).collect()
    }

    fn microbatch(&self, replica: u32, sizes: &[u64]) -> Vec<StageTimes> {
        let (candidate, model) = (self.candidate, &self.job.model);
        let (stages, software) = (candidate.grid.stages, self.question.software);
        let own: Vec<f64> =
            sizes.iter().map(|n| *n as f64 * f64::from(self.job.training.sequence)).collect();
        let virtual_stages = crate::planner::candidate::ranges(&candidate.layers);
        let mut members: Vec<(Vec<Member>, Vec<LayerTimes>, Exchange)> = Vec::new();
        for stage in 0..stages {
            let group = self.members(replica, stage, &own);
            let exchange = self.layout.network.exchange(model, &group, software);
            let times = self.layer_times(replica, stage, &group);
            members.push((group, times, exchange));
        }
        let of = |(at, layers): (usize, &std::ops::Range<u32>)| {
            let stage = at as u32 % stages;
            let (_, times, exchange) = &members[stage as usize];
            let mut moe = layers.clone().filter(|layer| model.is_moe(*layer)).count() as f64;
            let dense = f64::from(layers.end - layers.start) - moe;
            let last = at + 1 == virtual_stages.len();
            let of_card = |times: &LayerTimes| {
                let own = Halves::default().plus(times.dense, dense).plus(times.moe, moe);
                if last { own.plus(times.last, 1.0) } else { own }
            };
            let compute = times.iter().map(of_card).fold(Halves::default(), Halves::max);
            if last && model.n_routed_experts > 0 {
                moe += f64::from(model.num_nextn_predict_layers);
            }
            let exchanged =
                moe * (exchange.seconds(self.row()) + exchange.seconds(self.plain_row()));
            let exchange = software.exposed(exchanged, compute.forward);
            let next = (stage + 1) % stages;
            let message = self.message(replica, (stage, next), &own);
            StageTimes { compute, exchange, exchanged, message }
        };
        virtual_stages.iter().enumerate().map(of).collect()
    }

    fn members(&self, replica: u32, stage: u32, own: &[f64]) -> Vec<Member> {
        let total = f64::from(self.job.model.n_routed_experts.max(1));
        let shards = self.columns(replica).zip(own).zip(&self.candidate.experts);
        let of = |((column, own), experts): ((u32, &f64), &u32)| Member {
            machine: self.layout.machines[self.candidate.card(stage, column)],
            own: *own,
            experts: f64::from(*experts) / total,
        };
        shards.map(of).collect()
    }

    fn layer_times(&self, replica: u32, stage: u32, group: &[Member]) -> Vec<LayerTimes> {
        let chosen = f64::from(self.job.model.num_experts_per_tok);
        let tokens: f64 = group.iter().map(|member| member.own).sum();
        // A group has few kinds of cards and loads.
        let mut known: Vec<((usize, [u64; 2]), LayerTimes)> = Vec::new();
        let mut all = Vec::with_capacity(group.len());
        for (column, member) in self.columns(replica).zip(group) {
            let rig = self.layout.rig(self.candidate.card(stage, column));
            let key = (rig, [member.own.to_bits(), member.experts.to_bits()]);
            let found = known.iter().find(|(old, _)| *old == key).map(|(_, times)| *times);
            let times = found.unwrap_or_else(|| {
                let load = Load {
                    own: member.own,
                    routed: tokens * chosen * member.experts,
                    experts: member.experts * f64::from(self.job.model.n_routed_experts),
                };
                self.cards[rig].layer_times(&self.job, load)
            });
            if found.is_none() {
                known.push((key, times));
            }
            all.push(times);
        }
        all
    }

    /// Bytes of a dispatched row.
    fn row(&self) -> f64 {
        let d = f64::from(self.job.model.hidden_size);
        match self.job.training.precision {
            Precision::Fp8 => {
                d + (d / 128.0).ceil() * self.job.training.scales.activations.bytes() as f64
            }
            Precision::Bf16 | Precision::F32 => self.plain_row(),
        }
    }

    /// Bytes of a combined row, and of a token's hidden state.
    fn plain_row(&self) -> f64 {
        let wide = if self.job.training.precision == Precision::F32 { 4.0 } else { 2.0 };
        wide * f64::from(self.job.model.hidden_size)
    }

    /// The message of a microbatch from a stage's cards to another's, column by column, through the slowest machine.
    fn message(&self, replica: u32, (from, to): (u32, u32), own: &[f64]) -> Wire {
        let mut wire = Wire::default();
        let mut per_machine: BTreeMap<(usize, usize), f64> = BTreeMap::new();
        for (column, own) in self.columns(replica).zip(own) {
            let pair =
                [from, to].map(|stage| self.layout.machines[self.candidate.card(stage, column)]);
            *per_machine.entry((pair[0], pair[1])).or_default() += own * self.plain_row();
        }
        for ((a, b), bytes) in per_machine {
            let network = &self.layout.network;
            let way = if a == b {
                network.peers(a)
            } else {
                // Replicas that cross here at the same time share the way.
                let way = network.between(a, b);
                let sharing = self.crossings(a, (from, to));
                Way { bytes_per_s: way.bytes_per_s / sharing, ..way }
            };
            wire.transfer_s = wire.transfer_s.max(bytes / way.bytes_per_s);
            wire.latency_s = wire.latency_s.max(way.latency_s);
        }
        wire
    }

    /// Replicas whose message between these stages leaves the same machine.
    fn crossings(&self, machine: usize, (from, to): (u32, u32)) -> f64 {
        let shards = self.candidate.grid.expert_shards;
        let leaves = |replica: &u32| {
            let column = replica * shards;
            let at = |stage| self.layout.machines[self.candidate.card(stage, column)];
            at(from) == machine && at(to) != machine
        };
        // A machine has few cards, so few replicas.
        let n = (0..self.candidate.grid.replicas.min(4096)).filter(leaves).count();
        (n as f64).max(1.0)
    }

    fn run(&self, times: &[Vec<StageTimes>], sent: bool) -> Timeline {
        let stages = self.candidate.grid.stages;
        if let Some(timeline) = self.run_pairs(times, sent) {
            return timeline;
        }
        let at = |stage: u32, work: Work| {
            &times[work.microbatch as usize][(work.chunk * stages + stage) as usize]
        };
        let length = |stage, slot: Slot| {
            let times = at(stage, slot.work());
            match slot {
                Slot::Forward(_) => times.compute.forward + times.exchange,
                Slot::BackwardInput(_) => times.compute.input + times.exchange,
                Slot::BackwardWeight(_) => times.compute.weight,
                Slot::RecvForward(_)
                | Slot::SendForward(_)
                | Slot::RecvBackward(_)
                | Slot::SendBackward(_) => 0.0,
            }
        };
        let wire = |from, to, slot: Slot| {
            // A gradient goes the way its hidden state came.
            let sender = if matches!(slot, Slot::SendForward(_)) { from } else { to };
            let work = slot.work();
            if sent { at(sender, work).message } else { Wire::default() }
        };
        run(self.job.pipeline(), self.division.n_microbatches(), length, wire)
    }

    /// The same under `DualPipe`, whose stage `s` also has stage `p - 1 - s` of the other direction, on a card alike.
    /// `None`: not this software's schedule.
    fn run_pairs(&self, times: &[Vec<StageTimes>], sent: bool) -> Option<Timeline> {
        let (stages, software) = (self.candidate.grid.stages, self.question.software);
        if !software.pairs {
            return None;
        }
        let of = |stage: u32, work: Work| {
            let stage = if work.chunk == 0 { stage } else { stages - 1 - stage };
            &times[work.microbatch as usize][stage as usize]
        };
        let length = |stage: u32, piece: Piece| match piece {
            Piece::Forward(work) => {
                let times = of(stage, work);
                times.compute.forward + times.exchanged
            }
            Piece::Backward { work, deferred } => {
                let times = of(stage, work);
                let weight = if deferred { 0.0 } else { times.compute.weight };
                times.compute.input + weight + times.exchanged
            }
            Piece::Weight(work) => of(stage, work).compute.weight,
            Piece::Both(first, second) => {
                let (first, second) = (of(stage, first), of(stage, second));
                let compute = first.compute.forward + second.compute.input + second.compute.weight;
                compute + software.exposed(first.exchanged + second.exchanged, compute)
            }
        };
        let wire = |from: u32, to: u32| {
            let message = times[0][from.min(to) as usize].message;
            if sent { message.latency_s + message.transfer_s } else { 0.0 }
        };
        run_dual_pipe(stages, self.division.n_microbatches(), length, wire)
    }

    /// Seconds of a step in which a stage exchanges tokens and does nothing else.
    fn exchanged(&self, (replica, stage): (u32, u32), busy: f64) -> f64 {
        let stages = self.candidate.grid.stages as usize;
        let all = self.stages(replica);
        if self.question.software.pairs {
            // Of two stages half the microbatches each; the rest of its time is not arithmetic.
            let halves = [stage as usize, stages - 1 - stage as usize];
            let compute = |times: &Vec<StageTimes>| -> f64 {
                halves.iter().map(|at| times[*at].compute.total() / 2.0).sum()
            };
            return (busy - all.iter().map(compute).sum::<f64>()).max(0.0);
        }
        let own = all.iter().flat_map(|times| times.iter().skip(stage as usize).step_by(stages));
        own.map(|times| 2.0 * times.exchange).sum()
    }
}
