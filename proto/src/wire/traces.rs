//! What cells did in a step, through the door.

use shoal_plan::grid::CellId;
use shoal_plan::plan::Generation;
use shoal_plan::trace::{Doing, Span, StepTrace};

use super::{WireError, raw, value};
use crate::message::{FromWorker, ToWorker};

/// The most stretches in one message: each has 67 bytes at most, and a worker may send 256 KiB.
pub const SPANS_MAX: usize = 3_500;

/// The most steps that are traced at once.
const STEPS_MAX: u64 = 1_000;

pub(super) fn traced(raw: raw::Traced) -> Result<FromWorker, WireError> {
    if raw.spans.len() > SPANS_MAX {
        let (field, got, want) = ("traced.spans", raw.spans.len(), format!("at most {SPANS_MAX}"));
        return Err(WireError::Count { field, got, want });
    }
    let trace = StepTrace {
        step: raw.step,
        cell: CellId(raw.cell),
        began_us: raw.began_us,
        spans: raw.spans.into_iter().map(span).collect::<Result<_, _>>()?,
        left_out: raw.left_out,
        whole: raw.whole,
    };
    Ok(FromWorker::Traced { generation: Generation(raw.generation), trace: Box::new(trace) })
}

pub(super) fn raw_traced(generation: Generation, trace: StepTrace) -> raw::Traced {
    raw::Traced {
        generation: generation.0,
        step: trace.step,
        cell: trace.cell.0,
        began_us: trace.began_us,
        spans: trace.spans.into_iter().map(raw_span).collect(),
        left_out: trace.left_out,
        whole: trace.whole,
    }
}

pub(super) fn wanted(raw: &raw::Trace) -> Result<ToWorker, WireError> {
    if raw.steps == 0 || raw.steps > STEPS_MAX {
        return Err(value("trace.steps", raw.steps, "1 to 1000"));
    }
    let (generation, first, steps) = (Generation(raw.generation), raw.first, raw.steps);
    Ok(ToWorker::Trace { generation, first, steps })
}

fn span(raw: raw::Span) -> Result<Span, WireError> {
    Ok(Span {
        doing: Doing::from_code(raw.doing)
            .ok_or_else(|| value("traced.spans.doing", raw.doing, "a known one"))?,
        start_ns: raw.start_ns,
        length_ns: raw.length_ns,
        chunk: raw.chunk,
        microbatch: raw.microbatch,
        peer: raw.peer.map(CellId),
        sent_bytes: raw.sent_bytes,
        received_bytes: raw.received_bytes,
    })
}

fn raw_span(span: Span) -> raw::Span {
    raw::Span {
        doing: span.doing.code(),
        start_ns: span.start_ns,
        length_ns: span.length_ns,
        chunk: span.chunk,
        microbatch: span.microbatch,
        peer: span.peer.map(|cell| cell.0),
        sent_bytes: span.sent_bytes,
        received_bytes: span.received_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::FROM_WORKER_BYTES_MAX;
    use prost::Message;

    fn traced(spans: Vec<Span>) -> FromWorker {
        let (cell, began_us) = (CellId(3), 1_700_000_000_000_000);
        let trace = StepTrace { step: 9, cell, began_us, spans, left_out: 2, whole: true };
        FromWorker::Traced { generation: Generation(4), trace: Box::new(trace) }
    }

    fn largest() -> Span {
        Span {
            doing: Doing::Broadcast,
            start_ns: u64::MAX,
            length_ns: u64::MAX,
            chunk: Some(u32::MAX),
            microbatch: Some(u32::MAX),
            peer: Some(CellId(u32::MAX)),
            sent_bytes: u64::MAX,
            received_bytes: u64::MAX,
        }
    }

    #[test]
    fn what_a_cell_did_arrives_unchanged_and_fits() {
        let bare =
            Span { chunk: None, microbatch: None, peer: None, doing: Doing::Step, ..largest() };
        let mut spans = vec![largest(); SPANS_MAX];
        spans[1] = bare;
        let raw = raw::FromWorker::from(traced(spans.clone()));
        assert!(raw.encoded_len() < FROM_WORKER_BYTES_MAX, "{}", raw.encoded_len());
        assert_eq!(FromWorker::try_from(raw).unwrap(), traced(spans));
    }

    #[test]
    fn too_much_and_the_unknown_are_refused() {
        let refuses = |raw: raw::FromWorker, want: &str| {
            assert_eq!(FromWorker::try_from(raw).unwrap_err().to_string(), want);
        };
        let many = raw::FromWorker::from(traced(vec![largest(); SPANS_MAX + 1]));
        refuses(many, "traced.spans has 3501 entries: want at most 3500");
        let mut raw = raw_traced(
            Generation(1),
            StepTrace {
                step: 1,
                cell: CellId(0),
                began_us: 0,
                spans: vec![largest()],
                left_out: 0,
                whole: true,
            },
        );
        raw.spans[0].doing = 99;
        let raw = raw::FromWorker { message: Some(raw::from_worker::Message::Traced(raw)) };
        refuses(raw, "traced.spans.doing is 99: want a known one");
        let wants = |steps| wanted(&raw::Trace { generation: 1, first: 5, steps });
        assert!(wants(1).is_ok() && wants(1_000).is_ok());
        assert_eq!(wants(0).unwrap_err().to_string(), "trace.steps is 0: want 1 to 1000");
        assert!(wants(1_001).is_err());
    }
}
