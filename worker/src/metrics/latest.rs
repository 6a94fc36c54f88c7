//! The newest steps as this worker's cells did them: slots with times, bytes by receiver, and the tokens of each expert. For
//! whoever looks at the run now, as JSON; the histograms of `metrics.rs` are for whoever looks later. Steps are noted while
//! somebody asks, few are kept, and no more of one than the bounds below.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use shoal_plan::grid::CellId;
use shoal_plan::trace::{Doing, Span, StepTrace};

/// Who has asked looks on for so long.
const LOOKS_ON: Duration = Duration::from_secs(5);

/// Kept of each cell: workers are asked one after the other, and there should be a step that all have told.
const STEPS_MAX: usize = 4;

/// Of one step of a cell: 64 microbatches in four parts each, on four chunks.
const SPANS_MAX: usize = 1024;

/// A step of one cell.
#[derive(Clone, Debug, Serialize)]
struct CellStep {
    step: u64,
    /// Seconds since 1970, so that cells of other processes can be laid beside it.
    begun: f64,
    seconds: f64,
    /// What, of which microbatch, and from when to when, in microseconds since the step began.
    spans: Vec<(char, u32, u64, u64)>,
    /// Payload by receiver, between stages and between expert shards.
    sent: BTreeMap<CellId, u64>,
}

#[derive(Debug, Default, Serialize)]
struct Kept {
    #[serde(skip)]
    asked: Option<Instant>,
    /// The newest last.
    cells: BTreeMap<CellId, VecDeque<CellStep>>,
    /// Tokens of each expert over the whole batch, by layer. Each layer is told by one worker.
    loads: BTreeMap<u32, Vec<u64>>,
}

/// Clones keep the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Latest(Arc<Mutex<Kept>>);

impl Latest {
    /// Somebody wants to know the steps to come.
    pub(super) fn ask(&self, now: Instant) {
        self.kept().asked = Some(now);
    }

    pub(super) fn is_wanted(&self, now: Instant) -> bool {
        let asked = self.kept().asked;
        asked.is_some_and(|asked| now.saturating_duration_since(asked) < LOOKS_ON)
    }

    /// Other cells may be here.
    pub(super) fn forget(&self) {
        let mut kept = self.kept();
        *kept = Kept { asked: kept.asked, ..Kept::default() };
    }

    /// A step of one cell has ended: all that was noted of it.
    pub(super) fn did(&self, pieces: &[StepTrace], sent: BTreeMap<CellId, u64>) {
        let Some(first) = pieces.first() else { return };
        let spans = || pieces.iter().flat_map(|piece| &piece.spans);
        let whole = spans().find(|span| span.doing == Doing::Step);
        let step = CellStep {
            step: first.step,
            begun: first.began_us as f64 / 1e6,
            seconds: whole.map_or(0.0, |span| span.length_ns as f64 / 1e9),
            spans: spans().filter_map(shown).take(SPANS_MAX).collect(),
            sent,
        };
        let mut kept = self.kept();
        let steps = kept.cells.entry(first.cell).or_default();
        if steps.len() == STEPS_MAX {
            steps.pop_front();
        }
        steps.push_back(step);
    }

    pub(super) fn routed(&self, layer: u32, counts: &[u64]) {
        counts.clone_into(self.kept().loads.entry(layer).or_default());
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string(&*self.kept()).expect("numbers and letters become JSON")
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot, or what follows the last. Operations of the data plane lie within these, and a send never waits.
fn shown(span: &Span) -> Option<(char, u32, u64, u64)> {
    let letter = match span.doing {
        Doing::Forward => 'F',
        Doing::Backward | Doing::BackwardInput => 'B',
        Doing::BackwardWeight => 'W',
        Doing::RecvForward | Doing::RecvBackward => 'r',
        Doing::Sums | Doing::Vote => 'S',
        Doing::Update => 'U',
        Doing::Step
        | Doing::SendForward
        | Doing::SendBackward
        | Doing::Send
        | Doing::Recv
        | Doing::AllToAll
        | Doing::AllReduce
        | Doing::ReduceScatter
        | Doing::AllGather
        | Doing::Broadcast => return None,
    };
    let (from, until) = (span.start_ns / 1000, span.start_ns.saturating_add(span.length_ns) / 1000);
    // What took no time is not seen.
    (from < until).then_some((letter, span.microbatch.unwrap_or(0), from, until))
}

#[cfg(test)]
mod tests {
    use super::super::watch::now;
    use super::*;

    fn span(doing: Doing, start_us: u64, length_us: u64) -> Span {
        let (start_ns, length_ns) = (start_us * 1000, length_us * 1000);
        Span { start_ns, length_ns, microbatch: Some(1), ..Span::new(doing) }
    }

    fn step(step: u64, spans: Vec<Span>) -> StepTrace {
        StepTrace { step, cell: CellId(2), began_us: 1_500_000, spans, left_out: 0, whole: true }
    }

    #[test]
    fn steps_are_told_as_json_until_another_plan_begins() {
        let latest = Latest::default();
        let first =
            vec![span(Doing::Forward, 0, 5), span(Doing::Send, 1, 2), span(Doing::Sums, 5, 0)];
        let second = vec![span(Doing::RecvBackward, 5, 4), span(Doing::Step, 0, 250_000)];
        let sent = BTreeMap::from([(CellId(3), 64)]);
        latest.did(&[step(7, first), step(7, second)], sent);
        latest.routed(1, &[3, 5]);
        let wanted = concat!(
            r#"{"cells":{"2":[{"step":7,"begun":1.5,"seconds":0.25,"spans":[["F",1,0,5],["r",1,5,9]],"#,
            r#""sent":{"3":64}}]},"loads":{"1":[3,5]}}"#
        );
        assert_eq!(latest.json(), wanted);
        for nth in 8..20 {
            latest.did(&[step(nth, Vec::new())], BTreeMap::new());
        }
        let newest = latest.json();
        assert!(newest.contains("\"step\":19") && !newest.contains("\"step\":15"), "{newest}");
        latest.forget();
        assert_eq!(latest.json(), r#"{"cells":{},"loads":{}}"#);
    }

    #[test]
    fn steps_are_noted_for_a_while_after_somebody_has_asked() {
        let (latest, begun) = (Latest::default(), now());
        assert!(!latest.is_wanted(begun));
        latest.ask(begun);
        assert!(latest.is_wanted(begun + Duration::from_secs(4)));
        latest.forget();
        assert!(latest.is_wanted(begun + Duration::from_secs(4)), "another plan is looked at, too");
        assert!(!latest.is_wanted(begun + LOOKS_ON));
    }
}
