//! `when`: expressions that must give `true` for a task to be carried out.

use std::sync::Arc;

use super::{
    error::{Position, TaskError},
    evaluate::{Evaluated, Scope},
    node::{Data, Kind, Node},
};
use crate::template::{Dialect, Missing, Template};

/// An expression that must give `true` for the task to be carried out.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    pub(super) at: Position,
    /// As it is written.
    pub(super) text: String,
    constant: Option<bool>,
    dialect: Option<Dialect>,
    file: Option<Arc<str>>,
}

impl Condition {
    /// The expression as a template: what has no braces gets them.
    pub(super) fn template(&self) -> Result<Template, TaskError> {
        let text = match Template::is_template(&self.text) {
            true => self.text.clone(),
            false => format!("{{{{ {} }}}}", self.text),
        };
        Template::parse(&text, self.dialect)
            .map_err(|error| self.error(format!("template {error}")))
    }

    fn error(&self, reason: String) -> TaskError {
        TaskError::at(self.at, reason).in_file(self.file.as_ref())
    }

    /// Whether it gives `true`; nothing, and what has no value, is `false`.
    pub(super) fn holds(&self, scope: &Scope) -> Evaluated<bool> {
        if let Some(constant) = self.constant {
            return Ok(constant);
        }
        let template = self.template()?;
        scope.ready(&self.text)?;
        let rendered = template.render(&scope.vars, Missing::NoValue);
        let rendered = rendered.map_err(|error| self.error(format!("template {error}")))?;
        match rendered.trim().to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" | "" | "<no value>" => Ok(false),
            // What it gives is not shown: it may be anything.
            _ => {
                let reason = format!("`{}` gives neither true nor false", self.text);
                Err(self.error(reason).into())
            }
        }
    }
}

pub(super) fn conditions(
    node: &Node,
    dialect: Option<Dialect>,
    file: Option<&Arc<str>>,
) -> Result<Vec<Condition>, TaskError> {
    let condition = |node: &Node| condition(node, dialect, file);
    match &node.data {
        Data::Null => Ok(Vec::new()),
        Data::List(items) => items.iter().map(condition).collect(),
        _ => Ok(vec![condition(node)?]),
    }
}

fn condition(
    node: &Node,
    dialect: Option<Dialect>,
    file: Option<&Arc<str>>,
) -> Result<Condition, TaskError> {
    let at = node.at;
    let (text, constant) = match &node.data {
        Data::Scalar { kind: Kind::Bool(value), text } => (text.as_str(), Some(*value)),
        Data::Scalar { text, .. } if !text.trim().is_empty() => (text.trim(), None),
        _ => {
            let reason = format!("expected an expression, not {}", node.what());
            return Err(TaskError::at(at, reason));
        }
    };
    Ok(Condition { at, text: text.to_owned(), constant, dialect, file: file.cloned() })
}
