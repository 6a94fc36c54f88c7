//! A warp: its registers, and which lanes stand where in the code.
//!
//! Lanes that stand at the same instruction run together, the group that is furthest behind first,
//! and groups that meet become one. A group that comes to a warp-wide instruction without all the
//! lanes it names is parked until they come; if they cannot, the warp has diverged and that is a
//! fault.

use crate::error::{FaultKind, Trap};
use crate::instruction::{BarrierKind, Guard, P, R32, R64, Register};
use crate::registers::{Initial, Special};

/// One 32-bit value a lane.
pub(crate) type Lanes32 = [u32; 32];
/// One 64-bit value a lane.
pub(crate) type Lanes64 = [u64; 32];

/// Lanes that stand at one place.
#[derive(Debug, Clone, Copy)]
struct Group {
    pc: u32,
    lanes: u32,
    is_parked: bool,
}

/// A copy from global to shared memory that no wait has covered yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy {
    pub(crate) lane: u8,
    pub(crate) bytes: u8,
    /// Bytes that are read; the rest becomes zero.
    pub(crate) source_bytes: u8,
    pub(crate) has_landed: bool,
    pub(crate) group: u32,
    pub(crate) to: usize,
    pub(crate) from: u64,
}

/// What a warp that waits, waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) kind: BarrierKind,
    pub(crate) id: u32,
    pub(crate) line: u32,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum State {
    Ready,
    Waiting(Waiting),
    Done,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) index: usize,
    pub(crate) state: State,
    narrow: Vec<Lanes32>,
    wide: Vec<Lanes64>,
    predicates: Vec<u32>,
    /// The next instruction of the lanes that run.
    pub(crate) pc: u32,
    active: u32,
    others: Vec<Group>,
    /// Lanes that have not ended.
    pub(crate) alive: u32,
    /// A lane ended since the last group was parked: what waited for it may go on.
    someone_ended: bool,
    pub(crate) local: Vec<u8>,
    pub(crate) copies: Vec<Copy>,
    /// Groups of copies that each lane has committed.
    pub(crate) committed: Lanes32,
}

/// What a launch fills special registers with.
pub(crate) struct Surroundings {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) warps: usize,
    pub(crate) dynamic_shared: u32,
    pub(crate) total_shared: u32,
}

impl Warp {
    /// A warp with all constants in place.
    pub(crate) fn new(
        index: usize,
        narrow: &[Initial],
        wide: &[Option<u64>],
        predicates: u32,
        around: &Surroundings,
    ) -> Warp {
        let narrow = narrow.iter().map(|initial| match initial {
            Initial::Unset => [u32::MAX; 32],
            Initial::Constant(value) => [*value; 32],
            Initial::Special(special) => special_lanes(*special, index, around),
        });
        let threads = around.block.iter().product::<u32>() as usize;
        let lanes = threads.saturating_sub(32 * index).min(32);
        Warp {
            index,
            state: State::Ready,
            narrow: narrow.collect(),
            wide: wide.iter().map(|constant| [constant.unwrap_or(u64::MAX); 32]).collect(),
            predicates: vec![0; predicates as usize],
            pc: 0,
            active: u32::MAX.checked_shr(32 - lanes as u32).unwrap_or(0),
            others: Vec::new(),
            alive: u32::MAX.checked_shr(32 - lanes as u32).unwrap_or(0),
            someone_ended: false,
            local: Vec::new(),
            copies: Vec::new(),
            committed: [0; 32],
        }
    }

    /// Takes the state of `fresh`, without allocating.
    pub(crate) fn restart(&mut self, fresh: &Warp, block: [u32; 3], initial: &[Initial]) {
        self.state = State::Ready;
        self.narrow.copy_from_slice(&fresh.narrow);
        self.wide.copy_from_slice(&fresh.wide);
        self.predicates.fill(0);
        (self.pc, self.active, self.alive) = (0, fresh.active, fresh.alive);
        self.others.clear();
        self.local.fill(0xFF);
        self.copies.clear();
        self.committed = [0; 32];
        for (lanes, initial) in self.narrow.iter_mut().zip(initial) {
            if let Initial::Special(Special::Ctaid(axis)) = initial {
                *lanes = [block[*axis]; 32];
            }
        }
    }

    /// The lanes that run the next instruction, after groups met or took turns. `None` when all
    /// lanes have ended.
    #[inline]
    pub(crate) fn settle(&mut self) -> Result<Option<u32>, Trap> {
        if self.others.is_empty() && self.active != 0 {
            return Ok(Some(self.active));
        }
        self.settle_groups()
    }

    fn settle_groups(&mut self) -> Result<Option<u32>, Trap> {
        let behind = |groups: &[Group]| {
            let running = groups.iter().enumerate().filter(|(_, group)| !group.is_parked);
            running.min_by_key(|(_, group)| group.pc).map(|(index, group)| (index, group.pc))
        };
        match behind(&self.others) {
            Some((index, pc)) if self.active == 0 || pc < self.pc => {
                let group = self.others.swap_remove(index);
                if self.active != 0 {
                    let lanes = self.active;
                    self.others.push(Group { pc: self.pc, lanes, is_parked: false });
                }
                (self.pc, self.active) = (group.pc, group.lanes);
            }
            Some(_) => {}
            None if self.active != 0 => {}
            None if self.others.is_empty() => return Ok(None),
            None if self.someone_ended => {
                self.someone_ended = false;
                self.others.iter_mut().for_each(|group| group.is_parked = false);
                return self.settle_groups();
            }
            None => return Err(self.divergence()),
        }
        let (pc, active) = (self.pc, &mut self.active);
        self.others.retain(|group| {
            let meets = group.pc == pc;
            *active |= if meets { group.lanes } else { 0 };
            !meets
        });
        Ok(Some(self.active))
    }

    #[cold]
    fn divergence(&mut self) -> Trap {
        // The fault names the instruction of the first group.
        let first = self.others[0];
        self.pc = first.pc + 1;
        let lanes = first.lanes;
        let what = format!(
            "divergence: lanes {lanes:08x} wait here for lanes {:08x}, which cannot come",
            self.alive & !lanes
        );
        Trap::new(FaultKind::Divergence, what)
    }

    /// Lets `lanes` wait at the instruction that was just fetched.
    pub(crate) fn park(&mut self, lanes: u32) {
        self.active &= !lanes;
        self.others.push(Group { pc: self.pc - 1, lanes, is_parked: true });
    }

    /// Lets `lanes` execute the instruction that was just fetched in a turn of their own.
    pub(crate) fn defer(&mut self, lanes: u32) {
        self.active &= !lanes;
        self.others.push(Group { pc: self.pc - 1, lanes, is_parked: false });
    }

    /// `lanes` go on at `target`, the others that run at the next instruction.
    #[inline]
    pub(crate) fn branch(&mut self, lanes: u32, target: u32) {
        let rest = self.active & !lanes;
        if rest != 0 {
            self.others.push(Group { pc: self.pc, lanes: rest, is_parked: false });
            self.active = lanes;
        }
        self.pc = target;
    }

    /// `lanes` end.
    pub(crate) fn end(&mut self, lanes: u32) {
        self.active &= !lanes;
        self.alive &= !lanes;
        self.someone_ended = true;
    }

    /// The lanes for which a guard holds.
    #[inline]
    pub(crate) fn holds(&self, guard: Guard) -> u32 {
        let mask = self.predicates[guard.predicate as usize];
        if guard.is_negated { !mask } else { mask }
    }

    #[inline]
    pub(crate) fn set_predicate(&mut self, p: P, lanes: u32, value: u32) {
        let old = &mut self.predicates[p as usize];
        *old = *old & !lanes | value & lanes;
    }

    #[inline]
    pub(crate) fn r32(&self, register: R32) -> &Lanes32 {
        &self.narrow[register as usize]
    }

    #[inline]
    pub(crate) fn r64(&self, register: R64) -> &Lanes64 {
        &self.wide[register as usize]
    }

    #[inline]
    pub(crate) fn set32(&mut self, register: R32, lanes: u32, value: &Lanes32) {
        let old = &mut self.narrow[register as usize];
        if lanes == u32::MAX {
            *old = *value;
        } else {
            for lane in 0..32 {
                old[lane] = if lanes >> lane & 1 == 1 { value[lane] } else { old[lane] };
            }
        }
    }

    #[inline]
    pub(crate) fn set64(&mut self, register: R64, lanes: u32, value: &Lanes64) {
        let old = &mut self.wide[register as usize];
        if lanes == u32::MAX {
            *old = *value;
        } else {
            for lane in 0..32 {
                old[lane] = if lanes >> lane & 1 == 1 { value[lane] } else { old[lane] };
            }
        }
    }

    /// Any data register, zero-extended.
    pub(crate) fn any(&self, register: Register) -> Lanes64 {
        match register {
            Register::Narrow(register) => self.r32(register).map(u64::from),
            Register::Wide(register) => *self.r64(register),
            Register::Sink => [0; 32],
        }
    }

    /// Writes any data register; a narrow one takes the low half.
    pub(crate) fn set_any(&mut self, register: Register, lanes: u32, value: &Lanes64) {
        match register {
            Register::Narrow(register) => self.set32(register, lanes, &value.map(|v| v as u32)),
            Register::Wide(register) => self.set64(register, lanes, value),
            Register::Sink => {}
        }
    }
}

fn special_lanes(special: Special, warp: usize, around: &Surroundings) -> Lanes32 {
    let each = |f: &dyn Fn(u32) -> u32| std::array::from_fn(|lane| f(lane as u32));
    let [x, y, _] = around.block;
    match special {
        Special::Tid(axis) => each(&|lane| {
            let thread = 32 * warp as u32 + lane;
            [thread % x, thread / x % y, thread / (x * y)][axis]
        }),
        Special::Ntid(axis) => [around.block[axis]; 32],
        Special::Nctaid(axis) => [around.grid[axis]; 32],
        Special::LaneId => each(&|lane| lane),
        Special::WarpId => [warp as u32; 32],
        Special::WarpCount => [around.warps as u32; 32],
        Special::LanesEqual => each(&|lane| 1 << lane),
        Special::LanesBelow => each(&|lane| (1 << lane) - 1),
        Special::LanesUpTo => each(&|lane| u32::MAX >> (31 - lane)),
        Special::LanesAbove => each(&|lane| !(u32::MAX >> (31 - lane))),
        Special::LanesFrom => each(&|lane| u32::MAX << lane),
        // The block's index is filled in when a block starts.
        Special::Zero | Special::Ctaid(_) => [0; 32],
        Special::One => [1; 32],
        Special::DynamicShared => [around.dynamic_shared; 32],
        Special::TotalShared => [around.total_shared; 32],
    }
}
