//! serde over the tree: reads a type out of a node, and complains with path and place.
//!
//! Unknown keys are refused for every struct, whatever its attributes say: the list of keys is the
//! struct's own.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

use super::complaint::{Complaint, quote};
use super::nearest::nearest;
use super::tree::{At, Entry, Node, Value, join};

/// Reads a `T` out of a node that stands at `path`.
pub(crate) fn read<T: for<'de> Deserialize<'de>>(node: &Node, path: &str) -> Result<T, Complaint> {
    let home: Home = super::section_of;
    T::deserialize(Reader { node, path, home }).map_err(|error| error.or_at(node.at, path))
}

/// The same for a file that is no manifest: no key of it belongs into a section of one.
pub(crate) fn read_elsewhere<T: for<'de> Deserialize<'de>>(
    node: &Node,
    path: &str,
) -> Result<T, Complaint> {
    let home: Home = |_| None;
    T::deserialize(Reader { node, path, home }).map_err(|error| error.or_at(node.at, path))
}

/// Where a key belongs that stands in the wrong place.
pub(crate) type Home = fn(&str) -> Option<String>;

/// Refuses keys that are not in `names`, and says which was probably meant.
pub(crate) fn refuse_unknown(
    entries: &[Entry],
    path: &str,
    names: &[&str],
    home: Home,
) -> Result<(), Complaint> {
    let Some(entry) = entries.iter().find(|entry| !names.contains(&entry.key.as_str())) else {
        return Ok(());
    };
    let what = format!("unknown key {}", quote(&entry.key));
    let help = match home(&entry.key) {
        Some(home) => format!("it belongs into another section: `{home}`"),
        None => match nearest(&entry.key, names.iter().copied()) {
            Some(name) => format!("did you mean `{}`?", join(path, name)),
            None => format!("there are: {}", names.join(", ")),
        },
    };
    let shown = quote(&entry.key);
    Err(Complaint::new(entry.key_at, join(path, shown.trim_matches('`')), what).help(help))
}

/// One text, or a list of them.
pub(crate) fn one_or_many<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    struct OneOrMany;

    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a file pattern or a list of them")
        }

        fn visit_str<E>(self, one: &str) -> Result<Self::Value, E> {
            Ok(vec![one.to_owned()])
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut many = Vec::new();
            while let Some(one) = seq.next_element()? {
                many.push(one);
            }
            Ok(many)
        }
    }

    deserializer.deserialize_any(OneOrMany)
}

/// A node and its path.
#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    path: &'a str,
    home: Home,
}

impl Reader<'_> {
    fn wanted(&self, wanted: &str) -> Complaint {
        let got = &self.node.value;
        let complaint =
            Complaint::new(self.node.at, self.path, format!("wanted {wanted}, got {got}"));
        match got {
            Value::Text(text) if wanted.contains("number") && text.parse::<f64>().is_ok() => {
                complaint.help("a number stands without quotes")
            }
            Value::Whole(_) | Value::Real(_) | Value::Bool(_) if wanted.contains("text") => {
                complaint.help(format!("put it in quotes: \"{got}\""))
            }
            Value::Null
            | Value::Bool(_)
            | Value::Whole(_)
            | Value::Real(_)
            | Value::Text(_)
            | Value::List(_)
            | Value::Map(_) => complaint,
        }
    }

    fn whole(&self, max: u64) -> Result<u64, Complaint> {
        let wanted = || self.wanted(&format!("a whole number from 0 to {max}"));
        let Value::Whole(value) = self.node.value else { return Err(wanted()) };
        u64::try_from(value).ok().filter(|value| *value <= max).ok_or_else(wanted)
    }

    fn real(&self) -> Result<f64, Complaint> {
        match self.node.value {
            Value::Whole(value) => Ok(value as f64),
            Value::Real(value) => Ok(value),
            Value::Null | Value::Bool(_) | Value::Text(_) | Value::List(_) | Value::Map(_) => {
                Err(self.wanted("a number"))
            }
        }
    }

    fn located(&self) -> impl Fn(Complaint) -> Complaint {
        |error| error.or_at(self.node.at, self.path)
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Complaint;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        let expecting = ExpectingOf(&visitor).to_string();
        match &self.node.value {
            Value::Text(text) => visitor.visit_str(text),
            Value::List(items) => {
                visitor.visit_seq(Items { nodes: items, next: 0, path: self.path, home: self.home })
            }
            Value::Null | Value::Bool(_) | Value::Whole(_) | Value::Real(_) | Value::Map(_) => {
                Err(self.wanted(&expecting))
            }
        }
        .map_err(self.located())
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        match self.node.value {
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Null
            | Value::Whole(_)
            | Value::Real(_)
            | Value::Text(_)
            | Value::List(_)
            | Value::Map(_) => Err(self.wanted("true or false")),
        }
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        visitor.visit_u64(self.whole(u16::MAX.into())?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        visitor.visit_u64(self.whole(u32::MAX.into())?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        visitor.visit_u64(self.whole(u64::MAX)?)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        visitor.visit_f64(self.real()?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        visitor.visit_f64(self.real()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        match &self.node.value {
            Value::Text(text) => visitor.visit_str(text),
            Value::Null
            | Value::Bool(_)
            | Value::Whole(_)
            | Value::Real(_)
            | Value::List(_)
            | Value::Map(_) => Err(self.wanted("a text")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        if self.node.value == Value::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Complaint> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Complaint> {
        if !self.node.is_section() {
            return Err(self.wanted("a section of `key: value` lines"));
        }
        let entries = self.node.entries();
        refuse_unknown(entries, self.path, fields, self.home)?;
        let Self { path, home, .. } = self;
        visitor.visit_map(Entries { all: entries, next: 0, path, home }).map_err(self.located())
    }

    /// Keys are names of the person's own.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        if !self.node.is_section() {
            return Err(self.wanted("a section of `name: value` lines"));
        }
        let Self { path, home, .. } = self;
        let entries = Entries { all: self.node.entries(), next: 0, path, home };
        visitor.visit_map(entries).map_err(self.located())
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Complaint> {
        let wanted = format!("one of {}", variants.join(", "));
        let Value::Text(name) = &self.node.value else { return Err(self.wanted(&wanted)) };
        if variants.contains(&name.as_str()) {
            let name: StrDeserializer<'_, Complaint> = name.as_str().into_deserializer();
            return visitor.visit_enum(name);
        }
        let near = nearest(name, variants.iter().copied());
        let help = near.map(|near| format!("did you mean `{near}`?")).unwrap_or_default();
        Err(self.wanted(&wanted).help(help))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Complaint> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u128 char str bytes byte_buf unit unit_struct seq tuple
        tuple_struct identifier
    }
}

/// A visitor's "expecting", as text.
struct ExpectingOf<'a, V>(&'a V);

impl<'de, V: Visitor<'de>> fmt::Display for ExpectingOf<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }
}

struct Items<'a> {
    nodes: &'a [Node],
    next: usize,
    path: &'a str,
    home: Home,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Complaint;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Complaint> {
        let Some(node) = self.nodes.get(self.next) else { return Ok(None) };
        let path = format!("{}[{}]", self.path, self.next);
        self.next += 1;
        let read = seed.deserialize(Reader { node, path: &path, home: self.home });
        read.map(Some).map_err(|error| error.or_at(node.at, &path))
    }
}

struct Entries<'a> {
    all: &'a [Entry],
    next: usize,
    path: &'a str,
    home: Home,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Complaint;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Complaint> {
        let Some(entry) = self.all.get(self.next) else { return Ok(None) };
        seed.deserialize(entry.key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Complaint> {
        let entry = &self.all[self.next];
        self.next += 1;
        let path = join(self.path, &entry.key);
        // An empty value has its place at its key.
        let at = if entry.node.at.line == 0 { entry.key_at } else { entry.node.at };
        let read = seed.deserialize(Reader { node: &entry.node, path: &path, home: self.home });
        read.map_err(|error| if error.at == At::NOWHERE { error.or_at(at, &path) } else { error })
    }
}
