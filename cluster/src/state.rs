//! The cluster's decisions: which rig does what, which job is next. No clock, no socket, no process in here:
//! `rim` turns what happens into calls, and carries effects out.
//!
//! A job waits until enough rigs are free, gets as many as its grid has cells, and keeps those seats. A rig that
//! is away keeps its seat for a while; then another may have it. One job at a time on a rig.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use shoal_coordinator::control::Meeting;
use shoal_plan::job::Job;
use shoal_plan::plan::{RunId, WorkerId};

use crate::relaying::Served;
use crate::words::{
    DataFile, Facts, FromLauncher, FromRig, JobPhase, LaunchEnd, Manifest, Opened, Order, Post,
    ToLauncher, ToRig,
};

mod asked;
mod figures;
mod launchers;
mod meetings;
mod neighbours;
mod reach;
mod relays;
mod seats;
mod tokens;

pub use figures::RigFigures;
use reach::Reach;
pub use tokens::TokenRecord;

/// A rig that is silent for so long is away.
pub const LEASE_MS: u64 = 5_000;

/// A rig that is away keeps its seat for so long, if another one is free.
const SEAT_MS: u64 = 30_000;

/// After the last rig came, so long is waited for more of them before a job starts with fewer than could help.
const SETTLE_MS: u64 = 3_000;

/// After a restart, launchers that still live have so long to find their way back.
const REATTACH_MS: u64 = 10_000;

/// Jobs that are over are remembered, so many of them.
const JOBS_KEPT: usize = 200;

/// One connection of a rig.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Name of a rig, as its certificate has it; of a job, as its manifest has it.
pub type RigName = String;
pub type JobName = String;

/// What is written down of a rig.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RigRecord {
    /// By serial number, until when each of its certificates is good, in seconds of the calendar. One that was renewed
    /// is good to its own end.
    pub certificates: BTreeMap<String, u64>,
    pub cordoned: bool,
    pub facts: Facts,
}

/// What is written down of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    pub manifest: Manifest,
    pub job: Job,
    /// Jobs start in this order.
    pub order: u64,
    pub phase: JobPhase,
    pub why: Option<String>,
    /// Of its launcher, once that has said so.
    pub run: Option<RunRecord>,
    pub seats: BTreeMap<WorkerId, RigName>,
    /// Somebody wants it to end.
    pub stopping: bool,
    /// Rigs on which it has died too often.
    pub shunned: BTreeSet<RigName>,
    /// How often it was launched. Only the last launch counts.
    #[serde(default)]
    pub launches: u64,
    /// The coordinator on whose machine its run's directory is.
    #[serde(default)]
    pub home: Option<String>,
    /// How those with a seat come together, where not both of a pair can dial the other.
    #[serde(default)]
    pub meetings: Vec<Meeting>,
    /// Rigs that are relays of the run, or were: they hear when it is over.
    #[serde(default)]
    pub relays: BTreeSet<RigName>,
}

impl JobRecord {
    /// The coordinator whose machine has its run, where that is another one than `here`.
    fn elsewhere(&self, here: &str) -> Option<&str> {
        self.home.as_deref().filter(|home| *home != here)
    }
}

/// A run under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    pub run: RunId,
    /// In hexadecimal.
    pub secret: String,
    /// Of its coordinator, on this machine.
    pub address: SocketAddr,
    pub files: Vec<DataFile>,
}

/// What is to be done, in order, after what has changed was written down.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Tell {
        session: SessionId,
        message: ToRig,
    },
    Close {
        session: SessionId,
        reason: String,
    },
    /// The connections that a rig has now are to end soon, whatever it does.
    Cut {
        rig: RigName,
    },
    /// A launcher is to be started, for a run of at most so many workers that begins with so many.
    Launch {
        job: JobName,
        most: u32,
        first: u32,
        nth: u64,
    },
    TellLauncher {
        job: JobName,
        message: ToLauncher,
    },
    /// A run's coordinator is to be told how its rigs come together.
    Meet {
        job: JobName,
        run: RunId,
        meetings: Vec<Meeting>,
    },
    /// The pairs of rigs that the door relays from now on.
    Relay(Served),
    Note(String),
}

/// What has changed, by key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Rig(RigName),
    Job(JobName),
    Token(String),
    /// A certificate's serial number that counts no more.
    Denied(String),
}

/// A rig that is here.
#[derive(Clone, Debug)]
struct Session {
    rig: RigName,
    heard_ms: u64,
    running: BTreeSet<Post>,
    leaving: bool,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub struct Cluster {
    rigs: BTreeMap<RigName, RigRecord>,
    jobs: BTreeMap<JobName, JobRecord>,
    tokens: BTreeMap<String, TokenRecord>,
    /// By serial number: until when such a certificate would be good, in seconds of the calendar.
    denied: BTreeMap<String, u64>,
    sessions: BTreeMap<SessionId, Session>,
    /// Since when a rig is away.
    away_since_ms: BTreeMap<RigName, u64>,
    /// When each rig was heard last.
    heard_ms: BTreeMap<RigName, u64>,
    last_came_ms: u64,
    /// Nothing new begins.
    resting: bool,
    /// Launchers that were there before this process, and may find their way back until then.
    awaited_until_ms: BTreeMap<JobName, u64>,
    /// When launchers of a job were lost, within a while.
    launchers_lost_ms: BTreeMap<JobName, Vec<u64>>,
    /// Where this coordinator is reached; nothing where there is only one.
    here: String,
    reach: Reach,
    /// When ways that were closed are tried again.
    try_again_ms: u64,
    /// What each run knows of how its rigs come together, until when an answer to it is awaited, and which workers
    /// start when it is known.
    told: BTreeMap<JobName, (RunId, Vec<Meeting>)>,
    telling_until_ms: BTreeMap<JobName, u64>,
    starts: BTreeSet<(JobName, WorkerId)>,
    /// What each relay that is here was told to serve, and the door.
    relays_told: BTreeMap<RigName, Served>,
    door_told: Served,
    now_ms: u64,
    effects: Vec<Effect>,
    changed: BTreeSet<Key>,
}

/// What was written down, read back.
#[derive(Debug, Default)]
pub struct Known {
    pub rigs: BTreeMap<RigName, RigRecord>,
    pub jobs: BTreeMap<JobName, JobRecord>,
    pub tokens: BTreeMap<String, TokenRecord>,
    pub denied: BTreeMap<String, u64>,
}

impl Cluster {
    pub fn new(known: Known) -> Self {
        let Known { rigs, jobs, tokens, denied } = known;
        let under_way = jobs.iter().filter(|(_, job)| job.phase.is_under_way());
        let awaited_until_ms = under_way.map(|(name, _)| (name.clone(), REATTACH_MS)).collect();
        let away_since_ms = rigs.keys().map(|rig| (rig.clone(), 0)).collect();
        Self { rigs, jobs, tokens, denied, away_since_ms, awaited_until_ms, ..Self::default() }
    }

    /// What this coordinator is called among others.
    pub fn is_at(&mut self, home: &str) {
        home.clone_into(&mut self.here);
    }

    /// The coordinator whose machine has a job's run, where that is another one than this.
    pub fn is_elsewhere(&self, name: &str) -> Option<&str> {
        self.jobs.get(name)?.elsewhere(&self.here)
    }

    /// Whether no launcher was started after this one.
    pub fn is_newest(&self, name: &str, nth: u64) -> bool {
        self.jobs.get(name).is_some_and(|job| job.phase.is_under_way() && job.launches == nth)
    }

    /// What has changed and what is to be done since the last call.
    pub fn take(&mut self) -> (BTreeSet<Key>, Vec<Effect>) {
        (std::mem::take(&mut self.changed), std::mem::take(&mut self.effects))
    }

    /// Time passes: milliseconds on a clock that does not go back.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        let late = |session: &Session| session.heard_ms + LEASE_MS < self.now_ms;
        let silent: Vec<SessionId> =
            self.sessions.iter().filter(|(_, rig)| late(rig)).map(|(id, _)| *id).collect();
        for session in silent {
            let reason = format!("nothing was heard for {} s", LEASE_MS / 1000);
            self.effects.push(Effect::Close { session, reason });
            self.rig_gone(session, "it was silent");
        }
        self.launchers_that_never_came();
        self.give_away();
        self.try_again();
        self.schedule();
        self.settle_meetings();
    }

    /// A rig, proven by its certificate, has said its hello.
    pub fn rig_came(&mut self, session: SessionId, rig: &str, facts: Facts, running: Vec<Post>) {
        if let Some(old) = self.session_of(rig) {
            let reason = "another process speaks for this rig".to_owned();
            self.effects.push(Effect::Close { session: old, reason });
            self.sessions.remove(&old);
        }
        self.away_since_ms.remove(rig);
        self.last_came_ms = self.now_ms;
        self.heard_ms.insert(rig.to_owned(), self.now_ms);
        self.rigs.entry(rig.to_owned()).or_default().facts = facts;
        self.changed.insert(Key::Rig(rig.to_owned()));
        let state = Session {
            rig: rig.to_owned(),
            heard_ms: self.now_ms,
            running: running.into_iter().collect(),
            leaving: false,
        };
        self.sessions.insert(session, state);
        self.effects.push(Effect::Note(format!("rig {rig} is here")));
        self.reach.forget(rig);
        self.relays_told.remove(rig);
        self.try_newcomer(rig);
        self.set_right(session);
        self.schedule();
    }

    pub fn rig_says(&mut self, session: SessionId, message: FromRig) {
        let now_ms = self.now_ms;
        let Some(rig) = self.sessions.get_mut(&session) else { return };
        rig.heard_ms = now_ms;
        let name = rig.rig.clone();
        self.heard_ms.insert(name.clone(), now_ms);
        match message {
            FromRig::Hello { .. } => {
                let reason = "a session says hello once".to_owned();
                self.effects.push(Effect::Close { session, reason });
                self.rig_gone(session, "it said hello twice");
            }
            // Kept in memory only: it is different every second.
            FromRig::Heartbeat { disk_free_mb } => {
                self.rigs.entry(name).or_default().facts.disk_free_mb = disk_free_mb;
            }
            FromRig::Started { post, .. } => {
                rig.running.insert(post);
            }
            FromRig::Exited { post, pid, status } => {
                rig.running.remove(&post);
                self.exited(&name, &post, pid, status);
            }
            FromRig::NotStarted { post, why } => self.not_started(&name, &post, why),
            FromRig::Log { .. } | FromRig::Metrics { .. } => {}
            FromRig::Tried { trials } => self.tried(&name, &trials),
            FromRig::Leaving { reason } => {
                rig.leaving = true;
                let posts: Vec<Post> = rig.running.iter().cloned().collect();
                self.effects.push(Effect::Note(format!("rig {name} leaves: {reason}")));
                for post in posts {
                    self.effects.push(Effect::Tell { session, message: ToRig::Leave { post } });
                }
            }
        }
    }

    /// The connection has ended.
    pub fn rig_gone(&mut self, session: SessionId, why: &str) {
        let Some(gone) = self.sessions.remove(&session) else { return };
        self.effects.push(Effect::Note(format!("rig {} is away: {why}", gone.rig)));
        self.away_since_ms.insert(gone.rig.clone(), self.now_ms);
        self.settle_meetings();
        if gone.leaving {
            // It said so: nobody waits for it.
            self.vacate(&gone.rig, "its rig has left");
            self.schedule();
        }
    }

    /// Whose run it is, where its coordinator listens, and as which worker this rig takes part.
    pub fn member(&self, rig: &str, run: &str) -> Option<(&RunRecord, WorkerId)> {
        let (job, record) = self.under_way(run)?;
        let seat = job.seats.iter().find(|(_, holder)| *holder == rig)?;
        Some((record, *seat.0))
    }

    /// A run that is under way, by its id.
    fn under_way(&self, run: &str) -> Option<(&JobRecord, &RunRecord)> {
        self.jobs.values().find_map(|job| {
            let record = job.run.as_ref().filter(|record| record.run.0 == run)?;
            job.phase.is_under_way().then_some((job, record))
        })
    }

    /// Of a rig that is here.
    pub fn session_of(&self, rig: &str) -> Option<SessionId> {
        self.sessions.iter().find(|(_, session)| session.rig == rig).map(|(id, _)| *id)
    }

    pub fn rig(&self, name: &str) -> Option<&RigRecord> {
        self.rigs.get(name)
    }

    pub fn job(&self, name: &str) -> Option<&JobRecord> {
        self.jobs.get(name)
    }

    pub fn token(&self, id: &str) -> Option<&TokenRecord> {
        self.tokens.get(id)
    }

    pub fn jobs(&self) -> impl Iterator<Item = (&JobName, &JobRecord)> {
        self.jobs.iter()
    }

    pub fn denied(&self) -> &BTreeMap<String, u64> {
        &self.denied
    }

    /// Whether this session's rig has this post.
    pub fn has_post(&self, session: SessionId, post: &Post) -> bool {
        let Some(rig) = self.sessions.get(&session).map(|session| &session.rig) else {
            return false;
        };
        self.member(rig, &post.run.0).is_some_and(|(_, worker)| worker == post.worker)
    }

    /// What is to be written down under a key; nothing: it is gone.
    pub fn value(&self, key: &Key) -> Option<Vec<u8>> {
        fn json<T: Serialize>(value: Option<&T>) -> Option<Vec<u8>> {
            value.map(|value| serde_json::to_vec(value).expect("plain structs of numbers and text"))
        }
        match key {
            Key::Rig(name) => json(self.rigs.get(name)),
            Key::Job(name) => json(self.jobs.get(name)),
            Key::Token(id) => json(self.tokens.get(id)),
            Key::Denied(serial) => json(self.denied.get(serial)),
        }
    }

    /// This process is about to end: runs write their checkpoints, and wait in the queue for the next.
    pub fn rest(&mut self) {
        self.resting = true;
        let under_way = self.jobs.iter().filter(|(_, job)| job.phase.is_under_way());
        for name in under_way.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.effects.push(Effect::TellLauncher { job: name, message: ToLauncher::Stop });
        }
    }

    fn change_job(&mut self, name: &str) -> Option<&mut JobRecord> {
        self.changed.insert(Key::Job(name.to_owned()));
        self.jobs.get_mut(name)
    }
}

#[cfg(test)]
mod tests;
