//! The trace as a file of Chrome's Trace Event Format (the JSON Array Format inside an object), which Perfetto reads:
//! a worker is a process, a cell a thread, a stretch a complete event (`X`), and a message's two ends are tied by a
//! flow (`s`, `f`). Times are microseconds since the first of the steps began.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Write};

use serde_json::{Value, json};
use shoal_plan::grid::CellId;
use shoal_plan::plan::WorkerId;
use shoal_plan::trace::{Doing, Span};

use super::Trace;
use super::clocks::Offset;

/// Writes all events, and says how many.
pub(super) fn write(
    out: &mut impl Write,
    trace: &Trace,
    offsets: &BTreeMap<WorkerId, Offset>,
) -> io::Result<u64> {
    let mut file = Events { out, count: 0 };
    file.out.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n")?;
    let cells: BTreeSet<CellId> = trace.steps.keys().map(|(_, cell)| *cell).collect();
    let workers: BTreeSet<WorkerId> = cells.iter().map(|cell| trace.host(*cell)).collect();
    for worker in workers {
        file.name("process_name", (worker, None), &worker.to_string())?;
    }
    for cell in cells {
        file.name("thread_name", (trace.host(cell), Some(cell)), &cell.to_string())?;
    }
    let began = |step: &super::CellStep, cell| {
        let offset = offsets.get(&trace.host(cell)).copied().unwrap_or_default();
        step.began_us as i64 - offset.us
    };
    let first = trace.steps.iter().map(|((_, cell), step)| began(step, *cell)).min();
    let mut flows = Flows::default();
    for ((number, cell), step) in &trace.steps {
        let worker = trace.host(*cell);
        let from = (began(step, *cell) - first.unwrap_or(0)) as f64;
        let mut spans: Vec<&Span> = step.spans.iter().collect();
        // One that lies within another comes after it.
        spans.sort_by_key(|span| (span.start_ns, std::cmp::Reverse(span.length_ns)));
        for span in spans {
            let at = from + span.start_ns as f64 / 1e3;
            file.put(&complete(*number, (worker, *cell), span, at))?;
            flows.note((*cell, worker), span, at);
        }
    }
    for flow in flows.tied() {
        file.put(&flow)?;
    }
    file.out.write_all(b"\n]}\n")?;
    Ok(file.count)
}

struct Events<'a, W> {
    out: &'a mut W,
    count: u64,
}

impl<W: Write> Events<'_, W> {
    fn put(&mut self, event: &Value) -> io::Result<()> {
        if self.count > 0 {
            self.out.write_all(b",\n")?;
        }
        self.count += 1;
        serde_json::to_writer(&mut *self.out, event).map_err(io::Error::other)
    }

    fn name(
        &mut self,
        what: &str,
        (worker, cell): (WorkerId, Option<CellId>),
        name: &str,
    ) -> io::Result<()> {
        let tid = cell.map_or(0, |cell| cell.0);
        self.put(
            &json!({"ph": "M", "name": what, "pid": worker.0, "tid": tid, "args": {"name": name}}),
        )
    }
}

fn complete(step: u64, (worker, cell): (WorkerId, CellId), span: &Span, at_us: f64) -> Value {
    let mut arguments = json!({"step": step});
    let mut say = |key: &str, value: Option<u64>| {
        if let Some(value) = value {
            arguments[key] = value.into();
        }
    };
    say("chunk", span.chunk.map(u64::from));
    say("microbatch", span.microbatch.map(u64::from));
    say("peer", span.peer.map(|cell| u64::from(cell.0)));
    say("sent_bytes", Some(span.sent_bytes).filter(|bytes| *bytes > 0));
    say("received_bytes", Some(span.received_bytes).filter(|bytes| *bytes > 0));
    let name = match span.microbatch {
        Some(microbatch) => format!("{} {microbatch}", span.doing.name()),
        None if span.doing == Doing::Step => format!("step {step}"),
        None => span.doing.name().to_owned(),
    };
    json!({
        "ph": "X",
        "name": name,
        "cat": if span.doing.is_operation() { "communication" } else { "slot" },
        "pid": worker.0,
        "tid": cell.0,
        "ts": at_us,
        "dur": span.length_ns as f64 / 1e3,
        "args": arguments,
    })
}

/// One end of a message: where, and when.
type End = (WorkerId, CellId, f64);

/// Messages of a pair of cells arrive in the order in which they were sent.
#[derive(Default)]
struct Flows {
    sent: BTreeMap<(CellId, CellId), VecDeque<End>>,
    received: BTreeMap<(CellId, CellId), VecDeque<End>>,
}

impl Flows {
    fn note(&mut self, (cell, worker): (CellId, WorkerId), span: &Span, at: f64) {
        let Some(peer) = span.peer else { return };
        let end = at + span.length_ns as f64 / 1e3;
        if span.doing == Doing::Send {
            self.sent.entry((cell, peer)).or_default().push_back((worker, cell, at));
        } else if span.doing == Doing::Recv {
            self.received.entry((peer, cell)).or_default().push_back((worker, cell, end));
        }
    }

    /// Of pairs of which as many were received as sent: of others nobody knows which is missing.
    fn tied(self) -> Vec<Value> {
        let mut flows = Vec::new();
        for (pair, sent) in self.sent {
            let Some(received) = self.received.get(&pair).filter(|ends| ends.len() == sent.len())
            else {
                continue;
            };
            for (from, to) in sent.iter().zip(received) {
                let id = flows.len() / 2;
                for (phase, (worker, cell, at)) in [("s", from), ("f", to)] {
                    flows.push(json!({
                        "ph": phase, "name": "message", "cat": "communication", "id": id, "bp": "e",
                        "pid": worker.0, "tid": cell.0, "ts": at,
                    }));
                }
            }
        }
        flows
    }
}
