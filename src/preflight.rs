//! What a launch needs of this machine, looked at before anything starts: memory, disk, ports and
//! open files. Each finding says the need, what there is, and what to lower.

use std::fmt::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use shoal_plan::arithmetic;
use shoal_plan::buddies::{holdings, vault_bytes};
use shoal_plan::job::Job;
use shoal_plan::memory::{PROCESS_BYTES, cell_bytes};
use shoal_plan::plan::Plan;
use shoal_plan::planner::snapshots::gb;

use crate::progress::short;

/// Files a worker has open besides its connections: shards, logs, the checkpoint it writes.
const WORKER_FILES: u64 = 64;

/// What the launch will take. Estimates; see `arithmetic::cell_bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    pub memory_bytes: u64,
    /// The share of it for snapshots in memory.
    pub snapshot_bytes: u64,
    pub disk_bytes: u64,
    /// Of the worker with the most peers.
    pub files: u64,
}

/// What there is; `None` where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Has {
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
    pub files: Option<u64>,
}

impl Needs {
    /// For all workers of this plan on one machine. `text_bytes` become tokens. With `gpus`, activations are there, and
    /// what cells keep here are the parameters, moments and gradients.
    pub(crate) fn of(job: &Job, plan: &Plan, (text_bytes, gpus): (u64, bool)) -> Self {
        let of = |id| {
            let bytes = cell_bytes(job, plan, id);
            if gpus { bytes.total() - bytes.activations } else { bytes.total() }
        };
        let cells: u64 = plan.grid.cells().map(of).fold(0, u64::saturating_add);
        let snapshots = vault_bytes(job, plan).into_values().fold(0, u64::saturating_add);
        let workers = u64::from(job.workers.local);
        let parameters = arithmetic::parameters(&job.model).total;
        // BF16 weights, FP32 masters, two moments; one more with an average.
        let per_parameter =
            2 + 4 + job.training.moments.bytes() + if job.training.ema > 0.0 { 4 } else { 0 };
        // The newest ones, the best one, and the one being written.
        let kept = u64::from(job.checkpoint.keep) + 2;
        let token_bytes = if job.model.vocab_size > 1 << 16 { 4 } else { 2 };
        let text_bytes = text_bytes.min(job.data.bytes_max);
        Self {
            memory_bytes: cells.saturating_add(snapshots).saturating_add(workers * PROCESS_BYTES),
            snapshot_bytes: snapshots,
            disk_bytes: (parameters * per_parameter)
                .saturating_mul(kept)
                .saturating_add(text_bytes * token_bytes),
            files: WORKER_FILES + 4 * workers,
        }
    }

    /// What is short. Empty when the launch can start.
    pub(crate) fn short_of(&self, has: &Has) -> Vec<String> {
        let mut findings = Vec::new();
        let mut check = |what: &str, need: u64, has: Option<u64>, unit: &str, lower: &str| {
            if let Some(has) = has.filter(|has| *has < need) {
                let (need, has) = (short(need as f64), short(has as f64));
                findings
                    .push(format!("{what}: about {need}{unit} needed, {has}{unit} there; {lower}"));
            }
        };
        let lower = "lower spec.training.microbatch or sequence, set spec.training.recompute: all, take a smaller model, \
                     or fewer replicas";
        let lower = match self.snapshot_bytes {
            0 => lower.to_owned(),
            bytes => format!(
                "{lower}; {}B of it are snapshots: lower spec.checkpoint.memory.copies, or set \
                 spec.checkpoint.memory.every to 0",
                short(bytes as f64)
            ),
        };
        check("memory", self.memory_bytes, has.memory_bytes, "B", &lower);
        check(
            "disk",
            self.disk_bytes,
            has.disk_bytes,
            "B",
            "lower spec.checkpoint.keep or spec.data.max_mb, or choose another --run-dir",
        );
        check(
            "open files",
            self.files,
            has.files,
            "",
            "raise the limit (ulimit -n), or lower spec.workers.local",
        );
        findings
    }
}

impl Has {
    /// Of this machine, for a run in `run_dir`.
    pub(crate) fn here(run_dir: &Path) -> Self {
        let disk = rustix::fs::statvfs(run_dir).ok();
        Self {
            memory_bytes: free_bytes(),
            disk_bytes: disk.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
            files: getrlimit(Resource::Nofile).current,
        }
    }
}

/// What snapshots in memory take of this machine. Its workers talk over loopback, which nobody has measured: how long
/// copies are on their way is not said.
pub(crate) fn snapshots(job: &Job, plan: &Plan, free: Option<u64>) -> String {
    let memory = job.checkpoint.memory;
    if memory.every == 0 {
        return "Snapshots in memory: none (checkpoint.memory.every is 0); a lost worker costs the steps since the last \
                checkpoint"
            .to_owned();
    }
    let holdings = holdings(job, plan);
    let all = holdings.values().map(|held| held.kept()).fold(0, u64::saturating_add);
    let free = free.map_or_else(String::new, |free| format!(" of {} that are free", gb(free)));
    let mut text = format!(
        "Snapshots in memory: every {} steps, in {}{free} (two of all that a worker holds)",
        memory.every,
        gb(all)
    );
    let fullest = holdings.iter().rev().max_by_key(|(_, held)| held.kept());
    if let Some((worker, held)) = fullest {
        let (own, others) = (gb(held.own), gb(held.others));
        let _ =
            write!(text, "\n  {worker} holds most: its own cells' {own}, and {others} of others'");
    }
    text += if holdings.values().all(|held| held.others == 0) {
        "\n  no copies go from worker to worker"
    } else {
        "\n  copies go over loopback, whose speed is not known here: a snapshot is passed over while they are on their way"
    };
    text
}

/// Memory of this machine that can be had, if the system says.
pub(crate) fn free_bytes() -> Option<u64> {
    available_bytes(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// `MemAvailable` of `/proc/meminfo`: what can be had without swapping.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The ports that are asked for by number and already taken: the coordinator's, then the workers'.
pub(crate) fn taken_ports(job: &Job) -> Vec<u16> {
    let Some(first) = Some(job.metrics.port).filter(|port| *port > 0) else { return Vec::new() };
    let count = u16::try_from(job.workers.local).unwrap_or(u16::MAX);
    let ports = first..=first.saturating_add(count);
    ports.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_err()).collect()
}

#[cfg(test)]
mod tests {
    use shoal_plan::placement::make_plan;
    use shoal_plan::plan::{Generation, WorkerId};

    use super::*;

    fn needs(change: impl Fn(&mut Job)) -> Needs {
        let mut job = Job::example();
        change(&mut job);
        let workers: Vec<WorkerId> = (0..job.workers.local).map(WorkerId).collect();
        let plan = make_plan(&job, &workers, Generation(1)).unwrap();
        Needs::of(&job, &plan, (1_000_000, false))
    }

    #[test]
    fn more_work_needs_more_and_what_is_short_says_what_to_lower() {
        let small = needs(|_| {});
        assert!(needs(|job| job.training.microbatch = 8).memory_bytes > small.memory_bytes);
        assert!(needs(|job| job.checkpoint.keep = 9).disk_bytes > small.disk_bytes);
        assert!(needs(|job| job.training.ema = 0.9).disk_bytes > small.disk_bytes);
        let enough = |bytes: u64| Some(bytes);
        let has = Has {
            memory_bytes: enough(small.memory_bytes),
            disk_bytes: enough(small.disk_bytes),
            files: enough(small.files),
        };
        assert!(small.short_of(&has).is_empty());
        assert!(small.short_of(&Has::default()).is_empty(), "what is not known is not short");
        let poor = Has { memory_bytes: Some(1000), disk_bytes: Some(2000), files: Some(3) };
        let findings = small.short_of(&poor);
        assert_eq!(findings.len(), 3);
        assert!(findings[0].contains("spec.training.microbatch"), "{findings:?}");
        assert!(findings[0].contains("spec.checkpoint.memory.copies"), "{findings:?}");
        let without = needs(|job| job.checkpoint.memory.every = 0);
        assert_eq!(without.memory_bytes + small.snapshot_bytes, small.memory_bytes);
        assert!(!without.short_of(&poor)[0].contains("snapshots"));
        assert!(findings[1].contains("spec.checkpoint.keep"), "{findings:?}");
        assert!(findings[2].contains("ulimit -n"), "{findings:?}");
    }

    #[test]
    fn activations_on_a_gpu_are_no_memory_of_the_machine() {
        let job = Job::example();
        let plan = make_plan(&job, &[WorkerId(0)], Generation(1)).unwrap();
        let of = |gpus| Needs::of(&job, &plan, (0, gpus)).memory_bytes;
        let activations: u64 =
            plan.grid.cells().map(|id| cell_bytes(&job, &plan, id).activations).sum();
        assert!(0 < activations);
        assert_eq!(of(false) - of(true), activations);
    }

    #[test]
    fn the_plan_says_what_snapshots_take_here_and_what_is_not_known() {
        let shown = |change: &dyn Fn(&mut Job), free| {
            let mut job = Job::example();
            (job.grid.stages, job.workers.local) = (2, 2);
            change(&mut job);
            let workers: Vec<WorkerId> = (0..job.workers.local).map(WorkerId).collect();
            let plan = make_plan(&job, &workers, Generation(1)).unwrap();
            (snapshots(&job, &plan, free), Needs::of(&job, &plan, (0, false)).snapshot_bytes)
        };
        let (text, bytes) = shown(&|_| {}, Some(7_000_000_000));
        let head = format!(
            "Snapshots in memory: every 30 steps, in {} of 7.0 GB that are free",
            gb(bytes)
        );
        assert!(text.starts_with(&head), "{text}");
        // Two workers hold each other's, so both hold the same; the first is named.
        assert!(text.contains("\n  worker-0 holds most: its own cells'"), "{text}");
        assert!(text.contains("loopback, whose speed is not known here"), "{text}");
        let (alone, _) = shown(&|job| job.checkpoint.memory.copies = 0, None);
        assert!(!alone.contains("free") && alone.contains("no copies go"), "{alone}");
        let (none, _) = shown(&|job| job.checkpoint.memory.every = 0, None);
        assert!(none.contains("every is 0") && !none.contains("holds most"), "{none}");
    }

    #[test]
    fn available_memory_is_read_from_the_systems_own_table() {
        let text = "MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:     50 kB\n";
        assert_eq!(available_bytes(text), Some(51_200));
        assert_eq!(available_bytes("MemTotal: 100 kB\n"), None);
    }

    #[test]
    fn a_port_that_another_process_listens_on_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut job = Job::example();
        assert!(taken_ports(&job).is_empty(), "any free port is free");
        job.metrics.port = port;
        assert!(taken_ports(&job).contains(&port));
    }
}
