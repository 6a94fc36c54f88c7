//! What launchers say, and what becomes of a job whose launcher has ended.

use shoal_plan::plan::WorkerId;

use super::{
    Cluster, Effect, FromLauncher, JOBS_KEPT, JobName, JobPhase, Key, LaunchEnd, Opened, Post,
    REATTACH_MS, RunRecord, ToLauncher, ToRig,
};

/// A launcher that is lost is replaced so often within this time; then its job has failed.
const RELAUNCHES: usize = 3;
const RELAUNCH_WINDOW_MS: u64 = 600_000;

impl Cluster {
    /// A launcher speaks. Which job's it is, it has said first.
    pub fn launcher_says(&mut self, name: &str, message: FromLauncher) {
        match message {
            FromLauncher::Here { .. } => drop(self.awaited_until_ms.remove(name)),
            FromLauncher::Beat => {}
            FromLauncher::Open(opened) => self.opened(name, *opened),
            FromLauncher::Start { worker } => self.order(name, worker),
            FromLauncher::GivenUp { worker, why } => self.given_up(name, worker, &why),
            FromLauncher::Kill => self.kill_all(name),
            FromLauncher::Ended(end) => self.launcher_ended(name, end),
        }
    }

    /// A run's coordinator listens. Also said by a launcher that has found its way back to us.
    fn opened(&mut self, name: &str, opened: Opened) {
        let Opened { run, secret, address, files } = opened;
        let Some(record) = self.change_job(name) else { return };
        let is_back = record.run.as_ref().is_some_and(|known| known.run == run);
        record.run = Some(RunRecord { run: run.clone(), secret, address, files });
        record.phase = JobPhase::Running;
        record.why = None;
        let (seats, stopping): (Vec<WorkerId>, _) =
            (record.seats.keys().copied().collect(), record.stopping);
        if stopping {
            self.effects
                .push(Effect::TellLauncher { job: name.to_owned(), message: ToLauncher::Stop });
        }
        if !is_back {
            self.meets_as_usual(name, run);
        }
        self.settle_meetings();
        // Rigs that are back before their launcher are set right by now.
        for worker in seats.into_iter().filter(|_| !is_back) {
            self.order(name, worker);
        }
        self.schedule();
    }

    fn kill_all(&mut self, name: &str) {
        let Some(job) = self.jobs.get(name) else { return };
        let Some(run) = &job.run else { return };
        let seats: Vec<_> = job.seats.iter().map(|(worker, rig)| (*worker, rig.clone())).collect();
        let run = run.run.clone();
        for (worker, rig) in seats {
            if let Some(session) = self.session_of(&rig) {
                let post = Post { run: run.clone(), worker };
                self.effects.push(Effect::Tell { session, message: ToRig::Kill { post } });
            }
        }
    }

    /// The seat goes to another rig, if there is one.
    fn given_up(&mut self, name: &str, worker: WorkerId, why: &str) {
        let Some(job) = self.change_job(name) else { return };
        let Some(rig) = job.seats.get(&worker).cloned() else { return };
        job.shunned.insert(rig.clone());
        let note = format!("rig {rig} gets no more of {name}: {why}");
        job.why = Some(note.clone());
        self.effects.push(Effect::Note(note));
        self.vacate(&rig, why);
        self.schedule();
    }

    /// A process of a rig has ended. What its launcher makes of that, it says.
    pub(super) fn exited(&mut self, rig: &str, post: &Post, pid: u32, status: i32) {
        let Some(job) = self.job_of(rig, post) else { return };
        let message = ToLauncher::Exited { worker: post.worker, pid, status };
        self.effects.push(Effect::TellLauncher { job, message });
        // It was asked to go, and has handed over: somebody else may have the seat.
        if status == 0 {
            self.vacate(rig, "its worker has left");
        }
    }

    /// Like a process that ended at once: its launcher decides how often it is tried again.
    pub(super) fn not_started(&mut self, rig: &str, post: &Post, why: String) {
        self.effects.push(Effect::Note(format!("rig {rig} cannot start {}: {why}", post.worker)));
        if let Some(job) = self.job_of(rig, post) {
            if let Some(record) = self.change_job(&job) {
                record.why = Some(format!("rig {rig}: {why}"));
            }
            let message = ToLauncher::Exited { worker: post.worker, pid: 0, status: 0x100 };
            self.effects.push(Effect::TellLauncher { job, message });
        }
    }

    /// The job for which a rig has this post.
    fn job_of(&self, rig: &str, post: &Post) -> Option<JobName> {
        let (name, worker) = self.seat_of(rig)?;
        let run = self.jobs[name].run.as_ref()?;
        (worker == post.worker && run.run == post.run).then(|| name.clone())
    }

    /// A launcher has ended, or could not even begin.
    fn launcher_ended(&mut self, name: &str, end: LaunchEnd) {
        self.dismiss(name);
        self.launchers_lost_ms.remove(name);
        let resting = self.resting;
        let Some(job) = self.change_job(name) else { return };
        (job.phase, job.why) = match end {
            // It goes on when this process is back.
            LaunchEnd::Stopped if resting && !job.stopping => (JobPhase::Queued, None),
            LaunchEnd::Finished => (JobPhase::Finished, None),
            LaunchEnd::Stopped => (JobPhase::Stopped, None),
            LaunchEnd::Failed(why) => (JobPhase::Failed, Some(why)),
        };
        job.run = None;
        job.stopping = false;
        self.forget_old_jobs();
        self.schedule();
    }

    /// A launcher is gone without a word. Another one goes on where it was, unless that happens too often.
    pub fn launcher_lost(&mut self, name: &str, how: &str) {
        self.awaited_until_ms.remove(name);
        if !self.jobs.get(name).is_some_and(|job| job.phase.is_under_way()) {
            return;
        }
        let now_ms = self.now_ms;
        let lost = self.launchers_lost_ms.entry(name.to_owned()).or_default();
        lost.retain(|at| at + RELAUNCH_WINDOW_MS > now_ms);
        lost.push(now_ms);
        let times = lost.len();
        self.effects.push(Effect::Note(format!("the launcher of {name} is gone: {how}")));
        if times > RELAUNCHES {
            let why = format!("its launcher was lost {times} times in ten minutes: {how}");
            return self.launcher_ended(name, LaunchEnd::Failed(why));
        }
        self.dismiss(name);
        if let Some(job) = self.change_job(name) {
            (job.phase, job.run) = (JobPhase::Queued, None);
            job.why = Some(format!("its launcher was lost ({how}): another one is started"));
        }
        self.schedule();
    }

    /// A launcher's line to another machine has ended: it has a while to come back.
    pub fn launcher_away(&mut self, name: &str) {
        if self.jobs.get(name).is_some_and(|job| job.phase.is_under_way()) {
            self.awaited_until_ms.insert(name.to_owned(), self.now_ms + REATTACH_MS);
        }
    }

    /// Of those that were there before this process.
    pub(super) fn launchers_that_never_came(&mut self) {
        let now_ms = self.now_ms;
        let late = self.awaited_until_ms.iter().filter(|(_, until)| **until < now_ms);
        for name in late.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.launcher_lost(&name, "it did not come back");
        }
    }

    /// Of jobs that are over the oldest are forgotten: the file at the centre has a bound.
    fn forget_old_jobs(&mut self) {
        let over = |name: &&JobName| {
            !matches!(
                self.jobs[*name].phase,
                JobPhase::Queued | JobPhase::Starting | JobPhase::Running
            )
        };
        let mut over: Vec<JobName> = self.jobs.keys().filter(over).cloned().collect();
        over.sort_by_key(|name| self.jobs[name].order);
        let too_many = over.len().saturating_sub(JOBS_KEPT);
        for name in over.into_iter().take(too_many) {
            self.remove_job(&name);
        }
    }

    pub(super) fn remove_job(&mut self, name: &str) {
        self.jobs.remove(name);
        self.changed.insert(Key::Job(name.to_owned()));
    }
}
