//! Looks at a cluster or at a run, again and again: what is asked of whom, and what is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use shoal_cluster::words::{Answer, Ask, JobStatus, Overview};
use shoal_plan::plan::WorkerId;

use super::files::{self, Losses};
use super::{Look, Run, Traffic};
use crate::cli::Home;
use crate::control::Unanswered;
use crate::events;
use crate::exit::Stopped;
use crate::people::{self, Cluster};

/// Each is asked at every look, one after the other.
const RIGS_ASKED: usize = 16;

/// Where launches put their runs.
const RUNS: &str = "runs";

pub(crate) struct Source {
    home: Home,
    what: What,
    /// Of the run that is looked at, where this machine has its files.
    losses: Option<(PathBuf, Losses)>,
    /// Whether workers are asked how their newest step went.
    steps: bool,
}

enum What {
    Cluster {
        /// None after an error: it is reached anew.
        cluster: Option<Cluster>,
        /// Chosen; otherwise the first that is under way.
        job: Option<String>,
    },
    Run {
        directory: PathBuf,
        open: Option<crate::control::Run>,
    },
}

impl Source {
    /// # Errors
    /// There is nothing to look at: no such run or cluster.
    pub(crate) fn choose(what: Option<&Path>, home: &Home) -> Result<Self, Stopped> {
        let home = home.clone();
        let cluster = |job| What::Cluster { cluster: None, job };
        let run = |directory| What::Run { directory, open: None };
        let what = match what {
            Some(what) if crate::control::is_a_job(what, &home) => {
                cluster(Some(what.display().to_string()))
            }
            Some(what) => run(what.to_path_buf()),
            None if people::is_known(&home) => cluster(None),
            None => run(events::newest(Path::new(RUNS))?),
        };
        Ok(Self { home, what, losses: None, steps: false })
    }

    /// A run of this machine.
    pub(crate) fn of_run(directory: PathBuf, home: Home) -> Self {
        Self { home, what: What::Run { directory, open: None }, losses: None, steps: false }
    }

    /// The same, with how each worker's newest step went.
    pub(crate) fn with_steps(self) -> Self {
        Self { steps: true, ..self }
    }

    /// Another job of the cluster.
    pub(crate) fn turn_to(&mut self, wanted: String) {
        if let What::Cluster { job, .. } = &mut self.what {
            *job = Some(wanted);
        }
    }

    /// # Errors
    /// Nobody answers, or there is no such run: what was seen before stands.
    pub(crate) fn look(&mut self, seconds: f64) -> Result<Look, Stopped> {
        let mut look = match &mut self.what {
            What::Cluster { cluster, job } => of_cluster(&self.home, cluster, job.as_deref())?,
            What::Run { directory, open } => of_run(&self.home, directory, open)?,
        };
        look.seconds = seconds;
        if let What::Cluster { cluster: Some(cluster), .. } = &self.what
            && let Some(run) = &mut look.run
            && run.status.is_some()
        {
            run.traffic = traffic(cluster, &run.seats);
        }
        if let Some((run, directory)) = look.run.as_mut().zip(directory(&self.what, &look.jobs)) {
            self.read(run, &directory);
        }
        Ok(look)
    }

    /// What files say beside what was answered.
    fn read(&mut self, run: &mut Run, directory: &Path) {
        if self.losses.as_ref().is_none_or(|(known, _)| known != directory) {
            self.losses = Some((directory.to_path_buf(), Losses::of(directory)));
        }
        if let Some((_, losses)) = &mut self.losses {
            losses.read_on();
            run.losses.clone_from(&losses.known);
            run.heldout.clone_from(&losses.heldout);
        }
        run.events = files::events(directory);
        if run.traffic.is_empty() {
            run.traffic = files::traffic(directory);
        }
        if self.steps {
            run.newest = files::newest(directory);
        }
    }
}

/// The run's directory, if this machine has it: a cluster's is the coordinator's machine's.
fn directory(what: &What, jobs: &[JobStatus]) -> Option<PathBuf> {
    match what {
        What::Run { directory, .. } => Some(directory.clone()),
        What::Cluster { job, .. } => {
            let job = shown(jobs, job.as_deref())?;
            let directory = PathBuf::from(job.directory.as_ref()?);
            directory.join("manifest.json").is_file().then_some(directory)
        }
    }
}

fn shown<'a>(jobs: &'a [JobStatus], chosen: Option<&str>) -> Option<&'a JobStatus> {
    match chosen {
        Some(chosen) => jobs.iter().find(|job| job.name == chosen),
        None => jobs.iter().find(|job| job.phase.is_under_way()),
    }
}

fn of_cluster(
    home: &Home,
    cluster: &mut Option<Cluster>,
    chosen: Option<&str>,
) -> Result<Look, Stopped> {
    let reached = match cluster.take() {
        Some(reached) => reached,
        None => Cluster::reach(home)?,
    };
    let overview = reached.overview()?;
    *cluster = Some(reached);
    let Overview { cluster: name, rigs, jobs, .. } = overview;
    let job = shown(&jobs, chosen);
    if let (Some(chosen), None) = (chosen, job) {
        return Err(Stopped::Input(format!("there is no job {chosen}: `shoal ps` lists them")));
    }
    let run = job.map(|job| Run {
        name: job.name.clone(),
        status: job.run.as_deref().cloned(),
        why: Some(match &job.why {
            Some(why) => format!("{}: {why}", job.phase),
            None => job.phase.to_string(),
        }),
        seats: job.rigs.clone(),
        ..Run::default()
    });
    Ok(Look { title: format!("cluster {name}"), rigs, jobs, run, ..Look::default() })
}

/// Of the first few rigs of a run, asked through the coordinator.
fn traffic(cluster: &Cluster, seats: &BTreeMap<WorkerId, String>) -> BTreeMap<WorkerId, Traffic> {
    let asked = seats.iter().take(RIGS_ASKED).filter_map(|(worker, rig)| {
        // A rig that has no worker yet has no metrics, which is no trouble.
        match cluster.ask(&Ask::Metrics { rig: rig.clone() }).ok()? {
            Answer::Metrics(text) => Some((*worker, files::bytes(&text))),
            Answer::Overview(_)
            | Answer::Run(_)
            | Answer::Done(_)
            | Answer::Applied { .. }
            | Answer::Refused(_)
            | Answer::Wrong(_)
            | Answer::Unknown(_)
            | Answer::Undecided(_)
            | Answer::Tokens(_)
            | Answer::Token { .. } => None,
        }
    });
    asked.collect()
}

fn of_run(
    home: &Home,
    directory: &Path,
    open: &mut Option<crate::control::Run>,
) -> Result<Look, Stopped> {
    let answer = match open.take() {
        Some(run) => run.status().map(|status| (run, status)),
        None => match crate::control::Run::open(directory, home)? {
            Ok(run) => run.status().map(|status| (run, status)),
            Err(unanswered) => Err(unanswered),
        },
    };
    let name = directory.file_name().unwrap_or(directory.as_os_str()).to_string_lossy();
    let mut run = Run { name: name.into_owned(), ..Run::default() };
    match answer {
        Ok((answers, status)) => {
            *open = Some(answers);
            run.status = Some(status);
        }
        Err(Unanswered::Nobody) => {
            run.why = Some("nothing trains; what its files say is below".to_owned());
        }
        Err(Unanswered::Silent(why) | Unanswered::Refused(why)) => run.why = Some(why),
    }
    let title = directory.display().to_string();
    Ok(Look { title, run: Some(run), ..Look::default() })
}
