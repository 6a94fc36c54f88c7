//! The rotation in a `config.json`, which has had two spellings: `rope_theta` beside
//! `rope_scaling: {type, factor, ..}`, and since `transformers` 5 one section,
//! `rope_parameters: {rope_type, rope_theta, factor, ..}`.

use super::super::complaint::{Complaint, quote};
use super::super::tree::{Entry, Node, Value, join};

const ORIGINAL: &str = "original_max_position_embeddings";

/// Keys of the section that are read as they are.
const KEPT: [&str; 6] = ["factor", ORIGINAL, "beta_fast", "beta_slow", "mscale", "mscale_all_dim"];

/// Keys that change what is computed and are not supported, with the value that changes nothing. Null
/// does not either.
const FIXED: [(&str, &str); 3] =
    [("truncate", "true"), ("attention_factor", "null"), ("partial_rotary_factor", "1.0")];

/// What a configuration says of the rotation.
pub(super) struct Rope {
    /// If it stands in the section.
    pub(super) theta: Option<Node>,
    /// The fields of `RopeScaling`, or null.
    pub(super) scaling: Node,
}

/// Reads either spelling; the section called `rope_scaling` comes first, as in `transformers`.
pub(super) fn read(config: &Node) -> Result<Rope, Complaint> {
    let section = |name| {
        let node = config.get(name).filter(|node| node.value != Value::Null)?;
        Some((name, node))
    };
    let Some((name, section)) = section("rope_scaling").or(section("rope_parameters")) else {
        return Ok(Rope { theta: None, scaling: Node::default() });
    };
    if !section.is_section() {
        let what = format!("wanted a section or null, got {}", section.value);
        return Err(Complaint::new(section.at, name, what));
    }
    let theta = section.get("rope_theta").cloned();
    let scaling = match kind(section, name)? {
        None => Node::default(),
        Some(kind) => scaling(config, section, name, kind)?,
    };
    Ok(Rope { theta, scaling })
}

/// The entry that says which kind of scaling it is: None without any.
fn kind<'a>(section: &'a Node, name: &str) -> Result<Option<&'a Entry>, Complaint> {
    let entry = |key| section.entries().iter().find(|entry| entry.key == key);
    let Some(kind) = entry("rope_type").or(entry("type")) else { return Ok(None) };
    match kind.node.written().as_str() {
        "default" => Ok(None),
        "yarn" => Ok(Some(kind)),
        got => {
            let what = format!("wanted yarn or default, got {}", quote(got));
            let help = "of the ways to scale RoPE, shoal has YaRN only";
            Err(Complaint::new(kind.node.at, join(name, &kind.key), what).help(help))
        }
    }
}

fn scaling(config: &Node, section: &Node, name: &str, kind: &Entry) -> Result<Node, Complaint> {
    for (key, wanted) in FIXED {
        let Some(node) = section.get(key).filter(|node| node.value != Value::Null) else {
            continue;
        };
        let got = node.written();
        if got != wanted && format!("{got}.0") != wanted {
            let what = format!("wanted {wanted}, got {}", node.value);
            let help = "shoal has YaRN as DeepSeek's configurations use it";
            return Err(Complaint::new(node.at, join(name, key), what).help(help));
        }
    }
    let mut fields = vec![Entry { key: "type".to_owned(), ..kind.clone() }];
    let given = section.entries().iter().filter(|entry| KEPT.contains(&entry.key.as_str()));
    fields.extend(given.filter(|entry| entry.node.value != Value::Null).cloned());
    if !fields.iter().any(|entry| entry.key == ORIGINAL)
        && let Some(node) = config.get("max_position_embeddings").cloned()
    {
        fields.push(Entry { key: ORIGINAL.to_owned(), key_at: node.at, node });
    }
    Ok(Node { at: section.at, value: Value::Map(fields) })
}
