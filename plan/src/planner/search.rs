//! Finds a good candidate: every number of shards and stages, cards in several patterns, then the best of them
//! improved one move at a time. With few units every order of them is tried.

use std::collections::BTreeSet;

use super::advice;
use super::bound::bound_s;
use super::build::{Builder, Knobs, Lack, Pattern};
use super::{Candidate, Layout, Prediction, Question, predict};
use crate::schedule::Schedule;

/// What was found.
#[derive(Clone, Debug)]
pub struct Answer {
    pub candidate: Candidate,
    pub prediction: Prediction,
    /// No plan is faster: see `bound_s`.
    pub bound_s: f64,
    /// The best of the other grids, fastest first.
    pub rejected: Vec<Rejected>,
    /// Cards without a cell.
    pub idle: Vec<usize>,
    /// Candidates that were looked at.
    pub considered: usize,
    /// Every order of the expert groups was tried.
    pub exact: bool,
}

/// A grid that was not chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    pub candidate: Candidate,
    pub step_s: f64,
    pub why: String,
}

/// Nothing fits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no grid of this fleet has room for the model: the least that is lacking is {lacking_bytes} bytes on {rig}"
)]
pub struct Misfit {
    pub lacking_bytes: u64,
    pub rig: String,
}

/// Expert groups up to here are tried in every order.
const EXACT_UNITS: usize = 5;

/// Candidates that are simulated, and of these the ones that are improved.
const SIMULATED: usize = 24;
const IMPROVED: usize = 3;

/// Of many cards one simulation takes long, and improves little.
const SIMULATED_LARGE: usize = 6;

/// Plans a job for a fleet.
pub fn plan(question: &Question<'_>) -> Result<Answer, Misfit> {
    let layout = Layout::of(question.fleet);
    let mut search = Search {
        builder: Builder::new(question, &layout),
        question,
        layout: &layout,
        found: Vec::new(),
        lack: Lack { bytes: u64::MAX, rig: 0 },
        considered: 0,
        exact: true,
    };
    search.all();
    search.finish()
}

struct Search<'a> {
    question: &'a Question<'a>,
    layout: &'a Layout<'a>,
    builder: Builder<'a>,
    found: Vec<(f64, Candidate)>,
    lack: Lack,
    considered: usize,
    exact: bool,
}

impl Search<'_> {
    /// Too many cards to try much.
    fn is_large(&self) -> bool {
        self.layout.machines.len() > 128
    }

    fn all(&mut self) {
        for shards in self.shard_counts() {
            let units = self.units(shards);
            let model = &self.question.job.model;
            let most = units.len().min(model.num_hidden_layers as usize).min(256);
            for stages in 1..=most {
                // Of many units, numbers of stages near each other are alike.
                let round =
                    stages.is_power_of_two() || (stages % 3 == 0 && (stages / 3).is_power_of_two());
                if units.len() > 64 && stages > 4 && stages < most && !round {
                    continue;
                }
                for pattern in self.patterns(&units, stages) {
                    self.consider(&pattern);
                }
            }
        }
    }

    /// Cards of an expert group.
    fn shard_counts(&self) -> BTreeSet<usize> {
        let (cards, experts) =
            (self.layout.machines.len(), self.question.job.model.n_routed_experts);
        let rigs = self.question.fleet.rigs.iter().map(|rig| rig.count as usize);
        let powers = (0..7).map(|power| 1 << power);
        let small = 1..=if cards <= 8 { cards } else { 1 };
        let all = powers.chain(rigs).chain(small);
        all.filter(|shards| *shards <= cards && (*shards <= experts as usize || *shards == 1))
            .collect()
    }

    /// Expert groups: inside machines as far as they go, then of neighbours at one site. In a group the fastest come first.
    fn units(&self, shards: usize) -> Vec<Vec<usize>> {
        let (mut units, mut left) = (Vec::new(), Vec::new());
        let cards: Vec<usize> = (0..self.layout.machines.len()).collect();
        for machine in cards.chunk_by(|a, b| self.layout.machines[*a] == self.layout.machines[*b]) {
            let whole = machine.len() / shards * shards;
            units.extend(machine[..whole].chunks(shards).map(<[usize]>::to_vec));
            left.extend_from_slice(&machine[whole..]);
        }
        let site = |card: &usize| &self.question.fleet.rigs[self.layout.rig(*card)].site;
        left.sort_by(|a, b| {
            let speed = self.builder.speed(*b).total_cmp(&self.builder.speed(*a));
            site(a).cmp(site(b)).then(speed)
        });
        for place in left.chunk_by(|a, b| site(a) == site(b)) {
            units.extend(place.chunks_exact(shards).map(<[usize]>::to_vec));
        }
        for unit in &mut units {
            unit.sort_by(|a, b| self.builder.speed(*b).total_cmp(&self.builder.speed(*a)));
        }
        units
    }

    /// Units as replicas of stages.
    fn patterns(&mut self, units: &[Vec<usize>], stages: usize) -> BTreeSet<Pattern> {
        let mut patterns = BTreeSet::new();
        let columns_max = self.question.job.training.batch as usize / units[0].len().max(1);
        let whole = (units.len() / stages).min(columns_max.max(1));
        let speed =
            |unit: &Vec<usize>| -> f64 { unit.iter().map(|card| self.builder.speed(*card)).sum() };
        let mut by_speed = units.to_vec();
        by_speed.sort_by(|a, b| speed(b).total_cmp(&speed(a)));
        // Without the slow half, if it is slow.
        let fast = by_speed.iter().filter(|unit| 2.0 * speed(unit) > speed(&by_speed[0])).count();
        let site =
            |unit: &Vec<usize>| self.question.fleet.rigs[self.layout.rig(unit[0])].site.clone();
        let mut by_site = by_speed.clone();
        by_site.sort_by_key(site);
        let mut orders = vec![by_speed, by_site, units.to_vec()];
        if units.len() <= EXACT_UNITS {
            orders = permutations(units);
        } else {
            self.exact = false;
        }
        if self.is_large() {
            orders.truncate(1);
        }
        for order in orders {
            let counts: BTreeSet<usize> = if self.is_large() {
                [whole].into()
            } else {
                [whole, (fast / stages).min(whole), 1].into()
            };
            for replicas in counts.into_iter().filter(|n| *n > 0) {
                let used = &order[..stages * replicas];
                let rows = used.chunks(stages).map(<[Vec<usize>]>::to_vec).collect();
                patterns.insert(Pattern { units: rows });
                let of =
                    |replica: usize| used.iter().skip(replica).step_by(replicas).cloned().collect();
                patterns.insert(Pattern { units: (0..replicas).map(of).collect() });
            }
        }
        patterns
    }

    fn consider(&mut self, pattern: &Pattern) {
        let stages = pattern.units[0].len();
        let columns = pattern.units.len() * pattern.units[0][0].len();
        let batch = self.question.job.training.batch as usize;
        for microbatch in if self.is_large() { 0..=0 } else { 0..=4 }.map(|power| 1_usize << power)
        {
            // As many microbatches as stages, or there is little to fill them with.
            if microbatch > 1 && microbatch * columns * stages > batch {
                break;
            }
            for schedule in [Schedule::OneFOneB, Schedule::ZbH1] {
                if stages == 1 && schedule == Schedule::ZbH1 {
                    continue;
                }
                self.considered += 1;
                match self.builder.build(pattern, Knobs { microbatch: microbatch as u32, schedule })
                {
                    Ok(found) => self.found.push(found),
                    Err(lack) if lack.bytes < self.lack.bytes => self.lack = lack,
                    Err(_) => {}
                }
            }
        }
    }

    fn finish(mut self) -> Result<Answer, Misfit> {
        self.found.sort_by(|a, b| a.0.total_cmp(&b.0));
        // The best of every grid first, so that the alternatives are real ones.
        let mut grids = BTreeSet::new();
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        for (_, candidate) in self.found.drain(..) {
            let grid = candidate.grid;
            let is_new = grids.insert((grid.stages, grid.expert_shards, grid.replicas));
            if is_new { first.push(candidate) } else { rest.push(candidate) }
        }
        let simulated = if self.is_large() { SIMULATED_LARGE } else { SIMULATED };
        first.truncate(simulated / 2);
        rest.truncate(simulated - first.len());
        let mut simulated: Vec<(Prediction, Candidate)> = Vec::new();
        for candidate in first.into_iter().chain(rest) {
            if let Some(prediction) = self.try_out(&candidate) {
                simulated.push((prediction, candidate));
            }
        }
        simulated.sort_by(|a, b| a.0.step_s.total_cmp(&b.0.step_s));
        let improved = if self.is_large() { 0 } else { simulated.len().min(IMPROVED) };
        for (prediction, candidate) in &mut simulated[..improved] {
            self.improve(prediction, candidate);
        }
        simulated.sort_by(|a, b| a.0.step_s.total_cmp(&b.0.step_s));
        let mut all = simulated.into_iter();
        let Some((prediction, candidate)) = all.next() else {
            let rig = self.question.fleet.rigs[self.lack.rig].name.clone();
            return Err(Misfit { lacking_bytes: self.lack.bytes, rig });
        };
        let mut rejected: Vec<Rejected> = Vec::new();
        for (other, from) in all {
            let is_new = from.grid != candidate.grid
                && rejected.iter().all(|old| old.candidate.grid != from.grid);
            if is_new && rejected.len() < 4 {
                let why = advice::why_slower(&prediction, &other);
                rejected.push(Rejected { step_s: other.step_s, why, candidate: from });
            }
        }
        let used: BTreeSet<usize> = candidate.cards.iter().copied().collect();
        let idle = (0..self.layout.machines.len()).filter(|card| !used.contains(card)).collect();
        let (bound_s, considered, exact) = (bound_s(self.question), self.considered, self.exact);
        Ok(Answer { candidate, prediction, bound_s, rejected, idle, considered, exact })
    }

    /// Simulates it; `None` if it does not fit.
    fn try_out(&mut self, candidate: &Candidate) -> Option<Prediction> {
        let prediction = predict(self.question, self.layout, candidate);
        match prediction.short() {
            None => Some(prediction),
            Some((bytes, cell)) => {
                let lack = Lack { bytes, rig: self.layout.rig(cell.card) };
                self.lack = if bytes < self.lack.bytes { lack } else { self.lack };
                None
            }
        }
    }

    /// Takes the best move until none is better: a layer to the next stage, two stages' cards exchanged, sequences
    /// to another column, other microbatches, another schedule.
    fn improve(&mut self, prediction: &mut Prediction, candidate: &mut Candidate) {
        for _ in 0..10 {
            let mut best: Option<(Prediction, Candidate)> = None;
            for other in moves(candidate, prediction, self.question) {
                self.considered += 1;
                let least = best.as_ref().map_or(prediction.step_s, |(best, _)| best.step_s);
                if let Some(trial) =
                    self.try_out(&other).filter(|trial| trial.step_s < 0.9995 * least)
                {
                    best = Some((trial, other));
                }
            }
            let Some((better, other)) = best else { break };
            (*prediction, *candidate) = (better, other);
        }
    }
}

/// Candidates one step away.
fn moves(
    candidate: &Candidate,
    prediction: &Prediction,
    question: &Question<'_>,
) -> Vec<Candidate> {
    let grid = candidate.grid;
    let mut all = Vec::new();
    let mut push = |change: &dyn Fn(&mut Candidate)| {
        let mut other = candidate.clone();
        change(&mut other);
        all.push(other);
    };
    let busy = &prediction.busy;
    let stages = grid.stages as usize;
    let fullest = (0..stages).max_by(|a, b| busy[*a].total_cmp(&busy[*b])).unwrap_or(0);
    if candidate.chunks == 1 && candidate.layers[fullest] > 1 {
        for to in (0..stages).filter(|to| *to != fullest) {
            push(&|other| {
                (other.layers[fullest], other.layers[to]) =
                    (candidate.layers[fullest] - 1, candidate.layers[to] + 1);
            });
        }
    }
    let columns = grid.columns() as usize;
    if stages <= 32 {
        for (a, b) in (0..stages).filter(|to| *to != fullest).map(|to| (fullest, to)) {
            push(&|other| {
                for column in 0..columns {
                    other.cards.swap(a * columns + column, b * columns + column);
                }
                if candidate.chunks == 1 {
                    other.layers.swap(a, b);
                }
            });
        }
    }
    if columns > 1 && columns <= 16 {
        let from = (prediction.slowest * grid.expert_shards) as usize;
        for to in (0..columns).filter(|to| *to != from && candidate.shares[from] > 1) {
            push(&|other| {
                (other.shares[from], other.shares[to]) =
                    (candidate.shares[from] - 1, candidate.shares[to] + 1);
            });
        }
    }
    for microbatch in [candidate.microbatch * 2, candidate.microbatch / 2] {
        if microbatch > 0 && microbatch <= question.job.training.batch {
            push(&|other| other.microbatch = microbatch);
        }
    }
    let can_interleave = stages > 1 && candidate.layers.iter().all(|layers| *layers > 1);
    if candidate.chunks == 1 && can_interleave {
        push(&|other| {
            (other.schedule, other.chunks) = (Schedule::Interleaved, 2);
            let first = candidate.layers.iter().map(|layers| layers.div_ceil(2));
            other.layers = first.chain(candidate.layers.iter().map(|layers| layers / 2)).collect();
        });
    }
    for schedule in [Schedule::OneFOneB, Schedule::ZbH1] {
        if candidate.chunks == 1 && schedule != candidate.schedule && stages > 1 {
            push(&|other| other.schedule = schedule);
        }
    }
    all
}

/// Every order of a few units.
fn permutations(units: &[Vec<usize>]) -> Vec<Vec<Vec<usize>>> {
    if units.len() < 2 {
        return vec![units.to_vec()];
    }
    let mut all = Vec::new();
    for at in 0..units.len() {
        let mut rest = units.to_vec();
        let first = rest.remove(at);
        for mut order in permutations(&rest) {
            order.insert(0, first.clone());
            all.push(order);
        }
    }
    all
}
