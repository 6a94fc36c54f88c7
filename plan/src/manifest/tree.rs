//! YAML as a tree of values that know where they were written.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Location, Spanned};

use super::complaint::{Complaint, quote};

/// A place in one of the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At {
    /// Which text; see `Sources`.
    pub(crate) source: usize,
    /// 1-based; 0 means nowhere: a default.
    pub(crate) line: usize,
    /// 1-based, in characters.
    pub(crate) column: usize,
    /// In characters.
    pub(crate) length: usize,
    /// Given with `--set`: shown without a line number.
    pub(crate) is_flag: bool,
}

impl At {
    pub(crate) const NOWHERE: Self = Self::start(0);

    /// A source as a whole.
    pub(crate) const fn start(source: usize) -> Self {
        Self { source, line: 0, column: 0, length: 0, is_flag: false }
    }

    fn new(location: Location, source: usize) -> Self {
        let span = location.span();
        let known = location != Location::UNKNOWN && !span.is_empty();
        let length = if known { span.len() as usize } else { 1 };
        let (line, column) = (location.line() as usize, location.column() as usize);
        Self { source, line, column, length, is_flag: false }
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Whole(i128),
    Real(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One `key: value`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_at: At,
    pub(crate) node: Node,
}

/// An absent section.
impl Default for Node {
    fn default() -> Self {
        Self { at: At::NOWHERE, value: Value::Null }
    }
}

/// Parses one YAML document. JSON is YAML, so this also reads a `config.json`.
pub(crate) fn parse(text: &str, source: usize) -> Result<Node, Complaint> {
    let options = serde_saphyr::options! {
        strict_booleans: true,
        // Duplicates are found below, where their path is known.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
        budget: serde_saphyr::budget! { max_depth: 32, max_nodes: 100_000 },
    };
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Err(Complaint::new(At::start(source), "", "it is empty"));
    }
    let mut root: Node = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let error = error.without_snippet();
        let at = error.location().map_or(At::start(source), |found| At::new(found, source));
        Complaint::new(at, "", format!("not valid YAML: {}", yaml_message(error)))
    })?;
    root.set_source(source);
    root.refuse_duplicates("")?;
    Ok(root)
}

/// The parser's words without its place, which is shown with the line.
fn yaml_message(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    if text.contains("multiple YAML documents") {
        return "wanted one document, got another after `---`".to_owned();
    }
    let text = text.lines().next().unwrap_or_default();
    text.split(" at line ").next().unwrap_or(text).trim_start_matches("error: ").to_owned()
}

impl Node {
    /// A default, which stands nowhere.
    pub(crate) fn of(value: &impl Serialize) -> Self {
        let json = serde_json::to_value(value).expect("plain structs of numbers and text");
        Self { at: At::NOWHERE, value: Value::from(json) }
    }

    /// Moves every place in this tree by `f`.
    pub(crate) fn move_places(&mut self, f: &impl Fn(At) -> At) {
        self.at = f(self.at);
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.move_places(f)),
            Value::Map(entries) => {
                for entry in entries {
                    entry.key_at = f(entry.key_at);
                    entry.node.move_places(f);
                }
            }
            Value::Null | Value::Bool(_) | Value::Whole(_) | Value::Real(_) | Value::Text(_) => {}
        }
    }

    fn set_source(&mut self, source: usize) {
        self.move_places(&|at| At { source, ..at });
    }

    /// The value as it was written: a text without quotes, anything else as in messages.
    pub(crate) fn written(&self) -> String {
        match &self.value {
            Value::Text(text) => text.clone(),
            other @ (Value::Null
            | Value::Bool(_)
            | Value::Whole(_)
            | Value::Real(_)
            | Value::List(_)
            | Value::Map(_)) => other.to_string(),
        }
    }

    /// Whether keys can stand in it. An empty section has no value at all.
    pub(crate) fn is_section(&self) -> bool {
        matches!(self.value, Value::Map(_) | Value::Null)
    }

    /// The entries of a section; none in an empty one.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            Value::Null
            | Value::Bool(_)
            | Value::Whole(_)
            | Value::Real(_)
            | Value::Text(_)
            | Value::List(_) => &[],
        }
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The value at a path such as `spec.data.files`.
    pub(crate) fn at_path(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |node, key| node.get(key))
    }

    /// Where the value at a path stands, and `true`; or where the nearest section around it
    /// begins, and `false`. A path may end in a list index: `spec.data.files[0]`.
    pub(crate) fn locate(&self, path: &str) -> (At, bool) {
        let mut place = if self.at.line > 0 { self.at } else { At::start(self.at.source) };
        let mut node = self;
        for part in path.split('.') {
            let (key, index) = match part.split_once('[') {
                Some((key, index)) => (key, index.trim_end_matches(']').parse::<usize>().ok()),
                None => (part, None),
            };
            let Some(entry) = node.entries().iter().find(|entry| entry.key == key) else {
                return (place, false);
            };
            if entry.node.at.line == 0 && entry.node.value != Value::Null {
                // A default of a section that was not written has no place at all.
                if entry.key_at.line > 0 {
                    place = entry.key_at;
                }
                if !matches!(entry.node.value, Value::Map(_)) {
                    return (place, false);
                }
            } else {
                let is_section = matches!(entry.node.value, Value::Map(_) | Value::Null);
                place = if is_section { entry.key_at } else { entry.node.at };
            }
            node = &entry.node;
            if let (Some(index), Value::List(items)) = (index, &node.value)
                && let Some(item) = items.get(index)
            {
                (node, place) = (item, item.at);
            }
        }
        (place, true)
    }

    /// Puts a value at a path; missing sections are made, standing nowhere.
    pub(crate) fn put(&mut self, path: &str, node: Self) {
        let mut at = self;
        for key in path.split('.') {
            at = at.section_entry(key, At::NOWHERE);
        }
        *at = node;
    }

    /// The value of a key, made (empty, with its key at `key_at`) when it is not there.
    pub(crate) fn section_entry(&mut self, key: &str, key_at: At) -> &mut Self {
        if !matches!(self.value, Value::Map(_)) {
            self.value = Value::Map(Vec::new());
        }
        let Value::Map(entries) = &mut self.value else { unreachable!("made a map just above") };
        let found = entries.iter().position(|entry| entry.key == key);
        let index = found.unwrap_or_else(|| {
            entries.push(Entry { key: key.to_owned(), key_at, node: Self::default() });
            entries.len() - 1
        });
        &mut entries[index].node
    }

    /// These defaults with `given` laid over them. An empty section gives nothing.
    pub(crate) fn overlay(mut self, given: Self, path: &str) -> Result<Self, Complaint> {
        self.at = given.at;
        match given.value {
            Value::Null => Ok(self),
            Value::Map(entries) => {
                for entry in entries {
                    let inner = join(path, &entry.key);
                    let own = self.section_entry(&entry.key, entry.key_at);
                    // A section's own defaults stay below what is given of it.
                    *own = match std::mem::take(own) {
                        defaults @ Self { value: Value::Map(_), .. } => {
                            defaults.overlay(entry.node, &inner)?
                        }
                        _ => entry.node,
                    };
                    // The key is where it was written, also when there was a default for it.
                    if let Value::Map(own) = &mut self.value
                        && let Some(own) = own.iter_mut().find(|own| own.key == entry.key)
                    {
                        own.key_at = entry.key_at;
                    }
                }
                Ok(self)
            }
            other @ (Value::Bool(_)
            | Value::Whole(_)
            | Value::Real(_)
            | Value::Text(_)
            | Value::List(_)) => {
                let what = format!("wanted a section of `key: value` lines, got {other}");
                Err(Complaint::new(given.at, path, what))
            }
        }
    }

    fn refuse_duplicates(&self, path: &str) -> Result<(), Complaint> {
        if let Value::List(items) = &self.value {
            for (i, item) in items.iter().enumerate() {
                item.refuse_duplicates(&format!("{path}[{i}]"))?;
            }
        }
        let entries = self.entries();
        for (i, entry) in entries.iter().enumerate() {
            let inner = join(path, &entry.key);
            if let Some(first) = entries[..i].iter().find(|first| first.key == entry.key) {
                let what = format!("the key {} is given twice", quote(&entry.key));
                let help = format!("the first is on line {}", first.key_at.line);
                return Err(Complaint::new(entry.key_at, inner, what).help(help));
            }
            entry.node.refuse_duplicates(&inner)?;
        }
        Ok(())
    }
}

/// A path and one more key.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// What somebody wrote, for "got ...".
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Whole(value) => write!(f, "{value}"),
            Self::Real(value) => write!(f, "{value:?}"),
            Self::Text(value) => write!(f, "the text {}", quote(value)),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a section"),
        }
    }
}

impl From<serde_json::Value> for Value {
    fn from(json: serde_json::Value) -> Self {
        let node = |json| Node { at: At::NOWHERE, value: Self::from(json) };
        match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(value),
            serde_json::Value::Number(number) => match number.as_i128() {
                Some(whole) => Self::Whole(whole),
                None => Self::Real(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Self::Text(text),
            serde_json::Value::Array(items) => Self::List(items.into_iter().map(node).collect()),
            serde_json::Value::Object(entries) => Self::Map(
                (entries.into_iter())
                    .map(|(key, json)| Entry { key, key_at: At::NOWHERE, node: node(json) })
                    .collect(),
            ),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { at: At::new(spanned.referenced, 0), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Whole(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Whole(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Whole(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(i128::try_from(value).map_or(Value::Real(value as f64), Value::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Real(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let (key_at, key) = (At::new(key.referenced, 0), key.value);
            entries.push(Entry { key, key_at, node: map.next_value()? });
        }
        Ok(Value::Map(entries))
    }
}
