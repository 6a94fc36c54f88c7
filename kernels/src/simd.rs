//! Compiles a loop for every instruction set worth having and picks one at run time.

/// Runs `body` compiled for the widest vectors of this CPU.
///
/// The body must be marked `#[inline(always)]`, and so must the functions it calls, or they are
/// compiled for the baseline CPU only.
#[inline(always)]
pub(crate) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}
