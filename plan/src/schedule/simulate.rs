//! The checker of schedules: runs all stages' lists against each other, without any work in them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Pipeline, Route, Schedule, Slot, Work};

/// Microbatches a stage holds something of, each once a chunk: at one moment, or the most at any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Between forward and input half: all activations.
    pub before_input_half: u32,
    /// Between the halves: inputs and output gradients of the Linears.
    pub before_weight_half: u32,
    /// Either.
    pub in_all: u32,
}

/// Why a set of slot lists cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("no stage can go on: stage {stage} waits at {slot} (slot {at})")]
    Deadlock { stage: usize, at: usize, slot: Slot },

    #[error("stage {stage}, slot {at}: {slot}, but it wants {wanted}")]
    Order { stage: usize, at: usize, slot: Slot, wanted: &'static str },

    #[error("stage {stage}, slot {at}: {slot}, but the oldest message is for {oldest}")]
    Swapped { stage: usize, at: usize, slot: Slot, oldest: Slot },

    #[error("stage {stage} ends with microbatch {microbatch} of chunk {chunk} unfinished")]
    Unfinished { stage: usize, chunk: u32, microbatch: u32 },
}

/// Runs the lists of all stages of one column against each other and returns what each stage held.
///
/// Sends never wait; each direction of each link delivers in order.
pub fn simulate(
    stages: &[Vec<Slot>],
    n_chunks: u32,
    n_micro: u32,
) -> Result<Vec<Held>, ScheduleError> {
    simulate_along(Route::Around, stages, (n_chunks, n_micro), None)
}

/// The same along any route, `n_micro` microbatches through each chunk. With `room`, a send to another stage waits while
/// so many of its messages in that direction have not been taken.
pub fn simulate_along(
    route: Route,
    stages: &[Vec<Slot>],
    (n_chunks, n_micro): (u32, u32),
    room: Option<usize>,
) -> Result<Vec<Held>, ScheduleError> {
    let n_stages = stages.len();
    // Only for its neighbours, which are the same under every schedule.
    let schedule = Schedule::Interleaved;
    let pipeline = Pipeline { schedule, stages: n_stages as u32, chunks: n_chunks };
    let shape = Shape { route, pipeline, n_micro, room };
    let mut runs: Vec<StageRun> = (0..n_stages).map(|_| StageRun::default()).collect();
    loop {
        let mut moved = false;
        for stage in 0..n_stages {
            while let Some(slot) = stages[stage].get(runs[stage].at).copied() {
                if !step(&mut runs, (stage, slot), shape)? {
                    break;
                }
                runs[stage].at += 1;
                moved = true;
            }
        }
        let waiting = (0..n_stages).find(|stage| runs[*stage].at < stages[*stage].len());
        let Some(stage) = waiting else { break };
        if !moved {
            let at = runs[stage].at;
            return Err(ScheduleError::Deadlock { stage, at, slot: stages[stage][at] });
        }
    }
    for (stage, run) in runs.iter().enumerate() {
        for work in all_work(n_chunks, n_micro) {
            let at_end = shape.after(stage as u32, work).is_none();
            let at_start = shape.before(stage as u32, work).is_none();
            let sent_forward = at_end || run.done.contains(&Slot::SendForward(work));
            let sent_backward = at_start || run.done.contains(&Slot::SendBackward(work));
            if !run.done.contains(&Slot::BackwardWeight(work)) || !sent_forward || !sent_backward {
                let Work { chunk, microbatch } = work;
                return Err(ScheduleError::Unfinished { stage, chunk, microbatch });
            }
        }
    }
    Ok(runs.into_iter().map(|run| run.most).collect())
}

/// What the lists are for.
#[derive(Clone, Copy)]
struct Shape {
    route: Route,
    pipeline: Pipeline,
    n_micro: u32,
    room: Option<usize>,
}

impl Shape {
    fn after(self, stage: u32, work: Work) -> Option<(u32, Work)> {
        self.pipeline.after_along(self.route, stage, work)
    }

    fn before(self, stage: u32, work: Work) -> Option<(u32, Work)> {
        self.pipeline.before_along(self.route, stage, work)
    }
}

fn all_work(n_chunks: u32, n_micro: u32) -> impl Iterator<Item = Work> {
    let of = move |chunk| (0..n_micro).map(move |microbatch| Work { chunk, microbatch });
    (0..n_chunks).flat_map(of)
}

/// One stage in the middle of its list.
#[derive(Default)]
struct StageRun {
    at: usize,
    done: BTreeSet<Slot>,
    /// On their way here, oldest first, as this one's work: by the sender, and hidden states or gradients.
    coming: BTreeMap<(u32, Kind), VecDeque<Work>>,
    held: Held,
    most: Held,
}

/// What a message brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Hidden,
    Gradient,
}

impl StageRun {
    fn count(&mut self) {
        let Held { before_input_half, before_weight_half, .. } = self.held;
        self.held.in_all = before_input_half + before_weight_half;
        self.most = Held {
            before_input_half: before_input_half.max(self.most.before_input_half),
            before_weight_half: before_weight_half.max(self.most.before_weight_half),
            in_all: self.held.in_all.max(self.most.in_all),
        };
    }
}

/// Does one slot. `false`: its message has not come yet.
fn step(
    runs: &mut [StageRun],
    (stage, slot): (usize, Slot),
    shape: Shape,
) -> Result<bool, ScheduleError> {
    let work = slot.work();
    let (before, after) = (shape.before(stage as u32, work), shape.after(stage as u32, work));
    let (first, last) = (before.is_none(), after.is_none());
    let run = &mut runs[stage];
    let at = run.at;
    let need = |met: bool, wanted: &'static str| {
        if met { Ok(()) } else { Err(ScheduleError::Order { stage, at, slot, wanted }) }
    };
    need(
        work.microbatch < shape.n_micro && work.chunk < shape.pipeline.chunks,
        "a microbatch of this step",
    )?;
    need(!run.done.contains(&slot), "a slot not done yet")?;
    let came = match slot {
        Slot::RecvForward(_) => {
            need(!first, "a later stage")?;
            let from = (before.expect("not at the start").0, Kind::Hidden);
            take(run.coming.entry(from).or_default(), (stage, at, slot), Slot::RecvForward)?
        }
        Slot::Forward(work) => {
            need(first || run.done.contains(&Slot::RecvForward(work)), "RecvForward")?;
            run.held.before_input_half += 1;
            true
        }
        Slot::SendForward(work) => {
            need(!last, "an earlier stage")?;
            need(run.done.contains(&Slot::Forward(work)), "Forward")?;
            let (to, theirs) = after.expect("not at the end");
            send(runs, (stage, to, Kind::Hidden), theirs, shape.room)
        }
        Slot::RecvBackward(_) => {
            need(!last, "an earlier stage")?;
            let from = (after.expect("not at the end").0, Kind::Gradient);
            take(run.coming.entry(from).or_default(), (stage, at, slot), Slot::RecvBackward)?
        }
        Slot::BackwardInput(work) => {
            need(run.done.contains(&Slot::Forward(work)), "Forward")?;
            need(last || run.done.contains(&Slot::RecvBackward(work)), "RecvBackward")?;
            run.held.before_input_half -= 1;
            run.held.before_weight_half += 1;
            true
        }
        Slot::SendBackward(work) => {
            need(!first, "a later stage")?;
            need(run.done.contains(&Slot::BackwardInput(work)), "BackwardInput")?;
            let (to, theirs) = before.expect("not at the start");
            send(runs, (stage, to, Kind::Gradient), theirs, shape.room)
        }
        Slot::BackwardWeight(work) => {
            need(run.done.contains(&Slot::BackwardInput(work)), "BackwardInput")?;
            run.held.before_weight_half -= 1;
            true
        }
    };
    if came {
        runs[stage].done.insert(slot);
        runs[stage].count();
    }
    Ok(came)
}

/// Hands a message on if its way has room.
fn send(
    runs: &mut [StageRun],
    (from, to, kind): (usize, u32, Kind),
    theirs: Work,
    room: Option<usize>,
) -> bool {
    let way = runs[to as usize].coming.entry((from as u32, kind)).or_default();
    let has_room = from == to as usize || room.is_none_or(|room| way.len() < room);
    if has_room {
        way.push_back(theirs);
    }
    has_room
}

/// Takes the oldest message if it has come; it must be for the waiting slot.
fn take(
    queue: &mut VecDeque<Work>,
    (stage, at, slot): (usize, usize, Slot),
    waiting: fn(Work) -> Slot,
) -> Result<bool, ScheduleError> {
    match queue.pop_front().map(waiting) {
        None => Ok(false),
        Some(oldest) if oldest == slot => Ok(true),
        Some(oldest) => Err(ScheduleError::Swapped { stage, at, slot, oldest }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::all;
    use super::super::{Schedule, one_f_one_b};
    use super::*;

    fn one_f_one_b_of(n_stages: u32, n_micro: u32) -> Vec<Vec<Slot>> {
        all(Schedule::OneFOneB, n_stages, n_micro)
    }

    #[test]
    fn the_checker_finds_a_deadlock() {
        let mut stages = one_f_one_b_of(2, 2);
        // Stage 0 waits for a gradient before it has sent what the gradient is of.
        stages[0] = [Slot::Forward(Work::of(0)), Slot::RecvBackward(Work::of(0))].into();
        let stage_0 =
            ScheduleError::Deadlock { stage: 0, at: 1, slot: Slot::RecvBackward(Work::of(0)) };
        assert_eq!(simulate(&stages, 1, 2), Err(stage_0));
    }

    #[test]
    fn the_checker_finds_wrong_orders() {
        let check = |stages: &[Vec<Slot>], n_micro: u32, wanted: &str| {
            let error = simulate(stages, 1, n_micro).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        };
        let backward_first = vec![vec![Slot::BackwardInput(Work::of(0))]];
        check(&backward_first, 1, "stage 0, slot 0: B0, but it wants Forward");
        let weight_first =
            vec![vec![Slot::Forward(Work::of(0)), Slot::BackwardWeight(Work::of(0))]];
        check(&weight_first, 1, "W0, but it wants BackwardInput");
        check(&[vec![Slot::Forward(Work::of(3))]], 1, "F3, but it wants a microbatch of this step");
        check(&[one_f_one_b(0, 1, 1)], 2, "stage 0 ends with microbatch 1 of chunk 0 unfinished");
        let mut swapped = one_f_one_b_of(2, 2);
        swapped[1].swap(0, 5);
        check(&swapped, 2, "<f1, but the oldest message is for <f0");
        let mut unsent = one_f_one_b_of(2, 1);
        unsent[1].retain(|slot| !matches!(slot, Slot::SendBackward(_)));
        check(&unsent, 1, "no stage can go on: stage 0 waits at <b0");
    }
}
