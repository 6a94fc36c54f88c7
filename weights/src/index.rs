//! `model.safetensors.index.json`: which file each tensor is in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::is_plain;

/// A model of 100,000 tensors has an index of nine megabytes.
pub(crate) const INDEX_BYTES_MAX: u64 = 256 << 20;

/// Tensor to file. Every file is a plain name with the ending `.safetensors`: none lies elsewhere.
///
/// # Errors
/// A text that says what is wrong.
pub fn parse(text: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let raw: Index = serde_json::from_slice(text).map_err(|error| format!("damaged: {error}"))?;
    let mut map = BTreeMap::new();
    for (name, file) in raw.weight_map.0 {
        if !is_plain(&name) {
            return Err(format!("{name:?} is no name for a tensor"));
        }
        let is_safetensors = Path::new(&file).extension() == Some("safetensors".as_ref());
        if !is_plain(&file) || !is_safetensors {
            return Err(format!(
                "{name} is in {file:?}, want a .safetensors file of the same directory"
            ));
        }
        if map.insert(name.clone(), file).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    if map.is_empty() {
        return Err("it names no tensor".into());
    }
    Ok(map)
}

/// The files that an index names, sorted, each once.
pub(crate) fn files(index: &BTreeMap<String, String>) -> BTreeSet<&str> {
    index.values().map(String::as_str).collect()
}

#[derive(Deserialize)]
struct Index {
    #[serde(default, rename = "metadata")]
    _metadata: IgnoredAny,
    weight_map: WeightMap,
}

/// In their order, repeated names included.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(WeightMap(pairs))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_index_may_not_say_is_said_back() {
        let check = |pairs: &str, want: &str| {
            let got = match parse(
                format!(r#"{{"metadata":{{}},"weight_map":{{{pairs}}}}}"#).as_bytes(),
            ) {
                Ok(map) => format!("{} files", files(&map).len()),
                Err(error) => error,
            };
            assert!(got.contains(want), "{pairs}: {got}");
        };
        check(r#""a":"x.safetensors","b":"x.safetensors""#, "1 files");
        check(r#""a":"x.safetensors","a":"y.safetensors""#, "a is there twice");
        check(r#""a":"../x.safetensors""#, "of the same directory");
        check(r#""a":"/etc/x.safetensors""#, "of the same directory");
        check(r#""a":"pytorch_model.bin""#, "of the same directory");
        check(r#""../a":"x.safetensors""#, "no name for a tensor");
        check("", "it names no tensor");
        check(r#""a":3"#, "damaged");
        assert!(parse(b"[]").unwrap_err().contains("damaged"));
        assert!(parse(b"{}").unwrap_err().contains("weight_map"));
        assert!(parse(&b"{\"weight_map\":".repeat(9999)).unwrap_err().contains("damaged"));
    }
}
