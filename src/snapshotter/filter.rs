//! The filters with which containerd lists snapshots (`containerd/filters`): `kind==committed`,
//! `labels."a/b"==x,parent==""`. Selectors with commas between them have to hold all; of several filters one.

use regex::Regex;

use super::state::Snapshot;

/// The longest filter that is read, in bytes.
const MAX_FILTER: usize = 16 << 10;

/// A filter.
#[derive(Debug)]
pub(super) struct Filter(Vec<Selector>);

#[derive(Debug)]
struct Selector {
    /// `["labels", "a/b"]`
    field: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    Unequal(String),
    Matches(Regex),
}

impl Filter {
    /// Reads a filter. An error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_FILTER {
            return Err("the filter is too long".to_owned());
        }
        let mut parser = Parser { rest: text };
        let mut selectors = Vec::new();
        while !parser.rest.is_empty() {
            selectors.push(parser.selector()?);
            match parser.take(',') {
                true => {}
                false if parser.rest.is_empty() => break,
                false => return Err(format!("the filter `{text}` goes on where it should end")),
            }
        }
        Ok(Self(selectors))
    }

    /// Whether `snapshot` is among what is meant.
    pub(super) fn matches(&self, snapshot: &Snapshot) -> bool {
        self.0.iter().all(|selector| {
            let value = value_of(snapshot, &selector.field);
            match &selector.test {
                Test::Present => value.is_some(),
                Test::Equal(wanted) => value.unwrap_or_default() == wanted,
                Test::Unequal(other) => value.unwrap_or_default() != other,
                Test::Matches(regex) => regex.is_match(value.unwrap_or_default()),
            }
        })
    }
}

/// Whether `snapshot` is among what several filters mean; all are, if there is none.
pub(super) fn any(filters: &[Filter], snapshot: &Snapshot) -> bool {
    filters.is_empty() || filters.iter().any(|filter| filter.matches(snapshot))
}

fn value_of<'a>(snapshot: &'a Snapshot, field: &[String]) -> Option<&'a str> {
    let (first, rest) = field.split_first()?;
    match (first.as_str(), rest) {
        ("name", []) => Some(&snapshot.name),
        ("parent", []) => Some(snapshot.parent.as_deref().unwrap_or_default()),
        ("kind", []) => Some(snapshot.kind.as_str()),
        // A label may have dots, and stand there without quotes.
        ("labels", [_, ..]) => snapshot.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn take(&mut self, expected: char) -> bool {
        match self.rest.strip_prefix(expected) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut field = vec![self.name()?];
        while self.take('.') {
            field.push(self.name()?);
        }
        for (operator, make) in [
            ("==", (|value| Ok(Test::Equal(value))) as fn(String) -> Result<Test, String>),
            ("!=", |value| Ok(Test::Unequal(value))),
            ("~=", |value| {
                Regex::new(&value).map(Test::Matches).map_err(|e| format!("`{value}`: {e}"))
            }),
        ] {
            if let Some(rest) = self.rest.strip_prefix(operator) {
                self.rest = rest;
                let test = make(self.value()?)?;
                return Ok(Selector { field, test });
            }
        }
        Ok(Selector { field, test: Test::Present })
    }

    fn name(&mut self) -> Result<String, String> {
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/');
        let end = self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        match name.is_empty() {
            true => Err("a field is missing in a filter".to_owned()),
            false => Ok(name.to_owned()),
        }
    }

    fn value(&mut self) -> Result<String, String> {
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let end = self.rest.find(',').unwrap_or(self.rest.len());
        let (value, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(value.to_owned())
    }

    /// A string of Go in quotes.
    fn quoted(&mut self) -> Result<String, String> {
        let unended = || "a quoted text in a filter does not end".to_owned();
        let mut chars = self.rest.char_indices().skip(1);
        let mut text = String::new();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                '\\' => text.push(match chars.next().ok_or_else(unended)?.1 {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                }),
                c => text.push(c),
            }
        }
        Err(unended())
    }
}

/// Reads a filter that somebody else has written.
#[cfg(feature = "fuzzing")]
pub fn fuzz_filter(text: &str) {
    let _ = Filter::parse(text);
}

#[cfg(test)]
mod tests {
    use super::super::state::{Kind, Snapshot};
    use super::*;

    #[test]
    fn filters_of_containerd_are_read() {
        let snapshot = Snapshot {
            kind: Kind::Committed,
            parent: Some("k8s.io/1/base".into()),
            labels: [("containerd.io/snapshot.ref".to_owned(), "sha256:ab".to_owned())].into(),
            ..Snapshot::new("k8s.io/2/x", 1)
        };
        for (text, matches) in [
            ("", true),
            ("kind==committed", true),
            ("kind==active", false),
            ("kind!=active,name==k8s.io/2/x", true),
            ("labels.\"containerd.io/snapshot.ref\"==sha256:ab,parent==\"k8s.io/1/base\"", true),
            ("labels.\"containerd.io/snapshot.ref\"==\"sha256:ab\",parent==\"\"", false),
            ("labels.\"containerd.io/snapshot.ref\"", true),
            ("labels.\"containerd.io/other\"", false),
            ("labels.\"containerd.io/other\"==\"\"", true),
            ("name~=\"^k8s\"", true),
            ("name~=^docker", false),
            ("unknown==x", false),
        ] {
            let filter = Filter::parse(text).unwrap();
            assert_eq!(filter.matches(&snapshot), matches, "{text}");
        }
        for text in ["==x", "labels.", "name==\"x", "name==x,,", "name~=\"(\"", "labels.\"a\"x"] {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
        assert!(any(&[], &snapshot));
    }
}
