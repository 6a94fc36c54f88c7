//! The processes of a launch: workers here, their coordinator in `children/coordinator.rs`. None outlives it: they are killed and reaped when this is
//! dropped, and a worker whose standard input ends (the launcher was killed) exits by itself.

mod coordinator;

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use anyhow::Context;
use shoal_plan::plan::{RunId, WorkerId};

use crate::cores::Cores;
use crate::devices::Devices;
use crate::{exit, logging};

pub(crate) use coordinator::Coordinator;

/// What all workers of a launch are told.
pub(crate) struct Start {
    pub join: SocketAddr,
    pub run: RunId,
    /// In hexadecimal. Handed over through a pipe: a command line is for everyone to read.
    pub secret: String,
    pub run_dir: PathBuf,
    pub logs: PathBuf,
    pub cores: Cores,
    /// Worker n's is the nth after it; 0: any.
    pub metrics_port: u16,
    /// Programs and files to which workers give way.
    pub yield_to: Vec<String>,
    pub devices: Devices,
}

/// The processes, by worker; at most one of each at a time.
pub(crate) struct Children {
    program: PathBuf,
    start: Start,
    running: Vec<Running>,
}

struct Running {
    worker: WorkerId,
    child: Child,
    /// Open for as long as the launcher lives; never written to again.
    _stdin: ChildStdin,
    /// Set once the process was reaped.
    status: Option<ExitStatus>,
}

/// How a worker's process ended. Goes on a sentence such as "the process ended: ...".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit(ExitStatus);

impl Children {
    /// Starts workers `0..n`. On an error those already started are killed.
    pub(crate) fn start(n: u32, start: Start) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program's own file")?;
        let mut children = Self { program, start, running: Vec::new() };
        for worker in (0..n).map(WorkerId) {
            children.start_one(worker)?;
        }
        Ok(children)
    }

    /// Starts a worker whose process has ended, or that never had one.
    pub(crate) fn start_one(&mut self, worker: WorkerId) -> anyhow::Result<()> {
        let running = spawn(&self.program, worker, &self.start);
        let running = running.with_context(|| format!("starting {worker}"))?;
        self.running.retain(|old| old.worker != worker);
        self.running.push(running);
        Ok(())
    }

    /// Workers that exited since the last call, the id of each process, and how it ended.
    pub(crate) fn newly_exited(&mut self) -> Vec<(WorkerId, u32, Exit)> {
        let mut exited = Vec::new();
        for running in self.running.iter_mut().filter(|running| running.status.is_none()) {
            // An error here means that nobody can wait for the child: it is as good as gone.
            if let Some(status) = running.child.try_wait().unwrap_or(Some(Exit::never_began().0)) {
                running.status = Some(status);
                exited.push((running.worker, running.child.id(), Exit(status)));
            }
        }
        exited
    }

    /// How the last process of a worker ended, if it is known to have.
    pub(crate) fn exit_of(&self, worker: WorkerId) -> Option<Exit> {
        let running = self.running.iter().find(|running| running.worker == worker)?;
        running.status.map(Exit)
    }

    pub(crate) fn all_exited(&self) -> bool {
        self.running.iter().all(|running| running.status.is_some())
    }

    /// Kills what still runs and waits for it: a killed process cannot refuse.
    pub(crate) fn kill(&mut self) {
        for running in self.running.iter_mut().filter(|running| running.status.is_none()) {
            // Only fails for a process that exited in between.
            let _ = running.child.kill();
        }
        for running in self.running.iter_mut().filter(|running| running.status.is_none()) {
            running.status = running.child.wait().ok();
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(program: &Path, worker: WorkerId, start: &Start) -> anyhow::Result<Running> {
    let log_path = start.logs.join(format!("{worker}.log"));
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .with_context(|| format!("opening {}", log_path.display()))?;
    let metrics_port = match start.metrics_port {
        0 => 0,
        // The manifest's rules leave a port for every worker.
        first => first.saturating_add(worker.0 as u16),
    };
    let mut command = Command::new(program);
    command
        .arg("host")
        .args(["--join", &start.join.to_string(), "--run", &start.run.0])
        .args(["--id", &worker.0.to_string(), "--threads", &start.cores.threads.to_string()])
        .args(["--metrics-port", &metrics_port.to_string()])
        .args(logging::arguments())
        .arg("--run-dir")
        .arg(&start.run_dir)
        .stdin(Stdio::piped())
        .stdout(log.try_clone().context("sharing the log file")?)
        .stderr(log)
        // Ctrl-C is for the launcher, which then asks its workers to write a checkpoint.
        .process_group(0);
    for sight in &start.yield_to {
        command.args(["--yield-to", sight]);
    }
    for share in start.devices.of(worker) {
        command.args(["--gpu", &share.to_string()]);
    }
    if let Some(cores) = start.cores.of(worker.0 as usize) {
        command.args(["--cores", &cores]);
    }
    let mut child = command.spawn().with_context(|| format!("running {}", program.display()))?;
    let mut stdin = child.stdin.take().expect("standard input was asked for as a pipe");
    let told = writeln!(stdin, "{}", start.secret);
    let mut running = Running { worker, child, _stdin: stdin, status: None };
    // A worker that could not read its secret has exited; its log says why, and the loop sees it.
    if let Err(error) = told
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        // Nobody else knows of it.
        let _ = running.child.kill().and_then(|()| running.child.wait());
        return Err(error).context("handing over the secret");
    }
    Ok(running)
}

impl Exit {
    /// Of a process on another machine: its wait status.
    pub(crate) fn of(status: i32) -> Self {
        Self(ExitStatus::from_raw(status))
    }

    /// Of a process that could not be made.
    pub(crate) fn never_began() -> Self {
        Self(ExitStatus::from_raw(0x100))
    }

    /// Whether another process would end in the same way: what it needs on disk is damaged.
    pub(crate) fn is_final(self) -> bool {
        self.0.code() == Some(exit::CHECKPOINT.into())
    }

    /// Whether it ended because it was wanted to: a worker says so with exit code 0.
    pub(crate) fn was_asked_for(self) -> bool {
        self.0.success()
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exit code {code}"),
            (None, Some(9)) => {
                f.write_str("killed by signal 9 (SIGKILL; if nobody sent it, memory ran out)")
            }
            (None, Some(signal)) => write!(f, "killed by signal {signal}"),
            (None, None) => f.write_str("no exit code"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Children that are no workers: processes that only wait.
    fn sleepers(n: u32) -> Children {
        let sleeper = |worker| {
            let mut child = Command::new("sleep")
                .arg("600")
                .stdin(Stdio::piped())
                .process_group(0)
                .spawn()
                .unwrap();
            let stdin = child.stdin.take().unwrap();
            Running { worker, child, _stdin: stdin, status: None }
        };
        let start = Start {
            join: (Ipv4Addr::LOCALHOST, 1).into(),
            run: RunId("r".to_owned()),
            secret: "00".to_owned(),
            run_dir: std::env::temp_dir(),
            logs: std::env::temp_dir(),
            cores: Cores { threads: 1, kept: Err("a test".to_owned()) },
            metrics_port: 0,
            yield_to: Vec::new(),
            devices: Devices::cpu("a test"),
        };
        // `true` in the place of a worker ends at once, and well.
        let program = PathBuf::from("true");
        Children { program, start, running: (0..n).map(WorkerId).map(sleeper).collect() }
    }

    fn wait_for_exit(children: &mut Children) -> (WorkerId, Exit) {
        loop {
            if let Some((worker, _, exit)) = children.newly_exited().pop() {
                return (worker, exit);
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn dropping_kills_and_reaps() {
        let children = sleepers(2);
        let ids: Vec<u32> = children.running.iter().map(|running| running.child.id()).collect();
        drop(children);
        // Signal 0 reaches only processes that exist, zombies included.
        let alive = |id: &u32| {
            Command::new("kill")
                .args(["-0", &id.to_string()])
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        };
        assert!(!ids.iter().any(alive));
    }

    #[test]
    fn an_exit_is_reported_once_with_its_cause() {
        let mut children = sleepers(1);
        assert!(children.newly_exited().is_empty() && !children.all_exited());
        children.running[0].child.kill().unwrap();
        let (worker, exit) = wait_for_exit(&mut children);
        assert_eq!(worker, WorkerId(0));
        assert_eq!(children.exit_of(worker), Some(exit));
        assert!(exit.to_string().contains("signal 9") && !exit.was_asked_for(), "{exit}");
        assert!(children.newly_exited().is_empty() && children.all_exited());
    }

    #[test]
    fn a_worker_that_is_started_again_is_heard_of_again() {
        let mut children = sleepers(2);
        children.running[1].child.kill().unwrap();
        assert_eq!(wait_for_exit(&mut children).0, WorkerId(1));
        children.start_one(WorkerId(1)).unwrap();
        assert_eq!(children.running.len(), 2, "in the place of the one before");
        let (worker, exit) = wait_for_exit(&mut children);
        assert_eq!((worker, exit.was_asked_for()), (WorkerId(1), true));
    }
}
