//! The verb `config view`: every setting, its value, and where that comes from.

use std::ffi::OsString;

use serde::Serialize;
use shoal_plan::settings::{Found, Kind, Origin, Otherwise, SETTINGS, Setting};

use crate::cli::{self, View};
use crate::exit::Stopped;
use crate::people::show;
use crate::settings::{self, Given};
use crate::show::table;
use crate::terminal::harmless;

/// In the place of a secret's value.
const HIDDEN: &str = "(set, not shown)";

/// One setting, for people and programs.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Row {
    key: &'static str,
    /// None: nothing is set, and what counts is only known where it is needed.
    value: Option<String>,
    /// In words, where there is no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    otherwise: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<Whence>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Whence {
    /// `flag`, `variable`, `project`, `user` or `default`.
    layer: &'static str,
    place: String,
}

pub(crate) fn run(verb: &cli::Config) -> Result<(), Stopped> {
    match verb {
        cli::Config::View(args) => view(args),
    }
}

fn view(args: &View) -> Result<(), Stopped> {
    // Without another verb it is this one's own command line.
    let arguments: Vec<OsString> = if args.command.is_empty() {
        std::env::args_os().collect()
    } else {
        std::iter::once("shoal".into()).chain(args.command.iter().cloned()).collect()
    };
    let given = settings::given(&arguments)?.unwrap_or_else(|error| error.exit());
    let taken = settings::taken_by(&arguments);
    let is_shown = |setting: &&'static Setting| {
        args.command.is_empty()
            || setting.flag.is_none()
            || taken.iter().any(|taken| taken.key == setting.key)
    };
    let rows = SETTINGS.iter().filter(is_shown).map(|one| row(&given, one, args.show_origin));
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    show(args.output, &rows, || text(&rows, args.show_origin))
}

fn row(given: &Given, setting: &'static Setting, with_origin: bool) -> Result<Row, Stopped> {
    let Found { values, origin } = settings::find(given, setting)?;
    let value = match (values, setting.kind) {
        (Some(_), Kind::Secret) => Some(HIDDEN.to_owned()),
        (Some(values), _) => Some(values.join(", ")),
        (None, _) => settings::found_here(setting),
    };
    let otherwise = match setting.default {
        Otherwise::Found(words) if value.is_none() => Some(words),
        Otherwise::Found(_) | Otherwise::Fixed(_) => None,
    };
    let origin = with_origin.then(|| whence(&origin));
    Ok(Row { key: setting.key, value, otherwise, origin })
}

fn whence(origin: &Origin) -> Whence {
    Whence { layer: origin.layer(), place: origin.to_string() }
}

fn text(rows: &[Row], with_origin: bool) -> String {
    let mut header = vec!["setting".to_owned(), "value".to_owned()];
    header.extend(with_origin.then(|| "from".to_owned()));
    let lines = rows.iter().map(|row| {
        let value = match (&row.value, row.otherwise) {
            (Some(value), _) => harmless(value.replace('\n', " ").as_bytes()),
            (None, words) => format!("({})", words.unwrap_or("none")),
        };
        let mut line = vec![row.key.to_owned(), value];
        line.extend(row.origin.as_ref().map(|origin| harmless(origin.place.as_bytes())));
        line
    });
    table(&std::iter::once(header).chain(lines).collect::<Vec<_>>())
}
