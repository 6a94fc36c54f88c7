//! `DualPipe` and `DualPipeV`: every stage has two chunks, and while one goes forward the other goes backward.
//! DeepSeek-AI 2024, arXiv:2412.19437, section 3.2.1 and figure 5; the second, which folds the first in half,
//! is described with DeepSeek's published code. Workers do not run them yet: the manifest does not know them.

mod timed;

use std::collections::VecDeque;

use super::{Pipeline, Route, Schedule, Slot, Work};

pub(crate) use timed::run_dual_pipe;

/// What a stage does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Forward(Work),
    /// The input half, and the weight half at once or later.
    Backward {
        work: Work,
        deferred: bool,
    },
    Weight(Work),
    /// A forward of one chunk beside the backward of another: where exchanges hide behind arithmetic, that is what hides
    /// them.
    Both(Work, Work),
}

/// `DualPipeV` of one stage: hidden states go down through every stage's first chunk and back up through its second, so
/// virtual stage `v` of `2 p` lies on stage `v`, or `2 p - 1 - v`. Both ends of the network are on stage 0.
///
/// A stage holds at most `2 p + 1` chunks' activations. The bubble is `(p - 1)(F&B + B - 3 W)` in times of a chunk,
/// where `F&B` is a forward and a whole backward as one piece, and `B` a whole backward. Here a gradient leaves before its
/// weight half, which makes it shorter. `None` with fewer than `2 p` microbatches: the schedule has no steady state then.
pub fn dual_pipe_v(stage: u32, n_stages: u32, n_micro: u32) -> Option<Vec<Slot>> {
    assert!(stage < n_stages, "stage {stage} of {n_stages}");
    let pieces = pieces(stage, n_stages, n_micro)?;
    Some(slots(&pieces, Route::ThereAndBack, (stage, n_stages)))
}

/// `DualPipe` of one stage: two copies of the network run through the stages in opposite directions, half of the microbatches
/// each. Chunk 0 of stage `s` has the network's stage `s`, and chunk 1 its stage `p - 1 - s`; microbatches are counted in each
/// direction.
///
/// Parameters take twice the memory, activations those of `p + 1` microbatches. The bubble is `(p / 2 - 1)(F&B + B - 3 W)`.
/// `None` where stages or microbatches are odd, or there are fewer than `2 p` microbatches.
pub fn dual_pipe(stage: u32, n_stages: u32, n_micro: u32) -> Option<Vec<Slot>> {
    assert!(stage < n_stages, "stage {stage} of {n_stages}");
    let pieces = all_pieces(stage, n_stages, n_micro)?;
    Some(slots(&pieces, Route::BothWays, (stage, n_stages)))
}

/// `DualPipe`'s pieces.
fn all_pieces(stage: u32, n_stages: u32, n_micro: u32) -> Option<Vec<Piece>> {
    if !n_stages.is_multiple_of(2) || !n_micro.is_multiple_of(2) {
        return None;
    }
    let from_end = n_stages - 1 - stage;
    let mut pieces = pieces(stage.min(from_end), n_stages / 2, n_micro / 2)?;
    if from_end < stage {
        // The lower half sees the other direction as its first.
        let turn = |work: Work| Work { chunk: 1 - work.chunk, ..work };
        for piece in &mut pieces {
            *piece = match *piece {
                Piece::Forward(work) => Piece::Forward(turn(work)),
                Piece::Backward { work, deferred } => {
                    Piece::Backward { work: turn(work), deferred }
                }
                Piece::Weight(work) => Piece::Weight(turn(work)),
                Piece::Both(forward, backward) => Piece::Both(turn(forward), turn(backward)),
            };
        }
    }
    Some(pieces)
}

/// The eight phases of stage `at` of `n`, with `n_micro` microbatches through each chunk.
fn pieces(at: u32, n: u32, n_micro: u32) -> Option<Vec<Piece>> {
    if n_micro < 2 * n {
        return None;
    }
    let mut list = List::default();
    let below = n - 1 - at;
    for _ in 0..2 * below {
        list.forward(0);
    }
    for _ in 0..=at {
        list.forward(0);
        list.forward(1);
    }
    for _ in 0..below {
        list.backward(1, true);
        list.weight();
        list.forward(1);
    }
    for round in 0..=n_micro + at - 2 * n {
        // Where the way turns, the first backward is of what has just gone forward.
        if round == 0 && below == 0 {
            list.forward(0);
            list.backward(1, false);
        } else {
            list.both(0, 1);
        }
        list.both(1, 0);
    }
    for _ in 0..below {
        list.backward(1, false);
        list.both(1, 0);
    }
    let mut deferred = false;
    for round in 0..=at {
        // Half of them are deferred: an odd number of stages further, the half starts at the other chunk.
        let half = round == at.div_ceil(2);
        deferred |= half && !at.is_multiple_of(2);
        list.backward(1, deferred);
        deferred |= half && at.is_multiple_of(2);
        list.backward(0, deferred);
    }
    for _ in 0..below {
        list.weight();
        list.backward(0, true);
    }
    for _ in 0..=at {
        list.weight();
    }
    Some(list.pieces)
}

/// Pieces in the making.
#[derive(Default)]
struct List {
    pieces: Vec<Piece>,
    /// The next microbatch of each chunk, forward and backward.
    next: [[u32; 2]; 2],
    /// Weight halves that are left to do, oldest first.
    deferred: VecDeque<Work>,
}

impl List {
    fn take(&mut self, way: usize, chunk: u32) -> Work {
        let next = &mut self.next[way][chunk as usize];
        *next += 1;
        Work { chunk, microbatch: *next - 1 }
    }

    fn forward(&mut self, chunk: u32) {
        let work = self.take(0, chunk);
        self.pieces.push(Piece::Forward(work));
    }

    fn backward(&mut self, chunk: u32, deferred: bool) {
        let work = self.take(1, chunk);
        if deferred {
            self.deferred.push_back(work);
        }
        self.pieces.push(Piece::Backward { work, deferred });
    }

    fn both(&mut self, forward: u32, backward: u32) {
        let pair = (self.take(0, forward), self.take(1, backward));
        self.pieces.push(Piece::Both(pair.0, pair.1));
    }

    fn weight(&mut self) {
        let oldest = self.deferred.pop_front().expect("the phases defer what they do later");
        self.pieces.push(Piece::Weight(oldest));
    }
}

/// With their messages, of a stage of `n`. Nothing overlaps here: a forward and a backward that go together come one after the
/// other.
fn slots(pieces: &[Piece], route: Route, (stage, n): (u32, u32)) -> Vec<Slot> {
    let way = Pipeline { schedule: Schedule::Interleaved, stages: n, chunks: 2 };
    let mut slots = Vec::new();
    let forward = |work: Work, slots: &mut Vec<Slot>| {
        if way.before_along(route, stage, work).is_some() {
            slots.push(Slot::RecvForward(work));
        }
        slots.push(Slot::Forward(work));
        if way.after_along(route, stage, work).is_some() {
            slots.push(Slot::SendForward(work));
        }
    };
    let backward = |work: Work, slots: &mut Vec<Slot>| {
        if way.after_along(route, stage, work).is_some() {
            slots.push(Slot::RecvBackward(work));
        }
        slots.push(Slot::BackwardInput(work));
        if way.before_along(route, stage, work).is_some() {
            slots.push(Slot::SendBackward(work));
        }
    };
    for piece in pieces {
        match *piece {
            Piece::Forward(work) => forward(work, &mut slots),
            Piece::Backward { work, deferred } => {
                backward(work, &mut slots);
                if !deferred {
                    slots.push(Slot::BackwardWeight(work));
                }
            }
            Piece::Weight(work) => slots.push(Slot::BackwardWeight(work)),
            Piece::Both(first, second) => {
                forward(first, &mut slots);
                backward(second, &mut slots);
                slots.push(Slot::BackwardWeight(second));
            }
        }
    }
    slots
}

#[cfg(test)]
#[path = "dual_pipe/tests.rs"]
mod tests;
