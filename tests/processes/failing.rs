//! Disks that are full or may not be written to: training goes on, a person hears of it, it is
//! counted, nothing is left over, and the next checkpoint works. The disks are real ones.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place::{PATIENCE_SECONDS, Place, json, wait};

const ENDLESS: &str = "    steps: 100000\n  checkpoint:\n    every: 2\n    keep: 1\n";

/// A small file system of its own. Only root may mount one.
struct Disk(PathBuf);

impl Disk {
    /// `None`, and a word on standard error, where that is not allowed.
    fn mount(at: PathBuf) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let mut command = Command::new("mount");
        let mounted = command.args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(&at).output();
        if !mounted.is_ok_and(|done| done.status.success()) {
            // Past the capture of the test harness, so that it is seen.
            let _ = writeln!(std::io::stderr(), "SKIPPED: only root can mount a small disk");
            return None;
        }
        Some(Self(at))
    }

    /// Leaves 64 KiB: lines of the ledger find room, checkpoints do not.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("ballast")).unwrap();
        let block = [0; 4096];
        while file.write_all(&block).is_ok() {}
        let full = file.metadata().unwrap().len();
        file.set_len(full - (64 << 10)).unwrap();
    }

    fn relieve(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a launch that the failed test has just killed may still hold a file.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Whether permissions bind this process.
fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    output.stdout == b"0\n"
}

/// Names in `checkpoints/` of what is not complete.
fn leftovers(run: &Path) -> Vec<String> {
    let names = fs::read_dir(run.join("checkpoints")).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

fn checkpoints(run: &Path) -> Vec<u64> {
    shoal_weights::steps(&run.join("checkpoints")).unwrap()
}

/// A figure of the coordinator.
pub(crate) fn figure(run: &Path, line: &str) -> f64 {
    let targets = json(&run.join("targets/coordinator.json"));
    let address = targets[0]["targets"][0].as_str().unwrap().to_owned();
    let mut stream = TcpStream::connect(&address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let value = answer.lines().find_map(|row| row.strip_prefix(line)).unwrap();
    value.trim().parse().unwrap()
}

/// Trains while `break_it` holds, and on when `mend` has.
fn goes_on(place: &Place, run: &str, why: &str, break_it: impl FnOnce(), mend: impl FnOnce()) {
    let dir = place.run_dir(run);
    let mut launch = place.launch(run, &[]);
    place.wait_for_steps(&mut launch, run, 3);
    break_it();
    let told = || fs::read_to_string(&launch.err).unwrap();
    wait(PATIENCE_SECONDS, "a checkpoint to fail", || {
        told().matches("warning: no checkpoint of step").count() >= 2
    });
    assert!(told().contains(why), "want {why:?} in:\n{}", told());
    wait(PATIENCE_SECONDS, "the failures to be counted", || {
        figure(&dir, "shoal_checkpoint_failures_total{reason=\"write\"}") >= 2.0
    });
    let failed_at = place.losses(run).len();
    mend();
    let before = checkpoints(&dir);
    place.wait_for_steps(&mut launch, run, failed_at + 4);
    wait(PATIENCE_SECONDS, "the next checkpoint", || checkpoints(&dir).first() > before.first());
    launch.signal("INT");
    let ended = launch.ended();
    assert_eq!(ended.code, Some(130), "{}", ended.err);
    place.no_worker_is_left(run);
    assert_eq!(leftovers(&dir), [""; 0], "{}", ended.err);
    // Every step is in the ledger and in the figures, once and in order.
    let last = place.losses(run).len() as u64;
    let rows = fs::read_to_string(dir.join("ledger.jsonl")).unwrap();
    assert_eq!(rows.lines().count() as u64, last);
    assert_eq!(checkpoints(&dir).first(), Some(&last));
}

#[test]
fn a_full_disk_costs_checkpoints_and_not_the_run() {
    let place = Place::new("full", ENDLESS);
    let Some(disk) = Disk::mount(place.run_dir("run")) else { return };
    goes_on(&place, "run", "No space left on device", || disk.fill(), || disk.relieve());
}

/// The workers have room: it is the coordinator's disk that is full, and they hear so.
#[test]
fn a_full_disk_of_a_coordinator_that_gathers_costs_checkpoints_and_not_the_run() {
    let place = Place::new("full-gathered", &[ENDLESS, "    gather: coordinator\n"].concat());
    let Some(disk) = Disk::mount(place.run_dir("run")) else { return };
    let why = "the coordinator does not take ";
    goes_on(&place, "run", why, || disk.fill(), || disk.relieve());
}

#[test]
fn a_directory_that_may_not_be_written_to_costs_checkpoints_and_not_the_run() {
    let place = Place::new("read-only", ENDLESS);
    let dir = place.run_dir("run").join("checkpoints");
    if is_root() {
        // Permissions do not bind root; a file system that is mounted to be read does.
        let Some(_disk) = Disk::mount(dir.clone()) else { return };
        let remount = |how: &str| {
            let done =
                Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&dir).status();
            done.unwrap().success()
        };
        // Refused for as long as a file is open for writing.
        let read_only = || wait(PATIENCE_SECONDS, "nobody to write", || remount("ro"));
        goes_on(&place, "run", "Read-only file system", read_only, || assert!(remount("rw")));
    } else {
        fs::create_dir_all(&dir).unwrap();
        let allow = |mode| fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
        goes_on(&place, "run", "Permission denied", || allow(0o555), || allow(0o755));
    }
}

#[test]
fn a_last_checkpoint_that_cannot_be_written_ends_the_run_with_exit_code_5() {
    let place = Place::new("last", "    steps: 40\n  checkpoint:\n    every: 1000\n");
    let Some(disk) = Disk::mount(place.run_dir("run").join("checkpoints")) else { return };
    disk.fill();
    let ended = place.launch("run", &[]).ended();
    assert_eq!(ended.code, Some(5), "{}", ended.err);
    for want in [
        "the checkpoint of step 40, the run's last, could not be completed: worker-",
        "No space left on device",
        "step-40.g1.partial",
        "there is no checkpoint yet: the same command starts over",
    ] {
        assert!(ended.err.contains(want), "want {want:?} in:\n{}", ended.err);
    }
    wait(PATIENCE_SECONDS, "what was written to be gone", || {
        leftovers(&place.run_dir("run")).is_empty()
    });
    disk.relieve();
    place.launch("run", &[]).done();
    assert_eq!(checkpoints(&place.run_dir("run")), [40]);
}
