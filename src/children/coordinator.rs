//! The coordinator's process. The launcher holds the port on which it listens, and hands it to one process
//! after the other: nobody else can take the address that the workers know, and whoever calls while
//! there is no coordinator is answered by the next.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::Context;

use super::Exit;
use crate::conducting::Told;
use crate::logging;
use crate::run_dir::RunDir;

/// Killed and reaped when this is dropped; one whose standard input ends exits by itself.
pub(crate) struct Coordinator {
    program: PathBuf,
    /// The first line of its standard input.
    told: String,
    run_dir: PathBuf,
    log: PathBuf,
    metrics_port: u16,
    port: TcpListener,
    running: Option<(Child, ChildStdin)>,
}

impl Coordinator {
    /// Opens the port and starts the first process.
    pub(crate) fn start(told: &Told, run_dir: &RunDir) -> anyhow::Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let mut coordinator = Self {
            program: std::env::current_exe().context("finding this program's own file")?,
            told: serde_json::to_string(told).context("writing the run's settings as JSON")?,
            run_dir: run_dir.path().to_path_buf(),
            log: run_dir.coordinator_log(),
            metrics_port: told.job.metrics.port,
            port: port.context("opening a port for the workers on 127.0.0.1")?,
            running: None,
        };
        coordinator.start_again()?;
        Ok(coordinator)
    }

    /// Where workers join.
    pub(crate) fn address(&self) -> SocketAddr {
        self.port.local_addr().expect("a listening socket has an address")
    }

    /// Starts another process in the place of the one that has ended.
    pub(crate) fn start_again(&mut self) -> anyhow::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("opening {}", self.log.display()))?;
        let port = self.port.try_clone().context("sharing the port with the coordinator")?;
        let mut command = Command::new(&self.program);
        command
            .arg("conduct")
            .args(["--metrics-port", &self.metrics_port.to_string()])
            .args(logging::arguments())
            .arg("--run-dir")
            .arg(&self.run_dir)
            .stdin(Stdio::piped())
            .stdout(OwnedFd::from(port))
            .stderr(log)
            // Ctrl-C is for the launcher.
            .process_group(0);
        let mut child = command.spawn().context("starting the coordinator")?;
        let mut stdin = child.stdin.take().expect("standard input was asked for as a pipe");
        // One that has died at once is seen to have ended.
        let _ = writeln!(stdin, "{}", self.told);
        self.running = Some((child, stdin));
        Ok(())
    }

    /// How its process has ended, once.
    pub(crate) fn newly_exited(&mut self) -> Option<Exit> {
        let (child, _) = self.running.as_mut()?;
        let status = child.try_wait().unwrap_or(Some(Exit::never_began().0))?;
        self.running = None;
        Some(Exit(status))
    }

    /// The last line of its log.
    pub(crate) fn last_words(&self) -> Option<String> {
        let text = fs::read(&self.log).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let last = text.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(last.trim_start_matches("error: ").to_owned())
    }

    /// Kills it, if it runs, and waits for it.
    pub(crate) fn kill(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            // Only fails for a process that exited in between.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.kill();
    }
}
