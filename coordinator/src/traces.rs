//! The last trace that somebody asked for, until they have it. In memory only, and bounded: a trace that is
//! lost is asked for again.

use std::time::Duration;

use shoal_plan::plan::WorkerId;
use shoal_plan::trace::StepTrace;

use crate::control::{Answer, Traced};

/// Stretches that are kept, of 64 bytes each. Further ones are counted.
const SPANS_KEPT: usize = 500_000;

/// Stretches in one answer, about: each has some 200 bytes of JSON at most, and an answer 4 MiB.
const SPANS_AT_ONCE: usize = 10_000;

/// A trace about which nobody asks for so long is forgotten.
const PATIENCE: Duration = Duration::from_mins(2);

#[derive(Debug, Default)]
pub(crate) struct Traces {
    last: Option<Trace>,
}

#[derive(Debug)]
struct Trace {
    first: u64,
    steps: u64,
    /// By cell.
    hosts: Vec<WorkerId>,
    pieces: Vec<StepTrace>,
    spans: usize,
    /// Since the coordinator's start.
    asked: Duration,
}

impl Traces {
    /// These steps are traced, and no others.
    pub(crate) fn begin(
        &mut self,
        now: Duration,
        (first, steps): (u64, u64),
        hosts: Vec<WorkerId>,
    ) {
        let (pieces, spans, asked) = (Vec::new(), 0, now);
        self.last = Some(Trace { first, steps, hosts, pieces, spans, asked });
    }

    /// A worker has said what a cell did. What nobody asked for is dropped.
    pub(crate) fn add(&mut self, worker: WorkerId, mut piece: StepTrace) {
        let Some(trace) = &mut self.last else { return };
        let wanted = (trace.first..trace.first + trace.steps).contains(&piece.step);
        if !wanted || trace.hosts.get(piece.cell.0 as usize) != Some(&worker) {
            return;
        }
        let room = SPANS_KEPT - trace.spans;
        piece.left_out += piece.spans.len().saturating_sub(room) as u64;
        piece.spans.truncate(room);
        trace.spans += piece.spans.len();
        trace.pieces.push(piece);
    }

    /// The pieces from `after` on, as far as they go into one answer.
    pub(crate) fn answer(&mut self, now: Duration, after: u64) -> Answer {
        let Some(trace) = &mut self.last else {
            return Answer::Refused(
                "no steps were traced, or nobody asked for them in time: give the order again"
                    .to_owned(),
            );
        };
        trace.asked = now;
        let (mut pieces, mut spans) = (Vec::new(), 0);
        for piece in trace.pieces.iter().skip(after as usize) {
            spans += piece.spans.len();
            if !pieces.is_empty() && spans > SPANS_AT_ONCE {
                break;
            }
            pieces.push(piece.clone());
        }
        let (first, steps, hosts) = (trace.first, trace.steps, trace.hosts.clone());
        Answer::Traced(Box::new(Traced { first, steps, hosts, pieces }))
    }

    pub(crate) fn forget_if_nobody_asks(&mut self, now: Duration) {
        if self.last.as_ref().is_some_and(|trace| now.saturating_sub(trace.asked) > PATIENCE) {
            self.last = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_plan::grid::CellId;
    use shoal_plan::trace::{Doing, Span};

    use super::*;

    fn piece(step: u64, cell: u32, n_spans: usize) -> StepTrace {
        let (start_ns, length_ns, chunk, microbatch) = (5, 7, Some(0), Some(1));
        let span = Span { start_ns, length_ns, chunk, microbatch, ..Span::new(Doing::Forward) };
        let (began_us, cell) = (9, CellId(cell));
        StepTrace { step, cell, began_us, spans: vec![span; n_spans], left_out: 0, whole: true }
    }

    fn lengths(traces: &mut Traces, now: Duration, after: u64) -> Vec<(u64, u32, usize, u64)> {
        let Answer::Traced(traced) = traces.answer(now, after) else { panic!("a trace") };
        let one = |piece: &StepTrace| (piece.step, piece.cell.0, piece.spans.len(), piece.left_out);
        traced.pieces.iter().map(one).collect()
    }

    #[test]
    fn what_was_asked_for_is_kept_in_bounds_and_until_nobody_asks() {
        let mut traces = Traces::default();
        let now = Duration::from_secs(9);
        assert!(matches!(traces.answer(now, 0), Answer::Refused(_)));
        traces.add(WorkerId(0), piece(5, 0, 1));
        traces.begin(now, (5, 2), vec![WorkerId(0), WorkerId(3)]);
        assert_eq!(lengths(&mut traces, now, 0), []);
        // Of another step, of a cell of somebody else's, and of none.
        for (worker, step, cell) in [(0, 4, 0), (0, 7, 0), (0, 5, 1), (0, 5, 2)] {
            traces.add(WorkerId(worker), piece(step, cell, 1));
        }
        traces.add(WorkerId(0), piece(5, 0, 6_000));
        traces.add(WorkerId(3), piece(5, 1, 6_000));
        traces.add(WorkerId(3), piece(6, 1, SPANS_KEPT));
        assert_eq!(lengths(&mut traces, now, 0), [(5, 0, 6_000, 0)]);
        assert_eq!(lengths(&mut traces, now, 1), [(5, 1, 6_000, 0)]);
        assert_eq!(lengths(&mut traces, now, 2), [(6, 1, SPANS_KEPT - 12_000, 12_000)]);
        assert_eq!(lengths(&mut traces, now, 3), []);
        traces.forget_if_nobody_asks(now + PATIENCE);
        assert_eq!(lengths(&mut traces, now, 3), []);
        traces.forget_if_nobody_asks(now + PATIENCE + Duration::from_secs(1));
        assert!(matches!(traces.answer(now, 0), Answer::Refused(_)));
    }

    #[test]
    fn an_answer_fits_into_a_message() {
        let mut largest = piece(u64::MAX, u32::MAX, SPANS_AT_ONCE);
        for span in &mut largest.spans {
            let (start_ns, length_ns) = (u64::MAX, u64::MAX);
            let (sent_bytes, received_bytes) = (u64::MAX, u64::MAX);
            *span = Span { start_ns, length_ns, sent_bytes, received_bytes, ..*span };
            span.peer = Some(CellId(u32::MAX));
            span.doing = Doing::BackwardWeight;
        }
        let bytes = serde_json::to_string(&largest).unwrap().len();
        assert!(bytes < shoal_proto::wire::ANSWER_BYTES_MAX - (64 << 10), "{bytes}");
    }
}
