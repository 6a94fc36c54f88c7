//! Where settings come from: reads variables and files once, gives them to clap as defaults of the flags, and to the
//! few who have no flag. Nobody else reads a variable of shoal's.

mod command;
mod files;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::{ArgMatches, CommandFactory, FromArgMatches};
use shoal_plan::settings::{Found, Layers, Otherwise, Setting, WrongVariable, named};

use crate::cli::{Cli, Verb};
use crate::exit::Stopped;
use crate::people::xdg;
use crate::rig::facts;

pub(crate) use command::taken_by;

/// Those of this process.
static CURRENT: OnceLock<Layers> = OnceLock::new();

impl From<WrongVariable> for Stopped {
    fn from(error: WrongVariable) -> Self {
        Self::Input(error.to_string())
    }
}

/// A command line with all that its verb takes from elsewhere.
pub(crate) struct Given {
    pub(crate) matches: ArgMatches,
    pub(crate) layers: Layers,
}

/// The verb of this process. Wrong usage and calls for help end it, as clap has it.
pub(crate) fn verb() -> Result<Verb, Stopped> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let Given { matches, layers } = given(&arguments)?.unwrap_or_else(|error| error.exit());
    CURRENT.get_or_init(|| layers);
    Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()).verb)
}

/// Reads a command line, and for its verb what is set elsewhere.
pub(crate) fn given(arguments: &[OsString]) -> Result<Result<Given, clap::Error>, Stopped> {
    let command = command::documented(Cli::command());
    let path = command::verb_of(&command, arguments);
    let wants_help = arguments.iter().any(|word| word == "--help" || word == "-h");
    let settings = command::settings_of(&command, &path);
    if wants_help || command::is_inner(&command, &path) {
        let matches = command.try_get_matches_from(arguments);
        return Ok(matches.map(|matches| Given { matches, layers: Layers::default() }));
    }
    let layers = read()?;
    let command = command::with_values(command, &path, &settings, &layers)?;
    let matches = command.try_get_matches_from(arguments);
    Ok(matches.map(|matches| Given { matches, layers }))
}

fn read() -> Result<Layers, Stopped> {
    let user = files::of_the_user()?;
    let project = files::of_the_project()?;
    Ok(Layers::new(&environment_itself, project, user))
}

/// A variable, unless it is empty.
fn environment_itself(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty())
}

/// A setting that has no flag.
fn current(key: &str) -> Option<String> {
    let unset = Layers::default();
    // Only variables can be wrong, and texts take anything.
    let found = CURRENT.get().unwrap_or(&unset).find(named(key), None).ok()?;
    found.values?.into_iter().next()
}

/// The environment as patterns of files and downloads see it: the cache's place may stand in a file.
pub(crate) fn environment(variable: &str) -> Option<String> {
    let cache = named("cache");
    if variable == cache.variable { current(cache.key) } else { environment_itself(variable) }
}

/// Unless `NO_COLOR` is set.
pub(crate) fn wants_colours() -> bool {
    current("NO_COLOR").is_none()
}

/// A cluster's token, where a variable holds it.
pub(crate) fn token() -> Option<String> {
    current("SHOAL_TOKEN")
}

/// The state directory of a cluster (`cluster`) or a rig (`rig`): as given, else the usual one.
pub(crate) fn state(given: Option<&Path>, whose: &str) -> Result<PathBuf, Stopped> {
    match given {
        Some(directory) => Ok(directory.to_path_buf()),
        None => Ok(xdg("XDG_STATE_HOME", ".local/state")?.join("shoal").join(whose)),
    }
}

/// What counts on this machine where nobody says anything; none if that is only known later.
pub(crate) fn found_here(setting: &Setting) -> Option<String> {
    if let Otherwise::Fixed(value) = setting.default {
        return Some(value.to_owned());
    }
    let state = |whose| state(None, whose).ok().map(|path| path.display().to_string());
    match setting.key {
        "coordinator.state" => state("cluster"),
        "rig.state" => state("rig"),
        "rig.name" => Some(facts::host()),
        "cache" => environment_itself("HOME").map(|home| format!("{home}/.cache/shoal")),
        _ => None,
    }
}

/// What a setting is for a command line.
pub(crate) fn find(given: &Given, setting: &'static Setting) -> Result<Found, WrongVariable> {
    given.layers.find(setting, command::flag(&given.matches, setting))
}

#[cfg(test)]
mod tests;
