//! One thing that was looked at, and what mends it.

use std::fmt::{self, Write};

use serde::Serialize;

use crate::terminal::harmless;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    Ok,
    /// It works, worse than it could or not for all.
    Warning,
    /// It does not work.
    Problem,
}

/// Where it belongs, in the order in which it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Group {
    Machine,
    Gpu,
    Cluster,
    Peers,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) group: Group,
    pub(super) what: String,
    pub(super) level: Level,
    pub(super) fact: String,
    /// A command or a setting; always there when it is not ok.
    pub(super) mend: Option<String>,
}

impl Group {
    pub(super) fn ok(self, what: &str, fact: impl Into<String>) -> Finding {
        self.finding(what, Level::Ok, fact.into(), None)
    }

    pub(super) fn warning(
        self,
        what: &str,
        fact: impl Into<String>,
        mend: impl Into<String>,
    ) -> Finding {
        self.finding(what, Level::Warning, fact.into(), Some(mend.into()))
    }

    pub(super) fn problem(
        self,
        what: &str,
        fact: impl Into<String>,
        mend: impl Into<String>,
    ) -> Finding {
        self.finding(what, Level::Problem, fact.into(), Some(mend.into()))
    }

    /// A finding that is the worse the less there is of something.
    pub(super) fn at_least(
        self,
        what: &str,
        (has, wanted, needed): (u64, u64, u64),
        fact: String,
        mend: &str,
    ) -> Finding {
        match has {
            has if has < needed => self.problem(what, fact, mend),
            has if has < wanted => self.warning(what, fact, mend),
            _ => self.ok(what, fact),
        }
    }

    /// What others say is shown as text, whatever is in it.
    fn finding(self, what: &str, level: Level, fact: String, mend: Option<String>) -> Finding {
        let shown = |text: &str| harmless(text.as_bytes()).replace(['\n', '\t'], " ");
        let (what, fact, mend) = (shown(what), shown(&fact), mend.map(|mend| shown(&mend)));
        Finding { group: self, what, level, fact, mend }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "PROBLEM",
        })
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "Machine",
            Self::Gpu => "GPU",
            Self::Cluster => "Cluster",
            Self::Peers => "Other rigs",
        })
    }
}

/// For people: a block for each group, and what mends below what is wrong.
pub(super) fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let mut group = None;
    for finding in findings {
        if group.replace(finding.group) != Some(finding.group) {
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}{}", finding.group);
        }
        let Finding { what, level, fact, mend, .. } = finding;
        // Padded as text: the width does not reach through `Display` of an enum.
        let level = level.to_string();
        let _ = writeln!(text, "  {level:7}  {what:width$}  {fact}");
        if let Some(mend) = mend {
            let _ = writeln!(text, "  {:7}  {:width$}  -> {mend}", "", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_blocks_and_what_mends_stands_below() {
        let findings = [
            Group::Machine.ok("cores", "4"),
            Group::Machine.warning("clock", "late\x1b[31m", "set it"),
            Group::Peers.problem("b", "not reached", "open a port"),
        ];
        let wanted = "Machine\n  ok       cores  4\n  warning  clock  late\\u{1b}[31m\n                  -> set it\n\n\
                      Other rigs\n  PROBLEM  b      not reached\n                  -> open a port\n";
        assert_eq!(table(&findings), wanted);
    }

    #[test]
    fn less_is_worse() {
        let of = |has| Group::Machine.at_least("x", (has, 10, 5), String::new(), "more").level;
        assert_eq!([of(10), of(9), of(4)], [Level::Ok, Level::Warning, Level::Problem]);
    }
}
