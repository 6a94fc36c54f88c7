//! `shoal bench train`: whole steps of one cell in this process.

use std::fs;

use serde::Serialize;
use shoal_bench::peak::Peak;
use shoal_bench::train::{Cell, Length, Trained, random_tokens};
use shoal_plan::job::Precision;
use shoal_plan::model::ModelConfig;

use super::meter::{Process, peak_resident_bytes};
use super::{NOISE, pool, seconds};
use crate::cli::{Output, Sizes, Train};
use crate::exit::Stopped;
use crate::progress::short;
use crate::show::{json, table};
use crate::terminal::{data, note};

/// One cell on this machine.
#[derive(Serialize)]
struct Report {
    preset: &'static str,
    precision: Precision,
    threads: usize,
    batch: usize,
    tokens: usize,
    microbatches: usize,
    mtp: u32,
    text: String,
    #[serde(flatten)]
    trained: Trained,
    peak: Peak,
    /// Of the peak of the multiply-adds that this precision's products could use: BF16 where the CPU
    /// has it (FP8 codes are exact in BF16), FP32 for f32.
    share_of_peak: f64,
    peak_resident_bytes: Option<u64>,
    /// Cores kept busy by other processes meanwhile.
    others_cores: Option<f64>,
}

pub(super) fn bench(args: &Train) -> Result<(), Stopped> {
    let Sizes { preset, precision, threads, .. } = args.sizes;
    let precision = Precision::from(precision);
    let model = ModelConfig { num_nextn_predict_layers: args.mtp, ..preset.model() };
    let text = match &args.text {
        None => random_tokens(NOISE, model.vocab_size.min(256), args.seed),
        Some(path) => {
            let bytes = fs::read(path);
            let wrong = |error| Stopped::Input(format!("reading {}: {error}", path.display()));
            bytes.map_err(wrong)?.into_iter().map(u32::from).collect()
        }
    };
    let length = match args.steps {
        Some(steps) => Length::Steps(steps),
        None => Length::Seconds(seconds(args.seconds)?),
    };
    let cell = Cell {
        model,
        precision,
        batch: args.sizes.batch(),
        tokens: args.sizes.tokens(),
        microbatches: args.microbatches,
        text,
        seed: args.seed,
    };
    let pool = pool(threads)?;
    let process = Process::watch();
    let trained = pool.install(|| cell.measure(length, &process))?;
    let (others_cores, resident) = (process.others_cores(), peak_resident_bytes());
    let peak = pool.install(|| Peak::measure(&process));
    let report = Report {
        preset: preset.name(),
        precision,
        threads: pool.current_num_threads(),
        batch: cell.batch,
        tokens: cell.tokens,
        microbatches: cell.microbatches,
        mtp: args.mtp,
        text: args.text.as_ref().map_or("noise".to_owned(), |path| path.display().to_string()),
        share_of_peak: trained.gflops / peak.gflops(precision != Precision::F32),
        trained,
        peak,
        peak_resident_bytes: resident,
        others_cores,
    };
    if report.others_cores.is_some_and(|cores| cores > 0.1) {
        note("other processes were at work: the figures are low");
    }
    match args.output {
        Output::Table => data(table(&shown(&report)).trim_end()),
        Output::Json => data(&json(&report)?),
    }
    Ok(())
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

fn parts(trained: &Trained) -> String {
    let parts = [
        ("forward", trained.forward_seconds),
        ("backward", trained.backward_seconds),
        ("update", trained.update_seconds),
    ];
    let parts = parts.map(|(name, seconds)| format!("{name} {}", milliseconds(seconds)));
    parts.join(", ")
}

fn shown(report: &Report) -> Vec<Vec<String>> {
    let Report { trained, peak, .. } = report;
    let bytes = |bytes: u64| format!("{}B", short(bytes as f64));
    let unknown = || "unknown".to_owned();
    let rows = [
        (
            "cell",
            format!(
                "{} {:?}, {} MTP, {} sequences of {} tokens in {} microbatches, {} threads",
                report.preset,
                report.precision,
                report.mtp,
                report.batch,
                report.tokens,
                report.microbatches,
                report.threads
            ),
        ),
        (
            "speed",
            format!("{:.0} tokens/s, median of {}", trained.tokens_per_second, trained.steps),
        ),
        (
            "step",
            format!(
                "{} ({} to {})",
                milliseconds(trained.median_seconds),
                milliseconds(trained.fastest_seconds),
                milliseconds(trained.slowest_seconds)
            ),
        ),
        ("parts", parts(trained)),
        (
            "arithmetic",
            format!(
                "{:.1} GFLOP/s, {:.0} % of the peak ({:.2} MFLOP a token)",
                trained.gflops,
                report.share_of_peak * 100.0,
                trained.flops_per_token / 1e6
            ),
        ),
        (
            "peak",
            format!(
                "bf16 {}, f32 {:.0} GFLOP/s; memory: read {:.1}, triad {:.1} GB/s",
                peak.bf16_gflops.map_or("none".to_owned(), |gflops| format!("{gflops:.0}")),
                peak.f32_gflops,
                peak.read_gigabytes_per_second,
                peak.triad_gigabytes_per_second
            ),
        ),
        (
            "memory",
            format!(
                "{} at most, of which the cell holds {} after a forward pass",
                report.peak_resident_bytes.map_or_else(unknown, bytes),
                bytes(trained.held_bytes as u64)
            ),
        ),
        (
            "allocations",
            trained.allocations_per_step.map_or_else(unknown, |n| format!("{n:.0} a step")),
        ),
        ("loss", format!("{:.3}, then {:.3}", trained.loss_first, trained.loss_last)),
        (
            "others",
            report.others_cores.map_or_else(unknown, |cores| format!("{cores:.2} cores busy")),
        ),
    ];
    rows.into_iter().map(|(name, text)| vec![name.to_owned(), text]).collect()
}
