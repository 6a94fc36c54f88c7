//! The header of a safetensors file: which tensors, of what dtype and shape, where.
//!
//! It comes from anybody, so nothing in it is taken on trust: names are plain and there once, sizes
//! follow from shapes without overflow, and the tensors fill the data without gap or overlap. No
//! memory is taken for a number that a header says.
//!
//! Source: the format's own description, <https://github.com/huggingface/safetensors#format>.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::{StoredType, is_plain};

/// The length of the header, before it.
pub(crate) const LENGTH_BYTES: u64 = 8;

/// The format's own limit.
pub(crate) const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The format's dtypes with their bytes. Those below a byte are not known here.
const DTYPES: [(&str, u64); 15] = [
    ("BOOL", 1),
    ("U8", 1),
    ("I8", 1),
    ("F8_E5M2", 1),
    ("F8_E4M3", 1),
    ("F8_E8M0", 1),
    ("I16", 2),
    ("U16", 2),
    ("F16", 2),
    ("BF16", 2),
    ("I32", 4),
    ("U32", 4),
    ("F32", 4),
    ("F64", 8),
    ("I64", 8),
];

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As in the header, such as `BF16`.
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    /// Bytes of the data, counted from the end of the header.
    pub bytes: Range<u64>,
}

impl Entry {
    /// `None` for a dtype that no weight has.
    pub fn stored_type(&self) -> Option<StoredType> {
        StoredType::ALL.into_iter().find(|dtype| dtype.name() == self.dtype)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}

/// How long the header of a file of `file_bytes` is, from its first eight bytes.
pub(crate) fn length(first: [u8; 8], file_bytes: u64) -> Result<u64, String> {
    let length = u64::from_le_bytes(first);
    let room = file_bytes.saturating_sub(LENGTH_BYTES).min(HEADER_BYTES_MAX);
    if length > room {
        return Err(format!("its header has {length} bytes by its own word, want at most {room}"));
    }
    Ok(length)
}

/// Every tensor of a whole file in memory.
///
/// # Errors
/// A text that says what is wrong with which tensor.
pub fn parse_file(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    let Some((first, rest)) = bytes.split_first_chunk() else {
        return Err(format!("{} bytes are no safetensors file", bytes.len()));
    };
    let (header, data) = rest.split_at(length(*first, bytes.len() as u64)? as usize);
    parse(header, data.len() as u64)
}

/// Every tensor of a header, by name; `data_bytes` follow it in the file.
///
/// # Errors
/// A text that says what is wrong with which tensor.
pub fn parse(header: &[u8], data_bytes: u64) -> Result<BTreeMap<String, Entry>, String> {
    if header.first() != Some(&b'{') {
        return Err("its header is no JSON object".into());
    }
    let mut json = serde_json::Deserializer::from_slice(header);
    let raw = json.deserialize_map(Raw).and_then(|raw| json.end().map(|()| raw));
    let raw = raw.map_err(|error| format!("its header is damaged: {error}"))?;
    let mut entries = BTreeMap::new();
    for (name, entry) in raw {
        if !is_plain(&name) {
            return Err(format!("{name:?} is no name for a tensor"));
        }
        let entry = entry.check(&name)?;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    check_places(&entries, data_bytes)?;
    Ok(entries)
}

/// The tensors fill the data: each begins where the one before ends.
fn check_places(entries: &BTreeMap<String, Entry>, data_bytes: u64) -> Result<(), String> {
    let mut sorted: Vec<_> = entries.iter().collect();
    sorted.sort_by_key(|(_, entry)| (entry.bytes.start, entry.bytes.end));
    let mut at = 0;
    for (name, entry) in sorted {
        let Range { start, end } = entry.bytes;
        if end > data_bytes {
            return Err(format!(
                "{name} ends at byte {end}, but the file has {data_bytes} of data"
            ));
        }
        if start < at {
            return Err(format!("{name} begins at byte {start}, inside the tensor before it"));
        }
        if start > at {
            return Err(format!("{} bytes before {name} belong to no tensor", start - at));
        }
        at = end;
    }
    if at < data_bytes {
        return Err(format!("{} bytes at the end belong to no tensor", data_bytes - at));
    }
    Ok(())
}

/// An entry as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl RawEntry {
    fn check(self, name: &str) -> Result<Entry, String> {
        let Some((dtype, size)) = DTYPES.into_iter().find(|(dtype, _)| *dtype == self.dtype) else {
            let shown: String = self.dtype.chars().take(20).collect();
            return Err(format!("{name} has the unknown dtype {shown:?}"));
        };
        let [start, end] = self.data_offsets;
        if end < start {
            return Err(format!("{name} ends at byte {end}, before it begins at {start}"));
        }
        let product = self.shape.iter().try_fold(size, |bytes, n| bytes.checked_mul(*n));
        let Some(want) = product else {
            return Err(format!("{name} has more elements than can be counted"));
        };
        if end - start != want {
            let got = end - start;
            return Err(format!("{name} has {got} bytes, want {want} for its dtype and shape"));
        }
        let shape = self.shape.into_iter().map(usize::try_from).collect::<Result<_, _>>();
        let shape = shape.map_err(|_| format!("{name} has more elements than can be counted"))?;
        Ok(Entry { dtype, shape, bytes: start..end })
    }
}

/// Reads the entries in their order, repeated names included.
struct Raw;

impl<'de> Visitor<'de> for Raw {
    type Value = Vec<(String, RawEntry)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a safetensors header")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut entries, mut has_metadata) = (Vec::new(), false);
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if has_metadata {
                    return Err(serde::de::Error::custom("__metadata__ is there twice"));
                }
                has_metadata = true;
                map.next_value::<BTreeMap<String, String>>()?;
            } else {
                let entry = map.next_value().map_err(|error| {
                    let shown: String = name.chars().take(255).collect();
                    serde::de::Error::custom(format!("{shown:?}: {error}"))
                })?;
                entries.push((name, entry));
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, data_bytes: u64, want: &str) {
        let got = match parse(header.as_bytes(), data_bytes) {
            Ok(entries) => format!("{} tensors", entries.len()),
            Err(error) => error,
        };
        assert!(got.contains(want), "{header}: {got}, want {want}");
    }

    fn entry(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    }

    #[test]
    fn what_a_header_may_not_say_is_said_back() {
        let a = entry("a", "F32", "[1]", 0, 4);
        let b = entry("b", "BF16", "[2]", 4, 8);
        check(&format!("{{{a},{b}}}"), 8, "2 tensors");
        check(&format!(r#"{{"__metadata__":{{"format":"pt"}},{b},{a}}}   "#), 8, "2 tensors");
        check("{}", 0, "0 tensors");
        check(&format!("{{{a}}}x"), 4, "damaged");
        check(&format!("{{{a},{a}}}"), 4, "a is there twice");
        check(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "__metadata__ is there twice");
        check(r#"{"__metadata__":{"a":1}}"#, 0, "damaged");
        check(&format!("{{{}}}", a.replace("\"a\"", "\"../x\"")), 4, "no name for a tensor");
        check(&format!("{{{}}}", a.replace("\"a\"", "\"a\\u0000\"")), 4, "no name for a tensor");
        check(&format!("{{{a},{}}}", b.replace("4,8", "3,7")), 8, "b begins at byte 3, inside");
        check(&format!("{{{a},{}}}", b.replace("4,8", "6,10")), 10, "2 bytes before b");
        check(&format!("{{{a}}}"), 9, "5 bytes at the end belong to no tensor");
        check(&format!("{{{a},{b}}}"), 7, "b ends at byte 8, but the file has 7 of data");
        check(&format!("{{{}}}", a.replace("0,4", "4,0")), 4, "before it begins");
        check(&format!("{{{}}}", a.replace("0,4", "-1,4")), 4, "damaged: \"a\"");
        check(&format!("{{{}}}", a.replace("F32", "F33")), 4, "unknown dtype \"F33\"");
        check(&format!("{{{}}}", a.replace("[1]", "[2]")), 4, "a has 4 bytes, want 8");
        check(&format!("{{{}}}", a.replace("[1]", "[1.5]")), 4, "damaged");
        let huge = "[4294967296,4294967296]";
        check(&format!("{{{}}}", a.replace("[1]", huge)), 4, "more elements than can be counted");
        check(&format!("{{{}}}", a.replace("\"shape\"", "\"shapes\"")), 4, "damaged");
        check("[]", 0, "no JSON object");
        check("", 0, "no JSON object");
        check(&"{\"a\":".repeat(10_000), 0, "damaged");
    }

    #[test]
    fn a_header_is_no_longer_than_its_file() {
        assert_eq!(length(8_u64.to_le_bytes(), 16), Ok(8));
        assert!(length(9_u64.to_le_bytes(), 16).unwrap_err().contains("want at most 8"));
        assert!(length([0xff; 8], u64::MAX).unwrap_err().contains("want at most 100000000"));
        assert!(length([1, 0, 0, 0, 0, 0, 0, 0], 4).is_err());
    }
}
