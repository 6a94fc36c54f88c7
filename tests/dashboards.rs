//! The dashboards and rules that ship: they are what their source says, keep the rules of
//! grafana/dashboard-linter, and ask only for metrics that exist.
//!
//! `UPDATE_DOCUMENTS=1 cargo test --test dashboards` writes `deploy/grafana/dashboards` anew.
//! `.ci/monitoring` asks a real Prometheus every query.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "dashboards/boards.rs"]
mod boards;
#[path = "dashboards/machines.rs"]
mod machines;
#[path = "dashboards/panel.rs"]
mod panel;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Units of Grafana's list that are used here.
const UNITS: [&str; 10] =
    ["none", "short", "s", "bytes", "Bps", "ops", "percentunit", "celsius", "watt", "hertz"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn directory() -> PathBuf {
    root().join("deploy/grafana/dashboards/shoal")
}

/// Every dashboard by the name of its file, as it is committed.
fn committed() -> BTreeMap<String, Value> {
    let read = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path()).unwrap();
        (entry.file_name().into_string().unwrap(), serde_json::from_str(&text).unwrap())
    };
    fs::read_dir(directory()).unwrap().map(|entry| read(entry.unwrap())).collect()
}

#[test]
fn the_committed_files_are_what_the_source_says() {
    let update = std::env::var_os("UPDATE_DOCUMENTS").is_some();
    let mut wanted = BTreeSet::new();
    for board in boards::all() {
        let name = format!("{}.json", board.name);
        let path = directory().join(&name);
        let text = format!("{:#}\n", board.json());
        if update {
            fs::write(&path, &text).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(found == text, "{name}: UPDATE_DOCUMENTS=1 cargo test --test dashboards");
        wanted.insert(name);
    }
    let found: BTreeSet<String> = committed().into_keys().collect();
    assert_eq!(found, wanted);
}

/// Panels that are no headings.
fn panels(board: &Value) -> impl Iterator<Item = &Value> {
    board["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

fn queries(board: &Value) -> impl Iterator<Item = &str> {
    let targets = panels(board).flat_map(|panel| panel["targets"].as_array().unwrap());
    let marks = board["annotations"]["list"].as_array().unwrap().iter();
    targets.chain(marks).map(|query| query["expr"].as_str().unwrap())
}

/// The names in a query that are metrics of ours.
fn metrics(query: &str) -> BTreeSet<&str> {
    let parts = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    parts.filter(|part| part.starts_with("shoal_")).collect()
}

/// What docs/metrics.md lists, with its type. `tests/metrics.rs` holds that against what is served.
fn documented() -> BTreeMap<String, String> {
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `shoal_"));
    let row = |row: &str| {
        let (name, rest) = row.split_once("` | ").unwrap();
        (format!("shoal_{name}"), rest.split([',', ' ']).next().unwrap().to_owned())
    };
    rows.map(row).collect()
}

/// Names that are asked for and served by nobody.
fn unknown<'a>(queries: impl Iterator<Item = &'a str>) -> Vec<String> {
    let documented = documented();
    let exists = |name: &str| {
        documented.iter().any(|(known, kind)| match name.strip_prefix(known.as_str()) {
            Some("") => kind != "histogram",
            Some("_bucket" | "_sum" | "_count") => kind == "histogram",
            _ => false,
        })
    };
    let asked: BTreeSet<&str> = queries.flat_map(metrics).collect();
    asked.into_iter().filter(|name| !exists(name)).map(str::to_owned).collect()
}

#[test]
fn dashboards_ask_only_for_metrics_that_exist() {
    let boards = committed();
    let missing = unknown(boards.values().flat_map(queries));
    assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
    assert_eq!(unknown(["rate(shoal_made_up_total[1m])"].into_iter()), ["shoal_made_up_total"]);
    assert_eq!(unknown(["shoal_step_bucket"].into_iter()), ["shoal_step_bucket"]);
}

fn rule_file(name: &str) -> String {
    let path = root().join("deploy/prometheus").join(name);
    let text = fs::read_to_string(path).unwrap();
    let code = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    code.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn rules_ask_only_for_metrics_and_rules_that_exist() {
    let files = ["shoal.rules.yml", "shoal.alerts.yml", "dcgm.rules.yml"].map(rule_file);
    // The names that rules give are no metrics of ours.
    let missing = unknown(files.iter().map(String::as_str));
    assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
    let recorded: BTreeSet<&str> =
        files[0].lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    let is_rule = |word: &&str| word.starts_with("run") && word.contains(":shoal_");
    let used = files.iter().flat_map(|file| {
        file.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).filter(is_rule)
    });
    let gone: Vec<&str> = used.filter(|name| !recorded.contains(name)).collect();
    assert!(gone.is_empty(), "no rule records {gone:?}");
}

#[test]
fn every_alert_is_fired_by_a_test_and_explained() {
    let alerts = rule_file("shoal.alerts.yml");
    let tests = rule_file("shoal.alerts.test.yml");
    let page = fs::read_to_string(root().join("docs/monitoring.md")).unwrap();
    for name in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(
            tests.contains(&format!("alertname: {name}\n        exp_alerts:\n")),
            "{name}: no test fires it"
        );
        assert!(
            tests.contains(&format!("alertname: {name}}}\n")),
            "{name}: no test where it is silent"
        );
        assert!(page.contains(&format!("| `{name}` |")), "{name} is not in docs/monitoring.md");
    }
}

/// The rules of grafana/dashboard-linter (its docs/rules): uneditable-dashboard,
/// template-datasource-rule, template-job-rule, template-on-time-change-reload-rule. Its
/// template-instance-rule wants `instance`: here it is the run, and the worker's name, that people know.
#[test]
fn boards_keep_the_linters_rules() {
    let (mut uids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    for (name, board) in committed() {
        assert_eq!(board["editable"], false, "{name}");
        assert!(board.get("__inputs").is_none(), "{name}: inputs cannot be provisioned");
        assert!(board["uid"].as_str().unwrap().len() <= 40, "{name}");
        assert!(uids.insert(board["uid"].to_string()) && titles.insert(board["title"].to_string()));
        assert!(!board["description"].as_str().unwrap().is_empty(), "{name}");
        assert!(board["links"][0]["includeVars"] == true, "{name}: the boards link each other");
        let variables = board["templating"]["list"].as_array().unwrap();
        let names: Vec<&str> = variables.iter().map(|v| v["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["datasource", "job", "run", "worker"], "{name}");
        assert_eq!(variables[0]["type"], "datasource");
        assert_eq!(variables[0]["query"], "prometheus");
        for variable in &variables[1..] {
            assert_eq!(variable["datasource"]["uid"], "${datasource}", "{name}");
            assert_eq!(variable["refresh"], 2, "{name}: not when the time range changes");
            assert!(variable["multi"] == true && variable["allValue"] == ".+", "{name}");
        }
        let marks = board["annotations"]["list"].as_array().unwrap();
        let names: Vec<&str> = marks.iter().map(|mark| mark["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["Membership", "Recoveries"], "{name}");
    }
    assert_eq!(uids.len(), 6);
}

/// panel-datasource-rule, panel-title-description-rule, panel-units-rule, panel-no-targets-rule; and
/// of ours: ids once each, and nothing lies on anything.
#[test]
fn panels_keep_the_linters_rules() {
    for (name, board) in committed() {
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for panel in board["panels"].as_array().unwrap() {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: an id twice");
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{name}: {} is too wide", panel["title"]);
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(taken.insert((x, y)), "{name}: {} lies on another", panel["title"]);
                }
            }
        }
        for panel in panels(&board) {
            let title = panel["title"].as_str().unwrap();
            assert!(
                !title.is_empty() && panel["description"].as_str().unwrap().len() > 10,
                "{name}: {title}"
            );
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}: {title}");
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap();
            assert!(UNITS.contains(&unit), "{name}: {title}: unit {unit}");
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{name}: {title}");
            for target in targets {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{name}: {title}");
                assert!(!target["legendFormat"].as_str().unwrap().is_empty(), "{name}: {title}");
            }
        }
    }
}

/// target-job-rule (and the run), target-rate-interval-rule, target-counter-agg-rule. Whether a query
/// parses (target-promql-rule) is promtool's to say, in `.ci/monitoring`.
#[test]
fn queries_keep_the_linters_rules() {
    for (name, board) in committed() {
        for query in queries(&board) {
            for metric in metrics(query) {
                for (at, _) in query.match_indices(metric) {
                    let rest = &query[at + metric.len()..];
                    if rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
                        continue;
                    }
                    let selector = if metric.starts_with("shoal_cluster_") {
                        r#"{job=~"$job""#
                    } else {
                        r#"{job=~"$job",run=~"$run""#
                    };
                    assert!(rest.starts_with(selector), "{name}: {query}: not of the chosen run");
                    let counted = metric.ends_with("_total");
                    let end = &rest[rest.find('}').unwrap() + 1..];
                    let rated = end.starts_with("[$__rate_interval]") || end.starts_with("[30s]");
                    assert!(rated || !counted, "{name}: {query}: a counter without rate");
                }
            }
            for function in ["rate(", "increase("] {
                let calls = query.match_indices(function).count();
                let intervals = query.matches("[$__rate_interval]").count();
                assert!(intervals >= calls, "{name}: {query}: {function} over a fixed time");
            }
        }
    }
}
