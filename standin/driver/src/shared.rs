//! The one driver of a process, as its threads share it: a lock, waits, functions of the host on
//! threads of their own, and the report at the end.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::driver::{Driver, Goals, Progress};
use crate::report::Check;
use crate::status::Status;

/// A driver that threads share.
pub struct Shared {
    driver: Mutex<Driver>,
    /// A function of the host has returned.
    returned: Condvar,
}

/// The driver, held for the length of a call.
pub struct Held<'a> {
    shared: &'static Shared,
    /// Absent only while it waits.
    guard: Option<MutexGuard<'a, Driver>>,
}

impl Shared {
    /// Shares a driver.
    pub fn new(driver: Driver) -> Self {
        Self { driver: Mutex::new(driver), returned: Condvar::new() }
    }

    /// Makes a call. A panic in it is a fault and `Unknown`, and does not cross into C.
    pub fn call(
        &'static self,
        function: &str,
        body: impl FnOnce(&mut Held<'_>) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let mut held = Held { shared: self, guard: Some(self.lock()) };
        let faults = held.driver().fault_count();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            held.driver().begin(function)?;
            body(&mut held)
        }));
        // The panic may have struck while the lock was given up.
        let guard = held.guard.take().unwrap_or_else(|| self.lock());
        let mut held = Held { shared: self, guard: Some(guard) };
        let result = outcome.unwrap_or_else(|_| {
            held.driver().fault(Check::Standin, format!("{function} panicked in the stand-in"));
            Err(Status::Unknown)
        });
        held.start_due();
        if held.driver().fault_count() > faults {
            // Somebody may end this process before it can say more.
            write_report(held.driver());
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the report, at the end of the process or before.
    pub fn write_report(&self) {
        // At the end another thread may hold the lock for good.
        let Ok(driver) = self.driver.try_lock() else {
            say("a call is still running at the end of the process: no report");
            return;
        };
        for leak in &driver.report().leaks {
            say(&format!("leaked: {leak:?}"));
        }
        write_report(&driver);
    }
}

fn write_report(driver: &Driver) {
    let report = driver.report();
    let Some(path) = driver.report_path() else { return };
    let written = serde_json::to_vec_pretty(&report)
        .map_err(|error| error.to_string())
        .and_then(|json| std::fs::write(&path, json).map_err(|error| error.to_string()));
    if let Err(error) = written {
        say(&format!("cannot write the report to {path}: {error}"));
    }
}

/// A line on standard error.
pub(crate) fn say(line: &str) {
    // Nobody is left to tell if standard error is closed.
    _ = writeln!(std::io::stderr(), "shoal stand-in driver: {line}");
}

impl Held<'_> {
    /// The driver.
    pub fn driver(&mut self) -> &mut Driver {
        self.guard.as_mut().expect("the driver is held but for the length of a wait")
    }

    /// Returns when all of `goals` have finished, with what became of their card.
    pub fn wait(&mut self, goals: &Goals) -> Result<(), Status> {
        self.wait_until(|driver| Ok(driver.advance(&goals.work)))?;
        self.driver().waited(goals.device)
    }

    /// Returns when `step` says it is done.
    pub fn wait_until(
        &mut self,
        mut step: impl FnMut(&mut Driver) -> Result<Progress, Status>,
    ) -> Result<(), Status> {
        loop {
            let progress = step(self.driver())?;
            self.start_due();
            match progress {
                Progress::Done => return Ok(()),
                Progress::Ran => {}
                Progress::HostFunction => {
                    let guard = self.guard.take().expect("the driver is held");
                    let waited = self.shared.returned.wait(guard);
                    self.guard = Some(waited.unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }

    /// Starts the functions of the host whose turn has come.
    fn start_due(&mut self) {
        for (id, host) in self.driver().take_due() {
            let shared = self.shared;
            std::thread::spawn(move || {
                (host.run)(Ok(()));
                shared.lock().returned(id);
                shared.returned.notify_all();
            });
        }
    }
}
