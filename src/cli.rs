//! The command line: verbs and their options, and nothing they do.

mod bench;
mod checkpoints;
mod cluster;
mod config;
mod eval;
mod models;
mod page;
mod plan;
mod runs;
mod steering;
mod text;
mod top;
mod trace;
mod voice;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use shoal_plan::job;
use shoal_worker::devices::Share;

pub(crate) use bench::{
    Bench, CommArgs, Decode, Growth, Measured, Ops, Over, Preset, Sizes, Train,
};
pub(crate) use checkpoints::{Checkpoints, ExportStep, Gc, Ls, OfRun, Verify};
pub(crate) use cluster::{
    Apply, Doctor, Expel, Home, Join, Login, Logs, Overview, RemoveJob, RigNamed, Stand, StoreAt,
    Token,
};
pub(crate) use config::{Config, View};
pub(crate) use eval::Eval;
pub(crate) use models::{Export, ExportDtype, Import, ImportDtype, Writing};
pub(crate) use page::Page;
pub(crate) use plan::Plan;
pub(crate) use runs::{Compare, Events};
pub(crate) use steering::{Drain, Form, Pause, Resume, Status, Stop};
pub(crate) use text::{Data, Inspect, Output, Stats, TrainTokenizer};
pub(crate) use top::Top;
pub(crate) use trace::Trace;
pub(crate) use voice::{Generate, Model, Serve, Speculate};

/// What both helps begin with.
macro_rules! examples {
    () => {
        "\
Examples:
  shoal launch examples/quickstart.yaml
  shoal launch job.yaml --set training.steps=50 --set workers.local=2
  shoal launch job.yaml --run-dir runs/second-try
  shoal status runs/quickstart
  shoal validate job.yaml
  shoal plan job.yaml --fleet fleet.yaml
  shoal data stats ~/notes/**/*.md
  shoal generate runs/quickstart 'pub fn '

"
    };
}

const EXAMPLES: &str = concat!(
    examples!(),
    "\
Exit codes: 0 done, 1 the run failed, 2 wrong usage or manifest, 3 no run is under way, 4 the run
refused, 5 no such model or checkpoint, 130 stopped by Ctrl-C."
);

const MORE: &str = concat!(
    examples!(),
    "\
Exit codes: 0 done, 1 the run failed, 2 wrong usage, manifest or input, 3 no run is under way or it
cannot be reached, 4 the run refused what it was told, 5 a model's directory is missing, damaged or
unfit; stopped after writing a checkpoint: 130 Ctrl-C or `shoal stop`, 143 SIGTERM, 129 SIGHUP.

`shoal host` is started by `launch`, once for each of `spec.workers.local`: it hosts cells of the
model and exits when its launcher does. `shoal conduct` is started once, and again when it dies: it
goes on where it was, and the workers train meanwhile. See `shoal host --help`, `shoal conduct --help`.

Environment: NO_COLOR turns colours off; RUST_LOG sets what the files in RUN/logs hold
(default info). `shoal config view --show-origin` lists all variables and files that count."
);

const COMPLETION_EXAMPLES: &str = "\
Examples:
  source <(shoal completion bash)
  shoal completion bash > ~/.local/share/bash-completion/completions/shoal
  shoal completion zsh > ~/.zfunc/_shoal
  shoal completion fish > ~/.config/fish/completions/shoal.fish";

/// Train DeepSeek-V3-style mixture-of-experts models across worker processes.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, after_help = EXAMPLES, after_long_help = MORE)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Train what a manifest describes, here and now, to the end
    ///
    /// Plans, starts a coordinator and the workers, trains, evaluates and ends by itself. Started
    /// again on the same run directory, it continues from the newest good checkpoint. Ctrl-C once
    /// writes a checkpoint and stops; twice stops at once.
    Launch(Launch),
    /// How a run is: step, loss, rate, checkpoints, and what each worker is at
    #[command(after_help = steering::STATUS_EXAMPLES)]
    Status(Status),
    /// A cluster or a run on one screen: rigs, stages, experts, links, losses, events
    #[command(after_help = top::TOP_EXAMPLES)]
    Top(Top),
    /// The same in a browser on this machine: serves a page, and prints its link
    #[command(after_help = page::PAGE_EXAMPLES)]
    Page(Page),
    /// What each cell of a run under way does in some steps, for Perfetto; and where the time goes
    ///
    /// Slots, collectives, messages and the update of each cell, with clocks laid side by side, as a file that
    /// ui.perfetto.dev opens; and a table of computing, communication and waiting.
    #[command(after_help = trace::TRACE_EXAMPLES)]
    Trace(Trace),
    /// Let a worker of a run under way hand over its cells and go
    ///
    /// It leaves between two steps, nothing is done again, it is no failure, and it is not started again.
    #[command(after_help = steering::DRAIN_EXAMPLES)]
    Drain(Drain),
    /// Let a run under way write a checkpoint and stop, as Ctrl-C to its launcher does
    #[command(after_help = steering::STOP_EXAMPLES)]
    Stop(Stop),
    /// Let a run under way wait after a step; its workers keep what they have in memory
    #[command(after_help = steering::PAUSE_EXAMPLES)]
    Pause(Pause),
    /// Let a run that was paused go on
    #[command(after_help = steering::PAUSE_EXAMPLES)]
    Resume(Resume),
    /// Check a manifest and show its plan; starts nothing
    Validate(Validate),
    /// Say what a job would take on a fleet: who does what, how long, at what price; starts nothing
    ///
    /// Chooses stages, expert shards, replicas, layers, shares, microbatches and schedule for the rigs of a
    /// fleet's file, so that the predicted step is shortest and every card has room.
    #[command(after_help = plan::PLAN_EXAMPLES)]
    Plan(Plan),
    /// Look at text, count it, and train tokenizers; starts no run
    #[command(subcommand)]
    Data(Data),
    /// Read a Hugging Face model, check every tensor, and write a clean directory
    #[command(after_help = models::IMPORT_EXAMPLES)]
    Import(Import),
    /// Write a model for `transformers`: bf16, f32, or DeepSeek's block-FP8
    #[command(after_help = models::EXPORT_EXAMPLES)]
    Export(Export),
    /// Look after what a run has saved: list, verify, clean up, export
    #[command(subcommand)]
    Checkpoints(Checkpoints),
    /// Hold finished runs against each other: losses, rates, a plot
    #[command(after_help = runs::COMPARE_EXAMPLES)]
    Compare(Compare),
    /// What happened in a run: who was lost, who came, what was done, because of what
    ///
    /// Reads events.jsonl of the run's directory, while it trains or later. `time` counts from the launch,
    /// `step` is the last committed one, `plan` the generation of the plan in force.
    #[command(after_help = runs::EVENTS_EXAMPLES)]
    Events(Events),
    /// Hold a model on disk against text or token ids: loss, perplexity, logits, gradients
    Eval(Eval),
    /// Continue a text with a model on disk
    ///
    /// The text goes to standard output as it is written, what it took to standard error. With
    /// multi-token-prediction modules the model drafts for itself: at temperature 0 the text is the same
    /// as without, bit for bit, above it the probabilities are.
    Generate(Generate),
    /// Answer completions over HTTP, as `OpenAI`'s interface has them
    ///
    /// `POST /v1/completions` (streaming, too), `GET /v1/models`, `GET /health`. SIGTERM and Ctrl-C let
    /// what is being written come to its end first.
    Serve(Serve),
    /// Measure what this machine does with a model: operations, training, writing
    Bench(Bench),
    /// What this machine is set to, and where each setting comes from
    #[command(subcommand)]
    Config(Config),
    /// Print the manifest's JSON Schema, for editors
    ///
    /// A first line such as `# yaml-language-server: $schema=manifest.schema.json` lets an editor
    /// complete and check a manifest.
    Schema,
    /// Print what lets a shell complete verbs and options with Tab
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion { shell: clap_complete::Shell },
    /// Stand as a cluster's coordinator: rigs join it, jobs are applied to it
    ///
    /// The first start makes the cluster: an authority that signs certificates, and a certificate for you. Runs go
    /// on when it is killed, and find it again when it is back; Ctrl-C lets them write checkpoints first.
    #[command(after_help = cluster::STAND_EXAMPLES)]
    Coordinator(Stand),
    /// Let this machine be a rig of a cluster
    ///
    /// It needs outbound connections only. A token is needed once: the certificate that it gives is renewed.
    #[command(after_help = cluster::JOIN_EXAMPLES)]
    Worker(Join),
    /// Say what stands in the way of this machine being a rig, and what mends it; changes nothing
    ///
    /// Machine, GPU, certificate, the way to the coordinator with its round trip and speed, and the links to other
    /// rigs both ways. Works before a machine has joined, and beside a `shoal worker`.
    #[command(after_help = cluster::DOCTOR_EXAMPLES)]
    Doctor(Doctor),
    /// Invitations to a cluster: create, list, revoke
    #[command(subcommand)]
    Token(Token),
    /// Be known to a cluster on another machine, with a token of role admin or viewer
    Login(Login),
    /// Let a cluster train what a manifest describes, or say what would change
    #[command(after_help = cluster::APPLY_EXAMPLES)]
    Apply(Apply),
    /// Rigs and jobs of a cluster
    #[command(after_help = cluster::OVERVIEW_EXAMPLES)]
    Ps(Overview),
    /// A log of a cluster's job, as it is written
    #[command(after_help = cluster::LOGS_EXAMPLES)]
    Logs(Logs),
    /// Give a rig no more work; what it does goes on
    Cordon(RigNamed),
    /// Let a rig be given work again
    Uncordon(RigNamed),
    /// Let a rig's certificate count no more
    Expel(Expel),
    /// Forget a job that is not under way; its files stay
    Forget(RemoveJob),
    /// Host cells for a launcher (started by `launch`)
    ///
    /// The first line of standard input is the run's secret. Standard input stays open for as long
    /// as the launcher lives: at its end the worker exits at once.
    #[command(hide = true)]
    Host(Worker),
    /// Conduct a run for a launcher (started by `launch`, and again when it dies)
    ///
    /// The first line of standard input is what it is to conduct, with the run's secret; standard output is
    /// the port it listens on, which the launcher holds open. Standard input stays open for as long as the
    /// launcher lives: at its end the coordinator exits at once.
    #[command(hide = true)]
    Conduct(Coordinator),
}

/// The manifest, and what the command line changes in it.
#[derive(Debug, Args)]
pub(crate) struct Manifest {
    /// The manifest (YAML, kind Training)
    pub file: PathBuf,
    /// Change one value below `spec`, e.g. training.steps=50; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Its text is here, as if it were there
    #[arg(long, value_name = "FILE", hide = true)]
    pub text: Option<PathBuf>,
}

/// Form of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    Fp8,
    Bf16,
    F32,
}

impl From<Precision> for job::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp8 => Self::Fp8,
            Precision::Bf16 => Self::Bf16,
            Precision::F32 => Self::F32,
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    /// An object a line, with run, worker, generation and step on each
    Json,
}

impl LogFormat {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Launch {
    #[command(flatten)]
    pub manifest: Manifest,
    /// Everything of the run goes here [default: runs/NAME]
    #[arg(long, value_name = "DIRECTORY")]
    pub run_dir: Option<PathBuf>,
    /// Form of the lines in the run's logs/
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Delete what an earlier run left in the run directory and start over
    #[arg(long)]
    pub fresh: bool,
    /// Start even if memory, disk or open files look too short
    #[arg(long)]
    pub force: bool,
    /// Serve the run's page at this port of this machine; 0 takes any free one
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub page_port: u16,
    /// Serve no page
    #[arg(long, conflicts_with = "page_port")]
    pub no_page: bool,
    /// For a cluster's coordinator, which listens here: rigs are the workers
    #[arg(long, value_name = "SOCKET", hide = true, requires = "first")]
    pub cluster: Option<PathBuf>,
    /// For whichever of several coordinators is active: where they are, by what it is known, and which launch it is
    #[arg(long, value_name = "HOST:PORT,...", hide = true, value_delimiter = ',', requires_all = ["credentials", "nth", "first"])]
    pub coordinators: Vec<String>,
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    pub credentials: Option<PathBuf>,
    #[arg(long, value_name = "N", hide = true)]
    pub nth: Option<u64>,
    /// So many of them suffice to begin
    #[arg(long, value_name = "N", hide = true)]
    pub first: Option<u32>,
}

impl Launch {
    /// A command that does the same with `changes` on top, in `run_dir`, as a person would type it.
    pub(crate) fn command(&self, run_dir: Option<&Path>, changes: &[String]) -> String {
        let program = std::env::args().next().unwrap_or_else(|| "shoal".to_owned());
        let mut words =
            vec![program, "launch".to_owned(), self.manifest.file.display().to_string()];
        let key = |change: &String| change.split('=').next().map(str::to_owned);
        let is_replaced = |old: &&String| changes.iter().any(|new| key(new) == key(old));
        let kept = self.manifest.overrides.iter().filter(|old| !is_replaced(old));
        for change in kept.chain(changes) {
            words.extend(["--set".to_owned(), change.clone()]);
        }
        if let Some(run_dir) = run_dir {
            words.extend(["--run-dir".to_owned(), run_dir.display().to_string()]);
        }
        words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }
}

/// The word as a shell takes it.
pub(crate) fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "-_./=:,+@".contains(letter);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[derive(Debug, Args)]
pub(crate) struct Validate {
    #[command(flatten)]
    pub manifest: Manifest,
}

#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// Where the coordinator is reached, or the cluster's door
    #[arg(long, value_name = "HOST:PORT")]
    pub join: String,
    /// This rig's certificate, where it is a cluster's
    #[arg(long, value_name = "DIRECTORY")]
    pub credentials: Option<PathBuf>,
    /// Weights to start from that were brought here, whatever the job says
    #[arg(long, value_name = "DIRECTORY")]
    pub init: Option<PathBuf>,
    /// Where other rigs reach this one
    #[arg(long, value_name = "ADDRESS", requires = "credentials")]
    pub advertise: Option<IpAddr>,
    /// The first of two ports on which they do; 0: any
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub first_port: u16,
    /// The run it belongs to
    #[arg(long)]
    pub run: String,
    /// Its number in the run
    #[arg(long)]
    pub id: u32,
    /// The run directory
    #[arg(long, value_name = "DIRECTORY")]
    pub run_dir: PathBuf,
    /// Compute threads
    #[arg(long)]
    pub threads: usize,
    /// Cores that all its threads keep to; without it any
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// Give way while a program of this name runs, or a file is there (anything with a slash); may be
    /// repeated
    #[arg(long, value_name = "PROGRAM|FILE")]
    pub yield_to: Vec<String>,
    /// A GPU that it computes on, and how much of its memory it may take; may be repeated. Without it the
    /// CPU
    #[arg(long, value_name = "N:BYTES")]
    pub gpu: Vec<Share>,
    /// Where Prometheus finds it; 0: any free port
    #[arg(long, default_value_t = 0)]
    pub metrics_port: u16,
    /// Form of the log lines
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Debug, Args)]
pub(crate) struct Coordinator {
    /// The run directory
    #[arg(long, value_name = "DIRECTORY")]
    pub run_dir: PathBuf,
    /// Where Prometheus finds it; 0: any free port
    #[arg(long, default_value_t = 0)]
    pub metrics_port: u16,
    /// Form of the log lines
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn launch_takes_several_changes() {
        let cli =
            Cli::try_parse_from(["shoal", "launch", "a.yaml", "--set", "a=1", "--set", "b=2"]);
        let Verb::Launch(launch) = cli.unwrap().verb else { panic!("want launch") };
        assert_eq!(launch.manifest.overrides, ["a=1", "b=2"]);
        assert!(!launch.fresh && launch.run_dir.is_none());
    }

    #[test]
    fn a_command_is_shown_as_a_shell_takes_it() {
        let cli =
            Cli::try_parse_from(["shoal", "launch", "my job.yaml", "--set", "a=1", "--set", "b=2"]);
        let Verb::Launch(launch) = cli.unwrap().verb else { panic!("want launch") };
        let command = launch.command(Some(Path::new("runs/b")), &["b=[it's]".to_owned()]);
        let expected = r"launch 'my job.yaml' --set a=1 --set 'b=[it'\''s]' --run-dir runs/b";
        assert!(command.ends_with(expected), "{command}");
    }

    #[test]
    fn what_launch_starts_is_not_in_the_short_help_but_explained_in_the_long() {
        let short = Cli::command().render_help().to_string();
        let long = Cli::command().render_long_help().to_string();
        for verb in ["host", "conduct"] {
            assert!(!short.contains(&format!("\n  {verb} ")), "{short}");
            assert!(long.contains(&format!("shoal {verb}")), "{long}");
        }
    }
}
