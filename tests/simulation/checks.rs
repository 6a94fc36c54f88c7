//! What must hold after every event, by the numbers of `docs/reliability.md`: I1 a committed step never
//! goes back but by a row that says so; I2 every state is that of an undisturbed run; I3 no sample lost
//! or twice; I4 checkpoints hold what they should; I5 the end is an undisturbed run's; I7 only the present
//! generation counts. I6, that everything ends, is the world's.

use std::collections::BTreeMap;
use std::ops::Range;

use shoal_coordinator::state::Effect;
use shoal_coordinator::{LedgerRow, News};
use shoal_plan::checkpoint::CheckpointManifest;
use shoal_plan::grid::{CellId, Grid};
use shoal_plan::plan::{Generation, Plan, WorkerId};
use shoal_plan::report::Ending;
use shoal_proto::ToWorker;

use crate::engines::{BATCH, LAST_STEP};
use crate::reference::{Reference, loss};

#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) reference: Reference,
    /// The last step in force by the ledger.
    committed: u64,
    plan: Option<Plan>,
    /// The last step each cell has applied, in each generation.
    pub(crate) applied: BTreeMap<(Generation, CellId), u64>,
    pub(crate) checkpoint: u64,
    /// Some worker was to load a damaged checkpoint.
    pub(crate) damage_was_met: bool,
    pub(crate) ended: Option<Result<(u64, Ending), String>>,
    /// The last plan before text was passed over.
    went_past_text: Option<Generation>,
}

impl Checks {
    pub(crate) fn new(grid: Grid, bad: Range<u64>) -> Self {
        Self {
            damage_was_met: false,
            reference: Reference::new(grid, bad),
            committed: 0,
            plan: None,
            applied: BTreeMap::new(),
            checkpoint: 0,
            ended: None,
            went_past_text: None,
        }
    }

    /// A cell has a state after a step, by a plan. One who has not heard yet that the run went back, and past text, trains
    /// on as it would have gone on: nobody takes that from it.
    pub(crate) fn state(
        &self,
        (generation, cell): (Generation, CellId),
        step: u64,
        state: u64,
    ) -> Result<(), String> {
        if self.went_past_text.is_some_and(|last| generation <= last) {
            return Ok(());
        }
        self.is_state(cell, step, state)
    }

    fn is_state(&self, cell: CellId, step: u64, state: u64) -> Result<(), String> {
        if state == self.reference.state(cell, step) {
            return Ok(());
        }
        Err(format!("{cell} after step {step} is not what an undisturbed run has (I2)"))
    }

    /// What the coordinator wants done.
    pub(crate) fn effect(&mut self, effect: &Effect) -> Result<(), String> {
        match effect {
            Effect::Record(LedgerRow::RolledBack(back)) => {
                let to = back.rolled_back_to;
                // Text is passed over, never met again.
                let goes_on = back.next_sequence.is_none_or(|at| at >= BATCH * to);
                if to > self.committed || !goes_on {
                    return Err(format!("from step {} back by {back:?} (I1)", self.committed));
                }
                if let Some(at) = back.next_sequence {
                    self.went_past_text = self.plan.as_ref().map(|plan| plan.generation);
                    self.reference.go_on_from(to, at);
                }
                self.committed = back.rolled_back_to;
            }
            Effect::Record(LedgerRow::Step(row)) => {
                if row.step != self.committed + 1 {
                    let (from, to) = (self.committed, row.step);
                    return Err(format!("the ledger goes from step {from} to {to} (I1)"));
                }
                self.committed = row.step;
                let (at, skipped) = self.reference.position(row.step);
                if (row.first_sequence, row.sequences) != (at, BATCH) {
                    let (step, first) = (row.step, row.first_sequence);
                    return Err(format!("step {step} trains the sequences from {first} on (I3)"));
                }
                let want = loss(self.reference.state(CellId(0), row.step));
                let want = (!skipped).then_some(want.to_bits());
                if row.loss.map(f64::to_bits) != want {
                    return Err(format!("step {} has another loss (I5)", row.step));
                }
                self.all_have_applied(row.step, row.generation)?;
            }
            Effect::Send { message: ToWorker::Assign(assign), .. } => {
                if assign.standing.step != self.committed {
                    let (got, want) = (assign.standing.step, self.committed);
                    return Err(format!(
                        "a plan begins after step {got}, committed is {want} (I1)"
                    ));
                }
            }
            Effect::CommitCheckpoint(manifest) => self.manifest(manifest)?,
            Effect::News(news) => self.news(news),
            Effect::Send { .. }
            | Effect::Answer { .. }
            | Effect::Trace { .. }
            | Effect::Close { .. }
            | Effect::Ignored { .. }
            // Files aside are nobody's source.
            | Effect::DiscardCheckpoint { .. } => {}
        }
        Ok(())
    }

    fn all_have_applied(&self, step: u64, generation: Generation) -> Result<(), String> {
        let plan = self.plan.as_ref().ok_or("a step without a plan")?;
        if plan.generation != generation {
            return Err(format!("step {step} is of {generation}, not of the plan in force (I7)"));
        }
        let late = plan.grid.cells().find(|cell| {
            self.applied.get(&(generation, *cell)).is_none_or(|applied| *applied < step)
        });
        match late {
            Some(cell) => Err(format!("step {step} is committed, and {cell} has not done it (I2)")),
            None => Ok(()),
        }
    }

    /// The file's hash is the state it holds.
    fn manifest(&self, manifest: &CheckpointManifest) -> Result<(), String> {
        let step = manifest.standing.step;
        if step > self.committed {
            return Err(format!("a checkpoint of step {step}, which is not committed (I4)"));
        }
        for file in &manifest.files {
            let cell = CellId(file.name.rsplit('-').next().unwrap().parse().unwrap());
            self.is_state(cell, step, state_of(&file.blake3))?;
        }
        Ok(())
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "other news is checked by its effects")]
    fn news(&mut self, news: &News) {
        match news {
            News::Planned(plan) => {
                self.plan = Some(plan.clone());
            }
            News::Finished { last_step, ending, .. } => {
                self.ended = Some(Ok((*last_step, *ending)));
            }
            News::Failed(failure) => self.ended = Some(Err(failure.to_string())),
            _ => {}
        }
    }

    pub(crate) fn host(&self, cell: CellId) -> Option<WorkerId> {
        self.plan.as_ref().map(|plan| plan.host(cell))
    }

    pub(crate) fn generation(&self) -> Option<Generation> {
        self.plan.as_ref().map(|plan| plan.generation)
    }

    /// The run is over: as it should, and where.
    pub(crate) fn end(&self, stopped: bool) -> Result<(), String> {
        match self.ended.as_ref().ok_or("the run does not end (I6)")? {
            // It cannot be mended under way: the next launch finds it, and takes the one before.
            Err(why) if self.damage_was_met && why.contains("checkpoint") => Ok(()),
            Err(why) if why.contains("want") => Err(format!("a worker broke the protocol: {why}")),
            Err(why) => Err(format!("the run failed: {why}")),
            Ok((last, _)) if *last != self.committed || *last != self.checkpoint => {
                let (committed, checkpoint) = (self.committed, self.checkpoint);
                Err(format!("ended after {last}, ledger {committed}, checkpoint {checkpoint} (I1)"))
            }
            Ok((last, Ending::Completed)) if *last == LAST_STEP => Ok(()),
            Ok((_, Ending::Stopped)) if stopped => Ok(()),
            Ok(other) => Err(format!("the run ended by {other:?}")),
        }
    }
}

/// A state as a file's or a snapshot's hash, and back.
pub(crate) fn hash_of(state: u64) -> String {
    format!("{state:064x}")
}

pub(crate) fn state_of(blake3: &str) -> u64 {
    u64::from_str_radix(&blake3[48..], 16).unwrap()
}
