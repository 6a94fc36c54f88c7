//! The verb `trace`: what each cell of a run under way does in some steps, for Perfetto, and where the time goes, as a
//! table.
//!
//! The order goes to the coordinator, which tells all workers the same steps; what their cells note comes back piece
//! by piece. Training waits for none of it.

mod chrome;
mod clocks;
mod table;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use shoal_coordinator::control::{Answer, Ask, Order, RunPhase, Status, Traced};
use shoal_plan::grid::CellId;
use shoal_plan::plan::WorkerId;
use shoal_plan::trace::{Span, StepTrace};

use crate::cli;
use crate::control::{ANOTHER, Run, Unanswered};
use crate::exit::Stopped;
use crate::steering;
use crate::terminal::{data, harmless, note};

/// Between two questions.
const LOOK: Duration = Duration::from_millis(200);

/// How long cells are waited for after the last step that was to be traced.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was gathered of all cells and steps.
#[derive(Debug, Default)]
struct Trace {
    steps: BTreeMap<(u64, CellId), CellStep>,
    /// By cell.
    hosts: Vec<WorkerId>,
    /// The steps that were asked for.
    first: u64,
    last: u64,
}

/// What one cell did in one step.
#[derive(Debug, Default)]
struct CellStep {
    /// Microseconds since 1970, by its worker's clock.
    began_us: u64,
    spans: Vec<Span>,
    left_out: u64,
    whole: bool,
}

impl Trace {
    fn add(&mut self, piece: StepTrace) {
        let step = self.steps.entry((piece.step, piece.cell)).or_default();
        step.began_us = piece.began_us;
        step.spans.extend(piece.spans);
        step.left_out += piece.left_out;
        step.whole |= piece.whole;
    }

    /// The cells of which a step is missing, or a piece of one.
    fn missing(&self) -> Vec<(u64, CellId)> {
        let cells = (0..self.hosts.len() as u32).map(CellId);
        let all = cells.flat_map(|cell| (self.first..=self.last).map(move |step| (step, cell)));
        all.filter(|key| !self.steps.get(key).is_some_and(|step| step.whole)).collect()
    }

    fn host(&self, cell: CellId) -> WorkerId {
        // A piece of a cell that the plan has not is not taken.
        self.hosts.get(cell.0 as usize).copied().unwrap_or(WorkerId(u32::MAX))
    }
}

pub(crate) fn run(args: &cli::Trace) -> Result<(), Stopped> {
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from("trace.json"));
    let run = Run::under_way(&args.run, &args.home)?;
    // Said before anybody works for it.
    let file = create(&output)?;
    steering::give(&run, &args.run, Order::Trace { steps: args.steps })?;
    let trace = gather(&run, &args.run)?;
    let missing = trace.missing();
    if trace.steps.is_empty() {
        return Err(Stopped::Failed(anyhow::anyhow!(
            "no cell has said what it did: the plan may have changed meanwhile (`shoal events`); trace again"
        )));
    }
    for (step, cell) in &missing {
        note(&format!("step {step} of {cell} on {} is missing", trace.host(*cell)));
    }
    let offsets = if run.is_here() { BTreeMap::new() } else { clocks::offsets(&trace) };
    for (worker, offset) in offsets.iter().filter(|(_, offset)| offset.us != 0) {
        note(&format!("{worker}: its clock is taken to be {offset}"));
    }
    let events = write(file, &trace, &offsets).with_context(|| output.display().to_string());
    let events = events.map_err(Stopped::Failed)?;
    data(&table::of(&trace));
    note(&format!(
        "{events} events in {}: open it at ui.perfetto.dev or in chrome://tracing",
        output.display()
    ));
    Ok(())
}

fn create(path: &Path) -> Result<File, Stopped> {
    File::create(path).map_err(|error| {
        Stopped::Input(format!("{}: {error}; -o names another file", path.display()))
    })
}

fn write(
    file: File,
    trace: &Trace,
    offsets: &BTreeMap<WorkerId, clocks::Offset>,
) -> anyhow::Result<u64> {
    let mut out = BufWriter::new(file);
    let events = chrome::write(&mut out, trace, offsets)?;
    out.flush()?;
    Ok(events)
}

/// Asks until all is there, or nothing more is to be expected.
fn gather(run: &Run, directory: &Path) -> Result<Trace, Stopped> {
    let (mut trace, mut after) = (Trace::default(), 0);
    let mut waited = Duration::ZERO;
    loop {
        let traced = match run.ask(&Ask::Traced { after }) {
            Ok(Answer::Traced(traced)) => traced,
            Ok(Answer::Refused(why)) => return Err(Stopped::Refused(harmless(why.as_bytes()))),
            Ok(Answer::Status(_) | Answer::Accepted(_)) => {
                return Err(Stopped::Refused(ANOTHER.to_owned()));
            }
            // The run may end with the last step that is traced.
            Err(Unanswered::Nobody) if after > 0 => return Ok(trace),
            Err(unanswered) => return Err(unanswered.stops(directory)),
        };
        let Traced { first, steps, hosts, pieces } = *traced;
        (trace.first, trace.last, trace.hosts) = (first, first + steps - 1, hosts);
        let n = pieces.len() as u64;
        after += n;
        for piece in pieces {
            trace.add(piece);
        }
        if trace.missing().is_empty() {
            return Ok(trace);
        }
        if n > 0 {
            waited = Duration::ZERO;
            continue;
        }
        if waited >= PATIENCE {
            return Ok(trace);
        }
        match run.status() {
            Ok(status) => {
                waited += if still_to_come(&status, &trace) { Duration::ZERO } else { LOOK }
            }
            Err(Unanswered::Nobody) => return Ok(trace),
            Err(Unanswered::Silent(_)) => waited += LOOK,
            Err(unanswered @ Unanswered::Refused(_)) => return Err(unanswered.stops(directory)),
        }
        run.wait(LOOK);
    }
}

/// Whether the run trains towards the steps that are to be traced.
fn still_to_come(status: &Status, trace: &Trace) -> bool {
    status.phase == RunPhase::Training && status.step < trace.last
}

#[cfg(test)]
mod tests;
