//! `shoal bench comm`: what workers on one machine move in collectives, against plain TCP between the same
//! processes.

mod member;
mod plain;

use std::process::Child;

use serde::Serialize;
use shoal_bench::median;

use self::member::{Member, Program};
use self::plain::Plain;
use super::seconds;
use crate::cli::{CommArgs, Output};
use crate::exit::Stopped;
use crate::show::{json, table};
use crate::terminal::data;

#[derive(Serialize)]
struct Report {
    workers: u32,
    /// Between the first two processes, before anything of shoal runs.
    tcp: Plain,
    /// 64 bytes there and back, by `send` and `recv`.
    round_trip_seconds: f64,
    rows: Vec<Row>,
}

/// One collective at one size. Rates are the first member's.
#[derive(Serialize)]
struct Row {
    operation: &'static str,
    mib: u32,
    rounds: usize,
    /// Of the median round, from the call to its return.
    seconds: f64,
    fastest_seconds: f64,
    slowest_seconds: f64,
    /// Of the member's tensor, as NCCL's `algbw`.
    gigabytes_per_second: f64,
    /// What leaves a member in a second, as a share of what plain TCP moves both ways at once.
    share_of_tcp: f64,
}

pub(super) fn bench(args: &CommArgs) -> Result<(), Stopped> {
    let program =
        Program { workers: args.workers, mib: args.mib.clone(), seconds: seconds(args.seconds)? };
    if let Some(member) = args.member {
        return Ok(member::serve(member, &program)?);
    }
    let mut others = Others(Vec::new());
    let (first, tcp) = Member::gather(&program, &mut others.0)?;
    let (round_trips, measured) = first.run(&program)?;
    for other in &mut others.0 {
        let status = other.wait().map_err(anyhow::Error::from)?;
        anyhow::Context::context(status.success().then_some(()), "another member failed")?;
    }
    let rows = measured.into_iter().map(|(kind, mib, rounds)| {
        let seconds = median(&rounds);
        let bytes = f64::from(mib) * f64::from(1 << 20);
        let leaves = bytes * kind.leaves(args.workers);
        Row {
            operation: kind.name(),
            mib,
            rounds: rounds.len(),
            seconds,
            fastest_seconds: rounds.iter().copied().fold(f64::INFINITY, f64::min),
            slowest_seconds: rounds.iter().copied().fold(0.0, f64::max),
            gigabytes_per_second: bytes / seconds / 1e9,
            share_of_tcp: leaves / seconds / 1e9 / tcp.both_ways_gigabytes_per_second,
        }
    });
    let rows = rows.collect();
    let round_trip_seconds = median(&round_trips);
    let report = Report { workers: args.workers, tcp, round_trip_seconds, rows };
    match args.output {
        Output::Table => data(shown(&report).trim_end()),
        Output::Json => data(&json(&report)?),
    }
    Ok(())
}

/// The other members. None outlives this one.
struct Others(Vec<Child>);

impl Drop for Others {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended needs no signal.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn shown(report: &Report) -> String {
    let tcp = &report.tcp;
    let head = format!(
        "{} processes on this machine, a cell each, over loopback\nplain TCP: one way {:.2} GB/s, both ways {:.2} GB/s in \
         each, 64 bytes there and back {:.0} us; shoal's {:.0} us\n\n",
        report.workers,
        tcp.one_way_gigabytes_per_second,
        tcp.both_ways_gigabytes_per_second,
        tcp.round_trip_seconds * 1e6,
        report.round_trip_seconds * 1e6,
    );
    let columns = ["collective", "MiB", "rounds", "ms", "from", "to", "GB/s", "leaves, of TCP's"];
    let mut lines = vec![columns.map(str::to_owned).to_vec()];
    for row in &report.rows {
        let ms = |seconds: f64| format!("{:.2}", seconds * 1e3);
        lines.push(vec![
            row.operation.to_owned(),
            row.mib.to_string(),
            row.rounds.to_string(),
            ms(row.seconds),
            ms(row.fastest_seconds),
            ms(row.slowest_seconds),
            format!("{:.2}", row.gigabytes_per_second),
            format!("{:.0} %", row.share_of_tcp * 100.0),
        ]);
    }
    head + &table(&lines)
}
