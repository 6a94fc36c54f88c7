//! `spec.model`: a preset's name; a section with `preset` and fields that differ; or a section
//! with `config`, the path of a Hugging Face `config.json`.

mod rope;

use std::path::Path;

use super::complaint::{Complaint, Sources, quote};
use super::nearest::nearest;
use super::tree::{self, At, Node, Value};
use super::{ReadFile, reader, rules};
use crate::model::ModelConfig;

const PATH: &str = "spec.model";

/// The fields that `config.json` may leave out. No MTP modules where nothing is said of them; the others
/// have these values in `transformers`.
const CONFIG_DEFAULTS: [(&str, Value); 7] = [
    ("num_nextn_predict_layers", Value::Whole(0)),
    ("first_k_dense_replace", Value::Whole(3)),
    ("norm_topk_prob", Value::Bool(true)),
    ("q_lora_rank", Value::Null),
    ("initializer_range", Value::Real(0.02)),
    ("rope_scaling", Value::Null),
    ("tie_word_embeddings", Value::Bool(false)),
];

/// What the network is, whatever a `config.json` says: a file that says otherwise is refused.
const FIXED: [(&str, &str); 7] = [
    ("model_type", "deepseek_v3"),
    ("scoring_func", "sigmoid"),
    ("topk_method", "noaux_tc"),
    ("hidden_act", "silu"),
    ("moe_layer_freq", "1"),
    ("attention_bias", "false"),
    ("rope_interleave", "true"),
];

/// Reads the section, and leaves every field of the model in the tree, each where it was written.
pub(super) fn read(
    root: &mut Node,
    sources: &mut Sources,
    read_file: ReadFile<'_>,
) -> Result<ModelConfig, Complaint> {
    let given = root.at_path(PATH).cloned().unwrap_or_default();
    let tiny = || Node::of(&ModelConfig::tiny());
    let merged = match &given.value {
        Value::Text(name) => Node { at: given.at, ..preset(name, given.at, PATH)? },
        Value::Null => tiny(),
        Value::Map(_) => {
            let fields = tiny();
            let mut names: Vec<&str> = vec!["preset", "config"];
            names.extend(fields.entries().iter().map(|entry| entry.key.as_str()));
            reader::refuse_unknown(given.entries(), PATH, &names, super::section_of)?;
            let base = base(&given, sources, read_file)?;
            let unscaled = given.get("rope_scaling").is_some_and(|node| node.value == Value::Null);
            let mut merged = base.overlay(without_source(given), PATH)?;
            if unscaled {
                // An empty section gives nothing; here, null takes away what a file has.
                *merged.section_entry("rope_scaling", At::NOWHERE) = Node::default();
            }
            merged
        }
        other @ (Value::Bool(_) | Value::Whole(_) | Value::Real(_) | Value::List(_)) => {
            let what = format!(
                "wanted a preset ({}) or a section, got {other}",
                ModelConfig::PRESETS.join(", ")
            );
            return Err(Complaint::new(given.at, PATH, what));
        }
    };
    let model = reader::read(&merged, PATH)?;
    root.put(PATH, merged);
    Ok(model)
}

/// What the other fields of the section are laid over.
fn base(given: &Node, sources: &mut Sources, read_file: ReadFile<'_>) -> Result<Node, Complaint> {
    let text = |key: &str| match given.get(key) {
        None => Ok(None),
        Some(Node { at, value: Value::Text(text) }) => Ok(Some((*at, text.clone()))),
        Some(Node { at, value }) => {
            let path = tree::join(PATH, key);
            Err(Complaint::new(*at, path, format!("wanted a text, got {value}")))
        }
    };
    match (text("preset")?, text("config")?) {
        (Some(_), Some((at, _))) => {
            let what = "wanted either `preset` or `config`, got both";
            Err(Complaint::new(at, "spec.model.config", what))
        }
        (Some((at, name)), None) => preset(&name, at, "spec.model.preset"),
        (None, Some((at, path))) => from_config(&path, at, sources, read_file),
        (None, None) => Ok(Node::of(&ModelConfig::tiny())),
    }
}

/// The section without the two keys that are not fields of the model.
fn without_source(mut given: Node) -> Node {
    if let Value::Map(entries) = &mut given.value {
        entries.retain(|entry| entry.key != "preset" && entry.key != "config");
    }
    given
}

/// The fields of a preset.
fn preset(name: &str, at: At, path: &str) -> Result<Node, Complaint> {
    if let Some(model) = ModelConfig::preset(name) {
        return Ok(Node::of(&model));
    }
    let help = match nearest(name, ModelConfig::PRESETS) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "for a Hugging Face model, write `config: path/to/config.json` below spec.model"
            .to_owned(),
    };
    let what =
        format!("there is no preset {}; wanted {}", quote(name), ModelConfig::PRESETS.join(", "));
    Err(Complaint::new(at, path, what).help(help))
}

/// Reads a Hugging Face configuration: only the fields of the model are kept.
fn from_config(
    path: &str,
    at: At,
    sources: &mut Sources,
    read_file: ReadFile<'_>,
) -> Result<Node, Complaint> {
    let manifest = Path::new(&sources.manifest().name).to_owned();
    let file = manifest.parent().unwrap_or(Path::new("")).join(path);
    let shown = file.display().to_string();
    let text = read_file(&file).map_err(|error| {
        let what = format!("cannot read {}: {error}", quote(&shown));
        Complaint::new(at, "spec.model.config", what).help("relative paths start at the manifest")
    })?;
    let source = sources.add(shown, text.clone());
    fields_of_config(tree::parse(&text, source)?, source)
}

/// The model that a configuration describes, held against the rules for models.
pub(super) fn of_config(config: Node, source: usize) -> Result<ModelConfig, Vec<Complaint>> {
    let fields = fields_of_config(config, source)?;
    let model = reader::read(&fields, "")?;
    let mut root = Node { at: At::start(source), ..Node::default() };
    root.put(PATH, fields);
    rules::check_model(&model, &root).map_err(|mut complaints| {
        for complaint in &mut complaints {
            let in_file = complaint.path.strip_prefix(PATH).and_then(|path| path.strip_prefix('.'));
            complaint.path = in_file.unwrap_or(&complaint.path).to_owned();
        }
        complaints
    })?;
    Ok(model)
}

fn fields_of_config(config: Node, source: usize) -> Result<Node, Complaint> {
    if !matches!(config.value, Value::Map(_)) {
        let what = format!("wanted a JSON object, got {}", config.value);
        return Err(Complaint::new(At::start(source), "", what));
    }
    check_fixed(&config)?;
    let rope = rope::read(&config)?;

    let mut model = Node { at: At::start(source), value: Value::Map(Vec::new()) };
    for (key, value) in CONFIG_DEFAULTS {
        *model.section_entry(key, At::NOWHERE) = Node { at: At::NOWHERE, value };
    }
    let fields = Node::of(&ModelConfig::tiny());
    for field in fields.entries() {
        if let Some(entry) = config.entries().iter().find(|entry| entry.key == field.key) {
            *model.section_entry(&entry.key, entry.key_at) = entry.node.clone();
        }
    }
    for (key, node) in [("rope_theta", rope.theta), ("rope_scaling", Some(rope.scaling))] {
        if let Some(node) = node {
            let at = node.at;
            *model.section_entry(key, at) = node;
        }
    }
    // Types and missing keys are complained about in the words of the file itself.
    reader::read::<ModelConfig>(&model, "")?;
    Ok(model)
}

fn check_fixed(config: &Node) -> Result<(), Complaint> {
    for (key, wanted) in FIXED {
        let Some(node) = config.get(key) else {
            if key == "model_type" {
                let what = format!("this key is missing: wanted {wanted}");
                return Err(Complaint::new(At::start(config.at.source), key, what));
            }
            continue;
        };
        let got = node.written();
        if got != wanted {
            let what = format!("wanted {wanted}, got {}", quote(&got));
            let help = "shoal trains DeepSeek-V3's architecture only (model_type deepseek_v3)";
            return Err(Complaint::new(node.at, key, what).help(help));
        }
    }
    let number = |key: &str| config.get(key).map(|node| (node.at, &node.value));
    if let (Some((at, groups)), Some((_, heads))) =
        (number("num_key_value_heads"), number("num_attention_heads"))
        && groups != heads
    {
        let what = format!("wanted {heads}, as many as num_attention_heads, got {groups}");
        return Err(Complaint::new(at, "num_key_value_heads", what));
    }
    Ok(())
}
