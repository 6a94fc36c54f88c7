//! Finds a good candidate: every number of shards and stages, cards in several patterns, then the best of them
//! improved one move at a time. With few units every order of them is tried.
//!
//! `patterns` are where it starts, `climb` improves them by formula, `moves` the best of them by simulation.

mod climb;
mod moves;
mod patterns;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use moves::moves;

use super::advice;
use super::bound::bound_s;
use super::build::{Builder, Knobs, Lack, Pattern};
use super::predict::capacity;
use super::{Candidate, Layout, Prediction, Question, predict};
use crate::arithmetic;
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

/// Candidates that are simulated, and of these the ones that are improved.
const SIMULATED: usize = 20;
const IMPROVED: usize = 3;

/// Of many cards one simulation takes long, and improves little.
const LARGE: usize = 128;
const SIMULATED_LARGE: usize = 3;

/// Plans a job for a fleet.
pub fn plan(question: &Question<'_>) -> Result<Answer, Misfit> {
    let layout = Layout::of(question.fleet);
    let mut search = Search::new(question, &layout);
    search.all();
    if !search.is_large() {
        search.climb();
    }
    search.finish()
}

/// Whether some grid of this fleet has room for a job: a quick look, which may miss the tightest.
pub(super) fn fits(question: &Question<'_>) -> bool {
    let layout = Layout::of(question.fleet);
    let mut search = Search::new(question, &layout);
    search.all();
    let found = search.found.values().filter_map(|one| Some(one.built.as_ref().ok()?.1.clone()));
    let found: Vec<Candidate> = found.take(SIMULATED_LARGE).collect();
    found.iter().any(|candidate| search.try_out(candidate).is_some())
}

/// What was tried: a pattern and its knobs, and the candidate and its estimate, or the bytes that are lacking.
#[derive(Clone)]
struct Found {
    pattern: Pattern,
    knobs: Knobs,
    built: Result<(f64, Candidate), Lack>,
}

impl Found {
    /// What fits before what does not; then the shorter step, or the fewer bytes lacking.
    fn key(&self) -> (bool, f64) {
        match &self.built {
            Ok((seconds, _)) => (false, *seconds),
            Err(lack) => (true, lack.bytes as f64),
        }
    }

    fn is_better_than(&self, other: &Self) -> bool {
        let (own, other) = (self.key(), other.key());
        (own.0, own.1 * 1.000_000_1) < (other.0, other.1)
    }

    /// Stages, expert shards, replicas.
    fn grid(&self) -> [usize; 3] {
        let units = &self.pattern.units;
        [units[0].len(), units[0][0].len(), units.len()]
    }
}

struct Search<'a> {
    question: &'a Question<'a>,
    layout: &'a Layout<'a>,
    builder: Builder<'a>,
    /// The best of every grid.
    found: BTreeMap<[usize; 3], Found>,
    lack: Lack,
    considered: usize,
    exact: bool,
}

impl<'a> Search<'a> {
    fn new(question: &'a Question<'a>, layout: &'a Layout<'a>) -> Self {
        Search {
            builder: Builder::new(question, layout),
            question,
            layout,
            found: BTreeMap::new(),
            lack: Lack { bytes: u64::MAX, rig: 0 },
            considered: 0,
            exact: true,
        }
    }
}

impl Search<'_> {
    /// Too many cards to try much.
    fn is_large(&self) -> bool {
        self.layout.machines.len() > LARGE
    }

    fn all(&mut self) {
        for shards in self.shard_counts() {
            let units = self.units(shards);
            let mut roomiest = units.clone();
            roomiest.sort_by_key(|unit| {
                Reverse(
                    unit.iter()
                        .map(|card| capacity(self.question, self.layout.rig(*card)))
                        .sum::<u64>(),
                )
            });
            let model = &self.question.job.model;
            let most = units.len().min(model.num_hidden_layers as usize).min(256);
            for stages in 1..=most {
                // Of many units, numbers of stages near each other are alike.
                let round =
                    stages.is_power_of_two() || (stages % 3 == 0 && (stages / 3).is_power_of_two());
                if units.len() > 64 && stages > 4 && stages < most && !round {
                    continue;
                }
                // A replica that has not even room for what it must keep.
                if self.is_large() && !self.have_room(&roomiest[..stages]) {
                    continue;
                }
                for pattern in self.patterns(&units, stages) {
                    self.consider(&pattern);
                }
            }
        }
    }

    /// Whether these units could keep the model's state: a quick look at a lower limit.
    fn have_room(&self, units: &[Vec<usize>]) -> bool {
        let model = &self.question.job.model;
        let room = |card: &usize| capacity(self.question, self.layout.rig(*card)) as f64;
        // Master, gradient and weight, and moments in whatever format.
        let least = 9 + self.question.job.training.moments.bytes();
        let least = arithmetic::parameters(model).total as f64 * least as f64;
        units.iter().flatten().map(room).sum::<f64>() > least
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
                if schedule == Schedule::ZbH1 && (stages == 1 || self.is_large()) {
                    continue;
                }
                let knobs = Knobs { microbatch: microbatch as u32, schedule };
                let found = self.build(pattern.clone(), knobs);
                self.keep(found);
            }
        }
    }

    fn build(&mut self, pattern: Pattern, knobs: Knobs) -> Found {
        self.considered += 1;
        let built = self.builder.build(&pattern, knobs);
        if let Err(lack) = built {
            self.lack = if lack.bytes < self.lack.bytes { lack } else { self.lack };
        }
        Found { pattern, knobs, built }
    }

    fn keep(&mut self, found: Found) {
        let old = self.found.get(&found.grid());
        if old.is_none_or(|old| found.is_better_than(old)) {
            self.found.insert(found.grid(), found);
        }
    }

    fn finish(mut self) -> Result<Answer, Misfit> {
        let mut found: Vec<(f64, Candidate)> = std::mem::take(&mut self.found)
            .into_values()
            .filter_map(|one| one.built.ok())
            .collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found.truncate(if self.is_large() { SIMULATED_LARGE } else { SIMULATED });
        let mut simulated: Vec<(Prediction, Candidate)> = Vec::new();
        for (_, candidate) in found {
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
