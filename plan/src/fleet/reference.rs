//! The JSON Schema of a fleet's file and the tables of `docs/fleet.md`, out of the types that are read.

use schemars::schema_for;
use serde_json::{Value, json};

use super::{Fleet, KIND};
use crate::manifest::API_VERSION;
use crate::manifest::reference::table;

/// Where the schema lies in the repository.
pub const SCHEMA_FILE: &str = "docs/fleet.schema.json";

/// Where the table lies in the repository, below text that people wrote.
pub const REFERENCE_FILE: &str = "docs/fleet.md";

/// The schema of a whole file, JSON Schema 2020-12.
pub fn schema() -> Value {
    let mut spec = schema_for!(Fleet).to_value();
    let definitions = spec.as_object_mut().and_then(|fields| fields.remove("$defs"));
    for key in ["$schema", "title", "description"] {
        spec.as_object_mut().and_then(|fields| fields.remove(key));
    }
    let name = json!({ "type": "string" });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "shoal fleet",
        "type": "object",
        "additionalProperties": false,
        "required": ["apiVersion", "kind", "spec"],
        "properties": {
            "apiVersion": { "const": API_VERSION },
            "kind": { "const": KIND },
            "metadata": { "type": "object", "additionalProperties": false, "properties": { "name": name } },
            "spec": spec,
        },
        "$defs": definitions,
    })
}

/// The keys of `spec`: default, allowed values, meaning.
pub fn reference() -> String {
    let schema = schema();
    table(&schema["properties"]["spec"], &schema["$defs"])
}
