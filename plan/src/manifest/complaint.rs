//! What is wrong, where: with the source line and a caret below the very value.

use std::fmt;

use super::tree::{At, join};

/// Wider source lines are cut around the caret.
const WIDTH_MAX: usize = 100;

/// Longer names and values from the file are cut in messages.
const QUOTE_MAX: usize = 60;

/// Everything that is wrong with a manifest. `Display` shows all of it, each with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// Never empty.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The manifest, the model's `config.json`, or the flag (`--set training.steps=x`).
    pub file: String,
    /// 1-based; 0 when the whole file is meant.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// The full path of the value, such as `spec.training.batch`; empty for bad YAML.
    pub path: String,
    /// What is wrong, and what was wanted.
    pub what: String,
    /// What to do about it. May be empty.
    pub help: String,
    /// The source line with a caret below it. Empty when there is none.
    pub snippet: String,
}

impl std::error::Error for ManifestError {}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            let gap = if i == 0 { "" } else { "\n\n" };
            write!(f, "{gap}{problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 && !self.file.starts_with("--set") {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.what)?;
        if !self.snippet.is_empty() {
            write!(f, "\n{}", self.snippet)?;
        }
        if !self.help.is_empty() {
            write!(f, "\n  = help: {}", self.help)?;
        }
        Ok(())
    }
}

/// A problem before it is shown. Also serde's error while the tree is read.
#[derive(Clone, Debug)]
pub(crate) struct Complaint {
    pub(crate) at: At,
    pub(crate) path: String,
    what: String,
    help: String,
    /// `path` is so far only the name of a missing key.
    is_missing: bool,
}

impl Complaint {
    pub(crate) fn new(at: At, path: impl Into<String>, what: impl Into<String>) -> Self {
        Self { at, path: path.into(), what: what.into(), help: String::new(), is_missing: false }
    }

    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self { help: help.into(), ..self }
    }

    pub(crate) fn moved(self, f: &impl Fn(At) -> At) -> Self {
        Self { at: f(self.at), ..self }
    }

    /// Says where, unless that is known already.
    pub(crate) fn or_at(self, at: At, path: &str) -> Self {
        if !self.path.is_empty() && !self.is_missing {
            return self;
        }
        let path = if self.is_missing { join(path, &self.path) } else { path.to_owned() };
        Self { at, path, is_missing: false, ..self }
    }
}

impl From<Complaint> for Vec<Complaint> {
    fn from(complaint: Complaint) -> Self {
        vec![complaint]
    }
}

impl std::error::Error for Complaint {}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl serde::de::Error for Complaint {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self::new(At::NOWHERE, "", what.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self { is_missing: true, ..Self::new(At::NOWHERE, field, "this key is missing") }
    }
}

/// A text that values come from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// All texts of one manifest; `At::source` counts in them. The first is the manifest.
#[derive(Clone, Debug)]
pub(crate) struct Sources(Vec<Source>);

impl Sources {
    pub(crate) fn new(name: &str, text: &str) -> Self {
        Self(vec![Source { name: name.to_owned(), text: text.to_owned() }])
    }

    pub(crate) fn manifest(&self) -> &Source {
        &self.0[0]
    }

    /// Adds a text and says its number.
    pub(crate) fn add(&mut self, name: String, text: String) -> usize {
        self.0.push(Source { name, text });
        self.0.len() - 1
    }

    pub(crate) fn explain(&self, complaints: &[Complaint]) -> ManifestError {
        assert!(!complaints.is_empty(), "an error has a problem");
        ManifestError { problems: complaints.iter().map(|one| self.problem(one)).collect() }
    }

    fn problem(&self, complaint: &Complaint) -> Problem {
        let Complaint { at, path, what, help, .. } = complaint.clone();
        let source = &self.0[at.source];
        let line = (at.line > 0).then(|| source.text.lines().nth(at.line - 1)).flatten();
        let snippet = line.map(|line| snippet(line, at)).unwrap_or_default();
        let file = clean(&source.name);
        Problem { file, line: at.line, column: at.column, path, what, help, snippet }
    }
}

/// The line, and a caret below the value. The rest of a value of several lines is not shown.
fn snippet(line: &str, at: At) -> String {
    let chars: Vec<char> = clean(line).chars().collect();
    let start = (at.column.max(1) - 1).min(chars.len());
    let shown_from = if chars.len() > WIDTH_MAX { start.saturating_sub(WIDTH_MAX / 2) } else { 0 };
    let shown: String = chars[shown_from..].iter().take(WIDTH_MAX).collect();
    let shown = shown.trim_end();
    let (margin, number) = if at.is_flag {
        (String::new(), String::new())
    } else {
        let number = at.line.to_string();
        (" ".repeat(number.len()), number)
    };
    let before = if shown_from > 0 { "..." } else { "" };
    let indent = " ".repeat(before.len() + start - shown_from);
    let room = shown.chars().count().saturating_sub(start - shown_from).max(1);
    let carets = "^".repeat(at.length.clamp(1, room));
    format!("{margin} |\n{number} | {before}{shown}\n{margin} | {indent}{carets}")
}

/// Text from a file, fit for a terminal: control characters and tabs become one space each.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A name or value from the file, for a message.
pub(crate) fn quote(text: &str) -> String {
    let mut shown: String = text.chars().take(QUOTE_MAX).collect();
    if shown.len() < text.len() {
        shown += "...";
    }
    format!("`{}`", clean(&shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize, column: usize, length: usize) -> At {
        At { source: 0, line, column, length, is_flag: false }
    }

    #[test]
    fn a_problem_shows_its_line_and_its_value() {
        let sources = Sources::new("a.yaml", "spec:\n  steps: many\n");
        let complaint = Complaint::new(at(2, 10, 4), "spec.steps", "wanted a number").help("try 3");
        assert_eq!(
            sources.explain(&[complaint]).to_string(),
            "a.yaml:2:10: spec.steps: wanted a number\n  |\n2 |   steps: many\n  |          ^^^^\n  \
             = help: try 3"
        );
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let line = "x".repeat(400) + "Y" + &"z".repeat(400);
        let shown = snippet(&line, at(1, 401, 1));
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines.iter().all(|line| line.len() < 120), "{shown}");
        let caret = lines[2].find('^').unwrap();
        assert_eq!(lines[1].as_bytes()[caret], b'Y');
    }

    #[test]
    fn a_file_cannot_write_to_the_terminal() {
        assert_eq!(quote("a\u{1b}[31mb"), "` [31mb`".replace("` ", "`a "));
        assert!(!snippet("a: \u{1b}]0;x\u{7}", at(1, 1, 1)).contains('\u{1b}'));
        assert_eq!(quote(&"x".repeat(1000)).len(), QUOTE_MAX + 5);
    }

    #[test]
    fn places_outside_the_text_are_shown_without_panic() {
        let sources = Sources::new("a.yaml", "x");
        for (line, column, length) in [(0, 0, 0), (1, 99, 99), (9, 1, 1), (1, 0, 0)] {
            sources.explain(&[Complaint::new(at(line, column, length), "p", "w")]).to_string();
        }
    }
}
