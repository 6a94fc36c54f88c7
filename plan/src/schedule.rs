//! Pipeline schedules as data: a list of slots that a dumb executor runs in order.
//!
//! Activations and gradients move between the stages of one column. A send never waits. On every
//! stage the input halves of a chunk run in ascending microbatch order, and so do its weight halves:
//! each gradient is summed in the same order under every schedule, and where the layers are cut
//! alike the losses are bit-equal.
//!
//! A stage has one chunk, or under `interleaved` several: runs of layers that are not neighbours.
//! Chunk `c` of stage `s` of `p` is virtual stage `c * p + s` of the network.

mod dual_pipe;
mod interleaved;
mod one_f_one_b;
mod pipeline;
mod route;
mod simulate;
#[cfg(test)]
mod stopwatch;
pub mod timeline;
mod zb_h1;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use dual_pipe::{Piece, run_dual_pipe};
pub use dual_pipe::{dual_pipe, dual_pipe_v};
pub use interleaved::interleaved;
pub use one_f_one_b::one_f_one_b;
pub use pipeline::Pipeline;
pub use route::Route;
pub use simulate::{Held, ScheduleError, simulate, simulate_along};
pub use zb_h1::zb_h1;

/// The order in which a stage works on its microbatches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Schedule {
    /// Weight halves right after their input halves. See `one_f_one_b`.
    #[serde(rename = "1f1b")]
    OneFOneB,
    /// Weight halves deferred into the drain. See `zb_h1`.
    #[serde(rename = "zb-h1")]
    ZbH1,
    /// Several chunks of each stage take turns. See `interleaved`.
    #[serde(rename = "interleaved")]
    Interleaved,
}

/// What a slot works on, both 0-based.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Work {
    /// Of this stage.
    pub chunk: u32,
    pub microbatch: u32,
}

/// One piece of work of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// Wait for the hidden states of the virtual stage before.
    RecvForward(Work),
    Forward(Work),
    /// Hand the hidden states to the virtual stage after.
    SendForward(Work),
    /// Wait for the gradient of the virtual stage after.
    RecvBackward(Work),
    /// The input half: gradients of activations, and of what is too small to defer.
    BackwardInput(Work),
    /// Hand the gradient to the virtual stage before.
    SendBackward(Work),
    /// The weight half: every Linear's weight gradient.
    BackwardWeight(Work),
}

/// As in the manifest.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneFOneB => "1f1b",
            Self::ZbH1 => "zb-h1",
            Self::Interleaved => "interleaved",
        })
    }
}

impl Work {
    /// Of a stage's only chunk.
    pub(crate) fn of(microbatch: u32) -> Self {
        Self { chunk: 0, microbatch }
    }
}

/// A microbatch's way forward through virtual stage `at` of `n`, with its messages.
fn forward((at, n): (u32, u32), work: Work) -> impl Iterator<Item = Slot> {
    let recv = (at > 0).then_some(Slot::RecvForward(work));
    let send = (at + 1 < n).then_some(Slot::SendForward(work));
    recv.into_iter().chain([Slot::Forward(work)]).chain(send)
}

/// Its input half. The gradient is sent at once: the stage before waits no longer than it must.
fn backward_input((at, n): (u32, u32), work: Work) -> impl Iterator<Item = Slot> {
    let recv = (at + 1 < n).then_some(Slot::RecvBackward(work));
    let send = (at > 0).then_some(Slot::SendBackward(work));
    recv.into_iter().chain([Slot::BackwardInput(work)]).chain(send)
}

impl Slot {
    /// What it works on.
    pub fn work(self) -> Work {
        match self {
            Self::RecvForward(work)
            | Self::Forward(work)
            | Self::SendForward(work)
            | Self::RecvBackward(work)
            | Self::BackwardInput(work)
            | Self::SendBackward(work)
            | Self::BackwardWeight(work) => work,
        }
    }
}

/// Short, as in the papers: `F0`, `B0` (input half), `W0` (weight half); `>` sends and `<` waits.
/// A chunk other than the first stands behind a point: `F0.1`.
impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::RecvForward(_) => "<f",
            Self::Forward(_) => "F",
            Self::SendForward(_) => "f>",
            Self::RecvBackward(_) => "<b",
            Self::BackwardInput(_) => "B",
            Self::SendBackward(_) => "b>",
            Self::BackwardWeight(_) => "W",
        };
        let Work { chunk, microbatch } = self.work();
        write!(f, "{name}{microbatch}")?;
        if chunk > 0 { write!(f, ".{chunk}") } else { Ok(()) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const BOTH: [Schedule; 2] = [Schedule::OneFOneB, Schedule::ZbH1];

    /// The slots in the papers' letters.
    pub(super) fn text(slots: impl IntoIterator<Item = Slot>) -> String {
        slots.into_iter().map(|slot| slot.to_string()).collect::<Vec<_>>().join(" ")
    }

    /// The lists of all stages of a column.
    pub(super) fn all(schedule: Schedule, n_stages: u32, n_micro: u32) -> Vec<Vec<Slot>> {
        Pipeline { schedule, stages: n_stages, chunks: 1 }.all_slots(n_micro)
    }

    #[test]
    fn every_size_runs_to_the_end_and_holds_no_more_than_its_bound() {
        for schedule in BOTH {
            for (n_stages, n_micro) in (1..=9).flat_map(|p| (0..=20).map(move |m| (p, m))) {
                let held = simulate(&all(schedule, n_stages, n_micro), 1, n_micro).unwrap();
                for (stage, held) in (0..n_stages).zip(held) {
                    let deferred = if schedule == Schedule::ZbH1 { stage } else { 0 };
                    let wanted = Held {
                        before_input_half: (n_stages - stage).min(n_micro),
                        // And the one whose weight half is about to run.
                        before_weight_half: (deferred + 1).min(n_micro),
                        in_all: (n_stages - stage + deferred).min(n_micro),
                    };
                    assert_eq!(held, wanted, "{schedule}, stage {stage}: {n_stages} x {n_micro}");
                }
            }
        }
    }

    /// A send waits until the receiver has taken what was sent to it before.
    #[test]
    fn no_schedule_blocks_itself_where_sends_wait() {
        let interleaved = |chunks| Pipeline { schedule: Schedule::Interleaved, stages: 0, chunks };
        let one = BOTH.map(|schedule| Pipeline { schedule, stages: 0, chunks: 1 });
        for shape in one.into_iter().chain([interleaved(2), interleaved(3)]) {
            for (stages, n_micro) in (2..=7).flat_map(|p| (1..=20).map(move |m| (p, m))) {
                let pipeline = Pipeline { stages, ..shape };
                let lists = pipeline.all_slots(n_micro);
                let counts = (pipeline.chunks, n_micro);
                let room = if pipeline.chunks > 1 { stages as usize } else { 1 };
                simulate_along(Route::Around, &lists, counts, Some(room)).unwrap();
            }
        }
    }

    #[test]
    fn no_stage_of_zb_h1_holds_more_microbatches_than_the_first_of_1f1b() {
        let most = |schedule, n_micro| {
            let held = simulate(&all(schedule, 5, n_micro), 1, n_micro).unwrap();
            held.into_iter().map(|held| held.in_all).max().unwrap()
        };
        for n_micro in 1..=20 {
            assert_eq!(most(Schedule::ZbH1, n_micro), most(Schedule::OneFOneB, n_micro));
        }
    }

    #[test]
    fn every_chunk_takes_the_microbatches_in_ascending_order() {
        let interleaved = |chunks| Pipeline { schedule: Schedule::Interleaved, stages: 6, chunks };
        let one = BOTH.map(|schedule| Pipeline { schedule, stages: 6, chunks: 1 });
        for pipeline in one.into_iter().chain([interleaved(2), interleaved(3)]) {
            for slots in pipeline.all_slots(13) {
                for chunk in 0..pipeline.chunks {
                    let of = |wanted: fn(Work) -> Slot| {
                        let mine = slots.iter().map(|slot| (slot, slot.work()));
                        mine.filter(|(slot, work)| **slot == wanted(*work) && work.chunk == chunk)
                            .map(|(_, work)| work.microbatch)
                            .collect::<Vec<u32>>()
                    };
                    let ascending: Vec<u32> = (0..13).collect();
                    assert_eq!(of(Slot::Forward), ascending, "{pipeline:?}");
                    assert_eq!(of(Slot::BackwardInput), ascending, "{pipeline:?}");
                    assert_eq!(of(Slot::BackwardWeight), ascending, "{pipeline:?}");
                }
            }
        }
    }
}
