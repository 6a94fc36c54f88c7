//! What people ask and order.

use std::collections::{BTreeMap, BTreeSet};

use shoal_plan::job::Job;
use shoal_plan::manifest::difference;
use shoal_plan::plan::WorkerId;

use super::{Cluster, Effect, JobPhase, JobRecord, Key, Manifest, SessionId, ToLauncher, ToRig};
use crate::words::{Answer, Ask, JobStatus, Overview, RigIs, RigStatus};

/// Jobs that may wait or be under way.
const JOBS_MAX: usize = 100;

impl Cluster {
    /// Answers what needs nobody else: neither a manifest's text nor a run's coordinator.
    pub fn ask(&mut self, ask: &Ask, unix: u64) -> Answer {
        match ask {
            Ask::Overview => Answer::Overview(Box::new(self.overview())),
            Ask::Remove { job } => self.remove(job),
            Ask::Cordon { rig } => self.cordon(rig, true),
            Ask::Uncordon { rig } => self.cordon(rig, false),
            Ask::Drain { rig, .. } => self.drain(rig),
            Ask::Expel { rig } => self.expel(rig, unix),
            Ask::Tokens => {
                let tokens = self.tokens.iter().map(|(id, token)| token.status(id, unix));
                Answer::Tokens(tokens.collect())
            }
            Ask::RevokeToken { id } if self.remove_token(id) => {
                Answer::Done(format!("token {id} is revoked; who joined with it stays"))
            }
            Ask::RevokeToken { id } => Answer::Unknown(format!("there is no token {id}")),
            Ask::Apply(_) | Ask::Run { .. } | Ask::Metrics { .. } | Ask::CreateToken(_) => {
                Answer::Refused("this question was put to the wrong place".to_owned())
            }
        }
    }

    fn overview(&self) -> Overview {
        let jobs = self.jobs.iter().map(|(name, job)| JobStatus {
            name: name.clone(),
            phase: job.phase,
            why: job.why.clone(),
            directory: None,
            rigs: job.seats.clone(),
            run: None,
        });
        Overview {
            cluster: String::new(),
            version: String::new(),
            rigs: self.rigs.keys().map(|name| self.rig_status(name)).collect(),
            jobs: jobs.collect(),
        }
    }

    fn rig_status(&self, name: &str) -> RigStatus {
        let record = &self.rigs[name];
        let seat = self.seat_of(name);
        let here = self.session_of(name).is_some();
        let heard = self.heard_ms.get(name);
        RigStatus {
            name: name.to_owned(),
            is: match (here, &seat) {
                (false, _) => RigIs::Away,
                (true, Some(_)) => RigIs::Busy,
                (true, None) => RigIs::Free,
            },
            facts: record.facts.clone(),
            job: seat.map(|(job, _)| job.clone()),
            worker: seat.map(|(_, worker)| worker),
            cordoned: record.cordoned,
            relays: self.load_of(name) as u32,
            heard_seconds_ago: heard.map(|at| self.now_ms.saturating_sub(*at) as f64 / 1e3),
        }
    }

    /// A checked job comes into the queue, or back into it.
    pub fn apply(&mut self, manifest: Manifest, job: Job) -> Answer {
        let name = job.name.clone();
        let known = self.jobs.get(&name);
        let changes: Vec<_> = known.map_or_else(Vec::new, |known| {
            difference(&known.job, &job).iter().map(ToString::to_string).collect()
        });
        let waiting = self.jobs.values().filter(|job| job.phase == JobPhase::Queued).count();
        if let Some(refusal) = refusal(&name, known, &changes, waiting) {
            return refusal;
        }
        let place = self.jobs.values().filter(|job| job.phase == JobPhase::Queued).count() + 1;
        let what = match known {
            None => format!("new: it is number {place} in the queue"),
            Some(known) => format!("it was {}: it is number {place} in the queue", known.phase),
        };
        if manifest.dry_run {
            let what = format!("{what} (a dry run: nothing has happened)");
            return Answer::Applied { job: name, changes, what };
        }
        let order = self.jobs.values().map(|job| job.order).max().unwrap_or(0) + 1;
        let record = JobRecord {
            manifest,
            job,
            order,
            phase: JobPhase::Queued,
            why: None,
            run: None,
            seats: BTreeMap::new(),
            stopping: false,
            shunned: BTreeSet::new(),
            launches: known.map_or(0, |known| known.launches),
            home: known.and_then(|known| known.home.clone()),
            meetings: Vec::new(),
            relays: BTreeSet::new(),
        };
        self.jobs.insert(name.clone(), record);
        self.changed.insert(Key::Job(name.clone()));
        self.schedule();
        Answer::Applied { job: name, changes, what }
    }

    /// A job that waits does so no more. `None` if it is for its run to stop.
    pub fn stop_waiting(&mut self, name: &str) -> Option<Answer> {
        let Some(job) = self.jobs.get(name) else {
            return Some(Answer::Unknown(format!("there is no job {name}: `shoal ps` lists them")));
        };
        match job.phase {
            JobPhase::Running => {
                self.change_job(name)?.stopping = true;
                None
            }
            JobPhase::Queued => {
                let job = self.change_job(name)?;
                (job.phase, job.why) =
                    (JobPhase::Stopped, Some("taken out of the queue".to_owned()));
                Some(Answer::Done(format!("{name} is out of the queue")))
            }
            JobPhase::Starting => {
                self.change_job(name)?.stopping = true;
                let message = ToLauncher::Stop;
                self.effects.push(Effect::TellLauncher { job: name.to_owned(), message });
                Some(Answer::Done(format!("{name} is just starting: it stops as soon as it has")))
            }
            JobPhase::Finished | JobPhase::Stopped | JobPhase::Failed => {
                Some(Answer::Refused(format!("{name} is not under way: it is {}", job.phase)))
            }
        }
    }

    fn remove(&mut self, name: &str) -> Answer {
        match self.jobs.get(name) {
            None => Answer::Unknown(format!("there is no job {name}: `shoal ps` lists them")),
            Some(job) if job.phase.is_under_way() => Answer::Refused(format!(
                "{name} is {}: `shoal stop {name}` lets it write a checkpoint and end",
                job.phase
            )),
            Some(_) => {
                self.remove_job(name);
                Answer::Done(format!("{name} is forgotten; its files stay"))
            }
        }
    }

    fn cordon(&mut self, rig: &str, cordoned: bool) -> Answer {
        let Some(record) = self.rigs.get_mut(rig) else { return unknown_rig(rig) };
        record.cordoned = cordoned;
        self.changed.insert(Key::Rig(rig.to_owned()));
        if !cordoned {
            self.schedule();
            return Answer::Done(format!("{rig} may be given work again"));
        }
        let what = self.seat_of(rig).map_or_else(String::new, |(job, worker)| {
            format!("; it stays {worker} of {job}: `shoal drain {rig}` takes it out")
        });
        Answer::Done(format!("{rig} is given no more work{what}"))
    }

    /// The rig hands over its cells and gets no others until it is uncordoned.
    fn drain(&mut self, rig: &str) -> Answer {
        if !self.rigs.contains_key(rig) {
            return unknown_rig(rig);
        }
        self.cordon(rig, true);
        let Some((job, worker)) = self.seated(rig) else {
            return Answer::Done(format!(
                "{rig} has nothing to hand over, and is given no more work"
            ));
        };
        Answer::Done(format!(
            "{rig} hands over what it has as {worker} of {job}, and is given no more work"
        ))
    }

    /// The job and the worker for which a rig is here.
    pub fn seated(&self, rig: &str) -> Option<(String, WorkerId)> {
        self.seat_of(rig).map(|(job, worker)| (job.clone(), worker))
    }

    fn expel(&mut self, rig: &str, unix: u64) -> Answer {
        let Some(record) = self.rigs.get(rig) else { return unknown_rig(rig) };
        for (serial, until) in record.certificates.clone() {
            self.deny(&serial, until, unix);
        }
        if let Some(session) = self.session_of(rig) {
            self.close_for_good(session);
        }
        self.effects.push(Effect::Cut { rig: rig.to_owned() });
        self.vacate(rig, "its rig was expelled");
        self.forget_rig(rig);
        self.schedule();
        Answer::Done(format!(
            "{rig} is expelled: its certificates count no more, only a new token lets it back"
        ))
    }

    fn close_for_good(&mut self, session: SessionId) {
        let Some(state) = self.sessions.remove(&session) else { return };
        for post in state.running {
            self.effects.push(Effect::Tell { session, message: ToRig::Kill { post } });
        }
        let reason = "this rig was expelled".to_owned();
        self.effects.push(Effect::Close { session, reason });
    }
}

fn refusal(
    name: &str,
    known: Option<&JobRecord>,
    changes: &[String],
    waiting: usize,
) -> Option<Answer> {
    match known {
        Some(known) if known.phase.is_under_way() && changes.is_empty() => {
            let (job, what) = (name.to_owned(), format!("unchanged: it is {}", known.phase));
            Some(Answer::Applied { job, changes: Vec::new(), what })
        }
        Some(known) if known.phase.is_under_way() => Some(Answer::Refused(format!(
            "{name} is {}, and this manifest is another one:\n  {}\n`shoal stop {name}` first; then apply it \
             again, and it goes on from its checkpoint",
            known.phase,
            changes.join("\n  ")
        ))),
        _ if waiting >= JOBS_MAX => {
            Some(Answer::Refused(format!("{JOBS_MAX} jobs wait already: remove some")))
        }
        _ => None,
    }
}

fn unknown_rig(rig: &str) -> Answer {
    Answer::Unknown(format!("there is no rig {rig}: `shoal ps` lists them"))
}
