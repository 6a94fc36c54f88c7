//! `RUN/control.json`: where a run under way is asked from another terminal, and the secret that lets one ask.
//! The launcher writes it for its user alone and removes it at the end; one that was left behind by a launcher
//! that was killed leads to nobody.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use shoal_cluster::words::{self, JobStatus};
use shoal_coordinator::AskError;
use shoal_coordinator::control::{Answer, Ask, Status};
use shoal_plan::plan::RunId;
use shoal_worker::Secret;
use tokio::runtime::Runtime;

use crate::exit::Stopped;
use crate::people::Cluster;
use crate::{cli, launch, people, run_dir};

pub(crate) const FILE_NAME: &str = "control.json";
pub(crate) const PARTIAL_NAME: &str = "control.json.partial";

/// Far more than it has.
const BYTES_MAX: u64 = 4 << 10;

/// Said where an answer is not to what was asked.
pub(crate) const ANOTHER: &str = "the run answers another question";

/// Bits of a file's mode that let others than its owner in.
const OTHERS: u32 = 0o077;

/// What is in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Control {
    pub run: RunId,
    pub address: SocketAddr,
    /// In hexadecimal.
    pub secret: String,
    /// Of the launcher.
    pub pid: u32,
}

/// The file, for as long as the run is under way.
#[derive(Debug)]
pub(crate) struct Written(PathBuf);

impl Written {
    /// Takes the place of whatever an earlier launch has left.
    ///
    /// # Errors
    /// It cannot be written, or this file system lets others read it: then it is not there.
    pub(crate) fn write(run_dir: &Path, control: &Control) -> anyhow::Result<Self> {
        let (path, aside) = (run_dir.join(FILE_NAME), run_dir.join(PARTIAL_NAME));
        for old in [&path, &aside] {
            if let Err(error) = fs::remove_file(old)
                && error.kind() != ErrorKind::NotFound
            {
                return Err(error).with_context(|| format!("removing {}", old.display()));
            }
        }
        let written = write_for_its_owner(&aside, control);
        let written = written.and_then(|()| Ok(fs::rename(&aside, &path)?));
        if written.is_err() {
            // What may be readable must not stay; there may be nothing to remove.
            let _ = fs::remove_file(&aside);
        }
        written.with_context(|| format!("writing {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // One that stays behind leads to nobody.
        let _ = fs::remove_file(&self.0);
    }
}

fn write_for_its_owner(path: &Path, control: &Control) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mode = file.metadata()?.mode();
    if mode & OTHERS != 0 {
        bail!("this file system lets others read it (mode {:03o})", mode & 0o777);
    }
    writeln!(file, "{}", serde_json::to_string(control)?)?;
    Ok(())
}

/// A run that is under way, as far as its file says; or a job of a cluster.
#[derive(Debug)]
pub(crate) struct Run {
    directory: PathBuf,
    way: Way,
}

/// How it is asked.
#[derive(Debug)]
enum Way {
    Here { address: SocketAddr, secret: Secret, runtime: Runtime },
    Cluster(Cluster),
}

/// Why a run gives no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// It is not under way.
    Nobody,
    /// It is, and its coordinator cannot be reached now.
    Silent(String),
    /// It does not want to.
    Refused(String),
}

impl Run {
    /// # Errors
    /// `Input` if this is no run's directory.
    pub(crate) fn open(
        directory: &Path,
        home: &cli::Home,
    ) -> Result<Result<Self, Unanswered>, Stopped> {
        if is_a_job(directory, home) {
            let way = Way::Cluster(Cluster::reach(home)?);
            return Ok(Ok(Self { directory: directory.to_path_buf(), way }));
        }
        if !directory.join("manifest.json").is_file() {
            return Err(Stopped::Input(format!(
                "{} is not a run directory: it has no manifest.json. `shoal launch` makes one; a job of a cluster \
                 is called by its name",
                directory.display()
            )));
        }
        let control = match read(&directory.join(FILE_NAME)) {
            Ok(control) => control,
            Err(unanswered) => return Ok(Err(unanswered)),
        };
        let secret = Secret::from_hex(&control.secret);
        Ok(match secret {
            Ok(secret) => Ok(Self {
                directory: directory.to_path_buf(),
                way: Way::Here { address: control.address, secret, runtime: launch::event_loop()? },
            }),
            Err(error) => Err(Unanswered::Silent(format!("{FILE_NAME}: {error}"))),
        })
    }

    /// A run that must answer.
    pub(crate) fn under_way(directory: &Path, home: &cli::Home) -> Result<Self, Stopped> {
        Self::open(directory, home)?.map_err(|unanswered| unanswered.stops(directory))
    }

    /// Whether all of its workers are on this machine, and have one clock.
    pub(crate) fn is_here(&self) -> bool {
        matches!(self.way, Way::Here { .. })
    }

    pub(crate) fn ask(&self, ask: &Ask) -> Result<Answer, Unanswered> {
        let (address, secret, runtime) = match &self.way {
            Way::Here { address, secret, runtime } => (*address, secret, runtime),
            Way::Cluster(cluster) => return self.ask_cluster(cluster, ask),
        };
        let asked = shoal_coordinator::ask(address, secret, ask);
        runtime.block_on(asked).map_err(|error| {
            let text = error.to_string();
            match error {
                AskError::Nobody { .. } => Unanswered::Nobody,
                AskError::Silent { .. } => Unanswered::Silent(text),
                AskError::Secret { .. } => Unanswered::Refused(format!(
                    "{text} than {} has: the file is not this launch's, or was changed",
                    self.directory.join(FILE_NAME).display()
                )),
                AskError::Misunderstood { .. } => Unanswered::Refused(text),
            }
        })
    }

    fn ask_cluster(&self, cluster: &Cluster, ask: &Ask) -> Result<Answer, Unanswered> {
        let job = self.directory.display().to_string();
        let asked = cluster.ask(&words::Ask::Run { job, ask: ask.clone() });
        match asked {
            Ok(words::Answer::Run(answer)) => Ok(answer),
            Ok(words::Answer::Done(what)) => Ok(Answer::Accepted(what)),
            Ok(other) => {
                let stopped = people::unexpected(other);
                Err(Unanswered::Refused(stopped.text().unwrap_or_default()))
            }
            Err(stopped) => Err(Unanswered::Silent(stopped.text().unwrap_or_default())),
        }
    }

    /// Of a job of a cluster: how it is, once nothing trains any more.
    pub(crate) fn job(&self) -> Option<Result<JobStatus, Stopped>> {
        let Way::Cluster(cluster) = &self.way else { return None };
        let name = self.directory.display().to_string();
        Some(cluster.overview().and_then(|overview| {
            let job = overview.jobs.into_iter().find(|job| job.name == name);
            job.ok_or_else(|| Stopped::Input(format!("there is no job {name}")))
        }))
    }

    pub(crate) fn wait(&self, time: Duration) {
        match &self.way {
            Way::Here { runtime, .. } => {
                runtime.block_on(async { tokio::time::sleep(time).await });
            }
            Way::Cluster(cluster) => cluster.wait(time),
        }
    }

    pub(crate) fn status(&self) -> Result<Status, Unanswered> {
        match self.ask(&Ask::Status)? {
            Answer::Status(status) => Ok(*status),
            Answer::Accepted(what) | Answer::Refused(what) => Err(Unanswered::Refused(what)),
            Answer::Traced(_) => Err(Unanswered::Refused(ANOTHER.to_owned())),
        }
    }
}

impl Unanswered {
    /// Where an answer was needed.
    pub(crate) fn stops(self, directory: &Path) -> Stopped {
        let shown = directory.display();
        match self {
            Self::Nobody if run_dir::is_held(directory) => Stopped::Unreachable(format!(
                "the launcher of {shown} is at work, but no worker trains: it is about to start, or to end"
            )),
            Self::Nobody => Stopped::Unreachable(format!("no run is under way in {shown}")),
            Self::Silent(why) => Stopped::Unreachable(format!(
                "{why}\nit may be being started anew: try again, and see {shown}/logs/coordinator.log"
            )),
            Self::Refused(why) => Stopped::Refused(why),
        }
    }
}

/// Whether this is the name of a cluster's job, and no directory.
pub(crate) fn is_a_job(name: &Path, home: &cli::Home) -> bool {
    let one = name.components().count() == 1 && !name.exists();
    one && people::is_known(home)
}

fn read(path: &Path) -> Result<Control, Unanswered> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| {
        if error.kind() == ErrorKind::NotFound {
            Unanswered::Nobody
        } else if error.kind() == ErrorKind::PermissionDenied {
            let whose = "is not yours to read: only the user who launched the run may ask it";
            Unanswered::Refused(format!("{shown} {whose}"))
        } else {
            Unanswered::Silent(format!("{shown}: {error}"))
        }
    })?;
    let text = mode_and_text(file).map_err(|error| Unanswered::Silent(format!("{shown}: {error}")));
    let (mode, text) = text?;
    if mode & OTHERS != 0 {
        return Err(Unanswered::Refused(format!(
            "{shown} holds the run's secret and has mode {:03o}: others may have read it. Stop the run \
             with Ctrl-C and launch it again; or, if nobody did, `chmod 600` the file",
            mode & 0o777
        )));
    }
    serde_json::from_str(&text).map_err(|error| {
        Unanswered::Silent(format!("{shown} is damaged, or of another version of shoal: {error}"))
    })
}

fn mode_and_text(file: File) -> std::io::Result<(u32, String)> {
    let mode = file.metadata()?.mode();
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text)?;
    Ok((mode, text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::run_dir::tests::Dir;

    fn nowhere() -> cli::Home {
        cli::Home { place: "no/cluster".into() }
    }

    fn written(name: &str) -> (Dir, Written) {
        let dir = Dir::new(name);
        fs::create_dir_all(&dir.0).unwrap();
        fs::write(dir.0.join("manifest.json"), "{}").unwrap();
        let control = Control {
            run: RunId("r".to_owned()),
            address: "127.0.0.1:1".parse().unwrap(),
            secret: "5e".repeat(32),
            pid: 7,
        };
        let written = Written::write(&dir.0, &control).unwrap();
        (dir, written)
    }

    #[test]
    fn the_file_is_its_owners_from_the_first_byte_and_goes_with_the_run() {
        let (dir, written) = written("control-mode");
        let path = dir.0.join(FILE_NAME);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().pid, 7);
        drop(written);
        assert!(!path.exists());
        assert!(matches!(read(&path).unwrap_err(), Unanswered::Nobody));
    }

    #[test]
    fn one_that_was_left_behind_leads_to_nobody_and_the_next_launch_replaces_it() {
        let (dir, first) = written("control-stale");
        // As a launcher that is killed leaves it: nobody listens on port 1.
        std::mem::forget(first);
        let run = Run::under_way(&dir.0, &nowhere()).unwrap();
        assert!(matches!(run.status().unwrap_err(), Unanswered::Nobody));
        let text = Unanswered::Nobody.stops(&dir.0);
        assert_eq!(text.exit_code(), 3);
        fs::write(dir.0.join(PARTIAL_NAME), "half").unwrap();
        fs::set_permissions(dir.0.join(FILE_NAME), fs::Permissions::from_mode(0o644)).unwrap();
        let control = read(&dir.0.join(FILE_NAME)).map(drop).unwrap_err();
        assert!(matches!(&control, Unanswered::Refused(why) if why.contains("mode 644")));
        assert_eq!(control.stops(&dir.0).exit_code(), 4);
        let again = Control {
            run: RunId("next".to_owned()),
            address: "127.0.0.1:1".parse().unwrap(),
            secret: "5e".repeat(32),
            pid: 8,
        };
        let _second = Written::write(&dir.0, &again).unwrap();
        assert_eq!(read(&dir.0.join(FILE_NAME)).unwrap().pid, 8);
    }

    #[test]
    fn a_file_that_makes_no_sense_is_named_and_a_directory_that_is_no_runs_is_refused() {
        let (dir, _written) = written("control-nonsense");
        let path = dir.0.join(FILE_NAME);
        fs::write(&path, "{").unwrap();
        let damaged = read(&path).map(drop).unwrap_err();
        assert!(matches!(&damaged, Unanswered::Silent(why) if why.contains("is damaged")));
        fs::remove_file(dir.0.join("manifest.json")).unwrap();
        let refused = Run::open(&dir.0, &nowhere()).map(drop).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
    }
}
