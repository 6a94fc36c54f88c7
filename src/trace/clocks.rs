//! Clocks of several machines, laid side by side.
//!
//! At the end of each step all cells gather each other's vote: none leaves the gathering before the last one's words
//! have reached it, so all leave it within one message's way of each other. What is further apart is the clocks'.

use std::collections::BTreeMap;
use std::fmt;

use shoal_plan::grid::CellId;
use shoal_plan::plan::WorkerId;
use shoal_plan::trace::Doing;

use super::{CellStep, Trace};

/// The ends may be so far apart when machines are busy, or far.
const NOISE_US: i64 = 20_000;

/// How far a worker's clock is before that of cell 0's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offset {
    pub(super) us: i64,
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.us.unsigned_abs() as f64 / 1e3;
        write!(f, "{ms:.1} ms {}", if self.us < 0 { "slow" } else { "fast" })
    }
}

/// Of each worker. Nothing is moved that may as well be a message's way: less than 20 ms, or less than twice what the
/// steps differ in.
pub(super) fn offsets(trace: &Trace) -> BTreeMap<WorkerId, Offset> {
    let mut apart: BTreeMap<WorkerId, Vec<i64>> = BTreeMap::new();
    for ((step, cell), done) in &trace.steps {
        let apart = apart.entry(trace.host(*cell)).or_default();
        let first = trace.steps.get(&(*step, CellId(0))).and_then(end_of_vote);
        if let Some((first, this)) = first.zip(end_of_vote(done)) {
            apart.push(this - first);
        }
    }
    apart.into_iter().map(|(worker, apart)| (worker, offset(apart))).collect()
}

fn offset(mut apart: Vec<i64>) -> Offset {
    apart.sort_unstable();
    let (Some(first), Some(last)) = (apart.first(), apart.last()) else {
        return Offset::default();
    };
    let (middle, spread) = (apart[apart.len() / 2], last - first);
    let is_certain = middle.abs() > NOISE_US && middle.abs() > 2 * spread;
    Offset { us: if is_certain { middle } else { 0 } }
}

/// In microseconds since 1970.
fn end_of_vote(step: &CellStep) -> Option<i64> {
    let vote = step.spans.iter().find(|span| span.doing == Doing::Vote)?;
    Some((step.began_us + (vote.start_ns + vote.length_ns) / 1_000) as i64)
}
