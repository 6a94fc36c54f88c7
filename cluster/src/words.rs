//! What is said in a cluster: by whoever looks after it, by its rigs, and by the launchers of its runs. Words
//! only; what they lead to is in `state`. On the wire they are JSON, one object a message or a line.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde::{Deserialize, Serialize};
use shoal_coordinator::control;
use shoal_plan::job::Job;
use shoal_plan::plan::{RunId, WorkerId};

use crate::probing::words::{Neighbour, Trial};
use crate::relaying::Served;

/// Of these words. Another one's are not understood.
pub const VERSION: u32 = 1;

/// One question or order of a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Rigs and jobs.
    Overview,
    /// Train this, or train it further.
    Apply(Manifest),
    /// Of a run under way: its status, or an order. A stop also takes a job out of the queue.
    Run {
        job: String,
        ask: control::Ask,
    },
    /// Forget a job that is not under way. Its files stay.
    Remove {
        job: String,
    },
    /// A rig gets no more jobs; what it does goes on.
    Cordon {
        rig: String,
    },
    Uncordon {
        rig: String,
    },
    /// A rig hands over what it does, and gets no more.
    Drain {
        rig: String,
        force: bool,
    },
    /// A rig's certificate counts no more.
    Expel {
        rig: String,
    },
    /// What a rig's worker tells Prometheus.
    Metrics {
        rig: String,
    },
    Tokens,
    CreateToken(NewToken),
    RevokeToken {
        id: String,
    },
}

/// A job as it was written, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Its whole path: what lies beside it is looked for there, on the coordinator's machine.
    pub file: String,
    /// Where patterns of text start, as for a launch: the directory from which it was applied.
    pub directory: String,
    pub text: String,
    /// `KEY=VALUE` below `spec`.
    pub overrides: Vec<String>,
    /// Say what would happen, and let nothing happen.
    pub dry_run: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// `worker`, `viewer` or `admin`.
    pub role: String,
    /// How often somebody may join with it.
    pub uses: u32,
    pub seconds: u64,
}

/// To one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Overview(Box<Overview>),
    /// What a run's coordinator says.
    Run(control::Answer),
    /// What happens now, as a sentence.
    Done(String),
    /// A job that was applied: what is different, a line each, and what happens now.
    Applied {
        job: String,
        changes: Vec<String>,
        what: String,
    },
    /// Nothing has changed: why, and what would help.
    Refused(String),
    /// Nothing is decided now: this coordinator cannot know whether it is the active one. It was not done.
    Undecided(String),
    /// The manifest is wrong: where, and what was wanted.
    Wrong(String),
    /// There is no such job, rig or token.
    Unknown(String),
    Tokens(Vec<TokenStatus>),
    /// In Prometheus's text format.
    Metrics(String),
    /// The only time that it is shown.
    Token {
        token: String,
        status: TokenStatus,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    pub cluster: String,
    pub version: String,
    pub rigs: Vec<RigStatus>,
    pub jobs: Vec<JobStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RigStatus {
    pub name: String,
    pub is: RigIs,
    pub facts: Facts,
    /// What it does, or did when it was heard last.
    pub job: Option<String>,
    pub worker: Option<WorkerId>,
    pub cordoned: bool,
    /// Pairs of rigs between which it passes bytes on.
    #[serde(default)]
    pub relays: u32,
    pub heard_seconds_ago: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RigIs {
    Free,
    Busy,
    Away,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    pub name: String,
    pub phase: JobPhase,
    /// Why it waits, or how it ended.
    pub why: Option<String>,
    /// The run's directory, on the coordinator's machine.
    pub directory: Option<String>,
    pub rigs: BTreeMap<WorkerId, String>,
    /// Of a run under way, once its coordinator has answered.
    pub run: Option<Box<control::Status>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobPhase {
    Queued,
    /// Its launcher reads the text and looks for checkpoints.
    Starting,
    Running,
    Finished,
    Stopped,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenStatus {
    pub id: String,
    pub role: String,
    pub uses_left: u32,
    /// Negative: it is over.
    pub seconds_left: i64,
}

/// What a rig says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    pub version: String,
    pub host: String,
    pub cores: u32,
    pub memory_mb: u64,
    pub disk_free_mb: u64,
    pub gpus: Vec<Gpu>,
    /// Where other rigs reach it.
    pub address: Option<IpAddr>,
    /// Where they may see how fast.
    #[serde(default)]
    pub probe_port: Option<u16>,
    /// It takes no seat: it only relays.
    #[serde(default)]
    pub relay_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    pub name: String,
    pub memory_mb: u64,
}

/// What a rig's process for a run is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Post {
    pub run: RunId,
    pub worker: WorkerId,
}

/// From a rig.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromRig {
    /// The first, and only the first.
    Hello {
        version: u32,
        facts: Facts,
        /// What still runs there.
        running: Vec<Post>,
        /// What time it is there, in milliseconds of the calendar.
        #[serde(default)]
        unix_ms: Option<u64>,
    },
    /// Every second.
    Heartbeat {
        disk_free_mb: u64,
    },
    Started {
        post: Post,
        pid: u32,
    },
    /// A process has ended: its wait status, as the system has it.
    Exited {
        post: Post,
        pid: u32,
        status: i32,
    },
    /// It could not be started: why.
    NotStarted {
        post: Post,
        why: String,
    },
    /// Lines of a process's log.
    Log {
        post: Post,
        text: String,
    },
    /// What its worker tells Prometheus, or why that is not there.
    Metrics {
        /// Of the question.
        ask: u64,
        text: Result<String, String>,
    },
    /// It goes for now: its person wants it back.
    Leaving {
        reason: String,
    },
    /// Whom it reaches of those that it was to try.
    Tried {
        trials: Vec<Trial>,
    },
}

/// To a rig.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToRig {
    /// The first, and now and then: where coordinators of this cluster are reached, where there are several.
    Coordinators(Vec<String>),
    /// Fetch the text, and start a process.
    Start(Box<Order>),
    /// A process is to hand over its cells and go.
    Leave { post: Post },
    /// A process is to end now.
    Kill { post: Post },
    /// Nothing more is to be done for this run.
    Over { run: RunId },
    /// It is to say what its worker tells Prometheus.
    Metrics { ask: u64 },
    /// Whom of these does it reach?
    Try { neighbours: Vec<Neighbour> },
    /// The pairs of rigs that it relays from now on, by run, in the place of what was said before.
    Relay { served: Served },
}

/// What a rig is to start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub post: Post,
    /// The job's name: names its files on the rig.
    pub name: String,
    pub job: Job,
    /// In hexadecimal.
    pub secret: String,
    /// The text, as files of the run's directory `data`.
    pub files: Vec<DataFile>,
}

/// A file that a rig needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFile {
    pub name: String,
    pub bytes: u64,
    /// 64 lower-case hexadecimal digits.
    pub blake3: String,
}

impl DataFile {
    /// A file as it is. Reads all of it.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn of(path: &Path) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        let bytes = hasher.update_reader(File::open(path)?)?.count();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, bytes, blake3: hasher.finalize().to_hex().to_string() })
    }
}

/// From a launcher, a line each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromLauncher {
    /// The first, and only the first: the job it is for.
    Here { name: String },
    /// It is there. Said over a line to another machine alone.
    Beat,
    /// A run's coordinator listens here, on this machine. Said again over each new connection.
    Open(Box<Opened>),
    /// A worker's process is wanted once more.
    Start { worker: WorkerId },
    /// A rig's processes have died too often: another rig may try.
    GivenUp { worker: WorkerId, why: String },
    /// All processes of the run are to end now.
    Kill,
    /// The last.
    Ended(LaunchEnd),
}

/// How a launcher ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LaunchEnd {
    Finished,
    /// It has written a checkpoint.
    Stopped,
    /// Its last words.
    Failed(String),
}

/// A run that is under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opened {
    pub run: RunId,
    /// In hexadecimal.
    pub secret: String,
    pub address: SocketAddr,
    pub files: Vec<DataFile>,
}

/// To a launcher, a line each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToLauncher {
    Exited {
        worker: WorkerId,
        pid: u32,
        status: i32,
    },
    /// No rig has it: it waits for one.
    Unseated {
        worker: WorkerId,
        why: String,
    },
    Seated {
        worker: WorkerId,
        rig: String,
    },
    /// Write a checkpoint and end.
    Stop,
    /// Another launcher has taken this one's place: end now, and write nothing.
    Superseded,
    /// The first over a line to another machine, and every second: in which term the coordinator is active, whether it
    /// may decide now, and where all of them are.
    Beat {
        term: u64,
        decides: bool,
        coordinators: Vec<String>,
    },
    /// Open a tunnel to the run's coordinator.
    Dial {
        tunnel: u64,
    },
}

impl fmt::Display for JobPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

impl fmt::Display for RigIs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Free => "free",
            Self::Busy => "busy",
            Self::Away => "away",
        })
    }
}

impl JobPhase {
    /// Whether a launcher is at it, or to be.
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }
}
