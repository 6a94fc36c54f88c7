//! Pipeline schedules as data: a list of slots that a dumb executor runs in order.
//!
//! Activations and gradients move between the stages of one column. A send never waits.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

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

/// The 1F1B schedule of one stage. Narayanan et al. 2021, arXiv:2104.04473, section 2.2.
///
/// A stage holds the activations of at most `n_stages - stage` microbatches. The gradient is sent
/// before the weight half starts, so that the previous stage waits no longer than it must.
pub fn one_f_one_b(stage: u32, n_stages: u32, n_micro: u32) -> Vec<Slot> {
    assert!(stage < n_stages, "stage {stage} of {n_stages}");
    let (first, last) = (stage == 0, stage + 1 == n_stages);
    let forward = |i: u32| {
        let recv = (!first).then_some(Slot::RecvForward(i));
        let send = (!last).then_some(Slot::SendForward(i));
        recv.into_iter().chain([Slot::Forward(i)]).chain(send)
    };
    let backward = |i: u32| {
        let recv = (!last).then_some(Slot::RecvBackward(i));
        let send = (!first).then_some(Slot::SendBackward(i));
        let compute = recv.into_iter().chain([Slot::BackwardInput(i)]);
        compute.chain(send).chain([Slot::BackwardWeight(i)])
    };
    let n_warmup = (n_stages - 1 - stage).min(n_micro);
    let warmup = (0..n_warmup).flat_map(forward);
    let steady = (n_warmup..n_micro).flat_map(|i| forward(i).chain(backward(i - n_warmup)));
    let drain = (n_micro - n_warmup..n_micro).flat_map(backward);
    warmup.chain(steady).chain(drain).collect()
}

/// Runs the lists of all stages of one column against each other and returns, for each stage, the
/// most microbatches whose activations it held at once.
///
/// Sends never wait; each direction of each link delivers in order.
pub fn simulate(stages: &[Vec<Slot>], n_micro: u32) -> Result<Vec<u32>, ScheduleError> {
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
    Ok(runs.into_iter().map(|run| run.in_flight_max).collect())
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
    /// Microbatches between their forward and the end of their backward.
    in_flight: u32,
    in_flight_max: u32,
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
            run.in_flight += 1;
            run.in_flight_max = run.in_flight_max.max(run.in_flight);
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
            run.in_flight -= 1;
            true
        }
    };
    if came {
        runs[stage].done.insert(slot);
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
mod tests {
    use super::*;

    fn text(slots: impl IntoIterator<Item = Slot>) -> String {
        slots.into_iter().map(|slot| slot.to_string()).collect::<Vec<_>>().join(" ")
    }

    /// Compares the computing slots only.
    fn check(stage: u32, n_stages: u32, n_micro: u32, wanted: &str) {
        let compute = |slot: &Slot| matches!(slot, Slot::Forward(_) | Slot::BackwardInput(_));
        assert_eq!(text(one_f_one_b(stage, n_stages, n_micro).into_iter().filter(compute)), wanted);
    }

    fn all(n_stages: u32, n_micro: u32) -> Vec<Vec<Slot>> {
        (0..n_stages).map(|stage| one_f_one_b(stage, n_stages, n_micro)).collect()
    }

    #[test]
    fn three_stages_four_microbatches() {
        check(0, 3, 4, "F0 F1 F2 B0 F3 B1 B2 B3");
        check(1, 3, 4, "F0 F1 B0 F2 B1 F3 B2 B3");
        check(2, 3, 4, "F0 B0 F1 B1 F2 B2 F3 B3");
    }

    #[test]
    fn fewer_microbatches_than_stages_only_fill_and_drain() {
        check(0, 4, 2, "F0 F1 B0 B1");
        check(3, 4, 2, "F0 B0 F1 B1");
    }

    #[test]
    fn the_gradient_leaves_before_the_weight_half_starts() {
        assert_eq!(text(one_f_one_b(0, 2, 2)), "F0 f>0 F1 f>1 <b0 B0 W0 <b1 B1 W1");
        assert_eq!(text(one_f_one_b(1, 2, 2)), "<f0 F0 B0 b>0 W0 <f1 F1 B1 b>1 W1");
        assert_eq!(text(one_f_one_b(0, 1, 2)), "F0 B0 W0 F1 B1 W1");
    }

    #[test]
    fn every_size_runs_to_the_end_and_holds_no_more_than_its_bound() {
        for n_stages in 1..=9 {
            for n_micro in 0..=20 {
                let held = simulate(&all(n_stages, n_micro), n_micro).unwrap();
                for (stage, held) in (0..n_stages).zip(held) {
                    assert_eq!(held, (n_stages - stage).min(n_micro), "{n_stages} x {n_micro}");
                }
            }
        }
    }

    #[test]
    fn the_checker_finds_a_deadlock() {
        let mut stages = all(2, 2);
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
        let mut swapped = all(2, 2);
        swapped[1].swap(0, 5);
        check(&swapped, 2, "<f1, but the oldest message is of microbatch 0");
        let mut unsent = all(2, 1);
        unsent[1].retain(|slot| !matches!(slot, Slot::SendBackward(_)));
        check(&unsent, 1, "no stage can go on: stage 0 waits at <b0");
    }
}
