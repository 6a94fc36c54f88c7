//! The worker processes of a launch. None outlives it: they are killed and reaped when this is
//! dropped, and a worker whose standard input ends (the launcher was killed) exits by itself.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use anyhow::Context;
use shoal_plan::plan::{RunId, WorkerId};

use crate::cores::Cores;
use crate::run_dir::RunDir;

/// What all workers of a launch are told.
pub(crate) struct Start<'a> {
    pub join: SocketAddr,
    pub run: &'a RunId,
    /// In hexadecimal. Handed over through a pipe: a command line is for everyone to read.
    pub secret: &'a str,
    pub run_dir: &'a RunDir,
    pub cores: Cores,
    /// Worker n's is the nth after it; 0: any.
    pub metrics_port: u16,
}

/// The processes, by worker.
pub(crate) struct Children(Vec<Running>);

struct Running {
    worker: WorkerId,
    child: Child,
    /// Open for as long as the launcher lives; never written to again.
    _stdin: ChildStdin,
    /// Set once the process was reaped.
    status: Option<ExitStatus>,
}

impl Children {
    /// Starts workers `0..n`. On an error those already started are killed.
    pub(crate) fn start(n: u32, start: &Start<'_>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program's own file")?;
        let mut children = Self(Vec::new());
        for worker in (0..n).map(WorkerId) {
            let running = spawn(&program, worker, start);
            children.0.push(running.with_context(|| format!("starting {worker}"))?);
        }
        Ok(children)
    }

    /// Workers that exited since the last call, and how.
    pub(crate) fn newly_exited(&mut self) -> Vec<(WorkerId, String)> {
        let mut exited = Vec::new();
        for running in self.0.iter_mut().filter(|running| running.status.is_none()) {
            // An error here means that nobody can wait for the child: it is as good as gone.
            if let Some(status) =
                running.child.try_wait().unwrap_or(Some(ExitStatus::from_raw(0x100)))
            {
                running.status = Some(status);
                exited.push((running.worker, describe(status)));
            }
        }
        exited
    }

    pub(crate) fn all_exited(&self) -> bool {
        self.0.iter().all(|running| running.status.is_some())
    }

    /// Kills what still runs and waits for it: a killed process cannot refuse.
    pub(crate) fn kill(&mut self) {
        for running in self.0.iter_mut().filter(|running| running.status.is_none()) {
            // Only fails for a process that exited in between.
            let _ = running.child.kill();
        }
        for running in self.0.iter_mut().filter(|running| running.status.is_none()) {
            running.status = running.child.wait().ok();
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(program: &PathBuf, worker: WorkerId, start: &Start<'_>) -> anyhow::Result<Running> {
    let log_path = start.run_dir.worker_log(worker);
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
        .arg("worker")
        .args(["--join", &start.join.to_string(), "--run", &start.run.0])
        .args(["--id", &worker.0.to_string(), "--threads", &start.cores.threads.to_string()])
        .args(["--metrics-port", &metrics_port.to_string()])
        .arg("--run-dir")
        .arg(start.run_dir.path())
        .stdin(Stdio::piped())
        .stdout(log.try_clone().context("sharing the log file")?)
        .stderr(log)
        // Ctrl-C is for the launcher, which then asks its workers to write a checkpoint.
        .process_group(0);
    if let Some(cores) = start.cores.of(worker.0 as usize) {
        command.args(["--cores", &cores]);
    }
    let mut child = command.spawn().with_context(|| format!("running {}", program.display()))?;
    let mut stdin = child.stdin.take().expect("standard input was asked for as a pipe");
    let told = writeln!(stdin, "{}", start.secret);
    let running = Running { worker, child, _stdin: stdin, status: None };
    // A worker that could not read its secret has exited; its log says why, and the loop sees it.
    if let Err(error) = told
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        drop(Children(vec![running]));
        return Err(error).context("handing over the secret");
    }
    Ok(running)
}

/// Goes on a sentence such as "the process ended: ...".
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) => {
            "killed by signal 9 (SIGKILL; if nobody sent it, memory ran out)".to_owned()
        }
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(seconds: &str) -> Running {
        let mut child = Command::new("sleep")
            .arg(seconds)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        Running { worker: WorkerId(3), child, _stdin: stdin, status: None }
    }

    #[test]
    fn dropping_kills_and_reaps() {
        let children = Children(vec![sleeper("600"), sleeper("600")]);
        let ids: Vec<u32> = children.0.iter().map(|running| running.child.id()).collect();
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
        let mut children = Children(vec![sleeper("600")]);
        assert!(children.newly_exited().is_empty() && !children.all_exited());
        children.0[0].child.kill().unwrap();
        let mut exited = children.newly_exited();
        while exited.is_empty() {
            std::thread::yield_now();
            exited = children.newly_exited();
        }
        assert_eq!(exited[0].0, WorkerId(3));
        assert!(exited[0].1.contains("signal 9"), "{}", exited[0].1);
        assert!(children.newly_exited().is_empty() && children.all_exited());
    }
}
