//! The processes of a rig: each gets its text first, says its lines to the coordinator, and is looked after until
//! it has ended.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;

use anyhow::Context;
use shoal_cluster::Client;
use shoal_cluster::watching::TEXT_BYTES_MAX;
use shoal_cluster::words::{DataFile, FromRig, Order, Post};
use shoal_plan::checkpoint::is_plain;
use shoal_plan::device::DeviceChoice;
use shoal_plan::plan::{RunId, WorkerId};
use tokio::sync::mpsc;

use super::Rig;
use crate::cores::Cores;
use crate::devices::Devices;
use crate::initial;
use crate::scrape;
use crate::terminal::note;

/// Words on their way to the coordinator; lines of logs beyond are dropped.
const TOLD: usize = 256;

/// A line of a log that is longer is cut.
const LINE_BYTES_MAX: u64 = 8 << 10;

/// The longest name of a file of text.
const NAME_BYTES_MAX: usize = 128;

/// Texts of so many jobs stay on the disk.
const JOBS_KEPT: usize = 3;

/// What posts say while the coordinator may be away.
pub(crate) enum Told {
    Word(FromRig),
    /// The text is here, or why not.
    Fetched(Box<Order>, Result<Brought, String>),
}

/// What a worker of a run finds here.
pub(crate) struct Brought {
    run_dir: PathBuf,
    /// The weights that it starts from, if it starts from any.
    init: Option<PathBuf>,
}

pub(crate) struct Posts {
    program: PathBuf,
    running: BTreeMap<Post, Running>,
    /// Being fetched for.
    coming: BTreeMap<Post, tokio::task::JoinHandle<()>>,
    tell: mpsc::Sender<Told>,
    /// What could not be said yet, because nobody listened: ends of processes.
    unsaid: Vec<FromRig>,
    rig: Option<Spawn>,
}

/// What processes are started with.
#[derive(Clone)]
struct Spawn {
    address: String,
    certificate: PathBuf,
    advertise: std::net::IpAddr,
    first_port: u16,
    threads: u32,
    devices: DeviceChoice,
    yield_to: Vec<String>,
    log_format: &'static str,
}

struct Running {
    child: Child,
    run_dir: PathBuf,
    /// Open for as long as this process lives.
    _stdin: ChildStdin,
}

impl Posts {
    pub(crate) fn new(program: PathBuf) -> (Self, mpsc::Receiver<Told>) {
        let (tell, told) = mpsc::channel(TOLD);
        let posts = Self {
            program,
            running: BTreeMap::new(),
            coming: BTreeMap::new(),
            tell,
            unsaid: Vec::new(),
            rig: None,
        };
        (posts, told)
    }

    pub(crate) fn running(&mut self) -> Vec<Post> {
        // Said anew by what the hello lists.
        self.unsaid.clear();
        self.running.keys().cloned().collect()
    }

    /// For whoever else has something to say.
    pub(crate) fn teller(&self) -> mpsc::Sender<Told> {
        self.tell.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.coming.is_empty()
    }

    /// Fetches the text, beside everything else; what comes of it is told.
    pub(crate) fn start(&mut self, rig: &Rig, order: Order, client: &Client) {
        let post = order.post.clone();
        if self.running.contains_key(&post) || self.coming.contains_key(&post) {
            return;
        }
        self.rig = Some(Spawn {
            address: rig.addresses(),
            certificate: rig.certificate.clone(),
            advertise: rig.reached_at(),
            first_port: rig.first_port,
            threads: rig.threads,
            devices: rig.devices.clone(),
            yield_to: rig.yield_to.clone(),
            log_format: rig.log_format.name(),
        });
        note(&format!("{} of {}: fetching its text", post.worker, order.name));
        let (jobs, client, tell) = (rig.directory.join("jobs"), client.clone(), self.tell.clone());
        let fetching = tokio::spawn(async move {
            let fetched = fetch(&jobs, &order, &client).await;
            let fetched = fetched.map_err(|error| format!("{error:#}"));
            let _ = tell.send(Told::Fetched(Box::new(order), fetched)).await;
        });
        self.coming.insert(post, fetching);
    }

    /// What is to be said to the coordinator about it.
    pub(crate) fn told(&mut self, told: Told) -> Option<FromRig> {
        match told {
            Told::Word(word) => Some(word),
            Told::Fetched(order, fetched) => {
                // One that was called off meanwhile is not there any more.
                self.coming.remove(&order.post)?;
                let post = order.post.clone();
                let spawned = fetched.and_then(|brought| {
                    self.spawn(&order, &brought).map_err(|error| format!("{error:#}"))
                });
                Some(match spawned {
                    Ok(pid) => FromRig::Started { post, pid },
                    Err(why) => {
                        note(&format!("{} of {} cannot start: {why}", post.worker, order.name));
                        FromRig::NotStarted { post, why }
                    }
                })
            }
        }
    }

    fn spawn(&mut self, order: &Order, brought: &Brought) -> anyhow::Result<u32> {
        let Brought { run_dir, init } = brought;
        let spawn = self.rig.clone().context("this rig is not joined")?;
        let workers = &order.job.workers;
        let wanted = if spawn.threads > 0 { spawn.threads } else { workers.threads };
        let cores = Cores::share(1, wanted, workers.pin);
        let devices = Devices::of_a_rig(&order.job, &spawn.devices).map_err(anyhow::Error::msg)?;
        note(&format!("{} of {}: {devices}", order.post.worker, order.name));
        let mut command = Command::new(&self.program);
        command
            .arg("host")
            .args(["--join", &spawn.address, "--run", &order.post.run.0])
            .arg("--credentials")
            .arg(&spawn.certificate)
            .args(["--advertise", &spawn.advertise.to_string()])
            .args(["--first-port", &spawn.first_port.to_string()])
            .args(["--id", &order.post.worker.0.to_string()])
            .args(["--threads", &cores.threads.to_string()])
            .args(["--log-format", spawn.log_format])
            .arg("--run-dir")
            .arg(run_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0);
        for sight in workers.yield_to.iter().chain(&spawn.yield_to) {
            command.args(["--yield-to", sight]);
        }
        for share in devices.of(WorkerId(0)) {
            command.args(["--gpu", &share.to_string()]);
        }
        if let Some(init) = init {
            command.arg("--init").arg(init);
        }
        let mut child =
            command.spawn().with_context(|| format!("running {}", self.program.display()))?;
        let mut stdin = child.stdin.take().context("standard input was asked for as a pipe")?;
        // One that could not read it has ended, which is seen.
        let _ = writeln!(stdin, "{}", order.secret);
        if let Some(lines) = child.stderr.take() {
            let (post, tell) = (order.post.clone(), self.tell.clone());
            let log = run_dir.join("logs").join(format!("{}.log", order.post.worker));
            thread::spawn(move || pass_on(lines, &post, &log, &tell));
        }
        let pid = child.id();
        self.running
            .insert(order.post.clone(), Running { child, run_dir: run_dir.clone(), _stdin: stdin });
        Ok(pid)
    }

    /// Tells what the worker here tells Prometheus, beside everything else. One that does not answer holds nobody up:
    /// the coordinator asks once at a time.
    pub(crate) fn tell_metrics(&self, ask: u64) {
        let at = self.running.iter().next();
        let at = at.map(|(post, running)| (running.run_dir.clone(), post.worker));
        let tell = self.tell.clone();
        tokio::task::spawn_blocking(move || {
            let read = || {
                let (run_dir, worker) = at.ok_or("no worker runs here")?;
                let address = scrape::target(&run_dir, &worker.to_string())
                    .ok_or("the worker has not said where its metrics are")?;
                scrape::fetch(address, TEXT_BYTES_MAX as u64)
            };
            // Where the channel is full, the coordinator hears nothing and says so.
            let _ = tell.try_send(Told::Word(FromRig::Metrics { ask, text: read() }));
        });
    }

    /// Sees who has ended.
    pub(crate) fn look(&mut self) {
        let mut ended = Vec::new();
        for (post, running) in &mut self.running {
            // An error means that nobody can wait for it: it is as good as gone.
            let status = running.child.try_wait().map(|status| status.map(ExitStatusExt::into_raw));
            if let Some(status) = status.unwrap_or(Some(0x100)) {
                ended.push((post.clone(), running.child.id(), status));
            }
        }
        for (post, pid, status) in ended {
            self.running.remove(&post);
            self.unsaid.push(FromRig::Exited { post, pid, status });
        }
        while let Some(word) = self.unsaid.pop() {
            if let Err(mpsc::error::TrySendError::Full(Told::Word(word))) =
                self.tell.try_send(Told::Word(word))
            {
                self.unsaid.push(word);
                return;
            }
        }
    }

    pub(crate) fn ask_to_leave(&mut self, post: &Post) {
        self.call_off(post);
        if let Some(running) = self.running.get(post)
            && let Some(pid) = rustix::process::Pid::from_raw(running.child.id() as i32)
        {
            // It has ended already, which is seen.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    pub(crate) fn kill(&mut self, post: &Post) {
        self.call_off(post);
        if let Some(running) = self.running.get_mut(post) {
            // Only fails for a process that exited in between.
            let _ = running.child.kill();
        }
    }

    fn call_off(&mut self, post: &Post) {
        if let Some(fetching) = self.coming.remove(post) {
            fetching.abort();
        }
    }

    /// Processes of a run that is over were told to leave by its coordinator: they have had a moment for it.
    pub(crate) fn over(&mut self, run: &RunId) {
        let posts: Vec<Post> = self
            .running
            .keys()
            .chain(self.coming.keys())
            .filter(|post| post.run == *run)
            .cloned()
            .collect();
        for post in posts {
            self.kill(&post);
        }
    }

    pub(crate) fn kill_all(&mut self) {
        for running in self.running.values_mut() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        self.running.clear();
        for fetching in std::mem::take(&mut self.coming).into_values() {
            fetching.abort();
        }
    }
}

impl Drop for Posts {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Brings the text of a job into its directory here, and forgets that of jobs long past.
async fn fetch(jobs: &Path, order: &Order, client: &Client) -> anyhow::Result<Brought> {
    let run_dir = jobs.join(&order.name);
    let data = run_dir.join("data");
    for directory in [data.clone(), run_dir.join("logs"), run_dir.join("targets")] {
        let made = fs::create_dir_all(&directory);
        made.with_context(|| format!("making {}", directory.display()))?;
    }
    forget_old_jobs(jobs, &order.name);
    for file in &order.files {
        // Names come over the network: none leads out of the directory.
        if file.name.len() > NAME_BYTES_MAX || !is_plain(&file.name) {
            anyhow::bail!("{:?} is no name of a file of text", file.name);
        }
        let path = data.join(&file.name);
        let there = tokio::task::spawn_blocking(move || DataFile::of(&path)).await?;
        if there.ok().as_ref() != Some(file) {
            client.fetch(&order.post.run.0, file, &data).await?;
        }
    }
    let names: Vec<&str> = order.files.iter().map(|file| file.name.as_str()).collect();
    let init = initial::take_in(&run_dir, &names).context("laying out the weights")?;
    Ok(Brought { run_dir, init })
}

/// The newest stay, and the one that is to be.
fn forget_old_jobs(jobs: &Path, now: &str) {
    let entries = fs::read_dir(jobs).into_iter().flatten().flatten();
    let mut old: Vec<_> = entries
        .filter(|entry| entry.file_name() != *now && entry.path().is_dir())
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    old.sort();
    let too_many = old.len().saturating_sub(JOBS_KEPT - 1);
    for (_, path) in old.into_iter().take(too_many) {
        // What cannot be removed is tried again the next time.
        let _ = fs::remove_dir_all(path);
    }
}

/// Passes a process's lines on, and keeps the newest here. What the coordinator does not take in time is only here.
fn pass_on(lines: impl Read, post: &Post, log: &Path, tell: &mpsc::Sender<Told>) {
    let mut kept = fs::File::create(log).ok();
    let mut lines = BufReader::new(lines);
    loop {
        let mut line = Vec::new();
        match lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if let Some(file) = &mut kept {
            let _ = file.write_all(&line);
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        let word = FromRig::Log { post: post.clone(), text };
        // A full channel: the line is in the file here.
        let _ = tell.try_send(Told::Word(word));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_file_leads_anywhere_else() {
        for name in ["dataset.json", "train-0.tokens", "eval-code_2.tokens"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a\0b", "C:x", "a\\b"]
        {
            assert!(!is_plain(name), "{name:?}");
        }
    }
}
