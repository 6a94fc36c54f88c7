//! Settings and clap: which verb takes which, and what they are become defaults of its flags.

use std::ffi::{OsStr, OsString};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use shoal_plan::settings::{Layers, Origin, SETTINGS, Setting, Values, WrongVariable};

/// The names of the verb and of the verb inside it.
type Path = Vec<String>;

/// The verb that a command line names. No option stands before it.
pub(super) fn verb_of(command: &Command, arguments: &[OsString]) -> Path {
    let mut path = Vec::new();
    let mut at = command;
    for word in arguments.iter().skip(1) {
        let Some(inner) = word.to_str().and_then(|word| at.find_subcommand(word)) else { break };
        path.push(inner.get_name().to_owned());
        at = inner;
    }
    path
}

fn at<'a>(command: &'a Command, path: &Path) -> &'a Command {
    path.iter().fold(command, |at, name| at.find_subcommand(name).unwrap_or(at))
}

/// Whether another process of shoal gives this verb all that it needs.
pub(super) fn is_inner(command: &Command, path: &Path) -> bool {
    at(command, path).is_hide_set()
}

/// The flag of a verb that is a setting's.
fn argument<'a>(verb: &'a Command, name: &str, setting: &Setting) -> Option<&'a Arg> {
    let flag = setting.flag.filter(|_| setting.is_of(name) && !verb.is_hide_set())?;
    // `--output` is a place for files in some verbs: there it has no list of words.
    let fits = |arg: &&Arg| {
        let words = arg.get_possible_values();
        !arg.is_hide_set() && (setting.key != "output" || !words.is_empty())
    };
    verb.get_arguments().find(|arg| arg.get_long() == Some(flag)).filter(fits)
}

pub(super) fn settings_of(command: &Command, path: &Path) -> Vec<&'static Setting> {
    let (verb, name) = (at(command, path), path.join(" "));
    SETTINGS.iter().filter(|setting| argument(verb, &name, setting).is_some()).collect()
}

/// Those that a command line's verb takes by a flag.
pub(crate) fn taken_by(arguments: &[OsString]) -> Vec<&'static Setting> {
    let command = <crate::cli::Cli as clap::CommandFactory>::command();
    settings_of(&command, &verb_of(&command, arguments))
}

/// With the variables in the help of every flag that has one.
pub(super) fn documented(command: Command) -> Command {
    within(command, &mut Vec::new())
}

fn within(mut command: Command, path: &mut Path) -> Command {
    for setting in settings_of_one(&command, &path.join(" ")) {
        let (id, setting) = setting;
        command = command.mut_arg(id, |arg| {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let help = format!("{help} [env: {}]", setting.variable);
            let long =
                arg.get_long_help().map(|long| format!("{long} [env: {}]", setting.variable));
            let arg = arg.help(help);
            if let Some(long) = long { arg.long_help(long) } else { arg }
        });
    }
    let inner: Path = command.get_subcommands().map(|one| one.get_name().to_owned()).collect();
    for name in inner {
        path.push(name.clone());
        command = command.mut_subcommand(name, |one| within(one, path));
        path.pop();
    }
    command
}

fn settings_of_one(verb: &Command, name: &str) -> Vec<(String, &'static Setting)> {
    let id = |setting: &'static Setting| {
        argument(verb, name, setting).map(|arg| (arg.get_id().to_string(), setting))
    };
    SETTINGS.iter().filter_map(id).collect()
}

/// With what is set elsewhere as defaults of the verb's flags.
pub(super) fn with_values(
    command: Command,
    path: &Path,
    settings: &[&'static Setting],
    layers: &Layers,
) -> Result<Command, WrongVariable> {
    let (verb, name) = (at(&command, path), path.join(" "));
    let mut values = Vec::new();
    for setting in settings {
        let found = layers.find(setting, None)?;
        let (Some(arg), Some(value)) = (argument(verb, &name, setting), found.values) else {
            continue;
        };
        let words = arg.get_possible_values();
        let is_known = |one: &String| words.iter().any(|word| word.matches(one, false));
        let is_known = words.is_empty() || value.iter().all(is_known);
        if found.origin != Origin::Default && is_known {
            values.push((arg.get_id().to_string(), value));
        }
    }
    Ok(set(command, path, &values))
}

fn set(command: Command, path: &[String], values: &[(String, Values)]) -> Command {
    if let Some((name, rest)) = path.split_first() {
        return command.mut_subcommand(name, |inner| set(inner, rest, values));
    }
    let mut verb = command;
    for (id, values) in values {
        // clap wants texts that live as long as the process, as these do: a handful, once.
        let kept: Vec<&'static str> =
            values.iter().map(|value| &*Box::leak(value.clone().into_boxed_str())).collect();
        verb = verb.mut_arg(id, |arg| arg.required(false).default_values(kept));
    }
    verb
}

/// What the command line itself says.
pub(super) fn flag(matches: &ArgMatches, setting: &Setting) -> Option<Values> {
    let command = <crate::cli::Cli as clap::CommandFactory>::command();
    let (mut verb, mut name, mut inner) = (&command, Vec::new(), matches);
    while let Some((next, found)) = inner.subcommand() {
        verb = verb.find_subcommand(next)?;
        name.push(next);
        inner = found;
    }
    let id = argument(verb, &name.join(" "), setting)?.get_id().as_str();
    let is_said = inner.value_source(id) == Some(ValueSource::CommandLine);
    let raw = inner.get_raw(id).filter(|_| is_said)?;
    Some(raw.map(OsStr::to_string_lossy).map(String::from).collect())
}
