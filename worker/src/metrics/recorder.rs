//! What one cell does in a step, noted while somebody wants to know.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shoal_plan::grid::CellId;
use shoal_plan::trace::{Doing, Span, StepTrace};
use shoal_proto::wire::SPANS_MAX;

use super::watch::now;

/// Of one step. A cell with 8 layers has about 100 of each microbatch.
const STEP_SPANS_MAX: usize = 64 << 10;

/// Notes a step of one cell at a time.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    /// Looked at first: a step about which nobody asks costs this alone.
    is_on: AtomicBool,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    /// When the step began, on both clocks.
    began: Option<(Instant, u64)>,
    spans: Vec<Span>,
    left_out: u64,
}

impl Recorder {
    /// A step begins.
    pub(super) fn begin(&self) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        *notes = Notes { began: Some((now(), unix_us())), ..Notes::default() };
        self.is_on.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// A stretch from `from` on, of this length, whatever `what` has for them.
    pub(super) fn note(&self, what: Span, from: Instant, length: Duration) {
        if !self.is_on() {
            return;
        }
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((began, _)) = notes.began else { return };
        if notes.spans.len() >= STEP_SPANS_MAX {
            notes.left_out += 1;
            return;
        }
        let start_ns = ns(from.saturating_duration_since(began));
        notes.spans.push(Span { start_ns, length_ns: ns(length), ..what });
    }

    /// The step has ended: what was noted, in pieces that a message each can carry. None if nobody asked.
    pub(super) fn end(&self, step: u64, cell: CellId) -> Vec<StepTrace> {
        if !self.is_on.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        let notes = &mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let Notes { began, spans, left_out } = std::mem::take(notes);
        let Some((began, began_us)) = began else { return Vec::new() };
        let whole = Span { length_ns: ns(began.elapsed()), ..Span::new(Doing::Step) };
        let spans: Vec<Span> = spans.into_iter().chain([whole]).collect();
        let n = spans.len().div_ceil(SPANS_MAX);
        let piece = |(at, spans): (usize, &[Span])| StepTrace {
            step,
            cell,
            began_us,
            spans: spans.to_vec(),
            left_out: if at + 1 == n { left_out } else { 0 },
            whole: at + 1 == n,
        };
        spans.chunks(SPANS_MAX).enumerate().map(piece).collect()
    }
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Now, for laying the traces of several machines side by side: nothing is decided by it.
#[expect(clippy::disallowed_methods, reason = "clocks of several machines are compared")]
fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_noted_unless_somebody_asks_and_pieces_are_whole() {
        let recorder = Recorder::default();
        let note = || recorder.note(Span::new(Doing::Forward), now(), Duration::from_nanos(5));
        note();
        assert_eq!(recorder.end(1, CellId(0)), []);
        recorder.begin();
        note();
        let pieces = recorder.end(2, CellId(7));
        let [piece] = &pieces[..] else { panic!("{pieces:?}") };
        assert_eq!((piece.step, piece.cell, piece.whole, piece.left_out), (2, CellId(7), true, 0));
        let doing: Vec<Doing> = piece.spans.iter().map(|span| span.doing).collect();
        assert_eq!(doing, [Doing::Forward, Doing::Step]);
        assert!(piece.spans[1].length_ns >= piece.spans[0].start_ns);
        // The next step is nobody's business again.
        note();
        assert_eq!(recorder.end(3, CellId(7)), []);
    }

    #[test]
    fn a_step_of_too_many_stretches_says_how_many_are_left_out() {
        let recorder = Recorder::default();
        recorder.begin();
        for _ in 0..STEP_SPANS_MAX + 3 {
            recorder.note(Span::new(Doing::Send), now(), Duration::ZERO);
        }
        let pieces = recorder.end(1, CellId(0));
        let spans: usize = pieces.iter().map(|piece| piece.spans.len()).sum();
        assert_eq!(spans, STEP_SPANS_MAX + 1);
        assert!(pieces.iter().all(|piece| piece.spans.len() <= SPANS_MAX));
        let (last, before) = pieces.split_last().unwrap();
        assert_eq!((last.left_out, last.whole), (3, true));
        assert!(before.iter().all(|piece| !piece.whole && piece.left_out == 0));
    }
}
