//! YAML as a tree whose every node knows where it stands, and how it was written.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Spanned, options};

use super::error::{Position, TaskError};
use crate::backend::registry::describe_yaml_error;

/// The largest file that is read, in bytes. A list of a hundred thousand images has less.
pub const MAX_FILE_BYTES: usize = 16 << 20;

/// A value of the file. Aliases and merge keys are resolved; keys are distinct.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) data: Data,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    Null,
    /// Everything that is one word or text, as it is written: `0123` stays that.
    Scalar {
        text: String,
        kind: Kind,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// What a scalar is where its type matters.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Text,
    Bool(bool),
    Number(serde_json::Number),
}

/// A key of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    pub(super) at: Position,
    pub(super) name: String,
}

impl Node {
    /// Reads a YAML (or JSON) document. What is wrong with it is told without quoting it: any of
    /// it may be a secret.
    pub(super) fn parse(text: &str) -> Result<Self, TaskError> {
        if text.len() > MAX_FILE_BYTES {
            return Err(TaskError::file(format!(
                "the file has more than {} MiB",
                MAX_FILE_BYTES >> 20
            )));
        }
        // With YAML 1.1's booleans, a user called `no` would be `false`. Aliases and merge keys are bounded
        // by default (50 000 and 10 000). A node of ours is of some size, and so is a level of the stack
        // where nothing has been optimised.
        let options = options! {
            strict_booleans: true,
            leading_zero_numbers_as_strings: true,
            budget: serde_saphyr::budget! { max_depth: 40, max_nodes: 1_000_000 },
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 200_000 },
        };
        let raw: Spanned<Raw> =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| {
                let line = error.location().map_or(0, |at| at.line());
                let line = usize::try_from(line).unwrap_or(0).checked_sub(1);
                let line = line.and_then(|number| text.lines().nth(number)).unwrap_or_default();
                // YAML takes the braces for mappings.
                let hint = match line.contains(": {{") || line.contains("- {{") {
                    true => "; a text that starts with {{ is written in quotes",
                    false => "",
                };
                TaskError::file(describe_yaml_error(&error, text) + hint)
            })?;
        Ok(Self::of(raw, text))
    }

    fn of(raw: Spanned<Raw>, text: &str) -> Self {
        let at = Position::from(raw.referenced);
        let written = |kind: Kind, shown: String| {
            let span = raw.defined.span();
            let range = span.byte_offset().zip(span.byte_len()).and_then(|(start, length)| {
                let start = usize::try_from(start).ok()?;
                text.get(start..start.checked_add(usize::try_from(length).ok()?)?)
            });
            // A span that is not just the word is one that we have misunderstood.
            let is_word = |word: &&str| {
                !word.is_empty()
                    && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b))
            };
            Data::Scalar { text: range.filter(is_word).map_or(shown, str::to_owned), kind }
        };
        let data = match raw.value {
            Raw::Null => Data::Null,
            Raw::Text(text) => Data::Scalar { text, kind: Kind::Text },
            Raw::Bool(value) => written(Kind::Bool(value), value.to_string()),
            Raw::Number(value) => {
                let shown = value.to_string();
                written(Kind::Number(value), shown)
            }
            Raw::List(items) => Data::List(items.into_iter().map(|i| Self::of(i, text)).collect()),
            Raw::Map(entries) => Data::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| {
                        let key = Key { at: Position::from(key.referenced), name: key.value };
                        (key, Self::of(value, text))
                    })
                    .collect(),
            ),
        };
        Self { at, data }
    }

    /// The text of a scalar, as it is written.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        self.data == Data::Null
    }

    /// What it is, for messages.
    pub(super) fn what(&self) -> &'static str {
        match &self.data {
            Data::Null => "nothing",
            Data::Scalar { kind: Kind::Text, .. } => "a text",
            Data::Scalar { kind: Kind::Bool(_), .. } => "true or false",
            Data::Scalar { kind: Kind::Number(_), .. } => "a number",
            Data::List(_) => "a list",
            Data::Map(_) => "a mapping",
        }
    }

    /// Every text in it, keys aside, with its place.
    pub(super) fn texts(&self, found: &mut dyn FnMut(&Self, &str)) {
        match &self.data {
            Data::Scalar { text, kind: Kind::Text } => found(self, text),
            Data::List(items) => items.iter().for_each(|item| item.texts(found)),
            Data::Map(entries) => entries.iter().for_each(|(_, value)| value.texts(found)),
            _ => {}
        }
    }
}

/// What serde sees of a node.
enum Raw {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawVisitor;
        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
                Ok(Raw::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
                Ok(Raw::Number(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
                Ok(Raw::Number(value.into()))
            }

            fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
                Ok(Raw::Text(value.to_string()))
            }

            fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
                Ok(Raw::Text(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
                Ok(match serde_json::Number::from_f64(value) {
                    Some(number) => Raw::Number(number),
                    None => Raw::Text(value.to_string()),
                })
            }

            fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
                Ok(Raw::Text(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Raw, E> {
                Ok(Raw::Text(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Raw::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Raw::Map(entries))
            }
        }
        deserializer.deserialize_any(RawVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> Node {
        let node = Node::parse(text).unwrap();
        let Data::Map(mut entries) = node.data else { panic!("{node:?}") };
        entries.remove(0).1
    }

    #[test]
    fn scalars_stay_as_written() {
        for (text, written, kind) in [
            ("a: 0123", "0123", "a text"),
            ("a: 123", "123", "a number"),
            ("a: 1.10", "1.10", "a number"),
            ("a: 1e5", "1e5", "a number"),
            ("a: &x 1.10", "1.10", "a number"),
            ("a: true", "true", "true or false"),
            ("a: True", "True", "true or false"),
            ("a: no", "no", "a text"),
            ("a: '1.10'", "1.10", "a text"),
            ("a: 123456789012345678901234567890", "123456789012345678901234567890", "a number"),
        ] {
            let node = entry(text);
            assert_eq!((node.text(), node.what()), (Some(written), kind), "{text}");
        }
        assert!(entry("a: ~").is_null() && entry("a:\n").is_null());
        let aliased = Node::parse("- &x 1.10\n- *x\n- {<<: {a: 2.50}}\n").unwrap();
        let Data::List(items) = aliased.data else { panic!() };
        assert_eq!(items[1].text(), Some("1.10"));
        assert_eq!(items[1].at, Position { line: 2, column: 3 });
        let Data::Map(merged) = &items[2].data else { panic!() };
        assert_eq!(merged[0].1.text(), Some("2.50"));
    }

    #[test]
    fn what_is_no_yaml_has_its_place() {
        for (text, part) in [
            ("a: 1\na: 2\n", "line 2, column 1"),
            ("a: [\n", "line"),
            ("a: *x\n", "line 1"),
            ("a: 1\n---\nb: 2\n", "document"),
            ("a: \"x\n", "line"),
        ] {
            let error = Node::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let secret = Node::parse("password: hunter2\npassword: 'hunter2\n").unwrap_err();
        assert!(!secret.to_string().contains("hunter2"), "{secret}");
    }

    #[test]
    fn bombs_are_refused() {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, last) in "bcdefghi".chars().zip("abcdefgh".chars()) {
            text += &format!("{name}: &{name} [{}]\n", vec![format!("*{last}"); 10].join(", "));
        }
        assert!(Node::parse(&text).is_err());
        assert!(Node::parse(&"[".repeat(100_000)).is_err());
        assert!(Node::parse(&"- ".repeat(100_000)).is_err());
        assert!(Node::parse(&"a: {".repeat(1000)).is_err());
        let large = "x".repeat(MAX_FILE_BYTES + 1);
        assert_eq!(Node::parse(&large).unwrap_err().to_string(), "the file has more than 16 MiB");
    }
}
