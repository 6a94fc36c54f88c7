//! The manifest's JSON Schema, for editors: types and texts are those of the very structs that are
//! read, defaults and bounds those of the parser.

use schemars::{JsonSchema, schema_for};
use serde_json::{Map, Value, json};

use super::rules::{self, Bound};
use super::{API_VERSION, KIND, Parallelism, data_section, defaults};
use crate::job::{Checkpoint, EvaluationPlan, Job, MetricsSettings, Training, Workers};
use crate::model::ModelConfig;

/// Where the schema lies in the repository: the first line of every example points there.
pub const SCHEMA_FILE: &str = "docs/manifest.schema.json";

/// One section of `spec`.
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) schema: Value,
}

/// The schema of a whole manifest, JSON Schema 2020-12.
pub fn schema() -> Value {
    let mut definitions = Map::new();
    let mut sections = Map::new();
    for Section { name, mut schema } in sections_of_spec() {
        if let Some(Value::Object(own)) = take(&mut schema, "$defs") {
            definitions.extend(own);
        }
        sections.insert(name.to_owned(), schema);
    }
    let fields = sections.remove("model").unwrap_or_default();
    sections.insert("model".to_owned(), model(fields));
    let strict = |properties: Value| json!({ "type": "object", "additionalProperties": false, "properties": properties });
    let mut spec = strict(Value::Object(sections));
    spec["required"] = json!(["data"]);
    let name = json!({ "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$" });
    let mut root = strict(json!({
        "apiVersion": { "const": API_VERSION },
        "kind": { "const": KIND },
        "metadata": strict(json!({ "name": name })),
        "spec": spec,
    }));
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    root["title"] = "shoal training manifest".into();
    root["required"] = json!(["apiVersion", "kind", "spec"]);
    root["$defs"] = Value::Object(definitions);
    root
}

/// Every section with its defaults and bounds, in the order of the documentation.
pub(super) fn sections_of_spec() -> Vec<Section> {
    let bounds = rules::bounds(&Job::example());
    let section = |name, schema: Value, defaults: Value| {
        let schema = finished(schema, &defaults, &format!("spec.{name}"), &bounds);
        Section { name, schema }
    };
    vec![
        section("model", of::<ModelConfig>(), value(&ModelConfig::tiny())),
        section("data", of::<data_section::DataSection>(), value(&defaults::data())),
        section("training", of::<Training>(), value(&defaults::training())),
        section("evaluation", of::<EvaluationPlan>(), value(&defaults::evaluation())),
        section("parallelism", of::<Parallelism>(), value(&defaults::parallelism())),
        section("workers", of::<Workers>(), value(&defaults::workers())),
        section("checkpoint", of::<Checkpoint>(), value(&defaults::checkpoint())),
        section("metrics", of::<MetricsSettings>(), value(&defaults::metrics())),
    ]
}

fn of<T: JsonSchema>() -> Value {
    schema_for!(T).to_value()
}

fn value(defaults: &impl serde::Serialize) -> Value {
    serde_json::to_value(defaults).expect("defaults are plain structs")
}

/// A section in which every key may be left out: with its default, its bounds, and no other keys.
fn finished(mut schema: Value, defaults: &Value, path: &str, bounds: &[Bound]) -> Value {
    for key in ["$schema", "title", "required", "description"] {
        take(&mut schema, key);
    }
    schema["additionalProperties"] = false.into();
    let mut inner = schema.get("$defs").cloned().unwrap_or_default();
    let properties = schema["properties"].as_object_mut().expect("a section has keys");
    for (key, property) in properties {
        if let Some(default) = defaults.get(key) {
            property["default"] = short(default);
        }
        let path = format!("{path}.{key}");
        bounded(property, &path, bounds);
        let mut section = section_of(property).and_then(|name| inner.get_mut(name));
        if let (Some(section), Some(Value::Object(_))) = (&mut section, property.get("default")) {
            // What is left out of it has a default where it stands.
            take(section, "required");
        }
        let properties = section.and_then(|section| section.get_mut("properties")?.as_object_mut());
        for (key, property) in properties.into_iter().flatten() {
            bounded(property, &format!("{path}.{key}"), bounds);
        }
    }
    if inner.is_object() {
        schema["$defs"] = inner;
    }
    schema
}

/// Writes down the bounds of one key.
fn bounded(property: &mut Value, path: &str, bounds: &[Bound]) {
    // `uint32` and the like say nothing that the bounds do not.
    take(property, "format");
    if let Some(bound) = bounds.iter().find(|bound| bound.path == path) {
        for (keyword, value) in bound.keywords() {
            property[keyword] = short(&value.into());
        }
    }
}

/// The name of the section that a key holds, or holds where it is not null.
pub(super) fn section_of(property: &Value) -> Option<&str> {
    let choices = property["anyOf"].as_array().into_iter().flatten();
    let mut all = std::iter::once(property).chain(choices);
    all.find_map(|choice| choice["$ref"].as_str()?.strip_prefix("#/$defs/"))
}

/// A preset's name, or a section.
fn model(mut fields: Value) -> Value {
    let properties = fields["properties"].as_object_mut().expect("a section has keys");
    for property in properties.values_mut() {
        // They depend on the preset.
        take(property, "default");
    }
    let preset = json!({
        "description": "The preset whose fields the others of this section replace.",
        "enum": ModelConfig::PRESETS,
    });
    properties.insert("preset".to_owned(), preset);
    let config = json!({
        "description": "A Hugging Face config.json with model_type deepseek_v3, instead of a preset.",
        "type": "string",
    });
    properties.insert("config".to_owned(), config);
    json!({ "default": "tiny", "anyOf": [{ "enum": ModelConfig::PRESETS }, fields] })
}

/// Every fraction of a job is an f32: written as one, 0.002 is not 0.0020000000949949026.
fn short(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            let shortest = (number.as_f64().unwrap_or(f64::NAN) as f32).to_string();
            serde_json::from_str(&shortest).expect("a finite number is JSON")
        }
        Value::Array(items) => items.iter().map(short).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), short(value))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn take(schema: &mut Value, key: &str) -> Option<Value> {
    schema.as_object_mut().and_then(|fields| fields.remove(key))
}
