//! Values of a task: templates are rendered first and decoded after, as KubeKey does, but what
//! cannot be decoded is an error here.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    error::{Findings, Position, TaskError},
    node::{Data, Kind, Node},
    playbook::Vars,
};
use crate::{
    backend::registry::{Entry, EntryKeys, flag},
    template::{Dialect, Missing, Template, Value},
};

/// Why there is no value.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It is wrong.
    Wrong(TaskError),
    /// It depends on the result of a task that has not run yet, or on the item of a loop.
    NotYet,
}

impl From<TaskError> for Trouble {
    fn from(error: TaskError) -> Self {
        Self::Wrong(error)
    }
}

pub(super) type Evaluated<T> = Result<T, Trouble>;

/// The variables that a value is evaluated with.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) vars: Value,
    /// Names of variables that are not known yet.
    pub(super) unknown: BTreeSet<String>,
    /// Variables that have no value, and why: paths of names such as `a`, `b` for `.a.b`.
    pub(super) broken: Broken,
    pub(super) dialect: Option<Dialect>,
}

/// Why variables have no value, by their paths.
pub(super) type Broken = BTreeMap<Vec<String>, TaskError>;

/// A text of a list, with its place.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) at: Position,
    pub(super) text: String,
}

impl Scope {
    /// Whether the text names no variable that is not known yet. A word that is none is taken for
    /// one, which only means that the text is rendered later.
    pub(super) fn is_known(&self, text: &str) -> bool {
        !self.unknown.iter().any(|name| mentions(text, name))
    }

    /// That everything which the text needs has a value, as far as that can be seen.
    pub(super) fn ready(&self, text: &str) -> Evaluated<()> {
        let has_dot = self.dialect != Some(Dialect::Tera);
        let broken = self.broken.iter().find(|(path, _)| refers_to(text, path, has_dot));
        match broken {
            Some((_, error)) => Err(error.clone().into()),
            None if self.is_known(text) => Ok(()),
            None => Err(Trouble::NotYet),
        }
    }

    pub(super) fn template(&self, at: Position, text: &str) -> Result<Template, TaskError> {
        Template::parse(text, self.dialect).map_err(|e| TaskError::at(at, format!("template {e}")))
    }

    /// Renders what is a template, and gives everything else as it is.
    pub(super) fn render(&self, at: Position, text: &str, missing: Missing) -> Evaluated<String> {
        if !Template::is_template(text) {
            return Ok(text.to_owned());
        }
        let template = self.template(at, text)?;
        self.ready(text)?;
        let rendered = template.render(&self.vars, missing);
        Ok(rendered.map_err(|e| TaskError::at(at, format!("template {e}")))?)
    }

    /// One text, with the white space around it.
    pub(super) fn verbatim(&self, node: &Node) -> Evaluated<String> {
        let text = node.text().ok_or_else(|| expected(node, "a text"))?;
        self.render(node.at, text, Missing::Error)
    }

    /// One text, without white space around it.
    pub(super) fn text(&self, node: &Node) -> Evaluated<String> {
        Ok(self.verbatim(node)?.trim().to_owned())
    }

    /// A list of texts, or a text that is a JSON list or else the only one of the list.
    ///
    /// A template may give nothing for an element, which then is none.
    pub(super) fn list(&self, node: &Node) -> Evaluated<Vec<Item>> {
        if let Data::List(nodes) = &node.data {
            let mut items = Vec::new();
            for node in nodes {
                let text = self.text(node)?;
                let is_template = node.text().is_some_and(Template::is_template);
                match (text.is_empty(), is_template) {
                    (true, false) => return Err(TaskError::at(node.at, "an empty text").into()),
                    (true, true) => {}
                    (false, _) => items.push(Item { at: node.at, text }),
                }
            }
            return Ok(items);
        }
        if !matches!(node.data, Data::Scalar { .. }) {
            return Err(expected(node, "a list of texts, or a text that gives one").into());
        }
        let text = self.text(node)?;
        let items = match json_list(&text, node.at)? {
            None if text.is_empty() || text == "null" => Vec::new(),
            None => vec![text],
            Some(values) => {
                let texts = values.into_iter().map(|value| match value {
                    serde_json::Value::String(text) => Ok(text.trim().to_owned()),
                    serde_json::Value::Number(number) => Ok(number.to_string()),
                    _ => Err(TaskError::at(node.at, "gives a list of which an element is no text")),
                });
                texts.collect::<Result<_, _>>()?
            }
        };
        Ok(items.into_iter().map(|text| Item { at: node.at, text }).collect())
    }

    /// `true` or `false` in any spelling; nothing is neither.
    pub(super) fn flag(&self, node: &Node) -> Evaluated<Option<bool>> {
        let text = node.text().ok_or_else(|| expected(node, "true or false"))?;
        let text = self.render(node.at, text, Missing::Error)?;
        Ok(flag(&text).map_err(|reason| TaskError::at(node.at, reason))?)
    }

    /// Any value, with the templates in it rendered. One that gives a JSON list or object is that.
    pub(super) fn value(&self, node: &Node) -> Evaluated<Value> {
        Ok(match &node.data {
            Data::Null => Value::Nil,
            Data::Scalar { kind: Kind::Bool(value), .. } => Value::from(*value),
            Data::Scalar { kind: Kind::Number(number), .. } => {
                Value::from(serde_json::Value::Number(number.clone()))
            }
            Data::Scalar { text, kind: Kind::Text } => {
                let rendered = self.render(node.at, text, Missing::Error)?;
                let json = match rendered.trim_start().starts_with(['[', '{']) {
                    true if Template::is_template(text) => serde_json::from_str(&rendered).ok(),
                    _ => None,
                };
                Value::from(json.unwrap_or(serde_json::Value::String(rendered)))
            }
            Data::List(items) => {
                items.iter().map(|item| self.value(item)).collect::<Evaluated<Value>>()?
            }
            Data::Map(entries) => entries
                .iter()
                .map(|(key, value)| Ok((key.name.clone(), self.value(value)?)))
                .collect::<Evaluated<Value>>()?,
        })
    }

    /// Defines variables one after another, so that each may use those before it. What `stronger`
    /// says of the same name holds.
    pub(super) fn define(&mut self, vars: &Node, stronger: &Value) -> Result<(), TaskError> {
        let Data::Map(entries) = &vars.data else { return Ok(()) };
        for (key, node) in entries {
            let over = stronger.get(&key.name);
            if over.is_some_and(|over| !matches!(over, Value::Map(_))) {
                continue;
            }
            let mut value = match self.value(node) {
                Ok(value) => value,
                Err(Trouble::Wrong(error)) => return Err(error.key(&format!("vars.{}", key.name))),
                Err(Trouble::NotYet) => {
                    self.unknown.insert(key.name.clone());
                    continue;
                }
            };
            if let Some(over) = over {
                value.merge(over.clone());
            }
            self.define_one(&key.name, value);
        }
        Ok(())
    }

    fn define_one(&mut self, name: &str, value: Value) {
        self.unknown.remove(name);
        self.broken.retain(|path, _| path.first().is_none_or(|first| first != name));
        self.set(name, value);
    }

    /// The same for variables that need not all be used: one that cannot be evaluated is remembered
    /// with the reason, down to its own place in a mapping.
    pub(super) fn define_lazily(&mut self, vars: &Vars, stronger: &Value) {
        let Data::Map(entries) = &vars.node.data else { return };
        for (key, node) in entries {
            let mut broken = Vec::new();
            let mut path = vec![key.name.clone()];
            let value = self.lazy(node, stronger.get(&key.name), &mut path, &mut broken);
            match value {
                Some(value) => self.define_one(&key.name, value),
                None => self.define_one(&key.name, Value::Nil),
            }
            for (path, trouble) in broken {
                match trouble {
                    Trouble::NotYet => {
                        self.unknown.insert(key.name.clone());
                    }
                    Trouble::Wrong(error) => {
                        let error = error.key(&format!("vars.{}", path.join(".")));
                        self.broken.insert(path, error.in_file(vars.file.as_ref()));
                    }
                }
            }
        }
    }

    fn lazy(
        &self,
        node: &Node,
        over: Option<&Value>,
        path: &mut Vec<String>,
        broken: &mut Vec<(Vec<String>, Trouble)>,
    ) -> Option<Value> {
        if let Some(over) = over.filter(|over| !matches!(over, Value::Map(_))) {
            return Some(over.clone());
        }
        let Data::Map(entries) = &node.data else {
            return match (over, self.value(node)) {
                (Some(over), _) => Some(over.clone()),
                (None, Ok(value)) => Some(value),
                (None, Err(trouble)) => {
                    broken.push((path.clone(), trouble));
                    None
                }
            };
        };
        let mut value = Value::map();
        for (key, node) in entries {
            path.push(key.name.clone());
            let over = over.and_then(|over| over.get(&key.name));
            if let Some(inner) = self.lazy(node, over, path, broken) {
                value.merge([(key.name.clone(), inner)].into_iter().collect());
            }
            path.pop();
        }
        if let Some(over) = over {
            value.merge(over.clone());
        }
        Some(value)
    }

    /// Sets one variable.
    pub(super) fn set(&mut self, name: &str, value: Value) {
        let Value::Map(vars) = &self.vars else { return };
        let mut vars = (**vars).clone();
        vars.insert(name.to_owned(), value);
        self.vars = vars.into_iter().collect();
    }

    /// The items of a loop: a list, or a text that gives a JSON list.
    pub(super) fn items(&self, node: &Node) -> Evaluated<Vec<Value>> {
        match &node.data {
            Data::List(nodes) => nodes.iter().map(|node| self.value(node)).collect(),
            Data::Scalar { .. } => {
                let text = self.text(node)?;
                match json_list(&text, node.at)? {
                    Some(values) => Ok(values.into_iter().map(Value::from).collect()),
                    None if text.is_empty() || text == "null" => Ok(Vec::new()),
                    None => Err(TaskError::at(node.at, TO_JSON).into()),
                }
            }
            _ => Err(expected(node, "a list, or a text that gives one").into()),
        }
    }

    /// The entries of `auths`. A list is decoded first and its texts are rendered after, so that
    /// quotes in their templates mean what they say; a text is rendered first.
    pub(super) fn auths(
        &self,
        node: &Node,
        base: &Path,
        findings: &mut Findings,
    ) -> Evaluated<Vec<Entry>> {
        let mut entries = Vec::new();
        for node in self.decoded(node)?.list()? {
            let node = self.decoded(node)?;
            entries.push(node.entry(self, base, findings)?);
        }
        Ok(entries)
    }

    /// What a text gives, read as YAML or JSON; everything else as it is.
    fn decoded<'a>(&self, node: impl Into<Decoded<'a>>) -> Evaluated<Decoded<'a>> {
        let decoded = node.into();
        let node = decoded.node();
        let Data::Scalar { text, .. } = &node.data else { return Ok(decoded) };
        if decoded.rendered_at.is_some() {
            return Ok(decoded);
        }
        let rendered = self.render(node.at, text, Missing::Error)?;
        let parsed = Node::parse(&rendered)
            .map_err(|e| TaskError::at(node.at, format!("in the text that it gives, {e}")))?;
        Ok(Decoded { node: Source::Own(parsed), rendered_at: Some(node.at) })
    }
}

/// A part of `auths`, and whether it has come out of a template.
struct Decoded<'a> {
    node: Source<'a>,
    /// Where the template stands: nothing in it is rendered again, and what is wrong is there.
    rendered_at: Option<Position>,
}

enum Source<'a> {
    File(&'a Node),
    Own(Node),
}

impl<'a> From<&'a Node> for Decoded<'a> {
    fn from(node: &'a Node) -> Self {
        Self { node: Source::File(node), rendered_at: None }
    }
}

impl Decoded<'_> {
    fn node(&self) -> &Node {
        match &self.node {
            Source::File(node) => node,
            Source::Own(node) => node,
        }
    }

    fn at(&self) -> Position {
        self.rendered_at.unwrap_or(self.node().at)
    }

    fn list(&self) -> Evaluated<Vec<Decoded<'_>>> {
        match &self.node().data {
            Data::List(items) => Ok(items
                .iter()
                .map(|item| Decoded { node: Source::File(item), rendered_at: self.rendered_at })
                .collect()),
            Data::Null => Ok(Vec::new()),
            _ => {
                let found = self.node().what();
                let reason = format!("expected a list of entries with `repo`, not {found}");
                Err(TaskError::at(self.at(), reason).into())
            }
        }
    }

    fn entry(&self, scope: &Scope, base: &Path, findings: &mut Findings) -> Evaluated<Entry> {
        let Data::Map(keys) = &self.node().data else {
            let reason = format!("expected an entry with `repo`, not {}", self.node().what());
            return Err(TaskError::at(self.at(), reason).into());
        };
        let mut entry = EntryKeys::default();
        for (key, node) in keys {
            let at = self.rendered_at.unwrap_or(node.at);
            let value = match &node.data {
                Data::Null => String::new(),
                Data::Scalar { text, .. } if self.rendered_at.is_some() => text.clone(),
                Data::Scalar { text, .. } => scope.render(at, text, Missing::Error)?,
                _ => {
                    let reason = format!("expected a text, not {}", node.what());
                    return Err(TaskError::at(at, reason)
                        .key(&format!("auths.{}", key.name))
                        .into());
                }
            };
            match entry.set(&key.name, &value) {
                Ok(true) => {}
                Ok(false) => {
                    let at = self.rendered_at.unwrap_or(key.at);
                    findings.warn(
                        TaskError::at(at, "this key is not known and is ignored")
                            .key(&format!("auths.{}", key.name)),
                    );
                }
                Err(reason) => {
                    return Err(TaskError::at(at, reason)
                        .key(&format!("auths.{}", key.name))
                        .into());
                }
            }
        }
        Ok(entry.finish(base).map_err(|reason| TaskError::at(self.at(), reason))?)
    }
}

const TO_JSON: &str = "gives no JSON list; a template ends with `| toJson` to give one";

/// The list that a text is, if it looks like one in JSON. An IPv6 address in brackets does not.
fn json_list(text: &str, at: Position) -> Result<Option<Vec<serde_json::Value>>, TaskError> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    match serde_json::from_str(text) {
        Ok(values) => Ok(Some(values)),
        // What Go prints of a list.
        Err(_) if text.ends_with(']') => Err(TaskError::at(at, TO_JSON)),
        Err(_) => Ok(None),
    }
}

fn expected(node: &Node, what: &str) -> TaskError {
    TaskError::at(node.at, format!("expected {what}, not {}", node.what()))
}

/// Whether a template refers to the variable at `path`, to something in it, or to all of a mapping
/// that it is in. `has_dot`: variables are written with a dot in front, as Go has it.
fn refers_to(text: &str, path: &[String], has_dot: bool) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(first.as_str()).any(|(start, _)| {
        let before = &text[..start];
        let begins = match before.strip_suffix('.') {
            // `.a`, `$.a`, but not `$x.a` or `.x.a`
            Some(before) => !before.ends_with(|c: char| is_part(c) || c == ')'),
            // `index . "a"`, and `a` in Tera
            None if has_dot => {
                before.ends_with(['"', '`']) && (text.contains("index") || text.contains("get"))
            }
            None => !before.ends_with(is_part),
        };
        let mut after = &text[start + first.len()..];
        if !begins || after.starts_with(is_part) {
            return false;
        }
        for name in rest {
            let Some(inner) = after.strip_prefix('.') else { return true };
            match inner.strip_prefix(name.as_str()) {
                Some(inner) if !inner.starts_with(is_part) => after = inner,
                _ => return false,
            }
        }
        true
    })
}

/// Whether the name stands in the text as a word.
pub(super) fn mentions(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(start, _)| {
        !text[..start].chars().next_back().is_some_and(is_part)
            && !text[start + name.len()..].chars().next().is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_template_refers_to() {
        for (text, found) in [
            ("{{ .a.b.c }}", true),
            ("{{ .a.b.c.d | quote }}", true),
            ("{{ .a.b | toJson }}", true),
            ("{{ $.a }}", true),
            ("{{ index . \"a\" }}", true),
            (".a.b.c", true),
            ("{{ .a.b.d }}", false),
            ("{{ .a.bc }}", false),
            ("{{ .x.a.b.c }}", false),
            ("{{ $x.a.b.c }}", false),
            ("{{ (f).a.b.c }}", false),
            ("a/b/{{ .x }}", false),
        ] {
            let path = ["a", "b", "c"].map(str::to_owned);
            assert_eq!(refers_to(text, &path, true), found, "{text}");
        }
        assert!(refers_to("{{ a.b.c }}", &["a".to_owned()], false));
        assert!(!refers_to("{{ x.a }}", &["a".to_owned()], false));
    }

    #[test]
    fn words_are_found() {
        for (text, found) in [
            ("{{ .pulled.status }}", true),
            ("{{ $x.pulled }}", true),
            ("pulled", true),
            ("{{ .pulled2 }} {{ .unpulled }} {{ ._pulled }}", false),
            ("", false),
        ] {
            assert_eq!(mentions(text, "pulled"), found, "{text}");
        }
    }
}
