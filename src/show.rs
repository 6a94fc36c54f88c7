//! What the person reads before and after training: the plan as a table, and the results.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use shoal_plan::arithmetic;
use shoal_plan::job::Job;
use shoal_plan::memory;
use shoal_plan::plan::Plan;
use shoal_plan::report::HELDOUT;
use shoal_plan::standing::Best;
use shoal_plan::work;

use crate::cli;
use crate::cores::Cores;
use crate::exit::Stopped;
use crate::progress::{duration, short};
use crate::run_dir::RunDir;

/// One line about the job, e.g. for the head of the plan.
pub(crate) fn job(job: &Job, n_files: usize) -> String {
    let parameters = arithmetic::parameters(&job.model);
    let training = &job.training;
    let tokens = |batch: u32| short(f64::from(batch) * f64::from(training.sequence));
    let (first, last) = (tokens(training.batch_at(1)), tokens(training.batch));
    let batch = if training.batch_start > 0 { format!("{first} to {last}") } else { last };
    format!(
        "{}: {} parameters, {} at work on each token, {}; {} steps of {batch} tokens from {n_files} files",
        job.name,
        count(parameters.total),
        count(parameters.active),
        training.precision,
        training.steps,
    )
}

/// Parameters as people count them: 671.0B is not 671.0G.
pub(crate) fn count(parameters: u64) -> String {
    short(parameters as f64).replace('G', "B")
}

/// The plan as a table of cells, and the reasons below it.
pub(crate) fn plan(job: &Job, plan: &Plan, cores: &Cores) -> String {
    let header =
        ["cell", "worker", "layers", "experts", "sequences", "work", "memory"].map(str::to_owned);
    let mut rows = vec![header.to_vec()];
    let division = job.largest_division();
    for (id, work) in plan.grid.cells().zip(work::shares(job, plan)) {
        let cell = plan.grid.cell(id);
        let sequences = division.column(plan.grid.column(id));
        rows.push(vec![
            id.0.to_string(),
            plan.host(id).to_string(),
            layers(job, plan, cell.stage),
            range(&plan.experts[cell.expert_shard as usize]),
            (sequences.end - sequences.start).to_string(),
            format!("{:.0} %", 100.0 * work),
            format!("{}B", short(memory::cell_bytes(job, plan, id).total() as f64)),
        ]);
    }
    let mut text = table(&rows);
    text.push_str("\nWhy:\n");
    for (at, part) in (0..).zip(&plan.stages) {
        let (chunk, stage) = (at / plan.grid.stages, at % plan.grid.stages);
        let which = if plan.chunks() > 1 { format!(", chunk {chunk}") } else { String::new() };
        let _ = writeln!(text, "  stage {stage}{which}: {}", part.reason);
    }
    let n_micro = division.n_microbatches();
    let _ = writeln!(text, "  schedule {}", job.pipeline().reason(n_micro));
    for (worker, reason) in &plan.reasons {
        let _ = writeln!(text, "  {worker}: {reason}");
    }
    let _ = writeln!(text, "  {cores}");
    text.trim_end().to_owned()
}

/// The layers of a stage: `0-2`, of several chunks `0, 2`, and the MTP modules at the end.
fn layers(job: &Job, plan: &Plan, stage: u32) -> String {
    let chunks = plan.chunks_of(stage).map(|chunk| range(&chunk.layers));
    let text = chunks.collect::<Vec<_>>().join(", ");
    let mtp = stage + 1 == plan.grid.stages && job.model.num_nextn_predict_layers > 0;
    if mtp { text + " + MTP" } else { text }
}

/// `3` or `0-3`, ends included: the way people count layers.
fn range(range: &std::ops::Range<u32>) -> String {
    match range.end - range.start {
        0 => "-".to_owned(),
        1 => range.start.to_string(),
        _ => format!("{}-{}", range.start, range.end - 1),
    }
}

/// For programs: keys in the order of the fields.
pub(crate) fn json(value: &impl Serialize) -> Result<String, Stopped> {
    serde_json::to_string_pretty(value).map_err(|error| Stopped::Failed(error.into()))
}

/// Columns as wide as their widest entry, two spaces apart, indented by two.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n_columns)
        .map(|i| {
            rows.iter()
                .filter_map(|row| row.get(i))
                .map(|text| text.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(text, width)| format!("  {text:width$}"));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

/// The results in a few lines, from the object in `summary.json`.
pub(crate) fn summary(summary: &Value) -> String {
    let number = |key: &str| summary[key].as_f64().unwrap_or(f64::NAN);
    let mut rows = vec![vec![
        "training loss".to_owned(),
        format!("{:.3} nats per token, mean of the last 10 steps", number("train_loss")),
    ]];
    if let Some(heldout) = summary["heldout_nats_per_byte"].as_f64() {
        let bits = heldout / std::f64::consts::LN_2;
        let text = format!("{heldout:.3} nats per byte ({bits:.2} bits) on text it never saw");
        rows.push(vec!["held-out loss".to_owned(), text]);
    }
    for (set, row) in summary["evaluations"].as_object().into_iter().flatten() {
        if let Some(loss) = row["loss"].as_f64().filter(|_| set != HELDOUT) {
            let bits = row["bits_per_byte"].as_f64().unwrap_or(f64::NAN);
            let text = format!("{loss:.3} nats per token ({bits:.2} bits per byte)");
            rows.push(vec![format!("{set} loss"), text]);
        }
    }
    let router = |key: &str| summary["router"][key].as_f64();
    if let (Some(entropy), Some(load)) = (router("load_entropy"), router("load_max")) {
        let text = format!(
            "load entropy {entropy:.3} of 1, busiest expert {load:.2} x the mean, {} tokens dropped, \
             biases {:.3} to {:.3}",
            summary["router"]["dropped_tokens"],
            router("bias_min").unwrap_or(f64::NAN),
            router("bias_max").unwrap_or(f64::NAN)
        );
        rows.push(vec!["routers".to_owned(), text]);
    }
    let speed = format!(
        "{} tokens/s with {} workers",
        short(number("tokens_per_second")),
        summary["workers"]
    );
    rows.push(vec!["speed".to_owned(), speed]);
    let skipped = match summary["skipped_steps"].as_u64() {
        None | Some(0) => String::new(),
        Some(n) => format!(" ({n} of them skipped)"),
    };
    let steps = format!(
        "{}{skipped}, {} tokens, {} in all",
        summary["steps"],
        short(number("tokens")),
        duration(number("wall_seconds"))
    );
    rows.push(vec!["steps".to_owned(), steps]);
    if let Some(n) = summary["rollbacks"].as_u64().filter(|n| *n > 0) {
        let text = format!("{n}: the run went back to a checkpoint and passed over what failed");
        rows.push(vec!["rollbacks".to_owned(), text]);
    }
    table(&rows).trim_end().to_owned()
}

/// Where everything of the run is.
/// The checkpoint of the best evaluation is named if it is not the last.
pub(crate) fn places(run_dir: &RunDir, step: u64, best: Option<Best>) -> String {
    let row =
        |path: std::path::PathBuf, what: &str| vec![path.display().to_string(), what.to_owned()];
    let in_run = |name: &str| run_dir.path().join(name);
    let best = best.map(|best| (best, run_dir.checkpoint(best.step)));
    let best = best.filter(|(best, path)| best.step != step && path.exists());
    let best = best.map(|(best, path)| {
        row(path, &format!("the best on held-out text, with loss {:.3}", best.loss))
    });
    let mut rows = vec![
        row(run_dir.checkpoint(step), "the model, with Hugging Face's tensor names"),
        row(run_dir.metrics(), "losses, gradient norm and speed of every step"),
        row(in_run("summary.json"), "the figures above"),
        row(in_run("plan.json"), "who did what, and why"),
        row(run_dir.logs(), "what each worker had to say"),
    ];
    rows.splice(1..1, best);
    table(&rows).trim_end().to_owned()
}

/// What to try next, as commands that work.
pub(crate) fn next(args: &cli::Launch, job: &Job) -> String {
    let more = [format!("training.steps={}", job.training.steps * 2)];
    if args.cluster.is_some() {
        let file = args.manifest.file.display();
        return format!("  train on, for as long again:\n    shoal apply {file} --set {}", more[0]);
    }
    let longer = args.command(args.run_dir.as_deref(), &more);
    let mut tries = vec![("train on, for as long again", longer)];
    let other = if job.workers.local == 1 { 2.min(job.grid.n_cells()) } else { 1 };
    if other != job.workers.local {
        let place = Path::new("runs").join(format!("{}-on-{other}", job.name));
        let command = args.command(Some(&place), &[format!("workers.local={other}")]);
        tries.push(("the same losses, to the last bit, from another number of workers", command));
    }
    let mut text = String::new();
    for (what, command) in tries {
        let _ = writeln!(text, "  {what}:\n    {command}");
    }
    text.push_str("  your own text: change spec.data.files in the manifest");
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;
    use shoal_plan::grid::Grid;
    use shoal_plan::plan::{Generation, StagePlan, WorkerId};
    use shoal_plan::schedule::Schedule;

    use super::*;

    fn tiny_job() -> Job {
        let mut job = Job::example();
        job.name = "a".to_owned();
        job.training.steps = 10;
        job.workers.local = 2;
        job.grid = Grid { stages: 2, expert_shards: 1, replicas: 1 };
        job.schedule = Schedule::ZbH1;
        job
    }

    #[test]
    fn the_plan_shows_every_cell_and_every_reason() {
        let stage = |layers: std::ops::Range<u32>, flops_per_token: f64| StagePlan {
            layers,
            flops_per_token,
            reason: "because it is even".to_owned(),
        };
        let plan_of_two = Plan {
            generation: Generation(1),
            grid: Grid { stages: 2, expert_shards: 1, replicas: 1 },
            stages: vec![stage(0..3, 3e7), stage(3..4, 1e7)],
            experts: std::iter::once(0..16).collect(),
            hosts: vec![WorkerId(0), WorkerId(1)],
            reasons: BTreeMap::from([(WorkerId(1), "it is free".to_owned())]),
        };
        let cores = Cores { threads: 1, kept: Err("4 threads for 2 cores".to_owned()) };
        let text = plan(&tiny_job(), &plan_of_two, &cores);
        assert!(text.ends_with("\n  threads: 1 a worker, on any core: 4 threads for 2 cores"));
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("  cell  worker    layers   experts  sequences  work"),
            "{text}"
        );
        assert!(lines[1].starts_with("  0     worker-0  0-2      0-15     8          "), "{text}");
        assert!(lines[2].starts_with("  1     worker-1  3 + MTP  0-15     8          "), "{text}");
        assert!(
            text.contains("stage 1: because it is even") && text.contains("worker-1: it is free")
        );
        let schedule = "\n  schedule zb-h1: stages wait 4 % of a step instead of 8 % under 1f1b";
        assert!(text.contains(schedule), "{text}");
    }

    #[test]
    fn the_summary_leaves_out_what_was_not_measured() {
        let object = json!({ "steps": 300, "tokens": 614_400, "train_loss": 2.0312, "wall_seconds": 103.2,
            "heldout_loss": 2.07, "heldout_nats_per_byte": 2.07, "tokens_per_second": 6123.4, "workers": 4 });
        let text = summary(&object);
        assert!(text.contains("2.070 nats per byte (2.99 bits)"), "{text}");
        assert!(text.contains("300, 614.4k tokens, 1:43 in all"), "{text}");
        let mut more = object.clone();
        more["evaluations"] = json!({ "heldout": { "loss": 2.07, "bits_per_byte": 2.99 },
            "code": { "loss": 1.5, "bits_per_byte": 2.164 } });
        (more["skipped_steps"], more["rollbacks"]) = (json!(2), json!(1));
        let text = summary(&more);
        assert!(
            text.contains("code loss      1.500 nats per token (2.16 bits per byte)"),
            "{text}"
        );
        assert!(text.contains("300 (2 of them skipped), 614.4k tokens"), "{text}");
        assert!(text.contains("rollbacks      1: the run went back"), "{text}");
        more["router"] = json!({ "load_entropy": 0.9876, "load_max": 1.5, "dropped_tokens": 0,
            "bias_min": -0.0625, "bias_max": 0.03125 });
        let text = summary(&more);
        let routers = "load entropy 0.988 of 1, busiest expert 1.50 x the mean, 0 tokens dropped";
        assert!(text.contains(routers) && text.contains("biases -0.062 to 0.031"), "{text}");
        let mut stopped = object;
        stopped["heldout_nats_per_byte"] = Value::Null;
        assert!(!summary(&stopped).contains("held-out"));
    }

    #[test]
    fn what_to_try_next_is_possible_for_this_job() {
        let manifest =
            cli::Manifest { file: "a.yaml".into(), overrides: vec!["x=1".to_owned()], text: None };
        let args = cli::Launch {
            manifest,
            run_dir: Some("here".into()),
            log_format: cli::LogFormat::default(),
            fresh: true,
            force: false,
            page_port: 0,
            no_page: false,
            cluster: None,
            coordinators: Vec::new(),
            credentials: None,
            nth: None,
            first: None,
        };
        let text = next(&args, &tiny_job());
        let longer = "launch a.yaml --set x=1 --set training.steps=20 --run-dir here\n";
        assert!(text.contains(longer) && !text.contains("--fresh"), "{text}");
        assert!(text.contains("--set workers.local=1 --run-dir runs/a-on-1\n"), "{text}");
    }
}
