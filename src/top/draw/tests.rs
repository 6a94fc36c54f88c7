//! Pictures of fixed looks.

use std::collections::BTreeMap;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use shoal_cluster::words::{Facts, JobPhase, JobStatus, RigIs, RigStatus};
use shoal_coordinator::control::{RunPhase, Status, WorkerIs, WorkerStatus};
use shoal_plan::grid::Grid;
use shoal_plan::plan::WorkerId;
use shoal_plan::routing::Routing;

use super::super::view::{Key, PARTS, View, Wish};
use super::*;
use crate::look::{Look, Run, Traffic};

fn worker(n: u32, cells: &[u32], state: WorkerIs) -> WorkerStatus {
    WorkerStatus {
        worker: WorkerId(n),
        state,
        cells: cells.to_vec(),
        heard_seconds_ago: Some(0.4),
        pace: (!cells.is_empty()).then_some(1.0 + f64::from(n) / 10.0),
        straggler: n == 2,
        yields_to: None,
        quarantine_seconds: None,
        losses: 0,
    }
}

fn status(step: u64) -> Status {
    let router = |layer| Routing {
        layer,
        load_entropy: 0.98 - f64::from(layer) / 100.0,
        load_max: 1.25 + f64::from(layer),
        dropped: 0,
        bias_min: -0.01,
        bias_max: 0.02,
    };
    Status {
        phase: RunPhase::Training,
        why: None,
        step,
        steps: 400,
        loss: Some(5.0 - step as f64 / 100.0),
        seconds_per_step: Some(0.25),
        tokens_per_second: Some(4096.0),
        seconds_left: Some(69.25),
        generation: 3,
        checkpoint_step: 0,
        snapshot_step: 120,
        recoveries: 1,
        coordinator_restarts: 0,
        workers_min: 1,
        workers: vec![
            worker(0, &[0, 1], WorkerIs::Training),
            worker(1, &[2], WorkerIs::Training),
            worker(2, &[3], WorkerIs::Training),
        ],
        grid: Some(Grid { stages: 2, expert_shards: 2, replicas: 1 }),
        routers: vec![router(1), router(2)],
        ways: Vec::new(),
    }
}

fn rig(name: &str, is: RigIs, worker: Option<u32>) -> RigStatus {
    RigStatus {
        name: name.to_owned(),
        is,
        facts: Facts::default(),
        job: worker.map(|_| "first".to_owned()),
        worker: worker.map(WorkerId),
        cordoned: false,
        relays: 0,
        heard_seconds_ago: (is != RigIs::Away).then_some(0.7),
    }
}

fn look(seconds: f64, step: u64) -> Look {
    let seats: BTreeMap<WorkerId, String> = [(0, "attic"), (1, "desk"), (2, "lab")]
        .map(|(n, name)| (WorkerId(n), name.to_owned()))
        .into();
    let traffic = |worker: u32| {
        let sent = seconds * 1e6 * f64::from(worker + 1);
        (WorkerId(worker), Traffic { sent, received: sent / 2.0 })
    };
    let job = |name: &str, phase| JobStatus {
        name: name.to_owned(),
        phase,
        why: None,
        directory: None,
        rigs: seats.clone(),
        run: None,
    };
    Look {
        seconds,
        title: "cluster lab".to_owned(),
        rigs: vec![
            rig("attic", RigIs::Busy, Some(0)),
            rig("desk", RigIs::Busy, Some(1)),
            rig("lab", RigIs::Busy, Some(2)),
            rig("shed", if step > 100 { RigIs::Away } else { RigIs::Free }, None),
        ],
        jobs: vec![job("first", JobPhase::Running), job("second", JobPhase::Queued)],
        run: Some(Run {
            name: "first".to_owned(),
            status: Some(status(step)),
            seats: seats.clone(),
            traffic: (0..3).map(traffic).collect(),
            ..Run::default()
        }),
        trouble: None,
    }
}

fn view() -> View {
    let mut view = View::new(true, true);
    for step in [90, 100, 123] {
        view.take(look(step as f64, step));
    }
    view
}

fn drawn(view: &View, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view)).unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let rows = buffer.content().chunks(usize::from(buffer.area.width));
    let line = |row: &[ratatui::buffer::Cell]| {
        row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned()
    };
    rows.map(line).collect::<Vec<_>>().join("\n")
}

const CLUSTER: &str = "\
shoal top  cluster lab: 4 rigs (1 away), 2 jobs
┌ first: training ─────────────────────┐┌ loss 3.770 at step 123 ──────────────┐
│ step    123 of 400, 1:09 left        ││  4.10 ┤⠉⠉⠉⠉⠉⠉⠉⠉⢢⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀  │
│ loss    3.7700   4.1k tokens/s       ││       ┤                            ⡇ │
│ saved   none, in memory 120          ││  3.77 ┤                            ⢸ │
│ plan    3, 1 recovery                ││       └───────────────────────────── │
│                                      ││        step 90                   123 │
└──────────────────────────────────────┘└──────────────────────────────────────┘
┌ rigs: 4 ─────────────────────────────┐┌ stages x shards: 2x2x1 ──────────────┐
│ rig    is    does     pace  ago      ││ stage  shard 0  shard 1              │
│ attic  busy  first/0  1.00  1 s      ││ 0      attic    attic                │
│ desk   busy  first/1  1.10  1 s      ││ 1      desk     lab                  │
│ lab    busy  first/2  1.20  1 s      ││                                      │
└──────────────────────────────────────┘└──────────────────────────────────────┘
┌ experts' load, the mean is 1 ────────┐┌ links, bytes a second ───────────────┐
│ layer  busiest          evenness     ││ worker  sent   received  in all      │
│ 1      ███      2.25 x  0.970        ││ attic   1.0MB  500.0kB   184.5MB     │
│ 2      ████     3.25 x  0.960        ││ desk    2.0MB  1.0MB     369.0MB     │
└──────────────────────────────────────┘└──────────────────────────────────────┘
┌ events ──────────────────────────────────────────────────────────────────────┐
│ rig shed is away, was free                                                   │
│                                                                              │
└──────────────────────────────────────────────────────────────────────────────┘
q quit  tab next part  arrows move  enter large  ? help";

#[test]
fn a_cluster_and_its_job_fit_a_usual_terminal() {
    let got = text(&drawn(&view(), 80, 24));
    assert_eq!(got, CLUSTER, "\n{got}");
}

#[test]
fn a_run_that_is_over_shows_what_its_files_say() {
    let mut view = View::new(false, false);
    view.take(Look {
        title: "runs/small".to_owned(),
        run: Some(Run {
            name: "runs/small".to_owned(),
            why: Some("nothing trains".to_owned()),
            losses: (1..=50).map(|step| (step, 5.0 - step as f64 / 25.0)).collect(),
            events: vec![
                "0:00.1 step 0 launched: 4 workers".to_owned(),
                "1:12.8 step 50 finished".to_owned(),
            ],
            ..Run::default()
        }),
        ..Look::default()
    });
    let got = text(&drawn(&view, 80, 24));
    for wanted in [
        "runs/small: not under way",
        "nothing trains",
        "loss 3.000 at step 50",
        "1:12.8 step 50 finished",
    ] {
        assert!(got.contains(wanted), "{wanted}\n{got}");
    }
    assert!(got.is_ascii(), "{got}");
    assert!(got.contains('*'), "the curve\n{got}");
}

#[test]
fn names_and_words_from_elsewhere_send_nothing_to_the_terminal() {
    let evil = "\u{1b}[2J\u{1b}]0;x\u{7}\n\u{202e}\u{9b}31m\r";
    let mut hostile = look(1.0, 10);
    hostile.title = evil.to_owned();
    hostile.trouble = Some(evil.to_owned());
    for rig in &mut hostile.rigs {
        rig.name = format!("{evil}{}", rig.name);
        rig.job = Some(evil.to_owned());
    }
    for job in &mut hostile.jobs {
        (job.name, job.why) = (evil.to_owned(), Some(evil.to_owned()));
    }
    let run = hostile.run.as_mut().unwrap();
    run.name = evil.to_owned();
    run.why = Some(evil.to_owned());
    run.seats.values_mut().for_each(|rig| *rig = evil.to_owned());
    run.status.as_mut().unwrap().why = Some(evil.to_owned());
    let mut view = View::new(true, true);
    view.take(look(0.0, 1));
    view.take(hostile.clone());
    hostile.run.as_mut().unwrap().events = vec![evil.to_owned()];
    hostile.run.as_mut().unwrap().status = None;
    for again in [false, true] {
        if again {
            view.take(hostile.clone());
        }
        for cell in drawn(&view, 120, 40).content() {
            let bad = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
            assert!(!cell.symbol().contains(bad), "{:?}", cell.symbol());
        }
    }
}

#[test]
fn every_size_of_terminal_is_drawn_and_every_part_of_it_large() {
    let mut view = view();
    for (width, height) in
        [(1, 1), (39, 12), (40, 11), (40, 12), (41, 13), (79, 23), (80, 24), (133, 50), (500, 200)]
    {
        for _ in PARTS {
            for key in [Key::Enlarge, Key::Help, Key::Help, Key::Enlarge, Key::Next] {
                view.press(key);
                let got = text(&drawn(&view, width, height));
                assert_eq!(got.split('\n').count(), usize::from(height), "{got}");
            }
        }
    }
    let small = text(&drawn(&view, 39, 12));
    assert!(small.contains("too small"), "{small}");
}

#[test]
fn without_colours_nothing_is_coloured() {
    use ratatui::style::Color;
    let coloured = |view: &View| {
        let buffer = drawn(view, 80, 24);
        buffer
            .content()
            .iter()
            .filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
            .count()
    };
    assert!(coloured(&view()) > 100);
    let mut plain = View::new(false, true);
    plain.take(look(1.0, 100));
    assert_eq!(coloured(&plain), 0);
}

#[test]
fn keys_move_scroll_enlarge_help_and_end() {
    let mut view = view();
    assert_eq!((view.press(Key::Quit), view.press(Key::Interrupt)), (Wish::Quit, Wish::Interrupt));
    assert_eq!(view.press(Key::Help), Wish::Nothing);
    assert!(text(&drawn(&view, 80, 24)).contains("the next part"));
    view.press(Key::Back);
    assert!(!text(&drawn(&view, 80, 24)).contains("the next part"));
    view.press(Key::Next);
    view.press(Key::Next);
    view.press(Key::Enlarge);
    let large = text(&drawn(&view, 80, 24));
    assert!(large.contains("shed") && !large.contains("experts"), "{large}");
    // There is nothing below the last line.
    for _ in 0..100 {
        view.press(Key::Down);
    }
    assert!(text(&drawn(&view, 80, 24)).contains("attic"));
    view.press(Key::Back);
    let small = text(&drawn(&view, 80, 24));
    assert!(small.contains("experts") && !small.contains("attic    busy"), "{small}");
    for (forwards, job) in [(true, "second"), (false, "second")] {
        assert_eq!(view.press(Key::OtherJob { forwards }), Wish::Job(job.to_owned()));
    }
}
