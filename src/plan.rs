//! The `plan` verb: what a job would take on a fleet. Everything is decided in `shoal_plan::planner`; here it is
//! read, printed and drawn.

mod json;
mod picture;
mod report;
mod snapshots;

use std::fs;
use std::path::Path;

use shoal_plan::cost::Software;
use shoal_plan::fleet::{self, Fleet};
use shoal_plan::job::Job;
use shoal_plan::manifest::Manifest;
use shoal_plan::planner::snapshots::{Choice, Chosen, Price, choose, price};
use shoal_plan::planner::{self, Answer, Layout, Question};

use crate::cli::{self, Output};
use crate::exit::Stopped;
use crate::{manifest, show, terminal};

/// A changed fleet, and what became of the plan.
pub(crate) struct Trial {
    pub change: String,
    /// Tokens a second; `None` where nothing fits.
    pub tokens_per_s: Option<f64>,
    pub grid: String,
}

/// What is printed.
pub(crate) struct Planned<'a> {
    pub question: Question<'a>,
    pub layout: Layout<'a>,
    pub answer: Answer,
    pub tokens: f64,
    pub trials: Vec<Trial>,
    pub snapshots: Snapshots,
}

/// What snapshots in memory take, and how often they are taken.
pub(crate) struct Snapshots {
    pub price: Price,
    pub chosen: Chosen,
}

/// Plans, and prints.
pub(crate) fn plan(args: &cli::Plan) -> Result<(), Stopped> {
    let manifest = manifest::parsed(&args.manifest)?;
    let job = manifest.job.clone();
    let fleet = read_fleet(&args.fleet)?;
    let software = Software::SHOAL;
    let question = Question { job: &job, fleet: &fleet, software };
    let mut changed = Vec::new();
    for change in &args.what_if {
        let other =
            fleet::what_if(&fleet, change).map_err(|error| Stopped::Input(error.to_string()))?;
        changed.push((change.clone(), other));
    }
    let answer = planner::plan(&question).map_err(|misfit| impossible(&question, &misfit))?;
    let layout = Layout::of(&fleet);
    let snapshots = snapshots(&manifest, &question, &layout, &answer)?;
    if args.losses && fleet.rigs.len() > 1 {
        for rig in &fleet.rigs {
            let change = format!("rig-={}", rig.name);
            let other = fleet::what_if(&fleet, &change)
                .map_err(|error| Stopped::Input(error.to_string()))?;
            changed.push((change, other));
        }
    }
    let trials = changed.into_iter().map(|(change, fleet)| trial(&job, change, &fleet)).collect();
    let training = &job.training;
    let own = training.sequences_before(training.steps + 1) as f64 * f64::from(training.sequence);
    let tokens = args.tokens.unwrap_or(own);
    let planned = Planned { question, layout, answer, tokens, trials, snapshots };
    match args.output {
        Output::Table => terminal::data(&report::text(&planned)),
        Output::Json => terminal::data(&show::json(&json::value(&planned))?),
    }
    if let Some(path) = &args.svg {
        let failed = |error| Stopped::Input(format!("cannot write {}: {error}", path.display()));
        fs::write(path, picture::svg(&planned.answer.prediction.timeline)).map_err(failed)?;
        terminal::note(&format!("one step of the slowest pipeline: {}", path.display()));
    }
    Ok(())
}

/// How often snapshots are taken under this plan; refused where the manifest wants what cannot be.
fn snapshots(
    manifest: &Manifest,
    question: &Question<'_>,
    layout: &Layout<'_>,
    answer: &Answer,
) -> Result<Snapshots, Stopped> {
    let price = price(question, layout, &answer.candidate, &answer.prediction);
    let choice = Choice {
        memory: manifest.job.checkpoint.memory,
        every_given: manifest.says("spec.checkpoint.memory.every"),
        copies_given: manifest.says("spec.checkpoint.memory.copies"),
        steps: manifest.job.training.steps,
    };
    let chosen = choose(&price, choice, &layout.network).map_err(|refusal| {
        let error = manifest.error_at(refusal.path, &refusal.what, &refusal.help);
        Stopped::Input(error.to_string())
    })?;
    Ok(Snapshots { price, chosen })
}

fn read_fleet(path: &Path) -> Result<Fleet, Stopped> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path)
        .map_err(|error| Stopped::Input(format!("cannot read the fleet {name}: {error}")))?;
    fleet::parse(&name, &text).map_err(|error| Stopped::Input(error.to_string()))
}

fn trial(job: &Job, change: String, fleet: &Fleet) -> Trial {
    let answer = planner::plan(&Question { job, fleet, software: Software::SHOAL });
    let (tokens_per_s, grid) = match answer {
        Ok(answer) => (Some(answer.prediction.tokens_per_s), answer.candidate.grid.to_string()),
        Err(_) => (None, String::new()),
    };
    Trial { change, tokens_per_s, grid }
}

/// Nothing fits: what is missing, and what would help.
fn impossible(question: &Question<'_>, misfit: &planner::Misfit) -> Stopped {
    let mut text =
        format!("this fleet has no room for the job: {}", planner::advice::lacking(misfit));
    let remedies = planner::advice::remedies(question);
    if remedies.is_empty() {
        text += "\n  no change that was tried makes it fit: take a smaller model";
    } else {
        text += "\n  it would fit with";
        for remedy in remedies {
            text.push_str("\n    ");
            text.push_str(&remedy);
        }
    }
    Stopped::Failed(anyhow::anyhow!(text))
}
