//! Which tensors a model's directory should have, from its config alone, and how what is there
//! differs.

use std::collections::BTreeMap;
use std::fmt;

use shoal_model::Cut;
use shoal_model::names::{EMBEDDING, HEAD, Role, of_bias, of_layer, specifications};
use shoal_plan::model::ModelConfig;

use crate::StoredType;
use crate::blocks::{Block, scale_name, weight_of_scales};
use crate::header::Entry;

/// What a tensor is to the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A parameter.
    Weight(Role),
    /// The FP32 scales of a quantised weight.
    Scale,
    /// A router's bias.
    Bias,
    /// The same as another tensor: what a multi-token-prediction module repeats, or a head that is
    /// tied to the embedding. May be missing.
    CopyOf(&'static str),
}

/// One tensor that a directory should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    pub name: String,
    pub shape: Vec<usize>,
    pub part: Part,
}

/// Every tensor of a model, in the order of the network; a weight's scales right after it.
///
/// With `block`, Linears have scales, and so a dtype of `F8_E4M3`.
pub fn listing(config: &ModelConfig, block: Option<Block>) -> Vec<Expected> {
    let cut = Cut::whole(config.clone());
    let mut all = Vec::new();
    for specification in specifications(&cut) {
        let (name, shape, role) = (specification.name, specification.shape, specification.role);
        let scales = block.filter(|_| role == Role::Linear).map(|block| Expected {
            name: scale_name(&name),
            shape: block.scales_shape(&shape),
            part: Part::Scale,
        });
        all.push(Expected { name, shape, part: Part::Weight(role) });
        all.extend(scales);
    }
    let bias = |layer: u32| Expected {
        name: of_bias(layer),
        shape: vec![config.n_routed_experts as usize],
        part: Part::Bias,
    };
    all.extend(cut.moe_layers().into_iter().map(bias));
    let has_head = all.iter().any(|one| one.name == HEAD);
    all.extend(copies(config, has_head));
    all
}

/// Tensors that repeat others.
fn copies(config: &ModelConfig, has_head: bool) -> Vec<Expected> {
    let shape = vec![config.vocab_size as usize, config.hidden_size as usize];
    let copy = |name: String, original| Expected {
        name,
        shape: shape.clone(),
        part: Part::CopyOf(original),
    };
    let head = if has_head { HEAD } else { EMBEDDING };
    let mut all = Vec::new();
    for layer in config.mtp_layers() {
        all.push(copy(of_layer(layer, "embed_tokens.weight"), EMBEDDING));
        all.push(copy(of_layer(layer, "shared_head.head.weight"), head));
    }
    if !has_head {
        all.push(copy(HEAD.to_owned(), EMBEDDING));
    }
    all
}

/// The layer that a tensor is of.
pub(crate) fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// How a directory differs from what its config asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    Missing,
    Unexpected,
    Shape,
    Dtype,
}

/// One tensor that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub name: String,
    pub wrong: Wrong,
    /// What is there, and what was wanted.
    pub what: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.what)
    }
}

/// Every mismatch between what there is, by name, and what `config` asks for.
pub fn mismatches(expected: &[Expected], found: &BTreeMap<&str, &Entry>) -> Vec<Mismatch> {
    let mut all = Vec::new();
    let wanted: BTreeMap<&str, &Expected> =
        expected.iter().map(|one| (one.name.as_str(), one)).collect();
    for one in expected {
        let mismatch = |wrong, what| Mismatch { name: one.name.clone(), wrong, what };
        match found.get(one.name.as_str()) {
            None if matches!(one.part, Part::CopyOf(_)) => {}
            // A weight that is not quantised after all has no scales.
            None if one.part == Part::Scale && !is_quantised(&one.name, found) => {}
            None => {
                let what = format!("missing, want {:?}", one.shape);
                all.push(mismatch(Wrong::Missing, what));
            }
            Some(entry) if entry.shape != one.shape => {
                let what = format!("{entry}, want the shape {:?}", one.shape);
                all.push(mismatch(Wrong::Shape, what));
            }
            Some(entry) => {
                if let Some(want) = wrong_dtype(one, entry, &wanted) {
                    all.push(mismatch(Wrong::Dtype, format!("{entry}, want {want}")));
                }
            }
        }
    }
    let unexpected = found.iter().filter(|(name, _)| !wanted.contains_key(*name));
    let unexpected = unexpected.filter(|(name, _)| !is_leftover(name));
    all.extend(unexpected.map(|(name, entry)| Mismatch {
        name: (*name).to_owned(),
        wrong: Wrong::Unexpected,
        what: format!("{entry}, which the config asks for nowhere"),
    }));
    all
}

/// Whether the weight of these scales is FP8.
fn is_quantised(scales: &str, found: &BTreeMap<&str, &Entry>) -> bool {
    let weight = weight_of_scales(scales).and_then(|weight| found.get(weight));
    weight.is_some_and(|entry| entry.stored_type() == Some(StoredType::F8E4m3))
}

/// The dtypes that would do, if the one there does not.
fn wrong_dtype(
    one: &Expected,
    entry: &Entry,
    wanted: &BTreeMap<&str, &Expected>,
) -> Option<&'static str> {
    let may_be_quantised = wanted.contains_key(scale_name(&one.name).as_str());
    match (&one.part, entry.stored_type()) {
        (Part::Scale, Some(StoredType::F32)) => None,
        (Part::Scale, _) => Some("F32"),
        (Part::Weight(_) | Part::Bias | Part::CopyOf(_), Some(dtype)) => match dtype {
            StoredType::F32 | StoredType::Bf16 | StoredType::F16 => None,
            StoredType::F8E4m3 if may_be_quantised => None,
            StoredType::F8E4m3 if matches!(one.part, Part::Weight(Role::Linear)) => {
                Some("BF16, F16 or F32, or a quantization_config with weight_block_size")
            }
            StoredType::F8E4m3 => Some("BF16, F16 or F32: only Linears are quantised"),
        },
        (Part::Weight(_) | Part::Bias | Part::CopyOf(_), None) => Some("BF16, F16, F32 or F8_E4M3"),
    }
}

/// Tables that old versions of `transformers` saved though they follow from the config.
fn is_leftover(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}
