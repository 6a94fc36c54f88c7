//! Who sits where: which free rigs a job gets, and what becomes of the seat of one that is away.

use shoal_plan::plan::WorkerId;

use super::{
    Cluster, Effect, JobName, JobPhase, JobRecord, Order, Post, RigName, SEAT_MS, SETTLE_MS,
    SessionId, ToLauncher, ToRig,
};

impl Cluster {
    /// Rigs that could take a seat now, by name.
    fn free(&self) -> Vec<RigName> {
        let is_free = |rig: &RigName| {
            let record = self.rigs.get(rig);
            record.is_some_and(|record| !record.cordoned && !record.facts.relay_only)
                && self.seat_of(rig).is_none()
        };
        let here = self.sessions.values().filter(|session| !session.leaving);
        let mut free: Vec<_> = here.map(|session| session.rig.clone()).filter(is_free).collect();
        free.sort();
        free
    }

    /// What a rig is to do.
    pub(super) fn seat_of(&self, rig: &str) -> Option<(&JobName, WorkerId)> {
        let mut under_way = self.jobs.iter().filter(|(_, job)| job.phase.is_under_way());
        under_way.find_map(|(name, job)| {
            let seat = job.seats.iter().find(|(_, holder)| *holder == rig)?;
            Some((name, *seat.0))
        })
    }

    /// Free rigs first help runs under way that have room for them; then the oldest job in the queue begins, if
    /// there are enough.
    pub(super) fn schedule(&mut self) {
        if self.resting {
            return;
        }
        let mut free = self.free();
        for name in self.in_order(|job| job.phase == JobPhase::Running) {
            free.retain(|rig| !self.take_a_seat(&name, rig));
        }
        for name in self.in_order(|job| job.phase == JobPhase::Queued) {
            let settled = self.last_came_ms + SETTLE_MS <= self.now_ms;
            let job = &self.jobs[&name];
            let (min, most) = (job.job.workers.min.max(1) as usize, most(job) as usize);
            let why = if let Some(home) = self.elsewhere(job) {
                format!(
                    "its checkpoints are on the machine of the coordinator at {home}, and spec.checkpoint.store has no \
                     copy: it goes on when that one is active. `shoal forget {name}` and `apply` begin it anew"
                )
            } else if free.len() < min {
                format!("it needs {min} free rigs and there are {}", free.len())
            } else if free.len() < most && !settled {
                format!("more rigs than {} would help: waiting a moment for them", free.len())
            } else if self.reach.are_awaited(&free, self.now_ms) {
                "waiting a moment until it is known which rigs reach each other".to_owned()
            } else {
                let first: Vec<RigName> = free.drain(..most.min(free.len())).collect();
                self.launch(&name, first);
                continue;
            };
            if job.why.as_ref() != Some(&why)
                && let Some(job) = self.change_job(&name)
            {
                job.why = Some(why);
            }
            // Who came first is served first: a smaller job does not overtake it.
            break;
        }
    }

    /// The machine that has all that a job has reached, where that is not this one.
    fn elsewhere<'a>(&self, job: &'a JobRecord) -> Option<&'a str> {
        job.elsewhere(&self.here).filter(|_| job.job.checkpoint.store.is_none())
    }

    pub(super) fn in_order(&self, which: impl Fn(&JobRecord) -> bool) -> Vec<JobName> {
        let mut names: Vec<_> = self.jobs.iter().filter(|(_, job)| which(job)).collect();
        names.sort_by_key(|(_, job)| job.order);
        names.into_iter().map(|(name, _)| name.clone()).collect()
    }

    fn launch(&mut self, name: &str, rigs: Vec<RigName>) {
        let here = self.here.clone();
        let Some(job) = self.change_job(name) else { return };
        job.seats = (0..).map(WorkerId).zip(rigs).collect();
        job.phase = JobPhase::Starting;
        job.why = None;
        job.shunned.clear();
        job.meetings.clear();
        job.relays.clear();
        job.launches += 1;
        job.home = Some(here);
        let (most, first, nth) = (most(job), job.seats.len() as u32, job.launches);
        self.effects.push(Effect::Launch { job: name.to_owned(), most, first, nth });
        self.try_seated(name);
    }

    /// Gives a rig the first seat of a run under way that nobody has. Whether there was one.
    fn take_a_seat(&mut self, name: &str, rig: &str) -> bool {
        let job = self.jobs.get(name).filter(|job| !job.stopping && !job.shunned.contains(rig));
        // The text of a run is where its launcher is: only rigs that have it already can take part from elsewhere.
        let Some(job) = job.filter(|job| job.elsewhere(&self.here).is_none()) else {
            return false;
        };
        let mut seats = (0..most(job)).map(WorkerId);
        let Some(worker) = seats.find(|seat| !job.seats.contains_key(seat)) else { return false };
        if let Some(job) = self.change_job(name) {
            job.seats.insert(worker, rig.to_owned());
        }
        let seated = ToLauncher::Seated { worker, rig: rig.to_owned() };
        self.effects.push(Effect::TellLauncher { job: name.to_owned(), message: seated });
        self.try_seated(name);
        self.settle_meetings();
        self.order(name, worker);
        true
    }

    /// Tells the rig of a seat to start what belongs there, if it is here.
    pub(super) fn order(&mut self, name: &str, worker: WorkerId) {
        let Some(job) = self.jobs.get(name) else { return };
        let (Some(run), Some(rig)) = (&job.run, job.seats.get(&worker)) else { return };
        let Some(session) = self.session_of(rig) else { return };
        let (job, run, may) = (job.job.clone(), run.clone(), self.may_start(name, worker));
        if !may {
            return;
        }
        let order = Order {
            post: Post { run: run.run, worker },
            name: name.to_owned(),
            job,
            secret: run.secret,
            files: run.files,
        };
        let message = ToRig::Start(Box::new(order));
        self.effects.push(Effect::Tell { session, message });
    }

    /// A rig that is here again does what it is to do, and nothing else.
    pub(super) fn set_right(&mut self, session: SessionId) {
        let Some(state) = self.sessions.get(&session) else { return };
        let (rig, running) = (state.rig.clone(), state.running.clone());
        let wanted = self.seat_of(&rig).and_then(|(name, worker)| {
            let run = self.jobs[name].run.as_ref()?.run.clone();
            Some((name.clone(), Post { run, worker }))
        });
        let strangers = running.iter().filter(|post| Some(*post) != wanted.as_ref().map(|w| &w.1));
        for post in strangers.cloned() {
            self.effects.push(Effect::Tell { session, message: ToRig::Kill { post } });
        }
        if let Some((name, post)) = wanted
            && !running.contains(&post)
        {
            self.order(&name, post.worker);
        }
    }

    /// A rig that has been away for long gives its seat to a free one, if there is one.
    pub(super) fn give_away(&mut self) {
        if self.free().is_empty() {
            return;
        }
        let long = |since: &u64| since + SEAT_MS < self.now_ms;
        let away: Vec<RigName> = self
            .away_since_ms
            .iter()
            .filter(|(_, since)| long(since))
            .map(|(rig, _)| rig.clone())
            .collect();
        for rig in away {
            self.vacate(&rig, "its rig is away, and another one is free");
        }
    }

    /// Takes a rig's seat away.
    pub(super) fn vacate(&mut self, rig: &str, why: &str) {
        let Some((name, worker)) = self.seat_of(rig) else { return };
        let name = name.clone();
        if let Some(job) = self.change_job(&name) {
            job.seats.remove(&worker);
        }
        let message = ToLauncher::Unseated { worker, why: why.to_owned() };
        self.effects.push(Effect::TellLauncher { job: name, message });
    }

    /// All rigs of a run are told that it is over, and may do something else.
    pub(super) fn dismiss(&mut self, name: &str) {
        self.forget_meetings(name);
        let Some(job) = self.change_job(name) else { return };
        let rigs: Vec<RigName> = std::mem::take(&mut job.seats).into_values().collect();
        let Some(run) = job.run.as_ref().map(|run| run.run.clone()) else { return };
        let sessions: Vec<_> = rigs.iter().filter_map(|rig| self.session_of(rig)).collect();
        for session in sessions {
            let message = ToRig::Over { run: run.clone() };
            self.effects.push(Effect::Tell { session, message });
        }
    }
}

/// More rigs than cells have nothing to do.
fn most(job: &JobRecord) -> u32 {
    job.job.grid.n_cells()
}
