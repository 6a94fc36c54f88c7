//! The machine: cores, memory, disk, open files.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use super::finding::{Finding, Group};
use crate::clock::Stopwatch;
use crate::preflight;
use crate::progress::short;

const GB: u64 = 1_000_000_000;

/// A worker has some hundred files open, and a connection or two for each other worker.
const FILES_WANTED: u64 = 1024;
const FILES_NEEDED: u64 = 256;

/// The smallest model's worker has some 300 MB.
const MEMORY_WANTED: u64 = 2 * GB;
const MEMORY_NEEDED: u64 = GB / 2;

/// The text of a run and its newest checkpoints.
const DISK_WANTED: u64 = 10 * GB;
const DISK_NEEDED: u64 = GB;

/// Of a disk that holds up whoever waits for it: hard disks take some 20 ms.
const SYNC_SECONDS: f64 = 0.05;

const SYNCS: usize = 5;
const SYNC_BYTES: usize = 4 << 10;

/// What a machine is like; `None` where the system does not say.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Machine {
    pub(super) cores: usize,
    /// Of those, what this process may use.
    pub(super) usable: usize,
    pub(super) memory: Option<u64>,
    /// Where the state lies, or would.
    pub(super) place: PathBuf,
    pub(super) disk: Option<u64>,
    /// Seconds of a small write that is on the disk; or why there is none.
    pub(super) sync: Result<f64, String>,
    pub(super) files: Option<u64>,
    /// The most that may be asked for.
    pub(super) files_most: Option<u64>,
}

impl Machine {
    pub(super) fn here(directory: &Path) -> Self {
        // A directory that is still to be made is where its parent is.
        let place = directory.ancestors().find(|place| place.is_dir()).unwrap_or(Path::new("/"));
        let usable = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let disk = rustix::fs::statvfs(place).ok();
        let files = getrlimit(Resource::Nofile);
        let cores = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cores = cores.lines().filter(|line| line.starts_with("processor")).count();
        Self {
            cores: cores.max(usable),
            usable,
            memory: preflight::free_bytes(),
            place: place.to_owned(),
            disk: disk.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
            sync: syncs(place).map_err(|error| error.to_string()),
            // No limit is enough.
            files: Some(files.current.unwrap_or(u64::MAX)),
            files_most: Some(files.maximum.unwrap_or(u64::MAX)),
        }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.cores()];
        let bytes = |bytes: u64| format!("{}B", short(bytes as f64));
        if let Some(memory) = self.memory {
            let fact = format!("{} can be had without swapping", bytes(memory));
            let of = (memory, MEMORY_WANTED, MEMORY_NEEDED);
            let mend = "end what else runs here, or give this rig smaller cells";
            findings.push(Group::Machine.at_least("memory", of, fact, mend));
        }
        let place = self.place.display();
        if let Some(disk) = self.disk {
            let fact = format!("{} free at {place}", bytes(disk));
            let of = (disk, DISK_WANTED, DISK_NEEDED);
            let mend = "make room there, or name another directory with --state";
            findings.push(Group::Machine.at_least("disk", of, fact, mend));
        }
        findings.push(match &self.sync {
            Ok(seconds) if *seconds <= SYNC_SECONDS => {
                Group::Machine.ok("writes", format!("on the disk after {:.1} ms", seconds * 1e3))
            }
            Ok(seconds) => Group::Machine.warning(
                "writes",
                format!(
                    "on the disk after {:.0} ms, more than {:.0}",
                    seconds * 1e3,
                    SYNC_SECONDS * 1e3
                ),
                "name a directory on a faster disk with --state",
            ),
            Err(why) => Group::Machine.problem(
                "writes",
                format!("{place} cannot be written to: {why}"),
                format!("chown this user's name {place}, or name another directory with --state"),
            ),
        });
        findings.extend(self.files());
        findings
    }

    fn cores(&self) -> Finding {
        let Self { cores, usable, .. } = self;
        if usable < cores {
            let fact = format!("{usable} of {cores} may be used");
            return Group::Machine.ok("cores", fact);
        }
        Group::Machine.ok("cores", cores.to_string())
    }

    fn files(&self) -> Option<Finding> {
        let files = self.files?;
        let shown = if files == u64::MAX { "no limit".to_owned() } else { files.to_string() };
        let mend = match self.files_most {
            Some(most) if most >= FILES_WANTED => format!("ulimit -n {}", most.min(65_536)),
            _ => "LimitNOFILE=65536 in the unit of systemd, or a line in /etc/security/limits.conf"
                .to_owned(),
        };
        let of = (files, FILES_WANTED, FILES_NEEDED);
        Some(Group::Machine.at_least("open files", of, shown, &mend))
    }
}

/// How long a write takes until it is on the disk: the middle one of a few.
fn syncs(place: &Path) -> std::io::Result<f64> {
    let path = place.join(format!(".shoal-doctor.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    let mut measure = || -> std::io::Result<f64> {
        let mut seconds = Vec::new();
        for _ in 0..SYNCS {
            let watch = Stopwatch::start();
            file.write_all(&[0; SYNC_BYTES])?;
            file.sync_data()?;
            seconds.push(watch.seconds());
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[SYNCS / 2])
    };
    let measured = measure();
    fs::remove_file(&path)?;
    measured
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn good() -> Machine {
        Machine {
            cores: 16,
            usable: 16,
            memory: Some(32 * GB),
            place: "/state".into(),
            disk: Some(100 * GB),
            sync: Ok(0.002),
            files: Some(1024),
            files_most: Some(1 << 20),
        }
    }

    #[track_caller]
    fn level(machine: &Machine, what: &str) -> (Level, String, String) {
        let found = machine.findings().into_iter().find(|finding| finding.what == what).unwrap();
        (found.level, found.fact, found.mend.unwrap_or_default())
    }

    #[test]
    fn a_good_machine_has_nothing_to_mend() {
        let findings = good().findings();
        assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
        assert_eq!(findings.len(), 5);
        let (_, fact, _) = level(&Machine { usable: 4, ..good() }, "cores");
        assert_eq!(fact, "4 of 16 may be used");
    }

    #[test]
    fn what_is_short_warns_and_what_is_too_short_is_a_problem() {
        let memory = |bytes| level(&Machine { memory: Some(bytes), ..good() }, "memory").0;
        assert_eq!([memory(GB), memory(GB / 4)], [Level::Warning, Level::Problem]);
        let disk = |bytes| level(&Machine { disk: Some(bytes), ..good() }, "disk");
        assert_eq!([disk(5 * GB).0, disk(GB / 2).0], [Level::Warning, Level::Problem]);
        assert!(disk(0).2.contains("--state"));
        let files = |files, most| {
            level(&Machine { files: Some(files), files_most: Some(most), ..good() }, "open files")
        };
        assert_eq!([files(512, 4096).0, files(64, 4096).0], [Level::Warning, Level::Problem]);
        assert_eq!(files(64, 4096).2, "ulimit -n 4096");
        assert!(files(64, 64).2.contains("LimitNOFILE"));
        assert_eq!(files(u64::MAX, u64::MAX).1, "no limit");
    }

    #[test]
    fn a_slow_disk_warns_and_one_that_cannot_be_written_to_is_a_problem() {
        let (is, fact, _) = level(&Machine { sync: Ok(0.2), ..good() }, "writes");
        assert!(is == Level::Warning && fact.contains("200 ms"), "{fact}");
        let broken = Machine { sync: Err("Read-only file system".into()), ..good() };
        let (is, fact, mend) = level(&broken, "writes");
        assert!(
            is == Level::Problem && fact.contains("/state") && mend.contains("chown"),
            "{fact} {mend}"
        );
    }

    #[test]
    fn what_the_system_does_not_say_is_left_out() {
        let bare = Machine { memory: None, disk: None, files: None, ..good() };
        assert_eq!(bare.findings().len(), 2);
    }
}
