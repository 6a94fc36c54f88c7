//! The only door between the wire and our types: the generated code is included here and nowhere
//! else, and what comes out of a `try_from` needs no further look at its form.
//!
//! To worker in `wire/to_worker.rs`, from worker here and in `wire/reports.rs`, of files in
//! `wire/files.rs`. Errors name the field as the schema does.

use std::net::{AddrParseError, SocketAddr};
use std::time::Duration;

use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, RunId, WorkerId};
use shoal_plan::standing::Standing;
use shoal_trust::TrustError;

use crate::message::{FailureKind, FromWorker, Hello, Resuming};

mod files;
mod meetings;
mod members;
mod reports;
mod to_worker;
mod traces;

pub use files::bytes as chunk;
pub use traces::SPANS_MAX;

/// The generated messages, client and server. Only the tonic rims name them.
#[expect(clippy::pedantic, clippy::allow_attributes, reason = "generated from shoal.proto")]
#[expect(clippy::allow_attributes_without_reason, unused_qualifications, reason = "generated")]
pub mod raw {
    tonic::include_proto!("shoal.v1");
}

/// Metadata key of the per-run secret, 64 hexadecimal digits.
pub const SECRET_KEY: &str = "shoal-secret";

/// HTTP/2's pings, from both ends of every connection that stays: a partition is seen within the sum of the two.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// Metadata key of each answer of a cluster's door: the term of the coordinator that answers.
pub const TERM_KEY: &str = "shoal-term";

/// Metadata key of the run that a call through a cluster's door is for.
pub const RUN_KEY: &str = "shoal-run";

/// Metadata keys that a cluster's door adds, from the caller's certificate: the worker that the caller is in the
/// run, and the name of its rig. What a caller says itself under these keys is replaced.
pub const MEMBER_KEY: &str = "shoal-member";
pub const RIG_KEY: &str = "shoal-rig";

/// The largest message a worker may send. A checkpoint part of 100 files has about 12 KiB.
pub const FROM_WORKER_BYTES_MAX: usize = 256 << 10;

/// The largest message the coordinator may send. A plan of 1,000 cells has about 100 KiB.
pub const TO_WORKER_BYTES_MAX: usize = 4 << 20;

/// The largest question of whoever looks after a run. How a pair of rigs comes together has some 300 bytes at most.
pub const QUESTION_BYTES_MAX: usize = 256 << 10;

/// The largest answer. What is said of one worker of a hundred cells has about 1 KiB.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Texts are cut to this many bytes before they are sent.
pub const TEXT_BYTES_MAX: usize = 4 << 10;

/// The most bytes of a file in one message: with what is around them, they fit into what a worker may send.
pub const CHUNK_BYTES_MAX: usize = 128 << 10;

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("{field} is missing")]
    Missing { field: &'static str },
    #[error("{field} must not be zero")]
    Zero { field: &'static str },
    #[error("{field} is {got}, which is not finite")]
    NotFinite { field: &'static str, got: f64 },
    #[error("{field} is {got}: want {want}")]
    Value { field: &'static str, got: String, want: String },
    #[error("{field} has {got} entries: want {want}")]
    Count { field: &'static str, got: usize, want: String },
    #[error("{field} is not an address")]
    Address { field: &'static str, source: AddrParseError },
    #[error("{field} has a name that is none")]
    Name { field: &'static str, source: TrustError },
    #[error("assign.job_json is not a job of this version")]
    Job { source: serde_json::Error },
}

impl TryFrom<raw::FromWorker> for FromWorker {
    type Error = WireError;

    fn try_from(raw: raw::FromWorker) -> Result<Self, WireError> {
        use raw::from_worker::Message;
        Ok(match present("from_worker.message", raw.message)? {
            Message::Hello(raw) => Self::Hello(Hello::try_from(raw)?),
            Message::Heartbeat(raw) => {
                Self::Heartbeat { generation: raw.generation.map(Generation), step: raw.step }
            }
            Message::Ready(raw) => Self::Ready { generation: Generation(raw.generation) },
            Message::StepDone(raw) => Self::StepDone {
                generation: Generation(raw.generation),
                step: raw.step,
                compute_seconds: reports::seconds(raw.compute_seconds)?,
                report: raw.report.map(reports::step).transpose()?,
                sums: members::sums(raw.sums)?,
            },
            Message::Prepared(raw) => members::prepared(raw)?,
            Message::Traced(raw) => traces::traced(raw)?,
            Message::Yielding(raw) => members::yielding(raw)?,
            Message::Evaluated(raw) => Self::Evaluated {
                generation: Generation(raw.generation),
                step: raw.step,
                evaluations: reports::evaluations(raw.evaluations)?,
            },
            Message::GoBack(raw) => Self::GoBack {
                generation: Generation(raw.generation),
                standing: reports::standing("go_back.standing", raw.standing)?,
            },
            Message::CheckpointPart(raw) => Self::CheckpointPart {
                generation: Generation(raw.generation),
                standing: reports::standing("checkpoint_part.standing", raw.standing)?,
                cell: CellId(raw.cell),
                files: files::of_part(raw.files)?,
            },
            Message::CheckpointPartFailed(raw) => Self::CheckpointPartFailed {
                generation: Generation(raw.generation),
                standing: reports::standing("checkpoint_part_failed.standing", raw.standing)?,
                cell: CellId(raw.cell),
                why: readable("checkpoint_part_failed.why", &raw.why)?,
            },
            Message::Held(raw) => Self::Held {
                generation: Generation(raw.generation),
                standing: reports::standing("held.standing", raw.standing)?,
                cell: CellId(raw.cell),
                blake3: hash("held.blake3", raw.blake3)?,
            },
            Message::AtEdge(raw) => Self::AtEdge {
                generation: Generation(raw.generation),
                standing: reports::standing("at_edge.standing", raw.standing)?,
            },
            Message::Leaving(raw) => {
                Self::Leaving { reason: readable("leaving.reason", &raw.reason)? }
            }
            Message::Finished(raw) => Self::Finished {
                generation: Generation(raw.generation),
                step: raw.step,
                ending: reports::ending(raw.ending)?,
            },
            Message::Failed(raw) => Self::Failed {
                generation: Generation(raw.generation),
                step: raw.step,
                kind: failure_kind(raw.kind)?,
                what: readable("failed.what", &raw.what)?,
                layer: raw.layer.map(|layer| readable("failed.layer", &layer)).transpose()?,
                unreachable: raw.unreachable.into_iter().map(WorkerId).collect(),
            },
        })
    }
}

impl From<FromWorker> for raw::FromWorker {
    fn from(message: FromWorker) -> Self {
        use raw::from_worker::Message;
        let message = match message {
            FromWorker::Hello(hello) => Message::Hello(hello.into()),
            FromWorker::Heartbeat { generation, step } => {
                let generation = generation.map(|generation| generation.0);
                Message::Heartbeat(raw::Heartbeat { generation, step })
            }
            FromWorker::Ready { generation } => {
                Message::Ready(raw::Ready { generation: generation.0 })
            }
            FromWorker::StepDone { generation, step, compute_seconds, report, sums } => {
                Message::StepDone(raw::StepDone {
                    generation: generation.0,
                    step,
                    compute_seconds,
                    report: report.map(raw::StepReport::from),
                    sums: members::raw_sums(sums),
                })
            }
            FromWorker::Prepared { generation, standing, cells } => {
                Message::Prepared(members::raw_prepared(generation, standing, cells))
            }
            FromWorker::Yielding { reason } => {
                Message::Yielding(raw::Yielding { reason: reason.map(shortened) })
            }
            FromWorker::Traced { generation, trace } => {
                Message::Traced(traces::raw_traced(generation, *trace))
            }
            FromWorker::Evaluated { generation, step, evaluations } => {
                let evaluations = evaluations.into_iter().map(raw::Evaluation::from).collect();
                Message::Evaluated(raw::Evaluated { generation: generation.0, step, evaluations })
            }
            FromWorker::GoBack { generation, standing } => Message::GoBack(raw::GoBack {
                generation: generation.0,
                standing: Some(standing.into()),
            }),
            FromWorker::CheckpointPart { generation, standing, cell, files } => {
                let files = files.into_iter().map(files::raw_file).collect();
                let (generation, cell, standing) = (generation.0, cell.0, Some(standing.into()));
                Message::CheckpointPart(raw::CheckpointPart { generation, standing, cell, files })
            }
            FromWorker::CheckpointPartFailed { generation, standing, cell, why } => {
                Message::CheckpointPartFailed(part_failed(generation, standing, cell, why))
            }
            FromWorker::Held { generation, standing, cell, blake3 } => {
                let (generation, cell, standing) = (generation.0, cell.0, Some(standing.into()));
                Message::Held(raw::Held { generation, standing, cell, blake3 })
            }
            FromWorker::AtEdge { generation, standing } => {
                let (generation, standing) = (generation.0, Some(standing.into()));
                Message::AtEdge(raw::AtEdge { generation, standing })
            }
            FromWorker::Leaving { reason } => {
                Message::Leaving(raw::Leaving { reason: shortened(reason) })
            }
            FromWorker::Finished { generation, step, ending } => Message::Finished(raw::Finished {
                generation: generation.0,
                step,
                ending: raw::Ending::from(ending).into(),
            }),
            FromWorker::Failed { generation, step, kind, what, layer, unreachable } => {
                let kind = raw::FailureKind::from(kind).into();
                let (what, layer) = (shortened(what), layer.map(shortened));
                let unreachable = unreachable.into_iter().map(|worker| worker.0).collect();
                let generation = generation.0;
                Message::Failed(raw::Failed { generation, step, kind, what, layer, unreachable })
            }
        };
        Self { message: Some(message) }
    }
}

fn part_failed(
    generation: Generation,
    standing: Standing,
    cell: CellId,
    why: String,
) -> raw::CheckpointPartFailed {
    let (generation, cell, why) = (generation.0, cell.0, shortened(why));
    raw::CheckpointPartFailed { generation, standing: Some(standing.into()), cell, why }
}

impl TryFrom<raw::Hello> for Hello {
    type Error = WireError;

    fn try_from(raw: raw::Hello) -> Result<Self, WireError> {
        if raw.threads == 0 {
            return Err(WireError::Zero { field: "hello.threads" });
        }
        Ok(Self {
            run: run_id("hello.run", raw.run)?,
            worker: WorkerId(raw.worker),
            data_address: address("hello.data_address", &raw.data_address)?,
            pid: raw.pid,
            threads: raw.threads,
            // A worker of before there was this number.
            devices: raw.devices.max(1),
            vault_address: address("hello.vault_address", &raw.vault_address)?,
            resuming: raw
                .resuming
                .map(|raw| Resuming { generation: Generation(raw.generation), step: raw.step }),
        })
    }
}

impl From<Hello> for raw::Hello {
    fn from(hello: Hello) -> Self {
        Self {
            run: hello.run.0,
            worker: hello.worker.0,
            data_address: hello.data_address.to_string(),
            pid: hello.pid,
            threads: hello.threads,
            devices: hello.devices,
            vault_address: hello.vault_address.to_string(),
            resuming: hello
                .resuming
                .map(|at| raw::Resuming { generation: at.generation.0, step: at.step }),
        }
    }
}

impl From<FailureKind> for raw::FailureKind {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::NonFinite => Self::NonFinite,
            FailureKind::PeerLost => Self::PeerLost,
            FailureKind::Checkpoint => Self::Checkpoint,
            FailureKind::Data => Self::Data,
            FailureKind::Internal => Self::Internal,
        }
    }
}

fn failure_kind(raw: i32) -> Result<FailureKind, WireError> {
    Ok(match raw::FailureKind::try_from(raw) {
        Ok(raw::FailureKind::NonFinite) => FailureKind::NonFinite,
        Ok(raw::FailureKind::PeerLost) => FailureKind::PeerLost,
        Ok(raw::FailureKind::Checkpoint) => FailureKind::Checkpoint,
        Ok(raw::FailureKind::Data) => FailureKind::Data,
        Ok(raw::FailureKind::Internal) => FailureKind::Internal,
        Ok(raw::FailureKind::Unspecified) | Err(_) => {
            return Err(value("failed.kind", raw, "a known kind of failure"));
        }
    })
}

/// A blake3 as it is written everywhere.
fn hash(field: &'static str, text: String) -> Result<String, WireError> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != 64 || !text.bytes().all(hex) {
        return Err(value(field, text.escape_debug(), "64 lower-case hex digits"));
    }
    Ok(text)
}

fn present<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Missing { field })
}

fn value(field: &'static str, got: impl ToString, want: &str) -> WireError {
    WireError::Value { field, got: got.to_string(), want: want.to_owned() }
}

fn finite(field: &'static str, got: f64) -> Result<f64, WireError> {
    if got.is_finite() { Ok(got) } else { Err(WireError::NotFinite { field, got }) }
}

fn address(field: &'static str, text: &str) -> Result<SocketAddr, WireError> {
    text.parse().map_err(|source| WireError::Address { field, source })
}

fn run_id(field: &'static str, text: String) -> Result<RunId, WireError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
        return Err(value(field, text.escape_debug(), "1 to 64 letters, digits and hyphens"));
    }
    Ok(RunId(text))
}

/// Text for a person: it ends on a terminal, so it may not steer one.
fn readable(field: &'static str, text: &str) -> Result<String, WireError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(value(field, format!("{} bytes long", text.len()), "4096 bytes at most"));
    }
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    Ok(clean)
}

fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests;
