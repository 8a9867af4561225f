//! Values that templates work on: those of JSON, cheap to clone.

use std::{collections::BTreeMap, fmt, ops::Deref, sync::Arc};

use super::time::Time;

/// A value in a template. A clone costs a reference count.
///
/// What Go distinguishes beyond these (`int64` and `int`, `[]string` and `[]interface {}`) is one
/// here. Strings are text: a function that would cut a character in two leaves U+FFFD.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// `nil`, which is `null` in JSON and YAML.
    #[default]
    Nil,
    /// `true` or `false`
    Bool(bool),
    /// An integer
    Int(i64),
    /// A number that was written with a point or an exponent, or does not fit an integer
    Float(f64),
    /// A text
    String(Arc<str>),
    /// A list
    List(List),
    /// A map of names to values
    Map(Map),
    /// A point in time
    Time(Time),
}

/// A list of values; dereferences to a slice.
#[derive(Clone, PartialEq)]
pub struct List(Arc<Nested<Vec<Value>>>);

/// A map of values, sorted by name; dereferences to a `BTreeMap`.
#[derive(Clone, PartialEq)]
pub struct Map(Arc<Nested<BTreeMap<String, Value>>>);

/// What others nest in knows how deep it is itself, so that nothing is ever built that is too deep
/// to be walked or dropped.
#[derive(PartialEq)]
struct Nested<T> {
    depth: usize,
    content: T,
}

impl Value {
    /// How deep lists and maps nest: 0 for a scalar.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::List(list) => list.0.depth,
            Self::Map(map) => map.0.depth,
            _ => 0,
        }
    }

    /// An empty map.
    pub fn map() -> Self {
        Self::Map(Map::default())
    }

    /// What is under `key`, where this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(map) => map.get(key),
            _ => None,
        }
    }

    /// Go's name of the type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Nil => "<nil>",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float64",
            Self::String(_) => "string",
            Self::List(_) => "[]interface {}",
            Self::Map(_) => "map[string]interface {}",
            Self::Time(_) => "time.Time",
        }
    }

    /// Merges `later` into this: maps are merged key by key, all else is replaced.
    pub fn merge(&mut self, later: Self) {
        match (&mut *self, later) {
            (Self::Map(own), Self::Map(later)) => {
                let mut merged = own.0.content.clone();
                for (key, value) in later.iter() {
                    merged.entry(key.clone()).or_default().merge(value.clone());
                }
                *own = Map::from(merged);
            }
            (own, later) => *own = later,
        }
    }

    /// Sets what is at a path such as `a.b.c`; maps on the way are made where there are none. A dot
    /// that belongs to a name is written `\.`.
    ///
    /// Fails if a name is empty, or if what is on the way is not a map.
    pub fn set_path(&mut self, path: &str, value: Self) -> Result<(), PathError> {
        let mut names = vec![String::new()];
        let mut escaped = false;
        for c in path.chars() {
            let last = names.len() - 1;
            match c {
                '.' if !escaped => names.push(String::new()),
                '\\' if !escaped => {
                    escaped = true;
                    continue;
                }
                '.' | '\\' => names[last].push(c),
                _ if escaped => names[last].extend(['\\', c]),
                _ => names[last].push(c),
            }
            escaped = false;
        }
        if escaped || names.iter().any(String::is_empty) {
            return Err(PathError::Form { path: path.to_owned() });
        }
        if names.len() > super::MAX_VALUE_DEPTH / 2 {
            return Err(PathError::Form { path: path.chars().take(100).collect() });
        }
        self.set_names(&names, value, path)
    }

    fn set_names(&mut self, names: &[String], value: Self, path: &str) -> Result<(), PathError> {
        let Some((name, rest)) = names.split_first() else {
            *self = value;
            return Ok(());
        };
        let mut content = match self {
            Self::Map(map) => map.0.content.clone(),
            Self::Nil => BTreeMap::new(),
            other => {
                return Err(PathError::NotAMap {
                    path: path.to_owned(),
                    name: name.clone(),
                    found: other.type_name(),
                });
            }
        };
        content.entry(name.clone()).or_default().set_names(rest, value, path)?;
        *self = Self::Map(Map::from(content));
        Ok(())
    }
}

/// Why nothing can be set at a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path is not one.
    #[error("`{path}` is not a path; expected names with dots between them, as in a.b.c")]
    Form {
        /// As it was given.
        path: String,
    },
    /// Something on the way is a scalar or a list.
    #[error("`{path}`: `{name}` cannot be set in what is a {found} and no map")]
    NotAMap {
        /// As it was given.
        path: String,
        /// The name that was to be set.
        name: String,
        /// What is there.
        found: &'static str,
    },
}

impl Map {
    /// Something that only this map and its clones have: `set` changes all of them.
    pub(super) fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

impl From<Vec<Value>> for List {
    fn from(content: Vec<Value>) -> Self {
        let depth = 1 + content.iter().map(Value::depth).max().unwrap_or(0);
        Self(Arc::new(Nested { depth, content }))
    }
}

impl From<BTreeMap<String, Value>> for Map {
    fn from(content: BTreeMap<String, Value>) -> Self {
        let depth = 1 + content.values().map(Value::depth).max().unwrap_or(0);
        Self(Arc::new(Nested { depth, content }))
    }
}

impl Default for Map {
    fn default() -> Self {
        Self::from(BTreeMap::new())
    }
}

impl Deref for List {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.0.content
    }
}

impl Deref for Map {
    type Target = BTreeMap<String, Value>;

    fn deref(&self) -> &BTreeMap<String, Value> {
        &self.0.content
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.content.fmt(f)
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.content.fmt(f)
    }
}

impl FromIterator<Value> for Value {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> Self {
        Self::List(values.into_iter().collect::<Vec<_>>().into())
    }
}

impl FromIterator<(String, Value)> for Value {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(entries: I) -> Self {
        Self::Map(entries.into_iter().collect::<BTreeMap<_, _>>().into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.into())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::String(value.into())
    }
}

impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Nil,
            serde_json::Value::Bool(value) => Self::Bool(value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(value) => Self::Int(value),
                None => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => text.into(),
            serde_json::Value::Array(values) => values.into_iter().map(Self::from).collect(),
            serde_json::Value::Object(entries) => {
                entries.into_iter().map(|(key, value)| (key, Self::from(value))).collect()
            }
        }
    }
}

/// Numbers that JSON does not have become `null`, and times texts in the form of RFC 3339.
impl From<&Value> for serde_json::Value {
    fn from(value: &Value) -> Self {
        match value {
            Value::Nil => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Int(value) => Self::from(*value),
            Value::Float(value) => Self::from(*value),
            Value::String(text) => Self::String(text.to_string()),
            Value::List(values) => Self::Array(values.iter().map(Self::from).collect()),
            Value::Map(entries) => Self::Object(
                entries.iter().map(|(key, value)| (key.clone(), Self::from(value))).collect(),
            ),
            Value::Time(time) => Self::String(time.rfc3339()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(json: serde_json::Value) -> Value {
        json.into()
    }

    #[test]
    fn the_later_wins_and_maps_are_merged() {
        let mut own = value(json!({"a": {"x": 1, "y": [1, 2]}, "b": 1}));
        own.merge(value(json!({"a": {"y": [3], "z": null}, "c": 1.5})));
        let merged = json!({"a": {"x": 1, "y": [3], "z": null}, "b": 1, "c": 1.5});
        assert_eq!(serde_json::Value::from(&own), merged);
        own.merge(value(json!("text")));
        assert_eq!(own, "text".into());
    }

    #[test]
    fn paths() {
        let mut own = Value::Nil;
        own.set_path("a.b.c", 1.into()).unwrap();
        own.set_path("a.b.d", "x".into()).unwrap();
        own.set_path(r"a.dotted\.name", true.into()).unwrap();
        let expected = json!({"a": {"b": {"c": 1, "d": "x"}, "dotted.name": true}});
        assert_eq!(serde_json::Value::from(&own), expected);
        for (path, reason) in [
            ("", "is not a path"),
            ("a..b", "is not a path"),
            (".a", "is not a path"),
            ("a.", "is not a path"),
            ("a.b.c.d", "`d` cannot be set in what is a int"),
        ] {
            let error = own.set_path(path, Value::Nil).unwrap_err().to_string();
            assert!(error.contains(reason), "{path}: {error}");
        }
        assert_eq!(serde_json::Value::from(&own), expected, "a failure changes nothing");
    }

    #[test]
    fn values_are_small() {
        assert_eq!(size_of::<Value>(), 24);
    }

    #[test]
    fn integers_stay_integers() {
        assert_eq!(value(json!(1)), Value::Int(1));
        assert_eq!(value(json!(1.0)), Value::Float(1.0));
        assert_eq!(value(json!(u64::MAX)), Value::Float(u64::MAX as f64));
        assert_eq!(value(json!([[], {"a": [1]}])).depth(), 3);
    }
}
