//! The GPU that a bench was asked for, what it is in words, and every operation on it against its peaks.

use serde::Serialize;
use shoal_bench::cuda::{Card, CardPeak, Description, Effort, Unit};
use shoal_bench::ops::Shapes;
use shoal_bench::ops::cuda::Measured;
use shoal_plan::device::DeviceChoice;
use shoal_plan::job::Precision;

use crate::cli::{Output, Preset};
use crate::exit::Stopped;
use crate::progress::short;
use crate::show::{json, table};
use crate::terminal::data;

#[derive(Serialize)]
struct Report {
    device: Description,
    effort: Effort,
    preset: &'static str,
    precision: Precision,
    batch: usize,
    tokens: usize,
    peak: CardPeak,
    operations: Vec<Measured>,
    /// All operations, each as often as a step runs it.
    sum_seconds: f64,
}

/// Opens what `--device` names; none: the CPU.
pub(super) fn open(choice: &DeviceChoice) -> Result<Option<Card>, Stopped> {
    let ordinal = match choice {
        DeviceChoice::Cpu => return Ok(None),
        DeviceChoice::Cuda(gpus) if gpus.len() <= 1 => gpus.first().copied().unwrap_or(0),
        DeviceChoice::Auto | DeviceChoice::Cuda(_) => {
            let text = format!("--device is {choice}, want cpu, cuda, or one GPU such as cuda:1");
            return Err(Stopped::Input(text));
        }
    };
    Ok(Some(Card::open(ordinal as usize)?))
}

/// What a CPU is not asked for.
pub(super) fn without_card(preset: Preset, quick: bool) -> Result<(), Stopped> {
    if quick {
        return Err(Stopped::Input("--quick is for a GPU: add --device cuda".to_owned()));
    }
    if preset == Preset::V2LiteLike {
        let text = "--preset v2-lite-like is for single operations on a GPU: \
                    shoal bench ops --device cuda";
        return Err(Stopped::Input(text.to_owned()));
    }
    Ok(())
}

pub(super) fn effort(quick: bool) -> Effort {
    if quick { Effort::QUICK } else { Effort::FULL }
}

pub(super) fn bench(
    card: &Card,
    (shapes, preset): (&Shapes, Preset),
    quick: bool,
    output: Output,
) -> Result<(), Stopped> {
    shapes.check_on()?;
    let effort = effort(quick);
    let peak = CardPeak::measure(card, &effort)?;
    let operations = shapes.measure_on(card, &peak, &effort)?;
    let report = Report {
        device: card.description(),
        effort,
        preset: preset.name(),
        precision: shapes.precision,
        batch: shapes.batch,
        tokens: shapes.tokens,
        peak,
        sum_seconds: operations.iter().map(|row| row.seconds * row.times as f64).sum(),
        operations,
    };
    match output {
        Output::Table => data(shown(&report).trim_end()),
        Output::Json => data(&json(&report)?),
    }
    Ok(())
}

/// The card and its driver in a line.
pub(super) fn device(card: &Description) -> String {
    format!(
        "cuda:{} {}, compute capability {}, {} multiprocessors, {}B, driver for CUDA {}, image {}",
        card.ordinal,
        card.name,
        card.compute_capability,
        card.multiprocessors,
        short(card.memory_bytes as f64),
        card.driver_cuda,
        card.image
    )
}

/// The peaks in a line: reached, and stated.
pub(super) fn peaks(peak: &CardPeak) -> String {
    let stated = |value: Option<f64>, unit: f64| {
        value.map_or("not stated".to_owned(), |value| format!("{:.0}", value / unit))
    };
    format!(
        "copy {:.0} GB/s (memory as stated: {}); product of side {}: BF16 {:.1} TFLOP/s (stated: {}), \
         FP8 {:.1} TFLOP/s (stated: {})",
        peak.copy_gigabytes_per_second,
        stated(peak.stated_memory_gigabytes_per_second, 1.0),
        peak.product_side,
        peak.bf16_product_gflops / 1e3,
        stated(peak.stated_bf16_gflops, 1e3),
        peak.fp8_product_gflops / 1e3,
        stated(peak.stated_fp8_gflops, 1e3),
    )
}

fn shown(report: &Report) -> String {
    let head = format!(
        "{}\n{} {:?}, {} sequences of {} tokens; medians of {} samples\npeaks: {}\n\n",
        device(&report.device),
        report.preset,
        report.precision,
        report.batch,
        report.tokens,
        report.effort.rounds,
        peaks(&report.peak)
    );
    let columns = [
        "operation",
        "shape",
        "us",
        "from",
        "to",
        "GFLOP/s",
        "GB/s",
        "share of peak",
        "times",
        "ms a step",
    ];
    let mut lines = vec![columns.map(str::to_owned).to_vec()];
    lines.extend(report.operations.iter().map(|row| line(row, &report.peak)));
    let sum = format!("\n  all of a step: {:.1} ms", report.sum_seconds * 1e3);
    head + &table(&lines) + &sum
}

fn line(row: &Measured, peak: &CardPeak) -> Vec<String> {
    let product = |stated: Option<f64>, name: &str| match stated {
        Some(_) => format!("of {name}"),
        None => format!("of our {name} product"),
    };
    let (is_product, of) = match row.bound {
        Unit::Bf16Products => (true, product(peak.stated_bf16_gflops, "BF16")),
        Unit::Fp8Products => (true, product(peak.stated_fp8_gflops, "FP8")),
        Unit::F32Products => (true, "of FP32".to_owned()),
        Unit::Memory => (false, "of copy".to_owned()),
        Unit::Link => (false, "of slot".to_owned()),
    };
    let us = |seconds: f64| format!("{:.1}", seconds * 1e6);
    let gflops = if is_product { format!("{:.1}", row.gflops) } else { "-".to_owned() };
    let share = row.share_of_peak;
    vec![
        row.operation.clone(),
        row.shape.clone(),
        us(row.seconds),
        us(row.fastest_seconds),
        us(row.slowest_seconds),
        gflops,
        format!("{:.1}", row.gigabytes_per_second),
        share.map_or("-".to_owned(), |share| format!("{:.0} % {of}", share * 100.0)),
        row.times.to_string(),
        format!("{:.2}", row.seconds * row.times as f64 * 1e3),
    ]
}
