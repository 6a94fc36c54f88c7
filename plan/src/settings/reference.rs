//! The tables of `docs/config.md`, out of the table that is read.

use std::fmt::Write;

use super::{Otherwise, SETTINGS, Setting};

/// Where they lie in the repository, below text that people wrote.
pub const REFERENCE_FILE: &str = "docs/config.md";

/// Settings of files, and those of the environment alone.
pub fn reference() -> String {
    let mut text =
        "| key | flag | variable | default | values | meaning |\n|---|---|---|---|---|---|\n"
            .to_owned();
    for setting in SETTINGS.iter().filter(|setting| setting.in_files) {
        let Setting { key, variable, kind, meaning, .. } = setting;
        let (flag, default) = (flag(setting), default(setting));
        let values = kind.wanted();
        let _ = writeln!(
            text,
            "| `{key}` | {flag} | `{variable}` | {default} | {values} | {meaning} |"
        );
    }
    text.push_str("\nOf the environment alone:\n\n| variable | flag | default | meaning |\n|---|---|---|---|\n");
    for setting in SETTINGS.iter().filter(|setting| !setting.in_files) {
        let Setting { variable, meaning, .. } = setting;
        let (flag, default) = (flag(setting), default(setting));
        let _ = writeln!(text, "| `{variable}` | {flag} | {default} | {meaning} |");
    }
    text
}

fn flag(setting: &Setting) -> String {
    let Some(flag) = setting.flag else { return String::new() };
    let verbs: Vec<String> = setting.verbs.iter().map(|verb| format!("`{verb}`")).collect();
    let of = if verbs.is_empty() { String::new() } else { format!(" of {}", verbs.join(", ")) };
    format!("`--{flag}`{of}")
}

fn default(setting: &Setting) -> String {
    match setting.default {
        Otherwise::Fixed(value) => format!("`{value}`"),
        Otherwise::Found(words) => words.to_owned(),
    }
}
