//! Real launches whose workers compute on a GPU: the same losses as on the CPU within rounding, the same bits
//! after the loss of a worker, and an error with a name for whatever a card does. The card is the stand-in driver's
//! (`standin/`), which executes the PTX that ships and reports races, overruns and leaks.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::OnceLock;

use place::{Ended, PATIENCE_SECONDS, Place, shoal, signal, wait};
use serde_json::Value;
use shoal_standin_driver::testing::StandIn;

#[path = "processes/network.rs"]
mod network;
#[expect(dead_code, reason = "what other tests need of it")]
#[path = "processes/place.rs"]
mod place;

/// Two workers, each with two cells of a grid of 2 x 2, share the card; the stand-in's memory is the CPU's.
const ON_TWO: [&str; 4] = ["--set", "workers.local=2", "--set", "workers.device_mb=32"];

/// Steps of the runs that are compared. With twenty a step's place in the schedules has changed, too.
const STEPS: u64 = 20;

/// An executed step takes the stand-in a second, and ten times that on a busy machine.
const SECONDS: u32 = 600;

fn manifest(steps: u64) -> String {
    format!(
        "    steps: {steps}\n  evaluation:\n    tokens_max: 64\n  checkpoint:\n    every: 6\n    memory:\n      every: 2\n"
    )
}

fn card(name: &str) -> StandIn {
    StandIn::new().cards(name).seed(1)
}

/// Launches on a card.
fn launch(place: &Place, standin: &StandIn, run: &str, more: &[&str]) -> place::Launch {
    place.launch_by(standin.command(shoal()), run, &[&ON_TWO[..], more].concat())
}

/// The stand-in has seen no race, no overrun and no leak in any process that has ended by itself.
#[track_caller]
fn is_clean(standin: &StandIn) {
    let reports = standin.reports();
    assert!(!reports.is_empty());
    reports.iter().for_each(shoal_standin_driver::report::Report::assert_clean);
}

/// What each cell's memory was planned to be, and the most of it that was in use, as the workers' logs say: at the end of
/// every plan, cell by cell.
fn memory_in_use(place: &Place, run: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for worker in 0.. {
        let log = place.run_dir(run).join(format!("logs/worker-{worker}.log"));
        let Ok(text) = std::fs::read_to_string(log) else { break };
        for line in
            text.lines().filter(|line| line.contains("the most memory of a GPU that a cell"))
        {
            let number =
                |name: &str| line.split(name).nth(1)?.split_whitespace().next()?.parse().ok();
            found.push((number("planned=").unwrap(), number("bytes=").unwrap()));
        }
    }
    found
}

/// Cells have taken all that was planned for them and no byte more, and the launch has told the sum.
#[track_caller]
fn used_as_planned(place: &Place, run: &str, ended: &Ended) {
    let memory = memory_in_use(place, run);
    // More than one plan where a busy machine made a worker slow enough to give cells away.
    let plans = memory.len() / 4;
    assert!(0 < plans && memory.len() == 4 * plans, "of four cells: {memory:?}");
    for (planned, used) in &memory {
        assert_eq!(used, planned, "{memory:?}");
    }
    assert!(ended.out.contains("\n  memory of cells: worker-0 "), "{}", ended.out);
}

/// Figures that a GPU and a CPU must agree on, by step: losses, and the gradients' norm.
fn figures(place: &Place, run: &str) -> Vec<[f64; 2]> {
    let lines = place.losses(run).into_iter();
    let parse = |line: String| serde_json::from_str::<Value>(&(line + "}")).unwrap();
    let rows = lines.map(parse);
    rows.map(|row| ["loss", "grad_norm"].map(|name| row[name].as_f64().unwrap())).collect()
}

/// Both keep activations and gradients in BF16, 8 bits of a number, and differ in the order of sums: a value next
/// to the middle between two BF16 numbers becomes one or the other. A mean of many such is closer than one of
/// them; a norm hangs on its largest parts, and on codes of 4 bits where such a value is quantised.
#[track_caller]
fn agree(gpu: &[[f64; 2]], cpu: &[[f64; 2]]) {
    let bounds = [2_f64.powi(-9), 2_f64.powi(-5)];
    assert_eq!(gpu.len(), cpu.len());
    for (step, (gpu, cpu)) in (1..).zip(gpu.iter().zip(cpu)) {
        for ((gpu, cpu), bound) in gpu.iter().zip(cpu).zip(bounds) {
            let close = (gpu - cpu).abs() <= bound * cpu.abs();
            assert!(close, "step {step}: {gpu} on the GPU, {cpu} on the CPU, bound {bound}");
        }
    }
}

/// A run on one 4090 in FP8 that nobody disturbed.
fn undisturbed() -> &'static (Vec<String>, Vec<[f64; 2]>) {
    static ONCE: OnceLock<(Vec<String>, Vec<[f64; 2]>)> = OnceLock::new();
    ONCE.get_or_init(|| {
        let (place, standin) = (Place::new("device-gpu", &manifest(STEPS)), card("4090"));
        let ended = launch(&place, &standin, "run", &[]).ended_within(SECONDS);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        let told = "device: cuda:0 NVIDIA GeForce RTX 4090, 16.0MB each: worker-0, worker-1";
        assert!(ended.out.contains(told), "{}", ended.out);
        is_clean(&standin);
        used_as_planned(&place, "run", &ended);
        (place.losses("run"), figures(&place, "run"))
    })
}

/// The same on the CPU, in any precision.
fn on_cpu(name: &str, more: &[&str]) -> Vec<[f64; 2]> {
    let place = Place::new(name, &manifest(STEPS));
    let ended = place
        .launch("run", &[&ON_TWO[..2], &["--set", "workers.device=cpu"], more].concat())
        .done();
    assert!(ended.out.contains("device: CPU (spec.workers.device)"), "{}", ended.out);
    figures(&place, "run")
}

#[test]
fn a_run_on_a_gpu_is_the_run_on_the_cpu_within_rounding() {
    agree(&undisturbed().1, &on_cpu("device-cpu", &[]));
}

#[test]
fn a_worker_that_is_lost_changes_no_bit_on_gpus_either() {
    let (place, standin) = (Place::new("device-lost", &manifest(STEPS)), card("4090"));
    let mut launch = launch(&place, &standin, "run", &[]);
    wait(SECONDS, "steps on a GPU", || place.losses("run").len() >= 5);
    signal(place.workers("run")[1].1, "KILL");
    let ended = launch.ended_within(SECONDS);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.err.contains("worker-1 is lost"), "{}", ended.err);
    assert!(ended.err.contains("(from memory; "), "{}", ended.err);
    assert_eq!(place.losses("run"), undisturbed().0, "as text");
    is_clean(&standin);
}

/// A launch that a card's failure ends, all or nothing.
#[track_caller]
fn fails(place: &Place, failure: &str, words: &[&str]) -> Ended {
    let standin = card("4090").fail(failure);
    let settings = ["--set", "workers.restarts=0", "--set", "workers.min=2"];
    let ended = launch(place, &standin, "run", &settings).ended_within(SECONDS);
    assert_eq!(ended.code, Some(1), "{failure}: {}", ended.err);
    for wanted in words {
        assert!(ended.err.contains(wanted), "{failure}: want {wanted:?} in:\n{}", ended.err);
    }
    place.no_worker_is_left("run");
    ended
}

#[test]
fn a_card_that_fails_ends_the_run_by_name_and_it_goes_on_elsewhere() {
    let place = Place::new("device-fails", &manifest(STEPS));
    // In the midst of training: what is committed stays, and another device goes on from the checkpoint.
    fails(
        &place,
        "lost:30000",
        &["worker-", "GPU: ", "DEVICE_UNAVAILABLE", "last committed step: "],
    );
    let committed = place.losses("run").len();
    let cpu = ["--set", "workers.device=cpu", "--set", "workers.local=1"];
    let ended = place.launch("run", &cpu).done();
    assert!(ended.err.contains("continuing after step "), "{committed}: {}", ended.err);
    assert!(ended.err.contains("a GPU and a CPU agree within rounding"), "{}", ended.err);
    agree(&figures(&place, "run"), &undisturbed().1);
}

/// Every way in which the stand-in fails a call, on its way to the first step. The calls are those that a worker makes; the
/// launcher's own are in the test below.
#[test]
fn whatever_a_card_refuses_is_told_by_its_name() {
    let place = Place::new("device-refuses", &manifest(STEPS));
    for (failure, words) in [
        ("alloc:1", "out of memory on the GPU: the memory of cell-"),
        ("launch:7", "CUDA_ERROR_LAUNCH_FAILED"),
        ("launch:embedding_forward", "CUDA_ERROR_LAUNCH_FAILED"),
        ("lost:400", "CUDA_ERROR_DEVICE_UNAVAILABLE"),
        ("lost:400:unknown", "CUDA_ERROR_UNKNOWN"),
        ("cuLaunchKernel:3:launch_out_of_resources", "GPU: cuLaunchKernel: CUDA_ERROR_LAUNCH_OUT"),
        ("cuMemHostAlloc:2:out_of_memory", "GPU: cuMemHostAlloc: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuMemcpyHtoDAsync_v2:3:unknown", "GPU: cuMemcpyHtoDAsync: CUDA_ERROR_UNKNOWN"),
        ("cuMemcpyDtoHAsync_v2:9:unknown", "GPU: cuMemcpyDtoHAsync: CUDA_ERROR_UNKNOWN"),
        ("cuMemsetD8Async:2:unknown", "GPU: cuMemsetD8Async: CUDA_ERROR_UNKNOWN"),
        ("cuStreamCreate:2:unknown", "GPU: cuStreamCreate: CUDA_ERROR_UNKNOWN"),
        ("cuStreamWaitEvent:1:unknown", "GPU: cuStreamWaitEvent: CUDA_ERROR_UNKNOWN"),
        ("cuEventCreate:1:unknown", "GPU: cuEventCreate: CUDA_ERROR_UNKNOWN"),
        ("cuEventRecord:5:unknown", "GPU: cuEventRecord: CUDA_ERROR_UNKNOWN"),
        ("cuEventSynchronize:5:unknown", "GPU: cuEventSynchronize: CUDA_ERROR_UNKNOWN"),
    ] {
        let ended = fails(&place, failure, &["worker-", words]);
        assert!(place.losses("run").is_empty(), "{failure}: {}", ended.err);
    }
}

#[test]
fn a_device_that_is_not_there_is_refused_before_anything_starts() {
    let place = Place::new("device-none", &manifest(2));
    for (cards, fail, device, words) in [
        ("none", "", "cuda", "this machine has no GPU"),
        ("4090", "", "cuda:1", "no such GPU: asked for 1, this machine has 1"),
        ("4090", "init:unknown", "cuda", "cuInit: CUDA_ERROR_UNKNOWN"),
    ] {
        let standin = card(cards).fail(fail);
        let device = format!("workers.device={device}");
        let ended =
            launch(&place, &standin, "run", &["--set", &device]).ended_within(PATIENCE_SECONDS);
        assert_eq!(ended.code, Some(2), "{}", ended.err);
        assert!(ended.err.contains(words) && ended.err.contains("workers.device"), "{}", ended.err);
    }
    // A card that is there and does not do.
    for (variable, value, words) in [
        ("SHOAL_STANDIN_DRIVER", "11.4", "driver too old for this PTX: has CUDA 11.4, needs 12.4"),
        ("SHOAL_STANDIN_COMPUTE_MODE", "prohibited", "is not free: its compute mode is prohibited"),
        ("SHOAL_STANDIN_MEMORY", "1MiB", "out of memory on the GPU: the cells"),
    ] {
        let standin = card("4090").set(variable, value);
        let cuda = ["--set", "workers.device=cuda"];
        let ended = launch(&place, &standin, "run", &cuda).ended_within(PATIENCE_SECONDS);
        assert_eq!(ended.code, Some(2), "{variable}={value}: {}", ended.err);
        assert!(ended.err.contains(words), "{variable}={value}: {}", ended.err);
    }
    let f32 = ["--set", "workers.device=cuda", "--set", "training.precision=f32"];
    let ended = launch(&place, &card("4090"), "run", &f32).ended_within(PATIENCE_SECONDS);
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    assert!(ended.err.contains("it is the CPU's alone"), "{}", ended.err);

    // Where nothing was asked for, the CPU trains, and it is said why.
    let ended = launch(&place, &card("none"), "run", &[]).done();
    assert!(ended.out.contains("device: CPU (this machine has no GPU)"), "{}", ended.out);
}

/// Every image that ships, in both precisions: minutes of the stand-in, so only those that are asked for.
#[test]
fn every_card_in_every_precision_is_the_cpu_within_rounding() {
    let Ok(asked) = std::env::var("CARDS") else {
        println!("skipped: CARDS=3090-bf16,5090-fp8 tries these; 4090-fp8 is tried always");
        return;
    };
    for pair in asked.split(',') {
        let (name, precision) = pair.split_once('-').unwrap();
        let precision = format!("training.precision={precision}");
        let cpu = on_cpu("device-every-cpu", &["--set", &precision]);
        let (place, standin) = (Place::new("device-every", &manifest(STEPS)), card(name));
        let ended = launch(&place, &standin, "run", &["--set", &precision]).ended_within(SECONDS);
        assert_eq!(ended.code, Some(0), "{pair}: {}", ended.err);
        is_clean(&standin);
        agree(&figures(&place, "run"), &cpu);
    }
}

/// The plan of a cell's memory holds under every schedule and for cells of every kind, alone or with others.
#[test]
fn memory_is_what_was_planned_whatever_the_schedule() {
    let place = Place::new("device-memory", &manifest(2));
    for (run, settings) in [
        (
            "zero-bubble",
            &["parallelism.schedule=zb-h1", "training.precision=bf16", "training.batch=2"][..],
        ),
        (
            "interleaved",
            &[
                "parallelism.schedule=interleaved",
                "parallelism.chunks=2",
                "model.num_hidden_layers=4",
                "training.ema=0.9",
                "training.batch=2",
            ][..],
        ),
        ("uneven", &["training.batch=3", "training.microbatch=2", "training.sequence=24"][..]),
    ] {
        let standin = card("4090");
        let settings: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
        let ended = launch(&place, &standin, run, &settings).ended_within(SECONDS);
        assert_eq!(ended.code, Some(0), "{run}: {}", ended.err);
        is_clean(&standin);
        used_as_planned(&place, run, &ended);
    }
}

/// What does not fit is refused by the sizes of its largest parts, before a worker is started.
#[test]
fn cells_that_do_not_fit_are_refused_with_what_they_need() {
    let place = Place::new("device-small", &manifest(2));
    let little = ["--set", "workers.device_mb=1", "--force"];
    let ended = launch(&place, &card("4090"), "run", &little).ended_within(PATIENCE_SECONDS);
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    for words in [
        "out of memory on the GPU: the cells of worker-0 need ",
        " of cuda:0, of which they may have 500.0kB: cell-",
        "masters ",
        "lower spec.training.microbatch",
    ] {
        assert!(ended.err.contains(words), "want {words:?} in:\n{}", ended.err);
    }
}

/// One worker with two cards has cells on both.
#[test]
fn one_worker_may_have_several_cards() {
    let place = Place::new("device-several", &manifest(2));
    let standin = card("4090,3090");
    let settings = ["--set", "workers.local=1", "--set", "workers.device_mb=16"];
    let ended = launch(&place, &standin, "run", &settings).ended_within(SECONDS);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    is_clean(&standin);
    let reports = standin.reports();
    let used = |report: &&shoal_standin_driver::report::Report| {
        report.memory.len() == 2 && report.memory.iter().all(|card| card.high_water > 0)
    };
    assert_eq!(reports.iter().filter(used).count(), 1, "one process has used both");
}
