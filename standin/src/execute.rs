//! Executes one instruction for the lanes of a warp that run it.

mod atomic;
mod choice;
mod convert;
mod copies;
mod float;
mod integer;
mod matrix;
mod movement;
mod together;

pub(crate) use together::BARRIERS;

use crate::error::{FaultKind, Trap};
use crate::instruction::{Address, Alu32, Base, Compare, Instruction, Op};
use crate::launch::{Accumulate, AsyncCopies, Options};
use crate::memory::View;
use crate::module::Kernel;
use crate::random::Random;
use crate::shared::Shared;
use crate::stats::Counts;
use crate::warp::{Lanes64, Waiting, Warp};

/// What the warps of one block share.
pub(crate) struct Surface<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) view: &'a View<'a>,
    pub(crate) params: &'a [u8],
    pub(crate) options: &'a Options,
    /// Number of this launch, for the tables of writers.
    pub(crate) launch: u64,
    pub(crate) shared: Shared,
    pub(crate) counts: Counts,
    pub(crate) random: Random,
    /// Index of the block in its grid, x fastest.
    pub(crate) block: u32,
    /// The allocation that was found last.
    pub(crate) last: usize,
    /// Tables of writers of this launch, by allocation.
    pub(crate) writers: Vec<Option<std::sync::Arc<crate::memory::Writers>>>,
}

/// What comes after an instruction.
pub(crate) enum Flow {
    Next,
    /// The warp came to a barrier; `threads` is the count it gave.
    Barrier {
        waiting: Waiting,
        threads: Option<u32>,
    },
}

impl Surface<'_> {
    /// Fetches and executes one instruction. `None`: the warp has ended.
    #[inline]
    pub(crate) fn step(&mut self, warp: &mut Warp) -> Result<Option<Flow>, Trap> {
        let Some(active) = warp.settle()? else { return Ok(None) };
        let kernel = self.kernel;
        let instruction = &kernel.body.code[warp.pc as usize];
        warp.pc += 1;
        let lanes = match instruction.guard {
            Some(guard) => active & warp.holds(guard),
            None => active,
        };
        if lanes == 0 {
            return Ok(Some(Flow::Next));
        }
        self.counts.opcodes[instruction.opcode as usize] += 1;
        self.execute(warp, instruction, lanes).map(Some)
    }

    fn execute(
        &mut self,
        warp: &mut Warp,
        instruction: &Instruction,
        lanes: u32,
    ) -> Result<Flow, Trap> {
        match &instruction.op {
            Op::Alu32 { f: Alu32::Move, d, a, .. } => {
                let value = *warp.r32(*a);
                warp.set32(*d, lanes, &value);
            }
            Op::Alu32 { f, narrow, d, a, b, c } => {
                let value = integer::alu32(*f, *narrow, [*a, *b, *c].map(|r| warp.r32(r)));
                warp.set32(*d, lanes, &value);
            }
            Op::Float { f, saturate, d, a, b, c } => {
                let value = float::single(*f, *saturate, [*a, *b, *c].map(|r| warp.r32(r)));
                warp.set32(*d, lanes, &value);
            }
            Op::Alu64 { f, d, a, b, c } => {
                let value = integer::alu64(*f, [*a, *b, *c].map(|r| warp.r64(r)));
                warp.set64(*d, lanes, &value);
            }
            Op::Mma(mma) => self.mma(warp, mma, lanes)?,
            Op::Branch { target } => warp.branch(lanes, *target),
            Op::Exit => warp.end(lanes),
            Op::Nothing => {}
            Op::Trap => {
                return Err(Trap::new(FaultKind::Trap, "the kernel executed a trap".to_owned()));
            }
            Op::Load(transfer) => self.load(warp, transfer, lanes)?,
            Op::Store(transfer) => self.store(warp, transfer, lanes)?,
            Op::CopyAsync { bytes, to, from, source_bytes } => {
                self.copy_async(warp, (*bytes, *to, *from, *source_bytes), lanes)?;
            }
            Op::CopyCommit => self.copy_commit(warp, lanes)?,
            Op::CopyWait { pending } => self.copy_wait(warp, *pending, lanes)?,
            Op::LoadMatrix { count, is_transposed, address, d } => {
                self.load_matrix(warp, (*count, *is_transposed, *address), d, lanes)?;
            }
            Op::StoreMatrix { count, is_transposed, address, a } => {
                self.store_matrix(warp, (*count, *is_transposed, *address), a, lanes)?;
            }
            Op::Atomic(update) => self.atomic(warp, *update, lanes)?,
            Op::Barrier { kind, id, threads } => {
                return together::barrier(warp, (*kind, *id, *threads), instruction.line, lanes);
            }
            Op::ActiveMask { d } => warp.set32(*d, lanes, &[lanes; 32]),
            Op::Together(op) => self.together(warp, op, lanes)?,
            Op::Bits(op) => integer::bits(warp, op, lanes),
            Op::Repack(op) => movement::repack(warp, op, lanes),
            Op::Conversion(op) => convert::convert(warp, op, lanes),
            Op::Choice(op) => choice::choose(warp, op, lanes),
            Op::Double { f, d, a, b, c } => {
                let value = float::double(*f, [*a, *b, *c].map(|r| warp.r64(r)));
                warp.set64(*d, lanes, &value);
            }
            Op::Half { f, format, is_pair, is_relu, d, a, b, c } => {
                let inputs = [*a, *b, *c].map(|r| warp.r32(r));
                let value = float::half(*f, (*format, *is_pair, *is_relu), inputs);
                warp.set32(*d, lanes, &value);
            }
        }
        Ok(Flow::Next)
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.options.accumulate == Accumulate::Exact
    }

    /// Whether a copy lands at once.
    fn lands_now(&mut self) -> bool {
        match self.options.async_copies {
            AsyncCopies::Eager => true,
            AsyncCopies::Lazy => false,
            AsyncCopies::Random(_) => self.random.next() & 1 == 0,
        }
    }
}

/// Compares two ordered values.
#[inline]
fn ordered<T: PartialOrd>(f: Compare, a: T, b: T) -> bool {
    match f {
        Compare::Eq => a == b,
        Compare::Ne => a != b,
        Compare::Lt => a < b,
        Compare::Le => a <= b,
        Compare::Gt => a > b,
        Compare::Ge => a >= b,
        Compare::Number => true,
        Compare::Nan => false,
    }
}

/// An address a lane.
fn addresses(warp: &Warp, address: Address) -> Lanes64 {
    let offset = address.offset as u64;
    match address.base {
        Base::Narrow(register) => {
            warp.r32(register).map(|base| u64::from(base).wrapping_add(offset))
        }
        Base::Wide(register) => warp.r64(register).map(|base| base.wrapping_add(offset)),
        Base::Absent => [offset; 32],
    }
}
