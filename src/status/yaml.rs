//! JSON values as YAML, in the block style that people expect of `-o yaml`. Texts are written as JSON has them,
//! which YAML reads alike.

use std::fmt::Write;

use serde_json::Value;

pub(crate) fn of(value: &Value) -> String {
    let mut text = String::new();
    block(&mut text, value, 0);
    text
}

/// A value that has lines of its own.
fn block(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let _ = write!(text, "{indent}{key}:");
                below(text, value, depth);
            }
        }
        Value::Array(values) if !values.is_empty() => {
            for value in values {
                let mut item = String::new();
                block(&mut item, value, depth + 1);
                // The first line of an item stands behind its dash.
                let _ = write!(text, "{indent}- {}", item.trim_start());
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            let _ = writeln!(text, "{indent}{value}");
        }
    }
}

/// What stands behind a key.
fn below(text: &mut String, value: &Value, depth: usize) {
    let is_flat_list = |values: &[Value]| !values.iter().any(|v| v.is_object() || v.is_array());
    match value {
        Value::Array(values) if is_flat_list(values) => {
            let values: Vec<String> = values.iter().map(Value::to_string).collect();
            let _ = writeln!(text, " [{}]", values.join(", "));
        }
        Value::Object(map) if map.is_empty() => text.push_str(" {}\n"),
        Value::Object(_) | Value::Array(_) => {
            text.push('\n');
            block(text, value, depth + 1);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            let _ = writeln!(text, " {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_reads_back_what_was_written() {
        let value = json!({
            "phase": "paused", "why": "a: \"quoted\"\n# text, grün", "loss": null, "step": 12, "rate": 0.5,
            "workers": [{ "worker": 0, "cells": [0, 1], "slow": false }, { "worker": 1, "cells": [] }],
            "none": {}, "nested": { "list": [[1], ["x"]] }
        });
        let text = of(&value);
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, value, "{text}");
        assert!(
            text.contains("workers:\n  - cells: [0, 1]\n    slow: false\n    worker: 0\n"),
            "{text}"
        );
    }
}
