//! What this machine does with the network: its peaks (`peak`), single operations against them
//! (`ops`), whole training steps (`train`), and how these grow (`growth`). The first three also on a
//! GPU (`cuda`), which has a clock of its own.
//!
//! Nothing here reads the host's clock or counts allocations: a `Meter` does. Work runs on the rayon pool of
//! the caller, so the number of threads is the caller's, too.

pub mod cuda;
mod error;
pub mod growth;
mod median;
pub mod ops;
pub mod peak;
pub mod train;

pub use error::Error;
pub use median::median;

/// The instruction set that products run on, by its name.
///
/// # Errors
/// When `SHOAL_CPU` names one that this CPU does not have, or none.
pub fn instruction_set() -> Result<&'static str, String> {
    shoal_kernels::Isa::chosen().map(shoal_kernels::Isa::name)
}

/// What the measuring process knows about itself.
pub trait Meter: Sync {
    /// Seconds since any fixed moment.
    fn seconds(&self) -> f64;

    /// Calls of the allocator so far, of all threads: allocations and growths. A meter that does
    /// not count returns `None`.
    fn allocations(&self) -> Option<u64>;
}

/// Seconds that `work` takes.
pub(crate) fn timed<R>(meter: &dyn Meter, work: impl FnOnce() -> R) -> (f64, R) {
    let began = meter.seconds();
    let result = work();
    (meter.seconds() - began, result)
}

/// A clock of tests that a look moves on by one second, and no count.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Ticks(std::sync::atomic::AtomicU64);

#[cfg(test)]
impl Meter for Ticks {
    fn seconds(&self) -> f64 {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) as f64
    }

    fn allocations(&self) -> Option<u64> {
        None
    }
}
