//! Traces made by hand: laid side by side, written, and added up.

use serde_json::Value;
use shoal_plan::trace::Doing;

use super::table::{Where, by_cell};
use super::*;

fn span(doing: Doing, start_us: u64, length_us: u64) -> Span {
    Span { start_ns: 1_000 * start_us, length_ns: 1_000 * length_us, ..Span::new(doing) }
}

fn message(doing: Doing, start_us: u64, length_us: u64, peer: u32) -> Span {
    Span { peer: Some(CellId(peer)), ..span(doing, start_us, length_us) }
}

/// Two cells on two workers: cell 0 sends what cell 1 waits for, and both vote.
fn trace(clock_us: i64, steps: u64) -> Trace {
    let hosts = vec![WorkerId(0), WorkerId(1)];
    let mut trace = Trace { hosts, first: 1, last: steps, ..Trace::default() };
    for step in 1..=steps {
        let began_us = 1_000_000 + 10_000 * step;
        let first = vec![
            Span { microbatch: Some(0), chunk: Some(0), ..span(Doing::Forward, 0, 400) },
            Span { sent_bytes: 2_048, ..message(Doing::Send, 410, 10, 1) },
            span(Doing::AllGather, 700, 100),
            span(Doing::Vote, 690, 115),
            span(Doing::Update, 820, 80),
            span(Doing::Step, 0, 1_000),
        ];
        let second = vec![
            message(Doing::Recv, 0, 430, 0),
            span(Doing::AllGather, 710, 90),
            span(Doing::Vote, 700, 105 + step),
            span(Doing::Step, 0, 1_000),
        ];
        for (cell, spans, clock_us) in [(0, first, 0), (1, second, clock_us)] {
            let began_us = (began_us as i64 + clock_us) as u64;
            let cell = CellId(cell);
            trace.add(StepTrace { step, cell, began_us, spans, left_out: 0, whole: true });
        }
    }
    trace
}

fn events(trace: &Trace) -> Vec<Value> {
    let mut text = Vec::new();
    let count = chrome::write(&mut text, trace, &clocks::offsets(trace)).unwrap();
    let file: Value = serde_json::from_slice(&text).unwrap();
    let events = file["traceEvents"].as_array().unwrap().clone();
    assert_eq!(events.len() as u64, count);
    events
}

fn of<'a>(events: &'a [Value], phase: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["ph"] == phase).collect()
}

#[test]
fn a_clock_that_is_wrong_is_moved_and_what_may_be_a_messages_way_is_not() {
    for (clock_us, moved) in [(0, 0), (19_000, 0), (90_000, 90_002), (-90_000, -89_998)] {
        let offsets = clocks::offsets(&trace(clock_us, 3));
        assert_eq!(offsets[&WorkerId(0)].us, 0);
        assert_eq!(offsets[&WorkerId(1)].us, moved, "{clock_us}");
    }
    // One step that says so, among others that do not.
    let mut uncertain = trace(0, 3);
    uncertain.steps.get_mut(&(2, CellId(1))).unwrap().began_us += 90_000;
    assert_eq!(clocks::offsets(&uncertain)[&WorkerId(1)].us, 0);
    assert_eq!(clocks::Offset { us: -12_340 }.to_string(), "12.3 ms slow");
}

#[test]
fn a_file_has_every_stretch_in_its_place_and_ties_messages() {
    let events = events(&trace(90_000, 2));
    let named: Vec<&str> =
        of(&events, "M").iter().map(|event| event["args"]["name"].as_str().unwrap()).collect();
    assert_eq!(named, ["worker-0", "worker-1", "cell-0", "cell-1"]);
    let whole = of(&events, "X");
    assert_eq!(whole.len(), 2 * 10);
    // The whole step first, then what lies within it, in time: what was 90 ms ahead is beside the other.
    let first = whole[0];
    assert_eq!((&first["name"], first["ts"].as_f64()), (&"step 1".into(), Some(2.0)));
    let forward = whole.iter().find(|event| event["name"] == "forward 0").unwrap();
    assert_eq!((&forward["args"]["microbatch"], &forward["dur"]), (&0.into(), &400.0.into()));
    let second = whole.iter().find(|event| event["tid"] == 1).unwrap();
    assert_eq!((&second["pid"], second["ts"].as_f64()), (&1.into(), Some(0.0)));
    let sent = whole.iter().find(|event| event["name"] == "send").unwrap();
    assert_eq!(
        (&sent["cat"], &sent["args"]["sent_bytes"]),
        (&"communication".into(), &2_048.into())
    );
    let (from, to) = (of(&events, "s"), of(&events, "f"));
    assert_eq!((from.len(), to.len()), (2, 2));
    assert_eq!((&from[0]["id"], &from[0]["tid"]), (&to[0]["id"], &0.into()));
    assert_eq!(to[0]["tid"], 1);
    assert!(from[0]["ts"].as_f64() < to[0]["ts"].as_f64());
}

#[test]
fn messages_are_not_tied_where_one_is_missing() {
    let mut trace = trace(0, 2);
    trace.steps.get_mut(&(2, CellId(1))).unwrap().spans.remove(0);
    assert!(of(&events(&trace), "s").is_empty());
}

#[test]
fn time_is_added_up_by_cell_and_counted_once() {
    let mut trace = trace(0, 2);
    let cells = by_cell(&trace);
    let us = |n: u64| 2 * 1_000 * n;
    let want = Where {
        steps: 2,
        total: us(1_000),
        bubble: 0,
        communication: us(110),
        update: us(80),
        sent_bytes: 2 * 2_048,
    };
    assert_eq!((cells[&CellId(0)], cells[&CellId(0)].compute()), (want, us(810)));
    assert_eq!((cells[&CellId(1)].bubble, cells[&CellId(1)].communication), (us(430), us(90)));
    let table = table::of(&trace);
    let row =
        "cell-0    worker-0         1.00   81.0 %         11.0 %   0.0 %   8.0 %      2.0 KiB";
    assert_eq!(table.lines().nth(1), Some(row), "{table}");
    // A step of which a piece is missing counts for nothing, and is named.
    trace.steps.get_mut(&(2, CellId(1))).unwrap().whole = false;
    assert_eq!(by_cell(&trace)[&CellId(1)].steps, 1);
    assert_eq!(trace.missing(), [(2, CellId(1))]);
}
