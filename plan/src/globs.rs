//! File patterns of a manifest: `~`, `${VAR}`, `${VAR:-default}` and `**`, expanded and sorted.
//!
//! Reads the environment through the caller, and directories through `glob`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Looks up an environment variable. An empty value counts as unset, as in a shell's `:-`.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Defaults within defaults end somewhere.
const DEPTH_MAX: usize = 8;

/// Why a pattern gives no files.
#[derive(Debug, thiserror::Error)]
pub enum GlobError {
    #[error("{pattern:?} is not a valid pattern: {what}")]
    Syntax { pattern: String, what: String },

    #[error(
        "{pattern:?} needs ${variable}, which is not set: set it, or write ${{{variable}:-DEFAULT}}"
    )]
    Unset { pattern: String, variable: String },

    #[error("no file matches {pattern:?}{}", expanded_note(.pattern, .expanded))]
    Nothing { pattern: String, expanded: String },

    #[error("cannot read {} while looking for {pattern:?}", .path.display())]
    Unreadable { pattern: String, path: PathBuf, source: std::io::Error },
}

fn expanded_note(pattern: &str, expanded: &str) -> String {
    if pattern == expanded { String::new() } else { format!(" (that is {expanded:?})") }
}

/// What is taken from a directory that is named itself; others want a pattern.
const KNOWN_EXTENSIONS: [&str; 10] =
    ["txt", "md", "rst", "html", "jsonl", "ndjson", "parquet", "tokens", "npy", "bin"];

/// Whether an entry of a list of files is an address (`https://`, `hf://`), and no path or pattern.
/// Addresses are not expanded: what is behind them is fetched at the launch.
pub fn is_address(entry: &str) -> bool {
    ["https://", "http://", "hf://"].iter().any(|scheme| entry.starts_with(scheme))
}

/// The files that the patterns name: sorted, each once, no directories. A pattern that matches one
/// directory and nothing else stands for all files of text or tokens below it, packed or not. A
/// pattern that matches no file is an error. Relative patterns start at the process's directory.
pub fn expand(patterns: &[String], env: Environment<'_>) -> Result<Vec<PathBuf>, GlobError> {
    let mut files = BTreeSet::new();
    for pattern in patterns {
        files.extend(matches(pattern, env)?);
    }
    Ok(files.into_iter().collect())
}

fn matches(pattern: &str, env: Environment<'_>) -> Result<Vec<PathBuf>, GlobError> {
    let expanded = variables(pattern, env)?;
    let (mut files, mut directories): (Vec<_>, Vec<_>) =
        paths(pattern, &expanded)?.into_iter().partition(|path| path.is_file());
    if files.is_empty() && directories.len() == 1 {
        let directory = glob::Pattern::escape(&directories.remove(0).to_string_lossy());
        files = paths(pattern, &format!("{directory}/**/*"))?;
        files.retain(|path| is_known(path) && path.is_file());
    }
    if files.is_empty() {
        return Err(GlobError::Nothing { pattern: pattern.to_owned(), expanded });
    }
    Ok(files)
}

/// Whether a file below a directory is one of text or tokens, by its name.
fn is_known(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let name = name.strip_suffix(".gz").or(name.strip_suffix(".zst")).unwrap_or(&name);
    let extension = name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty());
    extension.is_some_and(|(_, extension)| KNOWN_EXTENSIONS.contains(&extension))
}

/// Whatever matches.
fn paths(pattern: &str, expanded: &str) -> Result<Vec<PathBuf>, GlobError> {
    let syntax = |what: String| GlobError::Syntax { pattern: pattern.to_owned(), what };
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: false,
    };
    let paths = glob::glob_with(expanded, options).map_err(|error| syntax(error.to_string()))?;
    let read = |path: glob::GlobResult| {
        path.map_err(|error| GlobError::Unreadable {
            pattern: pattern.to_owned(),
            path: error.path().to_owned(),
            source: error.into(),
        })
    };
    paths.map(read).collect()
}

/// Replaces a leading `~` and every `${..}`. Values from the environment are taken literally:
/// they are paths, so their brackets and stars are no patterns.
pub fn variables(pattern: &str, env: Environment<'_>) -> Result<String, GlobError> {
    substitute(pattern, pattern, env, 0)
}

fn substitute(
    text: &str,
    pattern: &str,
    env: Environment<'_>,
    depth: usize,
) -> Result<String, GlobError> {
    let syntax =
        |what: &str| GlobError::Syntax { pattern: pattern.to_owned(), what: what.to_owned() };
    if depth > DEPTH_MAX {
        return Err(syntax("its defaults are nested too deeply"));
    }
    let value = |name: &str| env(name).filter(|value| !value.is_empty());
    let mut rest = text;
    let mut out = String::new();
    if let Some(after) = rest.strip_prefix('~')
        && (after.is_empty() || after.starts_with('/'))
    {
        let home = value("HOME").ok_or_else(|| GlobError::Unset {
            pattern: pattern.to_owned(),
            variable: "HOME".to_owned(),
        })?;
        out += &glob::Pattern::escape(&home);
        rest = after;
    }
    while let Some((before, after)) = rest.split_once("${") {
        out += before;
        let end = closing(after).ok_or_else(|| syntax("a ${ has no closing }"))?;
        let (inside, after) = (&after[..end], &after[end + 1..]);
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(word) {
            return Err(syntax("want ${NAME} or ${NAME:-DEFAULT}, with a name of A-Z, 0-9 and _"));
        }
        out += &match (value(name), default) {
            (Some(value), _) => glob::Pattern::escape(&value),
            (None, Some(default)) => substitute(default, pattern, env, depth + 1)?,
            (None, None) => {
                let (pattern, variable) = (pattern.to_owned(), name.to_owned());
                return Err(GlobError::Unset { pattern, variable });
            }
        };
        rest = after;
    }
    Ok(out + rest)
}

/// Where the `}` is that closes the `${` just before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOME" => Some("/home/ann".to_owned()),
            "DATA" => Some("/data[1]".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn variables_and_home_are_replaced() {
        let check = |pattern: &str, wanted: &str| {
            assert_eq!(variables(pattern, &env).unwrap(), wanted);
        };
        check("plain/*.txt", "plain/*.txt");
        check("~/books/*.txt", "/home/ann/books/*.txt");
        check("a~/b", "a~/b");
        check("~ann/b", "~ann/b");
        check("${HOME}/x", "/home/ann/x");
        check("${CARGO_HOME:-~/.cargo}/registry/**/*.rs", "/home/ann/.cargo/registry/**/*.rs");
        check("${A:-${B:-${HOME}/c}/d}/e", "/home/ann/c/d/e");
        check("${EMPTY:-full}", "full");
        check("${HOME:-~/unused}/x", "/home/ann/x");
        // A bracket in a value is a letter of the path, not a pattern.
        check("${DATA}/*", "/data[[]1[]]/*");
    }

    #[test]
    fn wrong_patterns_say_what_is_wrong() {
        let check = |pattern: &str, wanted: &str| {
            let error = expand(&[pattern.to_owned()], &env).expect_err(pattern).to_string();
            assert!(error.contains(wanted), "{error}");
        };
        check("${NOWHERE}/x", "needs $NOWHERE, which is not set");
        check("${NOWHERE}/x", "write ${NOWHERE:-DEFAULT}");
        check("${HOME", "a ${ has no closing }");
        check("${A B}", "want ${NAME}");
        check("${}", "want ${NAME}");
        check("a/***/b", "\"a/***/b\" is not a valid pattern");
        check("no-such-place/*.txt", "no file matches \"no-such-place/*.txt\"");
        check("~/no-such/*", "no file matches \"~/no-such/*\" (that is \"/home/ann/no-such/*\")");
        let deep = "${A:-".repeat(20) + &"}".repeat(20);
        check(&deep, "nested too deeply");
    }

    #[test]
    fn files_are_sorted_and_named_once_and_directories_left_out() {
        let root = std::env::temp_dir().join(format!("shoal-globs-{}", std::process::id()));
        let file = |name: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "text").unwrap();
        };
        for name in ["b.rs", "a.rs", "deep/er/c.rs", "deep/d.txt", "dir.rs/inside.txt"] {
            file(name);
        }
        let pattern = |tail: &str| format!("{}/{tail}", root.display());
        let names = |patterns: &[String]| -> Vec<String> {
            let files = expand(patterns, &env).unwrap();
            let short = |path: &Path| path.strip_prefix(&root).unwrap().display().to_string();
            files.iter().map(|path| short(path)).collect()
        };
        assert_eq!(names(&[pattern("**/*.rs")]), ["a.rs", "b.rs", "deep/er/c.rs"]);
        assert_eq!(names(&[pattern("*.rs"), pattern("a.*")]), ["a.rs", "b.rs"]);
        assert_eq!(names(&[pattern("deep/*")]), ["deep/d.txt"]);
        // A directory alone stands for what is known below it.
        for name in ["deep/er/e.JSONL.gz", "deep/.txt", "deep/f.parquet"] {
            file(name);
        }
        let known = ["deep/d.txt", "deep/er/e.JSONL.gz", "deep/f.parquet"];
        assert_eq!(names(&[pattern("deep")]), known);
        assert_eq!(names(&[pattern("dee*")]), known);
        fs::create_dir(root.join("empty")).unwrap();
        assert!(expand(&[pattern("empty")], &env).is_err());
        assert!(expand(&[pattern("a.rs"), pattern("z*")], &env).is_err());
        fs::remove_dir_all(root).unwrap();
    }
}
