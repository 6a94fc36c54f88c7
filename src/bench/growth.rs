//! `shoal bench growth`: one size grows, and the cost of a token with it.

use serde::Serialize;
use shoal_bench::growth::Over;
use shoal_bench::peak::Peak;
use shoal_bench::train::{Cell, Length, random_tokens};
use shoal_plan::job::{Precision, Recompute};
use shoal_plan::model::ModelConfig;

use super::meter::Process;
use super::{NOISE, card, pool, seconds};
use crate::cli::{self, Growth, Output};
use crate::exit::Stopped;
use crate::show::{json, table};
use crate::terminal::{data, note};

#[derive(Serialize)]
struct Report {
    preset: &'static str,
    precision: Precision,
    threads: usize,
    peak: Peak,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    over: &'static str,
    size: usize,
    batch: usize,
    tokens: usize,
    parameters: u64,
    flops_per_token: f64,
    tokens_per_second: f64,
    gflops: f64,
    share_of_peak: f64,
    /// Seconds a FLOP in those of the family's fastest row: 1 where cost grew as the arithmetic did.
    cost_per_flop: f64,
}

pub(super) fn bench(args: &Growth) -> Result<(), Stopped> {
    card::without_card(args.sizes.preset, false)?;
    let (sizes, length) = (args.sizes, Length::Seconds(seconds(args.seconds)?));
    let model = ModelConfig { num_nextn_predict_layers: 0, ..sizes.preset.model() };
    let precision = Precision::from(sizes.precision);
    let base = Cell {
        text: random_tokens(NOISE, model.vocab_size.min(256), 1),
        model,
        precision,
        recompute: Recompute::None,
        batch: sizes.batch(),
        tokens: sizes.tokens(),
        microbatches: 1,
        seed: 1,
    };
    let (pool, process) = (pool(sizes.threads)?, Process::watch());
    let peak = pool.install(|| Peak::measure(&process));
    let mut rows = Vec::new();
    for (over, family) in families(args.over) {
        let first = rows.len();
        for (size, cell) in family.cells(&base) {
            let trained = pool.install(|| cell.measure(length, &process))?;
            note(&format!("{over} {size}: {:.0} tokens/s", trained.tokens_per_second));
            rows.push(Row {
                over,
                size,
                batch: cell.batch,
                tokens: cell.tokens,
                parameters: trained.parameters,
                flops_per_token: trained.flops_per_token,
                tokens_per_second: trained.tokens_per_second,
                gflops: trained.gflops,
                share_of_peak: trained.gflops / peak.gflops(precision != Precision::F32),
                cost_per_flop: 1.0,
            });
        }
        let fastest = rows[first..].iter().map(|row| row.gflops).fold(0.0, f64::max);
        for row in &mut rows[first..] {
            row.cost_per_flop = fastest / row.gflops;
        }
    }
    let (preset, threads) = (sizes.preset.name(), pool.current_num_threads());
    let report = Report { preset, precision, threads, peak, rows };
    match args.output {
        Output::Table => data(table(&shown(&report)).trim_end()),
        Output::Json => data(&json(&report)?),
    }
    Ok(())
}

fn families(over: Option<cli::Over>) -> Vec<(&'static str, Over)> {
    let wanted = over.map(|over| match over {
        cli::Over::Tokens => Over::Tokens,
        cli::Over::Experts => Over::Experts,
        cli::Over::Layers => Over::Layers,
        cli::Over::Batch => Over::Batch,
    });
    let name = |over| match over {
        Over::Tokens => "tokens",
        Over::Experts => "experts",
        Over::Layers => "layers",
        Over::Batch => "batch",
    };
    let all = Over::ALL.into_iter().filter(|over| wanted.is_none_or(|wanted| wanted == *over));
    all.map(|over| (name(over), over)).collect()
}

fn shown(report: &Report) -> Vec<Vec<String>> {
    let columns = [
        "over",
        "size",
        "sequences",
        "tokens",
        "parameters, M",
        "MFLOP/token",
        "tokens/s",
        "GFLOP/s",
        "of peak",
        "cost per FLOP",
    ];
    let mut lines = vec![columns.map(str::to_owned).to_vec()];
    lines.extend(report.rows.iter().map(|row| {
        vec![
            row.over.to_owned(),
            row.size.to_string(),
            row.batch.to_string(),
            row.tokens.to_string(),
            format!("{:.1}", row.parameters as f64 / 1e6),
            format!("{:.2}", row.flops_per_token / 1e6),
            format!("{:.0}", row.tokens_per_second),
            format!("{:.1}", row.gflops),
            format!("{:.0} %", row.share_of_peak * 100.0),
            format!("{:.2}", row.cost_per_flop),
        ]
    }));
    lines
}
