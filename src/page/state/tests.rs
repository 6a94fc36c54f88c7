//! What is told of looks that are made up.

use shoal_coordinator::control::{RunPhase, WorkerIs};
use shoal_plan::grid::Grid;

use super::*;
use crate::look::NewestStep;

fn worker(n: u32, cells: &[u32]) -> WorkerStatus {
    WorkerStatus {
        worker: WorkerId(n),
        state: WorkerIs::Training,
        cells: cells.to_vec(),
        heard_seconds_ago: Some(0.44),
        pace: Some(1.0),
        straggler: false,
        yields_to: None,
        quarantine_seconds: None,
        losses: 0,
    }
}

fn status(workers: Vec<WorkerStatus>) -> Status {
    let router = Routing {
        layer: 1,
        load_entropy: 0.9,
        load_max: 2.0,
        dropped: 0,
        bias_min: 0.0,
        bias_max: 0.0,
    };
    Status {
        phase: RunPhase::Training,
        why: None,
        step: 7,
        steps: 40,
        loss: Some(2.5),
        seconds_per_step: Some(0.5),
        tokens_per_second: Some(100.0),
        seconds_left: Some(16.5),
        generation: 1,
        checkpoint_step: 0,
        snapshot_step: 5,
        recoveries: 0,
        coordinator_restarts: 0,
        workers_min: 1,
        workers,
        grid: Some(Grid { stages: 2, expert_shards: 1, replicas: 1 }),
        routers: vec![router],
        ways: Vec::new(),
    }
}

fn told(change: impl FnOnce(&mut Run)) -> BTreeMap<&'static str, Value> {
    let status = status(vec![worker(0, &[0]), worker(1, &[1])]);
    let mut run = Run { name: "run".to_owned(), status: Some(status), ..Run::default() };
    change(&mut run);
    let mut past = Past::default();
    past.take(Look { title: "run".to_owned(), run: Some(run), ..Look::default() });
    let snapshot = Snapshot::of(&past, &Snapshot::default());
    let value = |text: &Arc<str>| serde_json::from_str(text).unwrap();
    snapshot.parts.iter().map(|(name, part)| (*name, value(part))).collect()
}

fn step(begun: f64, spans: &[(char, u32, u64, u64)], sent: &[(u32, u64)]) -> CellStep {
    let sent = sent.iter().copied().collect();
    CellStep { step: begun as u64, begun, seconds: 0.5, spans: spans.to_vec(), sent }
}

fn newest(cells: Vec<(u32, CellStep)>, loads: &[(u32, &[u64])]) -> NewestStep {
    let loads = loads.iter().map(|(layer, counts)| (*layer, counts.to_vec())).collect();
    NewestStep { cells: cells.into_iter().map(|(cell, step)| (cell, vec![step])).collect(), loads }
}

#[test]
fn a_run_is_told_in_parts() {
    let parts = told(|_| {});
    assert_eq!(parts["run"]["step"], 7);
    assert_eq!(parts["grid"], json!([2, 1, 1]));
    assert_eq!(parts["workers"][1]["name"], "worker-1");
    assert_eq!(parts["workers"][0]["heard"], 0.4);
    assert_eq!(parts["experts"], json!([{ "layer": 1, "most": 2.0, "even": 0.9, "loads": null }]));
    assert_eq!(parts["timeline"], json!({ "step": null, "cells": 0, "rows": [] }));
    assert!(!parts.contains_key("cluster"));
}

#[test]
fn what_is_not_known_is_absent_and_stands_as_it_was() {
    let parts = told(|run| (run.status, run.why) = (None, Some("it is silent".to_owned())));
    assert_eq!(parts.keys().copied().collect::<Vec<_>>(), ["events", "run"]);
    assert_eq!(parts["run"]["why"], "it is silent");
}

#[test]
fn loads_are_letters_and_who_took_nothing_is_told_from_who_took_little() {
    assert_eq!(loads(&[4, 4, 4, 4]), "QQQQ");
    assert_eq!(loads(&[0, 8, 4, 4]), "AgQQ");
    assert_eq!(loads(&[1, 100_000]), "Bg");
    assert_eq!(loads(&[1, 0, 0, 0, 0, 0, 0]), "_AAAAAA");
    assert_eq!(loads(&[0, 0]), "QQ");
    assert_eq!(loads(&[]), "");
}

#[test]
fn cells_of_one_step_are_laid_beside_each_other_and_older_ones_are_left_out() {
    let parts = told(|run| {
        let first = step(100.0, &[('F', 0, 0, 10)], &[(1, 64)]);
        let late = step(100.25, &[('B', 1, 5, 7)], &[(0, 32)]);
        let old = step(90.0, &[('F', 0, 0, 10)], &[]);
        run.newest.insert(WorkerId(0), newest(vec![(0, first), (2, old)], &[(1, &[2, 6])]));
        run.newest.insert(WorkerId(1), newest(vec![(1, late)], &[]));
    });
    let rows = json!([
        { "cell": 0, "end": 500_000, "spans": [["F", 0, 0, 10]] },
        { "cell": 1, "end": 750_000, "spans": [["B", 1, 250_005, 2]] },
    ]);
    assert_eq!(parts["timeline"], json!({ "step": 100, "cells": 2, "rows": rows }));
    assert_eq!(parts["links"], json!([[0, 1, 64], [1, 0, 32]]));
    assert_eq!(parts["experts"][0]["loads"], "IY");
}

#[test]
fn cells_are_shown_in_a_step_that_all_have_told() {
    let parts = told(|run| {
        let steps = |nth: &[u64]| {
            let one = |step: &u64| CellStep {
                step: *step,
                begun: *step as f64 / 10.0,
                seconds: 0.1,
                ..CellStep::default()
            };
            nth.iter().map(one).collect::<Vec<_>>()
        };
        let of =
            |cell, nth| NewestStep { cells: [(cell, steps(nth))].into(), ..NewestStep::default() };
        run.newest.insert(WorkerId(0), of(0, &[5, 6, 7]));
        run.newest.insert(WorkerId(1), of(1, &[6, 7, 8, 9]));
    });
    assert_eq!((&parts["timeline"]["step"], &parts["timeline"]["cells"]), (&7.into(), &2.into()));
}

#[test]
fn names_from_elsewhere_are_short_and_have_no_control_characters() {
    let parts = told(|run| {
        run.seats.insert(WorkerId(0), format!("<b>\u{202e}\n{}", "x".repeat(500)));
        run.events = (0..500).map(|n| format!("{n} {}", "y".repeat(5000))).collect();
    });
    let name = parts["workers"][0]["name"].as_str().unwrap();
    assert!(name.starts_with("<b>\\u{202e} x") && name.chars().count() == NAME_MAX, "{name}");
    let events = parts["events"].as_array().unwrap();
    assert_eq!(events.len(), EVENTS_MAX);
    assert!(events[59].as_str().unwrap().starts_with("499 "));
    assert!(events.iter().all(|event| event.as_str().unwrap().len() <= SENTENCE_MAX));
}

#[test]
fn the_largest_state_has_an_end() {
    let parts = told(|run| {
        let many = (0..2000).map(|n| worker(n, &[n])).collect();
        run.status = Some(status(many));
        let routers = &mut run.status.as_mut().unwrap().routers;
        *routers = (0..500).map(|layer| Routing { layer, ..routers[0] }).collect();
        let spans: Vec<_> = (0..4000).map(|n| ('F', n, u64::from(n), u64::from(n) + 1)).collect();
        let sent: Vec<_> = (0..500).map(|to| (to, 1 << 40)).collect();
        let cells = (0..500).map(|cell| (cell, step(1.0, &spans, &sent))).collect();
        let counts = vec![1; 4096];
        let loads: Vec<(u32, &[u64])> = (0..500).map(|layer| (layer, counts.as_slice())).collect();
        run.newest.insert(WorkerId(0), newest(cells, &loads));
        run.events = vec!["e".repeat(10_000); 1000];
    });
    let bytes: usize = parts.values().map(|part| part.to_string().len()).sum();
    assert!(bytes < 320 << 10, "{bytes} bytes");
}
