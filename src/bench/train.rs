//! `shoal bench train`: whole steps of one cell in this process.

use std::fs;

use serde::Serialize;
use shoal_bench::cuda::{Card, CardPeak, Description, Effort, Unit};
use shoal_bench::peak::Peak;
use shoal_bench::train::{Cell, Length, Trained, random_tokens};
use shoal_plan::job::{Precision, Recompute};
use shoal_plan::model::ModelConfig;

use super::meter::{Process, peak_resident_bytes};
use super::{NOISE, card, pool, seconds};
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
    recompute: Recompute,
    threads: usize,
    batch: usize,
    tokens: usize,
    microbatches: usize,
    mtp: u32,
    text: String,
    #[serde(flatten)]
    trained: Trained,
    #[serde(flatten)]
    machine: Machine,
    /// Of the peak of the multiply-adds that this precision's products could use: BF16 where the CPU
    /// has it (FP8 codes are exact in BF16), FP32 for f32; on a GPU its tensor cores for it, as stated where they are.
    share_of_peak: f64,
    peak_resident_bytes: Option<u64>,
    /// Cores kept busy by other processes meanwhile.
    others_cores: Option<f64>,
}

/// What computed, and its peaks.
#[derive(Serialize)]
#[serde(untagged)]
enum Machine {
    Cpu { peak: Peak },
    Gpu { device: Box<Description>, effort: Effort, peak: Box<CardPeak> },
}

impl Machine {
    fn gpu(card: &Card, effort: Effort) -> Result<Self, Stopped> {
        let peak = Box::new(CardPeak::measure(card, &effort)?);
        Ok(Self::Gpu { device: Box::new(card.description()), effort, peak })
    }

    /// In GFLOP/s.
    fn peak(&self, precision: Precision) -> f64 {
        match self {
            Self::Cpu { peak } => peak.gflops(precision != Precision::F32),
            Self::Gpu { peak, .. } => {
                let fp8 = precision == Precision::Fp8;
                let unit = if fp8 { Unit::Fp8Products } else { Unit::Bf16Products };
                peak.of(unit).expect("products have a peak that was measured, if none is stated")
            }
        }
    }

    fn peaks(&self) -> String {
        match self {
            Self::Cpu { peak } => format!(
                "bf16 {}, f32 {:.0} GFLOP/s; memory: read {:.1}, triad {:.1} GB/s",
                peak.bf16_gflops.map_or("none".to_owned(), |gflops| format!("{gflops:.0}")),
                peak.f32_gflops,
                peak.read_gigabytes_per_second,
                peak.triad_gigabytes_per_second
            ),
            Self::Gpu { peak, .. } => card::peaks(peak),
        }
    }
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
        recompute: args.recompute.into(),
        batch: args.sizes.batch(),
        tokens: args.sizes.tokens(),
        microbatches: args.microbatches,
        text,
        seed: args.seed,
    };
    let card = card::open(&args.device)?;
    // Whole steps keep all parameters on the host, too.
    card::without_card(preset, args.quick && card.is_none())?;
    let device_bytes = Some(args.device_mb).filter(|mb| *mb > 0).map(|mb| mb * 1_000_000);
    let pool = pool(threads)?;
    let process = Process::watch();
    let trained = pool.install(|| match &card {
        None => cell.measure(length, &process),
        Some(card) => cell.measure_on((card, device_bytes), length, &process),
    })?;
    let (others_cores, resident) = (process.others_cores(), peak_resident_bytes());
    let machine = match &card {
        None => Machine::Cpu { peak: pool.install(|| Peak::measure(&process)) },
        Some(card) => Machine::gpu(card, card::effort(args.quick))?,
    };
    let report = Report {
        preset: preset.name(),
        precision,
        recompute: cell.recompute,
        threads: pool.current_num_threads(),
        batch: cell.batch,
        tokens: cell.tokens,
        microbatches: cell.microbatches,
        mtp: args.mtp,
        text: args.text.as_ref().map_or("noise".to_owned(), |path| path.display().to_string()),
        share_of_peak: trained.gflops / machine.peak(precision),
        trained,
        machine,
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

fn again(recompute: Recompute) -> &'static str {
    match recompute {
        Recompute::None => "",
        Recompute::Attention => ", attention computed again",
        Recompute::FeedForward => ", feed-forward computed again",
        Recompute::All => ", layers computed again",
    }
}

fn shown(report: &Report) -> Vec<Vec<String>> {
    let Report { trained, machine, .. } = report;
    let bytes = |bytes: u64| format!("{}B", short(bytes as f64));
    let unknown = || "unknown".to_owned();
    let again = again(report.recompute);
    let rows = [
        (
            "cell",
            format!(
                "{} {:?}, {} MTP, {} sequences of {} tokens in {} microbatches{again}, {} threads",
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
        ("peak", machine.peaks()),
        (
            "memory",
            format!(
                "{} at most, of which the cell holds {} after a forward pass{}",
                report.peak_resident_bytes.map_or_else(unknown, bytes),
                bytes(trained.held_bytes as u64),
                trained.device_bytes.map_or_else(String::new, |used| {
                    format!("; {} of the GPU", bytes(used as u64))
                })
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
    let device = match machine {
        Machine::Cpu { .. } => None,
        Machine::Gpu { device, .. } => Some(("device", card::device(device))),
    };
    let rows = device.into_iter().chain(rows);
    rows.map(|(name, text)| vec![name.to_owned(), text]).collect()
}
