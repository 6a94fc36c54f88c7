//! Spreads independent tasks over the threads of the current rayon pool.
//!
//! The caller cuts the work by shape alone; who runs a task, and when, must not show in its result.

use std::cell::Cell;

use rayon::prelude::*;

/// Rows of an element-wise operation that one task takes: with a width of a few hundred, the
/// FP32 copies of a chunk stay in a core's second-level cache.
pub const ROWS: usize = 32;

/// Elements of a flat vector (weights, gradients) that one task takes.
pub const ELEMENTS: usize = 16 * 1024;

thread_local! {
    /// Whether this thread is in a task that has its core for itself.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Tasks per thread from which on none is spread further: there are enough for every thread, and a
/// hand-off inside one costs more than it could even out.
const PLENTY: usize = 4;

/// Whether tasks are done here, in order.
fn here() -> bool {
    ALONE.get() || rayon::current_num_threads() == 1
}

/// Does one of so many tasks: of plenty, without spreading it further.
fn task<R>(of: usize, work: impl FnOnce() -> R) -> R {
    if of < PLENTY * rayon::current_num_threads() {
        return work();
    }
    let _restore = Restore(ALONE.replace(true));
    work()
}

/// Puts the mark back, after a panic too.
struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        ALONE.set(self.0);
    }
}

/// Runs `work` on a thread of the pool, where what it spreads needs no thread to be woken and waited
/// for. It must wait for nobody: its thread may be the only one that others wait for.
pub fn inside<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if here() || rayon::current_thread_index().is_some() {
        return work();
    }
    rayon::scope(|_| work())
}

/// Runs all tasks. With one thread, or one task, they run here, in order, without a hand-off.
pub fn each<T: Send>(tasks: impl IntoIterator<Item = T>, work: impl Fn(T) + Sync + Send) {
    if here() {
        return tasks.into_iter().for_each(work);
    }
    let mut tasks: Vec<T> = tasks.into_iter().collect();
    let count = tasks.len();
    if count <= 1 {
        return tasks.drain(..).for_each(work);
    }
    tasks.into_par_iter().with_max_len(1).for_each(|item| task(count, || work(item)));
}

/// Runs all tasks and returns their results in task order.
pub fn map<T: Send, R: Send>(
    tasks: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> R + Sync + Send,
) -> Vec<R> {
    if here() {
        return tasks.into_iter().map(work).collect();
    }
    let tasks: Vec<T> = tasks.into_iter().collect();
    let count = tasks.len();
    if count <= 1 {
        return tasks.into_iter().map(work).collect();
    }
    tasks.into_par_iter().with_max_len(1).map(|item| task(count, || work(item))).collect()
}
