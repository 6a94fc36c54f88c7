//! The machine as its users see it: load, allocate, launch, read, and the faults.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "machine/faults.rs"]
mod faults;
#[path = "machine/first.rs"]
mod first;
#[path = "machine/fragments.rs"]
mod fragments;
#[path = "machine/kit.rs"]
mod kit;
#[path = "machine/memories.rs"]
mod memories;
#[path = "machine/opcodes.rs"]
mod opcodes;
#[path = "machine/together.rs"]
mod together;
