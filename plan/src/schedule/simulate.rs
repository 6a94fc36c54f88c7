//! The checker of schedules: runs all stages' lists against each other, without any work in them.

use std::collections::{BTreeSet, VecDeque};

use super::Slot;

/// Microbatches a stage holds something of: at one moment, or the most at any.
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

    #[error("stage {stage}, slot {at}: {slot}, but the oldest message is of microbatch {oldest}")]
    Swapped { stage: usize, at: usize, slot: Slot, oldest: u32 },

    #[error("stage {stage} ends with microbatch {microbatch} unfinished")]
    Unfinished { stage: usize, microbatch: u32 },
}

/// Runs the lists of all stages of one column against each other and returns what each stage held.
///
/// Sends never wait; each direction of each link delivers in order.
pub fn simulate(stages: &[Vec<Slot>], n_micro: u32) -> Result<Vec<Held>, ScheduleError> {
    let n_stages = stages.len();
    let mut runs: Vec<StageRun> = (0..n_stages).map(|_| StageRun::default()).collect();
    loop {
        let mut moved = false;
        for stage in 0..n_stages {
            while let Some(slot) = stages[stage].get(runs[stage].at).copied() {
                if !step(&mut runs, stage, slot, n_micro)? {
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
        for i in 0..n_micro {
            let sent_forward = stage + 1 == n_stages || run.done.contains(&Slot::SendForward(i));
            let sent_backward = stage == 0 || run.done.contains(&Slot::SendBackward(i));
            if !run.done.contains(&Slot::BackwardWeight(i)) || !sent_forward || !sent_backward {
                return Err(ScheduleError::Unfinished { stage, microbatch: i });
            }
        }
    }
    Ok(runs.into_iter().map(|run| run.most).collect())
}

/// One stage in the middle of its list.
#[derive(Default)]
struct StageRun {
    at: usize,
    done: BTreeSet<Slot>,
    /// Hidden states on their way from the previous stage, oldest first.
    from_previous: VecDeque<u32>,
    /// Gradients on their way from the next stage, oldest first.
    from_next: VecDeque<u32>,
    held: Held,
    most: Held,
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
    stage: usize,
    slot: Slot,
    n_micro: u32,
) -> Result<bool, ScheduleError> {
    let (first, last) = (stage == 0, stage + 1 == runs.len());
    let run = &mut runs[stage];
    let at = run.at;
    let need = |met: bool, wanted: &'static str| {
        if met { Ok(()) } else { Err(ScheduleError::Order { stage, at, slot, wanted }) }
    };
    need(slot.microbatch() < n_micro, "a microbatch of this step")?;
    need(!run.done.contains(&slot), "a slot not done yet")?;
    let came = match slot {
        Slot::RecvForward(i) => {
            need(!first, "a later stage")?;
            take(&mut run.from_previous, i, (stage, at, slot))?
        }
        Slot::Forward(i) => {
            need(first || run.done.contains(&Slot::RecvForward(i)), "RecvForward")?;
            run.held.before_input_half += 1;
            true
        }
        Slot::SendForward(i) => {
            need(!last, "an earlier stage")?;
            need(run.done.contains(&Slot::Forward(i)), "Forward")?;
            runs[stage + 1].from_previous.push_back(i);
            true
        }
        Slot::RecvBackward(i) => {
            need(!last, "an earlier stage")?;
            take(&mut run.from_next, i, (stage, at, slot))?
        }
        Slot::BackwardInput(i) => {
            need(run.done.contains(&Slot::Forward(i)), "Forward")?;
            need(last || run.done.contains(&Slot::RecvBackward(i)), "RecvBackward")?;
            run.held.before_input_half -= 1;
            run.held.before_weight_half += 1;
            true
        }
        Slot::SendBackward(i) => {
            need(!first, "a later stage")?;
            need(run.done.contains(&Slot::BackwardInput(i)), "BackwardInput")?;
            runs[stage - 1].from_next.push_back(i);
            true
        }
        Slot::BackwardWeight(i) => {
            need(run.done.contains(&Slot::BackwardInput(i)), "BackwardInput")?;
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

/// Takes the oldest message if it has come; it must be of microbatch `wanted`.
fn take(
    queue: &mut VecDeque<u32>,
    wanted: u32,
    (stage, at, slot): (usize, usize, Slot),
) -> Result<bool, ScheduleError> {
    match queue.pop_front() {
        None => Ok(false),
        Some(oldest) if oldest == wanted => Ok(true),
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
        stages[0] = [Slot::Forward(0), Slot::RecvBackward(0)].into();
        let stage_0 = ScheduleError::Deadlock { stage: 0, at: 1, slot: Slot::RecvBackward(0) };
        assert_eq!(simulate(&stages, 2), Err(stage_0));
    }

    #[test]
    fn the_checker_finds_wrong_orders() {
        let check = |stages: &[Vec<Slot>], n_micro: u32, wanted: &str| {
            let error = simulate(stages, n_micro).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        };
        let backward_first = vec![vec![Slot::BackwardInput(0)]];
        check(&backward_first, 1, "stage 0, slot 0: B0, but it wants Forward");
        let weight_first = vec![vec![Slot::Forward(0), Slot::BackwardWeight(0)]];
        check(&weight_first, 1, "W0, but it wants BackwardInput");
        check(&[vec![Slot::Forward(3)]], 1, "F3, but it wants a microbatch of this step");
        check(&[one_f_one_b(0, 1, 1)], 2, "stage 0 ends with microbatch 1 unfinished");
        let mut swapped = one_f_one_b_of(2, 2);
        swapped[1].swap(0, 5);
        check(&swapped, 2, "<f1, but the oldest message is of microbatch 0");
        let mut unsent = one_f_one_b_of(2, 1);
        unsent[1].retain(|slot| !matches!(slot, Slot::SendBackward(_)));
        check(&unsent, 1, "no stage can go on: stage 0 waits at <b0");
    }
}
