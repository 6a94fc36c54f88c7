//! `spec.training.init`: the weights that training starts from say what the model is, where the
//! manifest does not, and must agree with it, where it does.

use std::path::Path;

use super::complaint::{Complaint, Sources};
use super::tree::{At, Node, Value};
use super::{ReadFile, model_section, tree};
use crate::model::ModelConfig;

const PATH: &str = "spec.training.init";

/// Fields in which a model may differ from the weights it starts from: modules that are missing
/// start fresh, and the others change no parameter.
const MAY_DIFFER: [&str; 3] =
    ["num_nextn_predict_layers", "max_position_embeddings", "initializer_range"];

/// The directory, and where it was written; `None` where training starts from nothing.
fn directory(root: &Node) -> Result<Option<(String, At)>, Complaint> {
    match root.at_path(PATH) {
        None | Some(Node { value: Value::Null, .. }) => Ok(None),
        Some(Node { at, value: Value::Text(directory) }) if !directory.is_empty() => {
            Ok(Some((directory.clone(), *at)))
        }
        Some(Node { at, value }) => {
            let what = format!("wanted a directory with weights, got {value}");
            Err(Complaint::new(*at, PATH, what))
        }
    }
}

/// Whether training starts from weights.
pub(super) fn is_given(root: &Node) -> bool {
    root.at_path(PATH).is_some_and(|node| node.value != Value::Null)
}

/// Without a preset or a config, the model is that of the weights, with the fields that are given.
pub(super) fn give_model(root: &mut Node) -> Result<(), Complaint> {
    let Some((directory, at)) = directory(root)? else { return Ok(()) };
    let given = root.at_path("spec.model").cloned().unwrap_or_default();
    let mut section = match given.value {
        Value::Null => Node { at, value: Value::Map(Vec::new()) },
        Value::Map(_) if given.get("preset").is_none() && given.get("config").is_none() => given,
        Value::Bool(_)
        | Value::Whole(_)
        | Value::Real(_)
        | Value::Text(_)
        | Value::List(_)
        | Value::Map(_) => return Ok(()),
    };
    let config = format!("{directory}/config.json");
    *section.section_entry("config", at) = Node { at, value: Value::Text(config) };
    root.put("spec.model", section);
    Ok(())
}

/// Refuses a model that is not that of the weights, and lists what differs.
pub(super) fn check_model(
    root: &Node,
    model: &ModelConfig,
    sources: &mut Sources,
    read: ReadFile<'_>,
) -> Result<(), Vec<Complaint>> {
    let Some((directory, at)) = directory(root)? else { return Ok(()) };
    let manifest = Path::new(&sources.manifest().name).to_owned();
    let file = manifest.parent().unwrap_or(Path::new("")).join(&directory).join("config.json");
    let shown = file.display().to_string();
    let text = read(&file).map_err(|error| {
        let what = format!("cannot read {shown}: {error}");
        let help = "wanted a run or a checkpoint of shoal, or the directory of a Hugging Face \
                    model; relative paths start at the manifest";
        Complaint::new(at, PATH, what).help(help)
    })?;
    let source = sources.add(shown, text.clone());
    let weights = model_section::of_config(tree::parse(&text, source)?, source)?;
    let differences = differences(model, &weights);
    if differences.is_empty() {
        return Ok(());
    }
    let what = format!("the weights are of another model: {}", differences.join(", "));
    let help = "leave spec.model out: it is then the weights' own";
    Err(Complaint::new(at, PATH, what).help(help).into())
}

/// `hidden_size 256 (the weights: 128)` for each field that must agree and does not.
fn differences(model: &ModelConfig, weights: &ModelConfig) -> Vec<String> {
    let (model, weights) = (Node::of(model), Node::of(weights));
    let differs = |entry: &&tree::Entry| {
        !MAY_DIFFER.contains(&entry.key.as_str())
            && weights.get(&entry.key).map(|node| &node.value) != Some(&entry.node.value)
    };
    let shown = |entry: &tree::Entry| {
        let theirs = weights.get(&entry.key).map_or(&Value::Null, |node| &node.value);
        format!("{} {} (the weights: {theirs})", entry.key, entry.node.value)
    };
    model.entries().iter().filter(differs).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use std::io;

    use crate::job::{Job, TokenizerChoice};
    use crate::manifest::parse;
    use crate::model::ModelConfig;

    /// A manifest with this `spec`, beside weights of the preset `small` in `../w`.
    fn job(spec: &str) -> Result<Job, String> {
        let text = format!(
            "{{apiVersion: shoal/v1, kind: Training, spec: {{data: {{files: [x]}}, {spec}}}}}"
        );
        let small = ModelConfig::preset("small").unwrap();
        let mut config = serde_json::to_value(&small).unwrap();
        config["model_type"] = "deepseek_v3".into();
        let read = |path: &std::path::Path| match path.to_str() {
            Some("jobs/../w/config.json") => Ok(config.to_string()),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        let parsed = parse("jobs/a.yaml", &text, &[], &read);
        parsed.map(|manifest| manifest.job).map_err(|error| error.to_string())
    }

    #[test]
    fn the_model_is_the_weights_where_the_manifest_is_silent() {
        let job = job("training: {init: ../w}").unwrap();
        assert_eq!(job.model, ModelConfig::preset("small").unwrap());
        assert_eq!(job.training.init.as_deref(), Some("../w"));
        assert_eq!(job.data.tokenizer, TokenizerChoice::Weights);
        let with =
            super::tests::job("model: {max_position_embeddings: 512}, training: {init: ../w}");
        let want =
            ModelConfig { max_position_embeddings: 512, ..ModelConfig::preset("small").unwrap() };
        assert_eq!(with.unwrap().model, want);
    }

    #[test]
    fn a_model_that_is_given_must_agree_and_every_difference_is_named() {
        let given = "model: {preset: small, num_nextn_predict_layers: 2}, training: {init: ../w}";
        assert_eq!(job(given).unwrap().model.num_nextn_predict_layers, 2);
        let error =
            job("model: {preset: small, n_group: 1, topk_group: 1, routed_scaling_factor: 1}, \
                         training: {init: ../w}")
            .unwrap_err();
        for want in ["spec.training.init", "n_group 1 (the weights: ", "routed_scaling_factor 1"] {
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn weights_that_are_not_there_are_said_with_their_place() {
        for spec in ["training: {init: gone}", "model: tiny, training: {init: gone}"] {
            let error = job(spec).unwrap_err();
            assert!(error.contains("gone/config.json") && error.contains("a.yaml:1"), "{error}");
        }
        let error = job("training: {init: [1]}").unwrap_err();
        assert!(error.contains("wanted a directory with weights"), "{error}");
        let error = job("training: {init: ''}").unwrap_err();
        assert!(error.contains("wanted a directory with weights"), "{error}");
    }
}
