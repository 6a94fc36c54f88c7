//! Starts a process that finds this driver as its `libcuda`, and reads what the driver says of it.
//!
//! ```no_run
//! use shoal_standin_driver::testing::StandIn;
//!
//! let standin = StandIn::new().cards("4090,5090").seed(7);
//! let status = standin.command("target/debug/shoal").arg("devices").status().unwrap();
//! assert!(status.success());
//! standin.report().assert_clean();
//! ```
//!
//! The library is the `cdylib` of this crate. Cargo builds it together with the `rlib` for whoever
//! has this crate as a (dev-)dependency and puts it beside the test's executable, so it is never
//! older than the test. It is not called `libcuda` there, since cargo puts that folder on the search
//! path of whatever it runs, where it would hide a real driver; a folder of each test's own has the
//! name as a link.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::report::Report;

/// A choice of cards and mishaps, and a folder with the library.
pub struct StandIn {
    folder: TempDir,
    variables: BTreeMap<&'static str, String>,
}

/// The names under which a driver is looked for.
const NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];

impl StandIn {
    /// One 4090 that works, seed 0. Panics if the library was not built, and says how to.
    #[track_caller]
    #[expect(clippy::new_without_default, reason = "it makes a folder")]
    pub fn new() -> Self {
        let folder = folder("shoal-standin-driver", &NAMES);
        let report = folder.path().join("report-%p.json").display().to_string();
        let variables = BTreeMap::from([("SHOAL_STANDIN_REPORT", report)]);
        Self { folder, variables }
    }

    /// The cards: `4090`, `4090,5090`, `none`.
    #[must_use]
    pub fn cards(self, cards: &str) -> Self {
        self.set("SHOAL_STANDIN_CARDS", cards)
    }

    /// The seed of every draw.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.set("SHOAL_STANDIN_SEED", &seed.to_string())
    }

    /// Failures, as [`crate::settings`] says: `alloc:3`, `launch:scale`, `lost:100`.
    #[must_use]
    pub fn fail(self, failures: &str) -> Self {
        self.set("SHOAL_STANDIN_FAIL", failures)
    }

    /// Any variable of [`crate::settings`].
    #[must_use]
    pub fn set(mut self, variable: &'static str, value: &str) -> Self {
        self.variables.insert(variable, value.to_owned());
        self
    }

    /// A command that will find this driver first. Its children do, too.
    pub fn command(&self, executable: impl AsRef<OsStr>) -> Command {
        let mut path = self.folder.path().as_os_str().to_owned();
        if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH").filter(|rest| !rest.is_empty()) {
            path.push(":");
            path.push(rest);
        }
        let mut command = Command::new(executable);
        command.env("LD_LIBRARY_PATH", path).envs(&self.variables);
        command
    }

    /// The folder with the library, for whoever sets the search path in another way.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The reports of all processes that have ended so far.
    #[track_caller]
    pub fn reports(&self) -> Vec<Report> {
        let entries = std::fs::read_dir(self.folder.path()).expect("our own folder");
        let paths = entries.map(|entry| entry.expect("an entry of our own folder").path());
        let reports = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
        reports
            .map(|path| {
                let json = std::fs::read(&path).expect("a report in our own folder");
                serde_json::from_slice(&json).expect("a report is JSON of this crate")
            })
            .collect()
    }

    /// The report of the one process that has used the driver and ended. Panics if there is not
    /// exactly one: a process that was killed writes none.
    #[track_caller]
    pub fn report(&self) -> Report {
        let mut reports = self.reports();
        assert_eq!(reports.len(), 1, "how many processes ended with a report");
        reports.remove(0)
    }
}

/// A new folder with the library of a crate that stands in for another, under the names of that one, to be put on the
/// loader's search path (`LD_LIBRARY_PATH`). Panics if the library was not built, and says how to.
#[track_caller]
pub fn folder(package: &str, names: &[&str]) -> TempDir {
    let library = library(package);
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in names {
        let link = folder.path().join(name);
        std::os::unix::fs::symlink(&library, link).expect("a link in a folder of ours");
    }
    folder
}

/// The `cdylib` of a crate, from where cargo puts it: `deps/` beside a test's executable, or the
/// folder above for a program.
#[track_caller]
fn library(package: &str) -> PathBuf {
    let name = format!("lib{}.so", package.replace('-', "_"));
    let executable = std::env::current_exe().expect("the path of this executable");
    let folder = executable.parent().expect("an executable is in a folder");
    let places = [folder.to_owned(), folder.join("deps"), folder.join("../deps")];
    let found = places.iter().map(|place| place.join(&name)).find(|path| path.is_file());
    found.and_then(|path| path.canonicalize().ok()).unwrap_or_else(|| {
        panic!(
            "{name} is in none of {places:?}: make {package} a dev-dependency of the crate under \
             test, or run `cargo build -p {package}`"
        )
    })
}
