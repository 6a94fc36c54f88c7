//! Times a step of given slot lengths on paper, to hold the schedules against the formulas of their
//! papers. Only for tests: a step's real length is measured.

use std::collections::BTreeMap;

use super::tests::{BOTH, all};
use super::{Pipeline, Schedule, Slot};

/// How long the computing slots take, in any unit. Messages take no time.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    forward: u64,
    input_half: u64,
    weight_half: u64,
}

const UNIT: Lengths = Lengths { forward: 1, input_half: 1, weight_half: 1 };

/// The same for stages of one chunk.
fn bubble(stages: &[Vec<Slot>], n_micro: u32, lengths: Lengths) -> u64 {
    bubble_of_chunks(stages, 1, n_micro, lengths)
}

/// What the slowest stage waits in a step: its end less the work of a stage. `stages` must be runnable.
fn bubble_of_chunks(stages: &[Vec<Slot>], chunks: u32, n_micro: u32, lengths: Lengths) -> u64 {
    let schedule = Schedule::Interleaved;
    let shape = Pipeline { schedule, stages: stages.len() as u32, chunks };
    let mut at = vec![0; stages.len()];
    let mut now = vec![0; stages.len()];
    // When the message that a stage waits for, by stage and waiting slot, was sent.
    let mut sent: BTreeMap<(usize, Slot), u64> = BTreeMap::new();
    while at.iter().zip(stages).any(|(at, slots)| *at < slots.len()) {
        let before = at.clone();
        for stage in 0..stages.len() {
            while let Some(slot) = stages[stage].get(at[stage]).copied() {
                match slot {
                    Slot::Forward(_) => now[stage] += lengths.forward,
                    Slot::BackwardInput(_) => now[stage] += lengths.input_half,
                    Slot::BackwardWeight(_) => now[stage] += lengths.weight_half,
                    Slot::SendForward(work) => {
                        let (to, theirs) = shape.after(stage as u32, work).unwrap();
                        sent.insert((to as usize, Slot::RecvForward(theirs)), now[stage]);
                    }
                    Slot::SendBackward(work) => {
                        let (to, theirs) = shape.before(stage as u32, work).unwrap();
                        sent.insert((to as usize, Slot::RecvBackward(theirs)), now[stage]);
                    }
                    Slot::RecvForward(_) | Slot::RecvBackward(_) => {
                        let Some(sent) = sent.get(&(stage, slot)) else { break };
                        now[stage] = now[stage].max(*sent);
                    }
                }
                at[stage] += 1;
            }
        }
        assert_ne!(at, before, "the lists block each other");
    }
    let Lengths { forward, input_half, weight_half } = lengths;
    let work = u64::from(n_micro * chunks) * (forward + input_half + weight_half);
    now.into_iter().max().unwrap_or(0) - work
}

#[test]
fn with_equal_slots_zb_h1_waits_half_as_long_as_1f1b() {
    for n_stages in 2..=8 {
        for n_micro in n_stages..=3 * n_stages {
            let of = |schedule| bubble(&all(schedule, n_stages, n_micro), n_micro, UNIT);
            let (zb, plain) = (of(Schedule::ZbH1), of(Schedule::OneFOneB));
            let behind = u64::from(n_stages - 1);
            assert!(zb < plain, "{n_stages} x {n_micro}: {zb} and {plain}");
            // (p - 1)(F + B - W): arXiv:2401.10241, table 2.
            assert_eq!((zb, plain), (behind, 2 * behind), "{n_stages} x {n_micro}");
        }
    }
}

/// The paper's 1F1B has a backward in one piece: its gradient leaves after the weight half.
#[test]
fn with_a_backward_in_one_piece_1f1b_waits_three_times_as_long_as_zb_h1() {
    for n_stages in 2..=8 {
        let n_micro = 2 * n_stages;
        let mut stages = all(Schedule::OneFOneB, n_stages, n_micro);
        for slots in &mut stages {
            for i in 1..slots.len() {
                if matches!(slots[i], Slot::BackwardWeight(_))
                    && matches!(slots[i - 1], Slot::SendBackward(_))
                {
                    slots.swap(i - 1, i);
                }
            }
        }
        let zb = bubble(&all(Schedule::ZbH1, n_stages, n_micro), n_micro, UNIT);
        assert_eq!(bubble(&stages, n_micro, UNIT), 3 * zb);
    }
}

#[test]
fn bubbles_follow_the_formulas_for_unequal_slots_too() {
    for n_stages in 1..=6 {
        let (behind, n_micro) = (u64::from(n_stages - 1), n_stages + 3);
        for (forward, input_half, weight_half) in
            [(2, 3, 2), (2, 2, 1), (3, 4, 2), (1, 2, 1), (18, 22, 9)]
        {
            let lengths = Lengths { forward, input_half, weight_half };
            let of = |schedule| bubble(&all(schedule, n_stages, n_micro), n_micro, lengths);
            let zb = behind * (forward + input_half - weight_half);
            assert_eq!(of(Schedule::ZbH1), zb, "{n_stages} stages, {lengths:?}");
            let plain = behind * (forward + input_half);
            assert_eq!(of(Schedule::OneFOneB), plain, "{n_stages} stages, {lengths:?}");
        }
        // A weight half longer than a forward fills no more of the drain than a forward would.
        let long = Lengths { forward: 2, input_half: 3, weight_half: 4 };
        let zb = bubble(&all(Schedule::ZbH1, n_stages, n_micro), n_micro, long);
        assert_eq!(zb, behind * 3);
    }
}

#[test]
fn the_expected_share_is_that_of_a_simulated_step() {
    let check = |pipeline: Pipeline, n_micro: u32| {
        let slots = pipeline.all_slots(n_micro);
        let bubble = bubble_of_chunks(&slots, pipeline.chunks, n_micro, UNIT) as f64;
        let wanted = bubble / (3.0 * f64::from(n_micro * pipeline.chunks) + bubble);
        let got = pipeline.bubble_share(n_micro);
        assert!((got - wanted).abs() < 1e-12, "{pipeline:?} x {n_micro}: {got}, want {wanted}");
    };
    for schedule in BOTH {
        for (stages, n_micro) in (1..=9).flat_map(|p| (1..=20).map(move |m| (p, m))) {
            check(Pipeline { schedule, stages, chunks: 1 }, n_micro);
        }
    }
    for (stages, chunks) in (2..=8).flat_map(|p| (2..=4).map(move |v| (p, v))) {
        for n_micro in 1..=20 {
            check(Pipeline { schedule: Schedule::Interleaved, stages, chunks }, n_micro);
        }
    }
}

#[test]
fn the_bubble_shrinks_with_the_number_of_chunks() {
    for (n_stages, chunks) in (2..=6).flat_map(|p| (2..=4).map(move |v| (p, v))) {
        let pipeline = Pipeline { schedule: Schedule::Interleaved, stages: n_stages, chunks };
        for n_micro in n_stages..=3 * n_stages {
            let plain = bubble(&all(Schedule::OneFOneB, n_stages, n_micro), n_micro, UNIT);
            // A slot of a chunk is as much shorter as there are more of them.
            let here = bubble_of_chunks(&pipeline.all_slots(n_micro), chunks, n_micro, UNIT);
            assert_eq!(here, plain, "{pipeline:?} x {n_micro}: a {chunks}th in time");
        }
    }
}
