//! JSON Lines: a document a line, its text under a key or a path of keys.
//!
//! Other keys are skipped without being kept. Blank lines, and documents whose text is null, are
//! left out.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead, Read};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::stream::{open, stream_error};
use super::{Body, DOCUMENT_BYTES_MAX, Piece, Reading, Take, Tally};
use crate::error::DataError;
use crate::files::Packing;

/// Keys named in an error.
const KEYS_SHOWN_MAX: usize = 12;

pub(super) fn read(
    reading: &Reading<'_>,
    packing: Packing,
    tally: &Tally,
    take: Take<'_>,
) -> Result<(), DataError> {
    let fail = stream_error(reading, packing);
    let path: Vec<&str> = reading.field.split('.').collect();
    let mut lines = open(reading, packing, tally)?;
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let bounded = &mut lines.by_ref().take(DOCUMENT_BYTES_MAX as u64 + 1);
        bounded.read_until(b'\n', &mut line).map_err(&fail)?;
        if line.is_empty() {
            break;
        }
        let wrong =
            |what: String| DataError::content(&reading.file.path, format!(":{number}"), what);
        if line.len() > DOCUMENT_BYTES_MAX {
            let what = format!("a line of more than {DOCUMENT_BYTES_MAX} bytes, cut it");
            return Err(wrong(what));
        }
        let json = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&line).trim_ascii();
        if json.is_empty() {
            continue;
        }
        let text = text_of(json, &path).map_err(wrong)?;
        if let Some(text) = text.filter(|text| !text.is_empty())
            && take(Piece::whole(Body::Text(text.into_bytes())))?.is_break()
        {
            break;
        }
    }
    Ok(())
}

/// The text at `path` in a JSON object.
fn text_of(json: &[u8], path: &[&str]) -> Result<Option<String>, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let found = Field { path }.deserialize(&mut deserializer);
    let found = found.and_then(|text| deserializer.end().map(|()| text));
    // The line within the line is always 1; its column is of use.
    found.map_err(|error| {
        let text = error.to_string();
        text.split_once(" at line 1")
            .map_or(text.clone(), |(what, rest)| format!("{what} at{rest}"))
    })
}

/// Descends along the path; the string at its end.
#[derive(Clone, Copy)]
struct Field<'a> {
    path: &'a [&'a str],
}

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.first() {
            Some(key) => write!(f, "an object with the key `{key}`"),
            None => f.write_str("the text, a string"),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
        if self.path.is_empty() {
            return Ok(Some(text));
        }
        Err(E::invalid_type(serde::de::Unexpected::Other("a string"), &self))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        if self.path.is_empty() {
            return Ok(None);
        }
        Err(E::invalid_type(serde::de::Unexpected::Unit, &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Some((key, rest)) = self.path.split_first() else {
            return Err(A::Error::invalid_type(serde::de::Unexpected::Map, &self));
        };
        let (mut found, mut others) = (None, BTreeSet::new());
        while let Some(name) = map.next_key::<String>()? {
            if name != *key {
                map.next_value::<IgnoredAny>()?;
                others.insert(name);
            } else if found.is_some() {
                return Err(A::Error::custom(format!("the key `{key}` is there twice")));
            } else {
                found = Some(map.next_value_seed(Field { path: rest })?);
            }
        }
        found.ok_or_else(|| {
            let shown: Vec<&str> = others.iter().take(KEYS_SHOWN_MAX).map(String::as_str).collect();
            let more = if others.len() > shown.len() { ", ..." } else { "" };
            A::Error::custom(format!(
                "no key `{key}`; the keys are: {}{more}; set the source's field",
                shown.join(", ")
            ))
        })
    }
}
