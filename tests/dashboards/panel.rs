//! From a short description to Grafana's Classic JSON, which Grafana 10 to 13 provision.
//!
//! In a query `@` stands for the run that was chosen, `@w` for that and the chosen workers.

use serde_json::{Value, json};

/// Grafana divides the width of a board into so many columns.
const COLUMNS: u32 = 24;

/// Of Classic JSON; newer Grafanas migrate it when they load it.
const SCHEMA_VERSION: u32 = 39;

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Series,
    Stacked,
    Stat,
    Heatmap,
}

/// One panel before it has a place.
#[derive(Clone)]
pub(crate) struct Panel {
    kind: Kind,
    title: &'static str,
    description: &'static str,
    /// As Grafana names it.
    unit: &'static str,
    /// Query and legend.
    targets: &'static [(&'static str, &'static str)],
    width: u32,
    max: Option<f64>,
    logarithmic: bool,
}

impl Panel {
    fn new(kind: Kind, (title, unit): Head, description: &'static str, targets: Targets) -> Self {
        let width = if matches!(kind, Kind::Stat) { 4 } else { 12 };
        Self { kind, title, description, unit, targets, width, max: None, logarithmic: false }
    }

    pub(crate) fn wide(self, width: u32) -> Self {
        Self { width, ..self }
    }

    /// The end of the scale.
    pub(crate) fn up_to(self, max: f64) -> Self {
        Self { max: Some(max), ..self }
    }

    pub(crate) fn logarithmic(self) -> Self {
        Self { logarithmic: true, ..self }
    }

    fn height(&self) -> u32 {
        if matches!(self.kind, Kind::Stat) { 4 } else { 8 }
    }

    fn json(&self, id: usize, (x, y): (u32, u32)) -> Value {
        let letters = 'A'..='Z';
        let heatmap = matches!(self.kind, Kind::Heatmap);
        let targets: Vec<Value> = (self.targets.iter().zip(letters))
            .map(|((expr, legend), letter)| {
                json!({
                    "datasource": datasource(),
                    "editorMode": "code",
                    "expr": chosen(expr),
                    "format": if heatmap { "heatmap" } else { "time_series" },
                    "instant": false,
                    "legendFormat": legend,
                    "range": true,
                    "refId": letter.to_string(),
                })
            })
            .collect();
        json!({
            "id": id,
            "type": match self.kind {
                Kind::Series | Kind::Stacked => "timeseries",
                Kind::Stat => "stat",
                Kind::Heatmap => "heatmap",
            },
            "title": self.title,
            "description": self.description,
            "datasource": datasource(),
            "gridPos": { "x": x, "y": y, "w": self.width, "h": self.height() },
            "targets": targets,
            "fieldConfig": self.fields(),
            "options": self.options(),
        })
    }

    fn fields(&self) -> Value {
        let mut defaults = json!({ "unit": self.unit, "color": { "mode": "palette-classic" } });
        if let Some(max) = self.max {
            defaults["min"] = json!(0);
            defaults["max"] = json!(max);
        }
        match self.kind {
            Kind::Series | Kind::Stacked => {
                let stacking = if matches!(self.kind, Kind::Stacked) { "normal" } else { "none" };
                let fill = if matches!(self.kind, Kind::Stacked) { 60 } else { 5 };
                let scale = if self.logarithmic {
                    json!({ "type": "log", "log": 10 })
                } else {
                    json!({ "type": "linear" })
                };
                defaults["custom"] = json!({
                    "drawStyle": "line",
                    "fillOpacity": fill,
                    "lineWidth": 1,
                    "scaleDistribution": scale,
                    "showPoints": "never",
                    "stacking": { "group": "A", "mode": stacking },
                });
            }
            Kind::Stat => defaults["color"] = json!({ "mode": "thresholds" }),
            Kind::Heatmap => {}
        }
        json!({ "defaults": defaults, "overrides": [] })
    }

    fn options(&self) -> Value {
        match self.kind {
            Kind::Series | Kind::Stacked => json!({
                "legend": { "calcs": ["lastNotNull"], "displayMode": "table", "placement": "right", "showLegend": true },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
            Kind::Stat => json!({
                "colorMode": "value",
                "graphMode": "area",
                "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
                "textMode": "auto",
            }),
            Kind::Heatmap => json!({
                "calculate": false,
                "cellGap": 1,
                "color": { "mode": "scheme", "scheme": "Spectral", "steps": 64 },
                "tooltip": { "mode": "single", "showColorScale": true, "yHistogram": true },
                "yAxis": { "axisPlacement": "left", "unit": self.unit },
            }),
        }
    }
}

/// Title and unit.
type Head = (&'static str, &'static str);
type Targets = &'static [(&'static str, &'static str)];

/// Lines.
pub(crate) fn series(head: Head, description: &'static str, targets: Targets) -> Panel {
    Panel::new(Kind::Series, head, description, targets)
}

/// Areas that add up.
pub(crate) fn stacked(head: Head, description: &'static str, targets: Targets) -> Panel {
    Panel::new(Kind::Stacked, head, description, targets)
}

/// One large number.
pub(crate) fn stat(head: Head, description: &'static str, targets: Targets) -> Panel {
    Panel::new(Kind::Stat, head, description, targets)
}

/// A histogram over time.
pub(crate) fn heatmap(head: Head, description: &'static str, targets: Targets) -> Panel {
    Panel::new(Kind::Heatmap, head, description, targets)
}

/// A dashboard: rows of panels, each with its heading.
pub(crate) struct Board {
    /// Of its file and its address; stays for ever.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) description: &'static str,
    pub(crate) rows: Vec<(&'static str, Vec<Panel>)>,
}

impl Board {
    pub(crate) fn json(&self) -> Value {
        let mut panels = Vec::new();
        let mut y = 0;
        for (heading, row) in &self.rows {
            panels.push(json!({
                "id": panels.len() + 1, "type": "row", "title": heading, "collapsed": false,
                "gridPos": { "x": 0, "y": y, "w": COLUMNS, "h": 1 }, "panels": [],
            }));
            y += 1;
            let (mut x, mut tallest) = (0, 0);
            for panel in row {
                if x + panel.width > COLUMNS {
                    y += tallest;
                    (x, tallest) = (0, 0);
                }
                panels.push(panel.json(panels.len() + 1, (x, y)));
                x += panel.width;
                tallest = tallest.max(panel.height());
            }
            y += tallest;
        }
        json!({
            "uid": format!("shoal-{}", self.name),
            "title": format!("shoal / {}", self.title),
            "description": self.description,
            "tags": ["shoal"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": false,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": { "from": "now-30m", "to": "now" },
            "timezone": "browser",
            "links": [{
                "type": "dashboards", "tags": ["shoal"], "title": "shoal", "asDropdown": true,
                "includeVars": true, "keepTime": true, "targetBlank": false,
            }],
            "templating": { "list": variables() },
            "annotations": { "list": annotations() },
            "panels": panels,
        })
    }
}

fn datasource() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

/// With the labels of what was chosen; a cluster's own metrics (`@c`) are of no run.
fn chosen(query: &str) -> String {
    let run = r#"job=~"$job",run=~"$run""#;
    let query = query.replace("@w", &format!(r#"{run},process=~"$worker""#));
    query.replace("@c", r#"job=~"$job""#).replace('@', run)
}

fn variables() -> Vec<Value> {
    let query = |name: &str, label: &str, query: &str| {
        json!({
            "name": name, "label": label, "type": "query", "datasource": datasource(),
            "definition": query, "query": { "query": query, "refId": name },
            // When the time range changes: a run of last week is not among today's.
            "refresh": 2,
            "sort": 1, "multi": true, "includeAll": true, "allValue": ".+",
            "current": { "selected": true, "text": ["All"], "value": ["$__all"] },
        })
    };
    vec![
        json!({
            "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
            "refresh": 1, "multi": false, "includeAll": false, "regex": "",
        }),
        query("job", "Job", "label_values(shoal_run_info, job)"),
        query("run", "Run", r#"label_values(shoal_run_info{job=~"$job"}, run)"#),
        query(
            "worker",
            "Worker",
            r#"label_values(shoal_worker_step{job=~"$job",run=~"$run"}, process)"#,
        ),
    ]
}

/// What happened to the run, over every panel. `$__rate_interval` is not known to annotations.
fn annotations() -> Vec<Value> {
    let mark = |name: &str, color: &str, expr: &str, title: &str| {
        json!({
            "name": name, "datasource": datasource(), "enable": true, "hide": false,
            "iconColor": color, "expr": chosen(expr), "step": "10s", "titleFormat": title,
            "textFormat": "{{run}}", "tagKeys": "run", "useValueForTime": false,
        })
    };
    vec![
        mark("Membership", "blue", "changes(shoal_membership_epoch{@}[30s]) > 0", "a new plan"),
        mark("Recoveries", "red", "changes(shoal_recoveries_total{@}[30s]) > 0", "went back"),
    ]
}
