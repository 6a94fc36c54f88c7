//! When queued work runs: any order that the rules of streams allow, chosen by a seed.
//!
//! A lane is a stream. Work in one lane runs in the order it was pushed; a piece of work also waits
//! for what it names (an event's record, the default stream). Nothing else is promised, as on a
//! card, so a program that forgot to say "after" meets, for some seed, an order that shows it.
//!
//! Which lane goes next follows probabilistic concurrency testing (Burckhardt et al., "A randomized
//! scheduler with probabilistic guarantees of finding bugs", ASPLOS 2010): each lane has a random
//! priority, the ready lane with the highest runs, and now and then a priority is drawn again. A
//! plain draw at each step would interleave finely and almost never let one lane run far ahead.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::random::Random;

/// Names a piece of work for good; later work has a larger number.
pub type WorkId = u64;

/// Names a lane.
pub type LaneId = u64;

/// How eagerly the card works while nobody waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temper {
    /// Work runs only when somebody waits, and then only what that needs: everything else is late.
    Lazy,
    /// Work runs as soon as it may: the host is always late.
    Eager,
    /// Now this, now that.
    Mixed,
}

/// What somebody is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// This piece of work.
    Work(WorkId),
    /// Nothing: the card works by itself.
    Background,
}

/// Between two draws of a priority, on average this many pieces of work run.
const STEPS_PER_DRAW: usize = 16;

struct Pending<W> {
    lane: LaneId,
    /// Work that must be finished first, besides what is ahead in the lane. Finished work is taken
    /// out.
    after: BTreeSet<WorkId>,
    /// Microseconds of the virtual clock before which it cannot start.
    not_before: f64,
    /// Absent while it runs.
    work: Option<W>,
}

struct Lane {
    queue: VecDeque<WorkId>,
    priority: u64,
    /// When its newest finished work ended.
    time: f64,
    /// Goes when it is empty.
    closed: bool,
}

/// Work that has not finished.
pub struct Order<W> {
    pending: BTreeMap<WorkId, Pending<W>>,
    lanes: BTreeMap<LaneId, Lane>,
    newest: WorkId,
    temper: Temper,
    random: Random,
}

/// A piece of work to run now; [`Order::finish`] ends it.
pub struct Picked<W> {
    /// Its name.
    pub id: WorkId,
    /// Its lane.
    pub lane: LaneId,
    /// What to do.
    pub work: W,
    /// When it starts, in microseconds of the virtual clock.
    pub start: f64,
}

impl<W> Order<W> {
    /// No lanes, no work.
    pub fn new(seed: u64, temper: Temper) -> Self {
        Self {
            pending: BTreeMap::new(),
            lanes: BTreeMap::new(),
            newest: 0,
            temper,
            random: Random::new(seed),
        }
    }

    /// Opens a lane.
    pub fn add_lane(&mut self, lane: LaneId) {
        let priority = self.random.next();
        self.lanes
            .insert(lane, Lane { queue: VecDeque::new(), priority, time: 0.0, closed: false });
    }

    /// Closes a lane. What is queued still runs.
    pub fn close_lane(&mut self, lane: LaneId) {
        let Some(state) = self.lanes.get_mut(&lane) else { return };
        state.closed = true;
        if state.queue.is_empty() {
            self.lanes.remove(&lane);
        }
    }

    /// Queues work behind what its lane holds and behind `after`; of these, finished ones do not
    /// count. `now` is the host's virtual clock in microseconds.
    pub fn push(
        &mut self,
        lane: LaneId,
        after: impl IntoIterator<Item = WorkId>,
        now: f64,
        work: W,
    ) -> WorkId {
        self.newest += 1;
        let id = self.newest;
        let after = after.into_iter().filter(|id| self.is_pending(*id)).collect();
        let queue = &mut self.lanes.get_mut(&lane).expect("work goes to an open lane").queue;
        queue.push_back(id);
        self.pending.insert(id, Pending { lane, after, not_before: now, work: Some(work) });
        id
    }

    /// Whether it has not finished.
    pub fn is_pending(&self, id: WorkId) -> bool {
        self.pending.contains_key(&id)
    }

    /// The newest unfinished work of a lane.
    pub fn last(&self, lane: LaneId) -> Option<WorkId> {
        self.lanes.get(&lane)?.queue.back().copied()
    }

    /// Unfinished work of a lane.
    pub fn depth(&self, lane: LaneId) -> usize {
        self.lanes.get(&lane).map_or(0, |lane| lane.queue.len())
    }

    /// The oldest unfinished work of a lane.
    pub fn first(&self, lane: LaneId) -> Option<WorkId> {
        self.lanes.get(&lane)?.queue.front().copied()
    }

    /// When a lane's newest finished work ended.
    pub fn time(&self, lane: LaneId) -> f64 {
        self.lanes.get(&lane).map_or(0.0, |lane| lane.time)
    }

    /// All that has not finished, oldest first; what runs at the moment is `None`.
    pub fn pending(&self) -> impl Iterator<Item = (WorkId, LaneId, Option<&W>)> {
        self.pending.iter().map(|(id, pending)| (*id, pending.lane, pending.work.as_ref()))
    }

    /// `id` and everything unfinished that must come before it.
    pub fn needed_for(&self, id: WorkId) -> BTreeSet<WorkId> {
        let mut needed = BTreeSet::new();
        let mut waiting = vec![id];
        while let Some(id) = waiting.pop() {
            let Some(pending) = self.pending.get(&id) else { continue };
            if needed.insert(id) {
                waiting.extend(&pending.after);
                let queue = &self.lanes[&pending.lane].queue;
                // A queue is sorted: work is numbered as it is pushed.
                let place = queue.partition_point(|other| *other < id);
                waiting.extend(place.checked_sub(1).map(|before| queue[before]));
            }
        }
        needed
    }

    /// The next piece of work, or nothing if all that could run is running already.
    pub fn pick(&mut self, goal: Goal) -> Option<Picked<W>> {
        let mut ready: Vec<(WorkId, LaneId)> = (self.lanes.iter())
            .filter_map(|(lane, state)| Some((*state.queue.front()?, *lane)))
            .filter(|(id, _)| {
                let pending = &self.pending[id];
                pending.after.is_empty() && pending.work.is_some()
            })
            .collect();
        if let Goal::Work(goal) = goal {
            let only_needed = self.temper == Temper::Lazy
                || self.temper == Temper::Mixed && self.random.one_in(2);
            if only_needed {
                let needed = self.needed_for(goal);
                ready.retain(|(id, _)| needed.contains(id));
            }
        }
        if !ready.is_empty() && self.random.one_in(STEPS_PER_DRAW) {
            let (_, lane) = ready[self.random.below(ready.len())];
            let priority = self.random.next();
            self.lanes.get_mut(&lane).expect("a ready lane is open").priority = priority;
        }
        let (id, lane) = ready.into_iter().max_by_key(|(_, lane)| self.lanes[lane].priority)?;
        let pending = self.pending.get_mut(&id).expect("ready work is pending");
        let start = pending.not_before.max(self.lanes[&lane].time);
        let work = pending.work.take().expect("ready work is not running");
        Some(Picked { id, lane, work, start })
    }

    /// Whether the card does something by itself after a call of the host.
    pub fn wants_background(&mut self) -> bool {
        match self.temper {
            Temper::Lazy => false,
            Temper::Eager => true,
            Temper::Mixed => self.random.one_in(3),
        }
    }

    /// Ends a piece of work at `end` on the virtual clock: what waited for it may run.
    pub fn finish(&mut self, id: WorkId, end: f64) {
        let Some(done) = self.pending.remove(&id) else { return };
        for pending in self.pending.values_mut() {
            if pending.after.remove(&id) {
                pending.not_before = pending.not_before.max(end);
            }
        }
        let lane = self.lanes.get_mut(&done.lane).expect("a lane with work is open");
        lane.queue.retain(|other| *other != id);
        lane.time = lane.time.max(end);
        if lane.closed && lane.queue.is_empty() {
            self.lanes.remove(&done.lane);
        }
    }

    /// Drops all that has not started in some lanes, as a card that failed does, and ends it.
    pub fn abandon(&mut self, lanes: impl Fn(LaneId) -> bool) -> Vec<W> {
        let lost: Vec<WorkId> = (self.pending.iter())
            .filter(|(_, pending)| lanes(pending.lane) && pending.work.is_some())
            .map(|(id, _)| *id)
            .collect();
        let mut works = Vec::new();
        for id in lost {
            works.extend(self.pending.get_mut(&id).and_then(|pending| pending.work.take()));
            self.finish(id, 0.0);
        }
        works
    }
}

#[cfg(test)]
mod tests;
