//! A stand-in for the GPU: executes the PTX that shoal ships, as the compiler wrote it, inline
//! assembly included, warp by warp on the CPU. For tests only; no product code uses it.
//!
//! ```
//! use shoal_standin::{Launch, Memory, Module, Options, launch};
//!
//! let module = Module::load(
//!     ".version 8.0\n.target sm_80\n.address_size 64\n\
//!      .visible .entry where(.param .u64 out) {\n\
//!      .reg .b32 %r<2>; .reg .b64 %rd<3>;\n\
//!      ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x; mad.wide.u32 %rd2, %r1, 4, %rd1;\n\
//!      st.global.u32 [%rd2], %r1; ret; }",
//! )?;
//! let memory = Memory::new();
//! let out = memory.allocate(4 * 48);
//! let options = Options::default();
//! let launched = Launch {
//!     grid: [1, 1, 1],
//!     block: [64, 1, 1],
//!     dynamic_shared: 0,
//!     params: &out.to_le_bytes(),
//!     options: &options,
//! };
//! let fault = launch(module.entry("where").unwrap(), &memory, &launched).unwrap_err();
//! assert!(fault.to_string().contains("4 bytes at offset 192 of the allocation of 192 bytes"));
//! # Ok::<(), shoal_standin::LoadError>(())
//! ```
//!
//! # What it checks
//!
//! * **Text.** An instruction, type, modifier or directive that is not executed exactly is an error
//!   when the text is loaded, with its line. Nothing is skipped silently but hints of caching.
//! * **Addresses.** Global memory is an address space of its own. An access that leaves its
//!   allocation, one to a freed allocation, and one to no allocation are three different faults; so
//!   are misaligned accesses and those beyond shared, local or parameter memory. Fresh memory and
//!   registers are 0xFF, which is NaN in every float format.
//! * **Order.** Two threads of a block that touch one shared byte, one of them writing, must be
//!   ordered by a barrier (of the block, of a part of it, or of the warp: `bar.warp.sync`); that
//!   lanes of a warp run together orders nothing. Loads and stores of matrices and asynchronous
//!   copies count. Bytes that an asynchronous copy writes belong to nobody until a wait of the issuing
//!   thread covers it. Two blocks of a grid may not write the same global byte.
//! * **Meeting.** Lanes named by a warp-wide instruction must come to it; a barrier needs all lanes
//!   that are left; warps that wait for ever are a deadlock and a loop without end is a fault.
//! * **Numbers.** Everything that PTX rounds to nearest is exact. Fragments are those of the PTX ISA.
//!   Sums of tensor cores are exact, or cut as measured on the target ([`Accumulate`]).
//! * **Launches.** Block and grid sizes, `.maxntid`, `.reqntid`, shared memory, size of parameters.
//! * **Figures** ([`Stats`]): instructions by opcode, bytes and sectors of global memory, bank
//!   conflicts, barriers, atomics on floats.
//!
//! The same launch can be run under several [`Schedule`]s of warps and landings of asynchronous
//! copies ([`AsyncCopies`]): a right kernel gives the same bits under all.
//!
//! # What it does not
//!
//! * Time: it has no pipelines, caches or clocks.
//! * Weak memory between blocks: fences are no-ops, and a block that reads what another block wrote is
//!   not noticed (only two writers are). Blocks run in any order but each to its end, so a kernel that
//!   spins on another block may never end.
//! * The rounding of approximate functions (`ex2.approx`, `rsqrt.approx`, ...): they are rounded
//!   correctly here, at least as near as the hardware's. Flush-to-zero is refused.
//! * `mbarrier`, bulk copies, clusters, `wgmma`, `tcgen05`, textures, calls, 128-bit registers.
//! * Lanes that ended early count as not needed at a barrier, as the hardware has it since Volta.

mod block;
mod body;
mod decode;
mod error;
mod execute;
mod formats;
mod instruction;
mod launch;
mod memory;
mod module;
mod product;
mod random;
mod registers;
mod scan;
mod shared;
mod stats;
mod variable;
mod warp;

pub use error::{Fault, FaultKind, LoadError, Place};
pub use launch::{Accumulate, AsyncCopies, Launch, Options, Schedule, launch};
pub use memory::Memory;
pub use module::{Kernel, Module, Param};
pub use stats::Stats;
