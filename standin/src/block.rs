//! One block: its warps take turns, meet at barriers, and end.

use crate::error::{FaultKind, Place, Trap};
use crate::execute::{BARRIERS, Flow, Surface};
use crate::instruction::BarrierKind;
use crate::launch::Schedule;
use crate::module::Kernel;
use crate::shared::ones;
use crate::warp::{State, Waiting, Warp};

/// Instructions of a turn when warps take turns evenly.
const TURN: u32 = 4;
/// Instructions of the longest turn at random.
const TURN_MAX: usize = 48;

/// Who is at a barrier.
#[derive(Debug, Clone, Copy, Default)]
struct Barrier {
    /// Warps that came, and of these the ones that wait.
    arrived: u32,
    waiting: u32,
    /// Threads that came, by whole warps.
    threads: u32,
    /// Threads that open it, if an instruction said so.
    expected: Option<u32>,
    /// Of the threads that came: how many had the predicate, and how many there were.
    holding: u32,
    counted: u32,
}

/// A trap with the place where it happened.
pub(crate) type Located = (Trap, Option<Box<Place>>);

/// Runs the block `index` that `surface` stands for; the warps are as they start.
pub(crate) fn run(
    surface: &mut Surface<'_>,
    warps: &mut [Warp],
    index: [u32; 3],
) -> Result<(), Located> {
    let mut block = Block { barriers: [Barrier::default(); BARRIERS], left: warps.len(), steps: 0 };
    let mut turn = 0;
    while block.left > 0 {
        let ready = |warp: &Warp| matches!(warp.state, State::Ready);
        let chosen = match surface.options.schedule {
            Schedule::RoundRobin => {
                let order = (turn..warps.len()).chain(0..turn);
                order.into_iter().find(|warp| ready(&warps[*warp]))
            }
            Schedule::WarpFirst => warps.iter().position(ready),
            Schedule::Random(_) => {
                let start = surface.random.below(warps.len());
                let order = (start..warps.len()).chain(0..start);
                order.into_iter().find(|warp| ready(&warps[*warp]))
            }
        };
        let Some(chosen) = chosen else { return Err((deadlock(surface.kernel, warps), None)) };
        let length = match surface.options.schedule {
            Schedule::RoundRobin => TURN,
            Schedule::WarpFirst => u32::MAX,
            Schedule::Random(_) => 1 + surface.random.below(TURN_MAX) as u32,
        };
        if let Err(trap) = block.turn(surface, warps, chosen, length) {
            let place = place(surface.kernel, &warps[chosen], index, &trap);
            return Err((trap, Some(Box::new(place))));
        }
        turn = (chosen + 1) % warps.len();
    }
    Ok(())
}

struct Block {
    barriers: [Barrier; BARRIERS],
    /// Warps that have not ended.
    left: usize,
    steps: u64,
}

impl Block {
    /// Lets one warp run until it waits, ends, or has had its turn.
    fn turn(
        &mut self,
        surface: &mut Surface<'_>,
        warps: &mut [Warp],
        chosen: usize,
        length: u32,
    ) -> Result<(), Trap> {
        for _ in 0..length {
            let warp = &mut warps[chosen];
            match surface.step(warp)? {
                Some(Flow::Next) => {}
                Some(Flow::Barrier { waiting, threads }) => {
                    return self.arrive(surface, warps, chosen, waiting, threads);
                }
                None => {
                    warp.state = State::Done;
                    self.left -= 1;
                    return self.open_all(surface, warps);
                }
            }
            self.steps += 1;
            if self.steps > surface.options.steps_max {
                let what = format!("no end after {} instructions of the block's warps", self.steps);
                return Err(Trap::new(FaultKind::Endless, what));
            }
        }
        Ok(())
    }

    fn arrive(
        &mut self,
        surface: &mut Surface<'_>,
        warps: &mut [Warp],
        chosen: usize,
        waiting: Waiting,
        threads: Option<u32>,
    ) -> Result<(), Trap> {
        let barrier = &mut self.barriers[waiting.id as usize];
        if barrier.arrived != 0 && barrier.expected != threads {
            let what = format!(
                "barrier {} of {threads:?} threads, others wait there for {:?}",
                waiting.id, barrier.expected
            );
            return Err(Trap::new(FaultKind::Deadlock, what));
        }
        let warp = &mut warps[chosen];
        barrier.expected = threads;
        barrier.arrived |= 1 << chosen;
        barrier.threads += 32;
        match waiting.kind {
            BarrierKind::Arrive | BarrierKind::Sync => {}
            BarrierKind::Count { of, .. }
            | BarrierKind::All { of, .. }
            | BarrierKind::Any { of, .. } => {
                barrier.holding += (warp.holds(of) & warp.alive).count_ones();
                barrier.counted += warp.alive.count_ones();
            }
        }
        if waiting.kind != BarrierKind::Arrive {
            barrier.waiting |= 1 << chosen;
            warp.state = State::Waiting(waiting);
        }
        self.open_all(surface, warps)
    }

    /// Opens every barrier that all have come to.
    fn open_all(&mut self, surface: &mut Surface<'_>, warps: &mut [Warp]) -> Result<(), Trap> {
        for (id, slot) in self.barriers.iter_mut().enumerate().filter(|(_, slot)| slot.arrived != 0)
        {
            let left = warps.iter().filter(|warp| !matches!(warp.state, State::Done));
            let left = left.fold(0u32, |left, warp| left | 1 << warp.index);
            let is_open = match slot.expected {
                Some(expected) if slot.threads > expected => {
                    let what =
                        format!("{} threads came to barrier {id} of {expected}", slot.threads);
                    return Err(Trap::new(FaultKind::Deadlock, what));
                }
                Some(expected) => slot.threads == expected,
                None => left & !slot.arrived == 0,
            };
            if !is_open {
                continue;
            }
            let barrier = std::mem::take(slot);
            surface.shared.join(barrier.arrived, barrier.waiting);
            surface.counts.stats.barriers += 1;
            for index in ones(barrier.waiting) {
                release(&mut warps[index], &barrier);
            }
        }
        Ok(())
    }
}

/// Lets a warp go on behind its barrier, with the barrier's answer.
fn release(warp: &mut Warp, barrier: &Barrier) {
    let State::Waiting(waiting) = warp.state else { return };
    warp.state = State::Ready;
    let lanes = warp.alive;
    let all = |answer: bool| if answer { u32::MAX } else { 0 };
    match waiting.kind {
        BarrierKind::Sync | BarrierKind::Arrive => {}
        BarrierKind::Count { d, .. } => warp.set32(d, lanes, &[barrier.holding; 32]),
        BarrierKind::All { d, .. } => {
            warp.set_predicate(d, lanes, all(barrier.holding == barrier.counted));
        }
        BarrierKind::Any { d, .. } => warp.set_predicate(d, lanes, all(barrier.holding > 0)),
    }
}

fn deadlock(kernel: &Kernel, warps: &[Warp]) -> Trap {
    let mut waiting = Vec::new();
    for warp in warps {
        if let State::Waiting(Waiting { id, line, .. }) = warp.state {
            waiting.push(format!(
                "warp {} at barrier {id} (line {line}: {})",
                warp.index,
                kernel.line(line)
            ));
        }
    }
    let done = warps.iter().filter(|warp| matches!(warp.state, State::Done)).count();
    let what = format!("deadlock, {done} warps have ended: {}", waiting.join(", "));
    Trap::new(FaultKind::Deadlock, what)
}

fn place(kernel: &Kernel, warp: &Warp, block: [u32; 3], trap: &Trap) -> Place {
    let instruction = &kernel.body.code[(warp.pc as usize).saturating_sub(1)];
    Place {
        kernel: kernel.name.clone(),
        line: instruction.line,
        text: kernel.line(instruction.line).to_owned(),
        block,
        warp: warp.index as u32,
        thread: trap.lane.map(|lane| (32 * warp.index + lane) as u32),
    }
}
