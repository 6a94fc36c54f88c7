//! The coordinator's messages through the door: `ToWorker` with its plan and its job.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;

use shoal_plan::grid::{CellId, Grid};
use shoal_plan::plan::{Generation, Plan, StagePlan, WorkerId};
use shoal_trust::Name;

use super::{
    WireError, address, finite, hash, meetings, present, raw, readable, reports, run_id, shortened,
    traces, value,
};
use crate::message::{Assign, Source, ToWorker};

/// Cells in a grid: far above any fleet this serves, and no product of it overflows.
pub(super) const CELLS_MAX: u64 = 1 << 16;

impl TryFrom<raw::ToWorker> for ToWorker {
    type Error = WireError;

    fn try_from(raw: raw::ToWorker) -> Result<Self, WireError> {
        use raw::to_worker::Message;
        Ok(match present("to_worker.message", raw.message)? {
            Message::Assign(raw) => Self::Assign(Box::new(Assign::try_from(raw)?)),
            Message::Prepare(raw) => Self::Prepare(Box::new(Assign::try_from(raw)?)),
            Message::Released(raw) => Self::Released { generation: Generation(raw.generation) },
            Message::Trace(raw) => traces::wanted(&raw)?,
            Message::Start(raw) => Self::Start { generation: Generation(raw.generation) },
            Message::Stop(raw) => Self::Stop { generation: Generation(raw.generation) },
            Message::CheckpointCommitted(raw) => {
                let generation = Generation(raw.generation);
                Self::CheckpointCommitted { generation, step: raw.step }
            }
            Message::Edge(raw) => Self::Edge { generation: Generation(raw.generation) },
            Message::Received(raw) => Self::Received { messages: raw.messages },
            Message::Leave(raw) => Self::Leave { reason: readable("leave.reason", &raw.reason)? },
            Message::Abort(raw) => Self::Abort { reason: readable("abort.reason", &raw.reason)? },
        })
    }
}

impl From<ToWorker> for raw::ToWorker {
    fn from(message: ToWorker) -> Self {
        use raw::to_worker::Message;
        let message = match message {
            ToWorker::Assign(assign) => Message::Assign((*assign).into()),
            ToWorker::Prepare(assign) => Message::Prepare((*assign).into()),
            ToWorker::Released { generation } => {
                Message::Released(raw::Released { generation: generation.0 })
            }
            ToWorker::Trace { generation, first, steps } => {
                Message::Trace(raw::Trace { generation: generation.0, first, steps })
            }
            ToWorker::Start { generation } => {
                Message::Start(raw::Start { generation: generation.0 })
            }
            ToWorker::Edge { generation } => Message::Edge(raw::Edge { generation: generation.0 }),
            ToWorker::Stop { generation } => Message::Stop(raw::Stop { generation: generation.0 }),
            ToWorker::CheckpointCommitted { generation, step } => {
                let generation = generation.0;
                Message::CheckpointCommitted(raw::CheckpointCommitted { generation, step })
            }
            ToWorker::Received { messages } => Message::Received(raw::Received { messages }),
            ToWorker::Leave { reason } => Message::Leave(raw::Leave { reason: shortened(reason) }),
            ToWorker::Abort { reason } => Message::Abort(raw::Abort { reason: shortened(reason) }),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<raw::Assign> for Assign {
    type Error = WireError;

    fn try_from(raw: raw::Assign) -> Result<Self, WireError> {
        let plan = plan(present("assign.plan", raw.plan)?)?;
        let job =
            serde_json::from_str(&raw.job_json).map_err(|source| WireError::Job { source })?;
        let mut peers = BTreeMap::new();
        for (worker, text) in raw.peers {
            peers.insert(WorkerId(worker), address("assign.peers", &text)?);
        }
        if let Some(stranger) = plan.hosts.iter().find(|host| !peers.contains_key(host)) {
            return Err(value("assign.plan.hosts", stranger, "a worker with an address in peers"));
        }
        let run = run_id("assign.run", raw.run)?;
        let standing = reports::standing("assign.standing", raw.standing)?;
        let vaults = vaults(raw.vaults, &peers)?;
        let sources = sources(raw.sources, plan.grid, &vaults)?;
        let resume_from = raw.resume_from;
        let names = names(raw.names, &vaults)?;
        let meetings = meetings::read(raw.meetings, &vaults)?;
        Ok(Self { run, plan, job, peers, resume_from, standing, vaults, sources, names, meetings })
    }
}

impl From<Assign> for raw::Assign {
    fn from(assign: Assign) -> Self {
        let peers = assign.peers.iter().map(|(worker, at)| (worker.0, at.to_string())).collect();
        Self {
            run: assign.run.0,
            plan: Some(raw_plan(assign.plan)),
            job_json: serde_json::to_string(&assign.job).expect("a job has only string keys"),
            peers,
            resume_from: assign.resume_from,
            standing: Some(assign.standing.into()),
            vaults: assign.vaults.iter().map(|(worker, at)| (worker.0, at.to_string())).collect(),
            sources: assign.sources.into_iter().map(raw_source).collect(),
            names: assign.names.iter().map(|(worker, name)| (worker.0, name.to_string())).collect(),
            meetings: assign.meetings.into_iter().map(meetings::raw).collect(),
        }
    }
}

/// Of every worker that has a data address, and of no other.
fn vaults(
    raw: BTreeMap<u32, String>,
    peers: &BTreeMap<WorkerId, SocketAddr>,
) -> Result<BTreeMap<WorkerId, SocketAddr>, WireError> {
    let mut vaults = BTreeMap::new();
    for (worker, text) in raw {
        vaults.insert(WorkerId(worker), address("assign.vaults", &text)?);
    }
    if let Some(worker) = peers.keys().find(|worker| !vaults.contains_key(worker)) {
        return Err(value("assign.vaults", "an incomplete list", &format!("one of {worker}")));
    }
    Ok(vaults)
}

/// Of every worker that others may have to do with, or of none.
fn names(
    raw: BTreeMap<u32, String>,
    vaults: &BTreeMap<WorkerId, SocketAddr>,
) -> Result<BTreeMap<WorkerId, Name>, WireError> {
    let mut names = BTreeMap::new();
    for (worker, text) in raw {
        let worker = WorkerId(worker);
        if !vaults.contains_key(&worker) {
            return Err(value("assign.names", worker, "a worker with a vault"));
        }
        let name =
            text.parse().map_err(|source| WireError::Name { field: "assign.names", source })?;
        names.insert(worker, name);
    }
    match vaults.keys().find(|worker| !names.contains_key(worker)) {
        Some(worker) if !names.is_empty() => {
            Err(value("assign.names", "an incomplete list", &format!("one of {worker}")))
        }
        Some(_) | None => Ok(names),
    }
}

/// One for each cell of the grid, in vaults that are known; or none.
fn sources(
    raw: Vec<raw::Source>,
    grid: Grid,
    vaults: &BTreeMap<WorkerId, SocketAddr>,
) -> Result<Vec<Source>, WireError> {
    if !raw.is_empty() {
        count("assign.sources", raw.len(), grid.n_cells())?;
    }
    let source = |raw: raw::Source| {
        let (worker, cell) = (WorkerId(raw.worker), CellId(raw.cell));
        if !vaults.contains_key(&worker) {
            return Err(value("assign.sources.worker", worker, "a worker with a vault"));
        }
        if cell.0 >= grid.n_cells() {
            return Err(value("assign.sources.cell", cell, "a cell of plan.grid"));
        }
        Ok(Source { worker, cell, blake3: hash("assign.sources.blake3", raw.blake3)? })
    };
    raw.into_iter().map(source).collect()
}

fn raw_source(source: Source) -> raw::Source {
    raw::Source { worker: source.worker.0, cell: source.cell.0, blake3: source.blake3 }
}

fn plan(raw: raw::Plan) -> Result<Plan, WireError> {
    let grid = grid(present("plan.grid", raw.grid)?)?;
    let (got, each) = (raw.stages.len(), grid.stages as usize);
    if got == 0 || !got.is_multiple_of(each) {
        let want = format!("a multiple of {each}, as in plan.grid");
        return Err(WireError::Count { field: "plan.stages", got, want });
    }
    count("plan.experts", raw.experts.len(), grid.expert_shards)?;
    count("plan.hosts", raw.hosts.len(), grid.n_cells())?;
    let stages = raw.stages.into_iter().map(stage).collect::<Result<_, _>>()?;
    let experts = (raw.experts.into_iter())
        .map(|raw| range("plan.experts", raw))
        .collect::<Result<_, _>>()?;
    let mut reasons = BTreeMap::new();
    for (worker, reason) in raw.reasons {
        reasons.insert(WorkerId(worker), readable("plan.reasons", &reason)?);
    }
    Ok(Plan {
        generation: Generation(raw.generation),
        grid,
        stages,
        experts,
        hosts: raw.hosts.into_iter().map(WorkerId).collect(),
        reasons,
    })
}

fn raw_plan(plan: Plan) -> raw::Plan {
    let raw_stage = |stage: StagePlan| raw::Stage {
        layers: Some(raw_range(stage.layers)),
        flops_per_token: stage.flops_per_token,
        reason: shortened(stage.reason),
    };
    let Grid { stages, expert_shards, replicas } = plan.grid;
    raw::Plan {
        generation: plan.generation.0,
        grid: Some(raw::Grid { stages, expert_shards, replicas }),
        stages: plan.stages.into_iter().map(raw_stage).collect(),
        experts: plan.experts.into_iter().map(raw_range).collect(),
        hosts: plan.hosts.into_iter().map(|worker| worker.0).collect(),
        reasons: (plan.reasons.into_iter())
            .map(|(worker, reason)| (worker.0, shortened(reason)))
            .collect(),
    }
}

fn grid(raw: raw::Grid) -> Result<Grid, WireError> {
    let raw::Grid { stages, expert_shards, replicas } = raw;
    let axes = [stages, expert_shards, replicas].map(u64::from);
    let fits = |cells: u64, axis: u64| cells.checked_mul(axis).filter(|cells| *cells <= CELLS_MAX);
    let n_cells = axes.iter().try_fold(1, |cells, axis| fits(cells, *axis));
    if axes.contains(&0) || n_cells.is_none() {
        let got = format!("{stages}x{expert_shards}x{replicas}");
        return Err(value("plan.grid", got, "no zero and at most 65536 cells"));
    }
    Ok(Grid { stages, expert_shards, replicas })
}

fn stage(raw: raw::Stage) -> Result<StagePlan, WireError> {
    Ok(StagePlan {
        layers: range("plan.stages.layers", present("plan.stages.layers", raw.layers)?)?,
        flops_per_token: finite("plan.stages.flops_per_token", raw.flops_per_token)?,
        reason: readable("plan.stages.reason", &raw.reason)?,
    })
}

fn range(field: &'static str, raw: raw::Range) -> Result<Range<u32>, WireError> {
    if raw.start > raw.end {
        return Err(value(field, format!("{}..{}", raw.start, raw.end), "start <= end"));
    }
    Ok(raw.start..raw.end)
}

fn raw_range(range: Range<u32>) -> raw::Range {
    raw::Range { start: range.start, end: range.end }
}

fn count(field: &'static str, got: usize, want: u32) -> Result<(), WireError> {
    if got == want as usize {
        return Ok(());
    }
    Err(WireError::Count { field, got, want: format!("{want}, as in plan.grid") })
}
