//! What a vault holds and what it refuses: pure, without a thread or a socket.
//!
//! Of each cell that its terms name it keeps the two newest steps. When a new plan begins, only the
//! step that the plan starts from stays, of whatever cell: other workers fetch it. Cells that are no
//! longer this worker's business go when the plan's second snapshot is stored, for then its first is
//! complete everywhere (see `engine/policy.rs`). A buffer that falls out is filled again, so that
//! nothing is allocated from step to step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shoal_plan::buddies::STEPS_KEPT;
use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, WorkerId};
use shoal_plan::standing::Standing;

/// The state of one cell after one step.
pub(crate) struct Snapshot {
    pub(crate) standing: Standing,
    /// Of the bytes. Equal for the twins of a cell.
    pub(crate) blake3: blake3::Hash,
    pub(crate) bytes: Vec<u8>,
}

/// What a vault may hold while a plan is in force.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) generation: Generation,
    /// The step the plan goes on from, if that is in memory somewhere.
    pub(crate) start: Option<u64>,
    /// The last step of the job.
    pub(crate) last: u64,
    /// Who makes the snapshots of each cell, and how many bytes they have: this worker's own cells,
    /// and those of which it holds copies.
    pub(crate) cells: BTreeMap<CellId, (WorkerId, u64)>,
}

pub(super) struct Store {
    terms: Terms,
    held: BTreeMap<CellId, BTreeMap<u64, Arc<Snapshot>>>,
    /// Buffers that wait to be filled again, at most one a cell.
    spare: BTreeMap<CellId, Vec<u8>>,
    /// Cells whose next snapshot is being filled or received.
    filling: BTreeSet<CellId>,
    /// The first step stored under these terms.
    first: Option<u64>,
}

impl Store {
    /// Holds nothing, and refuses everything until terms begin.
    pub(super) fn new() -> Self {
        let (start, last, cells) = (None, 0, BTreeMap::new());
        Self {
            terms: Terms { generation: Generation(0), start, last, cells },
            held: BTreeMap::new(),
            spare: BTreeMap::new(),
            filling: BTreeSet::new(),
            first: None,
        }
    }

    pub(super) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// A new plan: what it cannot go on from is dropped.
    pub(super) fn begin(&mut self, terms: Terms) {
        self.filling.clear();
        self.first = None;
        self.terms = terms;
        let start = self.terms.start;
        for (cell, steps) in std::mem::take(&mut self.held) {
            for (step, snapshot) in steps {
                if Some(step) == start {
                    self.held.entry(cell).or_default().insert(step, snapshot);
                } else {
                    self.recycle(cell, snapshot);
                }
            }
        }
        let Self { spare, terms, .. } = self;
        spare.retain(|cell, buffer| {
            terms.cells.get(cell).is_some_and(|(_, bytes)| *bytes == buffer.len() as u64)
        });
    }

    /// Everything goes; the terms stay.
    pub(super) fn clear(&mut self) {
        self.held.clear();
        self.spare.clear();
    }

    /// A buffer for the next snapshot of a cell, of any length and content: of its oldest one, where
    /// there are two. Given back by `put` or `give_back`.
    pub(super) fn buffer(
        &mut self,
        from: WorkerId,
        (generation, cell, step): (Generation, CellId, u64),
        bytes: u64,
    ) -> Result<Vec<u8>, String> {
        self.check(generation)?;
        let Some((maker, want)) = self.terms.cells.get(&cell) else {
            return Err(format!("snapshots of {cell} have no place here"));
        };
        if *maker != from {
            return Err(format!("{from} does not host {cell}, {maker} does"));
        }
        if *want != bytes {
            return Err(format!("a snapshot of {cell} has {want} bytes, not {bytes}"));
        }
        let newest = self.held.get(&cell).and_then(|steps| steps.keys().next_back().copied());
        if step > self.terms.last || newest.is_some_and(|newest| step < newest) {
            let newest = newest.unwrap_or(0);
            let last = self.terms.last;
            return Err(format!("step {step} of {cell} is not one of {newest} to {last}"));
        }
        if !self.filling.insert(cell) {
            return Err(format!("a snapshot of {cell} is under way already"));
        }
        self.trim(cell, STEPS_KEPT - 1);
        Ok(self.spare.remove(&cell).unwrap_or_default())
    }

    /// A snapshot that did not come about.
    pub(super) fn give_back(&mut self, generation: Generation, cell: CellId, buffer: Vec<u8>) {
        if generation == self.terms.generation {
            self.filling.remove(&cell);
            self.spare.insert(cell, buffer);
        }
    }

    /// Stores what `buffer` was filled with. Refused when a new plan has begun meanwhile.
    pub(super) fn put(
        &mut self,
        generation: Generation,
        cell: CellId,
        snapshot: Snapshot,
    ) -> Result<Arc<Snapshot>, String> {
        self.check(generation)?;
        self.filling.remove(&cell);
        let (step, snapshot) = (snapshot.standing.step, Arc::new(snapshot));
        self.held.entry(cell).or_default().insert(step, Arc::clone(&snapshot));
        if Some(step) == self.terms.start {
            return Ok(snapshot);
        }
        let first = *self.first.get_or_insert(step);
        if step > first {
            let Self { held, terms, .. } = self;
            held.retain(|cell, _| terms.cells.contains_key(cell));
        }
        Ok(snapshot)
    }

    /// Stores what was fetched, or what is a twin's: the state that a plan starts from.
    pub(super) fn adopt(
        &mut self,
        generation: Generation,
        cell: CellId,
        snapshot: &Arc<Snapshot>,
    ) -> Result<(), String> {
        self.check(generation)?;
        let steps = self.held.entry(cell).or_default();
        steps.insert(snapshot.standing.step, Arc::clone(snapshot));
        Ok(())
    }

    /// Whether a snapshot that is offered is held already.
    pub(super) fn has(&self, cell: CellId, step: u64, blake3: blake3::Hash) -> bool {
        let found = self.held.get(&cell).and_then(|steps| steps.get(&step));
        found.is_some_and(|held| held.blake3 == blake3)
    }

    /// The snapshot of a cell after a step, or what there is instead.
    pub(super) fn get(&self, cell: CellId, step: u64) -> Result<Arc<Snapshot>, String> {
        let steps = self.held.get(&cell);
        let found = steps.and_then(|steps| steps.get(&step));
        found.cloned().ok_or_else(|| {
            let held = steps.into_iter().flat_map(BTreeMap::keys).map(u64::to_string);
            let held: Vec<String> = held.collect();
            let held = if held.is_empty() { "none".to_owned() } else { held.join(", ") };
            format!("it does not hold step {step} of {cell}; steps of it that it holds: {held}")
        })
    }

    fn check(&self, generation: Generation) -> Result<(), String> {
        let current = self.terms.generation;
        if generation == current {
            return Ok(());
        }
        Err(format!("the snapshot is of {generation}, the vault serves {current}"))
    }

    /// Lets the oldest snapshots of a cell go until so many are left.
    fn trim(&mut self, cell: CellId, left: u64) {
        let Some(steps) = self.held.get_mut(&cell) else { return };
        while steps.len() as u64 > left
            && let Some((_, oldest)) = steps.pop_first()
        {
            if let Some(oldest) = Arc::into_inner(oldest) {
                self.spare.insert(cell, oldest.bytes);
            }
        }
    }

    fn recycle(&mut self, cell: CellId, snapshot: Arc<Snapshot>) {
        if let Some(snapshot) = Arc::into_inner(snapshot) {
            self.spare.insert(cell, snapshot.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: WorkerId = WorkerId(1);

    fn terms(generation: u64, start: Option<u64>, cells: &[(u32, u32)]) -> Terms {
        let cells = cells.iter().map(|(cell, maker)| (CellId(*cell), (WorkerId(*maker), 4)));
        Terms { generation: Generation(generation), start, last: 100, cells: cells.collect() }
    }

    fn put(store: &mut Store, cell: u32, step: u64) -> *const u8 {
        let (generation, cell) = (store.terms().generation, CellId(cell));
        let maker = store.terms().cells[&cell].0;
        let mut bytes = store.buffer(maker, (generation, cell, step), 4).unwrap();
        bytes.resize(4, 0);
        let standing = Standing { step, ..Standing::default() };
        let snapshot = Snapshot { standing, blake3: blake3::hash(&bytes), bytes };
        store.put(generation, cell, snapshot).unwrap().bytes.as_ptr()
    }

    fn steps(store: &Store, cell: u32) -> Vec<u64> {
        store.held.get(&CellId(cell)).into_iter().flat_map(BTreeMap::keys).copied().collect()
    }

    #[test]
    fn the_two_newest_steps_stay_in_two_buffers() {
        let mut store = Store::new();
        store.begin(terms(1, None, &[(0, 1), (5, 2)]));
        let buffers: Vec<_> = (1..=6).map(|k| put(&mut store, 5, 10 * k)).collect();
        assert_eq!(steps(&store, 5), [50, 60]);
        assert!(buffers[2..].iter().all(|buffer| buffers[..2].contains(buffer)), "{buffers:?}");
        // Somebody still reads the oldest: it is left to them.
        let reading = store.get(CellId(5), 50).unwrap();
        assert!(!buffers.contains(&put(&mut store, 5, 70)));
        assert_eq!(reading.standing.step, 50);
        assert_eq!(steps(&store, 5), [60, 70]);
    }

    #[test]
    fn what_the_plan_does_not_name_is_refused_before_a_byte_is_taken() {
        let mut store = Store::new();
        let ask = |store: &mut Store, from, generation, cell, step, bytes| {
            let what = (Generation(generation), CellId(cell), step);
            store.buffer(WorkerId(from), what, bytes).map(drop)
        };
        assert!(ask(&mut store, 2, 1, 5, 10, 4).unwrap_err().contains("the vault serves"));
        store.begin(terms(1, None, &[(5, 2)]));
        for (from, generation, cell, step, bytes, want) in [
            (2, 2, 5, 10, 4, "is of generation 2, the vault serves generation 1"),
            (2, 1, 6, 10, 4, "snapshots of cell-6 have no place here"),
            (3, 1, 5, 10, 4, "worker-3 does not host cell-5, worker-2 does"),
            (2, 1, 5, 10, 5, "a snapshot of cell-5 has 4 bytes, not 5"),
            (2, 1, 5, 101, 4, "step 101 of cell-5 is not one of 0 to 100"),
        ] {
            let error = ask(&mut store, from, generation, cell, step, bytes).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
        ask(&mut store, 2, 1, 5, 10, 4).unwrap();
        let error = ask(&mut store, 2, 1, 5, 20, 4).unwrap_err();
        assert!(error.contains("under way already"), "{error}");
        store.give_back(Generation(1), CellId(5), vec![0; 4]);
        put(&mut store, 5, 20);
        let error = ask(&mut store, 2, 1, 5, 10, 4).unwrap_err();
        assert!(error.contains("step 10 of cell-5 is not one of 20 to 100"), "{error}");
    }

    #[test]
    fn a_new_plan_keeps_its_start_until_its_own_first_snapshot_is_complete() {
        let mut store = Store::new();
        store.begin(terms(1, None, &[(0, 1), (5, 2)]));
        for step in [10, 20, 30] {
            put(&mut store, 0, step);
            put(&mut store, 5, step);
        }
        store.begin(terms(2, Some(20), &[(0, 1), (1, 1)]));
        assert_eq!((steps(&store, 0), steps(&store, 5)), (vec![20], vec![20]));
        let theirs = store.get(CellId(5), 20).unwrap();
        store.adopt(Generation(2), CellId(1), &theirs).unwrap();
        put(&mut store, 0, 30);
        assert_eq!((steps(&store, 0), steps(&store, 5)), (vec![20, 30], vec![20]));
        put(&mut store, 0, 40);
        assert_eq!((steps(&store, 0), steps(&store, 5)), (vec![30, 40], vec![]));
        assert_eq!(steps(&store, 1), [20], "it is this worker's own");
        let error = store.get(CellId(0), 20).map(drop).unwrap_err();
        let want = "it does not hold step 20 of cell-0; steps of it that it holds: 30, 40";
        assert_eq!(error, want);
        let late = Snapshot {
            standing: Standing::default(),
            blake3: blake3::hash(&[]),
            bytes: Vec::new(),
        };
        let error = store.put(Generation(1), CellId(0), late).map(drop).unwrap_err();
        assert!(error.contains("is of generation 1"), "{error}");
        store.begin(terms(3, None, &[(0, ME.0)]));
        assert_eq!((steps(&store, 0), steps(&store, 1)), (vec![], vec![]));
    }
}
