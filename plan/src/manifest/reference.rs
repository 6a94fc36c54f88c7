//! The reference of all keys as Markdown, out of the schema: what `docs/manifest.md` shows.

use std::fmt::Write;

use serde_json::Value;

use super::schema::{Section, section_of, sections_of_spec};

/// Where the tables lie in the repository, below text that people wrote.
pub const REFERENCE_FILE: &str = "docs/manifest.md";

/// One table for each section of `spec`: key, default, allowed values, meaning.
pub fn reference() -> String {
    let mut text = String::new();
    for Section { name, schema } in sections_of_spec() {
        let _ = writeln!(text, "### `spec.{name}`\n");
        text.push_str(&table(&schema, &schema["$defs"]));
        text.push('\n');
    }
    text.trim_end().to_owned() + "\n"
}

/// One section as a table.
pub(crate) fn table(schema: &Value, definitions: &Value) -> String {
    let mut text = "| key | default | values | meaning |\n|---|---|---|---|\n".to_owned();
    rows(&mut text, "", schema, definitions);
    text
}

/// The keys of one section, and below each the keys inside it.
fn rows(text: &mut String, before: &str, schema: &Value, definitions: &Value) {
    let Some(properties) = schema["properties"].as_object() else { return };
    for (key, property) in properties {
        let inner = resolved(property, definitions);
        let nested = inner["properties"].is_object();
        let default = match &property["default"] {
            Value::Null => String::new(),
            Value::Object(_) if nested => String::new(),
            Value::String(text) => format!("`{text}`"),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                format!("`{other}`")
            }
        };
        let meaning = property["description"].as_str().or(inner["description"].as_str());
        let meaning = meaning.unwrap_or_default().replace('\n', " ");
        let values = values(property, inner, definitions);
        let _ = writeln!(text, "| `{before}{key}` | {default} | {values} | {meaning} |");
        if nested {
            rows(text, &format!("{before}{key}."), &with_defaults(inner, property), definitions);
        }
        let items = resolved(&property["items"], definitions);
        if items["properties"].is_object() {
            rows(text, &format!("{before}{key}[]."), items, definitions);
        }
        let named = resolved(&property["additionalProperties"], definitions);
        if named["properties"].is_object() {
            rows(text, &format!("{before}{key}.NAME."), named, definitions);
        }
    }
}

/// A section inside a section has its defaults where it stands.
fn with_defaults(inner: &Value, property: &Value) -> Value {
    let mut inner = inner.clone();
    if let Some(properties) = inner["properties"].as_object_mut() {
        for (key, value) in properties {
            if let Some(default) = property["default"].get(key) {
                value["default"] = default.clone();
            }
        }
    }
    inner
}

/// Follows one reference, however it is written.
fn resolved<'a>(schema: &'a Value, definitions: &'a Value) -> &'a Value {
    section_of(schema).map_or(schema, |name| &definitions[name])
}

/// What may stand there, in a few words.
fn values(property: &Value, inner: &Value, definitions: &Value) -> String {
    let choices = inner["oneOf"].as_array().or(inner["enum"].as_array());
    if let Some(choices) = choices {
        return choices.iter().flat_map(names).map(code).collect::<Vec<_>>().join(", ");
    }
    let mut text = match inner["type"].as_array() {
        Some(kinds) => kinds.iter().filter_map(kind).collect::<Vec<_>>().join(" or "),
        None => kind(&inner["type"]).unwrap_or_default().to_owned(),
    };
    if property["anyOf"].is_array() {
        text += " or null";
    }
    if inner["items"].is_object() {
        let items = resolved(&inner["items"], definitions);
        let of = values(items, items, definitions);
        text =
            if text.contains("list") && !of.is_empty() { format!("{text} of: {of}") } else { text };
    }
    let low = bound(property, "minimum", ("exclusiveMinimum", "above"));
    let high = bound(property, "maximum", ("exclusiveMaximum", "below"));
    if let (Some(low), Some(high)) = (low, high) {
        let _ = write!(text, ", {low} to {high}");
    }
    text
}

/// One choice: a variant with a description is a `const`, those without share one `enum`.
fn names(choice: &Value) -> Vec<&str> {
    let several = choice["enum"].as_array().into_iter().flatten();
    let one = [choice, &choice["const"]];
    several.chain(one).filter_map(Value::as_str).collect()
}

fn kind(kind: &Value) -> Option<&'static str> {
    Some(match kind.as_str()? {
        "integer" => "whole number",
        "number" => "number",
        "string" => "text",
        "boolean" => "`true` or `false`",
        "array" => "list",
        "object" => "section",
        "null" => "null",
        _ => return None,
    })
}

/// A bound in words: under its own keyword, or `beyond` it under another.
fn bound(property: &Value, own: &str, (exclusive, beyond): (&str, &str)) -> Option<String> {
    let short = |value: f64| if value >= 1e6 { format!("{value:e}") } else { value.to_string() };
    let outside = || property[exclusive].as_f64().map(|value| format!("{beyond} {}", short(value)));
    property[own].as_f64().map(short).or_else(outside)
}

fn code(word: &str) -> String {
    format!("`{word}`")
}
