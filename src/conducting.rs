//! The `conduct` verb: conducts a run for a launcher, and never outlives it. One that dies is started
//! anew by the launcher, and goes on where the last one was.

use std::convert::Infallible;
use std::io::{BufRead, Read};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use shoal_coordinator::{Error, Metrics, Settings};
use shoal_plan::job::Job;
use shoal_plan::placement::make_plan;
use shoal_plan::plan::RunId;
use shoal_plan::standing::Standing;
use shoal_worker::Secret;

use crate::exit::Stopped;
use crate::run_dir::RunDir;
use crate::{cli, launch, logging, scrape};

/// What the launcher tells each coordinator of a run: one line of JSON, through a pipe, since a command
/// line is for everyone to read.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Told {
    pub run: RunId,
    /// In hexadecimal.
    pub secret: String,
    pub job: Job,
    /// Of the checkpoint from which the launch goes on.
    pub resume_from: Option<Standing>,
    /// Workers that suffice to begin, and how long they are waited for; by default all that are started here.
    #[serde(default)]
    pub first: Option<u32>,
    #[serde(default)]
    pub join_deadline_ms: Option<u64>,
}

/// Conducts until the launcher is gone; then ends the process. Returns only when it cannot.
pub(crate) fn conduct(args: cli::Coordinator) -> Result<Infallible, Stopped> {
    let conducted: Arc<OnceLock<Metrics>> = Arc::default();
    let stands = Arc::clone(&conducted);
    let stands_at = move || stands.get().map_or((0, 0), Metrics::stands_at);
    logging::to_standard_error(args.log_format, (&args.run_dir, None), stands_at);
    let (settings, port) = begin(&args)?;
    let metrics_dir = RunDir::scrape_targets_of(&args.run_dir);
    end_with_the_launcher();
    let runtime = launch::event_loop()?;
    runtime.block_on(async {
        let running = shoal_coordinator::serve(settings, port).map_err(not_begun)?;
        let figures = conducted.get_or_init(|| running.metrics.clone()).clone();
        let (text, targets) = (move || figures.text(), metrics_dir.clone());
        let scraped = scrape::serve_with_targets(args.metrics_port, text, targets).await?;
        scrape::announce(&metrics_dir, "coordinator", scraped)?;
        let _ = running.ended.await;
        Err(anyhow!("the coordinator has ended by itself: its log says why").into())
    })
}

fn begin(args: &cli::Coordinator) -> anyhow::Result<(Settings, TcpListener)> {
    let by_hand = "`shoal launch` starts the coordinator it needs";
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.context("reading the run's settings from standard input")?;
    let told: Told = serde_json::from_str(&line)
        .with_context(|| format!("standard input has no settings of a run: {by_hand}"))?;
    let secret = Secret::from_hex(&told.secret).context("reading the secret")?;
    let output = std::io::stdout().as_fd().try_clone_to_owned();
    let port = TcpListener::from(output.context("taking over standard output")?);
    port.local_addr().with_context(|| format!("standard output is no port: {by_hand}"))?;
    let settings = Settings {
        run: told.run,
        secret,
        workers_wanted: told.job.workers.local,
        workers_first: told.first.unwrap_or(told.job.workers.local),
        job: told.job,
        resume_from: told.resume_from,
        run_dir: args.run_dir.clone(),
        lease_ms: Settings::LEASE_MS,
        join_deadline_ms: told.join_deadline_ms.unwrap_or(Settings::JOIN_DEADLINE_MS),
        make_plan: |job, workers, generation| {
            make_plan(job, workers, generation).map_err(|error| error.to_string())
        },
    };
    Ok((settings, port))
}

/// What another start would not mend ends the run.
fn not_begun(error: Error) -> Stopped {
    if matches!(error, Error::Journal { .. } | Error::Record { .. } | Error::Ledger { .. }) {
        Stopped::Checkpoint(error.to_string())
    } else {
        Stopped::Failed(anyhow::Error::from(error).context("starting the coordinator"))
    }
}

/// Standard input ends when the launcher does, however it ends. The workers see the same, and what they
/// hold is in the last checkpoint or lost anyway.
fn end_with_the_launcher() {
    std::thread::spawn(|| {
        let mut byte = [0];
        while matches!(std::io::stdin().lock().read(&mut byte), Ok(1)) {}
        tracing::info!("the launcher is gone");
        std::process::exit(0);
    });
}
