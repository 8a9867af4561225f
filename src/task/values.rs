//! Values of keys that are the same in every module: words, numbers, names.

use super::{
    error::TaskError,
    node::{Data, Node},
};
use crate::{
    backend::registry::flag,
    template::{Dialect, Template},
};

pub(super) fn vars(node: &Node) -> Result<Option<Node>, TaskError> {
    match &node.data {
        Data::Map(_) => Ok(Some(node.clone())),
        Data::Null => Ok(None),
        _ => Err(TaskError::at(node.at, format!("expected a mapping, not {}", node.what()))),
    }
}

/// A list of words, or a text with commas between them.
pub(super) fn words(node: &Node) -> Result<Vec<String>, TaskError> {
    let split = |text: &str| -> Vec<String> {
        text.split(',').map(str::trim).filter(|w| !w.is_empty()).map(str::to_owned).collect()
    };
    let word = |node: &Node| {
        let text = node.text().filter(|text| !Template::is_template(text));
        text.map(split).ok_or_else(|| TaskError::at(node.at, "expected a word"))
    };
    match &node.data {
        Data::Null => Ok(Vec::new()),
        Data::List(items) => Ok(items.iter().map(word).collect::<Result<Vec<_>, _>>()?.concat()),
        _ => word(node),
    }
}

pub(super) fn boolean(node: &Node) -> Result<bool, TaskError> {
    let value = node.text().and_then(|text| flag(text).ok()).flatten();
    value.ok_or_else(|| TaskError::at(node.at, "expected true or false"))
}

pub(super) fn number(node: &Node, most: u32) -> Result<u32, TaskError> {
    let number = node.text().and_then(|text| text.trim().parse().ok()).filter(|n| *n <= most);
    number.ok_or_else(|| TaskError::at(node.at, format!("expected a number from 0 to {most}")))
}

pub(super) fn register(node: &Node) -> Result<String, TaskError> {
    let is_name = |text: &&str| {
        text.chars().all(|c| c.is_alphanumeric() || c == '_')
            && text.chars().next().is_some_and(|c| !c.is_numeric())
            && !matches!(*text, "item" | "module")
    };
    let name = node.text().filter(is_name);
    name.map(str::to_owned).ok_or_else(|| {
        let reason = "expected the name of a variable: letters, digits and `_`, not item or module";
        TaskError::at(node.at, reason)
    })
}

pub(super) fn dialect(node: &Node) -> Result<Dialect, TaskError> {
    match node.text() {
        Some("go") => Ok(Dialect::Go),
        Some("tera") => Ok(Dialect::Tera),
        _ => Err(TaskError::at(node.at, "expected go or tera")),
    }
}
