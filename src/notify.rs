//! What a service manager is told (systemd's `sd_notify`): that a daemon is ready, goes, and is alive. Without such a
//! manager only a file is written, whose age says to a container's probe what the watchdog is told. Who feeds the
//! watchdog is the loop that does the work: no thread, which would live on when the loop hangs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::clock::{Stopwatch, unix_seconds};

/// Fed so often within the time after which the manager takes the process for hung.
const FEEDS: u32 = 3;

/// Without a manager. The probes of `deploy/` take a file that is a minute old for the end.
const EVERY: Duration = Duration::from_secs(10);

/// In the state directory: when the loop last came round, in seconds since 1970.
const ALIVE: &str = "alive";

/// Ready from now on. Errors are dropped here and below: a manager that is away needs no words, and the work goes on.
pub(crate) fn ready(status: &str) {
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What it does, for `systemctl status`. One line: what follows a line's end would be a word of its own, and texts may
/// come from others.
pub(crate) fn status(text: &str) {
    let line = text.lines().next().unwrap_or_default();
    let _ = sd_notify::notify(&[NotifyState::Status(line)]);
}

/// On its way out.
pub(crate) fn stopping(why: &str) {
    let _ = sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status(why)]);
}

/// The manager's watchdog, if it wants to be fed by this process, and the file.
pub(crate) struct Watchdog {
    every: Duration,
    fed: Option<Stopwatch>,
    file: PathBuf,
}

impl Watchdog {
    pub(crate) fn new(state: &Path) -> Self {
        let wanted = sd_notify::watchdog_enabled().map(|within| within / FEEDS);
        Self {
            every: wanted.map_or(EVERY, |every| every.min(EVERY)),
            fed: None,
            file: state.join(ALIVE),
        }
    }

    /// How often it is to be fed.
    pub(crate) fn every(&self) -> Duration {
        self.every
    }

    /// Called on every turn of a loop: feeds when it is time.
    pub(crate) fn feed(&mut self) {
        if self.fed.is_none_or(|fed| fed.seconds() >= self.every.as_secs_f64()) {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            // A full disk changes the file's age too.
            let _ = fs::write(&self.file, format!("{}\n", unix_seconds()));
            self.fed = Some(Stopwatch::start());
        }
    }
}
