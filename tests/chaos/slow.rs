//! A worker whose machine has become slow: its process is stopped for most of the time, and goes on in
//! between. It is named, gives cells away, keeps one, and the numbers stay what they were.

use std::process::{Child, Command, Stdio};

use crate::place::{Place, signal};
use crate::{EARLY, manifest, pid, says, stop, wait_for};

/// Stops a process for two thirds of the time, in pieces much shorter than what it computes in a step:
/// then each computation takes three times as long, and no wait for others does. `read` waits without
/// starting a process.
const STOP_AND_GO: &str = "exec 3<> <(:)
while kill -STOP $0; do
  read -r -t 0.004 -u 3
  kill -CONT $0
  read -r -t 0.002 -u 3
done";

/// Slows a process down until it is dropped; then the process runs.
struct Slowed {
    pid: u32,
    shell: Child,
}

fn slow(pid: u32) -> Slowed {
    let mut shell = Command::new("bash");
    shell.args(["-c", STOP_AND_GO, &pid.to_string()]).stderr(Stdio::null());
    Slowed { pid, shell: shell.spawn().unwrap() }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.shell.kill().ok();
        self.shell.wait().ok();
        if !std::thread::panicking() {
            signal(self.pid, "CONT");
        }
    }
}

#[test]
fn a_slow_worker_is_named_and_gives_cells_away() {
    let place = Place::new("chaos-slow", &manifest(1_000_000));
    let mut launch = place.launch("run", &["--set", "workers.local=2"]);
    place.wait_for_steps(&mut launch, "run", EARLY);
    let slowed = slow(pid(&place, 1));
    wait_for(&place, &mut launch, "shares", 1);
    wait_for(&place, &mut launch, "moved", 1);
    let steps = place.losses("run").len();
    place.wait_for_steps(&mut launch, "run", steps + 5);
    drop(slowed);
    let ended = stop(&place, &mut launch);
    says(
        &ended,
        &["worker-1 is slow: it takes ", " from worker-1 to worker-0", "cells moved at step "],
    );
    for kind in ["evicted", "recovering"] {
        assert_eq!(place.count("run", kind), 0, "{kind}");
    }
}
