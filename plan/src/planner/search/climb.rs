//! Patterns improved one move at a time, by the formula of `build`: cards change places, stages come, go and move.
//!
//! The moves are drawn at random out of a fixed seed, so that a question has one answer.

use super::{Found, Search};
use crate::planner::build::{Knobs, Pattern};
use crate::schedule::Schedule;

/// Trials for each card from each start, and then from the best of them.
const FIRST: usize = 30;
const SECOND: usize = 200;

/// Starts for each number of expert shards and replicas, and those that go on.
const STARTS: usize = 2;
const FINALISTS: usize = 4;

/// The most replicas of a start that is looked at more closely, and more than there are in any fleet that is slow.
const REPLICAS: usize = 8;

impl Search<'_> {
    /// Improves the best patterns of all kinds.
    pub(super) fn climb(&mut self) {
        let cards: Vec<Vec<usize>> =
            (0..self.layout.machines.len()).map(|card| vec![card]).collect();
        if !self.have_room(&cards) {
            return;
        }
        let mut all: Vec<Found> = self.found.values().cloned().collect();
        all.sort_by(|a, b| a.key().partial_cmp(&b.key()).unwrap_or(std::cmp::Ordering::Equal));
        let mut starts: Vec<Found> = Vec::new();
        for found in all {
            let [_, shards, replicas] = found.grid();
            let alike = starts.iter().filter(|old| old.grid()[1..] == [shards, replicas]).count();
            if alike < STARTS && replicas <= REPLICAS {
                starts.push(found);
            }
        }
        starts.truncate(12);
        let mut random = Random(7);
        // Of more cards each trial takes longer, too.
        let cards = self.layout.machines.len().min(24);
        let mut climbed: Vec<Found> = starts
            .into_iter()
            .map(|start| self.climb_from(start, FIRST * cards, &mut random))
            .collect();
        climbed.sort_by(|a, b| a.key().partial_cmp(&b.key()).unwrap_or(std::cmp::Ordering::Equal));
        climbed.dedup_by(|a, b| a.grid() == b.grid());
        climbed.truncate(FINALISTS);
        for start in climbed {
            self.climb_from(start, SECOND * cards, &mut random);
        }
    }

    fn climb_from(&mut self, start: Found, trials: usize, random: &mut Random) -> Found {
        let mut best = start;
        let mut idle = self.idle(&best.pattern);
        for _ in 0..trials {
            let Some((pattern, knobs)) = self.neighbour(&best, &idle, random) else { continue };
            let trial = self.build(pattern, knobs);
            self.keep(trial.clone());
            // Equals too: a plateau is crossed.
            if !best.is_better_than(&trial) {
                idle = self.idle(&trial.pattern);
                best = trial;
            }
        }
        best
    }

    /// Units without a place.
    fn idle(&self, pattern: &Pattern) -> Vec<Vec<usize>> {
        let mut free = vec![true; self.layout.machines.len()];
        for card in pattern.units.iter().flatten().flatten() {
            free[*card] = false;
        }
        let shards = pattern.units[0][0].len();
        let cards: Vec<usize> = (0..free.len()).filter(|card| free[*card]).collect();
        let machines = cards.chunk_by(|a, b| self.layout.machines[*a] == self.layout.machines[*b]);
        machines.flat_map(|machine| machine.chunks_exact(shards)).map(<[usize]>::to_vec).collect()
    }

    /// A pattern one move away. `None`: the move that was drawn cannot be made.
    fn neighbour(
        &self,
        from: &Found,
        idle: &[Vec<usize>],
        random: &mut Random,
    ) -> Option<(Pattern, Knobs)> {
        let (mut pattern, mut knobs) = (from.pattern.clone(), from.knobs);
        let [stages, _, replicas] = from.grid();
        let model = &self.question.job.model;
        let units = &mut pattern.units;
        match random.below(12) {
            // Two units change places.
            0..=2 => {
                let (a, b) = (random.below(stages * replicas), random.below(stages * replicas));
                let ((ra, sa), (rb, sb)) = ((a / stages, a % stages), (b / stages, b % stages));
                if a == b || units[ra][sa] == units[rb][sb] {
                    return None;
                }
                let one = std::mem::take(&mut units[ra][sa]);
                units[ra][sa] = std::mem::replace(&mut units[rb][sb], one);
            }
            // One that has no place takes another's.
            3 => {
                let at = random.below(stages * replicas);
                units[at / stages][at % stages].clone_from(idle.get(random.below(idle.len()))?);
            }
            // A stage goes.
            4 if stages > 1 => {
                let at = random.below(stages);
                for replica in units.iter_mut() {
                    replica.remove(at);
                }
            }
            // A stage comes, of units that are neighbours.
            5 | 6 => {
                let first = random.below(idle.len());
                let new = idle.get(first..first + replicas)?;
                if stages >= model.num_hidden_layers as usize {
                    return None;
                }
                let at = random.below(stages + 1);
                for (replica, unit) in units.iter_mut().zip(new) {
                    replica.insert(at, unit.clone());
                }
            }
            // Some stages move elsewhere, perhaps turned round.
            7..=9 if stages > 1 => {
                let n = 1 + random.below(4.min(stages - 1));
                let from = random.below(stages - n + 1);
                let to = random.below(stages - n + 1);
                let turn = random.below(2) == 1;
                for replica in units.iter_mut() {
                    let mut moved: Vec<Vec<usize>> = replica.drain(from..from + n).collect();
                    if turn {
                        moved.reverse();
                    }
                    replica.splice(to..to, moved);
                }
            }
            10 => {
                let twice = random.below(2) == 1;
                knobs.microbatch = if twice { knobs.microbatch * 2 } else { knobs.microbatch / 2 };
                if knobs.microbatch == 0 || knobs.microbatch > self.question.job.training.batch {
                    return None;
                }
            }
            _ => {
                knobs.schedule = match knobs.schedule {
                    Schedule::OneFOneB => Schedule::ZbH1,
                    Schedule::ZbH1 | Schedule::Interleaved => Schedule::OneFOneB,
                };
            }
        }
        Some((pattern, knobs))
    }
}

/// Numbers without a pattern.
struct Random(u64);

impl Random {
    /// Below `n`, or 0.
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n.max(1) as u64) as usize
    }
}
