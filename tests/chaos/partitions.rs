//! Workers that are cut off from the coordinator, one way or both, or from each other. The packets are
//! really dropped: by iptables, in a network namespace of its own, so that no other process of the
//! machine notices. A worker's packets are known by its control group (`net_cls`), those back to it by
//! the mark that its own leave on a connection.
//!
//! Needs root, `ip`, `iptables` and `net_cls`; says so and does nothing where one of them is missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::place::Place;
use crate::watched::{Watched, equal_losses, sleep};

/// Set within the namespace.
const INSIDE: &str = "SHOAL_CHAOS_INSIDE";

/// How long a link stays cut after the run has gone on without it.
const CUT: Duration = Duration::from_secs(3);

/// What cannot reach what.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// What this worker sends to the coordinator is dropped.
    ToCoordinator(u32),
    /// What the coordinator sends to this worker is dropped.
    FromCoordinator(u32),
    /// Both.
    Coordinator(u32),
    /// Between two workers, both ways; the coordinator reaches both.
    Workers(u32, u32),
    /// What the first worker sends to the second is dropped.
    OneWay(u32, u32),
}

pub(crate) fn run() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    if let Err(missing) = in_a_namespace() {
        println!("partitions: SKIPPED, {missing}");
    }
}

/// Runs this program again where it can cut links without harm.
fn in_a_namespace() -> Result<(), String> {
    for (program, argument) in [("ip", "-V"), ("iptables", "-V")] {
        let found = Command::new(program).arg(argument).output();
        found.map_err(|error| format!("{program} cannot be run: {error}"))?;
    }
    let name = format!("shoal-chaos-{}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &name]).output().unwrap();
    if !made.status.success() {
        let why = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        return Err(format!("a network namespace needs root: {why}"));
    }
    let ended = Command::new("ip")
        .args(["netns", "exec", &name])
        .arg(std::env::current_exe().unwrap())
        .arg("partitions")
        .env(INSIDE, "1")
        .status();
    let _ = Command::new("ip").args(["netns", "del", &name]).status();
    let status = ended.unwrap();
    assert!(status.success(), "partitions: {status}");
    Ok(())
}

fn inside() {
    call("ip", &["link", "set", "lo", "up"]);
    let classes = match Classes::new() {
        Ok(classes) => classes,
        Err(missing) => return println!("partitions: SKIPPED, {missing}"),
    };
    let settings = "    steps: 10000000\n    lr_schedule: constant\n  evaluation:\n    every: 0\n  \
                    checkpoint:\n    every: 500\n";
    let place = Place::new("partitions", settings);
    Watched::start(&place, "calm", &[]).stop();
    let mut run = Watched::start(&place, "cut", &["--set", "workers.restarts=1000"]);
    // Each hits another: whoever is lost three times in two minutes is not taken back at once.
    let cuts = [
        Cut::ToCoordinator(0),
        Cut::FromCoordinator(1),
        Cut::Coordinator(3),
        Cut::Workers(1, 2),
        Cut::OneWay(3, 0),
    ];
    for cut in cuts {
        sever(&mut run, &classes, cut);
    }
    let account = run.stop();
    let equal = equal_losses(&place, "calm", "cut");
    println!(
        "  {} steps, each once; {} done again; the losses of the first {equal} equal a run left alone",
        account.steps, account.taken_back
    );
}

/// Cuts, waits until the run goes on without the link, heals, and waits until all are back.
#[expect(clippy::disallowed_methods, reason = "a figure for people, of real processes")]
fn sever(run: &mut Watched<'_>, classes: &Classes, cut: Cut) {
    let [recovered, rejoined, moved] =
        ["recovered", "rejoined", "moved"].map(|kind| run.count(kind));
    for (worker, pid) in run.workers() {
        classes.put(worker, pid);
    }
    let coordinator = coordinator_port(run);
    let ports = |worker: u32| -> Vec<u16> {
        let workers = run.workers();
        let (_, pid) = workers.iter().find(|(id, _)| *id == worker).unwrap();
        listening(*pid)
    };
    let since = Instant::now();
    match cut {
        Cut::ToCoordinator(worker) => drop_to(worker, coordinator),
        Cut::FromCoordinator(worker) => drop_back(worker, coordinator),
        Cut::Coordinator(worker) => {
            drop_back(worker, coordinator);
            drop_to(worker, coordinator);
        }
        Cut::Workers(a, b) => {
            for (from, to) in [(a, b), (b, a)] {
                for port in ports(to) {
                    drop_back(from, port);
                    drop_to(from, port);
                }
            }
        }
        Cut::OneWay(from, to) => {
            for port in ports(to) {
                drop_to(from, port);
            }
            for port in ports(from) {
                drop_back(to, port);
            }
        }
    }
    run.wait_until(&format!("the run to go on: {cut:?}"), |run| run.count("recovered") > recovered);
    let steps = run.steps();
    run.wait_until(&format!("new steps: {cut:?}"), |run| run.steps() > steps + 5);
    let seconds = since.elapsed().as_secs_f64();
    sleep(CUT);
    for table in ["filter", "mangle"] {
        call("iptables", &["-t", table, "-F"]);
    }
    run.wait_until(&format!("the worker to be back: {cut:?}"), |run| {
        match cut {
            // One of the two has stayed a member, and gets cells again.
            Cut::Workers(..) | Cut::OneWay(..) => run.count("moved") > moved,
            Cut::ToCoordinator(_) | Cut::FromCoordinator(_) | Cut::Coordinator(_) => {
                run.count("rejoined") > rejoined && run.last("moved") > run.last("rejoined")
            }
        }
    });
    println!(
        "  {cut:?}: the run went on after {seconds:.1} s, and took the worker back when the link was \
         whole again"
    );
}

/// Drops what a worker sends to a port.
fn drop_to(worker: u32, port: u16) {
    let (class, port) = (class(worker), port.to_string());
    let of = ["-p", "tcp", "--dport", &port, "-m", "cgroup", "--cgroup", &class];
    call("iptables", &[&["-A", "OUTPUT"], &of[..], &["-j", "DROP"]].concat());
}

/// Drops what comes back from a port to a worker: its connections are marked by what it sends.
fn drop_back(worker: u32, port: u16) {
    let (class, mark, port) = (class(worker), (100 + worker).to_string(), port.to_string());
    let sent = ["-p", "tcp", "--dport", &port, "-m", "cgroup", "--cgroup", &class];
    let marks = ["-j", "CONNMARK", "--set-mark", &mark];
    call("iptables", &[&["-t", "mangle", "-A", "OUTPUT"], &sent[..], &marks[..]].concat());
    let back = ["-p", "tcp", "--sport", &port, "-m", "connmark", "--mark", &mark];
    call("iptables", &[&["-A", "OUTPUT"], &back[..], &["-j", "DROP"]].concat());
}

fn call(program: &str, arguments: &[&str]) {
    let ran = Command::new(program).args(arguments).output().unwrap();
    let why = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{program} {}: {why}", arguments.join(" "));
}

/// `net_cls` groups, one a worker.
struct Classes {
    root: PathBuf,
    /// Mounted by us.
    own: bool,
}

impl Classes {
    fn new() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let of_net_cls = |line: &&str| {
            let mut words = line.split(' ').skip(2);
            words.next() == Some("cgroup")
                && words.next().is_some_and(|options| options.split(',').any(|o| o == "net_cls"))
        };
        if let Some(line) = mounts.lines().find(of_net_cls) {
            let root = PathBuf::from(line.split(' ').nth(1).unwrap());
            return Ok(Self { root, own: false });
        }
        let root = std::env::temp_dir().join(format!("shoal-net-cls-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "cgroup", "-o", "net_cls", "net_cls"])
            .arg(&root)
            .output()
            .unwrap();
        if mounted.status.success() {
            Ok(Self { root, own: true })
        } else {
            let why = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
            Err(format!("net_cls cannot be mounted: {why}"))
        }
    }

    /// Marks what a process sends, on connections that stand and on those to come.
    fn put(&self, worker: u32, pid: u32) {
        let group = self.group(worker);
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("net_cls.classid"), class(worker)).unwrap();
        fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn group(&self, worker: u32) -> PathBuf {
        self.root.join(format!("shoal-{}-{worker}", std::process::id()))
    }
}

impl Drop for Classes {
    fn drop(&mut self) {
        for worker in 0..4 {
            let _ = fs::remove_dir(self.group(worker));
        }
        if self.own {
            let _ = Command::new("umount").arg(&self.root).status();
            let _ = fs::remove_dir(&self.root);
        }
    }
}

/// `0x10003`: 16 bits of major and 16 of minor number.
fn class(worker: u32) -> String {
    format!("{:#x}", 0x10001 + worker)
}

/// The port that workers were told to join.
fn coordinator_port(run: &Watched<'_>) -> u16 {
    let (_, pid) = run.workers()[0];
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let line = String::from_utf8(line).unwrap();
    let address = line.split('\0').skip_while(|word| *word != "--join").nth(1).unwrap();
    address.rsplit(':').next().unwrap().parse().unwrap()
}

/// Ports that a process listens on.
fn listening(pid: u32) -> Vec<u16> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let targets = links.filter_map(|link| fs::read_link(link.path()).ok());
    let inodes: BTreeSet<String> = targets.filter_map(|target| inode(&target)).collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    // 0A: LISTEN. Columns: number, local address, remote address, state, ..., inode the tenth.
    let own = rows.filter(|row| row[3] == "0A" && inodes.contains(row[9]));
    own.map(|row| u16::from_str_radix(row[1].rsplit(':').next().unwrap(), 16).unwrap()).collect()
}

/// `socket:[12345]` -> `12345`.
fn inode(target: &Path) -> Option<String> {
    let name = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
    Some(name.to_owned())
}
