//! Which cores each worker keeps to, so that no two share one and caches stay warm.
//!
//! A worker's threads may run on any of its cores and on no other: the set is given to the process
//! before its first thread starts. There are no sets where they could do harm: with fewer cores than
//! compute threads, under a CPU quota (which cores are ours changes all the time), with a single
//! worker (nobody to keep apart), or where the system has no such call.

use std::fmt;

/// The cores of every worker, or why there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cores {
    /// Compute threads of each worker.
    pub threads: usize,
    /// By worker.
    pub kept: Result<Vec<Vec<usize>>, String>,
}

impl Cores {
    /// For so many workers on this machine; `wanted` threads each, 0: an equal share of the cores.
    pub(crate) fn share(workers: u32, wanted: u32, pin: bool) -> Self {
        let usable = std::thread::available_parallelism().map_or(1, usize::from);
        Self::divide(workers as usize, wanted as usize, pin, (usable, allowed()))
    }

    /// `usable`: how many cores' worth of time there is; `allowed`: which cores may be used.
    fn divide(
        workers: usize,
        wanted: usize,
        pin: bool,
        (usable, allowed): (usize, Option<Vec<usize>>),
    ) -> Self {
        let threads = if wanted > 0 { wanted } else { (usable / workers.max(1)).max(1) };
        let needed = workers * threads;
        let kept = match allowed {
            _ if !pin => Err("spec.workers.pin is false".to_owned()),
            _ if workers < 2 => Err("there is only one worker".to_owned()),
            None => Err("this system does not say which cores there are".to_owned()),
            Some(cores) if usable < cores.len() => {
                Err(format!("a quota of {usable} cores' time on {} cores", cores.len()))
            }
            Some(cores) if cores.len() < needed => {
                Err(format!("{needed} threads for {} cores", cores.len()))
            }
            Some(cores) => Ok(cores.chunks(threads).take(workers).map(<[usize]>::to_vec).collect()),
        };
        Self { threads, kept }
    }

    /// For the command line of a worker: `0,1`.
    pub(crate) fn of(&self, worker: usize) -> Option<String> {
        let cores = self.kept.as_ref().ok()?.get(worker)?;
        Some(list(cores))
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "threads: {} a worker", self.threads)?;
        match &self.kept {
            Err(why) => write!(f, ", on any core: {why}"),
            Ok(kept) => {
                let each = kept.iter().enumerate();
                let each =
                    each.map(|(worker, cores)| format!("worker-{worker} on {}", list(cores)));
                write!(f, ", kept to cores: {}", each.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

fn list(cores: &[usize]) -> String {
    cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// The cores that this process may run on, ascending.
#[cfg(target_os = "linux")]
fn allowed() -> Option<Vec<usize>> {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(None).ok()?;
    Some((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> Option<Vec<usize>> {
    None
}

/// Keeps this thread, and every thread that it starts from now on, to these cores.
#[cfg(target_os = "linux")]
pub(crate) fn keep_to(cores: &[usize]) -> std::io::Result<()> {
    use rustix::thread::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    for core in cores {
        if *core >= CpuSet::MAX_CPU {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        set.set(*core);
    }
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn keep_to(_cores: &[usize]) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divide(workers: usize, wanted: usize, usable: usize, allowed: &[usize]) -> Cores {
        Cores::divide(workers, wanted, true, (usable, Some(allowed.to_vec())))
    }

    #[test]
    fn workers_share_the_allowed_cores_and_no_core_is_given_twice() {
        let cores = divide(2, 0, 6, &[1, 2, 3, 8, 9, 10]);
        assert_eq!(cores.kept, Ok(vec![vec![1, 2, 3], vec![8, 9, 10]]));
        assert_eq!((cores.of(1), cores.of(2)), (Some("8,9,10".to_owned()), None));
        let text = "threads: 3 a worker, kept to cores: worker-0 on 1,2,3, worker-1 on 8,9,10";
        assert_eq!(cores.to_string(), text);
        // What is left over stays free.
        assert_eq!(divide(2, 0, 5, &[0, 1, 2, 3, 4]).kept, Ok(vec![vec![0, 1], vec![2, 3]]));
        assert_eq!(divide(3, 1, 4, &[0, 1, 2, 3]).kept, Ok(vec![vec![0], vec![1], vec![2]]));
    }

    #[test]
    fn nobody_is_kept_anywhere_where_that_could_do_harm() {
        let why = |cores: Cores| cores.kept.unwrap_err();
        assert_eq!(why(divide(4, 0, 2, &[0, 1])), "4 threads for 2 cores");
        assert_eq!(why(divide(2, 2, 2, &[0, 1])), "4 threads for 2 cores");
        assert_eq!(why(divide(2, 0, 2, &[0, 1, 2, 3])), "a quota of 2 cores' time on 4 cores");
        assert_eq!(why(divide(1, 0, 2, &[0, 1])), "there is only one worker");
        assert!(why(Cores::divide(2, 0, true, (2, None))).contains("does not say"));
        let off = Cores::divide(2, 0, false, (2, Some(vec![0, 1])));
        assert_eq!(off.to_string(), "threads: 1 a worker, on any core: spec.workers.pin is false");
        assert_eq!(off.of(0), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_and_its_children_keep_to_their_cores() {
        let first = allowed().unwrap()[0];
        let seen = std::thread::spawn(move || {
            keep_to(&[first]).unwrap();
            std::thread::spawn(allowed).join().unwrap()
        });
        assert_eq!(seen.join().unwrap(), Some(vec![first]));
        assert!(keep_to(&[1 << 20]).is_err());
    }
}
