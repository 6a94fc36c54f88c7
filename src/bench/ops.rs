//! `shoal bench ops`: every operation against the peaks of this machine.

use serde::Serialize;
use shoal_bench::ops::{Bound, Measured, Shapes};
use shoal_bench::peak::Peak;
use shoal_plan::job::Precision;

use super::meter::Process;
use super::{card, pool};
use crate::cli::{Ops, Output};
use crate::exit::Stopped;
use crate::show::{json, table};
use crate::terminal::data;

#[derive(Serialize)]
struct Report {
    preset: &'static str,
    precision: Precision,
    threads: usize,
    batch: usize,
    tokens: usize,
    peak: Peak,
    operations: Vec<Measured>,
    /// All operations, each as often as a step runs it.
    sum_seconds: f64,
}

pub(super) fn bench(args: &Ops) -> Result<(), Stopped> {
    let sizes = args.sizes;
    let shapes = Shapes {
        model: sizes.preset.model(),
        precision: sizes.precision.into(),
        batch: sizes.batch(),
        tokens: sizes.tokens(),
    };
    if let Some(card) = card::open(&args.device)? {
        return card::bench(&card, (&shapes, sizes.preset), args.quick, args.output);
    }
    card::without_card(sizes.preset, args.quick)?;
    let (pool, process) = (pool(sizes.threads)?, Process::watch());
    let peak = pool.install(|| Peak::measure(&process));
    let operations = pool.install(|| shapes.measure(&peak, &process))?;
    let report = Report {
        preset: sizes.preset.name(),
        precision: shapes.precision,
        threads: pool.current_num_threads(),
        batch: shapes.batch,
        tokens: shapes.tokens,
        peak,
        sum_seconds: operations.iter().map(|row| row.seconds * row.times as f64).sum(),
        operations,
    };
    match args.output {
        Output::Table => data(shown(&report).trim_end()),
        Output::Json => data(&json(&report)?),
    }
    Ok(())
}

fn shown(report: &Report) -> String {
    let Report { peak, .. } = report;
    let bf16 = peak.bf16_gflops.map_or("none".to_owned(), |gflops| format!("{gflops:.0} GFLOP/s"));
    let head = format!(
        "{} {:?}, {} sequences of {} tokens, {} threads\npeaks: BF16 {bf16}, FP32 {:.0} GFLOP/s, \
         memory read {:.1}, triad {:.1} GB/s\n\n",
        report.preset,
        report.precision,
        report.batch,
        report.tokens,
        report.threads,
        peak.f32_gflops,
        peak.read_gigabytes_per_second,
        peak.triad_gigabytes_per_second
    );
    let columns =
        ["operation", "shape", "us", "GFLOP/s", "GB/s", "share of peak", "times", "ms a step"];
    let mut lines = vec![columns.map(str::to_owned).to_vec()];
    lines.extend(report.operations.iter().map(line));
    let sum = format!("\n  all of a step: {:.1} ms", report.sum_seconds * 1e3);
    head + &table(&lines) + &sum
}

fn line(row: &Measured) -> Vec<String> {
    let (gflops, of) = match row.bound {
        Bound::Bf16Products => (format!("{:.1}", row.gflops), "of BF16"),
        Bound::F32Products => (format!("{:.1}", row.gflops), "of FP32"),
        Bound::Memory => ("-".to_owned(), "of triad"),
    };
    vec![
        row.operation.clone(),
        row.shape.clone(),
        format!("{:.0}", row.seconds * 1e6),
        gflops,
        format!("{:.1}", row.gigabytes_per_second),
        format!("{:.0} % {of}", row.share_of_peak * 100.0),
        row.times.to_string(),
        format!("{:.2}", row.seconds * row.times as f64 * 1e3),
    ]
}
