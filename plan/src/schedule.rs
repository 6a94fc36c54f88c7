//! Pipeline schedules as data: a list of slots that a dumb executor runs in order.
//!
//! Activations and gradients move between the stages of one column. A send never waits. On every
//! stage the input halves run in ascending microbatch order, and so do the weight halves: each
//! gradient is summed in the same order under every schedule, and the losses are bit-equal.

mod one_f_one_b;
mod simulate;
#[cfg(test)]
mod stopwatch;
mod zb_h1;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use one_f_one_b::one_f_one_b;
pub use simulate::{Held, ScheduleError, simulate};
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
}

/// One piece of work of a cell, on one microbatch (0-based).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// Wait for the previous stage's hidden states.
    RecvForward(u32),
    Forward(u32),
    /// Hand the hidden states to the next stage.
    SendForward(u32),
    /// Wait for the next stage's gradient.
    RecvBackward(u32),
    /// The input half: gradients of activations, and of what is too small to defer.
    BackwardInput(u32),
    /// Hand the gradient to the previous stage.
    SendBackward(u32),
    /// The weight half: every Linear's weight gradient.
    BackwardWeight(u32),
}

impl Schedule {
    /// The slots of one stage.
    pub fn slots(self, stage: u32, n_stages: u32, n_micro: u32) -> Vec<Slot> {
        match self {
            Self::OneFOneB => one_f_one_b(stage, n_stages, n_micro),
            Self::ZbH1 => zb_h1(stage, n_stages, n_micro),
        }
    }

    /// The most microbatches whose weight half a stage leaves for later while it does other work.
    pub fn weights_deferred(self, stage: u32) -> u32 {
        match self {
            Self::OneFOneB => 0,
            Self::ZbH1 => stage,
        }
    }

    /// Which schedule it is and what it does to the bubble, in one line.
    pub fn reason(self, n_stages: u32, n_micro: u32) -> String {
        if n_stages == 1 {
            return format!("{self}: one stage waits for no other, so every schedule is the same");
        }
        let percent = |schedule: Self| 100.0 * schedule.bubble_share(n_stages, n_micro);
        let (plain, deferring) = (percent(Self::OneFOneB), percent(Self::ZbH1));
        let plural = if n_micro == 1 { "" } else { "es" };
        let counted = format!("{n_micro} microbatch{plural}; equal stages, F = B = W");
        match self {
            Self::ZbH1 if n_micro == 1 => format!(
                "{self}: stages wait {deferring:.0} % of a step, as under 1f1b: a single \
                 microbatch leaves nothing to fill the drain with ({counted})"
            ),
            Self::ZbH1 => format!(
                "{self}: stages wait {deferring:.0} % of a step instead of {plain:.0} % under \
                 1f1b, as deferred weight halves fill the drain; same losses ({counted})"
            ),
            Self::OneFOneB if n_micro == 1 => {
                format!("{self}: stages wait {plain:.0} % of a step ({counted})")
            }
            Self::OneFOneB => format!(
                "{self}: stages wait {plain:.0} % of a step; under zb-h1 {deferring:.0} %, with \
                 the same losses ({counted})"
            ),
        }
    }

    /// The share of a step in which a stage waits, if all stages are equally fast, messages take
    /// no time, and a forward, an input half and a weight half take as long as each other.
    pub fn bubble_share(self, n_stages: u32, n_micro: u32) -> f64 {
        assert!(n_stages > 0 && n_micro > 0, "a step has stages and microbatches");
        let (behind, more) = (u64::from(n_stages - 1), u64::from(n_micro - 1));
        // In units of one slot. `stopwatch` holds these against simulated steps.
        let bubble = match self {
            Self::OneFOneB => 2 * behind,
            Self::ZbH1 => 2 * behind - behind.min(more),
        };
        bubble as f64 / (3 * u64::from(n_micro) + bubble) as f64
    }
}

/// As in the manifest.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneFOneB => "1f1b",
            Self::ZbH1 => "zb-h1",
        })
    }
}

/// A microbatch's way forward through a stage, with its messages.
fn forward(stage: u32, n_stages: u32, i: u32) -> impl Iterator<Item = Slot> {
    let recv = (stage > 0).then_some(Slot::RecvForward(i));
    let send = (stage + 1 < n_stages).then_some(Slot::SendForward(i));
    recv.into_iter().chain([Slot::Forward(i)]).chain(send)
}

/// Its input half. The gradient is sent at once: the previous stage waits no longer than it must.
fn backward_input(stage: u32, n_stages: u32, i: u32) -> impl Iterator<Item = Slot> {
    let recv = (stage + 1 < n_stages).then_some(Slot::RecvBackward(i));
    let send = (stage > 0).then_some(Slot::SendBackward(i));
    recv.into_iter().chain([Slot::BackwardInput(i)]).chain(send)
}

impl Slot {
    /// The microbatch it works on.
    pub fn microbatch(self) -> u32 {
        match self {
            Self::RecvForward(i)
            | Self::Forward(i)
            | Self::SendForward(i)
            | Self::RecvBackward(i)
            | Self::BackwardInput(i)
            | Self::SendBackward(i)
            | Self::BackwardWeight(i) => i,
        }
    }
}

/// Short, as in the papers: `F0`, `B0` (input half), `W0` (weight half); `>` sends and `<` waits.
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
        write!(f, "{name}{}", self.microbatch())
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
        (0..n_stages).map(|stage| schedule.slots(stage, n_stages, n_micro)).collect()
    }

    #[test]
    fn every_size_runs_to_the_end_and_holds_no_more_than_its_bound() {
        for schedule in BOTH {
            for (n_stages, n_micro) in (1..=9).flat_map(|p| (0..=20).map(move |m| (p, m))) {
                let held = simulate(&all(schedule, n_stages, n_micro), n_micro).unwrap();
                for (stage, held) in (0..n_stages).zip(held) {
                    let deferred = schedule.weights_deferred(stage);
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

    #[test]
    fn no_stage_of_zb_h1_holds_more_microbatches_than_the_first_of_1f1b() {
        let most = |schedule, n_micro| {
            let held = simulate(&all(schedule, 5, n_micro), n_micro).unwrap();
            held.into_iter().map(|held| held.in_all).max().unwrap()
        };
        for n_micro in 1..=20 {
            assert_eq!(most(Schedule::ZbH1, n_micro), most(Schedule::OneFOneB, n_micro));
        }
    }

    #[test]
    fn both_halves_take_the_microbatches_in_ascending_order() {
        for schedule in BOTH {
            for slots in all(schedule, 6, 13) {
                let of = |wanted: fn(u32) -> Slot| {
                    let mine = slots.iter().filter(|slot| **slot == wanted(slot.microbatch()));
                    mine.map(|slot| slot.microbatch()).collect::<Vec<u32>>()
                };
                let ascending: Vec<u32> = (0..13).collect();
                assert_eq!(of(Slot::Forward), ascending, "{schedule}");
                assert_eq!(of(Slot::BackwardInput), ascending, "{schedule}");
                assert_eq!(of(Slot::BackwardWeight), ascending, "{schedule}");
            }
        }
    }

    #[test]
    fn reasons_read_well() {
        let check = |schedule: Schedule, n_stages: u32, n_micro: u32, wanted: &str| {
            assert_eq!(schedule.reason(n_stages, n_micro), wanted);
        };
        check(
            Schedule::OneFOneB,
            2,
            4,
            "1f1b: stages wait 14 % of a step; under zb-h1 8 %, with the same losses \
             (4 microbatches; equal stages, F = B = W)",
        );
        check(
            Schedule::ZbH1,
            4,
            8,
            "zb-h1: stages wait 11 % of a step instead of 20 % under 1f1b, as deferred weight \
             halves fill the drain; same losses (8 microbatches; equal stages, F = B = W)",
        );
        check(
            Schedule::ZbH1,
            2,
            1,
            "zb-h1: stages wait 40 % of a step, as under 1f1b: a single microbatch leaves nothing \
             to fill the drain with (1 microbatch; equal stages, F = B = W)",
        );
        let alone = "zb-h1: one stage waits for no other, so every schedule is the same";
        check(Schedule::ZbH1, 1, 4, alone);
    }
}
