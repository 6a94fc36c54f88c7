//! Known bugs, put in from outside: between the code under test and the world. Each must be found.

use shoal_coordinator::LedgerRow;
use shoal_coordinator::state::Effect;
use shoal_plan::plan::Generation;
use shoal_proto::{FromWorker, ToWorker};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// What a worker says of an old generation counts in the present one.
    NoFencing,
    /// A step is committed when the host of cell 0 has done it.
    CommitBeforeAllVotes,
    /// The ledger does not say what was taken back.
    SilentRollback,
    /// A memory hands out an older snapshot than was asked for.
    StaleSnapshot,
    /// A new plan draws the samples of the step before again.
    DuplicatedSamples,
    /// A message lost with its connection is not said again.
    LostMessage,
    /// The coordinator says what it has not written down, and dies.
    SaidBeforeWritten,
}

impl Defect {
    /// Each with parts of the complaints that find it.
    pub(crate) const ALL: [(Self, &'static [&'static str]); 7] = [
        (
            Self::NoFencing,
            &["is committed, and", "broke the protocol", "the run failed", "I7", "panicked"],
        ),
        (Self::CommitBeforeAllVotes, &["is committed, and", "broke the protocol"]),
        (Self::SilentRollback, &["the ledger goes from step", "a plan begins after step"]),
        (Self::StaleSnapshot, &["is not what an undisturbed run has"]),
        (Self::DuplicatedSamples, &["trains the sequences from", "is not what an undisturbed"]),
        (Self::LostMessage, &["broke the protocol", "the run failed", "does not end"]),
        (
            Self::SaidBeforeWritten,
            &["was said otherwise before", "is missing", "the ledger goes from"],
        ),
    ];

    /// On its way to the coordinator, whose plan is of this generation.
    pub(crate) fn heard(self, message: &mut FromWorker, current: Option<Generation>) {
        let Some(current) = current.filter(|_| self == Self::NoFencing) else { return };
        if let Some(generation) = message.fence() {
            *generation = current;
        }
    }

    /// On its way out of the coordinator; false if it is lost there.
    pub(crate) fn carried_out(self, effect: &mut Effect) -> bool {
        match effect {
            Effect::Record(LedgerRow::RolledBack(_)) => self != Self::SilentRollback,
            Effect::Send { message: ToWorker::Assign(assign), .. } => {
                if self == Self::DuplicatedSamples && assign.plan.generation > Generation(1) {
                    let sequences = &mut assign.standing.sequences;
                    *sequences = sequences.saturating_sub(crate::engines::BATCH);
                }
                true
            }
            Effect::Send { message: ToWorker::Received { messages }, .. } => {
                // Said again are only those after the next: of 32 at a time none is lost by that.
                if self == Self::LostMessage && !messages.is_multiple_of(32) {
                    *messages += 1;
                }
                true
            }
            Effect::Send { .. }
            | Effect::Answer { .. }
            | Effect::Trace { .. }
            | Effect::Close { .. }
            | Effect::Ignored { .. }
            | Effect::Record(_)
            | Effect::CommitCheckpoint(_)
            | Effect::DiscardCheckpoint { .. }
            | Effect::News(_) => true,
        }
    }
}
