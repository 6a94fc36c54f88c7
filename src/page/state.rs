//! What the page shows, as JSON in named parts: a function of what was seen. A part that is not known is absent, and none
//! is larger than the bounds below.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use shoal_coordinator::control::{Status, WorkerStatus};
use shoal_plan::plan::WorkerId;
use shoal_plan::routing::Routing;

use crate::look::{CellStep, Look, Past, Run};
use crate::terminal::one_line;

/// Letters of a name or a sentence from elsewhere.
const NAME_MAX: usize = 64;
const SENTENCE_MAX: usize = 400;

/// More are not listed.
const WORKERS_MAX: usize = 256;
const RIGS_MAX: usize = 256;
const LINKS_MAX: usize = 1024;
const LAYERS_MAX: usize = 96;
const EXPERTS_MAX: usize = 512;
const EVENTS_MAX: usize = 60;

/// Of the timeline: rows, and pieces of all of them.
const ROWS_MAX: usize = 32;
const SPANS_MAX: usize = 3000;

/// Loads of experts are told in sixteenths of the mean, a letter each, up to almost four times it.
const SIXTEENTHS: f64 = 16.0;
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// One look, as far as it is shown.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) parts: BTreeMap<&'static str, Arc<str>>,
    pub(super) losses: Arc<Curve>,
    pub(super) heldout: Arc<Curve>,
}

/// A curve that grows, until it is another one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Curve {
    /// Of the curve of which all later ones are longer versions.
    pub(super) version: u64,
    pub(super) points: Vec<(u64, f64)>,
}

impl Curve {
    /// What it is now: longer, or another one.
    pub(super) fn followed_by(&self, points: &[(u64, f64)]) -> Self {
        let goes_on = match self.points.last() {
            None => true,
            Some(last) => points.get(self.points.len() - 1) == Some(last),
        };
        Self { version: self.version + u64::from(!goes_on), points: points.to_vec() }
    }
}

impl Snapshot {
    pub(super) fn of(past: &Past, before: &Self) -> Self {
        let look = &past.look;
        let mut parts = BTreeMap::new();
        let mut put = |name, part: Value| {
            parts.insert(name, Arc::from(part.to_string()));
        };
        put("run", run(look));
        put("events", events(past));
        if !look.rigs.is_empty() || !look.jobs.is_empty() {
            put("cluster", cluster(look));
        }
        if let Some((run, status)) =
            look.run.as_ref().and_then(|run| Some((run, run.status.as_ref()?)))
        {
            put("workers", workers(past, run, status));
            if let Some(grid) = status.grid {
                put("grid", json!([grid.stages, grid.expert_shards, grid.replicas]));
            }
            let cells = cells(run);
            put("links", links(&cells));
            put("experts", experts(run, &status.routers));
            put("timeline", timeline(&cells));
        }
        let heldout = look.run.as_ref().map(|run| run.heldout.as_slice()).unwrap_or_default();
        Self {
            parts,
            losses: Arc::new(before.losses.followed_by(&past.losses)),
            heldout: Arc::new(before.heldout.followed_by(heldout)),
        }
    }
}

fn short(text: &str, letters: usize) -> String {
    one_line(text).chars().take(letters).collect()
}

fn rounded(value: f64, places: i32) -> f64 {
    let scale = 10_f64.powi(places);
    (value * scale).round() / scale
}

fn run(look: &Look) -> Value {
    let title = short(&look.title, SENTENCE_MAX);
    let trouble = look.trouble.as_ref().map(|why| short(why, SENTENCE_MAX));
    let Some(run) = &look.run else { return json!({ "title": title, "trouble": trouble }) };
    let (name, why) = (short(&run.name, NAME_MAX), run.why.as_ref());
    let Some(status) = &run.status else {
        let why = why.map(|why| short(why, SENTENCE_MAX));
        return json!({ "title": title, "name": name, "trouble": trouble, "why": why });
    };
    json!({
        "title": title, "name": name, "trouble": trouble,
        "phase": status.phase,
        "why": status.why.as_ref().map(|why| short(why, SENTENCE_MAX)),
        "step": status.step, "steps": status.steps, "loss": status.loss,
        "seconds_per_step": status.seconds_per_step, "tokens_per_second": status.tokens_per_second,
        "seconds_left": status.seconds_left, "generation": status.generation,
        "checkpoint_step": status.checkpoint_step, "snapshot_step": status.snapshot_step,
        "recoveries": status.recoveries, "coordinator_restarts": status.coordinator_restarts,
        "workers_min": status.workers_min,
    })
}

fn name_of(run: &Run, worker: WorkerId) -> String {
    let name = run.seats.get(&worker).map_or_else(|| worker.to_string(), Clone::clone);
    short(&name, NAME_MAX)
}

fn workers(past: &Past, run: &Run, status: &Status) -> Value {
    let row = |worker: &WorkerStatus| {
        let rate = past.rates.get(&worker.worker);
        json!({
            "name": name_of(run, worker.worker),
            "state": worker.state,
            "cells": worker.cells,
            "pace": worker.pace.map(|pace| rounded(pace, 3)),
            "heard": worker.heard_seconds_ago.map(|ago| rounded(ago, 1)),
            "slow": worker.straggler,
            "yields_to": worker.yields_to.as_ref().map(|why| short(why, NAME_MAX)),
            "quarantine": worker.quarantine_seconds,
            "losses": worker.losses,
            "sent": rate.map(|rate| rate.sent.round()),
            "received": rate.map(|rate| rate.received.round()),
        })
    };
    status.workers.iter().take(WORKERS_MAX).map(row).collect()
}

/// The newest step that all cells have told which have told any, or the newest of each where there is none.
fn cells(run: &Run) -> BTreeMap<u32, &CellStep> {
    let mut told = BTreeMap::<u32, Vec<&CellStep>>::new();
    for (cell, steps) in run.newest.values().flat_map(|newest| &newest.cells) {
        told.entry(*cell).or_default().extend(steps);
    }
    let all = |step: &u64| told.values().all(|steps| steps.iter().any(|one| one.step == *step));
    let common = told.values().flatten().map(|one| one.step).filter(all).max();
    let mut cells = BTreeMap::new();
    for (cell, steps) in &told {
        let of_common = steps.iter().filter(|one| common.is_none_or(|step| one.step == step));
        // Where two workers tell of one cell, the plan has moved it: the later one has it.
        let newest = of_common.max_by(|a, b| a.begun.total_cmp(&b.begun));
        cells.extend(newest.map(|newest| (*cell, *newest)));
    }
    cells
}

/// Bytes of the newest step from cell to cell.
fn links(cells: &BTreeMap<u32, &CellStep>) -> Value {
    let link = |from: u32, step: &CellStep| {
        let sent = step.sent.iter().map(move |(to, bytes)| json!([from, to, bytes]));
        sent.collect::<Vec<_>>()
    };
    let links = cells.iter().flat_map(|(from, step)| link(*from, step)).take(LINKS_MAX);
    links.collect()
}

fn experts(run: &Run, routers: &[Routing]) -> Value {
    let layer = |layer: &Routing| {
        let counts = run.newest.values().find_map(|newest| newest.loads.get(&layer.layer));
        json!({
            "layer": layer.layer, "most": rounded(layer.load_max, 2),
            "even": rounded(layer.load_entropy, 3), "loads": counts.map(|counts| loads(counts)),
        })
    };
    routers.iter().take(LAYERS_MAX).map(layer).collect()
}

fn loads(counts: &[u64]) -> String {
    let mean = counts.iter().sum::<u64>() as f64 / counts.len().max(1) as f64;
    let letter = |count: &u64| {
        let sixteenths = if mean > 0.0 { *count as f64 / mean * SIXTEENTHS } else { SIXTEENTHS };
        let at = (sixteenths.round() as usize).min(LETTERS.len() - 1);
        // Whoever took anything is told from whoever took nothing.
        char::from(LETTERS[if *count > 0 { at.max(1) } else { at }])
    };
    counts.iter().take(EXPERTS_MAX).map(letter).collect()
}

/// The newest step that all of its cells have told, beside each other: what began long before is of an older one.
fn timeline(cells: &BTreeMap<u32, &CellStep>) -> Value {
    let newest = cells.values().map(|step| step.begun).fold(0.0, f64::max);
    let same = |step: &CellStep| newest - step.begun <= step.seconds.max(0.001);
    let cells: Vec<_> = cells.iter().filter(|(_, step)| same(step)).collect();
    let begun = cells.iter().map(|(_, step)| step.begun).fold(newest, f64::min);
    let (mut rows, mut left) = (Vec::new(), SPANS_MAX);
    for (cell, step) in cells.iter().take(ROWS_MAX) {
        let n = step.spans.len().min(left);
        left -= n;
        let late = ((step.begun - begun) * 1e6).round() as u64;
        let span = |(doing, microbatch, from, until): &(char, u32, u64, u64)| {
            json!([
                doing.to_string(),
                microbatch,
                late.saturating_add(*from),
                until.saturating_sub(*from)
            ])
        };
        let spans: Value = step.spans[..n].iter().map(span).collect();
        let end = late.saturating_add((step.seconds * 1e6) as u64);
        rows.push(json!({ "cell": cell, "end": end, "spans": spans }));
    }
    let step = cells.iter().map(|(_, step)| step.step).max();
    json!({ "step": step, "cells": cells.len(), "rows": rows })
}

fn cluster(look: &Look) -> Value {
    let rigs = look.rigs.iter().take(RIGS_MAX).map(|rig| {
        json!({
            "name": short(&rig.name, NAME_MAX), "is": rig.is.to_string(), "cordoned": rig.cordoned,
            "job": rig.job.as_ref().map(|job| short(job, NAME_MAX)), "worker": rig.worker,
            "heard": rig.heard_seconds_ago.map(|ago| rounded(ago, 0)),
        })
    });
    let jobs = look.jobs.iter().take(RIGS_MAX).map(|job| {
        let why = job.why.as_ref().map(|why| short(why, SENTENCE_MAX));
        json!({ "name": short(&job.name, NAME_MAX), "phase": job.phase.to_string(), "why": why })
    });
    json!({ "rigs": rigs.collect::<Value>(), "jobs": jobs.collect::<Value>() })
}

/// The newest, in order.
fn events(past: &Past) -> Value {
    let of_run = past.look.run.as_ref().map(|run| run.events.as_slice()).unwrap_or_default();
    let newest = |lines: Vec<&String>| -> Value {
        let from = lines.len().saturating_sub(EVENTS_MAX);
        lines[from..].iter().map(|line| json!(short(line, SENTENCE_MAX))).collect()
    };
    match of_run {
        [] => newest(past.seen.iter().collect()),
        events => newest(events.iter().collect()),
    }
}

#[cfg(test)]
mod tests;
