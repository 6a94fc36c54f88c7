//! Reads a file of settings, with the manifest's reader and its errors.

use std::path::Path;

use serde::de::IgnoredAny;

use super::{File, KIND, Kind, SETTINGS, Setting, Values};
use crate::fleet;
use crate::globs::Environment;
use crate::manifest::complaint::{Complaint, Sources, quote};
use crate::manifest::reader::{read_elsewhere, refuse_unknown};
use crate::manifest::tree::{self, Node, Value};
use crate::manifest::{self, API_VERSION, BYTES_MAX, Envelope, ManifestError, check_word};

/// Parses a file of settings; none if it is a manifest or a fleet, which may have the same name.
///
/// - `name`: for messages.
/// - `directory`: where relative paths in it start.
pub fn parse(
    name: &str,
    text: &str,
    directory: &Path,
    environment: Environment<'_>,
) -> Result<Option<File>, ManifestError> {
    let sources = Sources::new(name, text);
    let place = Place { directory, environment };
    match read(text, &place) {
        Ok(None) => Ok(None),
        Ok(Some(values)) => {
            Ok(Some(File { name: name.to_owned(), values: values.into_iter().collect() }))
        }
        Err(complaints) => Err(sources.explain(&complaints)),
    }
}

struct Place<'a> {
    directory: &'a Path,
    environment: Environment<'a>,
}

type Entry = (&'static str, (Values, usize));

fn read(text: &str, place: &Place<'_>) -> Result<Option<Vec<Entry>>, Vec<Complaint>> {
    if text.len() > BYTES_MAX {
        let what = format!("{} bytes; settings have at most {BYTES_MAX}", text.len());
        return Err(vec![Complaint::new(tree::At::start(0), "", what)]);
    }
    let root = tree::parse(text, 0)?;
    let kind = root.get("kind").map(Node::written);
    match kind.as_deref() {
        Some(manifest::KIND | fleet::KIND) => return Ok(None),
        Some(kind) => check_word(&root, "kind", kind, KIND)?,
        None => {}
    }
    let envelope: Envelope<IgnoredAny> = read_elsewhere(&root, "")?;
    check_word(&root, "apiVersion", &envelope.api_version, API_VERSION)?;
    check_word(&root, "kind", &envelope.kind, KIND)?;
    let (mut found, mut complaints) = (Vec::new(), Vec::new());
    if let Some(spec) = root.get("spec") {
        section(spec, "", place, (&mut found, &mut complaints));
    }
    if complaints.is_empty() { Ok(Some(found)) } else { Err(complaints) }
}

/// Keys of one section, and of those in it. `path` is without `spec`.
fn section(
    node: &Node,
    path: &str,
    place: &Place<'_>,
    (found, complaints): (&mut Vec<Entry>, &mut Vec<Complaint>),
) {
    let full = tree::join("spec", path);
    let full = full.trim_end_matches('.');
    if !node.is_section() {
        let what = format!("wanted a section of `key: value` lines, got {}", node.value);
        complaints.push(Complaint::new(node.at, full, what));
        return;
    }
    let names = names(path);
    for entry in node.entries() {
        let key = tree::join(path, &entry.key);
        let one = std::slice::from_ref(entry);
        if let Err(complaint) = refuse_unknown(one, full, &names, elsewhere) {
            complaints.push(complaint);
        } else if let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) {
            match values(setting, &entry.node, place) {
                Ok(values) => found.push((setting.key, (values, entry.key_at.line))),
                Err(what) => {
                    let at = if entry.node.at.line > 0 { entry.node.at } else { entry.key_at };
                    complaints.push(Complaint::new(at, format!("spec.{key}"), what));
                }
            }
        } else {
            section(&entry.node, &key, place, (found, complaints));
        }
    }
}

/// Keys that a section has.
fn names(path: &str) -> Vec<&'static str> {
    let of_files = SETTINGS.iter().filter(|setting| setting.in_files);
    let inside = of_files.filter_map(|setting| match path {
        "" => Some(setting.key),
        _ => setting.key.strip_prefix(path)?.strip_prefix('.'),
    });
    let mut names: Vec<&str> = inside.map(|rest| rest.split('.').next().unwrap_or(rest)).collect();
    names.dedup();
    names
}

/// Where a key belongs that stands in another section.
fn elsewhere(key: &str) -> Option<String> {
    let of_files = SETTINGS.iter().filter(|setting| setting.in_files);
    let mut ends = of_files
        .filter(|setting| setting.key.rsplit_once('.').is_some_and(|(_section, last)| last == key));
    ends.next().map(|setting| format!("spec.{}", setting.key))
}

fn values(setting: &Setting, node: &Node, place: &Place<'_>) -> Result<Values, String> {
    let wanted = || format!("wanted {}, got {}", setting.kind.wanted(), node.value);
    let items: Vec<&Node> = match (&node.value, setting.kind) {
        (Value::List(items), Kind::Texts) => items.iter().collect(),
        (Value::List(_) | Value::Map(_) | Value::Null, _) => return Err(wanted()),
        (Value::Text(_) | Value::Whole(_) | Value::Real(_) | Value::Bool(_), _) => vec![node],
    };
    let one = |item: &&Node| match &item.value {
        Value::Text(_) | Value::Whole(_) => {
            let written = item.written();
            if setting.kind.takes(&written) {
                place.put(setting.kind, written)
            } else {
                Err(wanted())
            }
        }
        Value::Bool(_) | Value::Real(_) | Value::Null | Value::List(_) | Value::Map(_) => {
            Err(wanted())
        }
    };
    items.iter().map(one).collect()
}

impl Place<'_> {
    /// A path as the verb takes it, anything else as it is.
    fn put(&self, kind: Kind, value: String) -> Result<String, String> {
        if !kind.is_path(&value) {
            return Ok(value);
        }
        let whole = match value.strip_prefix("~/") {
            Some(rest) => {
                let home = (self.environment)("HOME").ok_or_else(|| {
                    format!(
                        "wanted a path that does not need HOME, which is not set, got {}",
                        quote(&value)
                    )
                })?;
                Path::new(&home).join(rest)
            }
            None => self.directory.join(&value),
        };
        Ok(whole.display().to_string())
    }
}
