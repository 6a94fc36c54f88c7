//! `--set training.steps=50`: a path below `spec` (or from the root), and a YAML value.

use super::complaint::{Complaint, Sources, quote};
use super::tree::{self, At, Node, Value};

/// How a flag is shown in messages. Places count from its start.
const FLAG: &str = "--set ";

/// Keys of the root; any other path is below `spec`.
const ROOTS: [&str; 4] = ["apiVersion", "kind", "metadata", "spec"];

/// Lays the flags over the tree, in order.
pub(super) fn apply(
    root: &mut Node,
    overrides: &[String],
    sources: &mut Sources,
) -> Result<(), Complaint> {
    for flag in overrides {
        let shown = format!("{FLAG}{flag}");
        let source = sources.add(shown.clone(), shown);
        let at = |column: usize, length: usize| At {
            source,
            line: 1,
            column: FLAG.len() + 1 + column,
            length,
            is_flag: true,
        };
        let Some((path, value)) = flag.split_once('=') else {
            let all = at(0, flag.chars().count());
            let what = "wanted PATH=VALUE, such as training.steps=50";
            return Err(Complaint::new(all, quote(flag), what));
        };
        let value = read_value(value, path.chars().count() + 1, &at)?;
        let mut node = &mut *root;
        let mut column = 0;
        let mut walked = String::new();
        if !path.split('.').next().is_some_and(|first| ROOTS.contains(&first)) {
            node = node.section_entry("spec", At::NOWHERE);
            walked += "spec";
        }
        for key in path.split('.') {
            let key_at = at(column, key.chars().count());
            if key.is_empty() {
                let what = format!("the path {} has an empty part", quote(path));
                return Err(Complaint::new(key_at, quote(path), what));
            }
            open_section(node, &walked, key_at)?;
            node = node.section_entry(key, key_at);
            walked = tree::join(&walked, key);
            column += key.chars().count() + 1;
        }
        *node = value;
    }
    Ok(())
}

/// The value of a flag as YAML. Nothing at all is an empty value.
fn read_value(
    text: &str,
    start: usize,
    at: &impl Fn(usize, usize) -> At,
) -> Result<Node, Complaint> {
    if text.trim().is_empty() {
        return Ok(Node { at: at(start, 1), value: Value::Null });
    }
    let shift = |place: At| {
        // Only a flag with line breaks has places on other lines.
        let column = if place.line <= 1 { place.column.saturating_sub(1) } else { 0 };
        at(start + column, place.length)
    };
    match tree::parse(text, 0) {
        Ok(mut value) => {
            value.move_places(&shift);
            Ok(value)
        }
        Err(error) => Err(error.moved(&shift)),
    }
}

/// Makes sure that a key can be put into `node`. A preset's name becomes a section around it.
fn open_section(node: &mut Node, path: &str, at: At) -> Result<(), Complaint> {
    if node.is_section() {
        return Ok(());
    }
    if path == "spec.model" && matches!(node.value, Value::Text(_)) {
        let preset = std::mem::take(node);
        let key_at = preset.at;
        *node.section_entry("preset", key_at) = preset;
        return Ok(());
    }
    let what = format!("it is {}, not a section, so no key can be set in it", node.value);
    Err(Complaint::new(at, path, what))
}
