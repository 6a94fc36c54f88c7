//! Questions of people: those that `state` answers, and those that need a manifest's text or a run's coordinator.

use std::path::Path;
use std::time::Duration;

use shoal_coordinator::control::{self, Meeting, Order};
use shoal_plan::job::Job;
use shoal_plan::manifest;
use shoal_plan::plan::RunId;
use shoal_proto::Secret;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{Harbour, Inbound};
use crate::clock::unix;
use crate::launchers::ReadConfig;
use crate::roles;
use crate::state::RunRecord;
use crate::words::{Answer, Ask, JobPhase, Manifest, Overview};

/// A run's coordinator may be being started anew.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is kept of a job's run beside its manifest: the names of its files, and its seats.
const RUN_BYTES_MAX: usize = 256 << 10;

/// For the overview, where one that is silent is left out.
const GLANCE: Duration = Duration::from_secs(1);

impl Harbour {
    pub(super) fn ask(&mut self, ask: Ask, reply: oneshot::Sender<Answer>) {
        if !roles::only_looks(&ask)
            && let Err(why) = self.store.may_decide()
        {
            let _ = reply.send(Answer::Undecided(format!(
                "nothing is decided now, and this was not done: {why}. What runs goes on; try again"
            )));
            return;
        }
        match ask {
            Ask::Overview => self.overview(reply),
            Ask::Run { job, ask } => self.ask_run(&job, ask, reply),
            Ask::Metrics { rig } => self.metrics_for_a_person(rig, reply),
            Ask::Drain { rig, force } => self.drain(&rig, force, reply),
            Ask::Apply(applied) => self.apply(applied, reply),
            Ask::CreateToken(new) => {
                let answer = self.create_token(&new);
                self.answer(answer, reply);
            }
            ask @ (Ask::Remove { .. }
            | Ask::Cordon { .. }
            | Ask::Uncordon { .. }
            | Ask::Expel { .. }
            | Ask::Tokens
            | Ask::RevokeToken { .. }) => {
                let answer = self.state.ask(&ask, unix());
                self.answer(answer, reply);
            }
        }
    }

    fn answer(&mut self, answer: Answer, reply: oneshot::Sender<Answer>) {
        let answer = self.once_written(Ok(answer)).unwrap_or_else(Answer::Undecided);
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }

    fn overview(&mut self, reply: oneshot::Sender<Answer>) {
        let answer = self.state.ask(&Ask::Overview, unix());
        let Answer::Overview(mut overview) = answer else { return };
        overview.cluster = self.settings.cluster.to_string();
        env!("CARGO_PKG_VERSION").clone_into(&mut overview.version);
        for job in &mut overview.jobs {
            let at = self.state.is_elsewhere(&job.name).map(|home| format!(" at {home}"));
            job.directory =
                Some(format!("{}{}", self.run_dir(&job.name).display(), at.unwrap_or_default()));
        }
        let runs: Vec<(usize, RunRecord)> = (overview.jobs.iter().enumerate())
            .filter_map(|(at, job)| Some((at, self.state.job(&job.name)?.run.clone()?)))
            .collect();
        tokio::spawn(async move {
            let _ = reply.send(Answer::Overview(with_runs(overview, runs).await));
        });
    }

    fn ask_run(&mut self, job: &str, ask: control::Ask, reply: oneshot::Sender<Answer>) {
        let stops = matches!(ask, control::Ask::Order(Order::Stop { .. }));
        if stops && let Some(answer) = self.state.stop_waiting(job) {
            return self.answer(answer, reply);
        }
        let refused = match self.state.job(job) {
            None => Answer::Unknown(format!("there is no job {job}: `shoal ps` lists them")),
            Some(record) => {
                if let Some(run) = record.run.clone() {
                    tokio::spawn(async move {
                        let _ = reply.send(put(&run, &ask, PATIENCE).await);
                    });
                    return;
                }
                let why = record.why.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
                Answer::Refused(format!("{job} is {}{why}: nothing trains", record.phase))
            }
        };
        let _ = reply.send(refused);
    }

    /// The rig gets no more work, and its worker is told to hand over.
    fn drain(&mut self, rig: &str, force: bool, reply: oneshot::Sender<Answer>) {
        let seat = self.state.seated(rig);
        let answer = self.state.ask(&Ask::Drain { rig: rig.to_owned(), force }, unix());
        let run = seat.as_ref().and_then(|(job, _)| self.state.job(job)?.run.clone());
        let (Some((_, worker)), Some(run)) = (seat, run) else {
            return self.answer(answer, reply);
        };
        if let Err(why) = self.once_written(Ok(())) {
            let _ = reply.send(Answer::Undecided(why));
            return;
        }
        tokio::spawn(async move {
            let order = control::Ask::Order(Order::Drain { worker, force });
            let mut said = put(&run, &order, PATIENCE).await;
            if let Answer::Run(control::Answer::Accepted(_)) = said {
                said = answer;
            } else if let Answer::Run(control::Answer::Refused(why)) = said {
                let what = "it is given no more work, but the run keeps what it has";
                said = Answer::Refused(format!("{what}: {why}"));
            }
            let _ = reply.send(said);
        });
    }

    /// Tells a run's coordinator how its rigs come together; what it says to that comes back to the loop.
    pub(super) fn tell_meetings(&mut self, name: String, run: RunId, meetings: Vec<Meeting>) {
        let Some(record) = self.state.job(&name).and_then(|job| job.run.clone()) else { return };
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            let order = control::Ask::Order(Order::Meet(meetings.clone()));
            let said = put(&record, &order, PATIENCE).await;
            let taken = matches!(said, Answer::Run(control::Answer::Accepted(_)));
            if !taken {
                tracing::debug!(?said, name, "a run was not told how its rigs come together");
            }
            // Fails when the harbour has ended.
            let _ = inbox.send(Inbound::Met { name, run, meetings, taken }).await;
        });
    }

    /// Reading a manifest may mean to look through a checkpoint that it starts from: the loop does not wait for it.
    fn apply(&mut self, mut applied: Manifest, reply: oneshot::Sender<Answer>) {
        let (read, inbox) = (self.launchers.config_reader(), self.inbox.clone());
        tokio::spawn(async move {
            let checked =
                spawn_blocking(move || checked(&mut applied, read).map(|job| (applied, job)));
            let answer = match checked.await {
                Ok(Ok((applied, job))) => {
                    let job = Box::new(job);
                    // A loop that has ended answers nobody.
                    let _ = inbox.send(Inbound::Apply { applied, job, reply }).await;
                    return;
                }
                Ok(Err(why)) => Answer::Wrong(why),
                Err(error) => Answer::Refused(format!("the manifest cannot be read: {error}")),
            };
            let _ = reply.send(answer);
        });
    }

    pub(super) fn applied(&mut self, applied: Manifest, job: Job, reply: oneshot::Sender<Answer>) {
        let bytes = [serde_json::to_vec(&applied), serde_json::to_vec(&job)];
        let bytes: usize = bytes.iter().flatten().map(Vec::len).sum();
        let most = self.store.value_bytes_max().saturating_sub(RUN_BYTES_MAX);
        let answer = if bytes > most {
            let what = "the manifest and what it stands for take";
            Answer::Refused(format!(
                "{what} {bytes} bytes, and the store takes at most {most} for a job"
            ))
        } else {
            self.state.apply(applied, job)
        };
        self.answer(answer, reply);
    }
}

/// Reads a manifest as a cluster's run has it: a worker for each cell at most, and checkpoints that go through
/// the coordinator. Its overrides say so from here on.
fn checked(applied: &mut Manifest, read: ReadConfig) -> Result<Job, String> {
    if applied.text.len() > manifest::BYTES_MAX {
        return Err(format!("a manifest has at most {} bytes", manifest::BYTES_MAX));
    }
    let parse = |applied: &Manifest| {
        // As the launcher will: from where the person stood.
        let read = |path: &Path| read(&Path::new(&applied.directory).join(path));
        let parsed = manifest::parse(&applied.file, &applied.text, &applied.overrides, &read);
        parsed.map(|manifest| manifest.job).map_err(|error| error.to_string())
    };
    let job = parse(applied)?;
    let cells = job.grid.n_cells();
    applied.overrides.retain(|change| !change.starts_with("workers.local="));
    applied.overrides.push(format!("workers.local={cells}"));
    applied.overrides.push("checkpoint.gather=coordinator".to_owned());
    parse(applied)
}

async fn with_runs(mut overview: Box<Overview>, runs: Vec<(usize, RunRecord)>) -> Box<Overview> {
    for (at, run) in runs {
        let answer = put(&run, &control::Ask::Status, GLANCE).await;
        if let Answer::Run(control::Answer::Status(status)) = answer {
            overview.jobs[at].run = Some(status);
        } else if overview.jobs[at].phase == JobPhase::Running {
            overview.jobs[at].why = Some("its coordinator does not answer now".to_owned());
        }
    }
    overview
}

/// Puts a question to a run's coordinator, on this machine.
async fn put(run: &RunRecord, ask: &control::Ask, patience: Duration) -> Answer {
    let Ok(secret) = Secret::from_hex(&run.secret) else {
        return Answer::Refused("the run's secret is damaged".to_owned());
    };
    match timeout(patience, shoal_coordinator::ask(run.address, &secret, ask)).await {
        Ok(Ok(answer)) => Answer::Run(answer),
        Ok(Err(error)) => Answer::Refused(format!("{error}; try again")),
        Err(_) => Answer::Refused(format!(
            "the run's coordinator has not answered for {} s; try again",
            patience.as_secs()
        )),
    }
}
