//! Every message through the door and back, and every field that can be wrong.

use std::collections::BTreeMap;
use std::ops::Range;

use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::Grid;
use shoal_plan::job::Job;
use shoal_plan::learning_rate::LrSchedule;
use shoal_plan::plan::{Plan, StagePlan};
use shoal_plan::report::{Ending, Evaluation, Outcome, Pass, SkippedStep, StepReport, StepRow};
use shoal_plan::routing::Routing;
use shoal_plan::schedule::Schedule;
use shoal_plan::standing::{Best, Standing};

use super::*;
use crate::message::{Assign, Meeting, Source, ToWorker, Way};

fn hello() -> FromWorker {
    FromWorker::Hello(Hello {
        run: RunId("0123456789abcdef".into()),
        worker: WorkerId(3),
        data_address: "127.0.0.1:4000".parse().unwrap(),
        pid: 77,
        threads: 2,
        devices: 4,
        vault_address: "127.0.0.1:4001".parse().unwrap(),
        resuming: Some(Resuming { generation: Generation(4), step: 9 }),
    })
}

fn part(name: &str, blake3: &str) -> FromWorker {
    let file = CheckpointFile { name: name.into(), bytes: 5, blake3: blake3.into() };
    let (generation, cell) = (Generation(1), CellId(2));
    FromWorker::CheckpointPart { generation, standing: standing(), cell, files: vec![file] }
}

fn part_failed(why: &str) -> FromWorker {
    let (generation, cell, why) = (Generation(1), CellId(2), why.into());
    FromWorker::CheckpointPartFailed { generation, standing: standing(), cell, why }
}

fn standing() -> Standing {
    let best = Some(Best { step: 40, loss: 1.0 / 3.0 });
    Standing { step: 50, sequences: 432, skips: 1, rollbacks: 2, best, stale: 3 }
}

fn row(loss: f64) -> StepRow {
    StepRow {
        step: 7,
        loss,
        main_loss: 1.0 / 3.0,
        mtp_loss: f64::MIN_POSITIVE,
        balance_loss: 0.0,
        grad_norm: 1e300,
        lr: 3e-4,
        tokens: 4096,
        router: vec![Routing::of(1, &[3, 4], 8, &[0.5, -0.25])],
    }
}

fn step_done(loss: f64) -> FromWorker {
    report(Outcome::Trained(row(loss)))
}

fn report(outcome: Outcome) -> FromWorker {
    let report = StepReport { first_sequence: 48, sequences: 8, outcome };
    FromWorker::StepDone {
        generation: Generation(1),
        step: 7,
        compute_seconds: 0.25,
        report: Some(report),
        sums: vec![(CellId(3), u64::MAX)],
    }
}

fn skipped(place: &str) -> FromWorker {
    let (skipped, worker) = (place.to_owned(), WorkerId(2));
    report(Outcome::Skipped(SkippedStep {
        step: 7,
        skipped,
        worker,
        in_a_row: 3,
        pass: Pass::Backward,
    }))
}

fn evaluated(set: &str, loss: f64) -> FromWorker {
    let evaluation = Evaluation { set: set.into(), loss, tokens: 100, bytes: 321 };
    let evaluations = vec![evaluation.clone(), evaluation];
    FromWorker::Evaluated { generation: Generation(1), step: 7, evaluations }
}

fn failed(kind: FailureKind, what: &str) -> FromWorker {
    let layer = Some("model.layers.3.mlp".into());
    let (what, unreachable) = (what.into(), vec![WorkerId(3)]);
    FromWorker::Failed { generation: Generation(1), step: 8, kind, what, layer, unreachable }
}

fn job() -> Job {
    let mut job = Job::example();
    job.training.seed = u64::MAX;
    job.training.lr = 3.3e-4;
    job.training.lr_schedule = LrSchedule::Wsd;
    job.grid = Grid { stages: 2, expert_shards: 2, replicas: 1 };
    job.schedule = Schedule::ZbH1;
    job.workers.local = 2;
    job
}

fn assign() -> Assign {
    let job = job();
    let stage = |layers: Range<u32>| StagePlan {
        layers,
        flops_per_token: 1.5e6,
        reason: "by FLOPs".into(),
    };
    let plan = Plan {
        generation: Generation(1),
        grid: job.grid,
        stages: vec![stage(0..3), stage(3..4)],
        experts: vec![0..8, 8..16],
        hosts: [0, 0, 1, 1].map(WorkerId).to_vec(),
        reasons: BTreeMap::from([(WorkerId(0), "first stage".into())]),
    };
    let peers = [(WorkerId(0), 4000), (WorkerId(1), 4001)];
    let peers = peers.map(|(id, port)| (id, SocketAddr::from(([127, 0, 0, 1], port))));
    let (run, peers, resume_from) = (RunId("abc".into()), BTreeMap::from(peers), Some(50));
    let vaults = peers.clone();
    let blake3 = "b2".repeat(32);
    let source =
        |cell| Source { worker: WorkerId(cell % 2), cell: CellId(cell), blake3: blake3.clone() };
    let sources = (0..4).map(source).collect();
    let names = [(WorkerId(0), "rig-a"), (WorkerId(1), "Rig.b")];
    let names = names.map(|(id, name)| (id, name.parse().unwrap())).into();
    let ends = (WorkerId(0), WorkerId(1));
    let meetings = vec![Meeting { ends, way: Way::From(WorkerId(0)) }];
    let standing = standing();
    Assign { run, plan, job, peers, resume_from, standing, vaults, sources, names, meetings }
}

fn relayed(rig: &str) -> Vec<Meeting> {
    let ends = (WorkerId(0), WorkerId(1));
    let (rig, at) = (rig.to_owned(), "10.0.0.3:7403".parse().unwrap());
    vec![Meeting { ends, way: Way::Through { rig, at } }]
}

#[test]
fn what_a_worker_says_arrives_unchanged() {
    let generation = Generation(9);
    let messages = [
        hello(),
        FromWorker::Heartbeat { generation: None, step: 0 },
        FromWorker::Heartbeat { generation: Some(generation), step: 3 },
        FromWorker::Ready { generation },
        step_done(2.5),
        FromWorker::StepDone {
            generation,
            step: 8,
            compute_seconds: 0.0,
            report: None,
            sums: vec![],
        },
        skipped("layer 3 expert 5 forward"),
        evaluated("heldout", 1.75),
        evaluated("code", f64::INFINITY),
        FromWorker::GoBack { generation, standing: standing() },
        FromWorker::GoBack { generation, standing: Standing::default() },
        part("model-0.safetensors", &"a1".repeat(32)),
        part_failed("writing model-cell-0.safetensors: No space left on device (os error 28)"),
        FromWorker::Held {
            generation,
            standing: standing(),
            cell: CellId(2),
            blake3: "c3".repeat(32),
        },
        FromWorker::AtEdge { generation, standing: standing() },
        FromWorker::Leaving { reason: "told to".into() },
        FromWorker::Prepared {
            generation,
            standing: standing(),
            cells: vec![(CellId(0), "a1".repeat(32)), (CellId(3), "c3".repeat(32))],
        },
        FromWorker::Yielding { reason: Some("a game runs".into()) },
        FromWorker::Yielding { reason: None },
        FromWorker::Finished { generation, step: 100, ending: Ending::Completed },
        FromWorker::Finished { generation, step: 12, ending: Ending::Stopped },
        FromWorker::Finished { generation, step: 12, ending: Ending::NoImprovement },
        failed(FailureKind::NonFinite, "loss is NaN"),
        failed(FailureKind::PeerLost, "worker-1 is gone"),
        failed(FailureKind::Checkpoint, "disk full"),
        failed(FailureKind::Data, "shard 0"),
        failed(FailureKind::Internal, "bug"),
    ];
    for message in messages {
        let back = FromWorker::try_from(raw::FromWorker::from(message.clone())).unwrap();
        assert_eq!(back, message);
    }
}

#[test]
fn what_the_coordinator_says_arrives_unchanged() {
    let generation = Generation(9);
    let messages = [
        ToWorker::Assign(Box::new(assign())),
        ToWorker::Assign(Box::new(Assign { resume_from: None, ..assign() })),
        ToWorker::Assign(Box::new(Assign { sources: vec![], ..assign() })),
        ToWorker::Assign(Box::new(Assign { names: BTreeMap::new(), ..assign() })),
        ToWorker::Assign(Box::new(Assign { meetings: vec![], ..assign() })),
        ToWorker::Assign(Box::new(Assign { meetings: relayed("rig-c"), ..assign() })),
        ToWorker::Assign(Box::new(Assign {
            meetings: vec![Meeting { way: Way::ThroughDoor, ..relayed("rig-c").remove(0) }],
            ..assign()
        })),
        ToWorker::Start { generation },
        ToWorker::Edge { generation },
        ToWorker::Released { generation },
        ToWorker::Trace { generation, first: 40, steps: 3 },
        ToWorker::Stop { generation },
        ToWorker::CheckpointCommitted { generation, step: 50 },
        ToWorker::Received { messages: 64 },
        ToWorker::Leave { reason: "done".into() },
        ToWorker::Abort { reason: "worker-2 is gone".into() },
    ];
    for message in messages {
        let back = ToWorker::try_from(raw::ToWorker::from(message.clone())).unwrap();
        assert_eq!(back, message);
    }
}

#[track_caller]
fn refuses(message: FromWorker, want: &str) {
    let error = FromWorker::try_from(raw::FromWorker::from(message)).unwrap_err();
    assert_eq!(error.to_string(), want);
}

#[test]
fn a_worker_s_bad_field_is_named() {
    let FromWorker::Hello(good) = hello() else { unreachable!("hello() is a Hello") };
    refuses(
        FromWorker::Hello(Hello { threads: 0, ..good.clone() }),
        "hello.threads must not be zero",
    );
    refuses(
        FromWorker::Hello(Hello { run: RunId("../x".into()), ..good }),
        "hello.run is ../x: want 1 to 64 letters, digits and hyphens",
    );
    let trained = "step_done.report.trained.loss";
    refuses(step_done(f64::NAN), &format!("{trained} is NaN, which is not finite"));
    let router = vec![Routing::of(1, &[1], 1, &[0.0]); 4097];
    refuses(
        report(Outcome::Trained(StepRow { router, ..row(1.0) })),
        "step_done.report.trained.router has 4097 entries: want at most 4096",
    );
    let router = vec![Routing::of(1, &[1], 1, &[f32::INFINITY])];
    refuses(
        report(Outcome::Trained(StepRow { router, ..row(1.0) })),
        "step_done.report.trained.router.bias is inf, which is not finite",
    );
    let back = FromWorker::StepDone {
        generation: Generation(1),
        step: 8,
        compute_seconds: -1.0,
        report: None,
        sums: vec![],
    };
    refuses(back, "step_done.compute_seconds is -1: want 0 or more");
    let many = vec![Evaluation { set: "x".into(), loss: 1.0, tokens: 1, bytes: 1 }; 1025];
    let (generation, evaluations) = (Generation(1), many);
    refuses(
        FromWorker::Evaluated { generation, step: 1, evaluations },
        "evaluated.evaluations has 1025 entries: want 1 to 1024",
    );
    let nan = Standing { best: Some(Best { step: 1, loss: f64::NAN }), ..standing() };
    refuses(
        FromWorker::GoBack { generation, standing: nan },
        "standing.best.loss is NaN, which is not finite",
    );
    for name in ["", "..", ".hidden", "a/b", "a\\b", "manifest.json", "a\u{0}", "C:"] {
        let message = part(name, &"a1".repeat(32));
        let error = FromWorker::try_from(raw::FromWorker::from(message)).unwrap_err().to_string();
        assert!(error.starts_with("checkpoint_part.files.name is "), "{name:?}: {error}");
    }
    refuses(part("a", "XYZ"), "checkpoint_part.files.blake3 is XYZ: want 64 lower-case hex digits");
    let empty = FromWorker::try_from(raw::FromWorker { message: None }).unwrap_err();
    assert_eq!(empty.to_string(), "from_worker.message is missing");
}

#[test]
fn an_unknown_kind_of_failure_is_refused() {
    for kind in [0, 6, -1] {
        let error = failure_kind(kind).unwrap_err().to_string();
        assert_eq!(error, format!("failed.kind is {kind}: want a known kind of failure"));
    }
}

#[test]
fn text_cannot_steer_a_terminal_and_is_cut_to_size() {
    let message = failed(FailureKind::Internal, "red \u{1b}[31m\nnext \u{7} é");
    let FromWorker::Failed { what, .. } =
        FromWorker::try_from(raw::FromWorker::from(message)).unwrap()
    else {
        unreachable!("a Failed stays a Failed");
    };
    assert_eq!(what, "red \\u{1b}[31m\nnext \\u{7} é");
    let long = "é".repeat(TEXT_BYTES_MAX);
    for long in [failed(FailureKind::Internal, &long), part_failed(&long)] {
        FromWorker::try_from(raw::FromWorker::from(long)).unwrap();
    }
    let FromWorker::CheckpointPartFailed { why, .. } =
        FromWorker::try_from(raw::FromWorker::from(part_failed("a \u{1b}[2J"))).unwrap()
    else {
        unreachable!("it stays what it is");
    };
    assert_eq!(why, "a \\u{1b}[2J");
}

#[track_caller]
fn refuses_assign(change: impl FnOnce(&mut raw::Assign), want: &str) {
    let mut message = raw::Assign::from(assign());
    change(&mut message);
    let error = Assign::try_from(message).unwrap_err();
    assert_eq!(error.to_string(), want);
}

#[test]
fn meetings_that_are_none_are_refused() {
    for (first, second) in [(1, 0), (1, 1)] {
        refuses_assign(
            |a| (a.meetings[0].first, a.meetings[0].second) = (first, second),
            &format!(
                "assign.meetings is worker-{first} and worker-{second}: want each pair once, the lower id first"
            ),
        );
    }
    refuses_assign(
        |a| a.meetings.extend(a.meetings.clone()),
        "assign.meetings is worker-0 and worker-1: want each pair once, the lower id first",
    );
    refuses_assign(
        |a| a.meetings[0].second = 7,
        "assign.meetings is worker-7: want a worker with a vault",
    );
    refuses_assign(|a| a.meetings[0].way = None, "assign.meetings.way is missing");
    refuses_assign(
        |a| a.meetings[0].way = Some(raw::meeting::Way::From(7)),
        "assign.meetings.from is worker-7: want one of the two",
    );
    let through = |rig: &str, address: &str| {
        let (rig, address) = (rig.to_owned(), address.to_owned());
        Some(raw::meeting::Way::Through(raw::Relay { rig, address }))
    };
    refuses_assign(
        |a| a.meetings[0].way = through("a/b", "10.0.0.3:7403"),
        "assign.meetings.through.rig has a name that is none",
    );
    refuses_assign(
        |a| a.meetings[0].way = through("rig-c", "there"),
        "assign.meetings.through.address is not an address",
    );
    refuses_assign(
        |a| a.meetings[0].way = Some(raw::meeting::Way::ThroughDoor(false)),
        "assign.meetings.through_door is false: want true",
    );
}

#[test]
fn an_assignment_that_does_not_fit_together_is_refused() {
    fn plan_of(assign: &mut raw::Assign) -> &mut raw::Plan {
        assign.plan.as_mut().unwrap()
    }
    refuses_assign(|a| a.plan = None, "assign.plan is missing");
    refuses_assign(|a| a.job_json.push('x'), "assign.job_json is not a job of this version");
    refuses_assign(
        |a| a.peers = BTreeMap::from([(0, "nowhere".into())]),
        "assign.peers is not an address",
    );
    refuses_assign(
        |a| plan_of(a).hosts[2] = 9,
        "assign.plan.hosts is worker-9: want a worker with an address in peers",
    );
    refuses_assign(
        |a| plan_of(a).hosts.truncate(3),
        "plan.hosts has 3 entries: want 4, as in plan.grid",
    );
    refuses_assign(
        |a| plan_of(a).experts[0].start = 10,
        "plan.experts is 10..8: want start <= end",
    );
    refuses_assign(
        |a| drop(a.vaults.pop_first()),
        "assign.vaults is an incomplete list: want one of worker-0",
    );
    refuses_assign(
        |a| a.sources.truncate(3),
        "assign.sources has 3 entries: want 4, as in plan.grid",
    );
    refuses_assign(
        |a| a.sources[1].worker = 7,
        "assign.sources.worker is worker-7: want a worker with a vault",
    );
    refuses_assign(
        |a| a.sources[1].cell = 4,
        "assign.sources.cell is cell-4: want a cell of plan.grid",
    );
    refuses_assign(
        |a| drop(a.names.insert(7, "rig-c".into())),
        "assign.names is worker-7: want a worker with a vault",
    );
    refuses_assign(
        |a| drop(a.names.pop_first()),
        "assign.names is an incomplete list: want one of worker-0",
    );
    for name in ["", "..", "a/b", "a\u{1b}[2J", &"n".repeat(64)] {
        refuses_assign(
            |a| drop(a.names.insert(1, name.into())),
            "assign.names has a name that is none",
        );
    }
    for axis in [0, u32::MAX] {
        refuses_assign(
            |a| plan_of(a).grid.as_mut().unwrap().replicas = axis,
            &format!("plan.grid is 2x2x{axis}: want no zero and at most 65536 cells"),
        );
    }
}
