//! The parts: each a title, and lines that may be more than there is room for.

use ratatui::layout::Rect;
use ratatui::style::Color;
use ratatui::text::Line;
use shoal_cluster::words::{RigIs, RigStatus};
use shoal_coordinator::control::{RunPhase, WorkerIs, WorkerStatus};
use shoal_plan::grid::{Cell, Grid};
use shoal_plan::plan::WorkerId;

use super::{bold, clean};
use crate::curve::{self, Canvas, Ink};
use crate::look::Run;
use crate::progress::{duration, short};
use crate::show::table;
use crate::top::view::View;

type Filled = (String, Vec<Line<'static>>);

/// Rigs' names in the grid's cells.
const NAME_MAX: usize = 10;

/// Columns of the table of layers beside its bar.
const BESIDE_BAR: u16 = 40;

fn one(text: impl Into<String>) -> Vec<Line<'static>> {
    vec![Line::raw(text.into())]
}

/// A table with its head, each line in the colour that `of` gives its row.
fn coloured(
    view: &View,
    header: &[&str],
    rows: Vec<(Vec<String>, Option<Color>)>,
) -> Vec<Line<'static>> {
    let head = header.iter().map(ToString::to_string).collect();
    let (rows, colours): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let text = table(&std::iter::once(head).chain(rows).collect::<Vec<_>>());
    // A table is indented for a page; in a frame one space will do.
    let lines = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).to_owned());
    let styles =
        std::iter::once(bold()).chain(colours.into_iter().map(|colour| {
            colour.map_or_else(ratatui::style::Style::new, |colour| view.style(colour))
        }));
    lines.zip(styles).map(|(line, style)| Line::styled(line, style)).collect()
}

pub(super) fn run(view: &View) -> Filled {
    let Some(run) = &view.past.look.run else {
        let jobs = view.past.look.jobs.iter().map(|job| {
            let why =
                job.why.as_deref().map_or_else(String::new, |why| format!(": {}", clean(why)));
            Line::raw(format!(" {} is {}{why}", clean(&job.name), job.phase))
        });
        let jobs: Vec<_> = jobs.collect();
        let none = || one(" no job was applied: `shoal apply job.yaml`");
        return ("jobs".to_owned(), if jobs.is_empty() { none() } else { jobs });
    };
    let name = clean(&run.name);
    let Some(status) = &run.status else {
        let why = run.why.as_deref().unwrap_or("it does not answer");
        return (format!("{name}: not under way"), one(format!(" {}", clean(why))));
    };
    let left = status.seconds_left.filter(|_| status.phase == RunPhase::Training);
    let left = left.map_or_else(String::new, |left| format!(", {} left", duration(left)));
    let mut lines = Vec::new();
    let mut row = |name: &str, what: String| lines.push(Line::raw(format!(" {name:<8}{what}")));
    row("step", format!("{} of {}{left}", status.step, status.steps));
    let loss = status.loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
    let speed = status.tokens_per_second.map_or_else(|| "-".to_owned(), short);
    row("loss", format!("{loss}   {speed} tokens/s"));
    let saved = |step: u64| if step == 0 { "none".to_owned() } else { step.to_string() };
    row(
        "saved",
        format!("{}, in memory {}", saved(status.checkpoint_step), saved(status.snapshot_step)),
    );
    let recoveries = match status.recoveries {
        1 => "1 recovery".to_owned(),
        n => format!("{n} recoveries"),
    };
    row("plan", format!("{}, {recoveries}", status.generation));
    if let Some(why) = &status.why {
        row("waits", clean(why));
    }
    (format!("{name}: {}", status.phase), lines)
}

pub(super) fn loss(view: &View, area: Rect) -> Filled {
    let canvas = Canvas {
        width: usize::from(area.width.saturating_sub(2)),
        height: usize::from(area.height.saturating_sub(2)),
        ink: if view.unicode { Ink::Braille } else { Ink::Ascii },
    };
    let title = || match view.past.losses.last() {
        Some((step, loss)) => format!("loss {loss:.3} at step {step}"),
        None => "loss".to_owned(),
    };
    // The curve wants one value a step: of steps that are not known, the one before stands.
    let values = steady(&view.past.losses);
    let first = view.past.losses.first().map_or(0, |(step, _)| *step);
    let drawn = curve::draw(&values, first, &[], canvas);
    let lines = drawn.map(|text| text.lines().map(|line| Line::raw(line.to_owned())).collect());
    (title(), lines.unwrap_or_else(|| one(" two steps make a curve")))
}

/// A value for each step from the first known to the last, thinned where that would be too many.
fn steady(losses: &[(u64, f64)]) -> Vec<f64> {
    const MOST: u64 = 1 << 16;
    let (Some((first, _)), Some((last, _))) = (losses.first(), losses.last()) else {
        return Vec::new();
    };
    if last - first > MOST {
        return losses.iter().map(|(_, loss)| *loss).collect();
    }
    let mut values = Vec::new();
    let mut at = losses.iter().peekable();
    let mut value = losses[0].1;
    for step in *first..=*last {
        while let Some((_, loss)) = at.next_if(|(known, _)| *known <= step) {
            value = *loss;
        }
        values.push(value);
    }
    values
}

pub(super) fn rigs(view: &View) -> Filled {
    let look = &view.past.look;
    if look.rigs.is_empty() {
        return workers(view);
    }
    let workers = look.run.iter().flat_map(|run| run.status.iter()).flat_map(|s| s.workers.iter());
    let workers: Vec<&WorkerStatus> = workers.collect();
    let shown = look.run.as_ref().map(|run| run.name.as_str());
    let row = |rig: &RigStatus| {
        let is_here = rig.job.as_deref() == shown;
        let at = workers.iter().find(|worker| is_here && Some(worker.worker) == rig.worker);
        let pace = at.and_then(|worker| worker.pace).map(|pace| format!("{pace:.2}"));
        let does = match (&rig.job, rig.worker) {
            (Some(job), Some(worker)) => format!("{}/{}", clean(job), worker.0),
            _ => "-".to_owned(),
        };
        let cordoned = if rig.cordoned { ", cordoned" } else { "" };
        let heard = rig.heard_seconds_ago.map(|seconds| format!("{seconds:.0} s"));
        let dash = || "-".to_owned();
        let cells = vec![
            clean(&rig.name),
            format!("{}{cordoned}", rig.is),
            does,
            pace.unwrap_or_else(dash),
            heard.unwrap_or_else(dash),
        ];
        let colour = match rig.is {
            RigIs::Away => Some(Color::Red),
            RigIs::Busy if at.is_some_and(|worker| worker.straggler) => Some(Color::Yellow),
            RigIs::Busy => Some(Color::Green),
            RigIs::Free => None,
        };
        (cells, colour)
    };
    let rows = look.rigs.iter().map(row).collect();
    let lines = coloured(view, &["rig", "is", "does", "pace", "ago"], rows);
    (format!("rigs: {}", look.rigs.len()), lines)
}

fn workers(view: &View) -> Filled {
    let run = view.past.look.run.as_ref();
    let Some(status) = run.and_then(|run| run.status.as_ref()) else {
        return ("workers".to_owned(), one(" none is known"));
    };
    let row = |worker: &WorkerStatus| {
        let cells: Vec<String> = worker.cells.iter().map(u32::to_string).collect();
        let dash = || "-".to_owned();
        let heard = worker.heard_seconds_ago.map(|ago| format!("{ago:.0} s"));
        let row = vec![
            worker.worker.to_string(),
            worker.state.to_string(),
            if cells.is_empty() { dash() } else { cells.join(",") },
            worker.pace.map_or_else(dash, |pace| format!("{pace:.2}")),
            heard.unwrap_or_else(dash),
        ];
        let colour = match worker.state {
            WorkerIs::Lost | WorkerIs::CutOff => Some(Color::Red),
            WorkerIs::Yielding | WorkerIs::Draining => Some(Color::Yellow),
            WorkerIs::Training if worker.straggler => Some(Color::Yellow),
            WorkerIs::Training => Some(Color::Green),
            WorkerIs::Connecting
            | WorkerIs::Waiting
            | WorkerIs::Preparing
            | WorkerIs::Ready
            | WorkerIs::Spare
            | WorkerIs::Finished
            | WorkerIs::Left => None,
        };
        (row, colour)
    };
    let rows = status.workers.iter().map(row).collect();
    let lines = coloured(view, &["worker", "is", "cells", "pace", "ago"], rows);
    (format!("workers: {}", status.workers.len()), lines)
}

/// A row for each stage (and replica), a column for each expert shard: who hosts it.
pub(super) fn stages(view: &View) -> Filled {
    let run = view.past.look.run.as_ref();
    let status = run.and_then(|run| run.status.as_ref());
    let (Some(run), Some(status)) = (run, status) else {
        return ("stages x shards".to_owned(), one(" nothing trains"));
    };
    let Some(grid) = status.grid.filter(|grid| grid.n_cells() > 0) else {
        return ("stages x shards".to_owned(), one(" not known: another version of shoal trains"));
    };
    let shards = (0..grid.expert_shards).map(|shard| format!("shard {shard}"));
    let header: Vec<String> = std::iter::once("stage".to_owned()).chain(shards).collect();
    let mut rows = Vec::new();
    for stage in 0..grid.stages {
        for replica in 0..grid.replicas {
            let name = match grid.replicas {
                1 => stage.to_string(),
                _ => format!("{stage}, replica {replica}"),
            };
            let cell = |expert_shard| hosted(run, grid, Cell { stage, replica, expert_shard });
            rows.push((
                std::iter::once(name).chain((0..grid.expert_shards).map(cell)).collect(),
                None,
            ));
        }
    }
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    (format!("stages x shards: {grid}"), coloured(view, &header, rows))
}

/// Who hosts a cell: the rig, or the worker where it is on this machine.
fn hosted(run: &Run, grid: Grid, cell: Cell) -> String {
    let id = grid.id(cell).0;
    let workers = run.status.iter().flat_map(|status| status.workers.iter());
    let mut hosts = workers.filter(|worker| worker.cells.contains(&id));
    let Some(host) = hosts.next() else { return "-".to_owned() };
    named(run, host.worker).chars().take(NAME_MAX).collect()
}

fn named(run: &Run, worker: WorkerId) -> String {
    run.seats.get(&worker).map_or_else(|| worker.to_string(), |rig| clean(rig))
}

/// For each layer the busiest expert, and how even all are.
pub(super) fn experts(view: &View, area: Rect) -> Filled {
    let status = view.past.look.run.as_ref().and_then(|run| run.status.as_ref());
    let routers = status.map(|status| status.routers.as_slice()).unwrap_or_default();
    if routers.is_empty() {
        let none = " no layer of experts has been heard of";
        return ("experts' load".to_owned(), one(none));
    }
    let width = usize::from(area.width.saturating_sub(BESIDE_BAR)).clamp(4, 40);
    let ink = if view.unicode { '█' } else { '#' };
    let most = routers.iter().map(|layer| layer.load_max).fold(1.0, f64::max);
    let rows = routers.iter().map(|layer| {
        let share = (layer.load_max / most).clamp(0.0, 1.0);
        let length = ((share * width as f64).round() as usize).max(1);
        let bar: String = std::iter::repeat_n(ink, length).collect();
        let colour = match layer.load_max {
            load if load >= 4.0 => Some(Color::Red),
            load if load >= 2.0 => Some(Color::Yellow),
            _ => Some(Color::Green),
        };
        let most = format!("{:.2} x", layer.load_max);
        (vec![layer.layer.to_string(), bar, most, format!("{:.3}", layer.load_entropy)], colour)
    });
    let lines = coloured(view, &["layer", "busiest", "", "evenness"], rows.collect());
    ("experts' load, the mean is 1".to_owned(), lines)
}

pub(super) fn links(view: &View) -> Filled {
    let title = "links, bytes a second".to_owned();
    let Some(run) = view.past.look.run.as_ref().filter(|run| !run.traffic.is_empty()) else {
        return (title, one(" no worker's metrics can be read from here"));
    };
    let row = |worker: &WorkerId| {
        let rate = view.past.rates.get(worker);
        let show = |rate: Option<f64>| {
            rate.map_or_else(|| "-".to_owned(), |rate| format!("{}B", short(rate)))
        };
        let all = run.traffic.get(worker).map(|all| all.sent + all.received);
        vec![
            named(run, *worker),
            show(rate.map(|rate| rate.sent)),
            show(rate.map(|rate| rate.received)),
            show(all),
        ]
    };
    let rows = run.traffic.keys().map(|worker| (row(worker), None)).collect();
    (title, coloured(view, &["worker", "sent", "received", "in all"], rows))
}

pub(super) fn events(view: &View) -> Filled {
    let of_run = view.past.look.run.as_ref().map(|run| run.events.as_slice()).unwrap_or_default();
    let lines: Vec<Line<'static>> = match of_run {
        [] => view.past.seen.iter().map(|text| Line::raw(format!(" {}", clean(text)))).collect(),
        events => events.iter().map(|text| Line::raw(format!(" {}", clean(text)))).collect(),
    };
    let none = || one(" nothing has happened since");
    ("events".to_owned(), if lines.is_empty() { none() } else { lines })
}
