//! The settings: all that a verb takes from elsewhere than its flags. One table, one way to find a value: flag, variable,
//! the project's file, the user's file, default. Who reads variables and files is the caller's business.
//!
//! A manifest says what is trained; nothing of that is here.

mod kind;
mod read;
mod reference;
mod table;

use std::collections::BTreeMap;
use std::fmt;

pub use kind::{Kind, seconds};
pub use read::parse;
pub use reference::{REFERENCE_FILE, reference};
pub use table::{SETTINGS, named};

/// `kind` of a file of settings.
pub const KIND: &str = "Config";

/// What may be set.
#[derive(Debug)]
pub struct Setting {
    /// Below `spec` in a file. Of one that no file has, only its name.
    pub key: &'static str,
    /// Without dashes.
    pub flag: Option<&'static str>,
    /// The verbs whose flag it is; none named: of every verb that has it.
    pub verbs: &'static [&'static str],
    /// The environment's.
    pub variable: &'static str,
    /// Whether files may set it: what each process of a run must see alike, and what is secret, they may not.
    pub in_files: bool,
    pub kind: Kind,
    pub default: Otherwise,
    pub meaning: &'static str,
}

/// What counts where nobody says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// This value.
    Fixed(&'static str),
    /// What the machine or the verb says; in words.
    Found(&'static str),
}

impl Setting {
    /// Whether a verb such as `token create` takes it, if it has the flag.
    pub fn is_of(&self, verb: &str) -> bool {
        self.verbs.is_empty() || self.verbs.contains(&verb)
    }
}

/// One value of most settings, several of a list.
pub type Values = Vec<String>;

/// What a file sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// As messages call it.
    pub name: String,
    /// By key, with the line.
    pub values: BTreeMap<&'static str, (Values, usize)>,
}

/// Where a value was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Flag(&'static str),
    Variable(&'static str),
    /// The project's file, with the line.
    Project(String, usize),
    /// The user's.
    User(String, usize),
    Default,
}

impl Origin {
    /// One word for programs.
    pub fn layer(&self) -> &'static str {
        match self {
            Self::Flag(_) => "flag",
            Self::Variable(_) => "variable",
            Self::Project(..) => "project",
            Self::User(..) => "user",
            Self::Default => "default",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Variable(variable) => f.write_str(variable),
            Self::Project(file, line) | Self::User(file, line) => write!(f, "{file}:{line}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and where it comes from; none where only a default in words is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub values: Option<Values>,
    pub origin: Origin,
}

/// All that is below a verb's flags.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// By name; empty ones count as unset.
    pub variables: BTreeMap<&'static str, String>,
    pub project: Option<File>,
    pub user: Option<File>,
}

/// A variable that cannot be taken. A secret's value is not repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: wanted {wanted}{got}")]
pub struct WrongVariable {
    pub variable: &'static str,
    pub wanted: String,
    /// `, got ...`.
    pub got: String,
}

impl Layers {
    /// Reads the variables of all settings.
    pub fn new(
        environment: &dyn Fn(&str) -> Option<String>,
        project: Option<File>,
        user: Option<File>,
    ) -> Self {
        let set = |setting: &'static Setting| {
            let value = environment(setting.variable).filter(|value| !value.is_empty());
            value.map(|value| (setting.variable, value))
        };
        Self { variables: SETTINGS.iter().filter_map(set).collect(), project, user }
    }

    /// The value that counts: `flag` is what the command line says.
    ///
    /// # Errors
    /// It would be a variable's that is not of the setting's kind. Files were checked when they were read.
    pub fn find(&self, setting: &Setting, flag: Option<Values>) -> Result<Found, WrongVariable> {
        let found = |values: Values, origin| Ok(Found { values: Some(values), origin });
        if let (Some(values), Some(flag)) = (flag, setting.flag) {
            return found(values, Origin::Flag(flag));
        }
        if let Some(text) = self.variables.get(setting.variable) {
            return found(split(setting, text)?, Origin::Variable(setting.variable));
        }
        let of = |file: &Option<File>| -> Option<(Values, String, usize)> {
            let file = file.as_ref()?;
            let (values, line) = file.values.get(setting.key)?;
            Some((values.clone(), file.name.clone(), *line))
        };
        if let Some((values, name, line)) = of(&self.project) {
            return found(values, Origin::Project(name, line));
        }
        if let Some((values, name, line)) = of(&self.user) {
            return found(values, Origin::User(name, line));
        }
        let values = match setting.default {
            Otherwise::Fixed(value) => Some(vec![value.to_owned()]),
            Otherwise::Found(_) => None,
        };
        Ok(Found { values, origin: Origin::Default })
    }
}

/// A variable's values: of a list they have commas between them.
fn split(setting: &Setting, text: &str) -> Result<Values, WrongVariable> {
    let values: Values = if setting.kind == Kind::Texts {
        text.split(',').map(|one| one.trim().to_owned()).collect()
    } else {
        vec![text.to_owned()]
    };
    if values.iter().all(|value| setting.kind.takes(value)) {
        return Ok(values);
    }
    let got = if setting.kind == Kind::Secret {
        String::new()
    } else {
        format!(", got {}", crate::manifest::complaint::quote(text))
    };
    let wanted = setting.kind.wanted();
    Err(WrongVariable { variable: setting.variable, wanted, got })
}

#[cfg(test)]
mod tests;
