//! What can be wrong with a template, and where.

use std::fmt;

/// Why a template cannot be read or does not give a text, with the place in the template.
///
/// Shown as `line:column: cause in {{action}}`. Lines and columns count from 1; a column is one of
/// characters, not of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError {
    line: usize,
    column: usize,
    action: String,
    cause: Cause,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The text is not a template.
    #[error("{0}")]
    Syntax(String),
    /// There is no such function in any dialect that we know of.
    #[error("function {name:?} not defined{}", did_you_mean(.similar.as_deref()))]
    UnknownFunction {
        /// As it is written.
        name: String,
        /// The function that was meant, perhaps.
        similar: Option<&'static str>,
    },
    /// The function exists in sprig or in KubeKey, but not here.
    #[error("function {name:?} is not offered by imgfs: {reason}")]
    NotOffered {
        /// As it is written.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A variable or field has no value, and the template is rendered with `Missing::Error`.
    #[error("{0}")]
    Missing(String),
    /// Evaluation failed, as Go would have it.
    #[error("{0}")]
    Evaluation(String),
    /// Evaluation would take more than is allowed.
    #[error("{0}")]
    Limit(String),
    /// A text given to `tpl` is wrong.
    #[error("in the text given to tpl, {0}")]
    Nested(Box<TemplateError>),
    /// Tera says so.
    #[error("{0}")]
    Tera(String),
}

fn did_you_mean(similar: Option<&str>) -> String {
    similar.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
}

impl From<String> for Cause {
    fn from(message: String) -> Self {
        Self::Evaluation(message)
    }
}

impl From<&str> for Cause {
    fn from(message: &str) -> Self {
        Self::Evaluation(message.to_owned())
    }
}

/// The longest part of a template that an error shows, in characters.
const MAX_SHOWN: usize = 120;

impl TemplateError {
    /// An error at byte `at` of the template `text`.
    pub(super) fn new(text: &str, at: usize, cause: impl Into<Cause>) -> Self {
        let at = floor_boundary(text, at);
        let before = &text[..at];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: 1 + before.matches('\n').count(),
            column: 1 + text[line_start..at].chars().count(),
            action: action(text, at),
            cause: cause.into(),
        }
    }

    /// An error whose place is known already.
    pub(super) fn placed(line: usize, column: usize, cause: Cause) -> Self {
        Self { line, column, action: String::new(), cause }
    }

    /// The line of the template, from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// The column in that line in characters, from 1.
    pub fn column(&self) -> usize {
        self.column
    }

    /// The action of the template, such as `{{ .x }}`; shortened, on one line, or empty where the
    /// error belongs to none.
    pub fn action(&self) -> &str {
        &self.action
    }

    /// What is wrong.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, action, cause } = self;
        write!(f, "{line}:{column}: {cause}")?;
        if !action.is_empty() {
            write!(f, " in {action}")?;
        }
        Ok(())
    }
}

impl std::error::Error for TemplateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::Nested(error) => Some(error.as_ref()),
            _ => None,
        }
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// The `{{...}}` around byte `at`, on one line.
fn action(text: &str, at: usize) -> String {
    // The place may be the opening braces themselves.
    let until = floor_boundary(text, at + 2);
    let Some(start) = text[..until].rfind("{{") else { return String::new() };
    let end = text[start..].find("}}").map_or(text.len(), |end| start + end + 2);
    if end <= at {
        return String::new();
    }
    let flat = |c: char| if c.is_control() { ' ' } else { c };
    let shown: String = text[start..end].chars().take(MAX_SHOWN).map(flat).collect();
    if text[start..end].chars().nth(MAX_SHOWN).is_some() { shown + "..." } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters() {
        let text = "é\nüß {{ .x }} {{ y }}";
        let error = TemplateError::new(text, text.find('y').unwrap(), "no");
        assert_eq!(error.to_string(), "2:16: no in {{ y }}");
        let error = TemplateError::new(text, text.find(" {{ y").unwrap(), "no");
        assert_eq!(error.to_string(), "2:12: no");
        assert_eq!(TemplateError::new("", 7, "no").to_string(), "1:1: no");
    }
}
