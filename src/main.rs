//! The `shoal` binary: reads the command line, runs a verb, and turns its end into an exit code.

mod bench;
mod checkpoints;
mod children;
mod cli;
mod clock;
mod compare;
mod conducting;
mod config;
mod control;
mod cores;
mod curve;
mod data;
mod devices;
mod doctor;
mod epochs;
mod eval;
mod events;
mod exit;
mod fetch;
mod finish;
mod generate;
mod hands;
mod harbour;
mod hosting;
mod initial;
mod launch;
mod line;
mod logging;
mod look;
mod manifest;
mod metrics;
mod mirror;
mod models;
mod notify;
mod page;
mod people;
mod plan;
mod preflight;
mod progress;
mod restarts;
mod resume;
mod rig;
mod run_dir;
mod samples;
mod scrape;
mod serve;
mod settings;
mod show;
mod signals;
mod status;
mod steering;
mod tensorboard;
mod terminal;
mod tokenise;
mod top;
mod trace;
mod train;
mod voice;
mod yielding;

use std::process::ExitCode;

use clap::CommandFactory;

use crate::cli::{Cli, Verb};
use crate::exit::Stopped;

fn main() -> ExitCode {
    let ended = settings::verb().and_then(|verb| match shoal_bench::instruction_set() {
        Ok(_) => run(verb),
        Err(problem) => Err(Stopped::Input(problem)),
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(stopped) => {
            if let Some(text) = stopped.text() {
                terminal::error(&text);
            }
            ExitCode::from(stopped.exit_code())
        }
    }
}

fn run(verb: Verb) -> Result<(), Stopped> {
    match verb {
        Verb::Launch(args) => launch::launch(&args),
        Verb::Status(args) => status::status(&args),
        Verb::Top(args) => top::top(&args),
        Verb::Page(args) => page::page(&args),
        Verb::Trace(args) => trace::run(&args),
        Verb::Drain(args) => steering::drain(&args),
        Verb::Stop(args) => steering::stop(&args),
        Verb::Pause(args) => steering::pause(&args),
        Verb::Resume(args) => steering::resume(&args),
        Verb::Validate(args) => validate(&args),
        Verb::Plan(args) => plan::plan(&args),
        Verb::Data(verb) => data::run(&verb),
        Verb::Import(args) => models::import(&args),
        Verb::Export(args) => models::export(&args),
        Verb::Checkpoints(verb) => checkpoints::run(verb),
        Verb::Compare(args) => compare::compare(&args),
        Verb::Events(args) => events::show(&args),
        Verb::Eval(args) => eval::eval(&args),
        Verb::Generate(args) => generate::generate(&args),
        Verb::Serve(args) => serve::serve(&args),
        Verb::Bench(verb) => bench::bench(&verb),
        Verb::Config(verb) => config::run(&verb),
        Verb::Schema => {
            terminal::data(&format!("{:#}", shoal_plan::manifest::schema()));
            Ok(())
        }
        Verb::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "shoal", &mut script);
            terminal::data(String::from_utf8_lossy(&script).trim_end());
            Ok(())
        }
        Verb::Coordinator(args) => harbour::stand(&args),
        Verb::Worker(args) => rig::work(&args),
        Verb::Doctor(args) => doctor::examine(&args),
        Verb::Token(verb) => people::token(&verb),
        Verb::Login(args) => people::login(&args),
        Verb::Apply(args) => people::apply(&args),
        Verb::Ps(args) => people::overview(&args),
        Verb::Logs(args) => people::logs(&args),
        Verb::Cordon(args) => people::cordon(&args, true),
        Verb::Uncordon(args) => people::cordon(&args, false),
        Verb::Expel(args) => people::expel(&args),
        Verb::Forget(args) => people::forget(&args),
        Verb::Conduct(args) => conducting::conduct(args).map(|never| match never {}),
        Verb::Host(args) => {
            hosting::host(args).map_err(Stopped::Failed).map(|never| match never {})
        }
    }
}

/// The `validate` verb: all that `launch` checks before it starts anything.
fn validate(args: &cli::Validate) -> Result<(), Stopped> {
    let loaded = manifest::read(&args.manifest)?;
    terminal::data(&show::job(loaded.job(), loaded.n_files()));
    initial::check(loaded.job(), &loaded.directory)?;
    mirror::open(&launch::event_loop()?, loaded.job(), &loaded.directory)?;
    let remote = loaded.remote_files();
    if !remote.is_empty() {
        terminal::data(&remote);
    }
    terminal::data(&show::plan(loaded.job(), &loaded.plan, &launch::cores(loaded.job())));
    terminal::data(&preflight::snapshots(loaded.job(), &loaded.plan, preflight::free_bytes()));
    terminal::note(&format!("{} is valid", args.manifest.file.display()));
    Ok(())
}
