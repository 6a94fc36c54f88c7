//! Where the time of the steps went, by cell.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use shoal_plan::grid::CellId;
use shoal_plan::trace::Doing;

use super::{CellStep, Trace};

/// Nanoseconds of some steps of one cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Where {
    pub(super) steps: u64,
    pub(super) total: u64,
    /// It waited for the stage before or after.
    pub(super) bubble: u64,
    /// In collectives, and sending: nothing was computed meanwhile.
    pub(super) communication: u64,
    pub(super) update: u64,
    pub(super) sent_bytes: u64,
}

impl Where {
    fn add(&mut self, step: &CellStep) {
        self.steps += 1;
        for span in &step.spans {
            if span.doing == Doing::Step {
                self.total += span.length_ns;
            } else if span.doing == Doing::Recv {
                self.bubble += span.length_ns;
            } else if span.doing == Doing::Update {
                self.update += span.length_ns;
            } else if span.doing.is_operation() {
                self.communication += span.length_ns;
            }
            self.sent_bytes += span.sent_bytes;
        }
    }

    pub(super) fn compute(&self) -> u64 {
        self.total.saturating_sub(self.bubble + self.communication + self.update)
    }
}

/// Of each cell, over the steps of which all is there.
pub(super) fn by_cell(trace: &Trace) -> BTreeMap<CellId, Where> {
    let mut cells: BTreeMap<CellId, Where> = BTreeMap::new();
    for ((_, cell), step) in trace.steps.iter().filter(|(_, step)| step.whole) {
        cells.entry(*cell).or_default().add(step);
    }
    cells
}

pub(super) fn of(trace: &Trace) -> String {
    let mut text = String::from(
        "cell      worker      ms a step  compute  communication  bubble  update  sent a step\n",
    );
    for (cell, spent) in by_cell(trace) {
        let share = |ns: u64| format!("{:.1} %", 100.0 * ns as f64 / spent.total.max(1) as f64);
        let steps = spent.steps.max(1);
        let kib = spent.sent_bytes as f64 / steps as f64 / 1024.0;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<8}  {:<10}  {:>9.2}  {:>7}  {:>13}  {:>6}  {:>6}  {:>7.1} KiB",
            cell.to_string(),
            trace.host(cell).to_string(),
            spent.total as f64 / steps as f64 / 1e6,
            share(spent.compute()),
            share(spent.communication),
            share(spent.bubble),
            share(spent.update),
            kib,
        );
    }
    text.truncate(text.trim_end().len());
    text
}
