//! What one client was told, and so what it has yet to hear: all at first, then what is different.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use super::state::{Curve, Snapshot};

/// Points of a curve that a client is told at once: more than a screen is wide. Of a longer one every second is left
/// out, until it fits.
const POINTS_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Told {
    parts: BTreeMap<&'static str, Arc<str>>,
    losses: Option<(u64, usize)>,
    heldout: Option<(u64, usize)>,
}

impl Told {
    /// One event with everything that this client does not know yet.
    pub(super) fn next(&mut self, now: &Snapshot) -> String {
        let mut text = "data: {\"parts\":{".to_owned();
        let mut comma = "";
        for (name, part) in &now.parts {
            if self.parts.get(name) != Some(part) {
                // Writing to a text cannot fail.
                let _ = write!(text, "{comma}\"{name}\":{part}");
                comma = ",";
                self.parts.insert(name, Arc::clone(part));
            }
        }
        text.push('}');
        for (name, told, curve) in [
            ("losses", &mut self.losses, &now.losses),
            ("heldout", &mut self.heldout, &now.heldout),
        ] {
            grown(&mut text, name, told, curve);
        }
        text.push_str("}\n\n");
        text
    }
}

/// What has grown; all of it where it is another curve.
fn grown(text: &mut String, name: &str, told: &mut Option<(u64, usize)>, curve: &Curve) {
    let known = told.filter(|(version, n)| *version == curve.version && *n <= curve.points.len());
    let from = known.map_or(0, |(_, n)| n);
    *told = Some((curve.version, curve.points.len()));
    let new = &curve.points[from..];
    if known.is_some() && new.is_empty() {
        return;
    }
    let anew = known.is_none();
    let _ = write!(text, ",\"{name}\":{{\"anew\":{anew},\"points\":[");
    let stride = new.len().div_ceil(POINTS_MAX).max(1);
    // The last one is always among them.
    let left_out = new.len().saturating_sub(1) % stride;
    let shown = new.iter().skip(left_out).step_by(stride);
    for (n, (step, loss)) in shown.enumerate() {
        let comma = if n == 0 { "" } else { "," };
        if loss.is_finite() {
            let _ = write!(text, "{comma}[{step},{loss:.4}]");
        } else {
            let _ = write!(text, "{comma}[{step},null]");
        }
    }
    text.push_str("]}");
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn snapshot(run: &str, points: &[(u64, f64)], before: &Snapshot) -> Snapshot {
        let parts = BTreeMap::from([("events", Arc::from("[]")), ("run", Arc::from(run))]);
        let losses = Arc::new(before.losses.followed_by(points));
        Snapshot { parts, losses, ..Snapshot::default() }
    }

    fn parsed(event: &str) -> Value {
        let json = event.strip_prefix("data: ").and_then(|event| event.strip_suffix("\n\n"));
        serde_json::from_str(json.unwrap()).unwrap()
    }

    #[test]
    fn a_client_hears_all_and_then_what_is_different() {
        let mut told = Told::default();
        let first = snapshot("{\"step\":1}", &[(1, 5.0)], &Snapshot::default());
        let all = parsed(&told.next(&first));
        assert_eq!(
            (&all["parts"]["run"]["step"], &all["losses"]["anew"]),
            (&1.into(), &true.into())
        );
        assert_eq!(all["losses"]["points"], serde_json::json!([[1, 5.0]]));
        assert_eq!(parsed(&told.next(&first)), serde_json::json!({ "parts": {} }));
        let second = snapshot("{\"step\":2}", &[(1, 5.0), (2, 4.0)], &first);
        let more = parsed(&told.next(&second));
        assert_eq!(more["parts"], serde_json::json!({ "run": { "step": 2 } }));
        assert_eq!(more["losses"], serde_json::json!({ "anew": false, "points": [[2, 4.0]] }));
    }

    #[test]
    fn a_curve_that_was_taken_back_is_told_anew() {
        let mut told = Told::default();
        let first = snapshot("{}", &[(1, 5.0), (2, 4.0), (3, 3.0)], &Snapshot::default());
        told.next(&first);
        let back = snapshot("{}", &[(1, 5.0), (2, 4.5)], &first);
        let heard = parsed(&told.next(&back));
        assert_eq!(
            heard["losses"],
            serde_json::json!({ "anew": true, "points": [[1, 5.0], [2, 4.5]] })
        );
        let other = snapshot("{}", &[(1, 5.0), (2, 4.5), (3, f64::NAN)], &back);
        assert_eq!(parsed(&told.next(&other))["losses"]["points"], serde_json::json!([[3, null]]));
    }

    #[test]
    fn a_long_curve_is_thinned_and_keeps_its_end() {
        let points: Vec<(u64, f64)> = (1..=4096).map(|step| (step, 1.0)).collect();
        let event = Told::default().next(&snapshot("{}", &points, &Snapshot::default()));
        let heard = parsed(&event);
        let heard = heard["losses"]["points"].as_array().unwrap();
        assert_eq!(heard.len(), POINTS_MAX);
        assert_eq!(heard.last().unwrap()[0], 4096);
    }
}
