//! What lanes of a warp do together: exchanges, votes, and coming to a barrier.

use super::{Flow, Surface};
use crate::error::{FaultKind, Trap};
use crate::instruction::{BarrierKind, R32, Reduce, Shuffle, Together, Vote};
use crate::shared::ones;
use crate::warp::{Lanes32, Waiting, Warp};

/// Barriers that a block has.
pub(crate) const BARRIERS: usize = 16;

impl Surface<'_> {
    pub(super) fn together(
        &mut self,
        warp: &mut Warp,
        op: &Together,
        lanes: u32,
    ) -> Result<(), Trap> {
        let (Together::Shuffle { members, .. }
        | Together::Vote { members, .. }
        | Together::Reduce { members, .. }
        | Together::Elect { members, .. }
        | Together::Sync { members }) = *op;
        let Some((members, lanes)) = meet(warp, members, lanes)? else { return Ok(()) };
        match op {
            Together::Shuffle { f, d, valid, a, b, clamp, .. } => {
                let inputs = [*a, *b, *clamp].map(|r| warp.r32(r));
                let (value, in_range) = shuffle(*f, inputs, lanes)?;
                warp.set32(*d, lanes, &value);
                if let Some(valid) = valid {
                    warp.set_predicate(*valid, lanes, in_range);
                }
            }
            Together::Vote { f, d, d_predicate, a, .. } => {
                let votes = warp.holds(*a) & members;
                let answer = match f {
                    Vote::All => votes == members,
                    Vote::Any | Vote::Ballot => votes != 0,
                    Vote::Uniform => votes == members || votes == 0,
                };
                match d_predicate {
                    Some(d) => warp.set_predicate(*d, lanes, if answer { u32::MAX } else { 0 }),
                    None => warp.set32(*d, lanes, &[votes; 32]),
                }
            }
            Together::Reduce { f, d, a, .. } => {
                let a = warp.r32(*a);
                let value = ones(members).map(|lane| a[lane]).reduce(|x, y| match f {
                    Reduce::Add => x.wrapping_add(y),
                    Reduce::And => x & y,
                    Reduce::Or => x | y,
                    Reduce::Xor => x ^ y,
                    Reduce::MinS => (x as i32).min(y as i32) as u32,
                    Reduce::MinU => x.min(y),
                    Reduce::MaxS => (x as i32).max(y as i32) as u32,
                    Reduce::MaxU => x.max(y),
                });
                warp.set32(*d, lanes, &[value.unwrap_or(0); 32]);
            }
            Together::Elect { d, is_leader, .. } => {
                let leader = members.trailing_zeros();
                if let Some(d) = d {
                    warp.set32(*d, lanes, &[leader; 32]);
                }
                warp.set_predicate(*is_leader, lanes, 1 << leader);
            }
            // All lanes that are left: this orders the warp's shared memory.
            Together::Sync { .. } if members == warp.alive => {
                self.shared.join(1 << warp.index, 1 << warp.index);
            }
            Together::Sync { .. } => {}
        }
        Ok(())
    }
}

/// A warp comes to a barrier with all its lanes.
pub(super) fn barrier(
    warp: &mut Warp,
    (kind, id, threads): (BarrierKind, R32, Option<R32>),
    line: u32,
    lanes: u32,
) -> Result<Flow, Trap> {
    if lanes != warp.alive {
        warp.park(lanes);
        return Ok(Flow::Next);
    }
    let first = lanes.trailing_zeros() as usize;
    let uniform = |register: R32, what: &str| {
        let values = warp.r32(register);
        if ones(lanes).all(|lane| values[lane] == values[first]) {
            return Ok(values[first]);
        }
        Err(Trap::new(FaultKind::Operand, format!("{what} differs between lanes")))
    };
    let id = uniform(id, "the barrier's number")?;
    if id as usize >= BARRIERS {
        return Err(Trap::new(FaultKind::Operand, format!("barrier {id}, there are {BARRIERS}")));
    }
    let threads = match threads {
        None => None,
        Some(register) => {
            let count = uniform(register, "the barrier's count of threads")?;
            if count == 0 || count % 32 != 0 {
                let what = format!("a barrier of {count} threads, a multiple of 32 is wanted");
                return Err(Trap::new(FaultKind::Operand, what));
            }
            Some(count)
        }
    };
    Ok(Flow::Barrier { waiting: Waiting { kind, id, line }, threads })
}

/// The members that are left, if all of them are there, and the lanes that go on. Else the lanes
/// were parked. Lanes that name other members take their turn after these.
fn meet(warp: &mut Warp, members: R32, lanes: u32) -> Result<Option<(u32, u32)>, Trap> {
    let masks = warp.r32(members);
    let members = masks[lanes.trailing_zeros() as usize];
    let together = ones(lanes).filter(|lane| masks[*lane] == members);
    let together = together.fold(0, |together, lane| together | 1 << lane);
    if let Some(lane) = ones(together & !members).next() {
        let what = format!("lane {lane} is not among the members {members:08x} that it names");
        return Err(Trap::new(FaultKind::Divergence, what).at(lane));
    }
    if together != lanes {
        warp.defer(lanes & !together);
    }
    let wanted = members & warp.alive;
    if together == wanted {
        return Ok(Some((wanted, together)));
    }
    warp.park(together);
    Ok(None)
}

/// Values and which lanes read a lane in range. A source that does not take part is a fault: its
/// value is not defined.
fn shuffle(f: Shuffle, [a, b, clamp]: [&Lanes32; 3], lanes: u32) -> Result<(Lanes32, u32), Trap> {
    let (mut value, mut in_range) = (*a, 0);
    for lane in ones(lanes) {
        let (here, step) = (lane as u32, b[lane] & 31);
        let (bound, segment) = (clamp[lane] & 31, clamp[lane] >> 8 & 31);
        let max = (here & segment) | (bound & !segment);
        let min = here & segment;
        let (source, fits) = match f {
            Shuffle::Up => (here.wrapping_sub(step), here as i32 - step as i32 >= max as i32),
            Shuffle::Down => (here + step, here + step <= max),
            Shuffle::Butterfly => (here ^ step, here ^ step <= max),
            Shuffle::Index => (min | step & !segment, min | step & !segment <= max),
        };
        if !fits {
            continue;
        }
        in_range |= 1 << lane;
        if lanes >> source & 1 == 0 {
            let what =
                format!("shuffle: lane {lane} reads lane {source}, which does not take part");
            return Err(Trap::new(FaultKind::Divergence, what).at(lane));
        }
        value[lane] = a[source as usize];
    }
    Ok((value, in_range))
}
