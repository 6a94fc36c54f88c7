//! Spreads independent tasks over the threads of the current rayon pool.
//!
//! The caller cuts the work by shape alone; who runs a task, and when, must not show in its result.

use rayon::prelude::*;

/// Rows of an element-wise operation that one task takes: with a width of a few hundred, the
/// FP32 copies of a chunk stay in a core's second-level cache.
pub const ROWS: usize = 32;

/// Elements of a flat vector (weights, gradients) that one task takes.
pub const ELEMENTS: usize = 16 * 1024;

/// Runs all tasks. With one thread, or one task, they run here, in order, without a hand-off.
pub fn each<T: Send>(tasks: impl IntoIterator<Item = T>, work: impl Fn(T) + Sync + Send) {
    if rayon::current_num_threads() == 1 {
        return tasks.into_iter().for_each(work);
    }
    let mut tasks: Vec<T> = tasks.into_iter().collect();
    if tasks.len() == 1 {
        return tasks.drain(..).for_each(work);
    }
    tasks.into_par_iter().with_max_len(1).for_each(work);
}

/// Runs all tasks and returns their results in task order.
pub fn map<T: Send, R: Send>(
    tasks: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> R + Sync + Send,
) -> Vec<R> {
    if rayon::current_num_threads() == 1 {
        return tasks.into_iter().map(work).collect();
    }
    let tasks: Vec<T> = tasks.into_iter().collect();
    tasks.into_par_iter().with_max_len(1).map(work).collect()
}
