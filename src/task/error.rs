//! What is wrong with a file of tasks, and where.

use std::{fmt, sync::Arc};

/// A place in the file; both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: u64,
    /// The column in it, in characters.
    pub column: u64,
}

impl From<serde_saphyr::Location> for Position {
    fn from(at: serde_saphyr::Location) -> Self {
        Self { line: at.line(), column: at.column() }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Something that is wrong with the file or with the variables that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskError {
    file: Option<Arc<str>>,
    at: Option<Position>,
    task: Option<String>,
    key: Option<String>,
    reason: String,
}

impl TaskError {
    /// About the file as a whole.
    pub(super) fn file(reason: impl Into<String>) -> Self {
        Self { file: None, at: None, task: None, key: None, reason: reason.into() }
    }

    pub(super) fn at(at: Position, reason: impl Into<String>) -> Self {
        Self { at: Some(at), ..Self::file(reason) }
    }

    /// Says which key it is about; the innermost is said.
    pub(super) fn key(mut self, key: &str) -> Self {
        self.key.get_or_insert_with(|| key.to_owned());
        self
    }

    /// Says which task it is about.
    pub(super) fn task(mut self, name: &str) -> Self {
        self.task.get_or_insert_with(|| name.to_owned());
        self
    }

    /// Says in which file it is, if that is not said already.
    pub(super) fn in_file(mut self, file: Option<&Arc<str>>) -> Self {
        if self.file.is_none() {
            self.file = file.cloned();
        }
        self
    }

    /// Says where in the file that is being read it is, if nothing is said of where it is.
    pub(super) fn at_if_none(mut self, at: Position) -> Self {
        if self.file.is_none() {
            self.at.get_or_insert(at);
        }
        self
    }

    /// The file that it is in, where a playbook is made of several.
    pub fn file_name(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// Where it is, if it is anywhere.
    pub fn position(&self) -> Option<Position> {
        self.at
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(file) = &self.file {
            write!(f, "{file}")?;
            separator = ": ";
        }
        if let Some(at) = self.at {
            write!(f, "{separator}{at}")?;
            separator = ": ";
        }
        if let Some(task) = &self.task {
            write!(f, "{separator}task `{task}`")?;
            separator = ": ";
        }
        if let Some(key) = &self.key {
            write!(f, "{separator}{key}")?;
            separator = ": ";
        }
        write!(f, "{separator}{}", self.reason)
    }
}

impl std::error::Error for TaskError {}

/// Everything that was found while going over the file: one mistake does not hide the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    pub(super) errors: Vec<TaskError>,
    pub(super) warnings: Vec<TaskError>,
}

impl Findings {
    /// Keeps the error, and gives the value if there is one.
    pub(super) fn take<T>(&mut self, result: Result<T, TaskError>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    pub(super) fn error(&mut self, error: TaskError) {
        self.errors.push(error);
    }

    pub(super) fn warn(&mut self, warning: TaskError) {
        self.warnings.push(warning);
    }
}
